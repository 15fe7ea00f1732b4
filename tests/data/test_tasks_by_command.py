"""The tasks of DTL asked for by name, from the command line to the figures."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import dtl.evaluate
import dtl.train
from dtl.evaluation.answers import ALL_TOPICS
from dtl.registry import TASKS

TINY = (
    "model.dim=24 model.n_layers=1 model.n_heads=2 data.seq_len=47 trainer=debug trainer.total_steps=70 "
    "trainer.micro_batch_size=8 optimizer.lr=0.02 tracker=local device=cpu"
)
# What a task gets is all that it needs: here each of DTL's own is given it again, by somebody else.
AGAIN = """\
from dtl.registry import TASKS


@TASKS.register("again")
def again(answer, pairs):
    scores = {}
    for name in ("exact_match", "f1", "lookup"):
        scores |= {f"again/{key}": value for key, value in TASKS.get(name)(answer, pairs).items()}
    return scores
"""


def call(command: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [command.__name__, *arguments])
    try:
        command.main()
    except SystemExit as stop:
        assert not stop.code


@pytest.mark.slow
def test_each_task_alone_gives_what_every_evaluation_says(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / "again_plugin.py").write_text(AGAIN)
    monkeypatch.setattr(TASKS, "_parts", dict(TASKS._parts))
    monkeypatch.setattr(sys, "path", [*sys.path])
    # Two words of which the first is always the same: some answers are right, more are right in part.
    rows = [{"question": f"Is {n} odd?", "answer": f"It is {'odd' if n % 2 else 'even'}."} for n in range(41)]
    (elsewhere / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "data=qa data.qa.path=pairs.jsonl tokenizer=char data.validation_fraction=0.3 data.test_fraction=0.2"
    call(
        dtl.train,
        monkeypatch,
        *data.split(),
        *TINY.split(),
        "model.dropout=0",
        "plugins=[again_plugin]",
        "data.tasks=[again]",
    )
    (result,) = elsewhere.glob("outputs/*/*/result.json")
    figures = json.loads(result.read_text())
    again = {key.removeprefix("again/"): value for key, value in figures.items() if key.startswith("again/")}
    asked = {f"{name}/{split}" for name in ("exact_match", "f1") for split in ("train", "validation", "test")}
    # Looking up a question that is in the index says nothing.
    assert set(again) == asked | {"lookup/exact_match/validation", "lookup/exact_match/test"}
    assert again == {key: pytest.approx(figures[key]) for key in again}
    assert 0 < again["exact_match/validation"] < again["f1/validation"] < 1

    for name in ("exact_match", "f1", "lookup"):
        call(dtl.evaluate, monkeypatch, "ckpt=latest", "device=cpu", f"data.tasks=[{name}]", f"out={name}.json")
        written = json.loads((elsewhere / f"{name}.json").read_text())["answers"]
        found = {scores["split"]: scores for scores in written if scores["topic"] == ALL_TOPICS}
        assert set(found) == {"train", "validation", "test"}
        for split, scores in found.items():
            assert scores["model"]["exact_match"] == pytest.approx(figures[f"exact_match/{split}"])
            assert scores["model"]["f1"] == pytest.approx(figures[f"f1/{split}"])
            assert scores["look_up"]["exact_match"] == pytest.approx(figures[f"lookup/exact_match/{split}"])
