"""Trials that a command line means, those that are left, and the sweep that it resumes."""

import io
import json
import re
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from dtl.base.files import write_atomically, write_record
from dtl.base.json_files import sealed
from dtl.checkpoints.listing import step_folder
from dtl.errors import ConfigError
from dtl.run_dir.provenance import write_result
from dtl.run_dir.state import read_run_state
from dtl.run_dir.sweep_records import (
    LOG,
    TRACEBACK,
    SweepFolder,
    SweepRecord,
    Trial,
    TrialState,
    now,
    sweep_identity,
    sweep_to_continue,
)
from dtl.sweeps.grid import compose_all, create_trials, describe_duplicates, trial_overrides
from dtl.sweeps.live import SweepScreen
from dtl.sweeps.search_launch import best_of
from dtl.sweeps.table import Row, Status, failures, find_sweep, rows_of, status_of, trial_table, varying_overrides
from dtl.tracking.metrics import METRICS
from dtl.train import prepare_arguments

STATES = get_args(TrialState)


class Composer:
    """Stands for Hydra: a hash of the sorted overrides, and an error for the value `bad`."""

    def compose(self, overrides):
        if any(override.endswith("=bad") for override in overrides):
            raise ValueError(f"{overrides}: cannot be")
        return "/".join(sorted(overrides)), []

    def explain(self, error, overrides):
        return str(error)


def laid_out(sweep: SweepFolder, wanted: list[list[str]], composer: Composer | None = None) -> list[Trial]:
    return create_trials(sweep, compose_all(wanted, composer or Composer()))


def made(folder: Path, *trials: Trial, arguments: list[str], state: str = "running", started: str = "1") -> SweepFolder:
    sweep = SweepFolder(folder)
    folder.mkdir(parents=True)
    sweep.write(SweepRecord(arguments, state=state, started=f"2026-01-02T03:04:0{started}+00:00"))
    for trial in trials:
        keep(sweep, trial)
    return sweep


def keep(sweep: SweepFolder, trial: Trial) -> None:
    """Write the record of a trial, and the result of one that is finished."""
    sweep.keep(trial)
    if trial.state == "finished":
        write_result(sweep.trial_folder(trial.number), "finished", trial.value, 3, "h")


def test_a_bad_value_refuses_its_trial_alone(tmp_path):
    trials = laid_out(SweepFolder(tmp_path), [["a=1"], ["a=bad"], ["a=3"]])
    assert [trial.state for trial in trials] == ["waiting", "refused", "waiting"]
    assert trials[1].reason == "['a=bad']: cannot be"


def test_a_configuration_has_one_trial_however_often_it_is_asked_for(tmp_path):
    sweep = SweepFolder(tmp_path)
    first = laid_out(sweep, [["a=1", "b=2"], ["b=2", "a=1"], ["a=3"]])
    assert [trial.number for trial in first] == [0, 1]
    first[0].state, first[0].value = "finished", 0.5
    keep(sweep, first[0])
    later = laid_out(sweep, [["a=7"], ["a=3"], ["a=1", "b=2"]])
    assert [(trial.number, trial.state) for trial in later] == [(2, "waiting"), (1, "waiting"), (0, "finished")]


class Fixed(Composer):
    """Composes overrides that failed before: a missing plugin is installed now."""

    def compose(self, overrides):
        return "/".join(sorted(overrides)).replace("bad", "3"), []


@pytest.mark.fault("early-exit")
@pytest.mark.parametrize("result", [None, {"state": "failed", "value": 0.1}, {"state": "running"}, {"value": 0.1}, {}])
def test_a_trial_is_finished_when_its_result_says_so(tmp_path, result):
    """Whatever its record says: an exit code of 0 was enough for earlier versions."""
    sweep = made(tmp_path / "s", Trial(0, ["a=1"], "h", state="finished", value=0.5), arguments=["a=1"])
    (tmp_path / "s" / "0" / "result.json").unlink()
    if result is not None:
        (tmp_path / "s" / "0" / "result.json").write_text(json.dumps(sealed(result)))
    [trial] = sweep.trials()
    assert (trial.state, trial.value) == ("failed", None) and "before its training was finished" in trial.reason
    assert best_of([trial]) is None
    write_result(tmp_path / "s" / "0", "finished", 0.75, 3, "h")
    assert [(trial.state, trial.value) for trial in sweep.trials()] == [("finished", 0.75)]


