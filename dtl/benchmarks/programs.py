"""Programs that a suite runs as a person would, each in a process of its own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dtl.errors import DTLError

MOST_CHARACTERS = 2000  # of what a failed program wrote


def train_command(*overrides: str) -> list[str]:
    """`python -m dtl.train` with this Python."""
    return [sys.executable, "-m", "dtl.train", *overrides]


def run_program(command: Sequence[str], folder: Path, what: str) -> None:
    """Run it to its end in a folder. Raises DTLError that `what` failed, with the end of what it wrote."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DTLError(f"{what} failed: {(done.stderr or done.stdout).strip()[-MOST_CHARACTERS:]}")
