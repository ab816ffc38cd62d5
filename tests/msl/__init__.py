"""Runs Metal kernels on a CPU, and finds what is wrong in them. See README.md."""

from .arguments import Output
from .compiler import CompileError, Diagnostic, Unsupported, find_compiler
from .native import Finding, LaunchError
from .runner import Library, Result, Traffic, strict_compile
from .source import SourceError

__all__ = [
    "CompileError",
    "Diagnostic",
    "Finding",
    "LaunchError",
    "Library",
    "Output",
    "Result",
    "SourceError",
    "Traffic",
    "Unsupported",
    "find_compiler",
    "strict_compile",
]
