"""One prompt from the command line to the checkpoint, its samples, its evaluation, and a run that starts from it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_runs import start, tiny_config, write_pairs

import dtl.train
from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.load import load_tokenizer
from dtl.data.config import QuestionsConfig
from dtl.data.tokenizers.prompt import Prompt
from dtl.runner.run import Origin, train

SIZE = ("model.dim=16", "model.n_layers=2", "model.n_heads=2", "tokenizer=byte")
LEARNT = Prompt("Q: {question}\nA:", lower_case=False)
TYPED = (r"data.qa.prompt=Q: {question}\nA:", "data.lower_case_questions=false")


@pytest.fixture
def run(elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    """Call `dtl.train`, and return the prompt of its checkpoint."""
    write_pairs(elsewhere / "pairs.jsonl")
    (elsewhere / "text.txt").write_text("\n\n".join(f"The square of {n} is {n * n}." for n in range(300)))
    always = ["trainer=debug", "trainer.total_steps=2", "trainer.sample_every_evals=1", "tracker=local", "device=cpu"]

    def call(name: str, *arguments: str, data: tuple[str, ...] = ("data=qa", "data.qa.path=pairs.jsonl")):
        words = [*always, "data.seq_len=64", "sampling.max_new_tokens=2", f"hydra.run.dir={name}", *data, *arguments]
        monkeypatch.setattr(sys, "argv", ["dtl-train", *words])
        dtl.train.main()
        return load_tokenizer(find_checkpoint(name, elsewhere)).prompt

    return call


def test_a_prompt_goes_from_the_command_line_into_everything(run, elsewhere):
    assert run("a", *SIZE, *TYPED) == LEARNT
    config = yaml.safe_load((elsewhere / "a" / "config.yaml").read_text())
    assert config["data"]["qa"]["prompt"] == LEARNT.template
    samples = "".join(file.read_text() for file in (elsewhere / "a" / "samples").iterdir())
    assert json.dumps(LEARNT.text("0*0?"))[1:-1] in samples or LEARNT.text("0*0?") in samples
    written = json.loads((elsewhere / "a" / "evaluation.json").read_text())
    assert written["data"]["qa"]["prompt"] == LEARNT.template


def test_a_run_from_a_checkpoint_asks_as_it_has_learnt(run):
    """data=qa recommends lower case, and that is for models that have learnt no questions."""
    run("a", *SIZE, *TYPED)
    assert run("b", "init=a") == LEARNT
    assert run("c", "init=a", "data.qa.prompt={question}") == Prompt("{question}", lower_case=False)
    assert run("d", "init=a", "data.lower_case_questions=true") == Prompt(LEARNT.template, lower_case=True)


def test_a_model_of_plain_text_learns_questions_as_the_data_recommends(run):
    assert run("a", *SIZE, data=("data=text", "data.path=text.txt")) is None
    assert run("b", "init=a") == Prompt(lower_case=True)
    assert run("c", "init=b", data=("data=text", "data.path=text.txt")) is None


def test_from_python_too(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    config = tiny_config(pairs, total_steps=3, stop_after_steps=None)
    data = replace(config.data, qa=QuestionsConfig(prompt=LEARNT.template), lower_case_questions=True)
    start(replace(config, data=data), tmp_path / "a")
    origin = Origin(init_from=find_checkpoint(str(tmp_path / "a"), tmp_path))
    train(replace(config, init=str(tmp_path / "a")), tmp_path / "b", origin)
    assert load_tokenizer(tmp_path / "b").prompt == replace(LEARNT, lower_case=True)


def test_a_prompt_that_is_none_leaves_no_folder(run, elsewhere, capsys):
    with pytest.raises(SystemExit) as exit_:
        run("a", *SIZE, "data.qa.prompt=Q: {qestion}, a:")
    assert exit_.value.code == 2 and not (elsewhere / "a").exists()
    assert "Error: data.qa.prompt=Q: {qestion}, a:: {qestion} is no placeholder." in capsys.readouterr().err
