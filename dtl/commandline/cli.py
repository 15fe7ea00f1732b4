"""The entry point of every command: starts Hydra, shows an error as one message, ends with the right exit code.

Torch is imported by the commands' jobs only, so that help and errors in settings appear at once: importing it takes
3.0 of the 4.5 seconds from the start of a process to its first step (docs/results.md, suite=startup).
"""

import functools
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig
from omegaconf.errors import InterpolationResolutionError

from dtl.base.display import exit_when_output_closes
from dtl.base.paths import conf_dir
from dtl.commandline.command import Command, section_of
from dtl.commandline.translate import translate_error
from dtl.config import register
from dtl.errors import ConfigError, DTLError
from dtl.run_dir.trial import note_error

MULTIRUN = "--multirun"
MODULE = r"[^\W\d][\w.]*"  # the name of a module


class JobFailedError(Exception):
    """A job of a multirun has failed and its error is shown. The other jobs continue."""


def run_command(
    task: Callable[[DictConfig], object],
    command: Command,
    prepare_arguments: Callable[[list[str]], list[str]] = lambda arguments: arguments,
) -> None:
    """Compose conf/<command.name>.yaml with the command line and call `task` with it, once or (with -m) per job.

    `prepare_arguments` may change the command line before Hydra sees it. Exits with 0, with an error's own
    `exit_code` after printing its message, or with 1 after a traceback.
    """
    arguments = sys.argv[1:]
    if any(argument in ("-h", "--help") for argument in arguments):
        with exit_when_output_closes():  # `--help | head`
            print(command.help())
        return
    register(command.name, command.schema)
    # Hydra would print its own error messages and exit; with this it raises them to us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        _check_working_folder()
        arguments = [in_hydras_words(argument) for argument in flags_first(arguments)]
        start = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command.name)(
            _report_once(task, arguments, command)
        )
        _check_multirun(arguments, command)
        check_sections(arguments, command)
        prepared = prepare_arguments(arguments)
        _check_config_folders(prepared)
        sys.argv[1:] = [to_hydra_syntax(argument, command) for argument in prepared]
        start()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)
    except JobFailedError as error:
        print(f"The sweep has ended, but {error}, see above.", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        sys.exit(show_error(error, arguments, command))


def _report_once(
    task: Callable[[DictConfig], object], arguments: list[str], command: Command
) -> Callable[[DictConfig], object]:
    """`task` with its errors shown here, before Hydra adds its own text. A multirun's job does so itself."""
    if command.multirun:
        return task

    @functools.wraps(task)
    def job(composed: DictConfig) -> None:
        try:
            task(composed)
        except Exception as error:
            raise SystemExit(show_error(error, arguments, command)) from None

    return job


def show_error(error: Exception, arguments: list[str], command: Command) -> int:
    """Print `error` for the user and return the exit code."""
    known = to_dtl_error(error, arguments, command)
    note_error(error, str(known) if known else f"{type(error).__name__}: {error}")
    if known is None or "debug=true" in (argument.lower() for argument in arguments):
        traceback.print_exception(error)
    if known is None:
        print("This is a bug in DTL or in a plugin, not in your settings.", file=sys.stderr)
        return 1
    print(f"Error: {known}", file=sys.stderr)
    return known.exit_code


def to_dtl_error(error: Exception, arguments: list[str], command: Command) -> DTLError | None:
    """Translate `error` to a DTLError with a message for the user; None for an unexpected one."""
    if isinstance(error, InterpolationResolutionError):  # around the error of a resolver such as dtl.checked_name
        around: BaseException | None = error
        while around is not None and not isinstance(around, DTLError):
            around = around.__cause__ or around.__context__
        error = around or error
    known = error if isinstance(error, DTLError) else translate_error(error, arguments, command)
    if known is None and isinstance(error, OSError) and error.filename and error.strerror:
        return DTLError(f"{error.filename}: {error.strerror}. Choose another folder, or fix this one.")
    return known


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Hydra's flags in one form, `--config-dir=FOLDER`, then the overrides. Hydra itself rejects `a=1 --cfg job b=2`.

    Relative folders are made absolute: trials and the workers of launchers may run elsewhere. Raises ConfigError for a
    flag that Hydra does not know.
    """
    parser = get_args_parser()
    parser.error = _reject_flags  # argparse would print its own usage and exit
    given = vars(parser.parse_intermixed_args(list(arguments)))
    overrides = given.pop("overrides")
    for name in ("config_dir", "config_path"):
        folder = given[name]
        if folder is not None and "://" not in folder:  # pkg://my_package is a config path, too
            given[name] = os.path.abspath(os.path.expanduser(folder))
    flags = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    words = [flag if value is True else f"{flag}={value}" for flag, value in flags.items() if value]
    return [*words, *overrides]


def _reject_flags(message: str) -> NoReturn:
    rejected = message.removeprefix("unrecognized arguments: ")
    what = f"{rejected}: there is no such flag" if rejected != message else message
    raise ConfigError(
        f"{what}. Settings are key=value; the flags are -m, --config-dir=FOLDER, --config-name=NAME, --cfg job, "
        "--resolve, --info and --help."
    )


def _check_config_folders(arguments: list[str]) -> None:
    for argument in arguments:
        flag, _, folder = argument.partition("=")
        if flag in ("--config-dir", "--config-path") and "://" not in folder:
            check_config_folder(argument, folder)


def check_config_folder(given: str, folder: str) -> None:
    """Raise ConfigError, which begins with the words as `given`, for a folder of config groups that does not exist."""
    if not os.path.isdir(folder):
        raise ConfigError(
            f"{given}: there is no such folder. Give the folder that holds your config groups, such as my_conf "
            "for my_conf/optimizer/nesterov.yaml."
        )


def in_hydras_words(argument: str) -> str:
    """`plugins=[a,b]` for `plugins=a,b`: brackets need quotes in zsh, and no sweep varies its plugins. `a=null,1` for
    `a=choice(null,1)`, which means the same: Hydra's functions take no null."""
    key, _, value = argument.partition("=")
    if override_key(key) == "plugins" and value != "null" and re.fullmatch(rf"{MODULE}(,{MODULE})*", value):
        return f"{key}=[{value}]"
    choice = re.fullmatch(r"choice\((.*)\)", value)
    return f"{key}={choice[1]}" if choice and re.search(r"(^|,)\s*null\s*(,|$)", choice[1]) else argument


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError(
            "The folder in which this command was started no longer exists. Change to one that does, for example: cd ~"
        ) from None


def override_key(text: str) -> str:
    """The key of a Hydra override without the prefix that adds or deletes it."""
    return text.lstrip("+~")


def _check_multirun(arguments: list[str], command: Command) -> None:
    if MULTIRUN in arguments and not command.multirun:
        raise ConfigError(f"-m: dtl.{command.name} runs once; only dtl.train runs a grid.")


def check_sections(arguments: list[str], command: Command) -> None:
    """Raise ConfigError for `hydra.launcher=...`: Hydra would replace its config by the value and fail later."""
    for choice in command.sweep_settings:
        given = next((argument for argument in arguments if argument.startswith(f"{section_of(choice)}=")), None)
        if given:
            raise ConfigError(f"{given}: this is a config group. Choose it with a slash, for example {choice}.")


def to_hydra_syntax(argument: str, command: Command) -> str:
    key, equals, value = argument.partition("=")
    if equals and override_key(key) in command.free_text:
        return argument if _is_quoted(value) or value == "null" else f"{key}={quoted(value)}"
    mappings = [known.name for known in command.settings if known.type == "mapping"]
    # Hydra's prefix for a new key: the user names the entries of a mapping.
    is_entry = any(key == mapping or key.startswith(f"{mapping}.") for mapping in mappings)
    return f"++{argument}" if is_entry else argument


def quoted(text: str) -> str:
    """Quote a text as the value of an override, so that Hydra and OmegaConf read back exactly that text."""
    # OmegaConf would resolve ${...}; Hydra reads a backslash literally unless a quote follows.
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
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


# --- after a rejected command line --------------------------------------------------------------------------------
# Hydra creates the run folder before the settings are checked; a rejected command line must not leave it behind.

OUTPUTS = "outputs"  # this folder and its parents are kept


def remove_empty_run_dir(folder: Path, made: Collection[str]) -> None:
    """Delete a folder that contains nothing but the names in `made`, and the empty folders above it."""
    folder = folder.absolute()
    if not {path.name for path in folder.iterdir()} <= set(made):
        return
    shutil.rmtree(folder)
    for parent in folder.parents:
        if parent.name == OUTPUTS or parent == Path.cwd() or any(parent.iterdir()):
            break
        parent.rmdir()
