"""The command `python -m dtl.train`: compose a config, train, report the result. Torch is imported only to train."""

import copy
import math
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dtl.base.checks import check_one_process
from dtl.base.display import command_line, lasting_display, say, shell_line, shown
from dtl.base.json_files import as_number, as_object, as_whole, dotted, read_json_or_empty, read_record_or_empty
from dtl.base.redaction import HIDDEN, check_no_secrets
from dtl.base.signals import STOP, ending_by_exception, undisturbed
from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.listing import newest_valid, step_folders
from dtl.checkpoints.upkeep import LOCK
from dtl.commandline.cli import MULTIRUN, JobFailedError, remove_empty_run_dir, run_command, show_error
from dtl.commandline.command import Command
from dtl.commandline.config_files import config_text
from dtl.commandline.overrides import as_shown, check_init_words, override_key, quoted, rerun_words, resolved, unquoted
from dtl.config import RunConfig, refuse_auto_in_sweep, typed
from dtl.data.tokenizers.prompt import read_prompt
from dtl.errors import ConfigError, DataError, InterruptedRun
from dtl.run_dir.own_config import (
    ALLOWED_WITH_RESUME,
    PLACE_OF_DATA,
    clear_other_places,
    hold_the_same,
    new_run,
    other_places,
    own_config,
    where_to_add_its_place,
    with_data_found,
    words_with_resume,
)
from dtl.run_dir.provenance import CONFIG, RECORD, RESULT, composition_flags, redact_hydra_files
from dtl.run_dir.record_checks import record_problems
from dtl.run_dir.state import longer_run, read_config
from dtl.run_dir.sweep_records import SWEEP, SweepFolder, damaged_sweep, is_sweep, sweep_to_continue, with_its_flags
from dtl.run_dir.trial import as_trial, current_trial

if TYPE_CHECKING:
    from dtl.runner.run import Origin

OUTPUTS = Path("outputs")
COMMAND = Command(
    "train",
    RunConfig,
    usage="""\
python -m dtl.train [group=choice ...] [key=value ...] [-m]
Trains a small language model from scratch; all of it is stored in outputs/.

  python -m dtl.train experiment=demo           2 minutes on two cores
  python -m dtl.train experiment=my_pairs data.qa.path=my_pairs.jsonl   2 min
  python -m dtl.train experiment=text_cpu data.path=my_texts/          10 min
  python -m dtl.train model=qa data=qa          with a GPU: 57 M parameters
  python -m dtl.train -m seed=1,2 optimizer.lr=1e-3,3e-3           four runs
  python -m dtl.train resume=latest             resume the last run, exactly
""",
    details="""\
A new run from another run's weights: init=RUN. Lists are written in quotes, 'key=[a,b]'; plugins=a,b needs none; null
means none. -m (--multirun) runs every combination of values with commas. --config-dir=FOLDER adds config groups and
recipes of your own. --cfg job --resolve shows the whole config without running; debug=true shows tracebacks.
Tab completion for the console script: eval "$(dtl-train -sc install=bash)"
""",
    free_text=("data.qa.prompt", "data.separator"),
    multirun=True,
)


def train(config: RunConfig, out_dir: Path | str, origin: "Origin | None" = None) -> float:
    """Train `config` in the folder `out_dir`; returns the best validation loss. See `dtl.runner.run.train`.

    Without an origin the run is described by the words that compose to its config.
    """
    from dtl.runner.run import Origin
    from dtl.runner.run import train as run

    return run(config, out_dir, origin or Origin(overrides=rerun_words(config)))


