"""Importance matrices and the AWQ folds that use them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFWriter

from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.arch.qwen3_5 import QWEN3_5
from mlx_delta.arch.registry import read_config
from mlx_delta.config import Quantization
from mlx_delta.conversion.awq import (
    apply_fold,
    channel_scales,
    clean_importance,
    fold_layer,
    quantization_error,
    search_scales,
)
from mlx_delta.conversion.imatrix import check_importance, read_imatrix
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import ImatrixError
from mlx_delta.model.cache import Cache
from support import GOLDEN, TINY

CONFIG = read_config(TINY)
FIRST_READERS = ("q_proj.weight", "in_proj_qkv.weight", "gate_proj.weight", "o_proj.weight", "out_proj.weight")
LAYER = "language_model.model.layers.0."


def write_imatrix(path: Path, sums: dict[str, np.ndarray], count: float = 4) -> Path:
    writer = GGUFWriter(path, "imatrix")
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values.astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.array([count], dtype=np.float32))
        writer.add_tensor(f"{name}.unknown", np.zeros(1, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_llama_imatrix_is_read() -> None:
    importance = read_imatrix(TINY / "imatrix.gguf", CONFIG)
    assert len(importance) == 62  # 6 linear layers of 8 modules, 2 full ones of 7
    assert importance[f"{LAYER}mlp.down_proj"].shape == (640,)
    assert all(values.dtype == np.float32 and (values >= 0).all() for values in importance.values())
    # The same vector enters all of these.
    assert np.array_equal(importance[f"{LAYER}linear_attn.in_proj_qkv"], importance[f"{LAYER}linear_attn.in_proj_a"])


def test_mean_and_order_of_heads(tmp_path: Path) -> None:
    heads = np.arange(4).repeat(128)
    path = write_imatrix(tmp_path / "i.gguf", {"blk.0.ssm_out.weight": 4 * heads, "blk.0.ffn_up.weight": np.ones(256)})
    importance = read_imatrix(path, CONFIG)
    assert importance[f"{LAYER}linear_attn.out_proj"][::128].tolist() == [0, 2, 1, 3]
    assert np.all(importance[f"{LAYER}mlp.up_proj"] == 0.25)


def test_dat_and_gguf_agree(tmp_path: Path) -> None:
    """Of one run of llama-imatrix; a truncated .dat is refused."""
    dat = GOLDEN / "imatrix.dat"
    new, old = read_imatrix(TINY / "imatrix.gguf", CONFIG), read_imatrix(dat, CONFIG)
    assert new.keys() == old.keys()
    for name, values in new.items():
        assert np.allclose(old[name], values, rtol=1e-6), name
    (tmp_path / "cut.dat").write_bytes(dat.read_bytes()[:50_000])
    with pytest.raises(ImatrixError, match=r"cut\.dat: expected an importance matrix in GGUF form or"):
        read_imatrix(tmp_path / "cut.dat", CONFIG)


@pytest.mark.parametrize("prefix", ["model.language_model.", "model.", "language_model.model."])
def test_names_of_hugging_face_and_mlx(prefix: str, tmp_path: Path) -> None:
    """Their value heads are grouped already."""
    heads = np.arange(4).repeat(128)
    names = {
        f"{prefix}layers.0.linear_attn.out_proj.weight": heads,
        f"{prefix}layers.99.mlp.up_proj.weight": np.ones(256),
    }
    importance = read_imatrix(write_imatrix(tmp_path / "i.gguf", names, count=1), CONFIG)
    assert {name: values[::128].tolist() for name, values in importance.items()} == {
        f"{LAYER}linear_attn.out_proj": [0, 1, 2, 3]
    }


def test_matching_nothing_is_an_error(tmp_path: Path) -> None:
    path = write_imatrix(tmp_path / "i.gguf", {"blk.0.ffn_gate_exps.weight": np.ones(256)})
    with pytest.raises(ImatrixError, match=r"i\.gguf: expected the importance of this model's tensors"):
        read_imatrix(path, CONFIG)
    (tmp_path / "text").write_text("not a GGUF file at all")
    with pytest.raises(ImatrixError, match="in GGUF form"):
        read_imatrix(tmp_path / "text", CONFIG)
    with pytest.raises(ImatrixError, match="no such file"):
        read_imatrix(tmp_path / "absent", CONFIG)


def write_dat(path: Path, sums: dict[str, np.ndarray], calls: int = 4) -> Path:
    parts = [struct.pack("<i", len(sums))]
    for name, values in sums.items():
        parts.append(struct.pack(f"<i{len(name)}sii", len(name), name.encode(), calls, values.size))
        parts.append(values.astype("<f4").tobytes())
    path.write_bytes(b"".join(parts))
    return path


UP, DOWN = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"


@pytest.mark.parametrize("write", [write_imatrix, write_dat])
@pytest.mark.parametrize(
    ("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (-4.0, "-1.0"), (-1e-30, "-2")]
)
def test_values_that_are_no_squares(write: Callable[..., Path], value: float, shown: str, tmp_path: Path) -> None:
    values = np.ones(256)
    values[[7, 9]] = value
    path = write(tmp_path / "i", {DOWN: np.ones(640), UP: values})
    message = rf"i: {UP}: expected finite means of squares, found {shown}.* for channel 7 and 1 more of 256"
    with pytest.raises(ImatrixError, match=message):
        read_imatrix(path, CONFIG)


@pytest.mark.parametrize("write", [write_imatrix, write_dat])
def test_nothing_but_zeros_is_as_never_seen(write: Callable[..., Path], tmp_path: Path) -> None:
    """And told as that; single silent channels are not."""
    silent = np.ones(640)
    silent[:600] = 0
    found = read_imatrix(write(tmp_path / "i", {DOWN: silent, UP: np.zeros(256)}), CONFIG)
    assert list(found) == [f"{LAYER}mlp.down_proj"]
    assert found[f"{LAYER}mlp.down_proj"][:600].max() == 0
    channels = {f"{LAYER}mlp.down_proj": 640, f"{LAYER}mlp.up_proj": 256}
    assert check_importance(found, channels, tmp_path / "i") == [f"{LAYER}mlp.up_proj"]
    with pytest.raises(ImatrixError, match="i: expected means of squares, found nothing but zeros in 2 tensors"):
        read_imatrix(write(tmp_path / "i", {DOWN: np.zeros(640), UP: np.zeros(256)}), CONFIG)


def test_conversion_tells_what_was_never_seen(tmp_path: Path) -> None:
    sums = {f"blk.{i}.ffn_up.weight": np.ones(256) * (i != 3) for i in range(8)}
    path = write_imatrix(tmp_path / "i.gguf", sums)
    report = convert(TINY, tmp_path / "out", bits=4, imatrix=path, dry_run=True)
    (warning,) = report.warnings
    assert "i.gguf: 55 of 62 modules have no importance: " in warning


@pytest.mark.parametrize("count", [np.nan, -1, np.inf])
def test_counts_that_are_none(count: float, tmp_path: Path) -> None:
    path = write_imatrix(tmp_path / "i.gguf", {UP: np.ones(256)}, count)
    with pytest.raises(ImatrixError, match=rf"{UP}\.counts: expected a number of tokens, found {float(count)}"):
        read_imatrix(path, CONFIG)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an importance matrix in GGUF form or llama.cpp's older .dat, found neither"),
        (struct.pack("<i", 1), "found neither"),
        (struct.pack("<ii1sii4x", 1, 1, b"a", 4, -1), "found neither .* with 4 calls and -1 channels"),
        (struct.pack("<ii1sii4x", 1, 1, b"a", -4, 1), "found neither .* with -4 calls and 1 channels"),
        (struct.pack("<i", 2) + struct.pack("<i1siif", 1, b"a", 1, 1, 1.0) * 2, "found neither .*'a' twice"),
        (b"GGUF\0\0\0\3", "expected a little-endian GGUF file, found a big-endian one"),
        (b"GGUF\3\0\0\0", "truncated: expected at least 24 bytes, found 8"),
    ],
)
def test_damaged_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "i").write_bytes(content)
    with pytest.raises(ImatrixError, match=message):
        read_imatrix(tmp_path / "i", CONFIG)


def test_coverage() -> None:
    importance = {"a": np.ones(4, dtype=np.float32)}
    assert check_importance(importance, {"a": 4, "b": 4}, Path("i")) == ["b"]
    with pytest.raises(ImatrixError, match="a: expected 5 channels, found 4"):
        check_importance(importance, {"a": 5}, Path("i"))
    with pytest.raises(ImatrixError, match="expected the importance of b"):
        check_importance(importance, {"b": 4}, Path("i"))


def test_scales_survive_silent_and_broken_channels() -> None:
    importance = np.array([1, 0, np.nan, np.inf, 1e30, 4], dtype=np.float32)
    for values in (importance, np.zeros(6, dtype=np.float32)):
        assert np.isfinite(clean_importance(values)).all()
        scales = channel_scales(values, 1.0)
        assert np.isfinite(scales).all()
        assert ((scales >= 1 / 64.1) & (scales <= 64.1)).all()
    assert np.all(channel_scales(importance, 0.0) == 1)


def test_fold_keeps_the_product() -> None:
    """Norm [K] -> two matrices, and rows -> columns, with scales over a wide range: equal in float32."""
    mx.random.seed(0)
    x = mx.random.normal((8, 256))
    scales = channel_scales(np.exp(np.random.default_rng(0).normal(0, 3, 256)), 1.0)
    norm, weights = 1 + mx.random.normal((256,)), [mx.random.normal((64, 256)), mx.random.normal((32, 256))]
    folded, columns, _ = apply_fold(norm, weights, scales)
    assert folded.dtype == mx.bfloat16
    for before, after in zip(weights, columns, strict=True):
        assert relative((x * folded.astype(mx.float32)) @ after.T, (x * norm) @ before.T) < 1e-6
    up, down = mx.random.normal((256, 256)), mx.random.normal((32, 256))
    rows, (after,), _ = apply_fold(up, [down], scales)
    assert relative((x @ rows.T) @ after.T, (x @ up.T) @ down.T) < 1e-6


@pytest.mark.parametrize("ratio", [None, 0.7])
def test_folded_model_equals_the_original(ratio: float | None) -> None:
    """All six kinds of fold at once, by a random importance over four orders of magnitude, unquantized in float32."""
    tensors = open_checkpoint(TINY).tensors
    arrays = {name: tensors[name].load().astype(mx.float32) for name in QWEN3_5.text_shapes(CONFIG)}
    rng = np.random.default_rng(0)
    importance = {name.removesuffix(".weight"): wide(rng, array.shape[-1]) for name, array in arrays.items()}
    folded, producers = dict(arrays), set()
    for layer in range(CONFIG.text.num_layers):
        prefix = f"language_model.model.layers.{layer}."
        members = {name: array for name, array in arrays.items() if name.startswith(prefix)}
        widths = {name: Quantization(2, 64) if array.ndim == 2 else None for name, array in members.items()}
        found = fold_layer(prefix, members, widths, importance, QWEN3_5.folds, ratio)
        folded |= found.arrays
        producers |= {gain.producer.removeprefix(prefix) for gain in found.gains if gain.ratio > 0}
        for name in (n for n in members if ratio is not None and n.endswith(FIRST_READERS)):
            s = np.median(np.array(found.arrays[name] / members[name]), axis=0)  # they read x / s now
            module = name.removesuffix(".weight")
            assert np.allclose(found.importance[module] * s**2, clean_importance(importance[module]), rtol=1e-2), name
    assert producers == {fold.producer for fold in QWEN3_5.folds}
    if ratio is not None:  # the search may find that a fold gains nothing
        assert not [n for n in arrays if n.endswith("_proj.weight") and mx.array_equal(folded[n], arrays[n])]
    ids = mx.array(CONFIG.text.vocab_size * np.arange(40) // 41)[None]
    logits = [
        QWEN3_5.network(CONFIG, weights, mx.float32)(ids, Cache.empty(CONFIG.text)) for weights in (arrays, folded)
    ]
    assert relative(logits[1], logits[0]) < 3e-6


def wide(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.exp(rng.normal(0, 2, count)).astype(np.float32)


def test_search_never_loses() -> None:
    """On the tiny model the searched folds lower the importance-weighted error of whole matrices; ties go to s = 1."""
    tensors, importance = open_checkpoint(TINY).tensors, read_imatrix(TINY / "imatrix.gguf", CONFIG)
    width = Quantization(4, 64)
    before = after = 0.0
    for layer in range(CONFIG.text.num_layers):
        module = f"language_model.model.layers.{layer}.mlp.down_proj"
        weight, x2 = tensors[f"{module}.weight"].load(), importance[module]
        scales, ratio, plain, error = search_scales([(weight, width)], x2)
        assert error < plain if ratio else error == plain
        before += quantization_error(weight, width, np.ones_like(x2), x2)
        after += quantization_error(weight, width, scales, x2)
    assert after < before
    assert search_scales([(mx.ones((4, 64)), width)], np.ones(64, dtype=np.float32))[1] == 0


def relative(found: mx.array, expected: mx.array) -> float:
    """rms(found - expected) / rms(expected), in float64."""
    a, b = (np.array(x.astype(mx.float32), dtype=np.float64) for x in (found, expected))
    return float(np.sqrt(((a - b) ** 2).mean() / (b**2).mean()))
