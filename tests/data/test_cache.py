"""The cache: made once however many ask, never half there, and what comes out of it is what goes without it."""

import errno
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_builder import ENTRY, N_FILES
from hypothesis import given
from hypothesis import strategies as st

from dtl.base.files import ASIDE, MANIFEST, TEMPORARY, TRASH, leftover_of, verify_manifest
from dtl.data import cache as cache_module
from dtl.data import collect
from dtl.data import encode as tokens
from dtl.data.cache import FOLDER, TAG, Cache, DamagedEntryError, cache_folder, key_of
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.documents import Document, QuestionAnswer
from dtl.data.encode import encode_chunks, encode_documents
from dtl.data.prepare import PreparedData, prepare_data
from dtl.data.stored import DiskWriter, MemoryWriter, read_texts, read_tokens, sample, write_tokens
from dtl.data.tokenizers.tokenizer import build_tokenizer
from dtl.errors import ConfigError, DataError
from dtl.registry import SOURCES

BUILDER = Path(__file__).with_name("cache_builder.py")
OTHER = f"other-{0:032x}"
BYTE = TokenizerConfig(kind="byte")
BPE = TokenizerConfig(kind="bpe", vocab_size=300)


# --- entries ----------------------------------------------------------------------------------------------------


Round = tuple[dict[int, int], list[dict[str, Any]]]  # exit codes by process, and what the processes wrote


@pytest.fixture
def start_round(tmp_path: Path) -> Iterator[Callable[..., Round]]:
    """Starts builders of `thing-1` at once; each is killed after its seconds, ends at a file-system call, or lives."""
    log = tmp_path / "log"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(BUILDER)], **pipes) as starter:
        assert starter.stdin is not None and starter.stdout is not None

        def start(kill_after_s: list[float | None], die_at: int | None = None, pause_s: float = 0.01) -> Round:
            log.write_text("")
            asked = {"cache": str(tmp_path / "cache"), "log": str(log), "pause_s": pause_s}
            asked |= {"kill_after_s": kill_after_s, "die_at": die_at}
            print(json.dumps(asked), file=starter.stdin, flush=True)
            codes = {int(process): code for process, code in json.loads(starter.stdout.readline()).items()}
            lines = log.read_text().splitlines(keepends=True)  # a killed process may leave half a line
            return codes, [json.loads(line) for line in lines if line.endswith("}\n")]

        yield start
        starter.stdin.close()


@pytest.mark.fault("cache")
@pytest.mark.skipif(os.name == "nt", reason="the builders are forked")
@pytest.mark.parametrize("n_rounds", [7, pytest.param(50, marks=pytest.mark.slow)])
def test_of_eight_that_start_at_once_one_builds_whoever_is_killed(tmp_path, start_round, n_rounds):
    """Row 20. The rounds share a folder: locks and leftovers add up where they can."""
    draw = random.Random(n_rounds)
    folder, entry = tmp_path / "cache", tmp_path / "cache" / ENTRY
    alone = hashlib.sha256(b"".join(bytes([number]) * 10_007 for number in range(N_FILES))).hexdigest()
    killed_in_builds = 0
    for number in range(n_rounds):
        before = ("missing", "damaged", "whole")[number % 3] if number else "missing"
        if before == "missing":
            shutil.rmtree(entry, ignore_errors=True)
        elif before == "damaged":
            (entry / "3.bin").write_bytes(b"\7" * 10_007)
        n_kills = draw.randrange(9)
        kill_after_s = [draw.uniform(0, 0.15) if builder < n_kills else None for builder in range(8)]
        codes, events = start_round(draw.sample(kill_after_s, 8))
        # Whatever was killed where: the next one is not held up, and finds or makes a whole entry.
        next_codes, next_events = start_round([None])
        events += next_events
        killed = {process for process, code in codes.items() if code == -signal.SIGKILL}
        survivors = {process for process, code in (codes | next_codes).items() if code == 0}
        assert killed | survivors == {*codes, *next_codes}, (codes, next_codes)
        opened = [event for event in events if "opened" in event]
        assert {event["process"] for event in opened} >= survivors
        assert {event["opened"] for event in opened} == {alone}
        (published,) = {event["built_by"] for event in opened}
        began = {event["process"] for event in events if "began" in event}
        assert began - {published} <= killed  # who built in vain was killed
        assert not began or before != "whole"
        verify_manifest(entry)
        killed_in_builds += len(began - {published})
        # What killed builders left is gone when anything else has been made.
        assert Cache(folder).get(OTHER, lambda into: {})
        left = {path.name for path in folder.iterdir() if path.suffix != ".lock"}
        # Marks that were not finished go after an hour: until then another process may be writing one.
        assert {name for name in left if leftover_of(name) != TAG} == {ENTRY, OTHER, TAG}
        shutil.rmtree(folder / OTHER)
    if n_rounds == 50:  # few rounds may by chance kill nobody who builds
        assert killed_in_builds >= 3


