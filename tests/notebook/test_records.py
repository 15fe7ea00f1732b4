"""Records of runs: their fields, and the paths and names that must never be in them."""

import json

import pytest
from recorded_runs import make_run

from dtl.base.json_files import sealed
from dtl.data.config import DataConfig, SourceConfig
from dtl.errors import DataError
from dtl.notebook.records import record_of, shown_overrides, source_name


def test_a_record_says_what_was_asked_with_what_and_what_came_out(tmp_path):
    record = record_of(make_run(tmp_path / "run", seed=3, overrides=("optimizer.lr=0.01", "tracker=local")))
    assert record["recipe"] == "bread" and record["seed"] == 3 and record["overrides"] == ["optimizer.lr=0.01"]
    assert record["date"] == "2031-01-02T03:04:05+00:00"
    assert (record["commit"], record["dirty"]) == ("0123456789" * 4, False)
    assert record["data"] == {"text": "loaves.txt"} and record["data_fingerprint"] == "f" * 64
    assert [record[key] for key in ("device", "threads", "precision", "torch")] == ["Made Up 7", 3, "fp32", "2.13.0"]
    assert [record[key] for key in ("steps", "tokens", "seconds", "val_loss")] == [7, 77, 3.5, 2.5]
    assert record["figures"] == {"test/bits_per_byte": 1.23457}
    assert record["config_hash"] == f"{3:016x}"


def test_a_card_goes_by_its_own_name(tmp_path):
    card = {"device": "NVIDIA GeForce RTX 4060", "threads": 5, "precision": "bf16", "torch": "2.13.0"}
    assert record_of(make_run(tmp_path / "run", computed_with=card))["device"] == "NVIDIA GeForce RTX 4060"


def test_no_place_on_the_machine_is_told(tmp_path):
    data = {"sources": {"text": {"kind": "text"}}, "path": "/home/ann/loaves.txt", "cache_dir": "/scratch/ann/cache"}
    overrides = (
        "data.path=/home/ann/loaves.txt",
        "data.cache_dir=/scratch/ann/cache",
        "tokenizer.path=/home/ann/gpt2",
        "+notes=[/home/ann/a.txt,~/b.txt,../ann/c.txt,'C:\\Users\\ann\\d.txt']",
    )
    settings = {"tokenizer": {"kind": "gpt2", "path": "/home/ann/gpt2"}}
    record = record_of(make_run(tmp_path / "run", overrides=overrides, data=data, settings=settings))
    told = json.dumps(record)
    for secret in ("ann", "home", "scratch", "laptop", "/b.txt", str(tmp_path)):
        assert secret not in told, secret
    assert record["overrides"] == ["+notes=[a.txt,b.txt,c.txt,'d.txt']", "tokenizer.path=gpt2"]


def test_a_dataset_of_the_hub_keeps_its_name_and_commit():
    commit = "5" * 40
    hub = DataConfig(sources={"tales": SourceConfig(kind="hub", path="ann/tales", subset="short")})
    hub.commits = {"tales": f"ann/tales@{commit}"}
    assert source_name("tales", hub) == "ann/tales short @555555555555"
    assert source_name("wiki", DataConfig(sources={"wiki": SourceConfig(kind="wiki")})) == (
        "wikimedia/wikipedia 20231101.en"
    )
    assert source_name("qa", DataConfig(sources={"qa": SourceConfig(kind="qa")})) == "as it ships with DTL"
    assert shown_overrides(["data=hub", "data.path=ann/tales", "model=small"], hub) == ["data=hub", "model=small"]


def test_runs_that_differ_in_seed_place_and_bookkeeping_are_one_configuration(tmp_path):
    def key(name, **settings):
        place = {"sources": {"text": {"kind": "text"}}, "path": settings.pop("path", "/a/loaves.txt")}
        seed = settings.pop("seed", 1)
        return record_of(make_run(tmp_path / name, seed=seed, data=place, settings=settings))["configuration"]

    first = key("first", optimizer={"lr": 0.01}, trainer={"keep": 3})
    assert first == key("seed", seed=2, optimizer={"lr": 0.01}, trainer={"keep": 3})
    assert first == key("place", path="/b/c/loaves.txt", optimizer={"lr": 0.01}, trainer={"keep": 3})
    assert first == key("keep", optimizer={"lr": 0.01}, trainer={"keep": 7})
    assert first != key("rate", optimizer={"lr": 0.02}, trainer={"keep": 3})
    assert first != key("text", path="/a/rolls.txt", optimizer={"lr": 0.01}, trainer={"keep": 3})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"recipe": None}, "not started with experiment="),
        ({"state": "interrupted"}, "not finished"),
        ({"sessions": []}, "has no start time"),
        ({"data_fingerprint": None}, "no data fingerprint"),
        ({"data": {"sources": {}, "colour": "red"}}, "another version of DTL"),
    ],
)
def test_a_run_without_a_record_gets_a_reason(tmp_path, changes, reason):
    with pytest.raises(DataError, match=reason):
        record_of(make_run(tmp_path / "run", **changes))


def test_an_older_run_has_its_fingerprint_in_the_evaluation(tmp_path):
    run = make_run(tmp_path / "run", data_fingerprint=None, computed_with=None)
    (run / "evaluation.json").write_text(json.dumps(sealed({"data_fingerprint": "e" * 64})))
    record = record_of(run)
    assert (record["data_fingerprint"], record["device"], record["threads"]) == ("e" * 64, "Made Up 7", None)


def test_what_could_steer_a_terminal_or_break_the_page_is_made_harmless(tmp_path):
    machine = {"device": "cpu", "threads": 3, "precision": "fp32", "torch": "2\x1b[2J\n| 0"}
    record = record_of(make_run(tmp_path / "run", overrides=("+a=\x1b[31mred\nline",), computed_with=machine))
    assert not any(character in json.dumps(record, ensure_ascii=False) for character in ("\x1b", "\\u001b", "\\n"))
