"""Choice of the kernel for packed documents: the requested one, or the fastest that a probe finds exact.

The probe runs before training, forward and backward, with the run's device, dtype, head sizes and document bounds and
random queries, keys and values. It has its own generator, so that the run's random state does not change.
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
MAX_TIME_RATIO = 0.9  # to SDPA's, for another kernel to replace it: smaller differences are noise
ROUNDS = 5
CHECKED_ROWS = 2  # the reference needs t x t elements for each head and sequence
# Largest error over the largest element, against the reference in fp32. A pair that should be hidden and is not gives
# an error near 1; fp32's tolerance allows for TF32 tensor cores, which round to ten bits.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class KernelChoice:
    """A name of `DOCUMENT_KERNELS`, and the reason in a few words."""

    name: str
    reason: str


@dataclass(frozen=True)
class KernelContext:
    """Conditions of the choice besides the model's config."""

    documents_bt: Tensor | None  # of one batch, on the run's device; None = no document mask
    dtype: torch.dtype  # of queries, keys and values: mixed precision's
    deterministic: bool  # trainer.deterministic
    compiled: bool  # trainer.compile: the run pays for torch.compile in any case
    earlier: str | None = None  # the kernel that a resumed run has used so far


def choose_kernel(config: ModelConfig, given: KernelContext) -> KernelChoice:
    """Return the kernel that `config.attention` names, or the best one for auto.

    Raises ConfigError, with the reason, for a kernel that is not available.
    """
    asked, documents_bt = config.attention, given.documents_bt
    if asked in ("sdpa", "reference"):
        return KernelChoice(asked, "as requested")
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
    return KernelChoice(asked, "as requested")


def _automatic(config: ModelConfig, given: KernelContext, documents_bt: Tensor) -> KernelChoice:
    if given.earlier == FALL_BACK:
        return KernelChoice(FALL_BACK, "auto: as before")
    if given.deterministic:
        return KernelChoice(FALL_BACK, "auto: bit-reproducible, trainer.deterministic=true")
    if documents_bt.device.type == "cpu" and (config.resolved_attention_dropout or not given.compiled):
        # Documents of 20 tokens in fp32, forward and backward, against sdpa: 1.1 to 1.5 times as fast in sequences of
        # 256 and 5 times in 1,024; with dropout, which no fused CPU kernel has, 2.7 and 12 times. It breaks the graph
        # of torch.compile, which the fused kernel does not.
        return KernelChoice("padded", "auto: computes the fewest pairs on cpu")
    if not documents_bt.is_cuda:
        return KernelChoice(FALL_BACK, f"auto: varlen and flex need CUDA, this is {documents_bt.device.type}")
    if given.earlier in ON_CUDA:
        if problem := _problem(given.earlier, config, given, documents_bt):
            return KernelChoice(FALL_BACK, f"auto: {given.earlier}, used before, is not available: {problem}")
        return KernelChoice(given.earlier, "auto: as before")
    out = {name: _unsupported_reason(name, config, documents_bt.device) for name in ON_CUDA}
    if not given.compiled:
        # Even a probe of it would have to compile it.
        out["flex"] = out["flex"] or "compiles for a while, so only with trainer.compile=true or by name"
    left = {name: DOCUMENT_KERNELS[name] for name in (FALL_BACK, *out) if not out.get(name)}
    rejected = {name: reason for name, reason in out.items() if reason}
    return fastest(left, KernelProbe.of(config, documents_bt, given.dtype), rejected)


def _problem(name: str, config: ModelConfig, given: KernelContext, documents_bt: Tensor) -> str | None:
    """Return the reason why a kernel is not available; None = it is."""
    reason = _unsupported_reason(name, config, documents_bt.device)
    return reason or KernelProbe.of(config, documents_bt, given.dtype).problem(DOCUMENT_KERNELS[name])


def _unsupported_reason(name: str, config: ModelConfig, device: torch.device) -> str | None:
    """Return the reason, if one is known without a probe, why a kernel does not support this model or device."""
    if name in ON_CUDA and device.type != "cuda":
        return f"needs a CUDA device, this is {device.type}"
    if name in ON_CUDA and config.resolved_attention_dropout:
        return f"supports no attention dropout, and {_dropout(config)}"
    return None


def _dropout(config: ModelConfig) -> str:
    """Return the setting that decides about dropout of attention weights, with its value."""
    key = "model.dropout" if config.attention_dropout is None else "model.attention_dropout"
    return f"{key}={config.resolved_attention_dropout:g}"


