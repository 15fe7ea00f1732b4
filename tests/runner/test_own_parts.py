"""Runs with a loss, metrics, fields and a stop criterion of one's own: what is written, and the same after a resume."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import go_on, outcome, result, start, tiny_config
from torch import Tensor, nn

from dtl.checkpoints.load import load_model
from dtl.config import RunConfig
from dtl.data.prepare import prepare_data
from dtl.registry import LOSSES, METRICS, STEP_FIELDS, STOP_CRITERIA
from dtl.runner.screens import objective_rows, precision_name
from dtl.tracking.metrics import read_metrics
from dtl.training.config import LossConfig, TrainerConfig
from dtl.training.evaluate import evaluate
from dtl.training.stopping import Reached
from dtl.training.trainer import Trainer


def focal(head: nn.Module, x_nd: Tensor, targets_n: Tensor, config: LossConfig) -> Tensor:
    log_p_n = head(x_nd).float().log_softmax(dim=-1).gather(1, targets_n[:, None])[:, 0]
    return (-((1 - log_p_n.exp()) ** config.options["gamma"]) * log_p_n).sum()


def margin(logits_nv: Tensor, targets_n: Tensor) -> Tensor:
    best_two_n2 = logits_nv.topk(2, dim=-1).values
    return best_two_n2[:, 0] - best_two_n2[:, 1]


def head_norm(trainer: Trainer) -> dict[str, Tensor | float]:
    return {"head_norm": trainer.model.head.weight.detach().norm(), "head_norm/step": float(trainer.state.step)}


def two_evaluations_below(run: Reached) -> str | None:
    limit = run.options["below"]
    below = sum(row["val/loss"] < limit and row["val/margin"] > 0 for row in run.evaluations)
    return f"Below {limit:g} twice." if below >= 2 else None


@pytest.fixture(scope="module", autouse=True)
def own_parts() -> Iterator[None]:
    parts = [(LOSSES, focal), (METRICS, margin), (STEP_FIELDS, head_norm), (STOP_CRITERIA, two_evaluations_below)]
    for registry, part in parts:
        registry.register(part.__name__)(part)
    yield
    for registry, part in parts:
        del registry._parts[part.__name__], registry._places[part.__name__]


@pytest.fixture(scope="module")
def config(pairs: Path) -> RunConfig:
    """A run that its own criterion ends at step 9, after its second evaluation below a loss."""
    config = tiny_config(
        pairs,
        loss=LossConfig("focal", options={"gamma": 2.0}),
        step_fields=["head_norm"],
        stop_criteria=["two_evaluations_below"],
        stop_options={"below": 4.5},
    )
    return replace(config, data=replace(config.data, metrics=["accuracy", "margin"]))


@pytest.fixture(scope="module")
def run_dir(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    start(config, folder)
    return folder


def test_all_of_them_are_written(run_dir: Path) -> None:
    rows = read_metrics(run_dir)
    steps = [row for row in rows if "train/loss" in row]
    assert [row["head_norm/step"] for row in steps] == [row["step"] - 1 for row in steps]
    assert len({row["head_norm"] for row in steps}) == len(steps)
    evaluations = [row for row in rows if "val/loss" in row]
    assert all(0 <= row["val/accuracy"] <= 1 and row["val/margin"] > 0 for row in evaluations)
    assert {"validation/accuracy", "validation/margin"} <= result(run_dir).keys()


def test_the_criterion_ends_the_run(run_dir: Path) -> None:
    below = [row["step"] for row in read_metrics(run_dir) if row.get("val/loss", 9.0) < 4.5]
    assert len(below) == 2
    assert result(run_dir) == result(run_dir) | {"state": "finished", "step": below[1]}
    assert below[1] < 12


def test_training_minimises_the_loss_and_validation_measures_the_plain_cross_entropy(
    config: RunConfig, run_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    rows = read_metrics(run_dir)
    measured = min(row["val/loss"] for row in rows if "val/loss" in row)
    data = prepare_data(config.data, config.tokenizer, config.seq_len, config.seed)
    model = load_model(run_dir / "checkpoints" / "best")
    assert evaluate(model, data.validation, 2, 50).loss == pytest.approx(measured, rel=1e-6)
    assert rows[0]["train/loss"] < uninterrupted["rows"][0]["train/loss"], "of the same weights"


@pytest.mark.parametrize("pauses", [(1,), (4, 7)])
def test_a_resumed_run_sees_what_was_before(
    config: RunConfig, run_dir: Path, tmp_path: Path, pauses: tuple[int, ...]
) -> None:
    start(replace(config, trainer=replace(config.trainer, stop_after_steps=pauses[0])), tmp_path)
    for pause in pauses[1:]:
        go_on(config, tmp_path, stop_after_steps=pause)
    go_on(config, tmp_path)
    found: dict[str, Any] = outcome(tmp_path)
    assert found == outcome(run_dir)


def test_the_start_screen_names_what_is_minimised_and_what_is_evaluated():
    assert list(objective_rows(TrainerConfig())) == []
    loss = LossConfig("focal", z_loss=0.01, options={"gamma": 3})
    assert list(objective_rows(TrainerConfig(loss=loss, ema_decay=0.9))) == [
        ("loss", "focal, z_loss 0.01, gamma 3; validation measures the plain cross-entropy"),
        ("averages", "of the weights, decay 0.9 per step: these are evaluated and saved as best"),
    ]


@pytest.mark.parametrize(
    ("precision", "device", "tf32", "name"),
    [
        ("fp32", "cuda", True, "fp32 with TF32 products"),
        ("fp32", "cuda", False, "fp32"),
        ("fp32", "cpu", True, "fp32"),
        ("bf16", "cuda", True, "bf16"),
    ],
)
def test_only_exact_products_are_called_fp32(precision, device, tf32, name):
    assert precision_name(precision, torch.device(device), TrainerConfig(tf32=tf32)) == name
