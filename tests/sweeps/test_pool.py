"""Trials as processes: what ends one is a row with its reason, never the end of the others."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile_files import KINDS

from dtl.errors import InterruptedRun
from dtl.run_dir.sweep_records import SweepFolder, Trial
from dtl.sweeps import process
from dtl.sweeps.config import LauncherConfig
from dtl.sweeps.pool import ListSource, run_trials
from dtl.sweeps.process import TrialProcess

STAND_IN = Path(__file__).with_name("stand_in.py")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "TRAIN", (sys.executable, str(STAND_IN)))
    monkeypatch.setattr(process, "newest_valid", lambda folder: None)  # the stand-in's checkpoints are empty
    enforce = TrialProcess._enforce_time_limits

    def once_ready(trial: TrialProcess) -> None:  # on a busy machine the stand-in may start after its time is up
        if (trial._folder / "ready").exists():
            enforce(trial)

    monkeypatch.setattr(TrialProcess, "_enforce_time_limits", once_ready)
    return SweepFolder(tmp_path / "sweep of mine")


def planned(*plans: str) -> list[Trial]:
    return [Trial(number, [f"plan={plan}", f"lr=0.{number + 1}"], f"h{number}") for number, plan in enumerate(plans)]


def run(sweep: SweepFolder, trials: list[Trial], **settings: object) -> list[Trial]:
    run_trials(sweep, ListSource(trials, lambda trial: None), LauncherConfig(**settings), [], lambda trial: None, wait)
    return trials


def wait(running: list[Trial]) -> None:
    pass


@pytest.mark.quick_cases(3)
@pytest.mark.fault("sweep")
@pytest.mark.parametrize(
    ("plan", "state", "reason"),
    [
        ("finish", "finished", ""),
        ("paused", "stopped", ""),
        ("crash", "failed", "ValueError: planted"),
        ("exit", "failed", "exit code 7, see trial.log"),
        ("too large", "refused", "This run needs about 71.0 GiB"),
        ("leave", "failed", "ended before its training was finished, see trial.log"),
        ("vanish", "failed", "ended before its training was finished, see trial.log"),
        ("kill", "killed", "SIGKILL: by hand, or by the system when memory ran out"),
        ("segv", "failed", "crashed: SIGSEGV"),
    ],
)
def test_an_end_is_a_state_with_a_reason(sweep, plan, state, reason):
    bad, good = run(sweep, planned(plan, "finish"))
    assert (bad.state, bad.reason) == (state, reason)
    assert (good.state, good.value) == ("finished", 0.2)
    assert [trial.state for trial in sweep.trials()] == [state, "finished"]


def test_as_many_run_at_a_time_as_asked(sweep):
    most = 0

    def count(running: list[Trial]) -> None:
        nonlocal most
        most = max(most, len(running))

    trials = planned(*["finish"] * 5)
    run_trials(sweep, ListSource(trials, lambda trial: None), LauncherConfig(n_jobs=2), [], lambda trial: None, count)
    assert most == 2 and {trial.state for trial in trials} == {"finished"}


def test_a_trial_that_takes_too_long_saves_and_ends(sweep):
    (slow,) = run(sweep, planned("wait"), timeout_minutes=0.01)
    assert slow.state == "timed out" and "0.01 minutes" in slow.reason
    assert (sweep.trial_folder(0) / "kept.json").exists()


@pytest.mark.fault("sweep")
def test_a_trial_that_writes_nothing_hangs(sweep):
    (hung,) = run(sweep, planned("wait"), hang_minutes=0.01)
    assert hung.state == "hung" and "wrote nothing" in hung.reason


@pytest.mark.fault("sweep")
def test_a_trial_that_does_not_listen_is_killed(sweep, monkeypatch):
    monkeypatch.setattr(process, "SECONDS_TO_SAVE", 0.3)
    monkeypatch.setattr(process, "SECONDS_TO_END", 0.3)
    (deaf,) = run(sweep, planned("deaf"), timeout_minutes=0.01)
    assert deaf.state == "timed out" and deaf.exit_code is not None and deaf.exit_code < 0


def test_ctrl_c_stops_the_running_and_starts_no_other(sweep):
    trials = planned("finish", "wait", "finish")
    pressed: list[int] = []

    def press(running: list[Trial]) -> None:
        ready = (sweep.trial_folder(1) / "ready").exists()
        if [trial.number for trial in running] == [1] and ready and not pressed:
            pressed.append(1)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRun):
        run_trials(sweep, ListSource(trials, lambda trial: None), LauncherConfig(), [], lambda trial: None, press)
    assert [trial.state for trial in trials] == ["finished", "interrupted", "waiting"]
    assert (sweep.trial_folder(1) / "kept.json").exists()


def test_the_second_attempt_resumes_where_something_was_saved_and_begins_anew_where_not(sweep):
    trials = run(sweep, planned("killed once", "kill"))
    assert [trial.state for trial in trials] == ["killed", "killed"]
    (sweep.trial_folder(1) / "leftover").touch()
    trials[1].overrides[0] = "plan=finish"
    run(sweep, trials)
    assert [trial.state for trial in trials] == ["finished", "finished"]
    assert [trial.attempts for trial in trials] == [2, 2]
    resumed = json.loads((sweep.trial_folder(0) / "kept.json").read_text())["arguments"]
    assert resumed[1] == [f"resume='{sweep.trial_folder(0)}'"]
    assert not (sweep.trial_folder(1) / "leftover").exists()
    assert (sweep.trial_folder(1) / "trial.log").read_text().count("--- ") == 2  # the log of every attempt


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop"])
def test_what_is_no_log_is_set_aside(sweep, kind):
    """Opening a FIFO would wait for ever; a sweep that could not write the log would end with all its trials."""
    trials = run(sweep, planned("killed once", "finish"))
    log = sweep.trial_folder(0) / "trial.log"
    log.unlink()
    KINDS[kind](log)
    run(sweep, trials)
    assert [trial.state for trial in trials] == ["finished", "finished"]
    assert log.is_file() and log.read_text().count("--- ") == 1 and os.path.lexists(f"{log}.old")


def test_every_attempt_gets_the_flags_and_the_second_the_plugins_of_the_sweep(sweep):
    """A recipe may name plugins: a resumed run takes none from its own folder, and reads no recipe."""
    (trial,) = planned("killed once")
    trial.plugins = ["my_lab.a", "my_lab.b"]
    shared = ["--config-dir=/my conf", "hydra.searchpath=[x]"]
    for _ in range(2):
        source = ListSource([trial], lambda trial: None)
        run_trials(sweep, source, LauncherConfig(), shared, lambda trial: None, wait)
    first, second = json.loads((sweep.trial_folder(0) / "kept.json").read_text())["arguments"]
    assert first[:2] == shared
    assert second == [shared[0], f"resume='{sweep.trial_folder(0)}'", "plugins=[my_lab.a,my_lab.b]"]


def test_a_trial_ends_with_its_sweep(sweep, tmp_path):
    """The sweep is killed with SIGKILL: its trial notices, saves and ends."""
    program = f"""
