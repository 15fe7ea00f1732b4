"""A checkpoint loaded for chat and generate: the facts read from its small files, also damaged ones."""

import json
from pathlib import Path

import pytest
from checkpoint_examples import imitate
from tiny_checkpoints import CONTEXT, make_checkpoint

from dtl.base.json_files import sealed
from dtl.checkpoints.find import find_checkpoint
from dtl.errors import ConfigError
from dtl.evaluation.metrics import Calibration
from dtl.generation.config import GenerationConfig, SamplingConfig
from dtl.generation.decoder import Weights
from dtl.terminal.config import ChatConfig
from dtl.terminal.loading import load, read_facts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("outputs") / "01-02-03-4_tiny") / "checkpoints" / "step-00000007"


def test_a_loaded_model_writes_and_counts(checkpoint):
    model = load(checkpoint, ChatConfig(device="cpu"))
    assert (model.context, model.device) == (CONTEXT, "cpu")
    assert model.facts.name == "tiny" and model.facts.step == 7 and model.facts.best_loss == 1.25
    assert not model.facts.learned_plain_text
    assert model.count_tokens("naïve") == 6
    sampling = SamplingConfig(max_new_tokens=13)
    texts = [list(model.continue_text("Question: x\nAnswer:", sampling, seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_nothing_that_fits_is_longer_than_the_bound(checkpoint, tmp_path):
    model = load(checkpoint, ChatConfig(device="cpu"))
    assert CONTEXT <= model.max_characters < 100 * CONTEXT
    assert model.count_tokens("x" * (model.max_characters + 1)) > CONTEXT
    of_words = load(
        find_checkpoint(str(make_checkpoint(tmp_path / "run", tokenizer_kind="bpe")), tmp_path), ChatConfig()
    )
    text = "Question: What is the capital of France?\nAnswer: Paris." * (CONTEXT // 25)
    assert of_words.count_tokens(text) <= CONTEXT < len(text) <= of_words.max_characters


def test_a_device_that_is_not_here_is_rejected(checkpoint):
    with pytest.raises(ConfigError, match="device=cuda:77"):
        load(checkpoint, ChatConfig(device="cuda:77"))


@pytest.mark.parametrize(
    "contents", ["", "{", "[]", '{"step": "x", "train": 3}', '{"train": {"best_loss": [1]}}', "NaN"]
)
def test_small_files_that_are_damaged_leave_gaps(tmp_path, contents):
    folder = imitate(tmp_path / "a\x1b[2Jrun", 7)
    (folder / "config.yaml").write_text(contents)
    (folder / "state.json").write_text(contents)
    facts = read_facts(folder)
    assert (facts.name, facts.best_loss, facts.learned_plain_text) == ("a␛[2Jrun", None, False)
    assert facts.step in (None, 7)


FITTED = {"slope": 0.7, "intercept": -2.5}


@pytest.mark.parametrize(
    ("contents", "calibration"),
    [
        ({"checkpoint": "a/step-00000007", "detection": {"calibration": FITTED}}, Calibration(0.7, -2.5)),
        ({"checkpoint": "outputs/x/checkpoints/best", "detection": {"calibration": FITTED}}, None),
        ({"checkpoint": "step-00000007", "detection": None}, None),
        ({"checkpoint": "step-00000007", "detection": {"calibration": {"slope": "low", "intercept": 0}}}, None),
        ({"checkpoint": "step-00000007", "detection": {"threshold": "low"}}, None),
        ({"checkpoint": "step-00000007", "detection": {"calibration": {"slope": -0.7, "intercept": 0}}}, None),
        ({"checkpoint": "step-00000007", "detection": {"calibration": {"slope": 7e300, "intercept": 0}}}, None),
        ({"checkpoint": "step-00000007", "detection": {"calibration": {"slope": 1, "intercept": 1e9}}}, None),
    ],
)
def test_the_calibration_is_that_of_this_checkpoint(tmp_path, contents, calibration):
    folder = imitate(tmp_path / "run", 7)
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(sealed(contents)))
    assert folder.name == "step-00000007" and read_facts(folder).calibration == calibration


def test_an_older_run_knows_what_its_threshold_let_it_know(tmp_path):
    """Evaluations from before the calibration chose a threshold of the mean log-probability."""
    folder = imitate(tmp_path / "run", 7)
    contents = {"checkpoint": "step-00000007", "detection": {"threshold": -0.017}}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(sealed(contents)))
    calibration = read_facts(folder).calibration
    assert calibration is not None
    assert [calibration.probability(score) >= 0.5 for score in (-0.001, -0.0169, -0.0171, -2.0)] == [
        True,
        True,
        False,
        False,
    ]


def test_what_was_taught_is_read_from_the_run(tmp_path):
    folder = imitate(tmp_path / "run", 7)
    taught = {"questions": 1800, "topics": [f"topic_{n}" for n in range(14)], "examples": ["Who\x1b[2J?", "w " * 99]}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"taught": taught}))
    first, *examples = read_facts(folder).taught
    assert first.startswith("It was taught 1,800 questions about topic 0, topic 1, ")
    assert first.endswith("topic 11 and 2 more topics, for example:")
    assert examples[0] == "  Who\N{SYMBOL FOR ESCAPE}[2J?" and len(examples[1]) <= 80


