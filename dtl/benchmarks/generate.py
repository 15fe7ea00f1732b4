"""suite=generate: tokens per second, compared with Hugging Face's `generate` and llama.cpp on the same weights.

`modern` and `classic` generate greedily in fp32, in one process, the same tokens. `generate` and `batch8` compute as
chat and generate do, each side in a process of its own in each round, on one thread. Weights are random, and the head
is not tied to the embedding: tied, a random model repeats its last token.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dtl.benchmarks.config import SUITES
from dtl.benchmarks.measuring import MissingPeerError, Row, at_least, compared, in_turns, peer, skipped
from dtl.benchmarks.suite import (
    TINY_VOCABULARY,
    VOCABULARY,
    Suite,
    Workplace,
    in_rotation,
    missing_peer,
    run_side,
)
from dtl.errors import DTLError

if TYPE_CHECKING:
    from dtl.benchmarks.generate_sides import Continuing, Texts, Write, Written

QUICK_TOKENS = 32
TINY = {"dim": 64, "n_heads": 2, "n_layers": 2}
PEERS = {"hf": "Hugging Face's generate, fp32", "llamacpp_f16": "llama.cpp, f16"}
GOALS = {(1, "hf"): 2.5, (1, "llamacpp_f16"): 0.6, (8, "hf"): 2.0, (8, "llamacpp_f16"): 1.1}


def continuing(place: Workplace, arch: str) -> Iterator[Row]:
    """Yield two rows: tokens per second, seconds to the first token. Raises DTLError when the tokens differ."""
    settings = place.settings.generation
    n_prompt, n_new = _lengths(place)
    row = Row(arch, f"continuing a text, {arch}", "tokens/s", peer_name="Hugging Face's generate, the same weights")
    first_row = replace(row, name=f"{arch}_first", what=f"first token of a text, {arch}", unit="s")
    row = replace(row, goal=at_least(1))  # 1.40 was measured (docs/results.md)
    try:
        transformers = peer("transformers", "pip install transformers")
    except MissingPeerError as error:
        yield from (skipped(missing, str(error)) for missing in (row, first_row))
        return
    ours, theirs, n_parameters = both_sides(place, transformers, arch, n_prompt, n_new)
    texts = ours(n_new)  # warm-up: the first call is slower
    check_same_tokens(arch, texts, theirs(n_new))

    n_tokens = settings.batch_size * n_new
    n_distinct = len({token for text in texts for token in text})
    note = (
        f"{n_parameters / 1e6:.1f} million parameters, fp32, {settings.batch_size} x {n_prompt} tokens continued by "
        f"{n_new}; the same {n_tokens} tokens, {n_distinct} distinct"
    )
    rounds = place.settings.rounds
    seconds = in_turns(lambda: ours(n_new), lambda: theirs(n_new), rounds)
    yield compared(replace(row, note=note), seconds, n_tokens)
    yield compared(first_row, in_turns(lambda: ours(1), lambda: theirs(1), rounds))


def against_peers(place: Workplace, batch_size: int) -> Iterator[Row]:
    """Yield a row for each peer: tokens per second in the numbers that `generation.weights=auto` chooses."""
    name = "generate" if batch_size == 1 else f"batch{batch_size}"
    what = "continuing a text" if batch_size == 1 else f"continuing {batch_size} texts together"
    rows = {
        side: Row(
            f"{name}_{side}", f"{what}, as generate does", "tokens/s", peer_name=PEERS[side],
            goal=at_least(GOALS[batch_size, side]),
        )
        for side in PEERS
    }  # fmt: skip
    work = _work(place, batch_size)
    missing = {side: reason for side in PEERS if (reason := missing_peer(partial(_ask_for, side))) is not None}
    sides = ["dtl", *(side for side in PEERS if side not in missing)]
    results = in_rotation(work, sides, place.settings.rounds if len(sides) > 1 else 0, _run)
    for side, row in rows.items():
        yield skipped(row, missing[side]) if side in missing else _speeds(row, work, results["dtl"], results[side])


SUITES.register("generate")(
    Suite(
        {arch: partial(continuing, arch=arch) for arch in ("modern", "classic")}
        | {"generate": partial(against_peers, batch_size=1), "batch8": partial(against_peers, batch_size=8)}
    )
)


def _lengths(place: Workplace) -> tuple[int, int]:
    """Return the tokens of a prompt and the new ones; quick=true has few new ones."""
    settings = place.settings.generation
    n_new = min(settings.new_tokens, QUICK_TOKENS) if place.settings.quick else settings.new_tokens
    return (7, 11) if place.settings.tiny else (settings.prompt_tokens, n_new)


def _work(place: Workplace, batch_size: int) -> "Continuing":
    from dtl.benchmarks.generate_sides import Continuing

    settings, tiny = place.settings.generation, place.settings.tiny
    n_prompt, n_new = _lengths(place)
    return Continuing(
        side="dtl", arch="modern", model=settings.model, size=TINY if tiny else {}, batch_size=batch_size,
        vocab_size=TINY_VOCABULARY if tiny else VOCABULARY, n_prompt=n_prompt, n_new=n_new, weights="auto",
        seed=place.settings.seed, device=place.settings.device,
    )  # fmt: skip


def _ask_for(side: str) -> None:
    """Raises MissingPeerError."""
    from dtl.benchmarks.generate_sides import llama_cpp

    peer("transformers", "pip install transformers") if side == "hf" else llama_cpp()


def _run(work: "Continuing") -> "Written":
    """Continue the texts in a process of its own. Raises DTLError when it fails."""
    from dtl.benchmarks.generate_sides import Written

    return run_side("dtl.benchmarks.generate_sides", work, Written, f"{work.side}: a text was not continued")


def _speeds(row: Row, work: "Continuing", ours: "list[Written]", theirs: "list[Written]") -> Row:
    n_tokens = work.batch_size * work.n_new
    pairs = zip(ours[0].texts, theirs[0].texts, strict=True)
    n_same = sum(token == other for texts in pairs for token, other in zip(*texts, strict=True))
    note = (
        f"{ours[0].numbers}; {work.batch_size} x {work.n_prompt} tokens continued by {work.n_new}, one thread; "
        f"{n_same} of {n_tokens} tokens are the peer's"
    )
    return compared(replace(row, note=note), ([a.seconds for a in ours], [b.seconds for b in theirs]), n_tokens)


def both_sides(place: Workplace, transformers: Any, arch: str, n_prompt: int, n_new: int) -> "tuple[Write, Write, int]":
    """Return DTL's and Hugging Face's writer of the same random prompts in fp32, and the number of parameters."""
    import torch

    from dtl.base.runtime import choose_device, seed_everything
    from dtl.benchmarks import generate_sides as sides

    work = replace(
        _work(place, place.settings.generation.batch_size), arch=arch, n_prompt=n_prompt, n_new=n_new, weights="fp32"
    )
    seed_everything(work.seed)
    device, _ = choose_device(work.device)
    transformers.utils.logging.set_verbosity_error()
    model = sides.random_model(work).to(device)
    twin = sides.twin_of(model, transformers)
    prompts = torch.randint(0, model.vocab_size, (work.batch_size, n_prompt)).tolist()
    ours, _ = sides.dtl(work, model, prompts, place.folder)
    return ours, sides.twin_writer(twin, prompts), model.n_parameters()


def check_same_tokens(name: str, ours: "Texts", theirs: "Texts") -> None:
    """Raise DTLError where the tokens differ: then their speeds cannot be compared."""
    for number, (text, other) in enumerate(zip(ours, theirs, strict=True), start=1):
        if text == other:
            continue
        both = min(len(text), len(other))
        first = next((at for at in range(both) if text[at] != other[at]), both)
        raise DTLError(
            f"{name}: DTL and Hugging Face generate different tokens for prompt {number}, from new token {first + 1} "
            "on. Rarely, rounding decides between two tokens of equal probability: try another seed=. If they differ "
            "again, this is a bug in one of them: please report it with the versions shown above."
        )
