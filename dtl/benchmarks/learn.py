"""suite=learn: the time to a loss, compared with nanoGPT's, modded-nanogpt's and Hugging Face's recipes.

Each side trains in a process of its own on one thread, with a complete schedule of each length. The seconds are those
of the steps, on a CPU of the processor. A round is a seed. On characters the loss to reach is that of nanoGPT's
published configuration at its end, on articles that of Hugging Face's model after a fixed time, as means of the rounds;
the time to it lies on the straight line through the losses of a side's two lengths, over the logarithm of time.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.base.units import in_seconds
from dtl.benchmarks.config import SUITES
from dtl.benchmarks.measuring import Row, at_least, compared, peer, ratio_of, skipped
from dtl.benchmarks.suite import Suite, Workplace, in_rotation, made_articles_file, made_file, missing_peer, run_side
from dtl.commandline.overrides import quoted

if TYPE_CHECKING:
    from dtl.benchmarks.learn_sides import Learning, Learnt

Lengths = dict[str, list[float]]  # by side: steps of each training, of hf its seconds
CHARACTERS = ("experiment=shakespeare_char-values", "tracker=local")
CHARACTER_GOALS = {"published": 7.5, "tuned": 4.0, "modded": 1.15}
CHARACTER_PEERS = {
    "published": "nanoGPT as published for a CPU, learning rate 1e-3, 2,000 steps",
    "tuned": "nanoGPT, learning rate 4e-3 and fewer steps",
    "modded": "modded-nanogpt's recipe at this size",
}
CHARACTER_LENGTHS: Lengths = {"dtl": [130, 160], "published": [2000], "tuned": [1000, 1300], "modded": [180, 220]}
TEXT_HINT = (
    "data.path=tinyshakespeare.txt is needed: curl -o tinyshakespeare.txt "
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
# The learning rate of the matrices is the best of 0.01, 0.02, 0.03 and 0.05 after 20 steps, one seed each.
ARTICLES = (
    *("model=small", "data=wiki", "tokenizer=bpe", "tokenizer.vocab_size=4096", "optimizer=muon", "schedule=wsd"),
    *("tracker=local", "model.dropout=0", "model.tie_embeddings=false", "data.validation_fraction=0.05"),
    *("optimizer.lr=1e-2", "optimizer.matrix_lr=0.01", "optimizer.momentum=0.85", "schedule.warmup_steps=0"),
    *("schedule.decay_fraction=0.7", "schedule.min_lr_fraction=0", "trainer.max_grad_norm=null"),
    *("trainer.micro_batch_size=8", "trainer.grad_accum_steps=1"),
)
ARTICLE_GOAL = 3.0
MAX_BEYOND = 4.0
ARTICLE_LENGTHS: Lengths = {"dtl": [30, 60], "hf": [300]}
WIKI_HINT = "wiki=FOLDER is needed, with articles as data=wiki reads them; quick=true learns synthetic ones"
# The whole path, in less than three minutes or in seconds: what is learnt in so few steps says nothing about a recipe.
QUICK: Lengths = {"dtl": [16, 24], "published": [60], "tuned": [40, 80], "modded": [16, 24]}
QUICK_ARTICLES: Lengths = {"dtl": [3, 5], "hf": [6]}
TINY: Lengths = {"dtl": [4, 7], "published": [11], "tuned": [5, 9], "modded": [9, 15]}
TINY_ARTICLES: Lengths = {"dtl": [3, 5], "hf": [0.2]}
TINY_SIZE = ("model.dim=32", "model.n_layers=2", "model.n_heads=2")


def characters(place: Workplace) -> Iterator[Row]:
    """Yield a row for each of nanoGPT's recipes: the time to the loss of its published configuration."""
    rows = {
        side: Row(
            f"learn_char_{side}", "time to the loss of nanoGPT's published configuration, characters", "s",
            peer_name=name, goal=at_least(CHARACTER_GOALS[side]),
        )
        for side, name in CHARACTER_PEERS.items()
    }  # fmt: skip
    settings = place.settings
    small = settings.quick or settings.tiny
    if settings.data.path is None and not small:
        yield from (skipped(row, TEXT_HINT) for row in rows.values())
        return
    given = settings.data.path
    text = Path(given).expanduser().absolute() if given is not None else made_file(place, 30_000)
    words = [*CHARACTERS, f"data.path={quoted(str(text))}", *(TINY_SIZE if settings.tiny else ())]
    lengths = TINY if settings.tiny else QUICK if settings.quick else CHARACTER_LENGTHS
    done = _rounds(place, words, lengths, list(lengths))
    target = statistics.mean(learnt.losses[0] for learnt in done["published"])
    for side, row in rows.items():
        yield _timed(row, done["dtl"], done[side], target)


