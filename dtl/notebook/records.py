"""Records of the notebook: a finished run of a recipe as one line of JSON, with settings, machine and results; and
reference curves of finished runs.

Read from the files in the run's folder alone, and free of paths of the machine. Imports no torch.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import Any

from filelock import FileLock
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import dtl
from dtl.base.display import shown
from dtl.base.files import write_atomically
from dtl.base.json_files import (
    as_list,
    as_number,
    as_object,
    dotted,
    json_line,
    read_json_or_empty,
    read_record_or_empty,
)
from dtl.base.paths import experiments_dir
from dtl.base.safe_text import in_one_line
from dtl.base.units import number_of
from dtl.checkpoints.upkeep import LOCK
from dtl.config import without_interpolations
from dtl.data.config import DataConfig
from dtl.errors import ConfigError, DataError, DTLError
from dtl.evaluation.config import EVALUATION_FILE
from dtl.notebook.page import PAGE, notebook_page, page_of, read_records, results_file
from dtl.run_dir.provenance import RECORD, RESULT, chosen_files
from dtl.run_dir.record_checks import record_problems
from dtl.run_dir.references import (
    CURVES,
    MAX_POINTS,
    SHIPPED,
    Point,
    Reference,
    data_kind,
    parse_reference,
    read_references,
    vocabulary_of_run,
)
from dtl.run_dir.state import RunState, last_metrics, read_config, read_run_state
from dtl.tracking.metrics import VALIDATION, check_rows, read_metrics

MAX_CHARACTERS = 300  # of a text in a record
DIGITS = 6  # of a metric: far finer than the noise of seeds
# Bookkeeping, settings of one machine, and keys with their own field in a record: not part of a configuration.
IGNORED_KEYS = (
    "experiment", "seed", "name", "device", "debug", "resume", "tracker", "sampling", "sweep", "hydra",
    "data.cache_dir", "data.verify", "data.commits", "trainer.keep", "trainer.profile", "trainer.log_every_steps",
    "trainer.save_every_steps", "trainer.save_every_epochs", "trainer.sample_every_evals",
    "trainer.stop_after_steps",
)  # fmt: skip
# Redundant with the loss, scores of the majority answer, and the speed of the evaluation.
_LEFT_OUT = re.compile(r"^majority/|/perplexity$|/tokens_per_second$")
# `/home/ann/data/`, `~/data/`, `../data/`, `C:\Users\Ann\`: the folders before a file's name, which may name a user.
_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:[\\/]|~[\w.-]*/|\.{1,2}/|/)(?:[^\\/,\[\]{}'\"]+[\\/])*")


def record_of(folder: Path) -> dict[str, Any]:
    """Return the record of the finished run in `folder`. Raises DataError, with only the reason, if it gets none."""
    state, run = read_run_state(folder), read_json_or_empty(folder / RECORD)
    recipe = chosen_files(run).get("experiment")
    if recipe is None:
        raise DataError("not started with experiment=")
    if state.state != "finished":
        raise DataError("not finished")
    if problems := record_problems(folder, check_rows(folder)):
        raise DataError(f"its {problems[0]}")
    config = read_config(folder)
    fingerprint = run.get("data_fingerprint") or read_record_or_empty(folder / EVALUATION_FILE).get("data_fingerprint")
    if not fingerprint:
        raise DataError("its files have no data fingerprint")
    started = _sessions(run)[0].get("started")
    if not isinstance(started, str):
        raise DataError("its run.json has no start time")
    git = as_object(run.get("git"))
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
        "data": {name: source_name(name, data) for name in data.resolved_sources()},
        "data_fingerprint": fingerprint,
        **_machine(run),
        **_outcome(folder, state),
        "config_hash": state.config_hash,
    }
    return _safe(record)


def _key(run: Mapping[str, Any], recipe: str) -> str:
    """Return an identifier of the run that stays the same when the run is resumed."""
    born = [recipe, _sessions(run)[0].get("started"), run.get("overrides"), run.get("seed")]
    return hashlib.sha256(json.dumps(born).encode()).hexdigest()[:16]


def _machine(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the device, by the name of the GPU or of the processor, with threads, precision and torch version."""
    environment, session = as_object(run.get("computed_with")), _sessions(run)[-1]
    device = environment.get("device") or session.get("device")
    return {
        "device": session.get("processor") or device if device == "cpu" else device,
        "threads": environment.get("threads"),
        "precision": environment.get("precision"),
        "torch": environment.get("torch") or as_object(session.get("packages")).get("torch"),
    }


