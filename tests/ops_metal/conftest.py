"""The kernels run through the runner in tests/msl; without it there is nothing to collect."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("msl") else ["test_kernels.py"]
