"""The state of a run from its files: correct for valid files, empty for damaged ones, without changing any."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from checkpoint_examples import imitate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtl.base.files import TRASH
from dtl.base.json_files import sealed
from dtl.checkpoints.upkeep import lock_run
from dtl.run_dir.provenance import config_hash, write_result
from dtl.run_dir.state import RUN_FILES, RunState, find_runs, last_metrics, read_run_state
from dtl.tracking.metrics import read_metrics

ROWS = [
    {
        "step": step,
        "tokens": 100 * step,
        "seconds": step / 8,
        "train/loss": 1.0,
        "speed/tokens_per_second": 800.0 + step,
    }
    for step in range(1, 24)
]
CONFIG = "name: demo\nseed: 5\ntrainer:\n  total_steps: 29\n  max_epochs: null\n"


def make_run(folder: Path, **record: Any) -> Path:
    """A run after 23 steps without a result."""
    folder.mkdir(parents=True)
    sessions = [{"started": "2026-11-23T05:07:11+00:00"}, {"started": "2026-11-24T05:07:11+00:00"}]
    record = {"overrides": ["name=demo"], "seed": 7, "rerun": "python -m dtl.train name=demo"} | record
    (folder / "run.json").write_text(json.dumps(record | {"sessions": sessions}))
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "2026-11-23" / "05-07-11-17_demo")


def kill_at_work(run_dir: Path) -> None:
    program = "import os, sys\nfrom pathlib import Path\nfrom dtl.checkpoints.upkeep import lock_run\n"
    program += "with lock_run(Path(sys.argv[1])):\n    os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program, str(run_dir)], check=False).returncode == 9


@pytest.mark.parametrize("ended", ["pruned", "timed out", "hung"])
def test_a_trial_that_its_sweep_ended_says_so(run_dir, ended):
    """By its own files a signal ended it, as Ctrl-C does."""
    write_result(run_dir, "interrupted", 0.5, 23, "abc")
    (run_dir / "trial.json").write_text(json.dumps(sealed({"state": ended, "reason": "by median"})))
    state = read_run_state(run_dir)
    assert (state.state, state.reason, state.best_loss, state.step) == (ended, "by median", 0.5, 23)


def test_a_trial_at_work_again_is_running_whatever_ended_it_before(run_dir):
    (run_dir / "trial.json").write_text(json.dumps(sealed({"state": "timed out", "reason": "took longer"})))
    with lock_run(run_dir):
        assert read_run_state(run_dir).state == "running"


def test_all_that_is_known_of_a_run(run_dir):
    write_result(run_dir, "finished", 0.5, 23, "abc")
    assert read_run_state(run_dir) == RunState(
        folder=run_dir,
        name="demo",
        state="finished",
        step=23,
        last_step=29,
        best_loss=0.5,
        started=datetime(2026, 11, 23, 5, 7, 11, tzinfo=UTC),
        seconds=23 / 8,
        tokens_per_second=823.0,
        overrides=["name=demo"],
        seed=7,
        config_hash="abc",
        rerun="python -m dtl.train name=demo",
    )


@pytest.mark.parametrize("state", ["finished", "stopped", "interrupted", "failed"])
def test_a_run_that_said_how_it_ended(run_dir, state):
    write_result(run_dir, state, None, 19, "abc", error="Out of \x1b[2J memory.\nNext to try: less")
    run = read_run_state(run_dir)
    assert (run.state, run.step, run.best_loss, run.reason) == (state, 19, None, "Out of ␛[2J memory.")


def test_a_run_at_work_is_told_by_its_own_files_not_by_an_earlier_result(run_dir):
    write_result(run_dir, "failed", 9.0, 3, "abc", error="of the session before")
    os.utime(run_dir / "result.json", (1, 1))
    with lock_run(run_dir):
        run = read_run_state(run_dir)
    assert (run.state, run.step, run.reason, run.pid) == ("running", 23, "", os.getpid())
    assert run.host and run.config_hash == config_hash(CONFIG)


def test_a_run_that_was_killed_until_it_says_how_it_ended(run_dir):
    write_result(run_dir, "stopped", 9.0, 3, "abc")
    os.utime(run_dir / "result.json", (1, 1))
    kill_at_work(run_dir)
    run = read_run_state(run_dir)
    assert (run.state, run.step, run.pid, run.host) == ("killed", 23, None, "")
    write_result(run_dir, "finished", 2.0, 29, "abc")
    assert read_run_state(run_dir).state == "finished"


def test_a_trial_that_ended_before_it_could_write_a_result(run_dir):
    (run_dir / "error.json").write_text(json.dumps({"type": "ValueError", "message": "no such data"}))
    assert (read_run_state(run_dir).state, read_run_state(run_dir).reason) == ("failed", "no such data")


def test_the_best_loss_of_a_run_that_has_no_result_yet(run_dir):
    assert read_run_state(run_dir).best_loss is None
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps({"step": 23, "val/loss": loss}) + "\n" for loss in (3.0, 2.0, None, 2.5)))
    assert read_run_state(run_dir).best_loss == 2.0
    best = run_dir / "checkpoints" / "best"
    best.mkdir(parents=True)
    (best / "state.json").write_text(json.dumps({"train": {"best_loss": 1.5}}))  # the rows of long ago were not read
    assert read_run_state(run_dir).best_loss == 1.5


@pytest.mark.parametrize(
    ("recorded", "limits", "last_step"),
    [
        ({"last_step": 31}, {"total_steps": 29}, 31),
        ({}, {"total_steps": 29}, 29),
        ({}, {"total_steps": 29, "max_epochs": 2}, None),  # whichever comes first, which the files do not say
        ({}, {"total_steps": None, "max_epochs": 2}, None),
    ],
)
def test_where_a_run_will_end(tmp_path, recorded, limits, last_step):
    run_dir = make_run(tmp_path / "run", **recorded)
    (run_dir / "config.yaml").write_text(json.dumps({"trainer": limits}))
    assert read_run_state(run_dir).last_step == last_step


def test_without_metrics_the_saved_steps_count(run_dir):
    (run_dir / "metrics.jsonl").unlink()
    for step in (10, 20):
        imitate(run_dir, step)
    assert read_run_state(run_dir).step == 20


def test_looking_changes_nothing(run_dir):
    kill_at_work(run_dir)
    before = {path: path.stat().st_mtime_ns for path in (run_dir, *run_dir.rglob("*"))}
    read_run_state(run_dir)
    find_runs(run_dir.parent.parent)
    assert {path: path.stat().st_mtime_ns for path in (run_dir, *run_dir.rglob("*"))} == before


# --- the end of metrics.jsonl ---------------------------------------------------------------------------------------


def test_the_last_rows_are_the_last_rows_however_much_is_read_and_wherever_it_is_cut(run_dir):
    whole = read_metrics(run_dir)
    data = (run_dir / "metrics.jsonl").read_bytes()
    assert last_metrics(run_dir) == whole == ROWS
    for n_bytes in range(0, len(data) + 7, 13):
        rows = last_metrics(run_dir, n_bytes)
        assert rows == whole[len(whole) - len(rows) :]
        assert len(rows) >= n_bytes // (max(map(len, data.splitlines())) + 1) - 1
    for kept in range(0, len(data), 17):
        (run_dir / "metrics.jsonl").write_bytes(data[:kept])
        rows, written = last_metrics(run_dir, 300), whole[: data[: kept + 1].count(b"\n")]
        assert rows == written[len(written) - len(rows) :]
        assert rows or len(written) < 2


# --- what may lie there ---------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
WRITTEN = "state value step error config_hash last_step sessions overrides seed rerun pid host name trainer seconds"
KEYS = st.sampled_from([*WRITTEN.split(), "message", "val/loss", "speed/tokens_per_second"])
CONTENTS = st.binary(max_size=40) | st.dictionaries(KEYS, JSON, max_size=7).map(
    lambda value: json.dumps(value).encode()
)
NAMES = ("run.json", "result.json", "config.yaml", "metrics.jsonl", ".lock.json", ".lock", "error.json", "checkpoints")


@pytest.mark.fault("hostile-listing")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(NAMES), CONTENTS))
def test_whatever_lies_there_nothing_is_raised_and_types_hold(tmp_path, contents):
    for name in NAMES:
        (tmp_path / name).unlink(missing_ok=True)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    run = read_run_state(tmp_path)
    for number in (run.step, run.last_step, run.seed, run.pid):
        assert number is None or type(number) is int
    for number in (run.best_loss, run.seconds, run.tokens_per_second):
        assert number is None or (type(number) is float and abs(number) < float("inf"))
    assert run.started is not None and run.started.tzinfo is not None
    for text in (run.name, run.state, run.reason, run.host, run.rerun, *run.overrides):
        assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "true", '"1"', "[1]", "null"])
def test_what_is_no_number_is_none(run_dir, number):
    (run_dir / "metrics.jsonl").write_text(f'{{"step": 5, "seconds": {number}, "val/loss": {number}}}\n')
    values = {"state": ["finished"], "value": json.loads(number), "step": json.loads(number)}
    (run_dir / "result.json").write_text(json.dumps(sealed(values)))
    run = read_run_state(run_dir)
    assert (run.seconds, run.best_loss, run.step, run.state) == (None, None, 5, "unfinished")


@pytest.mark.parametrize("change", [("0.25", "0.15"), ('"value"', '"valve"'), ("}", "")])
def test_a_damaged_result_is_told(tmp_path, change):
    write_result(tmp_path, "finished", 0.25, 3, "h")
    assert (read_run_state(tmp_path).state, read_run_state(tmp_path).reason) == ("finished", "")
    file = tmp_path / "result.json"
    file.write_text(file.read_text().replace(*change))
    found = read_run_state(tmp_path)
    assert (found.state, found.best_loss) == (
        "unfinished",
        None,
    ) and "result.json was changed or is damaged" in found.reason


def test_nothing_there_at_all(tmp_path):
    assert read_run_state(tmp_path / "none") == RunState(tmp_path / "none", "none", "unfinished")


# --- which runs there are -------------------------------------------------------------------------------------------


def test_runs_and_trials_are_found_last_started_first(tmp_path):
    folders = [
        tmp_path / "2026-11-21" / "05-00-00-17_a",
        tmp_path / "multirun" / "2026-11-22" / "05-00-00-17" / "0",
        tmp_path / "multirun" / "2026-11-22" / "05-00-00-17" / "1",
        tmp_path / "2026-11-23" / "05-00-00-17_b",
    ]
    for folder, mark in zip(folders, RUN_FILES, strict=False):
        (folder / mark).mkdir(parents=True)
    (tmp_path / "2026-11-23" / f"{TRASH}05-00-00-18_c" / "checkpoints").mkdir(parents=True)
    (tmp_path / "2026-11-23" / "nothing").mkdir()
    (folders[0] / "wandb" / "checkpoints").mkdir(parents=True)  # in a run no other is looked for
    assert find_runs(tmp_path) == folders[::-1]
    assert find_runs(tmp_path / "none") == []
