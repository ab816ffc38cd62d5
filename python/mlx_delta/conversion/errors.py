"""The error of this package."""

from __future__ import annotations


class ConvertError(ValueError):
    """A conversion cannot be done as asked: says which argument, file or tensor, what was expected, what was found."""
