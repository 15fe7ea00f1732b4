"""Translation of Hydra's and OmegaConf's errors to ConfigErrors: key, value, rule, remedy."""

import os
import re
import traceback
from contextlib import suppress
from pathlib import Path

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING as MISSING_VALUE
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
    ValidationError,
)
from yaml import MarkedYAMLError
from yaml.reader import ReaderError

from dtl.base.display import command_line, shown
from dtl.base.json_files import read_users_yaml
from dtl.commandline.command import ENTRY, Command, load_config, of_another_command
from dtl.commandline.config_files import FOLDER_FLAGS, config_folders, not_utf8, package_hint, wrong_recipe
from dtl.commandline.overrides import to_hydra_syntax, value_without
from dtl.errors import ConfigError, did_you_mean

SEARCH = "hydra/sweeper=dtl_optuna"
INTERVAL = re.compile(r"\binterval\(")


def translate_error(error: Exception, arguments: list[str], command: Command) -> ConfigError | None:
    """Translate an `error` of composing the config to a ConfigError; None for any other error.

    `arguments` are the `key=value` words that `command` was called with.
    """
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(error, ConfigCompositionException):
        cause = cause or error.__context__
    if isinstance(error, (UnicodeDecodeError, ReaderError)) and (unreadable := not_utf8(arguments)):
        return unreadable
    composing = (ConfigCompositionException, MissingConfigException, OmegaConfBaseException, ValueError)
    if isinstance(error, composing) and (recipe := wrong_recipe(arguments, command)):
        return recipe
    if isinstance(error, MissingConfigException):
        return _missing_file(error, arguments, command)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if interpolation := _wrong_interpolation(cause, arguments, command):
        return interpolation
    if isinstance(cause, OmegaConfBaseException) and getattr(cause, "full_key", None):
        return _wrong_key_or_type(cause, arguments, re.match(r"In '(.+?)': ", str(error)), command)
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        problem = ": ".join(filter(None, (error.context, error.problem)))
        return ConfigError(f"{mark.name}, line {mark.line + 1}: not valid YAML ({problem}).")
    if isinstance(error, ConfigCompositionException) and "hydra.searchpath is only supported" in str(error):
        return ConfigError(
            f"{str(error).strip()}. Write it as a recipe: my_conf/experiment/NAME.yaml, which begins with the line "
            "# @package _global_, and --config-dir=my_conf experiment=NAME."
        )
    if isinstance(error, ConfigCompositionException):
        return _wrong_override(str(error), arguments, command)
    if isinstance(error, ValueError) and "Config group override" in str(error):
        return _no_choice(arguments, command) or _of_hydra(error, arguments) or _unforeseen(error, arguments, command)
    if isinstance(error, ValueError) and str(error).startswith(("Only one of --", "The --resolve flag")):
        return ConfigError(str(error))
    if isinstance(error, HydraException) and "does not support sweep type" in str(error):
        return _interval_in_grid(arguments, command) or ConfigError(str(error).strip())
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return ConfigError(str(error).strip())
    return _of_hydra(error, arguments) or _unforeseen(error, arguments, command)


