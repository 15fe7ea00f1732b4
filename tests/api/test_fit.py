"""Runs from Python: the same as the command's, whatever surrounds them, and nothing of the caller's is changed."""

import json
import random
import re
import shlex
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dtl
import dtl.train
from dtl.base.json_files import read_json
from dtl.data.config import DataConfig
from dtl.errors import CheckpointError, ConfigError, DataError, DTLError
from dtl.model.config import ModelConfig
from dtl.registry import OPTIMIZERS
from dtl.runner.run import Origin
from dtl.training.config import OptimizerConfig, ScheduleConfig, TrainerConfig
from dtl.training.trainer import Trainer


def losses(history: list[dict[str, Any]]) -> list[float]:
    return [row["train/loss"] for row in history if "train/loss" in row]


def weights(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / "best" / "model.safetensors").read_bytes()


def test_a_run_from_python_is_the_commands(config, words, elsewhere, monkeypatch):
    """Weights, metrics and result; and the command in run.json is that of the same run."""
    result = dtl.fit(config, "mine")
    command = shlex.split(read_json(elsewhere / "mine" / "run.json")["rerun"])
    assert command[:3] == ["python", "-m", "dtl.train"] and "seed=11" in command
    for name, arguments in {"typed": words, "again": command[3:]}.items():
        monkeypatch.setattr(sys, "argv", ["dtl-train", *arguments, f"hydra.run.dir={name}"])
        dtl.train.main()
        assert weights(elsewhere / name) == weights(result.run_dir)
        assert losses(dtl.api.runs.read_metrics(elsewhere / name)) == losses(result.history)
        outcome = read_json(elsewhere / name / "result.json")
        assert (outcome["state"], outcome["value"], outcome["step"]) == ("finished", result.best_loss, 7)


def test_the_result(config, elsewhere, monkeypatch):
    result = dtl.fit(config, Path("deep") / "mine")
    monkeypatch.chdir("/")
    assert result.run_dir == elsewhere / "deep" / "mine"
    assert len(losses(result.history)) == 7
    assert result.best_loss == min(row["val/loss"] for row in result.history if "val/loss" in row)
    model, tokenizer = result.model(), result.tokenizer()
    assert not model.training and tokenizer.vocab_size == model.vocab_size == 258
    assert "history" not in repr(result)


def test_without_a_validation_loss(config):
    paused = replace(config, trainer=replace(config.trainer, stop_after_steps=2, eval_every_steps=None))
    result = dtl.fit(paused, "paused")
    assert result.best_loss is None and len(losses(result.history)) == 2
    assert result.model().n_parameters() > 0  # the last one


def test_without_validation_data(config, elsewhere, monkeypatch):
    """Few questions of one's own: the best is the last step, also where the command resumes what Python began."""
    config = replace(config, data=replace(config.data, validation_fraction=None))
    whole = dtl.fit(config, "whole")
    assert whole.best_loss is None and not [row for row in whole.history if "val/loss" in row]
    assert read_json(elsewhere / "whole" / "result.json")["value"] is None
    assert weights(whole.run_dir) == (whole.run_dir / "checkpoints/step-00000007/model.safetensors").read_bytes()
    dtl.fit(replace(config, trainer=replace(config.trainer, stop_after_steps=3)), "mine")
    monkeypatch.setattr(sys, "argv", ["dtl-train", "resume=mine"])
    dtl.train.main()
    assert weights(elsewhere / "mine") == weights(whole.run_dir)
    assert losses(dtl.api.runs.read_metrics(elsewhere / "mine")) == losses(whole.history)


@pytest.mark.parametrize(
    ("word", "what", "fraction"),
    [
        ("trainer.early_stopping_patience=3", "loss to stop by", "null"),
        ("data.metrics=[accuracy]", "text", "0"),
    ],
)
def test_what_needs_validation_data_is_rejected_without(words, word, what, fraction):
    config = dtl.compose(*words, f"data.validation_fraction={fraction}", word)
    with pytest.raises(ConfigError) as rejected:
        dtl.fit(config, "mine")
    key, message = word.partition("=")[0], str(rejected.value)
    assert message.startswith(f"{key}=") and f"no validation {what}" in message
    assert message.endswith("Leave it out, or hold some out: data.validation_fraction=0.1")
    assert not Path("mine").exists()
    # In a recipe it is no word of the command line, as a resumed run has it from its own config.
    with pytest.raises(ConfigError, match=re.escape(word)):
        dtl.train.train(config, "recipe", Origin(overrides=["experiment=own"]))
    setattr(*((config.trainer, "early_stopping_patience", None) if "patience" in key else (config.data, "metrics", [])))
    config.trainer.total_steps = 1
    assert dtl.fit(config, "mine").best_loss is None


