"""docs/wandb_sweep.yaml: what a W&B agent makes of it is what dtl.train takes. No network: wandb's own expansion."""

import re
import subprocess
import sys
from pathlib import Path

import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "wandb_sweep.yaml"


def expanded(sweep: dict, chosen: dict) -> list[str]:
    """The command of one run, as `wandb agent` puts it together (wandb/wandb_agent.py, _command_run)."""
    words = create_sweep_command(list(sweep["command"]))
    args = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    macros = {"program": [sweep["program"]], "interpreter": [sys.executable], "env": ["/usr/bin/env"], **args}
    known = {"${" + name + "}": expansion for name, expansion in macros.items()}
    return [word for chunk in words for word in known.get(chunk, [chunk])]


def test_the_page_on_sweeps_shows_the_file():
    (shown,) = re.findall(
        r"^```yaml\n(program:.*?)^```$", (ROOT / "docs" / "sweeps.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert yaml.safe_load(shown) == yaml.safe_load(FILE.read_text())


def test_the_agents_command_composes(tmp_path):
    sweep = yaml.safe_load(FILE.read_text())
    chosen = {
        key: choice["values"][-1] if "values" in choice else choice["min"]
        for key, choice in sweep["parameters"].items()
    }
    command = expanded(sweep, chosen)
    assert command[:4] == ["/usr/bin/env", sys.executable, "-m", "dtl.train"]
    assert command[-3:] == ["optimizer.lr=0.0001", "model.n_layers=8", "model.dropout=0.1"]
    done = subprocess.run([*command, "--cfg", "job"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["optimizer"]["lr"] == 1e-4
    assert (config["model"]["n_layers"], config["model"]["dropout"]) == (8, 0.1)
    assert config["tracker"]["kind"] == "wandb"


def test_every_key_is_one_that_dtl_knows_and_the_metric_is_logged():
    from dtl.tracking.tracker import Tracker
    from dtl.train import COMMAND

    sweep = yaml.safe_load(FILE.read_text())
    known = {key.name for key in COMMAND.settings} | set(COMMAND.groups())
    assert set(sweep["parameters"]) <= known
    assert not set(sweep["parameters"]) & set(COMMAND.groups())  # W&B would keep the word in place of the settings
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"}
    sent = []

    class Sink:
        def log(self, metrics, step):
            sent.append(metrics)

    tracker = Tracker(Path("run"), Sink(), None, None)
    tracker._send(3, {"val/loss": 1.5})  # at the top level, by the name that the metric has
    assert sent == [{"val/loss": 1.5}]
