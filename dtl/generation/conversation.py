"""Generation from text to text: answers to questions and continuations of prompts, by a model and its tokenizer."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dtl.data.documents import QuestionAnswer
from dtl.data.fit import cut_context
from dtl.data.tokenizers.prompt import Prompt
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.generation.config import SamplingConfig
from dtl.generation.decoder import Decoder
from dtl.generation.engine import generate, lay_out, stream
from dtl.model.transformer import TransformerLM

# --- streaming tokens to text -------------------------------------------------------------------------------------

UNDECIDED = "\ufffd"  # the replacement character: decoded bytes that are not, or not yet, a character


class TokenDecoder:
    """Incremental decoder: the pieces that `feed` returns, joined, and then `flush`, are `tokenizer.decode(ids)`.

    A character may consist of several tokens: its bytes are held back until it is complete or known to be invalid.
    (Byte tokens of SentencePiece: in `decode` an invalid byte spoils valid ones next to it, but not those returned
    before.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Only the tokens since the last complete character are decoded again, and those before them, since some
        # tokenizers decode a token differently at the beginning of a text.
        self._before: list[int] = []
        self._shown = 0

    def feed(self, token: int) -> str:
        """Return the new characters of the text."""
        self._ids.append(token)
        text = self._new_text()
        # An incomplete character at the end is one replacement character, or in SentencePiece one for each byte.
        certain = text.rstrip(UNDECIDED)
        piece = certain[self._shown :]
        self._shown += len(piece)
        if text and text == certain:  # not after a special token: without text it is no context for the next
            self._before, self._ids, self._shown = self._ids, [], 0
        return piece

    def flush(self) -> str:
        """Return the characters held back, when no token follows."""
        return self._new_text()[self._shown :]

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode([*self._before, *self._ids])[len(before) :]


class StopTexts:
    """Filter of streamed text that ends before the first complete stop text of `texts`.

    The end of the text so far is held back while it may be the beginning of a stop text.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """Return the new text that is certain to be before a stop text."""
        if self.found:
            return ""
        self._held += piece
        # The first to be complete, and of two that end together the one that begins earlier.
        ends = [(self._held.find(text) + len(text), -len(text)) for text in self._texts if text in self._held]
        if ends:
            self.found = True
            end, minus_length = min(ends)
            certain, self._held = self._held[: end + minus_length], ""
            return certain
        n_held = max((self._overlap(text) for text in self._texts), default=0)
        certain = self._held[: len(self._held) - n_held]
        self._held = self._held[len(certain) :]
        return certain

    def flush(self) -> str:
        """Return the text held back, when nothing follows."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, text: str) -> int:
        """Number of characters at the end of the text held back that begin `text`."""
        longest = min(len(text) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(text[:n])), 0)


def before_stop(text: str, stop_texts: Sequence[str]) -> str:
    """Return `text` up to the first of `stop_texts` that is complete in it."""
    stops = StopTexts(stop_texts)
    return stops.feed(text) + stops.flush()


# --- answers and continuations ------------------------------------------------------------------------------------

Ending = Literal["end", "stop", "length"]  # the end token, a stop text, max_new_tokens


@dataclass(frozen=True)
class GreedyAnswer:
    """Answer of a model that takes the most likely token each time."""

    text: str
    confidence: float  # mean log-probability of its tokens, natural logarithm; -inf for an empty answer


