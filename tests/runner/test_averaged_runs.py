"""Runs with averaged weights: what is evaluated and published, and the resume from both kinds of weights."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import go_on, outcome, start, tiny_config
from transformers import AutoModelForCausalLM

from dtl.base.files import read_manifest
from dtl.checkpoints.listing import RAW, inspect, newest_valid
from dtl.checkpoints.load import load_model
from dtl.checkpoints.weights import read_tensors
from dtl.config import RunConfig
from dtl.data.prepare import prepare_data
from dtl.errors import CheckpointError
from dtl.runner.run import Origin, train
from dtl.tracking.metrics import read_metrics
from dtl.training.evaluate import evaluate


@pytest.fixture(scope="module")
def averaged(pairs: Path) -> RunConfig:
    return tiny_config(pairs, ema_decay=0.9)


@pytest.fixture(scope="module")
def whole(averaged: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that was never stopped."""
    run_dir = tmp_path_factory.mktemp("averaged")
    start(averaged, run_dir)
    return run_dir


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("pauses", [(1,), (6,), (7,), (4, 5, 8)])
def test_paused_and_gone_on_is_never_stopped(averaged: RunConfig, whole: Path, tmp_path: Path, pauses: Any) -> None:
    start(replace(averaged, trainer=replace(averaged.trainer, stop_after_steps=pauses[0])), tmp_path)
    for pause in pauses[1:]:
        go_on(averaged, tmp_path, stop_after_steps=pause)
    go_on(averaged, tmp_path)
    assert outcome(tmp_path) == outcome(whole)
    assert f"best/{RAW}" in outcome(whole)["files"]


def test_the_trained_weights_are_those_of_a_run_without_averages(whole: Path, finished: Path) -> None:
    raw = read_tensors([newest_valid(whole)[0].path / RAW])
    plain = read_tensors([newest_valid(finished)[0].path / "model.safetensors"])
    assert raw.keys() == plain.keys() and all(torch.equal(raw[name], plain[name]) for name in raw)


def test_best_holds_the_averages_whose_loss_was_measured(averaged: RunConfig, whole: Path) -> None:
    """For DTL and for Hugging Face; the trained weights are beside them, both in the manifest."""
    best = whole / "checkpoints" / "best"
    manifest = read_manifest(best)
    assert {RAW, "model.safetensors"} <= set(manifest.files)
    step = manifest.facts["step"]
    (measured,) = [row["val/loss"] for row in read_metrics(whole) if row["step"] == step and "val/loss" in row]
    data = prepare_data(averaged.data, averaged.tokenizer, averaged.seq_len, averaged.seed)
    model = load_model(best)
    assert evaluate(model, data.validation, averaged.micro_batch_size, 50).loss == pytest.approx(measured, rel=1e-6)
    twin = AutoModelForCausalLM.from_pretrained(best)
    ids = torch.randint(0, 250, (2, 7))
    torch.testing.assert_close(twin(ids).logits, model(ids), rtol=1e-4, atol=1e-5)


def test_damaged_trained_weights_are_found_and_another_checkpoint_is_used(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    newest = newest_valid(tmp_path / "run")[0].path
    contents = bytearray((newest / RAW).read_bytes())
    contents[-1] ^= 1
    (newest / RAW).write_bytes(contents)
    assert newest_valid(tmp_path / "run")[0].path != newest
    assert RAW in (inspect(newest).problem or "")


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_checkpoint_of_the_other_kind_is_not_resumed(
    pairs: Path, whole: Path, tmp_path: Path, decay: float | None
) -> None:
    """Averages mistaken for trained weights would go on training from elsewhere without a word."""
    run_dir = tmp_path / "run"
    if decay is None:
        shutil.copytree(whole, run_dir)
    else:
        start(tiny_config(pairs, stop_after_steps=4), run_dir)
    config = replace(tiny_config(pairs, ema_decay=decay), resume=str(run_dir))
    with pytest.raises(CheckpointError, match=r"averaged weights, and trainer\.ema_decay"):
        train(config, run_dir, Origin(resume_from=newest_valid(run_dir)[0].path))


def test_a_new_run_begins_with_the_averages(pairs: Path, whole: Path, tmp_path: Path) -> None:
    best = whole / "checkpoints" / "best"
    config = replace(tiny_config(pairs, total_steps=1, ema_decay=0.999), init=str(best))
    config = replace(config, optimizer=replace(config.optimizer, lr=1e-9))
    train(config, tmp_path, Origin(init_from=best))
    new, old = read_tensors([tmp_path / "checkpoints" / "best" / RAW]), read_tensors([best / "model.safetensors"])
    for name in old:
        torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-6)
