"""Keys of a terminal in which a paste may be as large as it likes: what exceeds a bound is counted and dropped.

prompt_toolkit's own parser searches the whole of a paste again with each kilobyte that comes.
"""

import re
from collections import deque
from collections.abc import Callable

from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys

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
