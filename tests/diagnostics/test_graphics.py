"""Rows and problems of imitated torch builds and GPUs, and the facts of torch on this machine."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dtl.diagnostics import graphics
from dtl.diagnostics.findings import Finding
from dtl.diagnostics.graphics import Card, TorchFacts, judge, supports_card, torch_facts

KERNELS = ("sm_75", "sm_80", "sm_90", "sm_120")
LAPTOP_CARD = Card("NVIDIA GeForce RTX 4060 Laptop GPU", (8, 9), 8 * 2**30, 7 * 2**30)
CUDA = TorchFacts("2.13.0+cu130", 7, cuda="13.0", cards=(LAPTOP_CARD,), kernels=KERNELS, native_precision="bf16")
CPU = TorchFacts("2.13.0+cpu", 7)
NO_DRIVER = replace(
    CUDA, cards=(), kernels=(), cuda_error="Found no NVIDIA driver on your system.", native_precision="fp32"
)
OLD_DRIVER = replace(NO_DRIVER, cuda_error="The NVIDIA driver on your system is too old (found version 11040).")


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def machine(tmp_path):
    """The /proc and /sys of a machine: with an NVIDIA card on the bus, with its driver."""

    def lay_out(*, card: bool = False, driver: bool = False) -> Path:
        if card:
            device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
            device.mkdir(parents=True)
            (device / "vendor").write_text("0x10de\n")
            (device / "class").write_text("0x030200\n")
        if driver:
            (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
            (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: 450\n")
        return tmp_path

    return lay_out


def row(finding: Finding, name: str) -> str:
    return dict(finding.rows)[name]


def test_a_card_that_works(machine):
    finding = judge(CUDA, 7, frozenset(), machine(card=True, driver=True))
    assert finding.rows == [
        ("torch", "2.13.0+cu130, built for CUDA 13.0, 7 threads"),
        ("GPU", "NVIDIA GeForce RTX 4060 Laptop GPU, 8.0 GiB, 7.0 GiB free, compute capability 8.9"),
        ("precisions", "fp32, bf16 in units, fp16 in units"),
    ]
    assert not finding.problems and not finding.warnings


def test_a_card_that_others_use_and_one_that_does_not_tell():
    others = replace(CUDA, cards=(replace(LAPTOP_CARD, free=3 * 2**30), replace(LAPTOP_CARD, free=None)))
    finding = judge(others, 7, frozenset())
    assert "3.0 GiB free" in row(finding, "GPU 0") and "unknown free" in row(finding, "GPU 1")
    assert len(finding.warnings) == 1 and not finding.problems


def test_a_card_that_this_torch_was_not_built_for():
    pascal = replace(CUDA, cards=(replace(LAPTOP_CARD, name="GTX 1060", capability=(6, 1)),), native_precision="fp32")
    finding = judge(pascal, 7, frozenset())
    assert "compute capability 6.1" in finding.problems[0] and "pip install" in finding.problems[0]
    assert row(finding, "precisions") == "fp32, bf16 only emulated, slow, fp16 without units"


@pytest.mark.parametrize(
    ("capability", "kernels", "works"),
    [
        ((8, 9), KERNELS, True),
        ((7, 5), KERNELS, True),
        ((7, 0), KERNELS, False),
        ((10, 0), KERNELS, False),
        ((10, 3), (*KERNELS, "compute_90"), True),
        ((6, 1), ("sm_75", "compute_90"), False),
        ((9, 0), ("sm_90a",), True),
        ((12, 1), KERNELS, True),
        ((5, 0), (), True),
        ((5, 0), ("gfx1100",), True),
    ],
)
def test_which_cards_a_build_computes_on(capability, kernels, works):
    assert supports_card(capability, kernels) is works


def test_a_card_beside_a_cpu_build(machine):
    remedy = "An NVIDIA card exists, but this torch is a CPU build. Fix it with: pip install ..."
    finding = judge(replace(CPU, without_cuda=remedy), 7, frozenset(), machine(card=True, driver=True))
    assert finding.problems == [remedy]
    assert "NVIDIA card" in row(finding, "GPU")


def test_a_driver_that_is_too_old(machine):
    finding = judge(OLD_DRIVER, 7, frozenset(), machine(card=True, driver=True))
    assert "too old" in row(finding, "GPU")
    assert "too old" in finding.problems[0] and "nvidia.com/drivers" in finding.problems[0]


def test_a_driver_of_windows(machine, monkeypatch):
    monkeypatch.setattr(shutil, "which", {"nvidia-smi": r"C:\\Windows\\System32\\nvidia-smi.exe"}.get)
    assert "too old" in judge(OLD_DRIVER, 7, frozenset(), machine()).problems[0]


def test_a_container_that_was_not_given_the_card(machine):
    root = machine(card=True, driver=True)
    (root / ".dockerenv").touch()
    assert "docker run --gpus all" in judge(NO_DRIVER, 7, frozenset(), root).problems[0]


def test_a_card_without_a_driver(machine):
    root = machine(card=True)
    (problem,) = judge(NO_DRIVER, 7, frozenset(), root).problems
    assert "no driver" in problem and "nvidia.com/drivers" in problem
    finding = judge(CPU, 7, frozenset(), root)
    assert not finding.problems and "has no driver" in finding.warnings[0]


@pytest.mark.parametrize("facts", [CPU, NO_DRIVER])
def test_no_card_is_no_problem(machine, facts):
    finding = judge(facts, 7, frozenset(), machine())
    assert row(finding, "GPU").startswith("none")
    assert not finding.problems and not finding.warnings


def test_cards_that_somebody_has_hidden(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = replace(NO_DRIVER, cuda_error="No CUDA GPUs are available")
    finding = judge(hidden, 7, frozenset(), machine(card=True, driver=True))
    assert row(finding, "GPU") == "none in use: CUDA_VISIBLE_DEVICES='' leaves none visible"
    assert not finding.problems


def test_other_makers():
    radeon = replace(
        CUDA, cuda=None, hip="7.1", kernels=("gfx1100",), cards=(replace(LAPTOP_CARD, capability=(11, 0)),)
    )
    finding = judge(radeon, 7, frozenset())
    assert "built for ROCm 7.1" in row(finding, "torch") and "capability" not in row(finding, "GPU")
    assert not finding.problems
    apple = judge(replace(CPU, mps=True), 7, frozenset())
    assert "MPS" in row(apple, "GPU") and row(apple, "precisions").startswith("fp32;")


def test_precisions_of_a_processor():
    assert row(judge(CPU, 7, frozenset()), "precisions") == "fp32, bf16 only emulated, slow, fp16 only emulated, slow"
    newest = judge(replace(CPU, native_precision="bf16"), 7, frozenset({"amx_fp16"}))
    assert row(newest, "precisions") == "fp32, bf16 in units, fp16 in units"


def test_more_threads_than_cores():
    assert "OMP_NUM_THREADS=3" in judge(CPU, 3, frozenset()).problems[0]
    assert not judge(CPU, 5, frozenset()).problems


# --- what torch says ----------------------------------------------------------------------------------------------


def test_the_facts_of_this_torch():
    facts = torch_facts()
    assert facts.version == torch.__version__ and facts.threads == torch.get_num_threads()
    assert bool(facts.cards) == torch.cuda.is_available()


def test_a_cuda_build_that_finds_nothing_says_why_and_warns_nobody(monkeypatch):
    def init() -> None:
        warnings.warn("CUDA initialization: ...", stacklevel=1)
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    facts = torch_facts()
    assert (facts.cards, facts.cuda_error) == ((), "Found no NVIDIA driver on your system.")


def test_the_facts_of_cards(monkeypatch):
    class Properties:
        name, major, minor, total_memory = "NVIDIA Card", 8, 9, 8 * 2**30

    def free(index: int) -> tuple[int, int]:
        if index == 1:
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")
        return 5 * 2**30, 8 * 2**30

    stand_ins = {
        "init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_name": lambda *_: "NVIDIA Card",
        "get_device_properties": lambda _: Properties,
        "mem_get_info": free,
        "get_arch_list": lambda: ["sm_89"],
        "is_bf16_supported": lambda **_: True,
    }
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    facts = torch_facts()
    assert [card.free for card in facts.cards] == [5 * 2**30, None]
    assert (facts.kernels, facts.native_precision, facts.cards[0].capability) == (("sm_89",), "bf16", (8, 9))
    assert graphics.precisions(facts, frozenset()) == "fp32, bf16 in units, fp16 in units"
