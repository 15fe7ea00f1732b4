"""The types of the registered parts, for type checkers and editors."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NoReturn, TypeVar

from dtl.data.config import SourceTraits, TokenizerTraits
from dtl.data.sources import Source
from dtl.data.tasks import Task
from dtl.data.tokenizers.tokenizer import MakeTokenizer
from dtl.model.config import BlockRules
from dtl.model.transformer import TransformerBlock
from dtl.training.config import LossTraits, OptimizerTraits
from dtl.training.evaluate import Metric
from dtl.training.loss import Loss
from dtl.training.optimizer import MakeOptimizers
from dtl.training.schedule import Schedule
from dtl.training.step_fields import StepField
from dtl.training.stopping import StopCriterion

Part = TypeVar("Part")
Traits = TypeVar("Traits")
Decorated = TypeVar("Decorated")

class Options(dict[str, Any]):
    key: str
    part: str
    @classmethod
    def of(cls, part: str, key: str, values: Mapping[str, Any]) -> Options: ...
    def __missing__(self, name: str) -> NoReturn: ...

class Registry(Generic[Part, Traits]):
    key: str
    def __init__(self, key: str, built_in: dict[str, str]) -> None: ...
    def register(self, name: str, traits: Traits | None = None) -> Callable[[Decorated], Decorated]: ...
    def describe(self, name: str, traits: Traits) -> None: ...
    def traits(self, name: str) -> Traits | None: ...
    def names(self) -> list[str]: ...
    def check(self, name: str, key: str | None = None) -> None: ...
    def checked_options(self, name: str, options: Mapping[str, Any], key: str | None = None) -> Options: ...
    def get(self, name: str) -> Part: ...

BLOCKS: Registry[type[TransformerBlock], type[BlockRules]]
OPTIMIZERS: Registry[MakeOptimizers, OptimizerTraits]
SCHEDULES: Registry[Schedule, None]
LOSSES: Registry[Loss, LossTraits]
STOP_CRITERIA: Registry[StopCriterion, None]
STEP_FIELDS: Registry[StepField, None]
METRICS: Registry[Metric, None]
SOURCES: Registry[type[Source], SourceTraits]
TOKENIZERS: Registry[MakeTokenizer, TokenizerTraits]
TASKS: Registry[Task, None]

def load_plugins(modules: Iterable[str]) -> None: ...