class Continuation:
    """One text while it is generated: iterate once for its pieces; the fields have the rest.

    Pieces, one per token, contain complete characters and nothing from a stop text on; some are empty. `prompt_cut` is
    the number of tokens cut from the beginning of the prompt to fit the context. `ids` and `logprobs` are the tokens so
    far and their log-probabilities by the unmodified model. `context_shifted`: the text outgrew the context, and the
    model sees only its last part. `ended` is None until the text has ended, and remains None if iteration stops before.
    """

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        sampling: SamplingConfig,
        seed: int,
        decoder: Decoder | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._seed = seed
        self._decoder = decoder
        self._prompt = fitting_prompt(model, tokenizer, prompt_ids, sampling)
        self.prompt_cut = max(0, len(prompt_ids) - len(self._prompt))
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.context_shifted = False
        self.ended: Ending | None = None

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of a token, natural logarithm; nan for an empty text."""
        return math.fsum(self.logprobs) / len(self.logprobs) if self.logprobs else math.nan

    def __iter__(self) -> Iterator[str]:
        decoder, stops = TokenDecoder(self._tokenizer), StopTexts(self._sampling.stop)
        stop_id = self._tokenizer.eos_id
        for step in stream(self._model, [self._prompt], self._sampling, stop_id, self._seed, self._decoder):
            (token,), (logprob,), (self.context_shifted,) = step.ids, step.logprobs, step.context_shifted
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
    model: TransformerLM,
    tokenizer: Tokenizer,
    text: str,
    sampling: SamplingConfig,
    seed: int,
    decoder: Decoder | None = None,
) -> Continuation:
    """Return a continuation of `text`, whose beginning is cut to fit the context; see `stream` for the `decoder`."""
    return Continuation(model, tokenizer, tokenizer.encode(text), sampling, seed, decoder)


def answer_greedily(
    model: TransformerLM,
    tokenizer: Tokenizer,
    asked: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    after_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[GreedyAnswer]:
    """Answer each prompt (`Prompt.text`). The batch size does not change the answers.

    `after_batch` gets the number of answers so far and the number of prompts.
    """
    greedy = SamplingConfig(temperature=0, top_k=None, max_new_tokens=max_new_tokens)
    prompts = [fitting_prompt(model, tokenizer, ids, greedy) for ids in tokenizer.encode_batch(list(asked))]
    answers: dict[int, GreedyAnswer] = {}
    decoder = lay_out(model)
    for chosen in by_length([len(ids) for ids in prompts], batch_size):
        ids: list[list[int]] = [[] for _ in chosen]
        logprobs: list[list[float]] = [[] for _ in chosen]
        for step in stream(model, [prompts[i] for i in chosen], greedy, tokenizer.eos_id, decoder=decoder):
            for row, (token, logprob) in enumerate(zip(step.ids, step.logprobs, strict=True)):
                if token is not None:
                    ids[row].append(token)
                    logprobs[row].append(logprob)
        for row, i in enumerate(chosen):
            confidence = math.fsum(logprobs[row]) / len(logprobs[row]) if logprobs[row] else -math.inf
            answers[i] = GreedyAnswer(tokenizer.decode(ids[row]).strip(), confidence)
        after_batch(len(answers), len(prompts))
    return [answers[i] for i in range(len(prompts))]


def continuations(
    model: TransformerLM, tokenizer: Tokenizer, prompts: Sequence[str], sampling: SamplingConfig, seed: int
) -> list[str]:
    """Return one continuation of each prompt, generated as one batch."""
    fitting = [fitting_prompt(model, tokenizer, ids, sampling) for ids in tokenizer.encode_batch(list(prompts))]
    texts = [tokenizer.decode(ids) for ids in generate(model, fitting, sampling, tokenizer.eos_id, seed)]
    return [before_stop(text, sampling.stop) for text in texts]


def fitting_question(
    model: TransformerLM, tokenizer: Tokenizer, prompt: Prompt, pair: QuestionAnswer, max_new_tokens: int
) -> QuestionAnswer:
    """Return a question whose prompt fits the context of the model: its own context is cut, as that of held-out
    questions is in training (`cut_context`), so that the form of the prompt and the question stay complete."""
    room = _room(model, max_new_tokens)
    if not pair.context or len(tokenizer.encode(prompt.text(pair.question, pair.context))) <= room:
        return pair
    window = cut_context(pair, prompt, tokenizer, room, by_answer=False)
    return pair if window is None else replace(pair, context=window)


def prompts_of(
    model: TransformerLM, tokenizer: Tokenizer, prompt: Prompt, pairs: Sequence[QuestionAnswer], max_new_tokens: int
) -> list[str]:
    """Return the prompts of questions, each with as much of its context as fits."""
    fitting = (fitting_question(model, tokenizer, prompt, pair, max_new_tokens) for pair in pairs)
    return [prompt.text(pair.question, pair.context) for pair in fitting]


def _room(model: TransformerLM, max_new_tokens: int) -> int:
    context = model.config.max_seq_len
    return max(context - max_new_tokens, context // 2)


def fitting_prompt(
    model: TransformerLM, tokenizer: Tokenizer, prompt_ids: Sequence[int], sampling: SamplingConfig
) -> list[int]:
    """Return the prompt, cut at its beginning to fit the context; never to less than half of the context."""
    return list(prompt_ids or [tokenizer.bos_id])[-_room(model, sampling.max_new_tokens) :]


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of indices, longest first, so that the lengths in a batch are about equal and need little padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))
