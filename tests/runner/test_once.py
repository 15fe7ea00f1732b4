"""A run does once what takes time or looks at files: it checks its settings, opens its sources, loads its weights."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_pairs

import dtl.base.files
import dtl.checkpoints.listing
import dtl.checkpoints.load
import dtl.data.config
import dtl.train
from dtl.config import RunConfig
from dtl.data.qa.source import QuestionSource
from dtl.model.transformer import TransformerLM

SIZE = "model.dim=16 model.n_layers=2 model.n_heads=2 tokenizer=byte"
ALWAYS = (
    "data=qa data.seq_len=64 data.qa.path=pairs.jsonl trainer=debug tracker=local device=cpu sampling.max_new_tokens=2"
)


@pytest.fixture
def counts(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of something since the last `clear()`."""
    write_pairs(elsewhere / "pairs.jsonl")
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[name if name != "__init__" else owner.__name__] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(RunConfig, "validate")
    count(QuestionSource, "__init__")
    count(TransformerLM, "__init__")
    count(dtl.data.config.DataConfig, "resolved_sources")
    count(dtl.checkpoints.load, "from_hf")
    count(dtl.base.files, "read_manifest")
    monkeypatch.setattr(dtl.checkpoints.listing, "read_manifest", dtl.base.files.read_manifest)
    return counted


def train(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["dtl-train", *" ".join(arguments).split()])
    dtl.train.main()


def test_a_new_run_opens_its_sources_and_checks_its_settings_once(counts, monkeypatch):
    train(monkeypatch, SIZE, ALWAYS, "trainer.total_steps=2", "hydra.run.dir=a")
    assert counts["validate"] == counts["QuestionSource"] == 1
    # Checked, given their prompt, planned, asked for a quicker run, for the time of the evaluation, evaluated.
    assert counts["resolved_sources"] <= 9
    assert counts["TransformerLM"] == 2 and counts["from_hf"] == 1  # trained, and the best loaded to be evaluated


def test_init_loads_the_weights_once(counts, monkeypatch):
    train(monkeypatch, SIZE, ALWAYS, "trainer.total_steps=2", "hydra.run.dir=a")
    counts.clear()
    train(monkeypatch, ALWAYS, "init=a", "trainer.total_steps=2", "hydra.run.dir=b")
    assert counts["TransformerLM"] == 2 and counts["from_hf"] == 2  # the run's own; the best, to be evaluated
    assert counts["validate"] == counts["QuestionSource"] == 1


def test_a_resume_reads_few_manifests_however_many_checkpoints_there_are(counts, monkeypatch):
    many = "trainer.save_every_steps=1 trainer.keep=20 trainer.total_steps=9 trainer.stop_after_steps=7"
    train(monkeypatch, SIZE, ALWAYS, many, "hydra.run.dir=a")
    n_steps = len(list(Path("a/checkpoints").glob("step-*")))
    assert n_steps == 7
    built: list[int] = []
    monkeypatch.setattr("dtl.runner.run.show_start", lambda *_: built.append(counts["read_manifest"]))
    counts.clear()
    train(monkeypatch, "resume=a", "trainer.stop_after_steps=8")
    assert built[0] < n_steps
    assert counts["validate"] == 1
