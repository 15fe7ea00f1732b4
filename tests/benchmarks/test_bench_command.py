"""The command `python -m dtl.bench` with a suite of a plugin."""

import sys

import pytest

import dtl.bench
from dtl.benchmarks.config import SUITES

OWN_SUITE = '''
"""Sorting, once rightly and once not."""

from dtl.benchmarks.config import SUITES
from dtl.benchmarks.measuring import Row
from dtl.benchmarks.suite import Suite
from dtl.errors import DTLError


def sorting(place):
    yield Row("sorting", "numbers put in order", "s", ours=0.25, note="all seven of them")


def failing(place):
    raise DTLError("failing: the two give different orders.")


SUITES.register("own")(Suite({"sorting": sorting, "failing": failing}, long=frozenset({"failing"})))
'''


@pytest.fixture
def bench(elsewhere, monkeypatch, capsys):
    """`python -m dtl.bench` with a suite of one's own: exit code and both outputs."""
    (elsewhere / "own_suite.py").write_text(OWN_SUITE)
    monkeypatch.setattr(SUITES, "_parts", dict(SUITES._parts))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_suite", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dtl-bench", "suite=own", "plugins=[own_suite]", "device=cpu", *arguments])
        code = 0
        try:
            dtl.bench.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    yield call
    sys.modules.pop("own_suite", None)


def test_a_suite_of_ones_own(bench):
    code, out, err = bench()
    assert (code, err) == (0, "")
    assert "numbers put in order" in out and "0.25 s" in out and "sorting: all seven of them" in out
    assert "suite=own:" in out


def test_what_was_measured_before_a_failure_is_shown(bench, elsewhere):
    code, out, err = bench("full=true", "out=figures.json")
    assert (code, err) == (1, "Error: failing: the two give different orders.\n")
    assert "numbers put in order" in out and "sorting: all seven of them" in out
    assert not (elsewhere / "figures.json").exists()  # a file holds all figures or is not there


def test_a_name_that_no_measurement_has(bench):
    code, out, err = bench("rows=[sorted]")
    assert (code, out) == (2, "")
    assert err.startswith("Error: rows=[sorted]: suite=own has no such measurement. Known: sorting, failing.")
