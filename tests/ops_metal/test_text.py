"""What holds for the text of every kernel, whatever it computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from msl.address_spaces import without_comments
from support import ROOT

FILES = sorted(path for path in (ROOT / "metal").iterdir() if path.suffix in (".h", ".metal"))
TWO_PRECISIONS = r"exp|exp2|exp10|log|log2|log10|sin|cos|tan|sinh|cosh|tanh|asin|acos|atan|atan2|pow|powr|sqrt|rsqrt"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_functions_of_two_precisions_are_called_by_their_full_name(path: Path) -> None:
    """A bare exp() is the precise one on macOS 14 and the fast one from 15 on."""
    assert re.findall(rf"(?<!precise::)(?<!fast::)\b(?:{TWO_PRECISIONS})\(", without_comments(path.read_text())) == []
