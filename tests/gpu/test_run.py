"""The checks of a GPU: all of them where there is one, else a dry run that names what it cannot check."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import run as gpu_run
import torch
from torch.utils.flop_counter import FlopCounterMode

SCRIPT = Path(gpu_run.__file__)


def results(tmp_path: Path, device: str) -> tuple[dict[str, dict[str, object]], str]:
    """Run the script as its users do; return the checks, and what it prints."""
    out = tmp_path / "gpu.json"
    words = [f"device={device}", f"out={out}"]
    ended = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(out.read_text())["checks"], ended.stdout


@pytest.mark.slow
def test_a_dry_run_takes_every_check_and_names_what_a_cpu_cannot(tmp_path: Path) -> None:
    checks, printed = results(tmp_path, "cpu")
    states = {name: check["state"] for name, check in checks.items()}
    assert states == {
        "head": "passed",
        "no_sync": "dry run",
        "non_finite": "passed",
        "one_graph": "passed",
        "compiled": "dry run",
        "products": "dry run",
        "large": "dry run",
    }
    assert "nothing below is about a GPU" in printed
    for name in states:
        assert re.search(rf"^{name} +{states[name]} ", printed, re.MULTILINE)
    assert "set_sync_debug_mode" in printed and "no MFU" in printed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_passes_every_check(tmp_path: Path) -> None:
    checks, _ = results(tmp_path, "cuda")
    assert {check["state"] for check in checks.values()} == {"passed"}


def test_a_check_that_fails_is_reported_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(machine: gpu_run.Machine) -> gpu_run.Values:
        raise RuntimeError("called a synchronizing CUDA operation")

    out = tmp_path / "new" / "gpu.json"
    monkeypatch.setattr(gpu_run, "CHECKS", {"broken": broken, "fine": lambda machine: {"rate": 7.0}})
    assert gpu_run.main(["device=cpu", f"out={out}"]) == 1
    checks = json.loads(out.read_text())["checks"]
    assert checks["broken"]["state"] == "failed" and "synchronizing" in checks["broken"]["error"]
    assert checks["fine"] == checks["fine"] | {"state": "passed", "rate": 7.0}
    assert "synchronizing" in capsys.readouterr().out
    assert gpu_run.main(["device=cpu", f"out={out}", "only=fine"]) == 0
    assert gpu_run.main(["size=8"]) == 2


def test_no_check_begins_in_the_last_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run, "BUDGET_SECONDS", 59)
    report = gpu_run.run(torch.device("cpu"))
    assert {check["state"] for check in report["checks"].values()} == {"skipped"} and len(report["checks"]) == 7


def test_the_head_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_run.cross_entropy
    monkeypatch.setattr(gpu_run, "cross_entropy", lambda *arguments: 1.001 * right(*arguments))
    with pytest.raises(AssertionError, match="fp32 loss: error"):
        gpu_run.head(gpu_run.Machine(torch.device("cpu"), gpu_run.TINY))


def test_the_arithmetic_of_a_step_is_counted_as_torch_counts_it() -> None:
    """All products but those of attention: 6 per weight and token, the head included."""
    rows, length = 3, 7
    trainer = gpu_run.trainer_on(gpu_run.Machine(torch.device("cpu"), gpu_run.TINY), shape=(rows, length))
    with FlopCounterMode(display=False) as counter:
        trainer.accumulate_gradients(trainer.next_batches())
    counts = counter.get_flop_counts()["Global"]
    products = sum(flop for operator, flop in counts.items() if "attention" not in str(operator))
    config = trainer.model.config
    attention = 12 * config.n_layers * config.dim * length
    assert products == rows * length * (trainer.model.flops_per_token(length) - attention)
