"""Qwen3.5 with experts: its model against mlx-lm's, its layouts of experts, its config, its figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import convert as convert_mlx_lm
from mlx_lm.utils import load_model as load_mlx_lm

from mlx_delta import ops
from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.arch.qwen3_5_moe import QWEN3_5_MOE
from mlx_delta.arch.registry import parse_config, read_config
from mlx_delta.bench.cases import relative_rms
from mlx_delta.calibrate.importance import measure_importance
from mlx_delta.config import Quantization
from mlx_delta.conversion.awq import fold_layer
from mlx_delta.conversion.imatrix import read_imatrix, unseen_experts, write_imatrix
from mlx_delta.conversion.imatrix_file import Calibration, read_means, write_dat, write_gguf
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import CheckpointError, ConfigError
from mlx_delta.loading import load_checkpoint, load_model
from mlx_delta.model.cache import empty_state
from mlx_delta.model.experts import Experts
from mlx_delta.model.layers import Window
from mlx_delta.model.network import LAYERS as LAYER
from mlx_delta.summary import summarize
from support.experts import CHOSEN, EXPERTS, HIDDEN, INNER, LAYERS, SHARED, write_experts
from support.gguf_files import write_experts_gguf

TOKENS = mx.array([[(7 * i * i + 3) % 4000 for i in range(40)]])
CHUNKS = [[(11 * i * i + 5 * chunk) % 4000 for i in range(64)] for chunk in range(2)]
FIRST = f"{LAYER}.0.mlp"


@pytest.fixture(scope="module")
def measured(experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imatrix of it."""
    out, model = tmp_path_factory.mktemp("imatrix") / "i.gguf", load_model(experts, "float32")
    write_imatrix(out, measure_importance(model, CHUNKS), model.config, "gguf")
    return out


@pytest.fixture(scope="module")
def converted(experts: Path, measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "model"
    convert(experts, out, recipe="unsloth", imatrix=measured)
    return out


def test_logits_are_those_of_mlx_lm(experts: Path, tmp_path: Path) -> None:
    model = load_model(experts, "float32")
    # In float32 from the file on, for it adds 1 to the norms in the dtype that they have there.
    whole = lambda arrays: arrays.update({name: array.astype(mx.float32) for name, array in arrays.items()})  # noqa: E731
    peer, _ = load_mlx_lm(copied(experts, tmp_path / "float32", whole))
    expected = peer(TOKENS)
    assert relative_rms(model.forward(TOKENS), expected) <= 1e-4
    cache = model.make_cache()
    parts = [model.forward(part, cache) for part in (TOKENS[:, :33], TOKENS[:, 33:34], TOKENS[:, 34:])]
    assert relative_rms(mx.concatenate(parts, axis=1), expected) <= 1e-4


def test_experts_one_by_one_are_the_same_model(experts: Path, tmp_path: Path) -> None:
    fused = open_checkpoint(experts)
    single = open_checkpoint(write_experts(tmp_path / "single", one_by_one=True))
    assert set(fused.tensors) == set(single.tensors) >= set(fused.mtp_shapes())
    for name, tensor in fused.tensors.items():
        array = single.tensors[name].load()
        assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype), name
        assert mx.array_equal(tensor.load(), array), name


def test_figures(experts: Path) -> None:
    summary = summarize(experts)
    layer = 3 * INNER * HIDDEN * CHOSEN + (EXPERTS + 1) * HIDDEN + 3 * SHARED * HIDDEN
    rows = {group.component: group for group in summary.groups}
    assert rows["experts' gate, up"].parameters == LAYERS * 2 * EXPERTS * INNER * HIDDEN
    assert rows["shared down"].parameters == LAYERS * SHARED * HIDDEN
    read = {"embed_tokens", *(row for row in rows if "expert" in row or row in ("router", "mtp") or "shared" in row)}
    others = sum(group.nbytes for row, group in rows.items() if row not in read)
    assert summary.bytes_per_token == 2 * HIDDEN + others + 2 * LAYERS * layer
    # The network's own figure leaves out what is no matrix.
    small = sum(rows[row].nbytes for row in ("conv1d, A_log, dt_bias", "norms"))
    assert load_model(experts).network.bytes_per_token == summary.bytes_per_token - small
    assert summary.facts()["experts"] == f"{EXPERTS}, {CHOSEN} a token, and one of {SHARED} for all"


