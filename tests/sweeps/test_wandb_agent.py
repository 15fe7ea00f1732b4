"""docs/wandb_sweep.yaml from end to end: W&B's own agent with a stand-in for its server, and real runs, offline."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import wandb
import yaml
from wandb.util import get_core_path

FILE = Path(__file__).resolve().parents[2] / "docs" / "wandb_sweep.yaml"
TINY = "trainer=debug trainer.total_steps=2 trainer.eval_every_steps=1 device=cpu data.qa.path=pairs.jsonl"
TINY_MODEL = "model.dim=12 model.n_heads=2 data.seq_len=31 tokenizer.vocab_size=263"


class Server:
    """Stand-in for the W&B API that an agent calls: the sweep, a name for the agent, and repeated requests for work."""

    def __init__(self, sweep: dict[str, Any], proposals: dict[str, dict[str, Any]]) -> None:
        self.sweep = sweep
        self.left = list(proposals.items())

    def find(self, api: Any, sweep_id: str, specs: str) -> dict[str, Any]:
        return {"config": yaml.safe_dump(self.sweep)}

    def register(self, api: Any, host: str, sweep_id: str) -> dict[str, Any]:
        return {"id": "agent"}

    def heartbeat(self, api: Any, agent_id: str, metrics: Any, running: dict[str, bool]) -> list[dict[str, Any]]:
        if running:
            return []
        if not self.left:
            return [{"type": "exit"}]
        run_id, chosen = self.left.pop(0)
        args = {key: {"value": value} for key, value in chosen.items()}
        return [{"type": "run", "run_id": run_id, "program": self.sweep["program"], "args": args}]


@pytest.fixture
def at_home(elsewhere: Path) -> Iterator[Path]:
    """Folder and environment of a user who runs `wandb agent`; what the agent sets is undone afterwards."""
    rows = [{"question": f"What is {n} times {n}?", "answer": f"{n * n}"} for n in range(23)]
    (elsewhere / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with mock.patch.dict(os.environ, {"PATH": path, "HOME": str(elsewhere), "WANDB_MODE": "offline"}):
        yield elsewhere


def kept_by_wandb(run_dir: Path) -> dict[str, Any]:
    """Records of an offline run, read with W&B's own reader."""
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    command = [get_core_path(), "leet", "inspect", "--json", f"--run-file={file}", str(file.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return next(record["run"] for record in map(json.loads, done.stdout.splitlines()) if record["type"] == "run")


@pytest.mark.slow
def test_an_agent_trains_what_the_server_proposes(at_home, monkeypatch):
    from wandb.apis.public import sweeps
    from wandb.wandb_agent import Agent, run_agent

    proposals = {
        "first1": {"optimizer.lr": 0.00127, "model.n_layers": 2, "model.dropout": 0.1},
        "second2": {"optimizer.lr": 1e-05, "model.n_layers": 1, "model.dropout": 0},
    }
    sweep = yaml.safe_load(FILE.read_text())
    assert all(set(chosen) == set(sweep["parameters"]) for chosen in proposals.values())
    sweep["command"] += [*TINY.split(), *TINY_MODEL.split()]
    server = Server(sweep, proposals)
    monkeypatch.setattr(sweeps, "_sweep_with_runs", server.find)
    monkeypatch.setattr(sweeps, "_register_agent", server.register)
    monkeypatch.setattr(sweeps, "_agent_heartbeat", server.heartbeat)
    monkeypatch.setattr(wandb, "Api", lambda: None)
    monkeypatch.setattr(Agent, "POLL_INTERVAL", 0.1)
    run_agent("somebody/their_project/sweep3")

    runs = {run.parent: json.loads(run.read_text()) for run in at_home.glob("outputs/*/*/run.json")}
    assert sorted(run["wandb_id"] for run in runs.values()) == [*proposals]
    for run_dir, run in runs.items():
        chosen = proposals[run["wandb_id"]]
        assert json.loads((run_dir / "result.json").read_text())["state"] == "finished"
        config = yaml.safe_load((run_dir / "config.yaml").read_text())
        kept = kept_by_wandb(run_dir)
        assert (kept["run_id"], kept["sweep_id"], kept["project"]) == (run["wandb_id"], "sweep3", "their_project")
        for of_run in (config, kept["config"]["update"]):
            found = {"optimizer.lr": of_run["optimizer"]["lr"], "model.n_layers": of_run["model"]["n_layers"]}
            assert found | {"model.dropout": of_run["model"]["dropout"]} == chosen
        assert chosen.items() <= kept["config"]["update"].items()  # under the sweep's own names, too
