"""The W&B part of the tracker, in its own thread: the training loop only puts work into a queue.

Training continues when wandb hangs, raises or loses its server. Only opening and finishing wait, both with a
timeout. Imports wandb when a run is opened.
"""

import http.client
import os
import queue
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtl.base.deadline import within
from dtl.base.display import shell_line
from dtl.base.json_files import as_whole, json_object
from dtl.base.redaction import redact
from dtl.base.safe_text import safe_logger, visible

log = safe_logger(__name__)

OFFLINE_SECONDS = 8.0  # to open an offline run: a process to start and a file, no network
PROBE_SECONDS = 3.0  # for any answer of a W&B server
FINISH_SECONDS = 30.0  # for the remaining uploads at the end of a run, to a server that answers
DEAD_SECONDS = 3.0  # after which the server is asked once whether it is there
MAX_WAITING = 1000  # entries in the queue before W&B counts as hanging


@dataclass(frozen=True)
class WandbRun:
    """The settings of a W&B run."""

    run_id: str
    run_dir: Path
    project: str
    entity: str | None
    name: str
    group: str | None
    tags: tuple[str, ...]
    config: dict[str, Any]


class _StayOffline(Exception):
    """Raised with the reason why this run does not go online."""


def choose_mode(wanted: str) -> tuple[str, str]:
    """Return (online | offline | disabled, reason) from `tracker.mode`, or from WANDB_MODE where that is auto."""
    if wanted != "auto":
        return wanted, f"tracker.mode={wanted}"
    asked = os.environ.get("WANDB_MODE", "").lower()
    mode = {"dryrun": "offline", "offline": "offline", "disabled": "disabled"}.get(asked, "online")
    return mode, f"WANDB_MODE={asked}"


