"""GGUF files by other programs than llama.cpp's converter, and damaged ones: read right, or refused in a line."""

from __future__ import annotations

import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta.arch.checkpoint import Checkpoint, open_checkpoint
from mlx_delta.arch.registry import read_config
from mlx_delta.errors import CheckpointError, ConfigError
from support import TINY, gguf_files
from support.gguf_files import write_gguf

OLLAMA: dict[str, Any] = {
    "qwen35.block_count": 8,
    "qwen35.nextn_predict_layers": None,
    "qwen35.attention.head_count_kv": [0, 0, 0, 1, 0, 0, 0, 1],
    "qwen35.rope.dimension_sections": [11, 11, 10],
    "qwen35.rope.mrope_interleaved": True,
    "qwen35.ssm.v_head_reordered": True,
    "tokenizer.ggml.eos_token_ids": [4072, 4070],
}
VISION = {
    "v.blk.0.attn_q.weight": np.zeros((64, 64), np.float32),
    "mm.0.weight": np.zeros((64, 64), np.float32),
    "mtp.fc.weight": np.zeros((256, 512), np.float32),
}


def is_mtp(name: str) -> bool:
    return name.startswith("blk.8.")


def checked(path: Path) -> Checkpoint:
    """A checkpoint whose files are all looked at."""
    source = open_checkpoint(path)
    source.side_files()
    return source


def is_the_original(checkpoint: Checkpoint, skip: tuple[str, ...] = ("vision_tower.", "mtp.")) -> bool:
    """The same text model as examples/tiny, tensor for tensor."""
    expected, found = open_checkpoint(TINY).tensors, checkpoint.tensors
    names = {name for name in expected if not name.startswith(skip)}
    return names == {name for name in found if not name.startswith(skip)} and all(
        mx.array_equal(found[name].load(), expected[name].load()) for name in names
    )


@pytest.mark.parametrize(
    ("rename", "extra"), [("ssm_dt", {}), ("ssm_dt.bias", VISION), ("ssm_dt", VISION)], ids=["ssm_dt", "v.*", "both"]
)
def test_ollama(rename: str, extra: dict[str, np.ndarray], tmp_path: Path) -> None:
    def renamed(name: str) -> str | None:
        return None if is_mtp(name) else name.replace("ssm_dt.bias", rename)

    source = open_checkpoint(write_gguf(tmp_path / "t.gguf", edit=OLLAMA, rename=renamed, extra=extra))
    assert source.config.text == read_config(TINY).text
    assert is_the_original(source)


def test_value_heads_in_their_original_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ollama's key says so; without it, llama.cpp's order is meant."""
    monkeypatch.setattr(gguf_files, "ORDER", list(range(gguf_files.HEADS)))
    path = write_gguf(tmp_path / "t.gguf", edit={"qwen35.ssm.v_head_reordered": False})
    assert is_the_original(open_checkpoint(path))
    assert not is_the_original(open_checkpoint(write_gguf(path)))


@pytest.mark.parametrize(
    "edit",
    [
        {"qwen35.full_attention_interval": None},
        {"qwen35.full_attention_interval": 3},
        {"qwen35.attention.recurrent_layers": [True] * 9},
        {"qwen35.nextn_predict_layers": None},
        {"qwen35.rope.dimension_count": None},
        {"qwen35.rope.dimension_sections": None, "qwen35.rope.mrope_section": [11, 11, 10]},
        {"qwen35.rope.scaling.type": "none"},
        {"qwen35.attention.head_count": [0, 0, 0, 2, 0, 0, 0, 2]},
    ],
    ids=str,
)
def test_keys_that_files_differ_in(edit: dict[str, Any], tmp_path: Path) -> None:
    """The tensors say which layers are of which kind, and which block is the MTP head's."""
    source = open_checkpoint(write_gguf(tmp_path / "t.gguf", edit=edit))
    assert source.config.text == read_config(TINY).text
    assert source.config.raw["text_config"]["mtp_num_hidden_layers"] == 1
    assert is_the_original(source)


def test_a_head_that_was_taken_out_with_its_key_left(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "t.gguf", rename=lambda name: None if is_mtp(name) else name)
    assert open_checkpoint(path).config.raw["text_config"]["mtp_num_hidden_layers"] == 0


