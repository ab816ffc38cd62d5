"""Benches: every time stands beside its floor, bytes over the read bandwidth that the same run measured.

    cases        the registry of op cases, which the tests use too
    sizes        the published sizes' configs
    timing       medians of interleaved runs, and the read bandwidth
    checks       nothing is reported while an op differs from its reference
    kernels      one row an op
    random_model a checkpoint of any size with random weights, in packed form, in memory or on disk
    whole_model  decode and prefill of a whole model
    roofline     what the plot shows

``mlx-delta bench`` runs them; the repository's bench/peers.py compares with mlx-lm and llama.cpp.
"""
