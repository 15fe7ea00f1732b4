"""Runs with different tokenizers: a loss per token is never compared, bits per byte are, and so say plot and page."""

from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run

from dtl.reports import curves
from dtl.reports.build import build
from dtl.reports.canvas import style
from dtl.reports.config import ReportConfig
from dtl.reports.configurations import group_runs
from dtl.reports.findings import notices
from dtl.reports.metric import BITS, TAUGHT, Metric, metric_for, not_comparable, same_tokenizer, to_bits_per_byte
from dtl.reports.page import Report
from dtl.reports.reading import read_run

# Of the larger vocabulary a token is more text: its loss is higher though it knows the text better.
KINDS = {"byte": (1.5, 1.41), "gpt2": (4.8, 0.37)}  # validation loss, bits per byte of a nat


def vocabulary(folder: Path, kind: str, seed: int, measured: bool = True) -> Path:
    loss, bits = KINDS[kind]
    loss += 0.01 * seed
    figures = {"validation/loss": loss, BITS: bits * loss} if measured else {}
    return make_run(folder, seed=seed, value=loss, figures=figures, settings={"tokenizer": {"kind": kind}})


def folders(tmp_path: Path, measured: bool = True) -> list[Path]:
    return [
        vocabulary(tmp_path / f"{kind}-{seed}", kind, seed, measured or kind == "gpt2")
        for kind in KINDS
        for seed in range(1, 6)
    ]


def report(runs: list[Path], **settings: str) -> Report:
    return build(ReportConfig(**settings), runs, "made", "", lambda _: None)


@pytest.mark.slow
def test_bits_per_byte_are_compared_where_tokenizers_differ(tmp_path):
    made = report(folders(tmp_path))
    assert (
        made.metric.key == BITS
        and made.findings.verdict == "kind=gpt2 is better; the noise of the seeds does not explain it."
    )
    assert any(notice.startswith("Tokenizers differ") for notice in made.findings.notices)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("measured", "settings"), [(True, {"metric": "validation/loss"}), (False, {})])
def test_losses_per_token_of_different_tokenizers_name_no_winner(tmp_path, measured, settings):
    made = report(folders(tmp_path, measured), **settings)
    assert made.metric.is_per_token and made.comparisons == []
    assert "different tokenizers" in made.findings.verdict and "better" not in made.findings.verdict


def test_the_vocabulary_of_a_tokenizer_that_is_trained_counts_and_that_of_the_others_does_not(tmp_path):
    def runs(kind: str) -> list:
        sizes = [{"tokenizer": {"kind": kind, "vocab_size": size}} for size in (1009, 4099)]
        return [read_run(make_run(tmp_path / f"{kind}{n}", settings=one)) for n, one in enumerate(sizes)]

    assert same_tokenizer(runs("byte")) and not same_tokenizer(runs("bpe"))
    assert metric_for(runs_of := [read_run(path) for path in tmp_path.glob("byte*")], None) == Metric()
    assert not_comparable(runs_of, Metric()) == ""


def test_curves_of_different_tokenizers_are_drawn_in_bits_per_byte(tmp_path, monkeypatch):
    drawn = []

    def keep(figure, *_):
        drawn.append([(panel.get_ylabel(), [line.get_ydata()[-1] for line in panel.lines]) for panel in figure.axes])

    monkeypatch.setattr(curves, "finish", keep)
    runs = [read_run(folder) for folder in folders(tmp_path)]
    stopped = read_run(make_run(tmp_path / "x", state=None, value=2.0, settings={"tokenizer": {"kind": "byte"}}))
    with style():
        curves.loss_curves(group_runs([*runs, stopped]))
    for panels in drawn:
        (_, _), (label, ends) = panels
        assert label == "loss (bits per byte)"
        for loss, bits in KINDS.values():
            assert any(end == pytest.approx(bits * (loss + 0.03)) for end in ends), "the mean over five seeds"
    scaled = to_bits_per_byte([*runs, stopped])
    assert scaled is not None
    np.testing.assert_allclose(scaled[-1].validation.loss, 1.41 * stopped.validation.loss)  # it measured none itself
    assert to_bits_per_byte([stopped]) is None


@pytest.mark.slow
def test_other_data_are_told(tmp_path):
    def notices(name: str, *texts: str) -> list[str]:
        settings = [{"data": {"sources": {"text": {"path": path}}, "seq_len": 64 + n}} for n, path in enumerate(texts)]
        runs = [make_run(tmp_path / f"{name}{n}", settings=one) for n, one in enumerate(settings)]
        return [notice for notice in report(runs).findings.notices if "differ in their data" in notice]

    assert notices("one", "a.txt", "a.txt") == []
    (told,) = notices("two", "a.txt", "b.txt")
    assert "(data.sources.text.path)" in told


def test_runs_without_validation_data_compare_by_their_training_questions(tmp_path):
    folders = [make_run(tmp_path / f"few{n}", seed=n, value=None, figures={TAUGHT: 0.5}) for n in (1, 2)]
    few = [read_run(folder) for folder in folders]
    taught = Metric(TAUGHT, higher_is_better=True)
    assert metric_for(few, None) == taught and metric_for(few, Metric()) == Metric()
    assert not [notice for notice in notices(few, group_runs(few), taught) if "without" in notice]
    mixed = [*few, read_run(make_run(tmp_path / "many", value=1.5, figures={TAUGHT: 0.25}))]
    assert metric_for(mixed, None) == Metric()
    assert [notice for notice in notices(mixed, group_runs(mixed), Metric()) if "without" in notice] == [
        "2 finished runs without best validation loss (nothing is held out of the data, or none was measured)."
    ]
