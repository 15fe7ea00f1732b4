"""Laws of the machine-dependent parts: random states are restored, errors name a remedy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dtl.base import runtime
from dtl.base.runtime import (
    ALLOCATOR,
    OTHER_ALLOCATORS,
    arithmetic,
    autocast,
    choose_device,
    choose_precision,
    copy_to_host,
    deterministic_algorithms,
    fingerprint,
    fingerprint_difference,
    is_out_of_memory,
    nvidia_without_cuda,
    peak_memory_bytes,
    random_state,
    restore_random_state,
    seed_everything,
    set_cuda_allocator,
)
from dtl.errors import ConfigError

CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="what a machine without a GPU says"
)

# --- device and precision -------------------------------------------------------------------------------------


@no_gpu
@pytest.mark.parametrize(("threads", "named"), [(1, "1 thread"), (2, "2 threads")])
def test_auto_takes_the_cpu_where_there_is_nothing_else(threads: int, named: str, monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert choose_device("auto") == (CPU, f"auto: no CUDA and no MPS, {named}")


def test_a_device_that_was_asked_for() -> None:
    assert choose_device("cpu") == (CPU, "as requested")


@no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:3", "mps", "meta"])
def test_a_device_that_is_not_there_is_refused_with_the_way_on(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"device={name}: not available.*(device=auto|pip install)"):
        choose_device(name)


def test_a_name_that_is_no_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="device=gpu: one of auto, cpu, cuda"):
        choose_device("gpu")


def test_a_card_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1")[0] == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="device=cuda:2: this machine has 2 CUDA devices"):
        choose_device("cuda:2")


@pytest.fixture
def cpu_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name on the path, as the driver installs it."""
    program = tmp_path / ("nvidia-smi.exe" if os.name == "nt" else "nvidia-smi")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_an_nvidia_card_with_a_cpu_torch_is_noticed(cpu_torch: None, nvidia_smi: None) -> None:
    sentence = nvidia_without_cuda()
    assert sentence is not None
    assert "pip install" in sentence and "download.pytorch.org/whl/cu" in sentence
    with pytest.raises(ConfigError, match=r"device=cuda: not available here\. This machine has an NVIDIA.*pip install"):
        choose_device("cuda")


