"""Text in, text out: questions answered and beginnings continued, by a model and its tokenizer."""

from collections.abc import Callable, Sequence

from dtl.data.qa import prompt
from dtl.data.tokenizer import Tokenizer
from dtl.generation.config import SamplingConfig
from dtl.generation.engine import generate
from dtl.model.transformer import TransformerLM

BATCH_SIZE = 64


def answerer(model: TransformerLM, tokenizer: Tokenizer, max_new_tokens: int) -> Callable[[list[str]], list[str]]:
    """A function that answers questions greedily. Longest prompts go first, so that batches hold equal lengths."""
    greedy = SamplingConfig(temperature=0, top_k=None, max_new_tokens=max_new_tokens)

    def answer(questions: list[str]) -> list[str]:
        prompts = tokenizer.encode_batch([prompt(question) for question in questions])
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        answers = [""] * len(prompts)
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            texts = _continued(model, tokenizer, [prompts[i] for i in chosen], greedy, seed=0)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text.strip()
        return answers

    return answer


def continuations(
    model: TransformerLM, tokenizer: Tokenizer, prompts: Sequence[str], sampling: SamplingConfig, seed: int
) -> list[str]:
    """Each prompt continued once."""
    return _continued(model, tokenizer, tokenizer.encode_batch(list(prompts)), sampling, seed)


def _continued(
    model: TransformerLM, tokenizer: Tokenizer, prompts: list[list[int]], sampling: SamplingConfig, seed: int
) -> list[str]:
    # The end of a prompt matters most: what does not fit goes at its beginning. Half the context is the prompt's,
    # however many new tokens are asked for.
    context = model.config.max_seq_len
    room = max(context - sampling.max_new_tokens, context // 2)
    fitting = [(ids or [tokenizer.bos_id])[-room:] for ids in prompts]
    return [tokenizer.decode(ids) for ids in generate(model, fitting, sampling, tokenizer.eos_id, seed)]
