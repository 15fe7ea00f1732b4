"""A run says which kernel attends, keeps it in its fingerprint, and a resumed run tells when it is another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import go_on, start, tiny_config

from dtl.errors import ConfigError
from dtl.model.kernel_choice import KernelChoice, KernelContext


def test_the_kernel_is_told_and_kept(pairs: Path, tmp_path: Path) -> None:
    start(tiny_config(pairs, total_steps=2), tmp_path)
    details = " ".join((tmp_path / "details.txt").read_text(encoding="utf-8").split())
    assert "padded (auto: computes the fewest pairs on cpu" in details
    for state in (tmp_path / "checkpoints").glob("*/state.json"):
        assert json.loads(state.read_text())["fingerprint"]["attention"] == "padded"


def test_a_resumed_run_asks_for_its_kernel_and_says_when_it_is_another(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[str | None] = []

    def choose(_: object, given: KernelContext) -> KernelChoice:
        asked.append(given.earlier)
        assert given.documents_bt is not None and given.documents_bt.shape == (2, 73)
        return KernelChoice("reference" if given.earlier is None else "sdpa", "by a test")

    monkeypatch.setattr("dtl.runner.build.choose_kernel", choose)
    config = tiny_config(pairs, total_steps=4)
    start(replace(config, trainer=replace(config.trainer, stop_after_steps=2)), tmp_path)
    go_on(config, tmp_path)
    assert asked == [None, "reference"]
    assert "not bit for bit: attention: reference then, sdpa now" in " ".join(capfd.readouterr().out.split())


def test_a_kernel_asked_for_in_vain_stops_the_run_before_it_begins(pairs: Path, tmp_path: Path) -> None:
    config = tiny_config(pairs)
    config = replace(config, model=replace(config.model, attention="varlen", dropout=0.0))
    with pytest.raises(ConfigError, match=r"model\.attention=varlen: needs a CUDA device"):
        start(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
