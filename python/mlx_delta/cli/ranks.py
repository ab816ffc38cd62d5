"""Commands that several processes run together, started by mlx.launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlx_delta.cli.errors import UsageError
from mlx_delta.errors import RankError

if TYPE_CHECKING:
    from mlx_delta.distributed.ranks import Ranks

_CONNECT = 60  # seconds from this rank's start to the last one's: each has modules to import


def check_alone(command: str) -> None:
    """Raises: UsageError where mlx.launch has started several of a command that they do not run together."""
    from mlx_delta.distributed.ranks import launched

    if launched():
        raise UsageError(f"mlx.launch: expected a command that ranks run together, generate, found {command}")


def joined() -> Ranks | None:
    """The ranks that mlx.launch has started, connected; None where this process is alone."""
    from mlx_delta.distributed.ranks import Ranks, launched
    from mlx_delta.distributed.watch import ended_after

    if not launched():
        return None
    message = f"error: mlx.launch: expected all ranks to connect within {_CONNECT} seconds, found that they did not"
    with ended_after(_CONNECT, message):
        return Ranks.launched()


@contextmanager
def together(ranks: Ranks | None) -> Iterator[None]:
    """A block that all ranks run. Where another is gone this one ends with an error, whatever MLX waits for.

    Raises: RankError where MLX says so first.
    """
    if ranks is None:
        yield
        return
    from mlx_delta.distributed.watch import ended_when_lost

    what = f"rank {ranks.rank} of {ranks.size}: expected all ranks to go on, found"
    try:
        with ended_when_lost(ranks.connections, f"error: {what} a connection closed"):
            yield
    except RuntimeError as error:
        if not str(error).startswith("["):  # "[ring] connection to a peer was lost"
            raise
        raise RankError(f"{what}: {error}") from error
