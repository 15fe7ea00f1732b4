"""Datasets of the hub, through the real libraries from a stand-in on this machine: pinned, cached, never waited for."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Hub, serving

from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document
from dtl.data.hub.texts import remember, remembered, shuffled
from dtl.data.sources import plan_sources
from dtl.errors import ConfigError, DataError

READER = Path(__file__).with_name("hub_reader.py")
Read = Callable[..., dict[str, Any]]


def parquet(rows: list[dict[str, Any]], row_group_size: int = 7) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def stories(first: int, n: int) -> list[dict[str, Any]]:
    return [{"id": number, "text": f"Story {number}: a fox and {number} geese."} for number in range(first, first + n)]


def told(rows: list[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows]


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def environment(port: int, home: Path) -> dict[str, str]:
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "no_proxy": "*"}
    return {**os.environ, **own}


@pytest.fixture(scope="module")
def reader(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """The process that reads: the hub's libraries need seconds to be imported, so one for all tests."""
    home = tmp_path_factory.mktemp("hf")
    command = [sys.executable, str(READER)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(port, home), **pipes) as process:
        yield process
        process.stdin.close()  # pyright: ignore
    assert process.returncode == 0


@pytest.fixture
def read(reader: subprocess.Popen[str], tmp_path: Path) -> Read:
    def ask(path: str | None, data: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
        named = ("subset", "column", "rows", "splits", "revision", "kind")
        source = {"path": path} | {name: request.pop(name) for name in named if name in request}
        asked = {"source": source, "data": data or {}, "cache": str(tmp_path / "cache"), **request}
        assert reader.stdin is not None and reader.stdout is not None
        reader.stdin.write(json.dumps(asked) + "\n")
        reader.stdin.flush()
        return json.loads(reader.stdout.readline())

    return ask


@pytest.fixture
def hub() -> Hub:
    return Hub()


def cached_texts(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "dtl-cache").glob("text-*/manifest.json"))


def test_a_second_start_needs_no_hub_and_gives_the_same_tokens(hub, port, read):
    rows = stories(0, 41)
    sha = hub.commit("me/again", {"train-0.parquet": parquet(rows[:23]), "train-1.parquet": parquet(rows[23:])})
    with serving(hub, port):
        first = read("me/again")
        assert sorted(first["texts"]["train"] + first["texts"]["validation"]) == sorted(told(rows))
        assert any(sha in note for note in first["notes"])
        n_asked = len(hub.asked)
        assert read("me/again")["tokens"] == first["tokens"]
        assert len(hub.asked) == n_asked
        assert read("me/again", revision=sha)["key"] == first["key"]  # the same commit, said differently
    hub.commit("me/again", {"train.parquet": parquet(stories(100, 11))})
    second = read("me/again")
    assert {**second, "seconds": 0} == {**first, "seconds": 0}
    assert second["seconds"] < 2


@pytest.mark.slow
def test_a_newer_commit_is_read_when_asked_for_and_remembered(hub, port, read, tmp_path):
    old = hub.commit("me/newer", {"train.jsonl": jsonl(stories(0, 13))})
    with serving(hub, port):
        first = read("me/newer")
        new = hub.commit("me/newer", {"train.jsonl": jsonl(stories(50, 17))})
        assert read("me/newer")["texts"] == first["texts"]
        newer = read("me/newer", revision="main")
        assert newer["read"] == 17 and any(new in note for note in newer["notes"])
        assert len(cached_texts(tmp_path)) == 2
        assert read("me/newer")["key"] == newer["key"] != first["key"]
        assert read("me/newer", revision=old)["key"] == first["key"]
    refused = read("me/newer", revision="main")["error"]
    assert (
        "cannot be reached" in refused and f"revision=null takes the commit of earlier starts ({new[:12]})" in refused
    )


@pytest.mark.slow
def test_a_run_keeps_its_commit_wherever_it_is_read_again(hub, port, read, tmp_path):
    old = hub.commit("me/kept", {"train.jsonl": jsonl(stories(0, 13))})
    elsewhere = str(tmp_path / "elsewhere")
    with serving(hub, port):
        kept = read("me/kept", revision="main", open_only=True)
        assert kept["commits"] == {"some": f"me/kept@{old}"} and kept["revision"] is None
        of_run = {"commits": kept["commits"]}
        new = hub.commit("me/kept", {"train.jsonl": jsonl(stories(50, 17))})
        assert read("me/kept", cache=elsewhere)["read"] == 17  # remembered there: the new one
        again = read("me/kept", of_run, cache=elsewhere)
        assert again["read"] == 13 and any(old in note for note in again["notes"])
        hub.asked.clear()
        assert read("me/kept", of_run, cache=elsewhere, open_only=True)["commits"] == kept["commits"]
        assert hub.asked == []  # what is pinned and cached asks nobody
        # What is asked for now goes before it; of another dataset it says nothing.
        asked_for = read("me/kept", of_run, cache=elsewhere, revision="main", open_only=True)
        assert asked_for["commits"] == {"some": f"me/kept@{new}"}
        other = hub.commit("me/other", {"train.jsonl": jsonl(stories(0, 3))})
        assert read("me/other", of_run, open_only=True)["commits"] == {"some": f"me/other@{other}"}


