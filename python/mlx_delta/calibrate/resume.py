"""Long measurements that go on where they were broken off: what is done is kept in a file beside the output."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mlx_delta.checkpoint.atomic import atomic_file
from mlx_delta.language_model import LanguageModel

_SAVE_SECONDS = 20.0
Arrays = Mapping[str, np.ndarray]


class Resumable:
    """One measurement's file, or none (``file`` None: nothing is kept).

    A file counts for a run of the same model (config, weight files, activations' dtype), tokens and ``settings``, which
    are anything that JSON holds; any other is as good as none. The caller removes it once the result is written.
    """

    def __init__(
        self, file: Path | None, model: LanguageModel, chunks: Sequence[Sequence[int]], settings: Any = None
    ) -> None:
        self._file = file
        files = [model.path] if model.path.is_file() else sorted(model.path.glob("*.safetensors"))
        stats = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
        tokens = [list(chunk) for chunk in chunks]
        run = [dict(model.config.raw), stats, str(model.network.dtype), tokens, settings]
        self._identity = hashlib.sha256(json.dumps(run).encode()).hexdigest()
        self._saved = time.monotonic()

    def restore(self) -> dict[str, np.ndarray]:
        """What an earlier run had saved; {} when there was none."""
        if self._file is None or not self._file.is_file():
            return {}
        try:
            with np.load(self._file) as stored:
                if str(stored["identity"]) != self._identity:
                    return {}
                return {name.removeprefix("kept:"): stored[name] for name in stored.files if name.startswith("kept:")}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # a damaged one is as good as none
            return {}

    @contextmanager
    def keeping(self, done: Callable[[], Arrays]) -> Iterator[Callable[[], None]]:
        """A block whose work so far, ``done()``, is saved when it ends, by whatever (Ctrl-C, a signal, an error), and
        every 20 seconds when the function that it gets is called."""

        def save() -> None:
            if self._file is not None and (arrays := done()):
                kept: dict[str, Any] = {f"kept:{name}": values for name, values in arrays.items()}
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(self._file, force=True) as partial, partial.open("wb") as stream:
                    np.savez(stream, identity=np.array(self._identity), **kept)
            self._saved = time.monotonic()

        def tick() -> None:
            if time.monotonic() - self._saved > _SAVE_SECONDS:
                save()

        try:
            yield tick
        finally:
            save()
