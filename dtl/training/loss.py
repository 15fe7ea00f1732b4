"""Losses by name: what training minimises. Validation measures the plain cross-entropy (dtl/training/evaluate.py).

A loss is a sum over target tokens; the caller divides by their number in the whole optimizer step.

Letters: b batch, t time, d model width, n positions with a target, v vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from dtl.base.runtime import compute_dtype
from dtl.data.batches import IGNORE, Batch
from dtl.model.transformer import TransformerLM
from dtl.registry import LOSSES
from dtl.training.config import LossConfig

# From the model's head, its inputs (n, d) and the targets (n,) to the sum over the targets, fp32, shape (). It gets the
# head and not the logits: these are the largest tensor of a small model, and a loss need not hold all of them at once.
Loss = Callable[[nn.Module, Tensor, Tensor, LossConfig], Tensor]

# Bytes of the logits that are held at once, here and in evaluations: glibc's malloc returns blocks of 32 MiB and more
# to the kernel, which then has to clear them again for the next chunk.
CHUNK_BYTES = 26_000_000
# Logits whose softmax is computed at once on a CPU: 1 MiB in fp32, so that they stay in its cache from the product to
# the gradient. With GPT-2's vocabulary in bf16 the head is then 1.5 times as fast.
CACHED_LOGITS = 1 << 18
TILE = 64  # rows of the head on a GPU are a multiple of this
# Positions that reach the head on a GPU are a multiple of this: questions have another number of targets in each batch,
# and a tensor of another size each time fragments the caching allocator and leaves matrix products with partial tiles.
TARGETS_TILE = 128
# The same in bf16 on a CPU, where oneDNN compiles a kernel for each shape of a product, which takes up to 0.7 ms.
TARGETS_TILE_CPU = 32


def target_places(targets_bt: Tensor, n_targets: int, multiple: int = 1) -> tuple[Tensor | None, Tensor]:
    """Return the places of the targets in the concatenated sequences, (n,), None for all, and these targets, (n,).

    `n_targets` is the number of targets, counted on the CPU beforehand. n is rounded up to a `multiple` or to all
    positions, where these are fewer: the targets of the positions added are IGNORE.
    """
    targets_n = rearrange(targets_bt, "b t -> (b t)")
    n_rows = min(len(targets_n), -(-n_targets // multiple) * multiple)
    if n_rows == len(targets_n):
        return None, targets_n
    # The head is the largest part of a small model (with GPT-2's vocabulary three quarters of the arithmetic of
    # model=small), so positions without a target (questions, padding) skip it: same loss, same gradient.
    # nonzero_static gets its size as an argument: `nonzero` would wait for the GPU to know it.
    with_target = torch.nonzero_static(targets_n != IGNORE, size=n_rows, fill_value=0)
    at_n = rearrange(with_target, "n 1 -> n")
    targets_n = targets_n[at_n]
    if n_rows > n_targets:
        targets_n[n_targets:] = IGNORE
    return at_n, targets_n


def hidden_at_targets(
    hidden: Callable[..., Tensor], here: Batch, n_targets: int, max_documents: int | None, multiple: int = 1
) -> tuple[Tensor, Tensor]:
    """Return what `hidden` of a model gives at the positions with a target, (n, d), and these targets, (n,).

    For a batch on the model's device, whose `n_targets` and `max_documents` were read before the copy.
    """
    at_n, targets_n = target_places(here.targets, n_targets, multiple)
    x = hidden(here.inputs, here.positions, here.documents, None, max_documents, at_n)
    return x.flatten(0, -2), targets_n


def targets_multiple(loss: Loss, device: torch.device, precision: str) -> int:
    """Return the `multiple` of `target_places`; 1 for a user-defined loss, which need not know IGNORE."""
    if loss is not cross_entropy:
        return 1
    if device.type == "cpu":
        return TARGETS_TILE_CPU if precision == "bf16" else 1
    return TARGETS_TILE if device.type == "cuda" else 1


def in_chunks(x_nd: Tensor, targets_n: Tensor, vocab_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield positions and targets in chunks whose logits fit in `CHUNK_BYTES` as fp32; one chunk where all do."""
    n_rows = _chunk_rows(vocab_size, torch.float32)
    return zip(x_nd.split(n_rows), targets_n.split(n_rows), strict=True)


