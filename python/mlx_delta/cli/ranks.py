"""Commands that several processes run together, started by mlx.launch."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_delta.cli.errors import UsageError
from mlx_delta.errors import RankError

if TYPE_CHECKING:
    from mlx_delta.distributed.ranks import Ranks

    Lead = Callable[[Ranks, Callable[[BaseException], None]], AbstractContextManager[bool]]

_LAST_WORDS = 1.0  # seconds for clients to hear of an error


def check_alone(command: str) -> None:
    """Raises: UsageError where mlx.launch has started several of a command that they do not run together."""
    from mlx_delta.distributed.meeting import launched

    if launched():
        those = "generate, chat, serve, bench decode, bench prefill, bench throughput"
        raise UsageError(f"mlx.launch: expected a command that ranks run together ({those}), found {command}")


def joined(by_layers: bool) -> Ranks | None:
    """The ranks that mlx.launch has started, connected; None where this process is alone. From here on Ctrl-C is heard
    by rank 0 alone.

    Raises: UsageError where by_layers is asked of one alone; RankError.
    """
    from mlx_delta.distributed.meeting import launched

    if not launched():
        if by_layers:
            raise UsageError("--by-layers: expected ranks, started by mlx.launch, found one process")
        return None
    from mlx_delta.distributed.ranks import Ranks

    ranks = Ranks.launched(by_layers)
    if ranks is not None and ranks.rank:
        # Ctrl-C is for rank 0: it has what is to be kept, and would wait in MLX for one that had left before it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return ranks


@contextmanager
def silent(ranks: Ranks | None) -> Iterator[None]:
    """A block in which rank 0 alone writes to standard output."""
    if ranks is None or ranks.rank == 0:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def led(lead: Lead, ranks: Ranks | None) -> Iterator[bool]:
    """A block in which rank 0 (true) uses a model for all; others enter it (false) when that is over. lead: such as
    ``LanguageModel.led``."""
    if ranks is None:
        yield True
        return

    def failed(error: BaseException) -> None:
        time.sleep(_LAST_WORDS)
        what = error if isinstance(error, RankError) else f"{_what(ranks)} {error}"
        print(f"error: {what}", file=sys.stderr, flush=True)
        os._exit(1)  # whatever the main thread waits for

    with lead(ranks, failed) as leads:
        yield leads


def _what(ranks: Ranks) -> str:
    return f"rank {ranks.rank} of {ranks.size}: expected all ranks to go on, found"


@contextmanager
def together(ranks: Ranks | None) -> Iterator[None]:
    """A block that all ranks run. Where another is gone this one ends with an error, whatever MLX waits for.

    Raises: RankError where MLX says so first.
    """
    if ranks is None:
        yield
        return
    try:
        with ranks.watched():
            yield
    except RuntimeError as error:
        if not str(error).startswith("["):  # "[ring] connection to a peer was lost"
            raise
        raise RankError(f"{_what(ranks)}: {error}") from error
