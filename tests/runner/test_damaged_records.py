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
from hostile_files import KINDS, printed_by, read_all
from tiny_runs import outcome, start, tiny_config, write_pairs

from dtl.base.json_files import DIGEST
from dtl.errors import DTLError
from dtl.run_dir.provenance import RESULT
from dtl.run_dir.sweep_records import SweepFolder, SweepRecord, Trial, now
from dtl.terminal.loading import read_facts

if sys.platform == "win32":
    pytest.skip("Windows has no such files", allow_module_level=True)

SECONDS = 2  # of processor time, of all readers together
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
@pytest.mark.parametrize("n", [30, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.torture])])
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
@pytest.mark.parametrize("n", [4, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.torture])])
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
    del values[DIGEST]  # of an earlier DTL
    result.write_text(json.dumps(values))
    assert SweepFolder(tmp_path / "sweep").trials()[0].value == values["value"]