def copied(source: Path, out: Path, edit: Callable[[dict[str, mx.array]], object]) -> Path:
    shutil.copytree(source, out)
    arrays = mx.load(str(source / "model.safetensors"))
    assert isinstance(arrays, dict)
    edit(arrays)
    mx.eval(list(arrays.values()))
    (out / "model.safetensors").unlink()
    mx.save_safetensors(str(out / "model.safetensors"), arrays)
    return out


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            lambda arrays: arrays.pop("mtp.layers.0.mlp.experts.5.up_proj.weight"),
            r"mtp\.layers\.0\.mlp\.switch_mlp\.up_proj\.weight: expected experts 0 to 7, found none for 5",
        ),
        (
            lambda arrays: arrays.update({"mtp.layers.0.mlp.experts.8.up_proj.weight": mx.zeros((64, 256))}),
            r"expected experts 0 to 7, found one for 8",
        ),
        (
            lambda arrays: arrays.update({"mtp.layers.0.mlp.experts.5.up_proj.weight": mx.zeros((32, 256))}),
            r"experts\.5\.up_proj\.weight: expected \[64, 256\] of .*bfloat16 as mtp.*, found \[32, 256\] of .*float32",
        ),
        (
            lambda arrays: arrays.update({"model.language_model.layers.0.mlp.experts.gate_up_proj": mx.zeros((8, 7))}),
            r"layers\.0\.mlp\.experts\.gate_up_proj: expected \[E, 2I, H\], found \[8, 7\]",
        ),
        (
            lambda arrays: arrays.update(
                {"model.language_model.layers.0.mlp.switch_mlp.up_proj.weight": mx.zeros((8, 64, 256))}
            ),
            r"expected one .*switch_mlp\.up_proj\.weight, found its experts in two layouts",
        ),
        (
            lambda arrays: arrays.pop("model.language_model.layers.2.mlp.gate.weight"),
            r"layers\.2\.mlp\.gate\.weight: expected \[8, 256\], found nothing",
        ),
    ],
)
def test_damaged_checkpoints_are_refused_by_name(
    experts: Path, tmp_path: Path, edit: Callable[[dict[str, mx.array]], object], expected: str
) -> None:
    path = copied(experts, tmp_path / "damaged", edit)
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(path).mtp_shapes()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_experts": None}, "num_experts: expected a positive integer, found nothing"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok: expected at most num_experts = 8, found 9"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok: expected a positive integer up to 16, found 17"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers: expected none: every layer has experts, found"),
        ({"norm_topk_prob": False}, "norm_topk_prob: expected true, found false"),
        ({"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size: expected a positive integer"),
    ],
)
def test_configs_that_are_not_run(experts: Path, change: dict[str, Any], expected: str) -> None:
    raw = json.loads((experts / "config.json").read_text())
    raw["text_config"] |= change
    with pytest.raises(ConfigError, match=expected):
        parse_config(raw)


def test_text_only_config(experts: Path) -> None:
    raw = json.loads((experts / "config.json").read_text())
    assert parse_config(raw["text_config"]).text.experts == parse_config(raw).text.experts


def agrees_with_mlx_lm(path: Path) -> None:
    """In float32: MLX has no products of bfloat16 experts on a CPU."""
    peer, _ = load_mlx_lm(path)
    peer.set_dtype(mx.float32)
    assert relative_rms(load_model(path, "float32").forward(TOKENS), peer(TOKENS)) <= 1e-5


def test_mlx_lm_loads_what_we_convert(converted: Path) -> None:
    agrees_with_mlx_lm(converted)


