"""One run as one typed object, composed of the parts' own dataclasses; and the checks that cross parts.

YAML files under conf/ override the dataclasses' defaults; the command line overrides both.
`DictConfig` is converted here: everything deeper gets a `RunConfig`. Imports no torch.
"""

import os
import re
import time
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, get_type_hints

from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.plugins.config_source import ConfigResult
from omegaconf import MISSING, DictConfig, OmegaConf

from dtl.base.checks import check_device, check_seed
from dtl.base.json_files import read_users_yaml
from dtl.base.paths import conf_dir, experiments_dir
from dtl.base.redaction import redact_all
from dtl.base.safe_text import in_one_line
from dtl.data.config import DataConfig, RecommendedConfig, SourceConfig, TokenizerConfig
from dtl.errors import ConfigError
from dtl.generation.config import SamplingConfig
from dtl.model.config import ModelConfig
from dtl.registry import load_plugins
from dtl.sweeps.config import SweepConfig
from dtl.tracking.config import TrackerConfig
from dtl.training.config import CPU_BATCHES, OptimizerConfig, ScheduleConfig, TrainerConfig

LEAST_HOURS_OF_AUTO = 0.01
SECTIONS = ("model", "tokenizer", "data", "optimizer", "schedule", "trainer", "tracker", "sampling", "sweep")


def _default_data() -> DataConfig:
    """The data of conf/data/qa.yaml, which the command chooses by default."""
    return DataConfig(
        sources={"qa": SourceConfig(kind="qa")},
        seq_len=256,
        document_mask=True,
        loss_on="answer",
        validation_fraction=None,
        test_fraction=None,
        recommended=RecommendedConfig(
            micro_batch_size=4, grad_accum_steps=1, max_epochs=30, min_steps=300, lower_case_questions=True
        ),
    )


def _default_model() -> ModelConfig:
    """The model of conf/model/small.yaml, which the command chooses by default."""
    return ModelConfig(ffn_multiple_of=64, attention_dropout=0.0)


def _default_optimizer() -> OptimizerConfig:
    """The optimizer of conf/optimizer/adamw.yaml, which the command chooses by default."""
    return OptimizerConfig(lr=5e-4, embedding_lr=1e-2, base_width=256, betas=[0.9, None])


@dataclass
class RunConfig:
    """The complete configuration of a training run; `RunConfig()` is what the command trains by default.

    Only the name differs: the command names a run after its choices of model and data, `small_qa`. Model, data and
    optimizer have defaults here, and not in their own dataclasses, because a config group of your own and the configs
    of older runs build on those.
    """

    model: ModelConfig = field(default_factory=_default_model)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=_default_data)
    optimizer: OptimizerConfig = field(default_factory=_default_optimizer)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    name: str = "run"  # part of the run folder's name; letters, digits, . _ -
    seed: int = 1337  # for weights, dropout, data order and held-out split
    device: str = "auto"  # auto (CUDA, MPS, CPU) | cpu | cuda | cuda:1 | mps
    debug: bool = False  # show tracebacks
    plugins: list[str] = field(default_factory=list)  # modules that register parts of your own
    resume: str | None = None  # latest | run folder: resume in that run's own folder, with its own config
    init: str | None = None  # run | checkpoint | Hugging Face folder: start a new run from those weights

    @property
    def seq_len(self) -> int:
        """Tokens in a sequence."""
        return self.data.seq_len if self.data.seq_len is not None else self.model.max_seq_len

    @property
    def micro_batch_size(self) -> int:
        """Sequences in one forward pass."""
        own = self.trainer.micro_batch_size
        return own if own is not None else self.data.recommended.micro_batch_size

    @property
    def grad_accum_steps(self) -> int:
        """Forward passes in one optimizer step."""
        own = self.trainer.grad_accum_steps
        return own if own is not None else self.data.recommended.grad_accum_steps

    @property
    def global_batch_size(self) -> int:
        """The global batch size: sequences in one optimizer step."""
        return self.micro_batch_size * self.grad_accum_steps

    @property
    def max_epochs(self) -> int | None:
        """Maximum number of epochs; None when optimizer steps alone set the length."""
        if self.trainer.max_epochs is not None:
            return self.trainer.max_epochs
        return None if self.trainer.lengths else self.data.recommended.max_epochs

    def on(self, device_type: str) -> "RunConfig":
        """The config for a type of device (cpu, cuda, mps): trainer.machine is chosen, a CPU's batches are filled in,
        and with them a beta2 that depends on the tokens of a step.

        A run records this one, so that a resume on another machine does not choose again.
        """
        trainer = self.trainer
        machine = trainer.machine
        if machine == "auto":
            machine = "cpu" if device_type == "cpu" else "amp4060"
        micro, accumulated = trainer.micro_batch_size, trainer.grad_accum_steps
        if machine == "cpu":
            micro, accumulated = micro or CPU_BATCHES[0], accumulated or CPU_BATCHES[1]
        chosen = replace(trainer, machine=machine, micro_batch_size=micro, grad_accum_steps=accumulated)
        filled = replace(self, trainer=chosen)
        optimizer = self.optimizer.with_beta2(filled.global_batch_size * filled.seq_len)
        return replace(filled, optimizer=optimizer)

    def validate(self) -> None:
        """Raise ConfigError, naming key, value, rule and remedy, for an invalid run."""
        for section in SECTIONS:
            getattr(self, section).validate()
        checked_name(self.name)
        check_seed(self.seed)
        check_device(self.device)
        if self.resume is not None and self.init is not None:
            raise ConfigError("resume= and init= exclude each other: resume continues a run, init starts a new one.")
        if self.model.auto:
            self._check_auto()
        # With init= the context of its model counts, which is not read yet.
        if self.init is None and self.seq_len > self.model.max_seq_len:
            raise ConfigError(
                f"data.seq_len={self.seq_len}: longer than the model's context, model.max_seq_len="
                f"{self.model.max_seq_len}. Lower the former or raise the latter."
            )
        if self.device == "cpu" or (self.trainer.micro_batch_size and self.trainer.grad_accum_steps):
            self.on("cpu")  # a beta2 that the tokens of a step give, and that is refused, before torch is loaded
        if self.trainer.precision == "fp16" and self.device == "mps":
            raise ConfigError("trainer.precision=fp16: not supported on Apple GPUs. Use trainer.precision=fp32.")

    def _check_auto(self) -> None:
        trainer = self.trainer
        if trainer.hours is None:
            raise ConfigError("model=auto: chooses the model that a time is enough for. Add it: trainer.hours=1")
        if trainer.hours < LEAST_HOURS_OF_AUTO:
            raise ConfigError(
                f"trainer.hours={trainer.hours:g}: model=auto takes some seconds to measure, and needs at least "
                f"{LEAST_HOURS_OF_AUTO} (36 seconds). Raise it, or take another model, such as model=small."
            )
        for name in ("tokens", "total_steps"):
            if (value := getattr(trainer, name)) is not None:
                raise ConfigError(
                    f"trainer.{name}={value:g}: model=auto chooses the length by trainer.hours. Add "
                    f"trainer.{name}=null, or take another model, such as model=small."
                )
        if self.init is not None:
            raise ConfigError(f"init={self.init}: brings its own size. Leave out model=auto.")
        if self.data.loss_on == "answer":
            raise ConfigError(
                "model=auto: chooses by the tokens of text, and questions are learnt by repetition. Take another "
                "model, such as model=small, or text, such as data=text data.path=FOLDER."
            )


