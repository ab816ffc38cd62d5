"""Every case of the registry against its float32 reference: values, layouts, compilation, batches, states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import _core, ops
from mlx_delta.bench.cases import (
    BOUNDS,
    CASES,
    DTYPES,
    Arguments,
    Case,
    as_list,
    cases_of,
    relative_rms,
)
from mlx_delta.bench.cases.draws import normal
from mlx_delta.bench.cases.qmm import QmmCase
from support.devices import refuses
from support.padded import padded_batches

SMALL = [case for case in CASES if not case.real]
LAST = _core.DECODE_TOKENS


@pytest.fixture(params=_core.cpu_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine runs."""
    before = _core.cpu_isa()
    _core.use_cpu_isa(request.param)
    yield request.param
    _core.use_cpu_isa(before)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_matches_the_reference(case: Case, dtype: mx.Dtype, device: mx.Device) -> None:
    """On every instruction set of this machine and on its GPU, against one reference."""
    arguments = case.arguments(dtype)
    if refuses(device, case):
        with pytest.raises(ValueError, match="head dim: expected a multiple of 32 up to 256 on a GPU"):
            case.run(arguments)
        return
    expected = case.reference(arguments)
    chosen = _core.cpu_isa()
    try:
        for isa in _core.cpu_isas() if device == mx.Device(mx.cpu) else [chosen]:
            _core.use_cpu_isa(isa)
            found = case.run(arguments)
            assert len(found) == len(expected)
            for result, reference in zip(found, expected, strict=True):
                assert result.shape == reference.shape
                assert relative_rms(result, reference) <= BOUNDS[dtype], isa
    finally:
        _core.use_cpu_isa(chosen)


# Those of 512 rows take the kernel of m200 for seconds; benches check them.
REAL = [case for case in cases_of("9B") if case.real and not case.name.endswith("-m512")]
# The reference is what takes time: of each unit of 16 rows of a matrix two or three are compared.
REAL = [replace(case, every=7) if isinstance(case, QmmCase) and not case.thinned else case for case in REAL]


@pytest.mark.parametrize("case", REAL, ids=lambda case: case.id)
def test_matches_the_reference_on_the_shapes_of_the_9b(case: Case) -> None:
    for result, reference in case.compare(case.arguments(mx.bfloat16)):
        assert relative_rms(result, reference) <= BOUNDS[mx.bfloat16]


def relaid(value: object, lay: Callable[[mx.array], mx.array]) -> object:
    """The same values in another layout; packed matrices likewise."""
    if isinstance(value, list):
        return [relaid(v, lay) for v in value]
    if isinstance(value, ops.Matrix):
        if value.bits == 0:
            return ops.Matrix.plain(lay(value.weight))
        return ops.Matrix.affine(lay(value.weight), lay(value.scales), lay(value.biases), value.bits, value.group_size)
    return lay(value) if isinstance(value, mx.array) else value


def spread(array: mx.array) -> mx.array:
    """On every other element of a wider array."""
    wide = mx.contiguous(mx.repeat(array, 2, axis=-1))
    mx.eval(wide)
    return wide[..., ::2]


def cut(array: mx.array) -> mx.array:
    """Columns of wider rows, as a part of a projection lies: of [B, T, ..] all that a token has."""
    flat = array.reshape(*array.shape[:2], -1) if array.ndim > 2 else array
    wide = mx.concatenate([junk(flat[..., :1]), flat, junk(flat[..., :1])], axis=-1)
    mx.eval(wide)
    return wide[..., 1:-1].reshape(array.shape)


def stretch(array: mx.array) -> mx.array:
    """Rows of a longer array: [B, T, ..] of sequences of T + 1 tokens."""
    if array.ndim < 2:
        return array
    wide = mx.concatenate([junk(array[:, :1]), array], axis=1)
    mx.eval(wide)
    return wide[:, 1:]


def junk(array: mx.array) -> mx.array:
    ones = mx.ones(array.shape, array.dtype)
    return ones * float("nan") if mx.issubdtype(array.dtype, mx.floating) else ones


@pytest.mark.parametrize("lay", [spread, cut, stretch], ids=lambda lay: lay.__name__)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_inputs_need_not_be_contiguous(case: Case, lay: Callable[[mx.array], mx.array]) -> None:
    arguments = case.arguments(mx.float32)
    scattered = {name: relaid(value, lay) for name, value in arguments.items()}
    for result, reference in zip(case.run(scattered), case.run(arguments), strict=True):
        assert mx.array_equal(result, reference)


