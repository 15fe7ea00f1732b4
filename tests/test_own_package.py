"""A package outside of DTL with parts of every kind, a file each: a sweep over them finishes and is reported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILES = {
    "lab/losses.py": """
from dtl.registry import LOSSES

@LOSSES.register("focal")
def focal(head, x_nd, targets_n, config):
    log_p_n = head(x_nd).float().log_softmax(dim=-1).gather(1, targets_n[:, None])[:, 0]
    return (-((1 - log_p_n.exp()) ** config.options["gamma"]) * log_p_n).sum()
""",
    "lab/schedules.py": """
import math
from dtl.registry import SCHEDULES

@SCHEDULES.register("inverse_sqrt")
def inverse_sqrt(at, config):
    return math.sqrt((at.warmup + config.options["offset"]) / (at.step + config.options["offset"]))
""",
    "lab/stops.py": """
from dtl.registry import STOP_CRITERIA

@STOP_CRITERIA.register("after")
def after(run):
    return f"{run.options['evaluations']} evaluations." if len(run.evaluations) == run.options["evaluations"] else None
""",
    "lab/metrics.py": """
from dtl.registry import METRICS

@METRICS.register("entropy")
def entropy(logits_nv, targets_n):
    log_p_nv = logits_nv.log_softmax(dim=-1)
    return -(log_p_nv.exp() * log_p_nv).sum(dim=-1)
""",
    "lab/sources.py": """
import csv
from dtl.data.documents import Document
from dtl.registry import SOURCES

@SOURCES.register("csv")
class CsvSource:
    def __init__(self, name, source, data, seed):
        self.origin = source.path
        self.source = source

    def splits(self):
        return {"train": self.documents()}

    def documents(self):
        with open(self.source.path, newline="") as file:
            for row in csv.DictReader(file):
                yield Document(self.source.options["before"] + row[self.source.column])

    def notes(self):
        return []
""",
    "my_conf/schedule/inverse_sqrt.yaml": "name: inverse_sqrt\nmin_lr_fraction: 0.0\noptions: {offset: 1}\n",
    "my_conf/data/verses.yaml": """
sources: {verses: {kind: csv, path: verses.csv, column: verse, options: {before: "O "}}}
seq_len: 32
validation_fraction: 0.2
metrics: [entropy]
""",
    "my_conf/experiment/mine.yaml": """
# @package _global_
defaults:
  - override /schedule: inverse_sqrt
  - override /data: verses
  - override /tokenizer: byte
  - override /trainer: debug
  - override /tracker: local
model: {dim: 16, n_layers: 2, n_heads: 2}
trainer:
  total_steps: 20
  loss: {name: focal, options: {gamma: 2}}
  stop_criteria: [after]
  stop_options: {evaluations: 2}
device: cpu
""",
}
PLUGINS = "plugins=lab.losses,lab.schedules,lab.stops,lab.metrics,lab.sources"


@pytest.fixture
def lab(elsewhere: Path) -> Path:
    for name, text in FILES.items():
        file = elsewhere / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.removeprefix("\n"))
    rows = "".join(f"{n},Roses are {n} and violets are {n + 1}.\n" for n in range(60))
    (elsewhere / "verses.csv").write_text(f"id,verse\n{rows}")
    return elsewhere


def dtl(lab: Path, command: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-m", f"dtl.{command}", *words], cwd=lab, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_sweep_over_ones_own_parts_finishes_and_is_reported(lab: Path) -> None:
    own = ["--config-dir=my_conf", PLUGINS, "experiment=mine"]
    values = ["trainer.loss.options.gamma=1,3", "schedule.options.offset=1,7"]
    dtl(lab, "train", "-m", *own, *values, "hydra.launcher.n_jobs=2")
    runs = sorted(lab.glob("outputs/multirun/*/*/[0-9]"))
    assert len(runs) == 4
    for run in runs:
        result = json.loads((run / "result.json").read_text())
        assert (result["state"], result["step"]) == ("finished", 6), "the criterion ends it after two evaluations"
        assert result["validation/entropy"] > 0
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rates = [row["optim/lr"] for row in rows if "optim/lr" in row]
        assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0]
        samples = "".join(file.read_text() for file in (run / "samples").iterdir())
        assert "O Roses" in samples, "the column of another name, and the source's own option"
    assert len({json.loads((run / "result.json").read_text())["value"] for run in runs}) == 4
    dtl(lab, "report", "runs=outputs/multirun/*/*")
    (page,) = lab.rglob("report.html")
    text = page.read_text()
    assert all(f"offset={offset} gamma={gamma}" in text for offset in (1, 7) for gamma in (1, 3))
    assert "4 finished, of 4" in dtl(lab, "sweep")
