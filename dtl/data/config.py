"""Settings of the data and of the tokenizer. Imports no torch, so that help and errors come at once.

Values are checked in `validate`, not in `__post_init__`: Hydra's ConfigStore builds default instances that still hold
`???`, and a check there would fail on import.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from omegaconf import MISSING

from dtl.base.checks import BATCHES, LONGEST, MANY, check_choices, check_fractions, check_range, check_unique
from dtl.base.safe_text import in_one_line
from dtl.errors import ConfigError, did_you_mean
from dtl.registry import METRICS, SOURCES, TASKS, TOKENIZERS

LAYOUTS = ("packed", "padded")
HUB_ROWS = ("text", "article", "wikitext")
SPLITS = ("train", "validation", "test")
LOSS_ON = ("all", "answer")
VERIFY = ("quick", "full")
# Names in metrics.jsonl and in reports of what every evaluation measures: no metric of one's own may take one's place.
MEASURED_OF_TEXT = ("loss", "targets", "perplexity", "bits_per_byte", "tokens_per_second")
QA_COLUMNS = ("question", "answer", "context", "topic", "id", "messages", "choices")  # names for data.qa.columns
PLACEHOLDERS = ("question", "context")
MAX_RATIO = 1000  # of a source's weight to the first one's: an epoch has so many times the first one's tokens
AUTOMATIC_FRACTION = 0.1  # of documents for validation, and for the test, where the fractions are null


@dataclass(frozen=True)
class TokenizerTraits:
    """Properties of a kind of tokenizer that the rest of DTL asks for. A kind of your own has the defaults, or
    registers others: `@TOKENIZERS.register("words", TokenizerTraits(learnt=True))`."""

    learnt: bool = False  # trained on the training text: cached with it
    by_vocab_size: bool = True  # it depends on tokenizer.vocab_size
    min_vocab_size: int = 0  # of that setting
    by_path: bool = True  # it may read tokenizer.path
    cuts_at_spaces: bool = False  # no token spans a space or line end and the word after it: long texts are cut there


TOKENIZERS.describe("gpt2", TokenizerTraits(by_vocab_size=False, cuts_at_spaces=True))
TOKENIZERS.describe("bpe", TokenizerTraits(learnt=True, min_vocab_size=259, by_path=False, cuts_at_spaces=True))
TOKENIZERS.describe("byte", TokenizerTraits(by_vocab_size=False, by_path=False, cuts_at_spaces=True))
TOKENIZERS.describe("char", TokenizerTraits(learnt=True, by_vocab_size=False, by_path=False, cuts_at_spaces=True))


@dataclass(frozen=True)
class SourceTraits:
    """Properties of a kind of source that the rest of DTL asks for. A kind of your own has the defaults, or
    registers others: `@SOURCES.register("poems", SourceTraits(questions="none"))`."""

    questions: Literal["none", "some", "all"] = "some"  # documents that may be questions with answers
    hub: Literal["never", "without path", "always"] = "never"  # when it reads a dataset of the Hugging Face hub
    needs_files: bool = False  # `path` must name a file or folder
    ships: bool = False  # without a path it reads the facts that ship with DTL
    own_settings: bool = True  # takes subset, column, rows, splits and revision even without the hub
    column: bool = False  # takes column at least, for its local files


SOURCES.describe("qa", SourceTraits("all", ships=True, own_settings=False))
SOURCES.describe("text", SourceTraits("none", needs_files=True, own_settings=False, column=True))
SOURCES.describe("wiki", SourceTraits("none", hub="without path", own_settings=False, column=True))
SOURCES.describe("hub", SourceTraits("none", hub="always"))


@dataclass
class TokenizerConfig:
    """The tokenizer that turns text into token ids."""

    kind: str = "gpt2"  # registered name: gpt2 | bpe | byte | char | your own
    vocab_size: int | None = None  # entries of a trained bpe; null = 8192 of much text, else 4096; other kinds: fixed
    path: str | None = None  # gpt2: a folder with vocab.json and merges.txt, or with tokenizer.json
    options: dict[str, Any] = field(default_factory=dict)  # settings of a user-defined tokenizer

    @property
    def traits(self) -> TokenizerTraits:
        return TOKENIZERS.traits(self.kind) or TokenizerTraits()

    def validate(self) -> None:
        self.options = TOKENIZERS.checked_options(self.kind, self.options)
        min_size = self.traits.min_vocab_size
        check_range(self, "tokenizer", ", or null", vocab_size=(1, LONGEST))
        if self.vocab_size is not None and self.traits.by_vocab_size and self.vocab_size < min_size:
            raise ConfigError(
                f"tokenizer.vocab_size={self.vocab_size}: tokenizer.kind={self.kind} needs at least {min_size} entries "
                "(bpe: 256 bytes and the special tokens)."
            )
        if self.path is not None and not self.traits.by_path:
            source = "trained on the run's own text" if self.traits.learnt else "always the same"
            raise ConfigError(
                f"tokenizer.path={self.path}: tokenizer.kind={self.kind} reads no file, it is {source}. A folder with "
                "a tokenizer is read with tokenizer=gpt2; the tokenizer of a run comes with its weights, by init=RUN."
            )


@dataclass
class SourceConfig:
    """One source of documents."""

    kind: str = MISSING  # registered name: qa | text | wiki | hub | your own
    path: str | None = None  # file or folder; hub: owner/name; None = what ships with DTL (qa) or the hub (wiki)
    weight: float = 1.0  # tokens drawn per epoch, relative to the first source's
    subset: str | None = None  # hub: the dataset's subset (configuration); None = its only one
    column: str | None = None  # hub and files: the column that holds the text; None = text
    rows: str | None = None  # hub: text | article (title, text) | wikitext (lines); None = by the dataset's name
    splits: dict[str, str] = field(default_factory=dict)  # hub: {train: its name there}; {} = by their names
    revision: str | None = None  # hub: commit, tag or branch; main = the newest; None = the commit of the first use
    options: dict[str, Any] = field(default_factory=dict)  # settings of a user-defined source

    @property
    def traits(self) -> SourceTraits:
        return SOURCES.traits(self.kind) or SourceTraits()

    @property
    def is_of_hub(self) -> bool:
        """True when it reads a dataset of the Hugging Face hub."""
        return self.traits.hub == "always" or (self.traits.hub == "without path" and self.path is None)

    @property
    def is_shipped(self) -> bool:
        """True when it reads the facts that ship with DTL."""
        return self.traits.ships and self.path is None

    def validate(self, name: str) -> None:
        """Raises ConfigError for invalid values; `name` is the source's."""
        key = f"data.sources.{name}"
        check_range(self, key, weight=(0, MANY))
        check_choices(self, key, rows=HUB_ROWS)
        for split in self.splits:
            if split not in SPLITS:
                raise ConfigError(f"{key}.splits.{split}: one of {', '.join(SPLITS)}.")
        if self.splits and "train" not in self.splits:
            raise ConfigError(f"{key}.splits={self.splits}: name the training split too, for example train: train.")
        traits = self.traits
        if self.column is not None and not self.column.strip():
            raise ConfigError(f"{key}.column={self.column!r}: an empty name. Give a column's name, or null for text.")
        if self.column and traits.questions == "all" and not traits.own_settings:
            raise ConfigError(
                f"{key}.column={self.column}: is for one column of text. The columns of questions and answers: "
                f"'data.qa.columns={{question: NAME, answer: {self.column}}}'."
            )
        own = traits.own_settings or self.is_of_hub
        for setting in () if own else ("subset", "column", "rows", "splits", "revision"):
            if getattr(self, setting) and not (setting == "column" and traits.column):
                raise ConfigError(
                    f"{key}.{setting}={getattr(self, setting)}: is for datasets of the Hugging Face hub. This source "
                    f"reads {self.path or 'what ships with DTL'} (kind={self.kind})."
                )


