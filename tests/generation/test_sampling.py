"""Laws of drawing the next token: what is kept is the likeliest, and what is drawn follows the probabilities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dtl.errors import ConfigError
from dtl.generation.config import SamplingConfig
from dtl.generation.sampling import keep_top_k, keep_top_p, sample_next

logit = st.floats(-30, 30, width=32)
some_logits = (
    st.integers(1, 3)
    .flatmap(
        lambda b: st.integers(1, 13).flatmap(
            lambda v: st.lists(st.lists(logit, min_size=v, max_size=v), min_size=b, max_size=b)
        )
    )
    .map(torch.tensor)
)
SEED = 5


def everything(**changes: float | int | None) -> SamplingConfig:
    """A config that restricts nothing but what `changes` say."""
    return SamplingConfig(**({"temperature": 1.0, "top_k": None, "top_p": 1.0} | changes))  # pyright: ignore


def draw(logits_v: list[float], config: SamplingConfig, n: int = 4000) -> Tensor:
    """How often each token was drawn, (v,)."""
    generator = torch.Generator().manual_seed(SEED)
    ids = sample_next(torch.tensor(logits_v).expand(n, -1), config, generator)
    return torch.bincount(ids, minlength=len(logits_v))


def assert_kept_are_the_likeliest(before_bv: Tensor, after_bv: Tensor) -> Tensor:
    """What is kept, (b, v) bool, after a check that it is unchanged, not empty, and outranks the rest."""
    kept_bv = after_bv > float("-inf")
    assert torch.equal(after_bv[kept_bv], before_bv[kept_bv])
    for before, kept in zip(before_bv, kept_bv, strict=True):
        assert kept.any()
        if not kept.all():
            assert before[kept].min() >= before[~kept].max()
    return kept_bv


@given(some_logits, st.integers(1, 17))
def test_top_k_keeps_the_k_likeliest_and_ties(logits_bv: Tensor, k: int) -> None:
    kept_bv = assert_kept_are_the_likeliest(logits_bv, keep_top_k(logits_bv, k))
    for logits, kept in zip(logits_bv, kept_bv, strict=True):
        edge = logits.sort(descending=True).values[min(k, len(logits)) - 1]
        assert torch.equal(kept, logits >= edge)


@given(some_logits, st.floats(0.001, 1))
def test_top_p_keeps_the_fewest_that_reach_p(logits_bv: Tensor, p: float) -> None:
    kept_bv = assert_kept_are_the_likeliest(logits_bv, keep_top_p(logits_bv, p))
    for probabilities, kept in zip(logits_bv.double().softmax(dim=-1), kept_bv, strict=True):
        assert probabilities[kept].sum() >= p - 1e-5
        # Without the least of them they would not reach p.
        assert probabilities[kept].sum() - probabilities[kept].min() < p + 1e-5


def test_top_p_of_known_probabilities() -> None:
    logits_bv = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    for p, expected in ((0.3, [1]), (0.5, [1]), (0.51, [1, 3]), (0.8, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        kept = (keep_top_p(logits_bv, p)[0] > float("-inf")).nonzero()[:, 0].tolist()
        assert kept == expected, p


def test_rows_are_filtered_apart() -> None:
    logits_bv = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    assert (keep_top_k(logits_bv, 1) > float("-inf")).tolist() == [[True, False, False], [False, False, True]]
    assert (keep_top_p(logits_bv, 0.1) > float("-inf")).tolist() == [[True, False, False], [False, False, True]]


@given(some_logits)
def test_temperature_zero_takes_the_likeliest(logits_bv: Tensor) -> None:
    assert torch.equal(sample_next(logits_bv, SamplingConfig(temperature=0), None), logits_bv.argmax(dim=-1))


@settings(max_examples=50)
@given(some_logits, st.sampled_from([1e-37, 1e-30, 1e-8, 1e-4]))
def test_a_temperature_near_zero_takes_one_of_the_likeliest(logits_bv: Tensor, temperature: float) -> None:
    """Divided by next to nothing, the logits must not overflow."""
    distinct_bv = (logits_bv * 4).round()
    ids = sample_next(distinct_bv, everything(temperature=temperature), None)
    assert torch.equal(distinct_bv.gather(1, ids[:, None])[:, 0], distinct_bv.amax(dim=-1))


@given(some_logits, st.integers(1, 13), st.floats(0.1, 1), st.floats(0.1, 3))
def test_only_what_both_filters_keep_is_drawn(logits_bv: Tensor, k: int, p: float, temperature: float) -> None:
    ids = sample_next(logits_bv, everything(temperature=temperature, top_k=k, top_p=p), torch.Generator())
    allowed_bv = keep_top_p(keep_top_k(logits_bv / temperature, k), p) > float("-inf")
    assert allowed_bv.gather(1, ids[:, None]).all()


def test_the_generator_decides() -> None:
    logits_bv = torch.randn(7, 23)
    global_before = torch.get_rng_state()

    def drawn(seed: int) -> list[int]:
        return sample_next(logits_bv, everything(), torch.Generator().manual_seed(seed)).tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert torch.equal(torch.get_rng_state(), global_before)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_probabilities(temperature: float) -> None:
    """Chi-square with 4 degrees of freedom: 18.5 would be exceeded once in a thousand seeds, and this is one."""
    logits_v = [0.3, -1.0, 1.2, 0.0, -0.4]
    expected = (torch.tensor(logits_v) / temperature).softmax(dim=-1) * 4000
    counts = draw(logits_v, everything(temperature=temperature))
    assert ((counts - expected) ** 2 / expected).sum() < 18.5


@pytest.mark.parametrize("changes", [{"top_k": 2}, {"top_p": 0.6}])
def test_what_is_left_is_drawn_by_its_share(changes: dict[str, float]) -> None:
    logits_v = torch.tensor([0.1, 0.3, 0.4, 0.2]).log().tolist()
    counts = draw(logits_v, everything(**changes))
    expected = torch.tensor([3 / 7, 4 / 7]) * 4000
    assert counts[0] == counts[3] == 0
    assert ((counts[1:3] - expected) ** 2 / expected).sum() < 10.8  # one degree of freedom


def test_ties_at_the_edge_have_equal_chances() -> None:
    counts = draw([1.0, 1.0, 1.0, -5.0], everything(top_k=1))
    assert counts[3] == 0
    assert ((counts[:3] - 4000 / 3) ** 2 / (4000 / 3)).sum() < 13.8


@pytest.mark.parametrize(
    "key, value", [("temperature", -0.1), ("temperature", float("nan")), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.1)]
)
def test_settings_that_cannot_be_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"sampling.{key}"):
        SamplingConfig(**{key: value}).validate()  # pyright: ignore
