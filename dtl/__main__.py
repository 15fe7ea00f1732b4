"""The command `dtl`, also `python -m dtl`: one name for all commands, as in `dtl train model=small`."""

import importlib
import sys

import dtl
from dtl.base.display import exit_when_output_closes, open_missing_streams
from dtl.base.safe_text import guard_streams
from dtl.errors import did_you_mean

COMMANDS = {
    "train": "train a model; with -m, a grid or a search",
    "chat": "ask a model questions",
    "generate": "continue a text, with each way of sampling",
    "evaluate": "measure a model on held-out data",
    "runs": "list the runs, and delete what is no longer needed",
    "report": "compare runs and sweeps in one page",
    "sweep": "show how a sweep is getting on",
    "plan": "show whether a run fits into memory",
    "prepare": "read and tokenise the data of a run in advance",
    "diagnose": "check this machine",
    "bench": "measure DTL, compared with others",
}


def main() -> None:
    """Entry point of `python -m dtl` and of the console script dtl."""
    open_missing_streams()
    guard_streams()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name == "help" and arguments:
        name, *topic = arguments
        arguments = ["--help", *topic]
    if name in COMMANDS:
        sys.argv = [f"dtl-{name}", *arguments]
        importlib.import_module(f"dtl.{name}").main()
    elif name in ("-h", "--help", "help"):
        with exit_when_output_closes():
            print(_overview())
    elif name == "--version":
        print(f"DTL {dtl.__version__}")
    else:
        hint = did_you_mean(name, COMMANDS) or (f" Did you mean 'dtl train {name}'?" if "=" in name else "")
        print(f"Error: {name}: no command of DTL.{hint} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)


def _overview() -> str:
    lines = [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "dtl COMMAND [key=value ...]     the same as python -m dtl.COMMAND",
            "",
            *lines,
            "",
            "The first minutes:",
            "  dtl train experiment=demo     a small model, in 2 minutes on two cores",
            "  dtl chat ckpt=latest          ask it something",
            "",
            "dtl COMMAND --help explains a command; dtl --version shows the version.",
        ]
    )


if __name__ == "__main__":
    main()
