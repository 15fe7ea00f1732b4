"""The trials of `python -m dtl.train -m` with lists of values: composed, matched with the folder, checked.

Combinations that compose to the same configuration are one trial, and a sweep without any valid trial is rejected.
"""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from dtl.base.json_files import as_object
from dtl.base.redaction import redact_all
from dtl.base.safe_text import in_one_line
from dtl.base.units import number_of
from dtl.commandline.cli import to_dtl_error
from dtl.commandline.command import Command
from dtl.commandline.compose import typed_run
from dtl.commandline.overrides import quoted
from dtl.config import SECTIONS, RunConfig, schema_defaults, to_dict, to_yaml
from dtl.errors import ConfigError
from dtl.run_dir.provenance import composition_flags, config_hash
from dtl.run_dir.state import read_config
from dtl.run_dir.sweep_records import SweepFolder, Trial
from dtl.sweeps.process import REASON_WIDTH
from dtl.sweeps.table import varying_overrides

NEWER = "newer"  # in the record of a sweep that an earlier version began: see `newer_keys`
# Hydra's own overrides that configure the sweep, not a trial.
_SWEEP_KEYS = ("hydra.launcher", "hydra.sweeper", "hydra.sweep.", "hydra.mode", "hydra/launcher", "hydra/sweeper")


class Composer:
    """Composes overrides to a configuration, as Hydra does for a trial."""

    def __init__(self, context: HydraContext, config: DictConfig, command: Command, sweep: SweepFolder) -> None:
        """`sweep` may have been begun by an earlier version, which did not have all of today's keys."""
        self._loader = context.config_loader
        self._config = config
        self._command = command
        self.newer = newer_keys(sweep)

    def compose(self, overrides: Sequence[str]) -> tuple[str, list[str], list[str]]:
        """Return the hash of the composed configuration, its plugins, and the settings that keep it the one of the
        sweep's first trials. Raises Hydra's and OmegaConf's errors, ConfigError."""
        config = typed_run(self._loader.load_sweep_config(self._config, list(overrides)))
        if not self.newer:
            return config_hash(to_yaml(config)), config.plugins, []
        given = {word.lstrip("+").partition("=")[0] for word in overrides}
        values, pinned = as_before({key: v for key, v in self.newer.items() if key not in given}, to_dict(config))
        return config_hash(OmegaConf.to_yaml(OmegaConf.create(redact_all(values)))), config.plugins, pinned

    def recorded(self) -> dict[str, Any]:
        """Return what the record of the sweep keeps, so that later sessions compose the same."""
        return {NEWER: self.newer} if self.newer else {}

    def explain(self, error: Exception, overrides: list[str]) -> str:
        """Return why composing failed, in one line."""
        known = to_dtl_error(error, [*composition_flags(self._config.hydra), *overrides], self._command)
        return in_one_line(str(known or f"{type(error).__name__}: {error}").partition("\n")[0], REASON_WIDTH)


def newer_keys(sweep: SweepFolder) -> dict[str, Any]:
    """Return the keys that did not exist when the sweep was begun, with the defaults that its runs resume with.

    Its first trial that began has a config.yaml with every key of its day; once resumed, with those of today, so that
    the launch records what was found. Empty for a sweep that today's version began.
    """
    record = sweep.read()
    recorded = as_object(record.extra.get(NEWER)) if record else {}
    configs = (read_config(sweep.trial_folder(trial.number)) for trial in sweep.trials())
    first = next((config for config in configs if all(isinstance(config.get(name), dict) for name in SECTIONS)), None)
    defaults = OmegaConf.to_container(schema_defaults(RunConfig))
    return recorded if first is None else recorded | dict(_missing(first, defaults))


def _missing(config: Mapping[str, Any], defaults: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, default in defaults.items():
        if name not in config:
            yield f"{prefix}{name}", default
        elif isinstance(default, dict):
            yield from _missing(as_object(config[name]), default, f"{prefix}{name}.")


def as_before(newer: Mapping[str, Any], values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a config without the `newer` keys, as its hash was once made of, and the overrides that
    give these keys the defaults of `newer`."""
    values, pinned = copy.deepcopy(values), []
    for key, default in newer.items():
        *sections, name = key.split(".")
        holder = values
        for section in sections:
            holder = as_object(holder.get(section))
        if holder.pop(name, default) != default:
            pinned.append(f"{key}={quoted(default) if isinstance(default, str) else json.dumps(default)}")
    return values, pinned


def trial_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those that configure the sweep."""
    return [override for override in overrides if not override.lstrip("+~").startswith(("sweep.", *_SWEEP_KEYS))]


@dataclass(frozen=True)
class Combination:
    """One combination of a grid's values, composed."""

    overrides: list[str]
    hash: str  # of the composed configuration; of the overrides if it is rejected
    plugins: list[str] = field(default_factory=list)
    pinned: list[str] = field(default_factory=list)  # see Trial
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
        trial.hash, trial.plugins, trial.pinned = combination.hash, combination.plugins, combination.pinned
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
