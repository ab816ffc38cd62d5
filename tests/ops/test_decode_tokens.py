"""Where decoding ends: ops, their GPU plans and the network take other kernels after the same number of tokens."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_delta import _core, ops
from mlx_delta.loading import load_model
from support import TINY

LAST = _core.DECODE_TOKENS


def gated_delta(T: int) -> mx.array:
    heads, gates = mx.zeros((1, T, 2, 64)), mx.zeros((1, T, 2))
    return ops.gated_delta(heads, heads, heads, gates, gates, mx.zeros(2), mx.zeros(2))[0]


@pytest.mark.parametrize(
    ("tokens", "kernels"), [(LAST, ["gated_delta"]), (LAST + 1, ["gated_delta_wy", "gated_delta_chunks"])]
)
def test_gated_delta_goes_by_chunks_on_a_gpu(tokens: int, kernels: list[str]) -> None:
    launches = _core.plan(gated_delta(tokens))[0].launches
    assert [launch.kernel.split("_float")[0] for launch in launches] == kernels


def test_qmm_has_a_kernel_for_as_many_rows_on_a_gpu() -> None:
    weight = mx.zeros((8, 64))
    assert len(_core.plan(ops.qmm(mx.zeros((LAST, 64)), [weight]))[0].launches) == 1
    with pytest.raises(ValueError, match=f"no kernel for {LAST + 1} rows"):
        _core.plan(ops.qmm(mx.zeros((LAST + 1, 64)), [weight]))


@pytest.mark.parametrize("tokens", [LAST, LAST + 1])
def test_the_network_takes_the_mixer_apart(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("delta_mixer", "gated_delta"):
        op = getattr(ops, name)
        monkeypatch.setattr(
            ops, name, lambda *args, _op=op, _name=name, **kw: (calls.append(_name), _op(*args, **kw))[1]
        )
    load_model(TINY).forward(mx.ones((1, tokens), mx.int32))
    assert set(calls) == {"delta_mixer" if tokens == LAST else "gated_delta"}
