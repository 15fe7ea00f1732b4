"""Reads a run from its folder as a report needs it. Missing or damaged files are skipped, never an error."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dtl.base.json_files import (
    as_list,
    as_number,
    as_object,
    as_whole,
    dotted,
    json_object,
    json_object_or_empty,
    open_regular,
    read_json_or_empty,
    read_lines,
    read_record_or_empty,
)
from dtl.base.safe_text import in_one_line, visible
from dtl.evaluation.config import EVALUATION_FILE
from dtl.run_dir.provenance import RECORD, RESULT, chosen_files
from dtl.run_dir.record_checks import record_problems
from dtl.run_dir.references import Subject, data_kind, vocabulary_of_run
from dtl.run_dir.state import read_config, read_run_state
from dtl.run_dir.sweep_records import TRACEBACK, TRIAL
from dtl.tracking.metrics import METRICS, SPEED, TRAINING, VALIDATION, RowCheck

MAX_POINTS = 400  # of a curve: more than a screen shows, and it bounds the page for a run of a week
MAX_SAMPLES, MAX_CHARACTERS = 8, 1500
MAX_TRACEBACK_BYTES = 4000
AXES = ("step", "tokens", "seconds")
STOPPED = ("pruned", "interrupted")  # on purpose: their traceback is no information
PEAK = "memory/peak_bytes"


@dataclass(frozen=True)
class Curve:
    """Loss against each axis; arrays of one length, steps rising."""

    step: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray  # of training, without evaluation and saving
    loss: np.ndarray  # nats per target token

    def axis(self, name: str) -> np.ndarray:
        """Return the values of one of AXES."""
        return {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}[name]


@dataclass(frozen=True)
class Run:
    """A run: its settings, how it ended, and what it measured."""

    folder: Path
    name: str
    state: str  # as `dtl.runs` shows it
    reason: str
    traceback: tuple[Path, str] | None  # the file, and its last lines
    step: int | None
    seed: int | None
    overrides: list[str]
    config: dict[str, str]  # dotted keys, values as they are shown
    choices: dict[str, str]  # config group to the name of its file
    commit: str | None
    data: str | None  # fingerprint of its tokens
    confirms: bool  # run of a search's winner with a fresh seed
    metrics: dict[str, float]  # of result.json; `value` is the best validation loss
    training: Curve
    validation: Curve
    tokens_per_second: float | None  # median of what was logged
    peak_bytes: int | None
    n_parameters: int | None = None  # without embeddings
    data_kind: str = ""  # text or questions, as `references.data_kind` has it
    vocabulary: int | None = None  # entries, where a checkpoint has them
    last_step: int | None = None  # as planned
    tokens: float | None = None  # that it was trained on, padding excluded
    epochs: float | None = None  # over the source that was repeated most
    samples: dict[str, str] = field(default_factory=dict)  # prompt to the text that followed it, at the last step
    problems: list[str] = field(default_factory=list)  # of its records, as `record_problems` names them

    @property
    def finished(self) -> bool:
        """True for a run that ended by itself: only these are compared, the others had less training."""
        return self.state == "finished"

    @property
    def subject(self) -> Subject | None:
        """What decides which reference curve belongs to it; None for a run that began with another model's weights."""
        if self.config.get("init", "null") != "null":
            return None
        tokenizer = self.config.get("tokenizer.kind", "")
        names = self.choices.get("experiment"), self.choices.get("model")
        return Subject(*names, self.data_kind, self.n_parameters, tokenizer, self.vocabulary)


def read_run(folder: Path) -> Run:
    """Read the folder of a run or of a sweep's trial."""
    state, trial = read_run_state(folder), read_record_or_empty(folder / TRIAL)
    record = read_json_or_empty(folder / RECORD)
    overrides = state.overrides or [in_one_line(str(word), 1000) for word in as_list(trial.get("overrides"))]
    check = RowCheck()
    rows = list(_rows(folder / METRICS, check))
    training, validation = _curves(rows)
    speeds, peaks = ([row[key] for row in rows if key in row] for key in (SPEED, PEAK))
    git, seen, config = record.get("git"), _seen(folder), read_config(folder)
    return Run(
        folder=folder,
        name=state.name,
        state=state.state,
        reason=in_one_line(str(trial.get("reason") or state.reason), 600),
        traceback=None if state.state in STOPPED else _traceback(folder, trial),
        step=state.step,
        seed=state.seed,
        overrides=overrides,
        config={key: in_one_line(_shown(value), 300) for key, value in dotted(config)},
        choices={group: in_one_line(name, 40) for group, name in chosen_files(record).items()},
        commit=in_one_line(str(git.get("commit") or ""), 40) if isinstance(git, dict) else None,
        data=_fingerprint(folder, record),
        confirms=trial.get("role") == "confirm",
        metrics=_metrics(folder, state.best_loss),
        training=training,
        validation=validation,
        tokens_per_second=float(np.median(speeds)) if speeds else None,
        peak_bytes=int(max(peaks)) or None if peaks else None,
        n_parameters=as_whole(as_object(record.get("n_parameters")).get("without_embeddings")),
        data_kind=data_kind(config.get("data")),
        vocabulary=vocabulary_of_run(folder),
        last_step=state.last_step,
        tokens=sum(tokens for tokens, _ in seen) if seen else None,
        epochs=max(epochs for _, epochs in seen) if seen else None,
        samples=_samples(folder / "samples"),
        problems=record_problems(folder, check),
    )


