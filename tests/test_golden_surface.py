"""What people and their programs see of DTL, as committed in tests/golden/: commands, settings, choices, files of a
run, keys of its JSON, names of metrics and tensors, bytes of a checkpoint. A change that only moves code moves none.

Nothing here depends on the machine: numbers that were computed are compared approximately, and what is hashed was
never computed. After a change that should be seen, look at the difference, then write the new files with
`DTL_UPDATE_GOLDEN=1 python -m pytest tests/test_golden_surface.py` and say in the commit why they moved.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from test_configs import COMPOSED
from test_golden import CONFIGS, GOLDEN, UPDATE

import dtl.bench
import dtl.registry
import dtl.train
from dtl.base.files import sha256_of
from dtl.checkpoints.save import save_checkpoint
from dtl.config import register
from dtl.data.config import TokenizerConfig
from dtl.data.tokenizers.tokenizer import build_tokenizer
from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.transformer import TransformerLM
from dtl.registry import Registry
from dtl.tracking.tracker import Tracker
from dtl.training.config import OptimizerConfig
from dtl.training.optimizer import build_optimizers, optimizer_tensors

ROOT = Path(__file__).resolve().parent.parent
NAMES, BYTES = "surface_names", "surface_bytes"
# Exact steps without dropout, whose masks differ from processor to processor. A large eps: gradients that are zero but
# for rounding, as those of GPT-2's key biases, must not move a weight.
ALWAYS = "model.dim=16 model.n_layers=2 model.n_heads=2 model.dropout=0 optimizer.lr=0.005 optimizer.eps=1e-5"
ALWAYS += " optimizer.betas=[0.9,0.95] optimizer.base_width=null"
ALWAYS += " trainer=debug trainer.total_steps=9 trainer.log_every_steps=3 tracker=local device=cpu seed=11"
ALWAYS += " sampling.max_new_tokens=3 data.cache_dir=cache hydra.run.dir=run"
RUNS = {
    "modern": "model.n_kv_heads=1 data=qa data.seq_len=139 tokenizer=byte",  # packed, with the document mask
    "classic": "model/arch=classic data=text data.path=text.jsonl data.layout=padded data.validation_fraction=0.2"
    " data.test_fraction=0.2 data.seq_len=48 tokenizer=char schedule=wsd",
}
OF_A_RUN = ("result.json", "run.json", "evaluation.json")
OF_A_CHECKPOINT = ("state.json", "config.json", "generation_config.json", "tokenizer_config.json", "manifest.json")
LIST = re.compile(r"\[[^][{}]+\]")  # of plain values


def committed(name: str, found: Any) -> Any:
    """What tests/golden/<name>.json holds; with DTL_UPDATE_GOLDEN it is written first, from what was found."""
    path = GOLDEN / f"{name}.json"
    if os.environ.get(UPDATE):
        text = json.dumps(found, indent=1, ensure_ascii=False)
        path.write_text(LIST.sub(lambda given: on_one_line(given[0]), text) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def on_one_line(text: str) -> str:
    """The text of a list on one line, when it is short."""
    short = " ".join(text.split())
    return short if len(short) < 100 else text


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values inside JSON or YAML, each with its path: `sessions[].packages.torch`."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    else:
        yield path, value


def keys_of(value: Any) -> list[str]:
    """The paths in a JSON value, in their order, each once."""
    return list(dict(leaves(value)))


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    """What is seen of a run that the command made, and what of it is committed."""
    folder, threads = tmp_path_factory.mktemp(request.param), torch.get_num_threads()
    facts = [json.dumps({"text": f"The square of {n} is {n * n}, its double {2 * n}."}) for n in range(60)]
    (folder / "text.jsonl").write_text("\n".join(facts), encoding="utf-8")
    summaries: list[Any] = []
    finish = Tracker.finish

    def heard(self: Tracker, state: Any, summary: Any = None) -> None:
        summaries.append(summary)
        finish(self, state, summary)

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(sys, "argv", ["dtl-train", *ALWAYS.split(), *RUNS[request.param].split()])
        patched.setattr(Tracker, "finish", heard)
        torch.set_num_threads(1)
        try:
            dtl.train.main()
        finally:
            torch.set_num_threads(threads)
    found = seen_of(folder / "run") | {"summary of the tracker": list(summaries[0])}
    return found, committed(f"surface_{request.param}", found)


def seen_of(run_dir: Path) -> dict[str, Any]:
    """Names of files, losses, keys and tensors of a finished run; nothing that depends on time, place or checkout."""
    files = sorted(path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file())
    rows = json_lines(run_dir / "metrics.jsonl")
    best = run_dir / "checkpoints" / "best"
    read = {file: json.loads((run_dir / file).read_text(encoding="utf-8")) for file in OF_A_RUN}
    read |= {file: json.loads((best / file).read_text(encoding="utf-8")) for file in OF_A_CHECKPOINT}
    read["run.json"]["git"] = read["run.json"]["sessions"][0]["environment"] = "of this machine"
    samples = [row for file in sorted((run_dir / "samples").iterdir()) for row in json_lines(file)]
    return {
        "files": [file for file in files if file != "git.diff"],  # it is there when the checkout has changes
        "train/loss": [row["train/loss"] for row in rows if "train/loss" in row],
        "val/loss": {str(row["step"]): row["val/loss"] for row in rows if "val/loss" in row},
        # Sorted: a machine that stands still for ten seconds writes its speed earlier.
        "kinds of rows in metrics.jsonl": sorted(map(list, {tuple(row) for row in rows})),
        "kinds of rows in samples": sorted(map(list, {tuple(row) for row in samples})),
        "keys": {file: keys_of(contents) for file, contents in read.items()},
        # dtype, shape, sum, sum without signs
        "tensors": {name: tensors_in(best / name) for name in ("model.safetensors", "optimizer.safetensors")},
    }


def json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def tensors_in(file: Path) -> dict[str, list[Any]]:
    def sums(tensor: torch.Tensor) -> list[float]:
        return [float(f"{total.item():.6g}") for total in (tensor.double().sum(), tensor.double().abs().sum())]

    return {
        name: [str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape)), *sums(tensor)]
        for name, tensor in sorted(load_file(file).items())
    }


def test_a_run_leaves_these_files(run: tuple[dict[str, Any], Any]) -> None:
    found, golden = run
    assert found["files"] == golden["files"]


def test_a_run_has_these_losses(run: tuple[dict[str, Any], Any]) -> None:
    found, golden = run
    assert len(found["train/loss"]) == 9 and list(found["val/loss"]) == ["3", "6", "9"]
    assert found["train/loss"] == pytest.approx(golden["train/loss"], rel=1e-4)
    assert found["val/loss"] == pytest.approx(golden["val/loss"], rel=1e-4)


@pytest.mark.parametrize("rows", ["kinds of rows in metrics.jsonl", "kinds of rows in samples"])
def test_rows_have_these_keys(run: tuple[dict[str, Any], Any], rows: str) -> None:
    found, golden = run
    assert found[rows] == golden[rows]


@pytest.mark.parametrize("file", [*OF_A_RUN, *OF_A_CHECKPOINT])
def test_a_file_has_these_keys(run: tuple[dict[str, Any], Any], file: str) -> None:
    found, golden = run
    assert found["keys"][file] == golden["keys"][file]


def test_the_tracker_is_told_these_figures(run: tuple[dict[str, Any], Any]) -> None:
    found, golden = run
    assert found["summary of the tracker"] == golden["summary of the tracker"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_holds_these_tensors(run: tuple[dict[str, Any], Any], file: str) -> None:
    found, golden = (seen["tensors"][file] for seen in run)
    assert {name: kind for name, (*kind, _, _) in found.items()} == {n: kind for n, (*kind, _, _) in golden.items()}
    for name, (_, _, total, without_signs) in golden.items():
        # A sum may be next to nothing where its terms are not; terms may be nothing but rounding.
        close = pytest.approx([total, without_signs], rel=1e-3, abs=max(1e-3 * without_signs, 1e-9))
        assert found[name][2:] == close, name


# --- bytes of a checkpoint ------------------------------------------------------------------------------------------


def exact(name: str, shape: torch.Size) -> torch.Tensor:
    """Numbers in [-2, 2) that every machine holds exactly, other ones for each name."""
    index = torch.arange(shape.numel(), dtype=torch.int64)
    return ((index * 7 + sum(name.encode())) % 509 - 254).reshape(shape).float() / 128


def test_a_checkpoint_has_these_bytes(tmp_path: Path) -> None:
    """Names, order, layout, dtypes and metadata of the tensors, and each text beside them."""
    cases = {"modern": ("byte", "muon", False), "classic": ("char", "adamw", True)}
    found = {}
    for block, (kind, optimizer, tied) in cases.items():
        tokenizer = build_tokenizer(TokenizerConfig(kind=kind), lambda: ["The quick brown fox, grüßend."])
        heads = {"n_kv_heads": 1} if block == "modern" else {}
        sizes: dict[str, Any] = {"dim": 8, "n_layers": 2, "n_heads": 2, "max_seq_len": 13} | heads
        config = ModelConfig(arch=ArchConfig(block), tie_embeddings=tied, **sizes)
        model = TransformerLM(config, tokenizer.vocab_size)
        optimizers = build_optimizers(model, OptimizerConfig(name=optimizer))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        for one in optimizers:
            one.step()  # makes the moments
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(exact(name, parameter.shape))
        state = {"step": 3, "epoch": 1, "best": 0.1, "random": {"cpu": "AAEC"}, "none": None}
        moments = {
            name: exact(name, tensor.shape).to(tensor.dtype)
            for name, tensor in optimizer_tensors(model, optimizers).items()
        }
        folder = save_checkpoint(tmp_path / block, model, tokenizer, "seed: 7\nname: grüße\n", state, moments)
        found[block] = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    assert found == committed(BYTES, found)


# --- names ----------------------------------------------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS: dict[str, str] = PROJECT["scripts"]
REGISTERED = """
import json, dtl.bench, dtl.registry
parts = {**vars(dtl.registry), **vars(dtl.bench)}.values()
print(json.dumps({one.key: one.names() for one in parts if isinstance(one, dtl.registry.Registry)}))
"""


@pytest.fixture(scope="module")
def names() -> tuple[dict[str, Any], Any]:
    """Everything that a command line or a YAML can name, and what of it is committed."""
    commands = {
        script: importlib.import_module(entry.partition(":")[0]).COMMAND
        for script, entry in SCRIPTS.items()
        if script != "dtl"
    }
    # In a process of its own: here, other tests may have registered parts of theirs.
    registered = subprocess.run(
        [sys.executable, "-c", REGISTERED], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found = {
        "scripts": SCRIPTS,
        "extras": sorted(PROJECT["optional-dependencies"]),
        "parts": json.loads(registered.stdout),
        "settings": {script: list(settings_of(command.schema)) for script, command in commands.items()},
        "settings of sweeps": settings_of_sweeps(),
        "conf": {
            file.relative_to(ROOT / "conf").as_posix(): [
                f"{path} = {json.dumps(value, ensure_ascii=False)}"
                for path, value in leaves(yaml.safe_load(file.read_text(encoding="utf-8")))
            ]
            for file in sorted((ROOT / "conf").rglob("*"))
            if file.is_file()
        },
    }
    return found, committed(NAMES, found)


def settings_of(owner: type, prefix: str = "") -> Iterator[str]:
    """Dotted name, type and default of every setting in a dataclass and in those inside it."""
    hints = get_type_hints(owner)
    for item in fields(owner):
        hint = hints[item.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from settings_of(hint, f"{prefix}{item.name}.")
            continue
        default = item.default if item.default_factory is MISSING else item.default_factory()
        kind = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
        kind = re.sub(r"[a-z_.]+[.]", "", kind)  # without the modules
        yield f"{prefix}{item.name}: {kind} = {json.dumps(default)}"
        for entry in get_args(hint):
            if is_dataclass(entry):
                yield from settings_of(entry, f"{prefix}{item.name}.<name>.")


def settings_of_sweeps() -> dict[str, dict[str, Any]]:
    """What `hydra.launcher.` and `hydra.sweeper.` take with the plugins that DTL brings, and the defaults."""
    register()
    choices = ["hydra/launcher=dtl_process", "hydra/sweeper=dtl_optuna"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", overrides=choices, return_hydra_config=True)
    sections = {choice: composed.hydra[choice.partition("=")[0].partition("/")[2]] for choice in choices}
    return {choice: {k: v for k, v in section.items() if k != "_target_"} for choice, section in sections.items()}


@pytest.mark.parametrize("kind", ["scripts", "extras", "parts", "settings", "settings of sweeps", "conf"])
def test_these_names_are_known(names: tuple[dict[str, Any], Any], kind: str) -> None:
    found, golden = names
    assert found[kind] == golden[kind]


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "dtl"])
def test_each_command_is_where_its_script_looks(script: str) -> None:
    module, _, function = SCRIPTS[script].partition(":")
    command = script.removeprefix("dtl-")
    assert (module, function) == (f"dtl.{command}", "main")
    assert callable(importlib.import_module(module).main) and importlib.import_module(module).COMMAND.name == command


def test_each_part_is_where_its_registry_looks() -> None:
    parts = {**vars(dtl.registry), **vars(dtl.bench)}.values()
    registries = {one.key: one for one in parts if isinstance(one, Registry)}
    known = json.loads((GOLDEN / f"{NAMES}.json").read_text(encoding="utf-8"))["parts"]
    assert registries.keys() == known.keys()
    assert all(registries[key].get(name) is not None for key, names in known.items() for name in names)


def test_every_golden_file_is_used() -> None:
    of_runs = {f"surface_{name}" for name in RUNS}
    assert {path.stem for path in GOLDEN.iterdir()} == {*CONFIGS, *of_runs, NAMES, BYTES, COMPOSED.stem}