@pytest.mark.fault("cache")
@pytest.mark.skipif(os.name == "nt", reason="the builders are forked")
@pytest.mark.slow
@pytest.mark.parametrize("before", ["missing", "damaged"])
def test_a_build_that_ends_at_any_file_system_call_leaves_nothing_for_long(tmp_path, start_round, before):
    folder, entry = tmp_path / "cache", tmp_path / "cache" / ENTRY
    Cache(folder).get(f"first-{0:032x}", lambda into: {})
    shutil.rmtree(folder / f"first-{0:032x}")
    for die_at in range(1, 1000):
        shutil.rmtree(entry, ignore_errors=True)
        if before == "damaged":
            start_round([None], pause_s=0)
            (entry / "3.bin").write_bytes(b"\7" * 10_007)
        (code,) = start_round([None], die_at, pause_s=0)[0].values()
        codes, events = start_round([None], pause_s=0)
        assert [*codes.values()] == [0] and events[-1]["opened"]
        Cache(folder).get(OTHER, lambda into: {})
        left = {path.name for path in folder.iterdir() if path.suffix != ".lock"}
        assert left == {ENTRY, OTHER, TAG}, die_at
        shutil.rmtree(folder / OTHER)
        if code == 0:
            break
        assert code == 9
    assert die_at > 20


@pytest.mark.fault("cache-foreign")
@pytest.mark.parametrize("kind", [TEMPORARY + "{}-99-0123abcd", TRASH + "{}.old-99-0123abcd", "{}" + ASIDE])
def test_what_others_left_is_swept_and_what_they_are_busy_with_is_not(tmp_path, kind):
    cache = Cache(tmp_path)
    assert cache.get(ENTRY, lambda folder: {})  # the folder is marked as the cache's own
    left, busy, mine = (tmp_path / kind.format(name) for name in (f"text-{7:032x}", f"text-{8:032x}", OTHER))
    for folder in (left, busy, mine):
        folder.mkdir()
        (folder / "x").write_text("half")
    with cache_module.FileLock(tmp_path / f"text-{8:032x}.lock"):
        assert cache.get(OTHER, lambda folder: {}) and not cache.notes
    assert busy.exists() and not left.exists() and not mine.exists()


@pytest.mark.fault("cache-damage")
@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest"])
def test_a_damaged_entry_is_named_and_made_again(tmp_path, damage):
    def build(folder: Path) -> dict[str, object]:
        (folder / "data.bin").write_bytes(b"0123456789")
        return {"n": 1}

    entry = Cache(tmp_path).get(ENTRY, build)
    assert entry is not None
    file = entry.folder / ("data.bin" if damage != "manifest" else MANIFEST)
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + (b"" if damage == "cut" else b"x"))
    again = Cache(tmp_path)
    mended = again.get(ENTRY, build)
    assert mended is not None and (mended.folder / "data.bin").read_bytes() == b"0123456789"
    (note,) = again.notes
    assert str(file) in note and "built again" in note
    whole = Cache(tmp_path)
    assert whole.get(ENTRY, lambda folder: pytest.fail("built again")) and not whole.notes


