"""Folders of finished runs as DTL leaves them, made up, and a notebook to record them in."""

import json
from pathlib import Path
from typing import Any

import yaml

from dtl.base.json_files import sealed


def make_run(
    folder: Path,
    *,
    recipe: str | None = "bread",
    seed: int = 1,
    loss: float | None = 2.5,
    figures: dict[str, float] | None = None,
    overrides: tuple[str, ...] = (),
    settings: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    state: str = "finished",
    started: str = "2031-01-02T03:04:05+00:00",
    **changes: Any,
) -> Path:
    """A run that ends with `loss` and `figures`; `settings` go into its config.yaml, `changes` into its run.json."""
    folder.mkdir(parents=True)
    sources = {"sources": {"text": {"kind": "text"}}, "path": "/home/ann/secret place/loaves.txt"}
    config = {"data": data or sources, "name": "x", "seed": seed, "tracker": {"kind": "local"}, **(settings or {})}
    words = [*([f"experiment={recipe}"] if recipe else []), f"seed={seed}", *overrides]
    record = {
        "overrides": words,
        "choices": {"experiment": recipe or "null"},
        "seed": seed,
        "git": {"commit": "0123456789" * 4, "dirty": False},
        "data_fingerprint": "f" * 64,
        "computed_with": {"device": "cpu", "threads": 3, "precision": "fp32", "torch": "2.13.0"},
        "sessions": [{"started": started, "device": "cpu", "processor": "Made Up 7", "host": "anns-laptop"}],
        **changes,
    }
    rows = [{"step": step, "tokens": 11 * step, "seconds": 0.5 * step, "train/loss": 3.0} for step in range(1, 8)]
    figures = figures or {
        "test/bits_per_byte": 1.2345678,
        "test/perplexity": 7.0,
        "majority/f1/test": 0.1,
        "seen": {"text": 1},
    }
    result = {"state": state, "value": loss, "step": 7, "config_hash": f"{seed:016x}", **figures}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text(json.dumps(sealed(result)))
    return folder


def make_notebook(folder: Path, *recipes: str) -> Path:
    """A notebook with these recipes and a text on the first."""
    (folder / "experiment").mkdir(parents=True)
    for recipe in recipes:
        (folder / "experiment" / f"{recipe}.yaml").write_text("name: x\n")
    text = "# Does bread rise?\n\n**Asked.** Whether\nit rises.\n\n**Came out.** A loaf.\n\n**Verdict.** It does.\n"
    (folder / "experiment" / f"{recipes[0]}.md").write_text(text)
    return folder
