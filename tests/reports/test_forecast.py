"""Forecasts of a loss: known laws are found, intervals cover, and what does not carry a forecast is refused."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run

import dtl.report
from dtl.base.json_files import sealed
from dtl.errors import ConfigError
from dtl.reports.build import PAGE, PICTURES
from dtl.reports.canvas import style
from dtl.reports.forecast import draw_forecast, forecast_of
from dtl.reports.reading import Run, read_run
from dtl.reports.scaling import N_DRAWS, fit_power_law, scaling_of
from dtl.reports.selection import runs_in

SIZES = (311_000, 613_000, 1_201_000, 2_503_000, 4_999_000)
TARGET = 19_997_000


def loss_at(n: np.ndarray | float) -> np.ndarray:
    """Two terms, as of Hoffmann et al. 2022, with 5 tokens a parameter: no power law, but nearly one."""
    n = np.asarray(n, dtype=float)
    return 1.69 + 67.0 / n**0.29 + 41.0 / (5 * n) ** 0.25


def noisy(generator: np.random.Generator, sigma: float, seeds: int, sizes: tuple[int, ...] = SIZES) -> list[np.ndarray]:
    return [float(loss_at(n)) * np.exp(sigma * generator.standard_normal(seeds)) for n in sizes]


def make_size(
    folder: Path,
    n: int,
    loss: float,
    seed: int = 1,
    ratio: float = 5.0,
    epochs: float = 0.3,
    data: str = "d" * 64,
    **made,
) -> Path:
    """A run of `n` parameters, with what `dtl.train` records of its size and data."""
    shape = {"model": {"dim": 8 * round(n**0.25), "n_layers": 3, "arch": {"block": "modern"}, "tie_embeddings": True}}
    settings = shape | made.pop("settings", {})
    run = make_run(folder, value=loss, seed=seed, settings=settings, **made)
    record = json.loads((run / "run.json").read_text())
    record |= {"n_parameters": {"all": 2 * n, "without_embeddings": n}, "data_fingerprint": data, "last_step": 40}
    (run / "run.json").write_text(json.dumps(record))
    result = json.loads((run / "result.json").read_text())
    result.pop("dtl_sha256", None)
    seen = {"text": {"tokens": ratio * n, "passes": epochs}}
    (run / "result.json").write_text(json.dumps(sealed({**result, "seen": seen})))
    return run


def made_sweep(folder: Path, sizes: tuple[int, ...] = SIZES, sigma: float = 0.001, seeds: int = 3) -> list[Run]:
    generator = np.random.default_rng(11)
    losses = noisy(generator, sigma, seeds, sizes)
    pairs = [(n, seed, loss) for n, each in zip(sizes, losses, strict=True) for seed, loss in enumerate(each)]
    return [read_run(make_size(folder / str(i), n, float(loss), seed)) for i, (n, seed, loss) in enumerate(pairs)]


# --- the law ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("floor", "factor", "exponent"), [(1.69, 407.0, 0.34), (2.3, 19.0, 0.17), (0.0, 31.0, 0.11)])
def test_a_law_without_noise_is_found_and_carried_on(floor, factor, exponent):
    n = np.array(SIZES, dtype=float)
    law = fit_power_law(n, floor + factor * n**-exponent, np.ones(len(n)))
    ahead = np.array([TARGET, 8 * SIZES[-1]], dtype=float)
    np.testing.assert_allclose(law(ahead), floor + factor * ahead**-exponent, rtol=1e-3)
    assert float(law.exponent) == pytest.approx(exponent, rel=0.02)


def test_many_laws_at_once_are_those_one_by_one():
    n, weights = np.array(SIZES, dtype=float), np.array([3.0, 2.0, 1.0, 5.0, 7.0])
    losses = loss_at(n) * np.exp(0.01 * np.random.default_rng(5).standard_normal((7, len(n))))
    together = fit_power_law(n, losses, weights)([1e6, 2e7, 3e7])
    alone = [fit_power_law(n, each, weights)(np.array([1e6, 2e7, 3e7])) for each in losses]
    np.testing.assert_allclose(together, np.transpose(alone), rtol=1e-12)


def test_no_law_of_the_form_is_nearer():
    n, weights = np.array(SIZES, dtype=float), np.array([3.0, 2.0, 1.0, 5.0, 7.0])
    generator = np.random.default_rng(17)
    losses = loss_at(n) * np.exp(0.01 * generator.standard_normal(len(n)))

    def error(floor: float, factor: float, exponent: float) -> float:
        law = floor + factor * (n / found.scale) ** -exponent
        return float((weights * (law / losses - 1) ** 2).sum())

    found = fit_power_law(n, losses, weights)
    best = float(found.floor), float(found.factor), float(found.exponent)
    for _ in range(97):
        floor, factor, exponent = np.array(best) * np.exp(0.03 * generator.standard_normal(3))
        assert error(floor, factor, exponent) >= error(*best) * (1 - 1e-3)


def test_losses_that_rise_with_the_size_are_level_at_best():
    law = fit_power_law(np.array(SIZES, dtype=float), np.array([2.0, 2.1, 2.2, 2.3, 2.4]), np.ones(5))
    assert float(law.factor) == 0.0 and float(law(TARGET)) == pytest.approx(2.19, abs=0.03)


def coverage(draws: int, sigma: float, seeds: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Fraction of intervals that hold one more run of the target, and the errors of the law and the straight line."""
    generator, truth = np.random.default_rng(23), float(loss_at(TARGET))
    held, errors, naive = 0, [], []
    for _ in range(draws):
        scaling = scaling_of(SIZES, noisy(generator, sigma, seeds), 4)
        low, high = scaling.interval(TARGET)
        held += bool(low <= truth * np.exp(sigma * generator.standard_normal()) <= high)
        errors.append(abs(float(scaling.law(TARGET)) / truth - 1))
        naive.append(abs(float(scaling.naive(TARGET)) / truth - 1))
    return held / draws, np.array(errors), np.array(naive)


