"""Recording: once is once, nothing is lost, two at a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_runs import make_notebook, make_run

from dtl.base.json_files import read_record, sealed
from dtl.errors import ConfigError, DTLError
from dtl.notebook import records as recording
from dtl.notebook.page import notebook_page, read_records
from dtl.notebook.records import record, write_page

RESULTS = "experiment/bread.results.jsonl"


def everything(notebook: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in notebook.rglob("*") if file.is_file()}


def test_the_same_run_twice_is_one_record(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "bread", "bread-rye")
    runs = [make_run(tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)]
    assert record(runs[:2], notebook) == ["bread.results.jsonl: 2 new, 2 records in total."]
    once = everything(notebook)
    assert record(runs[:2], notebook) == ["bread.results.jsonl: 0 new, 2 records in total."]
    assert everything(notebook) == once
    assert record(runs, notebook) == ["bread.results.jsonl: 1 new, 3 records in total."]
    assert [one["seed"] for one in read_records(notebook / RESULTS)] == [1, 2, 3]
    assert (notebook / "README.md").read_text() == notebook_page(notebook)


def test_a_variant_is_recorded_with_its_page(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "bread", "bread-rye")
    record([make_run(tmp_path / "a"), make_run(tmp_path / "b", recipe="bread-rye")], notebook)
    assert [one["recipe"] for one in read_records(notebook / RESULTS)] == ["bread", "bread-rye"]


def test_lines_of_others_stay_as_they_are(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "bread")
    by_hand = '{"date":"2030-05-06",   "recipe":"bread", "label": "by eye"}\n'
    (notebook / RESULTS).write_text(by_hand * 2)
    record([make_run(tmp_path / "run")], notebook)
    assert (notebook / RESULTS).read_text().startswith(by_hand * 2)
    assert len(read_records(notebook / RESULTS)) == 3


def test_a_run_that_was_resumed_keeps_one_record_with_its_last_figures(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "bread")
    run = make_run(tmp_path / "run", loss=2.5)
    record([run], notebook)
    told = json.loads((run / "run.json").read_text())
    told["sessions"].append({"started": "2031-02-03T00:00:00+00:00", "overrides": ["resume=run"]})
    (run / "run.json").write_text(json.dumps(told))
    result = read_record(run / "result.json")
    (run / "result.json").write_text(json.dumps(sealed({**result, "value": 2.25, "config_hash": "f" * 16})))
    record([run], notebook)
    assert [one["val_loss"] for one in read_records(notebook / RESULTS)] == [2.25]


def test_who_is_left_out_is_told(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "bread")
    runs = [
        make_run(tmp_path / "a", recipe=None),
        make_run(tmp_path / "b", recipe=None),
        make_run(tmp_path / "c", state="failed"),
        make_run(tmp_path / "d", recipe="cake"),
        make_run(tmp_path / "e", recipe="../../cake"),
    ]
    (tmp_path / "cake.yaml").write_text("name: x\n")
    assert record(runs, notebook) == [
        "2 skipped: not started with experiment=.",
        "1 skipped: not finished.",
        "1 skipped: experiment=cake is not a recipe in experiments/.",
        "1 skipped: experiment=../../cake is not a recipe in experiments/.",
    ]
    assert not (notebook / RESULTS).exists()


def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "bread")
    (notebook / RESULTS).write_text('{"date": "2030-05-06", "recipe": "bread"}\n{"date": "2030\n')
    before = (notebook / RESULTS).read_bytes()
    with pytest.raises(DTLError, match=r"bread\.results\.jsonl:2: not JSON"):
        record([make_run(tmp_path / "run")], notebook)
    assert (notebook / RESULTS).read_bytes() == before


def test_two_processes_lose_no_record(tmp_path):
    notebook = make_notebook(tmp_path / "notebook", "bread")
    for seed in range(1, 15):
        make_run(tmp_path / str(seed), seed=seed)
    program = """
import sys
from pathlib import Path
from dtl.notebook.records import record
home, first = Path(sys.argv[1]), int(sys.argv[2])
for seed in range(first, 15, 2):
    record([home / str(seed)], home / "notebook")
"""
    both = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), first]) for first in ("1", "2")]
    assert [one.wait(timeout=60) for one in both] == [0, 0]
    assert sorted(one["seed"] for one in read_records(notebook / RESULTS)) == list(range(1, 15))
    assert (notebook / "README.md").read_text() == notebook_page(notebook)
    assert not list(notebook.rglob(".tmp-*"))


def test_an_installed_package_is_no_place_for_records(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "dtl"
    monkeypatch.setattr(recording.dtl, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(recording, "experiments_dir", lambda: package / "experiments")
    with pytest.raises(ConfigError, match="Record from a checkout"):
        record([])
    with pytest.raises(ConfigError, match="Record from a checkout"):
        write_page()