def _fingerprint(folder: Path, record: Mapping[str, Any]) -> str | None:
    """Return the fingerprint of the data: of the run's start, else of its evaluation."""
    found = record.get("data_fingerprint") or read_record_or_empty(folder / EVALUATION_FILE).get("data_fingerprint")
    return in_one_line(str(found), 64) if found else None


def _seen(folder: Path) -> list[tuple[float, float]]:
    """Return tokens and epochs of each source, of those that result.json has."""
    sources = as_object(read_record_or_empty(folder / RESULT).get("seen")).values()
    pairs = ((as_number(as_object(each).get("tokens")), as_number(as_object(each).get("passes"))) for each in sources)
    return [(tokens, epochs) for tokens, epochs in pairs if tokens is not None and epochs is not None]


def _metrics(folder: Path, best_loss: float | None) -> dict[str, float]:
    """Return the numbers of result.json by key."""
    result = read_record_or_empty(folder / RESULT)
    metrics = {key: float(value) for key, value in result.items() if as_number(value) is not None and key != "step"}
    return {"value": best_loss, **metrics} if best_loss is not None else metrics


def _curves(rows: list[dict[str, float]]) -> tuple[Curve, Curve]:
    """Return the binned training loss, and the validation loss at the tokens and seconds of its steps."""
    stepped = [row for row in rows if "tokens" in row and "seconds" in row]
    trained = [row for row in stepped if TRAINING in row]
    measured = [row for row in rows if VALIDATION in row]
    all_steps, tokens, seconds = (_column(stepped, key) for key in AXES)
    steps = _column(measured, "step")
    if len(all_steps):
        places = np.interp(steps, all_steps, tokens), np.interp(steps, all_steps, seconds)
    else:
        places = np.full_like(steps, np.nan), np.full_like(steps, np.nan)
    binned = [_in_bins(_column(trained, key)) for key in (*AXES, TRAINING)]
    return Curve(*binned), Curve(steps, *places, _column(measured, VALIDATION))


def _column(rows: list[dict[str, float]], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], dtype=float)


def _in_bins(values: np.ndarray) -> np.ndarray:
    """Return means over neighbours, at most MAX_POINTS of them."""
    if len(values) <= MAX_POINTS:
        return values
    edges = np.linspace(0, len(values), MAX_POINTS + 1).astype(int)
    return np.add.reduceat(values, edges[:-1]) / np.diff(edges)


def _rows(file: Path, check: RowCheck) -> Iterator[dict[str, float]]:
    """Yield the needed columns of metrics.jsonl, steps rising, without torn lines and values that are no numbers."""
    wanted, last = (*AXES, TRAINING, VALIDATION, SPEED, PEAK), -math.inf
    with suppress(OSError):
        for line in read_lines(file):
            row = json_object_or_empty(line)
            check.see(row if as_whole(row.get("step")) is not None else None)
            if as_number(row.get("step")) is not None and row["step"] >= last:
                last = row["step"]
                yield {key: row[key] for key in wanted if as_number(row.get(key)) is not None}


def _samples(folder: Path) -> dict[str, str]:
    """Return prompt and text of the samples of the last evaluation."""
    samples: dict[str, str] = {}
    files = sorted(folder.glob("step-*.jsonl"))
    with suppress(OSError, ValueError, LookupError, TypeError):
        for line in islice(read_lines(files[-1]), MAX_SAMPLES) if files else []:
            row = json_object(line)
            samples[visible(str(row["prompt"]))[-MAX_CHARACTERS:]] = visible(str(row["text"]))[:MAX_CHARACTERS]
    return samples


def _traceback(folder: Path, trial: Mapping[str, Any]) -> tuple[Path, str] | None:
    """Return the traceback file that the trial names, if it is inside the trial's folder, and its last bytes."""
    name = trial.get("traceback") or TRACEBACK
    with suppress(OSError, ValueError, RuntimeError):  # a link to itself
        file = (folder / str(name)).resolve()
        if file.is_relative_to(folder.resolve()) and file.is_file():
            with open_regular(file) as opened:
                opened.seek(max(0, file.stat().st_size - MAX_TRACEBACK_BYTES))
                return folder / str(name), visible(opened.read(MAX_TRACEBACK_BYTES).decode(errors="replace")).strip()
    return None


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
