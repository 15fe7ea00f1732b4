"""Batches of packed sequences ("rows" in code) as tensors, and the order in which a run sees them.

The order is a pure function of (seed, epoch, step), so that resuming needs no state but these integers.
b batch · t time
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from torch import Tensor

from dtl.data.pack import Packing, count_targets

if TYPE_CHECKING:
    from dtl.data.tokenizers.tokenizer import Tokenizer

IGNORE = -100  # the target of a position without loss


class ModelInputs(TypedDict):
    """Arguments of a model's forward pass, by name. See `Batch`."""

    ids_bt: Tensor
    positions_bt: Tensor | None
    documents_bt: Tensor | None


@dataclass(frozen=True)
class Batch:
    """Sequences for one forward pass; targets are the inputs' successors."""

    inputs: Tensor  # (b, t) int64
    targets: Tensor  # (b, t) int64, IGNORE where there is no loss
    positions: Tensor | None  # (b, t) int64, restarting with each document; None = 0, 1, 2, ...
    documents: Tensor | None  # (b, t) int64: attention only between equal numbers; None = causal only
    rows: tuple[int, ...]  # their numbers in the split, for the report after a crash

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        if torch.device(device).type == "cuda":  # a GPU copies from pinned memory alone while the CPU goes on
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    def model_inputs(self) -> ModelInputs:
        """Return what a model takes: `model(**batch.model_inputs())` are the logits, (b, t, v)."""
        return {"ids_bt": self.inputs, "positions_bt": self.positions, "documents_bt": self.documents}

    @property
    def n_targets(self) -> int:
        """Number of positions with a loss. On a GPU it synchronizes: read it before `to`."""
        return int((self.targets != IGNORE).sum())

    @property
    def max_documents(self) -> int | None:
        """Number of documents, padding included, rounded up to a multiple of 16: few batches then differ in shape.

        On a GPU it synchronizes: read it before `to`. None without documents.
        """
        if self.documents is None:
            return None
        n_documents = len(self.documents) + int((self.documents.diff(dim=1) != 0).sum())
        return -(-n_documents // 16) * 16


def epoch_order(seed: int, epoch: int, n: int, stream: int = 0) -> np.ndarray:
    """Return a permutation of range(n), (n,) int64: a pure function of its arguments that never changes.

    It is the argsort of raw output of Philox, seeded by SeedSequence([seed, epoch, stream]): numpy keeps both stable
    across versions, but not its shuffles. Different streams are independent of each other.
    """
    generator = np.random.Philox(np.random.SeedSequence([seed, epoch, stream]))
    return np.argsort(generator.random_raw(n), kind="stable")


class PackedSequences:
    """The packed sequences of one split of one source, built on demand from the flat array of tokens.

    `loss_mask` (n_tokens,) bool: True = the token counts as a target; None = all. With `document_mask` each span of
    the packing is a document of its own: positions restart and attention stays inside it.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        packing: Packing,
        *,
        pad_id: int,
        loss_mask: np.ndarray | None = None,
        document_mask: bool = False,
    ) -> None:
        self.tokens = tokens
        self.packing = packing
        self.pad_id = pad_id
        self.loss_mask = loss_mask
        self.document_mask = document_mask
        self.n_tokens = packing.n_tokens
        self._mean_length = -(-self.n_tokens // max(1, len(packing.lengths)))  # of a span, rounded up
        self.n_targets = (
            self.n_tokens if loss_mask is None else int(count_targets(packing.starts, packing.lengths, loss_mask).sum())
        )

    def __len__(self) -> int:
        return self.packing.n_sequences

    def __getitem__(self, index: int) -> Batch:
        """Return one sequence as a batch, (1, seq_len); the last one is -1."""
        return self.batch([range(len(self))[index]])

    @property
    def seq_len(self) -> int:
        return self.packing.seq_len

    def tokens_in(self, rows: np.ndarray) -> int:
        """Return the number of tokens in these rows, without padding."""
        return self.packing.select(rows).n_tokens

    def padding_length(self, longest: np.ndarray) -> np.ndarray:
        """Return the length of a document of padding, as of others, in sequences whose longest spans are these.

        A kernel that pads each document to the longest would compute all pairs of a sequence whose padding is one.
        """
        return np.maximum(longest, self._mean_length)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return rows as a batch, (len(indices), seq_len). Raises IndexError for a row that does not exist."""
        return collate([(self, index) for index in indices], tuple(indices))


def collate(picks: Sequence[tuple[PackedSequences, int]], ids: tuple[int, ...]) -> Batch:
    """Return one batch of rows, which may come from several sources of the same layout."""
    first = picks[0][0]
    shape = (len(picks), first.seq_len)
    inputs = np.full(shape, first.pad_id, np.int64)
    targets = np.full(shape, IGNORE, np.int64)
    positions = np.zeros(shape, np.int64) if first.document_mask else None
    documents = np.zeros(shape, np.int64) if first.document_mask else None
    for b, (rows, index) in enumerate(picks):
        packing = rows.packing
        if not 0 <= index < packing.n_sequences:
            raise IndexError(f"row {index} of {packing.n_sequences}")
        at = 0
        spans = range(packing.sequence_offsets[index], packing.sequence_offsets[index + 1])
        for number, span in enumerate(spans):
            start, length = packing.starts[span], packing.lengths[span]
            here = slice(at, at + length)
            inputs[b, here] = rows.tokens[start : start + length]
            targets[b, here] = rows.tokens[start + 1 : start + length + 1]
            if rows.loss_mask is not None:
                targets[b, here][~rows.loss_mask[start + 1 : start + length + 1]] = IGNORE
            if positions is not None and documents is not None:
                positions[b, here] = np.arange(length)
                documents[b, here] = number
            at += length
        if positions is not None and documents is not None:
            # Padding is documents of its own, to which no other attends.
            length = rows.padding_length(packing.lengths[spans.start : spans.stop].max())
            extra, positions[b, at:] = np.divmod(np.arange(first.seq_len - at), length)
            documents[b, at:] = len(spans) + extra
    return Batch(
        torch.from_numpy(inputs),
        torch.from_numpy(targets),
        None if positions is None else torch.from_numpy(positions),
        None if documents is None else torch.from_numpy(documents),
        ids,
    )


class TrainingData:
    """The training rows of one or several sources, and their epochs.

    An epoch is every row of the first source, and from each other source as many rows as contain
    weight / (first weight) times the first source's tokens, taken in turn from that source's own endless
    sequence of permutations; all shuffled together. Rows are numbered across the sources.
    """

    def __init__(self, rows: Mapping[str, PackedSequences], weights: Mapping[str, float]) -> None:
        self.rows = dict(rows)
        names = list(self.rows)
        first = self.rows[names[0]]
        self.sequences_per_source: dict[str, int] = {names[0]: len(first)}  # rows of each source in an epoch
        for name in names[1:]:
            tokens = weights[name] / weights[names[0]] * first.n_tokens
            mean = self.rows[name].n_tokens / len(self.rows[name])
            self.sequences_per_source[name] = max(1, round(tokens / mean))
        self._bounds = np.cumsum([0, *map(len, self.rows.values())])
        self._sources = list(self.rows.values())
        self._cached: tuple[tuple[int, int], np.ndarray] | None = None

    def __len__(self) -> int:
        """Number of different sequences; an epoch may have fewer, or some of them several times."""
        return int(self._bounds[-1])

    def __getitem__(self, index: int) -> Batch:
        """Return one sequence as a batch, (1, seq_len), by its number in the sources, not in training order."""
        return self.batch([range(len(self))[index]])

    @property
    def sequences_per_epoch(self) -> int:
        return sum(self.sequences_per_source.values())

    @property
    def n_tokens(self) -> int:
        """Tokens of an epoch; with several sources exact to about a row, since rows differ in length."""
        return sum(
            round(n * self.rows[name].n_tokens / len(self.rows[name])) for name, n in self.sequences_per_source.items()
        )

    @property
    def n_targets(self) -> int:
        """Tokens of an epoch that count in the loss; exact to the same degree as `n_tokens`."""
        return sum(
            round(n * self.rows[name].n_targets / len(self.rows[name])) for name, n in self.sequences_per_source.items()
        )

    def steps_per_epoch(self, rows_per_step: int) -> int:
        """Return the optimizer steps of an epoch. The last one takes the rows that are left."""
        return -(-self.sequences_per_epoch // rows_per_step)

    def epoch_sequences(self, seed: int, epoch: int) -> np.ndarray:
        """Return the row numbers of an epoch in training order, (sequences_per_epoch,) int64."""
        if self._cached is None or self._cached[0] != (seed, epoch):
            drawn = np.concatenate([self._draw(seed, epoch, k) for k in range(len(self._sources))])
            self._cached = (seed, epoch), drawn[epoch_order(seed, epoch, len(drawn))]
        return self._cached[1]

    def _draw(self, seed: int, epoch: int, k: int) -> np.ndarray:
        """Return the rows of source k for an epoch: the next ones of permutation after permutation of all its rows."""
        n_rows = len(self._sources[k])
        if k == 0:
            return np.arange(n_rows)
        n_drawn = list(self.sequences_per_source.values())[k]
        first = epoch * n_drawn
        cycles = range(first // n_rows, (first + n_drawn - 1) // n_rows + 1)
        sequence = np.concatenate([epoch_order(seed, cycle, n_rows, stream=k) for cycle in cycles])
        return self._bounds[k] + sequence[first % n_rows :][:n_drawn]

    def batch_sequences(self, seed: int, epoch: int, step_in_epoch: int, rows_per_step: int) -> tuple[int, ...]:
        """Return the row numbers of one optimizer step. Raises IndexError for a step beyond the epoch."""
        if not 0 <= step_in_epoch < self.steps_per_epoch(rows_per_step):
            raise IndexError(f"step {step_in_epoch} of {self.steps_per_epoch(rows_per_step)} in an epoch")
        first = step_in_epoch * rows_per_step
        return tuple(self.epoch_sequences(seed, epoch)[first : first + rows_per_step].tolist())

    def micro_batches(
        self, seed: int, epoch: int, step_in_epoch: int, micro_batch_size: int, grad_accum_steps: int
    ) -> list[Batch]:
        """Return the micro-batches of one optimizer step: at least one, none empty, at most `grad_accum_steps`."""
        rows = self.batch_sequences(seed, epoch, step_in_epoch, micro_batch_size * grad_accum_steps)
        return self.in_batches(rows, micro_batch_size)

    def in_batches(self, rows: Sequence[int], size: int) -> list[Batch]:
        """Return rows by number as batches of `size`, in their order; the last one has what is left."""
        return [self.batch(rows[i : i + size]) for i in range(0, len(rows), size)]

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return any rows by number as a batch: for training, the report after a crash, or to look at the data."""
        return collate([self._locate(row) for row in rows], tuple(rows))

    def _locate(self, row: int) -> tuple[PackedSequences, int]:
        k = int(np.searchsorted(self._bounds, row, side="right")) - 1
        if not 0 <= k < len(self._sources):
            raise IndexError(f"row {row} of {self._bounds[-1]}")
        return self._sources[k], row - int(self._bounds[k])

    def seen_after(self, seed: int, epochs: int, rows: int) -> dict[str, int]:
        """Return the tokens of each source in `epochs` complete epochs and in the first `rows` rows of the next one."""
        seen = self.seen_per_source(seed, range(epochs))
        partial = self.epoch_sequences(seed, epochs)[:rows] if rows else np.empty(0, np.int64)
        source_index = np.searchsorted(self._bounds, partial, side="right") - 1
        for k, (name, source) in enumerate(self.rows.items()):
            seen[name] += source.tokens_in(partial[source_index == k] - self._bounds[k])
        return seen

    def seen_per_source(self, seed: int, epochs: Iterable[int]) -> dict[str, int]:
        """Return the tokens of each source in these epochs together."""
        seen = dict.fromkeys(self.rows, 0)
        for epoch in epochs:
            for k, (name, rows) in enumerate(self.rows.items()):
                seen[name] += rows.tokens_in(self._draw(seed, epoch, k) - self._bounds[k])
        return seen


# --- sequences as text to read ----------------------------------------------------------------------------------------

OPEN, CLOSE = "«", "»"  # around the tokens with a loss
BORDER = "\n---\n"  # between documents that do not attend to each other


def readable(tokenizer: "Tokenizer", batch: Batch, row: int = 0) -> str:
    """Return one sequence of a batch as the model sees it, «with the parts that have a loss» marked.

    Special tokens are written by name. A line `---` is a border that attention does not cross; padding is counted.
    The last token is a target only. Invalid UTF-8, as of half a character, is U+FFFD.
    """
    inputs, targets = batch.inputs[row].tolist(), batch.targets[row].tolist()
    documents = [0] * len(inputs) if batch.documents is None else batch.documents[row].tolist()
    end = len(inputs)
    while end and inputs[end - 1] == tokenizer.pad_id and targets[end - 1] == IGNORE:
        end -= 1
    texts = []
    for _, positions in groupby(range(end), key=documents.__getitem__):
        at = list(positions)
        last = targets[at[-1]]
        ids = [*(inputs[i] for i in at), *([last] if last != IGNORE else [])]
        texts.append(_marked(tokenizer, ids, [False, *(targets[i] != IGNORE for i in at)][: len(ids)]))
    padding = f"{tokenizer.backend.id_to_token(tokenizer.pad_id)} x {len(inputs) - end}"
    return BORDER.join([*texts, *([padding] if end < len(inputs) else [])])


def shortened(marked: str, max_length: int) -> str:
    """Return the beginning of a marked text, its last mark closed."""
    if len(marked) <= max_length:
        return marked
    beginning = marked[:max_length].rstrip()
    return f"{beginning} ...{CLOSE if beginning.count(OPEN) > beginning.count(CLOSE) else ''}"


def _marked(tokenizer: "Tokenizer", ids: Sequence[int], has_loss: Sequence[bool]) -> str:
    starts = [i for i in range(len(ids)) if i == 0 or has_loss[i] != has_loss[i - 1]]
    pieces = []
    for start, end in pairwise([*starts, len(ids)]):
        # Decoded after what precedes it: some tokenizers drop the space at the beginning of a text.
        before = tokenizer.backend.decode(ids[:start], skip_special_tokens=False)
        piece = tokenizer.backend.decode(ids[:end], skip_special_tokens=False)[len(before) :]
        pieces.append(f"{OPEN}{piece}{CLOSE}" if has_loss[start] else piece)
    return "".join(pieces)
