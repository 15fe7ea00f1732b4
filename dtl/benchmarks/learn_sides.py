"""One side of suite=learn, a program of its own: a model trained on the data of a run of DTL, once for each length.

python -m dtl.benchmarks.learn_sides '{"side": "dtl", "words": ["experiment=shakespeare_char-values"], ...}'

Prints one line of JSON: for each length the seconds of its steps, and the loss of the validation text after it. On a
CPU the seconds are those of the processor. Peers are written from their descriptions; they see the same sequences in
the same order. b batch, t time, d width, h heads, k head width, n matrices, o outputs, i inputs, v vocabulary.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtl.base.runtime import autocast, choose_device, choose_precision, seed_everything
from dtl.benchmarks.step_sides import NanoGPT, hf_twin
from dtl.commandline.compose import compose
from dtl.config import RunConfig
from dtl.data.collect import open_sources
from dtl.data.prepare import PreparedData, prepare_data
from dtl.errors import ConfigError
from dtl.evaluation.text import count_token_bytes, decoded_bits_per_byte
from dtl.runner.build import build_run
from dtl.training.evaluate import evaluate


@dataclass(frozen=True)
class Learning:
    """What a side is to do."""

    side: str  # dtl | published | tuned | modded | hf
    words: list[str]  # of dtl.train: data, batches and size for every side, the recipe for DTL's
    lengths: dict[str, list[float]]  # by side: optimizer steps of each training, of hf its seconds
    seed: int
    device: str


@dataclass(frozen=True)
class Learnt:
    """What a side did: an entry for each length."""

    parameters: int
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of the steps alone
    losses: list[float] = field(default_factory=list)  # nats per target token of the validation text
    bits: dict[str, float] = field(default_factory=dict)  # bits per byte of the last model, decoded with these weights


MAX_DECODED = 16  # sequences decoded token by token
Losses = Callable[[Tensor, Tensor], Tensor]  # ids and targets, (b, t), to the mean loss, shape ()
Update = Callable[[float], None]  # given the fraction of the training that is done, follows `backward`


def learnt(work: Learning) -> Learnt:
    """Train a side in this process."""
    device, _ = choose_device(work.device)
    config = replace(compose(*work.words), seed=work.seed, device=work.device)
    train = _with_dtl if work.side == "dtl" else _peer_trained
    done = None
    for length in work.lengths[work.side]:
        seed_everything(work.seed)
        done = train(work, config, device, length, done)
    assert done is not None
    return done


def _clock(device: torch.device) -> Callable[[], float]:
    return time.process_time if device.type == "cpu" else time.perf_counter


# --- DTL ----------------------------------------------------------------------------------------------------------


def _with_dtl(work: Learning, config: RunConfig, device: torch.device, length: float, before: Learnt | None) -> Learnt:
    """Take the steps of a run of `python -m dtl.train`, then evaluate."""
    config = replace(config, trainer=replace(config.trainer, total_steps=int(length)))
    data, plans = open_sources(config.data, config.seed)
    parts = build_run(replace(config, data=data), plans, None, None, lambda message: None)
    clock, began, spent = _clock(device), 0.0, 0.0
    steps = parts.trainer.steps()
    while True:
        began = clock()
        report = next(steps, None)
        if report is None:
            break
        report.loss.item()  # waits for the device
        spent += clock() - began
    rows, most = parts.data.validation, config.trainer.eval_max_batches
    assert rows is not None
    loss = evaluate(parts.model, rows, config.micro_batch_size, most).loss
    done = _added(before, parts.model, int(length), spent, loss)
    if length == work.lengths["dtl"][-1] and device.type == "cpu":
        token_bytes, n_rows = count_token_bytes(parts.tokenizer), min(MAX_DECODED, most or MAX_DECODED)
        for weights in ("fp32", "int8"):
            try:
                done.bits[weights] = decoded_bits_per_byte(parts.model, rows, token_bytes, weights, n_rows)
            except ConfigError:  # this processor has no such kernel
                continue
    return done


def _added(before: Learnt | None, model: nn.Module, steps: int, seconds: float, loss: float) -> Learnt:
    done = before or Learnt(sum(parameter.numel() for parameter in model.parameters()))
    done.steps.append(steps)
    done.seconds.append(seconds)
    done.losses.append(loss)
    return done


# --- peers --------------------------------------------------------------------------------------------------------


def _peer_trained(
    work: Learning, config: RunConfig, device: torch.device, length: float, before: Learnt | None
) -> Learnt:
    """Train a peer in a loop of a dozen lines, on the sequences that DTL would take, in its order."""
    data_config, plans = open_sources(config.data, config.seed)
    data = prepare_data(data_config, config.tokenizer, config.seq_len, config.seed, plans=plans)
    precision, _ = choose_precision(config.trainer.precision, device)
    model, losses, update = PEERS[work.side](config, data, device, int(length))
    batches, clock = _batches(config, data), _clock(device)
    spent, steps = 0.0, 0
    model.train()
    while (done := (spent if work.side == "hf" else steps) / length) < 1:
        began = clock()
        ids_bt, targets_bt = (tensor.to(device) for tensor in next(batches))
        with autocast(device, precision):
            loss = losses(ids_bt, targets_bt)
        loss.backward()
        update(done)
        loss.item()  # waits for the device
        spent += clock() - began
        steps += 1
    return _added(before, model, steps, spent, _validation_loss(model, losses, config, data, device))


def _batches(config: RunConfig, data: PreparedData) -> Iterator[tuple[Tensor, Tensor]]:
    rows, step = config.global_batch_size, 0
    per_epoch = data.train.steps_per_epoch(rows)
    while True:
        (batch,) = data.train.micro_batches(config.seed, *divmod(step, per_epoch), rows, 1)
        yield batch.inputs, batch.targets
        step += 1


@torch.no_grad()
def _validation_loss(
    model: nn.Module, losses: Losses, config: RunConfig, data: PreparedData, device: torch.device
) -> float:
    """In fp32 and on the sequences that DTL evaluates: its own `evaluate` for a model that is not DTL's."""
    model.eval()
    rows, size, most = data.validation, config.micro_batch_size, config.trainer.eval_max_batches
    assert rows is not None
    n_rows = len(rows) if most is None else min(len(rows), most * size)
    total, n_targets = 0.0, 0
    for start in range(0, n_rows, size):
        batch = rows.batch(range(start, min(start + size, n_rows)))
        total += losses(batch.inputs.to(device), batch.targets.to(device)).item() * batch.n_targets
        n_targets += batch.n_targets
    return total / n_targets


