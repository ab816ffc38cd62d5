"""Whatever is wrong with a checkpoint or the disk: an error that says so, and nothing left that looks like a model."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_delta.arch.registry import read_config
from mlx_delta.config import Quantization
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import ArgumentError, CheckpointError, ConvertError, OutputError
from support import TINY, gguf_files
from support.gguf_files import stored, write_gguf

UP = "model.language_model.layers.2.mlp.up_proj.weight"
Edit = Callable[[dict[str, mx.array], dict[str, object]], None]


def remove(arrays: dict[str, mx.array], config: dict[str, object]) -> None:
    del arrays[UP]


def reshape(arrays: dict[str, mx.array], config: dict[str, object]) -> None:
    arrays[UP] = arrays[UP].T


def retype(arrays: dict[str, mx.array], config: dict[str, object]) -> None:
    arrays[UP] = mx.zeros(arrays[UP].shape, mx.int32)


def infinite(arrays: dict[str, mx.array], config: dict[str, object]) -> None:
    arrays[UP] = mx.where(mx.arange(256) == 7, mx.inf, arrays[UP])


def rename(arrays: dict[str, mx.array], config: dict[str, object]) -> None:
    config["model_type"] = "llama"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (remove, r"layers\.2\.mlp\.up_proj\.weight: expected \[640, 256\], found nothing"),
        (reshape, r"layers\.2\.mlp\.up_proj\.weight: expected \[640, 256\], found \[256, 640\]"),
        (retype, r"layers\.2\.mlp\.up_proj\.weight: expected a float dtype, found .*int32"),
        (infinite, r"layers\.2\.mlp\.up_proj\.weight: expected finite weights, found inf at \[0, 7\] and 639 more"),
        (rename, r"config\.json: model_type: expected one of qwen3_5, qwen3_5_text, qwen3_5_moe, .*, found 'llama'"),
    ],
)
def test_bad_checkpoints(edit: Edit, message: str, tmp_path: Path) -> None:
    arrays = {name: mx.array(array).astype(mx.bfloat16) for name, array in stored().items()}
    config = json.loads((TINY / "config.json").read_text())
    edit(arrays, config)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    shutil.copy(TINY / "tokenizer.json", tmp_path / "in")
    mx.save_safetensors(str(tmp_path / "in" / "model.safetensors"), arrays)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "in", tmp_path / "out")
    assert [left.name for left in tmp_path.iterdir()] == ["in"]


def test_nan_in_a_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through log(-ssm_a) as well, which is NaN where ssm_a is not negative."""
    arrays, name = stored(), "model.language_model.layers.0.linear_attn.A_log"
    arrays[name] = arrays[name] + float("nan")
    monkeypatch.setattr(gguf_files, "stored", lambda: arrays)
    path = write_gguf(tmp_path / "t.gguf")
    with pytest.raises(CheckpointError, match=r"layers\.0\.linear_attn\.A_log: expected finite weights"):
        convert(path, tmp_path / "out")
    assert [left.name for left in tmp_path.iterdir()] == ["t.gguf"]


def test_a_full_disk_is_found_before_and_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While: with a limit on the size of files, which fails a write half way through as a full disk does."""
    script = f"from mlx_delta.conversion.pipeline import convert; convert({str(TINY)!r}, {str(tmp_path / 'out')!r})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "model.safetensors'" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"expected \d+ free bytes for model\.safetensors, found 1000"):
        convert(TINY, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_dry_run_predicts_and_writes_nothing(tmp_path: Path) -> None:
    predicted = convert(TINY, tmp_path / "out", bits=3, dry_run=True)
    assert not list(tmp_path.iterdir())
    written = convert(TINY, tmp_path / "out", bits=3)
    assert predicted.bytes_predicted == written.bytes_predicted == written.bytes_written
    assert predicted.components == written.components


def test_overrides(tmp_path: Path) -> None:
    file = tmp_path / "widths.json"
    layer = "language_model.model.layers.3."
    file.write_text(json.dumps({"*.o_proj": 6, f"{layer}mlp.*": {"bits": 8, "group_size": 32}, "*.lm_head": None}))
    convert(TINY, tmp_path / "out", bits=4, overrides=file)
    config, arrays = read_config(tmp_path / "out"), mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert config.quantization[f"{layer}self_attn.o_proj"] == Quantization(6, 64)
    assert config.quantization[f"{layer}mlp.up_proj"] == Quantization(8, 32)
    assert "language_model.model.layers.2.mlp.up_proj" not in config.quantization
    assert arrays["language_model.lm_head.weight"].dtype == mx.bfloat16
    assert arrays[f"{layer}mlp.up_proj.scales"].shape == (640, 8)
    for content, message in (
        ("{", "expected JSON"),
        ("[]", "expected a JSON object, found an array"),
        ('{"*.q": 4}', r"\*\.q: expected a pattern of a module such as language_model\..* found no match"),
        ('{"*.o_proj": 7}', r"\*\.o_proj: expected bits of 2, 3, .* found 7"),
        ('{"*.o_proj": "4"}', r"\*\.o_proj: expected bits, null or an object"),
    ):
        file.write_text(content)
        with pytest.raises(ConvertError, match=rf"widths\.json: {message}"):
            convert(TINY, tmp_path / "again", overrides=file)
    with pytest.raises(ArgumentError, match="overrides: expected it with quantize"):
        convert(TINY, tmp_path / "again", quantize=False, overrides=file)