def refuse_auto_in_sweep(config: RunConfig) -> None:
    """Raise ConfigError for model=auto in a sweep: trials would be of other sizes, as the machine is busy or not."""
    if config.model.auto:
        raise ConfigError(
            "model=auto: each trial would choose its own size. Run dtl.plan with the words of one trial, and sweep "
            "the command that it prints."
        )


def checked_name(name: str) -> str:
    """Return the name of a run. Raises ConfigError for one that cannot be a part of a folder's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
        raise ConfigError(
            f"name={in_one_line(name, 100)}: it becomes a folder's name. Use up to 80 letters, digits, dots, dashes "
            "and underscores, beginning with a letter or digit."
        )
    return name


class Settings(Protocol):
    """The interface of every command's settings dataclass."""

    plugins: list[str]

    def validate(self) -> None:
        """Raise ConfigError, naming key, value, rule and remedy, for invalid values."""
        ...


S = TypeVar("S", bound=Settings)


def typed_as(schema: type[S], config: DictConfig | dict[str, Any]) -> S:
    """Convert Hydra's DictConfig or a plain mapping to a validated `schema`, its plugins imported.

    Raises OmegaConf's errors for wrong keys and types, ConfigError for wrong values.
    """
    settings = converted(schema, config)
    load_plugins(settings.plugins)
    settings.validate()
    return settings


def converted(schema: type[S], config: DictConfig | dict[str, Any]) -> S:
    """Convert the settings to a `schema`, not yet validated.

    Merging the plain values into the schema rejects unknown keys, also those that a `+key=value` added past Hydra.
    Raises OmegaConf's errors for wrong keys and types, which `dtl.commandline.translate` turns into messages.
    """
    values = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    _check_values(schema, values)
    settings = OmegaConf.to_object(OmegaConf.merge(schema_defaults(schema), without_interpolations(values)))
    assert isinstance(settings, schema)
    return settings


