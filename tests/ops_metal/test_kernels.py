"""Every Metal kernel, by the Launch that the op's plan gives, against the op's float32 reference.

The launches run on a CPU (tests/msl), so a Mac is not needed. The same cases as on the CPU's own kernels.
"""

from __future__ import annotations

import mlx.core as mx
import pytest
from emulate import emulate, run_plan

from mlx_delta import _core, ops
from mlx_delta.bench.cases import BOUNDS, CASES, DTYPES, Case, as_list, relative_rms
from mlx_delta.bench.cases.launches import specialisations
from msl import Library
from support.devices import ODD_HEADS, has_metal_kernel
from support.launches import firsts_of_a_kind
from support.padded import Batch, padded_batches


def has_kernel(case: Case) -> bool:
    """Some ops, and products of more rows, are MLX's operations on a GPU; heads have multiples of 32."""
    if not has_metal_kernel(case.op):
        return False
    if case.op in ("qmm", "route", "experts"):
        x = case.arguments(mx.float32)["x"]
        return x.size <= _core.DECODE_TOKENS * x.shape[-1]
    return case not in ODD_HEADS


# At most, of a value.
HALF_ULP = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
HALF_ULP |= dict.fromkeys((mx.int32, mx.uint32, mx.uint8), 0.0)
SMALL = [case for case in CASES if not case.real and has_kernel(case)]
ids = {"argnames": "case", "argvalues": SMALL, "ids": [case.id for case in SMALL]}
IN_HALF = set(firsts_of_a_kind(mx.float16).values())


def same(found: list[mx.array], expected: list[mx.array]) -> bool:
    return all(mx.array_equal(f, e) for f, e in zip(found, expected, strict=True))


def beyond_one_rounding(found: mx.array, reference: mx.array) -> float:
    """The largest error that one rounding of the exact value does not explain, over the rms of the reference, in
    float32. A maximum of thousands of values: five times a bound in rms."""
    f, r = found.astype(mx.float32), reference.astype(mx.float32)
    error = mx.abs(f - r) - HALF_ULP[found.dtype] * mx.abs(r)
    return float(mx.max(error) / mx.sqrt(mx.mean(mx.square(r)) + 1e-30))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case.id}-{name}")
        for name, dtype in DTYPES.items()
        for case in SMALL
        if dtype != mx.float16 or case.id in IN_HALF
    ],
)
def test_matches_the_reference(case: Case, dtype: mx.Dtype) -> None:
    """And the order in which simdgroups and lanes take turns changes nothing."""
    found, expected = emulate(case, dtype), case.reference(case.arguments(dtype))
    assert len(found) == len(expected)
    assert same(found, emulate(case, dtype, order="reverse"))
    for result, reference in zip(found, expected, strict=True):
        assert result.shape == reference.shape
        assert relative_rms(result, reference) <= BOUNDS[dtype]
        assert beyond_one_rounding(result, reference) <= 5 * BOUNDS[mx.float32]


@pytest.mark.parametrize(**ids)
def test_no_race_no_stray_access_no_divergence(case: Case) -> None:
    """The checker raises for what it finds; it also counts a read of what nobody wrote."""
    emulate(case, mx.bfloat16, check=True)


def instances_by_text() -> dict[str, dict[str, str]]:
    """For each function that is instantiated, the file's text and the instances, by name, that the cases need."""
    found: dict[str, dict[str, str]] = {}
    for name, use in specialisations().items():
        text, instance = use.launch.source.rsplit("\ntemplate", 1)
        function = instance.split("decltype(")[1].split("<")[0]
        found.setdefault(function, {"": text})[name] = "template" + instance
    return found


@pytest.mark.parametrize("function", instances_by_text())
def test_compiles_without_a_warning(function: str) -> None:
    text = "\n".join(instances_by_text()[function].values())
    assert text.isascii()
    assert Library(text).strict_compile(flags=["-Wshadow"]) == []


@pytest.mark.parametrize("function", instances_by_text())
def test_half_types_may_be_computed_with_excess_precision(function: str) -> None:
    """Everything is float between load and store, so there is nothing that excess precision could change."""
    assert not Library("\n".join(instances_by_text()[function].values())).depends_on_excess_precision()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_qmm_rows_are_identical_whatever_the_batch(bits: int) -> None:
    case = next(c for c in CASES if c.id == f"qmm-b{bits}g64")
    arguments = case.arguments(mx.bfloat16)
    x = mx.random.normal((16, arguments["x"].shape[1]), key=mx.random.key(bits)).astype(mx.bfloat16)
    norm = mx.ones(x.shape[1])
    together = run_plan([ops.qmm(x, arguments["segments"], norm=norm)])[0][0]
    for M in (1, 2, 3, 7):
        part = run_plan([ops.qmm(x[:M], arguments["segments"], norm=norm)])[0][0]
        assert mx.array_equal(part, together[:M])


