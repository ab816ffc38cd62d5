"""The KV cache as it grows."""

from __future__ import annotations

import sys

import mlx.core as mx
import pytest

from mlx_delta.model import cache


@pytest.mark.parametrize(("system", "moved"), [("linux", [5 << 20]), ("darwin", [])])
def test_a_large_one_is_evaluated_only_where_there_are_huge_pages(
    system: str, moved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation in the middle of a token would wait for a GPU, for nothing on a Mac."""
    calls: list[int] = []
    monkeypatch.setattr(cache, "use_huge_pages", lambda a: calls.append(a.nbytes))
    monkeypatch.setattr(sys, "platform", system)
    cache.in_huge_pages(mx.zeros((5 << 20,), mx.uint8))
    assert calls == moved
