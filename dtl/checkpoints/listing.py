"""The checkpoints that a run has: which are there, which are whole, which is the newest, which is the best.

    <run>/checkpoints/step-00001000/   one folder for each saved step, whole when its manifest verifies
    <run>/checkpoints/best/            a copy of the best of them

Order is by the step in the manifest, never by a clock. Nothing here writes; nothing here imports torch.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dtl.base.files import ASIDE, MANIFEST, Manifest, read_manifest, verify_manifest
from dtl.errors import CheckpointError

FORMAT_VERSION = 1
MODEL_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
STATE_FILES = ("state.json", "optimizer.safetensors")
FILES = (*MODEL_FILES, *TOKENIZER_FILES, *STATE_FILES, "generation_config.json", "config.yaml")
_STEP_FOLDER = re.compile(r"step-(\d{1,18})(\.old)?")


@dataclass(frozen=True)
class Checkpoint:
    """One entry of a run's checkpoints. `problem` says in one line what is wrong with it; None means whole."""

    path: Path
    step: int
    epoch: int | None = None  # None where the manifest cannot be read
    digest: str = ""  # equal for checkpoints of equal contents
    problem: str | None = None


def step_folder(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of this step lies."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of DTL, whole or not, rather than any Hugging Face directory."""
    return any((folder / name).exists() for name in (MANIFEST, *STATE_FILES))


def verify(folder: Path, only: Collection[str] | None = None, contents: bool = True) -> Manifest:
    """Check that a checkpoint is what was written: all its files, or the contents of those in `only`.

    `contents=False` looks at the manifest, the names and the sizes alone, which takes no time.
    Raises CheckpointError naming the damaged file and the way on.
    """
    try:
        manifest = verify_manifest(folder, only) if contents else read_manifest(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\n{_way_on(folder)}") from error
    version = manifest.facts.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}: written in format {version} by a newer DTL; this one reads up to {FORMAT_VERSION}. Upgrade DTL."
        )
    missing = [name for name in FILES if name not in manifest.files]
    numbers = [manifest.facts.get(key) for key in ("format_version", "step", "epoch")]
    if missing or not all(isinstance(number, int) for number in numbers):
        raise CheckpointError(f"{folder / MANIFEST}: not the manifest of a checkpoint.\n{_way_on(folder)}")
    named = _STEP_FOLDER.fullmatch(folder.name)
    if named and int(named[1]) != manifest.facts["step"]:
        raise CheckpointError(f"{folder / MANIFEST}: is that of step {manifest.facts['step']}.\n{_way_on(folder)}")
    return manifest


def _way_on(folder: Path) -> str:
    if folder.parent.name == "checkpoints":
        return (
            "Nothing was loaded from it, nothing was deleted. "
            f"Give the run's folder instead, {folder.parent.parent}: its newest whole checkpoint is used."
        )
    return "Nothing was loaded from it. Copy the folder again from where it came from, or use another checkpoint."


def inspect(folder: Path, only: Collection[str] | None = None, contents: bool = True) -> Checkpoint:
    """The entry of one checkpoint folder. Damage raises nothing: it is the entry's `problem`."""
    try:
        manifest = verify(folder, only, contents)
    except CheckpointError as error:
        named = _STEP_FOLDER.fullmatch(folder.name)
        return Checkpoint(folder, int(named[1]) if named else 0, problem=str(error).partition("\n")[0])
    return Checkpoint(folder, manifest.facts["step"], manifest.facts["epoch"], manifest.digest)


def list_checkpoints(run_dir: Path, contents: bool = True) -> list[Checkpoint]:
    """The checkpoints of a run, whole and damaged, newest step first; `best` is not among them.

    With `contents=False` only manifests, names and sizes are looked at. A `step-*.old`, left by a kill between two
    renames, counts only while no whole checkpoint has its place.
    """
    entries = [inspect(folder, contents=contents) for folder in step_folders(run_dir)]
    whole = {entry.path.name for entry in entries if entry.problem is None}
    return sorted((entry for entry in entries if not _is_superseded(entry.path.name, whole)), key=_newest_first)


def step_folders(run_dir: Path) -> list[Path]:
    """Every folder of a saved step, `step-*.old` too, in no order."""
    try:
        found = list((run_dir / "checkpoints").iterdir())
    except OSError:
        return []
    return [folder for folder in found if _STEP_FOLDER.fullmatch(folder.name) and folder.is_dir()]


def step_of(folder: Path) -> int:
    """The step in the name of one of `step_folders`, which is the one in its manifest where that is valid."""
    return int(folder.name.removesuffix(ASIDE).rpartition("-")[2])


def _is_superseded(name: str, whole: set[str]) -> bool:
    return name.endswith(ASIDE) and name.removesuffix(ASIDE) in whole


def _newest_first(entry: Checkpoint) -> tuple[int, bool, str]:
    is_step = _STEP_FOLDER.fullmatch(entry.path.name) is not None
    return -entry.step, not is_step, entry.path.name  # a step's own folder before best, and before step-*.old


def best_checkpoint(run_dir: Path, only: Collection[str] | None = None, contents: bool = True) -> Checkpoint | None:
    """`checkpoints/best`, or `best.old` where that is the whole one. Its entry tells the damage when neither is
    whole; None when neither is there."""
    folders = [run_dir / "checkpoints" / name for name in ("best", f"best{ASIDE}")]
    entries = [inspect(folder, only, contents) for folder in folders if folder.is_dir()]
    return next((entry for entry in entries if entry.problem is None), entries[0] if entries else None)


def newest_valid(run_dir: Path) -> tuple[Checkpoint, str | None]:
    """The newest whole checkpoint of a run, and what to tell about damaged newer ones (None: nothing).

    Every file of it has been read. `best` counts as one. Raises CheckpointError when there is no whole one.
    """
    entries = [Checkpoint(folder, step_of(folder)) for folder in step_folders(run_dir)]
    best = best_checkpoint(run_dir, contents=False)
    damaged: list[Checkpoint] = []
    for entry in sorted(entries if best is None else [*entries, best], key=_newest_first):
        checked = entry if entry.problem else inspect(entry.path)  # of a long run only the newest is read
        if checked.problem is None:
            return checked, _tell_damage(damaged, checked)
        damaged.append(checked)
    if not damaged:
        raise CheckpointError(f"{run_dir}: holds no checkpoint. The first one comes at trainer.save_every_steps.")
    raise CheckpointError(
        f"{run_dir}: none of its {len(damaged)} checkpoints is whole.\n"
        + "".join(f"  {entry.problem}\n" for entry in damaged[:3])
        + "Nothing was deleted. Copy one of them from a backup, or start the run anew."
    )


def _tell_damage(damaged: list[Checkpoint], used: Checkpoint) -> str | None:
    newer = [entry for entry in damaged if entry.step > used.step]
    if not newer:
        return None
    return (
        f"{newer[0].problem}\nUsing {used.path.name} (step {used.step}) instead: "
        f"{newer[0].step - used.step} steps are lost. The damaged folder stays where it is."
    )
