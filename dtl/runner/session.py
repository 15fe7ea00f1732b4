"""A session of a run: takes the steps of the training loop and does what is due - log, evaluate, sample, save, stop."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtl.base.display import Display
from dtl.base.runtime import autocast, peak_flops, peak_memory_bytes, random_state
from dtl.base.safe_text import safe_logger
from dtl.base.signals import StopSignals
from dtl.base.system import give_back_freed_memory
from dtl.base.units import in_gib, in_percent, in_time, in_units
from dtl.checkpoints.save import save_checkpoint
from dtl.checkpoints.upkeep import publish_best, rotate
from dtl.config import to_yaml
from dtl.data.batches import PackedSequences
from dtl.errors import InterruptedRun
from dtl.evaluation.evaluator import evaluate_best, questions_at_the_end
from dtl.evaluation.measure import Report
from dtl.generation.conversation import continuations, prompts_of
from dtl.run_dir.state import resume_command
from dtl.runner.build import Parts
from dtl.runner.remaining import EVALUATION, SAMPLES, SAVE, STEP, Intervals, Remaining, guesses_in_steps
from dtl.runner.screens import show_profile, write_details
from dtl.tracking.metrics import SPEED, TRAINING, UTILIZATION, VALIDATION, read_metrics
from dtl.tracking.tracker import State, Tracker
from dtl.training.evaluate import evaluate
from dtl.training.optimizer import optimizer_tensors
from dtl.training.stopping import Reached, reason_to_end
from dtl.training.trainer import StepReport

log = safe_logger(__name__)

N_SAMPLES = 3
STEPS_BEFORE_ESTIMATE = 5  # after which the end of the run is shown, before the first log
LOG_EVERY_SECONDS = 10.0  # log at least this often, for slow steps
SLOW_SECONDS = 1800.0  # of a run on a CPU: a longer one is shown a recipe that takes minutes
SAMPLE_PROMPT_TOKENS = 16


class _StopRequested(Exception):
    """A signal came during an evaluation."""


def due(step: int, every: int | None) -> bool:
    """Return True when something that happens every `every` steps (None = never) happens at this one."""
    return every is not None and step % every == 0


class Session:
    """Run from its start, or from a resume, to its next stop."""

    def __init__(self, parts: Parts, run_dir: Path, tracker: Tracker, display: Display) -> None:
        self.parts = parts
        self.config = parts.config
        self.config_yaml = to_yaml(parts.config)
        self.trainer = parts.trainer
        self.run_dir = run_dir
        self.tracker = tracker
        self.display = display
        self.unlogged: list[StepReport] = []
        self.logged_at = time.monotonic()
        self.quicker: str | None = None  # what to say about a quicker run when the first steps are slow
        self.ended_early: str | None = None  # the reason of the criterion that ended the run before its last step
        state = parts.trainer.state
        self.evaluations = [row for row in read_metrics(run_dir) if VALIDATION in row] if parts.resumed_from else []
        self.saved: Path | None = parts.resumed_from  # the checkpoint of the current state; None: not saved yet
        self._tokens_before, self._seconds_before = state.tokens, state.seconds
        self._at_once = self.trainer.sequences_at_once
        self.intervals = Intervals.of(self.config.trainer, parts.length, parts.data.validation is not None)
        self.peak_flops = peak_flops(parts.device, parts.precision)

    def drain(self, signals: StopSignals) -> State:
        """Train until the first reason to stop; return the state for result.json.

        Raises InterruptedRun after a signal, once everything is saved.
        """
        limits = self.config.trainer
        profiler = self._profiler() if limits.profile else None
        steps = self.trainer.steps()
        console_was_lost = False
        seconds_before = self.trainer.state.seconds
        self.trainer.stop_requested = lambda: signals.received is not None
        if self._evaluation_is_due():  # of the resumed step: a signal stopped the run before or during it
            self.evaluate()
        # Checked before the first step too: a resumed run may have been stopped after its last step.
        while (reason := self.reason_to_stop(signals)) == "running":
            report = next(steps, None)
            if self.trainer.sequences_at_once < self._at_once:
                self._split_at(self.trainer.state.step + (report is None))
            if report is None:  # stopped between two micro-batches
                continue
            self.unlogged.append(report)
            self.saved = None
            self.remaining.saw(STEP, report.seconds - seconds_before)
            seconds_before = report.seconds
            if profiler:
                profiler.step()
            self.display.advance(report.step, self._epoch())
            self._estimate()
            if self.display.lost and not console_was_lost:
                console_was_lost = True
                self.save()
                log.warning(
                    "The output cannot be written any more (%s). Step %d is saved; the run continues, and "
                    "metrics.jsonl has its progress.",
                    self.display.lost,
                    report.step,
                )
            if due(report.step, limits.log_every_steps) or time.monotonic() - self.logged_at > LOG_EVERY_SECONDS:
                self.log()
            self.parts.data.cache.start_check()  # after the first step, which it would delay
            # Evaluate before saving: one checkpoint then has the step's validation loss in its state.
            if self._evaluation_is_due():
                self.evaluate()
            if any(due(report.step, every) for every in self.intervals.save):
                self.save()
        if profiler:
            profiler.stop()
        # Not for a pause: a resumed run must equal one that never stopped, which would not evaluate here.
        if reason == "finished" and self.trainer.state.evaluated_step != self.trainer.state.step:
            reason = "finished" if self.evaluate() else "interrupted"
        self.save()
        if reason == "interrupted":
            assert signals.received is not None
            raise InterruptedRun(
                f"Stopped at step {self.trainer.state.step} and saved. Resume with: {resume_command(self.run_dir)}",
                signals.received,
            )
        return reason

    def reason_to_stop(self, signals: StopSignals) -> State:
        """Return the reason to stop before the next step: signal, last step, criterion, pause; or `running`."""
        state, limits = self.trainer.state, self.config.trainer
        if signals.received is not None:
            return "interrupted"
        if self.trainer.done:
            return "finished"
        if reason := reason_to_end(Reached(state, self.evaluations, limits)):
            self.ended_early = reason
            self.display.note(reason)
            return "finished"
        if limits.stop_after_steps is not None and state.step >= limits.stop_after_steps:
            self.display.note(f"Paused by trainer.stop_after_steps={limits.stop_after_steps}.")
            return "stopped"
        return "running"

    def _profiler(self) -> torch.profiler.profile:
        """Start a profiler of steps 3 to 5 of this session, for chrome://tracing or Perfetto; the first two warm up.

        Its table of operators is shown after step 5.
        """

        def write(finished: torch.profiler.profile) -> None:
            trace = self.run_dir / "profile.json"
            finished.export_chrome_trace(str(trace))
            show_profile(self.display, finished.key_averages(), trace)

        profiler = torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1), on_trace_ready=write
        )
        profiler.start()
        return profiler

    # --- what can be due ------------------------------------------------------------------------------------------

    def log(self) -> None:
        """Write the steps since the last log; the one place that copies losses from the device.

        Raises NonFiniteError when the last step was not finite, once those before it are written.
        """
        try:
            self.trainer.confirm()
        finally:
            self._log()

    def _log(self) -> None:
        reports = [report for report in self.unlogged if report.step <= self.trainer.state.step]
        self.unlogged = []
        if not reports:
            return
        self.logged_at = time.monotonic()
        losses = _to_floats([report.loss for report in reports])
        norms = _to_floats([report.grad_norm for report in reports])
        fields = _fields_as_floats(reports)
        rows: list[dict[str, Any]] = [
            own
            | {
                "step": report.step,
                "tokens": report.tokens,
                "seconds": report.seconds,
                TRAINING: loss,
                "optim/lr": report.lr,
                "optim/grad_norm": norm,
                "optim/skipped": int(report.skipped),
            }
            for report, loss, norm, own in zip(reports, losses, norms, fields, strict=True)
        ]
        speed = self._tokens_per_second(reports)
        memory = peak_memory_bytes(self.parts.device)
        rows[-1] |= {SPEED: speed, "memory/peak_bytes": memory}
        if self.peak_flops is not None:
            rows[-1][UTILIZATION] = speed * self.trainer.model.flops_per_token(self.config.seq_len) / self.peak_flops
        self.tracker.log_steps(rows)
        last = reports[-1]
        # The first step is slower than the others; one that takes half a minute is enough to judge by.
        if self.quicker is not None and (last.step >= 3 or last.seconds >= 30):
            left = self.remaining.left(self.trainer.state)
            if left is not None and left.middle > SLOW_SECONDS:
                needed = in_time(left.middle)
                self.display.print(f"At this speed the run needs about {needed} on this CPU. {self.quicker}")
            self.quicker = None
        shown = [self._epoch(), f"loss {losses[-1]:.4f}", f"lr {last.lr:.2e}"]
        if UTILIZATION in rows[-1]:
            shown.append(f"MFU {in_percent(rows[-1][UTILIZATION])} %")
        shown += [f"{in_units(speed)} tok/s", self._ends(), in_gib(memory)]
        self.display.step(last.step, self.parts.length.last_step, shown)

    def _split_at(self, step: int) -> None:
        """Report that a step had no memory for as many sequences at once as the one before, and remember it."""
        before, self._at_once = self._at_once, self.trainer.sequences_at_once
        self._report_split(f"Step {step:,}", before, self._at_once, "the same steps")
        self.parts.fitting.remember(self._at_once)

    def _report_split(self, where: str, before: int, now: int, same: str) -> None:
        line = f"no memory for {before} sequences at once. From here on {now}: {same}."
        self.display.note(f"{where}: {line}")
        write_details(self.run_dir, "Split", [(where, line)])

    def _epoch(self) -> str:
        state = self.trainer.state
        return f"epoch {state.epoch + state.step_in_epoch / self.parts.length.steps_per_epoch:.2f}"

    # --- how long it takes ----------------------------------------------------------------------------------------

    @cached_property
    def remaining(self) -> Remaining:
        """What is left of the run, from what this session has done."""
        config, data, length = self.config, self.parts.data, self.parts.length
        tokens = length.last_step * config.global_batch_size * config.seq_len
        asked = questions_at_the_end(config, data, tokens)
        guesses = guesses_in_steps(config, data, asked.n * asked.tokens_each)
        return Remaining(config.trainer, self.intervals, length.last_step, guesses)

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        """Count the time of what is no step; not where it ends with an exception."""
        began = time.monotonic()
        yield
        self.remaining.saw(kind, time.monotonic() - began)

    def _ends(self) -> str:
        left = self.remaining.left(self.trainer.state)
        return "" if left is None else left.text(datetime.now())

    def _estimate(self) -> None:
        """Show when the run ends before the first log."""
        if self.remaining.n_steps == STEPS_BEFORE_ESTIMATE and not self.display.has_status:
            self.display.status(self._ends())

    def _tokens_per_second(self, reports: list[StepReport]) -> float:
        """Tokens per second over the steps of `reports`; time between steps, as for evaluation, does not count."""
        tokens = reports[-1].tokens - self._tokens_before
        seconds = reports[-1].seconds - self._seconds_before
        self._tokens_before, self._seconds_before = reports[-1].tokens, reports[-1].seconds
        return tokens / seconds if seconds > 0 else 0.0

    def _evaluation_is_due(self) -> bool:
        state = self.trainer.state
        return state.step > 0 and due(state.step, self.intervals.evaluate) and state.evaluated_step != state.step

    def _after_batch(self, done: int, total: int) -> None:
        self.display.status(f"validation: {done:,} of {total:,} sequences")
        if self.trainer.stop_requested():
            raise _StopRequested

    def evaluate(self) -> bool:
        """Measure the validation loss; when it is the best so far, the checkpoint of this step becomes `best`.

        Where nothing is held out there is no loss to measure, and `save` publishes each checkpoint as the best. False
        when a signal stopped it: nothing has changed then, and a resumed run makes up for it.
        """
        self.log()
        state, validation = self.trainer.state, self.parts.data.validation
        try:
            better = False
            if validation is not None:
                with self._timed(EVALUATION):
                    better = self._measure(validation)
        except _StopRequested:
            return False
        self.display.status(None)
        self.saved = None
        state.evaluated_step = state.step
        state.evaluations += 1
        if due(state.evaluations, self.config.trainer.sample_every_evals or None):
            try:
                with self._timed(SAMPLES):
                    self.tracker.log_samples(state.step, self.sample())
            except Exception as error:  # weights that are not finite, no memory: what is trained does not depend on it
                self.display.warn(f"no samples at step {state.step}: {type(error).__name__}: {error}")
        if better:
            publish_best(self.run_dir, self.save())
        return True

    def _measure(self, validation: PackedSequences) -> bool:
        """Measure and log the validation loss; return True for the best so far."""
        state = self.trainer.state
        result = evaluate(
            self.trainer.evaluated_model,
            validation,
            self.config.micro_batch_size,
            self.config.trainer.eval_max_batches,
            lambda: autocast(self.parts.device, self.parts.precision),
            metrics=self.config.data.metrics,
            after_batch=self._after_batch,
            at_once=state.evaluated_at_once,
        )
        if result.at_once is not None and result.at_once != state.evaluated_at_once:
            before, state.evaluated_at_once = state.evaluated_at_once, result.at_once
            self._report_split("Validation", before or self.config.micro_batch_size, result.at_once, "the same loss")
            self.parts.fitting.remember(result.at_once, EVALUATION)
        better = math.isfinite(result.loss) and (state.best_loss is None or result.loss < state.best_loss)
        state.evaluations_since_best = 0 if better else state.evaluations_since_best + 1
        row = {VALIDATION: result.loss, "val/targets": result.n_targets}
        row |= {f"val/{name}": value for name, value in result.metrics.items()}
        self.tracker.log(state.step, row)
        self.evaluations.append({"step": state.step, **row})
        shown_metrics = "".join(f"  {name} {value:.4f}" for name, value in result.metrics.items())
        best = "  best so far" * better
        self.display.print(f"step {state.step:>7}  validation loss {result.loss:.4f}{shown_metrics}{best}")
        if better:
            state.best_loss, state.best_step = result.loss, state.step
        return better

    def sample(self) -> list[dict[str, str]]:
        """Generate a few texts with the current model, from a generator of their own: training is not affected.

        None is longer than the context: training waits for them.
        """
        data, tokenizer = self.parts.data, self.parts.tokenizer
        pairs = data.pairs.get("train" if data.validation is None else "validation", [])[:N_SAMPLES]
        model, sampling = self.trainer.evaluated_model, self.config.sampling
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, model.config.max_seq_len))
        prompts = prompts_of(model, tokenizer, data.prompt, pairs, sampling.max_new_tokens)
        if not prompts:
            source = data.validation or next(iter(data.train.rows.values()))
            rows = source.batch(range(min(N_SAMPLES, len(source)))).inputs
            prompts = [tokenizer.decode(row[:SAMPLE_PROMPT_TOKENS].tolist()) for row in rows]
        with autocast(self.parts.device, self.parts.precision):
            texts = continuations(model, tokenizer, prompts, sampling, seed=self.config.seed)
        return [{"prompt": begin, "text": text} for begin, text in zip(prompts, texts, strict=True)]

    def save(self) -> Path:
        """Save the complete state as checkpoints/step-<step>/ and remove older ones, unless it is saved already."""
        self.log()
        if self.saved is not None:
            return self.saved
        self.parts.data.cache.check()
        with self._timed(SAVE):
            self.saved = self._save()
        for warning in rotate(self.run_dir, self.config.trainer.keep, written=self.saved):
            self.display.warn(warning)
        return self.saved

    def _save(self) -> Path:
        trainer = self.trainer
        nothing_held_out = self.parts.data.validation is None
        if nothing_held_out:
            trainer.state.best_step = trainer.state.step
        values = trainer.state_values() | {
            "step": trainer.state.step,
            "epoch": trainer.state.epoch,
            "random": random_state(self.parts.device),
            "fingerprint": self.parts.fingerprint,
            "data_fingerprint": self.parts.data.fingerprint,
            "tracker_run_id": self.tracker.run_id,
        }
        saved = save_checkpoint(
            self.run_dir,
            trainer.evaluated_model,
            self.parts.tokenizer,
            self.config_yaml,
            values,
            optimizer_tensors(trainer.model, trainer.optimizers),
            raw=None if trainer.averaged is None else trainer.model,
        )
        if nothing_held_out:
            publish_best(self.run_dir, saved)
        return saved

    def final_report(self) -> Report | None:
        """Evaluate the best checkpoint, if there is one; its metrics go to the tracker and to evaluation.json."""
        parts, state = self.parts, self.trainer.state
        if state.best_step is None:
            return None
        self.display.note("Evaluation of the best checkpoint")
        give_back_freed_memory()  # what the steps needed: the checkpoint is read, and a second model made
        run = (self.config, parts.data, self.run_dir, parts.device, parts.precision, state.tokens)
        report = evaluate_best(*run, self.display.log, state.evaluated_at_once)
        metrics = report.metrics()
        # A run that was killed after this, or is resumed after its last step, has them in its metrics already.
        if not any(row["step"] == state.step and metrics.keys() <= row.keys() for row in read_metrics(self.run_dir)):
            self.tracker.log_once(state.step, metrics)
        return report


def _fields_as_floats(reports: list[StepReport]) -> list[dict[str, float]]:
    """Return the additional fields of each report as numbers, copied from the device with a single sync."""
    tensors = [value for report in reports for value in report.fields.values() if isinstance(value, Tensor)]
    copied = iter(_to_floats(tensors) if tensors else [])
    return [
        {name: next(copied) if isinstance(value, Tensor) else float(value) for name, value in report.fields.items()}
        for report in reports
    ]


def _to_floats(tensors: list[Tensor]) -> list[float]:
    """Copy numbers from the device with a single sync."""
    return torch.stack(tensors).double().tolist() if tensors[0].device.type != "mps" else torch.stack(tensors).tolist()
