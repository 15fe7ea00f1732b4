"""One side of suite=step, a program of its own: optimizer steps of one model on this device, timed.

python -m dtl.benchmarks.step_sides '{"side": "dtl", "task": "text", "precision": "bf16", ...}'

Prints one line of JSON: seconds and targets of each timed step, the loss of the first one, the peak memory. On a CPU
the seconds are those of the processor, which a wait for other programs does not lengthen. b batch, t time, d width.
"""

import importlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtl.base.runtime import DTYPES, autocast, choose_device, choose_precision, peak_memory_bytes, seed_everything
from dtl.model.config import ModelConfig
from dtl.model.presets import load_preset

if TYPE_CHECKING:
    from dtl.data.batches import Batch, PackedSequences
    from dtl.training.trainer import StepReport


@dataclass(frozen=True)
class Work:
    """What a side is to do."""

    side: str  # dtl | nanogpt | hf
    task: str  # text: full sequences | qa: questions with their answers, packed by DTL and padded by the peer
    precision: str  # fp32 | bf16 | auto: that of a run on this device
    steps: int  # timed ones, after one that is not
    vocab_size: int
    rows: int  # sequences a step
    length: int  # tokens a sequence
    size: dict[str, Any]  # of the model, beside or instead of the preset's
    seed: int
    device: str


@dataclass(frozen=True)
class Timed:
    """What a side did."""

    seconds: list[float]  # of each step
    targets: list[int]  # tokens with a loss in each step
    first_loss: float  # nats, of the first step: near log(vocab_size)
    peak_bytes: int  # of the process, on a GPU of its tensors there
    precision: str  # what was computed in


Step = Callable[[], tuple[Tensor, int]]  # takes a step; its loss, shape (), and number of targets
PAIRS_PER_STEP = 48  # of the peer: about as many as DTL packs into its rows
PROMPT, ANSWER = (8, 20), (2, 7)  # tokens of a question and of an answer with its end: those of the shipped facts
LEARNING_RATE = 1e-3


def timed(work: Work) -> Timed:
    """Take the steps of a side."""
    seed_everything(work.seed)
    device, _ = choose_device(work.device)
    work = replace(work, precision=choose_precision(work.precision, device)[0])
    on_cpu = device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    step = SIDES[work.side, work.task](work, device)
    first_loss, _ = step()
    seconds, targets = [], []
    for _ in range(work.steps):
        began = clock()
        loss, n_targets = step()
        loss.item()  # waits for the device
        seconds.append(clock() - began)
        targets.append(n_targets)
    return Timed(seconds, targets, first_loss.item(), peak_memory_bytes(device), work.precision)


# --- DTL ----------------------------------------------------------------------------------------------------------


def dtl(work: Work, device: torch.device) -> Step:
    """Steps of DTL's own trainer on packed sequences, with the head, the kernels and the optimizer of a run."""
    n_targets = [0]

    def count(batches: "list[Batch]", seconds: float) -> None:
        n_targets[0] = sum(batch.n_targets for batch in batches)

    model = model_config(work), work.vocab_size
    reports = steps_on(
        sequences(work), *model, device, work.precision, work.seed, work.rows, n_steps=work.steps + 1, loaded=count
    )

    def step() -> tuple[Tensor, int]:
        loss = next(reports).loss
        return loss, n_targets[0]

    return step


def steps_on(
    made: "PackedSequences", config: ModelConfig, vocab_size: int, device: torch.device, precision: str, seed: int,
    rows: int, n_steps: int, loaded: "Callable[[list[Batch], float], None]",
) -> "Iterator[StepReport]":  # fmt: skip
    """Return the steps of DTL's trainer with a new model on these sequences, `rows` a step.

    `loaded` is called with the batches of each step, and the seconds that it took to load them.
    """
    from dtl.data.batches import TrainingData
    from dtl.model.kernel_choice import KernelContext, choose_kernel
    from dtl.model.transformer import TransformerLM
    from dtl.training.config import OptimizerConfig, ScheduleConfig, TrainerConfig
    from dtl.training.optimizer import build_optimizers
    from dtl.training.trainer import Trainer

    class Watched(Trainer):
        def next_batches(self) -> "list[Batch]":
            began = time.perf_counter()
            batches = super().next_batches()
            loaded(batches, time.perf_counter() - began)
            return batches

    model = TransformerLM(config, vocab_size).to(device)
    data = TrainingData({"made": made}, {"made": 1.0})
    documents_bt = data.batch(range(rows)).to(device).documents
    context = KernelContext(documents_bt, DTYPES[precision], False, False, None)
    model.document_kernel = choose_kernel(model.config, context).name
    return Watched(
        model, build_optimizers(model, OptimizerConfig(lr=LEARNING_RATE)), data, TrainerConfig(), ScheduleConfig(),
        seed=seed, micro_batch_size=rows, grad_accum_steps=1, horizon=n_steps, last_step=n_steps, precision=precision,
    ).steps()  # fmt: skip


def model_config(work: Work) -> ModelConfig:
    """The shape of every side."""
    return load_preset("small", **work.size)