def main() -> None:
    """Entry point of `python -m dtl.train` and of the console script dtl-train."""
    with as_trial(), ending_by_exception():
        run_command(job, COMMAND, prepare_arguments)


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Point Hydra to the folder of a run or sweep that is resumed, before it creates a new one."""
    check_no_secrets(arguments)
    check_one_process()
    for key, equals, value in map(_split_word, arguments):
        if key in ("hydra.run.dir", "hydra.sweep.dir") and equals and not value.strip():
            raise ConfigError(f"{key}='': is no folder. Give a folder of its own for the run, or leave it out.")
    spec = next((value for key, _, value in map(_split_word, arguments) if key == "resume" and value != "null"), None)
    is_multirun = MULTIRUN in arguments
    if spec is None:
        return _continuing_a_sweep(arguments) if is_multirun else arguments
    if is_multirun:
        raise ConfigError(f"resume={spec}: resumes one run; leave out -m.")
    return [*arguments, f"hydra.run.dir={quoted(str(_run_folder(spec)))}", "hydra.output_subdir=null"]


def _continuing_a_sweep(arguments: list[str]) -> list[str]:
    named = next((value for key, _, value in map(_split_word, arguments) if key == "hydra.sweep.dir"), None)
    folder = Path(named) if named is not None else sweep_to_continue(arguments, OUTPUTS)
    lost = folder or damaged_sweep(arguments, OUTPUTS)
    if lost is not None and SweepFolder(lost).has_damaged_record():
        what = "is written again" if folder else f"may be this sweep: to resume it, add {_sweep_dir(lost)}"
        say(f"{shown(lost / SWEEP)}: was changed or is damaged, and {what}. Its flags and its hours so far are lost.")
    if folder is None:
        return arguments
    words = with_its_flags(arguments, folder)
    if taken := [word for word in words if word not in arguments]:
        say(
            f"{shown(folder)}: this sweep was started with {shell_line(taken)}, which is used again: its config files "
            f"decide what is trained. For others give {' and '.join(word.partition('=')[0] for word in taken)}=."
        )
    return [*words, *([_sweep_dir(folder)] if named is None else [])]


def _sweep_dir(folder: Path) -> str:
    return f"hydra.sweep.dir={quoted(str(folder))}"


def _run_folder(spec: str) -> Path:
    """The folder of the run that `resume=` names."""
    if is_sweep(folder := Path(os.path.expanduser(spec))):
        from dtl.sweeps.table import sweep_command  # imports libraries that a run does not need

        record, place = SweepFolder(folder).read(), f"hydra.sweep.dir={shown(folder)}"
        line = sweep_command(record, place) if record else command_line("train", "-m", "...", place)
        raise ConfigError(
            f"resume={spec}: a sweep, and resume= is for one run, such as {shown(folder / '0')}. To resume the sweep"
            f"{'' if record else ', give its own command for the dots'}:\n  {line}"
        )
    checkpoint = find_checkpoint(spec, OUTPUTS, prefer="newest")
    if checkpoint.parent.name != "checkpoints":
        raise ConfigError(
            f"resume={spec}: not a run of DTL. To start a new run from these weights: {shell_line([f'init={spec}'])}"
        )
    run_dir = checkpoint.parent.parent
    if Path(spec).name == checkpoint.name != (newest := newest_valid(run_dir)[0].path).name:
        raise ConfigError(
            f"resume={spec}: a run resumes from its newest checkpoint, {newest.name}. For that: "
            f"{shell_line([f'resume={run_dir}'])}. To start a new run from this one: {shell_line([f'init={spec}'])}"
        )
    return run_dir


def _split_word(argument: str) -> tuple[str, str, str]:
    key, equals, value = argument.partition("=")
    return override_key(key), equals, resolved(unquoted(value))


def job(composed: DictConfig) -> float:
    """Train one run, or one job of a multirun. Its error is shown here, once."""
    hydra = HydraConfig.get()
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    words = [*composition_flags(hydra), *overrides]
    is_multirun = hydra.mode == RunMode.MULTIRUN
    try:
        redact_hydra_files(Path(hydra.runtime.output_dir))
        if (loss := _loss_if_finished(composed, Path(hydra.runtime.output_dir), overrides)) is not None:
            return loss
        config, origin = _prepared(composed, Path(hydra.runtime.output_dir), overrides)
        if trial := current_trial():
            origin.group, origin.job_number = trial
        elif is_multirun:  # one of Hydra's own launchers
            origin.group, origin.job_number = Path(hydra.sweep.dir).name, int(hydra.job.num)
        return train(config, hydra.runtime.output_dir, origin)
    except InterruptedRun as stop:
        # SystemExit ends the whole multirun, which is the intention of Ctrl-C.
        code = show_error(stop, words, COMMAND)
        if stop.signal_number not in STOP:
            signal.raise_signal(stop.signal_number)  # saved: now submitit may requeue the job
        raise SystemExit(code) from None
    except KeyboardInterrupt:
        with undisturbed():
            remove_empty_run_dir(Path(hydra.runtime.output_dir), (".hydra", LOCK))
        raise
    except Exception as error:
        code = show_error(error, words, COMMAND)
        remove_empty_run_dir(Path(hydra.runtime.output_dir), (".hydra", LOCK))  # a run that never started
        if is_multirun:
            raise JobFailedError(f"job {hydra.job.num} ({' '.join(map(as_shown, overrides))}) failed") from None
        raise SystemExit(code) from None


def _prepared(composed: DictConfig, run_dir: Path, overrides: list[str]) -> "tuple[RunConfig, Origin]":
    """The typed config, and the origin of the run."""
    requeued = _was_started(run_dir, overrides)
    resuming = requeued or composed.get("resume") is not None
    newest, warnings = None, []
    if resuming:
        _check_resume_words(words := [] if requeued else overrides, run_dir)
        newest, damage = newest_valid(run_dir)
        own, changes = own_config(run_dir, newest.path, _given_with_resume(run_dir))
        warnings = [warning for warning in (damage, changes, _hidden_in(own, newest.path)) if warning]
        config = _resumed_config(composed, run_dir, own, words)
        _check_pause(config.trainer.stop_after_steps, newest.step)
    else:
        config = typed(composed)
    check_init_words(config.init, overrides)
    init_from = find_checkpoint(config.init, OUTPUTS) if config.init is not None else None
    lasting_display().note("Opening the data, loading torch ...")  # the first sign of life
    from dtl.data.collect import open_sources  # imports numpy, which --help does not need

    # Missing files and a missing network are reported before torch is imported.
    try:
        data, plans = open_sources(config.data, config.seed, init_from and read_prompt(init_from))
    except DataError as error:
        if not resuming:
            raise DataError(f"{error}{_how_to_get(str(error))}") from error
        message = str(error).partition(" Did you mean ")[0]  # another file of that folder is not the data of this run
        raise DataError(f"{message}\n{where_to_add_its_place(error)}") from error
    config = replace(config, data=data)
    if config.model.auto:
        if HydraConfig.get().mode == RunMode.MULTIRUN or current_trial():
            refuse_auto_in_sweep(config)
        from dtl.foresight.choose import sized

        with lasting_display() as display:
            chosen = sized(config, plans, display.log, [*composition_flags(HydraConfig.get()), *overrides])
            for line in chosen.lines:
                display.print(line)
        config, overrides = chosen.config, [*overrides, *chosen.words]  # a rerun measures nothing

    from dtl.foresight.predict import foresee
    from dtl.runner.run import Origin

    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    origin = Origin(
        overrides=overrides,
        flags=[*composition_flags(hydra), *(word for word in hydra.overrides.hydra if "hydra.searchpath=" in word)],
        choices={key: str(value) for key, value in choices.items() if not key.startswith("hydra/")},
        init_from=init_from,
        plans=plans,
        resume_from=newest and newest.path,
        warnings=warnings,
        foresee=foresee,
    )
    return config, origin


def _check_pause(stop_after_steps: int | None, step: int) -> None:
    """Raise ConfigError for a pause before the step that a resumed run is at."""
    if stop_after_steps is not None and stop_after_steps < step:
        raise ConfigError(
            f"trainer.stop_after_steps={stop_after_steps}: is counted from step 0, and this run is at step {step}. "
            f"Give more than {step}, such as trainer.stop_after_steps={step + stop_after_steps}."
        )


def _loss_if_finished(composed: DictConfig, run_dir: Path, overrides: list[str]) -> float | None:
    """Return the best loss, with a message, of a finished run that is resumed without a new length; else None."""
    if composed.get("resume") is None:
        return None
    result = read_record_or_empty(run_dir / RESULT)
    longer = any(override_key(override).startswith("trainer.") for override in overrides)
    # `seen` is written after the evaluation at the end, which a resume makes up for.
    if result.get("state") != "finished" or "seen" not in result or longer:
        return None
    recorded = read_config(run_dir)
    if not isinstance(recorded.get("data"), dict):  # damaged: a resume takes that of the checkpoint
        return None
    _check_resume_words(overrides, run_dir)
    _check_same_data(composed, run_dir, recorded, overrides)
    step = as_whole(result.get("step")) or 0
    folder = shown(run_dir)
    use = "chat" if any("exact_match" in name for name in result) else "generate"
    with lasting_display() as display:
        display.print(f"{folder}: this run is finished, at step {step:,}. Nothing is left to train.")
        for problem in record_problems(run_dir):
            display.warn(f"{problem}.")
        max_epochs = as_whole(as_object(recorded.get("trainer")).get("max_epochs"))
        if unused := [as_shown(word) for word in overrides if override_key(word) != "resume"]:
            display.print(f"Not used: {' '.join(unused)}")
        display.print(f"To train further: {longer_run(run_dir, 2 * step, max_epochs)}")
        display.print(f"To use it: {command_line(use, f'ckpt={folder}')}")
    value = as_number(result.get("value"))
    return math.nan if value is None else value


def _how_to_get(problem: str) -> str:
    """The line in the recipe's head that downloads the file which the `problem` names; empty if there is none."""
    hydra = HydraConfig.get()
    recipe = config_text(f"experiment/{hydra.runtime.choices.get('experiment')}", composition_flags(hydra))
    lines = re.findall(r"^# +(curl -o (\S+) \S+)$", recipe[1], re.MULTILINE) if recipe else []
    return "".join(f" To get it: {line}" for line, file in lines if file in problem and not Path(file).exists())