def test_steps_are_those_of_a_run(config):
    """Whatever the caller draws, evaluates or trains between two steps."""
    expected = losses(dtl.fit(config, "mine").history)
    steps = dtl.steps(config)
    found = []
    for report in steps:
        found.append(report.loss.item())
        torch.rand(3), random.random(), np.random.rand()
        dtl.loss(steps.model.eval(), steps.data.validation[0])
        if report.step == 3:
            break
    dtl.fit(replace(config, seed=5), "between")
    found += [report.loss.item() for report in steps]
    assert found == expected
    assert steps.trainer.done and steps.optimizers is steps.trainer.optimizers
    assert steps.tokenizer is steps.data.tokenizer
    assert not Path("outputs").exists()


def random_draws() -> list[float]:
    return [random.random(), np.random.rand(), torch.rand(()).item()]


@pytest.mark.parametrize("what", ["fit", "steps", "open_data"])
def test_the_callers_random_states_are_kept(config, what):
    config.trainer.total_steps = 2

    def seeded(do_it: bool) -> list[float]:
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        drawn = random_draws()
        if do_it:
            {"fit": lambda c: dtl.fit(c, "mine"), "steps": lambda c: [*dtl.steps(c)], "open_data": dtl.open_data}[what](
                config
            )
        return drawn + random_draws()

    assert seeded(False) == seeded(True)


def test_two_at_once_in_threads(config):
    """The random state is one for the process: each run is what it is alone."""
    config.trainer.total_steps = 3
    others = {name: replace(config, seed=seed) for seed, name in enumerate(("a", "b", "c"))}
    alone = {name: losses(dtl.fit(other, f"alone-{name}").history) for name, other in others.items()}
    together: dict[str, list[float]] = {}

    def run(name: str) -> None:
        if name == "c":
            together[name] = [report.loss.item() for report in dtl.steps(others[name])]
        else:
            together[name] = losses(dtl.fit(others[name], name).history)

    threads = [threading.Thread(target=run, args=(name,)) for name in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_init_is_obeyed(config, trained):
    """Its weights, its size and its tokenizer; the command in run.json names neither."""
    wide = replace(config, model=ModelConfig(dim=64, dropout=0.5), init=str(trained.run_dir))
    steps = dtl.steps(wide)
    assert (steps.model.config.dim, steps.model.config.dropout) == (16, 0.5)
    for found, saved in zip(steps.model.parameters(), trained.model().parameters(), strict=True):
        torch.testing.assert_close(found, saved)
    result = dtl.fit(wide, "next")
    assert losses(result.history) == [report.loss.item() for report in steps]
    record = read_json(result.run_dir / "run.json")
    assert record["lineage"]["init"] == str(trained.run_dir)
    assert f"init={trained.run_dir}" in record["overrides"] and "model.dropout=0.5" in record["overrides"]
    assert not [word for word in record["overrides"] if word.startswith(("model.dim", "tokenizer"))]
    assert dtl.open_data(replace(wide, tokenizer=dtl.RunConfig().tokenizer)).tokenizer.vocab_size == 258
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        dtl.fit(replace(config, init="nowhere"), "mine")


@pytest.mark.parametrize("train", [dtl.fit, dtl.train.train, lambda config, _: dtl.steps(config)])
def test_resume_is_never_a_new_run(train, config, trained):
    with pytest.raises(ConfigError, match=r"python -m dtl\.train resume="):
        train(replace(config, resume=str(trained.run_dir)), "mine")
    assert not Path("mine").exists()


def test_train_returns_a_float_and_records_its_config(config, elsewhere):
    loss = dtl.train.train(config, "mine")
    assert isinstance(loss, float)
    record = read_json(elsewhere / "mine" / "run.json")
    assert dtl.compose(*record["overrides"]) == config


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": -1}, ConfigError, "seed=-1: must be an integer in"),
        ({"seed": "many"}, ConfigError, "seed=many: must be an integer"),
        ({"data": DataConfig()}, ConfigError, "data.sources={}: name at least one source"),
        ({"data": replace(dtl.RunConfig().data, seq_len=97, path="nowhere.jsonl")}, DataError, "nowhere.jsonl"),
        ({"device": "cuda:7"}, ConfigError, "device=cuda:7: not available"),
        ({"plugins": ["nope"]}, ConfigError, r"plugins=\[nope\]: cannot be imported"),
        ({"optimizer": OptimizerConfig(options={"f": print})}, ConfigError, "optimizer.options.f=<built-in"),
        ({"trainer": TrainerConfig(total_steps="x")}, ConfigError, "trainer.total_steps=x: must be an integer or null"),
    ],
)  # fmt: skip
def test_what_cannot_run_leaves_nothing_behind(change, error, message, config):
    with pytest.raises(error, match=message) as rejected:
        dtl.fit(replace(config, **change), "deep/mine")
    assert isinstance(rejected.value, DTLError) and not Path("deep/mine").exists()


@pytest.mark.parametrize("use", [dtl.steps, dtl.open_data])
def test_steps_and_data_raise_the_same_errors(use, config):
    with pytest.raises(ConfigError, match="seed=many: must be an integer"):
        use(replace(config, seed="many"))
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        use(replace(config, data=replace(config.data, path="nowhere.jsonl")))


