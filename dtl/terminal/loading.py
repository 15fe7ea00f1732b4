"""A checkpoint loaded for chat and generate, with the facts that its small files record. Imports torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dtl.base.display import shown
from dtl.base.json_files import as_list, as_number, as_object, as_whole, read_json_or_empty, read_record_or_empty
from dtl.base.runtime import choose_device
from dtl.base.safe_text import in_one_line
from dtl.base.units import in_units, number_of
from dtl.checkpoints.listing import is_checkpoint
from dtl.checkpoints.load import load_model, load_tokenizer
from dtl.data.documents import QuestionAnswer
from dtl.data.tokenizers.prompt import (
    Prompt,
    has_learnt_plain_text,
    has_learnt_questions_alone,
    was_trained_on_questions_alone,
)
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.evaluation.config import EVALUATION_FILE
from dtl.evaluation.metrics import Calibration, logit
from dtl.generation.config import SamplingConfig
from dtl.generation.conversation import Continuation, continue_text, fitting_question
from dtl.generation.decoder import FP32, Decoder, Weights, choose_weights, transpose_for_decoding, unsupported_reason
from dtl.model.transformer import TransformerLM
from dtl.run_dir.provenance import RECORD
from dtl.run_dir.state import read_config, read_run_state
from dtl.terminal.config import TalkConfig

MAX_FITTED = 1000.0  # slope and intercept of a calibration: logits are within 50 of 0
MAX_TOPICS, MAX_CHARACTERS = 12, 76  # shown of the training questions


@dataclass(frozen=True)
class CheckpointFacts:
    """Facts from the small files of a checkpoint; None where they are not recorded."""

    folder: Path
    name: str
    step: int | None = None
    best_loss: float | None = None  # on the validation split, for the best step of the run so far
    calibration: Calibration | None = None  # of the confidence, fitted at the end of the run and by dtl.evaluate
    learned_plain_text: bool = False  # trained without any questions and answers
    learned_questions_alone: bool = False  # trained without any other text
    trained_on_questions_alone: bool = False  # without any other text in its own run, whatever init= had learnt
    taught: tuple[str, ...] = ()  # lines about the training questions
    last_step: int | None = None  # of a run that has not finished, after `step`

    @property
    def ckpt(self) -> str:
        """The value of `ckpt=` for this checkpoint: its run for the best one, which needs no longer path."""
        is_best = self.folder.name == "best" and self.folder.parent.name == "checkpoints"
        return shown(self.folder.parent.parent if is_best else self.folder)


class LoadedModel:
    """A model with its tokenizer and its facts, ready to generate."""

    def __init__(
        self,
        facts: CheckpointFacts,
        model: TransformerLM,
        tokenizer: Tokenizer,
        weights: Weights = FP32,
        decoder: Decoder | None = None,
    ) -> None:
        self.facts = facts
        self.n_parameters = model.n_parameters()
        self.context = model.config.max_seq_len  # in tokens
        self.device = next(model.parameters()).device.type
        # No longer text fits the context. A byte-level tokenizer writes each byte of a token as one character.
        longest = max((len(token) for token in tokenizer.backend.get_vocab()), default=1)
        self.max_characters = self.context * longest
        self.weights = weights
        self._model = model
        self._tokenizer = tokenizer
        self._decoder = decoder

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def continue_text(self, text: str, sampling: SamplingConfig, seed: int) -> Continuation:
        """Return a continuation, generated while it is iterated; the same seed gives the same text."""
        return continue_text(self._model, self._tokenizer, text, sampling, seed, self._decoder)

    def prompt(self, question: str, context: str = "") -> str:
        """Return the text after which the model generates its answer."""
        return (self._tokenizer.prompt or Prompt()).text(question, context)

    def fitting(self, pair: QuestionAnswer, max_new_tokens: int) -> QuestionAnswer:
        """Return a question with as much of its context as fits the model's."""
        prompt = self._tokenizer.prompt or Prompt()
        return fitting_question(self._model, self._tokenizer, prompt, pair, max_new_tokens)

    def lines(self) -> Iterator[str]:
        """Yield the lines that introduce the model: name, step, loss, then size, numbers and folder."""
        facts = self.facts
        step = "" if facts.step is None else f", step {facts.step:,}"
        step += "" if facts.last_step is None else f" of {facts.last_step:,}"
        loss = "" if facts.best_loss is None else f", best validation loss {facts.best_loss:.4f}"
        yield f"{facts.name}{step}{loss}"
        yield (
            f"{in_units(self.n_parameters)} parameters, context {self.context:,} tokens, {self.device}, "
            f"{self.weights}, {in_one_line(shown(facts.folder))}"
        )
        if self.weights.reason:
            yield f"No fp16 weights: {in_one_line(self.weights.reason)}."


