"""`python -m dtl.train -m` with lists of values: which trials there are, which of them are left to run."""

from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write

from dtl.commandline.command import Command
from dtl.commandline.door import understood
from dtl.config import to_yaml, typed
from dtl.records.provenance import config_hash
from dtl.sweeps.process import REASON_WIDTH
from dtl.sweeps.records import SweepFolder, Trial
from dtl.terminal.safe_text import in_one_line

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


def lay_out(sweep: SweepFolder, wanted: Sequence[Sequence[str]], composer: Composer) -> list[Trial]:
    """The trials of `wanted` overrides, in order, each with the record that it has in the sweep's folder already.

    A configuration has one trial, however often and under whatever number it is asked for. What cannot be composed
    is refused, with its reason; the others stay.
    """
    known = {trial.hash: trial for trial in sweep.trials()}
    number = max((trial.number for trial in known.values()), default=-1) + 1
    chosen: dict[str, Trial] = {}
    for given in wanted:
        overrides = for_a_trial(given)
        reason = ""
        try:
            key = composer.hash_of(overrides)
        except Exception as error:
            key, reason = config_hash("\n".join(overrides)), composer.explain(error, overrides)
        if key in chosen:
            continue
        trial = known.get(key)
        if trial is None:
            trial = Trial(number, overrides, key)
            number += 1
        if reason:
            trial.state, trial.reason = "refused", reason
        sweep.keep(trial)
        chosen[key] = trial
    return list(chosen.values())
