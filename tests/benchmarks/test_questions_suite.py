"""suite=questions: both sides train on the same pairs for the same time, and their answers are counted."""

from contextlib import nullcontext

import pytest
import torch
import transformers

from dtl.benchmarks.config import SUITES, BenchConfig
from dtl.benchmarks.questions import GPT2Peer
from dtl.benchmarks.suite import Workplace
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.prepare import PreparedData, prepare_data

pytestmark = pytest.mark.usefixtures("one_thread_one_seed")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "pairs.jsonl").write_text(
        "".join(
            f'{{"answer": "{n}", "train": ["Say {n} now"], "validation": "say {n}", "test": "please say {n}"}}\n'
            for n in range(11, 24)
        )
    )
    config = DataConfig(
        sources={"qa": SourceConfig("qa", str(folder / "pairs.jsonl"))}, lower_case_questions=True, loss_on="answer",
        document_mask=True, cache_dir=str(folder),
    )  # fmt: skip
    return prepare_data(config, TokenizerConfig("bpe", 300), 61, seed=0)


def test_the_peer_learns_answers_and_nothing_else(data):
    peer = GPT2Peer(transformers, data, n_layers=1, width=32, context=61)
    (prompt, answer), pair = peer.encoded["train"][0], data.pairs["train"][0]
    assert data.tokenizer.decode(prompt) == f"Question: {pair.question.lower()}\nAnswer:"
    assert data.tokenizer.decode(answer[:-1]) == f" {pair.answer}" and answer[-1] == peer.end
    # The mean over the tokens of the answers, as computed pair by pair without padding.
    peer.mixed, rows = nullcontext, peer.encoded["train"][:5]
    peer.model.eval()
    of_pairs = [
        torch.nn.functional.cross_entropy(
            peer.model(torch.tensor([begin + end])).logits[0, len(begin) - 1 : -1], torch.tensor(end), reduction="sum"
        )
        for begin, end in rows
    ]
    torch.testing.assert_close(peer._loss(rows), sum(of_pairs) / sum(len(end) for _, end in rows))


def test_the_peer_ends_with_its_best_weights(data):
    peer = GPT2Peer(transformers, data, n_layers=1, width=32, context=61)
    before, measured = peer._validation_loss(), []
    measure = peer._validation_loss
    peer._validation_loss = lambda: measured.append(measure()) or measured[-1]  # type: ignore[method-assign]
    assert peer.train(seconds=2.0, seed=3) > 1
    assert measure() == min(measured) < before


def test_an_answer_that_goes_on_is_wrong(data, monkeypatch):
    peer = GPT2Peer(transformers, data, n_layers=1, width=32, context=61)

    def generate(input_ids, **_):
        said = [data.tokenizer.encode(f" {pair.answer} and more") for pair in data.pairs["test"]]
        width = max(map(len, said))
        rows = [ids + [peer.end] * (width - len(ids)) for ids in said]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    monkeypatch.setattr(peer.model, "generate", generate)
    assert peer.exact_match("test") == 0.0


@pytest.mark.slow
def test_both_sides_are_measured(tmp_path):
    settings = BenchConfig(suite="questions", tiny=True, rounds=2, seed=7)
    train, test = [
        row
        for measure in SUITES.get("questions").measurements.values()
        for row in measure(Workplace(settings, tmp_path))
    ]
    assert (train.rounds, test.rounds) == (2, 2)
    assert test.goal is not None and test.reached is False  # six steps teach nobody
    assert "retrieval baseline (BM25) " in test.note and "6 steps against" in test.note
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["seed-7", "seed-8"]