class WandbSink:
    """One W&B run. After any error it is switched off with one warning; no method raises."""

    def __init__(self, request: WandbRun, mode: str, reason: str, patience: float) -> None:
        """Open the run: online within `patience` seconds, else offline within `OFFLINE_SECONDS`, else not at all."""
        self._request = request
        self._queue: queue.Queue[Callable[[Any], Any] | None] = queue.Queue(MAX_WAITING)
        self._off = ""  # why W&B is switched off
        self._run: Any = None
        self._is_online = False
        self.has_key = True  # False: there is none to go online with
        # wandb's error reports about itself go to the same server and may delay the end of the process by 30 s.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._where = ""
        self._server = ""  # its address, of a run that is online
        if mode == "online":
            reason = self._open_online(patience)
        if self._run is None:
            self._open_offline(reason)
        self._thread = threading.Thread(target=self._drain, name="wandb", daemon=True)
        if self._run is not None:
            self._thread.start()

    @property
    def status(self) -> str:
        """One line for the user."""
        return f"W&B off: {self._off}; metrics.jsonl has everything" if self._off else self._where

    @property
    def upload(self) -> str:
        """Command that uploads an offline run; empty for any other."""
        return "" if self._run is None or self._is_online or self._off else self._sync_command()

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Queue one row. With an explicit `step`, rows that a resumed run repeats do not count twice."""
        self._submit(lambda run: run.log(metrics, step=step))

    def fill_up(self, rows: list[tuple[int, dict[str, Any]]]) -> None:
        """Queue the rows of a resumed run, by step, that W&B does not have: a kill costs it up to 32 KiB of rows."""

        def send(run: Any) -> None:
            last = run.step - 1 if self._is_online else _last_step(self._request)
            for step, metrics in rows:
                if last is not None and step > last:
                    run.log(metrics, step=step)

        if rows:
            self._submit(send)

    def log_table(self, key: str, rows: list[dict[str, str]], step: int) -> None:
        """Queue rows of equal keys as a table."""

        def send(run: Any) -> None:
            import wandb

            columns: list[Any] = list(rows[0])
            table = wandb.Table(columns=columns, data=[[row.get(column, "") for column in columns] for row in rows])
            # wandb stages a second copy of a table as an artifact; without this it would be in the home folder.
            with _variable("WANDB_DATA_DIR", str(self._request.run_dir / "wandb")):
                run.log({key: table}, step=step)

        self._submit(send)

    def finish(self, exit_code: int, summary: dict[str, Any]) -> None:
        """Close the run, waiting at most `FINISH_SECONDS` for the upload, and 5 seconds for a server that has died or
        takes no rows."""
        if self._run is None:
            return
        self._submit(lambda run: run.summary.update(summary))
        self._exit_code = exit_code
        with suppress(queue.Full):
            self._queue.put_nowait(None)
            self._thread.join(min(DEAD_SECONDS, FINISH_SECONDS))
            hangs = self._thread.is_alive() and self._is_online and self._server
            if not (hangs and not _answers(self._rows_url(), PROBE_SECONDS / 2, b"{}")):
                self._thread.join(FINISH_SECONDS + 2.0)  # longer than wandb's own finish_timeout
        if self._thread.is_alive():
            self._switch_off(self._unfinished())

    def _rows_url(self) -> str:
        """Return where the server takes rows: without a key it answers with an error, where it answers at all."""
        return f"{self._server}/files/{self._run.path}/file_stream"

    # --- opening ------------------------------------------------------------------------------------------------

    def _open_online(self, patience: float) -> str:
        """Try to go online. Returns the reason when it is not possible, else an empty text."""
        try:
            self._run = _opened(patience, lambda: self._connect(patience))
        except _StayOffline as reason:
            return str(reason)
        except TimeoutError:
            return f"no connection within {patience:.0f} s"
        except Exception as error:
            return _in_short(error)
        self._is_online = True
        self._where = f"W&B online: {self._run.url}"
        return ""

    def _connect(self, patience: float) -> Any:
        import wandb

        setup = wandb.setup(settings=wandb.Settings(silent=True, mode="online"))
        if not wandb.login(prompt=False, verify=False):  # reads the environment and netrc; sends no request
            self.has_key = False
            raise _StayOffline("no key; run `wandb login` to send runs to a server")
        if not _answers(setup.settings.base_url, min(PROBE_SECONDS, patience / 2)):
            raise _StayOffline(f"no answer from {redact(setup.settings.base_url)}")
        run = self._init("online", patience / 2)
        self._server = setup.settings.base_url
        return run

    def _open_offline(self, reason: str) -> None:
        def connect() -> Any:
            import wandb

            try:
                return self._init("offline", OFFLINE_SECONDS)
            except Exception:
                # wandb's process died in an earlier run, or still has the id of a run that could not go online.
                with suppress(Exception):
                    wandb.teardown()
                return self._init("offline", OFFLINE_SECONDS)

        try:
            self._run = _opened(OFFLINE_SECONDS, connect)
        except Exception as error:
            self._switch_off(_in_short(error))
        else:
            self._where = f"W&B offline: {reason}"

    def _init(self, mode: str, seconds: float) -> Any:
        import wandb

        request = self._request
        # Metadata, code and console would upload the command line, the git remote and all printed text.
        settings = wandb.Settings(
            x_disable_meta=True,
            disable_git=True,
            save_code=False,
            console="off",
            silent=True,
            init_timeout=seconds,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=str(request.run_dir),
            id=request.run_id,
            resume="allow",  # continues the run of this id if W&B has it, else starts one
            project=request.project,
            entity=request.entity,
            name=request.name,
            group=request.group,
            tags=list(request.tags),
            job_type="train",
            config=request.config,
            reinit="create_new",  # never the run of another job in this process
            settings=settings,
        )

    # --- the thread ---------------------------------------------------------------------------------------------

    def _submit(self, work: Callable[[Any], Any]) -> None:
        if self._run is None or self._off:
            return
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            self._switch_off(f"{MAX_WAITING} rows are waiting, wandb seems to hang")

    def _drain(self) -> None:
        while (work := self._queue.get()) is not None:
            if not self._off:
                self._guarded(work)
        self._guarded(lambda run: run.finish(exit_code=self._exit_code))

    def _guarded(self, work: Callable[[Any], Any]) -> None:
        try:
            work(self._run)
        except TimeoutError:  # of run.finish
            self._switch_off(self._unfinished())
        except BaseException as error:  # an exception would end in the thread
            self._switch_off(_in_short(error))

    def _switch_off(self, why: str) -> None:
        if not self._off:
            self._off = why
            log.warning("%s.", self.status)

    def _unfinished(self) -> str:
        return f"not everything was uploaded in time, upload it later with `{self._sync_command()}`"

    def _sync_command(self) -> str:
        folder = Path(self._run.dir).parent
        with suppress(ValueError):
            folder = folder.relative_to(Path.cwd())
        return visible(shell_line(["wandb", "sync", str(folder)]))


def _last_step(request: WandbRun) -> int | None:
    """Return the last step in the files of a run's earlier sessions, as wandb reads them; -1: none, None: unknown.

    A file that ends within a record is read up to there.
    """
    last = -1
    try:
        from wandb.util import get_core_path

        inspect = [get_core_path(), "leet", "inspect", "--json", "--summary", "-no-observability"]
        for file in (request.run_dir / "wandb").glob(f"*run-*/run-{request.run_id}.wandb"):
            done = subprocess.run([*inspect, f"--run-file={file}"], capture_output=True, timeout=60, check=True)
            last = max(last, as_whole(json_object(done.stdout).get("step")) or -1)
    except Exception as error:  # whatever another version of wandb does: these rows are in metrics.jsonl
        log.info("The steps that W&B has are unknown (%s).", _in_short(error))
        return None
    return last


def _opened(seconds: float, connect: Callable[[], Any]) -> Any:
    """Return the run that `connect` opens. Raises TimeoutError after `seconds`, and closes a run opened later."""

    def do() -> Any:
        try:
            return connect()
        except Exception:
            raise
        except BaseException as error:  # wandb may call sys.exit, which must not end the run
            raise RuntimeError(f"{type(error).__name__} {error}") from error

    return within(seconds, do, too_late=lambda run: run.finish(exit_code=1))


def _answers(url: str, seconds: float, data: bytes | None = None) -> bool:
    """Return True when an HTTP server answers at `url`, to a POST with `data`, through the proxy if there is one. Any
    answer counts."""
    try:
        urllib.request.urlopen(url, data, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException) as error:
        return isinstance(getattr(error, "reason", None), ssl.SSLError)
    return True


def _in_short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return redact(f"{type(error).__name__}: {text}"[:160]) if text else type(error).__name__


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside the context, unless the user has set it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
