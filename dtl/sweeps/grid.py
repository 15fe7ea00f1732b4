"""The trials of `python -m dtl.train -m` with lists of values: composed, matched with the folder, checked.

Combinations that compose to the same configuration are one trial, and a sweep without any valid trial is rejected.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hydra.types import HydraContext
from omegaconf import DictConfig

from dtl.base.safe_text import in_one_line
from dtl.base.units import number_of
from dtl.commandline.cli import to_dtl_error
from dtl.commandline.command import Command
from dtl.commandline.compose import typed_run
from dtl.config import refuse_auto_in_sweep, to_yaml
from dtl.errors import ConfigError
from dtl.run_dir.provenance import composition_flags, config_hash
from dtl.run_dir.sweep_records import SweepFolder, Trial
from dtl.sweeps.process import REASON_WIDTH
from dtl.sweeps.table import varying_overrides

# Hydra's own overrides that configure the sweep, not a trial.
_SWEEP_KEYS = ("hydra.launcher", "hydra.sweeper", "hydra.sweep.", "hydra.mode", "hydra/launcher", "hydra/sweeper")


class Composer:
    """Composes overrides to a configuration, as Hydra does for a trial."""

    def __init__(self, context: HydraContext, config: DictConfig, command: Command) -> None:
        self._loader = context.config_loader
        self._config = config
        self._command = command

    def compose(self, overrides: Sequence[str]) -> tuple[str, list[str]]:
        """Return the hash of the composed configuration, and its plugins. Raises Hydra's and OmegaConf's errors,
        ConfigError."""
        config = typed_run(self._loader.load_sweep_config(self._config, list(overrides)))
        refuse_auto_in_sweep(config)
        return config_hash(to_yaml(config)), config.plugins

    def explain(self, error: Exception, overrides: list[str]) -> str:
        """Return why composing failed, in one line."""
        known = to_dtl_error(error, [*composition_flags(self._config.hydra), *overrides], self._command)
        return in_one_line(str(known or f"{type(error).__name__}: {error}").partition("\n")[0], REASON_WIDTH)


def trial_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those that configure the sweep."""
    return [override for override in overrides if not override.lstrip("+~").startswith(("sweep.", *_SWEEP_KEYS))]


@dataclass(frozen=True)
class Combination:
    """One combination of a grid's values, composed."""

    overrides: list[str]
    hash: str  # of the composed configuration; of the overrides if it is rejected
    plugins: list[str] = field(default_factory=list)
    refused: str = ""  # why it cannot be composed, in one line; empty if it can


def compose_all(wanted: Sequence[Sequence[str]], composer: Composer) -> list[Combination]:
    """Compose each of the `wanted` overrides, in order. Writes nothing."""
    combinations = []
    for given in wanted:
        overrides = trial_overrides(given)
        try:
            combinations.append(Combination(overrides, *composer.compose(overrides)))
        except Exception as error:
            words = config_hash("\n".join(sorted(overrides)))
            reason = composer.explain(error, overrides)
            combinations.append(Combination(overrides, words, refused=reason))
    return combinations


def create_trials(sweep: SweepFolder, combinations: Sequence[Combination]) -> list[Trial]:
    """Return the trials of the combinations, in order, reusing the records that the sweep's folder has already.

    Equal configurations share one trial. A combination that cannot be composed becomes a trial in the state
    "refused", with the reason. A trial that never ran keeps its number when its overrides compose differently than in
    an earlier session, for example because an error in a config file was fixed.
    """
    trials = sweep.trials()
    known = {trial.hash: trial for trial in trials}
    unrun = {tuple(sorted(trial.overrides)): trial for trial in trials if trial.state in ("waiting", "refused")}
    number = sweep.next_number()
    chosen: dict[str, Trial] = {}
    for combination in combinations:
        before = unrun.pop(tuple(sorted(combination.overrides)), None)
        trial = chosen.get(combination.hash) or known.get(combination.hash) or before
        if trial is None:
            trial = Trial(number, combination.overrides, combination.hash)
            number += 1
        elif before is not None and before is not trial:
            sweep.remove(before)  # it composes to the same configuration as another trial
        trial.hash, trial.plugins = combination.hash, combination.plugins
        if combination.refused:
            trial.state, trial.reason = "refused", combination.refused
        elif trial.state == "refused":
            trial.state, trial.reason = "waiting", ""
        sweep.keep(trial)
        chosen[combination.hash] = trial
    return list(chosen.values())


def describe_duplicates(combinations: Sequence[Combination]) -> str:
    """Return a line about combinations equal to an earlier one; empty if there are none."""
    first: dict[str, Combination] = {}
    duplicates = [each for each in combinations if first.setdefault(each.hash, each) is not each]
    if not duplicates:
        return ""
    duplicate, other = duplicates[0], first[duplicates[0].hash]
    own, others = varying_overrides([duplicate.overrides, other.overrides])
    in_grid = varying_overrides([each.overrides for each in combinations])[combinations.index(duplicate)]
    twice = f"{' '.join(in_grid or duplicate.overrides)}, given twice"
    example = f"{' '.join(own)} as {' '.join(others)}" if own else twice
    are = "is" if len(duplicates) == 1 else "are"
    return (
        f"{len(duplicates)} of {len(combinations)} combinations {are} the same configuration as another: run once "
        f"({in_one_line(example, REASON_WIDTH)})"
    )


# --- a sweep without a valid trial --------------------------------------------------------------------------------
# Rejected as a whole, with the error message of a single run.

MAX_REASONS = 3


class NoTrialError(ConfigError):
    """Raised when every trial of a sweep is rejected."""

    def __init__(self, refused: Iterable[tuple[Sequence[str], str]]) -> None:
        """`refused`: for each trial its overrides and why it is rejected."""
        overrides, reasons = zip(*refused, strict=True)
        if len(reasons) == 1:
            super().__init__(reasons[0])
            return
        trials: dict[str, list[str]] = {}
        for words, reason in zip(varying_overrides(overrides), reasons, strict=True):
            trials.setdefault(reason, []).append(" ".join(words))
        lines = [_line(reason, names) for reason, names in trials.items()]
        if len(lines) > MAX_REASONS:
            rest = len(lines) - MAX_REASONS
            lines[MAX_REASONS:] = [f"... and {number_of('other reasons', rest)}"]
        super().__init__("\n  ".join([f"none of the {len(reasons)} trials can be run:", *lines]))


def _line(reason: str, names: Sequence[str]) -> str:
    name = "" if reason.startswith(f"{names[0]}:") or not names[0] else f"{names[0]}: "
    return f"{name}{reason}" + (f" (the same for {len(names) - 1} more)" if len(names) > 1 else "")
