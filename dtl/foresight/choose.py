"""`model=auto`: width, depth, batch and length of a run on text, from its time and the speed that is measured here.

The largest model of a ladder that sees 20 tokens a parameter within the time (Hoffmann et al. 2022, arXiv:2203.15556)
and in four epochs, and then as many tokens as time and data give: further epochs are worth less, yet more than further
parameters (Muennighoff et al. 2023, arXiv:2305.16264). The choice is ordinary config.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from dtl.base.display import command_line
from dtl.base.runtime import (
    choose_device,
    choose_precision,
    is_out_of_memory,
    random_state_kept,
    release_memory,
    seed_everything,
)
from dtl.base.units import in_digits, in_epochs, in_time, in_units
from dtl.commandline.overrides import as_shown, override_key
from dtl.config import RunConfig
from dtl.data.prepare import PreparedData, prepare_data
from dtl.data.sources import SourcePlan
from dtl.errors import ConfigError
from dtl.foresight.machine import this_machine
from dtl.model.config import ModelConfig
from dtl.model.transformer import TransformerLM
from dtl.runner.budget import GOOD_EPOCHS, TOKENS_PER_PARAMETER
from dtl.runner.build import build_trainer, on_meta, training_bytes
from dtl.runner.length import RunLength, steps_for
from dtl.runner.remaining import FORWARD
from dtl.runner.run import smaller_micro_batch, with_batch

HEAD_DIM = 64
# A size of its own, with heads of 48: 128 x 3 has six times the parameters of 64 x 2; other steps are three at most.
BETWEEN = {96: 2}  # width: layers
WIDTHS = (64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536)
USED = 0.87  # of the time: the rest is for saving, samples, and a machine that becomes slower
MOST_EVALUATIONS = 10  # of a run that does not say how often: each that is the best so far saves a checkpoint
MOST_PROBES, TIMED_STEPS = 4, 3
FASTER = 2.0  # times the operations a second of the size below, at most
PROBE_SECONDS = (3.0, 30.0)  # of all probes together at least and at most, between them 1 % of the time
# Numbers that a block stores for the backward pass, for each token and each of its width (docs/training.md), and bytes.
STORED = {"none": 27.3, "selective": 14.6, "full": 3.2}
NUMBER_BYTES, WITH_GAPS = 4, 1.5


# --- the rule: pure -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Size:
    """A model of the ladder."""

    model: ModelConfig
    n_parameters: int  # without embeddings
    flops: float  # of a token, forward and backward

    def __str__(self) -> str:
        return f"{self.model.dim} x {self.model.n_layers}"


@dataclass(frozen=True)
class Limits:
    """What bounds a run, in seconds and in positions of text."""

    seconds: float  # for training and evaluation
    tokens: float  # of the data, as often as it may be repeated: the longest run
    good_as_new: float  # of these, in the epochs that are as good as new text: for the size
    per_parameter: float = TOKENS_PER_PARAMETER
    evaluated: int = 0  # positions of an evaluation during training
    evaluated_at_end: int = 0  # positions of the one of the best checkpoint
    every: int | None = None  # positions of training between evaluations; None: as there is time for

    def has_tokens_for(self, size: Size) -> bool:
        """Return True when the data has the tokens that a size should see."""
        return self.per_parameter * size.n_parameters <= self.good_as_new

    def evaluations(self, speed: float) -> int:
        """Return how many evaluations take a tenth of the time of a model of so many tokens a second: 1 to 10."""
        fitting = 0.1 * self.seconds * speed / (FORWARD * max(1, self.evaluated))
        return max(1, min(MOST_EVALUATIONS, int(fitting)))

    def reached(self, speed: float) -> float:
        """Return the positions that such a model is trained on in the time; half of it is always for training."""
        full = self.seconds * speed
        if self.every is not None:
            left = max(full - FORWARD * self.evaluated_at_end, full / 2)
            return left / (1 + FORWARD * self.evaluated / self.every)
        return max(full - FORWARD * (self.evaluated_at_end + self.evaluations(speed) * self.evaluated), full / 2)


@dataclass(frozen=True)
class Choice:
    """A size, the positions to train it on, and the speeds that were measured for it, in tokens a second."""

    size: Size
    tokens: float
    limits: Limits
    measured: Mapping[Size, float] = field(default_factory=dict)

    @property
    def of_data(self) -> bool:
        """True when the data is the limit, not the time."""
        return self.limits.tokens < self.limits.reached(self.measured[self.size])


def choose(ladder: Sequence[Size], speed: Callable[[Size], float], limits: Limits) -> Choice:
    """Return the largest size of an ascending ladder whose tokens fit into time and data; else the smallest.

    `speed` measures a size, 0 for one that does not fit into memory. What is not measured is taken to be as fast as the
    measured size below it, operation for operation; the next size, which may be faster, is measured where it could fit.
    Of the chosen size all the time is used.
    """
    allowed = [size for size in ladder if limits.has_tokens_for(size)] or ladder[:1]
    measured: dict[Size, float] = {}

    def could_fit(size: Size, faster: float = 1.0) -> bool:
        tokens = limits.reached(faster * _estimated(size, measured))
        return limits.per_parameter * size.n_parameters <= tokens

    asked: Size | None = allowed[0]
    while asked is not None and sum(map(bool, measured.values())) < MOST_PROBES:
        measured[asked] = speed(asked)
        best = max((n for n, size in enumerate(allowed) if could_fit(size)), default=0)
        following = allowed[best + 1 : best + 2]
        asked = next(
            (size for size in (allowed[best], *following) if size not in measured and could_fit(size, FASTER)), None
        )
    best = next((size for size in reversed(allowed) if size in measured and could_fit(size)), allowed[0])
    return Choice(best, min(limits.tokens, limits.reached(measured[best])), limits, measured)


def _estimated(size: Size, measured: Mapping[Size, float]) -> float:
    if size in measured:
        return measured[size]
    below = max((known for known in measured if known.flops <= size.flops), key=lambda known: known.flops)
    return measured[below] * below.flops / size.flops


# --- the ladder, and what is measured -----------------------------------------------------------------------------


def sizes(config: RunConfig, vocab_size: int) -> Iterator[Size]:
    """Yield the ladder: heads of 64, a layer more than heads, the other settings of the model as they are."""
    for dim in WIDTHS:
        n_heads = -(-dim // HEAD_DIM)
        n_layers = BETWEEN.get(dim, n_heads + 1)
        model = replace(config.model, auto=False, dim=dim, n_layers=n_layers, n_heads=n_heads)
        built = on_meta(replace(config, model=model), vocab_size)[0]
        yield Size(model, built.n_parameters(embeddings=False), built.flops_per_token(config.seq_len))


def fitting_batch(config: RunConfig, vocab_size: int, free: int | None) -> RunConfig | None:
    """Return the config with a micro-batch that roughly fits into `free` bytes; None when not one sequence does.

    Halved, with as many sequences a step. dtl.plan counts the bytes.
    """
    model, stored = config.model, STORED[config.trainer.activation_checkpointing]
    fixed = training_bytes(*on_meta(config, vocab_size), config.trainer.ema_decay is not None)
    a_token = NUMBER_BYTES * (stored * model.dim * model.n_layers + 3 * vocab_size)
    while free is not None and WITH_GAPS * (fixed + config.micro_batch_size * config.seq_len * a_token) > free:
        if config.micro_batch_size == 1:
            return None
        config = with_batch(config, *smaller_micro_batch(config))
    return config


def tokens_per_second(config: RunConfig, data: PreparedData, device: torch.device, seconds: float) -> float:
    """Return the speed of a config's steps on its data, the median of `TIMED_STEPS` or of as many as `seconds` allow.

    The first step is not timed. torch.compile, which takes minutes, is left out. Raises torch's out-of-memory errors.
    """
    seed_everything(config.seed)
    model = TransformerLM(config.model, data.tokenizer.vocab_size).to(device)
    model.activation_checkpointing = config.trainer.activation_checkpointing
    plain = replace(config, trainer=replace(config.trainer, compile=False, step_fields=[]))
    length = RunLength(steps_per_epoch=1, horizon=2 + TIMED_STEPS, last_step=1 + TIMED_STEPS, warmup=0)
    trainer = build_trainer(plain, model, data.train, length, choose_precision(config.trainer.precision, device)[0])
    began, reports = time.monotonic(), []
    for report in trainer.steps():
        reports.append(report)
        if len(reports) > 1 and time.monotonic() - began > seconds:
            break
    steps = [
        (now.tokens - before.tokens) / (now.seconds - before.seconds) for before, now in itertools.pairwise(reports)
    ]
    return statistics.median(steps)


# --- a run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """A config with the choice in it, the words that give it, and what to print."""

    config: RunConfig
    words: list[str]
    lines: list[str]


def sized(
    config: RunConfig,
    plans: Sequence[SourcePlan],
    log: Callable[[str], None],
    given: Sequence[str] = ("...", "model=auto"),
) -> Chosen:
    """Return the config with size, batch and length in place of `model=auto`; prepares the data, takes some seconds.

    The last line to print is the command of the choice: `given`, the words that compose to `config`, `model=auto` among
    them, since it sets more than the size, and then the words of the choice. Random states are unchanged.
    Raises ConfigError for questions, DataError as `prepare_data`.
    """
    device = choose_device(config.device)[0]
    asked, config = config, config.on(device.type)
    with random_state_kept(device.type):
        seed_everything(config.seed)
        data = prepare_data(config.data, config.tokenizer, config.seq_len, config.seed, log, plans)
        if any(data.pairs.values()):
            raise ConfigError(QUESTIONS)
        vocab_size, free = data.tokenizer.vocab_size, this_machine(device.type).free
        least, most = PROBE_SECONDS
        hours = config.trainer.hours or 0
        seconds = min(most, max(least, 36 * hours)) / MOST_PROBES
        batches: dict[Size, RunConfig] = {}

        def speed(size: Size) -> float:
            log(f"model=auto: measuring {size}")
            trial = fitting_batch(replace(config, model=size.model), vocab_size, free)
            if trial is None:
                return 0.0
            batches[size] = trial
            try:
                return tokens_per_second(trial, data, device, seconds)
            except Exception as error:  # of a single sequence: the trainer halves what it takes at once
                if not is_out_of_memory(error):
                    raise
            release_memory(device)
            return 0.0

        limits = limits_of(config, data)
        ladder = itertools.takewhile(limits.has_tokens_for, sizes(config, vocab_size))
        choice = choose([*ladder] or [next(sizes(config, vocab_size))], speed, limits)
    if not choice.measured[choice.size]:
        raise ConfigError(f"model=auto: not even {choice.size} fits into the memory that is free.")
    return _chosen(asked, batches[choice.size], data, choice, given)


QUESTIONS = (
    "model=auto: chooses by the tokens of text, and questions are learnt by repetition. Take model=small, or another "
    "size, and trainer.hours= as its limit."
)


def limits_of(config: RunConfig, data: PreparedData) -> Limits:
    """Return the limits of a run with `trainer.hours`; of its settings that bound it, too."""
    trainer, seq_len = config.trainer, config.seq_len
    epochs = trainer.max_epochs if trainer.max_epochs is not None else config.data.recommended.max_epochs
    per_epoch = data.train.sequences_per_epoch * seq_len
    at_most = math.inf if trainer.eval_max_batches is None else trainer.eval_max_batches * config.micro_batch_size
    of_split = [0 if rows is None else min(len(rows), at_most) for rows in (data.validation, data.test)]
    validation, test = (int(seq_len * n_rows) for n_rows in of_split)
    every = trainer.eval_every_steps
    return Limits(
        seconds=USED * 3600 * (trainer.hours or 0),
        tokens=epochs * per_epoch,
        good_as_new=min(epochs, GOOD_EPOCHS) * per_epoch,
        per_parameter=trainer.tokens_per_parameter or TOKENS_PER_PARAMETER,
        evaluated=validation,
        evaluated_at_end=validation + test,
        every=None if every is None else every * config.global_batch_size * seq_len,
    )


def _chosen(asked: RunConfig, config: RunConfig, data: PreparedData, choice: Choice, given: Sequence[str]) -> Chosen:
    """Return what `sized` does; `config` has the chosen size and batch."""
    per_epoch = data.train.sequences_per_epoch
    total_steps = max(1, steps_for(choice.tokens, per_epoch, config.global_batch_size, config.seq_len))
    settings = {
        "micro_batch_size": config.micro_batch_size,
        "grad_accum_steps": config.grad_accum_steps,
        "total_steps": total_steps,
        "tokens_per_parameter": None,
    }
    if config.trainer.eval_every_steps is None and data.validation is not None:
        settings["eval_every_steps"] = -(-total_steps // choice.limits.evaluations(choice.measured[choice.size]))
    before, model = asked.trainer, config.model
    sizes = {"auto": "false", "dim": model.dim, "n_layers": model.n_layers, "n_heads": model.n_heads}
    words = [f"model.{key}={value}" for key, value in sizes.items()]
    changed = {key: value for key, value in settings.items() if value != getattr(before, key)}
    words += [f"trainer.{key}={'null' if value is None else value}" for key, value in changed.items()]
    result = replace(asked, model=model, trainer=replace(before, **settings))
    keys = {override_key(word) for word in words}
    command = command_line("train", *(as_shown(word) for word in given if override_key(word) not in keys), *words)
    return Chosen(result, words, [*_lines(config, choice, data), f"  {command}"])


def _lines(config: RunConfig, choice: Choice, data: PreparedData) -> Iterator[str]:
    """Yield what was measured, the choice, and what limits it."""
    size, speed = choice.size, choice.measured[choice.size]
    speeds = [f"{known} {in_units(per_second)}" for known, per_second in sorted(choice.measured.items(), key=_flops)]
    yield f"model=auto, trainer.hours={config.trainer.hours:g}. Tokens/s of width x layers: {', '.join(speeds)}"
    per_parameter = choice.tokens / size.n_parameters
    epochs = choice.tokens / (data.train.sequences_per_epoch * config.seq_len)
    yield (
        f"Chosen: {size}, {in_units(size.n_parameters)} parameters without embeddings, {in_units(choice.tokens)} "
        f"tokens, {in_digits(per_parameter)} a parameter, {in_epochs(epochs)}, about {in_time(choice.tokens / speed)}"
    )
    if choice.of_data:
        yield f"The data is the limit, not the time: more than {in_epochs(epochs)} help little; more text would."


def _flops(entry: tuple[Size, float]) -> float:
    return entry[0].flops
