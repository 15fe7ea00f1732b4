"""suite=step: every side trains the language model that it should, and the ratios are those of the rounds."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from dtl.benchmarks import step
from dtl.benchmarks.config import ALL, OWN_SUITES, SUITES, BenchConfig
from dtl.benchmarks.results import as_json
from dtl.benchmarks.step_sides import SIDES, NanoGPT, Timed, Work, timed
from dtl.benchmarks.suite import Workplace
from dtl.errors import ConfigError, DTLError
from dtl.model.presets import load_preset
from dtl.model.transformer import TransformerLM

WORK = Work(
    side="dtl", task="text", precision="fp32", steps=2, vocab_size=257, rows=3, length=29,
    size={"dim": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 64}, seed=5, device="cpu",
)  # fmt: skip


@pytest.mark.parametrize(("side", "task"), SIDES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_side_trains_a_language_model(side, task, precision, one_thread_one_seed):
    if side == "hf":
        pytest.importorskip("transformers", reason="the peer is Hugging Face's")
    done = timed(replace(WORK, side=side, task=task, precision=precision))
    assert len(done.seconds) == len(done.targets) == WORK.steps and done.peak_bytes > 1e7
    assert done.first_loss == pytest.approx(torch.tensor(257.0).log().item(), rel=0.05)
    if task == "text":
        assert done.targets == [3 * 29] * 2
    else:  # only the answers count
        assert 0 < max(done.targets) < 48 * 7


def test_steps_are_taken(one_thread_one_seed):
    """The loss of tokens that repeat falls: gradients reach the weights."""
    from dtl.benchmarks.step_sides import bare_loop

    model = NanoGPT(17, 29, 32, 2, 2)
    bare = bare_loop(replace(WORK, vocab_size=1), torch.device("cpu"), model, model, fused=True)
    losses = [bare()[0].item() for _ in range(20)]
    assert losses[-1] < losses[0] - 1


def test_the_peer_is_causal_and_as_large(one_thread_one_seed):
    model = NanoGPT(257, 64, 256, 6, 8)
    ours = TransformerLM(load_preset("small"), 257)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(ours.n_parameters(), rel=0.02)
    ids = torch.randint(257, (1, 30))
    changed = ids.clone()
    changed[0, 20] += 1
    losses = [
        torch.stack([model(given[:, :n], given[:, 1 : n + 1]) * n for n in (10, 19)])
        for given in (ids, changed % 257)
    ]  # fmt: skip
    assert torch.equal(losses[0][0], losses[1][0])


# --- rows ---------------------------------------------------------------------------------------------------------


def place(tmp_path, **settings) -> Workplace:
    return Workplace(BenchConfig(suite="step", **settings), tmp_path)


@pytest.fixture
def ran(monkeypatch) -> list[Work]:
    """Sides that take 1, 3 and 2 seconds a step; what was run."""
    works: list[Work] = []

    def run(work: Work) -> Timed:
        works.append(work)
        seconds = {"dtl": 1.0, "nanogpt": 3.0, "hf": 2.0}[work.side]
        memory = {"dtl": 100, "nanogpt": 150, "hf": 210}[work.side]
        return Timed([seconds] * 3, [2048] * 3, 10.8, memory * 1_000_000, "fp32")

    monkeypatch.setattr(step, "_run", run)
    monkeypatch.setattr(step, "peer", lambda *given: None)
    return works


def test_rows_and_their_ratios(tmp_path, ran):
    rows = list(step.stepping(place(tmp_path), "bf16"))
    assert [row.name for row in rows] == ["step_bf16_nanogpt", "step_bf16_hf", "memory_bf16_hf"]
    assert [row.ratio.median for row in rows if row.ratio] == [3.0, 2.0, 2.1]
    assert [row.reached for row in rows] == [True, True, True]
    sides = [work.side for work in ran]
    assert sides == ["dtl", "nanogpt", "hf", "nanogpt", "hf", "dtl", "hf", "dtl", "nanogpt"]  # another first each time
    ratios = as_json(BenchConfig(), {}, {}, rows)["ratios"]
    assert ratios["step_bf16_hf"] == {
        "ratio": 2.0, "low": 2.0, "high": 2.0, "n": 3, "goal": ">= 1.55 x", "reached": True, "skipped": None,
    }  # fmt: skip
    json.dumps(ratios)


def test_quick_is_two_rounds_of_fewer_steps(tmp_path, ran):
    (settings,) = BenchConfig(suite="step", quick=True).of_each_suite()
    list(step.stepping(Workplace(settings, tmp_path), "fp32"))
    assert len(ran) == 6 and {work.steps for work in ran} == {2}


def test_all_is_every_suite():
    settings = BenchConfig(suite=ALL, quick=True)
    settings.validate()
    assert [each.suite for each in settings.of_each_suite()] == OWN_SUITES
    with pytest.raises(ConfigError, match=r"rows=.*are those of one suite"):
        BenchConfig(suite=ALL, rows=["bf16"]).validate()


def test_without_transformers_its_rows_are_skipped(tmp_path, ran, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(step, "_run", lambda work: Timed([1.0], [7], 10.8, 1, "fp32"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    measurements = SUITES.get("step").measurements
    rows = [row for name in measurements for row in measurements[name](place(tmp_path))]
    skipped = {row.name for row in rows if row.skipped == "install transformers: pip install transformers"}
    assert skipped == {"step_bf16_hf", "memory_bf16_hf", "step_fp32_hf", "step_qa_hf"}


def test_a_side_that_fails_or_trains_something_else_is_named(monkeypatch):
    with pytest.raises(DTLError, match=r"(?s)nobody, text: a step failed: .*KeyError"):
        step._run(replace(WORK, side="nobody"))
    monkeypatch.setattr(step, "run_side", lambda *given: Timed([1.0], [7], 3.0, 1, "fp32"))
    with pytest.raises(DTLError, match=r"dtl, text: its first loss is 3.00 nats where 5.55 belongs"):
        step._run(WORK)


@pytest.mark.slow
def test_the_whole_suite_runs(tmp_path):
    pytest.importorskip("transformers", reason="the peer is Hugging Face's")
    measurements = SUITES.get("step").measurements
    rows = [row for name in measurements for row in measurements[name](place(tmp_path, tiny=True, rounds=1))]
    assert len(rows) == 6 and all(row.ratio is not None and row.ratio.median > 0 for row in rows)
