"""Checks and measurements that need a GPU, at most eight minutes: python tests/gpu/run.py [out=FILE] [only=REGEX]

Shows a table, writes one JSON file (outputs/gpu.json) and exits with 1 if a check fails. device=cpu, the default where
there is no GPU, is a dry run with tiny sizes: it tests this script, and names what it cannot check.

b batch, t time, d model width, n positions with a target, v vocabulary
"""

import copy
import functools
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtl.base.display import aligned
from dtl.base.runtime import (
    arithmetic,
    autocast,
    choose_device,
    device_name,
    peak_flops,
    peak_memory_bytes,
    seed_everything,
)
from dtl.data.batches import PackedSequences, TrainingData
from dtl.data.pack import pack_documents, pack_stream
from dtl.model.config import ModelConfig
from dtl.model.presets import load_preset
from dtl.model.transformer import TransformerLM
from dtl.training.config import LossConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
from dtl.training.loss import CHUNK_BYTES, cross_entropy, hidden_at_targets
from dtl.training.optimizer import build_optimizers, optimizer_tensors
from dtl.training.trainer import NonFiniteError, Trainer

BUDGET_SECONDS = 480


@dataclass(frozen=True)
class Sizes:
    """Sizes of the checks; `model` changes presets."""

    model: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 50_257
    shapes: tuple[tuple[int, int], ...] = ((8, 256), (8, 512))  # sequences x tokens of `large`
    n_positions: int = 1501  # of the head: several chunks, the last one short
    chunk_bytes: int = CHUNK_BYTES
    side: int = 8192  # of square matrices
    steps: int = 10  # timed ones


