"""Checkpoints as named tensors: where they come from (``source``), and MLX's convention for them (``names``)."""
