"""Loss on held-out rows. Keeps sums, never logits: memory is flat over any number of batches."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch

from dtl.base.runtime import is_out_of_memory
from dtl.data.batches import IGNORE, Rows
from dtl.model.transformer import TransformerLM
from dtl.training.loss import summed_cross_entropy


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats per target token, and how much was evaluated."""

    loss: float
    n_targets: int
    n_tokens: int = 0  # in the rows: those without a loss too, padding not
    n_bytes: int = 0  # UTF-8 bytes of the targets' text, where it was asked for
    seconds: float = field(default=0.0, compare=False)


@torch.inference_mode()
def evaluate(
    model: TransformerLM,
    rows: Rows,
    batch_size: int,
    max_batches: int | None = None,
    mixed_precision: Callable[[], AbstractContextManager] | None = None,
    token_bytes: np.ndarray | None = None,
) -> Evaluation:
    """Mean cross-entropy over the targets of the first `max_batches` x `batch_size` rows (None = all).

    `token_bytes`, (vocab_size,), are the bytes of text behind each token (`dtl.evaluation.text`). When memory
    does not suffice the batch is halved: the same rows, the same mean.
    """
    device = next(model.parameters()).device
    n_rows = len(rows) if max_batches is None else min(len(rows), max_batches * batch_size)
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    n_targets = n_bytes = start = 0
    began = time.perf_counter()
    try:
        while start < n_rows:
            batch = rows.batch(range(start, min(start + batch_size, n_rows)))
            try:
                with mixed_precision() if mixed_precision else torch.autocast(device.type, enabled=False):
                    on_device = batch.to(device)
                    x_btd = model.hidden(on_device.inputs, on_device.positions, on_device.documents)
                    loss = summed_cross_entropy(model.head, x_btd, on_device.targets, batch.n_targets)
            except Exception as error:
                if not is_out_of_memory(error) or batch_size == 1:
                    raise
                batch_size = max(1, batch_size // 2)
                continue
            total += loss.to(total.device, torch.float64)
            n_targets += batch.n_targets
            if token_bytes is not None:
                n_bytes += int(token_bytes[batch.targets[batch.targets != IGNORE].numpy()].sum())
            start += len(batch.rows)
    finally:
        model.train(was_training)
    loss = (total / max(1, n_targets)).item()  # waits for the device
    seconds = time.perf_counter() - began
    return Evaluation(loss, n_targets, rows.tokens_in(np.arange(n_rows)), n_bytes, seconds)