def test_a_folder_that_cannot_be_used(config, trained, elsewhere):
    (elsewhere / "file").write_text("mine")
    with pytest.raises(DTLError, match="Choose another folder"):
        dtl.fit(config, "file")
    with pytest.raises(ConfigError, match="contains a run"):
        dtl.fit(config, trained.run_dir)
    with pytest.raises(ConfigError, match=r"dict: not a config\. Compose one"):
        dtl.fit({"seed": 3}, "mine")
    assert (elsewhere / "file").read_text() == "mine"
    (elsewhere / "notes").mkdir()
    (elsewhere / "notes" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="contains other files"):
        dtl.fit(config, "notes")
    for name in ("", "outputs/checkpoints"):
        with pytest.raises(ConfigError, match="give a folder for the run"):
            dtl.fit(config, name)
    assert [path.name for path in (elsewhere / "notes").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("section", "name"), [("", "sed"), ("optimizer", "lrr"), ("trainer.loss", "zloss")])
def test_a_misspelt_attribute_is_named_and_not_ignored(config, section, name):
    owner = config
    for part in filter(None, section.split(".")):
        owner = getattr(owner, part)
    setattr(owner, name, 3)
    with pytest.raises(ConfigError, match=rf"{section}\.?{name}=3: there is no such key\. Did you mean"):
        dtl.steps(config)


@pytest.mark.parametrize(("section", "value"), [("model", "small"), ("optimizer", None), ("trainer.loss", "focal")])
def test_a_section_that_was_replaced_by_a_name_is_an_error(config, section, value):
    owner, _, name = section.rpartition(".")
    setattr(getattr(config, owner) if owner else config, name, value)
    with pytest.raises(ConfigError, match=rf"{section}={value!r}: is a section\. .*dtl\.compose\('{section}="):
        dtl.steps(config)


def test_numbers_of_numpy_are_numbers(config):
    expected = next(dtl.steps(replace(config, seed=7, optimizer=replace(config.optimizer, lr=0.01)))).loss
    config.seed, config.optimizer.lr = np.int64(7), np.logspace(-2, -1, 2)[0]
    assert torch.equal(next(dtl.steps(config)).loss, expected)


def test_a_later_change_of_the_config_has_no_effect(config):
    steps = dtl.steps(config)
    config.trainer.total_steps = 1
    config.data.sources.clear()
    assert len([*steps]) == 7 and steps.config.data.sources


def test_a_part_defined_in_the_session(config):
    """As in a cell of a notebook, edited and run again."""
    cell = """
import torch
from dtl.registry import OPTIMIZERS

@OPTIMIZERS.register("plain")
def plain(model, config):
    return [torch.optim.SGD(model.parameters(), lr={})]
"""
    config = replace(config, optimizer=OptimizerConfig("plain"), schedule=ScheduleConfig(warmup_steps=0))
    with pytest.raises(ConfigError, match="there is no part of this name"):
        dtl.steps(config)
    try:
        for lr in (0.25, 0.5):
            exec(compile(cell.format(lr), f"<cell {lr}>", "exec"), {"__name__": "__main__"})
            assert next(dtl.steps(config)).lr == lr
    finally:
        OPTIMIZERS._parts.pop("plain"), OPTIMIZERS._places.pop("plain")


def test_the_history_is_the_metrics_file(config):
    result = dtl.fit(config, "mine")
    lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    assert result.history == [json.loads(line) for line in lines]


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_holds_in_the_steps_of_a_run_alone(config, tf32, monkeypatch):
    seen: list[bool] = []
    accumulate = Trainer.accumulate_gradients

    def watched(self: Trainer, batches: Any) -> Any:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return accumulate(self, batches)

    monkeypatch.setattr(Trainer, "accumulate_gradients", watched)
    config = replace(config, trainer=replace(config.trainer, tf32=tf32, total_steps=2))
    dtl.fit(config, "mine")
    n_fitted = len(seen)
    for _ in dtl.steps(config):
        assert not torch.backends.cuda.matmul.allow_tf32
    assert seen == [tf32] * 2 * n_fitted and n_fitted > 0
    assert not torch.backends.cuda.matmul.allow_tf32


def test_steps_that_run_out_of_memory_go_on_with_smaller_batches(config, monkeypatch, caplog):
    """And say so once: their caller has no screen."""
    accumulate = Trainer.accumulate_gradients

    def cramped(self: Trainer, batches: Any) -> Any:
        if self.state.step == 1 and max(len(batch.rows) for batch in batches) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return accumulate(self, batches)

    monkeypatch.setattr(Trainer, "accumulate_gradients", cramped)
    steps = dtl.steps(replace(config, trainer=replace(config.trainer, micro_batch_size=3, total_steps=3)))
    assert [report.step for report in steps] == [1, 2, 3]
    said = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert said == ["Step 2: no memory for 3 sequences at once. From here on 1: the same steps."]
    assert steps.trainer.state.sequences_at_once == 1
