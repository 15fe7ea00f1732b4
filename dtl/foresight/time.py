"""How long a run takes, before it starts: real steps, evaluations and answers in a process of its own.

Of a deep model one with few layers and one with some more are timed, of the same width and vocabulary, on the run's own
data: a layer takes what they differ by. On a CPU the seconds are those of the processor, which other programs on the
machine change least.
"""

import contextlib
import functools
import gc
import hashlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save

from dtl.base.runtime import arithmetic, autocast, choose_device, choose_precision
from dtl.checkpoints.find import find_checkpoint
from dtl.config import RunConfig, typed
from dtl.data.batches import Batch, PackedSequences, TrainingData
from dtl.data.collect import open_sources
from dtl.data.pack import pack_stream
from dtl.data.prepare import PreparedData
from dtl.data.tasks import bm25_baseline
from dtl.data.tokenizers.prompt import read_prompt
from dtl.evaluation.answers import likelihoods
from dtl.evaluation.evaluator import evenly_spaced, questions_at_the_end
from dtl.evaluation.measure import Plan
from dtl.evaluation.text import count_token_bytes
from dtl.foresight.predict import with_data
from dtl.generation.conversation import answer_greedily, continuations, prompts_of
from dtl.model.config import ModelConfig
from dtl.model.transformer import TransformerLM
from dtl.runner.build import OUTPUTS, build_trainer, checkpoint_bytes, choose_attention, on_meta
from dtl.runner.length import RunLength
from dtl.runner.remaining import EVALUATION, REPORT, SAMPLES, SAVE, STEP, Intervals
from dtl.runner.session import N_SAMPLES, SAMPLE_PROMPT_TOKENS
from dtl.training.evaluate import evaluate

# Layers that are timed of a deeper model. A step of one and one of two layers differ by less than their noise: of 12
# layers, whose time is that difference eleven times, four layers tell more than more steps of two.
DEPTHS, SLOW_DEPTHS = (1, 4), (1, 3)  # of a slow model, whose steps are long and vary less, three tell enough
# A batch of validation that takes longer is that of a large model: fewer questions then, which take about as long each.
SLOW_BATCH, FEW_QUESTIONS = 0.25, 32
# FLOP of a forward and backward pass on a CPU, about a second of a core: of a longer one a single sequence warms up.
SLOW_FLOP = 1e11
MEASURED_TOKENS, FEW_TOKENS = 8, 4  # of an answer or a sample: more take as long each; fewer of a large model
SAVED_BYTES = 16 * 2**20


# --- what is timed ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """Of the repetitions of one measurement, after a first one that warms up."""

    least: int
    most: int
    seconds: float  # no further one begins after these
    compiles: bool = False  # where the run does; it takes a minute or more
    # Seconds of a first time from which it counts: it warms up what takes milliseconds. Of 12 layers of width 768 a
    # first batch of validation and a first sample take as long as the second.
    counts_first: float = math.inf


SHALLOW, REAL = Limits(1, 8, 1.2), Limits(4, 24, 30.0, compiles=True)


