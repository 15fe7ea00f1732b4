"""Sequences as text to read: what the model sees, and on which tokens it has a loss."""

from collections.abc import Sequence
from itertools import groupby, pairwise

from dtl.data.batches import IGNORE, Batch
from dtl.data.tokenizers.tokenizer import Tokenizer

OPEN, CLOSE = "«", "»"  # around the tokens with a loss
BORDER = "\n---\n"  # between documents that do not attend to each other


def readable(tokenizer: Tokenizer, batch: Batch, row: int = 0) -> str:
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


def _marked(tokenizer: Tokenizer, ids: Sequence[int], has_loss: Sequence[bool]) -> str:
    starts = [i for i in range(len(ids)) if i == 0 or has_loss[i] != has_loss[i - 1]]
    pieces = []
    for start, end in pairwise([*starts, len(ids)]):
        # Decoded after what precedes it: some tokenizers drop the space at the beginning of a text.
        before = tokenizer.backend.decode(ids[:start], skip_special_tokens=False)
        piece = tokenizer.backend.decode(ids[:end], skip_special_tokens=False)[len(before) :]
        pieces.append(f"{OPEN}{piece}{CLOSE}" if has_loss[start] else piece)
    return "".join(pieces)
