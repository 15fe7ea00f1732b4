"""A run from before model.ffn_multiple_of: its mlp keeps the width of its weights, wherever it is used.

Its config.yaml has `ffn_dim: null`, which was 688 at a width of 256; the presets derive 704 today.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import start, steps_kept, tiny_config, untimed

import dtl
from dtl.base.files import MANIFEST, sha256_of, write_manifest
from dtl.checkpoints.listing import newest_valid
from dtl.checkpoints.weights import read_shapes
from dtl.config import RunConfig, typed
from dtl.model.config import ArchConfig
from dtl.model.presets import load_preset
from dtl.model.transformer import TransformerBlock
from dtl.registry import BLOCKS
from dtl.run_dir.own_config import own_config
from dtl.runner.run import Origin, train
from dtl.tracking.metrics import read_metrics

OWN_BLOCK = "relative"  # without a twin: its config.json has no width, only `ffn_dim: null`
STEPS = 3


@pytest.fixture(autouse=True)
def own_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BLOCKS, "_parts", dict(BLOCKS._parts))
    BLOCKS.register(OWN_BLOCK)(type("Own", (TransformerBlock,), {}))


def config_of(pairs: Path, block: str, **model: Any) -> RunConfig:
    config = tiny_config(pairs, total_steps=STEPS, eval_every_steps=1, save_every_steps=1)
    return replace(config, model=replace(load_preset("small", n_layers=1, **model), arch=ArchConfig(block)))


def as_written_before(run_dir: Path) -> None:
    """Take the key from every file of a run, and sign its checkpoints again."""
    for folder in (run_dir, *(run_dir / "checkpoints").iterdir()):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["model"].pop("ffn_multiple_of") == 16 and config["model"]["ffn_dim"] is None
        written_anew(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        if folder != run_dir:
            config = json.loads((folder / "config.json").read_text())
            assert config["dtl"].pop("ffn_multiple_of") == 16
            written_anew(folder / "config.json", json.dumps(config))
            facts = read_facts(folder)
            (folder / MANIFEST).unlink()
            write_manifest(folder, **facts)


def written_anew(file: Path, text: str) -> None:
    file.unlink()  # `best` may share its files with a step
    file.write_text(text)


def read_facts(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / MANIFEST).read_text())
    return {key: value for key, value in manifest.items() if key not in ("files", "digest")}


@pytest.fixture(params=["modern", OWN_BLOCK])
def older(pairs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, RunConfig]:
    """A run that is paused before its last step, and the config of one that begins today."""
    config = config_of(pairs, request.param, ffn_multiple_of=16)
    start(replace(config, trainer=replace(config.trainer, stop_after_steps=STEPS - 1)), tmp_path / "run")
    as_written_before(tmp_path / "run")
    today = config_of(pairs, request.param)
    assert (config.model.resolved_ffn_dim, today.model.resolved_ffn_dim) == (688, 704)
    return tmp_path / "run", today


def widths(run_dir: Path) -> set[int]:
    """The mlp widths in the weights of a run's checkpoints."""
    shapes = [read_shapes([file]) for file in run_dir.glob("checkpoints/*/model.safetensors")]
    return {
        shape[0]
        for each in shapes
        for name, shape in each.items()
        if name.endswith(("up_proj.weight", "mlp.up.weight"))
    }


def test_it_resumes_to_the_same_bits(pairs: Path, older: tuple[Path, RunConfig], tmp_path: Path) -> None:
    run_dir, today = older
    newest = newest_valid(run_dir)[0]
    assert newest.step == STEPS - 1
    values, warning = own_config(run_dir, newest.path, {})
    assert warning is None and "ffn_multiple_of" not in values["model"]
    config = typed(values)
    train(replace(config, resume=str(run_dir)), run_dir, Origin(resume_from=newest.path))
    start(config_of(pairs, today.model.arch.block, ffn_multiple_of=16), tmp_path / "whole")
    assert widths(run_dir) == {688} and steps_kept(run_dir)[0] == STEPS
    files = "model.safetensors", "optimizer.safetensors", "config.json", "config.yaml"
    resumed, whole = (
        [sha256_of(newest_valid(folder)[0].path / name) for name in files] for folder in (run_dir, tmp_path / "whole")
    )
    assert resumed == whole
    rows, expected = ([untimed(row) for row in read_metrics(folder)] for folder in (run_dir, tmp_path / "whole"))
    assert rows == expected


def test_its_model_is_loaded_asked_and_scored(older: tuple[Path, RunConfig]) -> None:
    """As chat, generate and evaluate do."""
    model, tokenizer = dtl.load_model(older[0]), dtl.load_tokenizer(older[0])
    assert model.config.resolved_ffn_dim == 688 and widths(older[0]) == {688}
    assert isinstance(dtl.complete(model, tokenizer, "3 times", max_new_tokens=2), str)
    assert dtl.score(model, tokenizer, [("3 times 3?", "9.")])["n"] == 1


def test_a_new_run_from_its_weights_has_its_width(older: tuple[Path, RunConfig], tmp_path: Path) -> None:
    run_dir, today = older
    best = run_dir / "checkpoints" / "best"
    train(replace(today, init=str(best)), tmp_path / "new", Origin(init_from=best))
    assert widths(tmp_path / "new") == {688}
    assert dtl.load_model(tmp_path / "new").config.resolved_ffn_dim == 688
    assert typed(yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())).model.resolved_ffn_dim == 688


def test_a_run_of_today_is_wider(pairs: Path, tmp_path: Path) -> None:
    start(config_of(pairs, "modern"), tmp_path / "run")
    assert widths(tmp_path / "run") == {704} and dtl.load_model(tmp_path / "run").config.ffn_dim is None
