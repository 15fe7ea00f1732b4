"""Damaged records of a run, a trial, a sweep and an evaluation: nothing wrong is taken from them without a word."""

import json
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from checkpoint_examples import imitate
from hostile_files import KINDS, printed_by, read_all
from tiny_runs import outcome, start, tiny_config, write_pairs

from dtl.base.json_files import DIGEST
from dtl.checkpoints.upkeep import LOCK_OWNER, set_aside_later
from dtl.errors import DTLError
from dtl.run_dir.provenance import RESULT, write_result
from dtl.run_dir.record_checks import record_problems
from dtl.run_dir.state import read_run_state
from dtl.run_dir.sweep_records import SweepFolder, SweepRecord, Trial, now
from dtl.terminal.loading import read_facts
from dtl.tracking.metrics import METRICS, check_rows

if sys.platform == "win32":
    pytest.skip("Windows has no such files", allow_module_level=True)

SECONDS = 10  # of processor time, of all readers together: a hundred times what they usually take
MEMORY = 2**32  # of address space above what the process has: a reader that eats the memory fails and not the machine
WHAT = "damages of the files of a run, a sweep or an evaluation, none silent"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two trials: 0 is finished and evaluated, 1 stopped after six of its twelve steps."""
    root = tmp_path_factory.mktemp("sweep")
    config = tiny_config(write_pairs(root / "pairs.jsonl"))
    folder = SweepFolder(root / "outputs" / "multirun" / "2026-01-02" / "03-04-05-6")
    start(config, folder.trial_folder(0))
    config.trainer.stop_after_steps = 6
    start(config, folder.trial_folder(1))
    for number, state in enumerate(("finished", "stopped")):
        value = json.loads((folder.trial_folder(number) / RESULT).read_text())["value"]
        folder.keep(
            Trial(number, [f"seed={number}"], "0" * 8, state, value=value, attempts=1, started=now(), ended=now())
        )
        (folder.trial_folder(number) / "trial.log").write_text("a line\n")
    folder.write(SweepRecord(["seed=0,1"], state="finished", started=now(), sessions=1, planned=2))
    return folder.path


def flipped(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def another_digit(data: bytes, rng: random.Random) -> bytes:
    """What a reader cannot see by the form of a file."""
    places = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
    if not places:
        return flipped(data, rng)
    place = rng.choice(places)
    return data[:place] + str((int(chr(data[place])) + rng.randint(1, 9)) % 10).encode() + data[place + 1 :]


def zeroed(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data))
    end = rng.choice((len(data), begin + rng.randint(1, 4096)))
    return data[:begin] + bytes(len(data[begin:end])) + data[end:]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped": flipped,
    "another digit": another_digit,
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "zeroed": zeroed,
    "longer": lambda data, rng: data + rng.randbytes(rng.randint(1, 9)),
    "random": lambda data, rng: rng.randbytes(len(data)),
    "twice": lambda data, rng: data + data,
}
SPECIAL = ("missing", *KINDS)


def records_of(sweep: Path) -> list[Path]:
    """Every file but those of the checkpoints, whose damages have a test of their own."""
    files = [path.relative_to(sweep) for path in sorted(sweep.rglob("*")) if path.is_file()]
    return [file for file in files if "checkpoints" not in file.parts]


def damage(file: Path, kind: str, rng: random.Random) -> None:
    data = file.read_bytes()
    if kind in DAMAGES:
        file.write_bytes(DAMAGES[kind](data, rng) if data else b"\0")
        return
    file.unlink()
    if kind != "missing":
        KINDS[kind](file)


def decided_by(sweep: Path) -> dict[str, Any]:
    """What is decided by the records: which losses count, and how sure a model says that it is."""
    trials = {trial.number: trial for trial in SweepFolder(sweep).trials()}
    found: dict[str, Any] = {f"loss of {n}": t.value for n, t in trials.items() if t.state in ("finished", "stopped")}
    best = sweep / "0" / "checkpoints" / "best"
    with suppress(DTLError):
        calibration = read_facts(best).calibration
        found |= {"calibration": asdict(calibration)} if calibration else {}
    return found


@pytest.fixture
def bounded(elsewhere: Path) -> Iterator[None]:
    """Bounds the memory of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def cases(n: int) -> Iterator[tuple[int, str, random.Random]]:
    """Number, kind and dice: of two, one is a change of bytes."""
    for number in range(n):
        rng = random.Random(number)
        yield number, rng.choice([*DAMAGES] if number % 2 else SPECIAL), rng


