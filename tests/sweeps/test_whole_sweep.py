"""A night's sweep in minutes: 40 trials of which 12 fail in six ways, killed five times and started again each time."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from dtl.config import typed
from dtl.run_dir.sweep_records import SweepFolder, Trial
from dtl.runner.run import train

sys.path.insert(0, str(Path(__file__).parents[1] / "runner"))
from tiny_runs import write_pairs

sys.path.insert(0, str(Path(__file__).parent))
from planted_cases import N_CASES, failure_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")]

KILLS = 5
REASONS = {
    "raise": "RuntimeError: planted",
    "exit": "sys.exit(9), without a message",
    "nan": "not finite",
    "memory": "Out of memory",
    "hang": "wrote nothing for",
    "kill": "SIGKILL",
}
STATES = {"hang": "hung", "kill": "killed"}


def command(pairs: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "dtl.train", "-m", "plugins=[planted]", "data=qa", f"data.path='{pairs}'"),
        *("tokenizer=byte", "trainer=debug", "tracker=local", "device=cpu", "model.dim=16", "model.n_layers=1"),
        *("model.n_heads=2", "model.ffn_dim=32", "data.seq_len=73", "trainer.save_every_steps=1", "trainer.keep=1"),
        *("optimizer.name=planted", "optimizer.lr=0.01", f"optimizer.options.case=range(0,{N_CASES})"),
        *("hydra.launcher.n_jobs=3", "hydra.launcher.hang_minutes=0.75", "trainer.sample_every_evals=0"),
    ]


@pytest.mark.fault("sweep", "sweep-kill")
def test_a_sweep_survives_its_trials_and_its_own_death(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    dice = random.Random(13)
    for _ in range(KILLS):
        with (tmp_path / "screen.txt").open("ab") as screen:
            sweep = subprocess.Popen(command(pairs), cwd=tmp_path, env=environment, stdout=screen, stderr=screen)
            before = attempts(tmp_path)
            while attempts(tmp_path) == before:  # on a busy machine the first trial begins late
                assert sweep.poll() is None, (tmp_path / "screen.txt").read_text()
                time.sleep(0.5)
            time.sleep(dice.uniform(0.0, 15.0))
            assert sweep.poll() is None, (tmp_path / "screen.txt").read_text()
            sweep.send_signal(signal.SIGKILL)
            sweep.wait()
    done = subprocess.run(command(pairs), cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert done.returncode == 1 and "12 of 40 trials did not finish" in done.stderr, done.stdout + done.stderr
    (folder,) = tmp_path.glob("outputs/multirun/*/*")
    trials = {case_of(trial): trial for trial in SweepFolder(folder).trials()}
    assert sorted(trials) == list(range(N_CASES))
    for case, trial in trials.items():
        failure = failure_of(case)
        assert trial.state == (STATES.get(failure, "failed") if failure else "finished"), trial
        assert REASONS[failure] in trial.reason if failure else trial.reason == ""
    kinds = Counter(failure_of(case) for case in trials)
    assert kinds.pop(None) == 28 and set(kinds.values()) == {2}
    assert sum(trial.attempts for trial in trials.values()) > N_CASES  # some were killed with their sweep

    torch.set_num_threads(1)
    for case in sorted(case for case in trials if not failure_of(case))[::9]:
        config = typed(yaml.safe_load((folder / str(trials[case].number) / "config.yaml").read_text()))
        assert train(config, tmp_path / f"alone {case}") == trials[case].value  # to the bit


def attempts(outputs: Path) -> int:
    """The attempts of all trials, begun or ended."""
    folders = outputs.glob("outputs/multirun/*/*")
    return sum(trial.attempts for folder in folders for trial in SweepFolder(folder).trials())


def case_of(trial: Trial) -> int:
    return next(int(one.partition("=")[2]) for one in trial.overrides if "options.case=" in one)
