"""Loss and metrics on held-out sequences. Keeps sums, never logits: memory does not grow with the number of batches."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtl.base.runtime import within_memory
from dtl.data.batches import IGNORE, Batch, PackedSequences
from dtl.errors import TrainingError
from dtl.model.transformer import TransformerLM
from dtl.registry import METRICS
from dtl.training.loss import hidden_at_targets, logits_in_chunks

# From logits (n, v), fp32, and targets (n,) to a value of each target, (n,); the evaluation reports their mean.
Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats per target token, means of metrics, and the amount of text evaluated."""

    loss: float
    n_targets: int
    n_tokens: int = 0  # in the sequences, padding excluded
    n_bytes: int = 0  # UTF-8 bytes of the targets' text; 0 without `token_bytes`
    seconds: float = field(default=0.0, compare=False)
    metrics: dict[str, float] = field(default_factory=dict)  # by registered name
    # Sequences of a forward pass at the end, where memory was too little for the batch size; None: it was enough.
    at_once: int | None = field(default=None, compare=False)


@torch.inference_mode()
def evaluate(
    model: TransformerLM,
    rows: PackedSequences,
    batch_size: int,
    max_batches: int | None = None,
    mixed_precision: Callable[[], AbstractContextManager] | None = None,
    token_bytes: np.ndarray | None = None,
    metrics: Sequence[str] = (),
    after_batch: Callable[[int, int], None] = lambda done, total: None,
    at_once: int | None = None,
) -> Evaluation:
    """Return the mean cross-entropy over the targets of the first `max_batches` x `batch_size` sequences (None = all),
    and the means of the registered `metrics`.

    `token_bytes`, (vocab_size,), are the UTF-8 bytes of each token (`dtl.evaluation.text`). `after_batch` gets the
    sequences done and all; it may raise to stop. Out of memory, the batches are halved from there on: the same
    sequences, the same means up to rounding. `at_once` is what an earlier evaluation ended with.
    """
    device = next(model.parameters()).device
    n_rows = len(rows) if max_batches is None else min(len(rows), max_batches * batch_size)
    was_training = model.training
    model.eval()
    totals = torch.zeros(1 + len(metrics), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    n_targets = n_bytes = start = 0
    size = at_once or batch_size

    def sums_of_next(n: int) -> tuple[Batch, Tensor]:
        batch = rows.batch(range(start, min(start + n, n_rows)))
        here = batch.to(device)
        x_nd, targets_n = hidden_at_targets(model.hidden, here, batch.n_targets, batch.max_documents)
        return batch, summed_metrics(model.head, x_nd, targets_n, metrics)

    began = time.perf_counter()
    try:
        # Once, and not for each batch: autocast then casts each weight once.
        with mixed_precision() if mixed_precision else torch.autocast(device.type, enabled=False):
            while start < n_rows:
                (batch, sums), size = within_memory(sums_of_next, size, device)
                totals += sums.to(totals.device, torch.float64)
                n_targets += batch.n_targets
                if token_bytes is not None:
                    n_bytes += int(token_bytes[batch.targets[batch.targets != IGNORE].numpy()].sum())
                start += len(batch.rows)
                after_batch(start, n_rows)
    finally:
        model.train(was_training)
    loss, *means = (totals / max(1, n_targets)).tolist()  # the only sync of an evaluation, and before the clock stops
    seconds = time.perf_counter() - began
    named = dict(zip(metrics, means, strict=True))
    at_once = size if size < batch_size else None
    return Evaluation(loss, n_targets, rows.tokens_in(np.arange(n_rows)), n_bytes, seconds, named, at_once)


def _sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of sums that lose no digits over many small parts: fp64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def summed_metrics(head: nn.Linear, x_nd: Tensor, targets_n: Tensor, metrics: Sequence[str]) -> Tensor:
    """Return the sums of the cross-entropy and of the metrics over the targets, (1 + metrics,) fp64 (MPS: fp32)."""
    sums = torch.zeros(1 + len(metrics), dtype=_sum_dtype(x_nd.device), device=x_nd.device)
    for logits_nv, target_n in logits_in_chunks(head, x_nd, targets_n):
        loss = F.cross_entropy(logits_nv, target_n, reduction="sum")
        sums += torch.stack([loss, *(_summed_metric(name, logits_nv, target_n) for name in metrics)])
    return sums


def _summed_metric(name: str, logits_nv: Tensor, targets_n: Tensor) -> Tensor:
    values_n = METRICS.get(name)(logits_nv, targets_n)
    if not isinstance(values_n, Tensor) or values_n.shape != targets_n.shape:
        given = f"shape {tuple(values_n.shape)}" if isinstance(values_n, Tensor) else f"a {type(values_n).__name__}"
        raise TrainingError(
            f"data.metrics={name}: gives {given}. It must be a tensor with a value for each target, here of shape "
            f"{tuple(targets_n.shape)}."
        )
    return values_n.sum(dtype=_sum_dtype(values_n.device))


@METRICS.register("accuracy")
def accuracy(logits_nv: Tensor, targets_n: Tensor) -> Tensor:
    """1 where the most likely token is the target, else 0, (n,)."""
    return (logits_nv.argmax(dim=-1) == targets_n).float()
