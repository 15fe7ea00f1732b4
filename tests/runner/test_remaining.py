"""How long a run still takes: from fed seconds, without a clock."""

import random
import re
from datetime import datetime
from itertools import combinations_with_replacement

import pytest
import torch
from tiny_runs import start, tiny_config
from torch.utils.flop_counter import FlopCounterMode

from dtl.model.config import ModelConfig
from dtl.model.transformer import TransformerLM
from dtl.runner import session
from dtl.runner.length import RunLength
from dtl.runner.remaining import (
    EVALUATION,
    REPORT,
    SAMPLES,
    SAVE,
    STEP,
    WARM_UP,
    Intervals,
    Remaining,
    Span,
    in_range,
    left_of_steps,
)
from dtl.tracking.metrics import SPEED, UTILIZATION, read_metrics
from dtl.training.config import TrainerConfig
from dtl.training.trainer import TrainState

GUESSES = {EVALUATION: 5.0, SAMPLES: 2.0, SAVE: 1.0, REPORT: 11.0}


def remaining(last_step=97, evaluate=10, save=(20,), steps=(), guesses=GUESSES, **settings) -> Remaining:
    intervals = Intervals(evaluate, save, settings.pop("sample_every_evals", 1), has_validation=True)
    found = Remaining(TrainerConfig(**{"early_stopping_patience": None} | settings), intervals, last_step, guesses)
    for seconds in steps:
        found.saw(STEP, seconds)
    return found


def simulated(every: int, save: int, begin: int, end: int, better: bool) -> tuple[int, int]:
    """Evaluations and saves of a run that ends at `end`, as a session takes them."""
    evaluated = {step for step in range(begin + 1, end + 1) if step % every == 0 or step == end}
    saved = {step for step in range(begin + 1, end + 1) if step % save == 0 or step == end}
    return len(evaluated), len(saved | evaluated if better else saved)


@pytest.mark.parametrize("seed", range(7))
def test_what_is_due_is_what_a_session_does(seed):
    draw = random.Random(seed)
    for _ in range(50):
        every, save, begin = draw.randint(1, 13), draw.randint(1, 17), draw.randint(0, 40)
        end, better = begin + draw.randint(1, 40), draw.random() < 0.5
        due = Intervals(every, (save,), 2, has_validation=True).due(begin, end, float(better))
        assert (due[EVALUATION], due[SAVE]) == simulated(every, save, begin, end, better)
        assert (due[STEP], due[SAMPLES], due[REPORT]) == (end - begin, due[EVALUATION] / 2, 1)


def test_nothing_held_out_is_not_evaluated_and_a_pause_has_no_report():
    due = Intervals(7, (), 1, has_validation=False).due(0, 23, is_last=False)
    assert due == {STEP: 23, EVALUATION: 0, SAMPLES: 3, SAVE: 1, REPORT: 0}
    length = RunLength(steps_per_epoch=1, horizon=300, last_step=300, warmup=15)
    config = TrainerConfig(save_every_epochs=2, save_every_steps=11)
    assert Intervals.of(config, length, has_validation=False) == Intervals(30, (11, 60), 1, False)
    assert Intervals.of(config, length, has_validation=True) == Intervals(1, (11, 2), 1, True)


def test_all_that_is_left_counts():
    found = remaining(steps=[50.0, 9.0, *[2.0] * 41])
    state = TrainState(step=43, evaluations=4)
    left = found.left(state)
    assert left is not None
    # 54 steps, 6 evaluations (that of the end too), each with a save, and two more saves
    assert left.middle == pytest.approx(2 * (54 + 6 * 5 + 6 * 2 + 6 * 1 + 11))
    found.saw(EVALUATION, 3.0)
    found.saw(SAMPLES, 7.0)
    found.saw(SAVE, 0.5)
    left = found.left(state)
    assert left is not None
    assert left.middle == pytest.approx(2 * (54 + 11) + 6 * (3 + 7 + 0.5))
    assert left.low < left.middle < left.high


