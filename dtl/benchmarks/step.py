"""suite=step and suite=memory: what an optimizer step costs, compared with nanoGPT's and Hugging Face's.

Each side is a process of its own in each round, on one thread, bound to one core where the system can. On a CPU its
seconds are those of the processor. The peers have the same shape, the same number of tokens, a loop of a dozen lines.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dtl.benchmarks.config import SUITES
from dtl.benchmarks.measuring import Row, at_least, peer, ratio_of, skipped
from dtl.benchmarks.suite import TINY_VOCABULARY, VOCABULARY, Suite, Workplace, in_rotation, missing_peer, run_side
from dtl.errors import DTLError

if TYPE_CHECKING:
    from dtl.benchmarks.step_sides import Timed, Work

NAMES = {"nanogpt": "nanoGPT's model and loop", "hf": "Hugging Face's model, bare loop"}
GOALS = {("bf16", "nanogpt"): 1.55, ("bf16", "hf"): 1.55, ("fp32", "nanogpt"): 1.2, ("fp32", "hf"): 1.2}
LEAST_MEMORY = 1.67  # the peer's peak by ours: ours is 0.6 of it
QA_GOAL = 3.0
TINY = {"dim": 32, "n_heads": 2, "n_layers": 2}
# Of experiment=qa_full.
QA = {"n_layers": 2, "max_seq_len": 1024, "dropout": 0.2, "attention_dropout": None, "ffn_multiple_of": 16}
QA_VOCABULARY = 5_045


def stepping(place: Workplace, precision: str) -> Iterator[Row]:
    """Yield a row for each peer, and in bf16 one of the peak memory."""
    what = f"step of model=small, GPT-2's vocabulary, 8 x 256 tokens, {precision}"
    rows = {
        side: Row(
            f"step_{precision}_{side}", what, "tokens/s", peer_name=NAMES[side], goal=at_least(GOALS[precision, side])
        )
        for side in ("nanogpt", "hf")
    }
    work = _text_work(place, precision)
    results, missing = _in_rotation(place, work, list(rows))
    for side, row in rows.items():
        yield _measured(row, results, side, missing)
    if precision == "bf16":
        yield _memory_row(results, missing)


def remembering(place: Workplace) -> Iterator[Row]:
    """Yield one row, the peak memory of the process that takes these steps in bf16."""
    yield _memory_row(*_in_rotation(place, replace(_text_work(place, "bf16"), steps=1), ["hf"]))


def answering(place: Workplace) -> Iterator[Row]:
    """Yield one row, targets a second of qa_full's model: packed pairs, and the peer's padded ones."""
    row = Row(
        "step_qa_hf", "answers' tokens trained on, qa_full's model, both in the precision of a run here", "targets/s",
        peer_name="Hugging Face's model, bare loop, padded pairs", goal=at_least(QA_GOAL),
    )  # fmt: skip
    size, vocabulary = (TINY | {"max_seq_len": 64}, TINY_VOCABULARY) if place.settings.tiny else (QA, QA_VOCABULARY)
    work = replace(
        _text_work(place, "auto"), task="qa", vocab_size=vocabulary, rows=4, length=size["max_seq_len"] // 4,
        steps=2 if place.settings.tiny else 12, size=size,
    )  # fmt: skip
    results, missing = _in_rotation(place, work, ["hf"])
    yield _measured(row, results, "hf", missing)


SUITES.register("step")(
    Suite({"bf16": partial(stepping, precision="bf16"), "fp32": partial(stepping, precision="fp32"), "qa": answering})
)
SUITES.register("memory")(Suite({"bf16": remembering}))


def _text_work(place: Workplace, precision: str) -> "Work":
    from dtl.benchmarks.step_sides import Work

    settings, tiny = place.settings, place.settings.tiny
    return Work(
        side="dtl", task="text", precision=precision, steps=2 if tiny or settings.quick else 4,
        vocab_size=TINY_VOCABULARY if tiny else VOCABULARY, rows=2 if tiny else 8, length=32 if tiny else 256,
        size=TINY if tiny else {"dropout": 0.0}, seed=settings.seed, device=settings.device,
    )  # fmt: skip


def _in_rotation(place: Workplace, work: "Work", peers: Sequence[str]) -> tuple[dict[str, list["Timed"]], str | None]:
    """Run DTL and the peers that are installed in turns; the results by side, and how to install the missing peer."""
    missing = missing_peer(lambda: peer("transformers", "pip install transformers"))
    sides = ["dtl", *(side for side in peers if missing is None or side != "hf")]
    return in_rotation(work, sides, place.settings.rounds, _run), missing


def _run(work: "Work") -> "Timed":
    """Take the steps in a process of its own. Raises DTLError when it fails, or does not train what it should."""
    from dtl.benchmarks.step_sides import Timed

    timed = run_side("dtl.benchmarks.step_sides", work, Timed, f"{work.side}, {work.task}: a step failed")
    expected = math.log(work.vocab_size)  # of a model that has learnt nothing yet
    if not abs(timed.first_loss - expected) < 0.1 * expected:
        raise DTLError(
            f"{work.side}, {work.task}: its first loss is {timed.first_loss:.2f} nats where {expected:.2f} belongs: it "
            "does not train what it should. This is a bug: please report it with the versions shown above."
        )
    return timed


def _measured(row: Row, results: dict[str, list["Timed"]], side: str, missing: str | None) -> Row:
    return _speeds(row, results["dtl"], results[side]) if side in results else skipped(row, missing or "")


def _speeds(row: Row, ours: Sequence["Timed"], theirs: Sequence["Timed"]) -> Row:
    """Return the row with targets a second of both sides, and their ratio in each round."""
    speeds = [[_speed(timed) for timed in side] for side in (ours, theirs)]
    ratios = [a / b for a, b in zip(*speeds, strict=True)]
    seconds = [statistics.median(s for timed in side for s in timed.seconds) for side in (ours, theirs)]
    note = f"{seconds[0]:.2f} s a step against {seconds[1]:.2f} s, one thread, {ours[0].precision}"
    return replace(
        row, ours=statistics.median(speeds[0]), peer=statistics.median(speeds[1]), ratio=ratio_of(ratios),
        rounds=len(ratios), note=note,
    )  # fmt: skip


def _speed(timed: "Timed") -> float:
    return statistics.median(n / seconds for n, seconds in zip(timed.targets, timed.seconds, strict=True))


def _memory_row(results: dict[str, list["Timed"]], missing: str | None) -> Row:
    row = Row(
        "memory_bf16_hf", "peak memory of a process that trains model=small, 8 x 256 tokens, bf16", "MB",
        peer_name=NAMES["hf"], goal=at_least(LEAST_MEMORY),
    )  # fmt: skip
    if "hf" not in results:
        return skipped(row, missing or "")
    ours, theirs = ([timed.peak_bytes / 1e6 for timed in results[side]] for side in ("dtl", "hf"))
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    note = "the peer's by ours; Python and torch included"
    return replace(
        row, ours=statistics.median(ours), peer=statistics.median(theirs), ratio=ratio_of(ratios), rounds=len(ratios),
        note=note,
    )  # fmt: skip
