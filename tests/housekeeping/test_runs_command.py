"""python -m dtl.runs: its list, its deletions, and everything that it must not change."""

import builtins
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoint_examples import imitate
from filelock import FileLock
from rich.console import Console

import dtl.runs
from dtl.base.display import Display
from dtl.base.files import TRASH
from dtl.base.json_files import sealed
from dtl.base.units import in_age, in_bytes
from dtl.checkpoints.upkeep import lock_run, publish_best, superseded
from dtl.housekeeping.config import RunsConfig
from dtl.housekeeping.disk_runs import freed_by, leftovers, read_runs
from dtl.housekeeping.removal import Removal, clear_leftover, delete_removal, removals
from dtl.housekeeping.show import show_runs
from dtl.run_dir.provenance import write_result

OUTPUTS = Path("outputs")
DAY = 86_400


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(elsewhere: Path) -> None:
    """outputs/ of the test, not of the checkout."""


def make_run(
    label: str,
    state: str | None = "finished",
    steps: tuple[int, ...] = (),
    best: int | None = None,
    loss: float | None = None,
    days: float = 0,
) -> Path:
    """The folder of a run with imitated checkpoints, last written some days ago."""
    run_dir = OUTPUTS / label
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(f"name: {label.rpartition('_')[2]}\n")
    (run_dir / "run.json").write_text('{"dtl": "0.1"}')
    (run_dir / "metrics.jsonl").write_text('{"step": 31}\n')
    for step in steps:
        imitate(run_dir, step)
    if best is not None:
        publish_best(run_dir, run_dir / "checkpoints" / f"step-{best:08d}")
    if state is not None:
        write_result(run_dir, state, loss, 31, "abc")
    written = time.time() - days * DAY
    for path in (*run_dir.iterdir(), run_dir):
        os.utime(path, (written, written))
    return run_dir


