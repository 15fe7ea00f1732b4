"""Typed lines, with editing, a history file and pastes of any size (prompt_toolkit)."""

import os
import re
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.utils import is_dumb_terminal

from dtl.base.safe_text import visible
from dtl.terminal.input import TooLong

if TYPE_CHECKING:
    from prompt_toolkit.input.posix_utils import PosixStdinReader
    from prompt_toolkit.input.vt100 import Vt100Input


# --- pastes of any size -------------------------------------------------------------------------------------------
# prompt_toolkit's own parser searches the whole paste again after each kilobyte: quadratic in its size. With this one
# 10 MB take 0.5 s until they are rejected (docs/results.md).

END = "\x1b[201~"  # what a terminal sends after a paste
BURST = 64  # characters that arrive at once: more than anyone types, so they are a paste
_LINE_ENDS = re.compile("[\r\n\x03]")


class BoundedParser(Vt100Parser):
    """Parser that calls `feed_key_callback` with at most `max_characters` of a paste; `sizes` has their true lengths.

    Some terminals do not mark pastes. Text that arrives in a burst is treated as a paste, up to the next Enter.
    """

    def __init__(self, feed_key_callback: Callable[[KeyPress], None], max_characters: int) -> None:
        self.sizes: deque[int] = deque()  # one for each Keys.BracketedPaste
        self._max_characters = max_characters
        self._kept: list[str] = []
        self._n_kept = self._n_characters = self._n_burst = self._n_dropped = 0
        super().__init__(feed_key_callback)

    def feed(self, data: str) -> None:
        """See `Vt100Parser.feed`."""
        if self._in_bracketed_paste:
            self._feed_paste(data)
        elif len(data) >= BURST and data.isprintable():
            self._feed_burst(data)
        elif self._n_dropped:
            self._end_burst(data)
        else:
            if _LINE_ENDS.search(data):
                self._n_burst = 0
            super().feed(data)

    def _feed_paste(self, data: str) -> None:
        text = self._paste_buffer + data  # the buffer holds a possible beginning of the end mark
        end = text.find(END)
        self._take(text[: -len(END)] if end < 0 else text[:end])
        self._paste_buffer = text[-len(END) :]
        if end < 0:
            return
        kept, size = "".join(self._kept), self._n_characters
        self._kept, self._n_kept, self._n_characters = [], 0, 0
        self._in_bracketed_paste, self._paste_buffer = False, ""
        self._pass_on(kept, size)
        self.feed(text[end + len(END) :])

    def _take(self, text: str) -> None:
        self._n_characters += len(text)
        if self._n_kept < self._max_characters:
            self._kept.append(text[: self._max_characters - self._n_kept])
            self._n_kept += len(self._kept[-1])

    def _feed_burst(self, data: str) -> None:
        self._n_burst += len(data)
        if self._n_burst > self._max_characters:
            self._n_dropped += len(data)
        else:
            self.flush()
            self._pass_on(data, len(data))

    def _end_burst(self, data: str) -> None:
        """Drop what follows a burst that was cut, up to the next Enter or Ctrl-C."""
        before, *after = _LINE_ENDS.split(data, maxsplit=1)
        self._n_dropped += len(before)
        if after:
            size, self._n_dropped, self._n_burst = self._n_dropped, 0, 0
            self._pass_on("", max(size, self._max_characters + 1))
            self.feed(after[0])

    def _pass_on(self, text: str, size: int) -> None:
        self.sizes.append(size)
        self.feed_key_callback(KeyPress(Keys.BracketedPaste, text))


# --- lines --------------------------------------------------------------------------------------------------------

READ_BYTES = 2**16  # prompt_toolkit reads 1,024, with which a paste of 10 MB takes seconds


