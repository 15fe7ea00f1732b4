"""Reference curves: the loss that a recipe or a model reached after so many tokens, on a text with a name.

A line of references.jsonl is a curve, recorded from finished runs by `python -m dtl.report runs=RUN reference=NAME`.
A plan and a report hold a run against the curve of its recipe, else of its model with the same kind of data, and only
where both models are of about the same size. Imports no torch.
"""

import math
import textwrap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dtl.base.display import command_line
from dtl.base.json_files import (
    as_list,
    as_number,
    as_object,
    as_whole,
    json_object,
    read_bounded,
    read_json_or_empty,
)
from dtl.base.safe_text import in_one_line
from dtl.base.units import in_units, number_of
from dtl.checkpoints.listing import step_folders
from dtl.errors import ConfigError

CURVES = Path(__file__).with_name("references.jsonl")
MAX_BYTES = 2**20
MAX_POINTS = 40  # of a curve
MAX_TEXT = 300  # characters
SIMILAR = 1.5  # largest ratio of parameters without embeddings: beyond, the size alone makes another loss
SHOWN_FRACTIONS = {"10 %": 0.1, "100 %": 1.0}  # of a run's tokens, at which a plan shows the loss
SHIPPED = ("the questions that ship with DTL", "part of DTL, MIT")


@dataclass(frozen=True)
class Point:
    """A measurement on the validation data."""

    tokens: float  # of training, padding included, as in metrics.jsonl; whole in the file
    loss: float  # nats per target token
    bits: float | None = None  # per byte of the text; None: not measured


@dataclass(frozen=True)
class Subject:
    """What decides whether a run and a curve belong together."""

    recipe: str | None  # experiment=
    model: str | None  # model=
    kind: str  # as `data_kind` has it
    n_parameters: int | None  # without embeddings; None: not recorded
    tokenizer: str = ""  # its kind
    vocabulary: int | None = None

    @property
    def name(self) -> str:
        """Name of the curve that belongs to it: of its recipe, without one of its model."""
        return self.recipe or self.model or ""


@dataclass(frozen=True)
class Reference:
    """A curve, and the runs that it is from."""

    name: str  # of a recipe, or of a model preset
    command: list[str]  # words of dtl.train, without the place of the text
    text: str  # name of the text
    licence: str  # its source and licence
    kind: str
    tokenizer: str
    vocabulary: int
    n_parameters: int  # all
    n_without_embeddings: int
    n_layers: int
    dim: int
    seq_len: int
    tokens_per_step: int
    device: str
    date: str
    seeds: list[int]
    points: list[Point]  # means over the seeds, tokens rising

    @property
    def key(self) -> tuple[str, str, int]:
        """A curve with an equal key is recorded in its place."""
        return self.name, self.kind, self.n_without_embeddings

    def at(self, tokens: float) -> Point:
        """Return the point at so many tokens, interpolated between the logarithms of tokens.

        Before the first measurement and after the last one it is that one, with its own number of tokens.
        """
        above = bisect_right([point.tokens for point in self.points], tokens)
        low = self.points[max(0, above - 1)]
        if above == 0 or above == len(self.points) or low.tokens == tokens:
            return low
        high = self.points[above]
        part = math.log(tokens / low.tokens) / math.log(high.tokens / low.tokens)
        bits = None if low.bits is None or high.bits is None else low.bits + part * (high.bits - low.bits)
        return Point(tokens, low.loss + part * (high.loss - low.loss), bits)

    def has_vocabulary_of(self, run: Subject) -> bool:
        """Return True where losses per token are of equal tokens, as far as tokenizer and vocabulary show."""
        return (run.tokenizer, run.vocabulary) == (self.tokenizer, self.vocabulary)

    @property
    def origin(self) -> str:
        """Text, licence, vocabulary and seeds in words."""
        return f"on {self.text} ({self.licence}), vocabulary {self.vocabulary:,}, {number_of('seeds', len(self.seeds))}"

    def to_json(self) -> dict[str, Any]:
        """Return the values of its line."""
        return {**asdict(self), "points": [[round(point.tokens), point.loss, point.bits] for point in self.points]}


# --- the file -----------------------------------------------------------------------------------------------------


