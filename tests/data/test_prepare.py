"""From a configuration to training data: what is read, what is held out, what a run is told."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from dtl.data import collect
from dtl.data.batches import IGNORE
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.hub import texts as hub_texts
from dtl.data.local.readers import Record
from dtl.data.prepare import PreparedData, prepare_data
from dtl.data.qa import source as qa
from dtl.data.tokenizers.tokenizer import build_tokenizer
from dtl.errors import DataError
from dtl.foresight.process import has_mallinfo

BYTE = TokenizerConfig(kind="byte")


def config(path: Path | None = None, kind: str = "text", **settings: object) -> DataConfig:
    made = DataConfig(sources={kind: SourceConfig(kind)}, path=None if path is None else str(path))
    for key, value in settings.items():
        setattr(made, key, value)
    made.validate()
    return made


def prepare(data: DataConfig, tokenizer: TokenizerConfig = BYTE, seq_len: int = 16, seed: int = 3) -> PreparedData:
    return prepare_data(data, tokenizer, seq_len, seed)


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def texts(tmp_path) -> Path:
    return write_texts(tmp_path / "texts.jsonl", [f"this is the text number {number}" for number in range(200)])


@pytest.fixture
def facts(monkeypatch) -> None:
    """Seven facts in place of those that ship with DTL."""
    records = [
        Record(
            f"t.jsonl:{n}",
            {
                "id": f"t-{n}",
                "topic": "t",
                "answer": f"{n * n}",
                "train": [f"{n} x {n}?", f"{n} squared?", f"what is {n} by {n}"],
                "validation": f"{n} times {n}?",
                "test": f"square of {n}?",
            },
        )
        for n in range(7)
    ]
    monkeypatch.setattr(qa, "shipped_facts", lambda: records)


def learnt_text(prepared: PreparedData, epoch: int = 0) -> list[str]:
    """The targets of every row of an epoch, as text."""
    batch = prepared.train.batch(tuple(prepared.train.epoch_sequences(0, epoch).tolist()))
    return [prepared.tokenizer.decode([t for t in row if t != IGNORE]) for row in batch.targets.tolist()]


def test_training_text_becomes_rows_and_held_out_text_does_not(texts):
    prepared = prepare(config(texts, validation_fraction=0.1))
    train, validation = (prepared.report["text"][split] for split in ("train", "validation"))
    assert train.documents + validation.documents == 200 and 5 <= validation.documents <= 40
    assert train.tokens == train.targets == prepared.train.n_tokens
    assert train.rows == prepared.train.sequences_per_epoch == -(-train.tokens // 16)
    assert len(prepared.validation) == validation.rows
    assert prepared.test is None and prepared.pairs == {"train": [], "validation": []}
    assert train.wasted < 0.01
    # What is learnt in an epoch is the training text, each letter once.
    letters = sorted("".join(learnt_text(prepared)))
    stream = prepared.rows["text"]["train"].tokens.tolist()
    assert letters == sorted(prepared.tokenizer.decode(stream[1:]))


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_tokenizer_learns_from_training_text_alone(tmp_path, kind):
    (tmp_path / "train.txt").write_text("abab abab " * 20)
    (tmp_path / "validation.txt").write_text("xyz xyz " * 40)
    prepared = prepare(config(tmp_path), TokenizerConfig(kind=kind, vocab_size=270))
    entries = prepared.tokenizer.backend.get_vocab()
    assert "a" in entries
    assert "x" not in entries if kind == "char" else "ab" in entries and "xy" not in entries


def test_a_tokenizer_object_is_used_as_it_is(texts):
    tokenizer = build_tokenizer(TokenizerConfig(kind="char"), lambda: ["eht xs"])
    prepared = prepare_data(config(texts), tokenizer, 16, 0)
    assert prepared.tokenizer.backend is tokenizer.backend


def test_questions_learn_their_answers_alone(facts):
    data = config(kind="qa", document_mask=True, loss_on="answer", tasks=["exact_match"])
    prepared = prepare(data, seq_len=64)
    assert sorted("".join(learnt_text(prepared)).split()) == sorted(str(n * n) for n in range(7) for _ in range(3))
    assert {split: len(of_split) for split, of_split in prepared.pairs.items()} == {
        "train": 21,
        "validation": 7,
        "test": 7,
    }
    assert prepared.test is not None and prepared.report["qa"]["test"].documents == 7
    assert prepared.report["qa"]["train"].targets < prepared.report["qa"]["train"].tokens / 3
    batch = prepared.validation.batch([0])
    assert batch.documents is not None and batch.positions is not None
    assert any("data.wiki.weight=0.5" in note for note in prepared.hints)


def test_pairs_of_ones_own_are_held_out_by_question(tmp_path):
    records = [{"question": f"q{n}?", "answer": f"a{n}"} for n in range(40)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    prepared = prepare(config(file, kind="qa", loss_on="answer", validation_fraction=0.2), seq_len=64)
    train, validation = ({pair.question for pair in prepared.pairs[split]} for split in ("train", "validation"))
    assert len(train) + len(validation) == 40 and not train & validation and len(validation) > 2
    assert not prepared.notes and prepared.read["qa"][0].endswith("pairs.jsonl")
    assert prepared.read["qa"][1] == "read as question 'question', answer 'answer' (40 records)."


def test_two_answers_to_one_question_are_said(tmp_path):
    asked = [("My cat?", "Miso"), ("My dog?", "Rex"), ("My cat?", "Felix"), ("My cat?", "Tom"), ("My dog?", "Rex")]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in asked))
    notes = prepare(config(file, kind="qa", loss_on="answer"), seq_len=64).notes
    (note,) = [note for note in notes if "has the answers" in note]
    assert note.endswith(
        "'My cat?' has the answers 'Miso' and 'Felix'. The model can give one of them, and the others count as wrong."
    )


def test_a_mixture_takes_of_a_further_source_what_its_weight_says(facts, texts):
    data = config(kind="qa", document_mask=True, loss_on="answer")
    data.sources["more"] = SourceConfig("text", str(texts), weight=0.5)
    data.recommended.max_epochs = 4
    prepared = prepare(data, seq_len=64)
    seen = prepared.train.seen_per_source(0, range(4))
    assert seen["more"] == pytest.approx(seen["qa"] / 2, rel=0.1)
    # As much of it that four epochs hold little twice, and no more.
    assert 0.5 * seen["more"] < prepared.report["more"]["train"].tokens < 2 * seen["more"]
    assert len(prepared.validation) == prepared.report["qa"]["validation"].rows
    assert any("the first source" in note for note in prepared.notes)
    assert any("number" in text for text in learnt_text(prepared))  # of plain text everything is learnt


class Articles:
    """A stand-in for the hub that counts what is taken from it."""

    columns: ClassVar = {"train": ["id", "title", "text"]}
    taken = 0

    def __init__(self, *dataset: object) -> None:
        Articles.taken = 0

    def rows(self, split: str, columns: list[str], seed: int | None, buffer_size: int) -> Iterator[list[str]]:
        for number in range(5000):
            Articles.taken += 1
            yield ["Some text. " * 9, f"Article {number}"]

    def end(self) -> None: ...


@pytest.mark.parametrize(("weight", "most"), [(None, 400), (0.5, 60)])
def test_the_hub_is_read_only_as_far_as_needed(facts, monkeypatch, tmp_path, weight, most):
    monkeypatch.setattr(hub_texts, "HubStream", Articles)
    monkeypatch.setattr(hub_texts, "require_hub", lambda what, ways_on: None)
    monkeypatch.setattr(hub_texts, "ask_for_commit", lambda dataset, revision, key: "5" * 40)
    monkeypatch.setattr(collect, "MIN_CHARACTERS", 5_000)
    if weight is None:
        data = config(kind="wiki", max_samples=50)
    else:
        data = config(kind="qa")
        data.wiki.weight = weight
        data.recommended.max_epochs = 3
    data.cache_dir = str(tmp_path)
    prepared = prepare(data, seq_len=64)
    assert 5 < Articles.taken < most
    if weight is None:
        assert prepared.train.sequences_per_epoch == 50
        assert prepared.report["wiki"]["validation"].documents >= 1


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_max_samples_takes_a_seeded_choice_of_rows(texts, layout):
    whole = prepare(config(texts, layout=layout), seq_len=48)
    some = [prepare(config(texts, layout=layout, max_samples=7), seq_len=48, seed=seed) for seed in (3, 3, 4)]
    assert [len(prepared.rows["text"]["train"]) for prepared in some] == [7, 7, 7]
    assert learnt_text(some[0]) == learnt_text(some[1]) != learnt_text(some[2])
    assert some[0].fingerprint == some[1].fingerprint != some[2].fingerprint
    assert any(re.search(r"number 1\d\d", text) for text in learnt_text(some[0]))  # not the file's beginning alone
    everything = prepare(config(texts, layout=layout, max_samples=10**6), seq_len=48)
    assert everything.train.n_tokens == whole.train.n_tokens


def test_only_pairs_that_were_taught_are_asked_as_training_questions(facts):
    prepared = prepare(config(kind="qa", layout="padded", loss_on="answer", max_samples=5), seq_len=64)
    assert len(prepared.pairs["train"]) == 5 and len(prepared.pairs["test"]) == 7


def test_padding_is_reported_beside_packing(texts):
    padded = prepare(config(texts, layout="padded"), seq_len=64)
    packed = prepare(config(texts), seq_len=64)
    assert padded.report["text"]["train"].wasted > 0.5 > 0.01 > packed.report["text"]["train"].wasted
    cut = prepare(config(texts, layout="padded"), seq_len=16)
    assert any("longer than a sequence of 16 tokens" in note for note in cut.notes)
    assert not any("longer than" in note for note in padded.notes + packed.notes)


def test_equal_data_has_an_equal_fingerprint_and_other_data_another(texts, tmp_path):
    base = prepare(config(texts))
    assert prepare(config(texts)).fingerprint == base.fingerprint
    others = [
        prepare(config(texts), seq_len=17),
        prepare(config(texts, layout="padded")),
        prepare(config(texts, document_mask=True)),
        prepare(config(texts), TokenizerConfig(kind="char")),
        prepare(config(texts, validation_fraction=0.3)),
    ]
    content = texts.read_text()
    texts.write_text(content.replace("number 77", "number 78"))
    others.append(prepare(config(texts)))
    fingerprints = {base.fingerprint, *(other.fingerprint for other in others)}
    assert len(fingerprints) == 7 and all(len(fingerprint) == 64 for fingerprint in fingerprints)


def test_a_text_shorter_than_a_row_is_enough(tmp_path):
    (tmp_path / "a.txt").write_text("a short text\nof two lines")
    prepared = prepare(config(tmp_path / "a.txt"), seq_len=256)
    assert len(prepared.rows["text"]["train"]) == len(prepared.validation) == 1
    batch = prepared.validation.batch([0])
    assert batch.inputs.shape == (1, 256) and batch.n_targets == len("of two lines")
    assert any("one text" in note for note in prepared.read["text"])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": ""}, ["data.path=", "empty"]),
        ({"a.jsonl": ""}, ["empty"]),
        ({"a.txt": " \n\n "}, ["data.path=", "no training text", "1 document, all empty"]),
        ({"a.txt": "x"}, ["no document is left for validation", "of 1 read"]),
        ({"a.jsonl": '{"text": "x"}\n' * 3}, ["no document is left for validation", "of 3 read"]),
        (
            {"train.txt": "text", "validation.txt": " "},
            ["own validation split", "1 document, all empty", "remove it"],
        ),
    ],
)
def test_too_little_text_is_named(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path))
    for word in words:
        assert word in str(caught.value)


def test_questions_that_leave_no_room_for_their_answer_are_named(facts):
    with pytest.raises(
        DataError, match=r"questions left out: longer than a sequence of 4 tokens.*To keep them: data.seq_len="
    ):
        prepare(config(kind="qa", layout="padded", loss_on="answer"), seq_len=4)


def test_progress_is_told(texts):
    lines: list[str] = []
    prepare_data(config(texts), BYTE, 16, 0, lines.append)
    assert any("tokenizer byte" in line for line in lines) and any("documents" in line for line in lines)


def test_the_default_torch_generator_is_left_alone(texts):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    prepare(config(texts, max_samples=3)).train.micro_batches(0, 0, 0, 2, 1)
    assert torch.get_rng_state().equal(before)


def rows_in(folder, n_files: int, n_rows: int = 400) -> Path:
    folder.mkdir(exist_ok=True)
    for file in range(n_files):
        rows = [{"title": f"f{file}", "text": f"file{file} row{row} " + "word " * 30} for row in range(n_rows)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_sample_is_drawn_from_all_files_and_how_much_is_used_is_said(tmp_path, monkeypatch):
    """It was the beginning of one file, and nothing told so."""
    monkeypatch.setattr("dtl.data.collect.MIN_CHARACTERS", 20_000)
    folder = rows_in(tmp_path / "wiki", 5)
    data = prepare(config(folder, "wiki", max_samples=200, seq_len=64, validation_fraction=0.01), seq_len=64)
    texts = "".join(data.samples("wiki", 999, 10_000))
    assert all(f"file{file} " in texts for file in range(5))
    (note,) = (note for note in data.notes if "are used" in note)
    assert re.search(
        r"wiki: 200 sequences of \d+ of the \d+ documents that were read are used, drawn by the seed", note
    )
    assert "data.max_samples=200 (sequences of 64 tokens)" in note and "No further document of" in note
    assert "for validation" not in note
    few = prepare(config(folder, "wiki", max_samples=1, seq_len=64, validation_fraction=0.5), seq_len=64)
    n_validation = len(few.rows["wiki"]["validation"])
    assert n_validation > 1 and f"The limit is for training: {n_validation} sequences for validation" in few.notes[0]
    everything = prepare(config(folder, "wiki", max_samples=10**6, validation_fraction=0.01), seq_len=64)
    assert not any("are used" in note for note in everything.notes)


def test_a_mixture_says_how_much_of_the_further_source_it_uses(tmp_path, monkeypatch):
    monkeypatch.setattr("dtl.data.collect.MIN_CHARACTERS", 20_000)
    sources = {"qa": SourceConfig("qa"), "wiki": SourceConfig("wiki", str(rows_in(tmp_path / "wiki", 3)), weight=0.01)}
    mixed = DataConfig(sources=sources, seq_len=64, document_mask=True, loss_on="answer")
    mixed.recommended.max_epochs = 1
    (note,) = (note for note in prepare(mixed, seq_len=64).notes if "are used" in note)
    assert note.startswith("wiki: ") and "data.sources.wiki.weight=0.01, for 1 epoch." in note


def test_three_characters_of_text_are_said_to_be_too_little(tmp_path):
    for text, is_little in (("abc\nd", True), ("many words " * 200, False)):
        data = prepare(config(write_texts(tmp_path / "t.jsonl", [text]), validation_fraction=0.0, test_fraction=0.0))
        assert any("of training text: too little to learn a language from" in note for note in data.notes) == is_little
    assert not any("too little" in note for note in prepare(config(kind="qa"), seq_len=256).notes)


@pytest.mark.skipif(not has_mallinfo(), reason="no glibc")
def test_prepared_data_leaves_no_freed_memory_behind(tmp_path):
    """In a process of its own: another malloc_trim finds little. Without the first: what the encoder has freed."""
    script = """
import ctypes, sys
from dtl.base.system import resident_memory
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.prepare import prepare_data
data = DataConfig(sources={"text": SourceConfig("text")}, path=sys.argv[1], cache_dir=sys.argv[2])
prepared = prepare_data(data, TokenizerConfig(kind="byte"), 101, 3)
before = resident_memory("RssAnon")
ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
print(before - resident_memory("RssAnon"))
"""
    path = tmp_path / "numbers.txt"
    path.write_text("\n\n".join(f"{number} and {number * number} are numbers" for number in range(30_011)))
    command = [sys.executable, "-c", script, path, tmp_path / "cache"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 5 * 2**20