@pytest.mark.fault("cache-damage")
def test_large_files_are_hashed_before_anything_is_made_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "HASHED_ON_OPENING", 3)

    def build(folder: Path) -> dict[str, object]:
        (folder / "data.bin").write_bytes(b"0123456789")
        return {}

    entry = Cache(tmp_path).get(ENTRY, build)
    assert entry is not None
    (entry.folder / "data.bin").write_bytes(b"9876543210")
    full = Cache(tmp_path, verify=True)
    assert full.get(ENTRY, build) and "data.bin" in full.notes[0]  # at once
    (entry.folder / "data.bin").write_bytes(b"9876543210")
    quick = Cache(tmp_path)
    assert quick.get(ENTRY, build) and not quick.notes  # not yet
    with pytest.raises(DamagedEntryError, match=r"data.bin: damaged"):
        quick.get(OTHER, build)
    assert not (tmp_path / OTHER).exists()
    for cache in (quick, Cache(tmp_path)):  # here and at the next start
        assert cache.get(ENTRY, build) and (entry.folder / "data.bin").read_bytes() == b"0123456789"
        cache.check()


# --- files of others ------------------------------------------------------------------------------------------------

OF_OTHERS = ("thesis.old", ".tmp-mine", ".trash-mine", ".tmp-x-1-0123abcd", f"text-{0:032x}.old", "notes.txt")


@pytest.mark.fault("cache-foreign")
def test_files_of_others_stay_whatever_their_names(tmp_path):
    """A cache_dir is any folder of the user's; in the cache's own one, only what DTL can have left is deleted."""
    cache = Cache(cache_folder(str(tmp_path)))
    assert cache.get(ENTRY, lambda folder: {})
    for folder in (tmp_path, cache.folder):
        for name in OF_OTHERS:
            (folder / name).mkdir()
            os.utime(folder / name, (1, 1))
    files = [folder / ".tmp-mine.txt" for folder in (tmp_path, cache.folder)]
    for file in files:
        file.write_text("mine")
        os.utime(file, (1, 1))
    assert cache.get(OTHER, lambda folder: {}) and not cache.notes
    assert {path.name for path in tmp_path.iterdir()} == {*OF_OTHERS, FOLDER, ".tmp-mine.txt"}
    left = {path.name for path in cache.folder.iterdir() if path.suffix != ".lock"}
    assert left == {*OF_OTHERS, ENTRY, OTHER, TAG, ".tmp-mine.txt"} - {f"text-{0:032x}.old"}


@pytest.mark.fault("cache-foreign")
def test_a_folder_that_is_not_of_the_cache_is_refused(tmp_path):
    folder = cache_folder(str(tmp_path))
    folder.mkdir()
    assert Cache(folder).get(ENTRY, lambda into: {})  # empty: as after a kill at the very start
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "mine").write_text("x")
    with pytest.raises(DataError, match=r"dtl-cache: has files that are not of a cache of DTL.*data.cache_dir=FOLDER"):
        Cache(folder).get(ENTRY, lambda into: {})
    assert [path.name for path in folder.iterdir()] == ["mine"]
    with pytest.raises(ConfigError, match=r"data.cache_dir='': is no folder"):
        DataConfig(sources={"qa": SourceConfig("qa")}, cache_dir=" ").validate()


def test_an_error_of_the_build_is_raised_and_keeps_nothing(tmp_path):
    def fails(folder: Path) -> dict[str, object]:
        (folder / "half").write_text("x")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        Cache(tmp_path).get(ENTRY, fails)
    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")] == [TAG]


def test_keys_differ_when_a_part_does():
    keys = [key_of(a=1), key_of(a=2), key_of(b=1), key_of(a="1"), key_of(a=[1, 2]), key_of(a=[12])]
    assert len(set(keys)) == len(keys) and key_of(a=1, b=2) == key_of(b=2, a=1)


