"""Laws of holding out: disjoint, deterministic, a document stays where it is whatever comes beside it."""

import json
import shutil
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtl.data.cache import Cache
from dtl.data.collect import collect_texts, has_validation
from dtl.data.config import SPLITS, DataConfig, HeldOut, SourceConfig
from dtl.data.documents import Document, QuestionAnswer
from dtl.data.documents import document as document_of
from dtl.data.sources import plan_sources
from dtl.data.split import MAX_FACTS, MIN_QUESTIONS, HoldOut, split_hash
from dtl.data.tokenizers.prompt import Prompt
from dtl.errors import ConfigError, DataError

DOCUMENTS = [Document(f"text number {number}") for number in range(1999)]
WORDS = st.lists(st.text("ab \n", min_size=1, max_size=3), min_size=1, max_size=7, unique=True)
SHARES = st.sampled_from([1e-9, 0.05, 0.1, 0.3, 0.45])


def hold_out(
    documents: Iterable[Document], for_validation: float, for_test: float, automatic: bool = False
) -> tuple[dict[str, list[Document]], str | None]:
    """The splits as `read_source` makes them, and the note."""
    holder = HoldOut(HeldOut(for_validation, for_test, automatic))
    splits: dict[str, list[Document]] = {"train": [], "validation": []}
    for document in documents:
        splits.setdefault(holder.split_for(document), []).append(document)
    changed, note = holder.finalize(splits)
    splits |= {name: list(of_split) for name, of_split in (changed or {}).items()}
    # Training and validation are always there; a test that got nothing is none.
    return {name: of_split for name, of_split in splits.items() if of_split or name != "test"}, note


def texts(documents: Sequence[Document]) -> set[str]:
    return {document.text for document in documents}


def test_three_splits_are_disjoint_and_hold_about_what_was_asked():
    splits, note = hold_out(DOCUMENTS, 0.1, 0.05)
    assert note is None and tuple(splits) == SPLITS
    assert [text for split in splits.values() for text in split] != []
    assert sorted(d.text for split in splits.values() for d in split) == sorted(texts(DOCUMENTS))
    assert 150 < len(splits["validation"]) < 250 and 70 < len(splits["test"]) < 130


def test_a_document_stays_in_its_split_whatever_comes_beside_it_and_in_any_order():
    many, _ = hold_out(DOCUMENTS, 0.1, 0.05)
    few, _ = hold_out(DOCUMENTS[::-1][:997], 0.1, 0.05)
    for split in SPLITS:
        assert texts(few[split]) <= texts(many[split])


def test_a_test_split_takes_from_training_alone():
    """Whatever the other share is, the same documents validate, and the same ones test."""
    plain, _ = hold_out(DOCUMENTS, 0.1, 0.0)
    assert "test" not in plain
    both, _ = hold_out(DOCUMENTS, 0.1, 0.2)
    assert both["validation"] == plain["validation"]
    assert texts(both["train"]) < texts(plain["train"])
    more, _ = hold_out(DOCUMENTS, 0.3, 0.2)
    assert more["test"] == both["test"] and texts(more["validation"]) > texts(both["validation"])


@given(WORDS, SHARES, SHARES)
def test_few_documents_lose_none_and_fill_what_they_can(words, for_validation, for_test):
    documents = [Document(f"{word}.") for word in words]
    splits, note = hold_out(documents, for_validation, for_test)
    if len(documents) == 1:
        order = [split for split in ("train", "test", "validation") if split in splits]
        assert "".join(d.text for split in order for d in splits[split]) == documents[0].text
        return
    assert sorted(d.text for split in splits.values() for d in split) == sorted(texts(documents))
    assert splits["validation"]
    alone, _ = hold_out(documents, for_validation, 0.0)
    assert splits["validation"] == alone["validation"]
    if alone["train"]:
        assert splits["train"]
    numbers = {split: [split_hash(d) for d in of_split] for split, of_split in splits.items()}
    assert max(numbers["validation"]) < min(numbers["train"], default=1)
    assert max(numbers["train"], default=0) < min(numbers.get("test", [1]))
    if len(documents) == 2:
        assert "test" not in splits and note and "too few" in note