TINY = Sizes(
    {"dim": 20, "n_layers": 2, "n_heads": 2, "ffn_dim": 24, "max_seq_len": 32},
    vocab_size=97, shapes=((2, 16), (2, 32)), n_positions=53, chunk_bytes=17 * 4 * 97, side=64, steps=2,
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Device of the checks and their sizes."""

    device: torch.device
    sizes: Sizes

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done what is queued."""
        if self.on_card:
            torch.cuda.synchronize(self.device)


Values = dict[str, Any]  # of a check, for the JSON file; `skipped` says what a dry run cannot check
CHECKS: dict[str, Callable[[Machine], Values]] = {}


def check(function: Callable[[Machine], Values]) -> Callable[[Machine], Values]:
    """Register a check under the name of its function; it fails by raising."""
    CHECKS[function.__name__] = function
    return function


# --- what is checked ----------------------------------------------------------------------------------------------


def trainer_on(
    machine: Machine, preset: str = "small", *, shape: tuple[int, int] | None = None, optimizer: str = "adamw",
    state_dtype: str = "fp32", masked: bool = False, packed: bool = False, **settings: Any,
) -> Trainer:  # fmt: skip
    """Return a trainer in bf16 without dropout on random tokens; `masked`: their number with a loss varies.

    `packed`: in documents of different lengths, each of which attends to itself alone, by flash attention on a GPU.
    """
    seed_everything(0)
    rows, length = shape or machine.sizes.shapes[0]
    config: ModelConfig = load_preset(preset, dropout=0.0, **machine.sizes.model)
    dice = np.random.default_rng(0)
    n_tokens = 64 * rows * length + 1
    tokens = dice.integers(0, machine.sizes.vocab_size, n_tokens).astype(np.uint16)
    # Longer and shorter stretches without a loss, so that no two batches have the same number of targets.
    mask = (np.arange(n_tokens) % 97 < 31 + np.arange(n_tokens) // 97 % 13) if masked else None
    offsets = np.cumsum([0, *dice.integers(2, length, 2 * n_tokens // length)])
    packing = pack_documents(offsets[offsets < n_tokens], length) if packed else pack_stream(n_tokens, length)
    made = PackedSequences(tokens, packing, pad_id=0, loss_mask=mask, document_mask=packed)
    model = TransformerLM(replace(config, max_seq_len=max(config.max_seq_len, length)), machine.sizes.vocab_size)
    model.to(machine.device)
    if machine.on_card:
        model.document_kernel = "varlen"
    optimizers = build_optimizers(model, OptimizerConfig(name=optimizer, state_dtype=state_dtype))
    trainer = Trainer(
        model, optimizers, TrainingData({"made": made}, {"made": 1.0}), TrainerConfig(**settings),
        ScheduleConfig(warmup_steps=2), seed=0, micro_batch_size=rows, grad_accum_steps=1, horizon=60, last_step=60,
        precision="bf16",
    )  # fmt: skip
    if not machine.on_card:
        trainer.check_late()
    return trainer


@contextmanager
def no_waits(machine: Machine) -> Iterator[None]:
    """Raise RuntimeError for whatever waits for the GPU inside the context."""
    if not machine.on_card:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def relative_error(x: Tensor, exact: Tensor) -> float:
    """Return the norm of the error over the norm of the exact tensor."""
    return ((x.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def expect(holds: bool, message: str) -> None:
    """Raise AssertionError where something does not hold; an `assert` is not there with `python -O`."""
    if not holds:
        raise AssertionError(message)


@check
def head(machine: Machine) -> Values:
    """The chunked cross-entropy is the plain one, in value and gradients, as near as its precision allows."""
    seed_everything(1)
    sizes, width = machine.sizes, load_preset("large", **machine.sizes.model).dim
    layer = nn.Linear(width, sizes.vocab_size, bias=False).to(machine.device)
    with torch.no_grad():
        layer.weight.normal_(std=0.05)
    x_nd = torch.randn(sizes.n_positions, width, device=machine.device)
    targets_n = torch.randint(0, sizes.vocab_size, (sizes.n_positions,), device=machine.device)

    def of(loss: Callable[[nn.Module, Tensor], Tensor], precision: str) -> list[Tensor]:
        dtype = torch.float64 if precision == "fp64" else torch.float32
        own, x = copy.deepcopy(layer).to(dtype), x_nd.detach().to(dtype).requires_grad_()
        with autocast(machine.device, "fp32" if precision == "fp64" else precision):
            total = loss(own, x)
        total.backward()
        assert x.grad is not None and own.weight.grad is not None
        return [total.detach(), x.grad, own.weight.grad]

    def plain(own: nn.Module, x: Tensor) -> Tensor:
        logits_nv = own(x)
        return F.cross_entropy(
            logits_nv if logits_nv.dtype == torch.float64 else logits_nv.float(), targets_n, reduction="sum"
        )

    def chunked(own: nn.Module, x: Tensor) -> Tensor:
        with patch("dtl.training.loss.CHUNK_BYTES", sizes.chunk_bytes):
            return cross_entropy(own, x, targets_n, LossConfig())

    exact = [x.double() for x in of(plain, "fp64")]
    values: Values = {}
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 1e-2)):
        names = ("loss", "by input", "by weight")
        for name, ours, theirs, wanted in zip(names, of(chunked, precision), of(plain, precision), exact, strict=True):
            error, plain_error = relative_error(ours, wanted), relative_error(theirs, wanted)
            values[f"{precision} {name}"] = {"error": error, "plain": plain_error}
            limit = max(tolerance, 1.5 * plain_error)
            expect(error <= limit, f"{precision} {name}: error {error:.2e}, of the plain one {plain_error:.2e}")
    return values


@check
def no_sync(machine: Machine) -> Values:
    """No step waits for the GPU: whole, masked and packed sequences, AdamW and Muon, averaged weights."""
    cases: list[dict[str, Any]] = [{}, {"state_dtype": "bf16"}]
    cases += [{"masked": True, "ema_decay": 0.9}, {"masked": True, "optimizer": "muon"}]
    if not machine.on_card or torch.cuda.get_device_capability(machine.device) >= (8, 0):  # for flash attention
        cases.append({"packed": True})
    for case in cases:
        trainer = trainer_on(machine, **case)
        steps = trainer.steps()
        for _ in range(3):  # optimizer states, workspaces, pinned memory
            next(steps)
        with no_waits(machine):
            for _ in range(3):
                next(steps)
        trainer.confirm()
    values: Values = {"steps": 3 * len(cases)}
    return values if machine.on_card else values | {"skipped": "waits are seen on CUDA alone (set_sync_debug_mode)"}


@check
def non_finite(machine: Machine) -> Values:
    """A step that is not finite changes no bit of weights, averages or optimizer states, and is named."""
    for optimizer, state_dtype in (("adamw", "fp32"), ("adamw", "bf16"), ("muon", "fp32")):
        trainer = trainer_on(machine, optimizer=optimizer, state_dtype=state_dtype, ema_decay=0.9)
        loss, steps = trainer.loss, trainer.steps()
        for _ in range(3):
            next(steps)

        def tensors(trainer: Trainer = trainer) -> list[Tensor]:
            state = optimizer_tensors(trainer.model, trainer.optimizers).values()
            return [*trainer.model.parameters(), *trainer.evaluated_model.parameters(), *state]

        before = [x.detach().clone() for x in tensors()]
        trainer.loss = lambda *arguments, loss=loss: loss(*arguments) * float("nan")
        next(steps)
        trainer.loss = loss
        try:
            next(steps)
        except NonFiniteError as error:
            expect(
                error.record["step"] == 4 == trainer.state.step + 1, f"{optimizer}: names step {error.record['step']}"
            )
        else:
            raise AssertionError(f"{optimizer}: no error")
        changed = sum(not torch.equal(now, then) for now, then in zip(tensors(), before, strict=True))
        expect(changed == 0, f"{optimizer}: {changed} of {len(before)} tensors changed")
    return {}


@check
def one_graph(machine: Machine) -> Values:
    """Hidden states and loss are one graph, whose values are the eager ones."""
    trainer = trainer_on(machine)
    model, batch = trainer.model, trainer.next_batches()[0].to(machine.device)
    n_targets, max_documents = batch.targets.numel(), batch.max_documents

    def loss() -> Tensor:
        with autocast(machine.device, "bf16"):
            x_nd, targets_n = hidden_at_targets(model.hidden, batch, n_targets, max_documents)
            return cross_entropy(model.head, x_nd, targets_n, LossConfig()) / n_targets

    torch._dynamo.reset()
    graph = torch.compile(loss, backend="eager", fullgraph=True)().item()
    eager = loss().item()
    expect(abs(graph - eager) <= 1e-3 * abs(eager), f"loss {graph} in one graph, {eager} eager")
    return {"loss": eager}


@check
def compiled(machine: Machine) -> Values:
    """trainer.compile=true compiles once: no graph breaks, and nothing again after the third step."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    log = logging.getLogger("dtl.training.trainer")
    log.addHandler(handler)
    backend = {} if machine.on_card else {"backend": "eager"}
    try:
        with patch("torch.compile", functools.partial(torch.compile, **backend)):
            trainer = trainer_on(machine, masked=True, compile=True)
            steps = trainer.steps()
            began = time.monotonic()
            for _ in range(3):
                next(steps)
            machine.wait()
            seconds, graphs = time.monotonic() - began, counters["stats"]["unique_graphs"]
            for _ in range(machine.sizes.steps):
                next(steps)
    finally:
        log.removeHandler(handler)
    expect(not warnings, "; ".join(warnings))
    breaks, new = dict(counters["graph_break"]), counters["stats"]["unique_graphs"] - graphs
    expect(not breaks, f"graph breaks: {breaks}")
    expect(new == 0 and graphs > 0, f"{graphs} graphs in three steps, {new} more in {machine.sizes.steps}")
    values: Values = {"graphs": graphs, "first three steps s": round(seconds, 1)}
    return values if machine.on_card else values | {"skipped": "no compiler: backend=eager, which only traces"}


# --- what is measured ---------------------------------------------------------------------------------------------


def seconds_of(machine: Machine, work: Callable[[], Any], n: int) -> float:
    """Return the seconds of one of `n` calls, after two that warm up."""
    for _ in range(2):
        work()
    machine.wait()
    began = time.perf_counter()
    for _ in range(n):
        work()
    machine.wait()
    return (time.perf_counter() - began) / n


def product_rate(machine: Machine, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a product of large square matrices."""
    side = machine.sizes.side
    a, b = (torch.randn(side, side, device=machine.device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(machine, lambda: a @ b, 10)


@check
def products(machine: Machine) -> Values:
    """Rates of products; those of fp32 are exact unless TF32 is asked for."""
    a, b = (torch.randn(512, 512, device=machine.device) for _ in range(2))
    exact = a.double() @ b.double()
    values: Values = {}
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
    ):
        with arithmetic(deterministic=False, tf32=tf32):
            values[f"{name} TFLOP/s"] = round(product_rate(machine, dtype) / 1e12, 3)
            if dtype == torch.float32:
                values[f"{name} error"] = relative_error(a @ b, exact)
    expect(values["fp32 error"] < 1e-5, f"fp32: error {values['fp32 error']:.1e}")
    if not machine.on_card:
        return values | {"skipped": "TF32 is of CUDA alone"}
    return values


@check
def large(machine: Machine) -> Values:
    """Speed, model FLOP utilization (MFU) and peak memory of model=large in bf16, eager and compiled."""
    ceiling = product_rate(machine, torch.bfloat16)
    sheet = peak_flops(machine.device, "bf16")  # None: the MFU is that of the measured products alone
    values: Values = {}
    runs = [(shape, False) for shape in machine.sizes.shapes] + [(machine.sizes.shapes[0], True)] * machine.on_card
    for shape, compile_it in runs:
        if machine.on_card:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(machine.device)
        trainer = trainer_on(machine, "large", shape=shape, compile=compile_it)
        steps = trainer.steps()
        next(steps)
        seconds = seconds_of(machine, lambda steps=steps: next(steps), machine.sizes.steps)
        trainer.confirm()
        rate = shape[0] * shape[1] / seconds
        flops = rate * trainer.model.flops_per_token(shape[1])
        values[f"{shape[0]} x {shape[1]}{' compiled' * compile_it}"] = {
            "tokens/s": round(rate),
            "ms": round(1000 * seconds, 2),
            "MFU": None if sheet is None else round(flops / sheet, 3),
            "of measured products": round(flops / ceiling, 3),
            "peak GiB": round(peak_memory_bytes(machine.device) / 2**30, 2),
        }
        del trainer, steps
    skipped = {} if machine.on_card else {"skipped": "a tiny model on a CPU: no speed, no MFU, no memory of a GPU"}
    return values | skipped


# --- the program ----------------------------------------------------------------------------------------------------


def run(device: torch.device, only: str = "") -> Values:
    """Take the checks whose names match `only`; return the content of the JSON file."""
    machine = Machine(device, Sizes() if device.type == "cuda" else TINY)
    began, results = time.monotonic(), {}
    for name, take in CHECKS.items():
        started = time.monotonic()
        if not re.search(only, name):
            result: Values = {"state": "skipped", "skipped": f"only={only}"}
        elif started - began > BUDGET_SECONDS - 60:
            result = {"state": "skipped", "skipped": f"less than a minute left of {BUDGET_SECONDS} s"}
        else:
            try:
                values = take(machine)
                result = {"state": "dry run" if "skipped" in values else "passed"} | values
            except Exception as error:
                result = {
                    "state": "failed",
                    "error": f"{type(error).__name__}: {error}",
                    "trace": traceback.format_exc(),
                }
        results[name] = result | {"seconds": round(time.monotonic() - started, 1)}
        print(f"{name}: {results[name]['state']}", file=sys.stderr, flush=True)
    return {
        "dry_run": not machine.on_card,
        "device": device_name(device),
        "torch": str(torch.__version__),
        "seconds": round(time.monotonic() - began, 1),
        "checks": results,
    }


def lines_of(report: Values) -> Iterator[str]:
    """Yield the report as a table."""
    yield f"{report['device']}, torch {report['torch']}, {report['seconds']:.0f} s"
    if report["dry_run"]:
        yield "Dry run with tiny sizes: nothing below is about a GPU."
    rows = []
    for name, result in report["checks"].items():
        first = result.get("error") or result.get("skipped") or ""
        rows.append((name, result["state"], f"{result['seconds']:.1f} s", first.splitlines()[0] if first else ""))
        for key, value in result.items():
            if isinstance(value, dict):
                rows.append(
                    (
                        "",
                        key,
                        "",
                        ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()),
                    )
                )
            elif key not in ("state", "seconds", "error", "trace", "skipped"):
                rows.append(("", key, "", f"{value:.3g}" if isinstance(value, float) else str(value)))
    yield from (line.rstrip() for line in aligned(rows))


def main(words: list[str]) -> int:
    """Run the checks as the command line says; return the exit code."""
    given = dict(word.partition("=")[::2] for word in words)
    if unknown := given.keys() - {"device", "out", "only"}:
        print(f"{sorted(unknown)[0]}: unknown. Known: device=cuda|cpu out=FILE only=REGEX", file=sys.stderr)
        return 2
    device, _ = choose_device(given.get("device", "cuda" if torch.cuda.is_available() else "cpu"))
    report = run(device, given.get("only", ""))
    out = Path(given.get("out", "outputs/gpu.json"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    with suppress(BrokenPipeError):
        print("\n".join(lines_of(report)))
        print(f"written to {out}")
    return int(any(result["state"] == "failed" for result in report["checks"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
