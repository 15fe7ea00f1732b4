"""Whole runs that run out of memory in a step or in an evaluation: said in a line, stored, remembered for the next."""

import itertools
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import go_on, outcome, result, start, steps_kept, tiny_config
from torch import Tensor

from dtl.config import RunConfig
from dtl.data.cache import FOLDER, create_cache_folder
from dtl.errors import InterruptedRun, TrainingError
from dtl.model.transformer import TransformerLM
from dtl.run_dir.state import read_run_state
from dtl.runner import memory
from dtl.runner.remaining import EVALUATION
from dtl.tracking.metrics import read_metrics
from dtl.training.trainer import Trainer

HIDDEN = TransformerLM.hidden


@pytest.fixture
def config(pairs: Path, tmp_path: Path) -> RunConfig:
    """A run of 4 sequences at once, with a cache of its own and dropout."""
    config = tiny_config(pairs, micro_batch_size=4, grad_accum_steps=1, total_steps=5)
    return replace(config, data=replace(config.data, cache_dir=str(tmp_path)))


@pytest.fixture
def cramp(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let memory be enough for `fits` sequences, in training or in evaluations, from the n-th forward pass there on."""

    def plant(fits: int, training: bool = True, after: int = 0) -> None:
        n_calls = 0

        def cramped(self: TransformerLM, ids_bt: Tensor, *rest: Any) -> Tensor:
            nonlocal n_calls
            n_calls += self.training == training
            x_btd = HIDDEN(self, ids_bt, *rest)
            if self.training == training and n_calls > after and len(ids_bt) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return x_btd

        monkeypatch.setattr(TransformerLM, "hidden", cramped)

    return plant


@pytest.fixture
def count_sequences(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[bool, list[int]]]:
    """Let all forward passes from there on succeed; their numbers of sequences, True: of those in training."""

    def begin() -> dict[bool, list[int]]:
        tried: dict[bool, list[int]] = {True: [], False: []}

        def counted(self: TransformerLM, ids_bt: Tensor, *rest: Any) -> Tensor:
            tried[self.training].append(len(ids_bt))
            return HIDDEN(self, ids_bt, *rest)

        monkeypatch.setattr(TransformerLM, "hidden", counted)
        return tried

    return begin


def no_cache(config: RunConfig) -> None:
    """Forget what was remembered, so that the next run begins with whole micro-batches."""
    (Path(config.data.cache_dir or "") / FOLDER / memory.FILE).unlink(missing_ok=True)


@pytest.mark.fault("out-of-memory-step")
def test_a_run_goes_on_with_half_the_sequences_at_once_and_the_next_begins_with_them(
    config: RunConfig,
    tmp_path: Path,
    cramp: Callable[..., None],
    count_sequences: Callable[[], dict[bool, list[int]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each says so in a line. The next has another seed and learning rate, as the trials of a sweep; one of another
    length does not begin with them."""
    cramp(2, after=3)
    start(config, tmp_path / "run")
    line = "Step 4: no memory for 4 sequences at once. From here on 2: the same steps."
    assert len(line) <= 80 and capsys.readouterr().out.count(line) == 1
    assert line.partition(": ")[2] in (tmp_path / "run" / "details.txt").read_text()
    assert read_run_state(tmp_path / "run").state == "finished"
    rows = [row for row in read_metrics(tmp_path / "run") if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert {after["tokens"] - before["tokens"] for before, after in itertools.pairwise(rows)} == {4 * 73}

    tried = count_sequences()[True]
    config = replace(config, seed=3, trainer=replace(config.trainer, total_steps=1))
    line = "An earlier run like this had no memory for 4 sequences at once: begins with 2."
    start(replace(config, optimizer=replace(config.optimizer, lr=0.02)), tmp_path / "next")
    assert max(tried) == 2 and capsys.readouterr().out.count(line) == 1
    tried.clear()
    start(replace(config, data=replace(config.data, seq_len=71)), tmp_path / "shorter")
    assert max(tried) == 4 and line not in capsys.readouterr().out


@pytest.mark.fault("eval-out-of-memory")
def test_the_next_run_begins_with_the_halves_of_an_evaluation(
    config: RunConfig,
    tmp_path: Path,
    cramp: Callable[..., None],
    count_sequences: Callable[[], dict[bool, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its steps, which had the memory, begin whole."""
    cramp(1, training=False)
    start(config, tmp_path / "run")
    assert "Validation: no memory for 4 sequences at once. From here on 1: the same loss." in capsys.readouterr().out

    tried = count_sequences()
    start(replace(config, seed=3), tmp_path / "next")  # with its evaluation at the end
    line = "An earlier run like this had no memory for 4 sequences at once in validation: begins with 1 there."
    assert capsys.readouterr().out.replace("\n", " ").count(line) == 1
    assert max(tried[True]) == 4 and max(tried[False]) == 1


@pytest.mark.fault("out-of-memory-step", "stop-in-step")
def test_a_stop_while_a_step_is_taken_again_keeps_what_was_learnt(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step is not in the run; that it had no memory is said, and remembered."""

    def cramped(self: TransformerLM, ids_bt: Tensor, *rest: Any) -> Tensor:
        if self.training and len(ids_bt) > 2:
            signal.raise_signal(signal.SIGINT)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return HIDDEN(self, ids_bt, *rest)

    monkeypatch.setattr(TransformerLM, "hidden", cramped)
    with pytest.raises(InterruptedRun):
        start(config, tmp_path / "run")
    assert "Step 1: no memory for 4 sequences at once. From here on 2" in capsys.readouterr().out
    assert (Path(config.data.cache_dir or "") / FOLDER / memory.FILE).exists()


@pytest.mark.fault("out-of-memory-step", "eval-out-of-memory")
@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("stop", "training"), [(4, True), (2, True), (4, False), (2, False)])
def test_a_run_that_was_split_resumes_exactly(
    config: RunConfig, tmp_path: Path, cramp: Callable[..., None], stop: int, training: bool
) -> None:
    """Stopped before it was split or after: bit for bit the run that went on, losses of validation among it."""
    cramp(1, training, after=2)
    start(config, tmp_path / "whole")
    no_cache(config)
    cramp(1, training, after=2)
    paused = replace(config, trainer=replace(config.trainer, stop_after_steps=stop))
    start(paused, tmp_path / "run")
    go_on(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    state = outcome(tmp_path / "run")["states"][0]["train"]
    assert state["sequences_at_once" if training else "evaluated_at_once"] == 1


@pytest.mark.parametrize("available", [100, 104, 106, None])
def test_what_is_remembered_holds_for_as_much_memory(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, available: int | None
) -> None:
    """Another program may have had the rest of it."""

    def fitting(seq_len: int) -> memory.FittingSequences:
        like = replace(config, data=replace(config.data, seq_len=seq_len))
        return memory.FittingSequences(like, 97, torch.device("cpu"), "fp32", "sdpa")

    monkeypatch.setattr(memory, "attainable_memory", lambda device: 100)
    assert fitting(73).recall() is None
    fitting(73).remember(4)
    fitting(73).remember(1, EVALUATION)
    fitting(71).remember(3)
    fitting(73).remember(2)
    monkeypatch.setattr(memory, "attainable_memory", lambda device: available)
    assert fitting(73).recall() == (None if available == 106 else 2)
    assert fitting(73).recall(EVALUATION) == (None if available == 106 else 1)
    assert fitting(71).recall() == (None if available == 106 else 3)
    assert fitting(67).recall() is None


@pytest.mark.parametrize(("after", "begins_split"), [(97, True), (60, False), (130, True)])
def test_what_is_remembered_holds_for_the_memory_at_the_start(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, after: int, begins_split: bool
) -> None:
    """100 then, and 102 at the next start. CUDA's kernels take a little of it during a run; what another program took
    meanwhile may be there the next time."""

    def fitting(available: int) -> memory.FittingSequences:
        monkeypatch.setattr(memory, "attainable_memory", lambda device: available)
        return memory.FittingSequences(config, 97, torch.device("cpu"), "fp32", "sdpa")

    first = fitting(100)
    monkeypatch.setattr(memory, "attainable_memory", lambda device: after)
    first.remember(2)
    assert fitting(102).recall() == (2 if begins_split else None)


@pytest.mark.parametrize(
    "contents",
    ["", "[]", "{", '{"KEY": 2}', '{"KEY": [2]}', '{"KEY": [0, 9]}', '{"KEY": ["2", 9]}', '{"KEY": [2.5, 9]}'],
)
def test_a_damaged_memory_is_none(config: RunConfig, contents: str) -> None:
    fitting = memory.FittingSequences(config, 97, torch.device("cpu"), "fp32", "sdpa")
    create_cache_folder(fitting.file.parent)
    fitting.file.write_text(contents.replace("KEY", fitting.key))
    assert fitting.recall() is None
    fitting.remember(2)
    assert fitting.recall() == 2


def test_not_more_than_a_thousand_are_kept(config: RunConfig) -> None:
    fitting = memory.FittingSequences(config, 97, torch.device("cpu"), "fp32", "sdpa")
    create_cache_folder(fitting.file.parent)
    fitting.file.write_text(json.dumps({str(n): [1, 1] for n in range(memory.MAX_KEPT + 7)}))
    fitting.remember(2)
    kept = json.loads(fitting.file.read_text())
    assert len(kept) == memory.MAX_KEPT and "7" not in kept and "8" in kept and fitting.recall() == 2


def test_a_cache_that_cannot_be_written_costs_nothing(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "letter.txt").write_text("somebody's")
    fitting = memory.FittingSequences(config, 97, torch.device("cpu"), "fp32", "sdpa")
    fitting.remember(2)
    assert fitting.recall() is None and len(list((tmp_path / FOLDER).iterdir())) == 1


@pytest.mark.fault("out-of-memory-step")
def test_an_update_that_runs_out_of_memory_ends_the_run_at_its_last_checkpoint(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left is never saved; resumed, the run ends like one that had the memory."""
    start(config, tmp_path / "whole")
    update = Trainer.update_weights

    def half(self: Trainer, overflowed: bool) -> None:
        if self.state.step == 4:
            with torch.no_grad():
                self.model.norm.weight.add_(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        update(self, overflowed)

    monkeypatch.setattr(Trainer, "update_weights", half)
    with pytest.raises(TrainingError, match=r"(?s)^Out of memory in step 5, while .*Kept: step-00000004, ") as told:
        start(config, tmp_path / "run")
    assert "Try next" not in str(told.value)
    assert result(tmp_path / "run")["state"] == "failed" and steps_kept(tmp_path / "run")[0] == 4
    monkeypatch.setattr(Trainer, "update_weights", update)
    go_on(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
