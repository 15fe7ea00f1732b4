"""Texts of all sources, by split: read as far as needed, cleaned, without duplicates, a part held out.

Each text is read once and cached under a hash of everything that shapes it, code included.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dtl.base.progress import Progress
from dtl.data.cache import Cache, cache_folder, key_of
from dtl.data.code_key import code_of
from dtl.data.config import SPLITS, DataConfig
from dtl.data.read import read_source
from dtl.data.sources import HubReader, Source, SourcePlan, plan_sources
from dtl.data.stored import DiskWriter, MemoryWriter, Texts, read_texts, sample
from dtl.data.tokenizers.prompt import Prompt, with_prompt
from dtl.registry import SOURCES

# Prose has fewer characters per token than this with every tokenizer here (GPT-2 on Wikipedia: 4.6), so reading can
# stop after so many characters for each token wanted.
CHARACTERS_PER_TOKEN = 6
MIN_CHARACTERS = 2_000_000  # always read: a small sample is then drawn from more than a file's beginning
# Settings that do not shape the text. Every other setting, including any added later, is part of the key: a missed
# one would reuse a stale entry.
_SHAPES_NO_TEXT = {
    "sources", "path", "qa", "wiki", "seq_len", "layout", "document_mask", "loss_on", "max_samples",
    "validation_fraction", "test_fraction", "commits", "cache_dir", "verify", "tasks", "metrics", "recommended",
    "lower_case_questions",  # part of the prompt, which shapes sources with questions
}  # fmt: skip
# Smaller files are prepared in about a second: a cache entry would cost more than it saves.
SMALL_BYTES = 2**20
PLAIN = {".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv"}  # files about as large as their text, for the progress


@dataclass(frozen=True)
class SourceTexts:
    """The documents of one source, by split."""

    origin: str
    splits: dict[str, Texts]
    key: str | None  # equal for equal texts; None: unknown, so that nothing is cached
    # notes; `read`: how it was read and split; `counts`: split -> documents read, kept, dropped by reason; has_pairs
    facts: dict[str, Any]


def collect_texts(
    config: DataConfig, plans: Sequence[SourcePlan], seq_len: int, seed: int, cache: Cache, log: Progress
) -> dict[str, SourceTexts]:
    """Return the texts of every source, in order.

    From a sampled source (`data.max_samples`, or any but the first of a mixture) only about as much training text is
    taken as is wanted, drawn by the seed.

    Raises DataError when a source has no text for training or for validation.
    """
    collected: dict[str, SourceTexts] = {}
    for plan in plans:
        wanted = _characters_wanted(config, plan, plans[0], collected, seq_len)
        texts = _read(plan, config, characters_read(wanted), cache, log)
        if plan.order_seed is not None:  # only a part of it is read
            chosen = sample(texts.splits["train"], wanted, seed)
            key = texts.key and key_of(**sample_settings(texts.key, wanted, seed))
            texts = SourceTexts(texts.origin, texts.splits | {"train": chosen}, key, texts.facts)
        collected[plan.name] = texts
    return collected


def has_validation(config: DataConfig, plans: Sequence[SourcePlan], seq_len: int, seed: int, log: Progress) -> bool:
    """Return True if the data of a configuration has a validation split. Only its text may tell: then that is read.

    Raises DataError as `collect_texts` does.
    """
    if "validation" in plans[0].source.splits():
        return True
    if not config.held_out.automatic:
        return config.held_out.validation > 0
    cache = Cache(cache_folder(config.cache_dir), config.verify == "full", log)
    texts = collect_texts(config, plans[:1], seq_len, seed, cache, log)
    return "validation" in texts[plans[0].name].splits


def _characters_wanted(
    config: DataConfig, plan: SourcePlan, first: SourcePlan, collected: Mapping[str, SourceTexts], seq_len: int
) -> float:
    """Return the characters of training text wanted from a source; infinite for all of it."""
    wanted = characters_wanted(config, seq_len)
    if not collected:
        return wanted
    first_characters = int(collected[first.name].splits["train"].characters.sum())
    ratio = plan.config.weight / first.config.weight
    return min(wanted, max(seq_len * CHARACTERS_PER_TOKEN, first_characters * ratio * config.recommended.max_epochs))


def _read(plan: SourcePlan, config: DataConfig, budget: float, cache: Cache, log: Progress) -> SourceTexts:
    """Return the texts of a source from the cache; read into it, or into memory where they cannot be cached."""
    source, held_out = plan.source, config.held_out
    files = _files(source)
    fingerprint = _fingerprint(files, cache)
    n_bytes = _bytes_of_text(files)
    key = None if fingerprint is None else text_key(plan, config, fingerprint, budget)
    if key is not None:

        def build(folder: Path) -> dict[str, Any]:
            writer = DiskWriter(folder)
            try:
                facts = read_source(source, held_out, budget, writer, log, n_bytes, config.remove)
                writer.close()
            finally:
                writer.abandon()
            return facts | {"code": text_code(plan.config.kind, type(source))}

        entry = cache.get(entry_name(key), build)
        if entry is not None:
            # A manifest sorts its keys; sequences and fingerprint depend on the order of the splits.
            splits = [split for split in SPLITS if split in entry.facts["counts"]]
            texts = read_texts(entry.folder, splits)
            return SourceTexts(source.origin, texts, key, entry.facts)
    writer = MemoryWriter()
    facts = read_source(source, held_out, budget, writer, log, n_bytes, config.remove)
    splits = {split: texts for split, texts in writer.texts().items() if split in facts["counts"]}
    return SourceTexts(source.origin, dict(splits), None, facts)


def _files(source: Source) -> list[Path] | str | None:
    """Return what the source's optional method `fingerprint()` does: a text, or all the files that it reads."""
    method = getattr(source, "fingerprint", None)
    return method() if method is not None else None


