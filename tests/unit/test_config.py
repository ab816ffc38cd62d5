"""config.json as others write it: null is absent everywhere, and what cannot be meant is one line with file and key."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_delta import ModelConfig
from mlx_delta.arch.qwen3_5 import QWEN3_5
from mlx_delta.arch.registry import parse_config
from mlx_delta.config import Quantization
from mlx_delta.errors import ConfigError
from support import TINY

RAW = json.loads((TINY / "config.json").read_text())
LAYER = "language_model.model.layers.0"
SIZES = [
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "num_hidden_layers",
]
NO_SIZE = [None, True, 256.0, "256", [256], {"a": 256}, 0, -256, 10**30, math.nan, math.inf]


def parsed(text: dict[str, Any] | None = None, **top: Any) -> ModelConfig:
    return parse_config({**RAW, "text_config": {**RAW["text_config"], **(text or {})}, **top}, "there/config.json")


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", NO_SIZE, ids=repr)
def test_sizes(key: str, value: Any) -> None:
    if (key, value) == ("num_hidden_layers", None):  # layer_types has it too
        assert parsed({key: None}).text.num_layers == 8
        return
    with pytest.raises(
        ConfigError, match=rf"^there/config\.json: {key}: expected a positive integer.*, found "
    ) as found:
        parsed({key: value})
    assert len(str(found.value)) < 200
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        (
            "rms_norm_eps",
            [math.nan, math.inf, -math.inf, 0, -1e-6, "1e-6", True, [], 10**400, 1e300],
            "a positive number",
        ),
        ("tie_word_embeddings", ["false", 0, 1.0, [], {}], "true or false"),
        ("attention_bias", ["false", 0, True], "(true or )?false"),
        ("attn_output_gate", [False, "no", 1], "true( or false)?"),
        ("hidden_act", ["gelu", 1, []], "('silu'|a string)"),
        ("num_experts", [128, "128"], "a dense model"),
        ("eos_token_id", ["4072", 4072.0, True, -1, math.nan], "an integer of at least 0"),
        ("eos_token_id", [["4072"], [4072, None], [[4072]], [True]], "an array of integers"),
        ("layer_types", ["full_attention", 8, {}, [8], [None], [["full_attention"]]], "an array of strings"),
        ("layer_types", [["full"] * 8], "linear_attention or full_attention"),
        ("layer_types", [["full_attention"]], "num_hidden_layers = 8 entries"),
        ("rope_parameters", [[], "default", 1, True], "an object"),
        ("linear_num_value_heads", [3], "a multiple of linear_num_key_heads = 2"),
        ("num_hidden_layers", [5000], "a positive integer up to 4096"),
        ("vocab_size", [1 << 30], "a positive integer up to 16777216"),
    ],
)
def test_values_that_cannot_be_meant(key: str, values: list[Any], expected: str) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"^there/config\.json: {key}: expected {expected}, found "):
            parsed({key: value})


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("rope_theta", [math.nan, math.inf, 0, -1, "1e7", True], "a positive number"),
        ("partial_rotary_factor", [math.nan, 0, -0.25, 1.5, "0.25", [0.25]], "a positive number up to 1"),
        ("partial_rotary_factor", [0.001], "an even number of head_dim = 256 values to rotate"),
        ("mrope_section", [["11", 11, 10], 32, [11.0, 11, 10]], "an array of integers"),
        ("mrope_section", [[32], [11, 11, 11], [-1, 23, 10], []], "three counts adding up to 32"),
        ("rope_type", ["yarn", 1], "('default'|a string)"),
    ],
)
def test_rotation(key: str, values: list[Any], expected: str) -> None:
    rope = RAW["text_config"]["rope_parameters"]
    for value in values:
        if value == []:  # no sections: all of it is of the first position
            continue
        with pytest.raises(ConfigError, match=rf"^there/config\.json: {key}: expected {expected}, found "):
            parsed({"rope_parameters": {**rope, key: value}})


def test_null_is_absent() -> None:
    """For every key that has a default, at every level."""
    plain = parsed()
    nulls = ["rms_norm_eps", "tie_word_embeddings", "attention_bias", "attn_output_gate", "hidden_act", "num_experts"]
    nulls += ["num_hidden_layers", "full_attention_interval", "rope_scaling", "mtp_num_hidden_layers"]
    assert parsed(dict.fromkeys(nulls)).text == plain.text
    assert parsed({"layer_types": None}).text == plain.text
    assert parsed({"eos_token_id": None}).text.eos_token_id == ()
    no_rope = parsed({"rope_parameters": None, "rope_theta": None, "partial_rotary_factor": None}).text.rope
    assert (no_rope.theta, no_rope.dim) == (1e7, 64)
    rope = dict.fromkeys(["rope_type", "partial_rotary_factor", "rope_theta", "mrope_section"])
    assert parsed({"rope_parameters": rope}).text.rope == no_rope
    top = dict.fromkeys(["quantization", "quantization_config", "tie_word_embeddings", "eos_token_id"])
    assert parsed(**top) == parse_config({**RAW, **top})
    assert QWEN3_5.mtp_shapes(parsed({"mtp_num_hidden_layers": None})) == {}
    text_only = {**RAW["text_config"], "model_type": "qwen3_5_text", "text_config": None}
    assert parse_config(text_only).text.hidden_size == plain.text.hidden_size


@pytest.mark.parametrize("value", ["1", 1.0, True, -1, 10**9])
def test_mtp_layers_and_vision_sizes(value: Any) -> None:
    """Looked at where they are needed: a model that is only run needs neither."""
    config = parsed({"mtp_num_hidden_layers": value}, vision_config={"patch_size": value})
    with pytest.raises(ConfigError, match=r"config\.json: mtp_num_hidden_layers: expected an integer of at least 0"):
        QWEN3_5.mtp_shapes(config)


@pytest.mark.parametrize("section", [[], "text", 1, True])
def test_sections_that_are_none(section: Any) -> None:
    for key in ("text_config", "quantization", "quantization_config"):
        with pytest.raises(ConfigError, match=rf"^there/config\.json: {key}: expected an object, found "):
            parse_config({**RAW, key: section}, "there/config.json")


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: name.replace("language_model.model.", "model.language_model.").replace("language_model.lm", "lm"),
        lambda name: name.replace("language_model.model.", "model.").replace("language_model.lm", "lm"),
    ],
    ids=["MLX", "Hugging Face", "text only"],
)
def test_overrides_go_by_any_naming(rename: Callable[[str], str]) -> None:
    """As tensors do. Left-out and null parts are the default's; false and true are not widths."""
    section = {
        "bits": 4,
        "group_size": 32,
        rename(f"{LAYER}.mlp.up_proj"): {"bits": 6, "group_size": None, "mode": None},
        rename(f"{LAYER}.mlp.down_proj"): {"group_size": 128},
        rename("language_model.lm_head"): {"bits": 8, "group_size": 64, "mode": "affine"},
        rename("language_model.model.embed_tokens"): False,
        rename(f"{LAYER}.mlp.gate_proj"): None,
    }
    found = parsed(quantization=section).quantization
    assert found == {
        "": Quantization(4, 32),
        f"{LAYER}.mlp.up_proj": Quantization(6, 32),
        f"{LAYER}.mlp.down_proj": Quantization(4, 128),
        "language_model.lm_head": Quantization(8, 64),
    }


