"""Lines that a person types: editing, a history that is kept in a file, pastes of any size."""

import os
import re
import stat
import sys
from collections import deque
from collections.abc import Callable
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
# Keys of a terminal in which a paste may be as large as it likes: what exceeds a bound is counted and dropped.
#
# prompt_toolkit's own parser searches the whole of a paste again with each kilobyte that comes.


END = "\x1b[201~"  # what a terminal sends after a paste
BURST = 64  # characters that come at once: nobody types them
_LINE_ENDS = re.compile("[\r\n\x03]")


class BoundedParser(Vt100Parser):
    """Calls `feed_key_callback` with at most `most_characters` of a paste; `sizes` has what each one really had.

    A terminal may not mark its pastes. Text that comes in a burst is taken for a part of one, up to the next Enter.
    """

    def __init__(self, feed_key_callback: Callable[[KeyPress], None], most_characters: int) -> None:
        self.sizes: deque[int] = deque()  # a number for each Keys.BracketedPaste
        self._most = most_characters
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
        text = self._paste_buffer + data  # the buffer holds what may be the beginning of the end mark
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
        if self._n_kept < self._most:
            self._kept.append(text[: self._most - self._n_kept])
            self._n_kept += len(self._kept[-1])

    def _feed_burst(self, data: str) -> None:
        self._n_burst += len(data)
        if self._n_burst > self._most:
            self._n_dropped += len(data)
        else:
            self.flush()
            self._pass_on(data, len(data))

    def _end_burst(self, data: str) -> None:
        """A burst of which something was dropped: what follows is too, up to the next Enter or Ctrl-C."""
        before, *after = _LINE_ENDS.split(data, maxsplit=1)
        self._n_dropped += len(before)
        if after:
            size, self._n_dropped, self._n_burst = self._n_dropped, 0, 0
            self._pass_on("", max(size, self._most + 1))
            self.feed(after[0])

    def _pass_on(self, text: str, size: int) -> None:
        self.sizes.append(size)
        self.feed_key_callback(KeyPress(Keys.BracketedPaste, text))


# --- lines --------------------------------------------------------------------------------------------------------


READ_BYTES = 2**16


class TerminalInput:
    """An `InputLine` for a terminal. A paste is part of the line whatever is in it; Enter ends the line.

    `source` and `sink` are prompt_toolkit's ends of the terminal (None: the process's own).
    """

    is_terminal = True

    def __init__(
        self,
        label: str,
        most_characters: int,
        history: Path | None = None,
        source: Input | None = None,
        sink: Output | None = None,
    ) -> None:
        self._most = most_characters
        self._refused_beside = ""  # what stood in the line beside a paste that was dropped
        self._history, self._note = open_history(history)
        source = source or create_input()
        self._parser = _bound_pastes(source, most_characters)
        self._session: PromptSession[str | TooLong] = PromptSession(
            [("bold ansigreen", f"{label}: ")],
            history=self._history,
            key_bindings=self._bindings(),
            enable_suspend=True,
            input=source,
            output=sink or _plain_output(),
        )

    def read(self) -> str | TooLong:
        """See `InputLine.read`."""
        beside, self._refused_beside = self._refused_beside, ""
        line = self._session.prompt(default=beside)
        return TooLong(len(line)) if isinstance(line, str) and len(line) > self._most else line

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
            if size + len(buffer.text) <= self._most:
                buffer.insert_text(_on_one_line(event.data))
                return
            self._refused_beside = buffer.text if len(buffer.text) <= self._most // 2 else ""
            event.app.exit(result=TooLong(size + len(buffer.text)))

        return bindings


def _plain_output() -> Output | None:
    """For a terminal that knows no escape sequences: prompt_toolkit would send it one to show the cursor."""
    return PlainTextOutput(sys.stdout) if is_dumb_terminal() else None


def _on_one_line(pasted: str) -> str:
    """Ends of lines become spaces: a question is one line, and its answer follows the next."""
    lines = [line.strip() for line in pasted.replace("\r", "\n").replace("\t", " ").split("\n")]
    first, *more = lines
    return visible(" ".join([first, *(line for line in more if line)]))


def _bound_pastes(source: Input, most_characters: int) -> BoundedParser | None:
    """Give a terminal's input our parser. Windows has another kind of input, with bounds of its own."""
    if sys.platform == "win32":
        return None
    from prompt_toolkit.input.vt100 import Vt100Input

    if not isinstance(source, Vt100Input):
        return None
    bounded = source.vt100_parser = BoundedParser(source.vt100_parser.feed_key_callback, most_characters)
    source.stdin_reader = _eager_reader(source)
    return bounded


def _eager_reader(source: "Vt100Input") -> "PosixStdinReader":
    """A kilobyte at a time, as prompt_toolkit reads, a paste of 10 MB takes seconds."""
    from prompt_toolkit.input.posix_utils import PosixStdinReader

    class EagerReader(PosixStdinReader):
        def read(self, count: int = READ_BYTES) -> str:
            return super().read(count)

    return EagerReader(source.fileno(), encoding=source.stdin.encoding)


class KeptHistory(FileHistory):
    """A history whose file may stop being writable: then it goes on without it, and says so once."""

    _problem: str | None = None

    def store_string(self, string: str) -> None:
        """See `FileHistory.store_string`."""
        try:
            super().store_string(string)
        except OSError as error:
            self._problem = self._problem or _not_kept(Path(os.fsdecode(self.filename)), error.strerror)

    def take_problem(self) -> str | None:
        """What went wrong since the last time."""
        problem, self._problem = self._problem, None
        return problem


def open_history(path: Path | None) -> tuple[History, str | None]:
    """The history in this file, which only its owner may read; with a note, and kept in memory alone, when the file
    is none or refuses. Without a path nothing is kept."""
    if path is None:
        return InMemoryHistory(), None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):  # /dev/null, say, whose mode is nobody's to change
                return InMemoryHistory(), _not_kept(path, "no regular file")
            if os.name != "nt" and stat.S_IMODE(mode) != 0o600:
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        return InMemoryHistory(), _not_kept(path, error.strerror)
    return KeptHistory(path), None


def _not_kept(path: Path, why: str | None) -> str:
    return f"history={path}: {why}. What you type is not remembered."