def _unforeseen(error: Exception, arguments: list[str], command: Command) -> ConfigError | None:
    """A ConfigError for any other error that Hydra, OmegaConf or their parser raise over the words: an assertion, an
    AttributeError. None where composing the words raises no such error: it comes from elsewhere then."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    raised_in = next((Path(file).parts for file in reversed(files) if not file.startswith("<")), ())
    words = [word for word in arguments if not word.startswith("-")]
    if not {"hydra", "omegaconf", "antlr4"} & {*raised_in} or not _stumbles(error, words, command):
        return None
    guilty = next((word for word in words if _stumbles(error, [word], command)), " ".join(map(_typed, words)))
    key = guilty.partition("=")[0].lstrip("+~")
    if not key.partition("@")[0]:
        return ConfigError(f"{_typed(guilty)}: cannot be read as key=value. There is no key before the = or @.")
    said = str(error).partition("\n")[0] or type(error).__name__
    return ConfigError(f"{_typed(guilty)}: cannot be read as key=value ({said}). --help lists the keys.")


def _stumbles(error: Exception, words: list[str], command: Command) -> bool:
    """True when composing these words raises an error of the same kind."""
    try:
        load_config(command, [to_hydra_syntax(word, command) for word in words])
    except Exception as found:
        return type(found) is type(error)
    return False


def _of_hydra(error: Exception, arguments: list[str]) -> ConfigError | None:
    """A ConfigError for what Hydra itself stumbles over, if any word sets Hydra; None for an error from elsewhere."""
    start = ("hydra", "--shell-completion", "--cfg", "--info", "--resolve", "--package")
    words = [word for word in arguments if word.lstrip("+~").startswith(start)]
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    raised_in = next((file for file in reversed(files) if not file.startswith("<")), "")
    if not words or "hydra" not in Path(raised_in).parts:
        return None
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return ConfigError(
        f"{' '.join(map(_typed, words))}: Hydra cannot use this ({said}). Leave it out, or see --help=all."
    )


def _missing_file(error: MissingConfigException, arguments: list[str], command: Command) -> ConfigError:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        folders, file = config_folders(arguments), f"{choice}.yaml"
        odd = next((folder / file for folder in folders if os.path.lexists(folder / file)), None)
        problem = (
            f"{shown(odd)} is not a regular file" if odd else f"there is no {file} in {', '.join(map(str, folders))}"
        )
        return ConfigError(f"--config-name={choice}: {problem}. Leave it out.")
    own = [file.stem for folder in config_folders(arguments)[:-2] for file in (folder / group).glob("*.yaml")]
    options = sorted({*(command.groups().get(group) or error.options or ()), *own})
    known = f" Known: {', '.join(options)}." if options else ""
    return ConfigError(f"{group}={choice}: there is no such choice.{known}{did_you_mean(choice, options)}")


def _unreadable(error: OverrideParseException) -> ConfigError:
    """A ConfigError for an override that is not key=value, or whose function fails: `range(1,x)`."""
    evaluated = re.search(r"Error while evaluating '(.*?)': (.*)", str(error))
    key = error.override.partition("=")[0]
    if evaluated and "NoneType is incompatible" in evaluated[2]:
        function = re.search(r"(\w+)\(([^()]*)\)", evaluated[1])
        if function and function[1] == "interval":
            return ConfigError(f"{error.override}: interval() takes numbers, and no null.")
        alone = f"{key}={function[2] if function else 'null,1'}"
        return ConfigError(f"{error.override}: {evaluated[1]} takes no null. Write the values alone: {alone}")
    if evaluated:
        return ConfigError(f"{error.override}: {evaluated[1]} cannot be evaluated ({evaluated[2].strip()}).")
    return ConfigError(
        f"{error.override}: cannot be read as key=value. Quote a value that has spaces, commas or brackets: "
        f"'key=\"value\"'."
    )


def _wrong_key_or_type(
    cause: OmegaConfBaseException, arguments: list[str], in_file: re.Match[str] | None, command: Command
) -> ConfigError:
    full_key = str(cause.full_key)
    value = re.search(r"Value '(.*?)' of type", str(cause))
    if in_file:
        group = in_file[1].rpartition("/")[0]
        if group and group not in command.groups():
            known = ", ".join(command.groups()) or "none"
            return ConfigError(
                f"{_given(group, arguments)}: dtl.{command.name} has no such group. Its groups: {known}."
            )
        given = f"{full_key}={value[1]} in {in_file[1]}.yaml" if value else f"{full_key} in {in_file[1]}.yaml"
        hint = package_hint(in_file[1], full_key, arguments)
    else:
        given = _given(full_key, arguments)
        given = f"{full_key}={value[1]}" if value and given == full_key else given
        hint = ""
    if full_key == "model.arch":
        return ConfigError(
            f"{given}: the architecture is a config group. Write model/arch=modern, value_embeddings or classic."
        )
    known = {_named_like(key.name, full_key): key for key in command.settings}
    for choice, keys in command.sweep_settings.items():
        if _may_be_chosen(choice, arguments):
            known |= {key.name: key for key in keys}
        if full_key in (key.name for key in keys) and not isinstance(cause, ValidationError):
            return ConfigError(f"{given}: only valid with {choice}, which is not chosen. Add it or leave this out.")
    if full_key in known:
        key = known[full_key]
        default = (
            f"It has no default: add {full_key}=..."
            if key.default == MISSING_VALUE
            else f"Default: {full_key}={value_without(key, arguments, command)}"
        )
        return ConfigError(f"{given}: must be {_article(key.type)} ({key.meaning}). {default}")
    inside = [name for name in known if name.startswith(full_key + ".")]
    if inside:
        return ConfigError(f"{given}: {full_key} is a section. Its keys: {', '.join(inside)}.")
    if isinstance(cause, ValidationError):  # one of Hydra's own keys
        return ConfigError(f"{given}: {str(cause).splitlines()[0]}.")
    asked = full_key if in_file else given.partition("=")[0].lstrip("+~")
    section = asked.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    listed = f" Keys here: {', '.join(siblings)}." if siblings else " --help lists them all."
    if not hint and (other := of_another_command(asked, given.partition("=")[2], command)):
        return ConfigError(f"{given}: there is no such key. {other}")
    hint = hint or did_you_mean(asked, [*known, *command.groups()])
    return ConfigError(f"{given}: there is no such key.{hint}{listed}")


def _may_be_chosen(choice: str, arguments: list[str]) -> bool:
    """Return True unless the command line chooses something else in the group of `choice`."""
    group = choice.partition("=")[0]
    chosen = [argument for argument in arguments if argument.partition("=")[0] == group]
    return not chosen or choice in chosen


def _named_like(key: str, other: str) -> str:
    """`data.sources.<name>.kind` as `data.sources.poems.kind` when `other` is inside `data.sources.poems`."""
    mapping, entry, rest = key.partition(f".{ENTRY}")
    if not entry or not other.startswith(f"{mapping}."):
        return key
    name = other.removeprefix(f"{mapping}.").partition(".")[0]
    return f"{mapping}.{name}{rest}"


def _wrong_override(message: str, arguments: list[str], command: Command) -> ConfigError:
    match = re.search(r"Could not override '([^']+)'", message)
    if match:
        given = _given(match[1], arguments)
        names = [*command.groups(), *(key.name for key in command.settings)]
        if other := of_another_command(match[1], given.partition("=")[2], command):
            return ConfigError(f"{given}: there is no such key. {other}")
        hint = did_you_mean(match[1], names)
        return ConfigError(f"{given}: there is no such key or group.{hint} --help lists them all.")
    if "Ambiguous value" in message or "requires --multirun" in message:
        return _several_values(message, arguments, command)
    if multiple := re.search(r"Multiple values for ([\w/]+)", message):
        return ConfigError(
            f"{multiple[1]}: a defaults list chooses it a second time. To choose another: "
            f"defaults: [{{override /{multiple[1]}: NAME}}]"
        )
    if "appears more than once" in message:
        given = next(
            (argument for argument in arguments if argument.lstrip("+").partition("=")[0] in command.groups()), ""
        )
        return ConfigError(f"{given}: this group already has a choice. To choose another one, leave out the +.")
    return ConfigError(message.strip())


def _several_values(message: str, arguments: list[str], command: Command) -> ConfigError:
    """A ConfigError for several values in a single run, with the line that runs them all."""
    given = re.search(r"(?:argument|parameters) '(.+)'(?:\n|\Z| requires)", message)
    what = given[1] if given else "a value with a comma"
    if not command.multirun:
        hint = f" Quote text that has commas: '{what.partition('=')[0]}=\"...\"'" if "Ambiguous" in message else ""
        return ConfigError(f"{what}: takes one value.{hint}")
    if any(map(INTERVAL.search, arguments)):
        search = command_line(command.name, "-m", SEARCH, *map(_typed, arguments))
        return ConfigError(f"{what}: a search chooses values, and needs -m: {search}")
    grid = command_line(command.name, "-m", *map(_typed, arguments))
    return ConfigError(f"{what}: several values need -m (one run each): {grid}")


def _interval_in_grid(arguments: list[str], command: Command) -> ConfigError | None:
    """A ConfigError for `interval(...)` with the sweeper that runs all combinations."""
    given = next(filter(INTERVAL.search, arguments), None)
    if given is None:
        return None
    words = [_typed(word) for word in arguments if word not in ("-m", "--multirun")]
    return ConfigError(
        f"{_typed(given)}: only a search takes an interval: {command_line(command.name, '-m', SEARCH, *words)}. In a "
        f"grid write the values: {given.partition('=')[0].lstrip('+')}=0.1,0.2"
    )


def _no_choice(arguments: list[str], command: Command) -> ConfigError | None:
    """A ConfigError for an override of a group by something that is not a name, where Hydra raises ValueError."""
    for argument in arguments:
        group, _, choice = argument.partition("=")
        if group in command.groups() and (choice in ("", "null") or not choice[0].isalpha()):
            return ConfigError(
                f"{argument}: must be the name of a choice. Known: {', '.join(command.groups()[group]) or 'none yet'}."
            )
    return None


def _given(key: str, arguments: list[str]) -> str:
    """The argument that sets `key`, or the key alone when it comes from a file."""
    words = {argument.lstrip("+~").partition("=")[0]: _typed(argument) for argument in arguments}
    inside = [word for name, word in words.items() if name.startswith(f"{key}.")]
    return words.get(key) or next(iter(inside), key)


def _typed(argument: str) -> str:
    """The argument as the user typed it: without the mark that DTL adds for Hydra, folders relative."""
    flag, _, folder = argument.partition("=")
    if flag in FOLDER_FLAGS and "://" not in folder:
        return f"{flag}={shown(Path(folder))}"
    return argument.removeprefix("++")


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeio" else f"a {words}" if not words.startswith(("true", "text")) else words


# --- ${...} -------------------------------------------------------------------------------------------------------

# What OmegaConf reports about an interpolation: the text that it is found by in a file, and the message for the user.
_INTERPOLATIONS = (
    (
        r"Environment variable '(.+?)' not found",
        r"oc\.env:\s*{}\b",
        "the environment variable {0} is not set. Type export {0}=..., or write a default: ${{oc.env:{0},DEFAULT}}.",
    ),
    (r"Interpolation key '(.+?)' not found", r"\$\{{\.*{}\}}", "refers to {0}, and there is no such key.{1}"),
    (
        r"Unsupported interpolation type (\w+)",
        r"\$\{{{}:",
        "refers to ${{{0}:...}}, which is not known. Known: oc.env.",
    ),
    ("token recognition error|mismatched input|no viable|missing", "", "its ${{...}} cannot be read: see its braces."),
)


def _wrong_interpolation(cause: object, arguments: list[str], command: Command) -> ConfigError | None:
    """A ConfigError for a value with `${...}` that cannot be resolved; None if it can, to a value of the wrong type."""
    if not isinstance(cause, (InterpolationResolutionError, UnsupportedInterpolationType, GrammarParseError)):
        return None
    if "could not be converted" in str(cause):
        return None
    for pattern, place, rule in _INTERPOLATIONS:
        if match := re.search(pattern, str(cause)):
            name = match[1] if match.groups() else ""
            hint = did_you_mean(name, [key.name for key in command.settings])
            key = str(cause.full_key or "")
            return ConfigError(f"{_place_of(place.format(re.escape(name)), key, arguments)}: {rule.format(name, hint)}")
    return ConfigError(f"{_given(str(cause.full_key), arguments)}: {str(cause).splitlines()[0]}")


def _place_of(text: str, key: str, arguments: list[str]) -> str:
    """The argument in which the pattern `text` occurs, else the key with the first file that has it."""
    given = _given(key, arguments)
    words = [word for word in arguments if text and re.search(text, word)]
    if words or not text:
        return _typed(words[0]) if words else given
    files = (file for folder in config_folders(arguments) for file in sorted(folder.rglob("*.yaml")))
    with suppress(ConfigError):  # of a file that is no config
        if file := next((file for file in files if re.search(text, read_users_yaml(file))), None):
            return f"{given} in {shown(file)}"
    return given