def test_the_interval_covers_and_the_straight_line_is_far_off(monkeypatch):
    monkeypatch.setattr("dtl.reports.scaling.N_DRAWS", N_DRAWS // 5)
    covered, errors, naive = coverage(60, sigma=0.003, seeds=3)
    assert covered >= 0.87
    assert np.median(errors) < 0.01 and np.median(naive) > 0.04


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "seeds"), [(0.002, 3), (0.005, 3), (0.003, 2), (0.002, 1)])
def test_the_interval_covers_at_its_nominal_rate(sigma, seeds):
    covered, errors, naive = coverage(300, sigma, seeds)
    assert 0.92 <= covered <= 0.995
    assert np.quantile(errors, 0.9) < 0.03 < np.median(naive)


def test_the_noise_of_the_seeds_sets_the_width():
    generator = np.random.default_rng(29)
    widths = []
    for sigma in (0.001, 0.003, 0.009):
        low, high = scaling_of(SIZES, noisy(generator, sigma, 3), 4).interval(TARGET)
        widths.append(high - low)
    assert widths[0] < widths[1] < widths[2]


# --- runs ---------------------------------------------------------------------------------------------------------


def test_a_sweep_gives_a_forecast_whatever_the_order_of_its_runs(tmp_path):
    runs = made_sweep(tmp_path)
    forecast = forecast_of(runs, "20e6", TARGET)
    assert forecast.loss == pytest.approx(float(loss_at(TARGET)), rel=0.01)
    assert forecast.interval[0] < forecast.loss < forecast.interval[1]
    assert forecast.naive < forecast.interval[0]
    assert forecast.length == "5 tokens a parameter" and forecast.unit == "nats per target token"
    assert [len(size.losses) for size in forecast.sizes] == [3] * 5
    again = forecast_of(runs[::-1], "20e6", TARGET)
    assert (again.loss, again.interval, again.rows()) == (forecast.loss, forecast.interval, forecast.rows())