def with_line_ends(typed: str) -> str:
    """Return a text with its new lines: on a command line they are typed as a backslash and an n."""
    return typed.replace("\\n", "\n")


def _is_encoding(name: str) -> bool:
    try:
        "a".encode(name)
    except (LookupError, ValueError):  # unknown, or no encoding of text, as hex
        return False
    return True


def no_questions(sources: Mapping[str, SourceConfig]) -> bool:
    """Return True when all sources have plain text only."""
    return all(source.traits.questions == "none" for source in sources.values())


@dataclass
class SourceAlias:
    """Short form for one entry of `data.sources`."""

    path: str | None = None  # file or folder of this source
    weight: float | None = None  # tokens per epoch relative to the first source's; None = 1 when a path is given


@dataclass
class QuestionsConfig(SourceAlias):
    """Short form for the source of questions, and the prompt of the questions of every source."""

    columns: dict[str, str] = field(default_factory=dict)  # your names: {question: q, answer: a}
    prompt: str | None = None  # text with {question} and {context}; \n is a new line; null = init's, else DTL's

    @property
    def template(self) -> str | None:
        """The prompt with its new lines: on a command line they are typed as a backslash and an n."""
        return None if self.prompt is None else with_line_ends(self.prompt)


def prompt_problem(template: str) -> str | None:
    """Return what is wrong with the template of a prompt, as the end of an error message; None for a valid one."""
    names = re.findall(r"\{\s*(\w+)\s*\}", template)
    unknown = next((name for name in names if name not in PLACEHOLDERS), None)
    if unknown is not None:
        return (
            f"{{{unknown}}} is no placeholder. Known: {{question}}, {{context}}."
            f"{did_you_mean(unknown, PLACEHOLDERS)} Braces around anything but a word are text."
        )
    if re.search(r"\{\s+\w+\s*\}|\{\w+\s+\}|\{\{\w+\}\}", template):
        return "a placeholder is written {question}: single braces, no spaces. The prompt is not a Jinja template."
    if names.count("question") != 1 or names.count("context") > 1:
        return "must contain {question} once, and {context} at most once."
    if "${" in template:
        return "contains '${', which begins an interpolation in a config file. Leave out the $."
    lines = template.split("\n")
    always = [line for line in lines if "{context}" not in line]
    if not any("{question}" in line for line in always):
        return "{context} needs a line of its own: that line is left out for a question without a context."
    if any(line[-1:].isspace() for line in (lines[-1], always[-1])):
        return "must not end in a space: the answer begins with one."
    try:
        template.encode()
    except UnicodeEncodeError:
        return "contains a character that UTF-8 cannot encode."
    return None


