"""Sources: what is read from files, folders and the hub, how it is split, and what is said when it cannot be."""

import bz2
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dtl.data.config import DataConfig, HeldOut, SourceConfig, TokenizerConfig
from dtl.data.documents import Document
from dtl.data.local import files
from dtl.data.local.files import LocalFiles, split_of
from dtl.data.prepare import prepare_data
from dtl.data.sources import plan_sources
from dtl.data.split import HoldOut, split_hash
from dtl.errors import ConfigError, DataError
from dtl.registry import SOURCES


def texts_of(path: Path, kind: str = "text", seed: int = 0, **settings: object) -> dict[str, list[str]]:
    config = DataConfig(sources={kind: SourceConfig(kind)}, path=str(path), **settings)  # pyright: ignore
    (source,) = (plan.source for plan in plan_sources(config, seed))
    return {split: [document.text for document in documents] for split, documents in source.splits().items()}


def notes_of(path: Path) -> list[str]:
    (source,) = (plan.source for plan in plan_sources(DataConfig(sources={"t": SourceConfig("text", str(path))}), 0))
    for documents in source.splits().values():
        list(documents)
    return source.notes()


def write_jsonl(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict], row_group_size: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def test_every_kind_of_file_is_read_in_sorted_order_without_hidden_ones(tmp_path):
    (tmp_path / "b.txt").write_text("from txt")
    write_jsonl(tmp_path / "a" / "x.JSONL", {"text": "object"}, "string", {"text": None, "id": 3})
    write_parquet(tmp_path / "c.parquet", [{"id": 1, "text": "row"}])
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "c.txt").write_text("no")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert texts_of(tmp_path) == {"train": ["object", "string", "", "from txt", "row"]}
    assert texts_of(tmp_path / "c.parquet") == {"train": ["row"]}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00008.parquet", "train"),
        ("validation.jsonl", "validation"),
        ("wiki.valid.txt", "validation"),
        ("val_1.txt", "validation"),
        ("test/a.txt", "test"),
        ("Train/valid_moves.txt", "train"),
        ("a_test/train.txt", "train"),
        ("trainers.txt", None),
        ("latest.txt", None),
    ],
)
def test_names_that_say_a_split(name, split):
    assert split_of(Path(name)) == split


def test_named_splits_are_used_when_there_is_one_to_train_on(tmp_path):
    for name in ("train-1.txt", "validation.txt", "test.txt", "sample.txt"):
        (tmp_path / name).write_text(name)
    expected = {"train": ["train-1.txt"], "validation": ["validation.txt"], "test": ["test.txt"]}
    assert texts_of(tmp_path) == expected
    assert "sample.txt" in notes_of(tmp_path)[0]
    (tmp_path / "train-1.txt").unlink()
    assert texts_of(tmp_path) == {"train": ["sample.txt", "test.txt", "validation.txt"]}


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "none", ["data.path=", "no such file", "Found in"]),
        (lambda p: p / "b.pdf", ["no such file", "a.pdf. Did you mean data.path=", "/a.pdf?"]),
        (lambda p: p, ["no .txt, .jsonl", "a.pdf"]),
        (lambda p: p / "a.pdf", ["is a PDF, which is not supported. Give .txt", ".jsonl"]),
        (
            lambda p: (p / "a.pdf").rename(p / "a.txt"),
            ["is a PDF, which is not supported, though its name ends in .txt"],
        ),
        (lambda p: write_jsonl(p / "q.jsonl", {"question": "?", "body": 3}), ["q.jsonl:1", "'text'", "question, body"]),
        (lambda p: write_parquet(p / "q.parquet", [{"title": "t", "content": "c"}]), ["'text'", "title, content"]),
        (lambda p: write_jsonl(p / "n.jsonl", {"text": "a"}, {"text": ["a"]}), ["n.jsonl:2", "list"]),
        (lambda p: write_jsonl(p / "n.json", {"text": "a"}, [["a"]]), ["n.json:2", "not a JSON object"]),
        (lambda p: write_jsonl(p / "n.jsonl", ["a"]), ["n.jsonl:1", "not a JSON object"]),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, make, words):
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError) as caught:
        texts_of(make(tmp_path))
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


