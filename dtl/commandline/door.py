"""The door of every command: starts Hydra, shows errors as one message, ends with the right exit code.

Torch is imported behind this door only, so that help and refusals answer at once.
"""

import os
import sys
import traceback
from collections.abc import Callable

import hydra
from omegaconf import DictConfig

from dtl.commandline.explain import explained, keys
from dtl.config import register
from dtl.errors import DTLError
from dtl.paths import conf_dir


class JobFailedError(Exception):
    """A job of a multirun that has failed and has said why. The other jobs go on."""


def run_command(
    task: Callable[[DictConfig], object],
    config_name: str,
    help_page: Callable[[], str],
    prepare_arguments: Callable[[list[str]], list[str]],
) -> None:
    """Compose conf/<config_name>.yaml with the command line and call `task` with it, once or (with -m) per job.

    `prepare_arguments` may change the command line before Hydra sees it. Exits with 0, with an error's own
    `exit_code` after printing its message, or with 1 after a traceback.
    """
    arguments = sys.argv[1:]
    if any(argument in ("-h", "--help") for argument in arguments):
        print(help_page())
        return
    register()
    # Hydra would print errors in its own words and exit; this makes it hand them to us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    start = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(task)
    try:
        sys.argv[1:] = [with_new_entries(argument) for argument in prepare_arguments(arguments)]
        start()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)
    except JobFailedError as error:
        print(f"The sweep is through, but {error}: see above.", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        sys.exit(show_error(error, arguments))


def show_error(error: Exception, arguments: list[str]) -> int:
    """Print `error` for a person and return the exit code."""
    known = error if isinstance(error, DTLError) else explained(error, arguments)
    if known is None and isinstance(error, OSError) and error.filename and error.strerror:
        known = DTLError(f"{error.filename}: {error.strerror}. Choose another folder, or mend this one.")
    if known is None or "debug=true" in (argument.lower() for argument in arguments):
        traceback.print_exception(error)
    if known is None:
        print("This is a bug in DTL or in a plugin, not in your settings.", file=sys.stderr)
        return 1
    print(f"Error: {known}", file=sys.stderr)
    return known.exit_code


def with_new_entries(argument: str) -> str:
    """`data.sources.poems.kind=poems` with Hydra's mark for a new key: a mapping's entries have names of your own."""
    mappings = [key.name for key in keys() if key.type == "mapping"]
    key = argument.partition("=")[0]
    is_entry = any(key == mapping or key.startswith(f"{mapping}.") for mapping in mappings)
    return f"++{argument}" if is_entry else argument


def override_key(text: str) -> str:
    """The key of a Hydra override: without the marks that add or delete it."""
    return text.lstrip("+~")
