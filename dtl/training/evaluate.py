"""Loss on held-out sequences. Keeps sums, never logits: memory does not grow with the number of batches."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch

from dtl.base.runtime import is_out_of_memory
from dtl.data.batches import IGNORE, PackedSequences
from dtl.model.transformer import TransformerLM
from dtl.training.loss import summed_cross_entropy


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats per target token, and the amount of text evaluated."""

    loss: float
    n_targets: int
    n_tokens: int = 0  # in the sequences, padding excluded
    n_bytes: int = 0  # UTF-8 bytes of the targets' text; 0 without `token_bytes`
    seconds: float = field(default=0.0, compare=False)


@torch.inference_mode()
def evaluate(
    model: TransformerLM,
    rows: PackedSequences,
    batch_size: int,
    max_batches: int | None = None,
    mixed_precision: Callable[[], AbstractContextManager] | None = None,
    token_bytes: np.ndarray | None = None,
) -> Evaluation:
    """Return the mean cross-entropy over the targets of the first `max_batches` x `batch_size` sequences (None = all).

    `token_bytes`, (vocab_size,), are the UTF-8 bytes of each token (`dtl.evaluation.text`). Out of memory, the batch is
    halved: the same sequences, the same mean.
    """
    device = next(model.parameters()).device
    n_rows = len(rows) if max_batches is None else min(len(rows), max_batches * batch_size)
    was_training = model.training
    model.eval()
    # In fp64, which MPS does not have, so that the sum loses no digits over many batches.
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
    loss = (total / max(1, n_targets)).item()  # the only sync of an evaluation, and before the clock stops
    seconds = time.perf_counter() - began
    return Evaluation(loss, n_targets, rows.tokens_in(np.arange(n_rows)), n_bytes, seconds)