@pytest.mark.fault("no-network")
def test_without_hub_and_cache_it_is_said_at_once(hub, port, read, tmp_path):
    said = read("me/nowhere", open_only=True)
    assert "me/nowhere: the Hugging Face hub (127.0.0.1) cannot be reached" in said["error"]
    remember(tmp_path / "cache" / "dtl-cache", "me/nowhere", "5" * 40)  # known, but nothing of it was kept
    known = read("me/nowhere", open_only=True)
    assert "cannot be reached" in known["error"] and "data=text data.path=FOLDER" in known["error"]
    assert max(said["seconds"], known["seconds"]) < 2


@pytest.mark.slow
def test_more_than_the_cache_holds_needs_the_hub_and_is_refused_before_torch_is_imported(hub, port, read, tmp_path):
    hub.commit("me/more", {"train.jsonl": jsonl(stories(0, 97))})
    some = {"max_samples": 11, "seq_len": 16}
    with serving(hub, port):
        part = read("me/more", some)
        assert part["read"] < 97
        assert read("me/more", some, seed=2)["texts"] != part["texts"]
    assert read("me/more", some)["tokens"] == part["tokens"]
    assert "commits" in read("me/more", some, open_only=True)
    for other in ({}, {**some, "test_fraction": 0.1}, {**some, "max_samples": 1009}):
        assert "cannot be reached" in read("me/more", other, open_only=True)["error"]
    assert "cannot be reached" in read("me/more", {"max_samples": 13})["error"]  # as long as a model's context
    code = "import sys, dtl.train\ntry: dtl.train.main()\nfinally: print('torch' in sys.modules)"
    arguments = ["data=hub", "data.path=me/more", f"data.cache_dir={tmp_path / 'cache'}", "tracker=local"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "is not used because HF_HUB_OFFLINE=1" in done.stderr
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.slow
def test_a_sample_is_drawn_by_the_seed_from_all_files(hub, port, read, tmp_path):
    files = {f"train-{part}.parquet": parquet(stories(part * 50, 50)) for part in range(3)}
    hub.commit("me/sample", files)
    with serving(hub, port):
        one = read("me/sample", {"max_samples": 11}, seed=1)
        other = read("me/sample", {"max_samples": 11}, seed=2)
        again = read("me/sample", {"max_samples": 11}, seed=1, cache=str(tmp_path / "another"))
    assert one["tokens"] == again["tokens"] != other["tokens"]
    parts = {int(re.findall(r"\d+", text)[0]) // 50 for text in one["texts"]["train"]}
    assert parts == {0, 1, 2}


@pytest.mark.slow
def test_a_datasets_own_splits_are_kept(hub, port, read):
    files = {"train.jsonl": stories(0, 13), "valid.jsonl": stories(20, 5), "test.jsonl": stories(30, 3)}
    hub.commit("me/splits", {name: jsonl(rows) for name, rows in files.items()})
    with serving(hub, port):
        assert read("me/splits")["texts"] == {
            "train": told(files["train.jsonl"]),
            "validation": told(files["valid.jsonl"]),
            "test": told(files["test.jsonl"]),
        }
        turned = read("me/splits", splits={"train": "test", "validation": "train"})
        assert turned["texts"] == {"train": told(files["test.jsonl"]), "validation": told(files["train.jsonl"])}
        refused = read("me/splits", splits={"train": "trian"})["error"]
    assert "data.sources.some.splits.train=trian" in refused and "Did you mean 'train'?" in refused


@pytest.mark.slow
def test_the_held_out_splits_are_whole_when_training_text_is_sampled(hub, port, read):
    """The download of the first split is ended in its middle, and nothing of it gets into the next."""
    held_out = {"validation": stories(500, 7), "test": stories(600, 5)}
    files = {"train": stories(0, 97), **held_out}
    hub.commit("me/held-out", {f"{split}.jsonl": jsonl(rows) for split, rows in files.items()})
    with serving(hub, port):
        texts = read("me/held-out", {"max_samples": 11})["texts"]
    assert {split: texts[split] for split in held_out} == {split: told(rows) for split, rows in held_out.items()}
    assert set(texts["train"]) < set(told(files["train"]))


CONFIGS = """---
configs:
- config_name: long
  data_files: [{split: train_sft, path: long/*}]
- config_name: short
  data_files: [{split: train, path: short/*}]
---
Two subsets.
"""


@pytest.mark.slow
def test_what_is_wrong_is_answered_with_what_there_is(hub, port, read, tmp_path):
    files = {
        "README.md": CONFIGS.encode(),
        "long/a.jsonl": jsonl([{"body": "b", "n": 1}]),
        "short/a.jsonl": b'{"t": "x"}\n',
    }
    hub.commit("me/wrong", files)
    hub.commit("me/gated", {"train.parquet": parquet(stories(0, 3))})
    hub.gated.add("me/gated")
    with serving(hub, port):
        wrong = {
            "several subsets": read("me/wrong"),
            "no subset 'shrot'": read("me/wrong", subset="shrot"),
            "none of its splits": read("me/wrong", subset="long"),
            "no column 'text'. Its columns: t": read("me/wrong", subset="short"),
            "no column 'text'. Its columns: body, n": read("me/wrong", subset="long", splits={"train": "train_sft"}),
            "no such dataset, or it is private": read("me/none"),
            "no revision 'v2'": read("me/wrong", revision="v2"),
            "gated dataset": read("me/gated"),
        }
    for expected, answer in wrong.items():
        assert expected in answer["error"], answer
        assert answer["seconds"] < 20
    for key in ("several subsets", "no subset 'shrot'"):
        assert "['long', 'short']: data.sources.some.subset=" in wrong[key]["error"]
    assert "train_sft" in wrong["none of its splits"]["error"]
    assert cached_texts(tmp_path) == []


LINES = [
    "",
    " = The Heron = \n",
    "",
    " A long @-@ legged bird , of 1 @.@ 5 kg . \n",
    " = = Food = = \n",
    " Fish . \n",
    " = Ferries = \n",
    " Nothing sank . \n",
]
ARTICLES = ["The Heron\n\nA long-legged bird, of 1.5 kg.\nFood\nFish.", "Ferries\n\nNothing sank."]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("Salesforce/wikitext", None), ("me/lines", "wikitext")])
def test_the_lines_of_wikitext_become_articles_in_its_own_splits(hub, port, read, name, rows):
    of_split = {split: [{"text": line} for line in LINES[start:]] for split, start in (("train", 0), ("test", 6))}
    # The first article goes on in the second file.
    files = {
        "train-00000.parquet": parquet(of_split["train"][:4]),
        "train-00001.parquet": parquet(of_split["train"][4:]),
    }
    files |= {"test.parquet": parquet(of_split["test"]), "validation.parquet": parquet(of_split["test"])}
    hub.commit(name, files)
    expected = {"train": ARTICLES, "validation": ARTICLES[1:], "test": ARTICLES[1:]}
    with serving(hub, port):
        assert read(name, rows=rows)["texts"] == expected
        sampled = read(name, {"max_samples": 50}, rows=rows)["texts"]
    assert {split: sorted(texts) for split, texts in sampled.items()} == {
        split: sorted(texts) for split, texts in expected.items()
    }


