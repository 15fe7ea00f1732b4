"""Greedy texts as a loop without cache and without batch writes them: what generation must equal."""

from collections.abc import Iterator, Sequence

import torch

from dtl.model.transformer import TransformerLM

NEVER = -1  # a stop id that no token has
VOCAB_SIZE = 23  # of the random models


def random_prompts(*lengths: int) -> list[list[int]]:
    return [torch.randint(0, VOCAB_SIZE, (n,)).tolist() for n in lengths]


@torch.no_grad()
def naive_steps(
    model: TransformerLM, prompt: Sequence[int], n_new: int, stop_id: int = NEVER, penalty: float = 1.0
) -> Iterator[tuple[int, float, bool]]:
    """Token, its log-probability, and whether the model sees the end of the text alone.

    The rule of sliding: all of the text while it fits the context, then the last half of the context, which grows
    until the context is full again, and so on.
    """
    context = model.config.max_seq_len
    text, n_hidden = list(prompt), 0
    for _ in range(n_new):
        if len(text) - n_hidden > context:
            n_hidden = len(text) - context // 2
        logits_v = model(torch.tensor([text[n_hidden:]]))[0, -1].float()
        chosen_v = logits_v.clone()
        for token in set(text):
            chosen_v[token] = chosen_v[token] / penalty if chosen_v[token] > 0 else chosen_v[token] * penalty
        token = int(chosen_v.argmax())
        if token == stop_id:
            return
        yield token, float(logits_v.log_softmax(dim=-1)[token]), n_hidden > 0
        text.append(token)


def written_naively(
    model: TransformerLM, prompt: Sequence[int], n_new: int, stop_id: int = NEVER, penalty: float = 1.0
) -> list[int]:
    return [token for token, _, _ in naive_steps(model, prompt, n_new, stop_id, penalty)]