@dataclass
class Run:
    """A run whose pieces are timed."""

    config: RunConfig  # on its device
    device: torch.device
    precision: str
    vocab_size: int
    train: TrainingData
    data: PreparedData | None  # None: not prepared yet; `train` then has the shape that the config gives

    @functools.cached_property
    def token_bytes(self) -> tuple[np.ndarray, float]:
        """The bytes of each token, (vocabulary,), and the seconds that they took: a run counts them once."""
        assert self.data is not None
        began = self.clock()
        return count_token_bytes(self.data.tokenizer), self.clock() - began

    @functools.cached_property
    def retrieval(self) -> tuple[float, float]:
        """The seconds of the retrieval baseline: to index the training questions, and to look up a batch of them."""
        assert self.data is not None
        pairs, began = self.data.pairs["train"], self.clock()
        look_up, indexed = bm25_baseline(pairs), self.clock()
        asked = evenly_spaced(pairs, Plan.questions_at_once)
        look_up(asked)
        return indexed - began, (self.clock() - indexed) * Plan.questions_at_once / len(asked)

    def clock(self) -> float:
        """Processor seconds on a CPU, of all threads; elsewhere time, once the device has done its work."""
        if self.device.type == "cpu":
            return time.process_time()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def seconds(self, work: Callable[[], Any], limits: Limits) -> float:
        """Return the median of the seconds of a piece of work, without its first time unless that counts."""
        began, started = time.perf_counter(), self.clock()
        work()
        first = self.clock() - started
        seen = [first] if first >= limits.counts_first else []
        began = began if seen else time.perf_counter()
        while len(seen) < limits.least or (len(seen) < limits.most and time.perf_counter() - began < limits.seconds):
            started = self.clock()
            work()
            seen.append(self.clock() - started)
        return statistics.median(seen)


def opened(config: RunConfig) -> Run:
    """Return the run of a config on this machine, with its data where that is prepared."""
    init_from = find_checkpoint(config.init, OUTPUTS) if config.init is not None else None
    read, plans = open_sources(config.data, config.seed, init_from and read_prompt(init_from))
    device, _ = choose_device(config.device)
    precision, _ = choose_precision(config.trainer.precision, device)
    found = with_data(replace(config, data=read), plans, init_from, device.type)
    train = made_data(found.config, found.vocab_size) if found.data is None else found.data.train
    return Run(found.config, device, precision, found.vocab_size, train, found.data)


def made_data(config: RunConfig, vocab_size: int) -> TrainingData:
    """Return a few steps of random tokens in the shape of the config, with a loss on each."""
    n_tokens = 4 * config.micro_batch_size * config.seq_len + 1
    tokens = np.random.default_rng(0).integers(0, vocab_size, n_tokens).astype(np.uint32)
    rows = PackedSequences(tokens, pack_stream(n_tokens, config.seq_len), pad_id=0)
    return TrainingData({"made": rows}, {"made": 1.0})


def some_model(config: ModelConfig, vocab_size: int, device: torch.device) -> TransformerLM:
    """Return a model with any small weights: to draw those of a new model takes seconds of a large one."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = TransformerLM(config, vocab_size)
    if any(True for _ in model.buffers()):  # of a block of one's own: only it knows what they hold
        return TransformerLM(config, vocab_size).to(device)
    model.to_empty(device=device)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:  # a product: a random number for each weight takes half a second of GPT-2's embeddings
                rows = torch.rand(len(parameter), *(1 for _ in parameter.shape[1:]), device=device)
                torch.mul(rows - 0.5, 0.04 * torch.rand(parameter.shape[1:], device=device), out=parameter)
    return model


def timed(run: Run, n_layers: int, limits: Limits) -> dict[str, float]:
    """Return the seconds of each piece of work of a run with so many layers; `clock`: time for a second of them."""
    config = run.config
    one_pass = replace(
        config.trainer,
        micro_batch_size=config.micro_batch_size,
        grad_accum_steps=1,
        compile=config.trainer.compile and limits.compiles,
    )
    config = replace(config, model=replace(config.model, n_layers=n_layers), trainer=one_pass)
    began = run.clock()
    model = some_model(config.model, run.vocab_size, run.device)
    model.activation_checkpointing = config.trainer.activation_checkpointing
    model.document_kernel = choose_attention(config, model, run.train, run.precision, {}).name
    length = RunLength.of(config, run.train.steps_per_epoch(config.global_batch_size))
    trainer = build_trainer(config, model, run.train, length, run.precision)
    found = {"build": run.clock() - began}
    trainer.last_step = sys.maxsize
    trainer.state.step_in_epoch = length.steps_per_epoch // 2  # no special sequences, such as the epoch's last ones
    passes: list[float] = []
    accumulate = trainer.accumulate_gradients

    def accumulate_timed(batches: Any) -> Any:
        started = run.clock()
        loss = accumulate(batches)
        passes.append(run.clock() - started)
        return loss

    trainer.accumulate_gradients = accumulate_timed
    is_slow = _is_slow(run, model) and not limits.compiles
    whole_batches = trainer.next_batches

    def next_batches() -> list[Batch]:
        """Let one sequence warm up what is slow: a step of it makes the optimizer's state, and all code is loaded."""
        if not is_slow or passes:
            return whole_batches()
        state = trainer.state
        rows = run.train.batch_sequences(trainer.seed, state.epoch, state.step_in_epoch, 1)
        return run.train.in_batches(rows, 1)

    trainer.next_batches = next_batches
    steps, walls, seconds = trainer.steps(), list[float](), list[float]()

    def step() -> None:
        wall, began = time.perf_counter(), run.clock()
        next(steps)
        seconds.append(run.clock() - began)
        walls.append((time.perf_counter() - wall) / max(seconds[-1], 1e-9))

    one = run.seconds(step, limits)
    found[STEP] = one + (run.config.grad_accum_steps - 1) * statistics.median(passes[1:])
    found["clock"] = min(walls[1:])  # with the fewest other programs
    if config.trainer.compile:
        found["compiling"] = max(0.0, seconds[0] - one)
    if (power := watts(run.device)) is not None:  # now: it is the mean of the last second
        found["watts"] = power
    found["bytes"] = float(checkpoint_bytes(model, trainer.optimizers, averaged=trainer.averaged is not None))
    if run.data is not None:
        with torch.inference_mode(), autocast(run.device, run.precision):
            found |= _timed_evaluations(run, model.eval(), run.data, limits, 1 if is_slow else config.micro_batch_size)
    return found


