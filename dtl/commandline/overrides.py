"""The words of the command line: as a user types them, as Hydra reads them, and those that describe a given config."""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dtl.commandline.command import PATHS, Command, Key, load_config
from dtl.config import RunConfig
from dtl.errors import ConfigError
from dtl.model.config import KEPT_WITH_INIT

# --- as a user types them, and as Hydra reads them ----------------------------------------------------------------

# Texts that Hydra reads as text without quotes.
PLAIN_TEXT = re.compile(r"(?!(?:null|true|false|nan|inf)\Z)[A-Za-z_/][\w./-]*", re.IGNORECASE | re.ASCII)
MODULE = r"[^\W\d][\w.]*"  # the name of a module
FUNCTIONS = "choice|range|interval|glob|shuffle|sort|tag|extend_list|int|float|bool|str|json_str"  # Hydra's
_WORD_OF_LIST = r"""(?:\s*'[^'\\]*'\s*|\s*"[^"\\]*"\s*|[^\[\]{}()'",]+)"""
HYDRAS_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")


def override_key(word: str) -> str:
    """The key of a Hydra override `key=value`, or of a key alone, without the prefix that adds or deletes it."""
    return word.partition("=")[0].lstrip("+~")


def in_hydras_words(argument: str) -> str:
    """`plugins=[a,b]` for `plugins=a,b`: brackets need quotes in zsh, and no sweep varies its plugins. `a=null,1` for
    `a=choice(null,1)`, which means the same: Hydra's functions take no null."""
    key, _, value = argument.partition("=")
    if override_key(key) == "plugins" and value != "null" and re.fullmatch(rf"{MODULE}(,{MODULE})*", value):
        return f"{key}=[{value}]"
    choice = re.fullmatch(r"choice\((.*)\)", value)
    return f"{key}={choice[1]}" if choice and re.search(r"(^|,)\s*null\s*(,|$)", choice[1]) else argument


def to_hydra_syntax(argument: str, command: Command, sweeps: bool = False) -> str:
    """Return a `key=value` word as Hydra reads what the user means: text stays text, a path needs no quotes, an entry
    of a mapping is new. In a sweep commas separate values, unless what is typed is the name of a file."""
    key, equals, value = argument.partition("=")
    name = override_key(key)
    known = command.key(name)
    if not equals or not value or value == "null" or _is_quoted(value):
        pass
    elif name in command.free_text:
        value = quoted(value)
    elif name in HYDRAS_FOLDERS:
        value = _literal(os.path.expanduser(value))
    elif known and known.is_text:
        value = _as_text(value, known.is_path, sweeps)
    elif known and known.type == "list of text":
        value = _as_list_of_text(value)
    elif not known and name.partition("@")[0] in command.groups():
        # The name of a choice: Hydra cannot take `model=true` or `model=[1]`.
        value = quoted(value) if value.startswith("[") else _as_text(value, False, sweeps)
    mappings = [known.name for known in command.settings if known.type == "mapping"]
    # Hydra's prefix for a new key: the user names the entries of a mapping.
    is_entry = any(key == mapping or key.startswith(f"{mapping}.") for mapping in mappings)
    return f"{'++' * is_entry}{key}{equals}{value}"


def _as_text(value: str, is_path: bool, sweeps: bool) -> str:
    is_file = is_path and exists(value)
    if re.fullmatch(rf"({FUNCTIONS})\(.*\)", value) and not is_file:
        return value
    parts = value.split(",")
    if len(parts) == 1 or is_file:
        return _literal(value)
    if not sweeps:  # where Hydra reads a list or several values, its message helps; a name with a comma is a path
        return _literal(value) if is_path and not all(map(exists, parts)) else value
    return value if value.startswith(("'", '"', "[")) else ",".join(map(_literal, parts))


def _as_list_of_text(value: str) -> str:
    words = rf"\[({_WORD_OF_LIST}(?:,{_WORD_OF_LIST})*)\]"
    if (inside := re.fullmatch(words, value)) is None:
        return value
    texts = (word.strip() for word in re.findall(_WORD_OF_LIST, inside[1]))
    return f"[{','.join(text if _is_quoted(text) else quoted(text, interpolations=True) for text in texts)}]"


def _literal(text: str) -> str:
    """The text in quotes where Hydra would read a number or a function; null is none, and `${...}` is resolved."""
    return text if text == "null" or PLAIN_TEXT.fullmatch(text) else quoted(text, interpolations=True)


def quoted(text: str, interpolations: bool = False) -> str:
    """Quote a text as the value of an override, so that Hydra and OmegaConf read back exactly that text, `${...}`
    resolved with `interpolations`."""
    # OmegaConf would resolve ${...}; Hydra reads a backslash literally unless a quote follows.
    escaped = text if interpolations else re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r"(\\*)'", r"\1\1\'", escaped)
    escaped = re.sub(r"(\\+)\Z", r"\1\1", escaped)
    return f"'{escaped}'"