def _was_started(run_dir: Path, overrides: list[str]) -> bool:
    """Return True when a job of a multirun finds its own checkpoints in its folder: SLURM has requeued it, or its
    sweep is started again in the same folder. (hydra/launcher=dtl_process passes resume= itself.)"""
    if HydraConfig.get().mode != RunMode.MULTIRUN or not step_folders(run_dir):
        return False
    return read_json_or_empty(run_dir / RECORD).get("overrides") == overrides


def _check_resume_words(overrides: list[str], run_dir: Path) -> None:
    """Raise ConfigError for a key that a resumed run cannot change."""
    changes = [override for override in overrides if not _may_change(override_key(override))]
    if changes:
        raise ConfigError(
            f"{changes[0]}: a resumed run keeps its config. With resume= only {', '.join(ALLOWED_WITH_RESUME[1:])} "
            "may be given, and data.path where the same data is elsewhere now. To change the rest, start a new run: "
            f"{new_run(run_dir, changes)}"
        )


def _may_change(key: str) -> bool:
    return key in ALLOWED_WITH_RESUME or key.startswith("tracker.") or bool(PLACE_OF_DATA.fullmatch(key))


def _check_same_data(composed: DictConfig, run_dir: Path, recorded: dict[str, Any], overrides: list[str]) -> None:
    """Raise ConfigError for other data than that of a finished run, which would not be read."""
    own = with_data_found(recorded, run_dir)
    changed = copy.deepcopy(own)
    keys = [override_key(override) for override in overrides]
    _set_places_of_data(changed, composed, list(filter(PLACE_OF_DATA.fullmatch, keys)))
    for key, then, now in other_places(own, changed):
        if not hold_the_same(Path(then), Path(now)):
            raise ConfigError(
                f"{key}={now}: this run is finished, and was trained on {then}. To train on {now} from its weights, in "
                f"a run of its own:\n  {new_run(run_dir, [f'{key}={now}'])}"
            )