Peer = Callable[[RunConfig, PreparedData, torch.device, int], tuple[nn.Module, Losses, Update]]


def nanogpt(lr: float) -> Peer:
    """nanoGPT's configuration for a CPU with a peak learning rate: AdamW, a cosine to a tenth of it, clipped at 1."""

    def peer(config: RunConfig, data: PreparedData, device: torch.device, n_steps: int) -> Any:
        size = config.model
        model = NanoGPT(data.tokenizer.vocab_size, config.seq_len, size.dim, size.n_layers, size.n_heads).to(device)
        warmup = min(100, n_steps // 10) / n_steps
        return model, model, _adamw(model, lr, (0.9, 0.99), warmup)

    return peer


HF_LEARNING_RATE = 2e-3  # the best of 1e-3, 2e-3 and 4e-3 after a minute, one seed each


def hf(config: RunConfig, data: PreparedData, device: torch.device, length: int) -> tuple[nn.Module, Losses, Update]:
    """Hugging Face's model of the same architecture and size in a usual loop."""
    model = hf_twin(config.model, data.tokenizer.vocab_size).to(device)

    def losses(ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        return F.cross_entropy(model(input_ids=ids_bt).logits.flatten(0, 1), targets_bt.flatten())

    return model, losses, _adamw(model, HF_LEARNING_RATE, (0.9, 0.95), warmup=0.05)


def _adamw(model: nn.Module, lr: float, betas: tuple[float, float], warmup: float) -> Update:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)

    def update(done: float) -> None:
        rising = (done + 1e-3) / warmup if done < warmup else 1.0
        falling = max(0.0, done - warmup) / (1 - warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, rising) * (0.1 + 0.45 * (1 + math.cos(math.pi * falling)))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


# --- modded-nanogpt's recipe --------------------------------------------------------------------------------------
# What the speed runs of nanoGPT (github.com/KellerJordan/modded-nanogpt) found, at this size: norms without weights,
# rotary positions on half of each head, normalised queries and keys, squared ReLU, outputs and head that begin at zero,
# embeddings of values, a way back to the embedding and skips across the middle with learnt weights, soft-capped logits,
# NorMuon with the Polar Express; no clipping, no warm-up, no decay.


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


class Modded(nn.Module):
    """The model of the recipe."""

    N_VALUES = 2  # tables of value embeddings: in order for the first blocks, and again for the last

    def __init__(self, vocab_size: int, length: int, dim: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.values = nn.ModuleList(nn.Embedding(vocab_size, dim) for _ in range(self.N_VALUES))
        self.blocks = nn.ModuleList(_ModdedBlock(dim, n_heads) for _ in range(n_layers))
        self.head = nn.Linear(dim, vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)
        self.back = nn.Parameter(torch.tensor([[1.0, 0.0]]).repeat(n_layers, 1))  # of a block's input, of the embedding
        self.skips = nn.Parameter(torch.ones(n_layers // 2))
        rotated = dim // n_heads // 4  # pairs: half of a head
        angles = torch.outer(torch.arange(length), (1 / 1024) ** torch.linspace(0, 1, rotated))
        still = torch.zeros(length, dim // n_heads // 2 - rotated)
        self.angles = nn.Buffer(torch.cat([angles, still], dim=1), persistent=False)

    def forward(self, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        first = x_btd = _norm(self.tokens(ids_bt))
        angles = self.angles[: ids_bt.shape[1]]
        turn = angles.cos(), angles.sin()
        earlier: list[Tensor] = []
        half, last = len(self.blocks) // 2, len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            if number > last - half:
                x_btd = x_btd + self.skips[last - number] * earlier.pop()
            x_btd = self.back[number, 0] * x_btd + self.back[number, 1] * first
            table = number if number < self.N_VALUES else number - len(self.blocks) + self.N_VALUES
            x_btd = block(x_btd, self.values[table](ids_bt) if 0 <= table < self.N_VALUES else None, turn)
            if number < half:
                earlier.append(x_btd)
        logits_btv = self.head(_norm(x_btd)).float()
        return F.cross_entropy((15 * torch.tanh(logits_btv / 15)).flatten(0, 1), targets_bt.flatten())


class _ModdedBlock(nn.Module):
    SHARPNESS = 0.25  # of the attention: queries and keys have a fixed length

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)
        self.mix = nn.Parameter(torch.tensor([0.5, 0.5]))  # of the values, of their embeddings
        for linear in (self.qkv, self.up):
            nn.init.uniform_(linear.weight, -(bound := 0.5 * (3 / dim) ** 0.5), bound)
        for linear in (self.out, self.down):
            nn.init.zeros_(linear.weight)

    def forward(self, x_btd: Tensor, values_btd: Tensor | None, turn: tuple[Tensor, Tensor]) -> Tensor:
        b, t, d = x_btd.shape

        def heads(part_btd: Tensor) -> Tensor:
            return part_btd.view(b, t, self.n_heads, d // self.n_heads).transpose(1, 2)

        q_bhtk, k_bhtk, v_bhtk = map(heads, self.qkv(_norm(x_btd)).split(d, dim=2))
        if values_btd is not None:
            v_bhtk = self.mix[0] * v_bhtk + self.mix[1] * heads(values_btd)
        q_bhtk, k_bhtk = (_turned(_norm(part), *turn) for part in (q_bhtk, k_bhtk))
        mixed = F.scaled_dot_product_attention(q_bhtk, k_bhtk, v_bhtk, is_causal=True, scale=self.SHARPNESS)
        x_btd = x_btd + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x_btd + self.down(F.relu(self.up(_norm(x_btd))).square())


def _turned(x_bhtk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x_bhtk.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


# Amsel et al., 2025, arXiv:2505.16932: the polynomials of five steps, each the best one after those before it.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


class NorMuon(torch.optim.Optimizer):
    """Muon whose updates have rows of equal size over time (Li et al., 2025, arXiv:2510.05491)."""

    def __init__(self, matrices: list[nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": 0.85})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        (group,) = self.param_groups
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in group["params"]:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        for shape, matrices in by_shape.items():
            gradients_noi = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
            state = self.state[matrices[0]]
            if not state:
                state["momentum"] = torch.zeros_like(gradients_noi)
                state["squares"] = torch.zeros_like(gradients_noi[..., :1])
            state["momentum"].lerp_(gradients_noi, 1 - group["momentum"])
            update_noi = orthogonal(gradients_noi.lerp(state["momentum"], group["momentum"])).float()
            size = torch.linalg.vector_norm(update_noi, dim=(1, 2), keepdim=True)
            state["squares"].lerp_(update_noi.square().mean(dim=2, keepdim=True), 1 - 0.95)
            update_noi /= state["squares"].sqrt().clamp_min(1e-10)
            update_noi *= size / torch.linalg.vector_norm(update_noi, dim=(1, 2), keepdim=True).clamp_min(1e-10)
            lr = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
            for matrix, update in zip(matrices, update_noi, strict=True):
                matrix.sub_(update, alpha=lr)


def orthogonal(x_noi: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1, in bf16."""
    tall = x_noi.shape[1] > x_noi.shape[2]
    x = (x_noi.mT if tall else x_noi).bfloat16()
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


MATRIX_LR, OTHER_LR = 0.05, 0.01  # of ten settings tried, SHARPNESS among them, 200 steps of one seed each, the best
DECAY = 0.7  # last fraction of the steps, in which the learning rates fall to zero


def modded(config: RunConfig, data: PreparedData, device: torch.device, n_steps: int) -> Any:
    """The recipe of the speed runs at this size."""
    size = config.model
    model = Modded(data.tokenizer.vocab_size, config.seq_len, size.dim, size.n_layers, size.n_heads).to(device)
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = NorMuon(matrices, MATRIX_LR)
    adam = torch.optim.Adam(rest, lr=OTHER_LR, betas=(0.8, 0.95), eps=1e-10, fused=True)

    def update(done: float) -> None:
        factor = min(1.0, (1 - done) / DECAY)
        muon.param_groups[0]["momentum"] = 0.85 + 0.1 * min(1.0, done * n_steps / 300)
        for optimizer, lr in ((muon, MATRIX_LR), (adam, OTHER_LR)):
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return model, model, update


PEERS: dict[str, Peer] = {"published": nanogpt(1e-3), "tuned": nanogpt(4e-3), "modded": modded, "hf": hf}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(asdict(learnt(Learning(**json.loads(sys.argv[1]))))))