def test_a_run_of_the_forecasts_size_is_compared_and_never_fitted(tmp_path):
    runs = made_sweep(tmp_path / "sweep")
    alone = forecast_of(runs, "20e6", TARGET)
    real = read_run(make_size(tmp_path / "real", TARGET + 7, 9.9, seed=0))
    beyond = read_run(make_size(tmp_path / "beyond", 3 * TARGET, 9.9, seed=0))
    forecast = forecast_of([*runs, real, beyond], "20e6", TARGET)
    assert forecast.loss == alone.loss and forecast.measured is not None and forecast.measured.mean == 9.9
    text = " ".join(forecast.sentences())
    assert "Measured (1 run, not fitted): 9.900, outside the interval." in text
    assert "Larger than that of the forecast, and not fitted: 1 size." in text


def test_a_preset_is_as_large_as_its_model(tmp_path):
    forecast = forecast_of(made_sweep(tmp_path), "medium", None)
    assert forecast.target == 24_913_408  # conf/model/medium.yaml


def test_runs_that_do_not_count_are_left_out_with_the_reason(tmp_path):
    runs = made_sweep(tmp_path)
    expected = forecast_of(runs, "20e6", TARGET)
    wrong = [
        replace(runs[0], state="failed"),
        replace(runs[0], step=39),
        replace(runs[0], config=runs[0].config | {"trainer.total_steps": "50"}),
        replace(runs[0], n_parameters=None),
        replace(runs[0], validation=replace(runs[0].validation, step=runs[0].validation.step - 1)),
    ]
    forecast = forecast_of([*runs, *wrong], "20e6", TARGET)
    assert forecast.rows() == expected.rows()
    text = " ".join(forecast.notes)
    for reason in (
        "1 run, not finished",
        "2 runs, ended before its schedule",
        "1 run, of a version",
        "1 run, without a",
    ):
        assert reason in text, text


def test_of_several_configurations_of_a_size_the_best_counts(tmp_path):
    runs = made_sweep(tmp_path / "sweep")
    worse = [read_run(make_size(tmp_path / f"w{seed}", SIZES[0], 8.0, seed, lr=0.1)) for seed in range(3)]
    forecast = forecast_of([*worse, *runs], "20e6", TARGET)
    assert forecast.loss == forecast_of(runs, "20e6", TARGET).loss
    assert any("several configurations" in note for note in forecast.notes)


def test_equal_tokens_for_all_sizes_are_a_law_too(tmp_path):
    runs = [replace(run, tokens=1e7) for run in made_sweep(tmp_path)]
    assert forecast_of(runs, "20e6", TARGET).length == "10.0 M tokens"


def test_other_vocabularies_compare_by_bits_per_byte(tmp_path):
    runs = made_sweep(tmp_path)
    bits = {"validation/bits_per_byte": 1.0, "validation/loss": 4.0}

    def with_vocabulary(run: Run, size: str, factor: float) -> Run:
        words = {"tokenizer.kind": "bpe", "tokenizer.vocab_size": size}
        scaled = replace(run.validation, loss=run.validation.loss * factor)
        more = {"validation/bits_per_byte": 1.0, "validation/loss": 4.0 * factor}
        return replace(run, config=run.config | words, validation=scaled, metrics=run.metrics | bits | more, data=size)

    one = [with_vocabulary(run, "2048", 1.0) for run in runs]
    two = [with_vocabulary(run, *(("4096", 1.5) if run.n_parameters in SIZES[:2] else ("2048", 1.0))) for run in runs]
    in_nats, in_bits = forecast_of(one, "20e6", TARGET), forecast_of(two, "20e6", TARGET)
    assert in_bits.unit == "bits per byte" and in_bits.loss == pytest.approx(in_nats.loss / 4)
    without = [replace(run, metrics={}) for run in two]
    with pytest.raises(ConfigError, match=r"different vocabularies.*Give runs= with one vocabulary"):
        forecast_of(without, "20e6", TARGET)


