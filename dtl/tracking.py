"""What a run measures, kept: metrics.jsonl always, W&B on top when it can be had.

metrics.jsonl is the truth. W&B lives in a thread of its own (dtl/records/wandb_sink.py), so that training
never waits for it nor dies of it. Imports no torch, and wandb only when a run uses it.
"""

import json
import logging
import os
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from dtl.durable import write_atomically
from dtl.errors import ConfigError, InterruptedRun
from dtl.records.json_lines import LineFile, json_line, plain
from dtl.records.redaction import redact_all, refuse_secrets
from dtl.records.wandb_sink import WandbRun, WandbSink, choose_mode

log = logging.getLogger(__name__)

METRICS, LOST, RESULT = "metrics.jsonl", "metrics.lost.jsonl", "result.json"
KINDS = ("wandb", "local")
MODES = ("auto", "online", "offline")
State = Literal["running", "finished", "stopped", "interrupted", "failed"]


@dataclass
class TrackerConfig:
    """Who is told how the run goes, beside metrics.jsonl in its folder."""

    kind: str = "wandb"  # wandb (metrics.jsonl and Weights & Biases) | local (metrics.jsonl alone)
    project: str = "dtl"  # W&B project
    entity: str | None = None  # W&B user or team; null = your default
    mode: str = "auto"  # auto (WANDB_MODE, else online with a key and a network, else offline) | online | offline
    group: str | None = None  # W&B group; null = the folder of a multirun
    tags: list[str] = field(default_factory=list)  # W&B tags

    def validate(self) -> None:
        """Raises ConfigError for what W&B would refuse only after the model is built."""
        for key, allowed in (("kind", KINDS), ("mode", MODES)):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"tracker.{key}={getattr(self, key)}: one of {', '.join(allowed)}.")
        if not 1 <= len(self.project) <= 128 or set(self.project) & set("/\\#?%:"):
            raise ConfigError(f"tracker.project={self.project}: 1 to 128 characters, none of / \\ # ? % :")
        if self.group is not None and not 1 <= len(self.group) <= 128:
            raise ConfigError(f"tracker.group={self.group}: 1 to 128 characters, or null.")
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ConfigError(f"tracker.tags: '{tag}' must have 1 to 64 characters.")


# --- a run's tracker --------------------------------------------------------------------------------------------


def open_tracker(
    config: TrackerConfig,
    run_dir: Path,
    run_config: dict[str, Any],
    *,
    name: str,
    run_id: str | None = None,
    resumed_step: int | None = None,
    overrides: list[str] | None = None,
    group: str | None = None,
    job_number: int | None = None,
    patience: float = 12.0,
) -> "Tracker":
    """Start tracking a run. Never prompts; returns within 20 seconds whatever the network does.

    `run_config` is the resolved config, nested. `run_id` is the W&B id of the run that is resumed at
    `resumed_step`. `job_number`, `overrides` and `group` name a job of a multirun. `patience` is how many
    seconds a W&B server may take to answer before the run goes offline.
    Raises ConfigError when an override looks like a secret.
    """
    refuse_secrets(overrides or [])
    if resumed_step is not None:
        truncate_metrics(run_dir, resumed_step)
    mode, reason = choose_mode(config.mode) if config.kind == "wandb" else ("local", "")
    if mode in ("local", "disabled"):
        return Tracker(run_dir, None, run_id, f"local: {METRICS}" + (f" ({reason})" if reason else ""))
    if run_id is None and job_number is None:
        run_id = os.environ.get("WANDB_RUN_ID")  # set by a W&B agent; in a multirun it would name all jobs alike
    request = WandbRun(
        run_id=run_id or "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8)),
        run_dir=run_dir.resolve(),
        project=config.project,
        entity=config.entity,
        name=_display_name(name, job_number, overrides or []),
        group=config.group or group,
        tags=tuple(config.tags),
        config=redact_all(run_config),
    )
    sink = WandbSink(request, mode, reason, patience)
    return Tracker(run_dir, sink, request.run_id, None)


