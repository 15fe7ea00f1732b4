"""A command in a terminal of its own: a pty, with pyte as its screen."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

PATIENCE = 40.0  # seconds until somebody who waits gives up; nothing is asserted about time with it


class Screen(pyte.Screen):
    """pyte knows no dim text: it is shown in dark grey."""

    def select_graphic_rendition(self, *attributes: int, **how: bool) -> None:
        """See `pyte.Screen.select_graphic_rendition`."""
        names_a_colour = {38, 48} & set(attributes)  # by number, which may be the one that means dim elsewhere
        shown = attributes if names_a_colour else [90 if attribute == 2 else attribute for attribute in attributes]
        super().select_graphic_rendition(*shown, **how)


class PtyProcess:
    """`python -m <arguments>` in a new session whose terminal is ours. A context manager that leaves no process."""

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        columns: int = 80,
        rows: int = 30,
        answers: int | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """`answers` replaces the terminal as standard output."""
        self._patience = patience
        self.screen = Screen(columns, rows)
        # A terminal answers when it is asked for its cursor.
        self.screen.write_process_input = lambda answer: os.write(self._master, answer.encode())
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=cwd,
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **(environment or {})},
            stdin=slave,
            stdout=slave if answers is None else answers,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def __enter__(self) -> "PtyProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Close the window."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def send(self, text: str) -> None:
        """Type or paste, reading the output meanwhile."""
        data = text.encode()
        while data:
            readable, writable, _ = select.select([self._master], [self._master], [], self._patience)
            assert readable or writable, "the terminal takes nothing any more"
            if readable:
                self._read()
            if writable:
                data = data[os.write(self._master, data[:4096]) :]

    @property
    def descriptor(self) -> int:
        """Our end of the terminal."""
        return self._master

    def resize(self, columns: int, rows: int) -> None:
        """Resize the window; the kernel signals the process."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def wait_for(self, what: str | Callable[[str], bool], start: int = 0) -> int:
        """Read until `what` is in the output after byte `start`, or holds for it; the byte after it."""
        until = time.monotonic() + self._patience
        while (end := self._end_of(what, start)) is None:
            if not self._read(1.0):
                assert time.monotonic() < until and self.process.poll() is None, self._failure(what)
        return end

    def _end_of(self, what: str | Callable[[str], bool], start: int) -> int | None:
        if not isinstance(what, str):
            return len(self.output) if what(self.output[start:].decode(errors="replace")) else None
        found = self.output.find(what.encode(), start)
        return found + len(what.encode()) if found >= 0 else None

    def wait(self) -> int:
        """Read to the end, and return the exit code."""
        until = time.monotonic() + self._patience
        while self.process.poll() is None:
            self._read(0.1)
            assert time.monotonic() < until, self._failure("the end")
        while self._read():
            pass
        return self.process.returncode

    @property
    def lines(self) -> list[str]:
        """The lines of the screen, without trailing spaces."""
        return [line.rstrip() for line in self.screen.display]

    def _read(self, seconds: float = 0.0) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: nobody holds the other end any more
            return False
        self.output += data
        self._stream.feed(data)
        return bool(data)

    def _failure(self, what: object) -> str:
        return f"waited for {what!r}; exit code {self.process.poll()}; screen:\n" + "\n".join(self.lines)
