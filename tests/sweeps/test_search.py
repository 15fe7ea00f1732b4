"""The laws of a search, without a process: totals, kills, prunings, hours, what is told of which trial."""

import json
import math
import random
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState

from dtl.run_dir.sweep_records import Trial
from dtl.sweeps.pool import Budget, ListSource
from dtl.sweeps.search import Losses
from dtl.sweeps.search_study import JOURNAL, NUMBER, REASON
from dtl.tracking.metrics import METRICS

sys.path.insert(0, str(Path(__file__).parent))
from searching import EVALUATIONS, SPACE, Killed, Overrides, Stage, loss_of, write_rows


def told(stage):
    """Of each folder what Optuna knows: state and value."""
    return {number: (trial.state, trial.value) for number, trial in stage.study.numbers().items()}


def test_a_search_runs_its_total_and_each_configuration_once(tmp_path):
    stage = Stage(tmp_path, n_trials=7)
    stage.play()
    trials = stage.sweep.trials()
    assert stage.started == [trial.number for trial in trials] == list(range(7))
    assert len({tuple(trial.overrides) for trial in trials}) == 7
    assert all(trial.overrides[0] == "fixed=1" for trial in trials)
    assert told(stage) == {trial.number: (TrialState.COMPLETE, trial.value) for trial in trials}

    more = Stage(tmp_path, n_trials=11)
    assert more.open().left() == 4
    more.play(more.search)
    assert more.started == [7, 8, 9, 10]

    again = Stage(tmp_path, n_trials=11)
    again.play()
    assert again.started == []


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_seed_decides_what_is_proposed(tmp_path, sampler):
    def proposed(name, **settings):
        stage = Stage(tmp_path / name, n_trials=13, sampler=sampler, **settings)
        stage.play()
        return [trial.overrides for trial in stage.sweep.trials()]

    first = proposed("a", seed=3)
    assert proposed("b", seed=3) == first
    assert proposed("c", seed=4) != first


@pytest.mark.slow
def test_tpe_learns_and_random_does_not(tmp_path):
    def late_losses(sampler):
        found = []
        for seed in range(3):
            stage = Stage(tmp_path / f"{sampler}{seed}", n_trials=23, sampler=sampler, seed=seed)
            stage.play()
            found += [trial.value for trial in stage.sweep.trials()[13:]]
        return sum(found) / len(found)

    assert late_losses("tpe") < late_losses("random") - 0.2


@pytest.mark.quick_cases(1)
@pytest.mark.fault("sweep-kill")
@pytest.mark.parametrize("pruner", ["none", "median", "asha"])
def test_a_search_that_is_killed_at_any_moment_ends_as_one_that_was_not(tmp_path, pruner):
    settings = {"n_trials": 9, "pruner": pruner, "startup_trials": 3}
    whole = Stage(tmp_path / "whole", **settings)
    whole.play()
    if pruner != "none":
        assert {trial.state for trial in whole.sweep.trials()} == {"finished", "pruned"}

    for tick in range(1, whole.ticks + 1, 7):
        folder = tmp_path / f"killed-{tick}"
        for moment in (tick, 7, math.inf):  # two kills
            stage = Stage(folder, **settings)
            try:
                stage.play(ticks=moment)
            except Killed:
                assert not all(trial.done for trial in stage.sweep.trials())
        assert stage.table() == whole.table()
        assert told(stage) == told(whole)


@pytest.mark.fault("sweep-kill")
def test_a_journal_cut_at_any_byte_loses_no_trial_and_runs_none_twice(tmp_path):
    rng = random.Random(5)
    for attempt in range(12):
        stage = Stage(tmp_path / str(attempt), n_trials=7, pruner="asha")
        with pytest.raises(Killed):
            stage.play(ticks=13)
        journal = stage.folder / JOURNAL
        data = journal.read_bytes()
        journal.write_bytes(data[: rng.randrange(len(data))] if attempt else b"")
        ended = {trial.number for trial in stage.sweep.trials() if trial.done}
        assert ended

        on = Stage(stage.folder, n_trials=7, pruner="asha")
        on.play()
        trials = on.sweep.trials()
        assert len(trials) == len({tuple(trial.overrides) for trial in trials}) == 7
        assert not ended & set(on.started) and all(trial.done for trial in trials)
        of_optuna = told(on)
        assert of_optuna.keys() == {trial.number for trial in trials}
        for trial in trials:
            state = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}[trial.state]
            assert of_optuna[trial.number][0] == state
            assert trial.state == "pruned" or of_optuna[trial.number][1] == trial.value


