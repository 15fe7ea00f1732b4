"""The config of a run: where its data is now, what a resume may change, the line of a new run with other settings.

Read from the files in its folder only, without changing them. Imports no torch.
"""

import copy
import filecmp
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtl.base.display import command_line, shown
from dtl.base.json_files import (
    as_list,
    as_number,
    as_object,
    read_json_or_empty,
)
from dtl.base.redaction import redact_all
from dtl.base.safe_text import in_one_line
from dtl.base.units import number_of
from dtl.data.config import PLACE_OF_DATA, SourceConfig, replaces
from dtl.errors import ConfigError, DataError
from dtl.model.config import KEPT_WITH_INIT
from dtl.run_dir.provenance import CONFIG, RECORD
from dtl.run_dir.state import read_config


def with_data_found(config: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """The config of a run with the relative paths of its data as they are seen from the working directory.

    They are looked for in the folder in which the run was started (run.json), then in the one that holds its outputs/;
    a path that is in neither stays as it is.
    """
    started = read_json_or_empty(run_dir / RECORD).get("cwd")
    holding_outputs = [folder.parent for folder in run_dir.absolute().parents if folder.name == "outputs"]
    folders = [*([Path(started)] if isinstance(started, str) else []), *holding_outputs[:1]]

    def located(path: Any) -> Any:
        if not isinstance(path, str) or not path.strip() or Path(os.path.expanduser(path)).is_absolute():
            return path
        folder = next((folder for folder in folders if (folder / path).exists()), Path.cwd())
        return path if folder == Path.cwd() else str(folder / path)

    changed = copy.deepcopy(dict(config))
    data = as_object(changed.get("data"))
    sources = [as_object(source) for source in as_object(data.get("sources")).values()]
    of_files = [source for source in sources if SourceConfig(str(source.get("kind"))).traits.hub != "always"]
    for holder in (*of_files, as_object(data.get("qa")), as_object(data.get("wiki")), *([data] if of_files else [])):
        if "path" in holder:
            holder["path"] = located(holder["path"])
    if "cache_dir" in data:
        data["cache_dir"] = located(data["cache_dir"])
    return changed


def where_to_add_its_place(error: DataError) -> str:
    """Return the remedy for data of a run that cannot be opened where it was."""
    key = str(error).partition("=")[0]
    place = key if PLACE_OF_DATA.fullmatch(key) else "data.path"
    return f"If the same data is elsewhere now, add its place: {place}=NEW"


def clear_other_places(data: dict[str, Any], key: str) -> None:
    """Clear the other places of a source's path, one of which would take precedence over `key`, such as data.path."""
    names = key.split(".")[1:-1]  # of qa, wiki, or sources and a name; none of data.path
    sources = as_object(data.get("sources"))
    aliases = names[1:] if names else list(sources)  # data.qa.path is an alias of data.sources.qa.path
    for other in (*(data.get(alias) for alias in aliases), data if names[:1] == ["sources"] else None):
        if isinstance(other, dict) and "path" in other:
            other["path"] = None


# --- the config of a resumed run --------------------------------------------------------------------------------------

# Keys that may be given together with resume=: length, device and tracker, and where the same data is now
# (PLACE_OF_DATA). All others are the run's own.
ALLOWED_WITH_RESUME = (
    "resume",
    "trainer.total_steps",
    "trainer.max_epochs",
    "trainer.hours",
    "trainer.stop_after_steps",
    "trainer.stop_criteria",
    "device",
    "tracker",
    "debug",
    "plugins",
)
# Keys in which a run's config.yaml may differ from that of its checkpoints: set by each session, or where its data is
# now, which the data's fingerprint checks.
_OF_THE_SESSION = re.compile(rf"plugins|debug|trainer\.stop_after_steps|data\.cache_dir|{PLACE_OF_DATA.pattern}")
_MISSING = object()


def own_config(run_dir: Path, checkpoint: Path, given: Mapping[str, str]) -> tuple[dict[str, Any], str | None]:
    """Return the config of a run, and a warning where its config.yaml is not what it was trained with.

    It is that of its checkpoint, which the manifest vouches for, with what earlier sessions were `given` together with
    resume=, the values by key: until the next checkpoint only config.yaml has that.
    """
    own, recorded = read_config(checkpoint), read_config(run_dir)
    if not all(isinstance(own.get(section), dict) for section in ("data", "trainer", "tracker")):
        raise ConfigError(f"{checkpoint / CONFIG}: is not the config of a run. To use its weights: init={checkpoint}")
    ignored = []
    for key, holder, name, other in list(_differences(own, recorded)):
        if other is not _MISSING and (_OF_THE_SESSION.fullmatch(key) or _was_given(key, other, given)):
            holder[name] = other
        else:
            ignored.append((key, other, holder[name]))
    if not ignored:
        return own, None
    differs = _instead(ignored) if recorded else "cannot be read"
    return own, (
        f"{run_dir / CONFIG}: {differs}. It was changed or damaged since {checkpoint.name} was saved, whose config is "
        "used and written there again. To train with other settings, start a new run from the weights with init=."
    )


def changed_since(run_dir: Path, recorded: dict[str, Any], trained: dict[str, Any]) -> str | None:
    """Return in which settings `recorded`, the config.yaml of a run, differs from the one of a checkpoint, beside those
    that a resume was given; None where they are the same."""
    given = {_key(word): word.partition("=")[2] for word in words_with_resume(run_dir)}
    # Without run.json it is not known what a resume was given.
    may_be_given = ALLOWED_WITH_RESUME if not read_json_or_empty(run_dir / RECORD) else ()
    changed = [
        (key, other, holder[name])
        for key, holder, name, other in _differences(trained, recorded)
        if not (_OF_THE_SESSION.fullmatch(key) or key in given or _was_given(key, other, given))
        and not key.startswith(may_be_given)
    ]
    return _instead(changed) if changed else None


def words_with_resume(run_dir: Path) -> Iterator[str]:
    """Yield the words that the sessions of a run were given together with resume=."""
    for session in as_list(read_json_or_empty(run_dir / RECORD).get("sessions")):
        yield from map(str, as_list(as_object(session).get("overrides")))


def _instead(differences: Sequence[tuple[str, Any, Any]]) -> str:
    """Return the first key with its two values, recorded and own, and how many more differ."""
    key, other, value = differences[0]
    said = f"{key} is missing" if other is _MISSING else f"{key}={in_one_line(str(other), 60)}"
    more = f", and {number_of('more keys', len(differences) - 1)}" if len(differences) > 1 else ""
    return f"{said} instead of {in_one_line(str(value), 60)}{more}"


def _differences(
    own: dict[str, Any], recorded: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any], str, Any]]:
    """Yield the keys of `own` with another value in `recorded`: as on the command line, their place in `own`, the other
    value. Secrets are hidden in the folder of a run."""
    for name, value in own.items():
        other = recorded.get(name, _MISSING)
        if isinstance(value, dict) and value and isinstance(other, dict):
            yield from _differences(value, other, f"{prefix}{name}.")
        elif other not in (value, redact_all(value)):
            yield f"{prefix}{name}", own, name, other


