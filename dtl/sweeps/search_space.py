"""Search space of Optuna from Hydra's sweep syntax: intervals, ranges and choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from dtl.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

EXAMPLE = "'optimizer.lr=tag(log,interval(1e-4,1e-2))' 'model=choice(small,medium)'"
_SEEDS = (
    "The winner is run again with other seeds at the end (sweep.confirm=5); a grid over seeds needs no "
    "hydra/sweeper=dtl_optuna."
)
_PER_TOKEN = (
    "A search compares losses per token of the validation text, which cannot be compared when tokens or text "
    "differ. A grid without hydra/sweeper=dtl_optuna runs them all; dtl.report compares tokenizers by bits per byte."
)
FORBIDDEN = {  # keys that a search must not choose, and why
    **dict.fromkeys(("seed", "resume", "init"), _SEEDS),
    **dict.fromkeys(("tokenizer", "tokenizer.kind", "tokenizer.vocab_size", "tokenizer.path"), _PER_TOKEN),
    **dict.fromkeys(("data", "data.path"), _PER_TOKEN),
}


@dataclass(frozen=True)
class Space:
    """Fixed overrides of all trials, and the distributions of the searched keys."""

    fixed: list[str]  # overrides that all trials share
    searched: dict[str, "BaseDistribution"]  # key of an override, with Hydra's + mark, to its distribution

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Return the overrides of the trial with these parameters. Floats get six digits, for readable tables."""
        return [*self.fixed, *(f"{key}={_as_text(params[key], self.searched[key])}" for key in self.searched)]

    def params(self, overrides: Sequence[str]) -> dict[str, Any] | None:
        """Return the parameters behind the overrides of a trial; None if they are not of this space."""
        given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
        params: dict[str, Any] = {
            key: _from_text(given[key], kind) for key, kind in self.searched.items() if key in given
        }
        complete = len(params) == len(self.searched) and None not in params.values()
        return params if complete and self.overrides(params) == list(overrides) else None


def parse_space(overrides: Sequence[str], loader: ConfigLoader | None = None) -> Space:
    """Parse overrides in Hydra's syntax to a search space. `loader` finds the files of glob(...).

    Raises ConfigError for a sweep that cannot be searched, or if nothing is swept; Hydra's errors for a malformed
    override.
    """
    fixed: dict[str, str] = {}
    searched: dict[str, BaseDistribution] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)):
        key, line = override.get_key_element(), override.input_line or ""
        fixed.pop(key, None)
        searched.pop(key, None)
        if not override.is_sweep_override():
            fixed[key] = line
        elif (name := key.lstrip("+")) in FORBIDDEN:
            raise ConfigError(f"{line}: a search does not choose {name}. {FORBIDDEN[name]}")
        else:
            searched[key] = _distribution(override, line)
    if not searched:
        raise ConfigError(f"hydra/sweeper=dtl_optuna: there is nothing to search. Give the keys to search: {EXAMPLE}")
    return Space(list(fixed.values()), searched)


def _distribution(override: Override, line: str) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution

    sweep = override.value()
    is_log = "log" in getattr(sweep, "tags", ())
    unknown = set(getattr(sweep, "tags", ())) - {"log"}
    if unknown:
        raise ConfigError(f"{line}: the tag {sorted(unknown)[0]} is not known. Known: log.")
    try:
        if isinstance(sweep, IntervalSweep):
            return _from_interval(sweep, is_log)
        if isinstance(sweep, RangeSweep):
            return _from_range(sweep, is_log)
    except ValueError as error:
        raise ConfigError(f"{line}: {error}. For example: {EXAMPLE}") from None
    if is_log:
        raise ConfigError(f"{line}: choices have no logarithm. Use tag(log,interval(low,high)), or leave out the tag.")
    if isinstance(sweep, ChoiceSweep):
        sweep.shuffle = False  # the order has no meaning for Optuna, and a search that resumes must find the same one
    return CategoricalDistribution(tuple(dict.fromkeys(override.sweep_string_iterator())))


def _from_interval(sweep: IntervalSweep, is_log: bool) -> "BaseDistribution":
    from optuna.distributions import FloatDistribution, IntDistribution

    assert sweep.start is not None and sweep.end is not None
    _check(sweep.start, sweep.end, is_log)
    if isinstance(sweep.start, int) and isinstance(sweep.end, int):  # int(interval(2,8))
        return IntDistribution(sweep.start, sweep.end, log=is_log)
    return FloatDistribution(float(sweep.start), float(sweep.end), log=is_log)


def _from_range(sweep: RangeSweep, is_log: bool) -> "BaseDistribution":
    """Return the distribution of a range, whose end is excluded as in Python and in Hydra's grids."""
    from optuna.distributions import FloatDistribution, IntDistribution

    values = list(sweep.range())
    if not values:
        raise ValueError("this range is empty")
    low, high, step = min(values), max(values), abs(sweep.step)
    _check(low, high, is_log, may_be_one=True)
    if is_log and step != 1:
        raise ValueError("a range with the tag log has steps of 1")
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(low), int(high), log=is_log, step=int(step))
    if is_log:
        raise ValueError("a range with the tag log takes only integers; use an interval")
    return FloatDistribution(float(low), float(high), step=float(step))


def _check(low: float, high: float, is_log: bool, may_be_one: bool = False) -> None:
    if not (low < high or (may_be_one and low == high)):
        raise ValueError("the lower end must be below the upper one")
    if is_log and low <= 0:
        raise ValueError("with the tag log the lower end must be above 0")


def _as_text(value: Any, kind: "BaseDistribution") -> str:
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.6g}"
    return short if kind._contains(float(short)) else repr(value)  # rounding may step outside an interval


def _from_text(text: str, kind: "BaseDistribution") -> Any:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    try:
        if isinstance(kind, CategoricalDistribution):
            return text if text in kind.choices else None
        value = int(text) if isinstance(kind, IntDistribution) else float(text)
    except ValueError:
        return None
    return value if kind._contains(value) else None