def _is_slow(run: Run, model: TransformerLM) -> bool:
    """Whether a forward and backward pass of the model takes a second and more."""
    n_tokens = run.config.micro_batch_size * run.config.seq_len
    return run.device.type == "cpu" and n_tokens * model.flops_per_token(run.config.seq_len) > SLOW_FLOP


def _timed_evaluations(
    run: Run, model: TransformerLM, data: PreparedData, limits: Limits, n_sequences: int
) -> dict[str, float]:
    """Return the seconds of a batch of validation, of one sampled token, and of a batch of questions at the end."""
    config, tokenizer = run.config, data.tokenizer
    counts = SLOW_BATCH if run.device.type == "cpu" else math.inf  # a GPU may compile or load kernels first
    few = replace(limits, least=1, seconds=limits.seconds / 6, counts_first=counts)
    held_out = data.validation or next(iter(data.train.rows.values()))
    share = config.micro_batch_size / n_sequences
    found = {EVALUATION: share * run.seconds(lambda: evaluate(model, held_out, n_sequences, 1), few)}
    is_slow = found[EVALUATION] >= SLOW_BATCH
    n_tokens = FEW_TOKENS if is_slow else MEASURED_TOKENS
    start = held_out.batch(range(min(N_SAMPLES, len(held_out)))).inputs[:, :SAMPLE_PROMPT_TOKENS]
    prompts = [tokenizer.decode(row.tolist()) for row in start]
    sampling = replace(config.sampling, max_new_tokens=n_tokens)
    once = Limits(1, 1, 0.0, counts_first=counts)
    found["token"] = run.seconds(lambda: continuations(model, tokenizer, prompts, sampling, 0), once) / n_tokens
    if not data.pairs.get("train"):
        return found
    token_bytes, found["token_bytes"] = run.token_bytes
    found["index"], found["look_up"] = run.retrieval
    at_once = Plan.questions_at_once
    pairs = evenly_spaced(data.pairs["train"], FEW_QUESTIONS if is_slow else at_once)
    asked = prompts_of(model, tokenizer, data.prompt, pairs, n_tokens)

    def answered(n_tokens: int) -> float:
        began = run.clock()
        answer_greedily(model, tokenizer, asked, n_tokens, at_once)
        return (run.clock() - began) * at_once / len(asked)

    first, more = answered(1), answered(n_tokens)
    found["answers"] = first + max(0.0, more - first) * (answer_tokens(data) - 1) / (n_tokens - 1)
    began = run.clock()
    likelihoods(model, tokenizer, pairs, token_bytes, at_once, data.prompt)
    found["scored"] = (run.clock() - began) * at_once / len(pairs)
    return found