def test_a_convolution_with_its_axis_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with norms that are final all the same."""
    tiled = gguf_files.tiled

    def kept(short: str, array: np.ndarray) -> np.ndarray:
        return tiled(short, array)[:, None] if short == "ssm_conv1d.weight" else tiled(short, array)

    monkeypatch.setattr(gguf_files, "tiled", kept)
    assert is_the_original(open_checkpoint(write_gguf(tmp_path / "t.gguf")))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"qwen35.block_count": 7, "qwen35.nextn_predict_layers": 0}, r"found 7 \(.*\) and its MTP head in blk\.8"),
        ({"qwen35.block_count": 8}, r"block_count: expected the layers of its tensors, found 7"),
        ({"qwen35.block_count": 10}, r"block_count: expected the layers of its tensors, found 9"),
        ({"qwen35.block_count": 1}, r"block_count: expected the layers of its tensors, found 0"),
        ({"qwen35.block_count": "9"}, r"qwen35\.block_count: expected a positive integer, found '9'"),
        ({"qwen35.block_count": 0}, r"qwen35\.block_count: expected a positive integer, found 0"),
        ({"qwen35.embedding_length": None}, r"expected the key qwen35\.embedding_length, found nothing"),
        ({"qwen35.embedding_length": 1.5}, r"embedding_length: expected a positive integer, found 1\.5"),
        ({"qwen35.ssm.group_count": True}, r"ssm\.group_count: expected a positive integer, found True"),
        ({"qwen35.ssm.inner_size": None}, r"expected the key qwen35\.ssm\.inner_size, found nothing"),
        ({"qwen35.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon: expected a positive number, found nan"),
        ({"qwen35.rope.freq_base": "x"}, r"rope\.freq_base: expected a positive number, found 'x'"),
        ({"qwen35.rope.dimension_sections": None}, r"expected the key qwen35\.rope\.dimension_sections"),
        ({"qwen35.rope.dimension_sections": [11, 11]}, r"dimension_sections: expected three counts, found \[11, 11\]"),
        ({"qwen35.rope.dimension_sections": [11, 11, 9]}, "mrope_section: expected three counts adding up to 32"),
        ({"qwen35.rope.scaling.type": "yarn"}, "rope_type: expected 'default', found 'yarn'"),
        ({"split.count": "x"}, "split.count: expected a whole file"),
        ({"tokenizer.ggml.eos_token_id": 4096}, r"eos_token_id: expected an id from 0 to 4095, found 4096"),
    ],
)
def test_keys_that_make_no_sense(edit: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "t.gguf", edit=edit)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        checked(path)


def test_unknown_tensors_and_types(tmp_path: Path) -> None:
    scale = {"blk.0.ffn_up.scale": np.ones(1, np.float32)}  # of NVFP4: a factor that must not be left out
    with pytest.raises(
        CheckpointError, match=r"expected tensors of a Qwen3\.5 text model, found blk\.0\.ffn_up\.scale"
    ):
        open_checkpoint(write_gguf(tmp_path / "t.gguf", extra=scale))
    both = {"blk.0.ssm_dt": np.ones(4, np.float32)}
    with pytest.raises(CheckpointError, match=r"expected one .*layers\.0\.linear_attn\.dt_bias, found blk\.0\.ssm_dt"):
        open_checkpoint(write_gguf(tmp_path / "t.gguf", extra=both))
    path = write_gguf(tmp_path / "t.gguf", rename=lambda name: None if name == "output_norm.weight" else name)
    whole = {"output_norm.weight": np.ones(256, np.int32)}
    with pytest.raises(
        CheckpointError, match=r"output_norm\.weight: expected a type that the package gguf reads, found I32"
    ):
        open_checkpoint(write_gguf(path, rename=lambda n: None if n == "output_norm.weight" else n, extra=whole))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "Q8_0")


def test_the_other_byte_order(tmp_path: Path) -> None:
    from gguf import GGUFEndian, GGUFWriter

    path = tmp_path / "big.gguf"
    writer = GGUFWriter(path, "qwen35", endianess=GGUFEndian.BIG)
    writer.add_uint32("qwen35.block_count", 9)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"big\.gguf: expected a little-endian GGUF file, found a big-endian one"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", r"expected a GGUF file, found one that begins with b''"),
        (b"GGML", "expected a GGUF file, found one that begins with b'GGML'"),
        (b"GGUF" + struct.pack("<I", 1), "expected version 2 or 3 of GGUF, found 1"),
        (b"GGUF" + struct.pack("<I", 3), "truncated: expected at least 24 bytes, found 8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "truncated: expected at least"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "truncated: expected at least"),
        # A key with a list of a billion billion bytes; a name that long.
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 0, 1 << 60), "truncated: expected at least"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "truncated: expected at least"),
    ],
)
def test_other_files(start: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.gguf").write_bytes(start)
    with pytest.raises(CheckpointError, match=rf"t\.gguf: {message}"):
        open_checkpoint(tmp_path / "t.gguf")


def test_a_file_cut_anywhere_is_truncated(whole: Path, tmp_path: Path) -> None:
    """Before its first tensor, inside a list of numbers, inside a tensor, and one byte short."""
    size = whole.stat().st_size
    cuts = [8, 23, 24, 100, 3000, 60_000, 150_000, 200_000, size // 2, size - 1]
    cuts += random.Random(0).sample(range(24, 300_000), 2)
    cut = Path(shutil.copy(whole, tmp_path / "cut.gguf"))
    for length in sorted(cuts, reverse=True):
        os.truncate(cut, length)
        with pytest.raises(
            CheckpointError, match=rf"cut\.gguf: truncated: expected at least \d+ bytes, found {length}"
        ):
            open_checkpoint(cut)


def test_flipped_bytes_raise_nothing_else(whole: Path, tmp_path: Path) -> None:
    """In the header of a file: it is refused in one line, or reads as before (a template's letter, say)."""
    content, rng = bytearray(whole.read_bytes()), random.Random(0)
    refused = unnamed = 0
    path = tmp_path / "t.gguf"
    ends = content.index(b"token_embd.weight"), content.index(b"general.architecture")
    for turn in range(16):
        start, stop = (24, 2500) if turn % 2 else (ends[0] - 4000, ends[0] + 4000)
        changed = content.copy()
        for _ in range(2):
            changed[rng.randrange(start, stop)] = rng.choice([0, 255, rng.randrange(256)])
        path.write_bytes(changed)
        try:
            checked(path)
        except (CheckpointError, ConfigError) as error:
            refused += "t.gguf" in str(error)
            unnamed += "t.gguf" not in str(error)
    assert refused > 3
    assert not unnamed


def test_a_projector_beside_the_model_is_passed_over(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole, tmp_path / "model-Q8_0.gguf")
    for name in ("mmproj-model-f16.gguf", "model.mmproj-Q8_0.gguf", "model-F16-MMPROJ.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert open_checkpoint(tmp_path).path.name == "model-Q8_0.gguf"
