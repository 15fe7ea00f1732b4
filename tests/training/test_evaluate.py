"""Laws of evaluation: a mean over targets, whatever the batch size; memory that does not grow."""

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dtl.base.runtime import autocast
from dtl.data.batches import IGNORE, Batch, PackedSequences
from dtl.data.config import MEASURED_OF_TEXT, DataConfig, SourceConfig
from dtl.errors import ConfigError, TrainingError
from dtl.model.transformer import TransformerLM
from dtl.registry import METRICS
from dtl.training.evaluate import evaluate, summed_metrics
from dtl.training.loss import hidden_at_targets


def mean_by_hand(model: TransformerLM, rows: PackedSequences, n_rows: int) -> tuple[float, int]:
    """Token by token, one row at a time."""
    losses: list[float] = []
    model.eval()
    with torch.no_grad():
        for row in range(n_rows):
            batch = rows.batch([row])
            log_probabilities = model(batch.inputs).double().log_softmax(dim=-1)[0]
            for t, target in enumerate(batch.targets[0].tolist()):
                if target != IGNORE:
                    losses.append(-log_probabilities[t, target].item())
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("batch_size", [1, 3, 11, 50])
@pytest.mark.parametrize("block", ["modern", "value_embeddings", "classic"])
def test_is_the_mean_over_all_targets(
    tiny_model: Callable[..., TransformerLM], random_rows: Callable[..., PackedSequences], block: str, batch_size: int
) -> None:
    model, rows = tiny_model(block, randomised=True, dropout=0.5), random_rows()
    expected, n_targets = mean_by_hand(model, rows, len(rows))
    found = evaluate(model, rows, batch_size)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.n_targets == n_targets == rows.n_targets


def test_max_batches_takes_the_first_rows(
    tiny_model: Callable[..., TransformerLM], random_rows: Callable[..., PackedSequences]
) -> None:
    model, rows = tiny_model(randomised=True), random_rows()
    expected, n_targets = mean_by_hand(model, rows, 6)
    found = evaluate(model, rows, batch_size=3, max_batches=2)
    assert (found.loss, found.n_targets) == (pytest.approx(expected, rel=1e-5), n_targets)
    assert evaluate(model, rows, batch_size=3, max_batches=99) == evaluate(model, rows, batch_size=3)


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored_even_by_an_error(
    tiny_model: Callable[..., TransformerLM],
    random_rows: Callable[..., PackedSequences],
    monkeypatch: pytest.MonkeyPatch,
    training: bool,
) -> None:
    model, rows = tiny_model().train(training), random_rows()
    evaluate(model, rows, batch_size=3)
    assert model.training == training

    def fail(*_: Any) -> Tensor:
        raise RuntimeError("some other trouble")

    monkeypatch.setattr(model, "hidden", fail)
    with pytest.raises(RuntimeError, match="some other trouble"):
        evaluate(model, rows, batch_size=3)
    assert model.training == training


def test_draws_no_random_numbers_and_leaves_no_gradients(
    tiny_model: Callable[..., TransformerLM], random_rows: Callable[..., PackedSequences]
) -> None:
    model, before = tiny_model(dropout=0.5).train(), torch.get_rng_state()
    evaluate(model, random_rows(), batch_size=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and not p.is_inference() for p in model.parameters())


def test_mixed_precision_computes_in_it(
    tiny_model: Callable[..., TransformerLM], random_rows: Callable[..., PackedSequences]
) -> None:
    model, rows = tiny_model(randomised=True), random_rows()
    full = evaluate(model, rows, batch_size=3)
    half = evaluate(model, rows, batch_size=3, mixed_precision=lambda: autocast(torch.device("cpu"), "bf16"))
    assert half.loss != full.loss
    assert half.loss == pytest.approx(full.loss, rel=0.05)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_metrics_are_means_over_the_same_targets(
    tiny_model: Callable[..., TransformerLM],
    random_rows: Callable[..., PackedSequences],
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
) -> None:
    """The cross-entropy, registered as a metric, is the loss; accuracy counts by hand."""
    monkeypatch.setitem(
        METRICS._parts, "nats", lambda logits_nv, targets_n: F.cross_entropy(logits_nv, targets_n, reduction="none")
    )
    model, rows = tiny_model(randomised=True), random_rows()
    found = evaluate(model, rows, batch_size, metrics=["accuracy", "nats"])
    assert found.loss == evaluate(model, rows, batch_size).loss
    assert found.metrics["nats"] == pytest.approx(found.loss, rel=1e-6)
    batch = rows.batch(range(len(rows)))
    right = model(batch.inputs, batch.positions, batch.documents).argmax(dim=-1) == batch.targets
    assert found.metrics["accuracy"] == pytest.approx(right[batch.targets != IGNORE].double().mean().item())


