"""suite=startup: what a run costs in addition to its steps.

`first_step` is the time from the start of a process to its first step, which every trial of a sweep pays; the peer is
Hugging Face's Trainer, with a model of the same size and tokens that are already in memory. `outside` is the part of a
run's processor time that is not spent in steps.

python -m dtl.benchmarks.startup '{"words": ["model=small", ...], ...}'      is such a run, and prints its times
"""

import functools
import inspect
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dtl.base.json_files import read_json
from dtl.benchmarks.config import SUITES
from dtl.benchmarks.measuring import (
    PERCENT,
    MissingPeerError,
    Row,
    at_least,
    at_most,
    compared,
    in_turns,
    peer,
    ratio_of,
    skipped,
)
from dtl.benchmarks.suite import (
    MAX_CHARACTERS,
    Suite,
    Workplace,
    made_articles_file,
    made_file,
    run_program,
    run_side,
    train_command,
)
from dtl.commandline.overrides import quoted
from dtl.data.config import TokenizerConfig
from dtl.data.tokenizers.tokenizer import build_tokenizer
from dtl.errors import DataError, DTLError
from dtl.tracking.metrics import METRICS

RUN = (
    *("model=small", "data=text", "tokenizer=bpe", "trainer=cpu", "tracker=local", "device=cpu", "data.seq_len=64"),
    *("trainer.max_epochs=null", "trainer.total_steps=2", "trainer.micro_batch_size=8", "trainer.grad_accum_steps=1"),
    *("trainer.log_every_steps=1", "trainer.eval_max_batches=1"),
)
TINY = ("model.dim=16", "model.n_heads=1", "model.n_layers=1", "tokenizer.vocab_size=300")
MAX_SECONDS = 6.0  # 4.5 was measured (docs/results.md)
POLL_SECONDS = 0.005


