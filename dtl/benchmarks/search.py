"""suite=search: training steps saved by pruning. The same search runs with ASHA and without, by the real command.

A round is a seed, of the proposals and of training. Without pruning the winner is run again with new seeds: the
standard deviation of its losses is the noise within which the two best losses should agree.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev

from dtl.base.system import usable_cores
from dtl.benchmarks.config import SUITES
from dtl.benchmarks.measuring import PERCENT, Row, at_most, ratio_of
from dtl.benchmarks.suite import Suite, Workplace, made_file, run_program, train_command
from dtl.commandline.overrides import quoted
from dtl.run_dir.state import read_run_state
from dtl.run_dir.sweep_records import SweepFolder
from dtl.sweeps.config import require_optuna

SPACE = (
    "optimizer.lr=tag(log,interval(1e-5,1e-1))",
    "optimizer.weight_decay=tag(log,interval(1e-3,1))",
    "model.dropout=choice(0.0,0.1,0.3)",
)
SMALL = (
    *("data=text", "tokenizer=byte", "trainer=cpu", "tracker=local", "device=cpu", "model.dim=32", "model.n_layers=2"),
    *("model.n_heads=2", "data.seq_len=64", "trainer.precision=fp32", "trainer.eval_max_batches=16"),
    *("trainer.max_epochs=null", "trainer.sample_every_evals=0", "trainer.early_stopping_patience=null"),
    *("trainer.save_every_epochs=null", "trainer.keep=1", "trainer.log_every_steps=1"),
)
EVALUATIONS = 16  # of a trial: ASHA's rungs are at 1, 2, 4, 8 and 16 of them
MAX_STEPS = 0.5  # of the steps without pruning; 0.24 was measured (docs/results.md)
MAX_WORSE = 2  # standard deviations of a seed: two runs of one configuration differ by 1.4 of them, root mean square
CONFIRMATIONS = 5


@dataclass(frozen=True)
class Outcome:
    """The result of one search: optimizer steps of all its trials, and its best validation loss."""

    steps: int
    best_loss: float
    confirmed: list[float]  # losses of the winner with new seeds


def asha(place: Workplace) -> Iterator[Row]:
    """Yield two rows: training steps, and the increase of the best loss in standard deviations of a seed."""
    require_optuna()
    text = made_file(place, 20_000 if place.settings.tiny else 200_000)
    pruned, unpruned = [], []
    for number in range(place.settings.rounds):
        pruned.append(searched(place, text, number, "asha"))
        unpruned.append(searched(place, text, number, "none"))
    noise = [stdev(full.confirmed) for full in unpruned]
    worse = [(ours.best_loss - full.best_loss) / sd for ours, full, sd in zip(pruned, unpruned, noise, strict=True)]
    name = f"the same {n_trials(place)} trials, none pruned"
    yield Row(
        "asha_steps",
        f"training steps of a search of {n_trials(place)} trials with ASHA",
        unit="steps",
        ours=median(outcome.steps for outcome in pruned),
        peer=median(outcome.steps for outcome in unpruned),
        peer_name=name,
        ratio=ratio_of([ours.steps / full.steps for ours, full in zip(pruned, unpruned, strict=True)], PERCENT),
        rounds=len(unpruned),
        goal=at_most(MAX_STEPS, PERCENT, figure="ratio"),
    )
    losses = [
        f"{ours.best_loss:.4f} and {full.best_loss:.4f} (± {sd:.4f})"
        for ours, full, sd in zip(pruned, unpruned, noise, strict=True)
    ]
    yield Row(
        "asha_loss",
        "best loss with ASHA above the best without, in standard deviations of a seed, the worst round",
        unit="sd",
        ours=max(worse),
        peer_name=name,
        rounds=len(unpruned),
        goal=at_most(MAX_WORSE, "sd"),
        note=f"best losses with and without pruning, and the deviation of a seed: {'; '.join(losses)}",
    )


def n_trials(place: Workplace) -> int:
    """Return the number of trials of a search."""
    return 5 if place.settings.tiny else 6 if place.settings.quick else 30


def searched(place: Workplace, text: Path, number: int, pruner: str) -> Outcome:
    """Run a search by its command. Raises DTLError with the end of its output when it fails."""
    folder = place.folder / f"{number}-{pruner}"
    folder.mkdir()
    few = place.settings.tiny or place.settings.quick
    steps = EVALUATIONS if few else 15 * EVALUATIONS
    seed = place.settings.seed + 100 * number  # the winner is confirmed with those that follow
    confirm = 0 if pruner != "none" else 2 if few else CONFIRMATIONS
    command = train_command(
        *("-m", "hydra/sweeper=dtl_optuna", *SPACE, *SMALL, f"data.path={quoted(str(text))}"),
        *(f"data.cache_dir={quoted(str(place.folder / 'cache'))}", f"hydra.sweep.dir={quoted(str(folder))}"),
        *(f"trainer.total_steps={steps}", f"trainer.eval_every_steps={steps // EVALUATIONS}", f"seed={seed}"),
        *(f"hydra.sweeper.pruner={pruner}", f"hydra.sweeper.n_trials={n_trials(place)}", f"hydra.sweeper.seed={seed}"),
        *(f"hydra.launcher.n_jobs={min(2, usable_cores())}", f"sweep.confirm={confirm}"),
    )
    run_program(command, place.folder, f"the search with pruner={pruner}")
    sweep = SweepFolder(folder)
    record = sweep.read()
    assert record is not None
    own = [trial for trial in sweep.trials() if trial.role == "trial"]
    winner = record.extra["winner"]
    trained = [read_run_state(sweep.trial_folder(trial.number)).step or 0 for trial in own]
    return Outcome(sum(trained), winner["value"], winner["values"])


SUITES.register("search")(Suite({"asha": asha}))
