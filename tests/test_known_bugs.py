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
    """An edit that brings a bug back, and the tests of which one must fail then: a file, or one law of a long file."""

    file: str
    right: str
    wrong: str
    noticed_by: str


RESUME = "tests/runner/test_resume.py::"
ENDINGS = "tests/runner/test_endings.py::"
BUGS = {
    "random-states-not-restored": Bug(
        "dtl/runner/build.py",
        'restore_random_state(values["random"], parts.device)',
        "pass",
        RESUME + "test_paused_and_gone_on_is_never_stopped",
    ),
    "moments-not-restored": Bug(
        "dtl/runner/build.py",
        "load_optimizer_tensors(parts.model, parts.trainer.optimizers, tensors)",
        "pass",
        RESUME + "test_paused_and_gone_on_is_never_stopped",
    ),
    "scale-not-restored": Bug(
        "dtl/training/trainer.py",
        'self.scaler.load_state_dict(values["scaler"])',
        "pass",
        "tests/training/test_trainer_faults.py::test_the_scale_is_in_the_state_and_comes_back",
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
        ENDINGS + "test_a_loss_that_is_not_finite_is_never_the_best",
    ),
    "patience-begins-anew": Bug(
        "dtl/training/trainer.py",
        'self.state = TrainState(**values["train"])',
        'self.state = TrainState(**values["train"] | {"evaluations_since_best": 0})',
        ENDINGS + "test_patience_is_remembered_over_a_pause",
    ),
    "rows-of-lost-steps-stay": Bug(
        "dtl/tracking/tracker.py",
        "truncate_metrics(run_dir, step, evaluated_step)",
        "pass",
        "tests/tracking/test_tracking.py",
    ),
    "a-stop-keeps-half-a-step": Bug(
        "dtl/training/trainer.py",
        "restore_generators(random, self.device)\n",
        "pass\n",
        RESUME + "test_a_signal_between_two_micro_batches_undoes_the_step",
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_the_edit_still_fits(name: str):
    bug = BUGS[name]
    assert (ROOT / bug.file).read_text(encoding="utf-8").count(bug.right) == 1
    path, _, test = bug.noticed_by.partition("::")
    assert (ROOT / path).exists()
    assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_it_is_noticed(name: str, tmp_path: Path):
    bug = BUGS[name]
    for folder in ("dtl", "conf", "hydra_plugins", "tests", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder)  # with what is compiled, as old as its source
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
            bug.noticed_by,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr  # 1: tests were run, and one failed