@pytest.mark.fault("eval-out-of-memory")
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("can't allocate memory")]
)
@pytest.mark.parametrize("fits", [1, 2, 4])
def test_out_of_memory_halves_the_batch_and_gives_the_same_loss(
    tiny_model: Callable[..., TransformerLM],
    random_rows: Callable[..., PackedSequences],
    monkeypatch: pytest.MonkeyPatch,
    fits: int,
    error: Exception,
) -> None:
    """Also in the middle of the rows, as when another process takes memory meanwhile."""
    model, rows = tiny_model(randomised=True), random_rows()
    expected = evaluate(model, rows, batch_size=4)
    hidden, n_calls, failures = model.hidden, 0, 0

    def cramped(inputs: Tensor, *rest: Any) -> Tensor:
        nonlocal n_calls, failures
        n_calls += 1
        if n_calls > 1 and len(inputs) > fits:
            failures += 1
            raise error
        return hidden(inputs, *rest)

    monkeypatch.setattr(model, "hidden", cramped)
    found = evaluate(model, rows, batch_size=4)
    assert found.n_targets == expected.n_targets
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (expected.at_once, found.at_once) == (None, fits if fits < 4 else None)
    # The next evaluation begins with what fitted: of the same sequences, without an error.
    before = failures
    again = evaluate(model, rows, batch_size=4, max_batches=2, at_once=found.at_once)
    assert failures == before and again.at_once == found.at_once
    assert again.n_targets == rows.batch(range(8)).n_targets


@pytest.mark.fault("eval-out-of-memory")
def test_a_batch_that_did_not_fit_is_free_before_the_next_attempt(
    tiny_model: Callable[..., TransformerLM],
    random_rows: Callable[..., PackedSequences],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its largest tensors are there when the head fails, and the error holds the frames that hold them."""
    held: list[weakref.ref[Tensor]] = []
    model, rows = tiny_model(), random_rows()
    hidden = model.hidden

    def watched(*arguments: Any) -> Tensor:
        alive.append([reference() is not None for reference in held])
        x_btd = hidden(*arguments)
        held.append(weakref.ref(x_btd))
        return x_btd

    def cramped(head: Any, x_nd: Tensor, *rest: Any) -> Tensor:
        if len(held) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return summed_metrics(head, x_nd, *rest)

    alive: list[list[bool]] = []
    monkeypatch.setattr(model, "hidden", watched)
    monkeypatch.setattr("dtl.training.evaluate.summed_metrics", cramped)
    evaluate(model, rows, batch_size=4)
    assert alive[:2] == [[], [False]]


def test_out_of_memory_with_one_row_is_told(
    tiny_model: Callable[..., TransformerLM],
    random_rows: Callable[..., PackedSequences],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model = tiny_model()
    monkeypatch.setattr(model, "hidden", fail)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(model, random_rows(), batch_size=3)


@pytest.mark.fault("eval-memory")
def test_keeps_no_logits(
    tiny_model: Callable[..., TransformerLM],
    random_rows: Callable[..., PackedSequences],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many tensors are alive at the hundredth batch as at the tenth."""
    rows = random_rows(n_rows=101)
    counts: list[int] = []

    def counting(*arguments: Any) -> tuple[Tensor, Tensor]:
        counts.append(sum(type(thing) is Tensor for thing in gc.get_objects()))
        return hidden_at_targets(*arguments)

    monkeypatch.setattr("dtl.training.evaluate.hidden_at_targets", counting)
    monkeypatch.setattr(rows, "batch", Cached(rows).batch)
    model = tiny_model()
    gc.collect()
    gc.freeze()  # what is there already need not be counted again and again
    try:
        evaluate(model, rows, batch_size=1)
    finally:
        gc.unfreeze()
    assert len(counts) == 101
    assert counts[10] == counts[100]


class Cached:
    """The same batch under other row numbers, so that making it is no part of the count."""

    def __init__(self, rows: PackedSequences) -> None:
        self.first = rows.batch([0])

    def batch(self, indices: Sequence[int]) -> Batch:
        return Batch(self.first.inputs, self.first.targets, None, None, tuple(indices))


@pytest.mark.parametrize("metric", [lambda x, y: x, lambda x, y: y.sum(), lambda x, y: 0.5])
def test_a_metric_of_another_shape_is_rejected_and_not_summed(
    tiny_model: Callable[..., TransformerLM],
    random_rows: Callable[..., PackedSequences],
    monkeypatch: pytest.MonkeyPatch,
    metric: Any,
) -> None:
    monkeypatch.setitem(METRICS._parts, "wide", metric)
    with pytest.raises(TrainingError, match=r"data\.metrics=wide: gives .* a value for each target"):
        evaluate(tiny_model(), random_rows(), batch_size=3, metrics=["wide"])


@pytest.mark.parametrize("name", MEASURED_OF_TEXT)
def test_a_metric_cannot_take_the_place_of_dtls_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(METRICS._parts, name, lambda x, y: y)
    with pytest.raises(ConfigError, match=rf"data\.metrics={name}: is always measured"):
        DataConfig(sources={"qa": SourceConfig("qa")}, metrics=[name]).validate()