@pytest.mark.parametrize(
    "damage",
    [
        {"number": "0"}, {"number": True}, {"overrides": "a=1"}, {"overrides": [1]}, {"state": "done"},
        {"value": "low"}, {"attempts": None}, {"started": "yesterday"}, {"ended": "2026-01-02T03:04:05"},
        {"state": ["x"]}, {"exit_code": 0.5}, {"plugins": {}}, {"hash": None}, {"started": 5},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_with_a_value_that_cannot_be_is_none(tmp_path, damage):
    sweep = made(tmp_path / "s", Trial(0, ["a=1"], "h"), arguments=["a=1"])
    file = tmp_path / "s" / "0" / "trial.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    assert sweep.trials() == []
    [again] = laid_out(sweep, [["a=1"]])
    assert again.number == 1  # what is in its folder stays


@pytest.mark.parametrize(
    "damage", [{"arguments": "a"}, {"kind": "other"}, {"sessions": "1"}, {"started": "x"}, {"extra": 1}]
)
def test_a_sweep_with_a_value_that_cannot_be_has_no_record(tmp_path, damage):
    sweep = made(tmp_path / "s", arguments=["a=1"])
    file = tmp_path / "s" / "sweep.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    assert sweep.read() is None


def test_no_trial_takes_a_folder_with_files_of_the_user(tmp_path):
    """hydra.sweep.dir=data with a data/7/ of images: a trial empties its folder before it starts."""
    for name in ("7", "8", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "7" / "digit.png").touch()
    (tmp_path / "8" / ".tmp-trial.json-1-0123abcd").touch()  # a sweep was killed before it wrote the trial's record
    assert [trial.number for trial in laid_out(SweepFolder(tmp_path), [["seed=1"], ["seed=2"]])] == [8, 9]


def test_a_trial_that_was_refused_and_now_composes_is_run_in_its_place(tmp_path):
    sweep = SweepFolder(tmp_path)
    _, bad = laid_out(sweep, [["a=1", "b=2"], ["a=bad", "b=2"]])
    assert (bad.number, bad.state) == (1, "refused")
    later = laid_out(sweep, [["b=2", "a=bad"], ["b=2", "a=1"]], Fixed())  # the same command in another order
    assert [(trial.number, trial.state, trial.reason) for trial in later] == [(1, "waiting", ""), (0, "waiting", "")]
    assert sweep.trials() == later[::-1]
    assert laid_out(sweep, [["a=1", "b=2"], ["a=bad", "b=2"]], Fixed()) == sweep.trials()


def test_a_refused_trial_that_turns_out_to_be_another_one_goes(tmp_path):
    sweep = SweepFolder(tmp_path)
    laid_out(sweep, [["a=bad"], ["a=3"], ["a=1"]])
    later = laid_out(sweep, [["a=bad"], ["a=3"], ["a=1"]], Fixed())
    assert [trial.number for trial in later] == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_trial_that_is_refused_again_keeps_its_row(tmp_path):
    sweep = SweepFolder(tmp_path)
    for _ in range(2):
        (bad,) = laid_out(sweep, [["a=bad"]])
        assert (bad.number, bad.state) == (0, "refused") and len(sweep.trials()) == 1


def test_a_waiting_trial_that_cannot_be_composed_any_more_is_refused_in_its_place(tmp_path):
    sweep = SweepFolder(tmp_path)
    laid_out(sweep, [["a=1"], ["a=bad"]], Fixed())
    assert [trial.state for trial in sweep.trials()] == ["waiting", "waiting"]
    laid_out(sweep, [["a=1"], ["a=bad"]])
    assert [(trial.number, trial.state) for trial in sweep.trials()] == [(0, "waiting"), (1, "refused")]


def test_combinations_that_mean_the_same_are_named():
    def said(*values: str) -> str:
        return describe_duplicates(compose_all([[f"a={value}", "b=2"] for value in values], Fixed()))

    assert said("1", "3", "7") == ""
    assert said("1", "1") == (
        "1 of 2 combinations is the same configuration as another: run once (a=1 b=2, given twice)"
    )
    assert said("1", "1", "7").endswith("(a=1, given twice)")
    assert said("3", "7", "bad", "3", "1") == (
        "2 of 5 combinations are the same configuration as another: run once (a=bad as a=3)"
    )


def test_what_is_left_to_run():
    left = {
        state: (Trial(0, [], "h", state).is_pending(False), Trial(0, [], "h", state).is_pending(True))
        for state in STATES
    }
    assert {state for state, (plain, _) in left.items() if plain} == {"waiting", "running", "interrupted", "killed"}
    again = {state for state, (plain, retried) in left.items() if retried and not plain}
    assert again == {"failed", "refused", "timed out", "hung"}


def test_what_speaks_to_the_sweep_is_not_passed_on():
    given = ["optimizer.lr=1", "sweep.new=true", "hydra.launcher.n_jobs=2", "hydra/launcher=dtl_process"]
    assert trial_overrides([*given, "hydra.searchpath=[x]", "hydra.sweep.dir=x"]) == [
        "optimizer.lr=1",
        "hydra.searchpath=[x]",
    ]


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        (["-m", "b=2", "a=1,2"], True),  # in any order
        (["-m", "a=1,2", "b=2", "hydra.launcher.n_jobs=3"], True),  # more at a time
        (["-m", "a=1,2", "b=2", "sweep.retry_failed=true"], True),
        (["-m", "--config-dir=mine", "a=1,2", "b=2"], True),  # where groups lie, not what is asked
        (["-m", "a=1,2"], False),
        (["-m", "a=2,1", "b=2"], False),
        (["-m", "a=1,2", "b=2", "sweep.new=true"], False),
        (["-m", "a=1,2", "b=2", "hydra.sweep.dir=other"], False),
        (["-m", "a=1,2", "b=2", "hydra/sweeper=dtl_optuna"], False),
    ],
)
def test_the_same_command_goes_on_with_the_sweep(tmp_path, arguments, same):
    folder = tmp_path / "multirun" / "2026-01-02" / "03-04-05-6"
    made(folder, arguments=["a=1,2", "b=2"], state="interrupted")
    assert sweep_to_continue(arguments, tmp_path) == (folder if same else None)


