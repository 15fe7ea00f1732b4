"""Plots and labels: one slow seed does not distort time, a single evaluation is visible, recipes are named."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run

from dtl.reports import curves
from dtl.reports.canvas import Drawing, style
from dtl.reports.configurations import group_runs
from dtl.reports.curves import Band, _axes, _over_seeds, speed_and_memory
from dtl.reports.metric import Metric
from dtl.reports.rates import rates_against_metric
from dtl.reports.reading import Run, read_run


def slowed(folder: Path, factor: float) -> Path:
    """The same run on a machine that is busy with something else."""
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [row | ({"seconds": factor * row["seconds"]} if "seconds" in row else {}) for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def over_time(runs: list[Run], which: str) -> Band:
    (one,) = group_runs(runs)
    axis = next(axis for axis in _axes([one]) if axis.name == "seconds")
    found = _over_seeds(axis, which, one.finished, 1000)
    assert found is not None
    return Band(found.x / axis.factor, found.mean, found.low, found.high)


def test_a_slow_seed_shortens_and_bends_no_curve_against_time(tmp_path):
    alike = [make_run(tmp_path / str(seed), seed=1, steps=40) for seed in range(3)]
    undisturbed = over_time([read_run(run) for run in alike], "validation")
    slowed(alike[1], 11.0)
    disturbed = over_time([read_run(run) for run in alike], "validation")
    np.testing.assert_allclose(disturbed.x, undisturbed.x)
    np.testing.assert_allclose(disturbed.mean, undisturbed.mean)
    assert disturbed.x[-1] == pytest.approx(0.1 * 40 * 1.02), "to the last step"


def test_one_evaluation_at_a_time_of_its_own_for_each_seed_is_seen(tmp_path):
    runs = []
    for seed in (1, 2, 3):
        folder = make_run(tmp_path / str(seed), seed=seed, value=2.0 + seed, steps=40)
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        evaluations = [line for line in lines if "val/loss" in line]
        (folder / "metrics.jsonl").write_text("".join(line for line in lines if line not in evaluations[:-1]))
        runs.append(read_run(folder))
    found = over_time(runs, "validation")
    assert found.mean.tolist() == [4.0] and found.x == pytest.approx([0.1 * 40 * 1.04])


def test_a_long_label_leaves_the_panels_their_room(tmp_path):
    """Matplotlib warns when a layout has no room, and warnings are errors here."""
    (group,) = group_runs([read_run(make_run(tmp_path / "1", seed=1, steps=40))])
    long = replace(group, label="data.qa.path=" + "a/long/folder/" * 20)
    with style():
        assert isinstance(speed_and_memory([long]), Drawing)


def recipe(folder: Path, name: str, **made: float) -> Run:
    run = make_run(folder, **made)
    record = json.loads((run / "run.json").read_text())
    record["choices"]["experiment"] = name
    (run / "run.json").write_text(json.dumps(record))
    return read_run(run)


def test_recipes_are_called_by_their_names(tmp_path):
    runs = [recipe(tmp_path / "0", "words-large", planned=97), recipe(tmp_path / "1", "words-small", planned=89)]
    assert [one.label for one in group_runs(runs)] == ["words-large", "words-small"]
    runs.append(recipe(tmp_path / "2", "words-small", planned=83))
    labels = [one.label for one in group_runs(runs)]
    assert labels == ["words-large", "words-small total_steps=89", "words-small total_steps=83"]


def test_many_rates_are_written_as_numbers(tmp_path, monkeypatch):
    """With more rates than fit as ticks of their own, matplotlib chooses them, and would write 10^-4 as mathematics."""
    rates = [2.0**n * 1e-5 for n in range(11)]
    runs = [read_run(make_run(tmp_path / str(n), lr=rate, value=2 + n / 7)) for n, rate in enumerate(rates)]
    written: list[str] = []

    def keep(figure, *_):
        figure.draw_without_rendering()
        written.extend(label.get_text() for label in figure.axes[0].get_xticklabels())
        return Drawing("", "", "", "", b"", "")

    monkeypatch.setattr("dtl.reports.rates.finish", keep)
    with style():
        rates_against_metric(group_runs(runs), Metric())
    assert {"0.0001", "0.001"} <= set(written) and not any("$" in label for label in written)


@pytest.mark.parametrize(
    ("rates", "ticks"),
    [
        ([1e-3, 3e-3, 1e-2, 3e-2], ["0.001", "0.003", "0.01", "0.03"]),
        ([0.00129458, 0.00130281, 0.00553467], ["0.002", "0.005"]),  # of a search: side by side they were illegible
    ],
)
def test_the_ticks_of_the_rates_do_not_overlap(tmp_path, monkeypatch, rates, ticks):
    runs = [read_run(make_run(tmp_path / str(n), lr=rate, value=2 + n / 7)) for n, rate in enumerate(rates)]
    boxes, written = [], []

    def keep(figure, *_):
        figure.draw_without_rendering()
        (panel,) = figure.axes
        labels = [label for label in panel.get_xticklabels() if panel.get_xlim()[0] < label.get_position()[0]]
        labels = [label for label in labels if label.get_text() and label.get_position()[0] < panel.get_xlim()[1]]
        written.extend(label.get_text() for label in labels)
        boxes.extend(label.get_window_extent() for label in labels)
        return Drawing("", "", "", "", b"", "")

    monkeypatch.setattr("dtl.reports.rates.finish", keep)
    with style():
        rates_against_metric(group_runs(runs), Metric())
    assert written == ticks and all(left.x1 < right.x0 for left, right in pairwise(boxes))


def tuned(folder: Path, optimizer: dict[str, str | float], seed: int = 1, dim: int = 256) -> Run:
    """A run of AdamW or of Muon at some rate, made up."""
    settings = {"optimizer": optimizer, "model": {"dim": dim}}
    run = make_run(folder, seed=seed, value=2.0 + 0.01 * seed, settings=settings)
    record = json.loads((run / "run.json").read_text())
    record["choices"]["optimizer"] = optimizer["name"]
    record["overrides"] = [f"optimizer.{key}={value}" for key, value in optimizer.items() if key != "name"]
    (run / "run.json").write_text(json.dumps(record))
    return read_run(run)


@pytest.fixture
def panels(monkeypatch):
    """Calls the drawing; for each panel its label, and by the label of each line the places of its marks."""

    def draw(runs: list[Run]) -> dict[str, dict[str, list[float]]]:
        seen = {}

        def keep(figure, name, title, caption, alternative):
            for panel in figure.axes:
                marks = {line.get_label(): [round(float(x), 7) for x in line.get_xdata()] for line in panel.lines}
                seen[panel.get_xlabel()] = {key: x for key, x in marks.items() if not key.startswith("_")} or marks
            return Drawing(name, title, caption, alternative, b"", "")

        monkeypatch.setattr("dtl.reports.rates.finish", keep)
        with style():
            drawing = rates_against_metric(group_runs(runs), Metric())
        assert isinstance(drawing, Drawing)
        return seen

    return draw


def test_each_rate_that_varies_has_a_panel_and_a_combination_at_one_rate_is_no_line(tmp_path, panels):
    adamw = [{"name": "adamw", "lr": rate} for rate in (1e-4, 3e-4, 1e-3)]
    muon = [{"name": "muon", "lr": 3e-4, "matrix_lr": rate} for rate in (7e-3, 2e-2)]
    runs = [tuned(tmp_path / f"{n}", one) for n, one in enumerate((*adamw, *muon))]
    runs.append(tuned(tmp_path / "alone", {"name": "adamw", "lr": 5e-4}, dim=192))
    assert panels(runs) == {
        "learning rate (optimizer.lr)": {"optimizer=adamw": [1e-4, 3e-4, 1e-3]},
        "learning rate of the matrices (optimizer.matrix_lr)": {"optimizer=muon": [7e-3, 2e-2]},
    }


def test_a_grid_of_two_rates_has_a_line_for_each_value_of_the_other(tmp_path, panels):
    grid = [(lr, matrix) for lr in (1e-4, 3e-4) for matrix in (7e-3, 2e-2, 5e-2)]
    runs = [
        tuned(tmp_path / f"{n}", {"name": "muon", "lr": lr, "matrix_lr": matrix}) for n, (lr, matrix) in enumerate(grid)
    ]
    seen = panels(runs)
    assert sorted(map(len, seen["learning rate (optimizer.lr)"].values())) == [2, 2, 2]
    assert set(seen["learning rate of the matrices (optimizer.matrix_lr)"]) == {
        "lr=0.0001 matrix_lr=*",
        "lr=0.0003 matrix_lr=*",
    }


def test_a_search_by_chance_shows_every_trial_by_its_rate(tmp_path, panels):
    """No two trials of it have all other settings in common: once there was no plot at all."""
    rates = [1e-4, 2.3e-4, 1.7e-3]
    runs = [
        tuned(tmp_path / f"{n}", {"name": "adamw", "lr": rate, "weight_decay": 0.1 + n / 11})
        for n, rate in enumerate(rates)
    ]
    (marks,) = panels(runs).values()
    assert rates in marks.values()


def test_both_panels_share_the_axis(tmp_path, monkeypatch):
    """Validation begins later than training: on an axis of its own one would not see how much later."""
    limits = []
    monkeypatch.setattr(curves, "finish", lambda figure, *_: limits.append([a.get_xlim() for a in figure.axes]))
    with style():
        curves.loss_curves(group_runs([read_run(make_run(tmp_path / "0"))]))
    assert limits and all(left == right for left, right in limits)
