"""Piped and typed lines: their ends, their maximum length, their history."""

import io
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import DummyOutput

from dtl.terminal.input import PipedInput, TooLong, history_file
from dtl.terminal.typed_input import BURST, END, BoundedParser, TerminalInput, open_history

TEN_MB = 10 * 2**20
BEGIN = "\x1b[200~"


def piped(data: bytes, most: int = 1000) -> list[str | TooLong]:
    lines, found = PipedInput(io.BytesIO(data), most), []
    while True:
        try:
            found.append(lines.read())
        except EOFError:
            return found


# --- a pipe ---------------------------------------------------------------------------------------------------------


def test_each_line_of_a_pipe_is_read():
    assert piped(b"One?\nTwo?\r\n\n Three?") == ["One?", "Two?", "", " Three?"]
    assert piped(b"") == []


def test_what_is_no_utf_8_does_not_stop_a_pipe():
    assert piped(b"\xef\xbb\xbfOne\xff?\nna\xc3\xafve\n\xc3") == ["One\ufffd?", "naïve", "\ufffd"]


def test_10_mb_in_a_pipe_are_rejected_and_the_next_line_is_read():
    assert piped(b"x" * TEN_MB + b"\nTwo?\n" + "é".encode() * TEN_MB + b"\r\nThree?\n" + b"z" * TEN_MB) == [
        TooLong(TEN_MB),
        "Two?",
        TooLong(TEN_MB),
        "Three?",
        TooLong(TEN_MB),
    ]


@given(st.integers(1, 40), st.text(st.characters(exclude_characters="\r\n\ufeff", codec="utf-8"), max_size=60))
@example(3, "0000000\x80\U00010000")  # what is read at once ends between \r and \n
def test_a_line_of_a_pipe_has_a_bound(most, text):
    expected = text if len(text) <= most else TooLong(len(text))
    for end in ("\n", "\r\n", ""):
        if text or end:
            assert piped((text + end).encode(), most) == [expected]
            assert piped((text + end).encode() + (b"next\n" if end else b""), most)[1:] in ([], ["next"], [TooLong(4)])


# --- keys -----------------------------------------------------------------------------------------------------------


def parsed(chunks: list[str], most: int) -> tuple[list[KeyPress], BoundedParser]:
    keys: list[KeyPress] = []
    parser = BoundedParser(keys.append, most)
    for chunk in chunks:
        parser.feed(chunk)
    parser.flush()
    return keys, parser


@given(st.data())
def test_a_paste_is_whole_however_it_is_cut(data):
    pasted = data.draw(
        st.text(st.sampled_from("ab\r\n\x1b[201~é"), max_size=30).filter(lambda text: END not in text + "\x1b")
    )
    stream = f"k{BEGIN}{pasted}{END}\r"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    most = data.draw(st.integers(0, 40))
    keys, parser = parsed(chunks, most)
    assert [key.key for key in keys] == ["k", Keys.BracketedPaste, Keys.ControlM]
    assert keys[1].data == pasted[:most]
    assert list(parser.sizes) == [len(pasted)]


def test_unmarked_text_in_a_burst_is_a_paste():
    burst = "x" * BURST
    keys, parser = parsed([burst, burst, "y\r"], most=200)
    assert [key.key for key in keys] == [Keys.BracketedPaste, Keys.BracketedPaste, "y", Keys.ControlM]
    keys, parser = parsed([burst] * 5 + ["zz\rab"], most=200)
    assert [key.key for key in keys] == [Keys.BracketedPaste] * 4 + ["a", "b"]
    assert list(parser.sizes)[-1] > 200 and keys[3].data == ""


def test_typing_is_not_taken_for_a_paste():
    keys, parser = parsed([*"x" * 500, "short words\r", "\x1b[A"], most=100)
    assert len(parser.sizes) == 0
    assert [key.key for key in keys][-2:] == [Keys.ControlM, Keys.Up]


@contextmanager
def terminal(most: int = 1000, history: Path | None = None) -> Iterator[tuple[TerminalInput, PipeInput]]:
    """A TerminalInput, and the keyboard that it reads."""
    with create_pipe_input() as keyboard:
        yield TerminalInput("You", most, history, source=keyboard, sink=DummyOutput()), keyboard


