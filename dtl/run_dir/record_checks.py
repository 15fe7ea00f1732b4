"""What was changed, is damaged or is missing in the records of a run. Reads them only; imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dtl.base.json_files import read_json, read_lines, read_record, read_yaml
from dtl.base.safe_text import in_one_line
from dtl.base.units import number_of
from dtl.checkpoints.listing import best_problem, inspect, recorded_best_step, step_folders, step_of
from dtl.errors import CheckpointError
from dtl.evaluation.config import EVALUATION_FILE
from dtl.run_dir.own_config import changed_since
from dtl.run_dir.provenance import CONFIG, RECORD, RESULT
from dtl.run_dir.state import last_metrics, read_config, read_run_state
from dtl.run_dir.sweep_records import TRIAL
from dtl.tracking.metrics import METRICS, RowCheck, check_rows, parse_row

END_OF_METRICS = 2**16  # bytes of metrics.jsonl that are read
MAX_PROBLEMS, MAX_NAMED = 7, 3  # lines about records, runs that one of them names


def record_problems(folder: Path, rows: RowCheck | None = None) -> list[str]:
    """Return what was changed or is damaged in the records of a run, a clause for each; [] where all fit together.

    `rows` has seen all of metrics.jsonl; without it only the end of the file is read. Never raises.
    """
    problems = []
    for name in (RECORD, RESULT, TRIAL, EVALUATION_FILE):
        with suppress(FileNotFoundError):
            try:
                read_json(folder / name) if name == RECORD else read_record(folder / name)
            except CheckpointError:  # run.json has no digest
                problems.append(f"{name} cannot be read" if name == RECORD else f"{name} was changed or is damaged")
    if any((folder / name).exists() for name in (RECORD, RESULT, METRICS)):  # a rejected run has no config either
        problems += filter(None, [_config_problem(folder)])
        problems += _row_problems(folder, rows)
        problems += filter(None, [_best_problem(folder)])
    return problems


def _config_problem(run_dir: Path) -> str | None:
    """Return why config.yaml cannot be read, or how it differs from that of the newest checkpoint, which the manifest
    vouches for."""
    try:
        recorded = read_yaml(run_dir / CONFIG)
    except CheckpointError as error:
        reason = in_one_line(str(error).removeprefix(f"{run_dir / CONFIG}: ").rstrip("."), 160)
        return f"{CONFIG}: {reason}; a report compares no run without it"
    newest_first = sorted(step_folders(run_dir), key=step_of, reverse=True)
    checkpoint = next((each for each in newest_first if inspect(each, only=[CONFIG]).problem is None), None)
    if checkpoint is None:
        return None
    changed = changed_since(run_dir, recorded, read_config(checkpoint))
    return f"{CONFIG} was changed: {changed}, with which {checkpoint.name} was trained" if changed else None


def _best_problem(run_dir: Path) -> str | None:
    """Return why checkpoints/best cannot be used, by names and sizes. A run in progress may be about to publish it."""
    if best_problem(run_dir) is None or read_run_state(run_dir).state == "running":
        return None
    step, is_there = recorded_best_step(run_dir), (run_dir / "checkpoints" / "best").exists()
    best = "" if step is None else f", the copy of step {step:,},"
    return f"checkpoints/best{best} is {'damaged' if is_there else 'missing'}"


def _row_problems(folder: Path, rows: RowCheck | None) -> Iterator[str]:
    rows = _rows_at_the_ends(folder) if rows is None else rows
    run = read_run_state(folder)  # of one that runs or was killed, result.json is of an earlier session
    saved = max(map(step_of, step_folders(folder)), default=None)  # with the rows of all steps before it
    yield from rows.problems(run.step if run.state in ("finished", "stopped") else saved)


def _rows_at_the_ends(folder: Path) -> RowCheck:
    """Return the check of the first row and of the last ones: a large file is not read for a list of runs."""
    rows, file = RowCheck(), folder / METRICS
    with suppress(OSError):
        if file.stat().st_size <= END_OF_METRICS:
            return check_rows(folder)
        rows.see(next((parse_row(line) for line in read_lines(file)), None))
        rows.skip()
    for row in last_metrics(folder, END_OF_METRICS):
        rows.see(row)
    return rows


def told_once(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each problem, with the runs that have it; `problems` are those of each run, by its name."""
    runs: dict[str, list[str]] = {}
    for name, own in problems.items():
        for problem in own:
            runs.setdefault(problem, []).append(name)
    lines = []
    for problem, names in list(runs.items())[:MAX_PROBLEMS]:
        more = f" and {number_of('more runs', len(names) - MAX_NAMED)}" if len(names) > MAX_NAMED else ""
        lines.append(f"{', '.join(names[:MAX_NAMED])}{more}: {problem}.")
    left = len(runs) - len(lines)
    return [*lines, f"... and {number_of('more problems', left)} of records."] if left else lines