def test_a_finished_sweep_is_started_anew_unless_its_failures_are_wanted_again(tmp_path):
    folder = tmp_path / "multirun" / "2026-01-02" / "03-04-05-6"
    done = Trial(0, ["a=1"], "h", state="finished"), Trial(1, ["a=2"], "g", state="failed")
    sweep = made(folder, *done, arguments=["a=1,2"], state="finished")
    assert sweep_to_continue(["-m", "a=1,2"], tmp_path) is None
    assert sweep_to_continue(["-m", "a=1,2", "sweep.retry_failed=true"], tmp_path) == folder
    sweep.keep(Trial(1, ["a=2"], "g", state="killed"))
    assert sweep_to_continue(["-m", "a=1,2"], tmp_path) == folder


def test_of_several_unfinished_sweeps_the_newest_goes_on(tmp_path):
    for name, started in (("a", "2"), ("b", "3"), ("c", "1")):
        made(tmp_path / "multirun" / "2026-01-02" / name, arguments=["a=1,2"], started=started)
    found = sweep_to_continue(["-m", "a=1,2"], tmp_path)
    assert found is not None and found.name == "b"


def test_words_that_are_no_overrides_do_not_count():
    assert sweep_identity(["-m", "--multirun", "+a=1", "b=2"]) == ["a=1", "b=2"]


def test_a_record_that_is_damaged_is_as_none(tmp_path):
    sweep = made(tmp_path / "s", Trial(0, ["a=1"], "h"), Trial(1, ["a=2"], "g"), arguments=["a=1,2"])
    (sweep.trial_folder(0) / "trial.json").write_text('{"number": 0, "overr')
    assert [trial.number for trial in sweep.trials()] == [1]
    record = json.loads((sweep.trial_folder(1) / "trial.json").read_text()) | {"of a later version": 1}
    del record["dtl_sha256"]  # which the later version wrote of its own
    write_record(sweep.trial_folder(1) / "trial.json", record)
    assert [trial.number for trial in sweep.trials()] == [1]


