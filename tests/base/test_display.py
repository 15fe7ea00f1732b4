"""What is printed: below the cell of a notebook plain lines; numbers that do not vanish; commands to paste."""

import io
import re
import shlex
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.base.display import Display, command_line, is_terminal, table_console
from dtl.base.units import in_bytes, in_epochs, in_gb, in_gib, in_mib, in_percent, in_units, number_of


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


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_words", [in_units, in_gib, in_mib, in_gb, in_bytes, in_percent, in_epochs])
@settings(deadline=None)
@given(st.floats(min_value=1, max_value=1e13))
def test_a_count_is_never_rounded_to_nothing(in_words, count):
    """`0.0 M parameters` of a tiny model. Fractions and epochs are small; 1e-13 stands for any of theirs."""
    number = count if in_words in (in_units, in_gib, in_mib, in_gb, in_bytes) else count / 1e13
    shown = in_words(number)
    assert re.search(r"[1-9]", shown), shown


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_one_is_singular(count):
    assert number_of("trials", count) == (f"{count:,} trial" if count == 1 else f"{count:,} trials")


def test_a_command_is_shown_as_it_can_be_pasted():
    words = ["ckpt=outputs/my runs/a", 'prompt=it\'s "$HOME"', "a=[1,2]", "b=c"]
    assert shlex.split(command_line("chat", *words)) == ["python", "-m", "dtl.chat", *words]
    assert command_line("chat", "ckpt=outputs/a") == "python -m dtl.chat ckpt=outputs/a"
