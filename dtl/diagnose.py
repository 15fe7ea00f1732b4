"""The command `python -m dtl.diagnose`: what this machine can do for a run, and what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
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
    resume: bool = False  # stop, resume and compare a short run of the other words, which are those of dtl.train
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Accept every value."""


COMMAND = Command(
    "diagnose",
    DiagnoseConfig,
    usage="""\
python -m dtl.diagnose [plugins=my_module]
python -m dtl.diagnose resume=true [words of dtl.train]
Shows what this machine can do for a run: torch, GPUs, precisions, memory,
disk, packages, hub and W&B, what trainer=auto chooses, how the last run ended.
Takes a few seconds, needs no network, changes nothing.

With resume=true: trains a few steps in one go, and again with a stop and a
resume, as the words of dtl.train say (model=small, data=qa ...). Says "exact",
or which part differs. Takes a minute with a small model.

Exit code 0: ready to train. 1: something prevents training or slows it down
badly; each problem comes with a fix.
""",
)


def main() -> None:
    """Entry point of `python -m dtl.diagnose` and of the console script dtl-diagnose."""
    words: list[str] = []  # of dtl.train
    run_command(lambda composed: job(composed, words), COMMAND, lambda arguments: _own(arguments, words))


def _own(arguments: list[str], words: list[str]) -> list[str]:
    """Return the arguments of this command; with resume=true the others become the `words` of the run."""
    if "resume=true" not in (argument.lower() for argument in arguments):
        return arguments
    own = tuple(f"{item.name}=" for item in fields(DiagnoseConfig))
    words += [word for word in arguments if not word.startswith(own) or word.startswith("plugins=")]
    return [word for word in arguments if word.startswith(own)]


def job(composed: DictConfig, words: Sequence[str] = ()) -> None:
    """Run and show all checks. Raises DTLError with the problems found."""
    # Not `typed_as`: it imports the plugins, and one that fails is a finding here, not an error.
    settings = converted(DiagnoseConfig, composed)
    settings.validate()
    if settings.resume:
        from dtl.diagnostics.resume import prove_resume

        prove_resume(words, OUTPUTS)
        return

    from dtl.diagnostics.diagnosis import diagnose

    diagnose(settings, OUTPUTS)


if __name__ == "__main__":
    main()