def test_a_line_is_edited_and_read():
    with terminal() as (line, keyboard):
        keyboard.send_text("Hallo\x7f\x7f\x7fi\x1b[D\x1b[Dxx\r")
        assert line.read() == "Hxxai"


def test_lines_of_a_paste_are_one_question():
    with terminal() as (line, keyboard):
        keyboard.send_text(f"see: {BEGIN}one\r\n  two\n\n\tthree\x1b]0;t\x07\u202e{END} four\r")
        assert line.read() == "see: one two three␛]0;t␇\ufffd four"


def test_of_a_paste_of_10_mb_the_beginning_is_kept():
    keys, parser = parsed([BEGIN, *["x" * 1024] * (TEN_MB // 1024), END], most=1000)
    assert [(key.key, len(key.data)) for key in keys] == [(Keys.BracketedPaste, 1000)]
    assert list(parser.sizes) == [TEN_MB]


def test_the_text_next_to_a_paste_that_was_rejected_stays():
    with terminal(most=20) as (line, keyboard):
        keyboard.send_text(f"What is {BEGIN}{'x' * 21}{END}")
        assert line.read() == TooLong(29)
        keyboard.send_text("that?\r")
        assert line.read() == "What is that?"


def test_a_line_that_was_typed_too_long_is_rejected():
    with terminal(most=20) as (line, keyboard):
        keyboard.send_text("y" * 21 + "\r")
        assert line.read() == TooLong(21)
        keyboard.send_text("z" * (2 * BURST))  # a burst, of which the rest follows
        keyboard.send_text("z\r")
        assert line.read() == TooLong(2 * BURST + 1)
        keyboard.send_text("ok?\r")
        assert line.read() == "ok?"


def test_leaving_and_clearing_a_line():
    with terminal() as (line, keyboard):
        keyboard.send_text("unfinished\x03")
        with pytest.raises(KeyboardInterrupt):
            line.read()
        keyboard.send_text("\x04")
        with pytest.raises(EOFError):
            line.read()


# --- history --------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_history_is_the_owners_alone(tmp_path):
    file = tmp_path / "state" / "dtl" / "chat_history"
    before = os.umask(0)
    try:
        with terminal(history=file) as (line, keyboard):
            keyboard.send_text("One?\rTwo\rlines?\r")
            assert [line.read() for _ in range(3)] == ["One?", "Two", "lines?"]
    finally:
        os.umask(before)
    assert mode(file) == 0o600 and mode(file.parent) == 0o700
    file.chmod(0o644)
    with terminal(history=file) as (line, keyboard):
        assert mode(file) == 0o600
        keyboard.send_text("\x1b[A\x1b[A\r")
        assert line.read() == "Two"
        assert line.take_note() is None


def test_a_history_that_cannot_be_kept_is_a_note(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe", 0o644)
    for path, why in (
        (folder, "Is a directory"),
        (tmp_path / "pipe", "no regular file"),
        (tmp_path / "file" / "x", "File exists"),
        (Path("/proc/nowhere/x"), "No such file"),
    ):
        history, note = open_history(path)
        assert isinstance(history, InMemoryHistory)
        assert note is not None and why in note and str(path) in note
    assert mode(tmp_path / "pipe") == 0o644


def test_a_history_that_stops_being_writable_is_told_once(tmp_path):
    file, on_interrupt = tmp_path / "history", signal.getsignal(signal.SIGINT)
    with terminal(history=file) as (line, keyboard):
        file.unlink()
        file.mkdir()
        keyboard.send_text("One?\rTwo?\r")
        assert line.read() == "One?"
        note = line.take_note()
        assert note is not None and "Is a directory" in note
        assert line.read() == "Two?"
        assert signal.getsignal(signal.SIGINT) == on_interrupt


def test_without_a_file_nothing_is_remembered():
    history, note = open_history(None)
    assert isinstance(history, InMemoryHistory) and note is None


def test_where_history_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file(None, "chat").name == "chat_history"
    assert history_file("~/x y", "chat") == Path.home() / "x y"
    assert history_file("~nobody-here/x", "chat") == Path("~nobody-here/x")
