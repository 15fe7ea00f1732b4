"""A search as it is typed: real trials, killed with SIGKILL, continued by the same command, then asked for more."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtl.run_dir.sweep_records import SweepFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "runner"))
from tiny_runs import write_pairs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")]


def command(pairs: Path, n_trials: int) -> list[str]:
    return [
        *(sys.executable, "-m", "dtl.train", "-m", "hydra/sweeper=dtl_optuna", f"hydra.sweeper.n_trials={n_trials}"),
        *("optimizer.lr=tag(log,interval(1e-4,1e-1))", "model.dropout=choice(0.0,0.1)", "sweep.confirm=2"),
        *("hydra.sweeper.pruner=asha", "hydra.sweeper.reduction_factor=2", "data=qa", f"data.path='{pairs}'"),
        *("tokenizer=byte", "trainer=debug", "trainer.total_steps=4", "trainer.eval_every_steps=1", "tracker=local"),
        *("device=cpu", "model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.ffn_dim=32", "data.seq_len=73"),
        *("trainer.sample_every_evals=0", "trainer.save_every_steps=1", "trainer.keep=1"),
    ]


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_search_is_killed_continued_confirmed_and_extended(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    with (tmp_path / "screen.txt").open("wb") as screen:
        search = subprocess.Popen(command(pairs, 3), cwd=tmp_path, stdout=screen, stderr=screen)
    until(lambda: any(tmp_path.glob("outputs/multirun/*/*/1/metrics.jsonl")) or search.poll() is not None)
    assert search.poll() is None, (tmp_path / "screen.txt").read_text()
    search.send_signal(signal.SIGKILL)
    search.wait()

    again = subprocess.run(command(pairs, 3), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    (folder,) = tmp_path.glob("outputs/multirun/*/*")
    assert "resumes" in again.stdout and "with fresh seeds" in again.stdout and "n=2" in again.stdout
    sweep = SweepFolder(folder)
    trials = sweep.trials()
    own = [trial for trial in trials if trial.role == "trial"]
    assert len(own) == 3 and all(trial.state in ("finished", "pruned") for trial in own)
    assert own[0].attempts == 1 and own[1].attempts == 2
    for trial in own:
        losses = [row["val/loss"] for row in rows(sweep.trial_folder(trial.number)) if "val/loss" in row]
        assert trial.value == pytest.approx(min(losses))
    confirmed = [trial for trial in trials if trial.role == "confirm"]
    best = min((trial for trial in own if trial.state == "finished"), key=lambda trial: trial.value)
    assert [trial.overrides for trial in confirmed] == [[*best.overrides, f"seed={1337 + n}"] for n in (1, 2)]
    winner = sweep.read().extra["winner"]
    assert winner["number"] == best.number and winner["values"] == [trial.value for trial in confirmed]

    more = subprocess.run(
        [*command(pairs, 4), f"hydra.sweep.dir='{folder}'"], cwd=tmp_path, capture_output=True, text=True
    )
    assert more.returncode == 0, more.stderr
    later = [trial for trial in sweep.trials() if trial.role == "trial"]
    assert [(t.overrides, t.value, t.attempts) for t in later[:3]] == [(t.overrides, t.value, t.attempts) for t in own]
    assert len(later) == 4


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
