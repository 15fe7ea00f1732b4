"""The command `python -m dtl.prepare`: prepares text and tokens before a run and reports on them."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dtl.base.checks import MANY, check_range, check_seed
from dtl.base.display import command_line, exit_when_output_closes
from dtl.base.files import unfinished
from dtl.base.units import number_of
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command, load_config
from dtl.commandline.compose import COMMAND as RUN
from dtl.commandline.compose import typed_run
from dtl.commandline.config_files import check_given
from dtl.commandline.overrides import as_shown, override_key, overrides_of, to_hydra_syntax
from dtl.config import typed_as
from dtl.data.config import DataConfig, TokenizerConfig
from dtl.errors import ConfigError
from dtl.model.config import ModelConfig
from dtl.terminal.streams import open_screen

if TYPE_CHECKING:
    from dtl.data.encode import EncodedSource
    from dtl.data.prepare import PreparedData


@dataclass
class PreparedDataConfig(DataConfig):
    """The data of a run, and the file for its cleaned text."""

    export_text: str | None = None  # new file for the cleaned text: .jsonl has one document per line, else plain text


@dataclass
class PrepareConfig:
    """Settings of `python -m dtl.prepare`."""

    data: PreparedDataConfig = field(default_factory=PreparedDataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    preview: int = 1  # training texts of each source to show as the model sees them, «with a loss»
    seed: int = 1337  # as in dtl.train: draws the sample for data.max_samples
    plugins: list[str] = field(default_factory=list)  # modules that register sources and tokenizers of your own
    debug: bool = False  # show tracebacks

    @property
    def seq_len(self) -> int:
        """Tokens in a sequence; the default context where the data sets none."""
        return self.data.seq_len if self.data.seq_len is not None else ModelConfig().max_seq_len

    def validate(self) -> None:
        """Raise ConfigError, naming key, value, rule and remedy, for invalid values."""
        self.data.validate()
        self.tokenizer.validate()
        check_seed(self.seed)
        check_range(self, "", preview=(0, MANY))
        if self.data.export_text is not None:
            file = Path(self.data.export_text).expanduser()
            if file.exists():
                raise ConfigError(f"data.export_text={file}: already exists. Give a new name, or delete it.")
            if not file.parent.is_dir():
                raise ConfigError(f"data.export_text={file}: there is no folder {file.parent}. Create it first.")


COMMAND = Command(
    "prepare",
    PrepareConfig,
    usage="""\
python -m dtl.prepare data=... [tokenizer=...] [key=value ...]
Reads, cleans, splits and tokenises the text of a run, and reports on it. The
result is cached: dtl.train with the same data and tokenizer finds it.

  python -m dtl.prepare data=text data.path=books/ tokenizer=bpe
  python -m dtl.prepare data=text data.path=books/ data.export_text=books.jsonl
  python -m dtl.prepare data=qa data.qa.path=pairs.csv preview=3
  python -m dtl.prepare data=wiki data.path=FOLDER data.max_samples=null
  python -m dtl.prepare experiment=my_pairs data.qa.path=my.csv   for a recipe
""",
    free_text=("data.qa.prompt", "data.separator"),
)


def main() -> None:
    """Entry point of `python -m dtl.prepare` and of the console script dtl-prepare."""
    run_command(job, COMMAND, prepare_arguments)


OF_DATA = ("data", "tokenizer", "seed", "plugins")  # sections of a run's config that this command has, too


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Return the words with the data, the tokenizer and the seed of a recipe in the place of `experiment=...`, and of
    the other words of its run, which shape no data."""
    keys = [override_key(word) for word in arguments]
    if "experiment" not in keys:
        return arguments
    # Only this command has preview and export_text; init and resume bring a tokenizer that no recipe has.
    own = [
        word
        for key, word in zip(keys, arguments, strict=True)
        if word.startswith("-") or key in ("init", "resume") or (COMMAND.key(key) and not RUN.key(key))
    ]
    words = [to_hydra_syntax(word, RUN) for word in arguments if word not in own]
    folders = [word for word in own if word.startswith("--config-dir=")]
    check_given(words, RUN, folders, lambda _, *given: command_line("prepare", *given, *map(as_shown, own)))
    config = typed_run(load_config(RUN, words, *(folder.partition("=")[2] for folder in folders)))
    config = replace(config, data=replace(config.data, seq_len=config.seq_len))
    of_data = (word for word in overrides_of(config) if override_key(word).partition(".")[0] in OF_DATA)
    return [*own, *(to_hydra_syntax(word, COMMAND) for word in of_data)]


def job(composed: DictConfig) -> None:
    """Prepare, report, export. Everything that can be checked without torch is checked before it is imported."""
    config = typed_as(PrepareConfig, composed)
    screen = open_screen(all_in_one=False)
    screen.note("Opening the data ...")  # the first sign of life
    from dtl.data.collect import open_sources  # imports numpy, which --help does not need

    data, plans = open_sources(config.data, config.seed)  # rejects missing data within a second
    with exit_when_output_closes():
        from dtl.data.cache import Cache, cache_folder
        from dtl.data.encode import encode_sources
        from dtl.data.prepare import pack_sequences
        from dtl.data.text_report import report_lines

        cache = Cache(cache_folder(config.data.cache_dir), config.data.verify == "full", screen.log)

        def made() -> "tuple[dict[str, EncodedSource], PreparedData]":
            settings = (config.seq_len, config.seed, cache)
            tokenizer, sources = encode_sources(data, plans, config.tokenizer, *settings, screen.log)
            return sources, pack_sequences(data, plans, tokenizer, sources, *settings)

        sources, prepared = cache.rebuilding(made)
        for line in report_lines(prepared, sources, config.preview):
            screen.line(line)
        kept = [name for name, source in sources.items() if source.key is not None]
        screen.line(f"In the cache {cache.folder}: {', '.join(kept) or 'nothing, it is quick to prepare again'}.")
        if config.data.export_text is not None:
            file = Path(config.data.export_text).expanduser()
            screen.line(f"{file}: {number_of('documents', _export(file, sources))}.")


def _export(file: Path, sources: "dict[str, EncodedSource]") -> int:
    """Write every document and return their number; the file is complete or absent. Raises OSError."""
    temporary = unfinished(file)
    n_documents = 0
    try:
        with temporary.open("w", encoding="utf-8", errors="replace", newline="\n") as stream:
            for text in _exported(sources, as_json=file.suffix.lower() == ".jsonl"):
                stream.write(text)
                n_documents += 1
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return n_documents


def _exported(sources: "dict[str, EncodedSource]", as_json: bool) -> Iterator[str]:
    for name, source in sources.items():
        for split, texts in source.texts.splits.items():
            for document in texts:
                if as_json:
                    fields = {"text": document.text, "split": split, "source": name}
                    yield json.dumps(fields, ensure_ascii=False) + "\n"
                else:  # cleaned text has at most one empty line, so two of them separate documents
                    yield document.text.strip("\n") + "\n\n\n"


if __name__ == "__main__":
    main()
