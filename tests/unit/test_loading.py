"""Loading what others wrote and others loading what we wrote; layouts, tied embeddings, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_delta import ops
from mlx_delta.bench.cases import relative_rms
from mlx_delta.conversion.pipeline import convert
from mlx_delta.loading import load_model

PROMPT = [list(range(40, 90))]
# mlx-lm rounds to bfloat16 after every operation: its own logits are 1.9e-2 away from those it computes in float32
# (ours 0.4e-2).
BFLOAT16_BOUND = 3e-2


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "tiny-unsloth"
    convert(tiny, out, recipe="unsloth", imatrix=tiny / "imatrix.gguf")
    return out


def assert_agrees_with_mlx_lm(path: Path) -> None:
    """mlx-lm loads the directory as it is; logits agree in float32 to rounding, in bfloat16 to its error."""
    from mlx_lm import load

    theirs, _ = load(str(path))
    assert relative_rms(load_model(path).forward(PROMPT), theirs(mx.array(PROMPT))) <= BFLOAT16_BOUND
    theirs.set_dtype(mx.float32)
    assert relative_rms(load_model(path, "float32").forward(PROMPT), theirs(mx.array(PROMPT))) <= 1e-5


def test_mlx_lm_loads_what_we_convert(converted: Path) -> None:
    assert_agrees_with_mlx_lm(converted)


def test_we_load_what_mlx_lm_converts(tiny: Path, tmp_path: Path) -> None:
    """A mixed mlx-lm quantization, with per-module overrides in its config.json."""
    from mlx_lm import convert as mlx_lm_convert

    def widths(path: str, module: object) -> bool | dict[str, int]:
        if path.endswith("lm_head"):
            return {"bits": 6, "group_size": 32}
        return {"bits": 3, "group_size": 64} if "mlp" in path else hasattr(module, "to_quantized")

    out = tmp_path / "mlx-lm"
    mlx_lm_convert(str(tiny), str(out), quantize=True, q_group_size=64, q_bits=4, quant_predicate=widths)
    ours = load_model(out)
    assert ours.network.lm_head.bits == 6
    assert ours.network.layers[0].feed_forward.up.bits == 3
    assert ours.network.layers[0].in_proj[0].bits == 4
    assert_agrees_with_mlx_lm(out)


def test_converting_without_quantization_keeps_the_logits(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "plain", quantize=False)
    expected = load_model(tiny, "float32").forward(PROMPT)
    # 1 + w is rounded to bfloat16 in the file, as mlx-lm does.
    assert relative_rms(load_model(tmp_path / "plain", "float32").forward(PROMPT), expected) <= 5e-3


def test_quantized_matrices_stay_quantized_in_memory(converted: Path) -> None:
    network = load_model(converted).network
    assert (network.embed_tokens.bits, network.lm_head.bits) == (5, 6)
    size = (converted / "model.safetensors").stat().st_size
    assert network.bytes_per_token < size


def rewritten(tiny: Path, out: Path, rename: dict[str, str], drop: tuple[str, ...] = (), **config: object) -> Path:
    """The tiny checkpoint under other names, in one file."""
    arrays = {}
    for file in tiny.glob("*.safetensors"):
        arrays |= mx.load(str(file))
    renamed = {}
    for name, array in arrays.items():
        if not name.startswith(drop):
            old = next((old for old in rename if name.startswith(old)), "")
            renamed[rename.get(old, "") + name.removeprefix(old)] = array
    out.mkdir()
    mx.save_safetensors(str(out / "model.safetensors"), renamed)
    shutil.copy(tiny / "tokenizer.json", out)
    raw = json.loads((tiny / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**raw, **config}))
    return out


def test_a_text_only_checkpoint(tiny: Path, tmp_path: Path) -> None:
    raw = json.loads((tiny / "config.json").read_text())
    rename = {"model.language_model.": "model."}
    path = rewritten(tiny, tmp_path / "text", rename, ("model.visual.", "mtp."))
    (path / "config.json").write_text(json.dumps({**raw["text_config"], "model_type": "qwen3_5_text"}))
    found, expected = load_model(path).forward(PROMPT), load_model(tiny).forward(PROMPT)
    assert mx.array_equal(found, expected)


def test_names_of_mlx_around_unconverted_values(tiny: Path, tmp_path: Path) -> None:
    """The layout of the convolutions tells that the norms still lack their 1."""
    rename = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    path = rewritten(tiny, tmp_path / "renamed", rename, ("model.visual.", "mtp."))
    assert mx.array_equal(load_model(path).forward(PROMPT), load_model(tiny).forward(PROMPT))


def test_tied_embeddings(tiny: Path, tmp_path: Path) -> None:
    raw = json.loads((tiny / "config.json").read_text())
    text = {**raw["text_config"], "tie_word_embeddings": True}
    path = rewritten(tiny, tmp_path / "tied", {}, ("lm_head.",), text_config=text, tie_word_embeddings=True)
    model = load_model(path, "float32")
    assert model.network.lm_head.weight.shape == model.network.embed_tokens.weight.shape
    *_, x = model.network.hidden_states(mx.array(PROMPT), model.make_cache())
    expected = ops.qmm(x, [model.network.embed_tokens], norm=model.network.norm)
    assert mx.array_equal(model.forward(PROMPT), expected)


def broken(tiny: Path, out: Path, **files: object) -> Path:
    shutil.copytree(tiny, out)
    for name, content in files.items():
        file = out / name.replace("_json", ".json").replace("_safetensors", ".safetensors")
        if content is None:
            file.unlink()
        else:
            file.write_text(str(content))
    return out


def test_errors_name_the_file(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: expected a model directory, found nothing"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config.json: expected a model's config.json, found nothing"):
        load_model(broken(tiny, tmp_path / "a", config_json=None))
    with pytest.raises(ValueError, match=r"config.json: expected JSON, found"):
        load_model(broken(tiny, tmp_path / "b", config_json="{"))
    with pytest.raises(
        ValueError, match=r"model_type: expected one of qwen3_5, qwen3_5_text, qwen3_5_moe, .*, found 'llama'"
    ):
        load_model(broken(tiny, tmp_path / "c", config_json='{"model_type": "llama"}'))
    with pytest.raises(ValueError, match=r"tokenizer.json: expected a checkpoint's tokenizer.json, found nothing"):
        load_model(broken(tiny, tmp_path / "d", tokenizer_json=None))
    with pytest.raises(ValueError, match="dtype: expected float32, float16 or bfloat16, found int8"):
        load_model(tiny, dtype="int8")
    with pytest.raises(ValueError, match=r"dtype: expected float32, float16 or bfloat16, found mlx.core.int8"):
        load_model(tiny, dtype=mx.int8)


def test_a_dtype_is_a_name_or_mlx_s_own(tiny: Path) -> None:
    for dtype in ("float32", mx.float32):
        assert load_model(tiny, dtype=dtype).forward([[5]]).dtype == mx.float32


def test_a_missing_and_a_wrong_tensor_are_named(tiny: Path, tmp_path: Path) -> None:
    path = rewritten(tiny, tmp_path / "missing", {}, ("lm_head.",))
    with pytest.raises(ValueError, match=r"language_model.lm_head.weight: expected \[4096, 256\], found nothing"):
        load_model(path)
    raw = json.loads((tiny / "config.json").read_text())
    text = {**raw["text_config"], "intermediate_size": 512}
    path = rewritten(tiny, tmp_path / "wrong", {}, (), text_config=text)
    with pytest.raises(ValueError, match=r"layers.0.mlp.gate_proj.weight: expected \[512, 256\], found \[640, 256\]"):
        load_model(path)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [("applegpu_g13s", mx.float16), ("applegpu_g14d", mx.float16), ("applegpu_g15s", mx.bfloat16)],
)
def test_the_gpu_of_an_m1_or_m2_has_float16_activations(
    tiny: Path, architecture: str, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    wired = []
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    info = {"architecture": architecture, "max_recommended_working_set_size": 12 << 30}
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(mx, "set_wired_limit", wired.append)
    monkeypatch.setattr("mlx_delta.loading.compile_kernels", lambda network: None)
    assert load_model(tiny).network.dtype == dtype
    assert load_model(tiny, "bfloat16").network.dtype == mx.bfloat16
    assert wired == [12 << 30] * 2


def test_float16_activations_are_nearer_to_float32_than_bfloat16(tiny: Path) -> None:
    exact = load_model(tiny, "float32").forward(PROMPT)
    far, near = (relative_rms(load_model(tiny, dtype).forward(PROMPT), exact) for dtype in ("bfloat16", "float16"))
    assert near < 1e-3 < far
