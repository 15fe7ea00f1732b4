"""The built wheel, alone: in an environment with its own dependencies only, far from the checkout, it trains."""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

import dtl
from dtl.run_dir.references import CURVES, read_references
from dtl.train import COMMAND

pytestmark = pytest.mark.slow

CHECKOUT = Path(dtl.__file__).parents[1]
SCRIPTS = "Scripts" if os.name == "nt" else "bin"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new virtual environment with the wheel and what the wheel asks for, in the versions of requirements.txt."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([*build, CHECKOUT], check=True)
    (wheel,) = folder.glob("dtl-*.whl")
    venv.create(folder / "venv", with_pip=True)
    install = [folder / "venv" / SCRIPTS / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "--constraint", CHECKOUT / "requirements.txt", wheel], check=True)
    yield folder / "venv" / SCRIPTS
    shutil.rmtree(folder)  # pytest would keep it, and it is large


def run(folder: Path, *command: str | Path) -> str:
    """Standard output of a command that must succeed, run in `folder` and blind to the checkout."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*command], cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_brings_its_configs_and_recipes(environment, tmp_path):
    program = (
        "import json\n"
        "from dtl.train import COMMAND\n"
        "from dtl.base.paths import conf_dir, experiments_dir\n"
        "print(json.dumps([str(conf_dir()), str(experiments_dir()), COMMAND.groups()]))"
    )
    conf, experiments, choices = json.loads(run(tmp_path, environment / "python", "-c", program))
    inside = environment.parent.resolve()
    assert Path(conf).is_relative_to(inside) and Path(experiments).is_relative_to(inside)
    assert Path(experiments).is_dir()
    assert choices == COMMAND.groups()


def test_it_brings_the_reference_curves(environment, tmp_path):
    program = (
        "from dtl.run_dir.references import CURVES, read_references\n"
        "print(*(each.name for each in read_references(CURVES)))"
    )
    names = [each.name for each in read_references(CURVES)]
    assert names and run(tmp_path, environment / "python", "-c", program).split() == names


def test_help(environment, tmp_path):
    assert "model/arch   classic | modern" in run(tmp_path, environment / "dtl-train", "--help=all")
    for name in ("chat", "generate", "diagnose"):
        assert run(tmp_path, environment / f"dtl-{name}", "--help").startswith(f"python -m dtl.{name} ")


def test_a_config_in_python(environment, tmp_path):
    program = "import dtl; config = dtl.compose('experiment=demo'); print(config == dtl.compose('experiment=demo'))"
    assert run(tmp_path, environment / "python", "-c", program).split() == ["True"]


def test_two_steps_and_a_text_from_another_folder(environment, tmp_path):
    choices = ["model=small", "data=qa", "tokenizer=byte", "trainer=debug", "tracker=local", "device=cpu"]
    tiny = ["model.dim=32", "model.n_layers=2", "model.n_heads=2", "data.tasks=[]", "trainer.total_steps=2"]
    run(tmp_path, environment / "python", "-m", "dtl.train", *choices, *tiny)
    (result,) = tmp_path.glob("outputs/*/*/result.json")
    outcome = json.loads(result.read_text())
    assert (outcome["state"], outcome["step"]) == ("finished", 2)
    assert (result.parent / "checkpoints" / "best" / "model.safetensors").is_file()
    short = ["prompt=Question: Who?", "sampling=standard", "sampling.max_new_tokens=3"]
    assert run(tmp_path, environment / "dtl-generate", "ckpt=latest", *short).startswith("Question: Who?")
