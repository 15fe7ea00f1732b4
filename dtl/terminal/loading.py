"""A checkpoint made ready to write. Imports torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtl.base.display import shown
from dtl.base.json_files import read_json_or_empty
from dtl.base.runtime import choose_device
from dtl.base.safe_text import in_one_line
from dtl.base.units import in_units
from dtl.checkpoints.listing import is_checkpoint
from dtl.checkpoints.load import load_model, load_tokenizer
from dtl.data.documents import prompt
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.evaluation.config import FIGURES
from dtl.generation.config import SamplingConfig
from dtl.generation.conversation import Continuation, continue_text
from dtl.generation.engine import lay_out_for_decoding
from dtl.model.transformer import TransformerLM
from dtl.registry import SOURCES
from dtl.run_dir.state import read_config
from dtl.terminal.config import TalkConfig

# --- a model to talk to -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint's small files say of it; None where they do not."""

    folder: Path
    name: str
    step: int | None = None
    best_loss: float | None = None  # on the validation split, of the run so far
    least_logprob: float | None = None  # mean of an answer below which, by dtl.evaluate, the model rather does not know
    lower_case_questions: bool = False  # how it was asked in training
    is_of_plain_text: bool = False  # nothing that it learnt from were questions and answers


class LoadedModel:
    """A model that writes."""

    def __init__(self, facts: CheckpointFacts, model: TransformerLM, tokenizer: Tokenizer) -> None:
        self.facts = facts
        self.n_parameters = model.n_parameters()
        self.context = model.config.max_seq_len  # tokens that it sees at once
        self.device = next(model.parameters()).device.type
        # No text that is longer fits the context. Byte-level tokenizers write a letter for each byte of a token.
        longest = max((len(token) for token in tokenizer.backend.get_vocab()), default=1)
        self.most_characters = self.context * longest
        self._model = model
        self._tokenizer = tokenizer

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def continue_text(self, text: str, sampling: SamplingConfig, seed: int) -> Continuation:
        """The text written on, while it is iterated; the same seed gives the same."""
        return continue_text(self._model, self._tokenizer, text, sampling, seed)

    def prompt(self, question: str, context: str = "") -> str:
        """The text after which it writes its answer."""
        return prompt(question, context, lower_case=self.facts.lower_case_questions)

    def lines(self) -> Iterator[str]:
        """Its name and size, for people."""
        facts = self.facts
        step = "" if facts.step is None else f", step {facts.step:,}"
        loss = "" if facts.best_loss is None else f", best validation loss {facts.best_loss:.4f}"
        yield f"{facts.name}{step}{loss}"
        yield (
            f"{in_units(self.n_parameters)} parameters, context {self.context:,} tokens, {self.device}, "
            f"{in_one_line(shown(facts.folder))}"
        )


# --- loading it ---------------------------------------------------------------------------------------------------


def load(checkpoint: Path, config: TalkConfig) -> LoadedModel:
    """The model in this folder, on the device that `config` asks for.

    Raises ConfigError for a device that is not here, CheckpointError for files that are damaged.
    """
    device, _ = choose_device(config.device)
    tokenizer = load_tokenizer(checkpoint)
    model = load_model(checkpoint, device)
    lay_out_for_decoding(model)
    return LoadedModel(read_facts(checkpoint), model, tokenizer)


def read_facts(folder: Path) -> CheckpointFacts:
    """See `CheckpointFacts`. Any Hugging Face folder has a name, and nothing else to say."""
    if not is_checkpoint(folder):
        return CheckpointFacts(folder, in_one_line(folder.resolve().name, 80))
    config, state = read_config(folder), read_json_or_empty(folder / "state.json")
    step, train = state.get("step"), state.get("train")
    loss = train.get("best_loss") if isinstance(train, dict) else None
    return CheckpointFacts(
        folder,
        name=in_one_line(str(config.get("name") or folder.resolve().parent.parent.name), 80),
        step=step if isinstance(step, int) else None,
        best_loss=float(loss) if isinstance(loss, int | float) else None,
        least_logprob=_least_logprob(folder),
        lower_case_questions=_lower_case_questions(config),
        is_of_plain_text=_is_of_plain_text(config),
    )


def _lower_case_questions(config: dict[str, Any]) -> bool:
    """How the questions were put in training; a run of before there was the setting took them as they were typed."""
    data = config.get("data")
    return isinstance(data, dict) and data.get("lower_case_questions") is True


def _least_logprob(folder: Path) -> float | None:
    """The threshold that dtl.evaluate chose for this very checkpoint, where it has been asked."""
    evaluation = read_json_or_empty(folder.parent.parent / FIGURES)
    detection = evaluation.get("detection")
    threshold = detection.get("threshold") if isinstance(detection, dict) else None
    is_of_this = Path(str(evaluation.get("checkpoint"))).name == folder.name
    return float(threshold) if is_of_this and isinstance(threshold, int | float) else None


def _is_of_plain_text(config: dict[str, Any]) -> bool:
    data = config.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(sources, dict):
        return False
    beside = data.get("qa")  # data.qa.path or data.qa.weight adds questions to any other source
    if isinstance(beside, dict) and any(value is not None for value in beside.values()):
        return False
    kinds = [source.get("kind") if isinstance(source, dict) else None for source in sources.values()]
    traits = [SOURCES.traits(kind) if isinstance(kind, str) else None for kind in kinds]
    return bool(traits) and all(of_kind is not None and of_kind.questions == "none" for of_kind in traits)