def sequences(work: Work) -> Any:
    """Random tokens: one stream in full sequences, or packed pairs with a loss on their answers."""
    import numpy as np

    from dtl.data.batches import PackedSequences
    from dtl.data.pack import pack_documents, pack_stream

    n_rows = work.rows * (work.steps + 1)
    if work.task == "text":
        dice = np.random.default_rng(work.seed)
        tokens = dice.integers(0, work.vocab_size, n_rows * work.length + 1).astype(np.uint16)
        return PackedSequences(tokens, pack_stream(len(tokens), work.length), pad_id=0)
    texts, answers = [], []
    pairs = pairs_of(work)
    while sum(map(len, texts)) < 1.1 * n_rows * work.length:
        prompt, answer = next(pairs)
        texts.append(prompt + answer)
        answers.append([False] * len(prompt) + [True] * len(answer))
    offsets = np.cumsum([0, *map(len, texts)])
    mask = np.concatenate(answers)
    tokens = np.concatenate(texts).astype(np.uint16)
    packing = pack_documents(offsets, work.length, mask)
    return PackedSequences(tokens, packing, pad_id=0, loss_mask=mask, document_mask=True)


def pairs_of(work: Work) -> Iterator[tuple[list[int], list[int]]]:
    """Yield questions and answers of random tokens without end."""
    dice = random.Random(work.seed)
    while True:
        lengths = dice.randint(*PROMPT), dice.randint(*ANSWER)
        prompt, answer = ([dice.randrange(work.vocab_size) for _ in range(length)] for length in lengths)
        yield prompt, answer


# --- peers --------------------------------------------------------------------------------------------------------


class NanoGPT(nn.Module):
    """GPT-2 as nanoGPT has it: no biases, one matrix for q, k and v, tied head, the cross-entropy of all logits."""

    def __init__(self, vocab_size: int, length: int, dim: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab_size, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(_NanoBlock(dim, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        self.tokens.weight = self.head.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                depth = (2 * n_layers) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(parameter, std=0.02 * depth)

    def forward(self, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        x_btd = self.tokens(ids_bt) + self.places.weight[: ids_bt.shape[1]]
        for block in self.blocks:
            x_btd = block(x_btd)
        return F.cross_entropy(self.head(self.norm(x_btd)).flatten(0, 1), targets_bt.flatten())


class _NanoBlock(nn.Module):
    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.before, self.between = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        b, t, d = x_btd.shape
        q, k, v = (
            part.view(b, t, self.n_heads, d // self.n_heads).transpose(1, 2)
            for part in self.qkv(self.before(x_btd)).split(d, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        x_btd = x_btd + self.out(mixed)
        return x_btd + self.down(F.gelu(self.up(self.between(x_btd))))


def nanogpt(work: Work, device: torch.device) -> Step:
    """Steps of nanoGPT's loop: autocast, gradients clipped at 1, AdamW (fused on a GPU), decay on matrices."""
    config = model_config(work)
    model = NanoGPT(work.vocab_size, work.length, config.dim, config.n_layers, config.n_heads).to(device)
    return bare_loop(work, device, model, lambda ids, labels: model(ids, labels), fused=device.type == "cuda")


def hf_twin(config: ModelConfig, vocab_size: int) -> Any:
    """Hugging Face's model of the same architecture and shape."""
    from dtl.model.hf import hf_config

    settings = hf_config(config, vocab_size, eos_id=0, bos_id=0, pad_id=0)
    transformers = importlib.import_module("transformers")
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings))


def hf_text(work: Work, device: torch.device) -> Step:
    """Steps of Hugging Face's model of the same architecture in the same bare loop, its AdamW fused."""
    model = hf_twin(model_config(work), work.vocab_size).to(device)

    def loss_of(ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        return F.cross_entropy(model(input_ids=ids_bt).logits.flatten(0, 1), targets_bt.flatten())

    return bare_loop(work, device, model, loss_of, fused=True)


def bare_loop(
    work: Work, device: torch.device, model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], fused: bool
) -> Step:
    """A training loop of a dozen lines, on random tokens."""
    update = _updates(model, fused)
    model.train()

    def step() -> tuple[Tensor, int]:
        ids = torch.randint(work.vocab_size, (work.rows, work.length + 1)).to(device)
        with autocast(device, work.precision):
            loss = loss_of(ids[:, :-1], ids[:, 1:])
        update(loss)
        return loss.detach(), work.rows * work.length

    return step


def hf_pairs(work: Work, device: torch.device) -> Step:
    """Steps of Hugging Face's model on padded pairs, the answers as labels, as its users train it."""
    model = hf_twin(model_config(work), work.vocab_size).to(device)
    update = _updates(model, fused=True)
    model.train()
    pairs = pairs_of(work)

    def step() -> tuple[Tensor, int]:
        batch = [next(pairs) for _ in range(PAIRS_PER_STEP)]
        longest = max(len(prompt) + len(answer) for prompt, answer in batch)
        ids = torch.zeros((len(batch), longest), dtype=torch.int64)
        labels, seen = torch.full_like(ids, -100), torch.zeros_like(ids)
        for number, (prompt, answer) in enumerate(batch):
            end = len(prompt) + len(answer)
            ids[number, :end] = torch.tensor(prompt + answer)
            labels[number, len(prompt) : end] = torch.tensor(answer)
            seen[number, :end] = 1
        with autocast(device, work.precision):
            loss = model(input_ids=ids.to(device), labels=labels.to(device), attention_mask=seen.to(device)).loss
        update(loss)
        return loss.detach(), sum(len(answer) for _, answer in batch)

    return step


def _updates(model: nn.Module, fused: bool) -> Callable[[Tensor], None]:
    """What follows the loss: gradients, clipped at a norm of 1, and AdamW with decay on matrices."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=fused)

    def update(loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


SIDES: dict[tuple[str, str], Callable[[Work, torch.device], Step]] = {
    ("dtl", "text"): dtl,
    ("dtl", "qa"): dtl,
    ("nanogpt", "text"): nanogpt,
    ("hf", "text"): hf_text,
    ("hf", "qa"): hf_pairs,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(asdict(timed(Work(**json.loads(sys.argv[1]))))))
