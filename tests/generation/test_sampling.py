"""Laws of drawing the next token: what is kept is the likeliest, and what is drawn follows the probabilities."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dtl.errors import ConfigError
from dtl.generation.config import SamplingConfig
from dtl.generation.engine import (
    distribution,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    sample_next,
)

logit = st.floats(-30, 30, width=32, allow_subnormal=False)
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
    """Return the number of draws of each token, (v,)."""
    generator = torch.Generator().manual_seed(SEED)
    ids = sample_next(torch.tensor(logits_v).expand(n, -1), config, generator)
    return torch.bincount(ids, minlength=len(logits_v))


def assert_kept_are_the_likeliest(before_bv: Tensor, after_bv: Tensor) -> Tensor:
    """Return the kept tokens, (b, v) bool, after a check that it is unchanged, not empty, and outranks the rest."""
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


@given(some_logits, st.floats(0.001, 1))
def test_min_p_keeps_what_is_near_the_likeliest(logits_bv: Tensor, p: float) -> None:
    kept_bv = assert_kept_are_the_likeliest(logits_bv, keep_min_p(logits_bv, p))
    share_bv = logits_bv.double().softmax(dim=-1)
    share_bv = share_bv / share_bv.amax(dim=-1, keepdim=True)
    assert (share_bv[kept_bv] >= p - 1e-5).all()
    assert (share_bv[~kept_bv] <= p + 1e-5).all()


def test_min_p_of_known_probabilities() -> None:
    logits_bv = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    for p, expected in ((0.0, [0, 1, 2, 3]), (0.19, [0, 1, 2, 3]), (0.29, [1, 2, 3]), (0.49, [1, 3]), (1.0, [1])):
        kept = (keep_min_p(logits_bv, p)[0] > float("-inf")).nonzero()[:, 0].tolist()
        assert kept == expected, p


@given(some_logits, st.floats(1.01, 20), st.data())
def test_the_penalty_lowers_what_was_seen_and_nothing_else(logits_bv: Tensor, penalty: float, data: Any) -> None:
    seen = data.draw(st.lists(st.booleans(), min_size=logits_bv.numel(), max_size=logits_bv.numel()))
    seen_bv = torch.tensor(seen).view_as(logits_bv)
    found_bv = penalise_repetition(logits_bv, seen_bv, penalty)
    assert torch.equal(found_bv[~seen_bv], logits_bv[~seen_bv])
    lowered_bv = seen_bv & (logits_bv.abs() > 1e-30)  # 0 stays 0, and its neighbours lose digits
    assert (found_bv[lowered_bv] < logits_bv[lowered_bv]).all()
    assert torch.equal(found_bv.sign()[lowered_bv], logits_bv.sign()[lowered_bv])
    # Its opposite undoes it.
    undone_bv = penalise_repetition(found_bv, seen_bv, 1 / penalty)
    torch.testing.assert_close(undone_bv, logits_bv, rtol=1e-5, atol=1e-30)


def test_the_penalty_of_known_logits() -> None:
    logits_bv = torch.tensor([[2.0, -2.0, 2.0, -2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    seen_bv = torch.tensor([[True, True, False, False, True], [False, False, False, False, True]])
    expected = [[1.0, -4.0, 2.0, -2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.5]]
    assert penalise_repetition(logits_bv, seen_bv, 2.0).tolist() == expected
    assert torch.equal(penalise_repetition(logits_bv, seen_bv, 1.0), logits_bv)


def test_the_penalty_comes_before_everything_else() -> None:
    """Greedy too; and the filters see what it has left."""
    logits_bv = torch.tensor([[3.0, 2.0, 1.0]])
    seen_bv = torch.tensor([[True, False, False]])
    for config in (everything(temperature=0.0), everything(top_k=1), everything(top_p=0.01), everything(min_p=1.0)):
        config.repetition_penalty = 2.0
        assert sample_next(logits_bv, config, None, seen_bv).tolist() == [1]
        assert sample_next(logits_bv, config, None).tolist() == [0]


def test_rows_are_filtered_apart() -> None:
    logits_bv = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    assert (keep_top_k(logits_bv, 1) > float("-inf")).tolist() == [[True, False, False], [False, False, True]]
    assert (keep_top_p(logits_bv, 0.1) > float("-inf")).tolist() == [[True, False, False], [False, False, True]]
    assert (keep_min_p(logits_bv, 0.9) > float("-inf")).tolist() == [[True, False, False], [False, False, True]]


@given(some_logits)
def test_temperature_zero_takes_the_likeliest(logits_bv: Tensor) -> None:
    assert torch.equal(sample_next(logits_bv, SamplingConfig(temperature=0), None), logits_bv.argmax(dim=-1))


@settings(max_examples=50)
@given(some_logits, st.sampled_from([1e-300, 1e-46, 1e-37, 1e-30, 1e-8, 1e-4]))
def test_a_temperature_near_zero_takes_one_of_the_likeliest(logits_bv: Tensor, temperature: float) -> None:
    """Divided by next to nothing, the logits must not overflow."""
    distinct_bv = (logits_bv * 4).round()
    ids = sample_next(distinct_bv, everything(temperature=temperature), None)
    assert torch.equal(distinct_bv.gather(1, ids[:, None])[:, 0], distinct_bv.amax(dim=-1))


@given(some_logits, st.integers(1, 13), st.floats(0.1, 1), st.floats(0.0, 1), st.floats(0.1, 3))
def test_only_what_all_filters_keep_is_drawn(
    logits_bv: Tensor, k: int, top_p: float, min_p: float, temperature: float
) -> None:
    config = everything(temperature=temperature, top_k=k, top_p=top_p, min_p=min_p)
    ids = sample_next(logits_bv, config, torch.Generator())
    warm_bv = (logits_bv - logits_bv.amax(dim=-1, keepdim=True)) / temperature
    allowed_bv = keep_min_p(keep_top_p(keep_top_k(warm_bv, k), top_p), min_p) > float("-inf")
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


@pytest.mark.parametrize("changes", [{"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.6}])
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


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    "key, value",
    [
        ("temperature", -0.1),
        ("temperature", NAN),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", NAN),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", NAN),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", INFINITE),
        ("repetition_penalty", NAN),
        ("max_new_tokens", 0),
        ("stop", [""]),
        ("stop", ["\n", ""]),
    ],
)
def test_settings_that_cannot_be_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"sampling.{key}"):
        SamplingConfig(**{key: value}).validate()  # pyright: ignore


@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 0.0}, {"min_p": 1.0}, {"top_p": 1.0}, {"repetition_penalty": 0.5}, {"stop": ["\n", "."]}],
)
def test_settings_at_their_edges_are_taken(changes: dict[str, Any]) -> None:
    SamplingConfig(**changes).validate()


@pytest.mark.parametrize("changes", [{"top_k": 3}, {"top_k": 3, "top_p": 0.7}, {"top_k": 3, "min_p": 0.5}])
def test_a_draw_from_the_k_likeliest_is_a_draw_from_all(changes: dict[str, Any]) -> None:
    """The shortcut of `distribution`: the frequencies of the ids are those of the filtered probabilities."""
    logits_v = [0.0, 2.0, 1.0, -1.0, 2.5, 0.5, 1.5]
    config = everything(**changes)
    filtered_bv = keep_top_k(torch.tensor([logits_v]), 3)
    expected_v = keep_min_p(keep_top_p(filtered_bv, config.top_p), config.min_p).softmax(dim=-1)[0]
    found_v = draw(logits_v, config, 20_000) / 20_000
    assert torch.equal(found_v > 0, expected_v > 0)
    torch.testing.assert_close(found_v, expected_v, rtol=0, atol=0.015)


# --- Hugging Face -------------------------------------------------------------------------------------------------


@pytest.mark.slow  # importing transformers takes seconds
def test_probabilities_are_those_of_hugging_faces_processors() -> None:
    """Penalty, temperature, top-k, top-p, min-p: one by one and all together, in their order."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    torch.manual_seed(SEED)
    singles: list[dict[str, Any]] = [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.2},
    ]
    together: dict[str, Any] = {"repetition_penalty": 1.3, "temperature": 1.9, "top_k": 29, "top_p": 0.9, "min_p": 0.1}
    for changes in [*singles, together, together | {"temperature": 0.7, "top_k": 5}]:
        for scale in (0.5, 2.0, 9.0):
            logits_bv = scale * torch.randn(5, 101)
            seen_ids_bt = torch.randint(0, 101, (5, 31))
            seen_bv = torch.zeros(5, 101, dtype=torch.bool).scatter(1, seen_ids_bt, True)
            config = everything(**changes)
            processors = LogitsProcessorList()
            if config.repetition_penalty != 1:
                processors.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
            processors.append(TemperatureLogitsWarper(config.temperature))
            if config.top_k is not None:
                processors.append(TopKLogitsWarper(config.top_k))
            if config.top_p < 1:
                processors.append(TopPLogitsWarper(config.top_p))
            if config.min_p > 0:
                processors.append(MinPLogitsWarper(config.min_p))
            expected_bv = processors(seen_ids_bt, logits_bv.clone()).softmax(dim=-1)  # pyright: ignore
            found_bv, ids_bk = distribution(penalise_repetition(logits_bv, seen_bv, config.repetition_penalty), config)
            if ids_bk is not None:
                found_bv = torch.zeros_like(logits_bv).scatter(1, ids_bk, found_bv)
            assert torch.equal(found_bv > 0, expected_bv > 0), changes
            torch.testing.assert_close(found_bv, expected_bv, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("p", [1e-50, 1e-320])
def test_top_p_below_the_smallest_number_of_fp32_keeps_the_most_likely(p: float) -> None:
    logits_bv = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0]])
    assert keep_top_p(logits_bv, p).isfinite().sum(dim=-1).tolist() == [1, 1]
    assert keep_top_p(logits_bv, p).argmax(dim=-1)[0] == 1
