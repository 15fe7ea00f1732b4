"""How fast text becomes GPT-2's tokens, beside `GPT2TokenizerFast` called for one text after the other."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dtl.benchmarks.inputs import MEGABYTE, documents, text_named
from dtl.benchmarks.measuring import MissingPeerError, Row, at_least, compared, in_turns, peer, skipped
from dtl.benchmarks.suite import Workplace
from dtl.errors import DataError, DTLError

N_CHARACTERS = 3 * MEGABYTE
PEER = "GPT2TokenizerFast, text by text, one process"


def tokenising(place: Workplace) -> Iterator[Row]:
    """One row. Raises DTLError when the two give different ids."""
    from dtl.data.config import TokenizerConfig
    from dtl.data.encoding import encode_documents
    from dtl.data.tokenizer import build_tokenizer

    row = Row(
        "tokenising", f"text to GPT-2's tokens, {text_named(place)}", "tokens/s", peer_name=PEER, goal=at_least(3)
    )
    try:
        tokenizer = build_tokenizer(TokenizerConfig(kind="gpt2"), lambda: [])
        theirs = peer_tokenizer(tokenizer.backend, place.folder)
    except (DataError, MissingPeerError) as error:
        yield skipped(row, str(error))
        return
    texts = documents(place, 20_000 if place.settings.tiny else N_CHARACTERS)
    encoded = encode_documents(texts, tokenizer)  # the first time is slower: not counted
    refuse_other_ids(encoded.tokens, np.array([i for text in texts for i in [*theirs(text.text), tokenizer.eos_id]]))
    seconds = in_turns(
        lambda: encode_documents(texts, tokenizer),
        lambda: [theirs(text.text) for text in texts],
        place.settings.rounds,
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


def refuse_other_ids(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Raises DTLError where the ids differ: a speed says nothing then."""
    if np.array_equal(ours, theirs):
        return
    both = min(len(ours), len(theirs))
    differ = np.flatnonzero(ours[:both] != theirs[:both])
    first = int(differ[0]) if len(differ) else both
    raise DTLError(
        f"tokenising: DTL and GPT2TokenizerFast give different ids from token {first + 1} on. This is a bug in one of "
        "them: please report it with the versions shown above."
    )