def logits_in_chunks(head: nn.Linear, x_nd: Tensor, targets_n: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (n, v), at least fp32, and their targets (n,), without a gradient. A chunk's logits may take the
    memory of the one before."""
    for logits_nv, target_n in _narrow_logits_in_chunks(head, x_nd, targets_n):
        for tile_nv, tile_n in _tiles(logits_nv, target_n):
            yield at_least_fp32(tile_nv), tile_n


def _narrow_logits_in_chunks(head: nn.Linear, x_nd: Tensor, targets_n: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (n, v) in the precision in which they are computed, and their targets (n,)."""
    if x_nd.is_cuda or type(head) is not nn.Linear or head.bias is not None:
        for chunk_nd, target_n in in_chunks(x_nd, targets_n, head.out_features):
            yield head(chunk_nd), target_n
        return
    precision, n_rows = compute_dtype(x_nd), _chunk_rows(head.out_features, torch.bfloat16)  # as many as in training
    narrow_vd, chunks_nd = head.weight.to(precision), x_nd.to(precision)
    buffer_nv = _rows_in_whole_tiles(chunks_nd, min(n_rows, len(x_nd)), len(narrow_vd))
    for chunk_nd, target_n in zip(chunks_nd.split(n_rows), targets_n.split(n_rows), strict=True):
        yield torch.mm(chunk_nd, narrow_vd.T, out=buffer_nv[: len(chunk_nd)]), target_n


def _tiles(logits_nv: Tensor, targets_n: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and their targets, on a CPU as many at once as stay in its cache."""
    n_rows, vocab_size = logits_nv.shape
    at_once = _power_of_two(CACHED_LOGITS // vocab_size) if logits_nv.device.type == "cpu" else n_rows
    return zip(logits_nv.split(at_once), targets_n.split(at_once), strict=True)


def _chunk_rows(vocab_size: int, dtype: torch.dtype) -> int:
    return max(16, _power_of_two(CHUNK_BYTES // dtype.itemsize // vocab_size))


def _power_of_two(at_most: int) -> int:
    """Return the largest power of two up to a number: matrix products of odd sizes are slower."""
    return 1 << max(0, at_most.bit_length() - 1)


@LOSSES.register("cross_entropy")
def cross_entropy(head: nn.Module, x_nd: Tensor, targets_n: Tensor, config: LossConfig) -> Tensor:
    """Next-token cross-entropy with label smoothing and z-loss, both off by default.

    Label smoothing (Szegedy et al., 2016, arXiv:1512.00567) takes `label_smoothing` of each target's probability and
    shares it among all tokens. The z-loss (Chowdhery et al., 2022, arXiv:2204.02311, section 5) adds
    `z_loss` * log(Z)^2, where Z is the sum of exp(logits): it keeps the logits from drifting. A position whose target
    is IGNORE adds nothing to loss and gradient.
    """
    chunks = list(in_chunks(x_nd, targets_n, head.out_features if isinstance(head, nn.Linear) else 1))
    if len(chunks) == 1:
        return _cross_entropy_of_chunk(head, x_nd, targets_n, config)
    precision = compute_dtype(x_nd)
    if type(head) is nn.Linear and head.bias is None and precision != torch.float16:
        return _ChunkedCrossEntropy.apply(x_nd, head.weight, targets_n, config, precision)
    # fp16's scale must reach the gradient before it is rounded, so the logits are computed again in the backward pass,
    # as they are for a head with a bias.
    losses = [
        checkpoint(_cross_entropy_of_chunk, head, x, targets, config, use_reentrant=False, preserve_rng_state=False)
        for x, targets in chunks
    ]
    return torch.stack(losses).sum()


def _cross_entropy_of_chunk(head: nn.Module, x_nd: Tensor, targets_n: Tensor, config: LossConfig) -> Tensor:
    logits_nv = at_least_fp32(head(x_nd))
    smoothing = config.label_smoothing
    loss = F.cross_entropy(logits_nv, targets_n, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
    if config.z_loss == 0:
        return loss
    log_z_n = logits_nv.logsumexp(dim=-1).masked_fill(targets_n == IGNORE, 0.0)
    return loss + config.z_loss * log_z_n.square().sum()


def at_least_fp32(x: Tensor) -> Tensor:
    """Return a tensor of half precision in fp32, others as they are."""
    return x.float() if x.dtype.itemsize < 4 else x


class _ChunkedCrossEntropy(torch.autograd.Function):
    """`cross_entropy` of a linear head without bias that never holds more than the logits of a chunk.

    The gradients are made in the forward pass, while a chunk's probabilities are there: with p the softmax, they are
    x: (p - target) W and W: (p - target)^T x. Products are computed in `precision`, everything else in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, x_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, config: LossConfig, precision: torch.dtype
    ) -> Tensor:
        need_x, need_weight = ctx.needs_input_grad[:2]
        vocab_size = len(weight_vd)
        n_rows = _chunk_rows(vocab_size, torch.bfloat16)  # in fp32 as many: half of them make each product slower
        with torch.autocast(x_nd.device.type, enabled=False):
            narrow_vd = _in_whole_tiles(weight_vd, precision)
            chunks_nd, dtype = x_nd.to(precision), torch.promote_types(precision, torch.float32)
            total = torch.zeros((), dtype=dtype, device=x_nd.device)
            grad_vd = torch.zeros_like(narrow_vd, dtype=dtype) if need_weight else None
            grad_nd = torch.empty_like(chunks_nd) if need_x else None
            # Of one size, whatever the number of targets, and for all chunks.
            buffer_nv = _rows_in_whole_tiles(chunks_nd, n_rows, len(narrow_vd))
            for at in range(0, len(chunks_nd), n_rows):
                chunk_nd, target_n = chunks_nd[at : at + n_rows], targets_n[at : at + n_rows]
                logits_nv = torch.mm(chunk_nd, narrow_vd.T, out=buffer_nv[: len(chunk_nd)])
                total += _replace_by_gradient(logits_nv[:, :vocab_size], target_n, config, dtype)
                if grad_nd is not None:
                    torch.mm(logits_nv, narrow_vd, out=grad_nd[at : at + n_rows])
                if grad_vd is not None:
                    _add_product(grad_vd, logits_nv.T, chunk_nd)
        ctx.save_for_backward(
            None if grad_nd is None else grad_nd.to(x_nd.dtype), None if grad_vd is None else grad_vd[:vocab_size]
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_nd, grad_vd = ctx.saved_tensors
        (grad,) = grad_outputs
        by_x = None if grad_nd is None else grad_nd * grad
        by_weight = None if grad_vd is None else grad_vd.mul_(grad)
        return by_x, by_weight, None, None, None


def _in_whole_tiles(weight_vd: Tensor, precision: torch.dtype) -> Tensor:
    """Return the head's weight in `precision`, on a GPU with rows of zeros up to a multiple of 64 (`TILE`).

    50,257 is odd: rows of its logits begin at addresses that cuBLAS' fast kernels cannot read. The logits of the zeros
    are 0, as their gradients are.
    """
    missing = _missing_rows(weight_vd)
    if not missing:
        return weight_vd.to(precision)
    vocab_size, width = weight_vd.shape
    padded_vd = weight_vd.new_zeros((vocab_size + missing, width), dtype=precision)
    padded_vd[:vocab_size] = weight_vd
    return padded_vd


def _missing_rows(weight_vd: Tensor) -> int:
    return -len(weight_vd) % TILE if weight_vd.is_cuda else 0


def _rows_in_whole_tiles(like: Tensor, n_rows: int, width: int) -> Tensor:
    """Return an empty matrix (n_rows, width) of the dtype and device of `like`; in fp32 each row begins with a tile.

    MKL writes rows of 50,257 logits 1.6 times as fast where they begin with a cache line (measured on Zen 3, AVX2).
    """
    if torch.compiler.is_compiling():  # dynamo takes no `out=` with gaps between its rows
        return like.new_empty(n_rows, width)
    missing = -width % TILE if like.dtype.itemsize >= 4 else 0
    return like.new_empty(n_rows, width + missing)[:, :width]


def _replace_by_gradient(logits_nv: Tensor, targets_n: Tensor, config: LossConfig, dtype: torch.dtype) -> Tensor:
    """Return the summed loss of some logits, shape () in `dtype`; its gradient takes their place."""
    smoothing, z_loss, vocab_size = config.label_smoothing, config.z_loss, logits_nv.shape[1]
    total = torch.zeros((), dtype=dtype, device=logits_nv.device)
    # On a GPU the answer would have to be waited for, and a graph cannot depend on it.
    may_ignore = targets_n.is_cuda or torch.compiler.is_compiling() or bool((targets_n == IGNORE).any())
    for narrow_nv, target_n in _tiles(logits_nv, targets_n):
        at_target = rearrange(target_n.clamp(min=0) if may_ignore else target_n, "n -> n 1")
        wide_nv = narrow_nv.to(dtype)
        # softmax is one pass over the logits where log_softmax and exp are two. Of the likeliest token it is
        # exp(logit - log Z), and far from 0: log Z follows from it without a loss of digits.
        grad_nv = wide_nv.softmax(dim=-1)
        log_z_n1 = wide_nv.amax(dim=-1, keepdim=True) - grad_nv.amax(dim=-1, keepdim=True).log()
        loss_n1 = log_z_n1 - (1 - smoothing) * wide_nv.gather(1, at_target)
        if z_loss:
            loss_n1 += z_loss * log_z_n1.square()
            grad_nv *= 1 + 2 * z_loss * log_z_n1
        if smoothing:
            loss_n1 -= smoothing * wide_nv.mean(dim=-1, keepdim=True)
            grad_nv -= smoothing / vocab_size
        grad_nv.scatter_add_(1, at_target, log_z_n1.new_full(log_z_n1.shape, smoothing - 1))
        if may_ignore:
            ignored_n1 = rearrange(target_n == IGNORE, "n -> n 1")
            loss_n1.masked_fill_(ignored_n1, 0.0)
            grad_nv.masked_fill_(ignored_n1, 0.0)
        total += loss_n1.sum()
        narrow_nv.copy_(grad_nv)
    return total


def _add_product(sum_vd: Tensor, left_vn: Tensor, right_nd: Tensor) -> None:
    """Add a matrix product to `sum_vd`, which may be of higher precision than the factors."""
    if left_vn.dtype == sum_vd.dtype:
        sum_vd.addmm_(left_vn, right_nd)
        return
    # On a CPU in parts that stay in its cache: the conversion of the whole product would need memory for it.
    n_rows = len(sum_vd) if sum_vd.is_cuda else 4096
    for part_vd, part_vn in zip(sum_vd.split(n_rows), left_vn.split(n_rows), strict=True):
        part_vd += part_vn @ right_nd


def mean_cross_entropy(model: TransformerLM, batch: Batch) -> Tensor:
    """Return the mean of -log p(target) over the targets of a batch, in nats, fp32, shape (), with its gradient.

    The batch may have any layout and be on any device; it is copied to the model's. 0 for a batch without targets.
    """
    n_targets, max_documents = batch.n_targets, batch.max_documents  # on a GPU counting them would wait for it
    here = batch.to(next(model.parameters()).device)
    x_nd, targets_n = hidden_at_targets(model.hidden, here, n_targets, max_documents)
    return cross_entropy(model.head, x_nd, targets_n, LossConfig()) / max(1, n_targets)