@pytest.mark.slow
def test_wikipedia_is_one_of_them_and_begins_with_its_title(hub, port, read):
    config = "---\nconfigs:\n- config_name: '20231101.simple'\n  data_files: simple/*\n---\n"
    rows = [{"id": str(n), "url": "", "title": f"River {n}", "text": f"It is {n} km long."} for n in range(11)]
    hub.commit("wikimedia/wikipedia", {"README.md": config.encode(), "simple/train.parquet": parquet(rows)})
    texts = {f"River {n}\n\nIt is {n} km long." for n in range(11)}
    with serving(hub, port):
        by_kind = read(None, {"wiki_subset": "20231101.simple"}, kind="wiki")
        by_name = read("wikimedia/wikipedia", subset="20231101.simple")
    for found in (by_kind, by_name):
        assert {text for split in found["texts"].values() for text in split} == texts


@pytest.mark.slow
def test_a_broken_connection_is_read_again(hub, port, read):
    rows = stories(0, 31)
    hub.commit("me/broken", {"train.parquet": parquet(rows)})
    hub.broken["train.parquet"] = 1
    with serving(hub, port):
        found = read("me/broken")["texts"]
    assert sorted(found["train"] + found["validation"]) == sorted(told(rows)) and hub.broken["train.parquet"] == 0


