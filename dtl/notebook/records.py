"""A run of a recipe as one line of JSON: what was asked, with what, and what came out.

Read from the files in the run's folder alone. No line names a place on a machine. Imports no torch.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import dtl
from dtl.base.files import write_atomically
from dtl.base.json_files import json_line, read_json_or_empty
from dtl.base.paths import experiments_dir
from dtl.base.safe_text import in_one_line
from dtl.checkpoints.store import LOCK
from dtl.data.config import DataConfig
from dtl.errors import ConfigError, DataError, DTLError
from dtl.evaluation.config import FIGURES
from dtl.notebook.page import PAGE, notebook_page, page_of, read_records, results_file
from dtl.run_dir.provenance import RECORD, RESULT
from dtl.run_dir.state import RunState, dotted, last_metrics, read_config, read_run_state

MAX_CHARACTERS = 300  # of a text in a record
DIGITS = 6  # of a figure: far below the noise of a seed
# Of bookkeeping, of one machine, or of its own in a record: no part of what a configuration is.
BESIDE_THE_POINT = (
    "experiment", "seed", "name", "device", "debug", "resume", "tracker", "sampling", "sweep", "hydra",
    "data.cache_dir", "data.verify", "data.commits", "trainer.keep", "trainer.profile", "trainer.log_every_steps",
    "trainer.save_every_steps", "trainer.save_every_epochs", "trainer.sample_every_evals",
    "trainer.stop_after_steps",
)  # fmt: skip
# Exponentials of a loss, guesses of a model that learnt nothing, and the speed of measuring.
_LEFT_OUT = re.compile(r"^majority/|/perplexity$|/tokens_per_second$")
# `/home/ann/data/`, `~/data/`, `../data/`, `C:\Users\Ann\`: what stands before the name of a file.
_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:[\\/]|~[\w.-]*/|\.{1,2}/|/)(?:[^\\/,\[\]{}'\"]+[\\/])*")


def record_of(folder: Path) -> dict[str, Any]:
    """The record of the finished run in `folder`. Raises DataError, with the reason alone, for a run that gets none."""
    state, run = read_run_state(folder), read_json_or_empty(folder / RECORD)
    recipe = str(_mapping(run.get("choices")).get("experiment") or "null")
    if recipe == "null":
        raise DataError("not started with experiment=")
    if state.state != "finished":
        raise DataError("not finished")
    config = read_config(folder)
    fingerprint = run.get("data_fingerprint") or read_json_or_empty(folder / FIGURES).get("data_fingerprint")
    if not fingerprint:
        raise DataError("its files do not say what data it saw")
    started = _sessions(run)[0].get("started")
    if not isinstance(started, str):
        raise DataError("its run.json does not say when it began")
    git = _mapping(run.get("git"))
    data = _data_config(config)
    record = {
        "run": _key(run, recipe),
        "date": started,
        "recipe": recipe,
        "overrides": shown_overrides(state.overrides, data),
        "seed": state.seed,
        "configuration": configuration_key(config, data),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "data": {name: name_of(name, data) for name in data.resolved_sources()},
        "data_fingerprint": fingerprint,
        **_machine(run),
        **_outcome(folder, state),
        "config_hash": state.config_hash,
    }
    return _safe(record)


def _key(run: Mapping[str, Any], recipe: str) -> str:
    """The same for one run however often it was resumed, another for another."""
    born = [recipe, _sessions(run)[0].get("started"), run.get("overrides"), run.get("seed")]
    return hashlib.sha256(json.dumps(born).encode()).hexdigest()[:16]


def _machine(run: Mapping[str, Any]) -> dict[str, Any]:
    """What it was computed on: a card by its name, a processor by its own."""
    with_, session = _mapping(run.get("computed_with")), _sessions(run)[-1]
    device = with_.get("device") or session.get("device")
    return {
        "device": session.get("processor") or device if device == "cpu" else device,
        "threads": with_.get("threads"),
        "precision": with_.get("precision"),
        "torch": with_.get("torch") or _mapping(session.get("packages")).get("torch"),
    }


def _outcome(folder: Path, state: RunState) -> dict[str, Any]:
    figures = {
        key: _rounded(value)
        for key, value in read_json_or_empty(folder / RESULT).items()
        if isinstance(value, int | float) and key not in ("value", "step") and not _LEFT_OUT.search(key)
    }
    tokens = [row["tokens"] for row in last_metrics(folder) if "tokens" in row]
    return {
        "steps": state.step,
        "tokens": tokens[-1] if tokens else None,
        "seconds": _rounded(state.seconds),  # of training
        "val_loss": _rounded(state.best_loss),
        "figures": figures,
    }


# --- configurations -----------------------------------------------------------------------------------------------


def configuration_key(config: Mapping[str, Any], data: DataConfig) -> str:
    """Equal for runs that differ only in the seed, in bookkeeping, and in where their files lie."""
    essence = {key: value for key, value in dotted(config) if not _beside_the_point(key)}
    for key in [key for key in essence if key.startswith("data.") and key.endswith("path")]:
        del essence[key]
    essence["data"] = {name: name_of(name, data) for name in data.resolved_sources()}
    if essence.get("tokenizer.path"):
        essence["tokenizer.path"] = PurePosixPath(str(essence["tokenizer.path"])).name
    return hashlib.sha256(json.dumps(essence, sort_keys=True, default=str).encode()).hexdigest()[:16]


def shown_overrides(overrides: Iterable[str], data: DataConfig) -> list[str]:
    """What was typed and matters, sorted; of a file its name alone. The data have a field of their own."""
    found = []
    for override in overrides:
        key, equals, value = override.partition("=")
        plain = key.lstrip("+~").partition("@")[0].replace("/", ".")
        of_data = plain.startswith("data.") and plain.endswith(".path")
        if not _beside_the_point(plain) and not of_data:
            found.append(f"{key}{equals}{_FOLDERS.sub('', value)}")
    return sorted(found)


def name_of(source: str, data: DataConfig) -> str:
    """A source by what others call it: the dataset of the hub, or the name of a file or folder."""
    it = data.resolved_sources()[source]
    if not it.is_of_hub:
        return re.split(r"[\\/]", it.path.rstrip("\\/"))[-1] if it.path else "as it ships with DTL"
    dataset, subset = (it.path, it.subset) if it.path else (data.wiki_dataset, it.subset or data.wiki_subset)
    commit = data.commits.get(source, "").rpartition("@")[2]
    return f"{dataset} {subset or ''}".strip() + (f" @{commit[:12]}" if commit else "")


def _data_config(config: Mapping[str, Any]) -> DataConfig:
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), config.get("data") or {}))
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"its config.yaml is of another version of DTL ({reason})") from error
    assert isinstance(made, DataConfig)
    return made


def _beside_the_point(key: str) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in BESIDE_THE_POINT)


# --- plain values ---------------------------------------------------------------------------------------------------


def _safe(value: Any) -> Any:
    """Texts from files that may be anybody's, without what could steer a terminal or break a line of the page."""
    if isinstance(value, dict):
        return {_safe(key): _safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_safe(item) for item in value]
    return in_one_line(value, MAX_CHARACTERS) if isinstance(value, str) else value


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _sessions(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = run.get("sessions")
    sessions = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return sessions or [{}]


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# --- recording ----------------------------------------------------------------------------------------------------
# Adding runs to the notebook: a line each in experiments/experiment/<page>.results.jsonl, and the page anew.
#
# Nothing does this by itself: who tries a recipe out wants no change in a checkout. It is asked for with
# `python -m dtl.report runs=... record=true`. Imports no torch.


def own_notebook() -> Path:
    """experiments/ of the checkout. Raises ConfigError in an installed package, which is no place for records."""
    notebook = experiments_dir()
    if notebook.is_relative_to(Path(dtl.__file__).resolve().parent):
        raise ConfigError(
            f"record=true: {notebook} belongs to an installed package, and an update would take the records away. "
            "Record from a checkout: git clone, make install."
        )
    return notebook


def record(folders: Sequence[Path], notebook: Path | None = None) -> list[str]:
    """Write a record for every finished run of a recipe among `folders`, and the notebook's page anew.

    A run that is recorded keeps its one line; was it resumed since, the line is brought up to date. Safe beside
    other processes that record. Returns what to tell: how many where, and who was left out why. Raises DTLError
    when a file of the notebook is damaged or cannot be written; the lines that were there are kept.
    """
    notebook = notebook or own_notebook()
    found, left_out = _records(folders, notebook)
    told: list[str] = []
    with _changing(notebook):
        for page in sorted({page_of(one["recipe"]) for one in found}):
            file = results_file(notebook, page)
            before = _lines(file)
            lines = before | {one["run"]: json_line(one) for one in found if page_of(one["recipe"]) == page}
            if lines != before:
                write_atomically(file, "".join(lines.values()))
            told.append(f"{file.name}: {len(lines) - len(before)} new, {len(lines)} records in all.")
        write_atomically(notebook / PAGE, notebook_page(notebook))
    return [*told, *(f"{count} left out: {reason}." for reason, count in left_out.items())]


def write_page(notebook: Path | None = None) -> Path:
    """Write the notebook's page from what lies there now. Raises DTLError when it cannot be."""
    notebook = notebook or own_notebook()
    with _changing(notebook):
        write_atomically(notebook / PAGE, notebook_page(notebook))
    return notebook / PAGE


def _records(folders: Sequence[Path], notebook: Path) -> tuple[list[dict[str, Any]], Counter[str]]:
    recipes = {file.stem for file in (notebook / "experiment").glob("*.yaml")}
    found, left_out = [], Counter[str]()
    for folder in folders:
        try:
            one = record_of(folder)
            if one["recipe"] not in recipes:
                raise DataError(f"experiment={one['recipe']} is no recipe of experiments/")
            found.append(one)
        except DataError as error:
            left_out[str(error)] += 1
    return found, left_out


def _lines(file: Path) -> dict[str, str]:
    """The lines of a file as they stand, by the run that each is of; what has no run, by its place."""
    records = read_records(file)
    lines = file.read_text(encoding="utf-8").splitlines() if records else []
    runs = [str(record.get("run", place)) for place, record in enumerate(records)]
    return {run: f"{line}\n" for run, line in zip(runs, lines, strict=True)}


@contextmanager
def _changing(notebook: Path) -> Iterator[None]:
    """Alone at the notebook."""
    try:
        with FileLock(notebook / LOCK):
            yield
    except OSError as error:
        raise DTLError(f"{notebook}: cannot be changed ({error.strerror}). Nothing was recorded there.") from error
