"""Everything that depends on the machine: device, precision, random states, memory, fingerprint."""

import base64
import contextlib
import ctypes
import functools
import gc
import os
import platform
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dtl.base.safe_text import safe_logger
from dtl.base.system import container_limit, installed_memory, peak_process_memory, processor_features
from dtl.base.units import number_of
from dtl.errors import ConfigError

log = safe_logger(__name__)

T = TypeVar("T")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


ALLOCATOR = "PYTORCH_ALLOC_CONF"
OTHER_ALLOCATORS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # the same under torch's earlier names


# --- device and precision -------------------------------------------------------------------------------------


def choose_device(requested: str) -> tuple[torch.device, str]:
    """Return the device to compute on and the reason in a few words. `auto` prefers CUDA, then MPS, then CPU.

    Raises ConfigError when the requested device is not available.
    """
    set_cuda_allocator()
    if requested == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "auto: no CUDA, Apple GPU found"
        return torch.device("cpu"), f"auto: no CUDA and no MPS, {number_of('threads', torch.get_num_threads())}"
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise ConfigError(f"device={requested}: one of auto, cpu, cuda, cuda:0, mps.") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise ConfigError(
            f"device={requested}: not available here. {nvidia_without_cuda() or 'Use device=auto or device=cpu.'}"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={requested}: this machine has {torch.cuda.device_count()} CUDA devices.")
    return device, "as requested"


def device_name(device: torch.device) -> str:
    """The device for a person: `cuda, NVIDIA GeForce RTX 4060`; `cpu, 2 threads`."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {number_of('threads', torch.get_num_threads())}" if device.type == "cpu" else str(device)


def nvidia_without_cuda() -> str | None:
    """A message with the command that fixes it, when there is an NVIDIA GPU but torch was built for CPU only."""
    if torch.version.cuda is not None or torch.version.hip is not None or torch.cuda.is_available():
        return None
    if not Path("/proc/driver/nvidia/version").exists() and shutil.which("nvidia-smi") is None:
        return None
    return (
        "This machine has an NVIDIA card, but this torch is a CPU build. Fix it with: "
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
    )


def choose_precision(requested: str, device: torch.device) -> tuple[str, str]:
    """Return `fp32`, `bf16` or `fp16` for this device and the reason. Raises ConfigError when it is not supported."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = device.type == "cpu" and cpu_has_bf16()
    if requested == "auto":
        return ("bf16", "auto: the device computes in bf16") if has_bf16 else ("fp32", "auto: no bf16 units here")
    if requested == "bf16" and device.type == "cuda" and not has_bf16:
        raise ConfigError("trainer.precision=bf16: this card has no bf16 units. Use trainer.precision=fp16.")
    if requested == "fp16" and device.type == "mps":
        raise ConfigError("trainer.precision=fp16: not supported on Apple GPUs. Use trainer.precision=fp32.")
    return requested, "as requested"


def cpu_has_bf16() -> bool:
    """Return True when the processor has bf16 instructions, as far as Linux's /proc/cpuinfo reports them."""
    return not processor_features().isdisjoint({"avx512_bf16", "amx_bf16"})


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast for the forward pass; a null context for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype of matrix products: autocast's inside autocast, else that of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@contextlib.contextmanager
def tf32_products(enabled: bool) -> Iterator[None]:
    """Round the factors of fp32 matrix products on CUDA to TF32 inside the context, with 10 bits after the point."""
    before = torch.backends.cuda.matmul.fp32_precision
    if enabled:
        # Not by `fp32_precision`, after which torch refuses to read the older names, as user code may.
        torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        if enabled:
            torch.backends.cuda.matmul.allow_tf32 = before == "tf32"


@contextlib.contextmanager
def arithmetic(*, deterministic: bool, tf32: bool) -> Iterator[None]:
    """Compute inside the context as these settings of the trainer say."""
    with deterministic_algorithms(deterministic), tf32_products(tf32):
        yield


def copy_to_host(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to copy a tensor to the CPU; the function returned waits until it is there, and for nothing queued later.

    `x.item()` would wait for all work of the device instead, and leave it idle until the CPU has queued more.
    """
    if not x.is_cuda:
        return x.cpu
    copied, done = x.to("cpu", non_blocking=True), torch.cuda.Event()  # torch copies into pinned memory
    done.record()

    def wait() -> torch.Tensor:
        done.synchronize()
        return copied

    return wait


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Use torch's deterministic algorithms inside the context; the previous setting is restored."""
    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        # cuBLAS needs a fixed workspace to be deterministic, and reads the variable when the first handle is made:
        # https://docs.nvidia.com/cuda/cublas/#results-reproducibility
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


# Dense bf16 products with fp32 sums, TFLOP/s, by NVIDIA's data sheets; the name of a card contains the key.
PEAK_TFLOPS = {"H200": 989.0, "H100 80GB": 989.0, "A100": 312.0, "RTX 4090": 165.0, "RTX 4060": 30.0}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the FLOP/s that the device computes at most in 16 bits; None where that is not known, and in fp32."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * rate for key, rate in PEAK_TFLOPS.items() if key in name), None)


# --- random states ----------------------------------------------------------------------------------------------


def random_int16(shape: torch.Size) -> torch.Tensor:
    """Return numbers from -32,768 to 32,767, uniform, on the CPU: four of them share 64 bits of torch's generator."""
    n = shape.numel()
    bits = torch.randint(-(1 << 63), (1 << 63) - 1, (-(-n // 4),))
    return bits.view(torch.int16)[:n].view(shape)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy's seed has 32 bits
    torch.manual_seed(seed)


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's generators, each uint8 on the CPU. Data order needs none. Waits for no device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_generators(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore the generators to the states that `generator_states` read."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def random_state(device: torch.device) -> dict[str, str]:
    """`generator_states` as base64, for a JSON file."""
    return {name: _encode(state) for name, state in generator_states(device).items()}


def restore_random_state(state: dict[str, str], device: torch.device) -> None:
    """Restore the generators to the states that `random_state` read."""
    restore_generators({name: _decode(text) for name, text in state.items()}, device)


@contextlib.contextmanager
def random_state_kept(device: str) -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch after the context, which may compute on `device`."""
    python, in_numpy = random.getstate(), np.random.get_state()
    in_mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    # Reading a GPU's state starts CUDA, which takes memory on every card: not for a computation on the CPU.
    on_gpus = torch.cuda.is_available() and (torch.cuda.is_initialized() or device != "cpu")
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if on_gpus else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(in_numpy)
        if in_mps is not None:
            torch.mps.set_rng_state(in_mps)


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def compiled_if_possible(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a function compiled by torch, or itself from the call on that could not be compiled, with a warning."""
    call = torch.compile(function)

    @functools.wraps(function)
    def calling(*arguments: Any) -> torch.Tensor:
        nonlocal call
        if call is not function:
            # Imported here: it takes a second, and torch has done so itself once something is compiled.
            from torch._dynamo.exc import TorchDynamoException

            try:
                return call(*arguments)
            except TorchDynamoException as error:
                call = function
                reason = " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])
                log.warning("trainer.compile=true: torch cannot compile here, training goes on without: %s", reason)
        return function(*arguments)

    return calling


# --- memory -------------------------------------------------------------------------------------------------------


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: of the GPU for CUDA, of this process elsewhere; 0 where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return peak_process_memory() or 0


# Of mallopt, /usr/include/malloc.h: M_MMAP_MAX = -4, no block of its own by mmap; M_TRIM_THRESHOLD = -1, no end of the
# heap.
KEEPS_FREED = {-4: 0, -1: 2**31 - 1}


def keep_freed_memory(device: torch.device) -> bool:
    """Let glibc's malloc keep what is freed for the next step on a CPU, in this process; False where nothing changes.

    Each large block is otherwise given back to the kernel, which clears it anew: a fifth of the time of a step on a
    CPU. The peak stays the same, since every step needs as much as the one before.
    """
    if sys.platform != "linux" or device.type != "cpu":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # musl
        return False
    return all(libc.mallopt(parameter, value) for parameter, value in KEEPS_FREED.items())


def set_cuda_allocator() -> str:
    """Let CUDA's allocator grow its segments, unless the user has configured it; return its configuration.

    Without that, blocks of ever other sizes, as a step's number of targets makes them, leave gaps that nothing fits
    in: https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-alloc-conf. Without
    effect once CUDA is initialised.
    """
    given = next((name for name in (ALLOCATOR, *OTHER_ALLOCATORS) if name in os.environ), None)
    if given is None and torch.version.cuda is not None and sys.platform == "linux":
        os.environ[ALLOCATOR] = "expandable_segments:True"
    name = given or ALLOCATOR
    return f"{name}={os.environ[name]}" if name in os.environ else "torch's default"


def device_memory(device: torch.device) -> int | None:
    """Return the memory of the device in bytes; for CPU and MPS the machine's, or its container's. None: unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min((n_bytes for n_bytes in (container_limit(), installed_memory()) if n_bytes is not None), default=None)


def attainable_memory(device: torch.device) -> int | None:
    """Return the bytes that this process can have on the device: of a GPU what others leave. None: unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return device_memory(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True when the error means out of memory; CUDA, MPS and CPU each raise their own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error)
        for words in ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
    )


def within_memory(
    compute: Callable[[int], T], at_once: int, device: torch.device, undo: Callable[[], None] = lambda: None
) -> tuple[T, int]:
    """Return what `compute` makes of `at_once` sequences at once and that number: half of them, and half again, where
    the device has too little memory for more.

    `undo` is called before each further attempt. Raises the device's error where one sequence is too many.
    """
    while True:
        try:
            return compute(at_once), at_once
        except Exception as error:
            if not is_out_of_memory(error) or at_once == 1:
                raise
        # Behind the block the error is gone, and with it the frames that hold the tensors of the attempt.
        undo()
        release_memory(device)
        at_once = (at_once + 1) // 2


def release_memory(device: torch.device) -> None:
    """Give back what is not used, after an out-of-memory error: cycles of frames and tensors, and free blocks that the
    device's allocator keeps, into whose gaps a smaller tensor may not fit."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


# --- fingerprint --------------------------------------------------------------------------------------


# Of a training step: counted up when its bits change. 2: other dropout masks on a CPU, and of questions the last block
# computes positions with a target alone. 3: in bf16 on a CPU these are a multiple of 32, and whole heads are rotated;
# padding is several short documents.
ARITHMETIC = 3


def fingerprint(
    device: torch.device, precision: str, compiled: bool, deterministic: bool, attention: str
) -> dict[str, Any]:
    """Everything in addition to config and data that changes the bits of a result (the thread count reorders sums)."""
    return {
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "compile": compiled,
        "deterministic": deterministic,
        "attention": attention,
        "arithmetic": ARITHMETIC,
    }


def fingerprint_difference(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines such as `threads: 4 then, 2 now`; empty when the machine allows an exact resume."""
    keys = sorted(before.keys() | now.keys())
    return [
        f"{key}: {before.get(key, 'that of an earlier DTL')} then, {now.get(key, 'not recorded')} now"
        for key in keys
        if before.get(key) != now.get(key)
    ]
