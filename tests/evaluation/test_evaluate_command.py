"""`python -m dtl.evaluate` from its command line: which data, which file, what is refused."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from checkpoint_examples import moments, tiny_model, tiny_tokenizer

import dtl.evaluate
import dtl.evaluation.measure as evaluation_measure
from dtl.checkpoints.save import save_checkpoint
from dtl.data.tokenizers.prompt import Prompt

LEARNT = Prompt("Q: {question}\nA:")


@pytest.fixture
def run_dir(elsewhere: Path) -> Path:
    """A run on three pairs in pairs.jsonl, random weights."""
    facts = [
        {"answer": f"a{n}", "train": [f"What is a{n}?"], "validation": f"Say a{n}", "test": f"tell a{n}"}
        for n in range(3)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    Path("other.txt").write_text("\n".join(f"line number {n} of a text" for n in range(50)))
    model, tokenizer = tiny_model(vocab_size=258, max_seq_len=61), tiny_tokenizer().with_prompt(LEARNT)
    config = "seed: 7\ndata: {sources: {mine: {kind: qa, path: pairs.jsonl}}, loss_on: answer, cache_dir: cache}\n"
    run = Path("outputs/2026-01-02/03-04-05-6_tiny")
    save_checkpoint(run, model, tokenizer, config, {"step": 7, "epoch": 1}, moments(model))
    return run


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """Call the command: exit code, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dtl-evaluate", "device=cpu", "precision=fp32", *arguments])
        try:
            dtl.evaluate.main()
        except SystemExit as exit_:
            assert isinstance(exit_.code, int)
            return (exit_.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return call


def test_data_that_is_elsewhere_now_is_given_by_its_place(run_dir, evaluate):
    Path("pairs.jsonl").rename("here.jsonl")
    code, _, err = evaluate("ckpt=latest")
    assert code == 1 and err.endswith("If the same data is elsewhere now, add its place: data.sources.mine.path=NEW\n")
    assert evaluate("ckpt=latest", "data.sources.mine.path=here.jsonl")[0] == 0
    code, _, err = evaluate("ckpt=latest", "data.sources.mine.path=there.jsonl")
    assert code == 1 and "elsewhere now" not in err


def test_evaluates_a_run_on_its_own_data(evaluate, run_dir):
    code, out, err = evaluate("ckpt=latest")
    assert code == 0, err
    assert "Held-out text" in out and "BM25" in out and "skipped, there are none" in out
    assert "\x1b" not in out
    assert all(f"What is a{n}?" in out or f"tell a{n}" in out for n in range(3))  # in one line each, not folded
    written = json.loads((run_dir / "evaluation.json").read_text())
    assert (
        written["checkpoint"].endswith("step-00000007") and written["data"]["sources"]["mine"]["path"] == "pairs.jsonl"
    )
    assert [text["split"] for text in written["text"]] == ["validation", "test"]
    by_split = {answers["split"]: answers for answers in written["answers"] if not answers["topic"]}
    assert by_split["train"]["look_up"]["exact_match"] == by_split["test"]["look_up"]["exact_match"] == 1
    assert {one["question"] for one in written["worst"]} <= {"tell a0", "tell a1", "tell a2"}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("stolen", ["${oc.env:SECRET}", "${hydra:runtime.cwd}"])
def test_a_checkpoint_reads_no_environment_and_chooses_no_folder(evaluate, run_dir, monkeypatch, stolen):
    """A config.yaml of somebody else's is text: nothing in it is interpolated, and no cache is made where it says."""
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setattr("dtl.data.collect.SMALL_BYTES", 0)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: Path("the users").absolute())
    model = tiny_model(vocab_size=258, max_seq_len=61)
    for values in (
        {"sources": {"mine": {"kind": "qa", "path": "pairs.jsonl"}}, "wiki_subset": stolen, "cache_dir": "strangers"},
        {"sources": {"mine": {"kind": stolen, "path": "pairs.jsonl"}}},
        {"sources": {"mine": {"kind": "qa", "path": f"{stolen}.jsonl"}}},
    ):
        config = yaml.safe_dump({"name": stolen, "seed": 7, "data": {**values, "loss_on": "answer"}})
        save_checkpoint(run_dir, model, tiny_tokenizer(), config, {"step": 9, "epoch": 1}, moments(model))
        code, *printed = evaluate("ckpt=latest", "data.max_samples=3")
        assert bool(code) == (stolen in str(values["sources"])), printed
        assert "hunter2" not in "".join(printed)
        # On other data: that of the training is prepared too, to compare it.
        _, *of_other = evaluate("ckpt=latest", "data=text", "data.path=other.txt", "data.seq_len=31")
        _, *of_place = evaluate("ckpt=latest", "data.sources.mine.path=pairs.jsonl", "out=metrics.json")
        assert "hunter2" not in "".join([*of_other, *of_place])
    assert f"{stolen}.jsonl: " in printed[1]
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert not any(b"hunter2" in file.read_bytes() for file in files)
    assert Path("the users/dtl-cache").is_dir() and not Path("strangers").exists()
    code, *printed = evaluate("ckpt=latest", "data.path=${oc.env:SECRET}")  # what the user types is
    assert "hunter2: " in printed[1]


