"""What is counted before a step is taken: exact bytes, the same for every depth, and what stays between tensors."""

import json
import os
import signal
import subprocess
import sys
from array import array
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dtl.base.runtime import KEEPS_FREED
from dtl.data.cache import Cache
from dtl.foresight import process
from dtl.foresight.predict import at_most, peak_of
from dtl.foresight.process import OnlyCached, has_mallinfo, heap_growth
from dtl.foresight.trace import PARTS, LiveStorages, StepShape, recorded, traced_peak
from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.presets import load_preset
from dtl.model.transformer import TransformerLM
from dtl.training.config import OptimizerConfig, TrainerConfig

ALIGNED = 64
# In a process of its own, as in a plan: the heap of the tests is full of holes.
REPLAYS = """
import json, sys
from array import array
from dtl.foresight import process
numbers, settings = json.load(sys.stdin)
print(json.dumps(process.replays(array("q", numbers), settings)))
"""
# Where the heap ends, modulo the alignment of tensors, in place of how far it grows.
ENDS = """
from dtl.foresight import process
def end(numbers, settings, beginning):
    libc = process._malloc_of_glibc()
    process._fill_holes(libc)
    process._begin(libc, beginning)
    return libc.malloc(2**16) % 64
process.replay = end
"""


def shape(
    n_layers=5, block="modern", optimizer="adamw", precision="fp32", n_micro_batches=1, state_dtype="fp32", **trainer
) -> StepShape:
    model = ModelConfig(
        arch=ArchConfig(block), dim=24, n_layers=n_layers, n_heads=3, max_seq_len=13, ffn_dim=40, dropout=0.1
    )
    rows, seq_len = 7, 13
    return StepShape(
        model, 101, OptimizerConfig(name=optimizer, state_dtype=state_dtype), TrainerConfig(**trainer), precision, rows,
        n_micro_batches, seq_len=seq_len, n_targets=rows * seq_len,
    )  # fmt: skip


def test_exact_bytes_of_a_known_graph():
    live = LiveStorages()
    with FakeTensorMode(), live:
        live.begin("weights")
        weight = torch.zeros(64, 16, requires_grad=True)  # 4,096 bytes
        live.hold("weights", [weight])
        live.begin("activations")
        x = torch.ones(32, 16)  # 2,048
        y = torch.nn.functional.linear(x, weight)  # 8,192
        y.detach().view(-1).add_(1)  # none: a view, and in place
        live.begin("backward")
        (gradient,) = torch.autograd.grad(y, weight, torch.ones_like(y))  # 8,192 + 4,096
        live.hold("gradients", [gradient])
        del x, y, gradient
    at_peak, moment = live.timeline().peak()
    assert moment == "backward"
    expected = {"weights": 4096, "activations": 2048 + 8192, "backward": 8192, "gradients": 4096}
    assert dict(zip(PARTS, at_peak.tolist(), strict=True)) == {name: expected.get(name, 0) for name in PARTS}
    assert live.timeline().live[-1].sum() == 4096


def test_small_storages_count_as_the_allocator_rounds_them():
    live = LiveStorages()
    with FakeTensorMode(), live:
        live.begin("activations")
        kept = torch.zeros(3), torch.zeros(17)
    assert live.timeline().live[-1].sum() == ALIGNED + 2 * ALIGNED
    del kept


def test_a_step_holds_what_it_must():
    """Weights as many as the model has, two moments of each, and during the backward pass gradients of all."""
    timeline = recorded(shape(n_layers=2)).timeline()
    weights, gradients, state = (PARTS.index(name) for name in ("weights", "gradients", "optimizer"))
    end, start, _ = timeline.phases[-1]
    after = timeline.live[start - 1]
    assert end == "end" and after[weights] == timeline.live[:, gradients].max()
    assert 2 * after[weights] <= after[state] <= 2.1 * after[weights]  # and the number of steps of each
    assert after[gradients] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"block": "classic"},
        {"block": "value_embeddings", "state_dtype": "bf16"},
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": "selective"},
        {"optimizer": "muon", "n_micro_batches": 3},
        {"precision": "bf16", "ema_decay": 0.9},
        {"precision": "fp16"},
    ],
)
@pytest.mark.parametrize("vocab_size", [101, 5003])  # with a large one the optimizer's step is the peak
def test_an_extrapolated_depth_is_the_traced_one(settings, vocab_size):
    deep = replace(shape(**settings), vocab_size=vocab_size, rows=2, n_targets=26)
    expected, _ = recorded(deep).timeline().peak()
    peak = traced_peak(deep, lambda allocations: None)
    assert peak.total == expected.sum()
    assert peak.heap == 1


@pytest.mark.slow
def test_large_has_two_moments_a_weight():
    """Its plan had three times as many: what is freed when all is over was extrapolated, too."""
    large = replace(shape(), model=load_preset("large"), vocab_size=50_257, rows=4, seq_len=64, n_targets=47)
    parts = traced_peak(large, lambda _: None).parts
    assert 2 * parts["weights"] <= parts["optimizer"] <= 2.01 * parts["weights"]