def fastest(kernels: Mapping[str, DocumentKernel], trial: "KernelProbe", out: Mapping[str, str]) -> KernelChoice:
    """Return the fastest exact kernel; the fall-back, which must be in `kernels`, unless another is clearly faster.

    `out` has the kernels already rejected, with their reasons. A single remaining kernel is not timed.
    """
    out = dict(out)
    for name in kernels:
        if name != FALL_BACK and (problem := trial.problem(kernels[name])):
            out[name] = problem
    left = {name: kernel for name, kernel in kernels.items() if name not in out}
    seconds = trial.seconds(left) if len(left) > 1 else {FALL_BACK: 0.0}
    best = min(seconds, key=seconds.__getitem__)
    if seconds[best] > MAX_TIME_RATIO * seconds[FALL_BACK]:
        best = FALL_BACK
    timed = [f"{name} {1000 * seconds[name]:.2f} ms" for name in sorted(seconds, key=seconds.__getitem__)]
    times = [", ".join(timed)] if len(timed) > 1 else []
    return KernelChoice(best, "auto: " + "; ".join([*times, *(f"{name}: {reason}" for name, reason in out.items())]))


@dataclass(frozen=True)
class KernelProbe:
    """Random input of a run's own shape, to test and time kernels."""

    q_bhtk: Tensor
    k_bgtk: Tensor
    v_bgtk: Tensor
    gradient_bhtk: Tensor
    documents_bt: Tensor
    n_layers: int

    @classmethod
    def of(cls, config: ModelConfig, documents_bt: Tensor, dtype: torch.dtype) -> "KernelProbe":
        device, (n_rows, n_tokens) = documents_bt.device, documents_bt.shape
        generator = torch.Generator(device).manual_seed(0)

        def random(n_heads: int) -> Tensor:
            shape = (n_rows, n_heads, n_tokens, config.resolved_head_dim)
            return torch.randn(shape, dtype=dtype, device=device, generator=generator)

        q_bhtk, gradient_bhtk = random(config.n_heads), random(config.n_heads)
        k_bgtk, v_bgtk = random(config.resolved_n_kv_heads), random(config.resolved_n_kv_heads)
        return cls(q_bhtk, k_bgtk, v_bgtk, gradient_bhtk, documents_bt, config.n_layers)

    def problem(self, kernel: DocumentKernel) -> str | None:
        """Return the reason to reject a kernel: its exception, or its error against the reference; None = exact."""
        few = self.rows(CHECKED_ROWS)
        try:
            results = few.results(kernel)
            few.rows(1).results(kernel)  # the last batch of an epoch has fewer rows
        except Exception as error:  # a GPU, a driver and a compiler each raise types of their own
            return " ".join(f"{type(error).__name__}: {error}".split())[:120]
        exact = few.to(torch.float32).results(DOCUMENT_KERNELS["reference"])
        error = max(
            ((result.float() - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
            for result, expected in zip(results, exact, strict=True)
        )
        if not error <= TOLERANCE[self.q_bhtk.dtype]:  # written so that NaN is rejected too
            return f"not exact, off by {error:.1g}"
        return None

    def seconds(self, kernels: Mapping[str, DocumentKernel]) -> dict[str, float]:
        """Median seconds of a forward and backward pass over all layers.

        Kernels take turns, so that a disturbance does not hit one alone; the first round (compiling) does not count.
        """
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
        """Return output and gradients of queries, keys and values of the last of `n_layers` equal layers."""
        inputs = [x.detach().requires_grad_() for x in (self.q_bhtk, self.k_bgtk, self.v_bgtk)]
        with torch.enable_grad():
            attend = kernel(self.documents_bt)
            y_bhtk, gradients = self.q_bhtk, ()
            for _ in range(n_layers):
                y_bhtk = attend(*inputs)
                gradients = torch.autograd.grad(y_bhtk, inputs, self.gradient_bhtk)
        return (y_bhtk.detach(), *gradients)

    def rows(self, n_rows: int) -> "KernelProbe":
        """Return the probe with only the first sequences."""
        tensors = ("q_bhtk", "k_bgtk", "v_bgtk", "gradient_bhtk", "documents_bt")
        return replace(self, **{name: getattr(self, name)[:n_rows] for name in tensors})

    def to(self, dtype: torch.dtype) -> "KernelProbe":
        """Return the probe in another dtype."""
        tensors = ("q_bhtk", "k_bgtk", "v_bgtk", "gradient_bhtk")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in tensors})

    def _wait(self) -> None:
        if self.documents_bt.is_cuda:
            torch.cuda.synchronize(self.documents_bt.device)