def test_files_are_hashed_once_while_they_do_not_change(tmp_path, monkeypatch):
    hashed: list[str] = []
    monkeypatch.setattr(cache_module, "sha256_of", lambda path: hashed.append(path.name) or path.read_text())
    files = [tmp_path / name for name in ("a.txt", "b.txt")]
    long_ago = time.time() - 100
    for file in files:
        file.write_text(file.name)
        os.utime(file, (long_ago, long_ago))
    cached = tmp_path / "cache"
    first = Cache(cached).files_fingerprint(files)
    assert Cache(cached).files_fingerprint(reversed(files)) == first and hashed == ["a.txt", "b.txt"]
    os.utime(files[0], (long_ago + 1, long_ago + 1))
    assert Cache(cached).files_fingerprint(files) == first and hashed[2:] == ["a.txt"]
    files[1].write_text("B.txt")  # as long as before, and its time set back
    os.utime(files[1], (long_ago, long_ago))
    assert Cache(cached).files_fingerprint(files) == first
    changed = Cache(cached, verify=True).files_fingerprint(files)
    assert changed != first
    files[1].rename(tmp_path / "c.txt")
    assert Cache(cached).files_fingerprint([files[0], tmp_path / "c.txt"]) != changed
    files[0].write_text("just now")
    del hashed[:]
    for _ in range(2):  # a file this young could change again within the same time stamp
        Cache(cached).files_fingerprint(files[:1])
    assert hashed == ["a.txt"] * 2


def test_a_moved_folder_keeps_its_fingerprint(tmp_path):
    old = tmp_path / "old" / "sub"
    old.mkdir(parents=True)
    (old / "a.txt").write_text("a")
    (tmp_path / "old" / "b.txt").write_text("b")
    cache = Cache(tmp_path / "cache")
    before = cache.files_fingerprint((tmp_path / "old").rglob("*.txt"))
    (tmp_path / "old").rename(tmp_path / "new")
    assert cache.files_fingerprint((tmp_path / "new").rglob("*.txt")) == before


def test_the_folder_is_the_platforms_own_or_the_one_given(tmp_path):
    assert cache_folder(None).parent.name == "dtl" and cache_folder(str(tmp_path)) == tmp_path / "dtl-cache"


# --- documents and tokens in files -------------------------------------------------------------------------------


PAIRS = st.builds(
    QuestionAnswer, st.text(), st.text(), fact=st.none() | st.text(), accepted=st.lists(st.text()).map(tuple)
)
DOCUMENTS = st.builds(
    Document,
    st.text(st.characters(codec=None)),
    answer_start=st.none() | st.integers(0, 9),
    pair=st.none() | PAIRS,
)


@given(st.lists(DOCUMENTS, max_size=7), st.lists(DOCUMENTS, max_size=3))
def test_documents_come_back_as_they_were(tmp_path_factory, train, test):
    folder = tmp_path_factory.mktemp("texts")
    on_disk, in_memory = DiskWriter(folder), MemoryWriter()
    for writer in (on_disk, in_memory):
        for split, documents in (("train", train), ("test", test)):
            writer.begin(split)
            for document in documents:
                writer.add(split, document)
        writer.texts()
        writer.replace({"train": (document for document in writer.texts()["test"]), "test": iter(train)})
    on_disk.close()
    read, held = read_texts(folder, ["train", "test"]), in_memory.texts()
    for split, documents in (("train", test), ("test", train)):
        for texts in (read[split], held[split]):
            assert list(texts) == documents == [texts[i] for i in range(len(documents))]
            assert texts.characters.tolist() == [len(document.text) for document in documents]
    for n_characters in (0, 5, 10**9):
        chosen = [list(sample(texts["test"], n_characters, seed=3)) for texts in (read, held)]
        assert chosen[0] == chosen[1] and len(chosen[0]) <= len(train)
    assert sorted(map(repr, sample(held["test"], float("inf"), 5))) == sorted(map(repr, train))


