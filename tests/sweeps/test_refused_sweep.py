"""A sweep of which nothing can be run, as it is typed: one message, and nothing on the disk that was not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from dtl.run_dir.provenance import write_result
from dtl.run_dir.sweep_records import SweepFolder, SweepRecord, Trial
from dtl.sweeps.grid import NoTrialError

BAD = ("model.n_heads=7", "data=qa", "tracker=local")


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m dtl.train -m`, which ends its error output with the heavy modules that it has imported."""
    program = """
import atexit, sys
atexit.register(lambda: print(*{"torch", "pyarrow", "optuna"} & set(sys.modules), file=sys.stderr))
from dtl.train import main
main()
"""
    call = [sys.executable, "-c", program, "-m", *arguments]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True)


def test_a_grid_is_refused_without_torch_and_leaves_nothing(tmp_path):
    done = train(tmp_path, *BAD, "seed=1,2,3")
    *message, heavy = done.stderr.splitlines()
    assert (done.returncode, done.stdout, heavy) == (2, "", "")
    assert message[0] == "Error: none of the 3 trials can be run:" and "must divide model.dim=256" in message[1]
    assert len(message) == 2 and [path.name for path in tmp_path.rglob("*")] == ["outputs"]


def test_a_search_leaves_nothing_either(tmp_path):
    done = train(
        tmp_path, *BAD, "hydra/sweeper=dtl_optuna", "optimizer.lr=interval(0.1,0.2)", "hydra.sweeper.n_trials=3"
    )
    assert done.returncode == 2 and "Error: none of the 3 trials can be run:" in done.stderr, done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["outputs"]


SEARCH = ("hydra/sweeper=dtl_optuna", "hydra.sweeper.pruner=asha", "optimizer.lr=interval(0.1,0.2)", "tracker=local")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("data", [["data=qa"], ["data=text", "data.validation_fraction=0"]])
def test_a_search_without_validation_data_is_refused_before_its_first_trial(tmp_path, data):
    """Also where the data alone tell: few questions of one's own."""
    (tmp_path / "mine.jsonl").write_text('{"question": "Who?", "answer": "I.", "text": "I."}\n' * 3)
    done = train(tmp_path, *SEARCH, *data, "data.path=mine.jsonl")
    (message, heavy) = done.stderr.splitlines()
    assert (done.returncode, done.stdout, heavy) == (2, "", "optuna")
    assert message.startswith("Error: hydra/sweeper=dtl_optuna: a search compares validation losses, and nothing is")
    assert "Set data.validation_fraction=0.1" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.jsonl"]


def test_a_sweep_that_was_there_stays(tmp_path):
    sweep = SweepFolder(tmp_path / "outputs" / "multirun" / "2026-01-02" / "03-04-05-6")
    sweep.path.mkdir(parents=True)
    sweep.write(SweepRecord([*BAD, "seed=1,2"], state="interrupted", started="2026-01-02T03:04:05+00:00"))
    sweep.keep(Trial(0, ["seed=1", "model.n_heads=8"], "hash", state="finished"))
    write_result(sweep.trial_folder(0), "finished", 0.5, 3, "hash")
    done = train(tmp_path, *BAD, "seed=1,2", "sweep.retry_failed=true")
    assert done.returncode == 1 and "2 of 2 trials did not finish" in done.stderr
    assert "trial 2 refused: model.n_heads=7: must divide" in done.stdout and "trial.log" not in done.stdout
    assert [(trial.state, trial.attempts) for trial in sweep.trials()[1:]] == [("refused", 0)] * 2


def test_files_of_somebody_in_a_named_folder_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    assert train(tmp_path, *BAD, "hydra.sweep.dir=mine").returncode == 2
    assert (tmp_path / "mine" / "notes.txt").exists()


@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_a_message_names_the_first_few_reasons(n):
    message = str(NoTrialError(([f"a={i}", "b=1"], f"a={i}: cannot be") for i in range(n)))
    assert [f"a={i}: cannot be" in message for i in range(n)] == [True] * min(n, 3) + [False] * max(0, n - 3)
    rest = {4: "... and 1 other reason", 5: "... and 2 other reasons"}
    assert message.splitlines()[-1].strip() == rest.get(n, f"a={n - 1}: cannot be")
