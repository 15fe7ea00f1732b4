"""resume= with a config.yaml or run.json that somebody has cut or edited: a sentence, or a resume; no traceback."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import result, start, tiny_config, write_pairs

import dtl.train
from dtl.errors import ConfigError


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was paused after a step."""
    folder = tmp_path_factory.mktemp("paused")
    start(tiny_config(write_pairs(folder / "pairs.jsonl"), stop_after_steps=1, eval_every_steps=99), folder / "run")
    return folder / "run"


def resumed(monkeypatch: pytest.MonkeyPatch, run_dir: Path, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dtl.train", f"resume={run_dir}", "trainer.stop_after_steps=2", *words])
    try:
        dtl.train.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


CONFIGS: dict[str, Any] = {
    "empty": "",
    "a list": "[1]",
    "a text": "hello",
    "deep": "a: " + "[" * 5000,
    "a control character": "a: \x00",
    "cut": "model:\n  dim: 16\n",
    "no trainer": {"trainer": None},
    "trainer is a list": {"trainer": [5]},
    "sources is a text": {"data": {"sources": "x"}},
    "tracker is a number": {"tracker": 5},
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_that_is_none(
    what: str, paused: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(paused, "run")
    file, given = Path("run/config.yaml"), CONFIGS[what]
    whole = file.read_text()
    file.write_text(given if isinstance(given, str) else yaml.safe_dump({**yaml.safe_load(whole), **given}))
    assert resumed(monkeypatch, Path("run"), "tracker=local") == 0
    shown = capsys.readouterr()
    assert "run/config.yaml: " in shown.out + shown.err and "Traceback" not in shown.err
    assert yaml.safe_load(file.read_text())["trainer"] == yaml.safe_load(whole)["trainer"]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("changes", [{"overrides": 5}, {"overrides": [1]}, {"sessions": 5}, {"cwd": [1]}, "", "[1]"])
def test_an_odd_record_does_not_hold_up_the_resume(
    changes: Any, paused: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(paused, "run")
    record = Path("run/run.json")
    record.write_text(changes if isinstance(changes, str) else json.dumps(json.loads(record.read_text()) | changes))
    assert resumed(monkeypatch, Path("run")) == 0
    assert result(Path("run"))["step"] == 2


def test_a_pause_before_the_step_of_the_run_is_rejected() -> None:
    for steps in (None, 65, 66):
        dtl.train._check_pause(steps, 65)
    with pytest.raises(
        ConfigError, match=r"=3: is counted from step 0, and this run is at step 65\. Give more than 65"
    ):
        dtl.train._check_pause(3, 65)