def test_overrides_that_all_share_are_left_out():
    assert varying_overrides([["m=1", "a=1"], ["m=1", "a=2"]]) == [["a=1"], ["a=2"]]
    assert varying_overrides([["m=1", "a=1"]]) == [["m=1", "a=1"]]


def test_status_tells_what_died_with_its_sweep(tmp_path):
    trials = Trial(0, ["a=1"], "h", state="finished", value=0.25), Trial(1, ["a=2"], "g", state="running")
    sweep = made(tmp_path / "s", *trials, arguments=["a=1,2"])
    status = status_of(sweep)
    shown = _text_of(status)
    assert not status.is_running
    assert "killed; 1 finished, 1 killed" in shown and "0.2500" in shown and "with its sweep" in shown
    assert status.how_to_resume == "The same command resumes it: python -m dtl.train -m a=1,2"


def test_status_tells_what_was_interrupted_with_its_sweep_and_how_fast_the_others_were(tmp_path):
    trials = Trial(0, ["a=1"], "h", state="finished", value=0.25), Trial(1, ["a=2"], "g", state="running")
    sweep = made(tmp_path / "s", *trials, arguments=["a=1,2"])
    write_result(sweep.trial_folder(1), "interrupted", None, 7, "h")
    rows = "".join(json.dumps({"step": n, "speed/tokens_per_second": 1000 * n}) + "\n" for n in (1, 2, 7))
    (sweep.trial_folder(0) / "metrics.jsonl").write_text(rows)
    shown = _text_of(status_of(sweep))
    assert "1 finished, 1 interrupted" in shown and "its sweep was killed" in shown and " 2,000 " in shown, shown


@pytest.mark.parametrize("kind", ["grid", "search"])
def test_status_names_the_trials_that_are_gone(tmp_path, kind):
    trials = [Trial(number, [f"a={number}"], str(number), "finished", value=0.5) for number in range(3)]
    sweep = made(tmp_path / "s", *trials, arguments=["a=0,1,2"], state="finished")
    sweep.write(SweepRecord(["a=0,1,2"], kind, "finished", now(), planned=3))
    assert "missing" not in _text_of(status_of(sweep))
    sweep.remove(trials[1])
    shown = _text_of(status_of(sweep), width=1000)
    assert "1 trial missing, of which the folder or trial.json is gone: 1." in shown
    assert (f"To run it again: python -m dtl.train -m a=0,1,2 hydra.sweep.dir={sweep.path}" in shown) == (
        kind == "grid"
    )
    if kind == "grid":
        keep(sweep, Trial(3, ["a=1"], "1", "finished", value=0.5))
        assert "missing" not in _text_of(status_of(sweep))


@pytest.mark.parametrize("contents", ['{"arguments": 5}', '{"arguments": ["a=1"], "started": "1"}', "{"])
def test_status_tells_that_the_record_of_the_sweep_is_damaged(tmp_path, contents):
    sweep = made(tmp_path / "s", Trial(0, ["a=1"], "h", state="finished", value=0.25), arguments=["a=1,2"])
    (sweep.path / "sweep.json").write_text(contents)
    shown = _text_of(status_of(sweep), width=1000)
    assert "sweep.json was changed or is damaged: its command is lost. To resume it, add" in shown
    assert f"hydra.sweep.dir={sweep.path}" in shown


def test_resume_of_a_sweep_names_the_line_that_resumes_it(tmp_path):
    sweep = made(tmp_path / "s", Trial(0, ["a=1"], "h"), arguments=["a=1,2", "hydra.sweep.dir=elsewhere"])
    with pytest.raises(ConfigError) as caught:
        prepare_arguments([f"resume={sweep.path}"])
    assert f"To resume the sweep:\n  python -m dtl.train -m a=1,2 hydra.sweep.dir={sweep.path}" in str(caught.value)
    (sweep.path / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match=r"give its own command for the dots:\n.*-m \.\.\. hydra.sweep.dir="):
        prepare_arguments([f"resume={sweep.path}"])


def test_a_resumed_sweep_tells_which_trials_have_a_checkpoint(tmp_path):
    trials = [Trial(number, [f"a={number}"], "h", state="interrupted") for number in range(3)]
    sweep = made(tmp_path / "s", *trials, arguments=["a=0,1,2"])
    step_folder(sweep.trial_folder(1), 7).mkdir(parents=True)
    text = io.StringIO()
    SweepScreen(sweep, Console(file=text, width=100)).begin(trials, trials, resumed=True)
    assert "no trial has ended yet; 3 left to run, 1 of them from a checkpoint" in text.getvalue()