def _was_given(key: str, value: Any, given: Mapping[str, str]) -> bool:
    section = key.partition(".")[0]
    if section == "tracker":  # a group of settings
        return any(name.partition(".")[0] == section for name in given)
    if key.startswith("trainer.stop_"):  # the criteria, and their options
        return "trainer.stop_criteria" in given
    return key in ALLOWED_WITH_RESUME and key in given and _is_value(given[key], value)


def _is_value(word: str, value: Any) -> bool:
    """Return True when a word of the command line stands for this value of a config.yaml."""
    if (number := as_number(value)) is not None:
        with suppress(ValueError):
            return float(word) == number
    return word == ("null" if value is None else str(value))


# --- a new run with other settings --------------------------------------------------------------------------------


def new_run(run_dir: Path, changes: Sequence[str]) -> str:
    """The line of a new run as the one in `run_dir` was started, with `changes`, as key=value words.

    It begins with the weights of that run, unless a change needs others: of another size, or those of init=.
    """
    record = read_json_or_empty(run_dir / RECORD)
    keys = [_key(word) for word in changes]
    own_weights = "init" in keys or any(map(_is_brought, keys))
    started = Path(str(record.get("cwd") or "."))
    words = []
    for word in map(str, as_list(record.get("overrides"))):
        key, equals, value = word.partition("=")
        name = _key(key)
        if name in _OF_ONE_SESSION or any(replaces(new, name) for new in keys):
            continue
        if not own_weights and (name == "init" or _is_brought(name)):
            continue
        if PLACE_OF_DATA.fullmatch(name) and started != Path.cwd() and (started / value).exists():
            value = str(started / value)
        words.append(f"{key}{equals}{value}")
    weights = [] if own_weights else [f"init={shown(run_dir)}"]
    return command_line("train", *map(str, as_list(record.get("flags"))), *weights, *words, *changes)


_OF_ONE_SESSION = ("resume", "trainer.stop_after_steps")


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _is_brought(key: str) -> bool:
    """True for what the checkpoint of init= brings."""
    return key.partition("/")[0].partition(".")[0] in ("model", "tokenizer") and key not in KEPT_WITH_INIT


def other_places(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the sources of the config `now` that are elsewhere than in `before`: the key, the place then and now."""
    then = _places(before)
    for name, place in _places(now).items():
        if place is not None and (old := then.get(name)) != place and _absolute(old) != _absolute(place):
            known = [f"data.{name}.path"] if name in ("qa", "wiki") else []
            key = (known or [f"data.sources.{name}.path"])[0] if len(then) > 1 or known else "data.path"
            yield key, shown(_absolute(old)) if old else "the data that it comes with", shown(_absolute(place))


def _absolute(place: str | None) -> Path:
    return Path(os.path.abspath(os.path.expanduser(place or "")))


def _places(config: Mapping[str, Any]) -> dict[str, str | None]:
    """The path of each source, the short forms folded in."""
    data = as_object(config.get("data"))
    places = {name: as_object(source).get("path") for name, source in as_object(data.get("sources")).items()}
    if data.get("path") is not None:
        places |= dict.fromkeys([*places][:1], data["path"])
    for alias in ("qa", "wiki"):
        if (path := as_object(data.get(alias)).get("path")) is not None:
            places[alias] = path
    return {name: None if path is None else str(path) for name, path in places.items()}


def hold_the_same(then: Path, now: Path) -> bool:
    """True for files of equal content, for folders of equal files by name and size, and where `then` is gone, so that
    nothing can tell."""
    if not then.exists() or not now.exists():
        return now.exists()
    if then.is_file() and now.is_file():
        return filecmp.cmp(then, now, shallow=False)
    return then.is_dir() and now.is_dir() and _listing(then) == _listing(now)


def _listing(folder: Path) -> set[tuple[str, int]]:
    return {(entry.name, entry.stat().st_size if entry.is_file() else 0) for entry in os.scandir(folder)}
