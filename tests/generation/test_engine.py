"""Laws of generation: what a loop without a cache would write, row by row, whoever else is in the batch."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from naive_loop import NEVER, naive_steps, random_prompts, written_naively
from torch import Tensor

from dtl.generation.config import SamplingConfig
from dtl.generation.engine import generate, sample_next, stream
from dtl.model.transformer import TransformerLM

KINDS = ("modern", "grouped", "value_embeddings", "classic")
GREEDY = SamplingConfig(temperature=0, top_k=None, max_new_tokens=13)
WARM = SamplingConfig(temperature=1.5, top_k=None, max_new_tokens=13)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_what_a_naive_loop_writes(random_model: Callable[..., TransformerLM], kind: str) -> None:
    model = random_model(kind, tie_embeddings=False)  # tied, a random model repeats its last token
    prompts = random_prompts(5, 1, 11, 2)
    found = generate(model, prompts, GREEDY, NEVER)
    assert found == [written_naively(model, prompt, 13) for prompt in prompts]
    assert len({tuple(ids) for ids in found}) > 2
    assert len({token for ids in found for token in ids}) > 3


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
    """It is read whole; what follows its 29th token is in test_sliding.py."""
    model = random_model()
    (prompt,) = random_prompts(28)
    assert generate(model, [prompt], replace(GREEDY, max_new_tokens=2), NEVER) == [written_naively(model, prompt, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_length_are_written_as_in_a_naive_loop(
    random_model: Callable[..., TransformerLM], kind: str
) -> None:
    """They take the path without masks; one of them stops before the others."""
    model = random_model(kind, tie_embeddings=False)
    prompts = random_prompts(5, 5, 5)
    stop_id = written_naively(model, prompts[1], 13)[4]
    assert generate(model, prompts, GREEDY, stop_id) == [written_naively(model, p, 13, stop_id) for p in prompts]


@pytest.mark.parametrize("lengths", [(5,), (7, 7, 7), (5, 1, 11)])
def test_the_penalty_counts_prompt_and_text(
    random_model: Callable[..., TransformerLM], lengths: tuple[int, ...]
) -> None:
    """Of each row its own; a penalty below 1 favours what was said before."""
    model = random_model(tie_embeddings=False)
    prompts = random_prompts(*lengths)
    plain = generate(model, prompts, GREEDY, NEVER)
    for penalty in (1.7, 0.6):
        found = generate(model, prompts, replace(GREEDY, repetition_penalty=penalty), NEVER)
        assert found == [written_naively(model, prompt, 13, penalty=penalty) for prompt in prompts]
        assert found != plain


# --- the steps of a stream -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, WARM, replace(WARM, repetition_penalty=1.3, top_k=5, min_p=0.1)])
@pytest.mark.parametrize("lengths", [(5,), (5, 5), (5, 1, 11, 2)])
def test_the_steps_together_are_what_generate_writes(
    random_model: Callable[..., TransformerLM], sampling: SamplingConfig, lengths: tuple[int, ...]
) -> None:
    """A row that has ended gives None from there on, and a step in which every row has ended is no step."""
    model = random_model(tie_embeddings=False)
    prompts = random_prompts(*lengths)
    stop_id = generate(model, prompts, sampling, NEVER, seed=3)[0][5]
    steps = list(stream(model, prompts, sampling, stop_id, seed=3))
    texts = generate(model, prompts, sampling, stop_id, seed=3)
    assert len(steps) == max(len(text) for text in texts)
    for row, text in enumerate(texts):
        assert [step.ids[row] for step in steps] == text + [None] * (len(steps) - len(text))
    assert all(len(step.ids) == len(step.logprobs) == len(step.context_shifted) == len(prompts) for step in steps)


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        WARM,
        SamplingConfig(
            temperature=3.0, top_k=7, top_p=0.9, min_p=0.05, repetition_penalty=1.5, max_new_tokens=13, stop=["a"]
        ),
    ],
)
@pytest.mark.parametrize("lengths", [(7,), (7, 7), (5, 1, 11)])
@torch.no_grad()
def test_logprobs_are_the_models_own(
    random_model: Callable[..., TransformerLM], sampling: SamplingConfig, lengths: tuple[int, ...]
) -> None:
    """Whatever the sampling makes of the logits: log-softmax at temperature 1, without a cache."""
    model = random_model("grouped", tie_embeddings=False)
    prompts = random_prompts(*lengths)
    steps = list(stream(model, prompts, sampling, NEVER, seed=3))
    assert len(steps) == 13
    for row, prompt in enumerate(prompts):
        written = [step.ids[row] for step in steps]
        logits_tv = model(torch.tensor([[*prompt, *written]]))[0, len(prompt) - 1 : -1]
        expected = logits_tv.log_softmax(dim=-1)[torch.arange(13), torch.tensor(written)]
        assert expected.std() > 0.1
        torch.testing.assert_close(torch.tensor([step.logprobs[row] for step in steps]), expected, rtol=0, atol=1e-4)


def test_logprobs_of_a_naive_loop(random_model: Callable[..., TransformerLM]) -> None:
    model = random_model("classic", tie_embeddings=False)
    (prompt,) = random_prompts(5)
    expected = list(naive_steps(model, prompt, 13, penalty=1.5))
    found = list(stream(model, [prompt], replace(GREEDY, repetition_penalty=1.5), NEVER))
    assert [step.ids[0] for step in found] == [token for token, _, _ in expected]
    assert [step.logprobs[0] for step in found] == pytest.approx([logprob for _, logprob, _ in expected], abs=1e-4)


@pytest.mark.parametrize("n_read", [0, 1, 5])
def test_a_reader_may_leave_the_loop(random_model: Callable[..., TransformerLM], n_read: int) -> None:
    model = random_model().train()
    before = torch.get_rng_state()
    steps = stream(model, random_prompts(5), WARM, NEVER)
    after_prompts = torch.get_rng_state()  # the prompts were drawn in between
    for _ in range(n_read):
        next(steps)
        assert not model.training
    steps.close()
    assert model.training
    assert torch.equal(torch.get_rng_state(), after_prompts)
    assert not torch.equal(before, after_prompts)
    assert not torch.is_inference_mode_enabled()


def test_a_reader_may_do_other_things_between_two_steps(random_model: Callable[..., TransformerLM]) -> None:
    """Draw random numbers, train something: the text does not notice, nor does the other work."""
    model = random_model()
    prompts = random_prompts(5, 3)
    expected = generate(model, prompts, WARM, NEVER, seed=1)
    written: list[list[int | None]] = [[], []]
    for step in stream(model, prompts, WARM, NEVER, seed=1):
        for text, token in zip(written, step.ids, strict=True):
            text.append(token)
        weight = torch.rand(3, requires_grad=True)
        weight.square().sum().backward()
        assert weight.grad is not None
    assert written == expected


# --- Hugging Face -------------------------------------------------------------------------------------------------


@pytest.mark.slow  # importing transformers takes seconds
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "value_embeddings"])  # it has no twin there
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
