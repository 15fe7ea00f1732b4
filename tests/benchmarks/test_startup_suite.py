"""suite=startup: both sides reach their first step, and the parts of the time are those of a real run."""

import re
import sys

import pytest

from dtl.benchmarks import startup
from dtl.benchmarks.config import SUITES, BenchConfig
from dtl.benchmarks.suite import Workplace
from dtl.errors import DTLError


@pytest.mark.slow
def test_the_parts_add_up_to_the_whole(tmp_path):
    pytest.importorskip("accelerate", reason="the peer needs it: pip install accelerate")
    measure = SUITES.get("startup").measurements["first_step"]
    (row,) = measure(Workplace(BenchConfig(suite="startup", tiny=True, rounds=1), tmp_path))
    parts = [float(figure) for figure in re.findall(r"(-?[\d.]+) s", row.note)]
    assert len(parts) == 6 and sum(parts) == pytest.approx(row.ours, abs=0.05)
    assert row.peer > 0 and row.rounds == 1
    assert (tmp_path / "run-0" / "metrics.jsonl").read_text().startswith('{"step": 1, ')


def test_a_side_that_ends_too_early_says_what_it_wrote(tmp_path):
    with pytest.raises(DTLError, match="before its first step: no luck"):
        startup._until(lambda: False, [sys.executable, "-c", "print('no luck')"], tmp_path)


def test_without_the_peers_library_the_row_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    (row,) = startup.first_step(Workplace(BenchConfig(suite="startup"), tmp_path))
    assert row.skipped == "install accelerate: pip install accelerate (the Trainer needs it)"
