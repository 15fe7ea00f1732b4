"""The entry point of every command: starts Hydra, shows an error as one message, ends with the right exit code.

Torch is imported by the commands' jobs only, so that help and errors in settings appear at once: importing it takes
3.0 of the 4.5 seconds from the start of a process to its first step (docs/results.md, suite=startup).
"""

import functools
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import RangeSweep
from hydra.errors import HydraException
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

import dtl
from dtl.base.display import exit_when_output_closes, open_missing_streams, say
from dtl.base.files import no_room
from dtl.base.paths import conf_dir
from dtl.base.safe_text import guard_streams
from dtl.base.signals import STOP, signal_of, undisturbed
from dtl.commandline.command import Command, composed_once, load_config, section_of
from dtl.commandline.config_files import (
    FOLDER_FLAGS,
    check_config_folders,
    check_given,
    check_texts,
    left_to_give,
)
from dtl.commandline.corrections import check_words
from dtl.commandline.overrides import in_hydras_words, override_key, to_hydra_syntax, unquoted
from dtl.commandline.translate import translate_error
from dtl.config import register
from dtl.errors import ConfigError, DTLError, InterruptedRun
from dtl.run_dir.trial import note_error

MULTIRUN = "--multirun"


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
    open_missing_streams()
    guard_streams()
    if "--version" in arguments:
        print(f"DTL {dtl.__version__}")
        return
    if (topic := help_topic(arguments)) is not None:
        _show_help(topic, arguments, command)
        return
    register(command.name, command.schema)
    # Hydra would print its own error messages and exit; with this it raises them to us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    named: dict[Path, set[str]] = {}
    try:
        _check_working_folder()
        check_words(arguments, command)
        arguments = [in_hydras_words(argument) for argument in flags_first(arguments)]
        start = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command.name)(
            _report_once(task, arguments, command)
        )
        _check_multirun(arguments, command)
        check_sections(arguments, command)
        check_ranges(arguments)
        prepared = prepare_arguments(_as_hydra_reads(arguments, command))
        check_config_folders(prepared)  # a sweep that is resumed has the folder that it was started with
        check_texts(prepared, command, *(word for word in prepared if word.startswith(FOLDER_FLAGS)))
        prepared += _still_to_give(prepared, command)
        named = _named_folders(prepared)
        sys.argv[1:] = prepared
        if signal.getsignal(signal.SIGINT) is dtl.stop_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with composed_once(prepared):
            start()
    except KeyboardInterrupt as stop:
        with undisturbed():
            _remove_unstarted_run(command, named)
        for number in STOP if dtl.IS_COMMAND else ():  # while Python ends, as it joins its threads: no traceback
            signal.signal(number, dtl.stop_at_once)
        say("\nStopped.")
        sys.exit(128 + signal_of(stop))
    except JobFailedError as error:
        say(f"The sweep has ended, but {error}, see above.")
        sys.exit(1)
    except Exception as error:
        code = show_error(error, arguments, command)
        _remove_unstarted_run(command, named)
        sys.exit(code)


def help_topic(arguments: Sequence[str]) -> str | None:
    """What help is asked for: "" by --help, `optimizer` by --help=optimizer or --help optimizer; None for none."""
    for word, after in zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, _, topic = word.partition("=")
        if flag in ("-h", "--help") or word == "help" or (flag == "help" and topic):
            return topic or (after if re.fullmatch(r"[a-z][\w./]*", after) else "")
    return None


def _show_help(topic: str, arguments: Sequence[str], command: Command) -> None:
    words = [in_hydras_words(word) for word in arguments if "=" in word and not word.startswith(("-", "help="))]
    folders = [word.partition("=")[2] for word in arguments if word.startswith("--config-dir=")]
    try:
        page = command.reference(topic, _values(words, command, *folders[:1])) if topic else command.overview()
    except Exception as error:
        sys.exit(show_error(error, words, command))
    with exit_when_output_closes():  # `--help | head`
        print(page)


