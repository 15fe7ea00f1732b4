"""The output of commands: complete on a terminal of 80 columns, plain lines in a file and below a notebook's cell;
numbers that do not vanish; commands to paste."""

import io
import os
import re
import shlex
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dtl.base import progress
from dtl.base.display import Display, command_line, is_terminal, say, table, table_console, wrapped
from dtl.base.progress import Pace
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
            display.step(3, 7, ["loss 1"])
        table_console().print("b " * 60)
        shown = stream.getvalue()
        assert ("\x1b" not in shown) == plain
        if plain:
            assert shown.splitlines() == ["a word " * 30, "step 3/7  loss 1", "b " * 60]


@pytest.mark.parametrize("width", [20, 40, 71, 72, 100])
def test_a_table_in_a_narrow_terminal_cuts_no_cell(width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    cells = [
        ("outputs/a-very-long-name-of-a-folder", "finished", "1,000/1,000", "1.2345", "12 min"),
        ("b", "", "", "", ""),
    ]
    headers = ("folder", "state", "step", "loss", "age")
    console.print(table(headers, cells, every={"no_wrap": True}, columns={"folder": {"no_wrap": False}}))
    shown = "".join(console.file.getvalue().split())  # pyright: ignore[reportAttributeAccessIssue]
    for cell in cells[0][1:]:
        assert "".join(cell.split()) in shown, shown
    assert ("folderb" in shown) == (width < 72)


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_words", [in_units, in_gib, in_mib, in_gb, in_bytes, in_percent, in_epochs])
@given(st.floats(min_value=1, max_value=1e13))
def test_a_count_is_never_rounded_to_nothing(in_words, count):
    """`0.0 M parameters` of a tiny model. Fractions and epochs are small; 1e-13 stands for any of theirs."""
    number = count if in_words in (in_units, in_gib, in_mib, in_gb, in_bytes) else count / 1e13
    shown = in_words(number)
    assert re.search(r"[1-9]", shown), shown


@given(st.integers(0, 10**6))
def test_one_is_singular(count):
    assert number_of("trials", count) == (f"{count:,} trial" if count == 1 else f"{count:,} trials")


def test_a_command_is_shown_as_it_can_be_pasted():
    words = ["ckpt=outputs/my runs/a", 'prompt=it\'s "$HOME"', "a=[1,2]", "b=c"]
    assert shlex.split(command_line("chat", *words)) == ["python", "-m", "dtl.chat", *words]
    assert command_line("chat", "ckpt=outputs/a") == "python -m dtl.chat ckpt=outputs/a"


# --- a terminal of 80 columns -------------------------------------------------------------------------------------

COMMANDS = [
    "python -m dtl.train resume=outputs/2026-11-29/03-26-50-9229_small_qa plugins=my_lab.a,my_lab.b device=cpu",
    "python -m dtl.train --config-dir=/home/me/conf -m 'data.path=my texts/one (1).txt' experiment=night seed=1,2",
    "python -m dtl.evaluate 'ckpt=it'\"'\"'s'",
    "'data.qa.columns={question: my question, answer: body}'",
    "`wandb sync outputs/2026-11-29/03-26-50-9229_small_qa/wandb/offline-run-20261129_032703-4sb4ogtt`",
]


@given(st.lists(st.text("ab-=", min_size=1, max_size=30)), st.sampled_from(COMMANDS), st.sampled_from([20, 40, 80]))
def test_prose_is_wrapped_and_commands_stay_whole(words, command, width):
    text = " ".join([*words, f"more: {command}", "or not."])
    lines = wrapped(text, width)
    assert " ".join(lines) == text
    assert any(command in line for line in lines)
    assert all(len(line) <= width or command in line or " " not in line for line in lines)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_error_is_broken_between_words_on_a_terminal(monkeypatch, is_terminal):
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

        def fileno(self) -> int:
            return 2

    monkeypatch.setattr("sys.stderr", stream := Stream())
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((31, 24)))
    say(f"Error: these words go beyond 31 columns:\n  {COMMANDS[0]}")
    line_end = "\n" if is_terminal else " "
    assert stream.getvalue() == f"Error: these words go beyond 31{line_end}columns:\n  {COMMANDS[0]}\n"


def test_lines_that_fit_are_left_as_they_are():
    table = "step       8  validation loss 8.1247  best so far\n\n  indented"
    assert wrapped(table, 80) == table.split("\n")


def terminal(width: int = 80) -> tuple[Display, io.StringIO]:
    stream = io.StringIO()
    return Display(Console(file=stream, force_terminal=True, width=width, color_system=None)), stream


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("steps", [9, 1_000_000])
def test_the_progress_of_training_is_complete(width, steps):
    parts = ["epoch 19.95", "loss 10.8251", "lr 1.00e-03", "123.4 k tok/s", "left 116:08:57", "139.0 GiB"]
    display, stream = terminal(width)
    with display:
        display.start_progress(steps, 0)
        display.step(steps, steps, parts)
    shown = stream.getvalue()
    assert all(part in shown for part in [*parts, f"{steps}/{steps}"])


def test_step_and_epoch_of_the_progress_are_of_one_moment():
    """A step that is not logged yet moves both."""
    display, stream = terminal()
    with display:
        display.start_progress(23, 0)
        display.step(5, 23, ["epoch 1.00", "loss 3.0", "left 2 s", "1.0 GiB"])
        display.advance(7, "epoch 1.40")
    shown = stream.getvalue()
    assert "7/23 epoch 1.40  loss 3.0" in shown and "7/23 epoch 1.00" not in shown, shown


def test_long_work_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_REPORTS", 0)
    display, stream = terminal()
    with display:
        pace = Pace("reading data.path=a/folder/that/is/far/from/here: train", display.log)
        for done in range(4):
            pace.count(done, 3)
        display.log("done")
    shown = stream.getvalue()
    assert "2 of 3, 67%" in shown and "reading data.path=" in shown and "━" in shown
    assert shown.index("67%") < shown.index("done"), "a line of its log is next to a bar, too"
    lines: list[str] = []
    pace = Pace("reading", lines.append)
    for done in range(4):
        pace.count(done, 3)
    assert [line.rpartition(", ")[0] for line in lines[1:]] == ["reading, 1 of 3, 33%", "reading, 2 of 3, 67%"]