@pytest.mark.parametrize("n_documents", [0, 1, 97])
def test_tokens_come_back_as_they_were(tmp_path, n_documents, monkeypatch):
    monkeypatch.setattr("dtl.data.encode.CHUNK_CHARACTERS", 31)
    tokenizer = build_tokenizer(BYTE, lambda: ())
    documents = [Document("x" * n, answer_start=n // 2 if n % 2 else None) for n in range(n_documents)]
    expected = encode_documents(documents, tokenizer)
    write_tokens(tmp_path, "train", encode_chunks(documents, tokenizer), expected.tokens.dtype)
    found = read_tokens(tmp_path, "train")
    for name in ("tokens", "offsets", "answer_starts"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    assert isinstance(found.tokens, np.memmap)


# --- preparation ------------------------------------------------------------------------------------------------


class Counting:
    """A source that counts how often it is read."""

    read = 0
    says = "first"

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        self.origin = "counting"

    def fingerprint(self) -> str:
        return Counting.says

    def splits(self) -> dict[str, Iterator[Document]]:
        Counting.read += 1
        return {
            "train": (Document(f"{self.says} text {number}\u00a0of many") for number in range(150)),
            "test": (Document(f"test {number}") for number in range(11)),
        }

    def notes(self) -> list[str]:
        return [f"counting: {Counting.says}"]


SOURCES.register("counting_for_the_cache")(Counting)


@pytest.fixture
def counting(monkeypatch, tmp_path) -> DataConfig:
    monkeypatch.setattr(Counting, "read", 0)
    monkeypatch.setattr(Counting, "says", "first")
    return DataConfig(
        sources={"c": SourceConfig("counting_for_the_cache")},
        cache_dir=str(tmp_path / "cache"),
        validation_fraction=0.1,
    )


def prepare(data: DataConfig, tokenizer: TokenizerConfig = BYTE, seq_len: int = 17, seed: int = 3) -> PreparedData:
    return prepare_data(data, tokenizer, seq_len, seed)


def everything(prepared: PreparedData) -> list[object]:
    """All that a run sees of its data."""
    made: list[object] = [prepared.fingerprint, prepared.report, prepared.pairs, prepared.tokenizer.fingerprint]
    made += [prepared.notes, prepared.tokenizer.notes]
    for splits in prepared.rows.values():
        for rows in splits.values():
            batch = rows.batch(range(len(rows)))
            made += [batch.inputs.tolist(), batch.targets.tolist()]
            made += [None if found is None else found.tolist() for found in (batch.positions, batch.documents)]
    return made


def in_memory(data: DataConfig, tokenizer: TokenizerConfig = BYTE, **settings: int) -> PreparedData:
    """The same without any cache: its place is taken by a file."""
    file = Path(str(data.cache_dir) + ".file")
    file.write_text("")
    prepared = prepare(replace(data, cache_dir=str(file)), tokenizer, **settings)
    warning = [note for note in prepared.notes if "cannot be written" in note]
    assert len(warning) == 1 and str(file) in warning[0]
    prepared.notes.remove(warning[0])
    return prepared


@pytest.mark.parametrize("max_samples", [None, 7])
@pytest.mark.parametrize("tokenizer", [BYTE, BPE, TokenizerConfig(kind="char")], ids=lambda config: config.kind)
def test_cached_and_uncached_rows_are_the_same(counting, tokenizer, max_samples):
    data = replace(counting, max_samples=max_samples)
    built = prepare(data, tokenizer)
    assert Counting.read == 1
    opened = prepare(data, tokenizer)
    assert Counting.read == 1  # nor was it asked for its documents
    assert isinstance(opened.rows["c"]["train"].tokens, np.memmap)
    without = in_memory(data, tokenizer)
    assert Counting.read == 2
    assert everything(built) == everything(opened) == everything(without)
    assert opened.tokenizer.decode(opened.rows["c"]["train"].tokens[:8].tolist()).startswith("first te")


def test_whatever_shapes_the_data_makes_it_anew(counting, monkeypatch):
    prepare(counting)
    prepare(counting, seq_len=31)  # rows alone
    prepare(replace(counting, layout="padded", loss_on="answer"))
    assert Counting.read == 1
    folder = cache_folder(counting.cache_dir)
    known = set(os.listdir(folder))

    def made(data: DataConfig = counting, tokenizer: TokenizerConfig = BYTE, **settings: int) -> set[str]:
        prepare(data, tokenizer, **settings)
        new = {name.partition("-")[0] for name in set(os.listdir(folder)) - known}
        known.update(os.listdir(folder))
        return new

    assert made() == set()
    assert made(tokenizer=BPE) == {"tokenizer", "tokens", "fingerprint"}
    assert made(tokenizer=replace(BPE, vocab_size=264)) == {"tokenizer", "tokens", "fingerprint"}
    assert Counting.read == 1
    assert made(replace(counting, validation_fraction=0.2)) == {"text", "tokens", "fingerprint"}
    assert made(replace(counting, max_samples=5)) == {"text", "tokens", "fingerprint"}
    assert made(replace(counting, max_samples=5), seed=4) == {"text", "tokens", "fingerprint"}
    monkeypatch.setattr(Counting, "says", "second")
    assert made() == {"text", "tokens", "fingerprint"}
    monkeypatch.setattr(collect, "text_code", lambda kind, source: "edited")
    assert made() == {"text", "tokens", "fingerprint"}
    assert Counting.read == 6
    monkeypatch.setattr(cache_module, "__version__", "another")
    assert "text" in made()


def test_tokenizers_of_equal_size_do_not_share_tokens(counting):
    letters = sorted(set("first text test 0123456789 of many"))
    orders = [build_tokenizer(TokenizerConfig(kind="char"), lambda: letters), *[build_tokenizer(BYTE, lambda: ())] * 2]
    swapped = build_tokenizer(TokenizerConfig(kind="char"), lambda: [*letters[:-1], "z"])
    assert orders[0].vocab_size == swapped.vocab_size and orders[0].eos_id == swapped.eos_id
    made = [prepare_data(counting, tokenizer, 17, 3).fingerprint for tokenizer in (*orders, swapped)]
    assert len(set(made)) == 3 and made[1] == made[2]
    held = [
        prepared.rows["c"]["train"].tokens.tolist()
        for prepared in (prepare_data(counting, tokenizer, 17, 3) for tokenizer in (orders[0], swapped))
    ]
    assert held[0] != held[1]


def test_a_source_that_does_not_say_what_it_is_made_of_is_not_cached(counting, monkeypatch):
    monkeypatch.delattr(Counting, "fingerprint")
    prepare(counting)
    prepare(counting)
    assert Counting.read == 2 and not Path(str(counting.cache_dir)).exists()


def test_files_are_cached_unless_they_are_small(tmp_path, monkeypatch):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"text number {number}"}) + "\n" for number in range(100)))
    data = DataConfig(sources={"text": SourceConfig("text", str(file))}, cache_dir=str(tmp_path / "cache"))
    small = prepare(data)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(collect, "SMALL_BYTES", 100)
    built = prepare(data)
    assert len(list((tmp_path / "cache" / FOLDER).glob("text-*/manifest.json"))) == 1
    monkeypatch.setattr("dtl.data.local.files.LocalFiles.records", lambda *arguments: pytest.fail("read again"))
    assert everything(small) == everything(built) == everything(prepare(data))
    monkeypatch.undo()
    monkeypatch.setattr(collect, "SMALL_BYTES", 100)
    file.write_text(file.read_text().replace("number 77", "number 78"))
    changed = prepare(data)
    assert changed.fingerprint != built.fingerprint
    assert any("dropped" in note for note in changed.notes)  # 78 is there twice now


