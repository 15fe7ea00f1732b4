"""Questions and answers: how they are written, which ids they get, and which files are understood."""

import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.documents import QuestionAnswer, document
from dtl.data.encode import encode_documents
from dtl.data.local.readers import Record
from dtl.data.prepare import prepare_data
from dtl.data.qa import source as qa
from dtl.data.sources import plan_sources
from dtl.data.tokenizers.prompt import Prompt
from dtl.data.tokenizers.tokenizer import build_tokenizer
from dtl.errors import DataError

FACT = {
    "id": "geography-001",
    "topic": "geography",
    "answer": "Paris",
    "train": ["What is the capital of France?", "Which city is France's capital?", "name the capital of france"],
    "validation": "France is governed from where?",
    "test": "What city serves as France's capital?",
}


def read(path: object = None) -> tuple[dict[str, list[QuestionAnswer]], list[str]]:
    config = DataConfig(sources={"qa": SourceConfig("qa", None if path is None else str(path))})
    (source,) = (plan.source for plan in plan_sources(config, 0))
    pairs = {split: [document.pair for document in documents] for split, documents in source.splits().items()}
    return pairs, source.notes()


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_pair_is_written_so_that_its_answer_brings_the_space():
    written = document(QuestionAnswer(" What is 2 + 2? ", " 4 "), Prompt())
    assert written.text == "Question: What is 2 + 2?\nAnswer: 4"
    assert written.answer_start is not None
    assert (
        written.text[: written.answer_start] == Prompt().text("What is 2 + 2?") == "Question: What is 2 + 2?\nAnswer:"
    )
    assert written.text[written.answer_start :] == " 4"


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_the_prompt_has_the_same_ids_in_training_and_in_chat(kind):
    # A tokenizer that has seen nothing but these would gladly merge across the border of prompt and answer.
    pairs = [QuestionAnswer(f"Is it {n}?", "...:" * n + "Paris") for n in range(1, 6)]
    texts = [document(pair, Prompt()).text for pair in pairs] * 7
    tokenizer = build_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), lambda: texts)
    encoded = encode_documents([document(pair, Prompt()) for pair in pairs], tokenizer)
    for pair, start, end, n_prompt in zip(
        pairs, encoded.offsets, encoded.offsets[1:], encoded.answer_starts, strict=False
    ):
        ids = encoded.tokens[start:end].tolist()
        assert ids[:n_prompt] == tokenizer.encode(Prompt().text(pair.question))
        assert ids[n_prompt:] == [*tokenizer.encode(f" {pair.answer}"), tokenizer.eos_id]