class Command:
    """`python -m dtl.runs` within this process; `typed` are the user's answers (None: no terminal)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, typed: list[str] | None = None, code: int = 0) -> str:
        answers = iter(typed or [])

        def answer(_: str) -> str:
            try:
                return next(answers)
            except StopIteration:
                raise EOFError from None

        self._monkeypatch.setattr("sys.argv", ["dtl-runs", *arguments])
        self._monkeypatch.setattr(dtl.runs, "can_ask", lambda: typed is not None)
        self._monkeypatch.setattr(builtins, "input", answer)
        ended = 0
        try:
            dtl.runs.main()
        except SystemExit as exit_:
            ended = exit_.code
        shown = self._capsys.readouterr()
        assert (ended, "Traceback" in shown.err) == (code, False), shown.err
        assert next(answers, None) is None, "nobody asked"
        return shown.out + shown.err


@pytest.fixture
def runs(monkeypatch, capsys) -> Command:
    return Command(monkeypatch, capsys)


def listed(shown: str) -> list[str]:
    """The folders in the table, in its order."""
    return [line.split("  ")[0] for line in shown.splitlines()[2:] if line.startswith(("2026", "multirun"))]


def everything() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in OUTPUTS.rglob("*") if path.is_file() and path.name != ".lock"}


# --- the list -------------------------------------------------------------------------------------------------------


def test_no_run_yet(runs):
    assert "There is no run under outputs/ yet" in runs()
    assert not OUTPUTS.exists()


@pytest.fixture
def three() -> None:
    make_run("2026-11-21/05-00-00-1_big", "failed", (10, 20, 30), days=3)
    make_run("2026-11-22/05-00-00-2_good", "finished", (10, 20), loss=0.25, days=2)
    make_run("multirun/2026-11-23/05-00-00-3/0", "finished", (10,), loss=0.5, days=1)


BIG, GOOD, TRIAL = "2026-11-21/05-00-00-1_big", "2026-11-22/05-00-00-2_good", "multirun/2026-11-23/05-00-00-3/0"


@pytest.mark.parametrize(
    ("arguments", "folders"),
    [
        ([], [TRIAL, GOOD, BIG]),
        (["sort=size"], [BIG, GOOD, TRIAL]),
        (["sort=loss"], [GOOD, TRIAL, BIG]),
        (["sort=name"], [BIG, GOOD, TRIAL]),
        (["sort=size", "limit=1"], [BIG]),
        (["state=failed"], [BIG]),
        (["state=[failed, killed]"], [BIG]),
        (["state=finished,failed", "sort=name"], [BIG, GOOD, TRIAL]),
        (["name=goo*"], [GOOD]),
        (["name=multirun/*"], [TRIAL]),
        (["older_than_days=1.5"], [GOOD, BIG]),
        (["name=nothing"], []),
    ],
)
def test_what_is_listed_and_in_which_order(three, runs, arguments, folders):
    before = everything()
    assert listed(runs(*arguments)) == folders
    assert everything() == before and not list(OUTPUTS.rglob(".lock")), "looking changes nothing"


@pytest.mark.parametrize("ended", ["pruned", "timed out", "hung"])
def test_trials_that_their_sweep_ended_are_found_by_it(three, runs, ended):
    (OUTPUTS / TRIAL / "trial.json").write_text(json.dumps(sealed({"state": ended})))
    assert listed(runs(f"state={ended},failed", "sort=name")) == [BIG, TRIAL]


def test_a_line_has_the_state_of_a_run(three, runs):
    lines = [line.split() for line in runs("name=good").splitlines()]
    size = in_bytes(freed_by([OUTPUTS / GOOD]))
    assert lines[2] == [GOOD, "good", "finished", "31", "0.2500", *size.split(), "2", "days"]


def test_a_file_with_two_names_takes_its_room_once():
    run_dir = make_run("2026-11-21/05-00-00-1_a", steps=(10,))
    alone = freed_by([run_dir])
    publish_best(run_dir, run_dir / "checkpoints" / "step-00000010")
    assert freed_by([run_dir]) == alone
    assert freed_by([run_dir / "checkpoints" / "best"]) == 0, "its files stay as those of the step"


@pytest.mark.fault("terminal", "names")
def test_names_of_folders_cannot_harm(runs):
    make_run("2026-11-21/05-00-00-1_\x1b[2J", steps=(10, 20))
    shown = runs() + runs("delete=checkpoints", "yes=true")
    assert "\x1b" not in shown and "␛[2J" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["state=faild"], "state=faild: give one or more of"),
        (["sort=colour"], "sort=colour: one of age, size, loss, name."),
        (["delete=all"], "delete=all: one of checkpoints, empty, runs."),
        ([f"delete=outputs/{GOOD}"], f"dtl.runs delete=runs 'best_of=[outputs/{GOOD}]'"),
        (["delete=runs"], "delete=runs: select runs by"),
        (["delete=runs", "yes=true"], "delete=runs: select runs by"),
        (["delete=empty", "best_of=[a]"], "it needs delete=runs"),
        (["limit=0"], "limit=0: must be at least 1"),
        (["older_than_days=-1"], "older_than_days=-1.0: must be at least 0."),
        (["outputs=none"], "outputs=none: there is no such folder."),
        (["outputs=''"], "outputs='': is no folder."),
        ([f"outputs=outputs/{GOOD}"], "is itself a run"),
        (["delete=runs", "best_of=[nobody]"], "best_of=[nobody]: is none of the runs to delete"),
    ],
)
def test_invalid_settings_are_rejected(three, runs, arguments, message):
    before = everything()
    assert message in runs(*arguments, code=2)
    assert everything() == before


def test_numbers_for_people():
    assert [in_bytes(n) for n in (7, 1300, 43_000, 1.21e9, 7e13)] == ["7 B", "1.3 kB", "43 kB", "1.2 GB", "70 TB"]
    assert [in_age(n) for n in (7, 130, 7300, 3 * DAY)] == ["7 s", "2 min", "2 h", "3 days"]


# --- superseded checkpoints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", [None, 10, 20, 30, 40])
@pytest.mark.parametrize("damaged", [(), (10,), (40,), (30, 40), ("best",)])
def test_what_is_shown_is_what_goes_and_the_best_the_newest_and_the_damaged_stay(best, damaged):
    run_dir = make_run("2026-11-21/05-00-00-1_a", steps=(10, 20, 30, 40), best=best)
    for which in damaged:
        name = which if which == "best" else f"step-{which:08d}"
        if (folder := run_dir / "checkpoints" / name).exists():
            (folder / "config.json").unlink()
    before = {folder.name for folder in (run_dir / "checkpoints").iterdir()}
    expected = {folder.name for folder in superseded(run_dir)}
    found = removals(read_runs(OUTPUTS), RunsConfig(delete="checkpoints"))
    if expected:
        size = freed_by([run_dir])
        assert delete_removal(found[0], OUTPUTS) == []
        assert size - freed_by([run_dir]) == found[0].n_bytes > 0
    after = {folder.name for folder in (run_dir / "checkpoints").iterdir()}
    assert before - after == expected
    newest = max(step for step in (10, 20, 30, 40) if step not in damaged)
    damaged_names = {f"step-{which:08d}" for which in damaged if which != "best"}
    assert {f"step-{newest:08d}", *damaged_names} <= after
    if best is not None:
        assert {"best", f"step-{best:08d}"} <= after


def test_only_finished_runs_lose_checkpoints_unless_others_are_named(runs):
    finished = make_run("2026-11-21/05-00-00-1_a", "finished", (10, 20))
    stopped = make_run("2026-11-21/05-00-00-2_b", "stopped", (10, 20))
    runs("delete=checkpoints", "yes=true")
    assert (len(list((finished / "checkpoints").iterdir())), len(list((stopped / "checkpoints").iterdir()))) == (1, 2)
    runs("delete=checkpoints", "state=stopped", "yes=true")
    assert [folder.name for folder in (stopped / "checkpoints").iterdir()] == ["step-00000020"]


# --- asking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "goes"), [(["y"], True), (["yes"], True), (["n"], False), ([""], False), ([], False)]
)
def test_a_person_is_asked_after_the_list_was_shown(three, runs, typed, goes):
    shown = runs("delete=checkpoints", typed=typed)
    assert f"  {GOOD}  step-00000010  " in shown and "1 checkpoint of 1 run" in shown
    assert (OUTPUTS / GOOD / "checkpoints" / "step-00000010").exists() is not goes
    assert (" freed." in shown, "Nothing was deleted." in shown) == (goes, not goes)


def test_without_a_terminal_nothing_goes_unless_the_command_says_yes(three, runs):
    before = everything()
    shown = runs("delete=checkpoints", code=2)
    assert "there is no terminal to ask on. yes=true deletes" in shown and everything() == before
    runs("delete=checkpoints", "yes=true")
    assert everything() != before


def test_nothing_to_delete(three, runs):
    assert "nothing to delete" in runs("delete=empty", "yes=true")


# --- whole runs, and the best of them -------------------------------------------------------------------------------


def test_empty_runs_are_those_that_ended_and_saved_nothing(runs):
    gone = [make_run(f"2026-11-21/05-00-0{n}-1_a", state) for n, state in enumerate(("failed", "interrupted"))]
    gone.append(make_run("2026-11-21/05-00-02-1_a", None, days=1))
    stay = [
        make_run("2026-11-21/05-00-03-1_a", None),  # Hydra has made its folder; it may be about to start
        make_run("2026-11-21/05-00-04-1_a", "finished"),
        make_run("2026-11-21/05-00-05-1_a", "failed", (10,)),
    ]
    (stay[-1] / "checkpoints" / "step-00000010").rename(stay[-1] / "checkpoints" / "step-00000010.damaged")
    runs("delete=empty", "yes=true")
    assert [run.exists() for run in (*gone, *stay)] == [False] * 3 + [True] * 3


def guarded() -> list[Path]:
    """Runs with a best checkpoint, in each form that it may have, and one without."""
    made = [make_run(f"2026-11-21/05-00-0{n}-1_a", steps=(10, 20), best=10) for n in range(3)]
    (made[1] / "checkpoints" / "best").rename(made[1] / "checkpoints" / "best.old")
    (made[2] / "checkpoints" / "best" / "model.safetensors").unlink()
    return [*made, make_run("2026-11-21/05-00-09-1_a", steps=(10,))]


def test_no_best_checkpoint_goes_without_its_name(runs):
    made = guarded()
    shown = runs("delete=runs", "name=a", "yes=true")
    assert [run.exists() for run in made] == [True, True, True, False]
    assert "kept, for their best checkpoint: 3 runs." in shown
    runs("delete=runs", "name=a", typed=["a", "2026-11-21", "y", ""])
    runs("delete=runs", "name=a", typed=[made[0].name, "*", "all", ""])
    assert [run.exists() for run in made] == [True, True, True, False]


@pytest.mark.parametrize("agreed", [True, False])
def test_a_best_checkpoint_goes_when_its_folder_is_typed(runs, agreed):
    made = guarded()
    runs("delete=runs", "name=a", typed=["2026-11-21/05-00-01-1_a", "", "y" if agreed else "n"])
    assert [run.exists() for run in made] == ([True, False, True, False] if agreed else [True] * 4)


@pytest.mark.parametrize("named", ["2026-11-21/05-00-01-1_a", "outputs/2026-11-21/05-00-01-1_a/"])
def test_a_script_names_it_and_means_that_run_alone(runs, named):
    made = guarded()
    runs("delete=runs", f"best_of=[{named}]", code=2)
    assert all(run.exists() for run in made)
    runs("delete=runs", f"best_of=[{named}]", "yes=true")
    assert [run.exists() for run in made] == [True, False, True, True]


def test_the_folder_of_a_day_goes_with_its_last_run_and_a_sweeps_stays(runs):
    make_run("2026-11-21/05-00-00-1_a", "failed")
    trial = make_run("multirun/2026-11-21/05-00-00-2/0", "failed")
    (trial.parent / "multirun.yaml").write_text("")
    shown = runs("delete=empty", "yes=true")
    assert "among these: 1 trial." in shown
    assert not (OUTPUTS / "2026-11-21").exists() and trial.parent.exists() and not trial.exists()


# --- running runs ---------------------------------------------------------------------------------------------------


@contextmanager
def nothing_held(_: Path) -> Iterator[None]:
    yield


@contextmanager
def held(folder: Path) -> Iterator[None]:
    with FileLock(folder / ".lock").acquire():
        yield


@pytest.mark.parametrize(
    ("whom", "hold"),
    [("trial", lock_run), ("trial", held), ("sibling", lock_run), ("sweep", held), (None, nothing_held)],
)
@pytest.mark.parametrize("what", ["checkpoints", "runs"])
def test_what_is_at_work_is_never_touched(runs, whom, hold, what):
    trial = make_run("multirun/2026-11-21/05-00-00-2/0", "finished", (10, 20, 30))
    sibling = make_run("multirun/2026-11-21/05-00-00-2/1", "finished")
    (trial.parent / "multirun.yaml").write_text("")
    before = everything()
    arguments = [f"delete={what}", "name=*/0", "yes=true"]
    with hold({"trial": trial, "sibling": sibling, "sweep": trial.parent, None: trial}[whom]):
        shown = runs(*arguments)
    if whom is None:
        assert everything() != before
    else:
        assert "kept, as running or just starting: 1 run." in shown and everything() == before


@pytest.mark.parametrize("settings", [{"delete": "checkpoints"}, {"delete": "runs", "name": "*"}])
@pytest.mark.parametrize("whom", ["the trial", "its sweep"])
def test_what_begins_while_a_person_thinks_stays(settings, whom):
    trial = make_run("multirun/2026-11-21/05-00-00-2/0", "finished", (10, 20))
    (trial.parent / "multirun.yaml").write_text("")
    [item] = removals(read_runs(OUTPUTS), RunsConfig(**settings))
    before = everything()
    with held(trial if whom == "the trial" else trial.parent):
        assert delete_removal(item, OUTPUTS) == [f"{trial}: has started running meanwhile and was not deleted."]
    assert everything() == before
    assert delete_removal(item, OUTPUTS) == [] and everything() != before


# --- faults ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: DTL never catches it."""


