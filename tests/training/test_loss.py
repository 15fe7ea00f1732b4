"""Laws of the loss: it is the plain cross-entropy over targets, and the head sees nothing else."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dtl.training.loss as loss_module
from dtl.data.batches import IGNORE, Batch, PackedSequences, TrainingData
from dtl.data.pack import pack_documents, pack_stream, pad_documents
from dtl.errors import ConfigError
from dtl.model.transformer import create_model
from dtl.training.config import LossConfig, TrainerConfig
from dtl.training.evaluate import evaluate, summed_metrics
from dtl.training.loss import (
    TARGETS_TILE,
    TARGETS_TILE_CPU,
    cross_entropy,
    logits_in_chunks,
    mean_cross_entropy,
    target_places,
    targets_multiple,
)
from dtl.training.trainer import Trainer

B, T, D, V = 2, 7, 13, 23


class CountingHead(nn.Linear):
    """A head that remembers how many positions reached it."""

    def forward(self, input: Tensor) -> Tensor:
        self.n_seen = len(input)
        return super().forward(input)


def hidden_and_targets(n_targets: int) -> tuple[Tensor, Tensor]:
    x_btd = torch.randn(B, T, D, requires_grad=True)
    targets = torch.full((B * T,), IGNORE)
    targets[torch.randperm(B * T)[:n_targets]] = torch.randint(0, V, (n_targets,))
    return x_btd, rearrange(targets, "(b t) -> b t", b=B)


def at_targets(x_btd: Tensor, targets_bt: Tensor, n_targets: int, multiple: int = 1) -> tuple[Tensor, Tensor]:
    at_n, targets_n = target_places(targets_bt, n_targets, multiple)
    x_nd = rearrange(x_btd, "b t d -> (b t) d")
    return x_nd if at_n is None else x_nd[at_n], targets_n


def summed(head: nn.Module, x_btd: Tensor, targets_bt: Tensor, n_targets: int, **settings: float) -> Tensor:
    return cross_entropy(head, *at_targets(x_btd, targets_bt, n_targets), LossConfig(**settings))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_targets", [1, 5, B * T])
def test_equals_plain_cross_entropy_with_its_gradients(n_targets: int, bias: bool) -> None:
    head = CountingHead(D, V, bias=bias)
    x_btd, targets_bt = hidden_and_targets(n_targets)
    plain = F.cross_entropy(
        rearrange(head(x_btd), "b t v -> (b t) v"),
        rearrange(targets_bt, "b t -> (b t)"),
        ignore_index=IGNORE,
        reduction="sum",
    )
    expected = torch.autograd.grad(plain, [x_btd, *head.parameters()])
    loss = summed(head, x_btd, targets_bt, n_targets)
    found = torch.autograd.grad(loss, [x_btd, *head.parameters()])
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(found, expected)
    assert head.n_seen == n_targets


def test_no_targets_give_zero_and_zero_gradients() -> None:
    head = nn.Linear(D, V)
    x_btd, targets_bt = hidden_and_targets(0)
    loss = summed(head, x_btd, targets_bt, 0)
    loss.backward()
    assert loss.item() == 0.0
    for tensor in (x_btd, *head.parameters()):
        assert tensor.grad is not None and not tensor.grad.any()


def test_half_precision_logits_are_summed_in_fp32() -> None:
    head = nn.Linear(D, V).bfloat16()
    x_btd, targets_bt = hidden_and_targets(B * T)
    loss = summed(head, x_btd.bfloat16(), targets_bt, B * T)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("n_targets", [0, 1, 5, B * T])
@pytest.mark.parametrize(("z_loss", "label_smoothing"), [(0.03, 0.0), (0.0, 0.2), (0.03, 0.2)])
def test_z_loss_and_label_smoothing_follow_their_definitions(
    n_targets: int, z_loss: float, label_smoothing: float
) -> None:
    """Value and gradient in fp64, from probabilities by hand."""
    head = nn.Linear(D, V)
    x_btd, targets_bt = hidden_and_targets(n_targets)
    loss = summed(head, x_btd, targets_bt, n_targets, z_loss=z_loss, label_smoothing=label_smoothing)
    x_nd, targets_n = at_targets(x_btd, targets_bt, n_targets)
    exact = x_nd.double() @ head.weight.double().T + head.bias.double()
    z_n = exact.exp().sum(dim=-1)
    wanted_nv = (1 - label_smoothing) * F.one_hot(targets_n, V) + label_smoothing / V
    by_hand = -(wanted_nv * (exact - z_n.log()[:, None])).sum() + z_loss * (z_n.log() ** 2).sum()
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-5, atol=1e-5)
    inputs = [x_btd, *head.parameters()]
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(by_hand, inputs))


@pytest.mark.parametrize("settings", [{}, {"z_loss": 0.3}, {"label_smoothing": 0.2, "z_loss": 0.3}])
@pytest.mark.parametrize(("n_targets", "n_rows"), [(0, 0), (1, 16), (16, 16), (17, 32), (34, 48), (49, 50)])
@pytest.mark.parametrize("chunked", [False, True])
def test_targets_in_whole_tiles_change_neither_value_nor_gradient(
    monkeypatch: pytest.MonkeyPatch, n_targets: int, n_rows: int, settings: dict[str, float], chunked: bool
) -> None:
    """As on a GPU: the positions added have the target IGNORE. In chunks of 16 rows, or in one."""
    if chunked:
        monkeypatch.setattr(loss_module, "CHUNK_BYTES", 1)
    head = nn.Linear(D, V, bias=False).double()
    x_btd = torch.randn(5, 10, D, dtype=torch.float64, requires_grad=True)
    targets_n = torch.full((50,), IGNORE)
    targets_n[torch.randperm(50)[:n_targets]] = torch.randint(0, V, (n_targets,))
    targets_bt = rearrange(targets_n, "(b t) -> b t", b=5)

    def found(multiple: int) -> tuple[int, Tensor, tuple[Tensor, ...]]:
        x_nd, targets_n = at_targets(x_btd, targets_bt, n_targets, multiple)
        loss = cross_entropy(head, x_nd, targets_n, LossConfig(**settings))
        return len(x_nd), loss, torch.autograd.grad(loss, [x_btd, *head.parameters()], allow_unused=n_targets == 0)

    (exact, loss, gradients), (padded, same_loss, same_gradients) = found(1), found(16)
    assert (exact, padded) == (n_targets, n_rows)
    torch.testing.assert_close(same_loss, loss)
    torch.testing.assert_close(same_gradients, gradients)
    assert targets_bt.ne(IGNORE).sum() == n_targets  # the batch keeps its targets


@pytest.mark.parametrize(
    ("device", "precision", "multiple"),
    [("cuda", "bf16", TARGETS_TILE), ("cuda", "fp32", TARGETS_TILE), ("cpu", "bf16", TARGETS_TILE_CPU),
     ("cpu", "fp32", 1), ("mps", "bf16", 1)],
)  # fmt: skip
def test_only_the_own_loss_gets_whole_tiles_where_shapes_cost_time(device: str, precision: str, multiple: int) -> None:
    assert targets_multiple(cross_entropy, torch.device(device), precision) == multiple
    assert targets_multiple(lambda head, x_nd, targets_n, config: x_nd.sum(), torch.device(device), precision) == 1


def test_the_defaults_are_the_plain_cross_entropy_to_the_bit() -> None:
    head = nn.Linear(D, V)
    x_btd, targets_bt = hidden_and_targets(5)
    x_nd, targets_n = at_targets(x_btd, targets_bt, 5)
    assert torch.equal(summed(head, x_btd, targets_bt, 5), F.cross_entropy(head(x_nd), targets_n, reduction="sum"))


@pytest.mark.parametrize("setting", ["z_loss", "label_smoothing"])
@pytest.mark.parametrize("value", [-0.1, 1.0, math.inf, math.nan])
def test_weights_of_terms_are_fractions(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.loss\.{setting}={value}: must lie in"):
        LossConfig(**{setting: value}).validate()


def test_training_minimises_the_loss_of_its_config(make_trainer: Callable[..., Trainer]) -> None:
    """Gradients differ, and so does the reported loss."""
    plain = make_trainer(randomised=True)
    smoothed = make_trainer(randomised=True, config=TrainerConfig(loss=LossConfig(label_smoothing=0.3)))
    for trainer in (plain, smoothed):
        assert trainer.accumulate_gradients(trainer.next_batches()).item() > 0
    pairs = zip(plain.model.parameters(), smoothed.model.parameters(), strict=True)
    assert any(not torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)


# --- the mean over target tokens ----------------------------------------------------------------------------------


def gradients(trainer: Trainer) -> Tensor:
    """The gradients of the first optimizer step as one vector."""
    trainer.accumulate_gradients(trainer.next_batches())
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).double()


@pytest.mark.parametrize("block", ["modern", "value_embeddings", "classic"])
def test_any_split_into_micro_batches_gives_the_same_gradient(make_trainer: Callable[..., Trainer], block: str) -> None:
    def gradients_of(micro_batch_size: int, grad_accum_steps: int) -> Tensor:
        return gradients(
            make_trainer(
                micro_batch_size=micro_batch_size, grad_accum_steps=grad_accum_steps, block=block, randomised=True
            )
        )

    whole = gradients_of(8, 1)
    assert whole.norm() > 0.1
    for micro_batch_size, grad_accum_steps in ((4, 2), (2, 4), (1, 8)):
        difference = (gradients_of(micro_batch_size, grad_accum_steps) - whole).norm() / whole.norm()
        assert difference <= 1e-6


def test_the_mean_of_means_is_another_gradient(
    make_trainer: Callable[..., Trainer], training_data: TrainingData
) -> None:
    """Check the premise of the law above: it needs sequences with different numbers of targets."""
    trainer = make_trainer(micro_batch_size=2, grad_accum_steps=4, randomised=True)
    batches = trainer.next_batches()
    assert len({batch.n_targets for batch in batches}) > 1
    right = gradients(trainer)
    trainer.model.zero_grad()
    for batch in batches:
        x_btd = trainer.model.hidden(batch.inputs)
        loss = summed(trainer.model.head, x_btd, batch.targets, batch.n_targets)
        (loss / batch.n_targets / len(batches)).backward()
    wrong = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).double()
    assert (wrong - right).norm() / right.norm() > 1e-2


def test_a_step_without_targets_changes_nothing_into_nan(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    batches = [trainer.next_batches()[0]]
    batches[0].targets.fill_(IGNORE)
    assert trainer.accumulate_gradients(batches).item() == 0.0
    assert all(not p.grad.any() for p in trainer.model.parameters() if p.grad is not None)


def test_padding_and_document_count_do_not_change_the_loss(make_trainer: Callable[..., Trainer]) -> None:
    """The loss of a step is the mean over all its targets, computed here token by token."""
    trainer = make_trainer(micro_batch_size=3, grad_accum_steps=2, randomised=True)
    batches = trainer.next_batches()
    losses = []
    for batch in batches:
        log_probabilities = trainer.model(batch.inputs).log_softmax(dim=-1)
        for b, t in (batch.targets != IGNORE).nonzero().tolist():
            losses.append(-log_probabilities[b, t, batch.targets[b, t]].item())
    assert trainer.accumulate_gradients(batches).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("layout", ["packed with a document mask", "packed", "padded"])
def test_the_mean_loss_of_a_batch_is_what_its_logits_say(layout: str) -> None:
    """Whatever the layout, the caller needs to know neither positions nor documents."""
    tokens, offsets = np.arange(1, 20, dtype=np.uint16), np.array([0, 4, 7, 19])
    answers = np.arange(19) % 3 > 0
    packing = {
        "packed with a document mask": lambda: pack_documents(offsets, 7, answers),
        "packed": lambda: pack_stream(19, 7),
        "padded": lambda: pad_documents(offsets, 7),
    }[layout]()
    rows = PackedSequences(tokens, packing, pad_id=0, loss_mask=answers, document_mask="mask" in layout)
    model = create_model("small", vocab_size=V, dim=12, n_layers=2, n_heads=3).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    batch = rows.batch(range(len(rows)))
    loss = mean_cross_entropy(model, batch)
    logits_btv = model(**batch.model_inputs())
    expected = F.cross_entropy(rearrange(logits_btv, "b t v -> (b t) v"), rearrange(batch.targets, "b t -> (b t)"))
    torch.testing.assert_close(loss, expected)
    assert loss.shape == () and loss.dtype == torch.float32
    found = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(model.parameters())))
    alone = [model(**rows[i].model_inputs())[0] for i in range(len(rows))]
    torch.testing.assert_close(torch.stack(alone), logits_btv)


# --- in chunks ------------------------------------------------------------------------------------------------------

N = 53  # positions; with CHUNK_BYTES of 16 rows in fp32, 32 in a chunk of a linear head, the last one has 21
BY_PRECISION = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@pytest.fixture
def chunks_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * 16 * V)


def with_gradients(head: nn.Linear, x_nd: Tensor, targets_n: Tensor, scale: float = 1.0, **settings: float) -> Any:
    loss = cross_entropy(head, x_nd, targets_n, LossConfig(**settings))
    return loss, *torch.autograd.grad(loss * scale, [x_nd, *head.parameters()])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("z_loss", "label_smoothing"), [(0.0, 0.0), (0.03, 0.0), (0.0, 0.2), (0.03, 0.2)])
def test_chunks_change_neither_loss_nor_gradients(monkeypatch, z_loss: float, label_smoothing: float, bias: bool):
    settings = {"z_loss": z_loss, "label_smoothing": label_smoothing}
    head, targets_n = nn.Linear(D, V, bias=bias).double(), torch.randint(0, V, (N,))
    x_nd = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    expected = with_gradients(head, x_nd, targets_n, **settings)
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * 16 * V)
    torch.testing.assert_close(with_gradients(head, x_nd, targets_n, **settings), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("precision", BY_PRECISION)
def test_chunks_in_mixed_precision(monkeypatch, precision: torch.dtype):
    """As near to fp64 as the products in this precision allow; with fp16's scale no gradient is rounded to nothing."""
    head, targets_n = nn.Linear(D, V, bias=False), torch.randint(0, V, (N,))
    x_nd = torch.randn(N, D, requires_grad=True)
    exact_head, exact_x = copy.deepcopy(head).double(), x_nd.detach().double().requires_grad_()
    expected = with_gradients(exact_head, exact_x, targets_n, scale=128.0)
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * 16 * V)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        found = with_gradients(head, x_nd, targets_n, scale=128.0)
    assert found[0].dtype == torch.float32
    for value, exact in zip(found, expected, strict=True):
        assert (value.double() - exact).norm() <= BY_PRECISION[precision] * exact.norm()


