"""Lists and verifies the checkpoints of a run, and finds the newest valid one and the best.

    <run>/checkpoints/step-00001000/   one folder for each saved step, valid when its manifest verifies
    <run>/checkpoints/best/            a copy of the best of them

Order is by the step in the manifest, never by file times. Nothing here writes; nothing here imports torch.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dtl.base.files import ASIDE, MANIFEST, Manifest, read_manifest, verify_manifest
from dtl.base.json_files import as_object, as_whole, read_json_or_empty
from dtl.base.units import number_of
from dtl.errors import CheckpointError

# 2: config.json has the prompt of the questions (dtl/data/tokenizers/prompt.py), and raw.safetensors may exist
FORMAT_VERSION = 2
MODEL_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
STATE_FILES = ("state.json", "optimizer.safetensors")
RAW = "raw.safetensors"  # the trained weights, where model.safetensors has their average (trainer.ema_decay)
FILES = (*MODEL_FILES, *TOKENIZER_FILES, *STATE_FILES, "generation_config.json", "config.yaml")
_STEP_FOLDER = re.compile(r"step-(\d{1,18})(\.old)?")


@dataclass(frozen=True)
class Checkpoint:
    """One entry of a run's checkpoints. `problem` describes damage in one line; None means valid."""

    path: Path
    step: int
    epoch: int | None = None  # None when the manifest cannot be read
    digest: str = ""  # equal for checkpoints of equal contents
    problem: str | None = None


def step_folder(run_dir: Path, step: int) -> Path:
    """The folder of the checkpoint of this step."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def is_checkpoint(folder: Path) -> bool:
    """Return True when a folder is a checkpoint of DTL, valid or not, rather than another Hugging Face directory."""
    return any((folder / name).exists() for name in (MANIFEST, *STATE_FILES))


def verify(folder: Path, only: Collection[str] | None = None, contents: bool = True) -> Manifest:
    """Verify a checkpoint: all its files, or the contents of those in `only`.

    `contents=False` checks the manifest, the names and the sizes only, without reading the files.
    Raises CheckpointError naming the damaged file and the alternatives.
    """
    try:
        manifest = verify_manifest(folder, only) if contents else read_manifest(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\n{_hint(folder)}") from error
    version = manifest.facts.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}: written in format {version} by a newer DTL; this one reads up to {FORMAT_VERSION}. Upgrade DTL."
        )
    missing = [name for name in FILES if name not in manifest.files]
    numbers = [manifest.facts.get(key) for key in ("format_version", "step", "epoch")]
    if missing or not all(isinstance(number, int) for number in numbers):
        raise CheckpointError(f"{folder / MANIFEST}: not the manifest of a checkpoint.\n{_hint(folder)}")
    named = _STEP_FOLDER.fullmatch(folder.name)
    if named and int(named[1]) != manifest.facts["step"]:
        raise CheckpointError(f"{folder / MANIFEST}: belongs to step {manifest.facts['step']}.\n{_hint(folder)}")
    return manifest


def _hint(folder: Path) -> str:
    if folder.parent.name == "checkpoints":
        return (
            "Nothing was loaded from it, nothing was deleted. "
            f"Give the run's folder instead, {folder.parent.parent}: its newest valid checkpoint is used."
        )
    return "Nothing was loaded from it. Copy the folder again from its source, or use another checkpoint."


def inspect(folder: Path, only: Collection[str] | None = None, contents: bool = True) -> Checkpoint:
    """The entry of one checkpoint folder. Damage does not raise: it is the entry's `problem`."""
    try:
        manifest = verify(folder, only, contents)
    except CheckpointError as error:
        named = _STEP_FOLDER.fullmatch(folder.name)
        return Checkpoint(folder, int(named[1]) if named else 0, problem=str(error).partition("\n")[0])
    return Checkpoint(folder, manifest.facts["step"], manifest.facts["epoch"], manifest.digest)