def killed_at(change: int, item: Removal, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run a removal up to its n-th change of the disk, and return whether it got that far."""
    n_changes = 0

    def counting(call):
        def counted(*arguments, **keywords):
            nonlocal n_changes
            n_changes += 1
            if n_changes == change:
                raise Killed
            return call(*arguments, **keywords)

        return counted

    with monkeypatch.context() as patched:
        for name in ("replace", "rename", "unlink", "rmdir"):
            patched.setattr(os, name, counting(getattr(os, name)))
        try:
            delete_removal(item, OUTPUTS)
        except Killed:
            return True
    return False


def test_a_kill_at_any_change_leaves_a_run_whole_or_gone_and_what_it_leaves_can_be_cleared(monkeypatch):
    n_left = 0
    for change in range(1, 200):
        run_dir = make_run("2026-11-21/05-00-00-2_a", "finished", (10,), best=10)
        files = everything()
        [item] = removals(read_runs(OUTPUTS), RunsConfig(delete="runs", name="*"))
        was_killed = killed_at(change, item, monkeypatch)
        if run_dir.exists():
            assert everything() == files
            shutil.rmtree(OUTPUTS)
            continue
        assert read_runs(OUTPUTS) == []
        left = leftovers(OUTPUTS)
        n_left += len(left)
        assert all(path.is_relative_to(left[0]) for path in everything())
        assert [clear_leftover(path, OUTPUTS) for path in left] == [[]] * len(left)
        assert not everything() and not leftovers(OUTPUTS)
        if not was_killed:
            break
    assert n_left > 20, "a kill for each file of the run"
    assert list(OUTPUTS.iterdir()) == []


def test_leftovers_of_a_killed_deletion_are_listed_and_deleted_by_the_next(runs, monkeypatch):
    make_run("2026-11-21/05-00-00-2_a", "finished", (10, 20), best=20)
    [item] = removals(read_runs(OUTPUTS), RunsConfig(delete="runs", name="*"))
    assert killed_at(3, item, monkeypatch)
    assert "Left by an interrupted deletion" in runs()
    assert "freed: left over from an interrupted deletion" in runs("delete=empty")
    assert list(OUTPUTS.iterdir()) == []


def test_what_a_run_at_work_is_deleting_is_no_leftover():
    run_dir = make_run("2026-11-21/05-00-00-2_a", "finished", (10,))
    (run_dir / "checkpoints" / f"{TRASH}step-00000005-1-0123abcd").mkdir()
    (OUTPUTS / "2026-11-21" / f"{TRASH}05-00-00-1_b-1-0123abcd").mkdir()
    (OUTPUTS / f"{TRASH}1000").mkdir()  # of a desktop, or the user's own
    assert [path.parent.name for path in leftovers(OUTPUTS)] == ["2026-11-21"]


def test_the_runs_of_other_programs_are_kept(runs):
    """Hydra gives every program's runs a .hydra in outputs/, and many programs have folders named checkpoints."""
    other, project = OUTPUTS / "2026-11-21" / "05-00-00", OUTPUTS / "classifier"
    (other / ".hydra").mkdir(parents=True)
    (other / ".hydra" / "config.yaml").write_text("model: resnet\ntrainer: gpu\n")
    (project / "checkpoints").mkdir(parents=True)
    (project / "checkpoints" / "epoch=3.ckpt").touch()
    (project / "metrics.jsonl").touch()
    for path in (other, project, project / "metrics.jsonl"):
        os.utime(path, (1, 1))
    ours = make_run("2026-11-21/05-00-00-2_a", "failed")
    shown = runs("delete=runs", "name=*", "yes=true")
    assert "kept, as no runs of DTL: " in shown and "classifier" in shown and "2026-11-21/05-00-00" in shown
    runs("delete=empty", "yes=true")
    assert other.exists() and project.exists() and not ours.exists()


def test_a_folder_that_cannot_be_deleted_is_reported_and_the_others_are_deleted(runs, monkeypatch):
    first, second = (make_run(f"2026-11-2{n}/05-00-00-2_a", "failed") for n in (1, 2))
    replace = os.replace

    def refusing(source, target):
        if Path(source) == first:
            raise PermissionError(13, "Permission denied", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    shown = runs("delete=empty", "yes=true", code=1)
    assert f"{first}: could not be deleted (Permission denied)." in shown
    assert first.exists() and not second.exists()


def test_a_link_to_a_run_is_no_run(runs, tmp_path):
    real = make_run("2026-11-21/05-00-00-2_a", "failed")
    (OUTPUTS / "2026-11-22").mkdir()
    (OUTPUTS / "2026-11-22" / "link").symlink_to(real.resolve(), target_is_directory=True)
    elsewhere = tmp_path / "precious"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("years of work")
    (real / "data").symlink_to(elsewhere, target_is_directory=True)
    assert listed(runs()) == ["2026-11-21/05-00-00-2_a"]
    runs("delete=empty", "yes=true")
    assert not real.exists() and (elsewhere / "thesis.txt").exists()


@pytest.mark.parametrize("width", [30, 40, 60, 71, 72, 80, 120])
def test_a_narrow_terminal_hides_nothing(width):
    make_run("multirun/2026-11-23/05-43-33-5892/12", "finished", steps=(10,), best=10, loss=1.25)
    make_run("2026-11-21/05-00-00-1_a-long-name-of-a-run", "interrupted", loss=3.5)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    show_runs(Display(console), read_runs(OUTPUTS), 2, RunsConfig())
    lines = stream.getvalue().splitlines()
    for fact in ("finished", "interrupted", "1.2500", "3.5000", "31"):
        assert any(fact in line for line in lines), (fact, lines)
    for label in ("multirun/2026-11-23/05-43-33-5892/12", "2026-11-21/05-00-00-1_a-long-name-of-a-run"):
        assert any(label in line for line in lines)  # in one piece, to be pasted


def test_the_folders_of_runs_and_trials_stay_in_one_piece_in_80_columns():
    make_run("multirun/2026-11-23/05-43-33-25892/12", "finished", steps=(10,), best=10, loss=1.25)
    make_run("2026-11-21/05-00-00-12345_my_pairs", "interrupted", loss=3.5)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    show_runs(Display(console), read_runs(OUTPUTS), 2, RunsConfig())
    for label in ("multirun/2026-11-23/05-43-33-25892/12", "2026-11-21/05-00-00-12345_my_pairs"):
        assert f"\n{label} " in stream.getvalue()


@pytest.mark.parametrize("width", [80, 113])
def test_a_folder_that_does_not_fit_its_column_has_a_line_of_its_own(width):
    name = "a-name-that-needs-most-of-the-line-" + "x" * (width - 80)
    make_run(f"2026-11-21/05-00-00-1_{name}", "interrupted", loss=3.5)
    make_run("2026-11-20/05-00-00-1_b", "finished", steps=(10,), best=10, loss=1.25)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    show_runs(Display(console), read_runs(OUTPUTS), 2, RunsConfig())
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    at = lines.index(f"2026-11-21/05-00-00-1_{name}")
    of_long, of_short = lines[at + 1], next(line for line in lines if line.startswith("2026-11-20/05-00-00-1_b "))
    assert of_long.strip().startswith("interrupted") and of_long.index("3.5000") == of_short.index("1.2500")
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize(("limit", "listed"), [(None, 14), (17, 17)])
def test_the_newest_runs_of_many_stay_on_the_screen(limit, listed):
    for number in range(10, 29):
        make_run(f"2026-11-20/05-00-{number}-1_a", "finished", steps=(10,), best=10, loss=1.25)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, height=23, color_system=None)
    runs = read_runs(OUTPUTS)
    show_runs(Display(console), runs[:limit], len(runs), RunsConfig(limit=limit))
    rows = [line for line in stream.getvalue().splitlines() if " finished " in line]
    assert len(rows) == listed and rows[0].startswith("2026-11-20/05-00-28-1_a")
    assert ("And 5 more runs; limit=19 shows all." in stream.getvalue()) == (limit is None)
