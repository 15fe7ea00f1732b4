"""suite=startup: both sides reach their first step, and the parts of the time are those of a real run."""

import re
import sys
from dataclasses import replace

import pytest

from dtl.benchmarks import startup
from dtl.benchmarks.config import SUITES, BenchConfig
from dtl.benchmarks.startup import Spent
from dtl.benchmarks.suite import Workplace
from dtl.errors import DataError, DTLError


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


# --- outside of steps ---------------------------------------------------------------------------------------------


def test_the_part_outside_of_steps_is_that_of_a_run_of_300():
    whole = Spent(total=17, in_steps=12, in_evaluations=2, in_report=2, steps=300, evaluations=9)
    quick = Spent(total=5, in_steps=2, in_evaluations=1, in_report=0, steps=50, evaluations=3)
    assert startup.fraction_outside(whole, 9) == pytest.approx(0.2)
    assert startup.fraction_outside(quick, 9) == pytest.approx(5 / 17)


def test_its_row_is_the_part_allowed_by_the_part_measured(tmp_path, monkeypatch):
    ran = []

    def run(module, work, done, failed):
        ran.append(work)
        return Spent(100 + len(ran), in_steps=90.0, in_evaluations=1.0, in_report=5.0, steps=300, evaluations=9)

    monkeypatch.setattr(startup, "run_side", run)
    settings = BenchConfig(suite="startup", rounds=3, seed=5)
    (row,) = startup.outside(Workplace(settings, tmp_path), "qa")
    assert (row.name, row.peer, row.rounds, row.reached) == ("outside_qa", 0.10, 3, True)
    assert row.ours == pytest.approx(7 / 97) and row.ratio and row.ratio.median == pytest.approx(0.1 / (7 / 97))
    assert "trainer.total_steps=300" in ran[0].words and not [word for word in ran[0].words if "eval_every" in word]
    assert [work.seed for work in ran] == [5, 6, 7] and len({work.folder for work in ran}) == 3
    (row,) = startup.outside(Workplace(replace(settings, quick=True), tmp_path), "wiki")
    assert (row.name, row.peer) == ("outside_wiki", 0.05) and "from 4 steps and 9 of 1 evaluations" in row.note
    assert "trainer.eval_every_steps=4" in ran[-1].words and ran[0].report and not ran[-1].report


def test_without_a_vocabulary_it_is_skipped(tmp_path, monkeypatch):
    def missing(*given):
        raise DataError("no vocabulary")

    monkeypatch.setattr(startup, "build_tokenizer", missing)
    assert [row.skipped for row in startup.outside(Workplace(BenchConfig(), tmp_path), "qa")] == ["no vocabulary"]


@pytest.mark.slow  # a process of its own
@pytest.mark.parametrize("data", ["wiki", "qa"])
def test_a_run_is_timed(tmp_path, data):
    settings = BenchConfig(suite="startup", tiny=True, rounds=1)
    (row,) = startup.outside(Workplace(settings, tmp_path), data)
    assert row.name == f"outside_{data}" and row.ours is not None and 0 < row.ours < 1
    assert (tmp_path / "outside-0" / "result.json").exists()