import sys; from pathlib import Path
from dtl.sweeps import process
process.TRAIN = (sys.executable, {str(STAND_IN)!r})
from dtl.sweeps.config import LauncherConfig; from dtl.run_dir.sweep_records import SweepFolder, Trial
sweep = SweepFolder(Path({str(tmp_path / "killed")!r}))
trial = process.TrialProcess(sweep, Trial(0, ["plan=wait"], "h"), LauncherConfig(), [])
print(trial._process.pid, flush=True)
import time; time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    while not (tmp_path / "killed" / "0" / "ready").exists():
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 600
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the trial outlived its sweep"
        time.sleep(0.05)
    assert json.loads((tmp_path / "killed" / "0" / "result.json").read_text())["state"] == "interrupted"


def test_an_orphan_that_hangs_is_killed_before_its_trial_goes_on(tmp_path, monkeypatch):
    """The trial of a killed sweep keeps the lock of its run; two processes in one folder would corrupt it."""
    monkeypatch.setattr(process, "SECONDS_FOR_AN_ORPHAN", 0.3)
    program = f"""
import time; from pathlib import Path
from dtl.checkpoints.upkeep import lock_run
with lock_run(Path({str(tmp_path)!r})):
    print("held", flush=True); time.sleep(600)
"""
    orphan = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert orphan.stdout is not None and orphan.stdout.readline() == "held\n"
    process.end_orphan(tmp_path)
    assert orphan.wait(timeout=600) == -signal.SIGKILL
    orphan.stdout.close()


def test_threads_are_shared_between_trials(sweep, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    trial = TrialProcess(sweep, planned("finish")[0], LauncherConfig(n_jobs=3), [])
    assert trial._environment()["OMP_NUM_THREADS"] == "2"
    while not trial.poll():
        time.sleep(0.02)