def test_a_question_is_put_in_lower_case_where_the_setting_says_so(tmp_path):
    """The answer and the context stay as they are, and so does the question that reports show."""
    file = tmp_path / "pairs.jsonl"
    pairs = [{"question": f"Who is Ada {n}?", "answer": f"Ada {n}", "context": "Ada."} for n in range(23)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    sources = {"qa": SourceConfig("qa", str(file))}
    config = DataConfig(sources=sources, lower_case_questions=True, cache_dir=str(tmp_path))
    data = prepare_data(config, TokenizerConfig("byte"), 97, seed=0)
    assert data.prompt.text("Who is Ada 3?", "Ada.") == "Context: Ada.\nQuestion: who is ada 3?\nAnswer:"
    text = data.tokenizer.decode(data.rows["qa"]["train"].batch([0]).inputs[0].tolist())
    assert "Context: Ada.\nQuestion: who is ada" in text and "Answer: Ada" in text
    assert {pair.question[:10] for of_split in data.pairs.values() for pair in of_split} == {"Who is Ada"}


def test_an_end_token_in_a_question_is_text():
    tokenizer = build_tokenizer(TokenizerConfig(kind="byte"), lambda: [])
    encoded = encode_documents([document(QuestionAnswer("<|endoftext|>?", "<|endoftext|>"), Prompt())], tokenizer)
    assert encoded.tokens.tolist().count(tokenizer.eos_id) == 1


def test_the_shipped_facts_split_by_wording(monkeypatch):
    monkeypatch.setattr(qa, "shipped_facts", lambda: [Record("geography.jsonl:1", FACT)])
    pairs, notes = read()
    assert {split: [pair.question for pair in of_split] for split, of_split in pairs.items()} == {
        "train": FACT["train"],
        "validation": [FACT["validation"]],
        "test": [FACT["test"]],
    }
    assert {(pair.answer, pair.topic, pair.fact) for of_split in pairs.values() for pair in of_split} == {
        ("Paris", "geography", "geography-001")
    }
    assert notes == []


def test_the_facts_in_the_package_are_found():
    records = qa.shipped_facts()
    assert len(records) >= 100
    assert all({"answer", "train", "validation", "test"} <= set(record.fields) for record in records)


def test_facts_of_ones_own_are_understood_too(tmp_path):
    pairs, _ = read(write(tmp_path / "facts.jsonl", FACT))
    assert [len(pairs[split]) for split in ("train", "validation", "test")] == [3, 1, 1]


@pytest.mark.parametrize(
    "names",
    [
        ("question", "answer"),
        ("instruction", "output"),
        ("prompt", "completion"),
        ("prompt", "response"),
        ("input", "output"),
        (" Question", "ANSWER "),
        ("question", "answers"),
    ],
)
def test_common_names_of_the_fields(tmp_path, names):
    question, answer = names
    pairs, _ = read(write(tmp_path / "a.jsonl", {"id": 3, question: "Why?", answer: 42}))
    assert pairs == {"train": [QuestionAnswer("Why?", "42", fact="3")]}


def test_files_named_by_split(tmp_path):
    write(tmp_path / "train.jsonl", {"question": "a?", "answer": "b"})
    write(tmp_path / "test.jsonl", {"question": "c?", "answer": "d"})
    pairs, _ = read(tmp_path)
    assert pairs == {"train": [QuestionAnswer("a?", "b")], "test": [QuestionAnswer("c?", "d")]}


def test_empty_pairs_are_skipped_and_told(tmp_path):
    records = [{"question": "a?", "answer": None}, {"question": " ", "answer": "b"}, {"question": "c?", "answer": "d"}]
    pairs, notes = read(write(tmp_path / "a.jsonl", *records))
    assert pairs == {"train": [QuestionAnswer("c?", "d")]}
    assert [re.sub(r".*: (\d.*), left out: .*/", r"\1 ", note) for note in notes] == [
        "1 x an empty answer a.jsonl:1.",
        "1 x an empty question a.jsonl:2.",
    ]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"query": "a?", "answer": "b"}, ["a.jsonl:1", "question", "query, answer"]),
        ({"question": "a?", "reply": "b"}, ["a.jsonl:1", "answer", "question, reply"]),
        ({"question": "a?", "answer": [["b"]]}, ["a.jsonl:1", "list"]),
        ({"question": "a?", "answer": {"b": 1}}, ["a.jsonl:1", "dict"]),
        ({"question": True, "answer": "b"}, ["a.jsonl:1", "bool"]),
    ],
)
def test_what_is_no_pair_is_named(tmp_path, record, words):
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "a.jsonl", record))
    for word in words:
        assert word in str(caught.value)


def only_pair(path: object) -> QuestionAnswer:
    pairs, notes = read(path)
    assert notes == []
    (pair,) = pairs["train"]
    return pair


def test_a_context_stands_before_the_question():
    asked = document(QuestionAnswer("Where?", "Here", context=" It is here. "), Prompt())
    assert asked.text == "Context: It is here.\nQuestion: Where?\nAnswer: Here"
    assert asked.text[: asked.answer_start] == Prompt().text("Where?", "It is here.")
    assert Prompt().text("Where?", " ") == Prompt().text("Where?") == "Question: Where?\nAnswer:"


@pytest.mark.parametrize(
    ("record", "pair"),
    [
        (
            {"instruction": "Translate.", "input": "chat", "output": "cat"},
            QuestionAnswer("Translate.", "cat", context="chat"),
        ),
        ({"instruction": "Say yes.", "input": "", "output": "yes"}, QuestionAnswer("Say yes.", "yes")),
        (
            {"instruction": "Who?", "context": "Ada did.", "response": "Ada", "category": "closed"},
            QuestionAnswer("Who?", "Ada", topic="closed", context="Ada did."),
        ),
        (
            {"question": "Who?", "answers": ["Ada", " Ada L.", "Ada", ""]},
            QuestionAnswer("Who?", "Ada", accepted=("Ada", "Ada L.")),
        ),
        (
            {"question": "Who?", "answer": "A. L.", "answers": ["Ada", "A. L."]},
            QuestionAnswer("Who?", "A. L.", accepted=("A. L.", "Ada")),
        ),
        (
            {
                "id": "x1",
                "question": "Who?",
                "context": "c",
                "answers": {"text": ["Ada", "A."], "answer_start": [0, 5]},
            },
            QuestionAnswer("Who?", "Ada", fact="x1", context="c", accepted=("Ada", "A.")),
        ),
        ({"question": "Who?", "answers": [{"text": "Ada", "answer_start": 3}]}, QuestionAnswer("Who?", "Ada")),
    ],
)
def test_shapes_that_people_keep_pairs_in(tmp_path, record, pair):
    assert only_pair(write(tmp_path / "a.jsonl", record)) == pair
    (tmp_path / "a.json").write_text(json.dumps([record], indent=1))
    assert only_pair(tmp_path / "a.json") == pair
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "a.parquet")
    assert only_pair(tmp_path / "a.parquet") == pair