def test_a_damaged_journal_is_kept_aside(tmp_path):
    stage = Stage(tmp_path, n_trials=5)
    stage.play()
    journal = tmp_path / JOURNAL
    data = bytearray(journal.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 90] = bytes(90)
    journal.write_bytes(data)
    on = Stage(tmp_path, n_trials=6)
    on.play()
    assert on.started == [5] and len(told(on)) == 6
    damaged = (tmp_path / f"{JOURNAL}.damaged").read_bytes()
    assert bytes(data).endswith(damaged) and bytes(90) in damaged


def test_failures_are_told_with_their_reason_and_count(tmp_path):
    def outcome(trial):
        return {1: ("failed", "the loss is nan"), 3: ("timed out", "took too long")}.get(trial.number, ("finished", ""))

    stage = Stage(tmp_path, n_trials=5, outcome=outcome)
    stage.play()
    assert stage.started == list(range(5))
    frozen = stage.study.numbers()
    assert [frozen[number].state == TrialState.FAIL for number in range(5)] == [False, True, False, True, False]
    assert frozen[1].user_attrs[REASON] == "the loss is nan" and frozen[3].user_attrs[REASON] == "took too long"

    again = Stage(tmp_path, n_trials=5)
    again.play(again.open(retry_failed=True))
    assert sorted(again.started) == [1, 3]
    assert {trial.state for trial in again.sweep.trials()} == {"finished"}
    assert {state for state, _ in told(again).values()} == {TrialState.COMPLETE}


def test_what_cannot_be_composed_fails_at_once(tmp_path):
    refuses_small = Overrides(lambda overrides: "model=small" in overrides)
    stage = Stage(tmp_path, n_trials=12, composer=refuses_small)
    stage.play()
    trials = stage.sweep.trials()
    refused = {trial.number for trial in trials if trial.state == "refused"}
    assert len(trials) == 12 and refused and not refused & set(stage.started)
    assert {trial.number for trial in stage.told} == set(range(12))
    assert all(told(stage)[number][0] == TrialState.FAIL for number in refused)
    assert stage.study.numbers()[min(refused)].user_attrs[REASON] == "no such key"


def test_what_was_refused_and_can_be_composed_now_is_tried_again_in_its_place(tmp_path):
    refuses_small = Overrides(lambda overrides: "model=small" in overrides)
    stage = Stage(tmp_path, n_trials=12, composer=refuses_small)
    stage.play()
    refused = {trial.number for trial in stage.sweep.trials() if trial.state == "refused"}
    still = Stage(tmp_path, n_trials=12, composer=refuses_small)
    still.play(still.open(retry_failed=True))
    assert still.started == [] and still.table() == stage.table()

    again = Stage(tmp_path, n_trials=12)
    again.play(again.open(retry_failed=True))
    assert set(again.started) == refused
    trials = again.sweep.trials()
    assert len(trials) == 12 and {trial.state for trial in trials} == {"finished"}
    assert told(again) == {trial.number: (TrialState.COMPLETE, trial.value) for trial in trials}


def test_what_was_refused_runs_when_it_is_proposed_again(tmp_path):
    space = ["model=choice(small,medium)"]
    Stage(tmp_path, space, n_trials=2, composer=Overrides(lambda overrides: "model=small" in overrides)).play()
    on = Stage(tmp_path, space, n_trials=3)
    on.play()
    assert len(on.started) == 1 and {trial.state for trial in on.sweep.trials()} == {"finished"}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_configuration_is_not_run_twice_its_value_is_told(tmp_path, n_jobs):
    stage = Stage(tmp_path, space=["model=choice(small,medium,large)"], n_trials=10)
    stage.play(n_jobs=n_jobs)
    assert sorted(stage.started) == [0, 1, 2]
    assert "tried already" in stage.search.why_ended
    values = {tuple(trial.overrides): trial.value for trial in stage.sweep.trials()}
    complete = [trial for trial in stage.study.trials() if trial.state == TrialState.COMPLETE]
    assert len(complete) > 3
    assert all(trial.value == values[(f"model={trial.params['model']}",)] for trial in complete)


def test_several_at_a_time_reach_the_total(tmp_path):
    stage = Stage(tmp_path, n_trials=11, pruner="median", startup_trials=2)
    stage.play(n_jobs=3)
    assert len(stage.sweep.trials()) == 11 == len(told(stage))
    assert TrialState.RUNNING not in {state for state, _ in told(stage).values()}


# --- pruning --------------------------------------------------------------------------------------------------------


