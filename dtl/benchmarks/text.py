"""suite=text: from raw text to batches, compared with the usual loops without DTL.

python -m dtl.benchmarks.text '{"side": "dtl", ...}'      is one side of `encode_bpe`, and prints its time
"""

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from omegaconf import OmegaConf

from dtl.base.paths import conf_dir
from dtl.benchmarks.config import SUITES
from dtl.benchmarks.dump import dump_memory, dump_reading
from dtl.benchmarks.measuring import (
    PERCENT,
    MissingPeerError,
    Row,
    at_least,
    at_most,
    compared,
    in_turns,
    peer,
    ratio_of,
    skipped,
)
from dtl.benchmarks.suite import (
    MEGABYTE,
    TINY_VOCABULARY,
    VOCABULARY,
    Suite,
    Workplace,
    documents,
    in_rotation,
    run_side,
    text_name,
)
from dtl.data.config import DataConfig, TokenizerConfig
from dtl.errors import DataError, DTLError

if TYPE_CHECKING:
    from dtl.data.batches import PackedSequences

# --- tokens -------------------------------------------------------------------------------------------------------

TOKENISED_CHARACTERS = 3 * MEGABYTE
PEER = "GPT2TokenizerFast, text by text, one process"


def tokenising(place: Workplace) -> Iterator[Row]:
    """Yield one row: text to GPT-2's tokens. Raises DTLError when the two give different ids."""
    from dtl.data.encode import encode_documents
    from dtl.data.tokenizers.tokenizer import build_tokenizer

    row = Row("tokenising", f"text to GPT-2's tokens, {text_name(place)}", "tokens/s", peer_name=PEER, goal=at_least(3))
    try:
        tokenizer = build_tokenizer(TokenizerConfig(kind="gpt2"), lambda: [])
        theirs = peer_tokenizer(tokenizer.backend, place.folder)
    except (DataError, MissingPeerError) as error:
        yield skipped(row, str(error))
        return
    texts = documents(place, 20_000 if place.settings.tiny else TOKENISED_CHARACTERS)
    encoded = encode_documents(texts, tokenizer)  # warm-up: the first call is slower
    check_same_ids(encoded.tokens, np.array([i for text in texts for i in [*theirs(text.text), tokenizer.eos_id]]))
    seconds = in_turns(
        lambda: encode_documents(texts, tokenizer), lambda: [theirs(text.text) for text in texts], place.settings.rounds
    )
    n_tokens = len(encoded.tokens)
    yield compared(
        replace(row, note=f"the same {n_tokens:,} ids, {n_tokens / encoded.n_documents:.0f} a document"),
        seconds,
        n_tokens,
    )


def peer_tokenizer(backend: Any, folder: Path) -> Callable[[str], list[int]]:
    """transformers' own tokenizer on the same vocabulary, from the files that it reads itself."""
    transformers = peer("transformers", "pip install transformers")
    transformers.utils.logging.set_verbosity_error()  # a text is longer than GPT-2's context: so it is
    backend.model.save(str(folder))
    tokenizer = transformers.GPT2TokenizerFast.from_pretrained(str(folder), split_special_tokens=True)
    return lambda text: tokenizer(text)["input_ids"]