def test_a_near_miss_is_named_as_it_is_to_be_typed(tmp_path, monkeypatch):
    (tmp_path / "my texts").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "my texts" / "pairs.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path / "here")
    for typed in ("../my texts/pair.jsonl", "../my text/pairs.jsonl", "../my texs"):
        meant = "../my texts" if typed.endswith("texs") else "../my texts/pairs.jsonl"
        with pytest.raises(DataError, match=rf"Found in \.\..*: .* Did you mean 'data\.path={meant}'\?$") as caught:
            LocalFiles(typed, "data.path")
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(DataError, match=r"^data\.path=a\.txt: .* Found in this folder: nothing\.$"):
        LocalFiles("a.txt", "data.path")
    for name in ("CONTRIBUTING.md", "Makefile", "README.txt", "pairs.csv"):
        Path(name).touch()
    with pytest.raises(DataError, match=r"this folder: pairs\.csv, CONTRIBUTING\.md, Makefile, README\.txt\."):
        LocalFiles("a/b.txt", "data.path")
    if os.name != "nt":
        for typed, hint in (("C:\\Users\\me\\pairs.csv", "(in WSL C: is /mnt/c)."), ("my\\pairs.csv", "pairs.csv.")):
            with pytest.raises(DataError, match="path of Windows; here folders are separated by /") as caught:
                LocalFiles(typed, "data.path")
            assert str(caught.value).endswith(hint)


@pytest.mark.counted("broken inputs of data, read right or told")
def test_damaged_files_are_named(tmp_path):
    cut = tmp_path / "cut.jsonl"
    cut.write_text('{"text": "whole"}\n{"text": "cut o')
    with pytest.raises(DataError, match=r"cut.jsonl:2: the last line is cut off: not JSON"):
        texts_of(cut)
    rows = write_parquet(tmp_path / "a.parquet", [{"text": "abc" * n} for n in range(500)])
    raw = rows.read_bytes()
    for damaged in (b"", raw[:-9], raw[:50] + b"\xff" * 60 + raw[110:]):
        rows.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a.parquet"):
            texts_of(rows)
    with pytest.raises(DataError, match=r"data.path=''"):
        texts_of("")  # pyright: ignore


@pytest.mark.counted("broken inputs of data, read right or told")
def test_a_missing_path_is_known_before_anything_is_read(tmp_path):
    config = DataConfig(sources={"a": SourceConfig("text", str(tmp_path / "gone")), "b": SourceConfig("text", "x")})
    with pytest.raises(DataError, match=r"data.sources.a.path="):
        plan_sources(config, 0)


@pytest.mark.counted("broken inputs of data, read right or told")
def test_an_excerpt_is_drawn_from_everywhere_by_the_seed(tmp_path):
    for part in range(3):
        rows = [{"text": f"{part} {row}"} for row in range(20)]
        write_parquet(tmp_path / f"{part}.parquet", rows, row_group_size=5)
    whole = texts_of(tmp_path)["train"]
    one, same, other = (texts_of(tmp_path, max_samples=7, seed=seed)["train"] for seed in (1, 1, 2))
    assert one == same != other
    assert sorted(one) == sorted(other) == sorted(whole) and whole[0] == "0 0" != one[0]
    assert one != whole


@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_an_excerpt_of_one_large_file_is_drawn_from_all_of_it(tmp_path, monkeypatch, suffix):
    """Of lines that begin in ranges of bytes, each once, and of the texts between separators."""
    monkeypatch.setattr("dtl.data.local.files.PART_BYTES", 101)
    rows = [f"{'é' * (row % 7)} {row}" for row in range(199)]
    if suffix == "jsonl":
        file = write_jsonl(tmp_path / "a.jsonl", *({"text": row} for row in rows))
    else:
        file = tmp_path / "a.txt"
        file.write_text("".join(f"{row}\n<|endoftext|>\n" for row in rows), encoding="utf-8")
    whole = texts_of(file)["train"]
    one, same, other = (texts_of(file, max_samples=7, seed=seed)["train"] for seed in (1, 1, 2))
    assert one == same != other and sorted(one) == sorted(other) == sorted(whole) and len(whole) == 199
    drawn = [whole.index(text) for text in one[:17]]
    assert min(drawn) < 50 and max(drawn) > 150  # read first: not the beginning of the file


