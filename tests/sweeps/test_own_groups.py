"""Sweeps over parts and config groups of the user: every trial composes as the sweep did, wherever it is resumed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import dtl.train
from dtl.base.paths import conf_dir
from dtl.run_dir.provenance import composition_flags
from dtl.run_dir.sweep_records import SWEEP, SweepFolder, SweepRecord, as_typed, now, sweep_identity, with_its_flags

sys.path.insert(0, str(Path(__file__).parents[1] / "runner"))
from tiny_runs import write_pairs

PLUGIN = """
import time, torch
from dtl.registry import OPTIMIZERS

@OPTIMIZERS.register("slow_descent")
def slow_descent(model, config):
    class SlowDescent(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(config.options["seconds"])
            return super().step(closure)
    return [SlowDescent(model.parameters(), lr=config.lr, momentum=config.options["momentum"])]
"""
GROUP = "name: slow_descent\nlr: 0.05\noptions: {momentum: 0.9, seconds: 0.0}\n"
RECIPE = """# @package _global_
defaults: [{override /data: qa}, {override /tokenizer: byte}, {override /trainer: debug}, {override /tracker: local},
  {override /optimizer: slow}]
plugins: [my_lab.slow_descent]
device: cpu
model: {dim: 16, n_layers: 1, n_heads: 2, ffn_dim: 32}
data: {seq_len: 73, tasks: []}
trainer: {total_steps: 4, eval_every_steps: 1, save_every_steps: 1, sample_every_evals: 0}
"""


@pytest.fixture
def lab(elsewhere: Path) -> Path:
    """The folder of a user with a plugin, a config group and a recipe."""
    files = {
        "my_lab/slow_descent.py": PLUGIN,
        "my_conf/optimizer/slow.yaml": GROUP,
        "my_conf/experiment/night.yaml": RECIPE,
    }
    for name, text in files.items():
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_text(text)
    write_pairs(elsewhere / "pairs.jsonl")
    return elsewhere


def command(lab: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "dtl.train", "-m", f"data.path='{lab / 'pairs.jsonl'}'", *words]


def run(lab: Path, *words: str, cwd: Path | None = None) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(lab), *sys.path])}
    done = subprocess.run(command(lab, *words), cwd=cwd or lab, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shown_by(module: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-m", module], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_grid_over_a_group_of_ones_own(lab):
    words = ["experiment=night", "--config-dir=my_conf", "optimizer.options.momentum=0.0,0.5"]
    run(lab, *words, "hydra.launcher.n_jobs=2")
    (folder,) = lab.glob("outputs/multirun/*/*")
    assert [trial.state for trial in SweepFolder(folder).trials()] == ["finished", "finished"]
    flag = f"--config-dir={lab}/my_conf"
    record = json.loads((folder / "1" / "run.json").read_text())
    assert shlex.split(record["rerun"])[:4] == ["python", "-m", "dtl.train", flag]
    assert json.loads((folder / "sweep.json").read_text())["arguments"][0] == flag
    assert f"python -m dtl.train -m {flag}" in " ".join(shown_by("dtl.sweep", lab).split())
    assert "2, 2 finished" in shown_by("dtl.report", lab)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_search_is_killed_and_resumed_from_another_folder(lab, tmp_path_factory):
    """Neither its config groups nor its plugins are there; the trial that resumes takes no plugins from its own
    config.yaml."""
    words = ["experiment=night", "-cd", "my_conf", "optimizer.lr=tag(log,interval(1e-2,1e-1))", "sweep.confirm=1"]
    words += ["hydra/sweeper=dtl_optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.pruner=none"]
    words += ["optimizer.options.seconds=1.5"]
    with (lab / "screen.txt").open("wb") as screen:
        search = subprocess.Popen(command(lab, *words), cwd=lab, stdout=screen, stderr=screen)
    end = time.monotonic() + 120
    while not any(lab.glob("outputs/multirun/*/*/0/checkpoints/step-*")):
        assert search.poll() is None and time.monotonic() < end, (lab / "screen.txt").read_text()
        time.sleep(0.05)
    search.kill()
    search.wait()
    (folder,) = lab.glob("outputs/multirun/*/*")
    assert search.returncode == -signal.SIGKILL
    another = tmp_path_factory.mktemp("another")
    shown = run(lab, *words, f"hydra.sweep.dir='{folder}'", cwd=another)
    trials = SweepFolder(folder).trials()
    assert "resumes" in shown and [trial.state for trial in trials] == ["finished"] * 3
    assert trials[0].attempts == 2 and trials[2].role == "confirm"
    assert (
        "\n--- " in (folder / "0" / "trial.log").read_text() and "resume=" in (folder / "0" / "trial.log").read_text()
    )
    assert list(another.iterdir()) == []


# --- the flags themselves -----------------------------------------------------------------------------------------


def hydra(name: str = "train", main: str | None = None, config_dir: str | None = None) -> object:
    sources = [
        {"path": main or str(conf_dir()), "schema": "file", "provider": "main"},
        {"path": config_dir or "", "schema": "file" if config_dir else "structured", "provider": "command-line"},
    ]
    return OmegaConf.create({"runtime": {"config_sources": sources}, "job": {"config_name": name}})


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, []),
        ({"config_dir": "/a b"}, ["--config-dir=/a b"]),
        ({"name": "night", "config_dir": "/a"}, ["--config-dir=/a", "--config-name=night"]),
        ({"name": "train.yaml"}, []),
        ({"main": "/c"}, ["--config-path=/c"]),
    ],
)
def test_what_composes_is_among_the_flags_and_nothing_else(given, flags):
    assert composition_flags(hydra(**given)) == flags


def test_a_sweep_records_its_flags_but_is_known_by_its_overrides():
    config = OmegaConf.create({"hydra": hydra(config_dir="/a")})
    config.hydra.overrides = {"hydra": ["hydra.mode=MULTIRUN"], "task": ["lr=1,2", "path=${oc.env:UNSET_HERE}"]}
    arguments = as_typed(config)
    assert arguments == ["--config-dir=/a", "lr=1,2", "path=${oc.env:UNSET_HERE}"]
    assert sweep_identity(arguments) == ["lr=1,2", "path=${oc.env:UNSET_HERE}"]


def test_a_sweep_that_is_resumed_brings_the_flags_that_are_missing(tmp_path):
    folder, here = tmp_path / "sweep", tmp_path / "here" / "other"
    here.mkdir(parents=True)
    own = tmp_path / "home" / "my_conf"
    own.mkdir(parents=True)
    kept = f"--config-dir={own}"
    SweepFolder(folder).path.mkdir()
    SweepFolder(folder).write(SweepRecord([kept, "--config-name=night", "a=1,2"]))
    name = "--config-name=night"
    assert with_its_flags(["--multirun", "a=1,2"], folder) == [kept, name, "--multirun", "a=1,2"]
    moved = f"--config-dir={tmp_path}/here/my_conf"  # where the same relative path leads from here
    assert with_its_flags(["--multirun", moved, name], folder) == ["--multirun", kept, name]
    mistyped = f"--config-dir={tmp_path}/here/my_cnof"
    assert with_its_flags([mistyped, name], folder) == [mistyped, name]
    assert with_its_flags([f"--config-dir={here}", name], folder) == [f"--config-dir={here}", name]
    assert with_its_flags(["--multirun", "a=1"], tmp_path / "no sweep") == ["--multirun", "a=1"]


def test_recorded_flags_and_a_damaged_record_are_named(elsewhere, capsys):
    """A folder of sweeps from somebody else chooses no config files in silence, nor does a lost record."""
    folder = Path("outputs/multirun/2026-01-02/03-04-05-6")
    folder.mkdir(parents=True)
    sweep = SweepFolder(folder)
    sweep.write(SweepRecord(["--config-dir=/theirs", "seed=1,2"], started=now()))
    words = dtl.train.prepare_arguments(["--multirun", "seed=1,2"])
    assert words == ["--config-dir=/theirs", "--multirun", "seed=1,2", f"hydra.sweep.dir='{folder}'"]
    assert f"{folder}: this sweep was started with --config-dir=/theirs, which is used" in capsys.readouterr().err
    dtl.train.prepare_arguments(["--multirun", "--config-dir=/theirs", "seed=1,2"])
    assert capsys.readouterr().err == ""
    record = (folder / SWEEP).read_text()
    (folder / SWEEP).write_text(record.replace("seed=1,2", "seed=1,3"))
    assert dtl.train.prepare_arguments(["--multirun", "seed=1,2"]) == ["--multirun", "seed=1,2"]
    told = capsys.readouterr().err
    assert f"{folder}/{SWEEP}: was changed or is damaged, and may be this sweep: to resume it, add hydra." in told
    dtl.train.prepare_arguments(["--multirun", "seed=1,2", "sweep.new=true"])
    assert capsys.readouterr().err == ""
    dtl.train.prepare_arguments(["--multirun", "seed=1,2", f"hydra.sweep.dir={folder}"])
    assert "was changed or is damaged, and is written again. Its flags" in capsys.readouterr().err
