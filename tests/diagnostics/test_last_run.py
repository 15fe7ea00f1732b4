"""The state of the last run, read from its folder: of real runs, and of runs that this file writes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_examples import imitate

from dtl.checkpoints.upkeep import lock_run
from dtl.diagnostics.resume import describe_state, last_run, look_at_last_run
from dtl.run_dir.provenance import write_result
from dtl.run_dir.state import RunState

OUTPUTS = Path("outputs")


def make_run(folder: str, started: str | None = "2026-11-23T05:07:11+00:00", steps: tuple[int, ...] = (10, 20)) -> Path:
    """The folder of a run with imitated checkpoints; without a start, as one that lost its run.json."""
    run_dir = OUTPUTS / folder
    run_dir.mkdir(parents=True)
    if started:
        record = {"rerun": "python -m dtl.train data=qa", "sessions": [{"started": started}]}
        (run_dir / "run.json").write_text(json.dumps(record))
    (run_dir / "metrics.jsonl").write_text(
        '{"step": 19, "train/loss": 2.5}\n{"step": 23, "train/loss": 1}\n{"step": 29'
    )
    for step in steps:
        imitate(run_dir, step)
    return run_dir


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(elsewhere):
    """outputs/ of the test, not of the checkout."""


RUN = "2026-11-23/05-07-11-17_small_qa"
RESUME = f"resume: python -m dtl.train resume=outputs/{RUN}"


def reported() -> tuple[str, str]:
    """Return the state of the last run and the command that continues it, as shown."""
    finding = look_at_last_run(OUTPUTS)
    assert not finding.problems, "how a run ended keeps no other from going well"
    (_, state), *rest = finding.rows
    return state.partition(": ")[2], rest[0][1] if rest else ""


def test_no_run_yet():
    assert look_at_last_run(OUTPUTS).rows == [("last run", "none under outputs/ yet")]


@pytest.mark.parametrize(
    ("state", "more", "words", "next_command"),
    [
        ("finished", {}, "finished at step 23, best validation loss 1.2346; newest checkpoint: step 20", ""),
        ("stopped", {}, "paused at step 23; newest checkpoint: step 20", RESUME),
        ("interrupted", {}, "interrupted by Ctrl-C or SIGTERM at step 23; newest checkpoint: step 20", RESUME),
        (
            "failed",
            {"error": "Out of memory.\nNext to try"},
            "failed at step 23 (Out of memory.); newest checkpoint: step 20",
            RESUME,
        ),
    ],
)
def test_runs_that_said_how_they_ended(state, more, words, next_command):
    write_result(make_run(RUN), state, 1.23456, 23, "hash", **more)
    assert reported() == (words, next_command)


def test_a_run_that_failed_before_it_saved_anything():
    write_result(make_run(RUN, steps=()), "failed", None, 3, "hash", error="loss is nan")
    assert reported() == (
        "failed at step 3 (loss is nan); nothing saved",
        "start again: python -m dtl.train data=qa",
    )


def test_a_run_at_work():
    run_dir = make_run(RUN)
    with lock_run(run_dir):
        state, next_command = reported()
    assert state.startswith(f"running at step 23 (process {os.getpid()} on ")
    assert next_command == "", "a second process must not go on with it"
    assert reported()[0].startswith("ended without a recorded result"), "this one left in order, without a result"


def test_a_run_that_was_killed():
    run_dir = make_run(RUN)
    write_result(run_dir, "stopped", 2.0, 17, "hash")  # of an earlier session
    os.utime(run_dir / "result.json", (1, 1))
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom dtl.checkpoints.upkeep import lock_run\n"
        "with lock_run(Path(sys.argv[1])):\n    os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(run_dir)], check=False).returncode == 9
    before = sorted(path.name for path in run_dir.iterdir())
    assert reported() == ("was killed at about step 23; newest checkpoint: step 20", RESUME)
    assert sorted(path.name for path in run_dir.iterdir()) == before, "reading changes nothing"
    write_result(run_dir, "finished", 2.0, 23, "hash")
    assert reported()[0].startswith("finished"), "killed only after it had said how it ended"


def test_damaged_checkpoints_are_counted():
    run_dir = make_run(RUN, steps=(10, 20, 30))
    (run_dir / "checkpoints/step-00000030/model.safetensors").unlink()
    write_result(run_dir, "stopped", 2.0, 31, "hash")
    assert reported() == ("paused at step 31; newest checkpoint: step 20, 1 damaged", RESUME)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"state": 3}', b'{"state": null, "error": 7}', b"\xff" * 9])
def test_files_that_hold_nonsense(content):
    run_dir = make_run(RUN)
    for name in ("result.json", "run.json", "metrics.jsonl"):
        (run_dir / name).write_bytes(content)
    assert "newest checkpoint: step 20" in reported()[0]


# --- which run is the last ------------------------------------------------------------------------------------------


def test_the_last_is_the_one_whose_last_session_began_last():
    make_run("2026-11-21/05-00-00-17_a", "2026-11-23T09:00:00+00:00")
    later = make_run("2026-11-22/05-00-00-17_b", "2026-11-23T10:59:00+00:00")
    make_run("2026-11-23/05-00-00-17_c", "2026-11-23T11:00:00+02:00")
    assert last_run(OUTPUTS) == later


def test_trials_and_runs_without_checkpoints_count():
    make_run("2026-11-22/05-00-00-17_a", "2026-11-22T05:00:00+00:00")
    trial = make_run("multirun/2026-11-22/06-00-00-17/3", "2026-11-22T06:00:00+00:00")
    assert last_run(OUTPUTS) == trial
    failed = make_run("2026-11-22/07-00-00-17_a", "2026-11-22T07:00:00+00:00", steps=())
    assert last_run(OUTPUTS) == failed


def test_a_run_without_a_record_goes_by_its_folders_name_or_time():
    new = make_run("2026-11-22/06-00-00-17_a", "2026-11-22T05:00:00+00:00")
    make_run("2026-11-21/06-00-00-17_a", None)
    assert last_run(OUTPUTS) == new
    later = make_run("2027-11-22/05-00-00-17_a", None)
    assert last_run(OUTPUTS) == later
    nameless = make_run("my_runs/first", None)
    os.utime(nameless, (1, 1))
    assert last_run(OUTPUTS) == later
    os.utime(nameless, (2e9, 2e9))
    assert last_run(OUTPUTS) == nameless


def test_a_run_with_nothing_to_go_on_with():
    run = RunState(OUTPUTS / "x", "x", "unfinished")
    assert describe_state(run, []) == ("ended without a recorded result; nothing saved", "")
    assert describe_state(replace(run, state="finished", step=3), [])[0] == "finished at step 3; nothing saved"