def test_wiki_documents_begin_with_their_title(tmp_path):
    rows = [
        {"id": "1", "url": "u", "title": "Ada Lovelace", "text": "Ada was a mathematician."},
        {"id": "2", "url": "u", "title": "", "text": "No title."},
        {"id": "3", "url": "u", "title": "Empty", "text": " "},
    ]
    expected = {"train": ["Ada Lovelace\n\nAda was a mathematician.", "No title.", " "]}
    assert texts_of(write_parquet(tmp_path / "w.parquet", rows), kind="wiki") == expected
    assert texts_of(write_jsonl(tmp_path / "w.jsonl", *rows), kind="wiki") == expected


ROWS = [{"id": 1, "Body": "first"}, {"id": 2, "Body": "second"}]


@pytest.mark.parametrize("kind", ["text", "wiki"])
@pytest.mark.parametrize("column", ["Body", "body"])
def test_the_text_may_be_in_a_column_of_another_name(tmp_path, kind, column):
    write_jsonl(tmp_path / "a.jsonl", *ROWS)
    (tmp_path / "b.csv").write_text("id,Body\n1,first\n2,second\n")
    write_parquet(tmp_path / "c.parquet", ROWS)
    config = DataConfig(sources={"mine": SourceConfig(kind, str(tmp_path), column=column)})
    config.validate()
    (plan,) = plan_sources(config, 0)
    assert [document.text for document in plan.source.splits()["train"]] == ["first", "second"] * 3


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("kind", ["text", "wiki"])
@pytest.mark.parametrize("column", [None, "boddy"])
def test_a_column_that_is_not_there_is_named_with_the_setting(tmp_path, kind, column):
    for file in (write_jsonl(tmp_path / "a.jsonl", *ROWS), write_parquet(tmp_path / "c.parquet", ROWS)):
        (plan,) = plan_sources(DataConfig(sources={"mine": SourceConfig(kind, str(file), column=column)}), 0)
        with pytest.raises(DataError, match=rf"no field '{column or 'text'}'\. Found: id, Body\.") as caught:
            list(plan.source.splits()["train"])
        assert str(caught.value).endswith("To read another one: data.sources.mine.column=Body.")


def test_a_column_is_rejected_where_there_is_none(tmp_path):
    (tmp_path / "dump.xml").write_text('<mediawiki xml:lang="en">\n</mediawiki>')
    with pytest.raises(DataError, match=r"data\.sources\.w\.column=body: a MediaWiki dump has no columns"):
        plan_sources(DataConfig(sources={"w": SourceConfig("wiki", str(tmp_path / "dump.xml"), column="body")}), 0)
    with pytest.raises(ConfigError, match=r"q\.column=body: is for one column .*data\.qa\.columns="):
        DataConfig(sources={"q": SourceConfig("qa", "pairs.jsonl", column="body")}).validate()


@pytest.mark.parametrize("kind", ["text", "wiki"])
@pytest.mark.parametrize(("others", "advice"), [([], "Leave the setting out."), (["a.jsonl"], "or give a folder")])
def test_a_column_of_a_plain_text_is_rejected_before_it_is_read(tmp_path, kind, others, advice):
    (tmp_path / "b.txt").write_text("Some text.")
    for name in others:
        write_jsonl(tmp_path / name, *ROWS)
    config = DataConfig(sources={"mine": SourceConfig(kind, str(tmp_path), column="Body")})
    with pytest.raises(DataError, match=r"data\.sources\.mine\.column=Body: .*b\.txt is a plain text") as caught:
        plan_sources(config, 0)
    assert advice in str(caught.value)


@pytest.mark.parametrize("column", ["", " "])
def test_an_empty_column_is_rejected(column):
    with pytest.raises(ConfigError, match=r"data\.sources\.t\.column=' ?': an empty name"):
        DataConfig(sources={"t": SourceConfig("text", "x", column=column)}).validate()


