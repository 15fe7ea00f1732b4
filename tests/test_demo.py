"""The demo: what it asks is in the shipped facts, one of it in wordings that training never sees."""

import json
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