Change = Callable[[list[Run]], list[Run]]
REFUSED: dict[str, tuple[float, Change, str]] = {
    "beyond eight times": (41e6, lambda runs: runs, r"8\.2 times the largest.*5\.0 M.*forecast=39992000"),
    "three sizes": (TARGET, lambda runs: runs[:9], r"at least 4 sizes.*Train further sizes"),
    "a narrow range": (3e6, lambda runs: [replace(r, n_parameters=10**6 + (r.n_parameters or 0) // 9,
                       tokens=5e6 + 5 * (r.n_parameters or 0) / 9) for r in runs], "over a factor of 4"),
    "no run": (TARGET, lambda runs: [replace(r, state="failed") for r in runs], "15 runs, not finished"),
    "read too often": (TARGET, lambda runs: [*runs[1:], replace(runs[0], epochs=4.3)], "read its text 4.3 times"),
    "other lengths": (TARGET, lambda runs: [replace(r, tokens=(r.n_parameters or 0) ** 1.5) for r in runs],
                      "tokens a parameter, and .* must be equal within 10 %"),
    "other data": (TARGET, lambda runs: [*runs[:-1], replace(runs[-1], data="e" * 64)], "seed=2 have different data"),
    "another validation": (TARGET, lambda runs: [*runs[:-1], replace(runs[-1], config=runs[-1].config | {
                           "trainer.eval_max_batches": "7"})], "validate on different parts"),
    "other sources": (TARGET, lambda runs: [*runs[:-1], replace(runs[-1], config=runs[-1].config | {
                      "data.path": "b"})], "the runs differ in data.path"),
    "an untied head": (0.0, lambda runs: [replace(r, config=r.config | {
                       "model.tie_embeddings": "false"}) for r in runs], "Give the number of parameters"),
}  # fmt: skip


def test_the_remedy_of_a_refusal_is_not_refused(tmp_path):
    assert forecast_of(made_sweep(tmp_path), "39992000", 39_992_000).target == 8 * SIZES[-1]


@pytest.mark.parametrize("case", REFUSED)
def test_what_carries_no_forecast_is_refused(tmp_path, case):
    target, change, message = REFUSED[case]
    with pytest.raises(ConfigError, match=f"forecast=medium: .*{message}"):
        forecast_of(change(made_sweep(tmp_path)), "medium", target or None)


def test_noise_that_hides_the_law_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"the noise does not allow it.* shown are at most 5 %\. Train more seeds"):
        forecast_of(made_sweep(tmp_path, sigma=0.02), "20e6", TARGET)


def test_text_read_twice_is_said(tmp_path):
    runs = [replace(run, epochs=2.2) for run in made_sweep(tmp_path)]
    assert "Text was read up to 2.2 times" in " ".join(forecast_of(runs, "20e6", TARGET).sentences())


