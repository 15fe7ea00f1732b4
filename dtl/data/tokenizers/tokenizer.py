"""The tokenizer: a wrapper around a `tokenizers` object, and the four kinds that DTL builds.

Text is untrusted: `<|endoftext|>` inside a text is encoded as plain text, never as the special token.
Special tokens come last in every vocabulary, as in GPT-2's.
"""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dtl.data.config import TokenizerConfig
from dtl.data.tokenizers.files import no_panic, read_backend, read_settings, special_id
from dtl.data.tokenizers.gpt2 import END, FastEncoder, byte_level_bpe, fast_encoder, is_gpt2, load_gpt2
from dtl.data.tokenizers.prompt import Prompt, chat_template, response_template
from dtl.errors import CheckpointError, DataError
from dtl.registry import TOKENIZERS

PAD, UNKNOWN = "<|pad|>", "<|unk|>"
# Entries of a bpe where tokenizer.vocab_size=null. After equal time 8,192 gave fewer bits per byte than 4,096 with 9
# million characters of training text (experiments/experiment/vocabulary.md); with fewer nothing was measured.
SMALL_VOCABULARY, LARGE_VOCABULARY = 4096, 8192
MUCH_TEXT = 8_000_000  # characters
PIECE_CHARS = 100_000  # long texts are encoded in pieces: in parallel, and with bounded memory
FAST_CHARS = 200_000  # from here on the fast encoder is worth the time that building it takes
GROUP_CHARS = 2_000_000  # characters passed to `tokenizers` at once; it needs some 20 bytes for each meanwhile
# Between "a" and " b", and between "a\n" and "b": GPT-2's pre-tokenisation always splits there, so that
# pieces give the same ids as the whole.
_SEAM = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")

# Longer words, as of a text without spaces, are learnt in parts: with whole ones, 23,000 characters gave a token of
# 23,000 bytes after 40 s.
MAX_WORD, MAX_TOKEN = 256, 128  # characters, and bytes, when a BPE is trained
_IN_LONG_WORD = re.compile(rf"\S{{{MAX_WORD}}}(?=\S)|\s{{{MAX_WORD}}}(?=\s)")

TrainingTexts = Callable[[], Iterable[str]]


