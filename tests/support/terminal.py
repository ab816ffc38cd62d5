"""A program on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C becomes a signal
        )
        os.close(slave)
        self.shown = ""  # after what was waited for
        self.seen = ""  # all of it

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Until ``text`` is shown after what was waited for before."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown[-2000:]!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    new = os.read(self._master, 65536).decode(errors="replace")
                    self.shown += new
                    self.seen += new
                except OSError:  # Linux, once the program has ended
                    assert text in self.shown, self.shown
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