# Documents in one text, and markers that are letters to the model.


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("mark", ["<|endoftext|>", "  <eos> ", "</s>", "[SEP]"])
def test_lines_that_end_a_text_separate_documents(tmp_path, suffix, mark):
    text = f"One {mark}.\n\nMore.\r\n{mark}\r\n{mark}\nTwo.\n{mark}"
    (tmp_path / f"a{suffix}").write_text(text if suffix == ".txt" else json.dumps({"text": text}), newline="")
    (tmp_path / "b.txt").write_text("Three.\n")
    assert texts_of(tmp_path) == {"train": [f"One {mark}.\n\nMore.\n", "Two.\n", "Three.\n"]}
    (note,) = (note for note in notes_of(tmp_path) if "separated" in note)
    assert f"one text is separated by lines of {mark.strip()}: 2 documents (data.separator=" in note
    (whole, _) = texts_of(tmp_path, separator="")["train"]
    assert whole == text.replace("\r\n", "\n")


def test_a_text_is_separated_by_what_the_setting_says(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n---\nTwo a---b.\n---\n<|endoftext|>\n")
    assert texts_of(tmp_path, separator="\\n---\\n") == {"train": ["One.", "Two a---b.", "<|endoftext|>\n"]}
    assert texts_of(tmp_path, separator="---")["train"][:2] == ["One.\n", "\nTwo a"]


@pytest.mark.counted("broken inputs of data, read right or told")
def test_lines_of_signs_in_the_only_text_are_reported_with_the_setting_that_splits_there(tmp_path):
    (tmp_path / "a.txt").write_text("\n* * *\n".join(f"Text {number}.\n---\nMore." for number in range(7)))
    (note,) = notes_of(tmp_path)
    assert "one text, with 7 lines of ---." in note and "'data.separator=\\n---\\n' splits there." in note
    assert len(texts_of(tmp_path, separator="\\n---\\n")["train"]) == 8
    (tmp_path / "b.txt").write_text("Another.")
    assert notes_of(tmp_path) == []


def test_a_separator_and_what_is_cut_are_checked():
    with pytest.raises(ConfigError, match=r"data\.separator=x: separates documents in files of data=text"):
        DataConfig(sources={"q": SourceConfig("qa", "a.csv")}, separator="x").validate()
    with pytest.raises(ConfigError, match=r"data\.remove=\['a', ''\]: an empty text"):
        DataConfig(sources={"t": SourceConfig("text", "a.txt")}, remove=["a", ""]).validate()


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    ("text", "markers", "ways"),
    [
        ("<|im_start|>{}<|im_end|>", "<|im_end|>, <|im_start|>", ["'data.remove=["]),
        ("<|im_start|>user\n{}?<|im_end|>\n<|im_start|>assistant\nYes", "<|im_start|>", ["data=qa", "data.remove"]),
        ("[INST] {} [/INST] Yes", "[/INST], [INST]", ["data=qa", "data.remove"]),
        ("<start_of_turn>user\n{}", "<start_of_turn>", ["data.remove"]),
        ("### Instruction:\n{}\n### Response:\nYes", "### Instruction:", ["data=qa", "data.remove"]),
        ("{}.<|endoftext|> More.", "<|endoftext|>", ["'data.separator=<|endoftext|>'", "data.remove"]),
        ("{}</s>", "</s>", ["'data.separator=</s>'", "data.remove"]),
        ("USER: {}? ASSISTANT: Yes</s>", "</s>", ["data=qa", "data.remove"]),
        ("<|NEW_TOKEN|>{}<｜end▁of▁text｜>", "<|NEW_TOKEN|>, <｜end▁of▁text｜>", ["data.remove"]),  # noqa: RUF001
        ("<s>[INST] <<SYS>>Be kind.<</SYS>> {} [/INST] Yes</s>", '"[/INST]", "[INST]"'.replace(" ", ""), ["data=qa"]),
    ],
)
def test_markers_in_a_text_are_reported_with_the_settings_that_read_them(tmp_path, text, markers, ways):
    texts = [text.format(f"text number {number}") for number in range(23)] + [
        "a </s> b <tag> [INSTALL] |x|",
        "## Title",
    ]
    write_jsonl(tmp_path / "a.jsonl", *texts)
    config = DataConfig(sources={"t": SourceConfig("text")}, path=str(tmp_path), validation_fraction=0.2)
    (note,) = (note for note in prepare_data(config, TokenizerConfig("byte"), 32, 0).notes if "markers" in note)
    assert "23 of 25 documents" in note and all(marker in note for marker in markers.split(", "))
    found = [note.index(way) for way in ways]
    assert found == sorted(found) and ("data=qa" in note) == ("data=qa" in ways)


