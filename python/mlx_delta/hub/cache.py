"""What of a model is in the Hugging Face cache, and which of its files are wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path

from mlx_delta.checkpoint.source import HEAD_CONFIG, HEAD_FILES, INDEX, SIDE_FILES, convert_first, is_model
from mlx_delta.errors import HubError
from mlx_delta.hub.names import HubName
from mlx_delta.json_files import read_json

_CONFIG = "config.json"
_WEIGHTS = "model*.safetensors"


def storage(name: HubName) -> Path:
    """The model's directory in the cache: blobs/HASH, snapshots/COMMIT/FILE, refs/REVISION."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE).expanduser() / f"models--{name.repo.replace('/', '--')}"


def known_commit(name: HubName) -> str | None:
    """The commit that the revision was when it was last asked for."""
    revision = name.revision or "main"
    ref = storage(name) / "refs" / revision
    if ref.is_file():
        return ref.read_text(encoding="ascii").strip()
    return revision if (storage(name) / "snapshots" / revision).is_dir() else None


def snapshot(name: HubName, commit: str) -> Path:
    return storage(name) / "snapshots" / commit


def cached(name: HubName, gguf: bool) -> Path | None:
    """The whole model as it lies in the cache, or None."""
    commit = known_commit(name)
    if commit is None:
        return None
    directory = snapshot(name, commit)
    files = [str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()]
    try:
        wanted = wanted_files(name, files, gguf, lambda: directory / INDEX)
    except HubError:  # a part that tells of no model
        return None
    needed = set(wanted) if wanted[0].endswith(".gguf") else {*wanted, "tokenizer.json"}
    return result(directory, wanted) if needed <= set(files) else None


def result(directory: Path, wanted: Sequence[str]) -> Path:
    """The snapshot, or its .gguf file."""
    return directory / wanted[0] if wanted[0].endswith(".gguf") else directory


def wanted_files(name: HubName, files: Collection[str], gguf: bool, index: Callable[[], Path]) -> list[str]:
    """Of a repository's ``files``, those that a model is read from; index: where its index of tensors is to be found.

    Raises: HubError when there is no model among them, or more than one.
    """
    if name.file is not None:
        if name.file not in files:
            raise HubError(f"{name}: expected one of {_list(_models(files))}, found no such file")
        return [name.file]
    shards = [file for file in files if fnmatch(file, _WEIGHTS) and "/" not in file]
    if _CONFIG in files and (INDEX in files or shards):
        if INDEX in files:
            shards = _shards(name, index())
        beside = [file for file in files if any(_fits(file, each) for each in (*SIDE_FILES, HEAD_FILES, HEAD_CONFIG))]
        return [_CONFIG, *([INDEX] if INDEX in files else []), *beside, *shards]
    models = _models(files)
    if not models:
        raise HubError(f"{name}: expected config.json and {_WEIGHTS}, found {_list(sorted(files)) or 'nothing'}")
    if not gguf:
        raise HubError(convert_first(HubName(name.repo, name.revision, models[0])))
    if len(models) > 1:
        raise HubError(f"{name}: expected one .gguf file, found {_list(models)}: name one, {name}/{models[0]}")
    return models


def _fits(file: str, pattern: str) -> bool:
    """As a shell has it: no ``*`` is a ``/``."""
    return file.count("/") == pattern.count("/") and fnmatch(file, pattern)


def _models(files: Collection[str]) -> list[str]:
    return sorted(filter(is_model, files))


def _list(files: Sequence[str]) -> str:
    return ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")


def _shards(name: HubName, index: Path) -> list[str]:
    named = read_json(index, HubError).get("weight_map")
    if not isinstance(named, dict):
        raise HubError(f"{name}: {INDEX}: expected a weight_map of names to files, found {named!r:.80}")
    shards = sorted({str(shard) for shard in named.values()})
    wrong = next((shard for shard in shards if "/" in shard or not shard.endswith(".safetensors")), None)
    if wrong is not None:
        raise HubError(f"{name}: {INDEX}: expected names of .safetensors files, found {wrong!r}")
    return shards