def _values(words: Sequence[str], command: Command, config_dir: str | None = None) -> dict[str, Any]:
    """The values of all keys with the words given, nested."""
    setbase("1.3")
    composed = load_config(command, _as_hydra_reads(words, command), config_dir)
    HydraConfig.instance().set_config(composed)  # a run's name is made of its choices
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    values = OmegaConf.to_container(own, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _as_hydra_reads(arguments: Sequence[str], command: Command) -> list[str]:
    sweeps = MULTIRUN in arguments
    return [to_hydra_syntax(argument, command, sweeps) for argument in arguments]


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
        say("".join(traceback.format_exception(error)).rstrip())
    if known is None:
        say("This is a bug in DTL or in a plugin, not in your settings.")
        return 1
    # A run that was stopped and has saved its state did nothing wrong.
    say(f"{known}" if isinstance(known, InterruptedRun) else f"Error: {known}")
    return known.exit_code


def to_dtl_error(error: Exception, arguments: list[str], command: Command) -> DTLError | None:
    """Translate `error` to a DTLError with a message for the user; None for an unexpected one."""
    if isinstance(error, InterpolationResolutionError):  # around the error of a resolver such as dtl.checked_name
        around: BaseException | None = error
        while around is not None and not isinstance(around, DTLError):
            around = around.__cause__ or around.__context__
        error = around or error
    # Before Hydra's own words about it: Hydra writes the first files of a run.
    if isinstance(error, OSError) and (full := no_room(error.errno, Path(error.filename or "."))):
        return DTLError(f"{error.filename or Path.cwd()}: {full}. Make room, or write elsewhere: hydra.run.dir=FOLDER.")
    known = error if isinstance(error, DTLError) else translate_error(error, arguments, command)
    if known is None and (message := dtl.missing_package(error)):
        return DTLError(message)
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
    names = [argument.partition("=")[0] for argument in arguments]
    for long, short in (("--config-dir", "-cd"), ("--config-path", "-cp"), ("--config-name", "-cn"), ("--cfg", "-c")):
        if names.count(long) + names.count(short) > 1:
            raise ConfigError(f"{long}: given more than once, and it takes one value. Leave the others out.")
    given = vars(parser.parse_intermixed_args(list(arguments)))
    overrides = given.pop("overrides")
    if given["shell_completion"] and not any(
        word.startswith(("install=", "uninstall=", "query=")) for word in overrides
    ):
        raise ConfigError("-sc: needs what to do. For Tab completion in bash: dtl-train -sc install=bash")
    for name in ("config_dir", "config_path"):
        folder = given[name]
        if folder is not None and "://" not in folder:  # pkg://my_package is a config path, too
            given[name] = os.path.abspath(os.path.expanduser(folder))
    flags = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    words = [flag if value is True else f"{flag}={value}" for flag, value in flags.items() if value]
    return [*words, *overrides]


# Hydra's flags that take a value: an example, and what it does.
FLAG_VALUES = {
    "--config-dir": "--config-dir=my_conf adds the config groups of a folder of your own",
    "--config-path": "--config-path=my_conf replaces DTL's config groups",
    "--config-name": "--config-name=night starts from night.yaml in the folder of --config-dir",
    "--cfg": "--cfg job shows the whole config without running",
    "--package": "-p model, with --cfg job, shows one section",
}


def _reject_flags(message: str) -> NoReturn:
    flag = re.match(r"argument (--[\w-]+)(?:/-\w+)?: (?:expected .*|invalid choice: '(.*?)' .*)", message)
    if flag and flag[1] in FLAG_VALUES:
        given = f", and {flag[2]} is none" if flag[2] else ""
        raise ConfigError(f"{flag[1]}: needs a value{given}. For example, {FLAG_VALUES[flag[1]]}.")
    rejected = message.removeprefix("unrecognized arguments: ")
    what = f"{rejected}: there is no such flag" if rejected != message else message
    raise ConfigError(
        f"{what}. Settings are key=value; the flags are -m, --config-dir=FOLDER, --config-name=NAME, --cfg job, "
        "--resolve, --info and --help."
    )


def _still_to_give(arguments: list[str], command: Command) -> list[str]:
    """The words for --cfg to show what is still to be given. Raises ConfigError without --cfg, see check_given."""
    if any(word.startswith(("--cfg", "--shell-completion")) for word in arguments):
        return [f"{key}='???'" for key, _ in left_to_give(arguments, command, arguments)]
    check_given(arguments, command, arguments)
    return []


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError(
            "The folder in which this command was started no longer exists. Change to one that does, for example: cd ~"
        ) from None


def _check_multirun(arguments: list[str], command: Command) -> None:
    if MULTIRUN in arguments and not command.multirun:
        raise ConfigError(f"-m: dtl.{command.name} runs once; only dtl.train runs a grid.")


def check_sections(arguments: list[str], command: Command) -> None:
    """Raise ConfigError for `hydra.launcher=...`: Hydra would replace its config by the value and fail later."""
    for choice in command.sweep_settings:
        given = next((argument for argument in arguments if argument.startswith(f"{section_of(choice)}=")), None)
        if given:
            raise ConfigError(f"{given}: this is a config group. Choose it with a slash, for example {choice}.")


MAX_VALUES = 10_000  # of a range: each is a run


def check_ranges(arguments: list[str]) -> None:
    """Raise ConfigError for a `range(...)` without values, or with more than anybody runs."""
    for argument in arguments:
        if "range(" not in argument or argument.startswith("-"):
            continue
        given = None
        with suppress(HydraException):  # what cannot be read is reported when the config is composed
            given = OverridesParser.create().parse_override(argument).value()
        if isinstance(given, RangeSweep):
            start, stop, step = (float(number or 0) for number in (given.start, given.stop, given.step))
            count = (stop - start) / step if step else 0
            if not 0 < count <= MAX_VALUES:
                problem = f"has over {MAX_VALUES:,} values, and each is a run" if count > 0 else "has no values"
                raise ConfigError(f"{argument}: {problem}. range(1,4) is 1,2,3; a step is the third number.")


# --- after a rejected command line --------------------------------------------------------------------------------
# Hydra creates the run folder before the settings are checked; a rejected command line must not leave it behind.

OUTPUTS = "outputs"  # this folder and its parents are kept


MADE = (".hydra", ".lock", "multirun.yaml", "sweep.json")  # by Hydra and DTL before a run or a sweep begins


def _named_folders(arguments: Sequence[str]) -> dict[Path, set[str]]:
    """Return the folders that a command line names for a run or a sweep, each with the names that are in it."""
    words = [word.partition("=") for word in arguments]
    keys = ("hydra.run.dir", "hydra.sweep.dir")
    folders = [Path(unquoted(value)) for key, _, value in words if override_key(key) in keys and "${" not in value]
    return {folder: {path.name for path in folder.iterdir()} if folder.is_dir() else set() for folder in folders}


def _remove_unstarted_run(command: Command, named: Mapping[Path, set[str]]) -> None:
    """Remove the folder of this process's run or sweep that ended as Hydra was making it: on a full disk, by a signal.
    Of those `named` on the command line, one that held something before stays, without what was made."""
    own = (f"*/*-{os.getpid()}_*", f"multirun/*/*-{os.getpid()}")
    for folder in (path for pattern in own for path in Path(OUTPUTS).glob(pattern)) if command.multirun else ():
        with suppress(OSError):
            remove_empty_run_dir(folder, MADE)
    for folder, before in named.items():
        with suppress(OSError):
            made = {path.name for path in folder.iterdir()} - before
            if not before:
                remove_empty_run_dir(folder, MADE)
            elif ".hydra" in made and made <= set(MADE):
                shutil.rmtree(folder / ".hydra")


def remove_empty_run_dir(folder: Path, made: Collection[str]) -> None:
    """Delete a folder that contains nothing but the names in `made`, and the empty folders above it, as far as they
    are in outputs/ or in the working directory: any other is the user's."""
    folder = folder.absolute()
    if folder == Path.cwd() or not {path.name for path in folder.iterdir()} <= set(made):
        return
    shutil.rmtree(folder)
    for parent in folder.parents:
        is_near = Path.cwd() in parent.parents or any(above.name == OUTPUTS for above in parent.parents)
        if not is_near or parent.name == OUTPUTS or parent == Path.cwd() or any(parent.iterdir()):
            break
        parent.rmdir()
