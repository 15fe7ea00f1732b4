"""Documents of all sources, by split: read as far as they are needed, with a validation split for each."""

import math
import random
from collections.abc import Callable, Iterable

from dtl.data.config import DataConfig
from dtl.data.sources import Document, Source, is_sampled, open_sources
from dtl.data.splitting import hold_out
from dtl.errors import DataError

# Prose has fewer characters in a token than this with any tokenizer here (GPT-2 on Wikipedia: 4.6): so much
# text for each token wanted is enough, and reading can stop there.
CHARACTERS_PER_TOKEN = 6
LEAST_CHARACTERS = 2_000_000  # read at least: a small sample is then drawn from more than a file's beginning
DOCUMENTS_BETWEEN_REPORTS = 5000

Progress = Callable[[str], None]
Documents = dict[str, list[Document]]  # split -> documents


def collect_documents(
    config: DataConfig, seq_len: int, seed: int, say: Progress
) -> tuple[dict[str, Source], dict[str, Documents], list[str]]:
    """The sources, their documents by split, and notes for people.

    Of a source that is sampled (`data.max_samples`, or any but the first of a mixture) only about as much
    training text is kept as is wanted of it, drawn by the seed.

    Raises DataError when a source is missing, or has no text for training or for validation.
    """
    sources = open_sources(config, seed)
    documents: dict[str, Documents] = {}
    notes: list[str] = []
    for name, source in sources.items():
        wanted = _characters_wanted(config, name, documents, seq_len)
        of_source = _read(source, config, max(wanted, LEAST_CHARACTERS), notes, say)
        if is_sampled(config, name):
            random.Random(seed).shuffle(of_source["train"])
            of_source["train"] = _take(of_source["train"], wanted, source.origin, say)
        documents[name] = of_source
    return sources, documents, notes


def _characters_wanted(config: DataConfig, name: str, read_before: dict[str, Documents], seq_len: int) -> float:
    """Characters of training text wanted of a source: infinite when all of it is."""
    one_row = seq_len * CHARACTERS_PER_TOKEN
    wanted = config.max_samples * one_row if config.max_samples is not None else math.inf
    if not read_before:
        return wanted
    sources = config.resolved_sources()
    first = next(iter(read_before))
    of_first = sum(len(document.text) for document in read_before[first]["train"])
    share = sources[name].weight / sources[first].weight
    return min(wanted, max(one_row, of_first * share * config.recommended.max_epochs))


def _read(source: Source, config: DataConfig, budget: float, notes: list[str], say: Progress) -> Documents:
    """The documents of a source, empty ones left out, a validation split held out where it has none."""
    splits = source.splits()
    documents: Documents = {"train": _take(splits.get("train", ()), budget, source.origin, say)}
    if not documents["train"]:
        raise DataError(f"{source.origin}: no training text. Found: nothing, or empty texts alone.")
    n_read = len(documents["train"])
    if "validation" in splits:
        documents["validation"] = _take(splits["validation"], math.inf, source.origin, say)
    else:
        train, validation, note = hold_out(documents["train"], config.validation_fraction)
        documents = {"train": train, "validation": validation}
        notes += [f"{source.origin}: {note}"] if note else []
    if "test" in splits:
        documents["test"] = _take(splits["test"], math.inf, source.origin, say)
    for split in ("train", "validation"):
        if not documents[split]:
            raise DataError(
                f"{source.origin}: no document is left for {split}, of {n_read} read. Give at least two "
                f"different documents, or another data.validation_fraction (now {config.validation_fraction})."
            )
    notes += source.notes()
    return documents


def _take(documents: Iterable[Document], budget: float, origin: str, say: Progress) -> list[Document]:
    """Documents that are not empty, up to the one that reaches the budget of characters."""
    taken: list[Document] = []
    n_characters = 0
    for document in documents:
        if not document.text.strip():
            continue
        taken.append(document)
        n_characters += len(document.text)
        if n_characters >= budget:
            break
        if len(taken) % DOCUMENTS_BETWEEN_REPORTS == 0:
            say(f"reading {origin}: {len(taken):,} documents, {n_characters / 1e6:.1f} M characters")
    return taken