def test_pairs_and_mixtures_are_the_same_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "SMALL_BYTES", 0)
    pairs, texts = tmp_path / "pairs.jsonl", tmp_path / "texts.jsonl"
    pairs.write_text("".join(json.dumps({"question": f"q{n}?", "answer": f"a {n}"}) + "\n" for n in range(60)))
    texts.write_text("".join(json.dumps({"text": f"some text, number {n}"}) + "\n" for n in range(300)))
    data = DataConfig(
        sources={"qa": SourceConfig("qa", str(pairs)), "text": SourceConfig("text", str(texts), weight=0.3)},
        cache_dir=str(tmp_path / "cache"),
        document_mask=True,
        loss_on="answer",
        validation_fraction=0.1,
    )
    data.recommended.max_epochs = 2
    built, opened = prepare(data, BPE, seq_len=64), prepare(data, BPE, seq_len=64)
    assert len(opened.pairs["train"]) + len(opened.pairs["validation"]) == 60
    assert everything(built) == everything(opened) == everything(in_memory(data, BPE, seq_len=64))


def test_a_full_disk_falls_back_to_memory(counting, monkeypatch):
    expected = in_memory(counting)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tokens, "write_tokens", full)
    prepared = prepare(counting)
    (warning,) = [note for note in prepared.notes if "cannot be written" in note]
    assert "No space left on device" in warning and "data.cache_dir=FOLDER" in warning
    prepared.notes.remove(warning)
    assert everything(prepared) == everything(expected)
    assert not list(cache_folder(counting.cache_dir).glob(f"{TEMPORARY}*"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_read(counting):
    built = prepare(counting)
    folder = cache_folder(counting.cache_dir)
    folder.chmod(0o500)
    try:
        assert everything(prepare(counting)) == everything(built) and Counting.read == 1
        other = prepare(replace(counting, validation_fraction=0.3))
        assert any("cannot be written" in note for note in other.notes)
    finally:
        folder.chmod(0o700)


@pytest.mark.quick_cases(3)
@pytest.mark.fault("cache-damage")
@pytest.mark.parametrize("hashed_on_opening", [2**23, 0], ids=["small", "large"])
@pytest.mark.parametrize("place", [0, 70, -3])
def test_damage_is_told_and_mended(counting, monkeypatch, hashed_on_opening, place):
    """In any file of any entry, at its beginning (the header of an array), a little later, and near its end."""
    built = everything(prepare(counting, BPE))
    monkeypatch.setattr(cache_module, "HASHED_ON_OPENING", hashed_on_opening)
    files = [file for file in cache_folder(counting.cache_dir).glob("*-*/*") if file.name != MANIFEST]
    assert len(files) >= 20
    for file in files:
        contents = bytearray(file.read_bytes())
        contents[place % len(contents)] ^= 1
        file.write_bytes(contents)
        mended = prepare(counting, BPE)
        (note,) = [note for note in mended.notes if "built again" in note]
        assert str(file) in note
        mended.notes.remove(note)
        assert everything(mended) == built


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a bit": lambda data, dice: with_another_byte(data, dice.randrange(len(data)), 1 << dice.randrange(8)),
    "cut": lambda data, dice: data[: dice.randrange(len(data))],
    "zeroed": lambda data, dice: data[: len(data) // 2] + bytes(len(data) - len(data) // 2 - 1) + b"\1",
    "longer": lambda data, dice: data + dice.randbytes(dice.randint(1, 99)),
    "random": lambda data, dice: dice.randbytes(len(data)),
}


def with_another_byte(data: bytes, place: int, change: int) -> bytes:
    return data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]


@pytest.mark.fault("cache-damage")
@pytest.mark.parametrize("n_damages", [15, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.torture])])
def test_no_damage_of_the_cache_is_silent(counting, monkeypatch, figure, n_damages):
    """Of one file or several at once, manifests too, hashed at once or later; or files are missing."""
    built, failed = everything(prepare(counting, BPE)), []
    for number in range(n_damages):
        dice = random.Random(number)
        monkeypatch.setattr(cache_module, "HASHED_ON_OPENING", dice.choice((2**23, 0)))
        files = [file for file in cache_folder(counting.cache_dir).glob("*-*/*") if file.stat().st_size]
        touched = dice.sample(sorted(files), dice.choice((1, 1, 1, 3)))
        for file in touched:
            # Without its manifest an entry is none: it is built, and there is nothing to say.
            kind = dice.choice([*DAMAGES, *(["missing"] if file.name != MANIFEST else [])])
            if kind == "missing":
                file.unlink()
            else:
                file.write_bytes(DAMAGES[kind](file.read_bytes(), dice))
        began = time.process_time()
        mended = prepare(counting, BPE)
        told = [note for note in mended.notes if "built again" in note]
        mended.notes[:] = [note for note in mended.notes if note not in told]
        whole = everything(mended) == built
        if not told or not whole or time.process_time() - began > 10:
            failed.append(f"{number}: {touched}, {told}, {'the same' if whole else 'other data'}")
    figure("damages of the cache of data, named and built anew", n_damages, len(failed))
    assert failed == []


