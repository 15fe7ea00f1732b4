"""Provenance and result of a run, written into its folder: config.yaml, run.json, git.diff, packages.txt, result.json.

Enough to run it again and to identify it years later; no secret of the environment. Imports no torch.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dtl
from dtl.base.display import shell_line
from dtl.base.files import write_atomically, write_record
from dtl.base.json_files import as_object, plain, read_json
from dtl.base.paths import conf_dir
from dtl.base.redaction import is_secret_name, redact, redact_all
from dtl.base.safe_text import in_one_line, safe_logger
from dtl.base.system import processor_name
from dtl.errors import CheckpointError, DTLError
from dtl.tracking.tracker import State

log = safe_logger(__name__)

RECORD, DIFF, PACKAGES, CONFIG = "run.json", "git.diff", "packages.txt", "config.yaml"
MAIN_PACKAGES = "torch numpy hydra-core omegaconf transformers tokenizers safetensors datasets pyarrow wandb einops"
# Beginnings of the environment variables that are recorded, and no others.
SHOWN_VARIABLES = ("CUDA_", "NCCL_", "TORCH_", "PYTORCH_", "OMP_", "GOMP_", "SLURM_JOB", "DTL_")
MAX_DIFF_BYTES = 20 * 2**20
MAX_UNTRACKED = 100
GIT_SECONDS = 10.0
PACKAGE = Path(dtl.__file__).resolve().parent


def config_hash(config_yaml: str) -> str:
    """A short identifier of a resolved config: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(config_yaml.encode()).hexdigest()[:16]


def composition_flags(hydra: Any, command: str = "train") -> list[str]:
    """The flags of Hydra that change what is composed, folders absolute: another process needs them as well.

    `hydra` is Hydra's own config of the job or sweep, `command` the name of the file that is composed without flags.
    """
    # config_sources also names the structured configs, as `structured://`.
    sources = {source.provider: source.path for source in hydra.runtime.config_sources if source.schema != "structured"}
    flags = {"--config-dir": sources.get("command-line")}
    if (main := sources.get("main")) not in (None, str(conf_dir())):
        flags["--config-path"] = main
    if (name := str(hydra.job.config_name).removesuffix(".yaml")) != command:
        flags["--config-name"] = name
    return [f"{flag}={value}" for flag, value in flags.items() if value]