def of_quality(overrides, evaluation):
    """Losses by the number in the overrides alone."""
    return float(overrides[0].partition("=")[2]) + 1 / evaluation


def test_asha_stops_at_its_rungs_and_the_value_there_counts(tmp_path):
    rungs = {"min_resource": 2, "reduction_factor": 3}
    stage = Stage(tmp_path, space=["x=interval(0,1)"], curve=of_quality, n_trials=17, pruner="asha", **rungs)
    stage.play()
    losses_at = {2: [], 6: []}
    for trial in stage.sweep.trials():  # the rule of the paper, trial by trial
        state, n = "finished", stage.evaluations(trial)
        for rung, losses in losses_at.items():
            if rung > EVALUATIONS or state == "pruned":
                continue
            losses.append(of_quality(trial.overrides, rung))
            if sorted(losses).index(losses[-1]) >= max(1, len(losses) // 3):
                state = "pruned"
                assert n == rung
                assert told(stage)[trial.number] == (TrialState.PRUNED, losses[-1])
        assert trial.state == state
    assert {trial.state for trial in stage.sweep.trials()} == {"finished", "pruned"}


def test_median_waits_for_startup_trials_and_warmup(tmp_path):
    stage = Stage(
        tmp_path, space=["x=interval(0,1)"], curve=of_quality, n_trials=23, pruner="median", startup_trials=4, warmup=2
    )
    stage.play()
    trials = stage.sweep.trials()
    through = [of_quality(trial.overrides, 1) for trial in trials[:4]]
    assert all(trial.state == "finished" for trial in trials[:4])
    for trial in trials[4:]:
        x = of_quality(trial.overrides, 1)
        bad = x > sorted(through)[len(through) // 2] if len(through) % 2 else None
        if bad is not None:
            assert (trial.state == "pruned") == bad
        if trial.state == "pruned":
            assert stage.evaluations(trial) == 3
        else:
            through.append(x)
    assert any(trial.state == "pruned" for trial in trials)


@pytest.mark.parametrize("looks_at_every", [1, 2, EVALUATIONS])
def test_every_evaluation_is_reported_in_order_however_seldom_one_looks(tmp_path, looks_at_every):
    stage = Stage(tmp_path, n_trials=3)
    stage.looks_at_every = looks_at_every
    stage.play()
    for number, frozen in stage.study.numbers().items():
        overrides = stage.sweep.trials()[number].overrides
        expected = {n: loss_of(overrides, n) for n in range(1, EVALUATIONS + 1)}
        assert list(frozen.intermediate_values.items()) == list(expected.items())


def test_losses_are_followed_through_torn_lines_and_a_run_that_goes_on(tmp_path):
    losses = Losses(tmp_path)
    assert losses.new() == []
    write_rows(tmp_path, [1, 2], lambda n: n / 2)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 6, "val/lo')
    assert losses.new() == [(1, 0.5), (2, 1.0)]
    assert losses.new() == []
    with (tmp_path / METRICS).open("a") as file:
        file.write('ss": null}\nno row\n[1]\n')
    assert losses.new() == [(3, None)]
    (tmp_path / "anew").mkdir()
    write_rows(tmp_path / "anew", [1, 2, 3, 4, 5], lambda n: n / 2)
    (tmp_path / "anew" / METRICS).rename(tmp_path / METRICS)  # rows beyond the checkpoint are written anew
    assert losses.new() == [(n, n / 2) for n in range(1, 6)]


def test_rows_that_come_again_are_reported_once(tmp_path):
    stage = Stage(tmp_path, n_trials=1)
    with pytest.raises(Killed):
        stage.play(ticks=4)
    file = tmp_path / "0" / METRICS
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))  # back to its first checkpoint
    on = Stage(tmp_path, n_trials=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optuna.Trial.report", _refusing_repeats(patch))
        on.play()
    assert list(on.study.numbers()[0].intermediate_values) == [1, 2, 3, 4, 5]


def _refusing_repeats(patch):
    import optuna

    original = optuna.Trial.report

    def report(self, value, step):
        assert step not in self.storage.get_trial(self._trial_id).intermediate_values
        original(self, value, step)

    return report


# --- hours ----------------------------------------------------------------------------------------------------------


def test_no_trial_starts_that_cannot_end_in_time(tmp_path):
    stage = Stage(tmp_path, n_trials=50, hours=1.0, seconds=7 * 60)
    stage.play()
    assert len(stage.started) == 8 and stage.time <= 3600  # 8 x 7 minutes; the ninth would end after 63
    assert "hours" in stage.search.why_ended and stage.search.left() == 42

    same = Stage(tmp_path, n_trials=50, hours=1.0)
    same.used = stage.budget.used
    same.play()
    assert same.started == []

    longer = Stage(tmp_path, n_trials=50, hours=1.25, seconds=7 * 60)
    longer.used = stage.budget.used
    longer.play()
    assert longer.started == [8, 9]


def test_hours_leave_room_for_the_confirmation(tmp_path):
    stage = Stage(tmp_path, n_trials=50, hours=1.0, seconds=7 * 60)
    stage.play(stage.open(rounds_after=3))
    assert len(stage.started) == 5
    runs = [Trial(100 + n, ["lr=0.1", f"seed={n}"], str(n), role="confirm") for n in range(5)]
    stage.play(ListSource(runs, stage.told.append, stage.budget))
    assert len(stage.started) == 8 and stage.time <= 3600


@pytest.mark.parametrize(("last_step", "pruned"), [(2, False), (4, True), (None, True)])
def test_a_trial_is_not_pruned_after_its_last_step(tmp_path, monkeypatch, last_step, pruned):
    monkeypatch.setattr("dtl.sweeps.search.report", lambda *_: True)
    stage = Stage(tmp_path / "s", pruner="asha")
    search = stage.open()
    trial = search.next(0)
    folder = stage.sweep.trial_folder(trial.number)
    write_rows(folder, [1], lambda n: 2.5)  # to step 2
    (folder / "run.json").write_text(json.dumps({"last_step": last_step}))
    assert (search.look(trial) is not None) == pruned


def test_the_slowest_trial_decides_and_pruned_ones_say_nothing():
    clock = iter([0.0, 1800.0, 1801.0])
    times = {"started": "2026-11-23T01:00:00+00:00"}
    fast = Trial(0, [], "a", state="finished", ended="2026-11-23T01:10:00+00:00", **times)
    slow = Trial(1, [], "b", state="finished", ended="2026-11-23T01:30:00+00:00", **times)
    pruned = Trial(2, [], "c", state="pruned", ended="2026-11-23T02:00:00+00:00", **times)
    budget = Budget(1.0, 0.0, [slow, fast, pruned], clock=lambda: next(clock))
    assert budget.allows()  # 30 minutes are left
    assert not budget.allows()
    assert Budget(None, 1e9, [slow]).allows(after=9)


# --- what a kill leaves between two writes ----------------------------------------------------------------------------


def test_a_proposal_without_a_folder_gets_one(tmp_path):
    stage = Stage(tmp_path, n_trials=3)
    search = stage.open()
    asked = stage.study.ask()  # killed before its folder was made
    overrides = stage.space.overrides(asked.params)
    del search
    on = Stage(tmp_path, n_trials=3)
    on.play()
    assert on.started == [0, 1, 2] and on.sweep.trials()[0].overrides == overrides
    assert len(on.study.trials()) == 3


def test_a_trial_that_was_being_pruned_does_not_run_on(tmp_path):
    stage = Stage(tmp_path, n_trials=2, pruner="asha", reduction_factor=2, curve=lambda overrides, n: worse(overrides))
    worse.calls = {}
    search = stage.open()
    stage.play(_first(search, 1))
    trial = search.next(0)
    stage._start(trial)
    write_rows(tmp_path / "1", [1], lambda n: 9.0)
    assert "asha" in search.look(trial)  # killed now
    on = Stage(tmp_path, n_trials=2, pruner="asha", reduction_factor=2)
    on.play()
    assert on.started == [] and on.sweep.trials()[1].state == "pruned"
    assert told(on)[1] == (TrialState.PRUNED, 9.0)


def worse(overrides):
    return worse.calls.setdefault(tuple(overrides), 1.0 + len(worse.calls))


class _first:
    """The first trials of a source alone."""

    def __init__(self, source, n):
        self.source, self.n = source, n
        self.look, self.ended = source.look, source.ended

    def next(self, running):
        self.n -= 1
        return self.source.next(running) if self.n >= 0 else None


def test_interrupted_trials_stay_open(tmp_path):
    outcomes = {1: ("interrupted", "the sweep was stopped")}
    stage = Stage(tmp_path, n_trials=3, outcome=lambda trial: outcomes.get(trial.number, ("finished", "")))
    stage.play()
    assert told(stage)[1][0] == TrialState.RUNNING
    on = Stage(tmp_path, n_trials=3)
    assert on.open().left() == 1
    on.play(on.search)
    assert on.started == [1] and told(on)[1][0] == TrialState.COMPLETE
    assert NUMBER in on.study.numbers()[1].user_attrs and len(SPACE) == 3