def test_a_table_with_headers_as_people_type_them(tmp_path):
    (tmp_path / "a.csv").write_text('Question ;ANSWER;Context\n"Why; not?";Because;\nWho?;Ada;It was Ada.\n')
    pairs, _ = read(tmp_path / "a.csv")
    assert pairs == {
        "train": [QuestionAnswer("Why; not?", "Because"), QuestionAnswer("Who?", "Ada", context="It was Ada.")]
    }


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Bridges",
            "paragraphs": [
                {
                    "context": "The bridge opened in 1907.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "When did it open?",
                            "answers": [{"text": "1907", "answer_start": 21}, {"text": "in 1907", "answer_start": 18}],
                            "is_impossible": False,
                        },
                        {"id": "q2", "question": "Who built it?", "answers": [], "is_impossible": True},
                    ],
                },
                {"context": "It is red.", "qas": [{"id": "q3", "question": "Colour?", "answers": [{"text": "red"}]}]},
            ],
        }
    ],
}


@pytest.mark.parametrize("indent", [None, 2])
def test_squad_as_it_is_published(tmp_path, indent):
    (tmp_path / "train-v2.0.json").write_text(json.dumps(SQUAD, indent=indent))
    pairs, (note,) = read(tmp_path / "train-v2.0.json")
    first = QuestionAnswer(
        "When did it open?", "1907", fact="q1", context="The bridge opened in 1907.", accepted=("1907", "in 1907")
    )
    assert pairs == {"train": [first, QuestionAnswer("Colour?", "red", fact="q3", context="It is red.")]}
    assert "1 x marked as unanswerable" in note and "data[0] paragraphs[0] qas[1]" in note


def test_an_empty_list_of_answers_is_how_the_hub_says_unanswerable(tmp_path):
    records = [
        {"question": "a?", "context": "c", "answers": {"text": [], "answer_start": []}},
        {"question": "b?", "context": "c", "answers": {"text": ["d"], "answer_start": [0]}},
    ]
    pairs, (note,) = read(write(tmp_path / "a.jsonl", *records))
    assert [pair.question for pair in pairs["train"]] == ["b?"] and "1 x marked as unanswerable" in note


def test_records_without_a_pair_are_counted_with_their_places(tmp_path):
    good, bad = {"question": "a?", "answer": "b"}, {"Frage": "c?", "answer": "d"}
    pairs, notes = read(write(tmp_path / "a.jsonl", bad, good, bad, bad, bad, bad))
    assert len(pairs["train"]) == 1
    assert "5 x no field for a question" in notes[0] and notes[0].endswith("and 2 more.")
    for line in (1, 3, 4):
        assert f"a.jsonl:{line}" in notes[0]
    assert "a.jsonl:1: no field 'question or instruction or" in notes[1] and "frage, answer" in notes[1]


def test_named_files_without_any_pair_are_refused_while_they_are_read(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        write(tmp_path / name, {"a": "b"})
    with pytest.raises(DataError, match=r"test.jsonl:1: no field .*Found the fields: a\."):
        read(tmp_path)


def test_a_source_that_is_read_twice_says_the_same(tmp_path):
    write(tmp_path / "a.jsonl", {"question": "a?", "answer": ""}, {"question": "c?", "answer": "d"})
    config = DataConfig(sources={"qa": SourceConfig("qa", str(tmp_path))})
    (source,) = (plan.source for plan in plan_sources(config, 0))
    told = []
    for _ in range(2):
        assert len(list(source.splits()["train"])) == 1
        told.append(source.notes())
    assert told[0] == told[1]
