"""Compiles Metal kernels for NVIDIA's GPUs, whose text (PTX) needs neither a GPU nor CUDA to be made. See README.md."""

from .compiler import ARCHITECTURE, Kernel, compile_kernel, constant_symbol, kernels_of
from .ptx import Entry, Parameter, read_ptx

__all__ = [
    "ARCHITECTURE",
    "Entry",
    "Kernel",
    "Parameter",
    "compile_kernel",
    "constant_symbol",
    "kernels_of",
    "read_ptx",
]