def _outcome(folder: Path, state: RunState) -> dict[str, Any]:
    figures = {
        key: _rounded(value)
        for key, value in read_record_or_empty(folder / RESULT).items()
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
    """Return a hash that is equal for runs that differ only in seed, bookkeeping and the location of files."""
    settings = {key: value for key, value in dotted(config) if not _is_ignored(key)}
    for key in [key for key in settings if key.startswith("data.") and key.endswith("path")]:
        del settings[key]
    settings["data"] = {name: source_name(name, data) for name in data.resolved_sources()}
    if settings.get("tokenizer.path"):
        settings["tokenizer.path"] = PurePosixPath(str(settings["tokenizer.path"])).name
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def shown_overrides(overrides: Iterable[str], data: DataConfig) -> list[str]:
    """Return the typed overrides that define the configuration, sorted, without the data and without folders."""
    kept = []
    for override in overrides:
        key, equals, value = override.partition("=")
        plain = key.lstrip("+~").partition("@")[0].replace("/", ".")
        is_data_path = plain.startswith("data.") and plain.endswith(".path")
        if not _is_ignored(plain) and not is_data_path:
            kept.append(f"{key}{equals}{_FOLDERS.sub('', value)}")
    return sorted(kept)


def source_name(source: str, data: DataConfig) -> str:
    """Return the public name of a source: the dataset of the hub, or the name of a file or folder."""
    config = data.resolved_sources()[source]
    if not config.is_of_hub:
        return re.split(r"[\\/]", config.path.rstrip("\\/"))[-1] if config.path else "as it ships with DTL"
    dataset, subset = (
        (config.path, config.subset) if config.path else (data.wiki_dataset, config.subset or data.wiki_subset)
    )
    commit = data.commits.get(source, "").rpartition("@")[2]
    return f"{dataset} {subset or ''}".strip() + (f" @{commit[:12]}" if commit else "")


def _data_config(config: Mapping[str, Any]) -> DataConfig:
    try:
        values = without_interpolations(config.get("data") or {})
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), values))
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"its config.yaml is of another version of DTL ({reason})") from error
    assert isinstance(made, DataConfig)
    return made


def _is_ignored(key: str) -> bool:
    return any(key == ignored or key.startswith(f"{ignored}.") for ignored in IGNORED_KEYS)


# --- plain values ---------------------------------------------------------------------------------------------------