@pytest.mark.fault("record-damage")
@pytest.mark.parametrize("n", [pytest.param(30, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.torture)])
def test_no_damaged_record_is_believed(
    sweep: Path, bounded: None, monkeypatch: Any, capfd: Any, figure: Any, n: int
) -> None:
    """Every reader; at some the commands that list and show, which say something and have no traceback."""
    expected, files = decided_by(sweep), records_of(sweep)
    assert len(expected) >= 2 and len(files) >= 15
    copy, failed = Path("outputs/multirun/2026-01-02/03-04-05-6"), []
    for number, kind, rng in cases(n):
        file = files[number % len(files)]
        shutil.copytree(sweep, copy)
        damage(copy / file, kind, rng)
        began = time.process_time()
        for folder in (copy, copy / "0", copy / "1"):
            read_all(folder)
        found = decided_by(copy)
        if time.process_time() - began > SECONDS:
            failed.append(f"{number} {file} {kind}: slow")
        failed += [f"{number} {file} {kind}: {key}" for key, value in found.items() if value != expected[key]]
        if number % 10 == 0:
            for name, word in (("runs", "sort=loss"), ("sweep", f"status={copy}"), ("report", f"runs={copy}")):
                printed_by(name, word, monkeypatch, capfd)
        shutil.rmtree("outputs")
    figure(WHAT, n, len(failed))
    assert failed == []


@pytest.mark.fault("record-damage")
@pytest.mark.parametrize("n", [pytest.param(4, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.torture)])
def test_a_run_with_a_damaged_record_resumes_exactly_or_says_why_not(
    sweep: Path, bounded: None, monkeypatch: Any, capfd: Any, figure: Any, n: int
) -> None:
    """What it ends with is equal to the bit, whatever its records say: the checkpoint alone decides."""
    expected = outcome(sweep / "0")
    files = [file for file in records_of(sweep) if file.parts[0] == "1" and "trial" not in file.name]
    failed, resumed = [], 0
    for number, kind, rng in cases(n):
        file = files[number % len(files)]
        run = Path("outputs/2026-01-02/03-04-05-6_a")
        shutil.copytree(sweep / "1", run)
        damage(run / file.relative_to("1"), kind, rng)
        printed = printed_by("train", f"resume={run}", monkeypatch, capfd)
        if not os.path.lexists(run / "checkpoints" / "step-00000012"):
            failed += [] if "Error: " in printed else [f"{number} {file} {kind}: {printed}"]
        else:
            resumed += 1
            shutil.rmtree(run / "samples", ignore_errors=True)  # texts to look at, which may be the damaged ones
            found = outcome(run)
            failed += [
                f"{number} {file} {kind}: {part}" for part in ("files", "states") if found[part] != expected[part]
            ]
        shutil.rmtree("outputs")
    figure("runs resumed with a damaged record, equal to the bit or told", n, len(failed))
    assert failed == [] and resumed > n // 2


def test_a_record_that_was_changed_is_named(sweep: Path, tmp_path: Path) -> None:
    """One digit of a trial's loss, and of nothing else."""
    shutil.copytree(sweep, tmp_path / "sweep")
    result = tmp_path / "sweep" / "0" / RESULT
    values = json.loads(result.read_text())
    assert values[DIGEST] and SweepFolder(tmp_path / "sweep").trials()[0].value == values["value"]
    result.write_text(json.dumps(values | {"value": 0.001}))
    trial = SweepFolder(tmp_path / "sweep").trials()[0]
    assert (trial.state, trial.value) == ("failed", None)
    assert trial.reason == f"its {RESULT} is damaged. Run it again with sweep.retry_failed=true"
    del values[DIGEST]  # as an editor that hides a change
    result.write_text(json.dumps(values | {"value": -3}))
    assert SweepFolder(tmp_path / "sweep").trials()[0].value is None
    assert read_run_state(result.parent).best_loss != -3
    assert record_problems(result.parent) == [f"{RESULT} was changed or is damaged"]
    folder = SweepFolder(tmp_path / "sweep")
    for file in (folder.path / "sweep.json", result.with_name("trial.json")):
        file.write_text(
            json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != DIGEST})
        )
    assert folder.read() is None and folder.has_damaged_record() and [trial.number for trial in folder.trials()] == [1]


def test_records_that_do_not_fit_together_are_told(sweep: Path, elsewhere: Path, monkeypatch: Any, capfd: Any) -> None:
    """In the list of runs, in the status of the sweep and in the report, in one line for all runs that have it."""
    copy = Path("outputs/multirun/2026-01-02/03-04-05-6")
    shutil.copytree(sweep, copy)
    assert [record_problems(copy / number, check_rows(copy / number)) for number in "01"] == [[], []]
    assert [record_problems(copy / number) for number in "01"] == [[], []]
    (copy / "1" / RESULT).write_text((copy / "1" / RESULT).read_text().replace('"step": 6', '"step": 5'))
    for number in "01":
        config = copy / number / "config.yaml"
        config.write_text(config.read_text().replace("lr: 0.01", "lr: 0.07").replace("seed: 11", "seed: 12"))
    told = "config.yaml was changed: optimizer.lr=0.07 instead of 0.01, and 1 more key, with which step-00000012 was"
    assert record_problems(copy / "0") == [f"{told} trained"]
    damaged = "result.json was changed or is damaged"
    for name, word in (("runs", "sort=loss"), ("sweep", f"status={copy}"), ("report", f"runs={copy}")):
        printed = " ".join(printed_by(name, word, monkeypatch, capfd).split())
        assert printed.count(told) == 1 and f"1: {damaged}." in printed, printed
    page = (copy / "report" / "report.html").read_text()
    assert page.count(told) == 1 and page.count(damaged) == 2  # among the failures, and at the end
    (copy / "0" / "config.yaml").write_text("[")
    assert "config.yaml: damaged" in printed_by("report", f"runs={copy}/0", monkeypatch, capfd)


