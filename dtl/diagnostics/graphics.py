"""torch, its build, its GPUs, their precisions, and the choices of the default profile.

`torch_facts` asks torch; `judge` needs neither torch nor a GPU, so that a test can judge any machine.
"""

import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import yaml

from dtl.base.paths import conf_dir
from dtl.base.units import in_gib
from dtl.config import RunConfig, converted
from dtl.diagnostics.findings import Finding

NVIDIA = "0x10de"  # PCI vendor id
WHEELS = "https://download.pytorch.org/whl"  # cu126 is the last of these that supports Maxwell, Pascal and Volta
DRIVERS = "https://www.nvidia.com/drivers"


@dataclass(frozen=True)
class Card:
    """A GPU that torch computes on; memory in bytes, None where the driver does not report it."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int | None


@dataclass(frozen=True)
class TorchFacts:
    """Facts that torch reports about itself and this machine."""

    version: str
    threads: int
    cuda: str | None = None  # version of CUDA that it was built for
    hip: str | None = None  # version of ROCm that it was built for
    cards: tuple[Card, ...] = ()
    cuda_error: str = ""  # why a build for GPUs uses none
    kernels: tuple[str, ...] = ()  # architectures that it was built for, such as sm_90
    mps: bool = False
    without_cuda: str | None = None  # remedy for a CPU build on a machine with an NVIDIA GPU
    native_precision: str = "fp32"  # trainer.precision=auto on device=auto


def torch_facts() -> TorchFacts:
    """Ask torch. Raises ImportError or OSError when it cannot be imported."""
    import torch

    from dtl.base.runtime import choose_device, choose_precision, nvidia_without_cuda, set_cuda_allocator

    set_cuda_allocator()  # before CUDA is initialised, as training does
    cards: tuple[Card, ...] = ()
    cuda_error = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what a row reports
        if torch.version.cuda or torch.version.hip:
            try:
                torch.cuda.init()  # raises the reason; device_count() alone would return 0 without one
                cards = tuple(_card(index) for index in range(torch.cuda.device_count()))
            except (RuntimeError, AssertionError) as error:
                cuda_error = str(error).partition("\n")[0]
        return TorchFacts(
            version=str(torch.__version__),
            threads=torch.get_num_threads(),
            cuda=torch.version.cuda,
            hip=torch.version.hip,
            cards=cards,
            cuda_error=cuda_error,
            kernels=tuple(torch.cuda.get_arch_list()) if cards else (),
            mps=torch.backends.mps.is_available(),
            without_cuda=nvidia_without_cuda(),
            native_precision=choose_precision("auto", choose_device("auto")[0])[0],
        )


def _card(index: int) -> Card:
    import torch

    properties = torch.cuda.get_device_properties(index)
    try:
        free = torch.cuda.mem_get_info(index)[0]
    except RuntimeError:  # another process has the GPU in exclusive mode
        free = None
    return Card(properties.name, (properties.major, properties.minor), properties.total_memory, free)


def judge(facts: TorchFacts, usable_cores: int, features: frozenset[str], root: Path = Path("/")) -> Finding:
    """Return the rows about torch, GPUs and precisions, with what prevents the use of a GPU."""
    finding = Finding([("torch", f"{facts.version}, {_build(facts)}, {facts.threads} threads")])
    if facts.threads > 2 * usable_cores:
        finding.problems.append(
            f"torch uses {facts.threads} threads, but only {usable_cores} cores are usable here, which slows every "
            f"step. Set OMP_NUM_THREADS={usable_cores} in the environment."
        )
    finding.add(_cards(facts) if facts.cards else _no_cards(facts, root))
    finding.rows.append(("precisions", precisions(facts, features)))
    return finding


def _build(facts: TorchFacts) -> str:
    if facts.hip:
        return f"built for ROCm {facts.hip}"
    return f"built for CUDA {facts.cuda}" if facts.cuda else "CPU-only build" if not facts.mps else "built for macOS"


def _cards(facts: TorchFacts) -> Finding:
    finding = Finding()
    for number, card in enumerate(facts.cards):
        free = "unknown" if card.free is None else in_gib(card.free)
        capability = ".".join(map(str, card.capability))
        label = "GPU" if len(facts.cards) == 1 else f"GPU {number}"
        more = "" if facts.hip else f", compute capability {capability}"  # exists for NVIDIA only
        finding.rows.append((label, f"{card.name}, {in_gib(card.total)}, {free} free{more}"))
        if not facts.hip and not supports_card(card.capability, facts.kernels):
            finding.problems.append(
                f"{card.name} has compute capability {capability}, for which this torch has no kernels (it has "
                f"{', '.join(facts.kernels)}). Use device=cpu, or for an older GPU the build for an older CUDA: "
                f"pip install --force-reinstall torch --index-url {WHEELS}/cu126"
            )
        elif card.free is not None and card.free < card.total / 2:
            finding.warnings.append(
                f"{card.name}: only {in_gib(card.free)} of {in_gib(card.total)} are free. End other programs that use "
                "it (nvidia-smi lists them), or lower trainer.micro_batch_size."
            )
    return finding


def supports_card(capability: tuple[int, int], kernels: tuple[str, ...]) -> bool:
    """Return True when a torch built for these architectures (`sm_90`, `compute_120`) runs on a GPU.

    Binary code (sm) runs on later minor versions of its major version, PTX (compute) is compiled for any later version:
    https://docs.nvidia.com/cuda/ampere-compatibility-guide. True when torch lists no architecture.
    """
    builds = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", kernel) for kernel in kernels]
    for kernel in filter(None, builds):
        version = int(kernel[2]), int(kernel[3])
        if version <= capability and (kernel[1] == "compute" or version[0] == capability[0]):
            return True
    return not any(builds)


def _no_cards(facts: TorchFacts, root: Path) -> Finding:
    if facts.mps:
        return Finding([("GPU", "Apple's, through MPS; it shares the machine's memory")])
    if facts.without_cuda:
        return Finding([("GPU", "an NVIDIA card, which this torch cannot use")], problems=[facts.without_cuda])
    hidden = next((name for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES") if name in os.environ), None)
    if facts.cuda_error and hidden:
        return Finding([("GPU", f"none in use: {hidden}={os.environ[hidden]!r} leaves none visible")])
    # Windows and WSL have no such file, but nvidia-smi, which is part of the driver.
    driver = (root / "proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if not driver and not nvidia_on_the_bus(root):
        return Finding([("GPU", "none" + (f" ({facts.cuda_error})" if facts.cuda_error else ""))])
    finding = Finding([("GPU", f"an NVIDIA card, not in use ({facts.cuda_error or 'it has no driver'})")])
    if facts.cuda and (root / ".dockerenv").exists():
        finding.problems.append(
            "An NVIDIA card exists, but this container cannot see it. Start it with: docker run --gpus all"
        )
    elif facts.cuda and driver:
        finding.problems.append(
            f"The NVIDIA card cannot be used: {facts.cuda_error} Install a newer driver from {DRIVERS} and restart, or "
            f"install a torch for an older one: pip install --force-reinstall torch --index-url {WHEELS}/cu126"
        )
    elif facts.cuda:
        finding.problems.append(f"An NVIDIA card exists, but has no driver. Install one from {DRIVERS} and restart.")
    else:
        finding.warnings.append(
            f"an NVIDIA card exists, but has no driver. To use it, install one from {DRIVERS}, restart and check again."
        )
    return finding


def nvidia_on_the_bus(root: Path = Path("/")) -> bool:
    """Return True when the PCI bus has an NVIDIA display controller, with or without a driver (Linux only)."""
    for vendor in (root / "sys/bus/pci/devices").glob("*/vendor"):
        try:
            kind = vendor.with_name("class").read_text()
            if vendor.read_text().strip() == NVIDIA and kind.startswith("0x03"):
                return True
        except OSError:
            continue
    return False


def precisions(facts: TorchFacts, features: frozenset[str]) -> str:
    """Describe the precisions of device=auto: with hardware units, or emulated and slow."""
    if facts.mps and not facts.cards:
        return "fp32; the only precision that DTL chooses on Apple's GPU"
    bf16 = "bf16 in units" if facts.native_precision == "bf16" else "bf16 only emulated, slow"
    if facts.cards:
        # NVIDIA has tensor cores for fp16 since compute capability 7.0 (Volta).
        fp16 = "fp16 in units" if facts.hip or facts.cards[0].capability >= (7, 0) else "fp16 without units"
    else:
        fp16 = "fp16 in units" if "amx_fp16" in features else "fp16 only emulated, slow"
    return f"fp32, {bf16}, {fp16}"


# --- the default profile ------------------------------------------------------------------------------------------

PROFILE = "auto"
DATA = ("qa", "wiki")


def profile_config(data: str) -> RunConfig:
    """Return the config of trainer=auto with data=`data`, all else by default; no plugins are loaded."""
    files = {"trainer": conf_dir() / "trainer" / f"{PROFILE}.yaml", "data": conf_dir() / "data" / f"{data}.yaml"}
    values = {section: yaml.safe_load(file.read_text(encoding="utf-8")) for section, file in files.items()}
    return converted(RunConfig, values)


def look_at_profile() -> Finding:
    """Return the device, precision and profile that trainer=auto chooses here, with reasons, and its batch sizes."""
    from dtl.base.runtime import choose_device, choose_precision, keep_freed_memory, set_cuda_allocator

    device, device_reason = choose_device(RunConfig().device)
    configs = {data: profile_config(data).on(device.type) for data in DATA}
    trainer = configs[DATA[0]].trainer
    precision, precision_reason = choose_precision(trainer.precision, device)
    batches = ", ".join(
        f"{config.micro_batch_size} x {config.grad_accum_steps} (data={data})" for data, config in configs.items()
    )
    compiled = "compiled" if trainer.compile else "eager"
    freed = set_cuda_allocator() if device.type == "cuda" else "kept for the next step" * keep_freed_memory(device)
    return Finding(
        [
            (f"trainer={PROFILE}", f"{device} ({device_reason}); {precision} ({precision_reason}); {compiled}"),
            ("", f"as trainer={trainer.machine}; micro-batch x accumulation: {batches}"),
            ("freed memory", freed or "returned to the system"),
        ]
    )