def check_same_ids(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Raise DTLError where the ids differ: then their speeds cannot be compared."""
    if np.array_equal(ours, theirs):
        return
    both = min(len(ours), len(theirs))
    differ = np.flatnonzero(ours[:both] != theirs[:both])
    first = int(differ[0]) if len(differ) else both
    raise DTLError(
        f"tokenising: DTL and GPT2TokenizerFast give different ids from token {first + 1} on. This is a bug in one of "
        "them: please report it with the versions shown above."
    )


# --- a trained vocabulary -----------------------------------------------------------------------------------------

ENCODED_VOCABULARY = 8192


@dataclass(frozen=True)
class Encoding:
    """A text to encode."""

    side: str  # dtl | tokenizers
    texts: str  # file, a JSON list
    tokenizer: str  # folder


@dataclass(frozen=True)
class Encoded:
    """A text that was encoded."""

    seconds: float  # of the processor
    n_tokens: int
    ids: str  # their SHA-256


def encoding(place: Workplace) -> Iterator[Row]:
    """Yield one row: a text to the tokens of a BPE trained on it. Raises DTLError when the two give different ids."""
    from dtl.data.tokenizers.tokenizer import build_tokenizer

    size = TINY_VOCABULARY + 43 if place.settings.tiny else ENCODED_VOCABULARY
    row = Row(
        "encode_bpe", f"text to tokens of its own BPE, {size:,} entries, one thread", "MB/s",
        peer_name="tokenizers' encode_batch_fast", goal=at_least(8),
    )  # fmt: skip
    # Enough for the fast encoder, which needs time to be built.
    texts = [text.text for text in documents(place, 250_000 if place.settings.tiny else TOKENISED_CHARACTERS)]
    file = place.folder / "texts.json"
    file.write_text(json.dumps(texts), encoding="utf-8")
    build_tokenizer(TokenizerConfig("bpe", size), lambda: texts).save(place.folder)
    work = Encoding("dtl", str(file), str(place.folder))
    done = in_rotation(work, ["dtl", "tokenizers"], place.settings.rounds, _run_encoding)
    ours, theirs = done["dtl"], done["tokenizers"]
    if len({each.ids for each in (*ours, *theirs)}) > 1:
        raise DTLError(
            f"encode_bpe: DTL and tokenizers give different ids, {ours[0].n_tokens:,} and {theirs[0].n_tokens:,}. This "
            "is a bug in one of them: please report it with the versions shown above."
        )
    row = replace(row, note=f"the same {ours[0].n_tokens:,} ids")
    megabytes = sum(len(text.encode()) for text in texts) / MEGABYTE
    yield compared(row, ([each.seconds for each in ours], [each.seconds for each in theirs]), megabytes)


def _run_encoding(work: Encoding) -> Encoded:
    return run_side(__name__, work, Encoded, f"{work.side}: the text was not encoded")


def encoded_by(work: Encoding) -> Encoded:
    """Encode in this process, timed at the second time: the first call builds what a run builds once."""
    from dtl.data.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(Path(work.tokenizer))
    texts: list[str] = json.loads(Path(work.texts).read_text(encoding="utf-8"))

    def theirs(texts: list[str]) -> list[list[int]]:
        return [one.ids for one in tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)]

    encode = tokenizer.encode_batch if work.side == "dtl" else theirs
    encode(texts[:1] * (1 + 300_000 // len(texts[0])) if work.side == "dtl" else texts[:1])
    began = time.process_time()
    ids = encode(texts)
    seconds = time.process_time() - began
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return Encoded(seconds, sum(map(len, ids)), digest)


# --- the loader ---------------------------------------------------------------------------------------------------

LOADED_SEQ_LEN, SEQUENCES_PER_STEP = 256, 4  # as in trainer=cpu
WIKI_LENGTH, PAIR_LENGTH = 700, 22  # mean tokens of an article, and of a question with its answer


def loading(place: Workplace) -> Iterator[Row]:
    """Yield two rows, the loader's fraction of a step: for packed articles, and for packed questions with a mask."""
    for name, what, mean, mask in (
        ("loader_wiki", "packed articles", WIKI_LENGTH, False),
        ("loader_qa", "packed questions, document mask", PAIR_LENGTH, True),
    ):
        row = Row(name, f"loading the batches of a step, {what}", "s", goal=at_most(0.01, PERCENT, "ratio"))
        vocab_size = TINY_VOCABULARY if place.settings.tiny else VOCABULARY
        loader, steps = timed_steps(made_sequences(mean, mask, vocab_size, place.settings.seed), vocab_size, place)
        yield replace(
            row,
            ours=statistics.median(loader),
            peer=statistics.median(steps),
            peer_name="the whole step, model=small" if not place.settings.tiny else "the whole step, a tiny model",
            ratio=ratio_of([a / b for a, b in zip(loader, steps, strict=True)], PERCENT),
            rounds=len(steps),
            note=f"{SEQUENCES_PER_STEP} sequences of {LOADED_SEQ_LEN} tokens a step",
        )


def made_sequences(mean_length: int, document_mask: bool, vocab_size: int, seed: int) -> "PackedSequences":
    """Return about a thousand packed sequences of random documents of this mean length, in tokens."""
    from dtl.data.batches import PackedSequences
    from dtl.data.pack import pack_documents, pack_stream

    random = np.random.default_rng(seed)
    lengths = 3 + random.exponential(mean_length - 3, 1000 * LOADED_SEQ_LEN // mean_length).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = random.integers(0, vocab_size, offsets[-1]).astype(np.uint16)
    packing = pack_documents(offsets, LOADED_SEQ_LEN) if document_mask else pack_stream(len(tokens), LOADED_SEQ_LEN)
    return PackedSequences(tokens, packing, pad_id=0, document_mask=document_mask)


def timed_steps(sequences: "PackedSequences", vocab_size: int, place: Workplace) -> tuple[list[float], list[float]]:
    """Return the seconds of each step of a new model for its batches and in all, without the first step."""
    import torch

    from dtl.base.runtime import choose_device, choose_precision, seed_everything
    from dtl.benchmarks.step_sides import steps_on
    from dtl.model.presets import load_preset

    loader: list[float] = []
    seed_everything(place.settings.seed)
    device, _ = choose_device(place.settings.device)
    precision, _ = choose_precision("auto", device)
    config = load_preset("small", **({"dim": 32, "n_heads": 2, "n_layers": 2} if place.settings.tiny else {}))
    reports = steps_on(
        sequences, config, vocab_size, device, precision, place.settings.seed, SEQUENCES_PER_STEP,
        n_steps=place.settings.rounds + 1, loaded=lambda batches, seconds: loader.append(seconds),
    )  # fmt: skip
    steps: list[float] = []
    began = time.perf_counter()
    for report in reports:
        report.loss.item()  # waits for the loss on the device
        if device.type == "cuda":
            torch.cuda.synchronize()
        steps.append(time.perf_counter() - began)
        began = time.perf_counter()
    return loader[1:], steps[1:]


# --- padding ------------------------------------------------------------------------------------------------------

PACKED_CHARACTERS = 2 * MEGABYTE
PACKED_SEQ_LEN = 256


def waste(place: Workplace) -> Iterator[Row]:
    """Yield two rows, the fraction of padding: of articles, and of the questions that ship with DTL."""
    row = Row("waste_wiki", f"padding, packed {text_name(place)}", PERCENT, peer_name="padded, one per sequence")
    row = replace(row, goal=at_most(0.001, PERCENT))
    questions = replace(row, name="waste_qa", what="padding, packed questions of DTL", goal=at_most(0.03, PERCENT))
    for unmeasured, measure in ((row, _articles), (questions, _questions)):
        try:
            yield measure(unmeasured, place)
        except DataError as error:  # GPT-2's vocabulary is missing
            yield skipped(unmeasured, str(error))


def _articles(row: Row, place: Workplace) -> Row:
    from dtl.data.encode import encode_documents
    from dtl.data.pack import pack_documents, pack_stream, pad_documents
    from dtl.data.tokenizers.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(TokenizerConfig(kind="gpt2"), lambda: [])
    encoded = encode_documents(documents(place, 200_000 if place.settings.tiny else PACKED_CHARACTERS), tokenizer)
    packed = pack_stream(len(encoded.tokens), PACKED_SEQ_LEN)
    masked = pack_documents(encoded.offsets, PACKED_SEQ_LEN)
    padded = pad_documents(encoded.offsets, PACKED_SEQ_LEN)
    cut = 1 - padded.n_tokens / packed.n_tokens
    note = f"{packed.n_sequences:,} sequences of {PACKED_SEQ_LEN}; document mask: {masked.wasted:.2%}; "
    note += f"padded cuts {cut:.0%} of the text"
    return replace(row, ours=packed.wasted, peer=padded.wasted, note=note, rounds=1)


def _questions(row: Row, place: Workplace) -> Row:
    from dtl.data.prepare import prepare_data

    settings = yaml.safe_load((conf_dir() / "data" / "qa.yaml").read_text(encoding="utf-8"))
    reports = []
    for layout in ("packed", "padded"):
        changed = settings | {"layout": layout, "cache_dir": str(place.folder / "cache")}
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), changed))
        assert isinstance(config, DataConfig)
        prepared = prepare_data(config, TokenizerConfig(kind="gpt2"), PACKED_SEQ_LEN, place.settings.seed)
        reports.append(prepared.report["qa"]["train"])
    packed, padded = reports
    note = f"{packed.rows:,} sequences of {PACKED_SEQ_LEN}"
    return replace(row, ours=packed.wasted, peer=padded.wasted, note=note, rounds=1)


if __name__ == "__main__":
    print(json.dumps(asdict(encoded_by(Encoding(**json.loads(sys.argv[1]))))))
else:
    SUITES.register("text")(
        Suite(
            {"tokenising": tokenising, "encode_bpe": encoding, "dump": dump_reading, "dump_memory": dump_memory}
            | {"loader": loading, "waste": waste},
            long=frozenset({"dump_memory"}),
        )
    )