def test_equal_questions_never_cross():
    asked = [f"Question: {n}?\nAnswer:" for n in range(211)]
    pairs = [Document(f"{text} {answer}", len(text)) for text in asked for answer in ("yes", "no")]
    splits, _ = hold_out(pairs, 0.2, 0.2)
    sides = {split: {d.text[: d.answer_start] for d in of_split} for split, of_split in splits.items()}
    assert all(sides[a].isdisjoint(sides[b]) for a, b in (("train", "validation"), ("train", "test")))
    assert sides["validation"].isdisjoint(sides["test"]) and all(sides.values())


def on_contexts(n: int, n_contexts: int) -> list[Document]:
    pairs = [QuestionAnswer(f"{i}?", f"answer {i}", context=f"Text\n{i % n_contexts} ") for i in range(n)]
    return [document_of(pair, Prompt()) for pair in pairs]


def contexts(documents: Sequence[Document]) -> set[str]:
    return {document.pair.context for document in documents if document.pair}


@pytest.mark.parametrize("automatic", [False, True])
@pytest.mark.parametrize("n_contexts", [3, 97])
def test_questions_on_one_context_never_cross(automatic, n_contexts):
    splits, _ = hold_out(on_contexts(499, n_contexts), 0.2, 0.2, automatic)
    by_split = [contexts(of_split) for of_split in splits.values()]
    assert all(by_split) and sum(map(len, by_split)) == len(set.union(*by_split)) == n_contexts
    assert sum(map(len, splits.values())) == 499


@pytest.mark.parametrize("others", [0, 99])
def test_one_context_of_most_questions_is_on_both_sides_and_that_is_said(others):
    documents = [*on_contexts(401, 1), *DOCUMENTS[:others]]
    splits, note = hold_out(documents, 0.2, 0.0)
    assert 50 < len(splits["validation"]) < 150 and sum(map(len, splits.values())) == len(documents)
    assert note and f"401 of {len(documents)} questions have the same context" in note


@pytest.mark.parametrize("separator", ["\n", " ", ""])
def test_one_text_validates_on_its_end_and_tests_on_what_comes_before(separator):
    """A test share moves no validation text: figures stay comparable with runs without one."""
    text = separator.join(f"line{number:03}" for number in range(101))
    plain, _ = hold_out([Document(text)], 0.1, 0.0)
    splits, note = hold_out([Document(text)], 0.1, 0.2)
    assert splits["validation"] == plain["validation"] and "test" not in plain
    (train,), (test,), (validation,) = splits["train"], splits["test"], splits["validation"]
    assert train.text + test.text + validation.text == text
    assert 0.19 < len(test.text) / len(text) < 0.22 and 0.1 <= len(validation.text) / len(text) < 0.12
    assert note and "before them for the test" in note


@pytest.mark.parametrize("share", [-0.1, 0.9, 1.0])
def test_a_share_that_leaves_nothing_to_train_on_is_refused(share):
    with pytest.raises(ConfigError, match=r"data\.test_fraction"):
        DataConfig(sources={"qa": SourceConfig("qa")}, validation_fraction=0.1, test_fraction=share).validate()


# --- through the sources --------------------------------------------------------------------------------------------


def splits_of(tmp_path, files: dict[str, str], **settings) -> dict[str, list[str]]:
    folder = tmp_path / "files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    config = DataConfig(sources={"text": SourceConfig("text", str(folder))}, **settings)
    (collected,) = collect_texts(
        config, plan_sources(config, 0), 17, 0, Cache(tmp_path / "cache"), lambda line: None
    ).values()
    return {split: [d.text for d in of_split] for split, of_split in collected.splits.items()}


LINES = "".join(f'{{"text": "line {n % 401}"}}\n' for n in range(503))  # with copies


def test_copies_are_dropped_before_anything_is_held_out(tmp_path):
    splits = splits_of(tmp_path, {"a.jsonl": LINES}, validation_fraction=0.1, test_fraction=0.1)
    every = [text for split in splits.values() for text in split]
    assert tuple(splits) == SPLITS and len(every) == len(set(every)) == 401


