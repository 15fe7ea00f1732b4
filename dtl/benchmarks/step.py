"""suite=step and suite=memory: what an optimizer step costs, compared with nanoGPT's and Hugging Face's; and
suite=foresight: how far dtl.plan is from the memory that runs then take.

Each side is a process of its own in each round, on one thread, bound to one core where the system can. On a CPU its
seconds are those of the processor. The peers have the same shape, the same number of tokens, a loop of a dozen lines.
"""

import math
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dtl.benchmarks.config import SUITES
from dtl.benchmarks.measuring import PERCENT, Row, at_least, at_most, peer, ratio_of, skipped
from dtl.benchmarks.suite import (
    MAX_CHARACTERS,
    MEGABYTE,
    TINY_VOCABULARY,
    VOCABULARY,
    Suite,
    Workplace,
    in_rotation,
    made_file,
    missing_peer,
    run_side,
)
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
        "step_qa_hf", "answers' tokens trained on, qa_full's model, bf16", "targets/s",
        peer_name="Hugging Face's model, bare loop, padded pairs", goal=at_least(QA_GOAL),
    )  # fmt: skip
    size, vocabulary = (TINY | {"max_seq_len": 64}, TINY_VOCABULARY) if place.settings.tiny else (QA, QA_VOCABULARY)
    work = replace(
        _text_work(place, "bf16"), task="qa", vocab_size=vocabulary, rows=4, length=size["max_seq_len"] // 4,
        steps=2 if place.settings.tiny else 12, size=size,
    )  # fmt: skip
    results, missing = _in_rotation(place, work, ["hf"])
    yield _measured(row, results, "hf", missing)


SUITES.register("step")(
    Suite({"bf16": partial(stepping, precision="bf16"), "fp32": partial(stepping, precision="fp32"), "qa": answering})
)
SUITES.register("memory")(Suite({"bf16": remembering}))


# --- foresight ----------------------------------------------------------------------------------------------------

# Words of runs: each has one or two things that another part of the memory depends on.
TEXT = "data=text model.dim=128 model.n_layers=4 model.n_heads=4 trainer.micro_batch_size=8 data.seq_len=256"
BYTES, BPE = f"{TEXT} tokenizer=byte", f"{TEXT} tokenizer=bpe"
QUESTIONS = (
    "data=qa tokenizer=byte model.dim=128 model.n_layers=4 model.n_heads=4 trainer.micro_batch_size=8 data.seq_len=256"
)
FORESEEN = {
    "modern": BYTES,
    "checkpointing": f"{BYTES} trainer.micro_batch_size=16 trainer.activation_checkpointing=full",
    "accumulation": f"{BYTES} trainer.grad_accum_steps=3",
    "bf16": f"{BYTES} trainer.precision=bf16",
    "questions": QUESTIONS,
    "vocabulary": f"{BPE} tokenizer.vocab_size=8192",
    "width": f"{BYTES} model.dim=256",
    "depth": f"{BYTES} model.n_layers=8",
    "rows": f"{BYTES} trainer.micro_batch_size=16",
    "attention_dropout": f"{BYTES} model.attention_dropout=0.1",
    "length": f"{BYTES} model.attention_dropout=0.1 trainer.micro_batch_size=4 data.seq_len=512",
    "no_dropout": f"{BYTES} model.dropout=0",
    "classic": f"{BYTES} model/arch=classic",
    "classic_dropout": f"{BYTES} model/arch=classic model.attention_dropout=0.1",
    "muon": f"{BYTES} optimizer=muon model.dim=256",
    "classic_muon": f"{BYTES} model/arch=classic optimizer=muon model.dim=256 model.n_layers=6",
    "selective": f"{BYTES} trainer.micro_batch_size=16 trainer.activation_checkpointing=selective",
    "checkpointing_dropout": f"{BYTES} trainer.activation_checkpointing=full model.attention_dropout=0.1",
    "checkpointing_accumulation": f"{BYTES} trainer.activation_checkpointing=full trainer.grad_accum_steps=2",
    "classic_bf16": f"{BYTES} model/arch=classic trainer.precision=bf16",
    "fp16": f"{BYTES} trainer.precision=fp16",
    "averages": f"{BYTES} trainer.ema_decay=0.99 model.dim=256",
    "large": f"{BYTES} model.dim=384 model.n_layers=6 model.n_heads=6",
    "tiny": f"{BYTES} model.dim=64 model.n_layers=2",
    "untied": f"{BPE} tokenizer.vocab_size=4096 model.tie_embeddings=false",
    "vocabulary_rows": f"{BPE} tokenizer.vocab_size=8192 trainer.micro_batch_size=16 trainer.grad_accum_steps=2",
    "questions_muon": f"{QUESTIONS} optimizer=muon model.dim=256",
}
QUICK_FORESEEN = 5
SHORT = "tracker=local device=cpu trainer.total_steps=3 trainer.eval_max_batches=1"
MEDIAN_ERROR, WORST_ERROR = 0.05, 0.10
MEASURED_RUN = """
import dtl.train
from dtl.foresight.process import memory_of_this_process
try:
    dtl.train.main()
finally:
    print(memory_of_this_process("VmHWM"))
"""


def foreseeing(place: Workplace) -> Iterator[Row]:
    """Yield the median and the worst error of the peak memory that dtl.plan shows, over runs in fresh processes."""
    settings = place.settings
    chosen = list(FORESEEN.items())[: QUICK_FORESEEN if settings.quick or settings.tiny else None]
    errors = {name: foreseen_error(place, name, words.split()) for name, words in chosen}
    worst = max(errors, key=lambda name: abs(errors[name]))
    sizes = [abs(error) for error in errors.values()]
    what = f"error of the peak memory that dtl.plan shows, {len(errors)} settings"
    yield Row(
        "foresight_median", f"{what}: median", PERCENT, ours=statistics.median(sizes), rounds=len(sizes),
        goal=at_most(MEDIAN_ERROR, PERCENT), note=", ".join(f"{name} {100 * e:+.1f} %" for name, e in errors.items()),
    )  # fmt: skip
    yield Row(
        "foresight_worst", f"{what}: worst", PERCENT, ours=max(sizes), rounds=len(sizes),
        goal=at_most(WORST_ERROR, PERCENT), note=worst,
    )  # fmt: skip


def foreseen_error(place: Workplace, name: str, words: Sequence[str]) -> float:
    """Train, then plan, each in a process of its own; return the plan's relative error of the run's peak memory."""
    words = [*words, *SHORT.split(), f"data.cache_dir={place.folder / 'cache'}"]
    if "data=text" in words:
        file = place.folder / "made.txt"
        words.append(f"data.path={file if file.exists() else made_file(place, MEGABYTE)}")
    run = [sys.executable, "-c", MEASURED_RUN, *words, f"hydra.run.dir={place.folder / name}"]
    measured = int(_output(run, name).splitlines()[-1])
    plan = _output([sys.executable, "-m", "dtl.plan", *words], name)
    match = re.search(r"^ +peak +([\d,.]+) MiB", plan, re.MULTILINE)
    assert match is not None
    return float(match[1].replace(",", "")) * 2**20 / measured - 1


def _output(command: Sequence[str], name: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DTLError(f"{name} failed: {(done.stderr or done.stdout).strip()[-MAX_CHARACTERS:]}")
    return done.stdout


SUITES.register("foresight")(Suite({"memory": foreseeing}))


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
    note = f"{seconds[0]:.2f} s a step against {seconds[1]:.2f} s, one thread"
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