class Tokenizer:
    """A `tokenizers.Tokenizer` with its special tokens.

    `vocab_size` includes special tokens; `notes` are messages for the start of a run. `prompt` is the form of the
    questions that the tokenizer's model has learnt, None for plain text: carried along for chat, no part of the
    tokenizer's identity.
    The backend uses several threads, unless TOKENIZERS_PARALLELISM=false. DTL does not set that
    variable: left unset, `tokenizers` turns itself serial in a forked child, where it would deadlock otherwise.
    """

    def __init__(
        self,
        kind: str,
        backend: tokenizers.Tokenizer,
        *,
        eos_id: int | None = None,
        bos_id: int | None = None,
        pad_id: int | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Change the backend in place. Without ids, `<|endoftext|>` (added when missing) begins and ends a text, and
        `<|pad|>` pads where the vocabulary has it."""
        if eos_id is None:
            backend.add_special_tokens([END])
            eos_id = cast(int, backend.token_to_id(END))
        # A foreign tokenizer.json may carry truncation, padding or an added start token, which would apply silently.
        backend.no_truncation()
        backend.no_padding()
        backend.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
        backend.encode_special_tokens = True
        self.kind = kind
        self.backend = backend
        traits = TOKENIZERS.traits(kind)
        self._cuts_at_spaces = traits is not None and traits.cuts_at_spaces
        pad_id = backend.token_to_id(PAD) if pad_id is None else pad_id
        self.eos_id: int = eos_id
        self.bos_id: int = eos_id if bos_id is None else bos_id
        self.pad_id: int = eos_id if pad_id is None else pad_id  # any id will do: padding has no loss
        self.notes = tuple(notes)
        self.prompt: Prompt | None = None
        special = {self.eos_id, self.bos_id, self.pad_id, backend.token_to_id(UNKNOWN)} - {None}
        backend.add_special_tokens([backend.id_to_token(i) for i in sorted(special)])
        # Ids of a foreign vocabulary may have gaps; a model needs a row for the largest.
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without any special token. Lone surrogates become U+FFFD."""
        return self.encode_batch([text])[0]

    def encode_batch(
        self, texts: list[str], encoded_characters: Callable[[int], None] = lambda n_characters: None
    ) -> list[list[int]]:
        """Return the token ids of each text, encoded in parallel with bounded memory in addition to the result.

        `encoded_characters` is called with the number of characters of each part that is done.
        """
        ids: list[list[int]] = [[] for _ in texts]
        for group in self._groups(texts):
            for row, encoded in zip(
                (row for row, _ in group), self._encode([piece for _, piece in group]), strict=True
            ):
                ids[row] += encoded
            encoded_characters(sum(len(piece) for _, piece in group))
        return ids

    def _groups(self, texts: list[str]) -> Iterator[list[tuple[int, str]]]:
        group: list[tuple[int, str]] = []
        n_chars = 0
        for row, text in enumerate(texts):
            for piece in pieces(text) if self._cuts_at_spaces else (text,):
                group.append((row, piece))
                n_chars += len(piece)
                if n_chars >= GROUP_CHARS:
                    yield group
                    group, n_chars = [], 0
        yield group

    @cached_property
    def _fast(self) -> FastEncoder | None:
        return fast_encoder(self.backend, _byte_letters())

    def _encode(self, texts: list[str]) -> Iterator[list[int]]:
        if sum(map(len, texts)) >= FAST_CHARS and self._fast is not None:
            return iter(self._fast(texts))
        with no_panic(f"The tokenizer {self.kind}"):
            try:
                encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
            except TypeError:  # raised by `tokenizers` for a lone surrogate, which UTF-8 cannot encode
                texts = [_well_formed(text) for text in texts]
                encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return (encoding.ids for encoding in encodings)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, without special tokens. Bytes that are not UTF-8 become U+FFFD."""
        with no_panic(f"The tokenizer {self.kind}"):
            return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    @cached_property
    def _json(self) -> bytes:
        return self.backend.to_str().encode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokenizer.json as `save` writes it."""
        return hashlib.sha256(self._json).hexdigest()

    def with_prompt(self, prompt: Prompt | None) -> "Tokenizer":
        """Return this tokenizer with another prompt; both share the vocabulary."""
        other = copy.copy(self)
        other.prompt = prompt
        return other

    def save(self, folder: Path, max_seq_len: int | None = None) -> None:
        """Write tokenizer.json, tokenizer_config.json and, with a prompt, chat_template.jinja, as `AutoTokenizer` reads
        them: the same bytes each time."""
        settings: dict[str, Any] = {
            # transformers 5 otherwise picks a class by the model's type, with other ids.
            "tokenizer_class": "PreTrainedTokenizerFast",
            # Not split_special_tokens: trainers that add the end token as text, such as TRL, would teach its spelling.
            "padding_side": "left",  # the new tokens of a batch follow their prompts
            "model_input_names": ["input_ids", "attention_mask"],  # GPT-2 would embed token_type_ids as tokens
            "clean_up_tokenization_spaces": False,
            "bos_token": self.backend.id_to_token(self.bos_id),
            "eos_token": self.backend.id_to_token(self.eos_id),
            "pad_token": self.backend.id_to_token(self.pad_id),
            "dtl_kind": self.kind,
        }
        if self.backend.token_to_id(UNKNOWN) is not None:
            settings["unk_token"] = UNKNOWN
        if max_seq_len is not None:
            settings["model_max_length"] = max_seq_len
        folder.mkdir(parents=True, exist_ok=True)
        if self.prompt is not None:
            settings["response_template"] = response_template(settings["eos_token"])
            (folder / "chat_template.jinja").write_bytes(chat_template(self.prompt).encode())
        (folder / "tokenizer.json").write_bytes(self._json)
        (folder / "tokenizer_config.json").write_bytes(json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Load the tokenizer of a DTL checkpoint or of a Hugging Face model directory; runs no code from there.

        Raises CheckpointError when files are missing or malformed, or name no end token.
        """
        backend = read_backend(folder)
        eos_id, bos_id, pad_id = (special_id(folder, backend, name) for name in ("eos", "bos", "pad"))
        if eos_id is None and backend.token_to_id(END) is None:
            raise CheckpointError(
                f"{folder}: no end token. tokenizer_config.json should name eos_token, or config.json eos_token_id."
            )
        kind = read_settings(folder / "tokenizer_config.json").get("dtl_kind") or (
            "gpt2" if is_gpt2(backend) else "huggingface"
        )
        return cls(str(kind), backend, eos_id=eos_id, bos_id=bos_id, pad_id=pad_id)


MakeTokenizer = Callable[[TokenizerConfig, TrainingTexts], Tokenizer | tokenizers.Tokenizer]


def build_tokenizer(config: TokenizerConfig, training_texts: TrainingTexts) -> Tokenizer:
    """Return the tokenizer of a configuration; only kinds that are trained on text call `training_texts`.

    Raises ConfigError for an unknown kind, DataError when a vocabulary is not available.
    """
    made = TOKENIZERS.get(config.kind)(config, training_texts)
    return made if isinstance(made, Tokenizer) else Tokenizer(config.kind, made)


@TOKENIZERS.register("gpt2")
def _gpt2(config: TokenizerConfig, training_texts: TrainingTexts) -> tokenizers.Tokenizer:
    return load_gpt2(config.path)


@TOKENIZERS.register("bpe")
def _bpe(config: TokenizerConfig, training_texts: TrainingTexts) -> Tokenizer:
    """Train a byte-level BPE on the training text; a merge needs two occurrences, so little text gives few entries.

    Without `vocab_size` the number of entries follows from the length of the text. A smaller BPE of a text is the
    beginning of a larger one, so that one training is enough: it is cut.
    """
    read = _Counted(training_texts)
    learner = byte_level_bpe({}, [])
    learner.train_from_iterator(
        _without_long_words(read),
        trainers.BpeTrainer(
            vocab_size=(config.vocab_size or LARGE_VOCABULARY) - 2,  # END and PAD are added below
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=MAX_TOKEN,
            show_progress=False,
        ),
    )
    model = json.loads(learner.to_str())["model"]
    wanted = config.vocab_size or (LARGE_VOCABULARY if read.n_characters >= MUCH_TEXT else SMALL_VOCABULARY)
    vocab, merges = _beginning(model["vocab"], [(a, b) for a, b in model["merges"]], wanted - 2)
    backend = byte_level_bpe(_with_special(vocab, END, PAD), merges)
    notes = []
    if config.vocab_size and backend.get_vocab_size() < config.vocab_size:
        notes.append(
            f"tokenizer.vocab_size={config.vocab_size}: the training text gave only {backend.get_vocab_size()} "
            "entries, since no further pair occurs twice."
        )
    return Tokenizer("bpe", backend, notes=notes)


def _beginning(
    vocab: dict[str, int], merges: list[tuple[str, str]], size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a learnt BPE as it was when it had `size` entries: entries and merges are in the order of learning."""
    if len(vocab) <= size:
        return vocab, merges
    kept = {token: i for token, i in vocab.items() if i < size}
    newest = max(kept, key=kept.__getitem__)
    n_merges = next((n for n, (a, b) in enumerate(merges, 1) if a + b == newest), 0)
    return kept, merges[:n_merges]


class _Counted:
    """The pieces of the training text; counts the characters of what was read."""

    def __init__(self, training_texts: TrainingTexts) -> None:
        self._training_texts = training_texts
        self.n_characters = 0

    def __iter__(self) -> Iterator[str]:
        for piece in _training_pieces(self._training_texts):
            self.n_characters += len(piece)
            yield piece


@TOKENIZERS.register("byte")
def _byte(config: TokenizerConfig, training_texts: TrainingTexts) -> tokenizers.Tokenizer:
    """Return a tokenizer with one token per byte of UTF-8, its id the byte's value."""
    backend = byte_level_bpe(_with_special({letter: i for i, letter in enumerate(_byte_letters())}, END, PAD), [])
    # Without merges the split into words changes no id, but costs two thirds of the time.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return backend


@TOKENIZERS.register("char")
def _char(config: TokenizerConfig, training_texts: TrainingTexts) -> tokenizers.Tokenizer:
    """Return a tokenizer with one token per code point of the training text; others are <|unk|>, which decode drops."""
    characters: set[str] = set()
    for piece in _training_pieces(training_texts):
        characters.update(piece)
    if not characters:
        raise DataError("tokenizer=char: there is no training text to take characters from.")
    vocab = _with_special({character: i for i, character in enumerate(sorted(characters))}, END, PAD, UNKNOWN)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN))
    backend.decoder = decoders.Fuse()
    return backend


def _with_special(vocab: dict[str, int], *special: str) -> dict[str, int]:
    return vocab | {token: len(vocab) + i for i, token in enumerate(special)}


def _byte_letters() -> list[str]:
    """Return the letter of each byte in byte-level BPE, by the byte's value.

    Printable Latin-1 is itself, the other bytes are U+0100 and on, in order (Radford et al. 2019).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _training_pieces(training_texts: TrainingTexts) -> Iterator[str]:
    for text in training_texts():
        yield from pieces(_well_formed(text))


def _without_long_words(texts: Iterable[str]) -> Iterator[str]:
    for piece in texts:
        start = 0
        for match in _IN_LONG_WORD.finditer(piece):
            yield piece[start : match.end()]
            start = match.end()
        yield piece[start:]


def pieces(text: str, size: int = PIECE_CHARS) -> Iterator[str]:
    """Cut a text where byte-level BPE splits it anyway, into pieces of at least `size` characters."""
    start = 0
    while len(text) - start > size and (seam := _SEAM.search(text, start + size)):
        yield text[start : seam.end()]
        start = seam.end()
    yield text[start:]


def _well_formed(text: str) -> str:
    """Return the text with lone surrogates (broken JSON escapes, undecodable file names) replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
