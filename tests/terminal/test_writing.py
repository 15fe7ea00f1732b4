"""Laws of dtl.generate: each sampling generates its own text from the same seed, and reports its end."""

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest
from checkpoint_examples import save, tiny_model, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

import dtl.generate
from dtl.base.safe_text import visible
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.generation.config import PRESETS, SamplingConfig, in_words, preset
from dtl.generation.conversation import Continuation
from dtl.model.transformer import TransformerLM
from dtl.terminal.input import PipedInput
from dtl.terminal.loading import CheckpointFacts, LoadedModel
from dtl.terminal.streams import Flow, Screen
from dtl.terminal.writing import Writer, facts

WAYS = {
    "calm": SamplingConfig(temperature=0, top_k=None, max_new_tokens=7),
    "wild": SamplingConfig(temperature=2.0, top_k=None, max_new_tokens=11),
}


class FakeTerminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def network(tokenizer: Tokenizer) -> TransformerLM:
    return tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=23)


@pytest.fixture
def model(network: TransformerLM, tokenizer: Tokenizer) -> LoadedModel:
    return LoadedModel(CheckpointFacts(Path("outputs/a_run"), "a_run", step=13), network, tokenizer)


@pytest.fixture
def pipe() -> Iterator[tuple[Screen, io.StringIO, io.StringIO]]:
    """A screen whose two streams are no terminals, and these."""
    answers, notes = io.StringIO(), io.StringIO()
    yield Screen(answers, notes, labelled=False), answers, notes


def written(model: LoadedModel, text: str, way: str, seed: int) -> str:
    return "".join(model.continue_text(text, WAYS[way], seed))


def test_a_pipe_gets_the_texts_one_below_the_other(model, pipe):
    screen, answers, notes = pipe
    Writer(model, screen, WAYS, seed=5).write("Once")
    calm, wild = written(model, "Once", "calm", 5), written(model, "Once", "wild", 5)
    assert answers.getvalue() == (
        f"--- calm  temperature 0\nOnce{visible(calm)}\n--- wild  temperature 2\nOnce{visible(wild)}\n"
    )
    reports = re.findall(r"^\d+ tokens?(?:; .*)?$", notes.getvalue(), re.MULTILINE)
    assert "seed 5" in notes.getvalue() and len(reports) == 2 and "log p" not in notes.getvalue()


def test_one_way_alone_is_the_text_alone(model, pipe):
    screen, answers, _ = pipe
    Writer(model, screen, {"calm": WAYS["calm"]}, seed=5).write("Once")
    assert answers.getvalue() == f"Once{visible(written(model, 'Once', 'calm', 5))}\n"


@pytest.mark.parametrize(("columns", "beside"), [(97, True), (41, False)])
def test_a_terminal_shows_columns_when_they_are_wide_enough(model, monkeypatch, columns, beside):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    stream = FakeTerminal()
    Writer(model, Screen(stream, stream, labelled=True), WAYS, seed=5).write("Once")
    screen = pyte.Screen(columns, 40)
    pyte.Stream(screen).feed(stream.getvalue().replace("\n", "\r\n"))
    heads = [line for line in screen.display if "calm" in line or "wild" in line]
    assert len(heads) == (1 if beside else 2)
    assert any(line.startswith("Once") for line in screen.display)


def test_each_text_has_the_next_seed(model, pipe):
    screen, _, notes = pipe
    Writer(model, screen, WAYS, seed=2**63 - 1).write_each(PipedInput(io.BytesIO(b"one\n\ntwo\nquit\nthree\n"), 99))
    assert [line for line in notes.getvalue().splitlines() if line.startswith("seed")] == [
        f"seed {2**63 - 1}",
        "seed 0",
    ]


def test_a_beginning_that_is_too_long_is_rejected_and_the_next_one_written(model, pipe):
    screen, answers, notes = pipe
    Writer(model, screen, {"calm": WAYS["calm"]}, seed=5).write_each(PipedInput(io.BytesIO(b"a" * 101 + b"\nb\n"), 97))
    assert "101 characters" in notes.getvalue() and answers.getvalue().startswith("b")


def test_a_text_that_ends_at_once_is_no_white_space(network, tokenizer):
    writing = Continuation(network, tokenizer, tokenizer.encode("a"), SamplingConfig(max_new_tokens=3), 3)
    assert facts(writing, "").startswith("0 tokens: the model ended the text at once")


def test_what_happened_is_said(network, tokenizer):
    def after(prompt: str, n_new: int) -> str:
        writing = Continuation(network, tokenizer, tokenizer.encode(prompt), SamplingConfig(max_new_tokens=n_new), 3)
        text = "".join(writing)
        assert writing.ended == "length"
        assert "all of them white space" in facts(writing, "\n \n") and "white space" not in facts(writing, "a")
        return facts(writing, text + "a")

    assert "do not fit" not in after("abc", 5) and "longer than the context" not in after("abc", 5)
    assert "the first 39 tokens of the prompt do not fit the context and were dropped" in after("a" * 57, 5)
    assert "longer than the context: " in after("abc", 31)
    assert after("abc", 5).startswith("5 tokens; cut") and after("abc", 1).startswith("1 token; cut")
    assert "cut off by sampling.max_new_tokens" in after("abc", 5)


