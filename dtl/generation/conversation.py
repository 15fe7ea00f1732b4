"""Text in, text out: questions answered and beginnings continued, by a model and its tokenizer."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dtl.data.tokenizer import Tokenizer
from dtl.generation.config import SamplingConfig
from dtl.generation.engine import generate, stream
from dtl.generation.text_stream import StopTexts, TokenDecoder, before_stop
from dtl.model.transformer import TransformerLM

Ending = Literal["end", "stop", "length"]  # the end token, a stop text, max_new_tokens


@dataclass(frozen=True)
class GreedyAnswer:
    """What a model says when it takes the likeliest token each time."""

    text: str
    confidence: float  # mean log-probability of its tokens, natural logarithm; -inf when it says nothing


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


def answer_greedily(
    model: TransformerLM, tokenizer: Tokenizer, asked: Sequence[str], max_new_tokens: int, batch_size: int
) -> list[GreedyAnswer]:
    """An answer to each text that asks (`dtl.data.qa.prompt`). The batch size changes none of them."""
    greedy = SamplingConfig(temperature=0, top_k=None, max_new_tokens=max_new_tokens)
    prompts = [fitting_prompt(model, tokenizer, ids, greedy) for ids in tokenizer.encode_batch(list(asked))]
    answers: dict[int, GreedyAnswer] = {}
    for chosen in by_length([len(ids) for ids in prompts], batch_size):
        ids: list[list[int]] = [[] for _ in chosen]
        logprobs: list[list[float]] = [[] for _ in chosen]
        for step in stream(model, [prompts[i] for i in chosen], greedy, tokenizer.eos_id):
            for row, (token, logprob) in enumerate(zip(step.ids, step.logprobs, strict=True)):
                if token is not None:
                    ids[row].append(token)
                    logprobs[row].append(logprob)
        for row, i in enumerate(chosen):
            said = logprobs[row]
            confidence = math.fsum(said) / len(said) if said else -math.inf
            answers[i] = GreedyAnswer(tokenizer.decode(ids[row]).strip(), confidence)
    return [answers[i] for i in range(len(prompts))]


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


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices, longest first, so that a batch holds about equal lengths."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))
