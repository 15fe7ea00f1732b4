"""suite=questions: unseen paraphrases answered, compared with Hugging Face's GPT-2 after the same training time.

`rounds` are seeds. Ours is `python -m dtl.train experiment=qa_full` in a process of its own; the peer trains on the
same pairs with the same tokenizer, for as many seconds on as many threads. Some minutes each; the peer runs on the CPU.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtl.base.json_files import read_json
from dtl.benchmarks.config import SUITES
from dtl.benchmarks.measuring import PERCENT, Goal, MissingPeerError, Row, peer, skipped
from dtl.benchmarks.suite import Suite, Workplace, run_program, train_command
from dtl.commandline.overrides import quoted
from dtl.run_dir.provenance import RESULT
from dtl.run_dir.state import read_config
from dtl.tracking.metrics import read_metrics

TINY = ("model.dim=32", "model.n_heads=1", "trainer.total_steps=6", "trainer.eval_every_steps=3")
GOALS = {"train": 0.97, "test": 0.70}  # 1.00 and 0.956 were measured (docs/results.md)


@dataclass(frozen=True)
class _Scores:
    seconds: float  # of training
    steps: int
    exact: dict[str, float]  # split -> fraction answered correctly
    bm25: float  # test paraphrases answered by the retrieval baseline


def answering(place: Workplace) -> Iterator[Row]:
    """Yield two rows: paraphrases that were trained on, and those of the test."""
    rows = {
        split: Row(
            f"questions_{split}", f"{split} paraphrases answered, experiment=qa_full", PERCENT,
            peer_name="GPT2LMHeadModel, AdamW, the same seconds",
            goal=Goal("ours", goal, True, f">= {100 * goal:g} %"),
        )
        for split, goal in GOALS.items()
    }  # fmt: skip
    try:
        transformers = peer("transformers", "pip install transformers")
    except MissingPeerError as error:
        yield from (skipped(row, str(error)) for row in rows.values())
        return
    ours, theirs = [], []
    for seed in range(place.settings.seed, place.settings.seed + place.settings.rounds):
        run_dir = place.folder / f"seed-{seed}"
        ours.append(_trained(run_dir, seed, place.settings.tiny))
        theirs.append(_peer_trained(transformers, run_dir, ours[-1].seconds, seed))
    for split, row in rows.items():
        yield _row(row, split, ours, theirs)


SUITES.register("questions")(Suite({"qa_full": answering}))


def _row(row: Row, split: str, ours: list[_Scores], theirs: list[_Scores]) -> Row:
    exact, peers = [scores.exact[split] for scores in ours], [scores.exact[split] for scores in theirs]
    seconds = [scores.seconds for scores in ours]
    note = (
        f"{_range(exact)} against {_range(peers)}; {min(seconds):.0f} to {max(seconds):.0f} s of training, "
        f"{ours[0].steps:,} steps against {theirs[0].steps:,}"
    )
    if split == "test":
        note += f"; retrieval baseline (BM25) {ours[0].bm25:.1%}"
    return replace(row, ours=statistics.median(exact), peer=statistics.median(peers), rounds=len(exact), note=note)


def _range(fractions: list[float]) -> str:
    return f"{min(fractions):.1%} to {max(fractions):.1%}"


def _trained(run_dir: Path, seed: int, tiny: bool) -> _Scores:
    arguments = ["experiment=qa_full", "tracker=local", "device=cpu", f"seed={seed}", *(TINY if tiny else ())]
    command = train_command(*arguments, f"hydra.run.dir={quoted(str(run_dir))}")
    run_program(command, run_dir.parent, " ".join(arguments))
    result = read_json(run_dir / RESULT)
    seconds = max(row["seconds"] for row in read_metrics(run_dir) if "seconds" in row)
    exact = {split: result[f"exact_match/{split}"] for split in GOALS}
    return _Scores(seconds, result["step"], exact, result["lookup/exact_match/test"])


def _peer_trained(transformers: Any, run_dir: Path, seconds: float, seed: int) -> _Scores:
    from dtl.base.runtime import seed_everything
    from dtl.benchmarks.gpt2_peer import GPT2Peer
    from dtl.checkpoints.load import load_tokenizer
    from dtl.config import typed
    from dtl.data.prepare import prepare_data

    config = typed(read_config(run_dir))
    data = prepare_data(config.data, load_tokenizer(run_dir), config.seq_len, config.seed)
    seed_everything(seed)
    model = GPT2Peer(transformers, data, config.model.n_layers, config.model.dim, config.seq_len)
    steps = model.train(seconds, seed)
    return _Scores(seconds, steps, {split: model.exact_match(split) for split in GOALS}, bm25=0.0)