def test_we_load_what_mlx_lm_converts(experts: Path, tmp_path: Path) -> None:
    """Its own widths: routers at 8 bits."""
    convert_mlx_lm(str(experts), str(tmp_path / "out"), quantize=True, q_group_size=64, q_bits=4)
    feed_forward = load_model(tmp_path / "out").network.layers[0].feed_forward
    assert isinstance(feed_forward, Experts)
    assert (feed_forward.router.bits, feed_forward.experts[2].bits) == (8, 4)
    agrees_with_mlx_lm(tmp_path / "out")


def test_unsloth_recipe(converted: Path) -> None:
    found = {(g.component, g.width) for g in summarize(converted).groups}
    assert found >= {
        ("router", "bfloat16"),
        ("experts' gate, up", "3 bits/64"),
        ("experts' down", "4 bits/64"),
        ("shared gate, up", "6 bits/64"),
        ("shared down", "6 bits/64"),
    }


def test_without_quantization_the_logits_are_kept(experts: Path, tmp_path: Path) -> None:
    """The MTP head's experts too, which were one by one."""
    convert(experts, tmp_path / "out", quantize=False, keep_mtp=True)
    expected, found = (load_model(path, "float32").forward(TOKENS) for path in (experts, tmp_path / "out"))
    assert relative_rms(found, expected) <= 2e-2  # 1 + w is rounded to bfloat16 in the file
    assert open_checkpoint(tmp_path / "out").mtp_shapes()
    assert "mtp.layers.0.mlp.switch_mlp.up_proj.weight" in open_checkpoint(tmp_path / "out").tensors


def test_importance_of_each_expert(measured: Path, experts: Path) -> None:
    """Sums by a definition of their own: what layer 0's experts read, for the tokens that came to each."""
    model, config = load_model(experts, "float32"), read_config(experts)
    layer = model.network.layers[0]
    assert isinstance(layer.feed_forward, Experts)
    ff, eps, sums, counts = layer.feed_forward, config.text.rms_norm_eps, np.zeros((EXPERTS, HIDDEN)), np.zeros(EXPERTS)
    for chunk in CHUNKS:
        x = next(iter(model.network.hidden_states(mx.array([chunk]), model.make_cache())))
        x = ops.qmm(layer.mix(x, empty_state("linear_attention"), Window(0)), (layer.out_proj,), residual=x)
        h = np.array(mx.fast.rms_norm(x, ff.norm, eps))[0]
        for row, chosen in zip(h, np.array(ff.route(x, eps)[0])[0], strict=True):
            sums[chosen] += row**2
            counts[chosen] += 1
    means = read_means(measured)["blk.0.ffn_gate_exps.weight"]
    assert means.tokens is not None
    assert means.tokens.tolist() == counts.tolist()
    assert np.allclose(means.values * counts[:, None], sums, rtol=1e-4)
    assert read_means(measured)["blk.3.ffn_down_exps.weight"].values.shape == (EXPERTS, INNER)


def test_experts_without_tokens_are_rounded_as_without_an_imatrix(
    experts: Path, measured: Path, tmp_path: Path
) -> None:
    config, means = read_config(experts), read_means(measured)
    sums, counts = {}, {}
    for name, each in means.items():
        assert each.tokens is not None
        tokens = each.tokens.copy()
        if tokens.size > 1:
            tokens[2] = 0
            counts[name] = tokens
        sums[name] = each.values * (tokens[:, None] if tokens.size > 1 else tokens)
    write_gguf(tmp_path / "starved.gguf", Calibration(sums, len(CHUNKS), len(CHUNKS[0]), (), counts))
    assert unseen_experts(tmp_path / "starved.gguf", config) == (LAYERS, LAYERS * EXPERTS)
    assert unseen_experts(measured, config) == (0, LAYERS * EXPERTS)
    found = read_imatrix(tmp_path / "starved.gguf", config)
    gate, down = (found[f"{FIRST}.switch_mlp.{name}_proj"] for name in ("gate", "down"))
    for each in (gate, down):
        assert np.allclose(each[2], each[2, 0])
        assert np.ptp(each[3]) > 0.01 * each[3].mean()
    report = convert(experts, tmp_path / "out", bits=3, imatrix=tmp_path / "starved.gguf", awq=False)
    assert f"{LAYERS} of {LAYERS * EXPERTS} experts were not seen" in " ".join(report.warnings)
    convert(experts, tmp_path / "plain", bits=3)
    starved, plain = (
        open_checkpoint(tmp_path / name).tensors[f"{FIRST}.switch_mlp.up_proj.weight"].load()
        for name in ("out", "plain")
    )
    assert mx.array_equal(starved[2], plain[2])
    assert not mx.array_equal(starved[3], plain[3])


