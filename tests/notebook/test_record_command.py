"""`python -m dtl.report record=true` as it is typed; without it a report changes no notebook."""

import sys
from pathlib import Path

import pytest
from recorded_runs import make_notebook, make_run

import dtl.report
from dtl.notebook import records as recording
from dtl.notebook.page import read_records, results_file


@pytest.fixture
def notebook(elsewhere, tmp_path, monkeypatch) -> Path:
    """A notebook in the place of the checkout's, and two runs in outputs/."""
    made = make_notebook(tmp_path / "notebook", "bread")
    monkeypatch.setattr(recording, "experiments_dir", lambda: made)
    for seed in (1, 2):
        make_run(Path("outputs") / "2031-01-02" / f"03-04-05-{seed}_x", seed=seed)
    return made


def report(monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["dtl-report", "runs=outputs", "out=there", *words])
    dtl.report.main()
    return capsys.readouterr().out


def test_runs_are_recorded_when_it_is_asked_for(notebook, monkeypatch, capsys):
    assert "bread.results.jsonl: 2 new, 2 records in total." in report(monkeypatch, capsys, "record=true")
    assert [one["seed"] for one in read_records(results_file(notebook, "bread"))] == [1, 2]
    assert "2.5000 ± 0.0000" in (notebook / "README.md").read_text()


@pytest.mark.slow
def test_nobody_who_only_looks_changes_the_notebook(notebook, monkeypatch, capsys):
    before = sorted(notebook.rglob("*"))
    report(monkeypatch, capsys)
    assert sorted(notebook.rglob("*")) == before
