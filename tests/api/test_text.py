"""Text from a model in Python: the command's sampling and the command's scores."""

from dataclasses import asdict

import pytest
import torch

import dtl
from dtl.data.documents import QuestionAnswer
from dtl.errors import ConfigError
from dtl.evaluation.measure import Plan, measure
from dtl.generation.config import SamplingConfig
from dtl.generation.conversation import continuations


def test_a_completion_is_the_commands(trained):
    model, tokenizer = trained.model(), trained.tokenizer()
    for given in ({}, {"temperature": 0, "max_new_tokens": 11}, {"stop": ["e"], "top_k": None}, {"seed": 7}):
        settings = {key: value for key, value in given.items() if key != "seed"}
        (expected,) = continuations(model, tokenizer, ["how"], SamplingConfig(**settings), given.get("seed", 0))
        assert dtl.complete(model, tokenizer, "how", **given) == expected
    assert dtl.complete(model, tokenizer, "", stop=["${x}"]) == dtl.complete(model, tokenizer, "")


def test_it_draws_from_a_generator_of_its_own(trained):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    dtl.complete(trained.model(), trained.tokenizer(), "how")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temprature": 1}, "sampling.temprature=1: there is no such key. Did you mean 'sampling.temperature'?"),
        ({"temperature": "hot"}, "sampling.temperature=hot: must be a number"),
        ({"temperature": -1}, "sampling.temperature=-1.0: must be at least 0"),
        ({"stop": "x"}, "sampling.stop=x: must be a list"),
        ({"seed": -1}, "seed=-1: must be an integer in"),
        ({"seed": None}, "seed=None: must be an integer in"),
        ({"seed": 1.5}, "seed=1.5: must be an integer in"),
    ],
)
def test_a_wrong_setting_is_named(trained, given, message):
    with pytest.raises(ConfigError) as rejected:
        dtl.complete(trained.model(), trained.tokenizer(), "how", **given)
    assert str(rejected.value).startswith(message)


def test_what_is_no_model_tokenizer_or_text_is_named(trained):
    model, tokenizer = trained.model(), trained.tokenizer()
    for use in (dtl.complete, lambda model, tokenizer, _: dtl.score(model, tokenizer, [("how", "so")])):
        with pytest.raises(ConfigError, match=r"model: str is not a TransformerLM of DTL\. Load it: dtl\.load_model"):
            use("latest", tokenizer, "how")
        with pytest.raises(ConfigError, match=r"tokenizer: NoneType is not a Tokenizer of DTL"):
            use(model, None, "how")
    with pytest.raises(ConfigError, match=r"text=\['how'\]: must be one text"):
        dtl.complete(model, tokenizer, ["how"])
    with pytest.raises(ConfigError, match=r"device=tpu: one of auto, cpu"):
        trained.model("tpu")
    with pytest.raises(dtl.DTLError, match="nowhere: no such folder"):
        dtl.load_model("nowhere")


def test_scores_are_those_of_the_evaluation(trained, words):
    config = dtl.compose(*words, "data.lower_case_questions=false")
    data, model = dtl.open_data(config), trained.model()
    metrics = measure(model, data, Plan(), lambda message: None).metrics()
    scores = dtl.score(model, data.tokenizer, data.pairs["validation"])
    assert scores.pop("n") == len(data.pairs["validation"])
    assert scores == {name: pytest.approx(metrics[f"{name}/validation"]) for name in scores}
    assert set(scores) == {"exact_match", "f1", "gold_bits_per_byte"} and scores["gold_bits_per_byte"] > 0


def test_a_pair_in_any_form(trained, asked):
    model, tokenizer = trained.model(), trained.tokenizer()
    forms = [
        [(pair.question, pair.answer) for pair in asked],
        [{"question": pair.question, "answer": pair.answer} for pair in asked],
        [asdict(pair) for pair in asked],
    ]
    expected = dtl.score(model, tokenizer, asked)
    for form in forms:
        assert dtl.score(model, tokenizer, form, batch_size=2) == pytest.approx(expected)
    (right,) = (dtl.complete(model, tokenizer, f"Question: {asked[0].question}\nAnswer:", temperature=0) for _ in "1")
    assert dtl.score(model, tokenizer, [(asked[0].question, right[:9])])["n"] == 1


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], r"pairs=\[\]: there is no question"),
        ([("a",)], r"pairs\[0\]=\('a',\): give \(question, answer\)"),
        ([QuestionAnswer("a", "b"), {"question": "a"}], r"pairs\[1\]="),
        ([{"question": "a", "answer": ""}], r"pairs\[0\]=.* 1 x an empty answer"),
        ([{"question": "a", "answer": ["b", {"c": 1}]}], r"pairs\[0\]: text is needed"),
        (["ab"], r"pairs\[0\]='ab'"),
        ([("a", 3)], r"pairs\[0\]=\('a', 3\): give"),
    ],
)
def test_a_wrong_pair_is_named(trained, pairs, message):
    with pytest.raises(ConfigError, match=message):
        dtl.score(trained.model(), trained.tokenizer(), pairs)