def test_a_config_with_what_a_resume_was_given_was_not_changed(sweep: Path, tmp_path: Path) -> None:
    run, record = tmp_path / "run", tmp_path / "run" / "run.json"
    shutil.copytree(sweep / "1", run)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("total_steps: 12", "total_steps: 17"))
    assert "trainer.total_steps=17 instead of 12" in record_problems(run)[0]
    values = json.loads(record.read_text())
    values["sessions"].append({"overrides": ["resume=latest", "trainer.total_steps=17"]})
    record.write_text(json.dumps(values))
    assert record_problems(run) == []
    record.write_text("{")
    assert record_problems(run) == ["run.json cannot be read"]
    record.write_text(json.dumps(values))
    # A session that resumed from an older checkpoint and was killed: result.json is that of the one before.
    rows = (run / METRICS).read_text().splitlines(keepends=True)
    (run / METRICS).write_text("".join(row for row in rows if json.loads(row)["step"] <= 4))
    assert "has no row of 2 steps (5 to 6)" in record_problems(run)[0]
    (run / LOCK_OWNER).write_text('{"pid": 1}')
    set_aside_later(run, 4)
    assert record_problems(run) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[:3] + rows[5:], "has no row of 2 steps (4 to 5)"),
        (lambda rows: rows[:-2], "has no row of 2 steps (10 to 11)"),
        (lambda rows: rows[:2] + rows[4:5] + rows[6:], "has no row of 3 steps (3 to 4, ...)"),
        (lambda rows: rows[1:], "has no row of 1 step (1)"),
        (lambda rows: [], "has no row of 11 steps (1 to 11)"),
        (lambda rows: [*rows[:5], rows[4], *rows[5:]], "has 1 row that is not a number or out of order"),
        (lambda rows: [*rows[:5], rows[5] | {"train/loss": "2.0"}, *rows[6:]], "has 1 row that is not a number"),
        (lambda rows: [*rows[:5], {"step": "x"}, *rows[5:]], "has 1 row that is not a number"),
        (lambda rows: [*rows[:5], rows[5] | {"train/loss": None}, *rows[6:]], None),
        (lambda rows: [*rows, {}], None),  # of a kill
        (lambda rows: [*rows[:5], rows[5] | {"step": 999_999}, *rows[5:]], "has 1 row that is not a number or out of"),
        (lambda rows: [*rows, rows[5] | {"step": 999_999}], "has 1 row that is not a number or out of order"),
        (lambda rows: [*rows[:5], rows[5] | {"step": -5}, *rows[5:]], "has 1 row that is not a number or out of order"),
        (lambda rows: [*rows[:5], rows[1], *rows[5:]], "has 1 row that is not a number or out of order"),
    ],
)
def test_steps_without_a_row_and_rows_that_are_no_numbers_are_told(change, told, tmp_path):
    rows = [{"step": step, "tokens": 7 * step, "seconds": 0.3, "train/loss": 2.0} for step in range(1, 12)]
    write_result(tmp_path, "finished", 0.25, 11, "h")
    (tmp_path / "config.yaml").write_text("seed: 3")
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    for problems in (record_problems(tmp_path, check_rows(tmp_path)), record_problems(tmp_path)):
        assert [told in problem for problem in problems] == [True] if told else problems == []


@pytest.mark.parametrize("n_bytes", [2**16, 300])
def test_rows_that_are_missing_at_the_beginning_are_told(tmp_path, monkeypatch, n_bytes):
    """Of a run in progress: metrics.jsonl was deleted, and a resume wrote another; or it is missing."""
    monkeypatch.setattr("dtl.run_dir.record_checks.END_OF_METRICS", n_bytes)
    rows = [{"step": step, "tokens": 7 * step, "seconds": 0.3, "train/loss": 2.0} for step in range(1, 24)]
    (tmp_path / "config.yaml").write_text("seed: 3")
    imitate(tmp_path, 23)
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert record_problems(tmp_path) == []
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows[12:]))
    assert record_problems(tmp_path) == [f"{METRICS} has no row of 12 steps (1 to 12)"]
    (tmp_path / METRICS).unlink()
    (tmp_path / "run.json").write_text("{}")
    assert record_problems(tmp_path) == [f"{METRICS} has no row of 23 steps (1 to 23)"]