def test_what_the_setting_says_is_cut_from_texts_and_not_from_questions(tmp_path):
    write_jsonl(tmp_path / "t.jsonl", *(f"<|im_start|>text {number} (b)\n<|im_end|>" for number in range(23)))
    write_jsonl(tmp_path / "q.jsonl", *({"question": f"{n}?", "answer": "<|im_end|>"} for n in range(23)))
    sources = {"t": SourceConfig("text", str(tmp_path / "t.jsonl")), "q": SourceConfig("qa", str(tmp_path / "q.jsonl"))}
    remove = ["<|im_start|>", "<|im_end|>", "(b)\\n"]
    config = DataConfig(sources=sources, validation_fraction=0.2, remove=remove)
    data = prepare_data(config, TokenizerConfig("byte"), 32, 0)
    texts = {name: data.tokenizer.decode(splits["train"].tokens.tolist()) for name, splits in data.rows.items()}
    assert "text 8" in texts["t"] and not any(part in texts["t"] for part in ("<|im", "(b)", "\n"))
    assert "Answer: <|im_end|>" in texts["q"]


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("name", ["dataset_infos.json", "croissant.json", "Config.json", "metadata.json"])
def test_files_about_the_data_are_not_read(tmp_path, name):
    write_jsonl(tmp_path / "data" / "a.jsonl", {"text": "one"})
    (tmp_path / name).write_text('{"default": {"splits": []}}')
    assert texts_of(tmp_path) == {"train": ["one"]}
    assert f"files about the data, not read: {name}." in notes_of(tmp_path)[-1]
    (tmp_path / "data" / "a.jsonl").rename(tmp_path / "data" / "state.arrow")
    with pytest.raises(DataError, match=r"no \.txt.*Found: state\.arrow.*to_parquet"):
        texts_of(tmp_path)
    (tmp_path / name).write_text('{"text": "the only file"}')
    (tmp_path / "data" / "state.arrow").unlink()
    assert texts_of(tmp_path) == {"train": ["the only file"]}


WIKI_EXTRACTOR = """<doc id="7" url="https://x.example/?curid=7" title="Lake &quot;Vann&quot;">
Lake "Vann"

A lake &amp; a town.

It is deep.
</doc>
<doc id="8" url="https://x.example/?curid=8" title="Empty">
Empty

</doc>
"""


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("packing", ["", ".bz2"])
@pytest.mark.parametrize("as_json", [False, True])
def test_folders_of_wiki_extractor(tmp_path, packing, as_json):
    raw = WIKI_EXTRACTOR.encode()
    if as_json:
        records = [
            {"id": "7", "title": 'Lake "Vann"', "text": "A lake & a town.\n\nIt is deep."},
            {"id": "8", "text": ""},
        ]
        raw = "".join(json.dumps(record) + "\n" for record in records).encode()
    for number in range(2):
        file = tmp_path / "AA" / f"wiki_0{number}{packing}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bz2.compress(raw) if packing else raw)
    (tmp_path / "AA" / "wiki.log").write_text("no")
    article = 'Lake "Vann"\n\nA lake & a town.\n\nIt is deep.'
    assert texts_of(tmp_path, "wiki") == {"train": [article, ""] * 2}
    in_file = article if not as_json else article.partition("\n\n")[2]
    assert texts_of(tmp_path) == {"train": [in_file, ""] * 2}
    if not as_json:
        assert any("2 files of WikiExtractor" in note for note in notes_of(tmp_path))
        (tmp_path / "all.txt").write_text(WIKI_EXTRACTOR)
        assert texts_of(tmp_path / "all.txt", "wiki") == {"train": [article, ""]}


def test_the_wrong_folder_is_rejected_before_all_of_it_is_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_OTHERS", 30)
    monkeypatch.setattr(files, "MAX_AT_HOME", 20)
    for folder in ("code", "texts", ".cache"):
        (tmp_path / folder).mkdir()
    for number in range(40):
        (tmp_path / "code" / f"{number}.py").touch()
        (tmp_path / "texts" / f"{number}.txt").write_text(f"Text {number}.")
        (tmp_path / ".cache" / f"{number}.bin").touch()
    assert len(texts_of(tmp_path / "texts")["train"]) == 40
    with pytest.raises(
        DataError, match=r"data\.path=.*code: more than 30 files, and 0 of them .* Give the folder in it"
    ):
        texts_of(tmp_path / "code")
    monkeypatch.setenv("HOME", str(tmp_path / "texts"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "texts"))
    for path in (tmp_path, "~", tmp_path / "texts"):
        with pytest.raises(
            DataError, match=r"data\.path=.*: a home folder, .* more than 20 files. Give the folder in it"
        ):
            texts_of(path)