def test_memory_and_disk_split_alike(tmp_path, monkeypatch):
    settings = {"validation_fraction": 0.1, "test_fraction": 0.1}
    in_memory = splits_of(tmp_path, {"a.jsonl": LINES}, **settings)
    monkeypatch.setattr("dtl.data.collect.SMALL_BYTES", 0)
    assert splits_of(tmp_path, {"a.jsonl": LINES}, **settings) == in_memory
    assert splits_of(tmp_path, {"a.jsonl": LINES}, **settings) == in_memory  # out of the cache
    few = {"a.jsonl": '{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n'}
    on_disk = splits_of(tmp_path, few, **settings)
    monkeypatch.undo()
    assert splits_of(tmp_path, few, **settings) == on_disk and sorted(map(len, on_disk.values())) == [1, 1, 1]


@pytest.mark.parametrize("small_bytes", [0, 2**20])
def test_two_documents_of_which_one_hashes_into_the_test_make_two_splits(tmp_path, monkeypatch, small_bytes):
    """On disk and in memory: a test that was begun and then given up is gone."""
    monkeypatch.setattr("dtl.data.collect.SMALL_BYTES", small_bytes)
    pair = sorted(texts(DOCUMENTS), key=lambda text: split_hash(Document(text)))[-2:]  # the two with the highest
    rows = "".join(json.dumps({"text": text}) + "\n" for text in pair)
    splits = splits_of(tmp_path, {"a.jsonl": rows}, validation_fraction=0.1, test_fraction=0.1)
    assert {split: len(found) for split, found in splits.items()} == {"train": 1, "validation": 1}
    one = splits_of(tmp_path, {"a.txt": pair[0]}, validation_fraction=0.1, test_fraction=0.1)
    assert "".join(one[split][0] for split in ("train", "test", "validation") if split in one) == pair[0]


@pytest.mark.parametrize("small_bytes", [0, 2**20])
@pytest.mark.parametrize("for_test", [0.0, 0.05])
def test_a_few_long_texts_lose_their_ends_and_none_of_them_as_a_whole(tmp_path, monkeypatch, small_bytes, for_test):
    """Of five files 57 % was held out where 5 % was asked for: the text nearest to each split, whatever its length."""
    monkeypatch.setattr("dtl.data.collect.SMALL_BYTES", small_bytes)
    files = {f"{n}.txt": "".join(f"Line {k} of text {n}.\n" for k in range(101 * n)) for n in (1, 2, 3, 5, 7)}
    splits = splits_of(tmp_path, files, validation_fraction=0.05, test_fraction=for_test)
    order = [split for split in ("train", "test", "validation") if split in splits]
    assert len(order) == 2 + (for_test > 0)
    assert sorted("".join(parts) for parts in zip(*(splits[split] for split in order), strict=True)) == sorted(
        files.values()
    )
    n_characters = sum(map(len, files.values()))
    for split in order[1:]:
        assert 0.04 < sum(map(len, splits[split])) / n_characters < 0.06


def test_another_share_is_another_entry_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("dtl.data.collect.SMALL_BYTES", 0)
    sizes = [len(splits_of(tmp_path, {"a.jsonl": LINES}, test_fraction=share).get("test", [])) for share in (0, 0.2, 0)]
    assert sizes[0] == sizes[2] == 0 < sizes[1]


def test_what_a_source_brings_is_kept(tmp_path):
    """Own validation: nothing is held out. An own test alone: only a validation split is."""
    one = {"train.jsonl": LINES, "validation.jsonl": '{"text": "v"}\n'}
    splits = splits_of(tmp_path, one, test_fraction=0.2)
    assert list(splits) == ["train", "validation"] and len(splits["train"]) == 401
    few = '{"text": "one"}\n{"text": "two"}\n'
    splits = splits_of(tmp_path, {"train.jsonl": few, "test.jsonl": '{"text": "t"}\n'}, validation_fraction=1e-9)
    assert splits["test"] == ["t"] and sorted(splits["train"] + splits["validation"]) == ["one", "two"]
    splits = splits_of(
        tmp_path, {"train.jsonl": LINES, "test.jsonl": '{"text": "t"}\n'}, validation_fraction=0.1, test_fraction=0.2
    )
    assert splits["test"] == ["t"] and len(splits["train"]) + len(splits["validation"]) == 401


def test_nothing_left_to_train_on_is_said_with_both_shares(tmp_path):
    with pytest.raises(DataError, match=r"no document is left for train.*data\.test_fraction=0\.01"):
        two = {"a.jsonl": '{"text": "one"}\n{"text": "two"}\n'}
        splits_of(tmp_path, two, validation_fraction=0.98, test_fraction=0.01)


