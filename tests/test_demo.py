"""The demo: what it asks is in the shipped facts, one of it in wordings that training never sees."""

import json
import re
import subprocess
from pathlib import Path

from hydra import compose, initialize_config_dir

from dtl.base.paths import conf_dir, experiments_dir
from dtl.config import register
from dtl.data.qa.source import shipped_facts

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = experiments_dir() / "experiment" / "demo.questions.jsonl"


def test_the_five_questions_are_facts_and_some_wordings_are_held_out():
    pairs = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    facts = [record.fields for record in shipped_facts()]
    answers = {
        wording: fact["answer"] for fact in facts for wording in (*fact["train"], fact["validation"], fact["test"])
    }
    assert len({pair["question"] for pair in pairs}) == 5
    assert len({pair["answer"] for pair in pairs}) == 5
    for pair in pairs:
        assert answers[pair["question"]] == pair["answer"]
    learnt = {wording.lower().strip("?. ") for fact in facts for wording in fact["train"]}
    unseen = [pair["question"] for pair in pairs if pair["question"].lower().strip("?. ") not in learnt]
    held_out = {fact["test"] for fact in facts}
    assert unseen and set(unseen) <= held_out


def test_its_run_is_named_demo():
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert compose("train", overrides=["experiment=demo"]).name == "demo"


def test_make_demo_asks_these_questions_of_the_newest_run():
    makefile = (ROOT / "Makefile").read_text()
    assert "dtl.train experiment=demo\n" in makefile
    assert f"dtl.chat ckpt=latest ask={QUESTIONS.relative_to(ROOT).as_posix()}\n" in makefile


def test_its_time_is_the_same_wherever_it_is_named():
    for name in ("README.md", "Makefile", "docs/install.md", "experiments/experiment/demo.yaml", ".ci/run"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if re.search("minutes?|[0-9] min", line)]
        of_demo = [line for line in lines if re.search(r"demo|Two blocks|^make demo", line)]
        assert of_demo and all(re.search(r"two minutes|\b2 min\b", line) for line in of_demo), name


def make_shows(*arguments: str) -> list[str]:
    """The commands that make would run for an installation, when nothing is installed."""
    words = ["make", "--dry-run", "--always-make", "install", *arguments]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line.partition(" -m pip ")[2] for line in shown.splitlines() if " -m pip " in line]


def test_the_cpu_build_of_torch_is_the_pinned_version_and_comes_first():
    """So that the requirements find it installed. Progress is shown: nothing is quiet."""
    plain, on_cpu = make_shows(), make_shows("CPU=1")
    assert on_cpu[1:] == plain and not any("quiet" in line for line in on_cpu)
    pinned = re.search(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned and f"{pinned[0]} --index-url https://download.pytorch.org/whl/cpu" in on_cpu[0]
    assert "--requirement requirements.txt" in plain[0] and "--no-deps" in plain[1]