@pytest.mark.parametrize("op", ["conv1d", "gated_delta", "gated_norm"])
def test_parts_of_a_projection_are_read_where_they_lie(op: str) -> None:
    """In prefill they are megabytes a layer: nothing but the results is allocated."""
    B, T, Hk, Hv, D = 1, 128, 2, 4, 128
    rng = np.random.default_rng(0)
    shapes = {
        "conv1d": {"x": (B, T, 1024), "weight": (1024, 4), "state": (B, 3, 1024)},
        "gated_delta": {
            **{"q": (B, T, Hk, D), "k": (B, T, Hk, D), "v": (B, T, Hv, D), "a": (B, T, Hv), "b": (B, T, Hv)},
            **{"A_log": (Hv,), "dt_bias": (Hv,), "state": (B, Hv, D, D)},
        },
        "gated_norm": {"y": (B, T, Hv, D), "z": (B, T, Hv, D), "norm": (D,)},
    }[op]
    arguments = {name: normal(rng, *shape) for name, shape in shapes.items()}
    parts = next(case for case in CASES if case.op == op).sliced
    arguments = {name: cut(value) if name in parts else value for name, value in arguments.items()}
    mx.eval(arguments)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    results = as_list(getattr(ops, op)(**arguments))
    mx.eval(results)
    assert mx.get_peak_memory() - before < sum(r.nbytes for r in results) + (16 << 10)


@pytest.fixture
def compiling() -> Iterator[None]:
    """Which is switched off for all tests."""
    mx.enable_compile()
    yield
    mx.disable_compile()


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_works_under_compile(case: Case) -> None:
    """With an operation behind it that MLX fuses with nothing, so that it needs no C++ compiler."""
    arguments = case.arguments(mx.bfloat16)
    arrays = {name: value for name, value in arguments.items() if isinstance(value, mx.array)}
    rest = {name: value for name, value in arguments.items() if name not in arrays}
    compiled = mx.compile(lambda **inputs: [r[None] for r in case.run({**rest, **inputs})])
    for _ in range(2):  # traced, then replayed
        for result, reference in zip(compiled(**arrays), case.run(arguments), strict=True):
            assert mx.array_equal(result[0], reference)


@pytest.mark.parametrize(
    ("case", "with_norm"),
    [
        *(
            (case, True)
            for case in ["b2g32", "b3g64m4", "b4g128m4", "b5g32", "b6g64", "b8g64", "plain-bfloat16", "scales-float16"]
        ),
        ("b5g64m4", False),
        ("plain-bfloat16", False),
        ("plain-blocks", False),
    ],
)
def test_qmm_rows_are_identical_whatever_the_batch(case: str, with_norm: bool, isa: str) -> None:
    arguments = next(c for c in CASES if c.id == f"qmm-{case}").arguments(mx.bfloat16)
    x = mx.random.normal((16, arguments["x"].shape[1]), key=mx.random.key(7)).astype(mx.bfloat16)
    norm = mx.ones(x.shape[1]) if with_norm else None
    together = ops.qmm(x, arguments["segments"], norm=norm)
    for M in range(1, 16):
        part = ops.qmm(x[:M], arguments["segments"], norm=norm)
        assert mx.array_equal(part, together[:M])
    # Decoding many sequences, and prompts of one length: what a row gets depends on its own sequence alone.
    many = mx.concatenate([x, x[:5]])
    decoded = ops.qmm(many[:, None], arguments["segments"], norm=norm)
    assert mx.array_equal(decoded[:16, 0], together)
    prompts = ops.qmm(mx.stack([many, many[::-1]]), arguments["segments"], norm=norm)
    for T in (17, 20):
        alone = ops.qmm(many[:T], arguments["segments"], norm=norm)
        assert mx.array_equal(prompts[0, :T], alone)


def split_time(arguments: Arguments, names: tuple[str, ...], at: int) -> tuple[Arguments, Arguments]:
    first = {n: v[:, :at] if n in names and v is not None else v for n, v in arguments.items()}
    second = {n: v[:, at:] if n in names and v is not None else v for n, v in arguments.items()}
    return first, second


