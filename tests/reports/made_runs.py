"""Folders of runs and sweeps as DTL leaves them, made up: losses are arithmetic, nothing was trained."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dtl.base.json_files import sealed

MODELS = {"small": (256, 6), "medium": (512, 8)}


def make_run(
    folder: Path,
    *,
    lr: float = 1e-3,
    model: str = "small",
    seed: int = 1,
    value: float | None = 2.0,
    steps: int = 40,
    planned: int = 40,
    state: str | None = "finished",
    error: str = "",
    name: str = "made",
    figures: Mapping[str, float] | None = None,
    samples: Iterable[tuple[str, str]] = (),
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """A run that ends with `value` as its validation loss, or without; with `state=None` it wrote no result."""
    folder.mkdir(parents=True)
    dim, n_layers = MODELS[model]
    config: dict[str, Any] = {
        "model": {"dim": dim, "n_layers": n_layers, "dropout": 0.1},
        "optimizer": {"name": "adamw", "lr": lr},
        "trainer": {"total_steps": planned, "keep": 3},
        "tracker": {"kind": "local"},
        "name": name,
        "seed": seed,
        **(settings or {}),
    }
    record = {
        "overrides": [f"model={model}", f"optimizer.lr={lr}", f"seed={seed}"],
        "choices": {"model": model, "optimizer": "adamw"},
        "seed": seed,
        "git": {"commit": "0" * 40, "dirty": False},
        "sessions": [{"started": "2031-01-02T03:04:05+00:00", "argv": [], "device": "cpu"}],
        "rerun": "python -m dtl.train",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(value, steps, seed, dim)))
    if state is not None:
        result = {"state": state, "value": value, "step": steps, "config_hash": f"{seed:016x}", **(figures or {})}
        if error:
            result["error"] = error
        (folder / "result.json").write_text(json.dumps(sealed(result)))
    if samples:
        (folder / "samples").mkdir()
        lines = [json.dumps({"prompt": prompt, "text": text}) for prompt, text in samples]
        (folder / "samples" / f"step-{steps:08d}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def rows(last: float | None, steps: int, seed: int, dim: int = 256) -> Iterable[dict[str, float]]:
    """A falling loss with noise, an evaluation every tenth of the way, the last one of `last`; None: no evaluation."""
    value = 2.0 if last is None else last
    noise = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        ideal = value + (8 - value) * np.exp(-5 * step / steps)
        row = {"step": step, "tokens": 1024 * step, "seconds": 0.1 * step * dim / 256 * (1 + 0.02 * seed)}
        row["train/loss"] = float(ideal + noise.normal(0, 0.1))
        if step % 10 == 0:
            row |= {"speed/tokens_per_second": 10_240 * 256 / dim / (1 + 0.02 * seed), "memory/peak_bytes": dim * 2**21}
        yield row
        if last is not None and step % max(1, steps // 10) == 0:
            yield {"step": step, "val/loss": value if step == steps else float(ideal), "val/targets": 997}


def make_trial(folder: Path, number: int, state: str, reason: str = "", **more: Any) -> None:
    """Write the record that a sweep keeps of a trial, in addition to its run."""
    folder.mkdir(parents=True, exist_ok=True)
    trial = {"number": number, "overrides": [f"seed={number}"], "hash": "0", "state": state, "reason": reason, **more}
    (folder / "trial.json").write_text(json.dumps(sealed(trial)))


def make_sweep(sweep: Path, steps: int = 400) -> Path:
    """24 trials: four learning rates, two models, three seeds; 2 diverged, one ran out of memory, one is rejected."""
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text(
        json.dumps(sealed({"arguments": ["optimizer.lr=3e-4,1e-3,3e-3,1e-2"], "kind": "grid"}))
    )
    noise = np.random.default_rng(7)
    number = 0
    for model, better in (("small", 0.0), ("medium", 0.15)):
        for lr, worse in ((3e-4, 0.4), (1e-3, 0.1), (3e-3, 0.0), (1e-2, 0.5)):
            for seed in (1, 2, 3):
                folder = sweep / str(number)
                text = [("Question: What is two plus two?\nAnswer:", f" {seed + 3}"), ("The sea", " was calm. " * seed)]
                value = 1.8 + worse - better + 0.05 * seed + float(noise.normal(0, 0.03))
                if lr == 1e-2 and seed < 3 and model == "medium":
                    lost = "The loss is not finite at step 97 (nan). Try a lower optimizer.lr."
                    make_run(
                        folder,
                        lr=lr,
                        model=model,
                        seed=seed,
                        value=6.5,
                        steps=97,
                        planned=steps,
                        state="failed",
                        error=lost,
                    )
                    make_trial(folder, number, "failed", lost)
                    (folder / "traceback.txt").write_text(
                        "Traceback (most recent call last):\n  ...\nTrainingError: nan"
                    )
                elif number == 4:
                    make_trial(folder, number, "refused", "model.n_heads=7: must divide model.dim=256")
                elif number == 17:
                    make_run(folder, lr=lr, model=model, seed=seed, value=4.5, steps=60, planned=steps, state=None)
                    make_trial(folder, number, "failed", "Out of memory with micro-batches of 8 x 256 tokens.")
                else:
                    scores = {"exact_match/test": 0.9 - value / 10, "test/loss": value + 0.1}
                    made = {"lr": lr, "model": model, "seed": seed, "value": value, "steps": steps, "planned": steps}
                    make_run(folder, **made, figures=scores, samples=text)
                    make_trial(folder, number, "finished")
                number += 1
    return sweep
