"""What a ready cache of 100 million tokens adds to the start of a run."""

import hashlib
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dtl.benchmarks.made_text import Writer
from dtl.benchmarks.measuring import Row, at_most
from dtl.benchmarks.suite import Workplace
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import Document
from dtl.registry import SOURCES

if TYPE_CHECKING:
    from dtl.data.tokenizer import Tokenizer

N_TOKENS = 100_000_000
MEAN_LENGTH = 700  # tokens of an article, about the mean of Wikipedia
TOKENS_A_CHARACTER = 20  # of the tokenizer here: what is opened is the same, and made in a tenth of the time
SEQ_LEN = 256
KIND = "benchmark_articles"


def opening(place: Workplace) -> Iterator[Row]:
    """Two rows: tokens end to end, and whole documents with a document mask."""
    n_tokens = N_TOKENS // 1000 if place.settings.tiny else N_TOKENS
    if KIND not in SOURCES.names():
        SOURCES.register(KIND)(MadeArticles)
    tokenizer = long_winded_tokenizer()
    for name, mask in (("opening", False), ("opening_mask", True)):
        config = DataConfig(
            sources={"made": SourceConfig(kind=KIND, path=str(n_tokens))}, seq_len=SEQ_LEN, document_mask=mask,
            cache_dir=str(place.folder / "cache"),
        )  # fmt: skip
        making, n_opened, n_documents = opened(config, tokenizer, place.settings.seed)
        seconds = [opened(config, tokenizer, place.settings.seed)[0] for _ in range(place.settings.rounds)]
        layout = "packed, document mask" if mask else "packed"
        row = Row(name, f"opening a ready cache of {n_tokens:,} tokens, {layout}", "s", goal=at_most(0.5, "s"))
        note = f"{n_opened:,} training tokens, {n_documents:,} documents; {min(seconds):.2f} to {max(seconds):.2f} s"
        made = "made" if not mask else "its rows laid out"
        note += f"; {made} in {making:.1f} s the first time"
        yield replace(row, ours=statistics.median(seconds), rounds=len(seconds), note=note)


def opened(config: DataConfig, tokenizer: "Tokenizer", seed: int) -> tuple[float, int, int]:
    """Seconds until the data of a run is there, its training tokens and its training documents."""
    from dtl.data.prepare import prepare_data

    began = time.perf_counter()
    data = prepare_data(config, tokenizer, SEQ_LEN, seed)
    seconds = time.perf_counter() - began
    return seconds, data.train.n_tokens, data.report["made"]["train"].documents


class MadeArticles:
    """Distinct short texts, as many as articles of so many tokens would be."""

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        self.n_tokens = int(source.path or 0)
        self.seed = seed
        self.origin = f"{self.n_tokens:,} tokens of made articles"

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{KIND} {self.n_tokens} {self.seed}".encode()).hexdigest()

    def splits(self) -> Mapping[str, Iterable[Document]]:
        return {"train": self._documents()}

    def _documents(self) -> Iterator[Document]:
        random = Writer(self.seed).random
        mean = MEAN_LENGTH / TOKENS_A_CHARACTER
        for number in range(self.n_tokens // MEAN_LENGTH):
            length = 9 + int(random.expovariate(1 / (mean - 9)))
            yield Document(f"{number:08d} ".ljust(length, "x"))

    def notes(self) -> list[str]:
        return []


def long_winded_tokenizer() -> "Tokenizer":
    """A tokenizer that gives 20 tokens for each character, in no time."""
    import tokenizers
    from tokenizers import models

    from dtl.data.tokenizer import Tokenizer

    class LongWinded(Tokenizer):
        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return [[number % 97 for number in range(TOKENS_A_CHARACTER)] * len(text) for text in texts]

    vocabulary = {chr(0x4E00 + number): number for number in range(97)}
    return LongWinded(KIND, tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=chr(0x4E00))))
