"""Qwen3.5 with experts: its model against mlx-lm's, its layouts of experts, its config, its figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model as load_mlx_lm

from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.arch.registry import parse_config
from mlx_delta.bench.cases import relative_rms
from mlx_delta.errors import CheckpointError, ConfigError
from mlx_delta.loading import load_model
from mlx_delta.summary import summarize
from support.experts import CHOSEN, EXPERTS, HIDDEN, INNER, LAYERS, SHARED, write_experts

TOKENS = mx.array([[(7 * i * i + 3) % 4000 for i in range(40)]])


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
