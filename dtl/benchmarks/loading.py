"""What the loader costs: the time in which the batches of a step are made, of the time of that step."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dtl.benchmarks.inputs import TINY_VOCABULARY, VOCABULARY
from dtl.benchmarks.measuring import PERCENT, Row, at_most, ratio_of
from dtl.benchmarks.suite import Workplace

if TYPE_CHECKING:
    from dtl.data.batches import Rows

SEQ_LEN, ROWS_A_STEP = 256, 4  # as in trainer=cpu
WIKI_LENGTH, PAIR_LENGTH = 700, 22  # mean tokens of an article, and of a question with its answer


def loading(place: Workplace) -> Iterator[Row]:
    """Two rows: articles packed end to end, and short documents that do not see each other."""
    for name, what, mean, mask in (
        ("loader_wiki", "packed articles", WIKI_LENGTH, False),
        ("loader_qa", "packed questions, document mask", PAIR_LENGTH, True),
    ):
        row = Row(name, f"making the batches of a step, {what}", "s", goal=at_most(0.01, PERCENT, "ratio"))
        vocab_size = TINY_VOCABULARY if place.settings.tiny else VOCABULARY
        loader, steps = timed_steps(made_rows(mean, mask, vocab_size, place.settings.seed), vocab_size, place)
        yield replace(
            row,
            ours=statistics.median(loader),
            peer=statistics.median(steps),
            peer_name="the whole step, model=small" if not place.settings.tiny else "the whole step, a tiny model",
            ratio=ratio_of([a / b for a, b in zip(loader, steps, strict=True)], PERCENT),
            rounds=len(steps),
            note=f"{ROWS_A_STEP} rows of {SEQ_LEN} tokens a step",
        )


def made_rows(mean_length: int, document_mask: bool, vocab_size: int, seed: int) -> "Rows":
    """Rows of random tokens, a thousand of them or so, out of documents of such a mean length."""
    from dtl.data.batches import Rows
    from dtl.data.packing import pack_documents, pack_stream

    random = np.random.default_rng(seed)
    lengths = 3 + random.exponential(mean_length - 3, 1000 * SEQ_LEN // mean_length).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = random.integers(0, vocab_size, offsets[-1]).astype(np.uint16)
    packing = pack_documents(offsets, SEQ_LEN) if document_mask else pack_stream(len(tokens), SEQ_LEN)
    return Rows(tokens, packing, pad_id=0, document_mask=document_mask)


def timed_steps(rows: "Rows", vocab_size: int, place: Workplace) -> tuple[list[float], list[float]]:
    """Seconds for the batches and for the whole of each step of a fresh model; the first step is not counted."""
    import torch

    from dtl.base.runtime import choose_device, choose_precision, seed_everything
    from dtl.data.batches import Batch, TrainingData
    from dtl.model.presets import load_preset
    from dtl.model.transformer import TransformerLM
    from dtl.training.config import OptimizerConfig, ScheduleConfig, TrainerConfig
    from dtl.training.optimizer import build_optimizers
    from dtl.training.trainer import Trainer

    loader: list[float] = []

    class Watched(Trainer):
        def next_batches(self) -> list[Batch]:
            began = time.perf_counter()
            batches = super().next_batches()
            loader.append(time.perf_counter() - began)
            return batches

    seed_everything(place.settings.seed)
    device, _ = choose_device(place.settings.device)
    precision, _ = choose_precision("auto", device)
    size = {"dim": 32, "n_heads": 2, "n_layers": 2} if place.settings.tiny else {}
    model = TransformerLM(load_preset("small", **size), vocab_size).to(device)
    n_steps = place.settings.rounds + 1
    trainer = Watched(
        model, build_optimizers(model, OptimizerConfig()), TrainingData({"made": rows}, {"made": 1.0}),
        TrainerConfig(), ScheduleConfig(), seed=place.settings.seed, micro_batch_size=ROWS_A_STEP,
        grad_accum_steps=1, horizon=n_steps, last_step=n_steps, precision=precision,
    )  # fmt: skip
    steps: list[float] = []
    began = time.perf_counter()
    for report in trainer.steps():
        report.loss.item()  # waits for the device
        if device.type == "cuda":
            torch.cuda.synchronize()
        steps.append(time.perf_counter() - began)
        began = time.perf_counter()
    return loader[1:], steps[1:]
