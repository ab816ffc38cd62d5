"""A model's name or path to where it lies."""

from __future__ import annotations

import glob
from pathlib import Path

from mlx_delta.checkpoint.source import INDEX, convert_first
from mlx_delta.errors import HubError
from mlx_delta.hub.cache import cached, known_commit, result, snapshot, wanted_files
from mlx_delta.hub.errors import told, unreachable
from mlx_delta.hub.names import HubName, parse_name
from mlx_delta.hub.transfer import fetch
from mlx_delta.paths import expanded
from mlx_delta.progress import Bars, Show, megabytes

_LIBRARY = "mlx-delta"


def model_path(model: str | Path, *, gguf: bool = False, download: bool = True, progress: Show | None = None) -> Path:
    """Where a model lies: a path as it stands, or the directory of a model of the Hub, downloaded at its first use.

    model: a path (``~`` is the home directory), or ``org/name[@revision]``. What exists, is a ``Path``, or starts with
    ``.``, ``/`` or ``~`` is never looked for on the Hub. gguf: whether a .gguf file will do; it is named as
    ``org/name[@revision]/file.gguf``, unless the repository has only one. download: False takes only what is in the
    cache. progress: called with the bytes done and in all, from other threads; None shows a bar on stderr.

    The environment counts as in huggingface_hub: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
    Raises: HubError, a ValueError that says what to do.
    """
    name = parse_name(str(model)) if is_named(model) else None
    if name is None:
        return expanded(model, "model")
    if name.file is not None and not gguf:
        raise HubError(convert_first(name))
    with told(name):
        if not download:
            return _from_cache(name, gguf)
        if progress is not None:
            return _download(name, gguf, progress)
        with Bars() as bars:
            return _download(name, gguf, bars.task(f"downloading {name}", megabytes))


def is_named(model: str | Path) -> bool:
    """Whether ``model_path`` asks the Hub for it."""
    return isinstance(model, str) and parse_name(model) is not None and not expanded(model).exists()


def _from_cache(name: HubName, gguf: bool) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    found = cached(name, gguf)
    if found is None:
        raise HubError(f"{name}: expected a directory here or a model in {HF_HUB_CACHE}, found neither")
    return found


def _download(name: HubName, gguf: bool, progress: Show) -> Path:
    """Ask the Hub once what the model is now, and fetch what is not in the cache."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *arguments: object, **settings: object) -> None:
            super().__init__(*arguments, **{**settings, "disable": True})

    try:
        info = HfApi(library_name=_LIBRARY).model_info(name.repo, revision=name.revision, files_metadata=True)
    except Exception as error:
        found = cached(name, gguf) if unreachable(error) else None
        if found is None:
            raise
        return found
    commit = info.sha
    if commit is None or info.siblings is None:
        raise HubError(f"{name}: expected a commit and a list of files from the Hub, found neither")
    files = {each.rfilename: each for each in info.siblings}

    def index() -> Path:
        return Path(hf_hub_download(name.repo, INDEX, revision=commit, library_name=_LIBRARY, tqdm_class=Silent))

    wanted = wanted_files(name, files, gguf, index)
    missing = next((file for file in wanted if file not in files), None)
    if missing is not None:
        raise HubError(f"{name}: {INDEX}: expected files that are there, found {missing}")
    directory = snapshot(name, commit)
    if known_commit(name) != commit or not all((directory / file).is_file() for file in wanted):
        fetch(name, commit, [files[file] for file in wanted if not (directory / file).is_file()], progress)
        snapshot_download(  # the small files, and links to the large ones
            name.repo,
            revision=name.revision,
            allow_patterns=[glob.escape(file) for file in wanted],
            library_name=_LIBRARY,
            tqdm_class=Silent,
        )
    return result(directory, wanted)
