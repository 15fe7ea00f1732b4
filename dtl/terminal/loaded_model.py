"""What a conversation needs to know of a model, and no more. Imports no torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.base.display import in_units, shown
from dtl.base.safe_text import in_one_line
from dtl.data.qa import prompt
from dtl.generation.config import SamplingConfig

if TYPE_CHECKING:
    from dtl.generation.conversation import Continuation


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


@dataclass(frozen=True)
class LoadedModel:
    """A model that writes."""

    facts: CheckpointFacts
    n_parameters: int
    context: int  # tokens that it sees at once
    device: str
    most_characters: int  # no text that is longer fits the context, whatever is in it
    count_tokens: Callable[[str], int]
    continue_text: "Callable[[str, SamplingConfig, int], Continuation]"  # text, sampling, seed

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
