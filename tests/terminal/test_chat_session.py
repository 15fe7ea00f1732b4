"""A chat from its greeting to its end: calls of the model, output by stream, Ctrl-C and the end."""

import io
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_fakes import RoteContinuation, ScriptedInput, Talk, rote_model, talk
from hypothesis import given
from hypothesis import strategies as st
from pyte import Screen as Terminal
from pyte import Stream
from rich.console import ConsoleDimensions

from dtl.base.display import exit_when_output_closes
from dtl.evaluation.metrics import Calibration
from dtl.generation.config import SamplingConfig
from dtl.terminal.chat import Chat, stream_answer
from dtl.terminal.dialogue import Leaving, StopOnInterrupt
from dtl.terminal.input import TooLong
from dtl.terminal.streams import Screen


def test_a_question_is_asked_as_in_training():
    chat = talk("What is the capital of France? ")
    assert [text for text, _, _ in chat.asked] == ["Question: What is the capital of France?\nAnswer:"]


def test_every_question_stands_alone_with_the_next_seed():
    chat = talk("One?", "Two?", "Three?")
    assert [(text.split()[1], seed) for text, _, seed in chat.asked] == [("One?", 11), ("Two?", 12), ("Three?", 13)]
    assert "DTL: seed 11\n" in chat.shown and "DTL: seed 13\n" in chat.shown


def test_the_seeds_begin_again_after_the_last():
    chat = talk(f"/seed {2**63 - 1}", "One?", "Two?")
    assert [seed for _, _, seed in chat.asked] == [2**63 - 1, 0]


def greeting(**facts: object) -> str:
    model, _ = rote_model(**facts)
    out = io.StringIO()
    Chat(model, Screen(out, out, labelled=True), ScriptedInput([]), SamplingConfig(), 0).greet()
    return out.getvalue()


def test_the_greeting_names_the_model():
    shown = greeting(name="demo", best_loss=0.12345)
    assert shown.startswith("DTL demo, step 7, best validation loss 0.1235\n")
    for part in (
        "1.2 M parameters",
        "context 101 tokens",
        "cpu",
        "somewhere/checkpoints/best",
        "help lists the commands",
    ):
        assert part in " ".join(shown.split())
    assert "dtl.generate" not in shown


def test_the_greeting_says_what_was_taught_to_who_types():
    taught = ("It was taught 3 questions about tea, for example:", "  Who likes tea?")
    assert "for example:\n  Who likes tea?\nEach question" in greeting(taught=taught, calibration=Calibration(1, 0))
    assert "taught" not in talk("One?", is_terminal=False, taught=taught).shown


def test_a_model_of_plain_text_says_so():
    assert "it continues what you type" in " ".join(greeting(learned_plain_text=True).split())
    chat = talk("The sea", answer=lambda *_: RoteContinuation([" was", " blue"]), learned_plain_text=True)
    assert [text for text, _, _ in chat.asked] == ["The sea"] and "DTL: The sea was blue\n" in chat.shown
    assert "uestion" not in chat.shown.partition("not on questions")[2]
    pipe = talk("The sea", answer=lambda *_: RoteContinuation([" was"]), learned_plain_text=True, is_terminal=False)
    assert pipe.answers.getvalue() == "was\n"


@given(st.floats(-60, 0), st.floats(0, 9), st.floats(-9, 9))
def test_dots_number_and_sentence_are_one_probability(logprob, slope, intercept):
    """Three dots and more, and 50 % and more, exactly where the chat does not say that the model does not know."""
    calibration = Calibration(slope, intercept)
    chat = talk("One?", answer=lambda *_: RoteContinuation([" a", " b"], logprob), calibration=calibration)
    (line,) = [line for line in chat.shown.splitlines() if " % sure" in line]
    percent = int(line.partition("%")[0].split()[-1])
    known = calibration.probability(logprob) >= 0.5
    assert (line.count("●") >= 3, percent >= 50, "The model does not know" not in chat.shown) == (known,) * 3
    assert percent == int(100 * calibration.probability(logprob))


@pytest.mark.parametrize("logprob", [0.0, -9.0])
def test_without_a_calibration_nothing_looks_like_knowing(logprob):
    chat = talk("One?", answer=lambda *_: RoteContinuation([" a"], logprob))
    assert "\nseed 11, 1 token, " in chat.shown
    assert not any(mark in chat.shown for mark in ("does not know", " % sure", "●", "○", "log p", f"{logprob:.2f}"))
    taught = ("It was taught 3 questions, for example:",)
    assert "How sure it is was not measured" in greeting(taught=taught)
    assert "not measured" not in greeting(taught=taught, calibration=Calibration(1, 0)) + greeting()


def test_an_empty_answer_has_no_confidence():
    chat = talk("One?", answer=lambda *_: RoteContinuation([]))
    assert "DTL: \n(no answer)\nseed 11\n" in chat.shown