@pytest.mark.parametrize("i", [0, 3, 5])
def test_a_sequence_among_others_has_the_bits_of_the_kernel_for_one(i: int) -> None:
    """One token; eight that may be taken back; and after as many pending ones."""
    made = next(c for c in CASES if c.id == "delta_mixer_rows-mixed-h1x2d64").arguments(mx.bfloat16)
    y, *states = run_plan(as_list(ops.delta_mixer_rows(**made)))[0]
    first = sum(made["counts"][:i])
    of_one = {name: made[name][i : i + 1] for name in ("conv_states", "delta_states", "counts", "pending", "keep")}
    rows = slice(first, first + made["counts"][i])
    alone = ops.delta_mixer_rows(**{**made, **of_one, "projection": made["projection"][rows]})
    expected, plan = run_plan(as_list(alone))
    assert [launch.kernel.split("_bf")[0] for launch in plan.launches] == ["delta_mixer"]
    assert same([y[rows], states[i], states[8 + i]], expected)


@pytest.mark.parametrize("name", ["9h4:2d64", "mixed-h2:1d64-kv8", "mixed-h6:2d128"])
def test_a_row_of_attention_among_others_has_the_bits_of_the_kernels_for_one(name: str) -> None:
    """Whose contexts are longer and shorter, and of its own sequence those before and after it."""
    made = next(c for c in CASES if c.id == f"attention_rows-{name}").arguments(mx.bfloat16)
    y, *caches = run_plan(as_list(ops.attention_rows(**made)))[0]
    counts = made["counts"] or [1] * len(made["keys"])
    first = 0
    for i, count in enumerate(counts):
        cached = [made["keys"][i], made["values"][i]]
        for t in range(count):
            row = slice(first + t, first + t + 1)
            of_token = {
                "projection": made["projection"][row],
                "keys": cached[0],
                "values": cached[1],
                "offset": made["offsets"][i] + t,
                "positions": None if made["positions"] is None else made["positions"][:, None, row],
            }
            of_all = {n: made[n] for n in ("q_norm", "k_norm", "rope_theta", "rope_dim", "rope_sections")}
            q, *cached = run_plan(list(ops.attention_prepare(**of_token, **of_all)))[0]
            alone = ops.attention(
                q, made["projection"][row], *cached, length=of_token["offset"] + 1, scale=made["scale"]
            )
            assert same(run_plan([alone])[0], [y[row]]), (i, t)
        assert same(cached, [caches[i], caches[len(counts) + i]])
        first += count


PADDED = [pytest.param(b, id=f"{b.id}-{name}") for name, dtype in DTYPES.items() for b in padded_batches(dtype)]


@pytest.mark.parametrize("batch", PADDED)
def test_a_padded_sequence_has_the_bits_it_has_alone(batch: Batch) -> None:
    """Chunks, and splits of a long context, are counted from where the sequence begins."""
    batch.check(lambda results: run_plan(results)[0])


def test_an_embedding_of_an_unknown_token_is_nan() -> None:
    rows = run_plan([ops.embedding(mx.array([1, 4, -1]), ops.Matrix.plain(mx.ones((4, 8))), mx.float32)])[0][0]
    assert mx.all(mx.isnan(rows), axis=1).tolist() == [False, True, True]


@pytest.mark.parametrize("case", ODD_HEADS, ids=lambda case: case.id)
def test_head_dims_that_lanes_cannot_share_are_refused(case: Case) -> None:
    op = "delta_mixer" if case.op == "delta_mixer_rows" else case.op  # the same primitive
    with pytest.raises(ValueError, match=f"{op}: head dim: expected a multiple of 32 up to 256.*found (36|72)"):
        _core.plan(case.run(case.arguments(mx.bfloat16))[0])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_rows_in_8_bits_are_those_of_the_plain_cache_quantized(dtype: mx.Dtype) -> None:
    """Byte for byte, of this kernel's own results; a value that is not finite shows in its group alone."""
    case = next(c for c in CASES if c.op == "attention_prepare" and c.name.endswith("-kv8"))
    arguments = case.arguments(dtype)
    arguments["projection"][0, 0, -1] = mx.inf
    D = arguments["q_norm"].shape[0]
    plain = {name: ops.dequantize_kv(arguments[name], D).astype(dtype) for name in ("keys", "values")}
    found, expected = (
        run_plan(list(ops.attention_prepare(**given)))[0] for given in (arguments, {**arguments, **plain})
    )
    new = slice(arguments["offset"], arguments["offset"] + arguments["projection"].shape[1])
    assert mx.array_equal(found[0], expected[0])
    for rows, exact, before in zip(found[1:], expected[1:], (arguments["keys"], arguments["values"]), strict=True):
        assert mx.array_equal(rows[:, :, new], ops.quantize_kv(exact[:, :, new]))
        assert mx.array_equal(rows[:, :, : new.start], before[:, :, : new.start])
    assert mx.isnan(ops.dequantize_kv(found[2], D)).sum().item() == 64


def test_attention_over_a_long_context_is_split() -> None:
    case = next(c for c in CASES if c.op == "attention" and c.real)
    arguments = case.arguments(mx.bfloat16)
    found, plan = run_plan(case.run(arguments))
    assert plan.launches[0].threadgroups[0] == 16
    assert relative_rms(found[0], case.reference(arguments)[0]) <= BOUNDS[mx.bfloat16]
