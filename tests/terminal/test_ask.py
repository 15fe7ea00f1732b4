"""Questions with known answers: read as data=qa reads them, asked greedily, compared, counted."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from chat_fakes import RoteContinuation, rote_model

from dtl.data.documents import QuestionAnswer
from dtl.data.tokenizers.prompt import Prompt
from dtl.errors import DataError, DTLError
from dtl.generation.config import SamplingConfig
from dtl.terminal.chat import ask_all, read_pairs
from dtl.terminal.streams import Screen

SAMPLING = SamplingConfig(temperature=0.9, top_k=7, top_p=0.5, repetition_penalty=1.3, max_new_tokens=41, stop=["\nQ"])
PAIRS = [QuestionAnswer("Two and two?", "4"), QuestionAnswer("Capital of France?", "Paris")]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(elsewhere: Path) -> None:
    """Files of pairs are written there."""


def asked(pairs: list[QuestionAnswer], answers: dict[str, str]) -> tuple[str, list]:
    """The screen and the model's prompts after questions with these answers."""
    by_prompt = {Prompt().text(question): answer for question, answer in answers.items()}
    model, calls = rote_model(lambda text, *_: RoteContinuation([f" {by_prompt[text]}"]))
    out = io.StringIO()
    try:
        ask_all(pairs, model, Screen(out, out, labelled=True), SAMPLING)
    finally:
        shown.append(out.getvalue())
    return out.getvalue(), calls


shown: list[str] = []


def test_right_answers_are_counted():
    text, calls = asked(PAIRS, {"Two and two?": "4.", "Capital of France?": "the paris"})
    assert "You: Two and two?\nDTL: 4.\nright\n" in text
    assert text.endswith("2 of 2 answers are right.\n")
    greedy = SamplingConfig(temperature=0, top_k=None, max_new_tokens=41, stop=["\nQ"])
    assert [sampling for _, sampling, _ in calls] == [greedy, greedy]


def test_a_wrong_answer_fails_and_is_named():
    with pytest.raises(DTLError) as wrong:
        asked(PAIRS, {"Two and two?": "5\x1b[2J", "Capital of France?": "Paris"})
    assert str(wrong.value) == "1 of 2 answers are right. Wrong:\n  Two and two?  '5␛[2J', expected '4'"
    assert wrong.value.exit_code == 1
    assert "DTL: 5␛[2J\nwrong, expected: 4\n" in shown[-1] and "DTL: Paris\nright\n" in shown[-1]


def test_a_context_that_does_not_fit_is_cut_and_that_is_said():
    context = " ".join(["word"] * 2000)
    prompts = list[str]()
    model, _ = rote_model(lambda text, *_: [prompts.append(text), RoteContinuation([" 4"])][1])
    out = io.StringIO()
    ask_all([replace(PAIRS[0], context=context)], model, Screen(out, out, labelled=True), SAMPLING)
    used = len(prompts[0].split("\n")[0]) - len("Context: ")
    assert f"Its context does not fit: {used:,} of {len(context):,} characters are used." in out.getvalue()
    assert prompts[0].endswith("Question: Two and two?\nAnswer:") and used < len(context)


def test_pairs_are_read_as_data_qa_reads_them():
    lines = [
        {"question": " One? ", "answer": " 1 "},
        {"instruction": "Two?", "output": 2},
        {"id": "three", "answer": "3", "train": ["Three?", "3?"], "test": "Third?"},
        {"question": "Empty?", "answer": ""},
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = [(pair.question, pair.answer) for pair in read_pairs("pairs.jsonl")]
    assert read == [("One?", "1"), ("Two?", "2"), ("Three?", "3"), ("3?", "3"), ("Third?", "3")]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "ask=pairs.jsonl: there is no such file"),
        ("", "ask=pairs.jsonl: an empty file (0 bytes)"),
        (
            '{"question": "", "answer": "x"}\n',
            "ask=pairs.jsonl: no question with an answer in 1 record. 1 x an empty q",
        ),
        ("[3]", '[3]\' is not a JSON object, such as {"question"'),
        (" \n", "ask=pairs.jsonl: contains no question with an answer."),
        ('{"question": "x"}\n', "ask=pairs.jsonl: no question with an answer in 1 record. line 1: no field 'ans"),
        ("{", "pairs.jsonl:1: the last line is cut off: not JSON"),
    ],
)
def test_a_file_without_pairs_is_an_error(contents, message):
    if contents is not None:
        Path("pairs.jsonl").write_text(contents)
    with pytest.raises(DataError) as rejected:
        read_pairs("pairs.jsonl")
    assert message in str(rejected.value)
