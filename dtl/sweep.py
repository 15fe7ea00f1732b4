"""The command `python -m dtl.sweep`: shows the trials of a sweep. It reads files only, so it works from another
terminal, while the sweep runs and after a crash."""

import time
from pathlib import Path

from omegaconf import DictConfig
from rich.live import Live
from rich.text import Text

from dtl.base.display import table_console
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.config import typed_as
from dtl.sweeps.config import StatusConfig
from dtl.sweeps.table import find_sweep, status_of

OUTPUTS = Path("outputs")
SECONDS_BETWEEN_REFRESHES = 2.0
COMMAND = Command(
    "sweep",
    StatusConfig,
    usage="""\
python -m dtl.sweep [status=latest | status=FOLDER] [key=value ...]
Shows the trials of a sweep: overrides, state, step, best loss, speed, time
left, and why one did not finish. In a terminal it refreshes until the sweep
ends; Ctrl-C does not stop the sweep.

  python -m dtl.sweep                           the last sweep
  python -m dtl.train -m seed=1,2               start one, or resume it
""",
)


def main() -> None:
    """Entry point of `python -m dtl.sweep` and of the console script dtl-sweep."""
    run_command(show, COMMAND)


def show(composed: DictConfig) -> None:
    """Print the table, once or until the sweep has ended."""
    settings = typed_as(StatusConfig, composed)
    sweep = find_sweep(settings.status, OUTPUTS)
    console = table_console()
    watch = console.is_terminal if settings.watch is None else settings.watch
    status = status_of(sweep)
    if watch and status.is_running:
        with Live(status.renderable, console=console, auto_refresh=False, transient=True) as live:
            while status.is_running:
                time.sleep(SECONDS_BETWEEN_REFRESHES)
                status = status_of(sweep)
                live.update(status.renderable, refresh=True)
    console.print(status.renderable, crop=False)
    if status.how_to_resume:
        console.print(Text(status.how_to_resume, style="yellow"), soft_wrap=True)  # to be pasted: no line feeds in it


if __name__ == "__main__":
    main()