def answer_tokens(data: PreparedData) -> int:
    """Return how many tokens a batch of answers takes: those of its longest, and the one that ends it."""
    pairs = evenly_spaced(data.pairs["train"], 16 * Plan.questions_at_once)
    lengths = [len(ids) for ids in data.tokenizer.encode_batch([pair.answer for pair in pairs])]
    batches = [lengths[at :: max(1, len(lengths) // Plan.questions_at_once)] for at in range(16)]
    return 1 + round(statistics.mean(max(batch) for batch in batches if batch))


def seconds_of_a_byte() -> float:
    """Return the processor seconds of saving a byte: checked, written, and read again for its checksum."""
    with tempfile.TemporaryFile() as file:  # without a name, so that nothing stays where the process is killed
        weights = torch.ones(SAVED_BYTES // 4)
        began = time.process_time()
        torch.isfinite(weights).all()
        file.write(save({"weights": weights}))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        hashlib.file_digest(file, "sha256")
        return (time.process_time() - began) / SAVED_BYTES


def watts(device: torch.device) -> float | None:
    """Return the power that a card draws now; None where it does not say, or nvidia-ml-py is not installed."""
    if device.type != "cuda":
        return None
    with contextlib.suppress(Exception):  # a module that is missing, a driver without that number
        return torch.cuda.power_draw(device) / 1000
    return None


def of_depth(measured: Mapping[int, Mapping[str, float]], n_layers: int) -> dict[str, float]:
    """Return the seconds of a model with so many layers from those of one or two depths: linear in the layers."""
    (first, few), *others = sorted(measured.items())
    if not others:
        return dict(few)
    ((second, more),) = others
    found = {
        name: value + max(0.0, more[name] - value) * (n_layers - first) / (second - first)
        for name, value in few.items()
    }
    return found | {name: choose(few[name], more[name]) for name, choose in NO_SECONDS.items() if name in few}


NO_SECONDS: dict[str, Callable[[float, float], float]] = {"clock": min, "watts": max}


# --- the forecast -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Something that a run does a number of times."""

    what: str  # in the plural, where it is counted
    count: float
    each: float  # seconds


@dataclass(frozen=True)
class Forecast:
    """Time of a run by part, in seconds of the processor on a CPU, elsewhere of the clock."""

    device_type: str
    parts: list[Part]
    step: float  # seconds of one
    clock: float  # seconds of the clock for each of them
    layers: list[int]  # of the models that were timed
    threads: int
    is_own_model: bool  # False: models of other depths
    is_whole: bool  # False: how many steps the run has is not known before its data is prepared
    watts: float | None = None

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Forecast":
        """Return what `main` has printed."""
        return cls(**{**values, "parts": [Part(**part) for part in values["parts"]]})

    @property
    def total(self) -> float:
        return sum(part.count * part.each for part in self.parts)

    @property
    def hours(self) -> float:
        """Hours on the clock."""
        return self.total * self.clock / 3600


def forecast(run: Run, costs: Mapping[str, float], started: float, layers: Sequence[int], byte: float) -> Forecast:
    """Return the time of a run whose pieces take `costs`, `started` seconds before its model is built."""
    config, trainer, data = run.config, run.config.trainer, run.data
    shown: dict[str, Any] = {
        "device_type": run.device.type,
        "step": costs[STEP],
        "clock": costs["clock"] if run.device.type == "cpu" else 1.0,
        "layers": list(layers),
        "is_own_model": [*layers] == [config.model.n_layers],
        "threads": torch.get_num_threads(),
        "watts": costs.get("watts"),
    }
    if data is None and trainer.total_steps is None:
        return Forecast(parts=[Part("steps", 1, costs[STEP])], is_whole=False, **shown)
    length = RunLength.of(config, run.train.steps_per_epoch(config.global_batch_size) if data else sys.maxsize)
    end = length.last_step
    if trainer.hours is not None:
        end = min(end, round(trainer.hours * 3600 / (costs[STEP] * shown["clock"])))
    parts = [Part("start", 1, started + costs["build"]), Part("compiling", 1, costs.get("compiling", 0.0))]
    parts.append(Part("steps", end, costs[STEP]))
    if data is not None:
        due = Intervals.of(trainer, length, data.validation is not None).due(0, end)
        saved = byte * costs["bytes"]
        n_batches = _batches(config, [data.validation] if data.validation else [])
        n_tokens = config.sampling.max_new_tokens
        if data.pairs.get("train"):
            n_tokens = min(n_tokens, answer_tokens(data))
        parts += [
            Part("evaluations", due[EVALUATION], n_batches * costs[EVALUATION]),
            Part("samples", due[SAMPLES], n_tokens * costs["token"]),
            Part("checkpoints", due[SAVE], saved),
            Part("evaluation at the end", due[REPORT], _report_seconds(config, data, costs, end)),
        ]
    return Forecast(parts=[part for part in parts if part.count * part.each], is_whole=data is not None, **shown)


def _batches(config: RunConfig, held_out: Sequence[PackedSequences]) -> float:
    """Batches of validation of these sequences; a part of one counts as such a part."""
    most = config.trainer.eval_max_batches
    batches = [len(rows) / config.micro_batch_size for rows in held_out]
    return sum(number if most is None else min(number, most) for number in batches)


def _report_seconds(config: RunConfig, data: PreparedData, costs: Mapping[str, float], n_steps: int) -> float:
    held_out = [rows for splits in data.rows.values() for split, rows in splits.items() if split != "train"]
    seconds = costs["build"] + _batches(config, held_out) * costs[EVALUATION]
    if "answers" not in costs:
        return seconds
    asked = questions_at_the_end(config, data, n_steps * config.global_batch_size * config.seq_len)
    batches, with_answer = (number / Plan.questions_at_once for number in (asked.n, sum(asked.of_splits)))
    seconds += costs["token_bytes"] + costs["index"]
    return seconds + batches * costs["answers"] + with_answer * (costs["scored"] + costs["look_up"])


# --- the process ------------------------------------------------------------------------------------------------------


def main(words: list[str]) -> None:
    """The process: read a config from standard input, a line, time its run, print the forecast as JSON.

    It times once its input ends (`dtl.foresight.process.timing`).
    """
    run, is_real = opened(typed(cast(dict[str, Any], json.loads(sys.stdin.readline())))), json.loads(words[0])
    n_layers = run.config.model.n_layers
    is_one = is_real or n_layers <= DEPTHS[-1]
    depths = SLOW_DEPTHS if _is_slow(run, on_meta(run.config, run.vocab_size)[0]) else DEPTHS
    trainer, limits = run.config.trainer, REAL if is_real else SHALLOW
    started = float(words[1]) + time.process_time()  # all that a run imports and reads has been by now
    sys.stdin.read()
    with arithmetic(deterministic=trainer.deterministic, tf32=trainer.tf32):
        measured = {}
        for n in (n_layers,) if is_one else depths:
            gc.collect()  # a deeper model finds the pages of the first one, which take as long as half a step
            measured[n] = timed(run, n, limits)
    found = forecast(run, of_depth(measured, n_layers), started, list(measured), seconds_of_a_byte())
    print("\n" + json.dumps(asdict(found)))
