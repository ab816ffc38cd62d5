"""Where tensors come from: a checkpoint of any format seen as names with shapes, loaded one at a time.

A ``Source`` knows every tensor's shape and dtype from the files' headers alone; ``load`` reads one tensor's bytes when
the array is evaluated. Names and values are the checkpoint's own: an architecture turns them into MLX's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mlx.core as mx

from mlx_delta.errors import CheckpointError

INDEX = "model.safetensors.index.json"
HEAD_FILES = "mtp/*.safetensors"  # of an MTP head beside a model that lacks it
HEAD_CONFIG = "mtp/config.json"  # what it may have of its own
SIDE_FILES = (
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor, as its file's header describes it. offset: of its bytes in the file, where they lie there as
    they are."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    nbytes: int
    file: Path
    offset: int | None = None


class Source(Protocol):
    """A checkpoint of any format: its tensors under their own names, and the files beside them."""

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def load(self, name: str) -> mx.array: ...

    def side_files(self) -> dict[str, bytes]: ...


def files_beside(directory: Path) -> dict[str, bytes]:
    """What belongs to the checkpoint in ``directory`` beside its weights and config: a file's name there -> content."""
    files = {file for pattern in SIDE_FILES for file in directory.glob(pattern) if file.is_file()}
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in sorted(files)}


def is_model(name: str) -> bool:
    """Whether a file of this name, perhaps with folders, may be a model in GGUF: none is the vision tower of one."""
    return name.endswith(".gguf") and "mmproj" not in name.rpartition("/")[2].lower()


def convert_first(model: object) -> str:
    """What is to be said where GGUF will not do; model: its path or name."""
    return f"{model}: expected safetensors, found GGUF: convert it first, mlx-delta convert -i {model} -o DIRECTORY"


def gguf_file(path: Path) -> Path | None:
    """The .gguf file that ``path`` is, or that is the one thing in it; None for anything else."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if (path / "config.json").is_file() or (path / INDEX).is_file() or any(path.glob("model*.safetensors")):
        return None
    files = [file for file in sorted(path.glob("*.gguf")) if is_model(file.name)]
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{path}: expected one .gguf file, found {names}: name the one to read")
    return files[0] if files else None
