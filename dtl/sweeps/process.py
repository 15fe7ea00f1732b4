"""A trial's process as its sweep sees it: start, stop, time limits, outcome."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from dtl.base.display import command_line
from dtl.base.files import ASIDE, discard_directory
from dtl.base.json_files import as_number, open_to_append, read_json, read_json_or_empty, read_record_or_empty
from dtl.base.safe_text import in_one_line
from dtl.checkpoints.listing import newest_valid, step_folders
from dtl.checkpoints.upkeep import LOCK_OWNER
from dtl.commandline.overrides import quoted
from dtl.errors import CheckpointError, ConfigError, DoesNotFitError
from dtl.run_dir.provenance import RESULT
from dtl.run_dir.state import is_locked
from dtl.run_dir.sweep_records import ERROR, LOG, NO_RESULT, TRACEBACK, SweepFolder, Trial, TrialState, ended_well, now
from dtl.run_dir.trial import FOLDER, NUMBER, SECONDS_TO_END, SECONDS_TO_SAVE, SWEEP
from dtl.sweeps.config import LauncherConfig
from dtl.tracking.metrics import METRICS

TRAIN = (sys.executable, "-m", "dtl.train")
SECONDS_FOR_AN_ORPHAN = 30.0  # for the trial of a killed sweep to notice, save and end
REASON_WIDTH = 160  # characters of a reason


class TrialProcess:
    """One attempt at a trial. `stop` asks it to save and end; `poll` checks whether it has ended."""

    def __init__(self, sweep: SweepFolder, trial: Trial, settings: LauncherConfig, shared_arguments: list[str]) -> None:
        """Start the process: from the newest checkpoint if there is one, else from scratch. `shared_arguments` are
        given to every trial: Hydra's flags and search path. Raises OSError if no process can be started."""
        self.trial = trial
        self._settings = settings
        self._folder = sweep.trial_folder(trial.number)
        self._began = time.monotonic()
        self._asked: TrialState | None = None  # the state to end in, once it was asked to stop
        self._asked_at = 0.0
        end_orphan(self._folder)
        arguments = self._arguments(shared_arguments)
        trial.state, trial.reason, trial.exit_code = "running", "", None
        trial.started, trial.ended = now(), None
        trial.attempts += 1
        sweep.keep(trial)
        self._sweep = sweep
        log_file = self._folder / LOG
        if os.path.lexists(log_file) and not log_file.is_file():  # a FIFO, say: it must not end the sweep
            os.replace(log_file, log_file.with_name(LOG + ASIDE))
        with open_to_append(log_file) as log:
            log.write(f"\n--- {trial.started}  {command_line('train', *arguments)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [*TRAIN, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C reaches only the sweep, which then stops its trials
            )

    def _arguments(self, shared_arguments: list[str]) -> list[str]:
        for name in (ERROR, TRACEBACK):
            (self._folder / name).unlink(missing_ok=True)
        if step_folders(self._folder):
            with suppress(CheckpointError, ConfigError):
                newest_valid(self._folder)
                flags = [argument for argument in shared_arguments if argument.startswith("--")]
                plugins = [f"plugins=[{','.join(self.trial.plugins)}]"] if self.trial.plugins else []
                return [*flags, f"resume={quoted(str(self._folder))}", *plugins]
        self._clear_folder()
        return [*shared_arguments, *self.trial.overrides, f"hydra.run.dir={quoted(str(self._folder))}"]

    def _clear_folder(self) -> None:
        """Remove what an attempt without a checkpoint left behind, except its log, before a start from scratch."""
        if not self._folder.exists():
            return
        log = self._folder / LOG
        kept = log.read_bytes() if log.is_file() else b""
        discard_directory(self._folder)
        self._folder.mkdir()
        log.write_bytes(kept)

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        environment |= {FOLDER: str(self._folder), SWEEP: self._sweep.path.name, NUMBER: str(self.trial.number)}
        environment["PYTHONUNBUFFERED"] = "1"  # its output is in the log at once, which hang_minutes relies on
        if self._settings.n_jobs > 1:
            # Threads of several trials on the same cores wait for each other: a run with two threads took one minute
            # alone and four with other load (experiments/experiment/demo.md).
            threads = max(1, (os.cpu_count() or 1) // self._settings.n_jobs)
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        return environment

    def stop(self, state: TrialState, reason: str) -> None:
        """Ask the trial to save and end, which it does after its step; its record then gets `state`."""
        if self._asked is not None:
            return
        self._asked, self._asked_at = state, time.monotonic()
        self.trial.reason = reason
        self._close_stdin()

    def kill(self) -> None:
        """End the process now; its checkpoints stay."""
        self._process.kill()
        self._close_stdin()

    def _close_stdin(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it may have ended by itself
            self._process.stdin.close()

    def poll(self) -> bool:
        """Return True once it has ended, with the outcome in the trial's record. Stops it after its time limits."""
        code = self._process.poll()
        if code is None:
            self._enforce_time_limits()
            return False
        self._close_stdin()
        self.trial.exit_code, self.trial.ended = code, now()
        self.trial.state, self.trial.reason, self.trial.value = self._outcome(code)
        self._sweep.keep(self.trial)
        return True

    def _enforce_time_limits(self) -> None:
        if self._asked is not None:
            waited = time.monotonic() - self._asked_at
            # A hung trial will not save: it gets the shorter time.
            to_save = SECONDS_TO_END if self._asked == "hung" else SECONDS_TO_SAVE
            if waited > to_save + SECONDS_TO_END:
                self.kill()
            elif waited > to_save:
                self._process.terminate()  # the second signal: a run then ends without saving
            return
        ran = time.monotonic() - self._began
        timeout, hang = self._settings.timeout_minutes, self._settings.hang_minutes
        if timeout is not None and ran > 60 * timeout:
            self.stop("timed out", f"took longer than {timeout:g} minutes (hydra.launcher.timeout_minutes)")
        elif hang is not None and ran > 60 * hang and self._silent_seconds() > 60 * hang:
            self.stop("hung", f"wrote nothing for {hang:g} minutes (hydra.launcher.hang_minutes)")

    def _silent_seconds(self) -> float:
        written = []
        for name in (LOG, METRICS):
            with suppress(OSError):
                written.append((self._folder / name).stat().st_mtime)
        return time.time() - max(written, default=0.0)

    def _outcome(self, code: int) -> tuple[TrialState, str, float | None]:
        """Return state, reason and best loss."""
        if code == 0 and (outcome := ended_well(self._folder)):
            return outcome
        loss = as_number(read_record_or_empty(self._folder / RESULT).get("value"))
        return *self._ended_early(code), loss

    def _ended_early(self, code: int) -> tuple[TrialState, str]:
        if self._asked is not None:
            return self._asked, self.trial.reason
        if code == DoesNotFitError.exit_code:
            return "refused", self._reason(code)
        if code < 0:  # POSIX: ended by signal -code
            name = signal.Signals(-code).name
            if name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"):
                hint = ": by hand, or by the system when memory ran out" if name == "SIGKILL" else ""
                return "killed", f"{name}{hint}"
            return "failed", f"crashed: {name}"
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return "interrupted", signal.Signals(code - 128).name
        return "failed", NO_RESULT if code == 0 else self._reason(code)

    def _reason(self, code: int) -> str:
        message = str(read_json_or_empty(self._folder / ERROR).get("message", ""))
        if first := message.strip().partition("\n")[0]:
            return in_one_line(first, REASON_WIDTH)
        return f"exit code {code}, see {LOG}"


def end_orphan(folder: Path) -> None:
    """Wait until no process has locked a trial's folder. The trial of a killed sweep notices, saves and ends; one that
    hangs is killed if it runs on this machine."""
    waited_until = time.monotonic() + SECONDS_FOR_AN_ORPHAN
    while is_locked(folder):
        if time.monotonic() > waited_until:
            with suppress(OSError, CheckpointError, KeyError):
                holder = read_json(folder / LOCK_OWNER)
                if holder["host"] == socket.gethostname():
                    os.kill(int(holder["pid"]), getattr(signal, "SIGKILL", signal.SIGTERM))
            waited_until = time.monotonic() + SECONDS_FOR_AN_ORPHAN
        time.sleep(0.05)