def test_the_first_steps_count_only_while_there_are_no_others():
    alone = remaining(steps=[8.0], guesses={}).left(TrainState(step=1))
    assert alone is not None and alone.middle == pytest.approx(8 * 96)
    for seconds in (2.0, 500.0):
        later = remaining(steps=[seconds] * WARM_UP + [3.0] * 3, guesses={}).left(TrainState(step=5))
        assert later is not None and later.middle == pytest.approx(3 * 92)


def test_a_pause_counts_as_no_more_than_a_slow_step():
    left = remaining(steps=[1.0] * 12 + [36_000.0], guesses={}).left(TrainState(step=13))
    assert left is not None and left.middle == pytest.approx(84 * (10 + 3) / 11)


def test_the_range_narrows_with_steps_and_widens_with_the_speed():
    def width(steps: list[float]) -> float:
        left = remaining(steps=steps, guesses={}).left(TrainState(step=50))
        assert left is not None
        return (left.high - left.low) / left.middle

    assert width([1.0] * 5) > width([1.0] * 50) > 0.06
    slower = [1.0] * 20 + [1.4] * 20
    assert width(slower) > 0.3
    left = remaining(steps=slower, guesses={}).left(TrainState(step=50))
    assert left is not None and left.low <= 47 * 1.0 + 1 and left.high >= 47 * 1.4 - 1


def test_only_recent_steps_count():
    left = remaining(last_step=10_000, steps=[9.0] * 400 + [1.0] * 256, guesses={}).left(TrainState(step=656))
    assert left is not None and left.middle == pytest.approx(10_000 - 656)


def test_hours_end_a_run_before_its_last_step_and_a_pause_leaves_out_the_report():
    state = TrainState(step=50, seconds=3500.0)
    by_hours = remaining(steps=[2.0] * 9, hours=1.0, last_step=9000).left(state)
    assert by_hours is not None
    assert by_hours.middle == pytest.approx(2 * (50 + 5 * 5 + 5 * 2 + 5 * 1 + 11))
    paused = remaining(steps=[2.0] * 9, stop_after_steps=53, guesses={REPORT: 1000.0}).left(state)
    assert paused is not None and paused.middle == pytest.approx(6)


def test_early_stopping_may_end_it_before():
    state = TrainState(step=43, evaluations=4, evaluations_since_best=2)
    left = remaining(last_step=997, steps=[1.0] * 50, early_stopping_patience=5, guesses={}).left(state)
    assert left is not None and left.may_end_early
    assert left.low == pytest.approx(27, rel=0.1) and left.middle == pytest.approx(954)
    patient = remaining(steps=[1.0] * 50, early_stopping_patience=5, guesses={}).left(TrainState(step=43))
    assert patient is not None and not patient.may_end_early


def test_what_is_left_follows_from_the_steps_that_a_runs_files_have():
    """Steps of 2 s and a first one of 60 s; what the run did besides is due again at most."""
    seconds = {1: 60.0} | {step: 58.0 + 2 * step for step in range(2, 41)}
    steps = left_of_steps(seconds, 100)
    assert steps is not None and steps.low < steps.middle < steps.high < 140
    assert steps.middle == pytest.approx(120)
    more = left_of_steps(seconds, 100, elapsed=seconds[40] + 20)
    assert more is not None and more.low == steps.low and more.high == pytest.approx(steps.high + 60 * 20 / 40)
    assert more.middle == pytest.approx(135)
    by_hours = left_of_steps(seconds, 100, hours=(seconds[40] + 10) / 3600)
    assert by_hours is not None and by_hours.middle == pytest.approx(10)
    over = left_of_steps(seconds, 30)
    assert over is not None and over.high == 0
    assert left_of_steps({}, 100) is None and left_of_steps({3: 1.0}, 100) is None


def test_damaged_files_have_no_end():
    assert left_of_steps({1: 0.0, 2: 1e308}, 10**9) is None
    backwards = left_of_steps({1: 9.0, 2: 3.0, 3: 4.0}, 100)
    assert backwards is not None and backwards.low >= 0