def test_importance_is_kept_by_both_formats(measured: Path, experts: Path, tmp_path: Path) -> None:
    config = read_config(experts)
    means = read_means(measured)
    sums = {name: each.values * np.array(each.tokens)[:, None] for name, each in means.items() if each.values.ndim > 1}
    counts = {name: np.array(means[name].tokens) for name in sums}
    write_dat(tmp_path / "i.dat", Calibration(sums, len(CHUNKS), len(CHUNKS[0]), (), counts))
    old, new = read_imatrix(tmp_path / "i.dat", config), read_imatrix(measured, config)
    for name in (f"{FIRST}.switch_mlp.{part}_proj" for part in ("gate", "up", "down")):
        assert old[name].shape == new[name].shape
        # The older one does not say how many tokens each expert had, so it is taken as it is.
        for a, b in zip(old[name], new[name], strict=True):
            assert np.corrcoef(a, b)[0, 1] > 0.999


def test_folds_keep_the_product(experts: Path, measured: Path) -> None:
    """A scale goes from the norm to all that read it: router, gates, every expert's; routing is the same."""
    checkpoint, prefix = open_checkpoint(experts), f"{LAYER}.0."
    config = checkpoint.config
    arrays = {name: t.load() for name, t in checkpoint.text_tensors().items() if name.startswith(prefix)}
    widths = {name: Quantization(4, 64) if "_proj" in name else None for name in arrays}
    folded = fold_layer(prefix, arrays, widths, read_imatrix(measured, config), QWEN3_5_MOE.folds, ratio=0.5)
    assert {gain.producer.removeprefix(f"{prefix}") for gain in folded.gains} >= {
        "post_attention_layernorm",
        "mlp.shared_expert.up_proj",
    }
    before, after = (QWEN3_5_MOE.layer(config, each, 0).feed_forward for each in (arrays, folded.arrays))
    x = mx.random.normal((1, 30, HIDDEN), key=mx.random.key(3))
    assert not mx.array_equal(before.norm, after.norm)
    assert mx.array_equal(before.route(x, 1e-6)[0], after.route(x, 1e-6)[0])
    assert relative_rms(after(x, 1e-6), before(x, 1e-6)) <= 1e-5


def test_gguf_names() -> None:
    gguf = QWEN3_5_MOE.gguf
    assert gguf is not None
    for name in ("gate", "switch_mlp.gate_proj", "switch_mlp.down_proj", "shared_expert.up_proj", "shared_expert_gate"):
        canonical = f"{FIRST}.{name}.weight"
        assert gguf.canonical_name(gguf.stored_name(canonical), LAYERS) == canonical


@pytest.mark.parametrize("fused", [False, True])
def test_gguf_files(fused: bool, experts: Path, tmp_path: Path) -> None:
    """By names of gguf-py's own, the logits of the checkpoint that it was made of."""
    file = write_experts_gguf(experts, tmp_path / "experts.gguf", fused=fused)
    found = load_checkpoint(open_checkpoint(file), "float32").forward(TOKENS)
    assert mx.abs(found - load_model(experts, "float32").forward(TOKENS)).max() < 1e-4