def read_references(path: Path) -> list[Reference]:
    """Read the curves of a file, their texts safe to print. Raises ConfigError for one that is damaged."""
    try:
        lines = read_bounded(path, MAX_BYTES).splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: the reference curves cannot be read ({error.strerror}).") from error
    references = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            references.append(parse_reference(json_object(line, strict=True)))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: line {number} is no reference curve ({in_one_line(str(error))}). Remove the line, or restore "
                "the file; DTL's own comes back by git in a checkout, elsewhere by installing DTL again."
            ) from error
    return references


def check_curves(curves: str | None) -> None:
    """Raise ConfigError for a file of curves that does not exist."""
    if curves is None or curves_file(curves).is_file():
        return
    if curves_file(curves).is_dir():
        raise ConfigError(f"curves={curves}: is a folder. Give a file of reference curves, such as curves.jsonl in it.")
    raise ConfigError(
        f"curves={curves}: no such file. `python -m dtl.report runs=RUN reference=NAME text=NAME licence=LICENCE "
        f"curves={curves}` makes it."
    )


def curves_file(curves: str | None) -> Path:
    """Return the file of `curves=`, None = DTL's own. Raises ConfigError for the home of a stranger to this machine."""
    try:
        return CURVES if curves is None else Path(curves).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"curves={curves}: there is no such home directory. Give the whole path.") from error


def parse_reference(values: dict[str, Any]) -> Reference:
    """Return the curve of a line, its texts safe to print. Raises ValueError, naming the key, for any other values."""
    texts = {key: _of_kind(key, values, str) for key in ("name", "text", "licence", "kind", "tokenizer")}
    texts |= {key: _of_kind(key, values, str) for key in ("device", "date")}
    sizes = ("vocabulary", "n_parameters", "n_without_embeddings", "n_layers", "dim", "seq_len", "tokens_per_step")
    numbers = {key: _of_kind(key, values, int) for key in sizes}
    if wrong := [key for key, number in numbers.items() if as_whole(number) is None or number < 1]:
        raise ValueError(f"{wrong[0]} is not a positive number")
    points = [_point(as_list(point)) for point in _of_kind("points", values, list)]
    if not points or any(low.tokens >= high.tokens for low, high in pairwise(points)):
        raise ValueError("its points are none, or their tokens do not rise")
    return Reference(
        **{key: in_one_line(text, MAX_TEXT) for key, text in texts.items()},
        **numbers,
        command=[in_one_line(str(word), MAX_TEXT) for word in _of_kind("command", values, list)],
        seeds=[seed for seed in _of_kind("seeds", values, list) if as_whole(seed) is not None],
        points=points,
    )


def _of_kind(key: str, values: dict[str, Any], kind: type) -> Any:
    value = values.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) or value == "":
        raise ValueError(f"{key} is missing or of another type")
    return value


def _point(values: list[Any]) -> Point:
    tokens, loss, bits = [as_number(value) for value in values] if len(values) == 3 else (None, None, None)
    if tokens is None or tokens <= 0 or loss is None:
        raise ValueError("a point is not [tokens, loss, bits per byte or null]")
    return Point(tokens, loss, bits)


# --- runs ---------------------------------------------------------------------------------------------------------


def match(references: Sequence[Reference], run: Subject) -> Reference | None:
    """Return the curve to hold a run against, by its recipe, else by its model; None if there is none."""
    for name in (run.recipe, run.model):
        found = [each for each in references if each.name == name and each.kind == run.kind and _is_similar(each, run)]
        if found:
            return min(found, key=lambda each: _ratio(each, run))
    return None


def _is_similar(reference: Reference, run: Subject) -> bool:
    return bool(run.n_parameters) and _ratio(reference, run) <= SIMILAR


def _ratio(reference: Reference, run: Subject) -> float:
    larger, smaller = sorted((reference.n_without_embeddings, run.n_parameters or 0), reverse=True)
    return larger / max(1, smaller)


