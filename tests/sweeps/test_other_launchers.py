"""Sweeps under Hydra's own launchers, for real: joblib, submitit on this machine, submitit on a stand-in for SLURM."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dtl.tracking.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).parent))
import stand_in_slurm

sys.path.insert(0, str(Path(__file__).parents[1] / "runner"))
from tiny_runs import write_pairs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals")]


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install -e '.[sweep]'")


def sweep(folder: Path, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m dtl.train -m` with tiny runs; `path` is a folder with extra commands, in front of the system's."""
    if not (pairs := folder / "pairs.jsonl").exists():
        write_pairs(pairs)
    tiny = [
        *("plugins=[cut_short]", "data=qa", "data.path=pairs.jsonl", "tokenizer=byte", "trainer=debug"),
        *("tracker=local", "device=cpu", "model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.ffn_dim=32"),
        *("data.seq_len=73", "trainer.total_steps=11", "trainer.save_every_steps=4", "trainer.sample_every_evals=0"),
        *("optimizer.name=cut_short", "optimizer.lr=0.05"),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "dtl.train", "-m", *tiny, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def night(folder: Path) -> Path:
    """The folder of the one sweep: the workers agree on it with the process that started them."""
    (sweep_dir,) = (folder / "outputs").glob("multirun/*/*")
    assert [path.name for path in (folder / "outputs").iterdir()] == ["multirun"]
    return sweep_dir


def shown_by(command: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-m", command], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trial(folder: Path, number: int) -> tuple[str, float, list[tuple[int, float]]]:
    """Return the state of a trial, its best loss, and the loss of each step."""
    run_dir = night(folder) / f"{number}"
    result = json.loads((run_dir / "result.json").read_text())
    losses = [(row["step"], row["train/loss"]) for row in read_metrics(run_dir) if "train/loss" in row]
    return result["state"], result["value"], losses


def sessions(folder: Path, number: int) -> int:
    return len(json.loads((night(folder) / f"{number}" / "run.json").read_text())["sessions"])


def all_but_the_failed_ended_alike(folder: Path, done: subprocess.CompletedProcess[str], n_alike: int) -> None:
    """The last trial raises; the first was left alone, and those between are to end with its bits."""
    assert done.returncode == 1 and "The sweep has ended, but job" in done.stderr, done.stdout + done.stderr
    state, _, losses = trial(folder, 0)
    assert state == "finished" and [step for step, _ in losses] == [*range(1, 12)]
    assert [trial(folder, number) for number in range(1, n_alike)] == [trial(folder, 0)] * (n_alike - 1)
    assert trial(folder, n_alike)[0] == "failed"


@needs("hydra_plugins.hydra_joblib_launcher")
def test_joblib_runs_all_and_goes_on_in_the_same_folder(elsewhere):
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "optimizer.options.how=nothing,raise"]
    all_but_the_failed_ended_alike(elsewhere, sweep(elsewhere, *words), 1)
    again = sweep(elsewhere, *words, f"hydra.sweep.dir={night(elsewhere)}")
    assert again.returncode == 0, again.stdout + again.stderr
    assert trial(elsewhere, 1) == trial(elsewhere, 0)
    assert sessions(elsewhere, 1) == 2
    status, report = shown_by("dtl.sweep", elsewhere), shown_by("dtl.report", elsewhere)
    assert "2 finished, of 2" in status and "how=raise" in status
    assert "2, 2 finished" in report and f"Report: {night(elsewhere).relative_to(elsewhere)}/report" in report


@needs("submitit")
def test_two_sweeps_of_submitit_here_are_two_folders_of_all_their_runs(elsewhere):
    for seeds in ("seed=1,2", "seed=3,5"):
        done = sweep(elsewhere, "hydra/launcher=submitit_local", "optimizer.options.how=nothing", seeds)
        assert done.returncode == 0, done.stdout + done.stderr
    folders = sorted((elsewhere / "outputs").glob("multirun/*/*"))
    assert [sorted(path.name for path in folder.glob("[0-9]*")) for folder in folders] == [["0", "1"]] * 2


@needs("hydra_plugins.hydra_joblib_launcher")
def test_a_folder_with_another_run_is_refused(elsewhere):
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert sweep(elsewhere, *words, "optimizer.options.how=nothing", "seed=2").returncode == 0
    before = trial(elsewhere, 0)
    same = f"hydra.sweep.dir={night(elsewhere)}"
    other = sweep(elsewhere, *words, "optimizer.options.how=nothing", "seed=3", same)
    assert other.returncode == 1 and "contains a run" in other.stderr
    assert trial(elsewhere, 0) == before


@needs("submitit")
def test_submitit_here_puts_a_job_into_the_queue_again_and_it_goes_on(elsewhere):
    words = ["hydra/launcher=submitit_local", "optimizer.options.how=nothing,requeue,raise"]
    all_but_the_failed_ended_alike(elsewhere, sweep(elsewhere, *words), 2)
    assert [sessions(elsewhere, number) for number in range(3)] == [1, 2, 1]
    assert not (night(elsewhere) / "1" / "metrics.lost.jsonl").exists()  # it was saved where it was


@needs("submitit")
def test_slurm_puts_preempted_jobs_into_the_queue_again_and_they_go_on(elsewhere):
    slurm = elsewhere / "bin"
    stand_in_slurm.install(slurm)
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=240"]
    words.append("optimizer.options.how=nothing,requeue,preempt,raise")
    all_but_the_failed_ended_alike(elsewhere, sweep(elsewhere, *words, path=slurm), 3)
    assert [sessions(elsewhere, number) for number in range(4)] == [1, 2, 2, 1]
    script = (slurm / "script.sh").read_text()
    assert "--array=0-3%4" in script and "--time=240" in script and "--signal=USR2@120" in script
    assert (slurm / "calls.txt").read_text().count("scontrol requeue 4242_1\n") == 1
