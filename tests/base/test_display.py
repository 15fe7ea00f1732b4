"""The output of a run below the cell of a notebook: plain lines, although its stream says that it is a terminal."""

import io
import sys

from dtl.base.display import Display, is_terminal, table_console


class CellOutput(io.StringIO):
    """As ipykernel's."""

    __module__ = "ipykernel.iostream"

    def isatty(self) -> bool:
        return True


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_notebook_gets_plain_lines(monkeypatch):
    for stream, plain in ((CellOutput(), True), (Terminal(), False)):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", stream)
        assert is_terminal(stream) != plain
        with Display() as display:
            display.note("a word " * 30)
            display.start_progress(7, 0)
            display.step(3, 7, "loss 1")
        table_console().print("b " * 60)
        shown = stream.getvalue()
        assert ("\x1b" not in shown) == plain
        if plain:
            assert shown.splitlines() == ["a word " * 30, "step 3/7  loss 1", "b " * 60]
