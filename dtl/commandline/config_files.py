"""Config files of the user: where they are, what YAML makes of them, what they leave open, what is wrong with them."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import yaml
from omegaconf._utils import get_yaml_loader
from yaml.reader import ReaderError

from dtl.base.display import command_line, shown
from dtl.base.json_files import dotted, read_users_yaml
from dtl.base.paths import conf_dir, experiments_dir
from dtl.commandline.command import Command
from dtl.commandline.overrides import as_shown, override_key, unquoted
from dtl.data.config import replaces
from dtl.errors import ConfigError

FOLDER_FLAGS = ("--config-dir", "--config-path")
# The line that a recipe opens with: Hydra overlooks it after another comment.
GLOBAL = re.compile(r"\ufeff?\s*#\s*@package\s+_global_\s*$", re.MULTILINE)


def config_folders(arguments: list[str]) -> list[Path]:
    """The folders of config groups, in Hydra's order: the user's own, then those of DTL."""
    words = [word.partition("=") for word in arguments]
    return [*(Path(folder) for flag, _, folder in words if flag in FOLDER_FLAGS), experiments_dir(), conf_dir()]


def config_text(name: str, arguments: list[str]) -> tuple[Path, str] | None:
    """The file of a choice, such as `optimizer/nesterov`, and its text. Raises ConfigError."""
    files = [folder / f"{name}.yaml" for folder in config_folders(arguments)]
    # Hydra would not find a FIFO, a link to a device or a folder; read here, each is named as what it is.
    file = next((file for file in files if os.path.lexists(file)), None)
    return (file, read_users_yaml(file)) if file else None


def changed_by_yaml(text: str) -> Iterator[tuple[str, str, object]]:
    """Yield key, text and value of each value without quotes that YAML reads as another text: `2024_11_28`, `off`."""
    loader = get_yaml_loader()
    try:
        nodes = [("", yaml.compose(text, loader))]
    except yaml.YAMLError:  # Hydra's own error names the line
        return
    while nodes:
        key, node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            nodes += [(f"{key}.{name.value}".removeprefix("."), value) for name, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += [(key, value) for value in node.value]
        elif isinstance(node, yaml.ScalarNode) and node.tag.rpartition(":")[2] in ("int", "float", "bool"):
            value = yaml.load(node.value, loader)  # plain scalars only: the loader is a safe one
            if str(value) != node.value:
                yield key, node.value, value


def wrong_recipe(arguments: list[str], command: Command) -> ConfigError | None:
    """A ConfigError for what Hydra's own messages do not explain about the recipe of the command line."""
    for name in (word.partition("=")[2] for word in arguments if word.lstrip("+").startswith("experiment=")):
        found = config_text(f"experiment/{name}", arguments)
        if found is None:
            continue
        # Hydra then puts its settings into `experiment`, where no key is known.
        if not GLOBAL.match(found[1]):
            return ConfigError(
                f"experiment={name}: {shown(found[0])} lacks the line that makes it a recipe for the whole config. "
                "Write it as the first line, before any other comment: # @package _global_"
            )
        with suppress(yaml.YAMLError):
            if problem := _recipe_problem(yaml.safe_load(found[1]), command):
                return ConfigError(f"experiment={name}: {shown(found[0])}: {problem}")
    return None


def _recipe_problem(recipe: object, command: Command) -> str | None:
    """What is wrong with the form of a recipe, whatever its values; None for a right one."""
    if not isinstance(recipe, dict):
        return None if recipe is None else "a recipe is made of lines key: value."
    entries = recipe.get("defaults", [])
    if not isinstance(entries, list):
        return "defaults is a list. Write defaults: [{override /optimizer: muon}]"
    for key, choice in (pair for entry in entries if isinstance(entry, dict) for pair in entry.items()):
        group = str(key).removeprefix("override ").strip().strip("/")
        if group in command.groups() and str(key) != f"override /{group}":
            return f"'{key}: {choice}': write override and a slash: defaults: [{{override /{group}: {choice}}}]"
    for key, value in dotted(recipe):
        group = key.replace(".", "/")
        if group in command.groups() and isinstance(value, str):
            wanted = f"{{override /{group}: {value}}}"
            return f"'{key}: {value}': {group} is a config group, chosen in the defaults list: defaults: [{wanted}]"
        section, dot, leaf = key.rpartition(".")
        if dot and key in recipe:
            return f"'{key}: {value}': a key in a file has no dots. Write {section}: {{{leaf}: {value}}}"
    return None


def not_utf8(arguments: list[str]) -> ConfigError | None:
    """A ConfigError for the first config file of the user that cannot be read as text."""
    for file in (file for folder in config_folders(arguments)[:-2] for file in sorted(folder.rglob("*.yaml"))):
        content = file.read_bytes() if file.is_file() else b""  # a FIFO would wait for its writer
        try:
            for _ in yaml.scan(content.decode("utf-8")):
                pass
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            return ConfigError(f"{shown(file)}, line {line}: not UTF-8. Save the file as UTF-8.")
        except ReaderError as error:
            line = content.decode("utf-8").count("\n", 0, error.position) + 1
            return ConfigError(f"{shown(file)}, line {line}: has a control character. Save the file as plain text.")
        except yaml.YAMLError:
            continue
    return None


