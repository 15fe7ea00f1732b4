"""`python -m dtl.report` as it is typed: what it writes, what it says, what it refuses at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import make_run, make_sweep

import dtl.report

OUTPUTS = Path("outputs")
SWEEP = OUTPUTS / "multirun/2031-01-02/03-04-05-11"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(elsewhere):
    """outputs/ of the test, not of the checkout."""


def typed(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Exit code and both outputs of `python -m dtl.report` with `words`."""
    monkeypatch.setattr(sys, "argv", ["dtl-report", *words])
    code = 0
    try:
        dtl.report.main()
    except SystemExit as ended:
        code = int(str(ended.code))
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_a_sweep_gets_its_report_beside_its_trials(monkeypatch, capsys):
    make_sweep(SWEEP, steps=20)
    before = {path: path.read_bytes() for path in SWEEP.rglob("*") if path.is_file()}
    code, out, shown = typed(monkeypatch, capsys, f"runs={SWEEP}")
    assert (code, shown) == (0, "")
    for expected in (
        "24, 20 finished",
        "model=medium lr=0.003",
        "n = 3 is too small to name a better configuration",
        "refused: outputs/multirun/2031-01-02/03-04-05-11/4: model.n_heads=7",
        f"Report: {SWEEP}/report/report.html",
        "loss_seconds.png",
    ):
        assert expected in out, expected
    assert before == {path: path.read_bytes() for path in before}, "runs are read, never changed"
    assert {path.parent for path in SWEEP.rglob("*.png")} == {SWEEP / "report"}
    page = (SWEEP / "report" / "report.html").read_text()
    assert f"python -m dtl.report runs={SWEEP}" in page


def test_the_command_on_the_page_names_the_run_that_was_the_latest(monkeypatch, capsys):
    make_run(OUTPUTS / "2031-01-02/03-04-05-7_a", state="failed")
    monkeypatch.setattr("dtl.reports.build._drawings", lambda *_: {})
    assert typed(monkeypatch, capsys, "runs=latest", "higher_is_better=false")[0] == 0
    page = (OUTPUTS / "2031-01-02/03-04-05-7_a/report/report.html").read_text()
    assert "python -m dtl.report runs=outputs/2031-01-02/03-04-05-7_a higher_is_better=false" in page


@pytest.mark.slow
def test_several_runs_by_a_list_and_another_metric(monkeypatch, capsys):
    for name, lr in (("a", 0.001), ("b", 0.01)):
        make_run(OUTPUTS / name, lr=lr, figures={"exact_match/test": lr * 50})
    words = ["runs=[outputs/a,outputs/b]", "metric=exact_match/test", "out=my report"]
    code, out, _ = typed(monkeypatch, capsys, *words)
    assert code == 0 and "exact_match/test, higher is better" in out
    assert out.index("lr=0.01") < out.index("lr=0.001 ")
    assert Path("my report/report.html").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["runs=nowhere"], 2, "Error: runs=nowhere: no such folder. Give a run, a sweep"),
        (["runs=outputs", "metric=exact_macht/test"], 2, "metric=exact_macht/test: its name does not show"),
        (["runs=outputs", "metric=f1/tset"], 2, "no run has it in its result.json. Did you mean 'f1/test'?"),
        (["runs=outputs", "out=outputs/a/run.json"], 2, "out=outputs/a/run.json: is a file. Give a folder."),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(monkeypatch, capsys, words, code, message):
    make_run(OUTPUTS / "a", figures={"f1/test": 0.5})
    before = sorted(Path().rglob("*"))
    ended, _, shown = typed(monkeypatch, capsys, *words)
    assert (ended, "Traceback" in shown) == (code, False)
    assert message in shown, shown
    assert sorted(Path().rglob("*")) == before


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    make_run(OUTPUTS / "a")
    monkeypatch.setattr("dtl.reports.build.NEEDED", ("matplotlib", "no_such_package", "neither_this"))
    code, _, shown = typed(monkeypatch, capsys, "runs=outputs/a")
    assert code == 1 and "Error: dtl.report needs no_such_package, neither_this: pip install" in shown


def test_nothing_heavy_is_imported_before_a_refusal():
    """Errors are reported within a second: importing matplotlib alone takes one."""
    program = """
import sys
import dtl.report
sys.argv[1:] = ["runs=nowhere"]
try:
    dtl.report.main()
except SystemExit:
    print(*sorted({"matplotlib", "scipy", "jinja2", "optuna", "torch", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "no such folder" in done.stderr and done.stdout.split() == []


def test_a_run_whose_texts_steer_terminals_cannot(monkeypatch, capsys):
    monkeypatch.setattr("dtl.reports.build._drawings", lambda *_: {})
    folder = make_run(OUTPUTS / "a", state="failed", error="\x1b]0;mine\x07 [red]no markup[/red] \u202e")
    (folder / "config.yaml").write_text(json.dumps({"name": "\x1b[2J[bold]x", "seed": 1, "optimizer": {"lr": 1e-3}}))
    code, out, _ = typed(monkeypatch, capsys, "runs=outputs/a")
    assert code == 0 and "\x1b" not in out and "\u202e" not in out
    assert "[red]no markup[/red]" in out and "[bold]x" in out