def test_two_overrides_of_one_module() -> None:
    same, other = {"bits": 6}, {"bits": 8}
    names = f"{LAYER}.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"
    assert parsed(quantization={"bits": 4, names[0]: same, names[1]: same}).quantization[names[0]].bits == 6
    message = rf"config\.json: quantization: {names[1]}: expected what {names[0]} says of the same module, found "
    with pytest.raises(ConfigError, match=message):
        parsed(quantization={"bits": 4, names[0]: same, names[1]: other})


ADVICE = r"take an affine build, or the unquantized checkpoint and `mlx-delta convert`"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"mode": "mxfp8", "bits": 8, "group_size": 32}, rf"expected mode 'affine', found 'mxfp8': {ADVICE}"),
        ({"mode": "nvfp4", "bits": 4, "group_size": 16}, rf"expected mode 'affine', found 'nvfp4': {ADVICE}"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, rf"quant_method: .*, found fp8: {ADVICE}"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            "quant_method: .* found compressed-tensors, pack-quantized",
        ),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "transform_config": {"R1": {}}},
            "quant_method: .* found compressed-tensors, nvfp4-pack-quantized",
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}, "quant_method: .* found modelopt, NVFP4_AWQ"),
        ({"quant_method": 3}, "quant_method: .* found 3"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "quant_method: .* found gptq"),
        ({"load_in_4bit": True}, "expected MLX's affine form with bits and group_size, found "),
        ({}, "expected MLX's affine form with bits and group_size, found {}"),
        ({"bits": 7}, "expected bits 2, 3, 4, 5, 6 or 8 .*, found 7 and 64"),
        ({"bits": "4"}, "bits: expected a positive integer, found '4'"),
        ({"bits": 4.0}, r"bits: expected a positive integer, found 4\.0"),
        ({"bits": True}, "bits: expected a positive integer, found True"),
        ({"bits": 4, "group_size": math.nan}, "group_size: expected a positive integer, found nan"),
        ({"bits": 4, "mode": 1}, "mode: expected a string, found 1"),
        ({"bits": 4, "lm_head": {"mode": "mxfp4", "bits": 4}}, "lm_head: expected mode 'affine', found 'mxfp4'"),
        ({"bits": 4, "lm_head": {"bits": [6]}}, r"lm_head: bits: expected a positive integer, found \[6\]"),
        ({"bits": 4, "lm_head": 6}, "lm_head: expected an object, found 6"),
    ],
)
def test_quantization_that_this_package_does_not_run(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^there/config\.json: quantization_config: {message}"):
        parsed(quantization_config=section)


def test_overrides_outside_the_language_model_may_be_anything() -> None:
    """Nothing of those is read: a vision tower in FP8 is no reason to refuse."""
    names = ["vision_tower.blocks.0.attn.qkv", "model.visual.blocks.0.mlp.linear_fc1", "mtp.layers.0.mlp.up_proj"]
    for name in names:
        found = parsed(quantization={"bits": 4, name: {"mode": "mxfp8", "bits": 8, "group_size": 32}})
        assert found.quantization == {"": Quantization(4, 64)}
    kept = parsed(quantization={"bits": 4, "model.visual.merger.linear_fc1": {"bits": 8}}).quantization
    assert kept["vision_tower.merger.linear_fc1"] == Quantization(8, 64)  # for `info`


def test_what_mlx_wrote_counts_before_what_it_was_made_of() -> None:
    both = {"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"quant_method": "fp8"}}
    assert parsed(**both).quantization == {"": Quantization(4, 64)}


def test_from_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**RAW, "quantization": {"bits": 5}}))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert ModelConfig.from_dir(f"~/{tmp_path.name}").module_quantization("language_model.lm_head") == Quantization(
        5, 64
    )
