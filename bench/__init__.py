"""Benches: ``python -m bench.ops`` and others. Every time stands beside its floor, bytes over bandwidth."""