def _check_values(schema: type, values: Any, prefix: str = "") -> None:
    """Raise ConfigError for what OmegaConf would take as something else: 3 as true, ??? as the default."""
    hints = get_type_hints(schema)
    for key, value in values.items() if isinstance(values, dict) else ():
        name, hint = f"{prefix}{key}", hints.get(key)
        if value == MISSING:
            raise ConfigError(f"{name}=???: stands for a value that is still to be given. Give one, or leave it out.")
        if bool in (hint, *get_args(hint)) and isinstance(value, int | float) and not isinstance(value, bool):
            raise ConfigError(f"{name}={value}: must be true or false, not a number.")
        if isinstance(hint, type) and is_dataclass(hint):
            _check_values(hint, value, f"{name}.")
        of_entries = get_args(hint)[1:2]  # data.sources: of names to settings
        if isinstance(value, dict) and of_entries and isinstance(of_entries[0], type):
            for inner, settings in value.items() if is_dataclass(of_entries[0]) else ():
                _check_values(of_entries[0], settings, f"{name}.{inner}.")


@cache
def schema_defaults(schema: type) -> DictConfig:
    """The settings of a `schema` before any file of conf/ is read: each section as its own dataclass defines it.

    Made once, and not to be changed: OmegaConf's merge and Hydra copy it. Not `schema()`: other data than RunConfig's
    default would otherwise be added to that default's sources.
    """
    hints = get_type_hints(schema)
    sections = {item.name: hints[item.name]() for item in fields(schema) if is_dataclass(hints[item.name])}
    return OmegaConf.structured(schema(**sections))


def without_interpolations(value: Any) -> Any:
    """Return values in which OmegaConf takes every `${...}` for text, as in a prompt.

    For all that comes from a file of a run or a checkpoint: `${oc.env:NAME}` there would read the environment.
    """
    if isinstance(value, dict):
        return {key: without_interpolations(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_interpolations(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def typed(config: DictConfig | dict[str, Any]) -> RunConfig:
    """Convert Hydra's DictConfig or a run's own config.yaml to a validated RunConfig. See `typed_as`."""
    return typed_as(RunConfig, config)


def without_session_keys(config: RunConfig) -> RunConfig:
    """The config without the keys of a single session: how it was resumed, where it pauses."""
    return replace(config, resume=None, trainer=replace(config.trainer, stop_after_steps=None))


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML with every key, without secrets, to be saved with a run."""
    return OmegaConf.to_yaml(OmegaConf.create(redact_all(to_dict(config))))


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration as nested plain values, to be saved with a run."""
    # Not resolved: in a typed config ${...} is text, as in a prompt.
    container = OmegaConf.to_container(OmegaConf.structured(without_session_keys(config)))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


@cache
def _open(schema: type) -> type:
    """The schema for Hydra, without the types that OmegaConf is too strict or too lax with: from the command line it
    accepts no new entry of a typed mapping, such as `data.sources.poems.kind=poems`, and any number as true.
    `converted` merges into the schema itself and checks them."""
    opened: list[tuple[str, Any, Any]] = []
    hints = get_type_hints(schema)
    for item in fields(schema):
        hint = hints[item.name]
        if isinstance(hint, type) and is_dataclass(hint):
            hint = _open(hint)
            opened.append((item.name, hint, field(default_factory=hint)))
        elif get_args(hint)[1:] and is_dataclass(get_args(hint)[1]):
            opened.append((item.name, dict[str, Any], field(default_factory=dict)))
        elif bool in (hint, *get_args(hint)):
            opened.append((item.name, Any, field(default=item.default)))
    return make_dataclass(f"Open{schema.__name__}", opened, bases=(schema,))


_started = datetime.fromtimestamp(time.time())


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's reader of config files, for a folder of the user with the bounds of DTL's own: deep or repeated values
    take OmegaConf's stack, its memory or minutes. Hydra keeps the first class of this name."""

    def load_config(self, config_path: str) -> ConfigResult:
        if self.path not in (str(conf_dir()), str(experiments_dir())):
            file = Path(self.path, self._normalize_file_name(config_path))
            if os.path.lexists(file):
                read_users_yaml(file)
        return super().load_config(config_path)


def register(name: str = "train", schema: type = RunConfig) -> None:
    """Register the schema of the command `name`, the resolvers of its YAML, and the bounds of the files that Hydra
    reads. Called before Hydra starts."""
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource
    ConfigStore.instance().store(name=f"{name}_schema", node=schema_defaults(_open(schema)))
    OmegaConf.register_new_resolver("dtl.experiments", lambda: str(experiments_dir()), replace=True)
    # Hydra makes the run's folder before the settings are validated: a name such as ../x would lead elsewhere.
    OmegaConf.register_new_resolver("dtl.checked_name", lambda name: checked_name(str(name)), replace=True)
    # One timestamp for the whole process: a resolver that reads the clock again would give each job of a sweep a
    # sweep folder of its own. The process id keeps two runs apart that start in the same second. Cached values travel
    # with the config: the workers of joblib and submitit take those of the process that started the sweep.
    stamp = lambda pattern: _started.strftime(pattern)  # noqa: E731
    OmegaConf.register_new_resolver("dtl.stamp", stamp, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("dtl.pid", os.getpid, replace=True, use_cache=True)