def test_a_terminal_without_dots_gets_what_it_can_show():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    model, _ = rote_model(lambda *_: RoteContinuation([" caf\xe9 \u65e5"], -0.5), calibration=Calibration(1, 0))
    chat = Chat(model, Screen(out, out, labelled=True), ScriptedInput([]), SamplingConfig(), 0)
    chat.ask("One?")
    out.flush()
    assert "DTL: caf? ?\n***.. 60 % sure" in raw.getvalue().decode("ascii")


def test_the_space_before_the_first_word_is_not_shown():
    chat = talk("One?", answer=lambda *_: RoteContinuation([" ", " New", " York\n", " ", "City "]))
    assert "DTL: New York\n City \n" in chat.shown
    assert chat.chat.turns[0].answer == "New York\n City"


def test_an_answer_that_was_cut_off_says_how_to_get_more():
    chat = talk(
        "One?",
        sampling=SamplingConfig(max_new_tokens=3),
        answer=lambda *_: RoteContinuation([" a", "b", "c"], ended="length"),
    )
    assert "Cut off at 3 tokens. Longer: /params max_new_tokens=6" in chat.shown


def test_a_text_that_slides_says_what_the_model_sees():
    chat = talk("One?", answer=lambda *_: RoteContinuation([" a"], context_shifted=True))
    assert "the model now sees only its last 50" in chat.shown


# --- what fits ------------------------------------------------------------------------------------------------------


