"""Whole runs in a second, for tests of stopping and going on: their config, and what must be equal at their end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dtl.base.files import sha256_of
from dtl.base.json_files import DIGEST
from dtl.checkpoints.listing import list_checkpoints, newest_valid
from dtl.config import RunConfig
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.generation.config import SamplingConfig
from dtl.model.config import ModelConfig
from dtl.runner.run import Origin, train
from dtl.tracking.config import TrackerConfig
from dtl.tracking.metrics import read_metrics
from dtl.training.config import OptimizerConfig, ScheduleConfig, TrainerConfig

TIME_KEYS = ("seconds", "speed/tokens_per_second", "validation/tokens_per_second", "memory/peak_bytes", DIGEST)


def write_pairs(path: Path, n_facts: int = 13, validation: bool = True) -> Path:
    """Facts with three wordings to learn and one to check; without `validation` nothing is held out of them."""
    facts = [
        {
            "id": f"fact-{i}",
            "answer": f"{i * i}.",
            "train": [f"{i} times {i}?", f"Square of {i}?", f"{i} squared?"],
        }
        | ({"validation": [f"{i}*{i}?"]} if validation else {})
        for i in range(n_facts)
    ]
    path.write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
    return path


def tiny_config(pairs: Path, **trainer: Any) -> RunConfig:
    """A model of some thousand weights with dropout; a step takes milliseconds, an epoch 5 steps."""
    limits: dict[str, Any] = {
        "machine": "cpu",
        "micro_batch_size": 2,
        "grad_accum_steps": 2,
        "precision": "fp32",
        "total_steps": 12,
        "eval_every_steps": 3,
        "save_every_steps": 2,
        "save_every_epochs": None,
        "early_stopping_patience": None,
        "keep": 2,
        "log_every_steps": 3,
    }
    return RunConfig(
        model=ModelConfig(dim=16, n_layers=2, n_heads=2, ffn_dim=32, max_seq_len=73, dropout=0.1),
        tokenizer=TokenizerConfig(kind="byte"),
        data=DataConfig(
            sources={"qa": SourceConfig(kind="qa", path=str(pairs))},
            seq_len=73,
            document_mask=True,
            loss_on="answer",
            validation_fraction=None,
        ),
        optimizer=OptimizerConfig(lr=0.01),
        schedule=ScheduleConfig(warmup_steps=2),
        trainer=TrainerConfig(**(limits | trainer)),
        tracker=TrackerConfig(kind="local"),
        sampling=SamplingConfig(max_new_tokens=3),
        seed=11,
        device="cpu",
    )


def start(config: RunConfig, run_dir: Path) -> float:
    """A new run, on one thread."""
    torch.set_num_threads(1)
    return train(config, run_dir)


def go_on(config: RunConfig, run_dir: Path, **limits: Any) -> float:
    """Do what `resume=<run_dir>` does, with other limits."""
    torch.set_num_threads(1)
    trainer = replace(config.trainer, **({"stop_after_steps": None} | limits))
    config = replace(config, resume=str(run_dir), trainer=trainer)
    return train(config, run_dir, Origin(resume_from=newest_valid(run_dir)[0].path))


def start_or_go_on(config: RunConfig, run_dir: Path) -> None:
    """Do what a user does after a crash: resume, or begin again where nothing was saved yet."""
    if list_checkpoints(run_dir, contents=False):
        go_on(config, run_dir)
    else:
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)
        start(config, run_dir)


def outcome(run_dir: Path) -> dict[str, Any]:
    """Everything that must be equal, bit for bit, however often the run was stopped."""
    newest = list_checkpoints(run_dir)[0]
    files: dict[str, str] = {}
    states: list[dict[str, Any]] = []
    for folder in (newest.path, run_dir / "checkpoints" / "best"):
        for file in sorted(folder.iterdir()):
            if file.name not in ("manifest.json", "state.json"):
                files[f"{folder.name}/{file.name}"] = sha256_of(file)
        state = json.loads((folder / "state.json").read_text())
        del state["train"]["seconds"]
        states.append(state)
    samples = {file.name: file.read_text() for file in sorted((run_dir / "samples").glob("*"))}
    rows = [untimed(row) for row in read_metrics(run_dir)]
    return {"files": files, "states": states, "samples": samples, "rows": rows, "result": untimed(result(run_dir))}


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on how fast the machine is."""
    return {key: value for key, value in values.items() if key not in TIME_KEYS}


def result(run_dir: Path) -> dict[str, Any]:
    """Return the content of result.json."""
    return json.loads((run_dir / "result.json").read_text())


def steps_kept(run_dir: Path) -> list[int]:
    """The steps of the whole checkpoints, newest first."""
    return [entry.step for entry in list_checkpoints(run_dir) if entry.problem is None]
