"""`python -m dtl.prepare`: what it makes is what a run finds, and its report says what became of the text."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dtl import prepare
from dtl.commandline.command import load_config
from dtl.commandline.compose import compose
from dtl.commandline.overrides import to_hydra_syntax
from dtl.config import typed_as
from dtl.data import collect
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.prepare import prepare_data
from dtl.data.text_report import with_short_origins


@pytest.fixture
def texts(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that count as large, with something to clean, a duplicate, an empty text and leftovers of markup."""
    monkeypatch.setattr(collect, "SMALL_BYTES", 0)
    texts = [f"text number {number} () is about\u00a0{number} things." for number in range(90)]
    texts += [texts[7], " \n ", "see [[File:a.png]] and formula_12 or formula_3 \x1b[31m"]
    file = elsewhere / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["dtl-prepare", "data=text", "tokenizer=byte", "data.cache_dir=cache", *arguments])
    code = 0
    try:
        prepare.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_report_says_what_became_of_the_text(texts, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "data.path=texts.jsonl")
    assert code == 0, err
    assert "train: 93 documents read, 91 kept, dropped: 1 empty, 1 duplicate of 32 characters; " in out
    assert "'text number 0 () is about\\xa00 things.'" in out and "'text number 0 is about 0 things.'" in out
    assert "2 x 'formula_N', first in 'see [[File:a.png]] and formula_12" in out and "1 x '[['" in out
    assert "tokens of a training document: 5 %: " in out and "1.000 tokens a byte" in out
    assert "In the cache" in out and "cache: text." in out and "\x1b" not in out
    assert sorted(file.name for file in texts.parent.iterdir()) == ["cache", "texts.jsonl"]


def test_rows_of_a_table_are_leftovers(elsewhere, monkeypatch, capsys):
    (elsewhere / "rows.txt").write_text("One.\n\n|- |7||Vann||colspan=2|x\n\nTwo -{a}- three.\n" * 3)
    code, out, _ = call(monkeypatch, capsys, "data.path=rows.txt")
    assert code == 0 and "3 x '||'" not in out
    assert all(mark in out for mark in ("x '||'", "colspan=", "'-{'"))


def test_a_run_finds_what_was_prepared(texts, monkeypatch, capsys):
    call(monkeypatch, capsys, "data.path=texts.jsonl", "data.seq_len=32")
    before = sorted((texts.parent / "cache").iterdir())
    monkeypatch.setattr("dtl.data.local.files.LocalFiles.records", lambda *arguments: pytest.fail("read again"))
    data = DataConfig(
        sources={"text": SourceConfig("text")},
        path=str(texts),
        cache_dir="cache",
        validation_fraction=0.05,
        test_fraction=0.05,
    )
    prepared = prepare_data(data, TokenizerConfig(kind="byte"), 32, 1337)
    assert sorted((texts.parent / "cache").iterdir()) == before
    report = prepared.report["text"]
    assert sum(report[split].documents for split in ("train", "validation", "test")) == 91


@pytest.mark.parametrize("name", ["out.jsonl", "out.txt"])
def test_the_cleaned_text_is_exported(texts, name, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "data.path=texts.jsonl", f"data.export_text={name}")
    assert code == 0 and f"{name}: 91 documents." in out, err
    content = (texts.parent / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        records = [json.loads(line) for line in content.splitlines()]
        written = [record["text"] for record in records]
        assert {record["split"] for record in records} == {"train", "validation", "test"}
    else:
        written = content.split("\n\n\n")[:-1]
    assert sorted(written)[1:] == sorted(f"text number {n} is about {n} things." for n in range(90))
    code, _, err = call(monkeypatch, capsys, "data.path=texts.jsonl", f"data.export_text={name}")
    assert code == 2 and "already exists" in err
    assert (texts.parent / name).read_text(encoding="utf-8") == content


def test_an_export_into_no_folder_is_refused_at_once(texts, monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "data.path=texts.jsonl", "data.export_text=nowhere/out.txt")
    assert code == 2 and "there is no folder nowhere" in err
    assert not (texts.parent / "cache").exists()


def test_training_texts_are_shown_as_the_model_sees_them(elsewhere, monkeypatch, capsys):
    pairs = [{"messages": [{"role": "user", "content": f"Who is {n}?"}, {"role": "assistant", "content": f"A{n}"}]}
             for n in range(31)]  # fmt: skip
    Path("chats.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for given, shown in (([], 1), (["preview=3"], 3), (["preview=0"], 0)):
        code, out, _ = call(monkeypatch, capsys, "data=qa", "data.qa.path=chats.jsonl", *given)
        assert code == 0 and "read as chats: 31 with one turn as pairs" in out
        assert out.count("a training text as the model sees it") == out.count("    Answer:« A") == shown
        assert out.count("<|endoftext|>»\n") == shown
    code, _, error = call(monkeypatch, capsys, "data=qa", "preview=-1")
    assert code == 2 and "preview=-1" in error


def test_the_questions_that_ship_with_dtl_are_reported_and_not_cached(elsewhere, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "data=qa")
    assert code == 0, err
    assert "quick to prepare again" in out and not (elsewhere / "cache").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=my_pairs", "data.path=my texts/a.jsonl", "optimizer.lr=1e-3"],
        ["experiment=text_cpu", "data.path=texts.jsonl", "seed=7"],
        ["experiment=muon_vs_adamw", "data.max_samples=97"],
    ],
)
def test_the_data_of_a_recipe_is_that_of_its_run(words):
    run = compose(*words)
    made = prepare.prepare_arguments([to_hydra_syntax(word, prepare.COMMAND) for word in [*words, "preview=3"]])
    composed = load_config(prepare.COMMAND, made)
    config = typed_as(
        prepare.PrepareConfig, OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    )
    assert (config.preview, config.seed, config.seq_len) == (3, run.seed, run.seq_len)
    assert config.tokenizer == run.tokenizer
    assert asdict(config.data) == asdict(run.data) | {"seq_len": run.seq_len, "export_text": None}


def test_a_recipe_whose_data_is_yours_to_give(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dtl-prepare", "experiment=my_pairs", "preview=3"])
    with pytest.raises(SystemExit):
        prepare.main()
    line = "  python -m dtl.prepare experiment=my_pairs data.qa.path=my_pairs.jsonl preview=3"
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_a_note_names_a_path_that_was_shown_by_its_last_part():
    read = [["data.qa.path=a (1)/long/pairs.jsonl", "read as"], ["data.path=texts/of/mine/"], ["the facts"]]
    notes = [
        "data.qa.path=a (1)/long/pairs.jsonl: 3 left out.",
        "a (1)/long/pairs.jsonl: 2 x a NUL. Use: data.qa.path=a (1)/long/pairs.jsonl",
        "texts/of/mine/b/c.txt: not UTF-8.",
        "data.path=texts/of/mine/: 7 files.",
        "texts/of/mine2: another. the facts: no path.",
    ]
    assert with_short_origins(notes, read) == [
        "pairs.jsonl: 3 left out.",
        "pairs.jsonl: 2 x a NUL. Use: data.qa.path=a (1)/long/pairs.jsonl",
        "mine/b/c.txt: not UTF-8.",
        "mine: 7 files.",
        "texts/of/mine2: another. the facts: no path.",
    ]
    assert with_short_origins(notes[:1], [*read, ["data.wiki.path=b/pairs.jsonl"]]) == notes[:1]
