"""`python -m dtl.train -m` with lists of values: which trials there are, which of them are left to run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write

from dtl.base.safe_text import in_one_line
from dtl.commandline.cli import understood
from dtl.commandline.command import Command
from dtl.config import to_yaml, typed
from dtl.errors import ConfigError
from dtl.run_dir.provenance import config_hash
from dtl.run_dir.sweep_records import SweepFolder, Trial
from dtl.sweeps.process import REASON_WIDTH
from dtl.sweeps.table import varied

# Overrides of Hydra's that are the sweep's own affair.
_OF_THE_SWEEP = ("hydra.launcher", "hydra.sweeper", "hydra.sweep.", "hydra.mode", "hydra/launcher", "hydra/sweeper")


class Composer:
    """Overrides to a configuration and its hash, as Hydra would compose them for a trial."""

    def __init__(self, context: HydraContext, config: DictConfig, command: Command) -> None:
        self._loader = context.config_loader
        self._config = config
        self._command = command

    def hash_of(self, overrides: Sequence[str]) -> str:
        """Raises what composing and checking raise: Hydra's and OmegaConf's errors, ConfigError."""
        composed = self._loader.load_sweep_config(self._config, list(overrides))
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(composed)  # names take their parts from Hydra's choices
        try:
            with read_write(composed), open_dict(composed):
                del composed["hydra"]
            return config_hash(to_yaml(typed(composed)))
        finally:
            HydraConfig.instance().cfg = before

    def explain(self, error: Exception, overrides: list[str]) -> str:
        """Why it cannot be composed, in one line."""
        known = understood(error, overrides, self._command)
        return in_one_line(str(known or f"{type(error).__name__}: {error}").partition("\n")[0], REASON_WIDTH)


def for_a_trial(overrides: Sequence[str]) -> list[str]:
    """Overrides without those that speak to the sweep."""
    return [one for one in overrides if not one.lstrip("+~").startswith(("sweep.", *_OF_THE_SWEEP))]


@dataclass(frozen=True)
class Combination:
    """One combination of a grid's values, composed."""

    overrides: list[str]
    hash: str  # of its whole configuration; of its words where it is refused
    refused: str = ""  # why it cannot be composed, in one line


def combined(wanted: Sequence[Sequence[str]], composer: Composer) -> list[Combination]:
    """The `wanted` overrides, in order, each with what it means. Writes nothing."""
    found = []
    for given in wanted:
        overrides = for_a_trial(given)
        try:
            found.append(Combination(overrides, composer.hash_of(overrides)))
        except Exception as error:
            words = config_hash("\n".join(sorted(overrides)))
            found.append(Combination(overrides, words, composer.explain(error, overrides)))
    return found


def lay_out(sweep: SweepFolder, combinations: Sequence[Combination]) -> list[Trial]:
    """The trials of the combinations, in order, each with the record that it has in the sweep's folder already.

    A configuration has one trial, however often and under whatever number it is asked for. What cannot be composed
    is refused, with its reason; the others stay. One that never ran keeps its place when its words mean something else
    than in an earlier session: what was refused then can be composed now, or the other way round.
    """
    trials = sweep.trials()
    known = {trial.hash: trial for trial in trials}
    unrun = {tuple(sorted(trial.overrides)): trial for trial in trials if trial.state in ("waiting", "refused")}
    number = max((trial.number for trial in trials), default=-1) + 1
    chosen: dict[str, Trial] = {}
    for one in combinations:
        before = unrun.pop(tuple(sorted(one.overrides)), None)
        trial = chosen.get(one.hash) or known.get(one.hash) or before
        if trial is None:
            trial = Trial(number, one.overrides, one.hash)
            number += 1
        elif before is not None and before is not trial:
            sweep.remove(before)  # it means the same as another one
        trial.hash = one.hash
        if one.refused:
            trial.state, trial.reason = "refused", one.refused
        elif trial.state == "refused":
            trial.state, trial.reason = "waiting", ""
        sweep.keep(trial)
        chosen[one.hash] = trial
    return list(chosen.values())


def repeated(combinations: Sequence[Combination]) -> str:
    """A line about combinations that mean the same as an earlier one; empty where there is none."""
    first: dict[str, Combination] = {}
    again = [one for one in combinations if first.setdefault(one.hash, one) is not one]
    if not again:
        return ""
    one, other = again[0], first[again[0].hash]
    own, others = varied([one.overrides, other.overrides])
    of_grid = varied([each.overrides for each in combinations])[combinations.index(one)]
    twice = f"{' '.join(of_grid or one.overrides)}, given twice"
    example = f"{' '.join(own)} as {' '.join(others)}" if own else twice
    are = "is" if len(again) == 1 else "are"
    return (
        f"{len(again)} of {len(combinations)} combinations {are} the same configuration as another: run once "
        f"({in_one_line(example, REASON_WIDTH)})"
    )


# --- no trial can be ----------------------------------------------------------------------------------------------
# A sweep of which no trial can be: refused as a whole, as a single run is.


MAX_REASONS = 3


class NoTrialError(ConfigError):
    """Every trial of a sweep is refused."""

    def __init__(self, refused: Iterable[tuple[Sequence[str], str]]) -> None:
        """`refused`: the overrides of each trial, and why it cannot be."""
        overrides, reasons = zip(*refused, strict=True)
        if len(reasons) == 1:
            super().__init__(reasons[0])
            return
        trials: dict[str, list[str]] = {}
        for words, reason in zip(varied(overrides), reasons, strict=True):
            trials.setdefault(reason, []).append(" ".join(words))
        lines = [_line(reason, names) for reason, names in trials.items()]
        if len(lines) > MAX_REASONS:
            rest = len(lines) - MAX_REASONS
            lines[MAX_REASONS:] = [f"... and {rest} other reason{'s' if rest > 1 else ''}"]
        super().__init__("\n  ".join([f"none of the {len(reasons)} trials can be run:", *lines]))


def _line(reason: str, names: Sequence[str]) -> str:
    name = "" if reason.startswith(f"{names[0]}:") or not names[0] else f"{names[0]}: "
    return f"{name}{reason}" + (f" (the same for {len(names) - 1} more)" if len(names) > 1 else "")
