"""GGUF as a source: what comes out of it is what comes out of the safetensors it was made from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.arch.registry import read_config
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import CheckpointError, ConfigError
from mlx_delta.text.tokenizer import Tokenizer
from support import TINY
from support.gguf_files import write_gguf


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def arrays(path: Path) -> dict[str, mx.array]:
    loaded = mx.load(str(path / "model.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def test_gguf_and_safetensors_convert_to_the_same_bits(bf16: Path, tmp_path: Path) -> None:
    for label, options in {
        "bf16": {"quantize": False},
        "awq": {"imatrix": TINY / "imatrix.gguf", "bits": 3},
    }.items():
        convert(TINY, tmp_path / f"{label}-st", **options)  # type: ignore[arg-type]
        convert(bf16, tmp_path / f"{label}-gguf", **options)  # type: ignore[arg-type]
        expected, found = arrays(tmp_path / f"{label}-st"), arrays(tmp_path / f"{label}-gguf")
        assert {name for name in expected if not name.startswith("vision_tower.")} == set(found)
        assert sum(name.startswith("mtp.") for name in found) == (15 if label == "bf16" else 15 + 2 * 8)
        for name, array in found.items():
            assert array.dtype == expected[name].dtype, name
            assert mx.array_equal(array, expected[name]), name


def test_config_and_tokenizer_are_rebuilt(bf16: Path, tmp_path: Path) -> None:
    convert(bf16, tmp_path / "out", bits=4)
    assert read_config(tmp_path / "out").text == read_config(TINY).text
    found, original = Tokenizer.from_dir(tmp_path / "out"), Tokenizer.from_dir(TINY)
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == json.loads(
        (TINY / "tokenizer.json").read_text()
    )
    assert found.chat_template == original.chat_template
    assert found.eos_token_ids == original.eos_token_ids
    assert found.special_ids == original.special_ids
    assert found.generation_defaults == original.generation_defaults
    text = "<|im_start|>user\ndef f(x):  return 42  # e\u0301t\u00e9<|im_end|>\n<think>"
    assert found.encode(text) == original.encode(text)


def test_tokenizer_beside_the_file_is_taken(bf16: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(bf16, tmp_path / "in")
    for name in ("tokenizer.json", "vocab.json"):
        shutil.copy(TINY / name, tmp_path / "in")
    files = open_checkpoint(tmp_path / "in").side_files()
    assert sorted(files) == ["tokenizer.json", "vocab.json"]
    assert files["tokenizer.json"] == (TINY / "tokenizer.json").read_bytes()
    shutil.copy(bf16, tmp_path / "in" / "other.gguf")
    with pytest.raises(CheckpointError, match=r"expected one \.gguf file, found other\.gguf, tiny\.gguf"):
        open_checkpoint(tmp_path / "in")


@pytest.mark.parametrize(("kind", "error"), [("F32", 0), ("F16", 1e-3), ("Q8_0", 1e-2), ("Q4_0", 0.12)])
def test_every_type_is_dequantized(kind: str, error: float, tmp_path: Path) -> None:
    """Against the original, head order included: a wrong order is an error of 1.4."""
    source = open_checkpoint(write_gguf(tmp_path / "t.gguf", kind)).source
    expected = open_checkpoint(TINY).tensors
    for name in source.tensors:
        a, b = (np.array(array.astype(mx.float32)) for array in (source.load(name), expected[name].load()))
        assert np.linalg.norm(a - b) <= error * np.linalg.norm(b), name
    assert source.tensors["language_model.model.layers.0.linear_attn.A_log"].dtype == mx.bfloat16


def test_parameters_that_were_float32_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support import gguf_files

    name = "model.language_model.layers.0.linear_attn.{}"
    changed = gguf_files.stored()
    a_log, dt_bias = (changed[name.format(part)] + np.float32(1e-4) for part in ("A_log", "dt_bias"))
    monkeypatch.setattr(
        gguf_files, "stored", lambda: changed | {name.format("A_log"): a_log, name.format("dt_bias"): dt_bias}
    )
    source = open_checkpoint(write_gguf(tmp_path / "t.gguf")).source
    found = source.load("language_model.model.layers.0.linear_attn.A_log")
    assert found.dtype == mx.float32
    assert np.allclose(np.array(found), a_log, rtol=2e-7)
    assert np.array_equal(np.array(source.load("language_model.model.layers.0.linear_attn.dt_bias")), dt_bias)


def test_tied_embeddings(tmp_path: Path) -> None:
    assert open_checkpoint(write_gguf(tmp_path / "t.gguf", tied=True)).config.text.tie_word_embeddings


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"qwen35.ssm.group_count": None}, r"t\.gguf: expected the key qwen35\.ssm\.group_count, found nothing"),
        ({"split.count": 3}, r"split\.count: expected a whole file, found 1 of 3 parts"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, r"tokenizer\.ggml\.pre: expected qwen35 or qwen2, found llama-bpe"),
        ({"qwen35.ssm.time_step_rank": 3}, "linear_num_value_heads: expected a multiple of"),
        ({"qwen35.feed_forward_length": 600}, r"expected \[600, 256\], found \[640, 256\]"),
    ],
)
def test_metadata_is_checked(edit: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "t.gguf", edit=edit)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        convert(path, tmp_path / "out")
    assert [left.name for left in tmp_path.iterdir()] == ["t.gguf"]


def test_damaged_files(bf16: Path, tmp_path: Path) -> None:
    for size in (5_000_000, 2000, 3):
        cut = tmp_path / "cut.gguf"
        shutil.copy(bf16, cut)
        os.truncate(cut, size)
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            open_checkpoint(cut)
    other = Path(shutil.copy(TINY / "imatrix.gguf", tmp_path / "imatrix.gguf"))
    with pytest.raises(CheckpointError, match=r"general\.architecture: expected qwen35 or qwen35moe, found None"):
        open_checkpoint(other)
    with pytest.raises(ConfigError, match="expected a model directory, found nothing"):
        open_checkpoint(tmp_path / "absent.gguf")
