"""The tracker of a run: metrics.jsonl always, W&B in addition when it is available.

metrics.jsonl is the complete record. W&B runs in its own thread (dtl/tracking/wandb_sink.py), so that training
neither waits for it nor fails with it. Imports no torch, and wandb only when a run uses it.
"""

import os
import secrets
import string
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from dtl.base.files import write_atomically
from dtl.base.json_files import LineFile, json_line
from dtl.base.redaction import check_no_secrets, redact_all
from dtl.base.safe_text import safe_logger
from dtl.base.units import number_of
from dtl.errors import InterruptedRun
from dtl.tracking.config import TrackerConfig
from dtl.tracking.metrics import METRICS, SPEED, TRAINING, VALIDATION, read_metrics, truncate_metrics
from dtl.tracking.wandb_sink import WandbRun, WandbSink, choose_mode

log = safe_logger(__name__)
State = Literal["running", "finished", "stopped", "interrupted", "failed"]


def open_tracker(
    config: TrackerConfig,
    run_dir: Path,
    run_config: dict[str, Any],
    *,
    name: str,
    run_id: str | None = None,
    resumed_step: int | None = None,
    evaluated_step: int | None = None,
    overrides: list[str] | None = None,
    group: str | None = None,
    job_number: int | None = None,
    patience: float = 12.0,  # with OFFLINE_SECONDS, 8 s, at most 20 s in total
) -> "Tracker":
    """Start tracking a run. Never prompts; returns within 20 seconds in any state of the network.

    `run_config` is the resolved config, nested. `run_id` is the W&B id of the run that is resumed at
    `resumed_step`, and whose newest evaluation was at `evaluated_step`. `job_number`, `overrides` and `group` name a
    job of a multirun. `patience` is the time in seconds for a W&B server to answer before the run goes offline.
    Raises ConfigError when an override looks like a secret.
    """
    check_no_secrets(overrides or [])
    earlier = _rows_until(run_dir, resumed_step, evaluated_step) if resumed_step is not None else []
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
    # What W&B gets: rows of the steps at which is logged, and of evaluations.
    sink.fill_up([(row.pop("step"), _charts(row)) for row in earlier if SPEED in row or VALIDATION in row])
    return Tracker(run_dir, sink, request.run_id, None)


def _rows_until(run_dir: Path, step: int, evaluated_step: int | None) -> list[dict[str, Any]]:
    """Return the rows of the steps that a resumed run keeps, and log a warning if some are missing."""
    truncate_metrics(run_dir, step, evaluated_step)
    rows: list[dict[str, Any]] = []
    with suppress(OSError):
        rows = read_metrics(run_dir)
    missing = sorted(set(range(1, step + 1)) - {row["step"] for row in rows if TRAINING in row})
    if missing:
        log.warning(
            "%s: %s missing, the first of step %d. The curves have a gap; training and its result are not affected.",
            run_dir / METRICS,
            f"{number_of('rows', len(missing))} {'is' if len(missing) == 1 else 'are'}",
            missing[0],
        )
    return rows


def _charts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics by their names in W&B, which sorts charts by name: train/loss is the first, and val/loss the first
    of the next group."""
    grouped = {key if key.startswith(("train/", "val/")) else f"train/{key}": v for key, v in metrics.items()}
    return {key: value for key, value in grouped.items() if value is not None}


class Tracker:
    """Writes the metrics and samples of a run. A context manager: an exception marks the run as failed."""

    def __init__(self, run_dir: Path, sink: WandbSink | None, run_id: str | None, status: str | None) -> None:
        self.run_dir = run_dir
        self.run_id = run_id  # W&B's id, saved in the checkpoint; None when there never was one
        self._sink = sink
        self._status = status or ""
        self._lines = LineFile(run_dir / METRICS)
        self._finished = False

    @property
    def status(self) -> str:
        """One line for the user: where the metrics go, and why."""
        return self._status if self._sink is None else self._sink.status

    @property
    def upload(self) -> str:
        """Command that uploads an offline run of W&B; empty for any other."""
        return "" if self._sink is None else self._sink.upload

    @property
    def has_key(self) -> bool:
        """False where W&B is offline for want of a key."""
        return self._sink is not None and self._sink.has_key

    def log_steps(self, rows: list[dict[str, Any]]) -> None:
        """Append a row per optimizer step to metrics.jsonl and send the last one to W&B.

        Rows hold `step`, `tokens`, `seconds`, `train/loss` and any other metrics of that step.
        """
        if not rows:
            return
        self._lines.append(rows)
        last = dict(rows[-1])
        self._send(last.pop("step"), last)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row, such as `val/loss` of an evaluation, to metrics.jsonl and send it to W&B."""
        self._lines.append([{"step": step, **metrics}])
        self._send(step, dict(metrics))

    def log_once(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of the end of a run to metrics.jsonl. W&B gets them with `finish`, in the summary of the
        run: a chart of a single point says nothing, and there is one for each name."""
        self._lines.append([{"step": step, **metrics}])

    def log_samples(self, step: int, rows: list[dict[str, str]]) -> None:
        """Write generated texts to samples/step-00001000.jsonl, a JSON object a line, and as a W&B table."""
        path = self.run_dir / "samples" / f"step-{step:08d}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, "".join(map(json_line, rows)))
        except OSError as error:
            log.warning("%s: cannot be written (%s). Training continues.", path, error.strerror)
        if self._sink is not None and rows:
            self._sink.log_table("val/samples", rows, step)

    def finish(self, state: State, summary: Mapping[str, Any] | None = None) -> None:
        """Close the run, once; W&B shows it as finished for `finished` and `stopped`, else as failed."""
        if self._finished:
            return
        self._finished = True
        self._lines.append([])  # last attempt for rows that a full disk has delayed
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
            self._sink.log(_charts(metrics), step)


def _display_name(name: str, job_number: int | None, overrides: list[str]) -> str:
    """`small`, or in a multirun `small-003 optimizer.lr=0.003`; W&B takes 128 characters."""
    return name if job_number is None else f"{name}-{job_number:03d} {' '.join(overrides)}".strip()[:128]