def _hidden_in(own: dict[str, Any], checkpoint: Path) -> str | None:
    """Return a warning about the secrets of a run's config, which its files do not have; None where there are none."""
    keys = [key for key, value in dotted(own) if HIDDEN in str(value)]
    if not keys:
        return None
    return (
        f"{', '.join(keys)}: held a secret, which {checkpoint / CONFIG} has as {HIDDEN}, and that is what this session "
        "uses. A part that needs it reads a variable itself: os.environ[NAME], with NAME in the setting; the place of "
        "data can be given with resume=."
    )


def _given_with_resume(run_dir: Path) -> dict[str, str]:
    """Return what the sessions of a run were given together with resume=: the values by key."""
    return {key: value for key, _, value in map(_split_word, words_with_resume(run_dir))}


def _resumed_config(composed: DictConfig, run_dir: Path, own: dict[str, Any], overrides: list[str]) -> RunConfig:
    """The run's own config with the few keys that may change. Plugins come from the command line only: a config.yaml
    in a folder never makes DTL import code."""
    keys = [override_key(override) for override in overrides]
    own = with_data_found(own, run_dir)
    places = [key for key in keys if PLACE_OF_DATA.fullmatch(key)]
    _set_places_of_data(own, composed, places)
    for key in (key for key in keys if key not in places):
        section = key.partition(".")[0] if key.startswith("tracker") else key
        value = OmegaConf.select(composed, section)
        parent, _, leaf = section.rpartition(".")
        target = own[parent] if parent else own
        target[leaf] = OmegaConf.to_container(value) if isinstance(value, DictConfig) else value
    if not own["trainer"].get("stop_criteria"):
        own["trainer"]["stop_options"] = {}
    own |= {"plugins": list(composed.plugins), "resume": str(run_dir), "init": None}
    # An earlier session's stop_after_steps does not apply to this one.
    if "trainer.stop_after_steps" not in keys:
        own["trainer"]["stop_after_steps"] = None
    return typed(own)


def _set_places_of_data(own: dict[str, Any], composed: DictConfig, keys: list[str]) -> None:
    """Set where the data of a resumed run is now; its fingerprint tells later whether it is the same."""
    data = own["data"]
    for key in keys:
        path = OmegaConf.select(composed, key)
        names = key.split(".")[1:-1]  # of qa, wiki, or sources and a name; none of data.path
        holder = data
        for name in names:
            holder = holder.get(name) if isinstance(holder, dict) else None
        if not isinstance(holder, dict):
            raise ConfigError(f"{key}={path}: this run has no such source. Its sources: {', '.join(data['sources'])}.")
        clear_other_places(data, key)
        holder["path"] = os.path.abspath(os.path.expanduser(str(path)))


if __name__ == "__main__":
    # `python -m dtl.train` runs this file as __main__; launchers that pickle the job for another process need it in the
    # importable module.
    from dtl.train import main as importable_main

    sys.exit(importable_main())