def test_tied_weights_get_the_gradients_of_both_uses(monkeypatch):
    model = create_model("small", vocab_size=V, n_layers=1, dim=16, n_heads=2, max_seq_len=T, dropout=0.0).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    ids = torch.randint(0, V, (7, T))
    batch = Batch(ids, torch.randint(0, V, (7, T)), None, None, tuple(range(7)))
    expected = torch.autograd.grad(mean_cross_entropy(model, batch), list(model.parameters()))
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * 16 * V)
    found = torch.autograd.grad(mean_cross_entropy(model, batch), list(model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_rows", [1, 16, 17, N, 3 * N])
def test_logits_in_chunks_are_those_of_the_head(monkeypatch, n_rows: int, bias: bool, precision: torch.dtype):
    """Each is measured before the next takes its memory, and on a CPU so few at once that they stay in its cache."""
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 8 * 16 * V)
    monkeypatch.setattr(loss_module, "CACHED_LOGITS", 4 * V)
    dtype = torch.promote_types(precision, torch.float32)
    head, targets_n = nn.Linear(D, V, bias=bias, dtype=dtype), torch.randint(0, V, (n_rows,))
    x_nd = torch.randn(n_rows, D, dtype=dtype)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        found = [(logits.clone(), target_n) for logits, target_n in logits_in_chunks(head, x_nd, targets_n)]
        expected = head(x_nd)
    exact = {"rtol": 1e-12, "atol": 1e-13} if precision == torch.float64 else {"rtol": 8e-3, "atol": 1e-3}
    torch.testing.assert_close(torch.cat([logits for logits, _ in found]), expected.to(dtype), **exact)
    assert torch.equal(torch.cat([target_n for _, target_n in found]), targets_n)
    assert {len(logits) for logits, _ in found[:-1]} <= {4, 1}  # 1: the last of a chunk of 17


@torch.inference_mode()
def test_the_sum_over_many_tiles_loses_no_digits(monkeypatch):
    """Equal terms, as of a head of zeros, are rounded in the same direction again and again."""
    monkeypatch.setattr(loss_module, "CACHED_LOGITS", V)  # a row at once
    n, head = 20_011, nn.Linear(D, V, bias=False)
    nn.init.zeros_(head.weight)
    sums = summed_metrics(head, torch.randn(n, D), torch.randint(0, V, (n,)), ["accuracy"])
    assert sums[0].item() / n == pytest.approx(math.log(V), rel=1e-7)


def test_an_evaluation_that_is_left_leaves_autocast_as_it_was():
    head = nn.Linear(D, V, bias=False)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        chunks = logits_in_chunks(head, torch.randn(7, D), torch.zeros(7, dtype=torch.long))
        next(chunks)
        assert torch.is_autocast_enabled("cpu")
    del chunks
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.usefixtures("chunks_of_16")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_rows_of_zeros_behind_the_vocabulary_change_nothing(monkeypatch, precision: torch.dtype):
    """On a GPU the head's rows are a multiple of 64: here as if a CPU were one."""
    head, targets_n = nn.Linear(D, V, bias=False), torch.randint(0, V, (N,))
    x_nd, settings = torch.randn(N, D, requires_grad=True), {"z_loss": 0.03, "label_smoothing": 0.2}
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        expected = with_gradients(head, x_nd, targets_n, **settings)
        monkeypatch.setattr(loss_module, "_missing_rows", lambda weight_vd: 7)
        found = with_gradients(head, x_nd, targets_n, **settings)
    assert found[2].shape == head.weight.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_rows_of_the_head_are_a_multiple_of_64_on_a_gpu():
    class OnGpu(Tensor):
        is_cuda = True  # pyright: ignore[reportAssignmentType]

    for vocab_size, missing in ((50_257, 47), (64, 0), (65, 63)):
        assert loss_module._missing_rows(torch.empty(vocab_size, 1).as_subclass(OnGpu)) == missing
    assert loss_module._missing_rows(torch.empty(65, 1)) == 0


@pytest.mark.usefixtures("chunks_of_16")
@pytest.mark.parametrize("frozen", ["x", "head"])
def test_what_is_frozen_gets_no_gradient(frozen: str):
    head, x_nd = nn.Linear(D, V, bias=False), torch.randn(N, D, requires_grad=frozen != "x")
    head.requires_grad_(frozen != "head")
    cross_entropy(head, x_nd, torch.randint(0, V, (N,)), LossConfig()).backward()
    assert (x_nd.grad is None, head.weight.grad is None) == (frozen == "x", frozen == "head")


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest result of any operator, or of those with rows of some width."""

    def __init__(self, rows_of: int | None = None) -> None:
        super().__init__()
        self.n, self.rows_of = 0, rows_of

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        of_width = [each for each in tensors if self.rows_of in (None, each.shape[-1] if each.ndim else 1)]
        self.n = max([self.n, *(each.numel() for each in of_width)])
        return result


@pytest.mark.usefixtures("chunks_of_16")
@pytest.mark.parametrize("precision", BY_PRECISION)
def test_no_more_than_a_chunk_of_logits_is_ever_there(precision: torch.dtype):
    n = 37 * V  # so many that all logits would be by far the largest tensor
    head, x_nd = nn.Linear(D, V, bias=False), torch.randn(n, D, requires_grad=True)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32), LargestTensor() as largest:
        cross_entropy(head, x_nd, torch.randint(0, V, (n,)), LossConfig(z_loss=0.1)).backward()
    assert largest.n == n * D < n * V


@pytest.mark.usefixtures("chunks_of_16")
def test_evaluation_holds_no_more_either():
    model = create_model("small", vocab_size=V, n_layers=1, dim=16, n_heads=2, max_seq_len=T, dropout=0.0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    n_tokens = 11 * T + 1
    rows = PackedSequences(np.random.default_rng(3).integers(0, V, n_tokens), pack_stream(n_tokens, T), pad_id=0)
    batch = rows.batch(range(11))
    logits = model(**batch.model_inputs()).flatten(0, 1)
    with LargestTensor(rows_of=V) as largest:
        result = evaluate(model, rows, batch_size=11, metrics=["accuracy"])
    assert largest.n == 32 * V < logits.numel()
    assert result.loss == pytest.approx(F.cross_entropy(logits, batch.targets.flatten()).item(), rel=1e-5)
    assert result.metrics["accuracy"] == pytest.approx((logits.argmax(-1) == batch.targets.flatten()).float().mean())