def package_hint(name: str, full_key: str, arguments: list[str]) -> str:
    """What is wrong with the place of a key in the file of a config group; empty if it is the right one."""
    group, found = name.rpartition("/")[0], config_text(name, arguments)
    section = group.replace("/", ".")
    if full_key.startswith(f"{section}.{section}"):
        return f" What is in this file belongs to {section} already: leave out the line '{section}:'."
    if found and section != "experiment" and GLOBAL.match(found[1]):
        return f" Leave out the line '# @package _global_': what is in the file then belongs to {section}."
    return ""


def check_config_folders(arguments: Sequence[str]) -> None:
    """Raise ConfigError for a --config-dir that is no folder."""
    for argument in arguments:
        flag, _, folder = argument.partition("=")
        if flag in ("--config-dir", "--config-path") and "://" not in folder:
            check_config_folder(argument, folder)


def check_config_folder(given: str, folder: str) -> None:
    """Raise ConfigError, which begins with the words as `given`, for a folder of config groups that does not exist."""
    if not os.path.isdir(folder):
        problem = "is a file, not a folder" if os.path.exists(folder) else "there is no such folder"
        raise ConfigError(
            f"{given}: {problem}. Give the folder that holds your config groups, such as my_conf "
            "for my_conf/optimizer/nesterov.yaml."
        )


def check_texts(arguments: Sequence[str], command: Command, *folders: str) -> None:
    """Raise ConfigError for a text that YAML reads as something else, in a file of a config group that is chosen.

    `name: 2024_11_28` would be 20241128, `name: off` False. `folders` are the flags with the user's own groups.
    """
    groups = command.groups()
    for group, _, choice in (argument.lstrip("+~").partition("=") for argument in arguments):
        if group not in groups or (found := config_text(f"{group}/{choice}", list(folders))) is None:
            continue
        section = "" if GLOBAL.match(found[1]) else f"{group.replace('/', '.')}."
        for key, typed, value in changed_by_yaml(found[1]):
            known = command.key(f"{section}{key}")
            if known and (known.is_text or known.type == "list of text"):
                raise ConfigError(
                    f"{known.name} in {shown(found[0])}: {typed} is text, and YAML reads {value}. Write it in quotes: "
                    f"'{typed}'"
                )


def check_given(
    arguments: Sequence[str],
    command: Command,
    folders: Sequence[str],
    paste: Callable[..., str] = command_line,
) -> None:
    """Raise ConfigError for a value that a chosen recipe or file of a config group leaves open, as `path: ???`.

    Read from the files: where they are merged, ??? leaves the value that was there before. `folders` are the flags with
    the user's own groups; `paste` makes the right command from the command's name and its words.
    """
    missing = left_to_give(arguments, command, folders)
    if not missing:
        return
    keys = ", ".join(key for key, _ in missing)
    choice = missing[0][1]
    recipe = config_text(choice.replace("=", "/"), list(folders))
    examples = (
        dict(re.findall(r"(\S+?)=(\S+)", (re.search(r"^# Run: (.*)", recipe[1], re.M) or [""])[0])) if recipe else {}
    )
    given = []
    for key, _ in missing:
        known = command.key(key)
        given.append(f"{key}={examples.get(key, 'FILE' if known and known.is_path else 'VALUE')}")
    words = [as_shown(word) for word in arguments if not word.startswith("hydra.")]
    raise ConfigError(f"{choice}: needs {keys}, which is yours to give:\n  {paste(command.name, *words, *given)}")


def left_to_give(arguments: Sequence[str], command: Command, folders: Sequence[str]) -> list[tuple[str, str]]:
    """The keys that the choices of the command line leave open, and no other word gives; each with its choice."""
    words = [(override_key(key), value) for key, _, value in (word.partition("=") for word in arguments)]
    if any(key == "resume" and value != "null" for key, value in words):  # has its own config
        return []
    groups = command.groups()
    missing = []
    for group, choice in words:
        left: set[str] = set()
        if group in groups:
            _left_open(group, unquoted(choice), list(folders), left)
        for key in sorted(left):
            # data=qa on the command line leaves data.qa.path as open as the recipe does.
            by = [new for new, value in words if not (new in groups and value in key.split("."))]
            if not any(new != group and replaces(new, key) for new in by):
                missing.append((key, f"{group}={choice}"))
    return missing


def _left_open(group: str, choice: str, folders: list[str], left: set[str], above: tuple[str, ...] = ()) -> None:
    """Add to `left` the keys that a choice leaves open, and remove those that it gives; what it builds on first.
    `above` are the choices that build on it. Raises ConfigError for one that builds on itself."""
    if f"{group}/{choice}" in above:
        chain = " -> ".join([*above, f"{group}/{choice}"])
        raise ConfigError(
            f"{group}={choice}: builds on itself ({chain}). Take it out of the defaults of {above[-1]}.yaml."
        )
    found = config_text(f"{group}/{choice}", folders)
    values = None
    with suppress(yaml.YAMLError):  # Hydra's own error names the line
        values = yaml.safe_load(found[1]) if found else None
    if found is None or not isinstance(values, dict):
        return
    defaults = values.pop("defaults", None)
    for entry in defaults if isinstance(defaults, list) else ():
        pairs = entry.items() if isinstance(entry, dict) else [(group, entry)]
        for name, part in pairs:
            if part != "_self_":
                parts = str(name).removeprefix("override ").lstrip("/").partition("@")[0], str(part)
                _left_open(*parts, folders, left, (*above, f"{group}/{choice}"))
    section = "" if GLOBAL.match(found[1]) else f"{group.replace('/', '.')}."
    for key, value in dotted(values):
        (left.add if value == "???" else left.discard)(f"{section}{key}")
