"""Signals and kills from outside: SIGKILL at any moment costs time alone; Ctrl-C and SIGTERM end a run politely."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import result, steps_kept, write_pairs

from dtl.tracking.metrics import read_metrics

posix = pytest.mark.skipif(os.name == "nt", reason="Windows knows neither fork nor these signals")


@pytest.mark.fault("kill")
@posix
@pytest.mark.parametrize(
    "n_kills, seed, words",
    [
        pytest.param(5, 1, [], marks=pytest.mark.slow),
        pytest.param(60, 2, [], marks=pytest.mark.slow),
        pytest.param(30, 3, ["nothing_held_out"], marks=pytest.mark.slow),
        pytest.param(200, 4, [], marks=pytest.mark.torture),
    ],
)
def test_killed_runs_end_as_if_never_killed(
    tmp_path: Path, figure: Any, n_kills: int, seed: int, words: list[str]
) -> None:
    script = Path(__file__).with_name("kill_runs.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(n_kills), str(seed), *words], capture_output=True, text=True
    )
    error = tmp_path / "error.txt"
    assert ran.returncode == 0, ran.stderr + (error.read_text() if error.exists() else "")
    report = json.loads(ran.stdout)
    figure("SIGKILLs of runs, which must end equal to the bit", n_kills, len(report["differing"]))
    assert len(report["kills"]) == n_kills
    assert sum(kill["in_a_save"] for kill in report["kills"]) >= n_kills // 5
    assert report["differing"] == []


@pytest.mark.fault("kill-in-save")
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, of the package strace")
@pytest.mark.parametrize(  # at each kind of call, at most
    "n_kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(25, marks=pytest.mark.torture)]
)
def test_a_kill_at_any_system_call_of_a_save_changes_nothing(tmp_path: Path, figure: Any, n_kills: int) -> None:
    script = Path(__file__).with_name("kill_at_syscalls.py")
    ran = subprocess.run([sys.executable, str(script), str(tmp_path), str(n_kills)], capture_output=True, text=True)
    if "strace cannot attach" in ran.stderr and "Operation not permitted" in ran.stderr:
        pytest.skip("strace may not attach to a process here")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    print(report)
    n_killed = sum(report["kills"].values())
    figure("SIGKILLs at system calls of a save, resumed equal to the bit", n_killed, len(report["differing"]))
    assert report["differing"] == []
    assert n_killed >= 5 * n_kills and all(report["kills"][call] for call in ("openat", "write", "fsync", "rename"))


# --- the command ----------------------------------------------------------------------------------------------------

SETTINGS = [
    "data=qa",
    "tokenizer=byte",
    "tracker=local",
    "trainer=debug",
    "model.dim=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.max_seq_len=73",
    "data.seq_len=73",
    "sampling.max_new_tokens=3",
    "trainer.total_steps=100000",
    "trainer.eval_every_steps=null",
]
DEADLINE = 120.0


@pytest.fixture
def running(elsewhere: Path) -> Any:
    """Start `python -m dtl.train` on facts of its own, and wait until it has trained some steps."""
    pairs = write_pairs(elsewhere / "pairs.jsonl", n_facts=101)
    processes: list[subprocess.Popen[str]] = []

    def start(*more: str) -> tuple[subprocess.Popen[str], Path]:
        words = [*SETTINGS, f"data.path={pairs}", *more] if "resume=latest" not in more else list(more)
        process = subprocess.Popen(
            [sys.executable, "-m", "dtl.train", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process, wait_for_steps(process, elsewhere)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_steps(process: subprocess.Popen[str], folder: Path) -> Path:
    """The folder of the run, once three steps are on record."""
    began = time.monotonic()
    while time.monotonic() - began < DEADLINE:
        for metrics in folder.glob("outputs/*/*/metrics.jsonl"):
            if len(read_metrics(metrics.parent)) >= 3:
                return metrics.parent
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("The run has not begun to train.")


@pytest.mark.fault("signal")
@posix
@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_a_checkpoint_and_its_own_code(running: Any, number: int, code: int) -> None:
    process, run_dir = running()
    process.send_signal(number)
    _, shown = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, shown
    step = result(run_dir)["step"]
    assert result(run_dir)["state"] == "interrupted"
    assert steps_kept(run_dir) == [step]
    assert read_metrics(run_dir)[-1]["step"] == step
    assert f"Stopped at step {step} and saved. Resume with: python -m dtl.train resume=" in shown
    assert "Traceback" not in shown

    ran = subprocess.run(
        [sys.executable, "-m", "dtl.train", "resume=latest", f"trainer.total_steps={step + 2}"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert f"Resumed at step {step}: weights, optimizer state" in ran.stdout  # the new length is a new schedule
    assert result(run_dir) == result(run_dir) | {"state": "finished", "step": step + 2}


@pytest.mark.fault("two-signals")
@posix
@pytest.mark.slow
def test_two_signals_end_the_command_at_once(running: Any) -> None:
    process, run_dir = running()
    os.kill(process.pid, signal.SIGSTOP)  # both arrive before the step is over
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    _, shown = process.communicate(timeout=DEADLINE)
    assert process.returncode == 143, shown  # of the second, which ended it
    assert result(run_dir)["state"] == "interrupted"
    assert steps_kept(run_dir) == []
    assert "Traceback" not in shown