def load(checkpoint: Path, config: TalkConfig) -> LoadedModel:
    """Load the model in this folder onto the device of `config`.

    Raises ConfigError for a device or weights that are not available, CheckpointError for damaged files.
    """
    device, _ = choose_device(config.device)
    tokenizer = load_tokenizer(checkpoint)
    model = load_model(checkpoint, device)
    weights = choose_weights(model, config.generation.weights)
    if weights.form == "fp32":
        transpose_for_decoding(model)
    decoder = None if unsupported_reason(model) else Decoder(model, weights, share=True)
    return LoadedModel(read_facts(checkpoint), model, tokenizer, weights, decoder)


def read_facts(folder: Path) -> CheckpointFacts:
    """Return the `CheckpointFacts` of a folder; a Hugging Face folder without DTL's files has only a name."""
    plain = has_learnt_plain_text(folder)
    if not is_checkpoint(folder):
        return CheckpointFacts(folder, in_one_line(folder.resolve().name, 80), learned_plain_text=plain)
    config, state = read_config(folder), read_json_or_empty(folder / "state.json")
    step, train = as_whole(state.get("step")), as_object(state.get("train"))
    last_step = None if step is None else _last_step(folder.parent.parent, step)
    # Another step had the best loss: this one has another, which its files do not record.
    loss = as_number(train.get("best_loss")) if train.get("best_step") in (None, step) else None
    return CheckpointFacts(
        folder,
        name=in_one_line(str(config.get("name") or folder.resolve().parent.parent.name), 80),
        step=step,
        best_loss=loss,
        calibration=_calibration(folder),
        learned_plain_text=plain,
        learned_questions_alone=has_learnt_questions_alone(folder),
        trained_on_questions_alone=was_trained_on_questions_alone(folder),
        taught=tuple(_taught(folder, step, last_step)),
        last_step=last_step,
    )


def _last_step(run_dir: Path, step: int) -> int | None:
    """Return the last step of a run that has not finished and has more than `step`; else None."""
    run = read_run_state(run_dir)
    is_ahead = run.state != "finished" and run.last_step is not None and run.last_step > step
    return run.last_step if is_ahead else None


def _calibration(folder: Path) -> Calibration | None:
    """Return the calibration of the run's last evaluation, if that was of this very checkpoint."""
    evaluation = read_record_or_empty(folder.parent.parent / EVALUATION_FILE)
    detection = as_object(evaluation.get("detection"))
    fitted = as_object(detection.get("calibration"))
    slope, intercept = as_number(fitted.get("slope")), as_number(fitted.get("intercept"))
    threshold = as_number(detection.get("threshold"))
    if Path(str(evaluation.get("checkpoint"))).name != folder.name:
        return None
    if slope is not None and intercept is not None:
        # Anything else has not been fitted: the file is damaged, and no confidence is better than a wrong one.
        fits = 0 <= slope <= MAX_FITTED and abs(intercept) <= MAX_FITTED
        return Calibration(slope, intercept) if fits else None
    # Runs from before the calibration have a threshold of the mean log-probability alone: one half is there.
    return None if threshold is None else Calibration(1.0, -logit(threshold))


def _taught(folder: Path, step: int | None, last_step: int | None) -> Iterator[str]:
    """Yield the lines about the training questions that run.json records."""
    taught = as_object(read_json_or_empty(folder.parent.parent / RECORD).get("taught"))
    number = as_whole(taught.get("questions"))
    if not number:
        return
    topics = [_words(topic).replace("_", " ") for topic in as_list(taught.get("topics"))]
    more = f" and {len(topics) - MAX_TOPICS} more topics" if len(topics) > MAX_TOPICS else ""
    about = f" about {', '.join(topics[:MAX_TOPICS])}{more}" if topics else ""
    questions = f"{number_of('questions', number)}{about}"
    if last_step is None:
        yield f"It was taught {questions}, for example:"
    else:
        yield f"It was trained for {step:,} of {last_step:,} steps so far, on {questions}, for example:"
    yield from (f"  {_words(example)}" for example in as_list(taught.get("examples")))


def _words(value: object) -> str:
    return in_one_line(str(value), MAX_CHARACTERS)
