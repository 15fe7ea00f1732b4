"""Whole tiny runs, for the tests of how runs end and go on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import outcome, start, tiny_config, write_pairs


@pytest.fixture(autouse=True)
def threads_as_before(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr("dtl.run_dir.provenance._packages", lambda: "")  # takes longer than these runs
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts with a validation wording each; without any for the parameter False."""
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    return write_pairs(file, validation=getattr(request, "param", True))


@pytest.fixture(scope="module")
def finished(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, to be copied."""
    run_dir = tmp_path_factory.mktemp("finished")
    start(tiny_config(pairs), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def paused(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, paused after 6 of its 12 steps, to be copied."""
    run_dir = tmp_path_factory.mktemp("paused")
    start(tiny_config(pairs, stop_after_steps=6), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def uninterrupted(finished: Path) -> dict[str, Any]:
    return outcome(finished)
