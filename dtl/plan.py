"""The command `python -m dtl.plan`: the memory that a run needs, whether it fits, and its time, before it starts."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dtl.base.checks import check_range
from dtl.base.display import Display, command_line, exit_when_output_closes
from dtl.base.units import in_mib, in_percent, in_seconds, in_time, number_of
from dtl.checkpoints.find import find_checkpoint
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.commandline.overrides import as_shown, check_init_words, override_key
from dtl.config import RunConfig, to_dict, typed_as
from dtl.data.tokenizers.prompt import read_prompt
from dtl.errors import ConfigError, DoesNotFitError
from dtl.foresight.machine import named_machine
from dtl.run_dir.provenance import composition_flags
from dtl.run_dir.references import check_curves

if TYPE_CHECKING:
    from dtl.foresight.predict import Prediction, Setting
    from dtl.foresight.time import Forecast


@dataclass
class PlanConfig(RunConfig):
    """Settings of a run, and the machine that it is planned for."""

    machine: str | None = None  # memory (8GB, or a number of GiB) or a card (rtx4060); null = this machine
    probe: bool = False  # take the steps for the time with the model itself, not with few of its layers
    cost_per_hour: float | None = None  # of the machine, in any currency: shows the price of the run
    curves: str | None = None  # file of reference curves, as dtl.report writes it; null = those that ship with DTL

    def validate(self) -> None:
        """Raise ConfigError, naming key, value, rule and remedy, for an invalid run or machine."""
        super().validate()
        if self.model.auto and self.machine is not None:
            raise ConfigError(f"machine={self.machine}: model=auto measures the speed of this machine. Leave one out.")
        if self.resume is not None:
            raise ConfigError(f"resume={self.resume}: a plan is for a new run. A resumed run needs as much as it did.")
        if self.machine is not None:
            named_machine(self.machine)
            for key, given in (("probe", self.probe), ("cost_per_hour", self.cost_per_hour)):
                if given:
                    raise ConfigError(
                        f"{key}={str(given).lower()}: the time is known only of the machine that it is measured "
                        f"on. Leave out machine={self.machine}, or {key}."
                    )
        check_range(self, "", ", or null", cost_per_hour=(0, 1_000_000))
        check_curves(self.curves)


COMMAND = Command(
    "plan",
    PlanConfig,
    usage="""\
python -m dtl.plan [the words of dtl.train] [machine=8GB] [cost_per_hour=0.35]
Shows the memory that a run needs, by part, and what is free here; if it does
not fit, the first setting that does, else its time. Exit code 3: too large.

  python -m dtl.plan model=large                        the default data
  python -m dtl.plan experiment=text_cpu data.path=my_texts/
  python -m dtl.plan model=large machine=8GB            for another machine
  python -m dtl.plan model=qa machine=rtx4060           for a card
  python -m dtl.plan model=medium probe=true            time of its own steps
""",
    details="""\