def chosen_files(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the file chosen in each config group, safe to print, of what `write_run_record` has written. Groups
    without one, as `experiment` in a run without a recipe, are recorded as None."""
    names = {str(group): str(name) for group, name in as_object(record.get("choices")).items()}
    return {group: in_one_line(name) for group, name in names.items() if name not in ("None", "null")}


def write_run_record(
    run_dir: Path,
    config_yaml: str,
    overrides: list[str],
    choices: dict[str, str],
    device: str,
    *,
    seed: int | None = None,
    wandb_id: str | None = None,
    module: str = "dtl.train",
    flags: Sequence[str] = (),
    init_from: Path | None = None,
    **extra: Any,
) -> None:
    """Write config.yaml, run.json, packages.txt and, when the checkout has changes, git.diff.

    `overrides` are those of this job, `choices` the files chosen in each config group, `flags` those of
    `composition_flags`, `init_from` what `init=` led to: another run may be the latest later. `extra` is anything else
    to record. Raises DTLError when the folder cannot be written.
    """
    git, diff = git_state(PACKAGE)
    pinned = [
        f"init={init_from.absolute()}" if init_from and re.match(r"\+*init=", word) else word for word in overrides
    ]
    record = {
        "dtl": dtl.__version__,
        "rerun": shell_line(["python", "-m", module, *flags, *pinned]),
        "cwd": str(Path.cwd()),
        "flags": list(flags),
        "overrides": overrides,
        "choices": choices,
        "seed": seed,
        "git": git,
        "wandb_id": wandb_id,
        **extra,
        "sessions": [_session(device)],
    }
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / CONFIG, config_yaml)
        write_atomically(run_dir / PACKAGES, _packages())
        if diff:
            write_atomically(run_dir / DIFF, diff)
        _write(run_dir, record)
    except OSError as error:
        for name in (CONFIG, PACKAGES, DIFF):  # of a run that never began: its folder can go
            with suppress(OSError):
                if not (run_dir / RECORD).exists():
                    (run_dir / name).unlink()
        raise DTLError(
            f"{run_dir}: cannot be written ({error.strerror}). Choose another folder or free disk space."
        ) from error


def redact_hydra_files(run_dir: Path) -> None:
    """Take the secrets out of the files that Hydra writes before it calls DTL. Raises OSError."""
    for file in (*run_dir.glob(".hydra/*.yaml"), *run_dir.parent.glob("multirun.yaml")):
        before = file.read_text(encoding="utf-8")
        if redact(before) != before:
            write_atomically(file, before)


def update_run_record(run_dir: Path, **changes: Any) -> None:
    """Set keys of run.json, such as `wandb_id`. Logs a warning when the file is missing or cannot be written."""
    _change(run_dir, lambda record: record.update(changes))


def add_session(run_dir: Path, overrides: list[str], device: str = "") -> None:
    """Add a session of a resumed run to run.json: time, machine, command line, versions."""
    git, diff = git_state(PACKAGE)

    def add(record: dict[str, Any]) -> None:
        sessions = record.setdefault("sessions", [])
        if diff:
            git["diff"] = f"git.{len(sessions) + 1}.diff"  # the code may have changed since the run started
            write_atomically(run_dir / git["diff"], diff)
        sessions.append({**_session(device), "overrides": overrides, "git": git})

    _change(run_dir, add)


def git_state(package: Path) -> tuple[dict[str, Any], bytes]:
    """The commit of the checkout that `package` belongs to, and its difference from that commit.

    Without a checkout (no git, an installed wheel, a different repository around it) the state has a `note` with the
    reason. Untracked files are listed, not saved.
    """
    try:
        return _git_state(package)
    except FileNotFoundError:
        return {"commit": None, "note": "git is not installed"}, b""
    except subprocess.TimeoutExpired:
        return {"commit": None, "note": f"git did not answer within {GIT_SECONDS:.0f} s"}, b""
    except OSError as error:
        return {"commit": None, "note": f"git cannot be run ({error.strerror})"}, b""


def _git_state(package: Path) -> tuple[dict[str, Any], bytes]:
    # A virtual environment inside a repository is in a checkout, too, but its files are not tracked there.
    if not _git(package, "ls-files", "--error-unmatch", "__init__.py"):
        return {"commit": None, "note": "dtl is not part of a git checkout, see its version in packages.txt"}, b""
    root = Path(os.fsdecode(_git(package, "rev-parse", "--show-toplevel").strip()))
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
    if not commit:
        return {"commit": None, "note": "the checkout has no commit yet"}, b""
    status = os.fsdecode(_git(root, "status", "--porcelain", "-z", "--untracked-files=normal")).split("\0")
    untracked = [entry[3:] for entry in status if entry.startswith("?? ")]
    diff = _git(root, "diff", "--binary", "--no-ext-diff", "--no-textconv", "HEAD")
    state: dict[str, Any] = {"commit": commit, "dirty": bool(diff), "untracked": untracked[:MAX_UNTRACKED]}
    if len(diff) > MAX_DIFF_BYTES:
        return {**state, "note": f"the diff of {len(diff):,} bytes was too large to save"}, b""
    if diff:
        state["diff"] = DIFF
    return state, redact(diff.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _git(folder: Path, *arguments: str) -> bytes:
    """The output of git, empty when it fails. Takes no lock and runs no program of the repository."""
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", *arguments]
    # `git status` would otherwise take the index lock to refresh it, and could block a commit in another terminal.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, timeout=GIT_SECONDS, env=environment, check=False
    )
    return done.stdout if done.returncode == 0 else b""


def _session(device: str) -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(sys.argv),
        "device": device,
        "processor": processor_name(),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in MAIN_PACKAGES.split()},
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(SHOWN_VARIABLES) and not is_secret_name(name)
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> str:
    """Every installed package as `name==version`, sorted."""
    # item.metadata parses its file at each access: read it once.
    metadata = (item.metadata for item in importlib.metadata.distributions())
    packages = {f"{fields['Name']}=={fields['Version']}" for fields in metadata if fields["Name"]}
    return "\n".join(sorted(packages, key=str.lower)) + "\n"


def _change(run_dir: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = run_dir / RECORD
    try:
        record = read_json(path)
        change(record)
        _write(run_dir, record)
    except (OSError, CheckpointError, AttributeError, TypeError) as error:
        log.warning("%s: cannot be updated (%s).", path, error)


def _write(run_dir: Path, record: dict[str, Any]) -> None:
    write_atomically(run_dir / RECORD, json.dumps(redact_all(plain(record)), indent=2, allow_nan=False) + "\n")


# --- result.json --------------------------------------------------------------------------------------------------

RESULT = "result.json"  # the outcome of a run, for sweeps and reports


def write_result(run_dir: Path, state: State, value: float | None, step: int, config_hash: str, **extra: Any) -> None:
    """Write result.json, the state of the run for sweeps and reports. `value` is the best validation loss.

    Atomic, with a digest; a write error is logged as a warning. A value that is not finite is written as null.
    """
    result = {"state": state, "value": value, "step": step, "config_hash": config_hash, **extra}
    path = run_dir / RESULT
    try:
        write_record(path, result)
    except OSError as error:
        log.warning("%s: cannot be written (%s).", path, error.strerror)