@pytest.mark.parametrize("own", ["qa: {path: pairs.jsonl}", "path: pairs.jsonl"])
@pytest.mark.parametrize("key", ["data.path", "data.qa.path"])
def test_the_path_that_is_given_is_the_one_that_is_evaluated(evaluate, run_dir, own, key):
    """A run's path may be recorded in another of the places that name the same source."""
    config = f"seed: 7\ndata: {{sources: {{qa: {{kind: qa}}}}, {own}, loss_on: answer, cache_dir: cache}}\n"
    model = tiny_model(vocab_size=258, max_seq_len=61)
    save_checkpoint(
        run_dir, model, tiny_tokenizer().with_prompt(LEARNT), config, {"step": 9, "epoch": 1}, moments(model)
    )
    fact = {"answer": "b", "train": ["What is b?"], "validation": "Say b", "test": "tell b"}
    Path("new.jsonl").write_text(json.dumps(fact) + "\n")
    code, _, error = evaluate("ckpt=latest", f"{key}=new.jsonl", "out=metrics.json")
    assert code == 0, error
    assert {one["question"] for one in json.loads(Path("metrics.json").read_text())["worst"]} == {"tell b"}


def test_evaluates_a_run_on_its_own_data_from_another_folder(evaluate, run_dir, monkeypatch):
    (run_dir / "run.json").write_text(json.dumps({"cwd": str(Path.cwd())}))
    Path("desk").mkdir()
    monkeypatch.chdir("desk")
    code, _, error = evaluate(f"ckpt=../{run_dir}")
    assert code == 0, error
    assert (Path("..") / run_dir / "evaluation.json").is_file() and not list(Path().iterdir())


