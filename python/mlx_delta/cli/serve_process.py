"""The process of ``mlx-delta serve``: its socket, its ready line, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING

import typer

from mlx_delta.cli.errors import UsageError
from mlx_delta.errors import MissingPackageError

if TYPE_CHECKING:
    from fastapi import FastAPI

_FIRST_REQUEST_SECONDS = 30
_UNREAD_SECONDS = 60.0
_log = logging.getLogger("mlx_delta.server")


def server_package() -> None:
    """Raises: MissingPackageError without the extra."""
    try:
        import fastapi
        import prometheus_client
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"serve: expected the package {error.name}, found it missing: pip install 'mlx-delta[server]'"
        ) from None
    del fastapi, prometheus_client


def log_to_stderr() -> None:
    """Requests as lines of JSON, which need nothing more; the rest with its time and its kind."""
    for name, form in (
        ("mlx_delta.server", "%(asctime)s %(levelname)s %(message)s"),
        ("mlx_delta.server.requests", None),
    ):
        log, handler = logging.getLogger(name), logging.StreamHandler()
        handler.setFormatter(logging.Formatter(form))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet. Raises: UsageError where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host: expected an address of this machine, found {host}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _taken(host, port, error) from error
    return listener


def _taken(host: str, port: int, error: OSError) -> UsageError:
    return UsageError(f"--port: expected a free one at {host}, found {port}: {os.strerror(error.errno or 0)}")


def run(app: FastAPI, listener: socket.socket, ready: str) -> None:
    """Serve until a signal ends it. ready: printed when it listens, with the address behind it."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """A connection on which no request comes is closed, and one whose client takes nothing of what it is sent."""

        _look: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(0)  # writing pauses while the system has not taken all
            self.loop.call_later(_FIRST_REQUEST_SECONDS, self._close_unused)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._close_unread(None)

        def resume_writing(self) -> None:
            self._look_no_more()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._look_no_more()
            super().connection_lost(exc)

        def _close_unread(self, before: int | None) -> None:
            """Look again and again; before: bytes that waited at the last look."""
            waiting = self.transport.get_write_buffer_size()
            if waiting == before:
                _log.warning("a client took nothing for %g seconds: its connection is closed", _UNREAD_SECONDS)
                self.transport.abort()  # what waits for it would be held for ever
                return
            self._look = self.loop.call_later(_UNREAD_SECONDS, self._close_unread, waiting)

        def _look_no_more(self) -> None:
            if self._look is not None:
                self._look.cancel()
                self._look = None

        def _close_unused(self) -> None:
            if self.cycle is None:
                self.transport.close()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            try:
                await super().startup(sockets)
            except OSError as error:  # Linux lets several have an address, and one of them listen
                host, port = listener.getsockname()[:2]
                raise _taken(host, port, error) from error
            if self.started:
                typer.echo(ready + address(listener))

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """The first drains, the second ends answers within a step; neither is an error of the program."""
            self.force_exit = self.should_exit
            self.should_exit = True

    config = uvicorn.Config(app, http=Protocol, ws="none", log_config=None, access_log=False, timeout_keep_alive=30)
    try:
        Server(config).run(sockets=[listener])
    finally:
        app.state.service.runner.stop()
        for number in (signal.SIGTERM, signal.SIGINT):  # what is left ends by itself
            signal.signal(number, signal.SIG_DFL)


def address(listener: socket.socket) -> str:
    """As a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