Tab completion for the console script: eval "$(dtl-plan -sc install=bash)"
""",
    free_text=("data.qa.prompt", "data.separator"),
)


def main() -> None:
    """Entry point of `python -m dtl.plan` and of the console script dtl-plan."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """Plan and show. Everything that can be checked without torch is checked before it is imported."""
    compose_seconds = time.process_time()
    config = typed_as(PlanConfig, composed)
    hydra = HydraConfig.get()
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    check_init_words(config.init, overrides)
    words = [*composition_flags(hydra, COMMAND.name), *(word for word in overrides if not _is_of_plan(word))]
    with exit_when_output_closes(), Display() as display:
        display.note("Opening the data, loading torch ...")  # the first sign of life
        config, words = _sized(config, words, display)
        # Loads beside the count of the memory, is timed after it, and is ended where the run does not fit.
        with _timing(config, compose_seconds) as wait:
            if not show(display, planned(config, display), words):
                raise SystemExit(DoesNotFitError.exit_code)
            if wait is not None:
                show_time(display, config, wait)


def _is_of_plan(word: str) -> bool:
    return override_key(word) in ("machine", "probe", "cost_per_hour", "curves")


def _sized(config: PlanConfig, words: list[str], display: Display) -> tuple[PlanConfig, list[str]]:
    """Return the run with the size that `model=auto` chooses, which is shown, and its words."""
    if not config.model.auto:
        return config, words
    from dtl.data.collect import open_sources
    from dtl.foresight.choose import sized

    data, plans = open_sources(config.data, config.seed)
    chosen = sized(replace(config, data=data), plans, display.log, words)
    for line in chosen.lines:
        display.print(line)
    return replace(config, model=chosen.config.model, trainer=chosen.config.trainer), [*words, *chosen.words]


def planned(config: PlanConfig, display: Display) -> "Setting":
    """Return the run as it would be on the machine. Raises DataError, CheckpointError."""
    init_from = find_checkpoint(config.init, Path("outputs")) if config.init is not None else None
    from dtl.data.collect import open_sources  # imports numpy, which --help does not need

    data, plans = open_sources(config.data, config.seed, init_from and read_prompt(init_from))
    from dtl.foresight.predict import setting_of

    machine = None if config.machine is None else named_machine(config.machine)
    return setting_of(replace(config, data=data), plans, init_from, machine, display.log)


def show(display: Display, setting: "Setting", words: Sequence[str]) -> bool:
    """Show the table, and the command of the first setting that fits; return whether the run itself fits."""
    from dtl.foresight.remedies import first_that_fits, remedies

    config, machine = setting.config, setting.machine
    prediction = setting.predict(config)
    for line in _table(setting, prediction):
        display.print(line)
    for line in (*budget_lines(setting), *loss_lines(setting, HydraConfig.get().runtime.choices)):
        display.print(line)
    for note in setting.notes:
        display.note(note)
    if machine.free is None:
        display.print("Whether it fits is not known.")
        return True
    if prediction.fits(machine):
        display.print(f"It fits, with {in_percent(prediction.total / machine.free)} % of what is free.")
        return True
    display.print(f"It does not fit: {in_mib(prediction.total - machine.free, ',')} are missing.")
    groups = remedies(setting, same_model=setting.held(prediction) <= machine.free)
    found = first_that_fits(groups, setting.predict, machine)
    if found is None:
        display.print(
            "No smaller micro-batch, checkpointing, precision or vocabulary is enough. Take a smaller model: "
            "model=small, or less of model.dim and model.n_layers."
        )
        return False
    remedy, smaller = found
    keys = {override_key(word) for word in remedy.words}
    kept = [as_shown(word) for word in words if override_key(word) not in keys]
    display.print(f"This fits, with {in_mib(smaller.total, ',')}. Its price: {'; '.join(remedy.prices)}.")
    display.print(f"  {command_line('train', *kept, *remedy.words)}")
    return False


def _timing(
    config: PlanConfig, compose_seconds: float
) -> AbstractContextManager[Callable[[], dict[str, Any] | None] | None]:
    """Begin to time the run; of another machine no time is known."""
    if config.machine is not None:
        return nullcontext()
    from dtl.foresight.process import timing

    return timing(config, config.probe, compose_seconds)


def show_time(display: Display, config: PlanConfig, wait: Callable[[], dict[str, Any] | None]) -> None:
    """Show how long the run takes."""
    from dtl.foresight.time import Forecast

    if config.probe:
        display.note("Taking real steps ...")
    values = wait()
    if values is None:
        display.note("How long it takes is not known: its steps could not be taken here.")
        return
    for line in time_lines(Forecast.of(values), config, config.cost_per_hour):
        display.print(line)


def time_lines(found: "Forecast", config: RunConfig, cost_per_hour: float | None) -> Iterator[str]:
    """Yield the lines of the plan about time, each of 80 columns at most."""
    on_cpu = found.device_type == "cpu"
    timed_layers = " and ".join(map(str, found.layers))
    of = "its own model" if found.is_own_model else f"models of {timed_layers} layers"
    threads, unit = (f", {number_of('threads', found.threads)}", " of processor time") if on_cpu else ("", "")
    yield f"Time, from real steps of {of}{threads}"
    if not found.is_whole and len(found.parts) == 1:
        yield f"  a step takes {in_seconds(found.step)}{unit}"
        yield "  How many there are is known when the data is prepared."
        return
    rows = []
    for part in found.parts:
        counted = f"{number_of(part.what, round(part.count))} of {in_seconds(part.each)}"
        many = counted if part.what.endswith("s") else part.what
        rows.append((many, in_time(part.count * part.each)))
    whole = "whole run" if found.is_whole else "without evaluation"
    rows.append((f"{whole}, about", f"{in_time(found.total)}{unit}"))
    if on_cpu and abs(found.clock - 1) > 0.1:
        rows.append(("on the clock, about", f"{in_time(found.total * found.clock)}, if the machine stays as busy"))
    if cost_per_hour is not None:
        rows.append(("price", f"{cost_per_hour * found.hours:,.2f} at {cost_per_hour:g} an hour"))
    if found.watts is not None:
        rows.append(("energy", f"{found.watts * found.hours / 1000:,.2f} kWh at {found.watts:.0f} W"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        yield f"  {name:<{width}}  {value}"
    patience = config.trainer.early_stopping_patience
    if patience is not None and any(part.what == "evaluations" and part.count > patience for part in found.parts):
        yield f"  It may end sooner: trainer.early_stopping_patience={patience}."


def _table(setting: "Setting", prediction: "Prediction") -> Iterator[str]:
    """Yield the lines of the table, each of 80 columns at most."""
    from dtl.foresight.predict import ordered

    config, machine, model = setting.config, setting.machine, setting.config.model
    yield f"Memory of {config.name} on {machine.name or 'this machine'} ({setting.device_type}, {setting.precision})"
    yield (
        f"  {number_of('layers', model.n_layers)} of width {model.dim}, vocabulary {prediction.facts.vocab_size:,}; "
        f"a step: {config.micro_batch_size} x {config.grad_accum_steps} x {config.seq_len} tokens"
    )
    rows = [(name, in_mib(n_bytes, ","), "") for name, n_bytes in ordered(prediction.parts)]
    if not prediction.parts.get("gradients"):
        rows.insert(1, ("gradients", "-", "none yet: the backward pass makes them"))
    rows.append(("peak", in_mib(prediction.total, ","), f"reached in {MOMENTS.get(prediction.moment, 'the step')}"))
    free = "unknown" if machine.free is None else in_mib(machine.free, ",")
    rows.append(("free", free, machine.why))
    width = max(len(value) for _, value, _ in rows)
    for name, value, why in rows:
        yield f"  {name:<26}{value:>{width}}   {why}".rstrip()


def budget_lines(setting: "Setting") -> Iterator[str]:
    """Yield what the data can give, where it has been read."""
    from dtl.runner.budget import budget_of, ends_sooner
    from dtl.runner.build import on_meta
    from dtl.runner.length import RunLength

    if (data := setting.data) is None:
        return
    config = setting.config
    length = RunLength.of(config, data.train.steps_per_epoch(config.global_batch_size))
    yield f"Data: {number_of('steps', length.last_step)}{ends_sooner(config.trainer)}"
    yield from (f"  {line}" for line in budget_of(data, length, on_meta(config, setting.facts.vocab_size)[0]).lines())


def loss_lines(setting: "Setting", choices: Mapping[str, str | None]) -> Iterator[str]:
    """Yield the loss that the run's reference reached after as many tokens; nothing for a model that goes on from
    another one. `choices` are the files of the config groups."""
    from dtl.run_dir.references import Subject, curves_file, data_kind, expected_lines, read_references
    from dtl.runner.build import on_meta

    config, vocabulary = setting.config, setting.facts.vocab_size
    if config.init is not None:
        return
    chosen = {group: name for group, name in choices.items() if name not in (None, "null")}
    subject = Subject(
        recipe=chosen.get("experiment"),
        model=chosen.get("model"),
        kind=data_kind(to_dict(config)["data"]),
        n_parameters=on_meta(config, vocabulary)[0].n_parameters(embeddings=False),
        tokenizer=config.tokenizer.kind,
        vocabulary=vocabulary,
    )
    own = config.curves if isinstance(config, PlanConfig) else None
    try:
        references = read_references(curves_file(own))
    except ConfigError as error:
        if own is not None:
            raise
        yield str(error)  # DTL's own file: the plan does not depend on it
        return
    words = [] if own is None else [as_shown(f"curves={own}")]
    yield from expected_lines(references, subject, run_tokens(setting), words)


def run_tokens(setting: "Setting") -> int | None:
    """Return the tokens of the whole run, padding included; None where its length depends on data that is not read."""
    from dtl.runner.length import RunLength

    config, data = setting.config, setting.data
    steps, per_step = config.trainer.total_steps, config.global_batch_size * config.seq_len
    if data is None:
        return None if steps is None or config.max_epochs is not None else steps * per_step
    steps_per_epoch = data.train.steps_per_epoch(config.global_batch_size)
    epochs, rest = divmod(RunLength.of(config, steps_per_epoch).last_step, steps_per_epoch)
    return epochs * data.train.sequences_per_epoch * config.seq_len + rest * per_step  # an epoch's last step has fewer


MOMENTS = {
    "activations": "the forward pass",
    "head": "the loss",
    "backward": "the backward pass",
    "optimizer": "the optimizer's step",
    "evaluation": "an evaluation",
}

if __name__ == "__main__":
    main()
