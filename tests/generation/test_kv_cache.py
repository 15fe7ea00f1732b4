"""Laws of the key/value cache: with it or without it, the same logits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dtl.generation.kv_cache import StaticKeyValueCache
from dtl.model.transformer import TransformerLM

KINDS = ("modern", "grouped", "classic")
LENGTHS = (5, 1, 11, 2)  # of the prompts
N_NEW = 13
V = 23


def cached_logits(model: TransformerLM, prompts: list[list[int]], new: list[list[int]], dtype: torch.dtype) -> Tensor:
    """Logits (b, new, v) that a row has before each of its new tokens."""
    lengths_b = torch.tensor([len(prompt) for prompt in prompts])
    longest, n_new = int(lengths_b.max()), len(new[0])
    ids_bt = torch.full((len(prompts), longest), V - 1)  # the padding is a token like any other
    for row, prompt in enumerate(prompts):
        ids_bt[row, : len(prompt)] = torch.tensor(prompt)
    cache = StaticKeyValueCache(model.config, lengths_b, longest + n_new, dtype)
    rows_b = torch.arange(len(prompts))
    found = [model(ids_bt, cache=cache)[rows_b, lengths_b - 1]]
    for step in range(n_new - 1):
        next_b1 = torch.tensor([[row[step]] for row in new])
        found.append(model(next_b1, cache=cache)[:, 0])
    return torch.stack(found, dim=1)


def uncached_logits(model: TransformerLM, prompts: list[list[int]], new: list[list[int]]) -> Tensor:
    rows = []
    for prompt, added in zip(prompts, new, strict=True):
        logits_btv = model(torch.tensor([prompt + added]))
        rows.append(logits_btv[0, len(prompt) - 1 : -1])
    return torch.stack(rows)


def random_ids(lengths: tuple[int, ...]) -> list[list[int]]:
    return [torch.randint(0, V, (n,)).tolist() for n in lengths]


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_logits_are_the_uncached_ones(
    random_model: Callable[..., TransformerLM], kind: str, attention: str
) -> None:
    model = random_model(kind, attention=attention)
    prompts, new = random_ids(LENGTHS), random_ids((N_NEW,) * len(LENGTHS))
    expected = uncached_logits(model, prompts, new)
    assert expected.std() > 0.5
    found = cached_logits(model, prompts, new, torch.float32)
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 7])
@torch.no_grad()
def test_a_single_prompt_too(random_model: Callable[..., TransformerLM], kind: str, length: int) -> None:
    model = random_model(kind)
    prompts, new = random_ids((length,)), random_ids((N_NEW,))
    expected = uncached_logits(model, prompts, new)
    found = cached_logits(model, prompts, new, torch.float32)
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_in_bf16_they_are_as_near_as_bf16_is(random_model: Callable[..., TransformerLM], kind: str) -> None:
    model = random_model(kind)
    prompts, new = random_ids(LENGTHS), random_ids((N_NEW,) * len(LENGTHS))
    exact = uncached_logits(model, prompts, new)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        uncached = uncached_logits(model, prompts, new)
        cached = cached_logits(model, prompts, new, torch.bfloat16)
    scale = exact.abs().max()
    own_error = (uncached.float() - exact).abs().max() / scale
    assert 0 < own_error < 0.1
    assert (cached.float() - exact).abs().max() / scale <= 2 * own_error


@torch.no_grad()
def test_padding_is_never_looked_at(random_model: Callable[..., TransformerLM]) -> None:
    """Other tokens in the padding of the shorter prompt: the same bits."""
    model = random_model("grouped")

    def logits(pad: int) -> Tensor:
        ids_bt = torch.tensor([[3, 1, 4, 1, 5], [9, 2, pad, pad, pad]])
        cache = StaticKeyValueCache(model.config, torch.tensor([5, 2]), 9, torch.float32)
        first = model(ids_bt, cache=cache)[1, 1]
        later = [model(torch.tensor([[7], [step]]), cache=cache)[1, 0] for step in range(4)]
        return torch.stack([first, *later])

    assert torch.equal(logits(0), logits(17))


@torch.no_grad()
def test_only_one_token_a_row_after_the_prompts(random_model: Callable[..., TransformerLM]) -> None:
    model = random_model()
    cache = StaticKeyValueCache(model.config, torch.tensor([3]), 9, torch.float32)
    model(torch.tensor([[1, 2, 3]]), cache=cache)
    with pytest.raises(ValueError, match="one token a row"):
        model(torch.tensor([[1, 2]]), cache=cache)


@torch.no_grad()
def test_buffers_never_grow(random_model: Callable[..., TransformerLM]) -> None:
    model = random_model("grouped")
    cache = StaticKeyValueCache(model.config, torch.tensor([3, 2]), 9, torch.float32)
    places = [buffer.data_ptr() for buffer in (*cache.keys, *cache.values)]
    model(torch.tensor([[1, 2, 3], [1, 2, 0]]), cache=cache)
    for _ in range(6):
        model(torch.tensor([[1], [2]]), cache=cache)
    assert [buffer.data_ptr() for buffer in (*cache.keys, *cache.values)] == places
    assert all(buffer.shape == (2, 2, 9, 10) for buffer in (*cache.keys, *cache.values))