# --- automatic -----------------------------------------------------------------------------------------------------


def questions(n: int, n_answers: int) -> list[Document]:
    """`n` questions, with as many answers, of which those after the first `n_answers` recur."""
    pairs = [QuestionAnswer(f"question {i}?", f"answer {i if i < n_answers else i % 7}") for i in range(n)]
    return [document_of(pair, Prompt()) for pair in pairs]


@pytest.mark.parametrize(
    ("n", "n_answers"), [(1, 1), (2, 2), (11, 11), (MIN_QUESTIONS - 1, 0), (53, 53), (499, 499), (499, 400)]
)
def test_few_questions_and_facts_that_are_asked_once_are_all_trained_on(n, n_answers):
    splits, note = hold_out(questions(n, n_answers), 0.1, 0.1, automatic=True)
    assert len(splits["train"]) == n and not splits["validation"] and not splits.get("test")
    assert note
    assert ("data.validation_fraction=0.1" in note) == (n > 1)  # of one, nothing can be held out
    assert (f"all {n} questions are" if n > 1 else "the only question is") in note


@pytest.mark.parametrize("n_answers", [0, 97])
def test_paraphrases_are_held_out_and_every_answer_stays_taught(n_answers):
    documents = questions(997, n_answers)
    splits, note = hold_out(documents, 0.1, 0.1, automatic=True)
    assert sorted(d.text for split in splits.values() for d in split) == sorted(texts(documents))
    taught = {d.pair.answer for d in splits["train"] if d.pair}
    assert all(d.pair and d.pair.answer in taught for split in ("validation", "test") for d in splits[split])
    assert 50 < len(splits["validation"]) < 150 and 50 < len(splits["test"]) < 150
    assert (note is None) == (n_answers == 0)
    by_hash, _ = hold_out(documents, 0.1, 0.1)
    assert all(texts(splits[split]) <= texts(by_hash[split]) for split in ("validation", "test"))


@pytest.mark.parametrize("documents", [questions(MAX_FACTS, MAX_FACTS), DOCUMENTS, DOCUMENTS[:3]])
def test_many_questions_and_plain_text_are_held_out_by_hash_alone(documents):
    assert hold_out(documents, 0.1, 0.1, automatic=True) == hold_out(documents, 0.1, 0.1)


@pytest.mark.parametrize(
    ("own", "n_questions", "fraction", "expected"),
    [
        (False, 11, None, False),
        (False, 997, None, True),
        (False, 997, 0.0, False),
        (False, 11, 0.1, True),
        (True, 11, None, True),
        (True, 11, 0.0, True),
    ],
)
@pytest.mark.parametrize("kind", ["qa", "wordings"])
def test_whether_there_is_a_validation_split_is_known_before_training(
    tmp_path, kind, own, n_questions, fraction, expected
):
    records = (
        {"answer": f"{i % 7}.", "train": [f"question {i}?"]} | ({"validation": [f"{i}?"]} if own else {})
        if kind == "wordings"
        else {"answer": f"{i % 7}.", "question": f"question {i}?"}
        for i in range(n_questions)
    )
    names = ("train.jsonl", "validation.jsonl") if own and kind == "qa" else ("train.jsonl",)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    for name in names:
        (tmp_path / name).write_text(lines)
    config = DataConfig({"qa": SourceConfig("qa", str(tmp_path))}, validation_fraction=fraction, test_fraction=None)
    plans = plan_sources(config, 0)
    assert has_validation(config, plans, 64, 0, lambda _: None) == expected
    texts = collect_texts(config, plans, 64, 0, Cache(tmp_path / "cache"), lambda _: None)["qa"]
    assert ("validation" in texts.splits) == expected


def test_nothing_is_held_out_where_nothing_is_asked_for(tmp_path):
    for settings in ({"validation_fraction": 0.0}, {"validation_fraction": 0.0, "test_fraction": None}):
        splits = splits_of(tmp_path, {"a.jsonl": LINES}, **settings)
        assert tuple(splits) == ("train",) and len(splits["train"]) == 401
    with pytest.raises(
        ConfigError, match=r"data\.test_fraction=0\.1: with data\.validation_fraction=0 nothing is held out"
    ):
        DataConfig(sources={"qa": SourceConfig("qa")}, validation_fraction=0.0, test_fraction=0.1).validate()
