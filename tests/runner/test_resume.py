"""A run that was stopped, killed or paused, and went on, ends with the same bits as one that never was."""

import importlib
import itertools
import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import go_on, outcome, result, start, start_or_go_on, steps_kept, tiny_config

import dtl.runner.run
from dtl.checkpoints.listing import best_checkpoint, newest_valid
from dtl.checkpoints.save import save_checkpoint
from dtl.checkpoints.upkeep import publish_best, rotate
from dtl.config import RunConfig, typed
from dtl.data.prepare import prepare_data
from dtl.errors import CheckpointError, ConfigError, InterruptedRun
from dtl.run_dir.state import read_config, read_run_state
from dtl.runner.run import Origin, train
from dtl.tracking import tracker as tracking
from dtl.tracking.metrics import read_metrics
from dtl.training.trainer import Trainer

ADVANCE = Trainer.advance


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, happening: Any) -> None:
    """Have something happen at the end of one optimizer step, before anybody listens."""

    def advance(self: Trainer, *arguments: Any) -> None:
        ADVANCE(self, *arguments)
        if self.state.step == step:
            happening()

    monkeypatch.setattr(Trainer, "advance", advance)


# --- pauses -------------------------------------------------------------------------------------------------------

# An epoch has 5 steps, evaluation comes every 3, saving every 2: at 5 an epoch ends, at 6 both fall together,
# at 7 neither, and at 11 the last step is still to come.
PAUSES = [(1,), (6,), (7,), (11,), (4, 5, 8)]


def with_some(*cases: Any, without: tuple[Any, ...]) -> list[Any]:
    """Each case with validation data, and those of `without` again with none: there the best is the last step."""
    return [*((True, case) for case in cases), *((False, case) for case in without)]