def test_before_the_first_step_nothing_is_known():
    assert remaining().left(TrainState()) is None


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (17.2, 36, "17 to 36 s"),
        (36.1, 36.4, "36 s"),
        (720, 900, "12 to 15 min"),
        (11_000, 12_100, "3.1 to 3.4 h"),
        (100_000, 150_000, "28 to 42 h"),
        (800_000, 1e6, "9 to 12 days"),
        (0, 0, "under 1 s"),
        (0.2, 1.4, "under 2 s"),
        (5, 130, "under 3 min"),
        (20, 100, "20 to 100 s"),
        (100, 9_000, "under 3 h"),
        (1_000, 40_000, "under 12 h"),
        (3_000, 200_000, "under 3 days"),
        (3e8, 9e10, "10 to 2,852 years"),
    ],
)
def test_a_range_has_one_unit(low, high, text):
    assert in_range(low, high) == text


def test_every_range_can_be_read_and_holds_its_seconds():
    """Of any two seconds from a hundredth to a million years: no zero, at most two numbers in order, one unit, and a
    short line. What is shown is within half of its last digit of what is meant, and `under` is above it."""
    seconds = sorted(
        {0.0, *(10 ** (n / 8) for n in range(-16, 104)), *(n + off for n in BORDERS for off in (-0.6, 0, 0.6))}
    )
    for low, high in combinations_with_replacement(seconds, 2):
        text = in_range(low, high)
        match = re.fullmatch(r"(?:(under )|([\d,.]+) to )?([\d,.]+) (s|min|h|days|years)", text)
        assert match is not None, text
        low, high = (value / SCALES[match[4]] for value in (low, high))
        first, last = (value and float(value.replace(",", "")) for value in (match[2], match[3]))
        half = 0.051 if "." in match[3] else 0.501
        assert last and (first is None or 0 < first < last), text
        if match[1]:
            assert low <= half and high <= last <= high + 1, text
        else:
            assert abs(last - high) <= half and abs((first or last) - low) <= half, text
        span = Span(*(value * SCALES[match[4]] for value in (low, (low + high) / 2, high)), may_end_early=True)
        assert span.text(NOW).endswith(f"in {text}") and len(span.text(NOW)) <= 48


NOW = datetime(2024, 2, 28, 14, 20)
SCALES = {"s": 1, "min": 60, "h": 3600, "days": 86_400, "years": 31_557_600}
BORDERS = (1, 60, 120, 3_600, 7_200, 36_000, 86_400, 172_800, 864_000, 63_115_200)


def test_the_end_has_the_day_where_it_is_another_one():
    now = datetime(2024, 2, 28, 14, 20)
    assert Span(720, 780, 900).text(now) == "ends 14:33, in 12 to 15 min"
    assert Span(12, 20, 31).text(now) == "ends in 12 to 31 s"
    assert Span(60, 40_000, 50_000, may_end_early=True).text(now) == "ends by Thu 01:26, in under 14 h"
    assert Span(8e5, 9e5, 1e6).text(now) == "ends 10 Mar 00:20, in 9 to 12 days"


@pytest.mark.parametrize("peak", [None, 1e9])
def test_a_run_shows_its_end_and_its_utilization_where_the_peak_is_known(peak, pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(session, "peak_flops", lambda device, precision: peak)
    start(tiny_config(pairs), tmp_path)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ") and "epoch" in line]
    assert steps and all("ends in " in line for line in steps)
    assert all((" MFU " in line) == (peak is not None) for line in steps)
    rows = [row for row in read_metrics(tmp_path) if SPEED in row]
    assert rows and all((UTILIZATION in row) == (peak is not None) for row in rows)
    if peak is not None:
        ratios = {round(row[UTILIZATION] * peak / row[SPEED]) for row in rows}
        assert len(ratios) == 1 and ratios.pop() > 6 * 16 * 32


@pytest.mark.parametrize("tied", [True, False])
def test_the_flop_of_a_token_are_those_of_its_products(tied):
    """As torch counts them, of attention that is computed by products of its own."""
    sizes = {"dim": 24, "n_layers": 3, "n_heads": 2, "max_seq_len": 64, "attention_dropout": 0.1}
    model = TransformerLM(ModelConfig(**sizes, tie_embeddings=tied), 53)
    tokens = torch.arange(2 * 11).reshape(2, 11) % 53
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    assert model.flops_per_token(11) == counter.get_total_flops() / tokens.numel()
