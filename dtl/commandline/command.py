"""Description of a command: its schema, its config groups and its --help.

The meaning of a key is the comment after its field in the dataclass: one source for readers, --help and errors.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig

from dtl.base.display import command_line
from dtl.base.paths import conf_dir, experiments_dir
from dtl.benchmarks.config import BenchConfig
from dtl.config import register
from dtl.errors import ConfigError, did_you_mean
from dtl.evaluation.config import EvaluateConfig
from dtl.housekeeping.config import RunsConfig
from dtl.reports.config import ReportConfig
from dtl.sweeps.config import LauncherConfig, SearchConfig, StatusConfig
from dtl.terminal.config import ChatConfig, GenerateConfig

COLUMNS, LINES = 79, 23  # of --help: a terminal of 80 x 24
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
        "curves",
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

    `usage` begins --help: usage, description, examples; `details` ends --help=all. `free_text` names keys whose values
    are taken literally, `${...}` included. Only a command with `multirun` accepts -m.
    """

    name: str
    schema: type
    usage: str
    details: str = ""
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

    @cached_property
    def chosen(self) -> dict[str, str | None]:
        """The config groups of conf/<name>.yaml with the choice that it makes, in its order."""
        defaults = yaml.safe_load((conf_dir() / f"{self.name}.yaml").read_text(encoding="utf-8"))["defaults"]
        entries = [pair for entry in defaults if isinstance(entry, dict) for pair in entry.items()]
        return {group: choice for group, choice in entries if not group.startswith("override ")}

    def groups(self) -> dict[str, list[str]]:
        """Config groups and the names of their files under conf/ and experiments/."""
        groups: dict[str, list[str]] = {}
        for file in sorted(conf_dir().glob("*/**/*.yaml")):
            group = file.parent.relative_to(conf_dir()).as_posix()
            if group.partition("/")[0] in self.chosen:
                groups.setdefault(group, []).append(file.stem)
        if "experiment" in self.chosen:
            groups["experiment"] = sorted(file.stem for file in experiments_dir().glob("experiment/*.yaml"))
        return groups

    # --- help -----------------------------------------------------------------------------------------------------

    def overview(self) -> str:
        """The text of --help: one screen of 80 columns and 24 lines."""
        sections = list(dict.fromkeys(key.name.partition(".")[0] for key in self.settings if "." in key.name))
        lines = self.usage.splitlines()
        if groups := self.groups():
            lines += ["", "Groups: group=choice; * is the default"]
            order = [name for group in self.chosen for name in (group, f"{group}/arch") if name in groups]
            lines += [_row_of_choices(group, groups[group], self.chosen.get(group)) for group in order]
        names = f"Keys: {' '.join(key.name for key in self.settings)}; --help=all explains them"
        keys = textwrap.wrap(names, COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
        if len(lines) + 1 + len(keys) > LINES:
            keys = [f"Keys: --help=all explains each, --help={sections[0]} those of one section"]
        return "\n".join([*lines, "", *keys])

    def reference(self, topic: str, values: Mapping[str, Any]) -> str:
        """The text of --help=<topic>: `all`, a section or a key; `values` is the config that the other words compose.

        Raises ConfigError for a topic that is none of these.
        """
        everything = topic == "all"
        keys = [key for key in self.settings if everything or f"{key.name}.".startswith(f"{topic}.")]
        sweeps = self.sweep_settings if everything or topic in ("sweep", "hydra") else {}
        groups = [name for name in self.groups() if everything or topic in (name, name.partition("/")[0])]
        if not (keys or sweeps or groups):
            topics = ["all", *dict.fromkeys([*self.groups(), *(key.name.partition(".")[0] for key in self.settings)])]
            hint = did_you_mean(topic, topics)
            raise ConfigError(f"--help={topic}: no section and no key.{hint} Known: {', '.join(topics)}.")
        lines = [self.usage] if everything else []
        lines += ["Groups: choose with group=choice"] if groups else []
        lines += [_choices(group, self.groups()[group]) for group in groups]
        lines += ["", "Keys: change with key=value (type, value with the words given: meaning)"] if keys else []
        section = None
        for key in keys:
            owner = key.name.rpartition(".")[0]
            if owner != section:
                section = owner
                lines.append(f"\n  {section or self.name}")
            lines += _key_lines(key, values)
        lines += ["", "Sweeps: additional keys for -m"] if sweeps else []
        for choice, keys in sweeps.items():
            lines.append(f"\n  {inspect.getdoc(SWEEP_SETTINGS[choice])}")
            lines += [line for key in keys for line in _key_lines(key, {})]
        return "\n".join([*lines, "", self.details if everything else ""]).strip("\n")


def load_config(command: Command, words: Sequence[str], config_dir: Path | str | None = None) -> DictConfig:
    """Compose conf/<command.name>.yaml with the words, as Hydra's main does; Hydra's own section is included."""
    register(command.name, command.schema)
    setup_globals()  # Hydra's resolvers
    paths = create_config_search_path(str(conf_dir()))
    if config_dir is not None:  # where Hydra's main puts --config-dir
        folder = Path(config_dir).expanduser().absolute()
        paths.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(paths).load_configuration(command.name, list(words), RunMode.RUN)


def has_own_configs(words: Sequence[str]) -> bool:
    """Return True when a command line names config files of the user."""
    return any(word.startswith(("--config-", "-cd", "-cp")) or "hydra.searchpath" in word for word in words)


@contextmanager
def composed_once(words: Sequence[str]) -> Iterator[None]:
    """Spare Hydra's main the first of its two compositions, which takes a third of the time of a rejected word.

    It only finds out whether hydra.mode is set: by one of the command line's words, or by a config file of the user.
    DTL's files do not.
    """
    get_mode = Hydra.get_mode
    may_be_set = has_own_configs(words) or any("hydra" in word and "mode" in word for word in words)

    def mode(self: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
        return get_mode(self, config_name, overrides) if may_be_set else None

    Hydra.get_mode = mode
    try:
        yield
    finally:
        Hydra.get_mode = get_mode


# A key may be one of these commands, for which another was typed: name -> schema.
_SCHEMAS = {
    "chat": ChatConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "runs": RunsConfig,
    "report": ReportConfig,
    "sweep": StatusConfig,
    "bench": BenchConfig,
}


def of_another_command(key: str, value: str, command: Command) -> str:
    """A hint where a command is given a setting, a recipe or a config group of another command; else empty."""
    group = key.partition(".")[0]
    is_group = group == "experiment" or (group.isidentifier() and (conf_dir() / group).is_dir())
    if is_group and command.name not in ("train", "plan"):
        to_paste = f": {command_line('train', f'{key}={value}')}" if value else "."
        return f"It is a setting of dtl.train{to_paste}"
    for name in _SCHEMAS:
        if name != command.name and _other(name).key(key):
            to_paste = f": {command_line(name, f'{key}={value}')}" if value else ""
            return f"It is a setting of dtl.{name}{to_paste}"
    return ""


@cache
def _other(name: str) -> Command:
    """Another command, whose keys are found once."""
    return Command(name, _SCHEMAS[name], usage="")


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(re.escape(ENTRY), "[^.]+"))


def section_of(choice: str) -> str:
    """`hydra.launcher` for `hydra/launcher=dtl_process`."""
    return choice.partition("=")[0].replace("/", ".")


def _key_lines(key: Key, values: Mapping[str, Any]) -> list[str]:
    """Two lines about a key, with its value in the nested `values`, else its default."""
    *sections, leaf = key.name.split(".")
    for section in sections:
        values = values.get(section, {})
    default = _as_yaml(values[leaf]) if leaf in values else key.default
    return [f"    {key.name}={default}  ({key.type})", f"        {key.meaning}"]


def _row_of_choices(group: str, names: list[str], default: str | None) -> str:
    """A config group and its choices in one line, the last ones cut where there are many."""
    row = f"  {group:<11} {' | '.join(f'{name}*' if name == default else name for name in names)}"
    return row if len(row) <= COLUMNS else f"{row[: COLUMNS - 4].rpartition(' | ')[0]} | ..."


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
