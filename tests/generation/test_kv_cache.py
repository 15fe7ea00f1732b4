"""Laws of the key/value cache: with it or without it, the same logits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dtl.generation.engine import StaticKeyValueCache
from dtl.model.transformer import TransformerLM

KINDS = ("modern", "grouped", "value_embeddings", "classic")
RAGGED = (5, 1, 11, 2)  # lengths of the prompts
LENGTHS = (RAGGED, (7, 7, 7), (7,), (1,))  # rows of one length go without a mask
N_NEW = 13
V = 23
CPU = torch.device("cpu")


def cached_logits(model: TransformerLM, prompts: list[list[int]], new: list[list[int]], dtype: torch.dtype) -> Tensor:
    """Logits (b, new, v) that a row has before each of its new tokens."""
    lengths = [len(prompt) for prompt in prompts]
    longest, n_new = max(lengths), len(new[0])
    ids_bt = torch.full((len(prompts), longest), V - 1)  # the padding is a token like any other
    for row, prompt in enumerate(prompts):
        ids_bt[row, : len(prompt)] = torch.tensor(prompt)
    cache = StaticKeyValueCache(model.config, lengths, longest + n_new, dtype, CPU)
    rows_b = torch.arange(len(prompts))
    found = [model(ids_bt, cache=cache)[rows_b, torch.tensor(lengths) - 1]]
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


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("attention", ["sdpa", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_logits_are_the_uncached_ones(
    random_model: Callable[..., TransformerLM], kind: str, attention: str, lengths: tuple[int, ...]
) -> None:
    model = random_model(kind, attention=attention)
    prompts, new = random_ids(lengths), random_ids((N_NEW,) * len(lengths))
    expected = uncached_logits(model, prompts, new)
    assert expected.std() > 0.5
    found = cached_logits(model, prompts, new, torch.float32)
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-5


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_in_bf16_they_are_as_near_as_bf16_is(
    random_model: Callable[..., TransformerLM], kind: str, lengths: tuple[int, ...]
) -> None:
    model = random_model(kind)
    prompts, new = random_ids(lengths), random_ids((N_NEW,) * len(lengths))
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
        cache = StaticKeyValueCache(model.config, [5, 2], 9, torch.float32, CPU)
        first = model(ids_bt, cache=cache)[1, 1]
        later = [model(torch.tensor([[7], [step]]), cache=cache)[1, 0] for step in range(4)]
        return torch.stack([first, *later])

    assert torch.equal(logits(0), logits(17))


@torch.no_grad()
def test_only_one_token_a_row_after_the_prompts(random_model: Callable[..., TransformerLM]) -> None:
    model = random_model()
    cache = StaticKeyValueCache(model.config, [3], 9, torch.float32, CPU)
    model(torch.tensor([[1, 2, 3]]), cache=cache)
    with pytest.raises(ValueError, match="one token per sequence"):
        model(torch.tensor([[1, 2]]), cache=cache)


@pytest.mark.parametrize("lengths", [(3, 2), (3, 3)])
@torch.no_grad()
def test_buffers_never_grow(random_model: Callable[..., TransformerLM], lengths: tuple[int, ...]) -> None:
    model = random_model("grouped")
    cache = StaticKeyValueCache(model.config, lengths, 9, torch.float32, CPU)
    places = [buffer.data_ptr() for buffer in (*cache.keys, *cache.values)]
    model(torch.tensor([[1, 2, 3], [1, 2, 0]]), cache=cache)
    for _ in range(6):
        model(torch.tensor([[1], [2]]), cache=cache)
    assert [buffer.data_ptr() for buffer in (*cache.keys, *cache.values)] == places
    assert all(buffer.shape == (2, 2, 9, 10) for buffer in (*cache.keys, *cache.values))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_full_row_leaves_the_others_alone(random_model: Callable[..., TransformerLM], kind: str) -> None:
    """It overwrites its own last slot and no other; the shorter one still says what it would say alone."""
    model = random_model(kind)
    prompts = random_ids((9, 2))
    cache = StaticKeyValueCache(model.config, [9, 2], 11, torch.float32, CPU)
    model(torch.tensor([prompts[0], prompts[1] + [0] * 7]), cache=cache)
    new = random_ids((7,))[0]
    found, kept = [], []
    for step, token in enumerate(new):
        found.append(model(torch.tensor([[step], [token]]), cache=cache)[1, 0])
        kept.append(torch.stack(cache.keys)[:, 0, :, :10])
    expected = model(torch.tensor([prompts[1] + new]))[0, 2:]
    assert (torch.stack(found) - expected).abs().max() / expected.abs().max() <= 1e-5
    assert all(torch.equal(keys, kept[1]) for keys in kept[1:])  # slots 0 to 9 of 11, full after the second step


@torch.no_grad()
def test_full_rows_of_one_length_go_on_too(random_model: Callable[..., TransformerLM]) -> None:
    """Their tokens are meaningless, and no error."""
    model = random_model()
    cache = StaticKeyValueCache(model.config, [3, 3], 5, torch.float32, CPU)
    model(torch.tensor([[1, 2, 3], [4, 5, 6]]), cache=cache)
    for _ in range(2):
        model(torch.tensor([[1], [2]]), cache=cache)
    kept = [keys[:, :, :4].clone() for keys in cache.keys]
    for _ in range(3):
        assert model(torch.tensor([[1], [2]]), cache=cache).isfinite().all()
    assert all(torch.equal(keys[:, :, :4], before) for keys, before in zip(cache.keys, kept, strict=True))


def test_rows_of_one_length_need_no_mask(random_model: Callable[..., TransformerLM]) -> None:
    for lengths, masked in (((7, 7, 7), False), ((7,), False), ((7, 5), True)):
        cache = StaticKeyValueCache(random_model().config, lengths, 11, torch.float32, CPU)
        _, of_prompts = cache.extend(7)
        positions_bt, of_next = cache.extend(1)
        assert of_prompts is None
        assert (of_next is not None) == masked
        assert positions_bt.tolist() == ([[7], [5]] if masked else [[7]])
