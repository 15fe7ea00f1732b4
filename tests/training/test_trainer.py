"""Laws of the training loop: it learns, the same way each time, and it counts what it does."""

import functools
import shutil
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from trainer_states import snapshot

from dtl.data.batches import IGNORE, Batch, PackedSequences, TrainingData
from dtl.model.transformer import TransformerLM
from dtl.training import loss as loss_module
from dtl.training.config import LossConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
from dtl.training.loss import cross_entropy, hidden_at_targets
from dtl.training.schedule import learning_rate_factor
from dtl.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


# --- it learns ----------------------------------------------------------------------------------------------------


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("block", ["modern", "classic"])
def test_overfits_one_batch(
    make_trainer: MakeTrainer, random_rows: Callable[..., PackedSequences], block: str, precision: str
) -> None:
    data = TrainingData({"random": random_rows(n_rows=2, answers=False)}, {"random": 1.0})
    trainer = make_trainer(
        data=data,
        optimizer=OptimizerConfig(lr=0.03, weight_decay=0.0),
        last_step=60,
        precision=precision,
        block=block,
    )
    losses = [report.loss.item() for report in trainer.steps()]
    assert losses[0] > 2.5
    assert losses[-1] < 0.1


def test_muon_learns_too(make_trainer: MakeTrainer, random_rows: Callable[..., PackedSequences]) -> None:
    data = TrainingData({"random": random_rows(n_rows=2, answers=False)}, {"random": 1.0})
    trainer = make_trainer(data=data, optimizer=OptimizerConfig(name="muon", lr=0.03, matrix_lr=0.03), last_step=60)
    losses = [report.loss.item() for report in trainer.steps()]
    assert losses[-1] < 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_seed_one_run(make_trainer: MakeTrainer, precision: str) -> None:
    def losses(**changes: Any) -> list[float]:
        trainer = make_trainer(precision=precision, dropout=0.1, **changes)
        return [report.loss.item() for report in trainer.steps()]

    first = losses()
    assert losses() == first
    assert losses(seed=4) != first
    assert losses(model_seed=8) != first


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit(make_trainer: MakeTrainer, precision: str, checkpointing: str) -> None:
    def trained(activation_checkpointing: str) -> dict[str, Tensor]:
        trainer = make_trainer(dropout=0.1, attention_dropout=0.0, last_step=3, precision=precision)
        trainer.model.activation_checkpointing = activation_checkpointing
        for _ in trainer.steps():
            pass
        return snapshot(trainer)

    plain, checkpointed = trained("none"), trained(checkpointing)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_compiled_steps_run_and_learn(make_trainer: MakeTrainer) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    losses = {
        compiled: [report.loss.item() for report in make_trainer(config=TrainerConfig(compile=compiled)).steps()]
        for compiled in (False, True)
    }
    assert len(losses[True]) == 7  # the sixth step of an epoch has fewer rows: another shape
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_what_cannot_be_compiled_is_trained_without_and_said(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without_a_compiler(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler found")

    plain = [report.loss.item() for report in make_trainer().steps()]
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=without_a_compiler))
    losses = [report.loss.item() for report in make_trainer(config=TrainerConfig(compile=True)).steps()]
    assert losses == plain
    (message,) = [record.getMessage() for record in caplog.records if record.name == "dtl.base.runtime"]
    assert "trainer.compile=true" in message and "no C++ compiler found" in message and "\n" not in message


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_another_number_of_targets_needs_no_graph_of_its_own(tiny_model: Callable[..., TransformerLM]) -> None:
    """One for all positions, one for the first number of targets, one for all others."""
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = tiny_model(max_seq_len=40).train()
    hidden = torch.compile(model.hidden, backend=counting)
    for n_targets in (145, 37, 61, 89, 128, 5, 145, 2):
        targets_n = torch.full((145,), IGNORE)
        targets_n[torch.randperm(145)[:n_targets]] = 3
        batch = Batch(torch.randint(0, model.vocab_size, (5, 29)), targets_n.view(5, 29), None, None, ())
        x_nd, _ = hidden_at_targets(hidden, batch, n_targets, None)
        assert len(x_nd) == n_targets
    assert len(graphs) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
