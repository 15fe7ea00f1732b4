"""DTL: the laboratory bench for small language models on one consumer GPU.

These names are DTL in Python (docs/python.md); `dtl.train`, `dtl.chat` and so on are the modules of the commands. A
name is imported when it is first used: `import dtl` imports neither torch nor Hydra.
"""

import contextlib
import importlib
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtl.api.runs import FitResult, fit, open_data
    from dtl.api.runs import Steps as steps
    from dtl.api.text import complete, score
    from dtl.checkpoints.load import load_model, load_tokenizer
    from dtl.commandline.compose import compose
    from dtl.config import RunConfig
    from dtl.errors import DTLError
    from dtl.model.transformer import create_model
    from dtl.training.loss import mean_cross_entropy as loss

__version__ = "0.1.0"
__all__ = [
    "DTLError",
    "FitResult",
    "RunConfig",
    "__version__",
    "complete",
    "compose",
    "create_model",
    "fit",
    "load_model",
    "load_tokenizer",
    "loss",
    "open_data",
    "score",
    "steps",
]
_PLACES = {
    "DTLError": "dtl.errors:DTLError",
    "FitResult": "dtl.api.runs:FitResult",
    "RunConfig": "dtl.config:RunConfig",
    "complete": "dtl.api.text:complete",
    "compose": "dtl.commandline.compose:compose",
    "create_model": "dtl.model.transformer:create_model",
    "fit": "dtl.api.runs:fit",
    "load_model": "dtl.checkpoints.load:load_model",
    "load_tokenizer": "dtl.checkpoints.load:load_tokenizer",
    "loss": "dtl.training.loss:mean_cross_entropy",
    "open_data": "dtl.api.runs:open_data",
    "score": "dtl.api.text:score",
    "steps": "dtl.api.runs:Steps",
}


# `-m` is what Python calls a module that it is about to run.
IS_COMMAND = bool(sys.argv and re.fullmatch(r"-m|dtl(-[a-z]+)?(\.exe)?", os.path.basename(sys.argv[0])))


def missing_package(error: BaseException) -> str | None:
    """The message for a package that this Python lacks: most often an environment was not activated. None for another
    error, and for a module of DTL itself."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if not name or name.partition(".")[0] == "dtl":
        return None
    return (
        f"{name}: not installed for {sys.executable}. Activate the environment that has DTL "
        "(source .venv/bin/activate), or install DTL with: make install"
    )


def _show_in_one_sentence(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if message := missing_package(error):
        print(f"Error: {message}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def stop_at_once(number: int, _frame: object) -> None:
    """A signal handler that ends the process without another word of Python's."""
    with contextlib.suppress(OSError):
        os.write(2, b"\nStopped.\n")
    os._exit(128 + number)


def _check_python() -> None:
    """End a command, and nothing but a command, in one sentence where Python is too old or lacks a package."""
    if not IS_COMMAND:
        return
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"Error: DTL needs Python 3.11 or newer, and this is {sys.version.split()[0]}: {sys.executable}")
    sys.excepthook = _show_in_one_sentence
    # Until there is something to clean up: an exception inside an import surfaces as what the library makes of it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop_at_once)


def _wait_briefly() -> None:
    """Let a thread that waits for the others of an operation leave its core after some 0.1 ms, not after milliseconds.

    Beside other programs the one that it waits for may get no core before (docs/install.md). libgomp, torch's OpenMP on
    Linux, reads it as it is loaded: without effect after `import torch`. What the user has set stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "4000"


_check_python()
_wait_briefly()


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` when it is first used (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'dtl' has no attribute '{name}'")
    module, _, attribute = _PLACES[name].partition(":")
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "importlib", "os", "re", "sys"})
