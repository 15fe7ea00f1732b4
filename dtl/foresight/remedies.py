"""The first setting of a run that fits: which settings need less memory, in which order, and their price."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dtl.config import RunConfig
from dtl.data.tokenizers.tokenizer import LARGE_VOCABULARY, SMALL_VOCABULARY
from dtl.foresight.machine import Machine
from dtl.foresight.predict import Prediction, Setting
from dtl.runner.run import smaller_micro_batch

# Figures: median ratios of processor seconds of a step of model=small, 4 x 256 tokens, in five interleaved rounds on a
# busy machine. Micro-batches of 2 and of 1 take 1.09 and 1.26 times as long, `selective` 1.17 and `full` 1.24 times.
# A further forward pass of the blocks alone would be 1.33 times: Chen et al. 2016, arXiv:1604.06174.
MICRO_BATCHES = "up to a quarter more time a step, for smaller matrix products; it trains the same steps"
UNREAD = 1.1  # times a prediction for data that has to be prepared anew: other documents, padding and holes
CHECKPOINTING = {"selective": "about a sixth more time a step", "full": "a quarter to a third more time a step"}


@dataclass(frozen=True)
class Remedy:
    """A run with other settings, which need less memory, and their price."""

    config: RunConfig
    words: tuple[str, ...]
    prices: tuple[str, ...]

    def and_then(self, price: str, words: dict[str, Any], config: RunConfig) -> "Remedy":
        """Return this remedy with further settings. A word that is there already is replaced."""
        kept = [word for word in self.words if word.partition("=")[0] not in words]
        added = [f"{key}={value}" for key, value in words.items()]
        prices = self.prices if price in self.prices else (*self.prices, price)
        return Remedy(config, (*kept, *added), prices)


def remedies(setting: Setting, *, same_model: bool = True) -> Iterator[list[Remedy]]:
    """Yield groups of ever smaller settings of a run, each with all that the groups before it have.

    Micro-batches with the same sequences a step come first, as these train the same model; then checkpointing,
    precision, the optimizer's state and the vocabulary. With `same_model` false only those which make weights and
    optimizer state smaller.
    """
    found = [Remedy(setting.config, (), ())]
    for smaller in (_micro_batches, _checkpointing, _precision, _moments, _vocabulary):
        if group := list(smaller(found[-1], setting)):
            found = group
            if same_model or smaller in (_moments, _vocabulary):
                yield group


def _micro_batches(remedy: Remedy, setting: Setting) -> Iterator[Remedy]:
    while remedy.config.micro_batch_size > 1:
        micro, accumulated = smaller_micro_batch(remedy.config)
        remedy = _with_trainer(remedy, MICRO_BATCHES, micro_batch_size=micro, grad_accum_steps=accumulated)
        yield remedy


def _checkpointing(remedy: Remedy, setting: Setting) -> Iterator[Remedy]:
    levels = list(CHECKPOINTING)
    level = setting.config.trainer.activation_checkpointing
    for further in levels[levels.index(level) + 1 if level in levels else 0 :]:
        yield _with_trainer(remedy, CHECKPOINTING[further], activation_checkpointing=further)


def _precision(remedy: Remedy, setting: Setting) -> Iterator[Remedy]:
    if setting.precision == "fp32" and setting.has_bf16:
        yield _with_trainer(remedy, "8 bits of precision, and faster", precision="bf16")


def _moments(remedy: Remedy, setting: Setting) -> Iterator[Remedy]:
    optimizer = setting.config.optimizer
    traits = optimizer.traits
    if traits.reads_state_dtype and optimizer.second_moment_may_be_in_bf16 and optimizer.state_dtype == "fp32":
        config = replace(remedy.config, optimizer=replace(optimizer, state_dtype="bf16"))
        price = "AdamW's moments rounded to bf16, whose update takes twice as long"
        yield remedy.and_then(price, {"optimizer.state_dtype": "bf16"}, config)


def _vocabulary(remedy: Remedy, setting: Setting) -> Iterator[Remedy]:
    if setting.facts.vocab_size > LARGE_VOCABULARY and remedy.config.init is None:
        tokenizer = replace(remedy.config.tokenizer, kind="bpe", vocab_size=SMALL_VOCABULARY)
        words = {"tokenizer": "bpe", "tokenizer.vocab_size": SMALL_VOCABULARY}
        price = "other tokens, whose loss is not comparable"
        yield remedy.and_then(price, words, replace(remedy.config, tokenizer=tokenizer))


def _with_trainer(remedy: Remedy, price: str, **settings: Any) -> Remedy:
    trainer = replace(remedy.config.trainer, **settings)
    words = {f"trainer.{name}": value for name, value in settings.items()}
    return remedy.and_then(price, words, replace(remedy.config, trainer=trainer))


def first_that_fits(
    groups: Iterator[Sequence[Remedy]], predict: Callable[[RunConfig], Prediction], machine: Machine
) -> tuple[Remedy, Prediction] | None:
    """Return the first settings that fit, with their prediction; None when none does.

    A prediction takes seconds: the smallest setting of a group is predicted first, the others only where it fits.
    """
    for group in groups:
        predictions: dict[int, Prediction] = {}

        def fits(n: int, group: Sequence[Remedy] = group, known: dict[int, Prediction] = predictions) -> bool:
            known[n] = predict(group[n].config)
            found = known[n]
            return machine.free is None or found.total * (1 if found.facts.is_read else UNREAD) <= machine.free

        if fits(len(group) - 1):
            first = bisect_left(range(len(group) - 1), True, key=fits)
            return group[first], predictions[first]
    return None