@dataclass
class RecommendedConfig:
    """Settings that suit this data, used where the setting of the same name is null."""

    micro_batch_size: int = 8  # sequences in one forward pass
    grad_accum_steps: int = 1  # forward passes in one optimizer step; at equal tokens more learn less (defaults.md)
    max_epochs: int = 20  # epochs of the first source
    min_steps: int = 0  # optimizer steps that these epochs have at least, of however little data
    lower_case_questions: bool = False  # for a model that has not learnt questions before (init)


@dataclass(frozen=True)
class HeldOut:
    """Fractions of documents for validation and for the test, where a source has no validation split of its own."""

    validation: float
    test: float
    automatic: bool = False  # questions of which too few would be held out, or whose answers are not taught, are not


@dataclass
class DataConfig:
    """The sources of text, and the way their text becomes sequences of tokens."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)  # the general form; order matters
    path: str | None = None  # file or folder for a group of one source
    qa: QuestionsConfig = field(default_factory=QuestionsConfig)  # data.qa.path=my_pairs.jsonl
    wiki: SourceAlias = field(default_factory=SourceAlias)  # data.wiki.path=..., data.wiki.weight=0.5
    wiki_dataset: str = "wikimedia/wikipedia"  # the hub's dataset for kind=wiki without a path
    wiki_subset: str = "20231101.en"  # dump date and language
    seq_len: int | None = None  # tokens in a sequence; None = model.max_seq_len
    layout: str = "packed"  # packed (no padding between documents) | padded (one document per sequence)
    document_mask: bool = False  # packed: attention stays inside each document and positions restart
    lower_case_questions: bool | None = None  # in training, evaluation and chat; null = init's, else as recommended
    loss_on: str = "all"  # all tokens | answer (only the answer of a question and answer pair)
    max_samples: int | None = None  # at most so many training sequences per source; None = all
    validation_fraction: float | None = 0.01  # documents held out where the source has no validation split; null = as
    # many as help: a tenth, or nothing where that would take away what is to be learnt (dtl/data/split.py)
    test_fraction: float | None = 0.0  # the same for a test split, on which nothing is chosen; 0 = none
    allow_truncated: bool = False  # true: keep what can be read of truncated or damaged files
    encoding: str | None = None  # of files of text: cp1252 | utf-16 | shift_jis ...; null = UTF-8, or by their mark
    cache_dir: str | None = None  # its dtl-cache/ holds prepared text and tokens; null = the platform's cache folder
    verify: str = "quick"  # quick (files of unchanged size and time count as unchanged) | full (SHA-256 of all)
    separator: str | None = None  # between documents of one text; null = lines of <|endoftext|>; '' = nothing
    remove: list[str] = field(default_factory=list)  # cut from every text, not from questions: markers of chats
    commits: dict[str, str] = field(default_factory=dict)  # hub: {source: dataset@commit}; a run records it by itself
    tasks: list[str] = field(
        default_factory=list
    )  # additional tasks to score; exact_match, f1 and lookup are always measured
    metrics: list[str] = field(default_factory=list)  # additional means over the held-out tokens: accuracy | your own
    recommended: RecommendedConfig = field(default_factory=RecommendedConfig)

    def resolved_sources(self) -> dict[str, SourceConfig]:
        """`sources` with `path`, `qa` and `wiki` folded in; sources of weight 0 are left out."""
        resolved = {name: replace(source) for name, source in self.sources.items()}
        if self.path is not None:
            next(iter(resolved.values())).path = self.path
        for name, alias in (("qa", self.qa), ("wiki", self.wiki)):
            if alias.path is None and alias.weight is None:
                continue
            source = resolved.setdefault(name, SourceConfig(kind=name))
            source.path = alias.path if alias.path is not None else source.path
            source.weight = alias.weight if alias.weight is not None else source.weight
        return {name: source for name, source in resolved.items() if source.weight != 0}

    @property
    def held_out(self) -> HeldOut:
        """The fractions of documents to hold out."""
        validation = AUTOMATIC_FRACTION if self.validation_fraction is None else self.validation_fraction
        test = min(AUTOMATIC_FRACTION, validation) if self.test_fraction is None else self.test_fraction
        return HeldOut(validation, test, automatic=self.validation_fraction is None)

    def validate(self) -> None:
        """Raises ConfigError for invalid or contradictory settings. Reads no file."""
        if not self.sources:
            raise ConfigError("data.sources={}: name at least one source, for example data=qa or data=text.")
        if self.path is not None and len(self.sources) != 1:
            raise ConfigError(
                f"data.path={self.path}: this data has several sources ({', '.join(self.sources)}). "
                "Give data.sources.<name>.path instead."
            )
        sources = self.resolved_sources()
        for name, source in sources.items():
            options = SOURCES.checked_options(source.kind, source.options, f"data.sources.{name}.kind")
            if name in self.sources:  # the resolved ones are copies
                self.sources[name].options = options
            source.validate(name)
            if source.traits.needs_files and source.path is None:
                raise ConfigError(
                    f"data.path=null: data={source.kind} needs a file or folder, for example data.path=my_texts/ "
                    "(.txt, .jsonl or .parquet)."
                )
        if not sources:
            raise ConfigError("data.sources: every source has weight 0. Give one a weight above 0.")
        first, *others = sources.items()
        for name, source in others:
            if source.weight / first[1].weight > MAX_RATIO:
                raise ConfigError(
                    f"data.sources.{name}.weight={source.weight}: at most {MAX_RATIO:,} times that of the first source "
                    f"({first[0]}, {first[1].weight}), whose tokens make an epoch."
                )
        for name, commit in self.commits.items():
            if not re.fullmatch(r"[^@]+@[0-9a-f]{40}", commit):
                raise ConfigError(
                    f"data.commits.{name}={commit}: must be a dataset of the hub and a commit's 40 digits."
                )
        self._validate_text_settings(sources)
        if self.qa.columns:
            self._validate_columns(sources)
        for task in self.tasks:
            TASKS.check(task)
        for metric in self.metrics:
            METRICS.check(metric)
            if metric in MEASURED_OF_TEXT:
                raise ConfigError(f"data.metrics={metric}: is always measured, under this name. Rename yours.")
        check_unique(self.metrics, "data.metrics")
        if no_questions(sources):
            mix = "and this data has none. Leave it out, or mix questions in: data.qa.weight=0.5."
            if self.qa.prompt is not None:
                raise ConfigError(f"data.qa.prompt={in_one_line(self.qa.prompt)}: is for questions, {mix}")
            if self.tasks:
                raise ConfigError(f"data.tasks=[{','.join(self.tasks)}]: tasks ask questions, {mix}")
        template = self.qa.template
        if template is not None and (problem := prompt_problem(template)):
            raise ConfigError(f"data.qa.prompt={in_one_line(template)}: {problem}")
        self._validate_layout()

    def _validate_text_settings(self, sources: Mapping[str, SourceConfig]) -> None:
        if self.separator and not any(source.traits.needs_files for source in sources.values()):
            raise ConfigError(
                f"data.separator={in_one_line(self.separator)}: separates documents in files of data=text; this data "
                "has none. Leave it out."
            )
        if self.encoding is not None and not _is_encoding(self.encoding):
            raise ConfigError(
                f"data.encoding={in_one_line(self.encoding)}: not an encoding of text. Python's names are known, such "
                "as utf-8, cp1252, latin-1, utf-16, cp1251, shift_jis, gb18030."
            )
        if not all(self.remove):
            raise ConfigError(f"data.remove={self.remove}: an empty text cannot be cut. Leave it out.")

    def _validate_columns(self, sources: Mapping[str, SourceConfig]) -> None:
        columns = self.qa.columns
        shown = ", ".join(f"{name}: {column}" for name, column in columns.items())
        for name, column in columns.items():
            if name not in QA_COLUMNS or not column.strip():
                raise ConfigError(
                    f"data.qa.columns={{{shown}}}: gives the names of your columns for {', '.join(QA_COLUMNS)}: "
                    f"{{question: q, answer: a}}.{did_you_mean(name, QA_COLUMNS)}"
                )
        if "messages" not in columns and {*columns} != {"choices"} and not {"question", "answer"} <= {*columns}:
            raise ConfigError(
                f"data.qa.columns={{{shown}}}: name both question and answer, such as {{question: q, answer: a}}, or "
                "messages, the column of chats."
            )
        if not any(source.traits.ships and source.path is not None for source in sources.values()):
            raise ConfigError(f"data.qa.columns={{{shown}}}: is for questions of your own: data.qa.path=FILE.")

    def _validate_layout(self) -> None:
        check_choices(self, "data", layout=LAYOUTS, loss_on=LOSS_ON, verify=VERIFY)
        if self.cache_dir is not None and not self.cache_dir.strip():
            raise ConfigError("data.cache_dir='': is no folder. Give one, or null for the platform's cache folder.")
        check_range(self, "data", " tokens", seq_len=(2, LONGEST))
        check_range(self, "data", ", or null for all", max_samples=(1, MANY))
        check_fractions(self, "data", "validation_fraction", interval="[0, 1)", rest=", or null; 0 holds nothing out")
        validation, test = self.held_out.validation, self.held_out.test
        if test and not validation:
            raise ConfigError(
                f"data.test_fraction={test}: with data.validation_fraction=0 nothing is held out. Set both to 0."
            )
        if not 0 <= test < 1 - validation:
            raise ConfigError(
                f"data.test_fraction={test}: a fraction in [0, 1); with data.validation_fraction={validation} it must "
                "leave some text for training."
            )
        lengths = {"max_epochs": (1, MANY), "min_steps": (0, MANY)}
        check_range(self.recommended, "data.recommended", **BATCHES, **lengths)


# Keys of where data is: of a group with one source, of the short forms, of a source by name.
PLACE_OF_DATA = re.compile(r"data\.(?:(?:qa|wiki|sources\.[\w-]+)\.)?path")


def replaces(new: str, old: str) -> bool:
    """True where the value of the key `old` is void once `new` is given: data=text for data.qa.path."""
    if PLACE_OF_DATA.fullmatch(new) and PLACE_OF_DATA.fullmatch(old):  # data.qa.path is data.sources.qa.path
        return new.split(".")[-2] == old.split(".")[-2] or "data.path" in (new, old)
    return old == new or old.startswith(f"{new}.")
