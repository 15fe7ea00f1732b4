"""Which kernel attends over packed documents: the one asked for, or the quickest that a probe finds exact.

The probe runs before training, on the run's own device, dtype, head sizes and document borders with random
queries, keys and values, forward and backward. It draws from a generator of its own: the run's stays as it was.
Letters: b batch, t time, h query heads, g key/value heads, k head width.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dtl.errors import ConfigError
from dtl.model.attention import DOCUMENT_KERNELS, DocumentKernel
from dtl.model.config import ModelConfig

FALL_BACK = "sdpa"
ON_CUDA = ("varlen", "flex")
SHARE_TO_WIN = 0.9  # of SDPA's time, at most, for another to take its place: less is noise
ROUNDS = 5
CHECKED_ROWS = 2  # the formula written out needs t x t numbers for each head and row
# Largest error over the largest number, against the formula in fp32. A pair seen that should be hidden is off by
# a good part of 1; fp32 leaves room for tensor cores that round to ten bits.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class KernelChoice:
    """A name of `DOCUMENT_KERNELS`, and the reason in a few words."""

    name: str
    reason: str


@dataclass(frozen=True)
class Circumstances:
    """What a choice depends on beside the model's config."""

    documents_bt: Tensor | None  # of one batch, on the run's device; None = no document mask
    dtype: torch.dtype  # of queries, keys and values: mixed precision's
    deterministic: bool  # the run asked for the same bits again
    compiled: bool  # the run pays for torch.compile in any case
    earlier: str | None = None  # what a run that is resumed has used so far


def choose_kernel(config: ModelConfig, given: Circumstances) -> KernelChoice:
    """The kernel that `config.attention` names, or the one that suits best where it says auto.

    Raises ConfigError, with the reason, for a name that cannot be had.
    """
    asked, documents_bt = config.attention, given.documents_bt
    if asked in ("sdpa", "reference"):
        return KernelChoice(asked, "asked for")
    if documents_bt is None:
        if asked == "auto":
            return KernelChoice(FALL_BACK, "auto: causal, no document mask")
        raise ConfigError(
            f"model.attention={asked}: is for the document mask, which this run does not use. "
            "Set data.document_mask=true with data.layout=packed, or model.attention=auto."
        )
    if asked == "auto":
        return _automatic(config, given, documents_bt)
    if problem := _problem(asked, config, given, documents_bt):
        raise ConfigError(f"model.attention={asked}: {problem}. Use model.attention=auto or sdpa.")
    return KernelChoice(asked, "asked for")


def _automatic(config: ModelConfig, given: Circumstances, documents_bt: Tensor) -> KernelChoice:
    if given.earlier == FALL_BACK:
        return KernelChoice(FALL_BACK, "auto: as before")
    if given.deterministic:
        return KernelChoice(FALL_BACK, "auto: the same bits again, trainer.deterministic=true")
    if documents_bt.device.type == "cpu" and config.dropout:
        return KernelChoice("padded", f"auto: no fused kernel drops weights on cpu, model.dropout={config.dropout:g}")
    if not documents_bt.is_cuda:
        return KernelChoice(FALL_BACK, f"auto: varlen and flex need CUDA, this is {documents_bt.device.type}")
    if given.earlier in ON_CUDA:
        if problem := _problem(given.earlier, config, given, documents_bt):
            return KernelChoice(FALL_BACK, f"auto: {given.earlier}, used before, is out: {problem}")
        return KernelChoice(given.earlier, "auto: as before")
    out = {name: _obstacle(name, config, documents_bt.device) for name in ON_CUDA}
    if not given.compiled:
        out["flex"] = out["flex"] or "compiles for a while, so only with trainer.compile=true or by name"
    left = {name: DOCUMENT_KERNELS[name] for name in (FALL_BACK, *out) if not out.get(name)}
    return quickest(left, Trial.of(config, documents_bt, given.dtype), {name: why for name, why in out.items() if why})


def _problem(name: str, config: ModelConfig, given: Circumstances, documents_bt: Tensor) -> str | None:
    """Why one kernel cannot be had; None = it can."""
    obstacle = _obstacle(name, config, documents_bt.device)
    return obstacle or Trial.of(config, documents_bt, given.dtype).problem(DOCUMENT_KERNELS[name])


def _obstacle(name: str, config: ModelConfig, device: torch.device) -> str | None:
    """What is known to stand in a kernel's way, before it is tried."""
    if name == "padded" and not config.dropout:
        return "is for dropout, and model.dropout=0"
    if name in ON_CUDA and device.type != "cuda":
        return f"needs a CUDA device, this is {device.type}"
    if name in ON_CUDA and config.dropout:
        return f"drops no attention weights, and model.dropout={config.dropout:g}"
    return None