@pytest.mark.parametrize(("epochs", "said"), [(0.2, False), (0.5, True)])
def test_text_that_is_too_short_for_the_larger_model_is_said(tmp_path, epochs, said):
    runs = [replace(run, epochs=epochs * (run.n_parameters or 0) / SIZES[-1]) for run in made_sweep(tmp_path)]
    text = " ".join(forecast_of(runs, "20e6", TARGET).sentences())
    assert ("for 100.0 M tokens of new text; that of the runs has 50.0 M." in text) == said, text


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def typed(elsewhere, monkeypatch, capsys):
    """Run `python -m dtl.report` in an empty folder; return its exit code and output."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dtl-report", *words])
        try:
            dtl.report.main()
        except SystemExit as ended:
            return int(str(ended.code)), "".join(capsys.readouterr())
        return 0, "".join(capsys.readouterr())

    return run


def test_the_command_shows_the_forecast(typed, monkeypatch):
    monkeypatch.setattr("dtl.reports.build._drawings", lambda *_: {})
    made_sweep(Path("outputs/sweep"))
    make_size(Path("outputs/real"), TARGET, float(loss_at(TARGET)))
    code, out = typed("runs=outputs", "forecast=2e7", "out=report")
    assert code == 0, out
    assert "Forecast of 2e7, nats per target token" in out
    assert "within the interval" in out and "A straight line, without a floor" in out


def test_the_plot_names_sizes_and_losses(tmp_path):
    real = read_run(make_size(tmp_path / "real", TARGET, 3.0))
    with style():
        drawing = draw_forecast(forecast_of([*made_sweep(tmp_path / "sweep"), real], "2e7", TARGET))
    assert drawing.name in PICTURES and drawing.png.startswith(b"\x89PNG") and "<svg" in drawing.inline
    for text in ("311.0 k: ", "20.0 M: 3.0000, fitted "):
        assert text in drawing.alternative, drawing.alternative


@pytest.mark.slow
def test_the_page_has_the_forecast_first(typed):
    made_sweep(Path("outputs/sweep"))
    assert typed("runs=outputs", "forecast=2e7", "out=report")[0] == 0
    page = (Path("report") / PAGE).read_text()
    assert page.index(">Forecast</h2>") < page.index("Table of the forecast") < page.index(">Loss</h2>")
    assert "forecast=2e7" in page and Path("report/forecast.png").is_file()
    assert typed("runs=outputs", "out=report")[0] == 0
    assert "Forecast" not in (Path("report") / PAGE).read_text() and not Path("report/forecast.png").exists()


@pytest.mark.slow
def test_trained_runs_record_what_a_forecast_needs(elsewhere, monkeypatch):
    from dtl.model.transformer import create_model  # imports torch

    monkeypatch.setattr("dtl.reports.forecast.MAX_HALF_WIDTH", math.inf)  # so few steps are all noise
    (elsewhere / "lines.txt").write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(2999)))
    words = ["data=text", "data.path=lines.txt", "tokenizer=char", "model.dim=8,16,24,32", "model.n_layers=1"]
    words += ["model.n_heads=2", "model.max_seq_len=16", "trainer.tokens_per_parameter=3", "tracker=local", "seed=5"]
    words += ["trainer.micro_batch_size=2", "trainer.sample_every_evals=0", "model.dropout=0"]
    subprocess.run([sys.executable, "-m", "dtl.train", "-m", *words], check=True, capture_output=True, timeout=500)
    runs = [read_run(folder) for folder in runs_in(elsewhere / "outputs")]
    forecast = forecast_of(runs, "3e4", 3e4)
    for size, dim in zip(forecast.sizes, (8, 16, 24, 32), strict=True):
        model = create_model("small", vocab_size=3, dim=dim, n_layers=1, n_heads=2, max_seq_len=16)
        assert size.n == model.n_parameters(embeddings=False)
        assert size.tokens == pytest.approx(3 * size.n, abs=2 * 16 + 1)
    assert forecast.length == "3 tokens a parameter"
    assert [run.data for run in runs] == [runs[0].data] * 4 and len(runs[0].data or "") == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["forecast=larg"], "must be a model (large, medium, qa, small) or its number of parameters"),
        (["forecast=auto"], "must be a model"),
        (["forecast=-3"], "1000 to 1e+13"),
        (["forecast=nan"], "1000 to 1e+13"),
        (["forecast=large"], "times the largest of the runs"),
    ],
)
def test_what_cannot_be_forecast_ends_the_command_and_leaves_nothing(typed, words, message):
    made_sweep(Path("outputs/sweep"))
    before = sorted(Path().rglob("*"))
    code, out = typed("runs=outputs", *words)
    assert code == 2 and message in " ".join(out.split()), out
    assert sorted(Path().rglob("*")) == before
