"""Tokens to text while they come: whole characters only, and nothing from a stop text on."""

from collections.abc import Sequence

from dtl.data.tokenizer import Tokenizer

UNDECIDED = "\ufffd"  # what decoding gives for bytes that are no character, or not yet one


class TokenDecoder:
    """Text of a growing list of tokens. What `feed` returns, joined, and then `flush`, is `tokenizer.decode(ids)`.

    A character may be spread over several tokens: its bytes are held back until it is whole or known to be broken.
    (Byte tokens of SentencePiece: a broken byte spoils whole ones beside it in `decode`, but not those shown before.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Only the tokens since the last whole character are decoded again, and those before them, since some
        # tokenizers write a token differently at the beginning of a text.
        self._before: list[int] = []
        self._shown = 0

    def feed(self, token: int) -> str:
        """What the text has become longer by."""
        self._ids.append(token)
        text = self._new_text()
        # An incomplete character at the end is one replacement character, or in SentencePiece one for each byte.
        certain = text.rstrip(UNDECIDED)
        piece = certain[self._shown :]
        self._shown += len(piece)
        if text and text == certain:  # a special token, without text, is no beginning for those after it
            self._before, self._ids, self._shown = self._ids, [], 0
        return piece

    def flush(self) -> str:
        """What was held back, when no token follows."""
        return self._new_text()[self._shown :]

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode([*self._before, *self._ids])[len(before) :]


class StopTexts:
    """Lets text through until one of `texts` is complete; it and all that follows stay out.

    The end of what came is held back while it may be the beginning of a stop text.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """As much of the text as is certain to come before a stop text."""
        if self.found:
            return ""
        self._held += piece
        # The first to be complete, and of two that end together the one that began earlier.
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
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, text: str) -> int:
        """Characters at the end of what is held that begin `text`."""
        longest = min(len(text) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(text[:n])), 0)


def before_stop(text: str, stop_texts: Sequence[str]) -> str:
    """`text` up to the first of `stop_texts` that is complete in it."""
    stops = StopTexts(stop_texts)
    return stops.feed(text) + stops.flush()
