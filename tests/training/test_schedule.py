"""Laws of the learning rate: never 0 in warm-up, up to the peak, down to the floor, the same for the same step."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtl.errors import ConfigError
from dtl.registry import SCHEDULES
from dtl.training.config import ScheduleConfig
from dtl.training.schedule import SchedulePoint, learning_rate_factor, warmup_steps

NAMES = ("cosine", "linear", "wsd")
shares = st.floats(0, 1)
configs = st.builds(
    ScheduleConfig,
    name=st.sampled_from(NAMES),
    warmup_fraction=shares,
    warmup_steps=st.none() | st.integers(0, 300),
    min_lr_fraction=shares,
    decay_fraction=shares,
)
totals = st.integers(1, 200)


@given(configs, totals)
def test_rises_to_the_peak_then_falls_to_the_floor_and_stays(config: ScheduleConfig, total: int) -> None:
    config.validate()
    warmup = warmup_steps(config, total)
    factors = [learning_rate_factor(config, step, total) for step in range(2 * total + 3)]
    assert all(0 <= factor <= 1 for factor in factors)
    rising, falling = factors[:warmup], factors[warmup:]
    assert all(factor > 0 for factor in rising)
    assert all(before < after for before, after in pairwise(rising))
    assert all(before >= after for before, after in pairwise(falling))
    assert max(factors) == pytest.approx(1)
    assert all(factor >= config.min_lr_fraction - 1e-12 for factor in falling)
    assert len(set(factors[total:])) == 1


@given(configs, totals, st.integers(0, 400))
def test_is_a_pure_function(config: ScheduleConfig, total: int, step: int) -> None:
    first = learning_rate_factor(config, step, total)
    learning_rate_factor(config, (step * 7 + 1) % 401, total)
    assert learning_rate_factor(config, step, total) == first


@given(configs, totals)
def test_warmup_steps_win_over_the_fraction_and_never_exceed_the_run(config: ScheduleConfig, total: int) -> None:
    if config.warmup_steps is not None:
        assert warmup_steps(config, total) == min(config.warmup_steps, total)
    else:
        assert warmup_steps(config, total) == round(config.warmup_fraction * total)


@pytest.mark.parametrize("name", NAMES)
def test_reaches_the_floor_at_the_horizon(name: str) -> None:
    config = ScheduleConfig(name=name, min_lr_fraction=0.13)
    assert learning_rate_factor(config, 101, 101) == pytest.approx(0.13)
    assert learning_rate_factor(config, 5000, 101) == pytest.approx(0.13)


def test_known_values_of_a_cosine() -> None:
    config = ScheduleConfig(name="cosine", warmup_steps=10, min_lr_fraction=0.1)
    found = [learning_rate_factor(config, step, 110) for step in (0, 4, 9, 10, 35, 60, 110)]
    quarter = 0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5))
    assert found == pytest.approx([0.1, 0.5, 1.0, 1.0, quarter, 0.55, 0.1])


def test_known_values_of_a_line() -> None:
    config = ScheduleConfig(name="linear", warmup_steps=0, min_lr_fraction=0.0)
    assert [learning_rate_factor(config, step, 4) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_wsd_holds_then_decays() -> None:
    config = ScheduleConfig(name="wsd", warmup_steps=0, min_lr_fraction=0.0, decay_fraction=0.25)
    found = [learning_rate_factor(config, step, 100) for step in (0, 50, 75, 80, 90, 100)]
    assert found == pytest.approx([1, 1, 1, 0.8, 0.4, 0])


def test_wsd_without_decay_holds_to_the_end() -> None:
    config = ScheduleConfig(name="wsd", decay_fraction=0.0)
    assert learning_rate_factor(config, 100, 100) == 1.0


@pytest.fixture
def inverse_square_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule of Vaswani et al. (2017): it needs the step itself, and not only the fraction that is done."""

    def schedule(at: SchedulePoint, config: ScheduleConfig) -> float:
        offset = config.options["offset"]
        return math.sqrt((at.warmup + offset) / (at.step + offset))

    monkeypatch.setattr(SCHEDULES, "_parts", dict(SCHEDULES._parts))
    SCHEDULES.register("inverse_square_root")(schedule)


@pytest.mark.usefixtures("inverse_square_root")
def test_a_schedule_of_ones_own_sees_step_and_horizon_and_its_options() -> None:
    config = ScheduleConfig("inverse_square_root", warmup_steps=7, min_lr_fraction=0.0, options={"offset": 2})
    config.validate()
    for horizon in (101, 1009):  # the same at the same step, however long the run
        found = [learning_rate_factor(config, step, horizon) for step in (7, 34, 79)]
        assert found == pytest.approx([1, math.sqrt(9 / 36), math.sqrt(9 / 81)])


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_of_dtl_has_no_options(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"schedule\.options=.*: schedule\.name={name} has no options"):
        ScheduleConfig(name, options={"power": 2}).validate()