def unquoted(value: str) -> str:
    """The text that was passed to `quoted`; a value without quotes is returned unchanged."""
    if not _is_quoted(value):
        return value
    escapes = re.compile(rf"\\+(?={value[0]}|\$\{{|\Z)")
    return escapes.sub(lambda match: match[0][: len(match[0]) // 2], value[1:-1])


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def as_shown(override: str) -> str:
    """An override as a user would type it: without Hydra's marks for a new key, and without quotes it does not need."""
    key, equals, value = override.partition("=")
    bare = unquoted(value)
    is_path = key.rpartition(".")[2].lstrip("+") in PATHS and not re.search(rf",|\$\{{|^({FUNCTIONS})\(", bare)
    plain = PLAIN_TEXT.fullmatch(bare) or (is_path and bare not in ("", "null") and not _is_quoted(bare))
    return f"{key.lstrip('+')}{equals}{bare if plain else value}"


def resolved(value: str) -> str:
    """The value of a word with its `${oc.env:NAME}` resolved, for what is read before Hydra composes."""
    return str(OmegaConf.create({"value": value}).value) if "${" in value else value


# --- that name files and folders ----------------------------------------------------------------------------------


def exists(path: str) -> bool:
    """Return True for what exists, with `~` for the home folder."""
    with suppress(OSError, ValueError):
        return os.path.exists(os.path.expanduser(path))
    return False


def is_dir(path: str) -> bool:
    """Return True for an existing folder, with `~` for the home folder."""
    with suppress(OSError, ValueError):
        return os.path.isdir(os.path.expanduser(path))
    return False


def words_of_a_path(value: str, rest: Sequence[str], may_lack: bool = False) -> int:
    """Return how many of the words after a path belong to it: `my texts/` without quotes is two words. With `may_lack`
    the path need not exist: then those up to one that looks like the end of a path, where the first does not."""
    if not value:
        return 0
    paths = (" ".join([value, *rest[:n_words]]) for n_words in range(1, len(rest) + 1))
    if n_words := next((n for n, path in enumerate(paths, 1) if exists(path)), 0):
        return n_words
    plain = next((n for n, word in enumerate(rest) if "=" in word or word.startswith("-") or exists(word)), len(rest))
    if not may_lack or exists(value) or looks_like_a_path(value):
        return 0
    return next((n for n, word in enumerate(rest[:plain], 1) if looks_like_a_path(word)), 0)


def is_path(word: str) -> bool:
    """True for what exists, or looks like the name of a file or folder."""
    return bool(re.search(r"[/\\]", word)) or looks_like_a_path(word) or exists(word)


def looks_like_a_path(word: str) -> bool:
    """True for what no choice of a config group is called."""
    return bool(re.search(r"\.(txt|gz|bz2|xml|json|jsonl|csv|tsv|parquet|safetensors)\Z|[/\\]\Z|\A~?/", word))


# --- words that exclude each other --------------------------------------------------------------------------------


def check_init_words(init: str | None, overrides: Iterable[str]) -> None:
    """Raise ConfigError for words that set what a run with `init=` takes from its checkpoint."""
    for override in overrides if init is not None else ():
        key = override_key(override)
        if key.partition("/")[0].partition(".")[0] in ("model", "tokenizer") and key not in KEPT_WITH_INIT:
            raise ConfigError(
                f"{override}: init={init} brings its own size, architecture and tokenizer. Leave it out "
                f"({', '.join(KEPT_WITH_INIT[:-1])} and {KEPT_WITH_INIT[-1]} may be given)."
            )


# --- that describe a config ---------------------------------------------------------------------------------------

DEFAULT_NAME = "small_qa"  # by the command, for its default choices of model and data
_NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)  # an entry of a mapping that can be written key.name
_SPECIAL_IN_KEYS = re.compile(r"([\\()\[\]{}:=, \t])")


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


def value_without(key: Key, arguments: list[str], command: Command) -> str:
    """The value of a key with the other words given, such as a recipe; that of the command where they compose none."""
    others = [word for word in arguments if "=" in word and not word.startswith("-")]
    others = [word for word in others if override_key(word) != key.name]
    folder = next((Path(word.partition("=")[2]) for word in arguments if word.startswith("--config-dir=")), None)
    with suppress(Exception):  # the value is a help in a message about another fault
        composed = load_config(command, [to_hydra_syntax(word, command) for word in others], folder)
        return as_value(OmegaConf.select(composed, key.name))
    return key.default
