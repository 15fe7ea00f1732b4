"""Loss on held-out rows. Keeps sums, never logits: memory is flat over any number of batches."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from dtl.data.batches import Rows
from dtl.model.transformer import TransformerLM
from dtl.runtime import is_out_of_memory
from dtl.training.loss import summed_cross_entropy


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats per target token."""

    loss: float
    n_targets: int


@torch.inference_mode()
def evaluate(
    model: TransformerLM,
    rows: Rows,
    batch_size: int,
    max_batches: int | None = None,
    mixed_precision: Callable[[], AbstractContextManager] | None = None,
) -> Evaluation:
    """Mean cross-entropy over the targets of the first `max_batches` x `batch_size` rows (None = all).

    When memory does not suffice the batch is halved: the same rows, the same mean.
    """
    device = next(model.parameters()).device
    n_rows = len(rows) if max_batches is None else min(len(rows), max_batches * batch_size)
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    n_targets = start = 0
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
            start += len(batch.rows)
    finally:
        model.train(was_training)
    return Evaluation(loss=(total / max(1, n_targets)).item(), n_targets=n_targets)
