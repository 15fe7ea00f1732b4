"""suite=search: what its two rows are made of. No test trains for it."""

import statistics
import sys
from pathlib import Path

import pytest

from dtl.benchmarks import search
from dtl.benchmarks.config import SUITES, BenchConfig
from dtl.benchmarks.search import Outcome
from dtl.benchmarks.suite import Workplace
from dtl.errors import DTLError


def rows(tmp_path, monkeypatch, pruned, whole):
    def searched(place, text, number, pruner):
        assert text.stat().st_size > 10_000
        return (pruned if pruner == "asha" else whole)[number]

    monkeypatch.setattr(search, "searched", searched)
    settings = BenchConfig(suite="data", tiny=True, rounds=len(whole))
    return list(SUITES.get("search").measurements["asha"](Workplace(settings, tmp_path)))


def test_steps_are_compared_round_by_round_and_losses_with_the_noise(tmp_path, monkeypatch):
    noise = [[2.0, 2.1, 2.2], [1.9, 2.3, 2.1], [2.0, 2.02, 2.04]]
    whole = [Outcome(1000, 1.97, noise[0]), Outcome(800, 1.9, noise[1]), Outcome(1000, 2.0, noise[2])]
    pruned = [Outcome(410, 1.99, []), Outcome(480, 1.8, []), Outcome(300, 2.01, [])]
    steps, loss = rows(tmp_path, monkeypatch, pruned, whole)
    assert (steps.ours, steps.peer, steps.ratio.median, steps.ratio.most) == (410, 1000, 0.41, 0.6)
    assert steps.reached is True
    assert loss.ours == pytest.approx(0.01 / statistics.stdev(noise[2])) and loss.reached is True

    worse = [Outcome(510, 2.2, []), Outcome(400, 1.8, []), Outcome(900, 2.0, [])]
    steps, loss = rows(tmp_path, monkeypatch, worse, whole)
    assert steps.ratio.median == 0.51 and steps.reached is False
    assert loss.ours == pytest.approx(2.3) and loss.reached is False


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_a_search_that_fails_says_what_it_wrote(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho the disk is full >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    place = Workplace(BenchConfig(suite="data", tiny=True), tmp_path)
    with pytest.raises(DTLError, match="pruner=asha failed: the disk is full"):
        search.searched(place, Path("text"), 0, "asha")
