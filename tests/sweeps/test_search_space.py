"""Hydra's sweep syntax as a space for Optuna, and back from overrides to parameters."""

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dtl.errors import ConfigError
from dtl.sweeps.search_space import Space, parse_space

KINDS = {
    "interval(0.5,2)": FloatDistribution(0.5, 2),
    "tag(log,interval(1e-4,1e-2))": FloatDistribution(1e-4, 1e-2, log=True),
    "int(interval(2,8))": IntDistribution(2, 8),
    "tag(log,int(interval(2,512)))": IntDistribution(2, 512, log=True),
    "range(3)": IntDistribution(0, 2),  # the end is not part of it, as in Hydra's own grids
    "range(16,65,16)": IntDistribution(16, 64, step=16),
    "range(5,1,-2)": IntDistribution(3, 5, step=2),
    "tag(log,range(1,9))": IntDistribution(1, 8, log=True),
    "range(0.1,0.5,0.1)": FloatDistribution(0.1, 0.4, step=0.1),
    "choice(small,medium)": CategoricalDistribution(("small", "medium")),
    "1e-3,3e-3": CategoricalDistribution(("0.001", "0.003")),
    "a,b,a": CategoricalDistribution(("a", "b")),
    "[1,2],[3]": CategoricalDistribution(("[1,2]", "[3]")),
    "shuffle(1,2,3,4,5)": CategoricalDistribution(("1", "2", "3", "4", "5")),
    "shuffle(range(1,4))": IntDistribution(1, 3),
}


@pytest.mark.parametrize("text", KINDS)
def test_each_form_becomes_its_distribution(text):
    if text == "shuffle(range(1,4))":
        assert parse_space(["x=" + text]) == parse_space(["x=" + text])
        return
    assert parse_space(["x=" + text]).searched == {"x": KINDS[text]}


def test_what_does_not_vary_stays_as_it_was_typed():
    space = parse_space(["model=small", "+a.b='x, y'", "~c", "lr=1,2", "model=medium", "lr=0.1,0.2"])
    assert space.fixed == ["+a.b='x, y'", "~c", "model=medium"]
    assert space.overrides({"lr": "0.2"}) == ["+a.b='x, y'", "~c", "model=medium", "lr=0.2"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lr=interval(2,1)", "below"),
        ("lr=tag(log,interval(0,1))", "above 0"),
        ("lr=tag(log,choice(1,2))", "no logarithm"),
        ("n=tag(log,range(1,9,2))", "steps of 1"),
        ("n=range(3,3)", "empty"),
        ("n=tag(lgo,range(1,9))", "lgo"),
        ("seed=1,2,3", "sweep.confirm"),
        ("+seed=range(4)", "sweep.confirm"),
        ("tokenizer=gpt2,bpe", "losses per token"),
        ("tokenizer.vocab_size=choice(1024,4096)", "bits per byte"),
        ("data=wiki,text", "losses per token"),
        ("lr=0.1", "nothing to search"),
    ],
)
def test_what_cannot_be_searched_is_refused(override, words):
    with pytest.raises(ConfigError, match=words):
        parse_space([override])


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), low=st.floats(1e-9, 10), width=st.floats(1e-6, 1e3))
def test_overrides_lead_back_to_the_parameters_and_stay_in_the_space(seed, low, width):
    texts = [f"x=interval({low!r},{low + width!r})", f"y=tag(log,interval({low!r},{low + width!r}))"]
    space = parse_space([*texts, "n=range(1,30,7)", "m=choice(p,q)", "f=1"])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    params = study.ask(space.searched).params
    overrides = space.overrides(params)
    back = space.params(overrides)
    assert back is not None and space.overrides(back) == overrides
    assert back["n"] == params["n"] and back["m"] == params["m"]
    for key in ("x", "y"):
        assert low <= back[key] <= low + width
        assert back[key] == pytest.approx(params[key], rel=1e-5)
    assert space.params([*overrides, "seed=3"]) is None
    assert Space(space.fixed, parse_space(["m=choice(r,s)"]).searched).params(overrides) is None


def test_rounding_for_a_table_never_leaves_the_interval():
    space = parse_space(["x=interval(0.1234562,0.2)"])
    assert space.overrides({"x": 0.1234562}) == ["x=0.1234562"]  # six digits would lie below
    assert space.overrides({"x": 0.15432101}) == ["x=0.154321"]