@pytest.mark.quick_cases(2)
@pytest.mark.fault("data-order")
@pytest.mark.parametrize(("pairs", "pauses"), with_some(*PAUSES, without=((4, 5, 8),)), indirect=["pairs"])
def test_paused_and_gone_on_is_never_stopped(
    pairs: Path, uninterrupted: dict[str, Any], tmp_path: Path, pauses: tuple[int, ...]
) -> None:
    config = tiny_config(pairs)
    start(replace(config, trainer=replace(config.trainer, stop_after_steps=pauses[0])), tmp_path / "run")
    assert result(tmp_path / "run")["state"] == "stopped"
    for pause in pauses[1:]:
        go_on(config, tmp_path / "run", stop_after_steps=pause)
        assert result(tmp_path / "run")["step"] == pause == steps_kept(tmp_path / "run")[0]
    go_on(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == uninterrupted


def test_the_tracker_names_a_run_after_how_it_was_started(pairs, tmp_path, monkeypatch) -> None:
    """A trial that goes on is the trial of these values, not the trial of `resume=`."""
    config = tiny_config(pairs)
    named: list[Any] = []

    def open_tracker(*arguments: Any, overrides: list[str], **more: Any) -> Any:
        named.append(overrides)
        return tracking.open_tracker(*arguments, overrides=overrides, **more)

    monkeypatch.setattr(dtl.runner.run, "open_tracker", open_tracker)
    paused = replace(config, trainer=replace(config.trainer, stop_after_steps=3))
    train(paused, tmp_path / "run", Origin(overrides=["optimizer.lr=0.01"]))
    newest = newest_valid(tmp_path / "run")[0].path
    train(config, tmp_path / "run", Origin(overrides=["resume=run"], resume_from=newest))
    assert named == [["optimizer.lr=0.01"], ["optimizer.lr=0.01"]]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_too(pairs: Path, tmp_path: Path, precision: str) -> None:
    config = tiny_config(pairs, precision=precision, total_steps=8)
    start(config, tmp_path / "whole")
    start(tiny_config(pairs, precision=precision, total_steps=8, stop_after_steps=5), tmp_path / "run")
    go_on(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(("recorded", "batches"), [("auto", (4, 1)), ("cpu", (4, 1)), ("amp4060", (8, 1))])
def test_the_machine_is_chosen_once(pairs: Path, tmp_path: Path, recorded: str, batches: tuple[int, int]) -> None:
    """By a new run on a CPU; a resume on one keeps the batches of a run that began elsewhere, or before there was a
    choice, which here are those that the data recommends."""
    given = {"micro_batch_size": None, "grad_accum_steps": None, "total_steps": 2}
    start(tiny_config(pairs, **given, machine=recorded, stop_after_steps=1), tmp_path)
    stored = typed(yaml.safe_load((tmp_path / "config.yaml").read_text()))
    assert stored.trainer.machine == ("cpu" if recorded == "auto" else recorded)
    assert (stored.micro_batch_size, stored.grad_accum_steps) == batches
    go_on(replace(stored, trainer=replace(stored.trainer, machine="auto")), tmp_path)
    stored = typed(yaml.safe_load((tmp_path / "config.yaml").read_text()))
    assert (stored.micro_batch_size, stored.grad_accum_steps) == batches
    assert result(tmp_path)["state"] == "finished"


def test_a_pause_is_never_stored(paused: Path) -> None:
    stored = [paused / "config.yaml", *(paused / "checkpoints").glob("*/config.yaml")]
    assert len(stored) >= 3
    for file in stored:
        assert "stop_after_steps: null" in file.read_text()
        assert "resume: null" in file.read_text()


def test_a_pause_that_is_past_trains_no_step(pairs: Path, paused: Path, tmp_path: Path) -> None:
    """Counted from step 0, not from the resume."""
    shutil.copytree(paused, tmp_path, dirs_exist_ok=True)
    go_on(tiny_config(pairs), tmp_path, stop_after_steps=6)
    assert result(tmp_path) == result(tmp_path) | {"state": "stopped", "step": 6}


def test_going_on_with_a_finished_run_changes_nothing(
    pairs: Path, finished: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert go_on(tiny_config(pairs), tmp_path) == uninterrupted["result"]["value"]
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("pairs", [True, False], indirect=True)
@pytest.mark.parametrize(
    ("before", "after"),
    [({"total_steps": 4}, {"total_steps": 9}), ({"total_steps": None, "max_epochs": 1}, {"max_epochs": 2})],
)
def test_a_longer_run_goes_on_and_stays_longer(
    pairs: Path,
    tmp_path: Path,
    before: dict[str, Any],
    after: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A length given beside resume= is the run's own from then on, in its folder and its checkpoints."""
    config = tiny_config(pairs, **before)
    start(config, tmp_path)
    ended = result(tmp_path)["step"]
    last = 9 if "total_steps" in after else 2 * ended
    capsys.readouterr()
    go_on(config, tmp_path, **after, stop_after_steps=6)
    shown = capsys.readouterr().out
    assert f"Resumed at step {ended}: weights, optimizer state, order of the data and random numbers" in shown
    assert f" New is the schedule of the learning rate: it ends at step {last}, not {ended}; at this step " in shown
    assert "bit for bit" not in shown
    stored = typed(yaml.safe_load((tmp_path / "config.yaml").read_text()))
    assert {key: getattr(stored.trainer, key) for key in after} == after
    go_on(stored, tmp_path)
    assert "Resumed at step 6, bit for bit." in capsys.readouterr().out
    assert result(tmp_path) == result(tmp_path) | {"state": "finished", "step": last}
    assert [row["step"] for row in read_metrics(tmp_path) if "train/loss" in row] == list(range(1, last + 1))
    best = best_checkpoint(tmp_path)
    assert best is not None and best.problem is None
    assert best.step == last or result(tmp_path)["value"] is not None  # without validation data: the last


@pytest.mark.parametrize(("length", "steps"), [({"tokens": 1150}, 4), ({"tokens_per_parameter": 0.3}, 6)])
def test_tokens_are_recorded_as_the_steps_that_reach_them(pairs: Path, tmp_path: Path, length, steps) -> None:
    """The same run as with these steps, bit for bit, stopped or not; its schedule ends with it."""
    asked = tiny_config(pairs, **{"total_steps": None, "stop_after_steps": 2} | length)
    start(asked, tmp_path / "asked")
    own = typed(read_config(tmp_path / "asked"))
    assert own.trainer.lengths == {"total_steps": steps}
    go_on(own, tmp_path / "asked")
    start(tiny_config(pairs, total_steps=steps), tmp_path / "steps")
    assert outcome(tmp_path / "asked") == outcome(tmp_path / "steps")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("limit", "lift"), [("max_epochs", "trainer.max_epochs=null "), ("total_steps", "")])
def test_a_length_that_is_reached_already_names_one_that_is_not(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, lift: str
) -> None:
    config = tiny_config(pairs, **{"total_steps": None, "max_epochs": None, limit: 2})
    start(config, tmp_path)
    at = result(tmp_path)["step"]
    go_on(config, tmp_path, **{limit: 1})
    assert f"at step {at}, and its last is {at // 2}. To train further: " in (shown := capsys.readouterr().out)
    assert f" {lift}trainer.total_steps={2 * at}\n" in shown
    assert read_run_state(tmp_path).last_step == at
    go_on(config, tmp_path, max_epochs=None, total_steps=2 * at)
    assert result(tmp_path)["step"] == 2 * at
    go_on(config, tmp_path, max_epochs=70, total_steps=2 * at)
    ends_first = f"its last is {2 * at}: trainer.total_steps={2 * at} ends it before trainer.max_epochs=70 does. To"
    assert ends_first in " ".join(capsys.readouterr().out.split())


# --- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.quick_cases(2)
@pytest.mark.fault("signal")
@pytest.mark.parametrize(
    "number, step", [(signal.SIGINT, 1), (signal.SIGTERM, 6), (signal.SIGTERM, 7), (signal.SIGINT, 12)]
)
def test_a_signal_ends_the_step_saves_and_the_run_goes_on(
    pairs: Path,
    uninterrupted: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    step: int,
) -> None:
    """Also in the last step: what follows it, the last evaluation, is then done by the resume."""
    at_step(monkeypatch, step, lambda: signal.raise_signal(number))
    with pytest.raises(InterruptedRun, match=rf"Stopped at step {step} and saved.*resume=") as stopped:
        start(tiny_config(pairs), tmp_path)
    assert stopped.value.exit_code == 128 + number
    assert result(tmp_path) == result(tmp_path) | {"state": "interrupted", "step": step}
    assert steps_kept(tmp_path)[0] == step
    monkeypatch.setattr(Trainer, "advance", ADVANCE)
    go_on(tiny_config(pairs), tmp_path)
    assert outcome(tmp_path) == uninterrupted


def signal_at_call(monkeypatch: pytest.MonkeyPatch, function: str, call: int) -> None:
    """Have a signal come during one call of a function, the first of which is call 1."""
    module, _, name = function.rpartition(".")
    original, calls = getattr(importlib.import_module(module), name), itertools.count(1)

    def signalled(*arguments: Any) -> Any:
        if next(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(function, signalled)


@pytest.mark.fault("kill-in-save")
def test_a_checkpoint_that_a_killed_save_had_renamed_is_resumed_at_its_place(
    pairs: Path, paused: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    """Killed as the same step was saved again, between its two renames: `.old` is all that there is of that step."""
    config, run_dir = tiny_config(pairs), tmp_path / "run"
    shutil.copytree(paused, run_dir)
    newest = run_dir / "checkpoints" / "step-00000006"
    newest.rename(newest.with_name(f"{newest.name}.old"))
    go_on(config, run_dir)
    assert outcome(run_dir) == uninterrupted


@pytest.fixture(scope="module")
def outcome_of(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunConfig], dict[str, Any]]:
    """The outcome of a run of the pairs that is never stopped; each is trained once."""
    outcomes: dict[str, dict[str, Any]] = {}

    def trained(config: RunConfig) -> dict[str, Any]:
        if repr(config) not in outcomes:
            run_dir = tmp_path_factory.mktemp("whole")
            start(config, run_dir)
            outcomes[repr(config)] = outcome(run_dir)
        return outcomes[repr(config)]

    return trained


@pytest.mark.quick_cases(1)
@pytest.mark.fault("stop-in-step")
@pytest.mark.parametrize(
    ("pairs", "case"),
    with_some(
        *(("fp32", call, step) for call, step in ((5, 1), (1, 0), (8, 2), (9, 3), (10, 3))),
        *((precision, 8, 2) for precision in ("bf16", "fp16")),
        without=(("fp32", 8, 2), ("fp32", 10, 3)),
    ),
    indirect=["pairs"],
)
def test_a_signal_between_two_micro_batches_undoes_the_step(
    pairs: Path,
    outcome_of: Callable[[RunConfig], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, int, int],
) -> None:
    """Of three in a step, which have drawn their dropout and left their gradients; after the last the step ends. Of the
    steps to which it goes back, 2 alone is saved already."""
    precision, call, step = case
    config = tiny_config(pairs, precision=precision, total_steps=6, micro_batch_size=1, grad_accum_steps=3)
    with monkeypatch.context() as patched, pytest.raises(InterruptedRun, match=f"Stopped at step {step} and saved"):
        signal_at_call(patched, "dtl.training.trainer.hidden_at_targets", call)
        start(config, tmp_path)
    assert steps_kept(tmp_path)[0] == step
    go_on(config, tmp_path)
    assert outcome(tmp_path) == outcome_of(config)


# Four batches, at steps 3, 6, 9 and at the last one, where the evaluation is due, or is that of the run's end.
@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("total_steps", "call", "step"),
    [(12, 4, 3), (12, 1, 3), (12, 5, 6), (12, 14, 12), (11, 14, 11), (11, 5, 6)],
)
def test_a_signal_during_an_evaluation_leaves_it_to_the_resume(
    pairs: Path,
    uninterrupted: dict[str, Any],
    outcome_of: Callable[[RunConfig], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    total_steps: int,
    call: int,
    step: int,
) -> None:
    config = tiny_config(pairs, total_steps=total_steps)
    with monkeypatch.context() as patched, pytest.raises(InterruptedRun, match=f"Stopped at step {step} and saved"):
        signal_at_call(patched, "dtl.training.evaluate.summed_metrics", call)
        start(config, tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path) if "val/loss" in row] == list(range(3, step, 3))
    go_on(config, tmp_path)
    assert outcome(tmp_path) == (uninterrupted if total_steps == 12 else outcome_of(config))


@pytest.mark.fault("two-signals")
def test_a_second_signal_stops_at_once(
    pairs: Path, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 7, twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_config(pairs), tmp_path)
    assert signal.getsignal(signal.SIGINT) == before
    assert result(tmp_path)["state"] == "interrupted"
    assert steps_kept(tmp_path)[0] == 6  # the newest from before
    monkeypatch.setattr(Trainer, "advance", ADVANCE)
    go_on(tiny_config(pairs), tmp_path)
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.fault("kill")
def test_a_kill_between_the_last_save_and_the_result(
    pairs: Path, finished: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "result.json").unlink()
    go_on(tiny_config(pairs), tmp_path)
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.quick_cases(1)
@pytest.mark.fault("kill")
@pytest.mark.parametrize(("pairs", "steps"), [(True, (3, 6)), (False, (2, 4))], indirect=["pairs"])
def test_a_kill_between_saving_and_naming_the_best(
    pairs: Path,
    uninterrupted: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: tuple[int, int],
) -> None:
    """The second checkpoint that says that it is the best is saved; the folder `best` is still the first."""

    class Killed(BaseException):
        pass

    def first_alone(run_dir: Path, checkpoint: Path) -> Path:
        if best_checkpoint(run_dir) is not None:
            raise Killed
        return publish_best(run_dir, checkpoint)

    monkeypatch.setattr("dtl.runner.session.publish_best", first_alone)
    with pytest.raises(Killed):
        start(tiny_config(pairs), tmp_path)
    best = best_checkpoint(tmp_path)
    assert best is not None and best.problem is None and (best.step, steps_kept(tmp_path)[0]) == steps
    monkeypatch.setattr("dtl.runner.session.publish_best", publish_best)
    go_on(tiny_config(pairs), tmp_path, stop_after_steps=steps[1])
    best = best_checkpoint(tmp_path)
    assert best is not None and best.step == steps[1]
    go_on(tiny_config(pairs), tmp_path)
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.slow
@pytest.mark.fault("kill")
def test_a_kill_just_before_any_save(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 8 is saved because a save is due, and evaluated because it is the last: what precedes its second save, the
    row of the evaluation too, happens again."""

    class Killed(BaseException):
        pass

    config = tiny_config(pairs, total_steps=8)
    start(config, tmp_path / "whole")
    n_saves = 6  # at steps 2, 3, 4, 6, 8, and at 8 again
    for left in range(n_saves + 1):
        run_dir, saves_left = tmp_path / str(left), itertools.count(left, -1)

        def save(*arguments: Any, saves_left: Any = saves_left, **options: Any) -> Any:
            if next(saves_left) == 0:
                raise Killed
            return save_checkpoint(*arguments, **options)

        with monkeypatch.context() as patch, pytest.raises(Killed) if left < n_saves else nullcontext():
            patch.setattr("dtl.runner.session.save_checkpoint", save)
            start(config, run_dir)
        start_or_go_on(config, run_dir)
        assert outcome(run_dir) == outcome(tmp_path / "whole")


def test_a_kill_between_the_last_save_and_the_rotation_leaves_no_checkpoint_too_many(
    pairs: Path, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(run_dir: Path, keep: int, written: Path) -> list[str]:
        if steps_kept(run_dir)[0] == 12:
            raise Killed
        return rotate(run_dir, keep, written=written)

    config = tiny_config(pairs)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("dtl.runner.session.rotate", killed)
        start(config, tmp_path)
    before = steps_kept(tmp_path)
    go_on(config, tmp_path)
    best = best_checkpoint(tmp_path)
    assert best is not None and steps_kept(tmp_path) == sorted({12, 10, best.step}, reverse=True) < before
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.quick_cases(1)
@pytest.mark.fault("bit-flip")
@pytest.mark.parametrize("pairs", [True, False], indirect=True)
def test_a_damaged_checkpoint_costs_its_steps_alone(pairs: Path, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    """The run goes on from the one before, and the damaged future is out of the way: it is no step of this run."""
    start(tiny_config(pairs, stop_after_steps=8), tmp_path)
    weights = tmp_path / "checkpoints" / "step-00000008" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    go_on(tiny_config(pairs), tmp_path, stop_after_steps=7)
    assert steps_kept(tmp_path) == [7, 6]
    best = best_checkpoint(tmp_path)
    assert best is not None and best.problem is None and best.step <= 7
    assert (tmp_path / "checkpoints" / "step-00000008.lost").is_dir()
    go_on(tiny_config(pairs), tmp_path)
    assert outcome(tmp_path) == uninterrupted


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.fault("data-changed")
def test_other_data_is_refused(pairs: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_bytes(pairs.read_bytes())
    start(tiny_config(own, stop_after_steps=4), tmp_path / "run")
    before = sorted(file.name for file in (tmp_path / "run").rglob("*"))
    own.write_text(own.read_text().replace("9 squared", "9 Squared"))
    then = json.loads((tmp_path / "run/checkpoints/step-00000004/state.json").read_text())["data_fingerprint"]
    changed = tiny_config(own)
    now = prepare_data(changed.data, changed.tokenizer, changed.seq_len, changed.seed).fingerprint
    with pytest.raises(CheckpointError, match="data has changed") as refused:
        go_on(changed, tmp_path / "run")
    message = str(refused.value)
    assert then != now and f"then {then}" in message and f"now  {now}" in message and "init=" in message
    assert str(own) in message and "The run was not changed" in message
    assert sorted(file.name for file in (tmp_path / "run").rglob("*")) == before
    with pytest.raises(CheckpointError, match="not the data that this run began with, own") as refused:
        go_on(tiny_config(own.rename(tmp_path / "other.jsonl")), tmp_path / "run")
    line = shlex.split(str(refused.value).rpartition("\n")[2])
    assert line[3] == "init=run" and line[-1] == "data.qa.path=other.jsonl"
    assert str(refused.value).startswith(line[-1]) and then not in str(refused.value)
    own.write_bytes(pairs.read_bytes())
    go_on(tiny_config(own), tmp_path / "run")
    assert result(tmp_path / "run")["state"] == "finished"


def test_a_new_run_in_the_folder_of_another_is_refused(pairs: Path, paused: Path, tmp_path: Path) -> None:
    """Its older checkpoints, of later steps, would pass for the new run's."""
    shutil.copytree(paused, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ConfigError, match=r"contains a run.*resume="):
        start(tiny_config(pairs), tmp_path)


@pytest.mark.fault("machine-changed")
def test_another_number_of_threads_is_told(
    pairs: Path, paused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(paused, tmp_path, dirs_exist_ok=True)
    go_on(tiny_config(pairs), tmp_path, stop_after_steps=7)
    assert "Resumed at step 6, bit for bit." in capsys.readouterr().out
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    go_on(tiny_config(pairs), tmp_path, stop_after_steps=8)
    assert "Resumed at step 7, not bit for bit: threads: 1 then, 99 now" in capsys.readouterr().out


def test_the_loss_falls_and_the_best_is_reported(uninterrupted: dict[str, Any]) -> None:
    losses = [row["val/loss"] for row in uninterrupted["rows"] if "val/loss" in row]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert uninterrupted["result"]["value"] == min(losses)


def test_the_environment_is_one_thread() -> None:
    """Or the runs above would not be comparable."""
    assert os.environ["OMP_NUM_THREADS"] == "1"
