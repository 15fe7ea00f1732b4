"""The words of the command line that describe a given config: what a run from Python is labelled and rerun with."""

import re
from collections.abc import Iterable
from dataclasses import Field, fields, is_dataclass
from typing import Any

from dtl.commandline.cli import PLAIN_TEXT, override_key, quoted
from dtl.config import RunConfig
from dtl.errors import ConfigError

DEFAULT_NAME = "small_qa"  # by the command, for its default choices of model and data
_NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)  # an entry of a mapping that can be written key.name
_SPECIAL_IN_KEYS = re.compile(r"([\\()\[\]{}:=, \t])")


KEPT_WITH_INIT = ("model.dropout", "model.token_dropout", "model.attention")


def check_init_words(init: str | None, overrides: Iterable[str]) -> None:
    """Raise ConfigError for words that set what a run with `init=` takes from its checkpoint."""
    for override in overrides if init is not None else ():
        key = override_key(override.partition("=")[0])
        if key.partition("/")[0].partition(".")[0] in ("model", "tokenizer") and key not in KEPT_WITH_INIT:
            raise ConfigError(
                f"{override}: init={init} brings its own size, architecture and tokenizer. Leave it out "
                f"({', '.join(KEPT_WITH_INIT[:-1])} and {KEPT_WITH_INIT[-1]} may be given)."
            )


def overrides_of(config: RunConfig) -> list[str]:
    """Return the `key=value` words that compose to this config: its differences from the command's defaults.

    `compose(*overrides_of(config)) == config`. The words set keys, not groups: `model.dim=512`, not `model=medium`.
    An entry of a mapping whose name Hydra's grammar has no form for (`#`, `é`) cannot be written on a command line.
    """
    default = RunConfig(name=DEFAULT_NAME)
    return [word for item in fields(config) for word in _words(item.name, *_values(item, config, default))]


def rerun_words(config: RunConfig) -> list[str]:
    """Return `overrides_of` as the command accepts them: with `init` without the keys that the checkpoint brings."""
    brought = () if config.init is None else ("model.", "tokenizer.")
    return [
        word
        for word in overrides_of(config)
        if not word.startswith(brought) or word.partition("=")[0] in KEPT_WITH_INIT
    ]


def _values(item: Field, given: Any, before: Any) -> tuple[Any, Any]:
    return getattr(given, item.name), getattr(before, item.name)


def _words(key: str, given: Any, before: Any) -> list[str]:
    """Return the words that change the value of a key from `before` to `given`."""
    if is_dataclass(given):
        return [word for item in fields(given) for word in _words(f"{key}.{item.name}", *_values(item, given, before))]
    if isinstance(given, dict):
        return _mapping_words(key, given, before)
    return [] if given == before else [f"{key}={as_value(given)}"]


def _mapping_words(key: str, given: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Return the words for the entries of a mapping: `~key.name` for those to remove, then the others in order."""
    # Kept entries come before added ones. In any other order, which matters for sources, all are added.
    kept = [name for name in before if name in given]
    if list(given)[: len(kept)] != kept:
        kept = []
    words = [f"~{key}.{name}" for name in before if name not in kept]
    for name, entry in given.items():
        if name in kept:
            words += _words(f"{key}.{name}", entry, before[name])
        else:
            words.append(
                f"{key}.{name}={as_value(entry)}" if _NAME.fullmatch(name) else f"{key}={as_value({name: entry})}"
            )
    return words


def as_value(value: Any) -> str:
    """Return a value as Hydra reads it: null, numbers, text in quotes where it needs them, lists, mappings."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return value if PLAIN_TEXT.fullmatch(value) else quoted(value)
    if is_dataclass(value):  # a source: what it leaves at its default is left out
        changed = {item.name: getattr(value, item.name) for item in fields(value)}
        return as_value({name: entry for name, entry in changed.items() if entry != getattr(type(value)(), name)})
    if isinstance(value, dict):
        entries = (f"{_SPECIAL_IN_KEYS.sub(_escaped, str(name))}: {as_value(entry)}" for name, entry in value.items())
        return f"{{{', '.join(entries)}}}"
    return f"[{', '.join(map(as_value, value))}]"


def _escaped(match: re.Match[str]) -> str:
    return f"\\{match[0]}"
