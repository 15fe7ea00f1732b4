"""Description of a command: its schema, its config groups and its --help.

The meaning of a key is the comment after its field in the dataclass: one source for readers, --help and errors.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, cached_property
from typing import Any, get_args, get_type_hints

import yaml

from dtl.base.paths import conf_dir, experiments_dir
from dtl.sweeps.config import LauncherConfig, SearchConfig

ENTRY = "<name>"  # placeholder for the name of an entry of a mapping, in a key
# Additional settings of a command with -m: for a choice in a config group of Hydra's, the schema of its keys.
SWEEP_SETTINGS = {"hydra/launcher=dtl_process": LauncherConfig, "hydra/sweeper=dtl_optuna": SearchConfig}


# Last parts of the keys whose text is a file or folder: commas, brackets and spaces belong to its name.
PATHS = frozenset(
    [
        "path",
        "cache_dir",
        "export_text",
        "resume",
        "init",
        "ckpt",
        "ask",
        "history",
        "unanswerable",
        "out",
        "wiki",
        "dump",
        "runs",
        "outputs",
        "status",
    ]
)


@dataclass(frozen=True)
class Key:
    """One setting: its dotted name, its type and default as text, and what it means."""

    name: str
    type: str
    default: str
    meaning: str

    @property
    def is_text(self) -> bool:
        """True for text, also where it may be null."""
        return self.type.startswith("text")

    @property
    def is_path(self) -> bool:
        """True for the name of a file or folder, or of several."""
        return self.is_text and self.name.rpartition(".")[2] in PATHS


@dataclass(frozen=True)
class Command:
    """`python -m dtl.<name>`: settings as in `schema`, initial values from conf/<name>.yaml.

    `usage` is the first part of --help: usage, description, examples. `free_text` names keys whose values are
    taken literally, with spaces, commas and brackets. Only a command with `multirun` accepts -m.
    """

    name: str
    schema: type
    usage: str
    footer: str = ""
    free_text: tuple[str, ...] = ()
    multirun: bool = False

    @cached_property
    def settings(self) -> tuple[Key, ...]:
        """All settings, in the order of the dataclasses."""
        return tuple(_walk(self.schema, ""))

    def key(self, name: str) -> Key | None:
        """The setting of this name, with the name of an entry in the place of `<name>`; None if there is none."""
        return next((key for key in self.settings if _pattern(key.name).fullmatch(name)), None)

    @cached_property
    def sweep_settings(self) -> dict[str, tuple[Key, ...]]:
        """Settings of sweeps by the choice that they belong to; empty for a command without -m."""
        parts = SWEEP_SETTINGS.items() if self.multirun else ()
        return {choice: tuple(_walk(schema, f"{section_of(choice)}.")) for choice, schema in parts}

    def groups(self) -> dict[str, list[str]]:
        """Config groups and the names of their files under conf/ and experiments/."""
        defaults = yaml.safe_load((conf_dir() / f"{self.name}.yaml").read_text(encoding="utf-8"))["defaults"]
        chosen = {group for entry in defaults if isinstance(entry, dict) for group in entry}
        groups: dict[str, list[str]] = {}
        for file in sorted(conf_dir().glob("*/**/*.yaml")):
            group = file.parent.relative_to(conf_dir()).as_posix()
            if group.partition("/")[0] in chosen:
                groups.setdefault(group, []).append(file.stem)
        if "experiment" in chosen:
            groups["experiment"] = sorted(file.stem for file in experiments_dir().glob("experiment/*.yaml"))
        return groups

    def help(self) -> str:
        """The text of --help, at most 100 columns wide where possible."""
        lines = [self.usage, *(["Groups: choose with group=choice"] if self.groups() else [])]
        lines += [_choices(group, names) for group, names in self.groups().items() if names]
        lines += ["", "Keys: change with key=value (type, default of the schema: meaning; conf/ may override it)"]
        section = None
        for key in self.settings:
            owner = key.name.rpartition(".")[0]
            if owner != section:
                section = owner
                lines.append(f"\n  {section or self.name}")
            lines += _key_lines(key)
        if self.sweep_settings:
            lines += ["", "Sweeps: additional keys for -m"]
        for choice, keys in self.sweep_settings.items():
            lines.append(f"\n  {inspect.getdoc(SWEEP_SETTINGS[choice])}")
            lines += [line for key in keys for line in _key_lines(key)]
        return "\n".join([*lines, "", self.footer])


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(re.escape(ENTRY), "[^.]+"))


def section_of(choice: str) -> str:
    """`hydra.launcher` for `hydra/launcher=dtl_process`."""
    return choice.partition("=")[0].replace("/", ".")


def _key_lines(key: Key) -> list[str]:
    return [f"    {key.name}={key.default}  ({key.type})", f"        {key.meaning}"]


def _choices(group: str, names: list[str]) -> str:
    """A config group and its choices, wrapped below the first one."""
    begin = f"  {group:<12} "
    shown = " | ".join(names)
    return textwrap.fill(shown, 100, initial_indent=begin, subsequent_indent=" " * len(begin), break_on_hyphens=False)


def _walk(owner: type, prefix: str) -> Iterator[Key]:
    meanings = _comments(owner)
    hints = get_type_hints(owner)
    for item in fields(owner):
        if item.name.startswith("_"):  # Hydra's `_target_`, the class of a plugin
            continue
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
    """The comment at the end of each field's line by field name, base classes included."""
    comments: dict[str, str] = {}
    for part in reversed([part for part in owner.__mro__ if is_dataclass(part)]):
        source = inspect.cleandoc(inspect.getsource(part))
        lines = source.splitlines()
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement in body.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                after = lines[(statement.end_lineno or 1) - 1][statement.end_col_offset :]
                comments[statement.target.id] = after.partition("#")[2].strip()
    return comments


def _type_in_words(hint: Any) -> str:
    names = {int: "integer", float: "number", str: "text", bool: "true/false", type(None): "null"}
    if hint in names:
        return names[hint]
    parts = get_args(hint)
    if type(None) in parts:
        return " or ".join(_type_in_words(part) for part in parts)
    if getattr(hint, "__origin__", None) is not list:
        return "mapping"
    return "list of text" if parts == (str,) else "list of numbers"


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", "").replace(" ", "")
