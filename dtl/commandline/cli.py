"""The door of every command: starts Hydra, shows errors as one message, ends with the right exit code.

Torch is imported behind this door only, so that help and refusals answer at once.
"""

import functools
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path

import hydra
from omegaconf import DictConfig

from dtl.base.display import quiet_when_gone
from dtl.base.paths import conf_dir
from dtl.commandline.command import Command, section_of
from dtl.commandline.translate import explained
from dtl.config import register
from dtl.errors import ConfigError, DTLError
from dtl.run_dir.trial import note_error

MULTIRUN_FLAGS = ("-m", "--multirun")


class JobFailedError(Exception):
    """A job of a multirun that has failed and has said why. The other jobs go on."""


def run_command(
    task: Callable[[DictConfig], object],
    command: Command,
    prepare_arguments: Callable[[list[str]], list[str]] = lambda arguments: arguments,
) -> None:
    """Compose conf/<command.name>.yaml with the command line and call `task` with it, once or (with -m) per job.

    `prepare_arguments` may change the command line before Hydra sees it. Exits with 0, with an error's own
    `exit_code` after printing its message, or with 1 after a traceback.
    """
    # Hydra takes no -m between overrides.
    arguments = sorted(sys.argv[1:], key=lambda argument: argument not in MULTIRUN_FLAGS)
    if any(argument in ("-h", "--help") for argument in arguments):
        with quiet_when_gone():  # `--help | head`
            print(command.help())
        return
    register(command.name, command.schema)
    # Hydra would print errors in its own words and exit; this makes it hand them to us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    start = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command.name)(
        _said_once(task, arguments, command)
    )
    try:
        _refuse_multirun(arguments, command)
        _refuse_sections(arguments, command)
        sys.argv[1:] = [_as_hydra_reads_it(argument, command) for argument in prepare_arguments(arguments)]
        start()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)
    except JobFailedError as error:
        print(f"The sweep is through, but {error}, see above.", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        sys.exit(show_error(error, arguments, command))


def _said_once(
    task: Callable[[DictConfig], object], arguments: list[str], command: Command
) -> Callable[[DictConfig], object]:
    """`task` with its errors shown here, before Hydra adds words of its own. What runs a grid does so itself."""
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
    """Print `error` for a person and return the exit code."""
    known = understood(error, arguments, command)
    note_error(error, str(known) if known else f"{type(error).__name__}: {error}")
    if known is None or "debug=true" in (argument.lower() for argument in arguments):
        traceback.print_exception(error)
    if known is None:
        print("This is a bug in DTL or in a plugin, not in your settings.", file=sys.stderr)
        return 1
    print(f"Error: {known}", file=sys.stderr)
    return known.exit_code


def understood(error: Exception, arguments: list[str], command: Command) -> DTLError | None:
    """`error` in words for a person; None for one that nobody expected."""
    known = error if isinstance(error, DTLError) else explained(error, arguments, command)
    if known is None and isinstance(error, OSError) and error.filename and error.strerror:
        return DTLError(f"{error.filename}: {error.strerror}. Choose another folder, or mend this one.")
    return known


def override_key(text: str) -> str:
    """The key of a Hydra override: without the marks that add or delete it."""
    return text.lstrip("+~")


def _refuse_multirun(arguments: list[str], command: Command) -> None:
    asked = next((argument for argument in arguments if argument in MULTIRUN_FLAGS), None)
    if asked and not command.multirun:
        raise ConfigError(f"{asked}: dtl.{command.name} runs once; only dtl.train runs a grid.")


def _refuse_sections(arguments: list[str], command: Command) -> None:
    """Hydra would put the value in the place of the launcher, and fail later."""
    for choice in command.of_sweeps:
        given = next((argument for argument in arguments if argument.startswith(f"{section_of(choice)}=")), None)
        if given:
            raise ConfigError(f"{given}: this is a config group. It is chosen with a slash, for example {choice}.")


def _as_hydra_reads_it(argument: str, command: Command) -> str:
    key, equals, value = argument.partition("=")
    if equals and override_key(key) in command.free_text:
        return argument if _is_quoted(value) or value == "null" else f"{key}={quoted(value)}"
    mappings = [known.name for known in command.settings if known.type == "mapping"]
    # Hydra's mark for a new key: the entries of a mapping have names of a person's own.
    is_entry = any(key == mapping or key.startswith(f"{mapping}.") for mapping in mappings)
    return f"++{argument}" if is_entry else argument


def quoted(text: str) -> str:
    """A text as a value of an override, which Hydra and OmegaConf read as that text, whatever is in it."""
    # OmegaConf would look up ${...}; Hydra takes a backslash as such unless a quote follows.
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r"(\\*)'", r"\1\1\'", escaped)
    escaped = re.sub(r"(\\+)\Z", r"\1\1", escaped)
    return f"'{escaped}'"


def unquoted(value: str) -> str:
    """The text that `quoted` was given; a value without quotes is its own text."""
    if not _is_quoted(value):
        return value
    escapes = re.compile(rf"\\+(?={value[0]}|\$\{{|\Z)")
    return escapes.sub(lambda found: found[0][: len(found[0]) // 2], value[1:-1])


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


# --- after a refusal ----------------------------------------------------------------------------------------------
# A command line that is refused leaves nothing: Hydra makes folders before anybody has looked at the settings.


OUTPUTS = "outputs"  # stays, and so does what lies above it


def take_back(folder: Path, made: Collection[str]) -> None:
    """Delete a folder in which there is nothing but what was `made` (names), and the empty folders above it."""
    folder = folder.absolute()
    if not {path.name for path in folder.iterdir()} <= set(made):
        return
    shutil.rmtree(folder)
    for parent in folder.parents:
        if parent.name == OUTPUTS or parent == Path.cwd() or any(parent.iterdir()):
            break
        parent.rmdir()