@pytest.mark.fault("no-network")
def test_packets_that_are_swallowed_in_the_middle_end_the_reading(hub, port, read, tmp_path):
    hub.commit("me/silent", {f"train-{part}.parquet": parquet(stories(part * 50, 50)) for part in range(2)})
    hub.silent.add("train-1.parquet")
    with serving(hub, port):
        stopped = read("me/silent", stall_s=2)
    assert "nothing arrived for 2 seconds" in stopped["error"] and stopped["seconds"] < 15
    assert cached_texts(tmp_path) == []


@pytest.mark.slow  # a process of its own, killed, and the library's own patience
def test_a_download_that_dies_leaves_nothing_that_looks_finished(hub, port, read, tmp_path):
    rows = stories(0, 200)
    hub.commit("me/dies", {f"train-{part}.jsonl": jsonl(rows[part * 50 : part * 50 + 50]) for part in range(4)})
    hub.slow_s = 1.0
    request = {"source": {"path": "me/dies"}, "cache": str(tmp_path / "cache")}
    with serving(hub, port):
        pipes: Any = {"stdin": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, str(READER)], env=environment(port, tmp_path / "hf"), **pipes) as victim:
            assert victim.stdin is not None
            victim.stdin.write(json.dumps(request) + "\n")
            victim.stdin.flush()
            deadline = time.monotonic() + 60
            while not any("GET" in asked and "train-2.jsonl" in asked for asked in hub.asked):
                assert time.monotonic() < deadline and victim.poll() is None
                time.sleep(0.05)
            victim.send_signal(signal.SIGKILL)
    assert cached_texts(tmp_path) == []
    hub.slow_s, hub.broken = 0.0, {"train-2.jsonl": 10**6}
    with serving(hub, port):
        assert "reading from the hub failed" in read("me/dies", attempts=1)["error"]
        assert cached_texts(tmp_path) == []
        hub.broken.clear()
        assert read("me/dies")["read"] == 200
    assert len(cached_texts(tmp_path)) == 1


# --- without any hub ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, "a/b/c", "my texts", "../x"])
def test_a_name_that_cannot_be_a_datasets_is_refused(path, tmp_path):
    config = DataConfig(sources={"hub": SourceConfig("hub", path)}, cache_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"data.sources.hub.path=.*roneneldan/TinyStories"):
        plan_sources(config, 0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (SourceConfig("text", "x", subset="a"), r"data.sources.s.subset=a: is for datasets of the Hugging Face hub"),
        (SourceConfig("wiki", "x", revision="main"), r"data.sources.s.revision=main"),
        (SourceConfig("hub", "a/b", rows="lines"), r"data.sources.s.rows=lines: one of text, article, wikitext"),
        (SourceConfig("hub", "a/b", splits={"training": "a"}), r"splits.training: one of train, validation, test"),
        (SourceConfig("hub", "a/b", splits={"test": "a"}), r"name the training split too"),
    ],
)
def test_settings_of_a_source_that_cannot_be_are_refused(source, said):
    with pytest.raises(ConfigError, match=said):
        DataConfig(sources={"s": source}).validate()


@pytest.mark.parametrize("commit", ["a/b", "a/b@main", "@" + "0" * 40, "a/b@" + "0" * 39])
def test_a_commit_that_cannot_be_is_refused(commit):
    with pytest.raises(ConfigError, match=f"data.commits.hub={commit}"):
        DataConfig(sources={"hub": SourceConfig("hub", "a/b")}, commits={"hub": commit}).validate()


@pytest.mark.parametrize("content", ["", "{", '{"sha": "main"}', '{"sha": 5}', "[]"])
def test_a_damaged_memory_is_none(tmp_path, content):
    assert remembered(tmp_path, "me/x") is None
    remember(tmp_path, "me/x", "a" * 40)
    assert remembered(tmp_path, "me/x") == "a" * 40
    (file,) = tmp_path.rglob("*.json")
    file.write_text(content)
    assert remembered(tmp_path, "me/x") is None


def test_shuffling_keeps_all_and_moves_them():
    documents = [Document(str(number)) for number in range(101)]
    one, same, other = (list(shuffled(documents, seed, 17)) for seed in (1, 1, 2))
    assert one == same != other and one != documents
    assert sorted(map(repr, one)) == sorted(map(repr, documents))
    assert list(shuffled(iter(documents[:3]), 1, 17)) != [] and len(list(shuffled([], 1, 17))) == 0
