"""A command line that is refused leaves nothing: Hydra makes folders before anybody has looked at the settings."""

import shutil
from collections.abc import Collection
from pathlib import Path

OUTPUTS = "outputs"  # stays, and so does what lies above it


def take_back(folder: Path, made: Collection[str]) -> None:
    """Delete a folder in which there is nothing but what was `made` (names), and the empty folders above it."""
    folder = folder.absolute()
    if not {path.name for path in folder.iterdir()} <= set(made):
        return
    shutil.rmtree(folder)
    for parent in folder.parents:
        if parent.name == OUTPUTS or parent == Path.cwd() or any(parent.iterdir()):
            break
        parent.rmdir()
