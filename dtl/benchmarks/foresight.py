"""suite=foresight: how far the peak memory and the time that dtl.plan shows are from what runs then take."""

import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from dtl.benchmarks.config import SUITES
from dtl.benchmarks.measuring import PERCENT, Row, at_most
from dtl.benchmarks.suite import (
    MAX_CHARACTERS,
    MEGABYTE,
    Suite,
    Workplace,
    made_articles_file,
    made_file,
    train_command,
)
from dtl.errors import DTLError

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
# Whole runs of half a minute, with evaluations, samples, checkpoints and the evaluation at the end.
WHOLE = (
    "model.dim=128 model.n_layers=4 model.n_heads=4 trainer.total_steps=90 trainer.eval_every_steps=30 "
    "trainer.eval_max_batches=10 trainer.save_every_steps=45 tracker=local device=cpu"
)
WIKI = f"data=wiki tokenizer=bpe tokenizer.vocab_size=4096 trainer.machine=cpu {WHOLE}"
QA = f"data=qa tokenizer=bpe tokenizer.vocab_size=2048 {WHOLE}"
TIMED = {
    "wiki": WIKI,
    "questions": QA,
    "wiki_deep": f"{WIKI} model.n_layers=10",
    "questions_deep": f"{QA} model.n_layers=10 trainer.eval_every_steps=45",
    "wiki_accumulation": f"{WIKI} trainer.grad_accum_steps=3 trainer.total_steps=45",
    "questions_gpt2": f"{QA} tokenizer=gpt2 tokenizer.vocab_size=null",
    "wiki_muon": f"{WIKI} optimizer=muon model.dim=192 trainer.total_steps=60",
    "questions_classic": f"{QA} model/arch=classic trainer.micro_batch_size=8",
    "wiki_averages": f"{WIKI} trainer.ema_decay=0.99 trainer.activation_checkpointing=full",
}
QUICK_TIMED = 2
TIME_ERROR = 0.15
MEASURED_TIME = """
import time
import dtl.train
try:
    dtl.train.main()
finally:
    print(time.process_time())
"""
MEASURED_RUN = """
import dtl.train
from dtl.base.system import peak_process_memory
try:
    dtl.train.main()
finally:
    print(peak_process_memory())
"""


def foreseeing(place: Workplace) -> Iterator[Row]:
    """Yield the median and the worst error of the peak memory that dtl.plan shows, over runs in fresh processes."""
    settings = place.settings
    chosen = list(FORESEEN.items())[: QUICK_FORESEEN if settings.quick or settings.tiny else None]
    errors = _errors(place, chosen, foreseen_error)
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


def _errors(
    place: Workplace, chosen: Sequence[tuple[str, str]], error_of: Callable[[Workplace, str, Sequence[str]], float]
) -> dict[str, float]:
    """Return the error of each setting, and log it: all of them take half an hour."""
    errors: dict[str, float] = {}
    for name, words in chosen:
        errors[name] = error_of(place, name, words.split())
        place.log(f"{name}: {100 * errors[name]:+.1f} %")
    return errors


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


def foreseeing_time(place: Workplace) -> Iterator[Row]:
    """Yield the worst error of the processor seconds of whole runs that dtl.plan shows."""
    settings = place.settings
    chosen = list(TIMED.items())[: QUICK_TIMED if settings.quick or settings.tiny else None]
    errors = _errors(place, chosen, foreseen_time_error)
    yield Row(
        "foresight_time", f"error of the processor seconds of a run that dtl.plan shows, {len(errors)} runs: worst",
        PERCENT, ours=max(map(abs, errors.values())), rounds=len(errors), goal=at_most(TIME_ERROR, PERCENT),
        note=", ".join(f"{name} {100 * error:+.1f} %" for name, error in errors.items()),
    )  # fmt: skip


def foreseen_time_error(place: Workplace, name: str, words: Sequence[str]) -> float:
    """Let a run prepare the data, plan, then train, each in a process of its own; return the plan's relative error of
    the run's processor seconds."""
    words = [*words, f"data.cache_dir={place.folder / 'cache'}"]
    if "data=wiki" in words:
        file = place.folder / "made.jsonl"
        given = place.settings.wiki or (file if file.exists() else made_articles_file(place, MEGABYTE))
        words.append(f"data.path={given}")
    folder = place.folder / name
    _output([*train_command(*words), "trainer.stop_after_steps=1", f"hydra.run.dir={folder / 'prepared'}"], name)
    plan = _output([sys.executable, "-m", "dtl.plan", *words], name)
    match = re.search(r"^ +whole run, about +(?:(\d+) s|(?:(\d+):)?(\d+):(\d+)) ", plan, re.MULTILINE)
    if match is None:
        raise DTLError(f"{name}: the plan has no time: {plan[-MAX_CHARACTERS:]}")
    alone, *parts = (float(part or 0) for part in match.groups())
    run = [sys.executable, "-c", MEASURED_TIME, *words, f"hydra.run.dir={folder / 'run'}"]
    measured = float(_output(run, name).splitlines()[-1])
    return (alone + sum(60**power * part for power, part in zip((2, 1, 0), parts, strict=True))) / measured - 1


def _output(command: Sequence[str], name: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DTLError(f"{name} failed: {(done.stderr or done.stdout).strip()[-MAX_CHARACTERS:]}")
    return done.stdout


SUITES.register("foresight")(Suite({"memory": foreseeing, "time": foreseeing_time}))