def test_a_question_that_fits_is_kept_whole():
    """`prompt` adds two words; the model drops the beginning of a prompt that leaves no room for max_new_tokens."""
    for n_words in (1, 48, 60, 98):
        chat = talk("w " * n_words, sampling=SamplingConfig(max_new_tokens=90), context=101)
        [(text, sampling, _)] = chat.asked
        n_prompt = len(text.split())
        assert n_prompt == n_words + 2
        assert n_prompt <= max(101 - sampling.max_new_tokens, 101 // 2)
        assert sampling.max_new_tokens >= min(90, 101 - n_prompt)


def test_a_short_question_leaves_the_sampling_as_it_is():
    assert talk("One?", sampling=SamplingConfig(max_new_tokens=90), context=101).asked[0][1].max_new_tokens == 90


def test_an_answer_cut_by_the_context_blames_the_question():
    chat = talk(
        "w " * 97,
        sampling=SamplingConfig(max_new_tokens=64),
        answer=lambda *_: RoteContinuation([" a", "b"], ended="length"),
    )
    assert "the question uses 99 of the context's 101 tokens" in chat.shown


def test_a_question_of_too_many_tokens_is_rejected_with_numbers():
    chat = talk("w " * 99, "One?")
    assert "101 tokens (197 characters) do not fit into the model's context of 101 tokens." in one_line(chat)
    assert len(chat.asked) == 1 == len(chat.chat.turns)


@pytest.mark.fault("prompts")
def test_a_question_of_too_many_characters_is_never_counted():
    chat = talk(TooLong(10_485_760), "y" * 708, "One?")
    assert "10,485,760 characters, of which 707 can fit, exceed the model's context of 101 tokens." in one_line(chat)
    assert "708 characters, of which" in chat.shown
    assert len(chat.asked) == 1


def one_line(chat) -> str:
    return " ".join(chat.shown.split())


# --- pipes ----------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_the_answers_alone():
    chat = talk("One?", "", "  ", "Two?", is_terminal=False)
    assert chat.answers.getvalue() == "seed 11\nseed 12\n"
    assert "DTL parrot" in chat.notes.getvalue() and "tokens/s" in chat.notes.getvalue()


@pytest.mark.fault("prompts")
@pytest.mark.parametrize("line", ["", "  ", "?!", "...", "\N{WAVING HAND SIGN}"])
def test_a_line_without_a_word_is_not_asked(line):
    chat = talk(line, "One?")
    assert len(chat.asked) == 1 and "Type a question; help lists the commands." in one_line(chat)


@pytest.mark.parametrize("line", ["5!", "\u65e5\u672c?", "what is @", "\xe9"])
def test_any_word_or_number_is_a_question(line):
    assert len(talk(line).asked) == 1


def test_a_question_mark_asks_for_help():
    chat = talk("?", " ? ")
    assert not chat.asked and chat.shown.count("/params [PRESET]") == 2


def test_a_line_without_a_word_keeps_the_answers_of_a_pipe_in_step():
    chat = talk("One?", "...", "Three?", is_terminal=False)
    assert chat.answers.getvalue() == "seed 11\n\nseed 12\n"


def test_a_rejected_line_of_a_pipe_keeps_answers_in_step():
    chat = talk("One?", TooLong(9999), "Three?", is_terminal=False)
    assert chat.answers.getvalue() == "seed 11\n\nseed 12\n"


@pytest.mark.fault("terminal")
def test_nothing_hostile_reaches_any_stream():
    bad = "\x1b]0;owned\x07\x9b2J\u202e"
    for is_terminal in (True, False):
        chat = talk(
            f"{bad}?", f"/{bad}", f"/params {bad}=1", f"/seed {bad}", "help", is_terminal=is_terminal,
            answer=lambda *_: RoteContinuation([bad[:1], bad[1:3], bad[3:]]),
        )  # fmt: skip
        assert not set(bad[:1] + "\x07\x9b\u202e") & set(chat.shown)


def test_notes_of_the_input_are_told():
    chat = talk("One?")
    chat.line.notes = ["history=x: not kept"]
    chat.line._lines = ["Two?"]
    chat.chat.run()
    assert chat.shown.count("history=x: not kept") == 1


# --- stopping -------------------------------------------------------------------------------------------------------


class Interrupted(RoteContinuation):
    """Sends this process Ctrl-C while it writes the pieces of these numbers."""

    def __init__(self, pieces: list[str], *when: int) -> None:
        super().__init__(pieces)
        self._when = when

    def __iter__(self):
        for number, piece in enumerate(super().__iter__()):
            for _ in range(self._when.count(number)):
                signal.raise_signal(signal.SIGINT)
            yield piece


@pytest.mark.fault("chat-interrupt")
def test_ctrl_c_stops_the_answer_and_not_the_chat():
    chat = talk(
        "One?",
        "Two?",
        answer=lambda text, *_: (
            Interrupted([" a", " b", " c", " d"], 1) if "One" in text else RoteContinuation([" fine"])
        ),
    )
    assert "DTL: a b\n(stopped)\n" in chat.shown and "DTL: fine\n" in chat.shown
    assert [turn.ended for turn in chat.chat.turns] == [None, "end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_within_an_answer_leaves():
    with pytest.raises(Leaving):
        talk("One?", answer=lambda *_: Interrupted([" a", " b", " c"], 1, 1))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_at_the_prompt_is_for_the_line():
    chat = talk(KeyboardInterrupt, "One?")
    assert "To quit: Ctrl-D or quit." in chat.shown
    assert len(chat.asked) == 1


def test_ctrl_c_ends_a_chat_that_nobody_types():
    with pytest.raises(KeyboardInterrupt):
        talk(KeyboardInterrupt, "One?", is_terminal=False)


def test_an_interrupt_is_caught_once_and_only_inside():
    with StopOnInterrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_stream_can_be_watched_by_others():
    out = io.StringIO()
    screen = Screen(out, out, labelled=True)
    assert stream_answer(RoteContinuation([" x", "\x1b[2J"]), screen) == ("x\x1b[2J", False)  # pyright: ignore
    terminal = Terminal(20, 3)
    Stream(terminal).feed(out.getvalue())
    assert terminal.display[0].rstrip() == "x␛[2J"


# --- streams --------------------------------------------------------------------------------------------------------


def test_nobody_reads_any_more():
    """As in `... | head -1`: no traceback, and Python's last flush has nothing to complain about."""
    program = """
from dtl.base.display import exit_when_output_closes
from dtl.terminal.streams import open_screen
with exit_when_output_closes():
    while True:
        open_screen(all_in_one=False).piece("a line" + chr(10))
"""
    reader, writer = os.pipe()
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, env=buffered)
    os.close(writer)
    assert os.read(reader, 7) == b"a line\n"
    os.close(reader)
    assert process.communicate()[1] == b""
    assert process.returncode == 1


def test_another_error_of_a_stream_is_told():
    with pytest.raises(FileNotFoundError), exit_when_output_closes():
        Path("no/such/file").read_text()


# --- what fits the screen -----------------------------------------------------------------------------------------


def endless(*pieces: str) -> Callable[..., RoteContinuation]:
    """An answer of 10,000 tokens, as an untrained model writes one."""
    return lambda *_: RoteContinuation([piece for _ in range(10_000 // len(pieces)) for piece in pieces])


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("pieces", [(" word",), (" a", "\n"), ("\n",), (" ", "\n"), ("w" * 300,)])
def test_an_answer_that_finds_no_end_does_not_fill_the_screen(monkeypatch, plain, pieces):
    monkeypatch.setattr("dtl.terminal.streams.SafeConsole.size", ConsoleDimensions(80, 24))
    chat = Talk("One?", answer=endless(*pieces), learned_plain_text=plain)
    chat.chat.fits_screen = True
    rows = chat.held().answers.getvalue().partition("You: ")[0].partition("DTL: ")[2].split("\n")
    n_rows = sum(max(1, math.ceil(len(row) / 80)) for row in rows)
    assert 2 <= n_rows <= (12 if plain else 22), rows
    assert any("(no answer)" in row or "(no text)" in row or "(stopped: too long for the screen" in row for row in rows)
    (turn,) = chat.chat.turns
    assert turn.ended is None and turn.n_tokens < 2000


def test_asked_for_its_length_an_answer_is_complete():
    words = ("/params max_new_tokens=20000", "One?")
    chat = Talk(*words, answer=endless(" word"))
    chat.chat.fits_screen = True
    assert chat.held().answers.getvalue().count(" word") == 10_000 and "too long" not in chat.shown
    pipe = Talk("One?", answer=endless("\n"), is_terminal=False)
    pipe.chat.fits_screen = True
    assert pipe.held().answers.getvalue() == "\n" * 10_001
