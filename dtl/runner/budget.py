"""What the data of a run can give, before its first step: tokens a parameter, epochs, capacity, positions with a loss.

Rules of thumb from the literature, for orientation; a run is neither refused nor changed by them:

- 20 tokens a parameter use a given amount of computing best (Hoffmann et al. 2022, arXiv:2203.15556). Parameters are
  counted without embeddings, as in most papers on scaling laws: of GPT-2's 50,257 entries a small text uses few.
- Up to 4 epochs over a text are nearly as good as new text; what further ones add decays, with a constant of about 15
  repetitions (Muennighoff et al. 2023, arXiv:2305.16264).
- A model holds about 2 bits of facts a parameter, of all its parameters, when each fact was seen 1,000 times; about 1
  bit after 100 times (Allen-Zhu and Li 2024, arXiv:2404.05405).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dtl.base.units import counted, in_bits, in_digits, in_percent
from dtl.data.batches import TrainingData
from dtl.data.documents import QuestionAnswer
from dtl.data.prepare import PreparedData
from dtl.model.transformer import TransformerLM
from dtl.runner.length import RunLength
from dtl.training.config import TrainerConfig

TOKENS_PER_PARAMETER = 20
GOOD_EPOCHS = 4
BITS_PER_PARAMETER, EXPOSURES = 2, 1000


@dataclass(frozen=True)
class DataBudget:
    """Amounts of a run's data beside those of its model."""

    epochs: float  # over the source that is repeated most
    tokens: float  # of training, repeated ones included, padding excluded
    with_loss: float  # fraction of the positions, padding included
    n_parameters: int  # all
    n_without_embeddings: int
    n_questions: int = 0  # for training, each wording counted
    n_facts: int = 0  # that they ask for
    answer_bits: int = 0  # upper bound of what the facts' answers hold: 8 a byte
    has_text: bool = True  # a source without questions

    @property
    def tokens_per_parameter(self) -> float:
        """Tokens of training by parameters without embeddings."""
        return self.tokens / max(1, self.n_without_embeddings)

    @property
    def capacity_bits(self) -> int:
        return BITS_PER_PARAMETER * self.n_parameters

    @property
    def times_each_fact(self) -> float:
        """How often each fact is seen in training, in any wording."""
        return self.epochs * self.n_questions / max(1, self.n_facts)

    @classmethod
    def of(
        cls,
        train: TrainingData,
        pairs: Sequence[QuestionAnswer],
        epochs: float,
        n_parameters: int,
        n_without_embeddings: int,
    ) -> "DataBudget":
        """Return the budget of `epochs` epochs over the data; `pairs` are its questions for training.

        Questions of a fact that has no name are counted as one fact when they are equal but for case.
        """
        answers: Mapping[str, str] = {pair.fact or pair.question.casefold(): pair.answer for pair in pairs}
        repeated = max(n / len(train.rows[name]) for name, n in train.sequences_per_source.items())
        seq_len = next(iter(train.rows.values())).seq_len
        return cls(
            epochs=epochs * (1 if pairs else repeated),
            tokens=epochs * train.n_tokens,
            with_loss=train.n_targets / (train.sequences_per_epoch * seq_len),
            n_parameters=n_parameters,
            n_without_embeddings=n_without_embeddings,
            n_questions=len(pairs),
            n_facts=len(answers),
            answer_bits=8 * sum(len(answer.encode()) for answer in answers.values()),
            has_text=not pairs or len(train.rows) > 1,
        )

    def lines(self) -> Iterator[str]:
        """Yield at most three lines, each with its source; docs/plan.md says more."""
        loss = f"loss on {in_percent(self.with_loss)} %"
        bits = f"({BITS_PER_PARAMETER} a parameter, Allen-Zhu 2024)"
        epochs = counted("epochs", in_digits(self.epochs))
        if self.n_facts:
            times = counted("times", in_digits(self.times_each_fact))
            wordings = counted("wordings", in_digits(self.n_questions / self.n_facts))
            yield f"a fact {times} ({epochs}, {wordings}); {loss} of positions"
        if self.has_text:
            ratio = f"{in_digits(self.tokens_per_parameter)} tokens a parameter without embeddings"
            yield f"{ratio}; best {TOKENS_PER_PARAMETER} (Hoffmann 2022)"
        if not self.n_facts:
            verdict = (
                f"over {GOOD_EPOCHS} help little" if self.epochs > GOOD_EPOCHS else f"up to {GOOD_EPOCHS} are good"
            )
            verdict = "no text twice" if self.epochs <= 1 else f"{verdict} (Muennighoff 2023)"
            yield f"{epochs}; {verdict}; {loss}"
        capacity = f"room for {in_bits(self.capacity_bits)}"
        answers = f"answers {in_bits(self.answer_bits)}, "
        yield f"{answers}{capacity} {bits}" if self.n_facts else f"{capacity} of facts {bits}"


def ends_sooner(trainer: TrainerConfig) -> str:
    """Return what to say beside the steps of a run that may end before them."""
    return "" if trainer.hours is None else f", unless trainer.hours={trainer.hours:g} ends it sooner"


def budget_of(data: PreparedData, length: RunLength, model: TransformerLM) -> DataBudget:
    """Return the amounts of a run's data at its full length."""
    sizes = model.n_parameters(), model.n_parameters(embeddings=False)
    return DataBudget.of(data.train, data.pairs.get("train", []), length.last_step / length.steps_per_epoch, *sizes)
