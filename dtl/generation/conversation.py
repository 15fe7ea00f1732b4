"""Text in, text out: questions answered and beginnings continued, by a model and its tokenizer."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from dtl.data.qa import prompt
from dtl.data.tokenizer import Tokenizer
from dtl.generation.config import SamplingConfig
from dtl.generation.engine import generate, stream
from dtl.generation.text_stream import StopTexts, TokenDecoder, before_stop
from dtl.model.transformer import TransformerLM

BATCH_SIZE = 64

Ending = Literal["end", "stop", "length"]  # the end token, a stop text, max_new_tokens


class Continuation:
    """One text while it is written: iterate once for its pieces, as they come; the rest is in the fields.

    Pieces, one a token, hold whole characters and nothing from a stop text on; some are empty. `prompt_cut` is how
    many tokens at the beginning of the prompt did not fit the context and were dropped. `ids` and `logprobs` are the
    tokens written so far and the model's own log-probability of each. `slid` says that the text outgrew the context,
    and the model now sees its last part alone. `ended` is None until the text has ended, and stays None for a reader
    who leaves before.
    """

    def __init__(
        self, model: TransformerLM, tokenizer: Tokenizer, prompt_ids: Sequence[int], sampling: SamplingConfig, seed: int
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._seed = seed
        self._prompt = fitting_prompt(model, tokenizer, prompt_ids, sampling)
        self.prompt_cut = max(0, len(prompt_ids) - len(self._prompt))
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.slid = False
        self.ended: Ending | None = None

    @property
    def mean_logprob(self) -> float:
        """Natural logarithm, a token; nan when nothing was written."""
        return math.fsum(self.logprobs) / len(self.logprobs) if self.logprobs else math.nan

    def __iter__(self) -> Iterator[str]:
        decoder, stops = TokenDecoder(self._tokenizer), StopTexts(self._sampling.stop)
        for step in stream(self._model, [self._prompt], self._sampling, self._tokenizer.eos_id, self._seed):
            (token,), (logprob,), (self.slid,) = step.ids, step.logprobs, step.slid
            assert token is not None  # a batch of one ends with its only text
            self.ids.append(token)
            self.logprobs.append(logprob)
            yield stops.feed(decoder.feed(token))
            if stops.found:
                self.ended = "stop"
                return
        if piece := stops.feed(decoder.flush()) + stops.flush():
            yield piece
        if stops.found:
            self.ended = "stop"
        else:
            self.ended = "length" if len(self.ids) == self._sampling.max_new_tokens else "end"


def continue_text(
    model: TransformerLM, tokenizer: Tokenizer, text: str, sampling: SamplingConfig, seed: int
) -> Continuation:
    """`text` continued once. What does not fit the context is cut at its beginning."""
    return Continuation(model, tokenizer, tokenizer.encode(text), sampling, seed)


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
    """Each prompt continued once, all together."""
    return _continued(model, tokenizer, tokenizer.encode_batch(list(prompts)), sampling, seed)


def _continued(
    model: TransformerLM, tokenizer: Tokenizer, prompts: list[list[int]], sampling: SamplingConfig, seed: int
) -> list[str]:
    fitting = [fitting_prompt(model, tokenizer, ids, sampling) for ids in prompts]
    texts = [tokenizer.decode(ids) for ids in generate(model, fitting, sampling, tokenizer.eos_id, seed)]
    return [before_stop(text, sampling.stop) for text in texts]


def fitting_prompt(
    model: TransformerLM, tokenizer: Tokenizer, prompt_ids: Sequence[int], sampling: SamplingConfig
) -> list[int]:
    """The end of a prompt matters most: what does not fit goes at its beginning. Half the context is the prompt's,
    however many new tokens are asked for."""
    context = model.config.max_seq_len
    room = max(context - sampling.max_new_tokens, context // 2)
    return list(prompt_ids or [tokenizer.bos_id])[-room:]