def test_unanswerable_questions_calibrate_the_confidence(evaluate, run_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("USERPROFILE", str(Path.cwd()))
    Path("asked.jsonl").write_text("".join(json.dumps({"question": f"Who is {n}?"}) + "\n" for n in range(5)))
    code, out, err = evaluate("ckpt=latest", "unanswerable=~/asked.jsonl", "out=~/figures.json")
    assert code == 0, err
    assert "calibration error: of the confidence" in out and "natural" not in out
    assert not (run_dir / "evaluation.json").exists()
    detection = json.loads(Path("figures.json").read_text())["detection"]
    assert (detection["validation"]["unanswerable"], detection["test"]["unanswerable"]) == (3, 2)
    assert detection["calibration"].keys() == {"slope", "intercept"} and detection["natural"] is None


def test_other_data_leaves_the_runs_figures_alone(evaluate, run_dir):
    code, out, err = evaluate(
        "ckpt=latest", "data=text", "data.path=other.txt", "data.seq_len=31", "data.cache_dir=cache"
    )
    assert code == 0, err
    assert "13-grams of text test" in out and "text validation" not in out and "out=FILE" in out
    assert not (run_dir / "evaluation.json").exists()


def test_where_nothing_is_held_out_unanswerable_questions_are_not_asked_for(evaluate, run_dir):
    Path("few.jsonl").write_text('{"question": "Who?", "answer": "Ann"}\n{"question": "Where?", "answer": "Rome"}\n')
    code, out, err = evaluate("ckpt=latest", "data=qa", "data.qa.path=few.jsonl")  # whose 256 tokens it cannot read
    assert code == 0, err
    assert "calibrated on validation questions, and this data has none" in out and "unanswerable=" not in out


def test_another_file_for_a_source_of_the_run_needs_its_path_alone(evaluate, run_dir):
    Path("others.jsonl").write_text(Path("pairs.jsonl").read_text())
    code, _, err = evaluate("ckpt=latest", "data.sources.mine.path=others.jsonl", "out=figures.json")
    assert code == 0, err
    written = json.loads(Path("figures.json").read_text())["data"]["sources"]["mine"]
    assert (written["path"], written["kind"]) == ("others.jsonl", "qa")
    code, _, err = evaluate("ckpt=latest", "data.sources.theirs.path=others.jsonl")
    assert code == 2 and "add data.sources.theirs.kind=..." in err


def test_training_data_that_has_changed_since_is_said(evaluate, run_dir):
    evaluate("ckpt=latest")
    as_now = json.loads((run_dir / "evaluation.json").read_text())["data_fingerprint"]
    model, tokenizer = tiny_model(vocab_size=258, max_seq_len=61), tiny_tokenizer().with_prompt(LEARNT)
    config = (run_dir / "checkpoints/step-00000007/config.yaml").read_text()
    for step, fingerprint in ((8, as_now), (9, "another")):
        state = {"step": step, "epoch": 1, "data_fingerprint": fingerprint}
        save_checkpoint(run_dir, model, tokenizer, config, state, moments(model))
        for data in ([], [f"data.path={questions_in('other.jsonl', range(3))}"]):
            code, out, err = evaluate("ckpt=latest", *data, "out=f.json")
            assert code == 0, err
            assert ("the training data is not the same as in the run" in out) == (fingerprint == "another")


def questions_in(file: str, names: range) -> str:
    Path(file).write_text("".join(json.dumps({"question": f"What is a{n}?", "answer": f"a{n}"}) + "\n" for n in names))
    return file


@pytest.mark.parametrize("data", [[], ["data=qa", "data.seq_len=31"]])
def test_other_questions_are_all_for_the_test_and_compared_with_the_training_data(evaluate, run_dir, data):
    """A part of it was once taken for training questions, which left the model's own out of the comparison."""
    file = questions_in("other.jsonl", range(12))
    code, out, err = evaluate("ckpt=latest", *data, f"data.path={file}", "out=f.json")
    assert code == 0, err
    written = json.loads(Path("f.json").read_text())
    (scores,) = (scores for scores in written["answers"] if not scores["topic"])
    assert (scores["split"], scores["questions"]) == ("test", 12)
    assert scores["look_up"]["exact_match"] == 3 / 12  # three of them are training questions
    (leak,) = written["question_leakage"]
    assert (leak["questions"], leak["found"]) == (12, 3) and "3 of 12 test questions are training questions" in out
    assert "all of it is for the test" in out


@pytest.mark.parametrize("how", ["gone", "not recorded"])
def test_without_the_training_data_there_is_no_comparison_and_that_is_said(evaluate, run_dir, how):
    file = questions_in("other.jsonl", range(5))
    checkpoint = run_dir
    if how == "gone":
        Path("pairs.jsonl").unlink()
    else:
        model, checkpoint = tiny_model(vocab_size=258, max_seq_len=61), Path("bare")
        save_checkpoint(checkpoint, model, tiny_tokenizer(), "seed: 0\n", {"step": 1, "epoch": 0}, moments(model))
    code, out, err = evaluate(f"ckpt={checkpoint}", "data=qa", f"data.path={file}", "data.seq_len=47", "out=f.json")
    assert code == 0, err
    assert "no retrieval, majority and leakage: the training data of the checkpoint is not available" in out
    assert "pairs.jsonl" in out if how == "gone" else "not recorded" in out
    written = json.loads(Path("f.json").read_text())
    assert written["question_leakage"] == [] and written["answers"][0]["look_up"]["exact_match"] is None
    assert not re.search(r"\bnan\b", out) and "Leakage" not in out


def test_a_key_changes_the_runs_own_data(evaluate, run_dir):
    code, _, err = evaluate("ckpt=latest", "data.loss_on=all", "out=figures.json")
    assert code == 0, err
    written = json.loads(Path("figures.json").read_text())
    assert (written["data"]["loss_on"], written["data"]["sources"]["mine"]["path"]) == ("all", "pairs.jsonl")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], LEARNT),
        (["data.lower_case_questions=true"], Prompt(LEARNT.template, True)),
        (["data.qa.prompt=Ask {question}\\nSay"], Prompt("Ask {question}\nSay")),
    ],
)
@pytest.mark.parametrize("data", [[], ["data=qa", "data.path=pairs.jsonl", "data.seq_len=31"]])
def test_the_checkpoint_says_how_questions_are_put(evaluate, run_dir, monkeypatch, data, given, expected):
    """data=qa puts them in lower case; this model never learnt that."""
    asked = []
    ask = evaluation_measure.answer_greedily
    monkeypatch.setattr(evaluation_measure, "answer_greedily", lambda *call: [asked.extend(call[2]), ask(*call)][1])
    code, _, err = evaluate("ckpt=latest", *data, *given, "out=f.json")
    assert code == 0, err
    assert expected.text("What is a0?") in asked
    written = json.loads(Path("f.json").read_text())["data"]
    assert (written["qa"]["prompt"], written["lower_case_questions"]) == (expected.template, expected.lower_case)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ckpt=latest", "data.path=gone.jsonl"], "gone.jsonl"),
        (["ckpt=latest", "unanswerable=gone.jsonl"], "unanswerable=gone.jsonl"),
        (["ckpt=latest", "batch_size=0"], "batch_size=0: must be at least 1"),
        (["ckpt=latest", "precision=int3"], "precision=int3"),
        (["ckpt=latest", "out=nowhere/x.json"], "out=nowhere/x.json"),
        (["ckpt=latest", "data.seq_len=1000"], "data.seq_len=1000: longer than the model's context. Give 61 or less."),
        ([], "choose a model"),
    ],
)
def test_refusals_name_the_key(evaluate, run_dir, arguments, said):
    code, _, err = evaluate(*arguments)
    assert code != 0 and said in err
    assert not (run_dir / "evaluation.json").exists()


def test_a_checkpoint_that_names_no_data_asks_for_it(evaluate, elsewhere):
    model = tiny_model(vocab_size=258)
    save_checkpoint(Path("bare"), model, tiny_tokenizer(), "seed: 0\n", {"step": 1, "epoch": 0}, moments(model))
    code, _, err = evaluate("ckpt=bare")
    assert code != 0 and "Name the data" in err
