"""Values of settings: what torch, numpy or JSON cannot take is rejected by name, and what is accepted trains."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from omegaconf.errors import ValidationError
from tiny_runs import start, tiny_config, write_pairs

from dtl.base.checks import LONGEST
from dtl.benchmarks.config import BenchConfig
from dtl.config import RunConfig, to_dict, typed
from dtl.data.config import SourceConfig
from dtl.errors import ConfigError, DTLError
from dtl.evaluation.config import EvaluateConfig
from dtl.housekeeping.config import RunsConfig
from dtl.prepare import PrepareConfig
from dtl.sweeps.config import LauncherConfig, SearchConfig
from dtl.terminal.config import ChatConfig
from dtl.tracking.metrics import read_metrics

NUMBERS = (int, float)
REJECTED = (DTLError, ValidationError)  # of the wrong type: translated by the commands
BEYOND = (10**26, -(10**26), math.inf, -math.inf, math.nan)
EXTREMES = {
    int: (0, -1, 10**9, 10**12, 10**26),
    float: (0.0, -1.0, 1e-320, 1e9, 1e26, math.inf, math.nan),
}


def leaves(schema: Any, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Every setting that is a number or true/false, with its type."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        hint = hints[item.name]
        if is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{item.name}.")
        for kind in (int, float, bool):
            if kind in (hint, *(part for part in get_args(hint) if type(None) in get_args(hint))):
                yield f"{prefix}{item.name}", kind


def with_value(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The nested values with another one, changed in a copy."""
    first, _, rest = key.partition(".")
    return values | {first: with_value(values[first], rest, value) if rest else value}


def mixture(folder: Path) -> dict[str, Any]:
    """A run in a second, of two sources, that evaluates and samples at each of its steps."""
    config = to_dict(tiny_config(write_pairs(folder / "pairs.jsonl"), total_steps=2, eval_every_steps=1))
    (folder / "text.txt").write_text("Roses are red. " * 200, encoding="utf-8")
    config["data"]["sources"]["text"] = {"kind": "text", "path": str(folder / "text.txt")}
    return with_value(config, "data.cache_dir", str(folder / "cache"))


KEYS = [*leaves(RunConfig), ("data.sources.qa.weight", float), ("data.sources.text.weight", float)]
ELSEWHERE = ("data.", "tokenizer.", "sampling.")  # of other commands: the same sections


@pytest.mark.quick_cases(10)
@pytest.mark.fault("extremes")
@pytest.mark.parametrize("key", [key for key, kind in KEYS if kind in NUMBERS])
def test_every_number_of_a_run_has_two_ends(key: str, tmp_path: Path) -> None:
    values = mixture(tmp_path)
    for value in BEYOND:
        with pytest.raises(REJECTED, match=key.split(".")[-1]):
            typed(with_value(values, key, value))


@pytest.mark.parametrize(
    "schema", [BenchConfig, ChatConfig, EvaluateConfig, LauncherConfig, PrepareConfig, RunsConfig, SearchConfig]
)
def test_every_number_of_the_other_commands_has_two_ends(schema: Any) -> None:
    keys = [key for key, kind in leaves(schema) if kind in NUMBERS and not key.startswith(ELSEWHERE)]
    assert keys
    for key in keys:
        for value in BEYOND:
            settings = schema()
            if isinstance(settings, PrepareConfig):
                settings.data.sources = {"qa": SourceConfig(kind="qa")}
            *sections, name = key.split(".")
            owner = settings
            for section in sections:
                owner = getattr(owner, section)
            setattr(owner, name, value)
            with pytest.raises(ConfigError, match=rf"{name}={value}"):
                settings.validate()


@pytest.mark.quick_cases(9)
@pytest.mark.parametrize(("key", "kind"), KEYS)
def test_a_missing_value_or_one_of_another_kind_is_no_value(key: str, kind: type, tmp_path: Path) -> None:
    """3 is not taken for true, true not for 1, nor ??? for the default."""
    values = mixture(tmp_path)
    for value in ("???", *((0, 1, 3, 2.5) if kind is bool else (True, False))):
        with pytest.raises(REJECTED, match=key.split(".")[-1]):
            typed(with_value(values, key, value))


def check_that_it_trains(values: dict[str, Any], key: str, value: Any, folder: Path) -> None:
    """Validate; what is accepted trains to its end, or says in a sentence why it does not."""
    values = with_value(values, key, value)
    try:
        config = typed(with_value(values, "trainer.stop_after_steps", values["trainer"]["stop_after_steps"] or 2))
        start(config, folder)
    except REJECTED:
        return
    assert any("train/loss" in row for row in read_metrics(folder))


TRIED = [
    ("optimizer.eps", 1e-320), ("model.arch.norm_eps", math.inf), ("data.sources.text.weight", 1e9),
    ("sampling.top_p", 1e-320), ("model.ffn_dim", 10**9), ("trainer.max_grad_norm", 1e-320),
]  # fmt: skip


@pytest.mark.fault("extremes")
@pytest.mark.parametrize(("key", "value"), TRIED)
def test_an_extreme_value_trains_or_is_rejected(key: str, value: Any, tmp_path: Path) -> None:
    check_that_it_trains(mixture(tmp_path), key, value, tmp_path / "run")


@pytest.mark.fault("extremes")
@pytest.mark.slow
@pytest.mark.parametrize(("key", "kind"), [(key, kind) for key, kind in KEYS if kind in NUMBERS])
def test_every_extreme_value_trains_or_is_rejected(key: str, kind: type, tmp_path: Path) -> None:
    values = mixture(tmp_path)
    for value in EXTREMES[kind]:
        check_that_it_trains(values, key, value, tmp_path / f"{value}")


def test_samples_end_with_the_context_and_never_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths: list[int] = []

    def fails(model: Any, tokenizer: Any, prompts: list[str], sampling: Any, seed: int) -> list[str]:
        lengths.append(sampling.max_new_tokens)
        raise RuntimeError("probability tensor contains nan")

    monkeypatch.setattr("dtl.runner.session.continuations", fails)
    config = typed(mixture(tmp_path))
    start(replace(config, sampling=replace(config.sampling, max_new_tokens=LONGEST)), tmp_path / "run")
    assert lengths == [73, 73]
    assert "no samples at step 2: RuntimeError: probability tensor contains nan" in capsys.readouterr().out
