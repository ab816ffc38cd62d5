"""Compiles Metal kernels for NVIDIA's GPUs, whose text (PTX) needs neither a GPU nor CUDA to be made. See README.md."""

from .compiler import Kernel, compile_kernel, find_clang
from .ptx import Entry, Parameter, read_ptx

__all__ = ["Entry", "Kernel", "Parameter", "compile_kernel", "find_clang", "read_ptx"]
