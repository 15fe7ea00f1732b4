"""Settings in words: every key with its type, default and meaning, and Hydra's errors as DTL says them.

The meaning of a key is the comment beside it in its dataclass: one source for readers, --help and errors.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING as MISSING_VALUE
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from dtl.config import RunConfig
from dtl.errors import ConfigError, did_you_mean
from dtl.paths import conf_dir, experiments_dir

ENTRY = "<name>"  # stands for the name of an entry of a mapping, in a key


@dataclass(frozen=True)
class Key:
    """One setting: its dotted name, its type and default as text, and what it means."""

    name: str
    type: str
    default: str
    meaning: str


def groups() -> dict[str, list[str]]:
    """Config groups and the names of their files, as they lie under conf/ and experiments/."""
    found: dict[str, list[str]] = {}
    for file in sorted(conf_dir().glob("*/**/*.yaml")):
        group = file.parent.relative_to(conf_dir()).as_posix()
        if not group.startswith("hydra"):
            found.setdefault(group, []).append(file.stem)
    found["experiment"] = sorted(file.stem for file in experiments_dir().glob("experiment/*.yaml"))
    return found


@cache
def keys() -> tuple[Key, ...]:
    """Every setting of a run, in the order of the dataclasses."""
    return tuple(_walk(RunConfig, ""))


def _walk(owner: type, prefix: str) -> Iterator[Key]:
    meanings = _comments(owner)
    hints = get_type_hints(owner)
    for item in fields(owner):
        name = f"{prefix}{item.name}"
        hint = hints[item.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _walk(hint, f"{name}.")
            continue
        default = item.default if item.default is not MISSING else None
        if item.default_factory is not MISSING:
            default = item.default_factory()
        yield Key(name, _type_in_words(hint), _as_yaml(default), meanings.get(item.name, ""))
        for entry in get_args(hint):
            if isinstance(entry, type) and is_dataclass(entry):
                yield from _walk(entry, f"{name}.{ENTRY}.")


def _comments(owner: type) -> dict[str, str]:
    """Field name to the comment at the end of its line."""
    source = inspect.cleandoc(inspect.getsource(owner))
    lines = source.splitlines()
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            after = lines[(statement.end_lineno or 1) - 1][statement.end_col_offset :]
            found[statement.target.id] = after.partition("#")[2].strip()
    return found


def _type_in_words(hint: Any) -> str:
    names = {int: "integer", float: "number", str: "text", bool: "true/false", type(None): "null"}
    if hint in names:
        return names[hint]
    parts = get_args(hint)
    if type(None) in parts:
        return " or ".join(_type_in_words(part) for part in parts)
    return "list" if getattr(hint, "__origin__", None) is list else "mapping"


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", "").replace(" ", "")


# --- errors ---------------------------------------------------------------------------------------------------


def explained(error: Exception, arguments: list[str]) -> ConfigError | None:
    """`error` as a ConfigError in DTL's words when it comes from composing the config, else None.

    `arguments` are the command line's `key=value` words.
    """
    if isinstance(error, ConfigError):
        return error
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(error, ConfigCompositionException):
        cause = cause or error.__context__
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override}: cannot be read as key=value. Quote a value that has spaces, commas or brackets: "
            f"'key=\"value\"'."
        )
    if isinstance(cause, OmegaConfBaseException) and getattr(cause, "full_key", None):
        return _wrong_key_or_type(cause, arguments, re.match(r"In '(.+?)': ", str(error)))
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return ConfigError(f"{mark.name}, line {mark.line + 1}: this is no YAML ({error.context}: {error.problem}).")
    if isinstance(error, ConfigCompositionException):
        return _wrong_override(str(error), arguments)
    if isinstance(error, ValueError) and "Config group override" in str(error):
        return _no_choice(arguments)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return ConfigError(str(error).strip())
    return None


def _missing_file(error: MissingConfigException) -> ConfigError:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return ConfigError(f"--config-name={choice}: not found in {conf_dir()}. Leave it out.")
    options = groups().get(group) or [option for option in error.options or []]
    known = f" Known: {', '.join(options)}." if options else ""
    return ConfigError(f"{group}={choice}: there is no such choice.{known}{did_you_mean(choice, options)}")


def _wrong_key_or_type(
    cause: OmegaConfBaseException, arguments: list[str], in_file: re.Match[str] | None
) -> ConfigError:
    full_key = str(cause.full_key)
    if in_file:
        value = re.match(r"Value '(.*?)' of type", str(cause))
        given = f"{full_key}={value[1]} in {in_file[1]}.yaml" if value else f"{full_key} in {in_file[1]}.yaml"
    else:
        given = _given(full_key, arguments)
    if full_key == "model.arch":
        return ConfigError(
            f"{given}: the architecture is a config group. Write model/arch=modern or model/arch=classic."
        )
    known = {_named_like(key.name, full_key): key for key in keys()}
    if full_key in known:
        key = known[full_key]
        default = "It has no default." if key.default == MISSING_VALUE else f"Default: {full_key}={key.default}"
        return ConfigError(f"{given}: must be {_article(key.type)} ({key.meaning}). {default}")
    inside = [name for name in known if name.startswith(full_key + ".")]
    if inside:
        return ConfigError(f"{given}: {full_key} is a section. Its keys: {', '.join(inside)}.")
    asked = full_key if in_file else given.partition("=")[0].lstrip("+~")
    section = asked.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    listed = f" Keys here: {', '.join(siblings)}." if siblings else " --help lists them all."
    return ConfigError(f"{given}: there is no such key.{did_you_mean(asked, [*known, *groups()])}{listed}")


def _named_like(key: str, other: str) -> str:
    """`data.sources.<name>.kind` as `data.sources.poems.kind` when `other` speaks of `data.sources.poems`."""
    mapping, entry, rest = key.partition(f".{ENTRY}")
    if not entry or not other.startswith(f"{mapping}."):
        return key
    name = other.removeprefix(f"{mapping}.").partition(".")[0]
    return f"{mapping}.{name}{rest}"


def _wrong_override(message: str, arguments: list[str]) -> ConfigError:
    match = re.search(r"Could not override '([^']+)'", message)
    if match:
        given = _given(match[1], arguments)
        names = [*groups(), *(key.name for key in keys())]
        hint = did_you_mean(match[1], names)
        return ConfigError(f"{given}: there is no such key or group.{hint} --help lists them all.")
    if "Ambiguous value" in message:
        given = re.search(r"argument '([^']+)'", message)
        what = given[1] if given else "a value with a comma"
        return ConfigError(f"{what}: several values need -m (one run each): python -m dtl.train -m {what}")
    if "appears more than once" in message:
        given = next((argument for argument in arguments if argument.lstrip("+").partition("=")[0] in groups()), "")
        return ConfigError(f"{given}: this group has its choice already. To choose another, leave out the +.")
    return ConfigError(message.strip())


def _no_choice(arguments: list[str]) -> ConfigError | None:
    """What Hydra answers with a ValueError: an override of a group by something that is no name."""
    for argument in arguments:
        group, equals, choice = argument.partition("=")
        if equals and not group:
            return ConfigError(f"{argument}: cannot be read as key=value. There is no key before the =.")
        if group in groups() and (choice in ("", "null") or not choice[0].isalpha()):
            return ConfigError(
                f"{argument}: must be the name of a choice. Known: {', '.join(groups()[group]) or 'none yet'}."
            )
    return None


def _given(key: str, arguments: list[str]) -> str:
    """The command line's own word for `key`, or the key alone when it came from a file."""
    words = {argument.lstrip("+~").partition("=")[0]: argument.removeprefix("++") for argument in arguments}
    inside = [word for name, word in words.items() if name.startswith(f"{key}.")]
    return words.get(key) or next(iter(inside), key)


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeio" else f"a {words}" if not words.startswith(("true", "text")) else words
