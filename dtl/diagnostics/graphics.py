"""torch, its build, the cards that it computes on, and the precisions that they have.

Facts are gathered in one place and judged in another, which needs neither torch nor a card.
"""

import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from dtl.base.paths import conf_dir
from dtl.base.units import in_gib
from dtl.config import RunConfig
from dtl.diagnostics.findings import Finding

NVIDIA = "0x10de"  # its number as a maker of PCI cards
WHEELS = "https://download.pytorch.org/whl"
DRIVERS = "https://www.nvidia.com/drivers"


@dataclass(frozen=True)
class Card:
    """One card that torch computes on; memory in bytes, None where the driver does not tell."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int | None


@dataclass(frozen=True)
class TorchFacts:
    """What torch says about itself and about this machine."""

    version: str
    threads: int
    cuda: str | None = None  # the CUDA that it was built for
    hip: str | None = None  # the ROCm that it was built for
    cards: tuple[Card, ...] = ()
    refusal: str = ""  # why a build for cards computes on none
    kernels: tuple[str, ...] = ()  # architectures that it was built for, such as sm_90
    mps: bool = False
    without_cuda: str | None = None  # a CPU build beside a card: what to do
    in_units: str = "fp32"  # what trainer.precision=auto becomes on the device that auto takes


def torch_facts() -> TorchFacts:
    """Ask torch. Raises ImportError or OSError when it cannot be imported."""
    import torch

    from dtl.base.runtime import choose_device, choose_precision, nvidia_without_cuda

    cards: tuple[Card, ...] = ()
    refusal = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of is said below, in a row
        if torch.version.cuda or torch.version.hip:
            try:
                torch.cuda.init()
                cards = tuple(_card(index) for index in range(torch.cuda.device_count()))
            except (RuntimeError, AssertionError) as error:
                refusal = str(error).partition("\n")[0]
        return TorchFacts(
            version=str(torch.__version__),
            threads=torch.get_num_threads(),
            cuda=torch.version.cuda,
            hip=torch.version.hip,
            cards=cards,
            refusal=refusal,
            kernels=tuple(torch.cuda.get_arch_list()) if cards else (),
            mps=torch.backends.mps.is_available(),
            without_cuda=nvidia_without_cuda(),
            in_units=choose_precision("auto", choose_device("auto")[0])[0],
        )


def _card(index: int) -> Card:
    import torch

    properties = torch.cuda.get_device_properties(index)
    try:
        free = torch.cuda.mem_get_info(index)[0]
    except RuntimeError:  # a card that another process holds for itself
        free = None
    return Card(properties.name, (properties.major, properties.minor), properties.total_memory, free)


def judge(facts: TorchFacts, usable_cores: int, features: frozenset[str], root: Path = Path("/")) -> Finding:
    """Rows about torch, cards and precisions, and what keeps a card from being used."""
    finding = Finding([("torch", f"{facts.version}, {_build(facts)}, {facts.threads} threads")])
    if facts.threads > 2 * usable_cores:
        finding.problems.append(
            f"torch takes {facts.threads} threads, but only {usable_cores} cores are usable here, which makes every "
            f"step slower. Set OMP_NUM_THREADS={usable_cores} in the environment."
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
        more = "" if facts.hip else f", compute capability {capability}"  # a number of NVIDIA's
        finding.rows.append((label, f"{card.name}, {in_gib(card.total)}, {free} free{more}"))
        if not facts.hip and not has_kernels(card.capability, facts.kernels):
            finding.problems.append(
                f"{card.name} has compute capability {capability}, for which this torch has no kernels (it has "
                f"{', '.join(facts.kernels)}). Use device=cpu, or for an older card the build for an older CUDA: "
                f"pip install --force-reinstall torch --index-url {WHEELS}/cu126"
            )
        elif card.free is not None and card.free < card.total / 2:
            finding.warnings.append(
                f"{card.name}: only {in_gib(card.free)} of {in_gib(card.total)} are free. End other programs that use "
                "it (nvidia-smi lists them), or lower trainer.micro_batch_size."
            )
    return finding


def has_kernels(capability: tuple[int, int], kernels: tuple[str, ...]) -> bool:
    """Whether a torch built for these architectures computes on a card: binary code holds within one major
    version, compute_* is compiled anew for every later one. True when torch does not tell."""
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", kernel) for kernel in kernels]
    for kernel in filter(None, found):
        version = int(kernel[2]), int(kernel[3])
        if version <= capability and (kernel[1] == "compute" or version[0] == capability[0]):
            return True
    return not any(found)


def _no_cards(facts: TorchFacts, root: Path) -> Finding:
    if facts.mps:
        return Finding([("GPU", "Apple's, through MPS; it shares the machine's memory")])
    if facts.without_cuda:
        return Finding([("GPU", "an NVIDIA card, which this torch cannot use")], problems=[facts.without_cuda])
    hidden = next((name for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES") if name in os.environ), None)
    if facts.refusal and hidden:
        return Finding([("GPU", f"none in use: {hidden}={os.environ[hidden]!r} leaves none visible")])
    # Windows and WSL have no such file, but the tool that comes with the driver.
    driver = (root / "proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if not driver and not nvidia_on_the_bus(root):
        return Finding([("GPU", "none" + (f" ({facts.refusal})" if facts.refusal else ""))])
    finding = Finding([("GPU", f"an NVIDIA card, not in use ({facts.refusal or 'it has no driver'})")])
    if facts.cuda and (root / ".dockerenv").exists():
        finding.problems.append(
            "An NVIDIA card is here, but not in this container. Start it with: docker run --gpus all"
        )
    elif facts.cuda and driver:
        finding.problems.append(
            f"The NVIDIA card cannot be used: {facts.refusal} Install a newer driver from {DRIVERS} and restart, or "
            f"take a torch for an older one: pip install --force-reinstall torch --index-url {WHEELS}/cu126"
        )
    elif facts.cuda:
        finding.problems.append(
            f"An NVIDIA card is here, but no driver for it. Install one from {DRIVERS} and restart."
        )
    else:
        finding.warnings.append(
            f"an NVIDIA card is here, without a driver. To use it, install one from {DRIVERS}, restart and look again."
        )
    return finding


def nvidia_on_the_bus(root: Path = Path("/")) -> bool:
    """Whether a display controller of NVIDIA is plugged in, driver or not; only Linux tells without a tool."""
    for vendor in (root / "sys/bus/pci/devices").glob("*/vendor"):
        try:
            kind = vendor.with_name("class").read_text()
            if vendor.read_text().strip() == NVIDIA and kind.startswith("0x03"):
                return True
        except OSError:
            continue
    return False


def precisions(facts: TorchFacts, features: frozenset[str]) -> str:
    """Which precisions the device of device=auto computes in units of its own. All others cost time."""
    if facts.mps and not facts.cards:
        return "fp32; on Apple's GPU DTL trains in nothing else by itself"
    bf16 = "bf16 in units" if facts.in_units == "bf16" else "bf16 only emulated, slow"
    if facts.cards:
        fp16 = "fp16 in units" if facts.hip or facts.cards[0].capability >= (7, 0) else "fp16 without units"
    else:
        fp16 = "fp16 in units" if "amx_fp16" in features else "fp16 only emulated, slow"
    return f"fp32, {bf16}, {fp16}"


# --- the default profile ------------------------------------------------------------------------------------------
# What trainer=amp4060, the default profile, would choose on this machine. Imports torch when asked.


PROFILE = "amp4060"
DATA = ("qa", "wiki")


def profiled(data: str) -> RunConfig:
    """The run of trainer=amp4060 with data=`data`, all else by default; its plugins are not loaded."""
    files = {"trainer": conf_dir() / "trainer" / f"{PROFILE}.yaml", "data": conf_dir() / "data" / f"{data}.yaml"}
    values = {section: yaml.safe_load(file.read_text(encoding="utf-8")) for section, file in files.items()}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), values))
    assert isinstance(config, RunConfig)
    return config


def look_at_profile() -> Finding:
    """Device and precision with their reasons, and the batches that data recommends."""
    from dtl.base.runtime import choose_device, choose_precision

    configs = {data: profiled(data) for data in DATA}
    trainer = configs[DATA[0]].trainer
    device, device_reason = choose_device(configs[DATA[0]].device)
    precision, precision_reason = choose_precision(trainer.precision, device)
    batches = ", ".join(
        f"{config.micro_batch_size} x {config.grad_accum_steps} (data={data})" for data, config in configs.items()
    )
    compiled = "compiled" if trainer.compile else "eager"
    return Finding(
        [
            (f"trainer={PROFILE}", f"{device} ({device_reason}); {precision} ({precision_reason}); {compiled}"),
            ("", f"micro-batch x accumulation: {batches}"),
        ]
    )