def list_checkpoints(run_dir: Path, contents: bool = True) -> list[Checkpoint]:
    """The checkpoints of a run, valid and damaged, newest step first, without `best`.

    With `contents=False` only manifests, names and sizes are checked. A `step-*.old`, left by a kill between two
    renames, counts only while there is no valid checkpoint under its own name.
    """
    entries = [inspect(folder, contents=contents) for folder in step_folders(run_dir)]
    valid = {entry.path.name for entry in entries if entry.problem is None}
    return sorted(
        (
            entry
            for entry in entries
            if not (entry.path.name.endswith(ASIDE) and entry.path.name.removesuffix(ASIDE) in valid)
        ),
        key=_newest_first,
    )


def step_folders(run_dir: Path) -> list[Path]:
    """The folders of all saved steps including `step-*.old`, unordered."""
    try:
        folders = list((run_dir / "checkpoints").iterdir())
    except OSError:
        return []
    return [folder for folder in folders if _STEP_FOLDER.fullmatch(folder.name) and folder.is_dir()]


def step_of(folder: Path) -> int:
    """The step in the name of one of `step_folders`; a valid manifest has the same step."""
    return int(folder.name.removesuffix(ASIDE).rpartition("-")[2])


def _newest_first(entry: Checkpoint) -> tuple[int, bool, str]:
    is_step = _STEP_FOLDER.fullmatch(entry.path.name) is not None
    return -entry.step, not is_step, entry.path.name  # a step's own folder before best, and before step-*.old


def best_checkpoint(run_dir: Path, only: Collection[str] | None = None, contents: bool = True) -> Checkpoint | None:
    """The entry of `checkpoints/best`, or of `best.old` when only that is valid. It has a `problem` when neither is
    valid; None when neither exists."""
    folders = [run_dir / "checkpoints" / name for name in ("best", f"best{ASIDE}")]
    entries = [inspect(folder, only, contents) for folder in folders if folder.is_dir()]
    return next((entry for entry in entries if entry.problem is None), entries[0] if entries else None)


def recorded_best_step(run_dir: Path) -> int | None:
    """The best step so far as the newest readable state.json of the run's steps records it; None before the first
    evaluation."""
    for folder in sorted(step_folders(run_dir), key=step_of, reverse=True):
        if state := read_json_or_empty(folder / "state.json"):
            return as_whole(as_object(state.get("train")).get("best_step"))
    return None


def best_problem(run_dir: Path) -> str | None:
    """Why `checkpoints/best` of a run that was evaluated cannot be used, in one line; None where it can, by names and
    sizes."""
    best, folder = best_checkpoint(run_dir, contents=False), run_dir / "checkpoints" / "best"
    if best is not None:
        return best.problem
    return None if recorded_best_step(run_dir) is None else f"{folder}: missing."


def newest_valid(run_dir: Path) -> tuple[Checkpoint, str | None]:
    """The newest valid checkpoint of a run, and a message about damaged ones before it, or None.

    All its files are verified. `best` counts as one. Raises CheckpointError when there is no valid one.
    """
    entries = [Checkpoint(folder, step_of(folder)) for folder in step_folders(run_dir)]
    best = best_checkpoint(run_dir, contents=False)
    damaged: list[Checkpoint] = []
    for entry in sorted(entries if best is None else [*entries, best], key=_newest_first):
        checked = entry if entry.problem else inspect(entry.path)  # for a long run only the newest is read
        if checked.problem is None:
            return checked, _damage_message(damaged, checked)
        damaged.append(checked)
    if not damaged:
        raise CheckpointError(f"{run_dir}: has no checkpoint. The first one is saved at trainer.save_every_steps.")
    raise CheckpointError(
        f"{run_dir}: none of its {number_of('checkpoints', len(damaged))} is valid.\n"
        + "".join(f"  {entry.problem}\n" for entry in damaged[:3])
        + "Nothing was deleted. Copy one of them from a backup, or start the run again."
    )


def _damage_message(damaged: list[Checkpoint], used: Checkpoint) -> str | None:
    if not damaged:
        return None
    lost = damaged[0].step - used.step
    steps = "no step is" if lost <= 0 else f"{number_of('steps', lost)} {'is' if lost == 1 else 'are'}"
    return (
        f"{damaged[0].problem}\nUsing {used.path.name} (step {used.step}) instead: {steps} lost. "
        "The damaged folder is kept."
    )