class TerminalInput:
    """An `InputLine` for a terminal. A paste becomes part of the line, also one with line ends; Enter ends the line.

    `source` and `sink` are prompt_toolkit's input and output (None: the process's own terminal).
    """

    is_terminal = True

    def __init__(
        self,
        label: str,
        max_characters: int,
        history: Path | None = None,
        source: Input | None = None,
        sink: Output | None = None,
    ) -> None:
        self._max_characters = max_characters
        self._kept_line = ""  # the text in the line when a paste was dropped
        self._history, self._note = open_history(history)
        source = source or create_input()
        self._parser = _bound_pastes(source, max_characters)
        self._session: PromptSession[str | TooLong] = PromptSession(
            [("bold ansigreen", f"{label}: ")],
            history=self._history,
            key_bindings=self._bindings(),
            enable_suspend=True,  # Ctrl-Z
            input=source,
            # prompt_toolkit would send escape sequences to a terminal that has none (TERM=dumb).
            output=sink or (PlainTextOutput(sys.stdout) if is_dumb_terminal() else None),
        )

    def read(self) -> str | TooLong:
        """See `InputLine.read`."""
        default, self._kept_line = self._kept_line, ""
        line = self._session.prompt(default=default)
        return TooLong(len(line)) if isinstance(line, str) and len(line) > self._max_characters else line

    def take_note(self) -> str | None:
        """See `InputLine.take_note`."""
        problem = self._history.take_problem() if isinstance(self._history, KeptHistory) else None
        note, self._note = self._note or problem, None
        return note

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add(Keys.BracketedPaste)
        def paste(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            size = self._parser.sizes.popleft() if self._parser is not None else len(event.data)
            if size + len(buffer.text) <= self._max_characters:
                buffer.insert_text(_on_one_line(event.data))
                return
            self._kept_line = buffer.text if len(buffer.text) <= self._max_characters // 2 else ""
            event.app.exit(result=TooLong(size + len(buffer.text)))

        return bindings


def _on_one_line(pasted: str) -> str:
    """Join the lines of a paste with spaces: a question is one line."""
    lines = [line.strip() for line in pasted.replace("\r", "\n").replace("\t", " ").split("\n")]
    first, *more = lines
    return visible(" ".join([first, *(line for line in more if line)]))


def _bound_pastes(source: Input, max_characters: int) -> BoundedParser | None:
    """Give a terminal's input the bounded parser. Windows has another kind of input, with bounds of its own."""
    if sys.platform == "win32":
        return None
    from prompt_toolkit.input.vt100 import Vt100Input

    if not isinstance(source, Vt100Input):
        return None
    bounded = source.vt100_parser = BoundedParser(source.vt100_parser.feed_key_callback, max_characters)
    source.stdin_reader = _eager_reader(source)
    return bounded


def _eager_reader(source: "Vt100Input") -> "PosixStdinReader":
    """Return a reader of READ_BYTES at a time."""
    from prompt_toolkit.input.posix_utils import PosixStdinReader

    class EagerReader(PosixStdinReader):
        def read(self, count: int = READ_BYTES) -> str:
            return super().read(count)

    return EagerReader(source.fileno(), encoding=source.stdin.encoding)


class KeptHistory(FileHistory):
    """A history file that may become unusable: the session then continues without it, with one warning."""

    _problem: str | None = None

    def load_history_strings(self) -> Iterable[str]:
        """See `FileHistory.load_history_strings`. An error would end in prompt_toolkit's own report of it, which asks
        for Enter and leaves a Ctrl-C without effect."""
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._problem = self._problem or _not_kept(Path(os.fsdecode(self.filename)), error.strerror)
            return []

    def store_string(self, string: str) -> None:
        """See `FileHistory.store_string`."""
        try:
            super().store_string(string)
        except OSError as error:
            self._problem = self._problem or _not_kept(Path(os.fsdecode(self.filename)), error.strerror)

    def take_problem(self) -> str | None:
        """Return the problem since the last call, if any."""
        problem, self._problem = self._problem, None
        return problem


def open_history(path: Path | None) -> tuple[History, str | None]:
    """Return the history in this file, which only its owner may read (mode 0600), and a warning.

    It stays in memory, with a warning, when the path is no regular file or not writable; without a path, silently.
    """
    if path is None:
        return InMemoryHistory(), None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Opened as FileHistory will, so that a file that cannot be used is known before the first line.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):  # such as /dev/null, whose mode must not change
                return InMemoryHistory(), _not_kept(path, "no regular file")
            if os.name != "nt" and stat.S_IMODE(mode) != 0o600:
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        return InMemoryHistory(), _not_kept(path, error.strerror)
    return KeptHistory(path), None


def _not_kept(path: Path, why: str | None) -> str:
    return f"history={path}: {why}. Typed lines are not saved."
