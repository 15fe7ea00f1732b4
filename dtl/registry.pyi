"""The types of the registered parts, for type checkers and editors."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from dtl.data.config import SourceTraits, TokenizerTraits
from dtl.data.sources import Source
from dtl.data.tasks import Task
from dtl.data.tokenizers.tokenizer import MakeTokenizer
from dtl.model.config import BlockRules
from dtl.model.transformer import TransformerBlock
from dtl.training.config import OptimizerTraits
from dtl.training.optimizer import MakeOptimizers
from dtl.training.schedule import Shape

Part = TypeVar("Part")
Traits = TypeVar("Traits")
Decorated = TypeVar("Decorated")

class Registry(Generic[Part, Traits]):
    key: str
    def __init__(self, key: str, built_in: dict[str, str]) -> None: ...
    def register(self, name: str, traits: Traits | None = None) -> Callable[[Decorated], Decorated]: ...
    def describe(self, name: str, traits: Traits) -> None: ...
    def traits(self, name: str) -> Traits | None: ...
    def names(self) -> list[str]: ...
    def check(self, name: str) -> None: ...
    def get(self, name: str) -> Part: ...

BLOCKS: Registry[type[TransformerBlock], type[BlockRules]]
OPTIMIZERS: Registry[MakeOptimizers, OptimizerTraits]
SCHEDULES: Registry[Shape, None]
SOURCES: Registry[type[Source], SourceTraits]
TOKENIZERS: Registry[MakeTokenizer, TokenizerTraits]
TASKS: Registry[Task, None]

def load_plugins(modules: Iterable[str]) -> None: ...
