"""The command `python -m dtl.diagnose`: what this machine can do for a run, and what is missing."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.config import converted

OUTPUTS = Path("outputs")


@dataclass
class DiagnoseConfig:
    """Settings of `python -m dtl.diagnose`."""

    plugins: list[str] = field(default_factory=list)  # your own modules, to check that they can be imported
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Accept every value."""


COMMAND = Command(
    "diagnose",
    DiagnoseConfig,
    usage="""\
python -m dtl.diagnose [plugins=my_module]
Shows what this machine can do for a run: torch, GPUs, precisions, memory,
disk, packages, hub and W&B, what trainer=auto chooses, how the last run ended.
Takes a few seconds, needs no network, changes nothing.

Exit code 0: ready to train. 1: something prevents training or slows it down
badly; each problem comes with a fix.
""",
)


def main() -> None:
    """Entry point of `python -m dtl.diagnose` and of the console script dtl-diagnose."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """Run and show all checks. Raises DTLError with the problems found."""
    # Not `typed_as`: it imports the plugins, and one that fails is a finding here, not an error.
    settings = converted(DiagnoseConfig, composed)
    settings.validate()

    from dtl.diagnostics.diagnosis import diagnose

    diagnose(settings, OUTPUTS)


if __name__ == "__main__":
    main()