@pytest.mark.parametrize(("values", "told"), [((0.25, 0.5), True), ((0.25, None), False)])
def test_the_end_of_a_sweep_says_how_to_compare_what_went_through(tmp_path, values, told):
    trials = [Trial(number, [f"a={number}"], str(number), "finished", value=v) for number, v in enumerate(values)]
    sweep = made(tmp_path / "s", *trials, arguments=["a=0,1"], state="finished")
    text = io.StringIO()
    SweepScreen(sweep, Console(file=text, width=40)).end(trials)
    for shown in (text.getvalue(), _text_of(status_of(sweep), width=40)):
        assert (f"python -m dtl.report runs={sweep.path}" in shown) == told  # in one line


@pytest.mark.parametrize("losses", [(None, None), (None, 0.5)])
def test_trials_without_a_loss_are_compared_by_what_they_were_taught(tmp_path, losses):
    """Where nothing is held out of a few pairs of one's own, no validation loss ranks a grid."""
    trials = [Trial(number, [f"a={number}"], str(number), "finished", value=v) for number, v in enumerate(losses)]
    sweep = made(tmp_path / "s", *trials, arguments=["a=0,1"], state="finished")
    for trial, right in zip(trials, (0.7, 1.0), strict=True):
        folder = sweep.trial_folder(trial.number)
        write_result(folder, "finished", trial.value, 3, "h", **{"exact_match/train": right})
    text = io.StringIO()
    SweepScreen(sweep, Console(file=text, width=200)).end(trials)
    for shown in (text.getvalue(), _text_of(status_of(sweep), width=200)):
        by_taught = losses == (None, None)
        for words in ("train right", "70 %", "100 %", "Nothing was held out", "data.validation_fraction=0.1"):
            assert (words in shown) == by_taught, shown
        assert ("best loss" in shown) == (not by_taught)


def test_a_row_alone_has_what_varies_in_the_whole_grid(tmp_path):
    trials = [Trial(number, ["b=5", f"a={number}"], "h", state="running") for number in (1, 2)]
    sweep = made(tmp_path / "s", *trials, arguments=["b=5", "a=1,2"])
    text = io.StringIO()
    Console(file=text, width=100).print(trial_table(rows_of(sweep, trials[:1]), trials))
    assert "a=1" in text.getvalue() and "b=5" not in text.getvalue()


def test_a_running_trial_shows_its_end_as_a_run_does(tmp_path):
    """In two lines of the table, within bounds, of steps of a minute; one without a step shows what it took so far."""
    sweep = made(tmp_path / "s", *(Trial(n, [f"a={n}"], "h") for n in range(2)), arguments=["a=0,1"])
    rows = []
    for number in range(2):
        trial = Trial(number, [f"a={number}"], "h", state="running", started=now(), attempts=1)
        folder = sweep.trial_folder(number)
        write_atomically(folder / "run.json", json.dumps({"last_step": 100}))
        metrics = "".join(json.dumps({"step": step, "seconds": 60.0 * step}) + "\n" for step in range(1, 41))
        write_atomically(folder / METRICS, metrics if number == 0 else "")
        rows.append(Row(trial, read_run_state(folder)))
    text = io.StringIO()
    Console(file=text, width=80).print(trial_table(rows))
    shown = [line.rstrip() for line in text.getvalue().splitlines()]
    assert re.search(r" 40/100  +ends (\w\w\w )?\d\d:\d\d$", shown[-3]), text.getvalue()
    assert re.fullmatch(r" +in 5\d to 6\d min", shown[-2]) and re.search(r"running  +\d+ s$", shown[-1])
    assert "left" not in text.getvalue()


@pytest.mark.parametrize("n_trials", [1, 2])
def test_a_grid_in_which_nothing_varies_is_told(tmp_path, n_trials):
    trials = [Trial(number, [f"a={number}"], "h") for number in range(n_trials)]
    sweep = made(tmp_path / "s", *trials, arguments=["a=0,1"])
    text = io.StringIO()
    SweepScreen(sweep, Console(file=text, width=100)).begin(trials, trials, resumed=False)
    assert ("no key has several values" in text.getvalue()) == (n_trials == 1)


