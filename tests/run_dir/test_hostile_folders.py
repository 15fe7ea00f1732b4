"""Folders of others: whatever their files are, reading them ends soon, takes little memory, and says what is wrong."""

import ast
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from checkpoint_examples import save
from hostile_files import ALIASES, KINDS, printed_by, read_all

from dtl.base import json_files
from dtl.base.json_files import read_json_or_empty, read_lines, read_yaml, read_yaml_or_empty
from dtl.errors import CheckpointError

if sys.platform == "win32":
    pytest.skip("Windows has no such files", allow_module_level=True)

PATIENCE_S = 60  # then a reader hangs; nothing else depends on it
MERGES = "k0: &k0 {x: 1}\n" + "".join(f"k{n}: &k{n} {{<<: [*k{n - 1}, *k{n - 1}]}}\n" for n in range(1, 40))
HOSTILE_YAML = {
    "brackets": "[" * 60_000,
    "braces": "{a: " * 20_000,
    "questions": "? " * 30_000,
    "dashes": "- " * 30_000,
    "aliases": ALIASES,
    "merges": MERGES,
    "many parts": "- a\n" * 60_000,
    "recursive": "a: &a [*a]",
    "large": "a: " + "x" * 2**21,
    "digits": "a: " + "9" * 5000,
    "date": "a: 2001-99-99",
    "tag": "a: !!python/object/apply:os.system [true]",
    "surrogate": '{"a": "\\ud800"}',
}


@pytest.fixture(autouse=True)
def no_hang(elsewhere: Path) -> Iterator[None]:
    """Ends a reader that waits for ever, in a working directory without outputs/."""

    def stop(*_: object) -> None:
        pytest.fail("a reader hangs", pytrace=True)

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


FILES = [
    *("config.yaml", "run.json", "result.json", "trial.json", "error.json", "evaluation.json", "metrics.jsonl"),
    *(".lock", ".lock.json", "traceback.txt", "samples/step-00000001.jsonl", "sweep.json"),
    *(f"checkpoints/best/{name}" for name in ("manifest.json", "config.json", "config.yaml", "state.json")),
    *(f"checkpoints/best/{name}" for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")),
    *("checkpoints/step-00000001/manifest.json", "checkpoints/best/model.safetensors"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint, which is the folder of a sweep as well."""
    run = tmp_path_factory.mktemp("whole") / "run"
    best = run / "checkpoints" / "best"
    shutil.copytree(save(run, 1), best)
    for name in ("run.json", "result.json", "trial.json", "evaluation.json", "sweep.json"):
        (run / name).write_text("{}")
    (run / "config.yaml").write_text("name: a\ndata: {}\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "val/loss": 2.0}\n')
    (run / "samples").mkdir()
    return run


QUICK = ("fifo", "endless", "brackets", "aliases", "loop")


@pytest.mark.quick_cases(2)
@pytest.mark.fault("hostile-listing")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in KINDS]
)
def test_every_reader_of_every_file(whole, tmp_path, kind):
    for name in FILES:
        run = tmp_path / "run"
        shutil.copytree(whole, run)
        (run / name).unlink(missing_ok=True)
        KINDS[kind](run / name)
        read_all(run)
        for folder in (run / "checkpoints" / "best", run / "checkpoints" / "step-00000001"):
            for file in ("manifest.json", "state.json", "optimizer.safetensors"):
                if os.path.lexists(folder / file):
                    (folder / file).rename(folder / f"{file}.aside")  # now it is a model folder of somebody else
        read_all(run)
        shutil.rmtree(run)


@pytest.mark.quick_cases(1)
@pytest.mark.fault("hostile-listing")
@pytest.mark.parametrize("kind", ["fifo", "aliases"])
def test_every_command(whole, kind, monkeypatch, capsys):
    run = Path("outputs/2026-01-02/03-04-05-6_a")
    shutil.copytree(whole, run)
    names = [name for name in FILES if "manifest" not in name and "safetensors" not in name]
    for name in (*names, "sweep.json"):
        (run / name).unlink(missing_ok=True)
        KINDS[kind](run / name)
    lines = {"runs": "sort=loss", "report": f"runs={run}", "sweep": f"status={run}", "chat": f"ckpt={run}"} | {
        "evaluate": f"ckpt={run}", "generate": "ckpt=latest", "train": f"resume={run}", "prepare": f"data.path={run}"
    }  # fmt: skip
    for name, line in [*lines.items(), ("train", f"init={run}"), ("chat", "ckpt=latest")]:
        printed_by(name, line, monkeypatch, capsys)


@pytest.mark.fault("hostile-listing")
@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_yaml_is_bounded(tmp_path, kind):
    file = tmp_path / "config.yaml"
    file.write_text(HOSTILE_YAML[kind])
    assert len(str(read_yaml_or_empty(file))) < 10_000
    if kind not in ("digits", "surrogate"):
        with pytest.raises(CheckpointError, match=r"config\.yaml: (damaged|cannot be read)"):
            read_yaml(file)


def test_what_dtl_writes_is_within_the_bounds(tmp_path):
    """The largest config there is, and one of a hundred sources."""
    source = {"kind": "text", "path": "x", "options": {"a": [1, 2, 3], "b": {"c": 1}}}
    config = {"data": {"sources": {f"s{n}": source | {"weight": n} for n in range(100)}}, "name": "a"}
    (tmp_path / "config.yaml").write_text(yaml.dump(json.loads(json.dumps(config))))
    assert read_yaml(tmp_path / "config.yaml") == config


def test_json_takes_little_memory(tmp_path):
    """The widest JSON of the greatest size: 20 times its bytes at most."""
    assert json_files.MAX_JSON_BYTES * 21 < 200e6
    file = tmp_path / "run.json"
    file.write_bytes(b" " * (json_files.MAX_JSON_BYTES + 1))
    assert read_json_or_empty(file) == {}


def test_lines_end_at_one_that_is_endless(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1}\r\n{"step": 2}\n' + b"x" * (2 * json_files.MAX_LINE_BYTES) + b"\n{}"
    )
    assert list(read_lines(tmp_path / "metrics.jsonl")) == [b'{"step": 1}', b'{"step": 2}']


def test_no_other_reader():
    """Whoever reads a file of a run, a checkpoint or a model folder does so through these readers."""
    allowed = {
        "base/json_files.py", "base/files.py", "base/system.py", "checkpoints/weights.py", "sweeps/search.py",
        "sweeps/search_study.py", "sweeps/process.py", "tracking/metrics.py", "run_dir/provenance.py",
    }  # fmt: skip
    # What reads training text, the user's own config groups and the notebook, or files of DTL itself.
    own = (
        "data/",
        "benchmarks/",
        "diagnostics/",
        "foresight/",  # and what the kernel says
        "notebook/",
        "commandline/",
        "evaluation/",
        "terminal/",
        "model/presets.py",
        "generation/config.py",
        "reports/page.py",
        "reports/canvas.py",
    )
    package = Path(json_files.__file__).parents[1]
    for file in package.rglob("*.py"):
        place = file.relative_to(package).as_posix()
        if place in allowed or (place.startswith(own) and "tokenizers/files" not in place):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
            assert name not in ("read_text", "read_bytes", "safe_load") and not (
                name == "open" and "rb" in ast.unparse(node)
            ), f"{place}:{getattr(node, 'lineno', 0)}: use dtl.base.json_files"