def articles(place: Workplace) -> Iterator[Row]:
    """Yield the time to the loss of Hugging Face's model, and what int8 weights cost the model that was trained."""
    small = place.settings.quick or place.settings.tiny
    row = Row(
        "learn_wiki_hf", "time to the loss of Hugging Face's model after a fixed time, articles", "s",
        peer_name="Hugging Face's model of the same size, AdamW", goal=at_least(ARTICLE_GOAL),
    )  # fmt: skip
    bits = Row(
        "bits_int8", "bits per byte of those articles, decoded with int8 weights", "bits", peer_name="fp32 weights"
    )
    missing = missing_peer(lambda: peer("transformers", "pip install transformers"))
    if place.settings.wiki is None and not small:
        missing = WIKI_HINT
    if missing is not None:
        yield from (skipped(each, missing) for each in (row, bits))
        return
    given = place.settings.wiki or made_articles_file(place, 60_000 if place.settings.tiny else 600_000)
    words = [*ARTICLES, f"data.path={quoted(str(Path(given).expanduser().absolute()))}"]
    words += ["trainer.eval_max_batches=4"] if small else ["trainer.eval_max_batches=null"]
    words += [*TINY_SIZE, "data.seq_len=64"] if place.settings.tiny else []
    lengths = TINY_ARTICLES if place.settings.tiny else QUICK_ARTICLES if small else ARTICLE_LENGTHS
    done = _rounds(place, words, lengths, ["dtl", "hf"])
    target = statistics.mean(learnt.losses[0] for learnt in done["hf"])
    yield _timed(row, done["dtl"], done["hf"], target)
    yield _bits(bits, [learnt.bits for learnt in done["dtl"]])


SUITES.register("learn")(Suite({"characters": characters, "articles": articles}))


def _rounds(place: Workplace, words: list[str], lengths: Lengths, sides: Sequence[str]) -> "dict[str, list[Learnt]]":
    """Train all sides in turns, each round with another seed."""
    from dtl.benchmarks.learn_sides import Learning, Learnt

    words = [*words, f"data.cache_dir={quoted(str(place.folder / 'cache'))}"]
    settings = place.settings
    done: dict[str, list[Learnt]] = {side: [] for side in sides}

    def run(work: Learning) -> Learnt:
        learnt = _run(work)
        ends = zip(learnt.losses, learnt.seconds, strict=True)
        reached = ", ".join(f"loss {loss:.4f} after {in_seconds(seconds)}" for loss, seconds in ends)
        place.log(f"{work.side}, seed {work.seed}: {reached}")  # an hour that is ended before the table is not lost
        return learnt

    for number in range(settings.rounds):
        at = number % len(sides)
        work = Learning("dtl", words, lengths, settings.seed + number, settings.device)
        for side, ran in in_rotation(work, [*sides[at:], *sides[:at]], 1, run).items():
            done[side] += ran
    return done


def _run(work: "Learning") -> "Learnt":
    """Train one side in a process of its own. Raises DTLError when it fails."""
    from dtl.benchmarks.learn_sides import Learnt

    return run_side("dtl.benchmarks.learn_sides", work, Learnt, f"{work.side}: a training failed")


def seconds_to(loss: float, learnt: "Learnt") -> float | None:
    """Return the seconds to a loss, on the line through the losses of two lengths over the logarithm of their time.

    A side that was trained to one length has reached it then. None where the line says nothing about the loss: the
    longer training ends no lower, or the time is beyond `MAX_BEYOND` times that of a length.
    """
    if len(learnt.seconds) == 1:
        return learnt.seconds[0]
    (short, long), (high, low) = learnt.seconds, learnt.losses
    if not low < high:
        return None
    exponent = (high - loss) / (high - low) * math.log(long / short)
    beyond = max(-exponent, exponent - math.log(long / short))
    return short * math.exp(exponent) if beyond <= math.log(MAX_BEYOND) else None


def _timed(row: Row, ours: "Sequence[Learnt]", theirs: "Sequence[Learnt]", target: float) -> Row:
    """Return the row with the seconds of both sides to the target, and the ratio of each round."""
    seconds = [[seconds_to(target, learnt) for learnt in side] for side in (ours, theirs)]
    for name, side, times in zip(("DTL", row.peer_name), (ours, theirs), seconds, strict=True):
        if None in times:
            lengths = " and ".join(f"{steps:,}" for steps in side[0].steps)
            return skipped(row, f"{name}: losses after {lengths} steps tell no time to a loss of {target:.3f}")
    mine, peers = ([each for each in times if each is not None] for times in seconds)
    note = f"to a loss of {target:.3f}; {_in_words(ours)}; the peer {_in_words(theirs)}, one thread"
    return compared(replace(row, note=note), (mine, peers))


def _in_words(side: "Sequence[Learnt]") -> str:
    """The lengths of a side and its mean losses after them."""
    losses = zip(*(learnt.losses for learnt in side), strict=True)
    steps = (statistics.mean(each) for each in zip(*(learnt.steps for learnt in side), strict=True))
    ends = ", ".join(f"{n:,.0f} steps {statistics.mean(each):.3f}" for n, each in zip(steps, losses, strict=True))
    return f"{side[0].parameters / 1e6:.2f} million parameters: {ends}"


def _bits(row: Row, rounds: Sequence[Mapping[str, float]]) -> Row:
    if not all("int8" in bits for bits in rounds):
        return skipped(row, "this device decodes with fp32 weights alone")
    note = "; ".join(f"{name} {statistics.median(bits[name] for bits in rounds):.4f}" for name in rounds[0])
    return replace(
        row, ours=statistics.median(bits["int8"] for bits in rounds), rounds=len(rounds), note=note,
        peer=statistics.median(bits["fp32"] for bits in rounds),
        ratio=ratio_of([bits["fp32"] / bits["int8"] for bits in rounds]),
    )  # fmt: skip