def test_the_command_of_a_sweep_is_shown_to_its_last_word(tmp_path):
    words = [f"trainer.options.setting_{number}={number}" for number in range(23)]
    sweep = made(tmp_path / "s", Trial(0, [], "h", state="finished"), arguments=[*words, "a=1,2"], state="finished")
    assert f"python -m dtl.train -m {' '.join(words)} a=1,2\n" in _text_of(status_of(sweep), width=40)


def _text_of(status: Status, width: int = 150) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(status.renderable, crop=False)
    return text.getvalue()


def test_a_failure_points_to_a_file_that_is_there_or_says_why(tmp_path):
    sweep = SweepFolder(tmp_path)
    states = {"refused": (), "failed": (LOG, TRACEBACK), "hung": (LOG,), "killed": (), "finished": (LOG,)}
    trials = [Trial(number, [], str(number), state, reason=f"why {number}") for number, state in enumerate(states)]
    for trial in trials:
        keep(sweep, trial)
        for name in states[trial.state]:
            (sweep.trial_folder(trial.number) / name).touch()
    assert failures(sweep, trials) == [
        "trial 0 refused: why 0",
        f"trial 1 failed: {tmp_path / '1' / TRACEBACK}",
        f"trial 2 hung: {tmp_path / '2' / LOG}",
        "trial 3 killed: why 3",
    ]


def test_a_sweep_that_is_not_there_is_said_so(tmp_path):
    outputs = tmp_path / "outputs"
    with pytest.raises(
        ConfigError, match=r"status=latest: there is no sweep under .* Start one: python -m dtl.train -m"
    ):
        find_sweep("latest", outputs)
    with pytest.raises(ConfigError, match=r"there is no such folder\. There is no sweep under .*outputs yet"):
        find_sweep(str(tmp_path / "x"), outputs)
    folder = outputs / "multirun" / "2026-01-02" / "a"
    long = ",".join(map(str, range(101)))  # a hundred words and more, whole
    made(folder, Trial(0, ["a=1"], "h"), arguments=[f"a={long}"])
    assert find_sweep("latest", outputs).path == find_sweep(str(folder), outputs).path == folder
    run = outputs / "2026-01-02" / "c"
    run.mkdir(parents=True)
    (run / "run.json").touch()
    for other, words in {
        outputs: "is not the folder of a sweep",
        folder / "0": f"is inside a sweep. Show it with status={folder}.",
        run: "is a run, not a sweep",
    }.items():
        with pytest.raises(ConfigError) as refused:
            find_sweep(str(other), outputs)
        assert str(refused.value).startswith(f"status={other}: ") and words in str(refused.value)
        assert f"The last sweeps:\n  {folder}  killed  a={long}" in str(refused.value)  # no process has locked it


def test_a_sweep_of_hydras_own_launchers_is_shown_by_its_runs(tmp_path):
    older = made(tmp_path / "multirun" / "2026-01-02" / "a", Trial(0, ["a=1"], "h"), arguments=["a=1,2"])
    folder = tmp_path / "multirun" / "2026-01-02" / "b"
    for number in (0, 1, 10):
        run_dir = folder / str(number)
        run_dir.mkdir(parents=True)
        (run_dir / "run.json").write_text(json.dumps({"overrides": [f"a={number}", "b=2"]}))
        write_result(run_dir, "failed" if number else "finished", 0.25 if number == 0 else None, 3, "h", error="why")
    (folder / "multirun.yaml").touch()
    for spec in ("latest", str(folder)):
        assert find_sweep(spec, tmp_path).path == folder != older.path
    status = status_of(SweepFolder(folder))
    lines = [line.split() for line in _text_of(status).splitlines()]
    assert not status.is_running and status.how_to_resume == ""
    assert lines[0][1:] == ["ended;", "2", "failed,", "1", "finished,", "of", "3"]
    assert lines[2] == ["0", "a=0", "finished", "3", "0.2500", "why"]
    assert lines[4] == ["10", "a=10", "failed", "3", "why"] and lines[6] == ["trial", "10", "failed:", "why"]
    assert sweep_to_continue(["-m", "a=1,2"], tmp_path) == older.path