class Tracker:
    """One run's measurements. A context manager: leaving it by an exception marks the run as failed."""

    def __init__(self, run_dir: Path, sink: WandbSink | None, run_id: str | None, status: str | None) -> None:
        self.run_dir = run_dir
        self.run_id = run_id  # W&B's id of this run, kept in the checkpoint; None when there never was one
        self._sink = sink
        self._status = status or ""
        self._lines = LineFile(run_dir / METRICS)
        self._finished = False

    @property
    def status(self) -> str:
        """One line for people: where the measurements go, and why."""
        return self._status if self._sink is None else self._sink.status

    def log_steps(self, rows: list[dict[str, Any]], measured: Mapping[str, float] | None = None) -> None:
        """Append a row per optimizer step to metrics.jsonl and send the last one to W&B.

        Rows hold `step`, `tokens`, `seconds`, `train/loss` and whatever else was measured at that step.
        `measured` is of the moment, such as `speed/` and `memory/`: it joins the last row.
        """
        if not rows:
            return
        rows = [*rows[:-1], {**rows[-1], **(measured or {})}]
        self._lines.append(rows)
        last = dict(rows[-1])
        self._send(last.pop("step"), last)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row, such as `val/loss` of an evaluation, to metrics.jsonl and send it to W&B."""
        self._lines.append([{"step": step, **metrics}])
        self._send(step, dict(metrics))

    def log_samples(self, step: int, rows: list[dict[str, str]]) -> None:
        """Write texts of the model to samples/step-00001000.jsonl, a JSON object a line, and as a W&B table."""
        path = self.run_dir / "samples" / f"step-{step:08d}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, "".join(map(json_line, rows)))
        except OSError as error:
            log.warning("%s: cannot be written (%s). Training goes on.", path, error.strerror)
        if self._sink is not None and rows:
            self._sink.log_table("samples", rows, step)

    def finish(self, state: State, summary: Mapping[str, Any] | None = None) -> None:
        """Close the run; W&B shows it as finished for `finished` and `stopped`, else as failed. Twice is once."""
        if self._finished:
            return
        self._finished = True
        self._lines.append([])  # a last try for rows that a full disk refused
        if self._sink is not None:
            self._sink.finish(0 if state in ("finished", "stopped") else 1, dict(summary or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.finish("finished")
        else:
            self.finish("interrupted" if issubclass(kind, (KeyboardInterrupt, InterruptedRun)) else "failed")

    def _send(self, step: int, metrics: dict[str, Any]) -> None:
        if self._sink is not None:
            grouped = {key if "/" in key else f"train/{key}": value for key, value in metrics.items()}
            self._sink.log({key: value for key, value in grouped.items() if value is not None}, step)


def _display_name(name: str, job_number: int | None, overrides: list[str]) -> str:
    """`small`, or in a multirun `small-003 optimizer.lr=0.003`; W&B takes 128 characters."""
    return name if job_number is None else f"{name}-{job_number:03d} {' '.join(overrides)}".strip()[:128]


# --- metrics.jsonl ----------------------------------------------------------------------------------------------


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl in the order of writing, `[]` without the file.

    A last line that a kill cut short is left out. Raises OSError when the file cannot be read.
    """
    path = run_dir / METRICS
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [row for row in map(parse_row, lines) if row is not None]


def truncate_metrics(run_dir: Path, step: int) -> int:
    """Move the rows beyond `step` from metrics.jsonl to metrics.lost.jsonl; returns how many.

    For a run that goes on from an older checkpoint. Rows of evaluations follow the same rule. A last line
    that was cut short goes; nothing else does. A crash in between loses nothing and doubles nothing.
    A disk that refuses costs a warning: the rows then stay where they are.
    """
    path = run_dir / METRICS
    if not path.exists():
        return 0
    try:
        before = path.read_bytes()
        rows = [(line, parse_row(line)) for line in before.splitlines()]
        if rows and rows[-1][1] is None:
            rows.pop()
        lost = [line for line, row in rows if row is not None and row["step"] > step]
        kept = [line for line, row in rows if row is None or row["step"] <= step]
        if lost:
            _keep_lost(run_dir / LOST, _joined(lost))
        if _joined(kept) != before:
            write_atomically(path, _joined(kept))
    except OSError as error:
        log.warning("%s: rows beyond step %d could not be moved (%s).", path, step, error.strerror)
        return 0
    return len(lost)


def _keep_lost(path: Path, lost: bytes) -> None:
    before = path.read_bytes() if path.exists() else b""
    if not before.endswith(lost):  # they are there already when a crash came before metrics.jsonl was replaced
        write_atomically(path, before + lost)


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row in a line of metrics.jsonl, or None when the line is no row: cut short, or anybody's."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and not isinstance(step, bool) and abs(step) < 2**63 else None


# --- result.json ------------------------------------------------------------------------------------------------


def write_result(run_dir: Path, state: State, value: float | None, step: int, config_hash: str, **extra: Any) -> None:
    """Write result.json: how the run stands, for sweeps and reports. `value` is the best validation loss.

    Whole or not at all; a disk that refuses costs a warning. A value that is not finite is written as null.
    """
    result = {"state": state, "value": value, "step": step, "config_hash": config_hash, **extra}
    path = run_dir / RESULT
    try:
        write_atomically(path, json.dumps(plain(result), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        log.warning("%s: cannot be written (%s).", path, error.strerror)
