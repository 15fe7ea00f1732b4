"""The length of a run, and the warnings about a length that is too short."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import tiny_config

from dtl.config import RunConfig
from dtl.data.collect import open_sources
from dtl.data.config import DataConfig, RecommendedConfig
from dtl.errors import ConfigError
from dtl.runner.build import build_run
from dtl.runner.length import RunLength, steps_for
from dtl.training.config import ScheduleConfig, TrainerConfig

STEPS_PER_EPOCH = 13


def config(**trainer: float | None) -> RunConfig:
    return RunConfig(
        data=DataConfig(recommended=RecommendedConfig(grad_accum_steps=1, max_epochs=23)),
        trainer=TrainerConfig(**trainer),  # pyright: ignore[reportArgumentType]
        schedule=ScheduleConfig(warmup_fraction=0.05),
    )


@pytest.mark.parametrize(
    ("limits", "horizon", "last_step"),
    [
        ({}, 23 * 13, 23 * 13),  # the data's recommendation
        ({"max_epochs": 3}, 39, 39),
        ({"total_steps": 17}, 17, 17),
        ({"total_steps": 17, "max_epochs": 1}, 17, 13),  # the schedule's horizon stays, the first limit ends it
        ({"total_steps": 17, "max_epochs": 5}, 17, 17),
        ({"total_steps": 7919}, 7919, 7919),  # steps alone: no recommendation cuts them short
        ({"max_epochs": 3, "hours": 0.1, "stop_after_steps": 5}, 39, 39),  # the clock and a pause shape nothing
    ],
)
def test_the_first_limit_ends_the_run(limits, horizon, last_step):
    length = RunLength.of(config(**limits), STEPS_PER_EPOCH)
    assert (length.horizon, length.last_step) == (horizon, last_step)


def test_a_short_run_is_warned_of_with_the_setting_that_mends_it():
    by_epochs = RunLength.of(config(max_epochs=3), STEPS_PER_EPOCH).warnings(config(max_epochs=3))
    assert len(by_epochs) == 1 and "only 39 optimizer steps" in by_epochs[0] and "max_epochs to 16" in by_epochs[0]
    (of_one,) = RunLength.of(config(total_steps=1), STEPS_PER_EPOCH).warnings(config(total_steps=1))
    assert "only 1 optimizer step: " in of_one
    assert RunLength.of(config(max_epochs=16), STEPS_PER_EPOCH).warnings(config(max_epochs=16)) == []
    by_steps = RunLength.of(config(total_steps=17), STEPS_PER_EPOCH).warnings(config(total_steps=17))
    assert "Raise trainer.total_steps to 200" in by_steps[0] and "max_epochs" not in by_steps[0]
    assert "only 17 optimizer steps: most models need 200 or more" in by_steps[0]


def test_a_short_run_by_tokens_or_hours_is_not_told_to_raise_what_it_may_not_have():
    """trainer.tokens and model=auto reject trainer.total_steps."""
    asked = config(total_steps=17)
    by_tokens = replace(RunLength.of(asked, STEPS_PER_EPOCH), by_tokens=("tokens", 2003.0))
    (warning,) = by_tokens.warnings(asked)
    assert "Raise trainer.tokens=2003 12-fold." in warning and "total_steps" not in warning
    asked = config(total_steps=17, hours=0.1)
    (warning,) = RunLength.of(asked, STEPS_PER_EPOCH).warnings(asked)
    assert "or trainer.hours if model=auto chose the steps." in warning


def test_a_run_knows_that_tokens_gave_its_steps(pairs: Path):
    config = tiny_config(pairs, total_steps=None, tokens=997.0)
    data, plans = open_sources(config.data, config.seed)
    parts = build_run(replace(config, data=data), plans, None, None, lambda message: None)
    assert parts.config.trainer.lengths == {"total_steps": parts.length.last_step}
    assert "Raise trainer.tokens=997 " in parts.length.warnings(parts.config)[0]


def test_a_long_warmup_is_warned_of():
    long = replace(config(), schedule=ScheduleConfig(warmup_steps=31))
    (warning,) = RunLength.of(long, STEPS_PER_EPOCH).warnings(long)
    assert "warm-up takes 31 of 299 steps" in warning and "schedule.warmup_steps=14" in warning


@pytest.mark.parametrize(("sequences", "rows"), [(13, 5), (13, 13), (7, 11), (12, 4)])
def test_tokens_are_reached_by_the_last_step_and_not_before(sequences, rows):
    """Counted as the trainer counts them: the last step of an epoch has the rows that are left."""
    seq_len = 17
    of_epoch = [min(rows, sequences - first) * seq_len for first in range(0, sequences, rows)]
    for tokens in (1, 84.5, 85, 86, 221, 222, 1000, 2 * 221):
        steps = steps_for(tokens, sequences, rows, seq_len)
        seen = [sum(of_epoch[step % len(of_epoch)] for step in range(n)) for n in (steps - 1, steps)]
        assert seen[0] < tokens <= seen[1]


def test_a_run_has_one_length():
    assert config(tokens=1e6).max_epochs is None  # no recommendation cuts it short
    with pytest.raises(ConfigError, match=r"^trainer.tokens=1e\+06 trainer.total_steps=7: each sets the length"):
        TrainerConfig(tokens=1e6, total_steps=7).validate()
    with pytest.raises(ConfigError, match=r"To keep trainer.tokens, add trainer.tokens_per_parameter=null.$"):
        TrainerConfig(tokens=1e6, tokens_per_parameter=20).validate()
