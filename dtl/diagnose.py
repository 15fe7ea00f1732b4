"""The command `python -m dtl.diagnose`: what this machine can do for a run, and what stands in the way."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.config import converted

OUTPUTS = Path("outputs")


@dataclass
class DiagnoseConfig:
    """Everything that `python -m dtl.diagnose` can be told."""

    plugins: list[str] = field(default_factory=list)  # modules of your own, to see whether they can be imported
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Nothing here can be wrong in its value."""


COMMAND = Command(
    "diagnose",
    DiagnoseConfig,
    page="""\
python -m dtl.diagnose [plugins=[my_module]]

Shows on one screen what this machine can do for a run: torch and its build, cards, precisions, processor, memory,
disk, packages, GPT-2's vocabulary, hub and W&B, what trainer=amp4060 would choose, how the last run ended.
Takes a few seconds, needs no network, changes nothing.

Exit code 0: a run goes well here. 1: something stops it or slows it badly; each reason comes with its remedy.
""",
)


def main() -> None:
    """Entry point of `python -m dtl.diagnose` and of the console script dtl-diagnose."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """Look, show, judge. Raises DTLError with what stands in the way."""
    # Not `typed_as`: it imports the plugins, and one that fails is a finding here, not an end.
    settings = converted(DiagnoseConfig, composed)
    settings.validate()

    from dtl.diagnostics.report import diagnose

    diagnose(settings, OUTPUTS)


if __name__ == "__main__":
    main()
