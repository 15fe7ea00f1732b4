"""A run of some thousand weights on a handful of questions, for the tests of DTL in Python."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import dtl
from dtl.data.documents import QuestionAnswer


@pytest.fixture(autouse=True)
def one_thread(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("dtl.run_dir.provenance._packages", lambda: "")  # takes longer than these runs
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "pairs.jsonl"
    pairs = [{"question": f"how much is {n} times {n}?", "answer": str(n * n)} for n in range(40)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def words(questions: Path) -> list[str]:
    """A step takes milliseconds; dropout draws from the global random state."""
    return [
        *("model.dim=16", "model.n_layers=2", "model.n_heads=2", "model.max_seq_len=97", "data.seq_len=97"),
        *("tokenizer=byte", f"data.path={questions}", "tracker=local", "device=cpu", "trainer=debug", "seed=11"),
        *("trainer.total_steps=7", "data.validation_fraction=0.1", "sampling.max_new_tokens=3", "optimizer.lr=0.01"),
    ]


@pytest.fixture
def config(words: list[str]) -> dtl.RunConfig:
    return dtl.compose(*words)


@pytest.fixture(scope="session")
def trained(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dtl.FitResult:
    """A model that has nothing to do with the test's own runs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dtl.run_dir.provenance._packages", lambda: "")
        return dtl.fit(dtl.compose(*words), tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def asked() -> list[QuestionAnswer]:
    return [QuestionAnswer(f"how much is {n} times {n}?", str(n * n)) for n in range(5)]
