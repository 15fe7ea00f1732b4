"""Parts from another package: the examples of CONTRIBUTING.md, written out as they stand there and run."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dtl

TEXT = (Path(dtl.__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("\\\n", "")
FILES = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^    (python -m dtl\.train .*)$", TEXT, re.MULTILINE)
SMALL = ["model.dim=16", "model.n_layers=2", "model.n_heads=2", "tokenizer=byte", "data.seq_len=48"]
TINY = [*SMALL, "trainer=debug", "trainer.total_steps=2", "tracker=local", "device=cpu"]
PROGRAM = [sys.executable, "-m", "dtl.train"]
SCRIPT = [str(Path(sys.executable).with_name("dtl-train"))]  # does not look for modules where it is called


@pytest.fixture
def lab(elsewhere: Path) -> Path:
    """The folder of somebody who uses DTL."""
    for name, content in FILES:
        file = elsewhere / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    rows = [f'"Roses are {n} and violets are {n + 1}."' for n in range(40)]
    (elsewhere / "verses.csv").write_text("verse\n" + "\n".join(rows))
    pairs = [{"question": f"What comes after {n}?", "answer": f"{n + 1}"} for n in range(12)]
    (elsewhere / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return elsewhere


def train(lab: Path, *arguments: str, program: list[str] = PROGRAM) -> dict[str, Any]:
    """Run the command in another process, so that nothing stays registered in this one; its result."""
    done = subprocess.run([*program, *arguments], cwd=lab, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = lab.glob("outputs/*/*/result.json")
    return json.loads(result.read_text())


def test_there_is_an_example_of_each():
    assert len(COMMANDS) == 6 and len(FILES) == 11


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=["block", "optimizer", "schedule", "training", "source", "task"])
def test_each_example_trains(lab, command):
    arguments = shlex.split(command)[3:]
    if "data=verses" not in arguments:
        arguments += ["data.qa.path=pairs.jsonl", "data.validation_fraction=0.2"]  # a metric needs some
    result = train(lab, *arguments, *TINY)
    assert (result["state"], result["step"]) == ("finished", 2)
    assert ("first_letter/train" in result) == ("data=my_qa" in arguments)


@pytest.mark.slow
def test_all_together_and_on_from_their_checkpoint(lab):
    modules = ",".join(re.findall(r"plugins=(\S+)", " ".join(COMMANDS)))
    own = ["--config-dir=my_conf", f"plugins={modules}"]
    choices = ["model/arch=parallel", "optimizer=nesterov", "data=my_qa", "data.qa.path=pairs.jsonl"]
    verses = ["data.sources.verses.kind=csv", "data.sources.verses.path=verses.csv", "data.sources.verses.column=verse"]
    result = train(lab, *own, *choices, *verses, *TINY)
    assert (result["state"], result["step"]) == ("finished", 2) and 0 <= result["first_letter/train"] <= 1
    (config,) = lab.glob("outputs/*/*/config.yaml")
    assert "block: parallel" in config.read_text()
    assert train(lab, *own, "resume=latest", "trainer.total_steps=3")["step"] == 3


@pytest.mark.slow
@pytest.mark.fault("hostile-config")
def test_a_checkpoint_does_not_import_what_it_names(lab):
    """Whoever resumes somebody's run says which code to trust; the run's own config.yaml has no say."""
    modules = ["--config-dir=my_conf", "plugins=[my_lab.nesterov]"]
    choices = ["optimizer=nesterov", "data.qa.path=pairs.jsonl", "data.tasks=[]"]
    train(lab, *modules, *choices, *TINY, program=SCRIPT)
    (lab / "my_lab" / "nesterov.py").write_text("open('imported', 'w').close()")
    again = [*SCRIPT, "resume=latest", "trainer.total_steps=3"]
    done = subprocess.run(again, cwd=lab, capture_output=True, text=True)
    assert done.returncode == 2 and "optimizer.name=nesterov: there is no part of this name." in done.stderr
    assert not (lab / "imported").exists()


def test_a_plugin_that_fails_is_named(lab):
    (lab / "broken.py").write_text("raise RuntimeError('no such luck')")
    done = subprocess.run([*PROGRAM, "plugins=[broken]"], cwd=lab, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "plugins=[broken]: cannot be imported (RuntimeError: no such luck)" in done.stderr
