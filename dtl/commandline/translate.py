"""Translation of Hydra's and OmegaConf's errors to ConfigErrors: key, value, rule, remedy."""

import re

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING as MISSING_VALUE
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import MarkedYAMLError

from dtl.base.paths import conf_dir
from dtl.commandline.command import ENTRY, Command
from dtl.errors import ConfigError, did_you_mean


def translate_error(error: Exception, arguments: list[str], command: Command) -> ConfigError | None:
    """Translate an `error` of composing the config to a ConfigError; None for any other error.

    `arguments` are the `key=value` words that `command` was called with.
    """
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(error, ConfigCompositionException):
        cause = cause or error.__context__
    if isinstance(error, MissingConfigException):
        return _missing_file(error, command)
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override}: cannot be read as key=value. Quote a value that has spaces, commas or brackets: "
            f"'key=\"value\"'."
        )
    if isinstance(cause, OmegaConfBaseException) and getattr(cause, "full_key", None):
        return _wrong_key_or_type(cause, arguments, re.match(r"In '(.+?)': ", str(error)), command)
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return ConfigError(f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.context}: {error.problem}).")
    if isinstance(error, ConfigCompositionException):
        return _wrong_override(str(error), arguments, command)
    if isinstance(error, ValueError) and "Config group override" in str(error):
        return _no_choice(arguments, command)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return ConfigError(str(error).strip())
    return None


def _missing_file(error: MissingConfigException, command: Command) -> ConfigError:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return ConfigError(f"--config-name={choice}: not found in {conf_dir()}. Leave it out.")
    options = command.groups().get(group) or [option for option in error.options or []]
    known = f" Known: {', '.join(options)}." if options else ""
    return ConfigError(f"{group}={choice}: there is no such choice.{known}{did_you_mean(choice, options)}")


def _wrong_key_or_type(
    cause: OmegaConfBaseException, arguments: list[str], in_file: re.Match[str] | None, command: Command
) -> ConfigError:
    full_key = str(cause.full_key)
    if in_file:
        group = in_file[1].rpartition("/")[0]
        if group and group not in command.groups():
            known = ", ".join(command.groups()) or "none"
            return ConfigError(
                f"{_given(group, arguments)}: dtl.{command.name} has no such group. Its groups: {known}."
            )
        value = re.match(r"Value '(.*?)' of type", str(cause))
        given = f"{full_key}={value[1]} in {in_file[1]}.yaml" if value else f"{full_key} in {in_file[1]}.yaml"
    else:
        given = _given(full_key, arguments)
    if full_key == "model.arch":
        return ConfigError(
            f"{given}: the architecture is a config group. Write model/arch=modern or model/arch=classic."
        )
    known = {_named_like(key.name, full_key): key for key in command.settings}
    for choice, keys in command.sweep_settings.items():
        if _may_be_chosen(choice, arguments):
            known |= {key.name: key for key in keys}
        if full_key in (key.name for key in keys) and not isinstance(cause, ValidationError):
            return ConfigError(f"{given}: only valid with {choice}, which is not chosen. Add it or leave this out.")
    if full_key in known:
        key = known[full_key]
        default = "It has no default." if key.default == MISSING_VALUE else f"Default: {full_key}={key.default}"
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
    return ConfigError(f"{given}: there is no such key.{did_you_mean(asked, [*known, *command.groups()])}{listed}")


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
        hint = did_you_mean(match[1], names)
        return ConfigError(f"{given}: there is no such key or group.{hint} --help lists them all.")
    if "Ambiguous value" in message:
        given = re.search(r"argument '([^']+)'", message)
        what = given[1] if given else "a value with a comma"
        if not command.multirun:
            return ConfigError(
                f"{what}: takes one value. Quote text that has commas: '{what.partition('=')[0]}=\"...\"'"
            )
        return ConfigError(f"{what}: several values need -m (one run each): python -m dtl.{command.name} -m {what}")
    if "appears more than once" in message:
        given = next(
            (argument for argument in arguments if argument.lstrip("+").partition("=")[0] in command.groups()), ""
        )
        return ConfigError(f"{given}: this group already has a choice. To choose another one, leave out the +.")
    return ConfigError(message.strip())


def _no_choice(arguments: list[str], command: Command) -> ConfigError | None:
    """A ConfigError for an override of a group by something that is not a name, where Hydra raises ValueError."""
    for argument in arguments:
        group, equals, choice = argument.partition("=")
        if equals and not group:
            return ConfigError(f"{argument}: cannot be read as key=value. There is no key before the =.")
        if group in command.groups() and (choice in ("", "null") or not choice[0].isalpha()):
            return ConfigError(
                f"{argument}: must be the name of a choice. Known: {', '.join(command.groups()[group]) or 'none yet'}."
            )
    return None


def _given(key: str, arguments: list[str]) -> str:
    """The argument that sets `key`, or the key alone when it comes from a file."""
    words = {argument.lstrip("+~").partition("=")[0]: argument.removeprefix("++") for argument in arguments}
    inside = [word for name, word in words.items() if name.startswith(f"{key}.")]
    return words.get(key) or next(iter(inside), key)


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeio" else f"a {words}" if not words.startswith(("true", "text")) else words
