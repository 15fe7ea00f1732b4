"""dtl.diagnose resume=true: a resume that is exact is proved so; what one loses is named."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import go_on, start, tiny_config, write_pairs

from dtl.diagnostics import resume
from dtl.diagnostics.resume import prove_resume
from dtl.errors import ConfigError, DTLError
from dtl.training.trainer import Trainer

OUTPUTS = Path("outputs")


@pytest.fixture
def in_this_process(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of thousand weights, in this process."""
    config = tiny_config(write_pairs(elsewhere / "pairs.jsonl"), eval_every_steps=3, save_every_steps=None)

    def run(words: list[str], folder: Path, steps: int) -> None:
        if words and words[0].startswith("resume="):
            go_on(config, folder, stop_after_steps=steps)
        else:
            total = 3 if "short" in words else 12
            start(replace(config, trainer=replace(config.trainer, total_steps=total, stop_after_steps=steps)), folder)

    monkeypatch.setattr(resume, "_run", run)


@pytest.mark.fault("machine-changed")
def test_a_resume_is_proved_exact(in_this_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    prove_resume([], OUTPUTS)
    shown = capsys.readouterr().out
    assert "\nExact: on this machine" in shown
    parts = shown.partition("compared with one in one go\n")[2].partition("Exact")[0].splitlines()
    assert len(parts) == 6 and all(line.endswith("equal") for line in parts)
    assert not OUTPUTS.exists(), "the runs of a proof are deleted"


LOST = {  # what a resume forgets, and the parts that show it
    "dtl.runner.build.restore_random_state": ["weights", "random states", "metrics.jsonl"],
    "dtl.runner.build.load_optimizer_tensors": ["weights", "optimizer", "metrics.jsonl"],
}


@pytest.mark.quick_cases(1)
@pytest.mark.fault("machine-changed")
@pytest.mark.parametrize("lost", LOST)
def test_what_a_resume_loses_is_named(lost: str, in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost, lambda *_: None)
    with pytest.raises(DTLError, match="please report it") as said:
        prove_resume([], OUTPUTS)
    assert [part for part in LOST[lost] if part not in str(said.value)] == []
    assert str(said.value).startswith("Not exact: ")


def test_a_machine_that_computes_differently_each_time_is_told_from_a_resume_that_loses(
    in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = iter(range(99))
    steps = Trainer.steps

    def differently(self: Trainer) -> Any:
        with torch.no_grad():
            next(self.model.parameters()).view(-1)[0] += next(runs) / 1000
        return steps(self)

    monkeypatch.setattr(Trainer, "steps", differently)
    with pytest.raises(DTLError, match=r"weights.*Two runs in one go differ as well.*deterministic=true"):
        prove_resume([], OUTPUTS)


def test_a_run_that_is_too_short_proves_nothing(in_this_process: None) -> None:
    with pytest.raises(ConfigError, match="ends by itself within 4 steps"):
        prove_resume(["short"], OUTPUTS)


@pytest.mark.slow
def test_the_command_proves_it_with_the_words_of_a_run(elsewhere: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    words = [
        "resume=true",
        "model.dim=16",
        "model.n_layers=1",
        "model.n_heads=2",
        "tokenizer=byte",
        "device=cpu",
        "trainer=debug",
    ]
    command = [sys.executable, "-m", "dtl.diagnose", *words, f"data.qa.path={pairs}", f"data.cache_dir={tmp_path}/c"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0 and "\nExact: on this machine" in ended.stdout, ended
    ended = subprocess.run([*command, "model.dim=abc"], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 2 and "model.dim=abc: must be an integer" in ended.stderr, ended
