"""The command `python -m dtl.report`: compares runs and sweeps on one HTML page with plots."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from dtl.base.display import command_line, exit_when_output_closes, shown
from dtl.base.units import number_of
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.config import typed_as
from dtl.reports.config import ReportConfig

OUTPUTS = Path("outputs")
COMMAND = Command(
    "report",
    ReportConfig,
    usage="""\
python -m dtl.report [runs=FOLDER|GLOB|latest] [metric=KEY] [out=FOLDER]
Compares runs and sweeps in one report.html, which needs no network.

  python -m dtl.report                          the newest run, or its sweep
  python -m dtl.report runs=outputs/multirun/2026-11-23/05-43-33-5892
  python -m dtl.report 'runs=outputs/2026-11-2*/*_demo' metric=exact_match/test
  python -m dtl.report 'runs=[outputs/multirun/a,outputs/multirun/b]' out=muon
  python -m dtl.report record=true              also into experiments/README.md
  python -m dtl.report runs=outputs/multirun/a forecast=large   a larger one
  python -m dtl.report reference=text_cpu text=NAME licence=LICENCE   a curve
""",
    details="""\
The report and its plots as PNGs show loss against steps, tokens and time with bands over the seeds, the settings that
differ, learning rate against loss, parallel coordinates, importance, speed, memory, samples side by side, failures and
reasons. Needs matplotlib, scipy and jinja2: pip install 'dtl[report]'.

forecast= takes a sweep over sizes, each run with as many tokens a parameter (trainer.tokens_per_parameter=5), and fits
a floor plus a power law. It shows the loss of a larger model with an interval, beside a straight line without a floor,
and refuses with fewer than four sizes, beyond eight times the largest, and where the noise of the seeds is too large.

reference= records finished runs of a recipe, or of a model without one, that differ in the seed alone: their validation
loss after so many tokens. dtl.plan shows that curve, and each report draws it behind the runs that it belongs to.

Runs that differ only in the seed are one configuration. Two configurations are compared by a paired t test over equal
seeds, Holm-corrected; none is called better with fewer than five seeds, nor without significance.
""",
    free_text=("text", "licence"),
)


def main() -> None:
    """Entry point of `python -m dtl.report` and of the console script dtl-report."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """Read and compare the runs, plot, write and show the report."""
    settings = typed_as(ReportConfig, composed)

    from dtl.reports.build import build, check_packages, write
    from dtl.reports.selection import select

    check_packages()
    selection = select(settings.wanted(), OUTPUTS)
    messages = _record_reference(settings, selection.folders)
    folder = Path(settings.out).expanduser() if settings.out else selection.report_folder(OUTPUTS)

    from dtl.notebook.records import record
    from dtl.reports.summary import show, show_paths, wide_display

    with exit_when_output_closes(), wide_display() as display:
        title = shown(selection.home.absolute()) if selection.home else number_of("runs", len(selection.folders))
        command = _command(settings, title if selection.home else settings.runs)
        report = build(settings, selection.folders, title, command, display.note)
        written = write(report, folder)  # first: a pipe that closes early must not cost the report
        show(report, display)
        show_paths(written, display)
        if settings.record:
            messages += record(selection.folders)
        for line in messages:
            display.print(line)


def _record_reference(settings: ReportConfig, folders: Sequence[Path]) -> list[str]:
    """Record the runs as a reference curve where that is asked for, before the report, which shows it; return what was
    done. Raises ConfigError where they give none."""
    from dtl.run_dir.references import check_curves, curves_file

    if settings.reference is None:
        check_curves(settings.curves)
        return []
    from dtl.notebook.records import record_reference

    file = None if settings.curves is None else curves_file(settings.curves)
    return [record_reference(folders, settings.reference, settings.text, settings.licence, file)]


def _command(settings: ReportConfig, runs: str) -> str:
    """The command that makes this report again, also when another run is the latest."""
    words = [f"runs={runs}"]
    if settings.metric is not None:
        words.append(f"metric={settings.metric}")
    if settings.forecast is not None:
        words.append(f"forecast={settings.forecast}")
    if settings.curves is not None:
        words.append(f"curves={settings.curves}")
    if settings.higher_is_better is not None:
        words.append(f"higher_is_better={str(settings.higher_is_better).lower()}")
    return command_line("report", *words)


if __name__ == "__main__":
    main()