def test_what_is_known_to_need_less_needs_less():
    """Half the rows, and layers that are computed again."""
    peak = traced_peak(shape(3), lambda _: None).total
    assert traced_peak(replace(shape(3), rows=3, n_targets=39), lambda _: None).total < peak
    assert traced_peak(shape(3, activation_checkpointing="full"), lambda _: None).total < peak
    narrow = traced_peak(shape(3, state_dtype="bf16"), lambda _: None)
    assert narrow.total < peak and 1 <= narrow.parts["optimizer"] / narrow.parts["weights"] < 1.1


@pytest.mark.parametrize(
    "of",
    [
        shape(),
        shape(block="classic", optimizer="muon", precision="bf16", ema_decay=0.5),
        replace(shape(2), vocab_size=1009),
        replace(shape(3), model=replace(shape(3).model, max_seq_len=127), seq_len=127, n_targets=7 * 127),
    ],
)
def test_the_bound_without_a_trace_is_above_every_trace(of):
    """Of the gaps of the heap, too, which are at most another half."""
    n_parameters = TransformerLM(of.model, of.vocab_size).n_parameters()
    assert 1.5 * traced_peak(of, lambda _: None).total < at_most(of, n_parameters)


def test_a_head_in_chunks_holds_one_chunk_of_logits(monkeypatch):
    """Its loss asks whether a target has no loss, which a tensor without numbers cannot say."""
    complete = recorded(shape(1)).timeline().live[:, PARTS.index("head")].max()
    monkeypatch.setattr("dtl.training.loss.CHUNK_BYTES", 16 * 101 * 4)
    assert recorded(shape(1)).timeline().live[:, PARTS.index("head")].max() < complete


def test_the_facts_of_a_shape_tell_shapes_apart():
    shapes = [shape(), shape(2), shape(optimizer="muon"), shape(ema_decay=0.5), shape(n_micro_batches=2)]
    facts = [str(each.facts()) for each in shapes]
    assert len(set(facts)) == len(facts)
    assert shape(n_micro_batches=2).facts() == shape(n_micro_batches=5).facts()  # one more adds nothing


@pytest.mark.skipif(not has_mallinfo(), reason="no glibc")
def test_the_heap_has_room_for_what_lives_together():
    megabyte = 2**20
    together = [(0, megabyte, True), (1, 2 * megabyte, True), (0, -1, True), (1, -1, True)]
    in_turns = [(0, megabyte, True), (0, -1, True), (1, megabyte, True), (1, -1, True)]
    grown = [heap_growth(each) for each in (together, in_turns)]
    assert grown[0] is not None and grown[1] is not None
    assert 3 * megabyte <= grown[0] < 4 * megabyte
    assert megabyte <= grown[1] < 1.5 * megabyte


@pytest.mark.skipif(not has_mallinfo(), reason="no glibc")
def test_a_hole_that_a_small_block_keeps_open_counts():
    """Freed tensors with a small block between them have no room for a tensor of both sizes."""
    megabyte, allocations = 2**20, []
    for number in range(10):
        allocations += [(2 * number, megabyte, True), (2 * number + 1, 40_000, False)]
    allocations += [(2 * number, -1, True) for number in range(10)]
    apart = heap_growth([*allocations, (20, 10 * megabyte, True)])
    assert apart is not None and apart > 20 * megabyte


def in_a_process(script: str, numbers: list[int]) -> list[int]:
    given = json.dumps([numbers, [*KEEPS_FREED.items()]])
    ran = subprocess.run([sys.executable, "-c", script], input=given, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


@pytest.mark.skipif(not has_mallinfo(), reason="no glibc")
def test_each_replay_begins_at_another_end_of_the_heap():
    megabyte = 2**20
    grown = in_a_process(REPLAYS, [0, megabyte, 1, 1, megabyte, 1])
    assert len(grown) == process.BEGINNINGS and all(2 * megabyte <= growth < 2.5 * megabyte for growth in grown)
    assert len(set(in_a_process(ENDS + REPLAYS, [])[:4])) == 4


@pytest.mark.skipif(not has_mallinfo(), reason="no glibc")
@pytest.mark.filterwarnings("ignore:This process")  # that it has threads: what the fork does takes no lock of theirs
def test_a_replay_that_fails_does_not_count(monkeypatch):
    assert in_a_process(REPLAYS, [0, 2**62, 1]) == []

    def killed(numbers, settings, beginning):
        if beginning == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return beginning

    monkeypatch.setattr(process, "replay", killed)
    assert process.replays(array("q"), []) == [0, 1, 2, *range(4, process.BEGINNINGS)]


@pytest.mark.skipif(not has_mallinfo(), reason="no glibc")
def test_a_peak_without_its_gaps_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr("dtl.foresight.predict.heap_growth", lambda allocations: None)
    peak = peak_of(shape(), Cache(tmp_path))
    assert (peak.heap, peak.heap_failed) == (1.0, True)
    monkeypatch.undo()
    again = peak_of(shape(), Cache(tmp_path))
    assert again.heap > 1 and not again.heap_failed
    assert peak_of(shape(), OnlyCached(tmp_path)) == again
