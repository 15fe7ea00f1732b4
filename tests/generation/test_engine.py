"""Laws of generation: what a loop without a cache would write, row by row, whoever else is in the batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dtl.generation.config import SamplingConfig
from dtl.generation.engine import generate
from dtl.generation.sampling import sample_next
from dtl.model.transformer import TransformerLM

KINDS = ("modern", "grouped", "classic")
NEVER = -1  # a stop id that no token has
GREEDY = SamplingConfig(temperature=0, top_k=None, max_new_tokens=13)
WARM = SamplingConfig(temperature=1.5, top_k=None, max_new_tokens=13)


def random_prompts(*lengths: int) -> list[list[int]]:
    return [torch.randint(0, 23, (n,)).tolist() for n in lengths]


@torch.no_grad()
def written_naively(model: TransformerLM, prompt: list[int], n_new: int, stop_id: int = NEVER) -> list[int]:
    """Greedy, without cache, without batch."""
    ids = list(prompt)
    while len(ids) < min(len(prompt) + n_new, model.config.max_seq_len):
        likeliest = int(model(torch.tensor([ids]))[0, -1].argmax())
        if likeliest == stop_id:
            break
        ids.append(likeliest)
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_what_a_naive_loop_writes(random_model: Callable[..., TransformerLM], kind: str) -> None:
    model = random_model(kind, tie_embeddings=False)  # tied, a random model repeats its last token
    prompts = random_prompts(5, 1, 11, 2)
    found = generate(model, prompts, GREEDY, NEVER)
    assert found == [written_naively(model, prompt, 13) for prompt in prompts]
    assert len({tuple(ids) for ids in found}) > 2
    assert len({token for ids in found for token in ids}) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_fills_the_context_on_its_own(random_model: Callable[..., TransformerLM], kind: str) -> None:
    """A long neighbour does not shorten a short prompt's text, and a full row does not disturb the others."""
    model = random_model(kind, max_seq_len=17)
    prompts = random_prompts(16, 3, 11, 1)
    found = generate(model, prompts, SamplingConfig(temperature=0, max_new_tokens=99), NEVER)
    assert [len(ids) for ids in found] == [1, 14, 6, 16]
    assert found == [written_naively(model, prompt, 99) for prompt in prompts]


def test_stops_at_the_stop_id_and_leaves_it_out(random_model: Callable[..., TransformerLM]) -> None:
    model = random_model()
    prompts = random_prompts(5, 3, 7)
    free = generate(model, prompts, GREEDY, NEVER)
    stop_id = free[0][4]
    found = generate(model, prompts, GREEDY, stop_id)
    assert found == [ids[: ids.index(stop_id)] if stop_id in ids else ids for ids in free]
    assert len(found[0]) <= 4