def test_settings_in_words():
    assert in_words(SamplingConfig()) == "temperature 0.8, top_k 50"
    everything = SamplingConfig(temperature=0, top_k=None, top_p=0.5, min_p=0.1, repetition_penalty=1.2)
    assert in_words(everything) == "temperature 0, top_p 0.5, min_p 0.1, repetition_penalty 1.2"


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def generate(elsewhere, monkeypatch, capsys):
    """Call `python -m dtl.generate` in this process; its exit code, standard output and error."""
    save(elsewhere / "outputs" / "2031-01-02" / "03-04-05-6_mine", step=7)

    def call(*arguments: str, typed: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dtl-generate", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
        try:
            dtl.generate.main()
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            return ended.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return call


def heads(out: str) -> list[str]:
    return [line.removeprefix("--- ") for line in out.splitlines() if line.startswith("--- ")]


def test_without_sampling_every_preset_writes(generate):
    code, out, notes = generate("ckpt=latest", "prompt=Once, {there} was", "sampling.max_new_tokens=5", "seed=3")
    assert code == 0 and "DTL " in notes and "seed 3" in notes
    assert heads(out) == [f"{name}  {in_words(preset(name))}" for name in PRESETS]
    assert out.count("Once, {there} was") == 3 and notes.count("5 tokens") == 3


def test_a_setting_holds_in_every_preset(generate):
    code, out, _ = generate("ckpt=latest", "prompt=Once", "sampling.top_k=3", "sampling.max_new_tokens=2")
    assert code == 0 and len(heads(out)) == 3
    assert all("top_k 3" in head for head in heads(out))


def test_a_preset_by_name_writes_alone_and_what_is_piped(generate):
    code, out, notes = generate("ckpt=latest", "sampling=creative", "sampling.max_new_tokens=2", typed=b"Ab\nBc\n")
    assert code == 0 and heads(out) == [] and notes.count("2 tokens") == 2
    assert out.startswith("Ab") and "Bc" in out


def test_the_same_seed_writes_the_same(generate):
    asked = ("ckpt=latest", "prompt=Once", "sampling=creative")
    first, second, third = (generate(*asked, f"seed={seed}")[1] for seed in (3, 3, 4))
    assert first == second != third


def test_a_model_of_questions_names_the_chat(generate, monkeypatch):
    hint = "It was trained on questions and answers, not on plain text. To ask it:\npython -m dtl.chat ckpt=outputs/"
    asked = ("ckpt=latest", "prompt=Once", "sampling=creative", "sampling.max_new_tokens=2")
    assert hint not in generate(*asked)[2]
    monkeypatch.setattr("dtl.terminal.loading.was_trained_on_questions_alone", lambda folder: True)
    begun = "It was last trained on questions and answers alone. To ask it:\npython -m dtl.chat ckpt=outputs/"
    assert begun in generate(*asked)[2]  # from the weights of init=, which may have learnt plain text
    monkeypatch.setattr("dtl.terminal.loading.has_learnt_questions_alone", lambda folder: True)
    assert hint in generate(*asked)[2]


def test_refusals_come_before_a_model_is_loaded(generate, monkeypatch):
    monkeypatch.setitem(sys.modules, "dtl.terminal.loading", None)  # an import of it would fail
    for arguments, expected in (
        (["ckpt=nowhere"], "nowhere"),
        ([], "outputs/2031-01-02/03-04-05-6_mine"),
        (["ckpt=latest", "sampling.min_p=7"], "sampling.min_p=7.0: a fraction in [0, 1]."),
        (["ckpt=latest", "sampling=crazy"], "sampling=crazy: there is no such choice. Known: conservative, creative,"),
    ):
        code, out, shown_error = generate(*arguments)
        assert code in (1, 2) and out == "" and shown_error.startswith("Error: ")
        assert expected in shown_error and "Traceback" not in shown_error


def test_presets_are_the_files_of_the_group():
    assert PRESETS == ["conservative", "creative", "standard"]
    assert preset("creative").temperature == 1.1


# --- broken between words -----------------------------------------------------------------------------------------

WIDTH = 23


def flowed(pieces: list[str], column: int = 0, width: int | None = WIDTH) -> str:
    out = io.StringIO()
    flow = Flow(Screen(out, out, labelled=True), column, width)
    for piece in pieces:
        flow.write(piece)
    flow.end()
    return out.getvalue()


@given(st.lists(st.text("ab \n", max_size=31), max_size=31), st.integers(0, 7))
def test_a_streamed_text_is_broken_between_words(pieces, column):
    text = "".join(pieces)
    shown = flowed(pieces, column)
    lines = (" " * column + shown).split("\n")
    assert all(len(line) <= WIDTH or " " not in line.strip() or not line.strip() for line in lines)
    if all(len(word) <= WIDTH - column for word in text.split()):
        assert shown.split() == text.split()
    assert "".join(shown.split()) == "".join(text.split())
    assert flowed(pieces, column, width=None) == f"{text}\n"  # in a pipe


def test_a_text_without_spaces_is_broken_anywhere():
    assert flowed(["海と山と" * 5, " x"]) == "海と山と海と山と海と山\nと海と山と海と山と x\n"
    assert flowed(["w" * 29 + " x"]) == "w" * 23 + "\n" + "w" * 6 + " x\n"
