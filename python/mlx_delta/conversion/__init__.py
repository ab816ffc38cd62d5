"""Conversion of a checkpoint to a quantized MLX one.

    source -> canonical names -> AWQ fold -> recipe -> quantize -> write

One tensor, or one layer where AWQ ties its tensors together, is in memory at a time. ``pipeline.convert`` is the way
in.
"""