def test_asks_for_no_more_tokens_once_all_have_stopped(
    random_model: Callable[..., TransformerLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = random_model(), []
    prompts = random_prompts(5)
    stop_id = generate(model, prompts, GREEDY, NEVER)[0][0]
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda *args, **kwargs: calls.append(1) or hidden(*args, **kwargs))
    assert generate(model, prompts, GREEDY, stop_id) == [[]]
    assert len(calls) == 1


def test_one_new_token(random_model: Callable[..., TransformerLM]) -> None:
    model = random_model()
    prompts = random_prompts(5, 2)
    found = generate(model, prompts, SamplingConfig(temperature=0, max_new_tokens=1), NEVER)
    assert found == [written_naively(model, prompt, 1) for prompt in prompts]


def test_the_order_of_a_greedy_batch_does_not_matter(random_model: Callable[..., TransformerLM]) -> None:
    model = random_model("grouped")
    prompts = random_prompts(5, 1, 11, 2, 7)
    order = [3, 0, 4, 2, 1]
    together = generate(model, prompts, GREEDY, 5)
    assert generate(model, [prompts[i] for i in order], GREEDY, 5) == [together[i] for i in order]
    assert [generate(model, [prompt], GREEDY, 5)[0] for prompt in prompts] == together


def test_one_seed_one_text(random_model: Callable[..., TransformerLM]) -> None:
    model = random_model()
    prompts = random_prompts(5, 3)
    first = generate(model, prompts, WARM, NEVER, seed=1)
    torch.rand(3)
    assert generate(model, prompts, WARM, NEVER, seed=1) == first
    assert generate(model, prompts, WARM, NEVER, seed=2) != first


def test_rows_draw_apart_from_each_other(random_model: Callable[..., TransformerLM]) -> None:
    first, second = generate(random_model(), random_prompts(5) * 2, WARM, NEVER)
    assert first != second


def test_leaves_training_as_it_was(random_model: Callable[..., TransformerLM]) -> None:
    """Samples are drawn in the middle of a run: global random numbers and dropout must not notice."""
    model = random_model().train()
    prompts = random_prompts(5)
    before = torch.get_rng_state()
    found = generate(model, prompts, GREEDY, NEVER)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert found == [written_naively(model.eval(), prompts[0], 13)]


def test_the_models_mode_is_restored_by_an_error(
    random_model: Callable[..., TransformerLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Tensor:
        raise RuntimeError("some trouble")

    model = random_model().train()
    monkeypatch.setattr(model, "hidden", fail)
    with pytest.raises(RuntimeError, match="some trouble"):
        generate(model, [[1]], GREEDY, NEVER)
    assert model.training


def test_draws_from_the_models_own_probabilities(random_model: Callable[..., TransformerLM]) -> None:
    """The first token of a sampled text is `sample_next` of the logits, with the generator of that seed."""
    model = random_model()
    prompts = random_prompts(5, 5)
    with torch.no_grad():
        logits_bv = model(torch.tensor(prompts))[:, -1]
    expected = sample_next(logits_bv, WARM, torch.Generator().manual_seed(3))
    assert [ids[0] for ids in generate(model, prompts, WARM, NEVER, seed=3)] == expected.tolist()


def test_bf16_autocast_runs_and_writes_nearly_the_same(random_model: Callable[..., TransformerLM]) -> None:
    model = random_model("grouped")
    prompts = random_prompts(5, 1, 11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = generate(model, prompts, SamplingConfig(temperature=0, max_new_tokens=2), NEVER)
    exact = [written_naively(model, prompt, 2) for prompt in prompts]
    assert sum(a == b for x, y in zip(found, exact, strict=True) for a, b in zip(x, y, strict=True)) >= 4


def test_no_prompts_give_no_texts(random_model: Callable[..., TransformerLM]) -> None:
    assert generate(random_model(), [], GREEDY, NEVER) == []


@pytest.mark.parametrize("lengths", [(0,), (3, 0), (29,), (3, 30)])
def test_prompts_that_cannot_be_continued_are_refused(
    random_model: Callable[..., TransformerLM], lengths: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="1 to 28 tokens"):
        generate(random_model(), random_prompts(*lengths), GREEDY, NEVER)


def test_the_longest_prompt_that_fits(random_model: Callable[..., TransformerLM]) -> None:
    model = random_model()
    (prompt,) = random_prompts(28)
    assert generate(model, [prompt], GREEDY, NEVER) == [written_naively(model, prompt, 1)]


# --- Hugging Face -------------------------------------------------------------------------------------------------


@pytest.mark.slow  # importing transformers takes seconds
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_what_hugging_face_writes(random_model: Callable[..., TransformerLM], kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from dtl.model.hf import hf_config, to_hf

    model = random_model(kind)
    settings = hf_config(model.config, model.vocab_size, eos_id=0, bos_id=0, pad_id=0)
    twin = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).eval()
    twin.load_state_dict(to_hf(model), strict=False)
    twin.tie_weights()
    for stop_id in (None, 5):
        for prompt in random_prompts(1, 5, 11):
            ids = torch.tensor([prompt])
            theirs = twin.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=13,
                do_sample=False,
                eos_token_id=stop_id,
                pad_token_id=0,
            )
            expected = theirs[0, len(prompt) :].tolist()
            if stop_id in expected:
                expected = expected[: expected.index(stop_id)]
            ours = generate(model, [prompt], GREEDY, NEVER if stop_id is None else stop_id)
            assert ours == [expected]