def data_kind(data: object) -> str:
    """Return the kind of data of a run, of the section `data` of its config; empty for none.

    Losses of text and of questions are never compared, nor are those of answers with those of all tokens.
    """
    section = as_object(data)
    sources = {name: as_object(source) for name, source in as_object(section.get("sources")).items()}
    for name in ("qa", "wiki"):  # short forms, as `DataConfig.resolved_sources` folds them in
        short = {key: value for key, value in as_object(section.get(name)).items() if value is not None}
        if {"path", "weight"} & {*short}:
            sources[name] = {"kind": name, **sources.get(name, {}), **short}
    kinds = {str(source.get("kind")) for source in sources.values() if source.get("weight") != 0}
    names = ["questions"] * ("qa" in kinds) + ["text"] * bool(kinds - {"qa"})
    loss = " with the loss on answers" if section.get("loss_on") == "answer" else ""
    return " and ".join(names) + (loss if names else "")


def vocabulary_of_run(folder: Path) -> int | None:
    """Return the entries of a run's vocabulary, of any of its checkpoints; None where it has none."""
    sizes = (
        as_whole(read_json_or_empty(checkpoint / "config.json").get("vocab_size"))
        for checkpoint in (folder / "checkpoints" / "best", *step_folders(folder))
    )
    return next((size for size in sizes if size), None)


# --- words --------------------------------------------------------------------------------------------------------


def expected_lines(
    references: Sequence[Reference], run: Subject, tokens: float | None, curves: Sequence[str] = ()
) -> Iterator[str]:
    """Yield lines for a plan, of 80 columns but for a command: the loss of the reference after the run's tokens, None
    if not known. `curves` is the word that names the file of the references, where it is not DTL's own."""
    reference = match(references, run)
    if reference is None:
        what = " for such data and size" if run.name in {each.name for each in references} else ""
        yield f"Is its loss normal? {run.name}: no curve yet{what}."
        yield "  Record one:"
        words = ("runs=RUN", f"reference={run.name}", "text=NAME", "licence=LICENCE", *curves)
        yield f"  {command_line('report', *words)}"
        return
    yield f"Is its loss normal? The reference {reference.name} had on its validation data:"
    end = tokens or reference.points[-1].tokens
    for name, part in SHOWN_FRACTIONS.items():
        point = reference.at(part * end)
        bits = "" if point.bits is None else f", {point.bits:.3f} bits per byte"
        place = _place(point, part * end) or name
        yield f"  a loss of {point.loss:.3f}{bits}, after {in_units(point.tokens)} tokens ({place})"
    own = f", here {run.vocabulary:,}" if run.vocabulary and not reference.has_vocabulary_of(run) else ""
    said = f"{reference.origin}{own}. Another text has another loss; over vocabularies compare bits per byte."
    indent = "  "
    yield from textwrap.wrap(said, 80, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def _place(point: Point, asked: float) -> str:
    """Say which point of a curve was read where it has none at the tokens that were asked for; empty where it has."""
    if math.isclose(point.tokens, asked, rel_tol=0.01):  # the last step of an epoch has fewer tokens
        return ""
    return "its first" if point.tokens > asked else "its last"


def compared(reference: Reference, run: Subject, label: str, last: Point) -> str:
    """Return a sentence: the last validation loss of a run beside its reference at equal tokens."""
    point = reference.at(last.tokens)
    unit = "nats per token" if reference.has_vocabulary_of(run) else "bits per byte"
    own, other = (last.loss, point.loss) if unit == "nats per token" else (last.bits, point.bits)
    if own is None or other is None:
        why = "the run's vocabulary is not known" if run.vocabulary is None else "its vocabulary is another one"
        return (
            f"Reference {reference.name}, {reference.origin}: {why}, and without bits per byte the loss of {label} "
            "cannot be held against it."
        )
    difference = round(own - other, 3)
    beside = f"{abs(difference):.3f} {'lower' if difference < 0 else 'higher'}" if difference else "as much"
    place = _place(point, last.tokens)
    read = f" at {place} {in_units(point.tokens)} tokens" if place else ""
    return (
        f"Is this loss normal? {label} has {own:.3f} {unit} on its validation data after {in_units(last.tokens)} "
        f"tokens, {beside}{' than' if difference else ' as'} the reference {reference.name}{read} ({other:.3f}), "
        f"{reference.origin}. Another text has another loss."
    )