@pytest.mark.parametrize("state", ["interrupted", "finished"])
def test_how_far_the_training_went(tmp_path, state):
    """Of a run that ended early, what it was to be taught is not what it was taught."""
    folder = imitate(tmp_path / "run", 7)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"taught": {"questions": 1800}, "last_step": 1009}))
    (tmp_path / "run" / "result.json").write_text(json.dumps(sealed({"state": state, "step": 7})))
    (folder / "state.json").write_text('{"step": 7}')
    facts = read_facts(folder)
    first, last = "It was trained for 7 of 1,009 steps so far, on 1,800 questions, for example:", 1009
    if state == "finished":  # early stopping
        first, last = "It was taught 1,800 questions, for example:", None
    assert (facts.taught[0], facts.last_step) == (first, last)


@pytest.mark.parametrize(
    "taught", [None, 7, {}, {"questions": 0}, {"questions": "x"}, {"questions": 1, "topics": {"a": 1}}]
)
def test_what_was_taught_may_be_missing_or_damaged(tmp_path, taught):
    folder = imitate(tmp_path / "run", 7)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"taught": taught}))
    assert read_facts(folder).taught in ((), ("It was taught 1 question, for example:",))


def test_a_model_of_somebody_else_has_the_name_of_its_folder(tmp_path):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: not this\n")
    assert read_facts(folder).name == "gpt2"


@pytest.mark.parametrize("weights", ["auto", "fp32", "fp16", "bf16", "int8"])
def test_it_says_in_which_numbers_it_computes(checkpoint, weights):
    """And computes in them: the texts begin with the same prompt and may differ; fp16 is near fp32."""
    config = ChatConfig(device="cpu", generation=GenerationConfig(weights=weights))
    try:
        model = load(checkpoint, config)
    except ConfigError as error:
        assert weights not in ("auto", "fp32") and "Use generation.weights=fp32" in str(error)
        return
    _, size, *more = model.lines()
    numbers = "fp32" if weights in ("auto", "fp32") else f"fp32 with {weights} weights"  # a tiny model gains nothing
    assert f"parameters, context {CONTEXT:,} tokens, cpu, {numbers}, " in size
    assert not more
    greedy = SamplingConfig(temperature=0, top_k=None, max_new_tokens=5)
    continuation = model.continue_text("Question: x\nAnswer:", greedy, 3)
    assert "".join(continuation) or continuation.ended == "end"
    exact = load(checkpoint, ChatConfig(device="cpu", generation=GenerationConfig(weights="fp32")))
    expected = exact.continue_text("Question: x\nAnswer:", greedy, 3)
    list(expected)
    bound = {"auto": 1e-4, "fp32": 1e-6, "fp16": 1e-2, "bf16": 0.2, "int8": 0.3}[weights]
    assert continuation.logprobs[:1] == pytest.approx(expected.logprobs[:1], abs=bound)


def test_why_it_has_no_fp16_weights_is_said(checkpoint):
    model = load(checkpoint, ChatConfig(device="cpu"))
    model.weights = Weights("fp32", "a weight is beyond the range of fp16, 65,504")
    assert list(model.lines())[-1] == "No fp16 weights: a weight is beyond the range of fp16, 65,504."