def first_step(place: Workplace) -> Iterator[Row]:
    """Yield one row: seconds to the end of the first step, with their parts in its note."""
    row = Row(
        "first_step",
        "process start to the end of the first step, model=small, cached data",
        "s",
        peer_name="transformers.Trainer, tokens in memory",
        goal=at_most(MAX_SECONDS, "s"),
    )
    try:
        peer("accelerate", "pip install accelerate (the Trainer needs it)")
    except MissingPeerError as error:
        yield skipped(row, str(error))
        return
    text, first = made_file(place, 200_000), place.folder / "first"
    run = [*RUN, *(TINY if place.settings.tiny else ()), f"data.path={quoted(str(text))}"]
    run.append(f"data.cache_dir={quoted(str(place.folder / 'cache'))}")
    run_program(_into(first, run), place.folder, "the run that fills the cache")
    model = read_json(first / "checkpoints" / "best" / "config.json")  # the peer has the same size
    size = [str(model[key]) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")]
    numbers = itertools.count()

    def ours() -> None:
        folder = place.folder / f"run-{next(numbers)}"
        _until(lambda: any(file.stat().st_size for file in folder.glob(METRICS)), _into(folder, run), place.folder)

    def theirs() -> None:
        done = place.folder / f"peer-{next(numbers)}"
        _until(done.exists, [sys.executable, "-c", PEER, str(done), *size], place.folder)

    seconds = in_turns(ours, theirs, place.settings.rounds)
    yield replace(compared(row, seconds), note=_parts(place, run, min(seconds[0])))


def _parts(place: Workplace, run: Sequence[str], total: float) -> str:
    """Describe the parts of the fastest round, each the difference of two processes that stop one after the other."""

    def seconds(*arguments: str) -> float:
        measured = []
        for _ in range(1 if place.settings.quick else place.settings.rounds):
            began = time.perf_counter()
            run_program([sys.executable, *arguments], place.folder, " ".join(arguments[:2]))
            measured.append(time.perf_counter() - began)
        return min(measured)  # other load only adds

    def imports(*modules: str) -> float:
        return seconds("-c", f"import {', '.join(modules)}")

    python = seconds("-c", "pass")
    composing = seconds("-m", "dtl.train", *run, "--cfg", "job")
    imported = [
        imports("dtl.train"),  # a part of composing
        imports("dtl.train", "torch"),
        imports("dtl.train", "torch._dynamo"),
        imports("dtl.train", "torch._dynamo", "dtl.runner.run"),
    ]
    torch, dynamo, other = (after - before for before, after in itertools.pairwise(imported))
    rest = total - composing - torch - dynamo - other
    return (
        f"the fastest: Python {python:.2f} s, Hydra and the checks of the config {composing - python:.2f} s, "
        f"import torch {torch:.2f} s, torch._dynamo, which torch imports for its first optimizer, {dynamo:.2f} s, "
        f"other imports {other:.2f} s, opening the data, building the model and the first step {rest:.2f} s"
    )


def trainer_to_first_step(done: str, width: str, n_heads: str, n_layers: str, vocabulary: str) -> None:
    """The peer: Hugging Face's Trainer, which creates the file `done` after its first step. As text, without DTL."""
    import importlib
    from pathlib import Path

    import torch

    hf = importlib.import_module("transformers")
    context, batch_size = 64, 8

    class FirstStep(hf.TrainerCallback):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            Path(done).touch()

    config = hf.GPT2Config(
        vocab_size=int(vocabulary), n_positions=context, n_embd=int(width), n_layer=int(n_layers), n_head=int(n_heads),
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    tokens = torch.randint(int(vocabulary), (2 * batch_size, context))
    settings = hf.TrainingArguments(
        output_dir=str(Path(done).with_suffix(".trainer")), max_steps=2, per_device_train_batch_size=batch_size,
        use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": sequence, "labels": sequence} for sequence in tokens]
    hf.Trainer(hf.GPT2LMHeadModel(config), settings, train_dataset=data, callbacks=[FirstStep()]).train()


PEER = f"""
import sys
{inspect.getsource(trainer_to_first_step)}
trainer_to_first_step(*sys.argv[1:])
"""


def _into(folder: Path, run: Sequence[str]) -> list[str]:
    return train_command(*run, f"hydra.run.dir={quoted(str(folder))}")


def _until(done: Callable[[], bool], command: Sequence[str], folder: Path) -> None:
    """Start a process, wait until `done()`, kill it. Raises DTLError when it ends before."""
    log = folder / "log.txt"
    with log.open("wb") as output, subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) as process:
        while not done():
            if process.poll() is not None:
                end = log.read_text(encoding="utf-8", errors="replace")[-MAX_CHARACTERS:]
                raise DTLError(f"{' '.join(command[1:4])}: ended before its first step: {end}")
            time.sleep(POLL_SECONDS)
        process.kill()


# --- outside of steps ---------------------------------------------------------------------------------------------

RUN_STEPS = 300
QUICK_STEPS = {"wiki": 4, "qa": 8}
MAX_OUTSIDE = {"wiki": 0.05, "qa": 0.10}
EVALUATIONS = {"wiki": 1, "qa": 9}  # in 300 steps with the defaults
QUICK_EVALUATIONS = {"wiki": 1, "qa": 2}


@dataclass(frozen=True)
class TimedRun:
    """A run to take."""

    words: list[str]  # of dtl.train
    folder: str
    seed: int
    report: bool  # evaluate the best checkpoint at the end


@dataclass(frozen=True)
class Spent:
    """Seconds of the processor, of all threads and processes that the run has started and waited for."""

    total: float
    in_steps: float
    in_evaluations: float  # while it trains, with what is saved and sampled then
    in_report: float  # the evaluation of the best checkpoint at the end
    steps: int
    evaluations: int


def outside(place: Workplace, data: str) -> Iterator[Row]:
    """Yield one row: the part of the processor time of a run of 300 steps that is spent outside of its steps."""
    most = MAX_OUTSIDE[data]
    row = Row(
        f"outside_{data}", f"processor time outside of steps, model=small data={data}, {RUN_STEPS} steps", PERCENT,
        peer_name=f"the {100 * most:g} % allowed", peer=most, goal=at_least(1),
    )  # fmt: skip
    settings = place.settings
    n_steps = 4 if settings.tiny else QUICK_STEPS[data] if settings.quick else RUN_STEPS
    try:
        build_tokenizer(TokenizerConfig("bpe" if settings.tiny else "gpt2"), lambda: ["the text of a tiny vocabulary"])
    except DataError as error:
        yield skipped(row, str(error))
        return
    words = [f"data={data}", "model=small", f"trainer.total_steps={n_steps}", "device=cpu"]
    words += ["trainer.early_stopping_patience=null", f"data.cache_dir={quoted(str(place.folder / 'cache'))}"]
    words += [*TINY, "tokenizer=bpe", "tracker=local"] if settings.tiny else []
    if data == "wiki":
        articles = settings.wiki or made_articles_file(place, 100_000 if settings.tiny else 1_000_000)
        words.append(f"data.path={quoted(str(Path(articles).expanduser().absolute()))}")
    whole = n_steps == RUN_STEPS
    words += [] if whole else [f"trainer.eval_every_steps={n_steps // QUICK_EVALUATIONS[data]}"]
    spent = [_spent(place, words, number, whole) for number in range(settings.rounds)]
    fractions = [fraction_outside(each, each.evaluations if whole else EVALUATIONS[data]) for each in spent]
    note = f"{statistics.median(each.in_steps / each.steps for each in spent):.2f} s a step, one thread; "
    if whole:
        note += (
            f"the evaluation at the end, {statistics.median(each.in_report for each in spent):.1f} s, does not count"
        )
    else:
        note += f"from {n_steps} steps and {spent[0].evaluations} of {EVALUATIONS[data]} evaluations"
    ratio = ratio_of([most / fraction for fraction in fractions])
    yield replace(row, ours=statistics.median(fractions), ratio=ratio, rounds=len(fractions), note=note)


def fraction_outside(spent: Spent, evaluations: int) -> float:
    """Return the part outside of steps, had the run 300 of them and these evaluations while it trains.

    The evaluation at the end belongs to neither part.
    """
    once = spent.total - spent.in_steps - spent.in_evaluations - spent.in_report
    other = once + spent.in_evaluations * evaluations / max(1, spent.evaluations)
    return other / (other + spent.in_steps * RUN_STEPS / spent.steps)


def _spent(place: Workplace, words: list[str], number: int, report: bool) -> Spent:
    work = TimedRun(words, str(place.folder / f"outside-{number}"), place.settings.seed + number, report)
    return run_side(__name__, work, Spent, f"{words[0]}: the run failed")


def timed_run(work: TimedRun) -> Spent:
    """Take a run in this process, as `python -m dtl.train` does, and return its times since the process began."""
    import os
    import resource

    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    from dtl.commandline.compose import compose
    from dtl.runner.run import Origin, train
    from dtl.runner.session import Session
    from dtl.training.trainer import Trainer

    spent, evaluated = {"steps": 0.0, "evaluations": 0.0, "report": 0.0}, [0]
    steps_of, evaluation_of, report_of = Trainer.steps, Session.evaluate, Session.final_report

    @contextmanager
    def counted(what: str) -> Iterator[None]:
        began = time.process_time()
        try:
            yield
        finally:
            spent[what] += time.process_time() - began

    def steps(self: Trainer) -> Iterator[Any]:
        reports, report = steps_of(self), None
        while True:
            with counted("steps"):
                report = next(reports, None)
            if report is None:
                return
            yield report

    def evaluate(self: Session) -> bool:
        evaluated[0] += 1
        with counted("evaluations"):
            return evaluation_of(self)

    def final_report(self: Session) -> Any:
        with counted("report"):
            return report_of(self) if work.report else None

    Trainer.steps, Session.evaluate, Session.final_report = steps, evaluate, final_report
    config = replace(compose(*work.words), seed=work.seed)
    train(config, work.folder, Origin(overrides=work.words))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + children.ru_utime + children.ru_stime
    assert config.trainer.total_steps is not None
    times = total, spent["steps"], spent["evaluations"], spent["report"]
    return Spent(*times, config.trainer.total_steps, evaluated[0])


if __name__ == "__main__":
    print(json.dumps(asdict(timed_run(TimedRun(**json.loads(sys.argv[1]))))))
else:
    SUITES.register("startup")(
        Suite(
            {"first_step": first_step}
            | {f"outside_{data}": functools.partial(outside, data=data) for data in MAX_OUTSIDE}
        )
    )
