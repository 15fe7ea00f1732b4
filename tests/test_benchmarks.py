"""The benchmarks run, and say what they should; how fast anything is, no test asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize("arguments", [["--arch=modern"], ["--arch=classic", "--batch=3"]])
def test_generation_is_compared_with_hugging_face(tmp_path: Path, arguments: list[str]) -> None:
    """Also that both write the same tokens: else it fails."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "generation.py"), "--tiny", "--threads=1", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Both wrote the same" in done.stdout
    for line in ("Tokens a second: DTL ", "Time to the first token: DTL "):
        assert line in done.stdout
    assert list(tmp_path.iterdir()) == []