def test_two_damaged_entries_are_both_mended(counting, monkeypatch):
    monkeypatch.setattr(cache_module, "HASHED_ON_OPENING", 0)
    built = everything(prepare(counting))
    for file in cache_folder(counting.cache_dir).glob("t*-*/train.*"):
        file.write_bytes(file.read_bytes()[:-1] + b"\7")
    mended = prepare(counting)
    mended.notes[:] = [note for note in mended.notes if "built again" not in note]
    assert everything(mended) == built


def test_progress_says_how_long_it_takes(counting, monkeypatch):
    monkeypatch.setattr("dtl.base.progress.SECONDS_BETWEEN_REPORTS", 0)
    monkeypatch.setattr("dtl.data.encode.CHUNK_CHARACTERS", 10)
    lines: list[str] = []
    prepare_data(counting, BYTE, 17, 3, lines.append)
    assert any(line.startswith("reading counting: train, ") for line in lines)
    assert any(re.search(r"^tokens of .* [1-9]\d?%, \d+:\d\d left$", line) for line in lines)


def test_a_single_long_text_shows_how_much_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("dtl.base.progress.SECONDS_BETWEEN_REPORTS", 0)
    monkeypatch.setattr("dtl.data.tokenizers.tokenizer.GROUP_CHARS", 5000)
    monkeypatch.setattr("dtl.data.tokenizers.tokenizer.pieces.__defaults__", (1000,))
    (tmp_path / "book.txt").write_text("a word and another. " * 2000)
    lines: list[str] = []
    data = DataConfig(sources={"text": SourceConfig(kind="text", path=str(tmp_path / "book.txt"))})
    prepare_data(data, TokenizerConfig(kind="bpe", vocab_size=300), 17, 3, lines.append)
    for what in ("tokenizer bpe, ", "tokens of "):
        assert sum(line.startswith(what) and " k of 3" in line for line in lines) > 3, what


def test_reading_and_learning_a_vocabulary_show_how_much_is_left(tmp_path, monkeypatch):
    """Of files whose size is that of their text; of compressed ones nobody knows it before."""
    monkeypatch.setattr("dtl.base.progress.SECONDS_BETWEEN_REPORTS", 0)
    rows = "".join(json.dumps({"text": f"document {n} is about the number {n}"}) + "\n" for n in range(200))
    (tmp_path / "known.jsonl").write_text(rows)
    (tmp_path / "unknown.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    for name in ("known.jsonl", "unknown.jsonl.gz"):
        lines: list[str] = []
        sources = {"text": SourceConfig(kind="text", path=str(tmp_path / name))}
        prepare_data(DataConfig(sources=sources), TokenizerConfig(kind="bpe", vocab_size=300), 17, 3, lines.append)
        told = {what: [line for line in lines if line.startswith(what)] for what in ("reading", "tokenizer bpe, ")}
        left = {what: sum(bool(re.search(r"\d%, \d+:\d\d left$", line)) for line in told[what]) for what in told}
        assert left["tokenizer bpe, "] > 100
        assert (left["reading"] > 100) == (name == "known.jsonl") and len(told["reading"]) > 100