@pytest.mark.parametrize(
    "kind, block",
    [
        ("documents", "modern"),
        *(
            pytest.param(kind, block, marks=pytest.mark.slow)
            for kind, block in [
                ("plain", "classic"),
                *(
                    (kind, "modern")
                    for kind in ("plain", "dropout", "selective", "full", "chunks of the head", "answers")
                ),
            ]
        ),
    ],
)
def test_hidden_and_loss_are_one_graph(
    tiny_model: Callable[..., TransformerLM], monkeypatch: pytest.MonkeyPatch, block: str, kind: str
) -> None:
    """Traced without a break, so that a compiler sees all of a step; the numbers are those of the eager step."""
    model = tiny_model(block, randomised=True, dropout=0.1 if kind == "dropout" else 0.0).train()
    model.activation_checkpointing = kind if kind in ("selective", "full") else "none"
    if kind == "chunks of the head":
        monkeypatch.setattr(loss_module, "CHUNK_BYTES", 1)  # 16 rows
    ids_bt, targets_bt = torch.randint(0, model.vocab_size, (2, 5, 7)).unbind()
    documents_bt = (torch.arange(7) // 3).expand(5, 7) if kind == "documents" else None
    positions_bt = (torch.arange(7) % 3).expand(5, 7) if kind == "documents" else None
    if kind == "answers":
        targets_bt[:, 2:5] = IGNORE
    batch = Batch(ids_bt, targets_bt, positions_bt, documents_bt, ())
    n_targets = batch.n_targets

    def loss() -> Tensor:
        x_nd, targets_n = hidden_at_targets(model.hidden, batch, n_targets, 10)
        return cross_entropy(model.head, x_nd, targets_n, LossConfig())

    torch._dynamo.reset()
    torch.manual_seed(5)
    found = torch.compile(loss, backend="eager", fullgraph=True)()
    torch.manual_seed(5)
    expected = loss()
    torch.testing.assert_close(found, expected)
    names, parameters = zip(*model.named_parameters(), strict=True)
    for name, *pair in zip(
        names, torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5, msg=name)


# --- it counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_the_rate_of_each_step_is_the_schedules(make_trainer: MakeTrainer, name: str) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=3)
    trainer = make_trainer(schedule=schedule, optimizer=OptimizerConfig(lr=0.02), last_step=13)
    for step, report in enumerate(trainer.steps()):
        expected = 0.02 * learning_rate_factor(schedule, step, 13)
        assert report.lr == pytest.approx(expected)
        for group in trainer.optimizers[0].param_groups:
            assert group["lr"] == pytest.approx(expected)


@pytest.mark.parametrize("name, peaks", [("adamw", {0.02, 0.7}), ("muon", {0.02, 0.7, 0.3})])
def test_every_peak_is_scaled_and_the_reported_rate_is_optimizer_lr(
    make_trainer: MakeTrainer, name: str, peaks: set[float]
) -> None:
    config = OptimizerConfig(name=name, lr=0.02, matrix_lr=0.3, embedding_lr=0.7)
    trainer = make_trainer(optimizer=config, schedule=ScheduleConfig(warmup_steps=3))
    report = next(trainer.steps())
    assert report.lr == pytest.approx(0.02 / 3)
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    assert sorted({group["lr"] * 3 for group in groups}) == pytest.approx(sorted(peaks))


def test_counts_steps_tokens_and_epochs(make_trainer: MakeTrainer) -> None:
    """11 rows of 7 tokens, 4 a step: 3 steps an epoch, the last of which takes the 3 rows that are left."""
    trainer = make_trainer(micro_batch_size=2, grad_accum_steps=2, last_step=7)
    assert trainer.steps_per_epoch == 3
    seen: list[tuple[int, int, int, int]] = []
    rows: list[list[int]] = []
    next_batches = trainer.next_batches

    def remembering() -> list[Any]:
        batches = next_batches()
        rows.append([row for batch in batches for row in batch.rows])
        return batches

    trainer.next_batches = remembering
    for report in trainer.steps():
        state = trainer.state
        assert (report.step, report.tokens) == (state.step, state.tokens)
        seen.append((state.step, state.epoch, state.step_in_epoch, state.tokens))
    assert seen == [
        (1, 0, 1, 28),
        (2, 0, 2, 56),
        (3, 1, 0, 77),
        (4, 1, 1, 105),
        (5, 1, 2, 133),
        (6, 2, 0, 154),
        (7, 2, 1, 182),
    ]
    assert [len(step) for step in rows] == [4, 4, 3, 4, 4, 3, 4]
    first, second = chain.from_iterable(rows[:3]), chain.from_iterable(rows[3:6])
    assert sorted(first) == sorted(second) == list(range(11))
    assert rows[:3] != rows[3:6]
    assert trainer.done


def test_seconds_only_grow(make_trainer: MakeTrainer) -> None:
    seconds = [report.seconds for report in make_trainer().steps()]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_clipping_limits_the_step_and_null_does_not(make_trainer: MakeTrainer) -> None:
    norms = {}
    for limit in (1e-3, None):
        trainer = make_trainer(config=TrainerConfig(max_grad_norm=limit), last_step=1, randomised=True)
        batches = trainer.next_batches()
        loss = trainer.accumulate_gradients(batches)
        assert loss is not None
        unclipped = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
        reported = trainer.check(loss, batches).grad_norm
        assert reported.item() == pytest.approx(unclipped.item(), rel=1e-5)
        trainer.clip_gradients(reported)
        norms[limit] = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
        assert torch.isfinite(loss)
    assert norms[1e-3].item() == pytest.approx(1e-3, rel=1e-3)
    assert norms[None].item() == pytest.approx(unclipped.item(), rel=1e-6)