def quickest(kernels: Mapping[str, DocumentKernel], trial: "Trial", out: Mapping[str, str]) -> KernelChoice:
    """The quickest kernel that is exact; the fall-back, which must be among them, unless another is clearly quicker.

    `out` names those that are out already, with their reasons. One kernel alone is not tried.
    """
    out = dict(out)
    for name in kernels:
        if name != FALL_BACK and (problem := trial.problem(kernels[name])):
            out[name] = problem
    left = {name: kernel for name, kernel in kernels.items() if name not in out}
    seconds = trial.seconds(left) if len(left) > 1 else {FALL_BACK: 0.0}
    best = min(seconds, key=seconds.__getitem__)
    if seconds[best] > SHARE_TO_WIN * seconds[FALL_BACK]:
        best = FALL_BACK
    timed = [f"{name} {1000 * seconds[name]:.2f} ms" for name in sorted(seconds, key=seconds.__getitem__)]
    told = [", ".join(timed)] if len(timed) > 1 else []
    return KernelChoice(best, "auto: " + "; ".join([*told, *(f"{name}: {reason}" for name, reason in out.items())]))


@dataclass(frozen=True)
class Trial:
    """Random input of a run's own shape, to try kernels with."""

    q_bhtk: Tensor
    k_bgtk: Tensor
    v_bgtk: Tensor
    gradient_bhtk: Tensor
    documents_bt: Tensor
    n_layers: int

    @classmethod
    def of(cls, config: ModelConfig, documents_bt: Tensor, dtype: torch.dtype) -> "Trial":
        device, (n_rows, n_tokens) = documents_bt.device, documents_bt.shape
        generator = torch.Generator(device).manual_seed(0)

        def random(n_heads: int) -> Tensor:
            shape = (n_rows, n_heads, n_tokens, config.resolved_head_dim)
            return torch.randn(shape, dtype=dtype, device=device, generator=generator)

        q_bhtk, gradient_bhtk = random(config.n_heads), random(config.n_heads)
        k_bgtk, v_bgtk = random(config.resolved_n_kv_heads), random(config.resolved_n_kv_heads)
        return cls(q_bhtk, k_bgtk, v_bgtk, gradient_bhtk, documents_bt, config.n_layers)

    def problem(self, kernel: DocumentKernel) -> str | None:
        """Why a kernel is out: what it raised, or how far it is from the formula; None when it is exact."""
        few = self.rows(CHECKED_ROWS)
        try:
            found = few.results(kernel)
            few.rows(1).results(kernel)  # the last batch of an epoch has fewer rows
        except Exception as error:  # whatever a card, a driver or a compiler has to say
            return " ".join(f"{type(error).__name__}: {error}".split())[:120]
        exact = few.to(torch.float32).results(DOCUMENT_KERNELS["reference"])
        error = max(
            ((one.float() - other).abs().max() / other.abs().max().clamp(min=1)).item()
            for one, other in zip(found, exact, strict=True)
        )
        if not error <= TOLERANCE[self.q_bhtk.dtype]:  # a NaN is out, too
            return f"not exact, off by {error:.1g}"
        return None

    def seconds(self, kernels: Mapping[str, DocumentKernel]) -> dict[str, float]:
        """Median seconds of a forward and backward pass over all layers; kernels take turns, after one unmeasured."""
        rounds: dict[str, list[float]] = {name: [] for name in kernels}
        for _ in range(1 + ROUNDS):
            for name, kernel in kernels.items():
                self._wait()
                began = time.perf_counter()
                self.results(kernel, self.n_layers)
                self._wait()
                rounds[name].append(time.perf_counter() - began)
        return {name: statistics.median(times[1:]) for name, times in rounds.items()}

    def results(self, kernel: DocumentKernel, n_layers: int = 1) -> tuple[Tensor, ...]:
        """Output, and gradients of queries, keys and values, of the last of `n_layers` equal layers."""
        inputs = [x.detach().requires_grad_() for x in (self.q_bhtk, self.k_bgtk, self.v_bgtk)]
        with torch.enable_grad():
            attend = kernel(self.documents_bt)
            y_bhtk, gradients = self.q_bhtk, ()
            for _ in range(n_layers):
                y_bhtk = attend(*inputs)
                gradients = torch.autograd.grad(y_bhtk, inputs, self.gradient_bhtk)
        return (y_bhtk.detach(), *gradients)

    def rows(self, n_rows: int) -> "Trial":
        """The first rows alone."""
        tensors = ("q_bhtk", "k_bgtk", "v_bgtk", "gradient_bhtk", "documents_bt")
        return replace(self, **{name: getattr(self, name)[:n_rows] for name in tensors})

    def to(self, dtype: torch.dtype) -> "Trial":
        """The same numbers in another dtype."""
        tensors = ("q_bhtk", "k_bgtk", "v_bgtk", "gradient_bhtk")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in tensors})

    def _wait(self) -> None:
        if self.documents_bt.is_cuda:
            torch.cuda.synchronize(self.documents_bt.device)