def test_the_last_row_of_a_prompt_may_be_a_block_of_its_own() -> None:
    """97 rows of 65,536 columns are four blocks, of 32, 32, 32 and 1: the last row has the bits it has among 17."""
    mx.random.seed(0)
    matrix = ops.Matrix.affine(*mx.quantize(mx.random.normal((480, 65536)).astype(mx.bfloat16), bits=4), 4, 64)
    x = mx.random.normal((1, 97, 65536)).astype(mx.bfloat16)
    assert mx.array_equal(ops.qmm(x, [matrix])[:, -1], ops.qmm(x[:, -17:], [matrix])[:, -1])


@pytest.mark.parametrize("case", [c for c in SMALL if c.over_time], ids=lambda case: case.id)
def test_states_carry_over(case: Case, device: mx.Device) -> None:
    if refuses(device, case):
        pytest.skip("a GPU takes heads of a multiple of 32 alone")
    arguments = case.arguments(mx.float32)
    names = case.over_time
    T = arguments[names[0]].shape[1]
    whole = case.run(arguments)
    for at in {1, T // 2, T - 1} - {0, T}:
        first, second = split_time(arguments, names, at)
        y1, *states = case.run(first)
        y2, *final = case.run({**second, **dict(zip(case.states, states, strict=True))})
        assert relative_rms(mx.concatenate([y1, y2], axis=1), whole[0]) <= 1e-5
        for found, expected in zip(final, whole[1:], strict=True):
            assert relative_rms(found, expected) <= 1e-5


def test_a_state_that_is_still_held_is_not_overwritten() -> None:
    case = next(c for c in SMALL if c.op == "delta_mixer")
    arguments = case.arguments(mx.float32)
    before = arguments["delta_state"] + 0
    mx.eval(before)
    mx.eval(case.run(arguments))
    assert mx.array_equal(arguments["delta_state"], before)


def test_a_state_that_nobody_holds_is_updated_in_place() -> None:
    """One token of the 9B's mixer must not copy its 2 MB of state: the active memory does not grow by it."""
    case = next(c for c in CASES if c.op == "delta_mixer" and c.real)
    arguments = case.arguments(mx.bfloat16)
    mx.eval([v for v in arguments.values() if isinstance(v, mx.array)])
    state_bytes = arguments["delta_state"].nbytes
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(3):
        mx.eval(case.step(arguments))
    assert mx.get_peak_memory() - before < state_bytes // 2


def alone(case: Case, arguments: Arguments, row: int, padding: int) -> Arguments:
    """One sequence of the batch, without its padding."""
    mine = {name: value[row : row + 1, padding:] for name, value in arguments.items() if name in case.over_time}
    states = {name: arguments[name] for name in case.states if arguments[name] is not None}
    return {**arguments, **mine, **{name: state[row : row + 1] for name, state in states.items()}, "mask": None}


@pytest.mark.parametrize("case", [c for c in SMALL if "mask" in c.over_time], ids=lambda case: case.id)
def test_padding_of_any_length_changes_no_bit(case: Case, isa: str) -> None:
    arguments = case.arguments(mx.bfloat16)
    B, T = arguments[case.over_time[0]].shape[:2]
    most = T // 2 if T <= LAST or T // 2 > LAST else T - LAST - 1  # a prompt stays one
    paddings = [most * (row + 1) // B for row in range(B)]
    arguments["mask"] = mx.arange(T) >= mx.array(paddings)[:, None]
    y, *states = case.run(arguments)
    for row, padding in enumerate(paddings):
        expected, *after = case.run(alone(case, arguments, row, padding))
        assert mx.array_equal(y[row, padding:], expected[0])
        assert not mx.any(y[row, :padding])
        for found, state in zip(states, after, strict=True):
            assert mx.array_equal(found[row], state[0])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_a_padded_sequence_has_the_bits_it_has_alone(dtype: mx.Dtype, isa: str) -> None:
    """Chunks, and stretches of a long context, are counted from where the sequence begins."""
    for batch in padded_batches(dtype):
        batch.check(lambda results: results)


def test_an_embedding_of_an_unknown_token_is_nan() -> None:
    table = ops.Matrix.plain(mx.ones((4, 8)))
    rows = ops.embedding(mx.array([1, 4, -1]), table, mx.float32)
    assert mx.all(mx.isnan(rows), axis=1).tolist() == [False, True, True]