def _safe(value: Any) -> Any:
    """Return a value whose texts cannot control a terminal or break a line of the page: the files are untrusted."""
    if isinstance(value, dict):
        return {_safe(key): _safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_safe(item) for item in value]
    return in_one_line(value, MAX_CHARACTERS) if isinstance(value, str) else value


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _sessions(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [each for each in as_list(run.get("sessions")) if isinstance(each, dict)] or [{}]


# --- recording ----------------------------------------------------------------------------------------------------
# Only `python -m dtl.report runs=... record=true` adds runs to the notebook: trying a recipe out changes no checkout.


def in_checkout() -> bool:
    """Return False in an installed package, whose updates delete what is recorded in it."""
    return not experiments_dir().is_relative_to(Path(dtl.__file__).resolve().parent)


def checkout_notebook() -> Path:
    """Return experiments/ of the checkout. Raises ConfigError in an installed package."""
    notebook = experiments_dir()
    if not in_checkout():
        raise ConfigError(
            f"record=true: {notebook} belongs to an installed package, and an update would delete the records. "
            "Record from a checkout: git clone, make install."
        )
    return notebook


def record(folders: Sequence[Path], notebook: Path | None = None) -> list[str]:
    """Record every finished run of a recipe among `folders`, and rewrite the notebook's page.

    A run that is recorded already keeps its line, updated if the run was resumed since. A lock makes this safe with
    several processes. Returns messages: the counts by file, and the skipped runs by reason. Raises DTLError if a
    file of the notebook is damaged or cannot be written; its existing lines are kept.
    """
    notebook = notebook or checkout_notebook()
    records, skipped = _records(folders, notebook)
    messages: list[str] = []
    with _locked(notebook):
        for page in sorted({page_of(each["recipe"]) for each in records}):
            file = results_file(notebook, page)
            before = _lines(file)
            lines = before | {each["run"]: json_line(each) for each in records if page_of(each["recipe"]) == page}
            if lines != before:
                write_atomically(file, "".join(lines.values()))
            messages.append(f"{file.name}: {len(lines) - len(before)} new, {len(lines)} records in total.")
        write_atomically(notebook / PAGE, notebook_page(notebook))
    return [*messages, *(f"{count} skipped: {reason}." for reason, count in skipped.items())]


def write_page(notebook: Path | None = None) -> Path:
    """Write the notebook's page from its files and return its path. Raises DTLError if it cannot be written."""
    notebook = notebook or checkout_notebook()
    with _locked(notebook):
        write_atomically(notebook / PAGE, notebook_page(notebook))
    return notebook / PAGE


def _records(folders: Sequence[Path], notebook: Path) -> tuple[list[dict[str, Any]], Counter[str]]:
    recipes = {file.stem for file in (notebook / "experiment").glob("*.yaml")}
    records, skipped = [], Counter[str]()
    for folder in folders:
        try:
            made = record_of(folder)
            if made["recipe"] not in recipes:
                raise DataError(f"experiment={made['recipe']} is not a recipe in experiments/")
            records.append(made)
        except DataError as error:
            skipped[str(error)] += 1
    return records, skipped


def _lines(file: Path) -> dict[str, str]:
    """Return the lines of a file by run; records without a run, by position."""
    records = read_records(file)
    lines = file.read_text(encoding="utf-8").splitlines() if records else []
    runs = [str(record.get("run", place)) for place, record in enumerate(records)]
    return {run: f"{line}\n" for run, line in zip(runs, lines, strict=True)}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder of the notebook or of curves. Raises DTLError if it cannot be written."""
    try:
        with FileLock(folder / LOCK):
            yield
    except OSError as error:
        raise DTLError(f"{folder}: cannot be changed ({error.strerror}). Nothing was recorded there.") from error


# --- reference curves ---------------------------------------------------------------------------------------------


def record_reference(
    folders: Sequence[Path], name: str, text: str | None, licence: str | None, file: Path | None = None
) -> str:
    """Record finished runs, which differ in the seed alone, as the curve `name` of a file, by default DTL's own.

    An earlier curve of the same name, kind of data and size is replaced. Returns a message. Raises ConfigError for runs
    that give no curve, and for a file that is damaged, which is kept.
    """
    if file is None and not in_checkout():
        raise ConfigError(f"reference={name}: an update of DTL would delete the curve. Give a file: curves=FILE.")
    file = file or CURVES
    curve = reference_of(folders, name, text, licence)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(experiments_dir() if file == CURVES else file.parent):
        others = [each for each in (read_references(file) if file.exists() else []) if each.key != curve.key]
        curves = sorted([*others, curve], key=lambda each: each.key)
        write_atomically(file, "".join(json_line(each.to_json()) for each in curves))
    what = f"{number_of('points', len(curve.points))} of {number_of('runs', len(curve.seeds))}"
    return f"{shown(file.absolute())}: {curve.name}, {what}; {number_of('curves', len(curves))} in total."


def reference_of(folders: Sequence[Path], name: str, text: str | None, licence: str | None) -> Reference:
    """Return the curve of finished runs. Raises ConfigError, with the folder, for one that gives none."""
    runs = [_measured(folder, name) for folder in folders]
    if len({run["configuration"] for run in runs}) > 1 or len({run["seed"] for run in runs}) < len(runs):
        raise ConfigError(f"reference={name}: a curve is of runs that differ in the seed alone. Give only those: runs=")
    if not (text and licence) and not (text is licence is None and runs[0]["ships"]):
        raise ConfigError(f"reference={name}: name its text, with source and licence: text=NAME licence=LICENCE.")
    points = {step: [run["points"][step] for run in runs if step in run["points"]] for step in runs[0]["points"]}
    steps = _spread([step for step in sorted(points) if len(points[step]) == len(runs)])
    if not steps:
        raise ConfigError(f"reference={name}: its runs were never evaluated at the same step.")
    made = {
        **runs[0]["facts"],
        "name": name,
        "text": text or SHIPPED[0],
        "licence": licence or SHIPPED[1],
        "seeds": sorted(run["seed"] for run in runs),
        "points": [_mean_point(points[step]) for step in steps],
    }
    try:
        return parse_reference(made)
    except ValueError as error:
        raise ConfigError(f"reference={name}: {shown(folders[0])} gives no curve: {error}.") from error


def _measured(folder: Path, name: str) -> dict[str, Any]:
    """Return what a curve needs of a run. Raises ConfigError, with the folder, for a run that gives none."""
    state, run, config = read_run_state(folder), read_json_or_empty(folder / RECORD), read_config(folder)
    chosen = chosen_files(run)
    own = chosen.get("experiment", chosen.get("model"))
    rows, data = read_metrics(folder), _data_config(config)
    problems = record_problems(folder, check_rows(folder))
    points = _points(folder, rows)
    for is_wrong, why in (
        (state.state != "finished", f"is {state.state}, and only a finished run has all of its curve"),
        (bool(problems), f"its {problems[0]}" if problems else ""),
        (config.get("init") is not None, "began with the weights of another model (init=)"),
        (own != name, f"its curve has the name of its recipe, or without one of its model: reference={own}"),
        (not points, "has no validation loss: hold some of the data out, and evaluate (trainer.eval_every_steps)"),
    ):
        if is_wrong:
            raise ConfigError(f"reference={name}: {shown(folder)}: {in_one_line(why)}.")
    machine, sizes = _machine(run), as_object(run.get("n_parameters"))
    model, section = as_object(config.get("model")), as_object(config.get("data"))
    facts = {
        "command": _command_words(chosen, state.overrides, data),
        "kind": data_kind(section),
        "tokenizer": as_object(config.get("tokenizer")).get("kind"),
        "vocabulary": vocabulary_of_run(folder),
        "n_parameters": sizes.get("all"),
        "n_without_embeddings": sizes.get("without_embeddings"),
        "n_layers": model.get("n_layers"),
        "dim": model.get("dim"),
        "seq_len": section.get("seq_len") or model.get("max_seq_len"),
        "tokens_per_step": next((row["tokens"] for row in rows if row["step"] == 1 and "tokens" in row), None),
        "device": f"{machine['device']}, threads: {machine['threads']}, {machine['precision']}",
        "date": str(_sessions(run)[0].get("started"))[:10],
    }
    ships = all(source.is_shipped for source in data.resolved_sources().values())
    configuration = configuration_key(config, data)
    return {"points": points, "seed": state.seed, "configuration": configuration, "ships": ships, "facts": facts}


def _points(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[int, Point]:
    """Return the validation loss by step, with bits per byte where the last evaluation has both."""
    result = read_record_or_empty(folder / RESULT)
    nats, bits = as_number(result.get("validation/loss")), as_number(result.get("validation/bits_per_byte"))
    tokens = {row["step"]: as_number(row["tokens"]) for row in rows if "tokens" in row}
    points = {}
    for row in rows:
        loss, seen = as_number(row.get(VALIDATION)), tokens.get(row["step"])
        if loss is not None and seen:
            points[row["step"]] = Point(seen, loss, loss * bits / nats if nats and bits else None)
    return points


def _mean_point(points: Sequence[Point]) -> list[float | None]:
    bits = [point.bits for point in points if point.bits is not None]
    mean_bits = fmean(bits) if len(bits) == len(points) else None
    return [
        round(fmean(point.tokens for point in points)),
        _rounded(fmean(p.loss for p in points)),
        _rounded(mean_bits),
    ]


def _spread(steps: list[int]) -> list[int]:
    """Return at most MAX_POINTS of the steps, the first and the last ones too, at about equal ratios."""
    if len(steps) <= MAX_POINTS:
        return steps
    ratio = (steps[-1] / steps[0]) ** (1 / (MAX_POINTS - 1))
    places = (steps[0] * ratio**number for number in range(MAX_POINTS))
    return sorted({min(steps, key=lambda step: abs(step - place)) for place in places})


def _command_words(chosen: Mapping[str, str], overrides: Iterable[str], data: DataConfig) -> list[str]:
    """Return the words that train the model again, but for seed, tracker, and the place of the text."""
    group = "experiment" if "experiment" in chosen else "model"
    words = [word for word in shown_overrides(overrides, data) if not word.startswith(f"{group}=")]
    return [f"{group}={chosen.get(group)}", *words]
