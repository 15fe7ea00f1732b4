"""The commands of a chat: their effects, their messages, the input that they reject."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from chat_fakes import RoteContinuation, talk

from dtl.data.config import DataConfig, SourceConfig
from dtl.data.qa.source import QuestionSource
from dtl.errors import ConfigError, DTLError
from dtl.generation.config import PRESETS, SamplingConfig
from dtl.terminal.chat import COMMANDS, changed_sampling
from dtl.terminal.transcript import Turn, default_path, save_transcript

BASE = SamplingConfig(max_new_tokens=77, stop=["\nQuestion:"])


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(elsewhere: Path) -> None:
    """Transcripts are written where the chat runs."""


def words(chat) -> str:
    return " ".join(chat.shown.split())


@pytest.mark.parametrize("word", ["quit", "exit", "QUIT", " exit ", "/quit"])
def test_a_chat_is_left_by_a_word(word):
    assert talk(word, "One?").asked == []


@pytest.mark.parametrize("question", ["quit smoking?", "help me", "clear sky?", "exits?", "What is /etc?"])
def test_a_question_may_begin_like_a_command(question):
    assert len(talk(question).asked) == 1


def test_help_lists_every_command():
    chat = talk("help")
    assert chat.asked == []
    for command in COMMANDS.values():
        assert command.usage in chat.shown
    assert "answered independently" in words(chat)


def test_an_unknown_command_finds_its_neighbour():
    chat = talk("/parms temperature=1", "/zzz")
    assert "/parms: no such command. Did you mean '/params'? help lists them." in words(chat)
    assert "/zzz: no such command. help lists them." in words(chat)
    assert chat.asked == []


def test_clear_forgets_the_transcript():
    chat = talk("One?", "clear", "/retry")
    assert chat.chat.turns == [] and "/retry: there is no question yet." in words(chat)


# --- /params --------------------------------------------------------------------------------------------------------

CHANGES = {
    "temperature=0.7 top_k=null": replace(BASE, temperature=0.7, top_k=None),
    "temperature=1e-2": replace(BASE, temperature=0.01),
    "top_k=5  min_p=0.25": replace(BASE, top_k=5, min_p=0.25),
    "stop=[a, b]": replace(BASE, stop=["a", "b"]),
    'stop=["\\n"] top_p=0.5': replace(BASE, stop=["\n"], top_p=0.5),
    "creative": replace(BASE, temperature=1.1, top_k=200, top_p=0.95),
    "standard max_new_tokens=5": replace(BASE, temperature=0.8, top_k=50, max_new_tokens=5),
}


@pytest.mark.parametrize("typed", CHANGES)
def test_sampling_changes_as_typed(typed):
    assert changed_sampling(BASE, typed) == CHANGES[typed]


REJECTED = {
    "temprature=0.7": "temprature=0.7: there is no such key. Did you mean 'temperature'? Keys here: temperature,",
    "temp=2": "temp=2: there is no such key. Did you mean 'temperature'?",
    "temperature=warm": "temperature=warm: must be a number (0 = greedy",
    "top_k=2.5": "top_k=2.5: must be an integer or null",
    "temperature=-1": "sampling.temperature=-1.0: must be at least 0",
    "temperature=nan": "sampling.temperature=nan: must be at least 0",
    "stop=x": "stop=x: must be a list",
    "stop=[x": "stop=[x: cannot be read as key=value",
    "temperature.x=3": "temperature.x=3: must be a number",
    "creatve": "creatve: there is no such preset. Known: conservative, creative, standard. Did you mean 'creative'?",
    "temperature": "/params temperature: there is no such preset.",
    "creative 0.7": "/params creative 0.7: there is no such preset.",
    "temperature=${oc.env:HOME}": "cannot be read as key=value",
    "creative top_k=0": "sampling.top_k=0: must be at least 1",
}


@pytest.mark.parametrize("typed", REJECTED)
def test_a_wrong_setting_is_answered_and_changes_nothing(typed):
    chat = talk(f"/params {typed}", "One?", sampling=BASE)
    assert REJECTED[typed] in words(chat)
    assert "Nothing was changed." in words(chat)
    assert chat.asked[0][1] == BASE
    with pytest.raises(ConfigError):
        changed_sampling(BASE, typed)


def test_params_alone_shows_them_as_they_are_typed():
    chat = talk("/params", sampling=BASE)
    for text in ("temperature=0.8", "top_k=50", 'stop=["\\nQuestion:"]', *PRESETS):
        assert text in chat.shown
    shown = next(line for line in words(chat).split("Change with")[0].split("temperature=")[1:])
    assert changed_sampling(SamplingConfig(), f"temperature={shown}") == BASE


# --- /seed, /retry --------------------------------------------------------------------------------------------------


def test_the_same_seed_asks_the_same():
    chat = talk("/seed 7", "One?", "Two?", "/seed 7", "One?")
    assert chat.asked[0] == chat.asked[2]
    assert [seed for _, _, seed in chat.asked] == [7, 8, 7]


@pytest.mark.parametrize("typed", ["x", "-1", "1.5", str(2**63), "9" * 99, "\u0663", "1 2"])
def test_a_seed_is_a_whole_number(typed):
    chat = talk(f"/seed {typed}", "One?")
    assert "must be an integer from 0, below 2^63." in words(chat)
    assert chat.asked[0][2] == 11


def test_seed_alone_shows_the_next():
    assert "The next answer uses seed 12;" in words(talk("One?", "/seed"))


def test_retry_asks_again_with_another_seed():
    chat = talk("One?", "/params top_k=3", "/retry")
    assert [(text, seed) for text, _, seed in chat.asked] == [
        ("Question: One?\nAnswer:", 11),
        ("Question: One?\nAnswer:", 12),
    ]
    assert chat.asked[1][1].top_k == 3


# --- /save ----------------------------------------------------------------------------------------------------------


def test_saved_pairs_are_read_by_data_qa():
    talk(
        "What is \x1b[1m?",
        "Ünï 🙂?",
        "/save pairs.jsonl",
        answer=lambda text, *_: RoteContinuation([f" {text[10:13]}\x9b"]),
    )
    source = SourceConfig(kind="qa", path="pairs.jsonl")
    pairs = [
        document.pair
        for document in QuestionSource("qa", source, DataConfig(sources={"qa": source}), 0).splits()["train"]
    ]
    assert [(pair.question, pair.answer) for pair in pairs if pair] == [
        ("What is \x1b[1m?", "Wha\x9b"),
        ("Ünï 🙂?", "Ünï\x9b"),
    ]
    raw = Path("pairs.jsonl").read_text(encoding="utf-8")
    assert "\x9b" not in raw and "\x1b" not in raw
    record = json.loads(raw.splitlines()[0])
    assert record["seed"] == 11 and record["mean_logprob"] == -0.25 and record["sampling"]["top_k"] == 50
    assert record["checkpoint"] == "somewhere/checkpoints/best"


def test_a_transcript_has_all_that_an_answer_came_from():
    chat = talk("One\u202e?", "/seed 5", "Two?", "/save")
    [file] = Path().glob("chat-*.md")
    text = file.read_text(encoding="utf-8")
    for part in ("One\ufffd?", "seed 11", "Two?", "seed 5", "log-probability -0.250", "temperature 0.8", "somewhere"):
        assert part in text
    assert f"2 questions saved in {file}" in words(chat)


def test_a_name_may_have_spaces():
    talk("One?", "/save my chat.md")
    assert Path("my chat.md").exists()


def test_nothing_is_overwritten():
    Path("mine.md").write_text("precious")
    chat = talk("One?", "/save mine.md", "Two?")
    assert "mine.md: exists already and is not overwritten." in words(chat)
    assert Path("mine.md").read_text() == "precious" and len(chat.asked) == 2


@pytest.mark.parametrize("path", ["no/such/folder/x.md", "x" * 300, ".", "a\0b", "~nobody-here/x"])
def test_a_place_that_cannot_be_written_costs_nothing(path):
    chat = talk("One?", f"/save {path}", "Two?")
    assert len(chat.asked) == 2 and len(chat.chat.turns) == 2
    assert "saved" not in words(chat)


def test_a_pipe_writes_no_files():
    chat = talk("One?", "/save x.md", is_terminal=False)
    assert "/save: works only in a terminal." in words(chat)
    assert list(Path().iterdir()) == []


def test_nothing_asked_nothing_saved():
    assert "/save: there is no question yet." in words(talk("/save x.md"))
    assert list(Path().iterdir()) == []


def test_saving_leaves_no_half_file(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    turn = Turn("One?", "1", 7, BASE, -0.5, 1, 0.1, "end")
    with pytest.raises(DTLError, match="No space left"):
        save_transcript([turn], Path("ckpt"), Path("x.md"))
    assert list(Path().iterdir()) == []


def test_a_default_name_says_when():
    assert str(default_path(datetime(2026, 1, 2, 3, 4, 5))) == "chat-2026-01-02-030405.md"