def _fingerprint(files: list[Path] | str | None, cache: Cache) -> str | None:
    """Return the fingerprint of a source's documents; None where it has none, or where its files are small."""
    if files is None or isinstance(files, str):
        return files
    if sum(file.stat().st_size for file in files) < SMALL_BYTES:
        return None
    return cache.files_fingerprint(files)


def _bytes_of_text(files: list[Path] | str | None) -> float:
    """Return the size of the text in files; infinity where their sizes do not tell, as of compressed ones."""
    if not isinstance(files, list) or any(file.suffix.lower() not in PLAIN for file in files):
        return math.inf
    return max(1, sum(file.stat().st_size for file in files))


def all_notes(collected: Mapping[str, SourceTexts]) -> list[str]:
    """Return the notes on all texts, one line each."""
    return [note for texts in collected.values() for note in texts.facts["notes"]]


def open_sources(data: DataConfig, seed: int, learnt: Prompt | None = None) -> tuple[DataConfig, list[SourcePlan]]:
    """Open the sources of a configuration; return it with all that this decides, and them. Imports no torch.

    Questions are put as a model has `learnt` them, unless the configuration says otherwise. Raises DataError for a
    source that is missing or empty, and where the hub is needed and does not answer.
    """
    data = with_prompt(data, learnt)
    plans = plan_sources(data, seed)
    return pinned(data, plans), plans


def pinned(data: DataConfig, plans: Sequence[SourcePlan]) -> DataConfig:
    """Return the configuration with the commit of each hub dataset: it gives the same texts again on any machine.

    Raises DataError where the hub is needed and does not answer. Imports no torch.
    """
    sources, commits = dict(data.sources), dict(data.commits)
    for plan in plans:
        if isinstance(plan.source, HubReader) and plan.source.commit is not None:
            commits[plan.name] = plan.source.commit
            if plan.name in sources:  # a revision given later takes precedence over the commit
                sources[plan.name] = replace(sources[plan.name], revision=None)
            if not _may_be_cached(plan, plan.source, plans[0], data):
                plan.source.require_hub()
    return replace(data, sources=sources, commits=commits)


def _may_be_cached(plan: SourcePlan, source: HubReader, first: SourcePlan, data: DataConfig) -> bool:
    """Return False when the cache certainly lacks the text that this run will ask for."""
    # How much is wanted of a later source depends on the first one's text, the length of a sequence on the model.
    if plan is not first or (data.max_samples is not None and data.seq_len is None):
        return True
    fingerprint = source.fingerprint()
    if not isinstance(fingerprint, str):
        return True  # files: their hashes are taken when they are read
    key = text_key(plan, data, fingerprint, characters_read(characters_wanted(data, data.seq_len or 0)))
    return key is not None and (cache_folder(data.cache_dir) / entry_name(key)).exists()


# --- keys of the cache ----------------------------------------------------------------------------------------------


def entry_name(key: str) -> str:
    """Return the name of the cache entry of a text; the key `*` gives a glob pattern."""
    return f"text-{key}"


def characters_wanted(data: DataConfig, seq_len: int) -> float:
    """Return the characters of training text for `data.max_samples` sequences; infinite without such a limit."""
    return math.inf if data.max_samples is None else data.max_samples * seq_len * CHARACTERS_PER_TOKEN


def characters_read(wanted: float) -> float:
    """Return the number of characters after which reading stops."""
    return max(wanted, MIN_CHARACTERS)


def text_key(plan: SourcePlan, data: DataConfig, fingerprint: str, budget: float) -> str | None:
    """Return a key, equal for equal texts read by equal code; None for unknown code. See `text_settings`."""
    code = text_code(plan.config.kind, type(plan.source))
    return key_of(code=code, **text_settings(plan, data, fingerprint, budget)) if code is not None else None


def text_code(kind: str, source: type) -> str | None:
    """Return the hash of the code that reads a source of this kind and class; None where it is not available."""
    # The registered part may be a function that returns instances of a class defined elsewhere.
    return code_of(source, SOURCES.get(kind), read_source, sample)


def text_settings(plan: SourcePlan, data: DataConfig, fingerprint: str, budget: float) -> dict[str, Any]:
    """Return the settings that shape a text in addition to the code.

    `fingerprint` identifies the source's documents; `budget` is the most characters that are read.
    """
    # Only fields of DataConfig itself: those that a command adds, such as an export folder, shape nothing.
    names = [field.name for field in fields(DataConfig) if field.name not in _SHAPES_NO_TEXT]
    # The fingerprint holds the commit: the name it was asked for by (tag, branch, none) does not change the text.
    left_out = {"path", "weight", *(["revision"] if isinstance(plan.source, HubReader) else [])}
    # A setting that is not given shapes nothing.
    columns = {"qa.columns": dict(data.qa.columns)} if data.qa.columns and plan.config.traits.ships else {}
    return {
        "source": [fingerprint, type(plan.source).__qualname__, getattr(plan.source, "version", 0)],
        "data": {name: getattr(data, name) for name in names if getattr(data, name) not in (None, [])} | columns,
        "prompt": None if plan.config.traits.questions == "none" else asdict(Prompt.of(data)),
        "settings": {key: value for key, value in asdict(plan.config).items() if key not in left_out},
        "splits": list(SPLITS),
        "held_out": [data.validation_fraction, data.held_out.test],
        "read": [None if budget == math.inf else budget, plan.order_seed],
    }


def sample_settings(text: str, wanted: float, seed: int) -> dict[str, Any]:
    """Return the settings that shape a sample of the text of this key, which includes the sampling code."""
    return {"text": text, "wanted": wanted, "seed": seed}