def test_no_hub_is_said_before_its_library_is_imported(monkeypatch, tmp_path):
    for library in ("datasets", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, library, None)  # importing it would raise
    config = DataConfig(sources={"wiki": SourceConfig("wiki")}, cache_dir=str(tmp_path))
    expected = r"wikimedia/wikipedia \(20231101.en\): .* HF_HUB_OFFLINE=1.\n.*wiki.path=FOLDER"
    with pytest.raises(DataError, match=expected):
        plan_sources(config, seed=5)


def test_a_source_of_ones_own_is_chosen_by_name(monkeypatch):
    monkeypatch.setattr(SOURCES, "_parts", dict(SOURCES._parts))

    @SOURCES.register("poems")
    class Poems:
        origin = "poems"

        def __init__(self, name, source, data, seed):
            self.path = source.path

        def splits(self):
            return {"train": [Document(f"a poem from {self.path}")]}

        def notes(self):
            return []

    config = DataConfig(sources={"mine": SourceConfig("poems", path="here")})
    config.validate()
    assert plan_sources(config, 0)[0].source.splits() == {"train": [Document("a poem from here")]}


def hold_out(documents: Iterable[Document], fraction: float) -> tuple[list[Document], list[Document], str | None]:
    """Training and validation documents, and a note where the split is not the plain one; see `HoldOut`."""
    holder = HoldOut(HeldOut(fraction, 0.0))
    sides: dict[str, list[Document]] = {"train": [], "validation": []}
    for document in documents:
        sides[holder.split_for(document)].append(document)
    changed, note = holder.finalize(sides)
    train, validation = (list((changed or sides)[side]) for side in ("train", "validation"))
    return train, validation, note


def test_hold_out_does_not_depend_on_order_or_company():
    documents = [Document(f"text number {number}") for number in range(2003)]
    train, validation, note = hold_out(documents, 0.1)
    assert note is None and 150 < len(validation) < 250
    assert sorted(d.text for d in train + validation) == sorted(d.text for d in documents)
    again, held_out, _ = hold_out(documents[::-1][:1000], 0.1)
    assert {d.text for d in held_out} < {d.text for d in validation}
    assert not {d.text for d in again} & {d.text for d in validation}
    # Never to change: documents would cross from training to validation between versions.
    assert [split_hash(d) for d in documents[:2]] == [0.17083838112982264, 0.015087007435532485]


def test_a_question_with_two_answers_stays_on_one_side():
    asked = "Question: Why?\nAnswer:"
    hashes = {split_hash(Document(f"{asked} {answer}", len(asked))) for answer in ("Because.", "Why not?")}
    assert len(hashes) == 1


def test_few_documents_give_one_to_validation():
    train, validation, note = hold_out([Document(text) for text in "abc"], 1e-9)
    assert len(train) == 2 and len(validation) == 1 and note is not None


@pytest.mark.parametrize(
    ("text", "train"),
    [
        ("one\ntwo\nthree\nfour\nfive\n", "one\ntwo\nthree\n"),
        ("one two three four five ", "one two three"),
        ("onetwothreefourfive!", "onetwothreefour"),
    ],
)
def test_a_single_text_is_split_near_its_end(text, train):
    (kept,), (held_out,), note = hold_out([Document(text)], 0.25)
    assert kept.text == train and kept.text + held_out.text == text
    assert note is not None and "one text" in note


def test_a_text_too_short_to_split_stays_whole():
    assert hold_out([Document("a")], 0.5)[1] == []
    assert hold_out([], 0.5) == ([], [], None)


def test_reading_a_file_twice_gives_the_same(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", *({"text": str(number)} for number in range(5)))
    files = LocalFiles(str(tmp_path), "data.path")
    assert list(files.records("train")) == list(files.records("train"))
