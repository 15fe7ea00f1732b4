"""Questions and answers: how they are written, which ids they get, and which files are understood."""

import json

import pytest

from dtl.data import qa
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.encoding import encode_documents
from dtl.data.files import Record
from dtl.data.qa import QuestionAnswer, document, prompt
from dtl.data.sources import open_sources
from dtl.data.tokenizer import build_tokenizer
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
    (source,) = open_sources(config, 0).values()
    pairs = {split: [document.pair for document in documents] for split, documents in source.splits().items()}
    return pairs, source.notes()


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_pair_is_written_so_that_its_answer_brings_the_space():
    written = document(QuestionAnswer(" What is 2 + 2? ", " 4 "))
    assert written.text == "Question: What is 2 + 2?\nAnswer: 4"
    assert written.answer_start is not None
    assert written.text[: written.answer_start] == prompt("What is 2 + 2?") == "Question: What is 2 + 2?\nAnswer:"
    assert written.text[written.answer_start :] == " 4"


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_the_prompt_has_the_same_ids_in_training_and_in_chat(kind):
    # A tokenizer that has seen nothing but these would gladly merge across the border of prompt and answer.
    pairs = [QuestionAnswer(f"Is it {n}?", "...:" * n + "Paris") for n in range(1, 6)]
    texts = [document(pair).text for pair in pairs] * 7
    tokenizer = build_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), lambda: texts)
    encoded = encode_documents(map(document, pairs), tokenizer)
    for pair, start, end, n_prompt in zip(
        pairs, encoded.offsets, encoded.offsets[1:], encoded.answer_starts, strict=False
    ):
        ids = encoded.tokens[start:end].tolist()
        assert ids[:n_prompt] == tokenizer.encode(prompt(pair.question))
        assert ids[n_prompt:] == [*tokenizer.encode(f" {pair.answer}"), tokenizer.eos_id]


def test_an_end_token_in_a_question_is_text():
    tokenizer = build_tokenizer(TokenizerConfig(kind="byte"), lambda: [])
    encoded = encode_documents([document(QuestionAnswer("<|endoftext|>?", "<|endoftext|>"))], tokenizer)
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


@pytest.mark.parametrize("names", [("question", "answer"), ("instruction", "output"), ("prompt", "completion")])
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
    assert "2 pairs skipped" in notes[0]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"query": "a?", "answer": "b"}, ["a.jsonl:1", "question", "query, answer"]),
        ({"question": "a?", "reply": "b"}, ["a.jsonl:1", "answer", "question, reply"]),
        ({"question": "a?", "answer": ["b"]}, ["a.jsonl:1", "list"]),
        ({"question": True, "answer": "b"}, ["a.jsonl:1", "bool"]),
    ],
)
def test_what_is_no_pair_is_named(tmp_path, record, words):
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "a.jsonl", record))
    for word in words:
        assert word in str(caught.value)