def test_no_nvidia_card_no_advice(cpu_torch: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(runtime, "Path", lambda path: tmp_path / "nothing" if "nvidia" in path else Path(path))
    assert nvidia_without_cuda() is None


@pytest.mark.parametrize("platform", ["cuda", "hip"])
def test_a_torch_for_cards_gets_no_advice(
    cpu_torch: None, nvidia_smi: None, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(torch.version, platform, "13.0")
    assert nvidia_without_cuda() is None


@pytest.mark.parametrize("has_bf16, expected", [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_bf16_where_the_device_has_it(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    monkeypatch.setattr(runtime, "cpu_has_bf16", lambda: has_bf16)
    for device in (torch.device("cuda"), CPU):
        precision, reason = choose_precision("auto", device)
        assert precision == expected
        assert reason.startswith("auto: ")


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_precision_that_was_asked_for(name: str) -> None:
    assert choose_precision(name, CPU) == (name, "as requested")


def test_precisions_that_the_device_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    with pytest.raises(ConfigError, match=r"trainer\.precision=bf16: .*trainer\.precision=fp16"):
        choose_precision("bf16", torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"trainer\.precision=fp16: .*trainer\.precision=fp32"):
        choose_precision("fp16", torch.device("mps"))


@pytest.mark.parametrize("name, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_computes_in_the_precision(name: str, dtype: torch.dtype) -> None:
    x = torch.ones(3, 3)
    with autocast(CPU, name):
        assert (x @ x).dtype == dtype


def test_tf32_is_left_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul = torch.backends.cuda.matmul
    assert not matmul.allow_tf32  # fp32 is exact unless asked otherwise
    with arithmetic(deterministic=False, tf32=False):
        assert not matmul.allow_tf32
    with pytest.raises(RuntimeError, match="trouble"), arithmetic(deterministic=True, tf32=True):
        assert matmul.allow_tf32 and matmul.fp32_precision == "tf32" and torch.are_deterministic_algorithms_enabled()
        assert torch.backends.mkldnn.matmul.fp32_precision == "none"  # pyright: ignore
        raise RuntimeError("trouble")
    assert not matmul.allow_tf32 and not torch.are_deterministic_algorithms_enabled()


def test_a_copy_to_the_host_is_the_tensor() -> None:
    x = torch.arange(7.0)
    wait = copy_to_host(x)
    assert torch.equal(wait(), x)


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of the allocator's variables is set, on Linux with a torch for CUDA."""
    for name in (ALLOCATOR, *OTHER_ALLOCATORS):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(sys, "platform", "linux")
    return monkeypatch


def test_the_allocator_is_set_before_cuda_starts(variables: pytest.MonkeyPatch) -> None:
    assert set_cuda_allocator() == "PYTORCH_ALLOC_CONF=expandable_segments:True"
    assert os.environ[ALLOCATOR] == "expandable_segments:True"
    assert set_cuda_allocator() == "PYTORCH_ALLOC_CONF=expandable_segments:True"
    del os.environ[ALLOCATOR]
    choose_device("cpu")
    assert ALLOCATOR in os.environ


@pytest.mark.parametrize("name", [ALLOCATOR, *OTHER_ALLOCATORS])
def test_a_configured_allocator_stays(variables: pytest.MonkeyPatch, name: str) -> None:
    variables.setenv(name, "max_split_size_mb:64")
    assert set_cuda_allocator() == f"{name}=max_split_size_mb:64"
    assert [key for key in (ALLOCATOR, *OTHER_ALLOCATORS) if key in os.environ] == [name]


def test_no_allocator_where_there_is_no_cuda(variables: pytest.MonkeyPatch) -> None:
    variables.setattr(torch.version, "cuda", None)
    assert set_cuda_allocator() == "torch's default"
    assert ALLOCATOR not in os.environ


def test_deterministic_algorithms_are_left_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    for before in (False, True):
        torch.use_deterministic_algorithms(before)
        try:
            with pytest.raises(RuntimeError, match="trouble"), deterministic_algorithms(True):
                assert torch.are_deterministic_algorithms_enabled()
                raise RuntimeError("trouble")
            assert torch.are_deterministic_algorithms_enabled() == before
            with deterministic_algorithms(False):
                assert torch.are_deterministic_algorithms_enabled() == before
        finally:
            torch.use_deterministic_algorithms(False)


# --- random states --------------------------------------------------------------------------------------------


def test_random_states_come_back_through_json() -> None:
    torch.manual_seed(3)
    torch.randn(7)  # an odd number: the generator keeps half a pair of normal numbers
    state = json.loads(json.dumps(random_state(CPU)))
    expected = [torch.rand(5), torch.randn(3), torch.randperm(11)]
    torch.manual_seed(99)
    restore_random_state(state, CPU)
    for before, again in zip(expected, [torch.rand(5), torch.randn(3), torch.randperm(11)], strict=True):
        assert torch.equal(before, again)


def test_one_seed_for_all_generators() -> None:
    import random

    def numbers() -> list[float]:
        seed_everything(2**40 + 7)  # more than NumPy takes
        return [random.random(), float(np.random.rand()), torch.rand(1).item()]

    assert numbers() == numbers()


# --- memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_form_of_out_of_memory_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), KeyboardInterrupt()],
)
def test_other_trouble_is_not_out_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_a_real_one_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_peak_memory_is_in_bytes() -> None:
    if sys.platform == "win32":
        pytest.skip("Windows does not tell")
    assert 50e6 < peak_memory_bytes(CPU) < 1e12  # a process with torch in it


# --- fingerprint ----------------------------------------------------------------------------------------------


def test_a_fingerprint_is_plain_and_equal_to_itself() -> None:
    found = fingerprint(CPU, "fp32", compiled=False, deterministic=False, attention="sdpa")
    assert json.loads(json.dumps(found)) == found
    assert fingerprint_difference(found, found) == []


@pytest.mark.fault("machine-changed")
def test_a_fingerprint_tells_what_differs() -> None:
    before = fingerprint(CPU, "fp32", compiled=False, deterministic=False, attention="sdpa")
    now = fingerprint(CPU, "bf16", compiled=True, deterministic=False, attention="sdpa") | {
        "threads": before["threads"] + 1,
        "new": 1,
    }
    assert fingerprint_difference(before, now) == [
        "compile: False then, True now",
        "new: that of an earlier DTL then, 1 now",
        "precision: fp32 then, bf16 now",
        f"threads: {before['threads']} then, {before['threads'] + 1} now",
    ]


def test_the_number_of_threads_is_part_of_it() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fingerprint(CPU, "fp32", False, False, "sdpa")
        torch.set_num_threads(2)
        two = fingerprint(CPU, "fp32", False, False, "sdpa")
    finally:
        torch.set_num_threads(before)
    assert fingerprint_difference(one, two) == ["threads: 1 then, 2 now"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_for_the_next_step():
    """In a process of its own, since it cannot be taken back: large blocks that were freed cause no page faults."""
    script = """
import resource, torch
from dtl.base.runtime import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(7):
        torch.zeros(13 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), keep_freed_memory(torch.device("cpu")), faults(), faults())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, done, _, after = ran.stdout.split()
    assert done == "True"
    assert int(after) < int(before) / 7


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA GeForce RTX 4060", "bf16", 30e12),
        ("NVIDIA H200", "fp16", 989e12),
        ("NVIDIA H200", "fp32", None),
        ("NVIDIA RTX 6000 Ada Generation", "bf16", None),
    ],
)
def test_the_peak_of_a_card_is_that_of_its_data_sheet(name, precision, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert runtime.peak_flops(torch.device("cuda"), precision) == peak
    assert runtime.peak_flops(torch.device("cpu"), precision) is None
