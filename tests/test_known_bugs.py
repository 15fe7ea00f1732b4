"""Bugs that other trainers have had, put back one by one into a copy of DTL: the tests notice each of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Bug(NamedTuple):
    """An edit that brings a bug back, and the test file that must fail then."""

    file: str
    right: str
    wrong: str
    noticed_by: str


RESUME = "tests/training/test_trainer_resume.py tests/runner/test_resume.py"
BUGS = {
    "random-states-not-restored": Bug(
        "dtl/runner/build.py", 'restore_random_state(values["random"], parts.device)', "pass", RESUME
    ),
    "moments-not-restored": Bug(
        "dtl/runner/build.py",
        "load_optimizer_tensors(parts.model, parts.trainer.optimizers, tensors)",
        "pass",
        RESUME,
    ),
    "scale-not-restored": Bug(
        "dtl/training/trainer.py",
        'self.scaler.load_state_dict(values["scaler"])',
        "pass",
        "tests/training/test_trainer_faults.py",
    ),
    "every-epoch-in-one-order": Bug(
        "dtl/data/batches.py",
        "drawn[epoch_order(seed, epoch, len(drawn))]",
        "drawn[epoch_order(seed, 0, len(drawn))]",
        "tests/data/test_batches.py",
    ),
    "accumulation-is-a-mean-of-means": Bug(
        "dtl/training/trainer.py",
        "n_targets = max(1, sum(batch.n_targets for batch in batches))",
        "n_targets = len(batches) * max(1, batches[0].n_targets)",
        "tests/training",
    ),
    "written-in-place": Bug(
        "dtl/base/files.py",
        "    temporary = unfinished(path)\n    try:\n        with temporary.open",
        "    temporary = path\n    try:\n        with temporary.open",
        "tests/base/test_durable.py",
    ),
    "renamed-before-it-is-on-the-disk": Bug(
        "dtl/base/files.py",
        "            file.flush()\n            _flush_to_disk(file.fileno())\n        os.replace",
        "            file.flush()\n        os.replace",
        "tests/base/test_durable.py",
    ),
    "order-by-the-times-of-files": Bug(
        "dtl/checkpoints/listing.py",
        "return -entry.step, not is_step, entry.path.name",
        "return -entry.path.stat().st_mtime_ns, not is_step, entry.path.name",
        "tests/checkpoints/test_checkpoint_store.py",
    ),
    "damage-is-not-looked-for": Bug(
        "dtl/base/files.py",
        'intact = digest.result() == manifest.files[name]["sha256"]',
        "intact = bool(digest.result())",
        "tests/checkpoints/test_checkpoint_faults.py",
    ),
    "the-best-is-rotated-away": Bug(
        "dtl/checkpoints/upkeep.py",
        "for entry in _without(best, surplus):",
        "for entry in surplus:",
        "tests/checkpoints/test_checkpoint_store.py",
    ),
    "nan-is-the-best": Bug(
        "dtl/runner/session.py",
        "better = math.isfinite(result.loss) and (",
        "better = not result.loss >= (state.best_loss or math.inf) or (",
        "tests/runner/test_endings.py",
    ),
    "patience-begins-anew": Bug(
        "dtl/training/trainer.py",
        'self.state = TrainState(**values["train"])',
        'self.state = TrainState(**values["train"] | {"evaluations_since_best": 0})',
        "tests/runner/test_endings.py",
    ),
    "rows-of-lost-steps-stay": Bug(
        "dtl/tracking/tracker.py",
        "truncate_metrics(run_dir, step, evaluated_step)",
        "pass",
        "tests/tracking/test_tracking.py",
    ),
    "a-stop-keeps-half-a-step": Bug(
        "dtl/training/trainer.py",
        "restore_random_state(before, self.device)\n",
        "pass\n",
        "tests/runner/test_resume.py",
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_the_edit_still_fits(name: str):
    bug = BUGS[name]
    assert (ROOT / bug.file).read_text(encoding="utf-8").count(bug.right) == 1
    assert all((ROOT / path).exists() for path in bug.noticed_by.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_it_is_noticed(name: str, tmp_path: Path):
    bug = BUGS[name]
    for folder in ("dtl", "conf", "hydra_plugins", "tests", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / bug.file
    file.write_text(file.read_text(encoding="utf-8").replace(bug.right, bug.wrong), encoding="utf-8")
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-m",
            "not slow and not gpu",
            "-p",
            "no:cacheprovider",
            *bug.noticed_by.split(),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr  # 1: tests were run, and one failed
