"""Rows of a benchmark: turns, ratios, goals, the table. Times are invented: no test requires a speed."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from dtl.base.units import in_unit
from dtl.benchmarks import foresight
from dtl.benchmarks.config import BenchConfig, GenerationSuiteConfig, TextConfig
from dtl.benchmarks.measuring import (
    PERCENT,
    MissingPeerError,
    Ratio,
    Row,
    at_least,
    at_most,
    compared,
    in_turns,
    peer,
    ratio_of,
    skipped,
)
from dtl.benchmarks.results import as_json, busy_warning, machine, notes, ratio_in_words, table_of, versions
from dtl.benchmarks.suite import Suite, Workplace, measured
from dtl.errors import ConfigError


def test_both_sides_take_turns_to_begin():
    order: list[str] = []
    now = 0.0

    def side(name: str, seconds: float):
        def work() -> None:
            nonlocal now
            order.append(name)
            now += seconds

        return work

    ours, theirs = in_turns(side("ours", 2.0), side("theirs", 7.0), 3, clock=lambda: now)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert (ours, theirs) == ([2.0] * 3, [7.0] * 3)


def test_the_ratio_is_the_median_of_the_rounds_own_ratios():
    row = compared(Row("a", "b", "tokens/s", goal=at_least(3)), ([1, 2, 4], [5, 6, 4]), amount=100)
    assert row.ratio == Ratio(3, 1, 5)  # of 5, 3 and 1; not 5 / 2, which the medians of the seconds would give
    assert (row.ours, row.peer, row.rounds, row.reached) == (50, 20, 3, True)


def test_a_row_of_seconds():
    assert (
        compared(Row("a", "b", "s"), ([0.5, 0.25], [0.0, 1.0]), amount=3).skipped
        == "too short for the clock of this system"
    )
    row = compared(Row("a", "b", "s"), ([0.5, 0.25, 0.125], [1.5, 1.0, 0.25]))
    assert (row.ours, row.peer, row.ratio, row.rounds) == (0.25, 1.0, Ratio(3, 2, 4), 3)


@pytest.mark.parametrize(
    ("goal", "reached_at", "missed_at"), [(at_least(3), 3.0, 2.99), (at_most(0.01, PERCENT, "ratio"), 0.01, 0.011)]
)
def test_a_goal_on_the_ratio(goal, reached_at, missed_at):
    for value, expected in ((reached_at, True), (missed_at, False)):
        # Ours would say the opposite: it is not what is asked.
        row = Row("a", "b", "s", ours=100 / value**9, ratio=ratio_of([value]), goal=goal)
        assert row.reached is expected


def test_a_goal_on_ours_and_no_goal():
    assert Row("a", "b", "s", ours=0.5, goal=at_most(0.5, "s")).reached is True
    assert Row("a", "b", "s", ours=0.51, goal=at_most(0.5, "s")).reached is False
    assert Row("a", "b", "s", ours=0.51).reached is None


def test_a_missing_peer_says_how_to_get_it():
    with pytest.raises(MissingPeerError, match=r"install nowhere_to_be_found: pip install it"):
        peer("nowhere_to_be_found.inside", "pip install it")
    row = skipped(Row("a", "b", goal=at_least(3)), "install it")
    assert (row.reached, row.skipped, row.ours) == (None, "install it", None)


ROWS = [
    Row(
        "fast", "text to GPT-2's tokens, synthetic text", "tokens/s", 1_534_567, 612_345,
        "GPT2TokenizerFast, text by text, one process", Ratio(2.5, 2.25, 2.75), 3, at_least(3), "the same 123,457 ids",
    ),
    Row("share", "making the batches of a step", "s", 0.00025, 1.08, "a step", Ratio(0.0002, 0.0001, 0.0003, PERCENT),
        3, at_most(0.01, PERCENT, "ratio")),
    Row("waste", "padding", PERCENT, 0.00000123, 0.93, "padded", goal=at_most(0.001, PERCENT)),
    skipped(Row("gone", "synthetic dump to prose", "articles/s", peer_name="gensim", goal=at_least(2), note="x"),
            "install gensim: pip install 'dtl[bench]'"),
]  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_cuts_nothing(width):
    console = Console(width=width, file=io.StringIO())
    console.print(table_of(ROWS))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width and "…" not in shown
    words = " ".join(shown.split())
    for part in ("1.53 M", "612 k", "2.50 x", "2.25 to 2.75", ">= 3 x", "0.25 ms", "0.02 %", "< 0.01 %", "93 %"):
        assert part in words, part
    assert shown.count("skipped") == 2 and "yes" in shown and "no" in shown
    if width == 120:
        assert "skipped: install gensim: pip install 'dtl[bench]'" in words


def test_notes_are_those_of_what_was_measured():
    assert notes(ROWS) == ["fast: the same 123,457 ids"]


def test_figures_in_words():
    shown = [
        in_unit(value, unit) for value, unit in ((None, "s"), (0.3, "s"), (0.004, "s"), (12_345, "x/s"), (7, "MB"))
    ]
    assert shown == ["-", "0.30 s", "4 ms", "12.3 k\nx/s", "7 MB"]
    assert [in_unit(value, "x/s") for value in (999.4, 1_069, 1e6)] == ["999\nx/s", "1,069\nx/s", "1 M\nx/s"]
    assert ratio_in_words(None) == "-"


def test_everything_shown_is_written_too():
    settings = BenchConfig(rounds=5)
    written = json.loads(json.dumps(as_json(settings, machine("cpu"), versions(), ROWS)))
    assert [row["name"] for row in written["rows"]] == ["fast", "share", "waste", "gone"]
    assert [row["reached"] for row in written["rows"]] == [False, True, True, None]
    assert written["rows"][0]["ratio"] == {"median": 2.5, "least": 2.25, "most": 2.75, "unit": "x"}
    assert written["rows"][3]["skipped"].startswith("install gensim")
    # Above 1 DTL is better, also where the table has its part of the peer's: less is better there.
    of_share = {"ratio": 5000, "low": 1 / 0.0003, "high": 10_000, "n": 3, "goal": ">= 100 x"}
    assert written["ratios"]["share"] == pytest.approx(of_share | {"reached": True, "skipped": None})
    assert written["ratios"]["fast"]["goal"] == ">= 3 x" and written["ratios"]["gone"]["ratio"] is None
    assert (written["settings"]["rounds"], written["machine"]["cores"] >= 1) == (5, True)
    assert {"python", "dtl", "torch"} <= set(written["versions"])


def test_a_busy_machine_is_told():
    quiet = {"load": 0.4, "cores": 2}
    assert busy_warning(quiet) is None and busy_warning(quiet | {"load": None}) is None
    assert "load average 1.70 on 2 cores" in (busy_warning(quiet | {"load": 1.7}) or "")


# --- suites -------------------------------------------------------------------------------------------------------


def one_row(name: str):
    def measure(place: Workplace):
        (place.folder / "file").write_text(name)
        yield Row(name, f"{place.folder}")

    return measure


SUITE = Suite({name: one_row(name) for name in ("first", "second", "third")}, long=frozenset({"second"}))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (BenchConfig(), ["first", "third"]),
        (BenchConfig(full=True), ["first", "second", "third"]),
        (BenchConfig(rows=["third", "second"]), ["second", "third"]),  # asked for by name, though long
    ],
)
def test_what_is_measured(settings, names):
    said: list[str] = []
    rows = list(measured(SUITE.chosen(settings), settings, said.append))
    assert [row.name for row in rows] == names and said == [f"measuring {name}" for name in names]
    assert not any(Path(row.what).exists() for row in rows)  # nothing is left on the disk


def test_an_unknown_measurement_is_refused():
    with pytest.raises(ConfigError, match=r"rows=\[thrid\]: .* Known: first, second, third\. Did you mean 'third'\?"):
        SUITE.chosen(BenchConfig(rows=["first", "thrid"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "dtaa"}, "suite=dtaa: there is no part of this name"),
        ({"rounds": 0}, "rounds=0: must be at least 1"),
        ({"seed": -1}, "seed=-1"),
        ({"wiki": "nowhere"}, "wiki=nowhere: there is no such file"),
        ({"data": TextConfig("nowhere.txt")}, r"data\.path=nowhere\.txt: there is no such file"),
        ({"dump": "."}, r"dump=\.: is a folder"),
        ({"out": "nowhere/a.json"}, "there is no folder nowhere"),
        ({"out": "."}, "exists already"),
        ({"device": "gpu"}, "device=gpu: one of auto, cpu"),
        ({"generation": GenerationSuiteConfig(model="smal")}, r"generation\.model=smal: .* Did you mean 'small'\?"),
        ({"generation": GenerationSuiteConfig(batch_size=0)}, r"generation\.batch_size=0: must be at least 1"),
        ({"generation": GenerationSuiteConfig(prompt_tokens=0)}, r"generation\.prompt_tokens=0: must be at least 1"),
        ({"generation": GenerationSuiteConfig(new_tokens=0)}, r"generation\.new_tokens=0: must be at least 1"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        BenchConfig(**changes).validate()


def test_the_error_of_each_setting_is_said_as_it_is_known(tmp_path, monkeypatch):
    """The whole suite takes half an hour."""
    errors = iter([0.031, -0.07])
    monkeypatch.setattr(foresight, "FORESEEN", {"narrow": "model.dim=16", "deep": "model.n_layers=9"})
    monkeypatch.setattr(foresight, "foreseen_error", lambda place, name, words: next(errors))
    said: list[str] = []
    median, worst = foresight.foreseeing(Workplace(BenchConfig(), tmp_path, said.append))
    assert said == ["narrow: +3.1 %", "deep: -7.0 %"]
    assert (median.ours, worst.ours, worst.note) == (pytest.approx(0.0505), pytest.approx(0.07), "deep")
