"""Hydra's sweep syntax as a space for Optuna: intervals, ranges and choices become what a search may propose."""

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
    "A search compares losses per token of the validation text, which do not compare when the tokens or the text are "
    "others. A grid without hydra/sweeper=dtl_optuna runs them all; dtl.report compares tokenizers by bits per byte."
)
FORBIDDEN = {  # keys that a search does not choose, and why
    **dict.fromkeys(("seed", "resume", "init"), _SEEDS),
    **dict.fromkeys(("tokenizer", "tokenizer.kind", "tokenizer.vocab_size", "tokenizer.path"), _PER_TOKEN),
    **dict.fromkeys(("data", "data.path"), _PER_TOKEN),
}


@dataclass(frozen=True)
class Space:
    """What stays the same in all trials, and what a search may choose."""

    fixed: list[str]  # overrides
    searched: dict[str, "BaseDistribution"]  # key of an override, with its mark, to what it may be

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides of the trial with these parameters. Numbers get six digits, so that a table can be read."""
        return [*self.fixed, *(f"{key}={_as_text(params[key], self.searched[key])}" for key in self.searched)]

    def params(self, overrides: Sequence[str]) -> dict[str, Any] | None:
        """The parameters behind the overrides of a trial; None where they are not of this space."""
        given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
        found: dict[str, Any] = {
            key: _from_text(given[key], kind) for key, kind in self.searched.items() if key in given
        }
        whole = len(found) == len(self.searched) and None not in found.values()
        return found if whole and self.overrides(found) == list(overrides) else None


def parse_space(overrides: Sequence[str], loader: ConfigLoader | None = None) -> Space:
    """The space that overrides in Hydra's syntax ask for. `loader` finds the files of glob(...).

    Raises ConfigError for a sweep that no search can make, or where nothing is swept; Hydra's errors for what is no
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
        raise ConfigError(f"hydra/sweeper=dtl_optuna: there is nothing to search. Give what may vary: {EXAMPLE}")
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
            return _of_interval(sweep, is_log)
        if isinstance(sweep, RangeSweep):
            return _of_range(sweep, is_log)
    except ValueError as error:
        raise ConfigError(f"{line}: {error}. For example: {EXAMPLE}") from None
    if is_log:
        raise ConfigError(f"{line}: choices have no logarithm. Use tag(log,interval(low,high)), or leave out the tag.")
    if isinstance(sweep, ChoiceSweep):
        sweep.shuffle = False  # the order means nothing here, and a search that goes on must find the same one
    return CategoricalDistribution(tuple(dict.fromkeys(override.sweep_string_iterator())))


def _of_interval(sweep: IntervalSweep, is_log: bool) -> "BaseDistribution":
    from optuna.distributions import FloatDistribution, IntDistribution

    assert sweep.start is not None and sweep.end is not None
    _check(sweep.start, sweep.end, is_log)
    if isinstance(sweep.start, int) and isinstance(sweep.end, int):  # int(interval(2,8))
        return IntDistribution(sweep.start, sweep.end, log=is_log)
    return FloatDistribution(float(sweep.start), float(sweep.end), log=is_log)


def _of_range(sweep: RangeSweep, is_log: bool) -> "BaseDistribution":
    """As in Python and in Hydra's own grids, the end is not part of a range."""
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
        raise ValueError("a range with the tag log has whole numbers; use an interval")
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
    return short if kind._contains(float(short)) else repr(value)  # rounding may leave an interval


def _from_text(text: str, kind: "BaseDistribution") -> Any:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    try:
        if isinstance(kind, CategoricalDistribution):
            return text if text in kind.choices else None
        value = int(text) if isinstance(kind, IntDistribution) else float(text)
    except ValueError:
        return None
    return value if kind._contains(value) else None
