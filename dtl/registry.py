"""Registries of parts chosen by name: a config has `optimizer.name=muon`, never a path to code.

A researcher adds a part in one file of their own with a decorator, for example
`@OPTIMIZERS.register("lion")`, and names that file by `plugins=my_module` or by an entry point in the
group `dtl.plugins`. The built-in parts are imported only when they are used, so that the names
can be checked without importing torch. The types of the parts are in registry.pyi: imported here, even for type
checkers alone, they would lead in a circle.
"""

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NoReturn, TypeVar, cast

from dtl.errors import ConfigError, DTLError, did_you_mean

INTERACTIVE = "this session"  # the place of what is registered in a notebook or at Python's prompt

Part = TypeVar("Part")
Traits = TypeVar("Traits")
Decorated = TypeVar("Decorated")


class Options(dict[str, Any]):
    """The settings of a part of one's own, `optimizer.options` and the like: a missing one is an error with its key."""

    key = "options"
    part = "this part"

    @classmethod
    def of(cls, part: str, key: str, values: Mapping[str, Any]) -> "Options":
        """Return `values` as the options of `part`, such as `optimizer.name=mine`, with the section's `key`."""
        options = cls(values)
        options.key, options.part = key, part
        return options

    def __missing__(self, name: str) -> NoReturn:
        given = f"Given: {', '.join(self)}.{did_you_mean(name, self)}" if self else "No option is given."
        raise ConfigError(f"{self.key}.{name}: {self.part} needs this option. {given} Add {self.key}.{name}=VALUE.")


class Registry(Generic[Part, Traits]):
    """Names of one kind of part. `key` is the config key that chooses it; `built_in` maps name to module.

    The traits of a part are what the rest of DTL needs to know about it, so that no code tests for its name. Those of
    DTL's own parts are defined next to the settings, to be read before the part is imported.
    """

    def __init__(self, key: str, built_in: dict[str, str]) -> None:
        self.key = key
        self._built_in = built_in
        self._parts: dict[str, Part] = {}
        self._places: dict[str, str] = {}  # name -> file:line of its `register`
        self._traits: dict[str, Traits] = {}

    def register(self, name: str, traits: Traits | None = None) -> Callable[[Decorated], Decorated]:
        """Decorator: make the decorated class or function available under `name`.

        `traits` are those of a part of your own; the type of the traits documents the defaults.
        Raises ConfigError, naming both places, when another part has that name: one of DTL's own, imported or not, or
        one registered elsewhere. The same line, run again, replaces its part; so does any cell of a notebook, and any
        line typed at Python's prompt, a part of an earlier one: an edited cell is no second part.
        """
        caller = sys._getframe(1)
        module, place = caller.f_globals.get("__name__"), f"{caller.f_code.co_filename}:{caller.f_lineno}"
        if module == "__main__" and not os.path.isfile(caller.f_code.co_filename):
            place = INTERACTIVE

        def decorate(part: Decorated) -> Decorated:
            other = self._places.get(name, place) if name in self._parts else place
            if self._built_in.get(name, module) != module:
                other = f"{self._built_in[name]}, which is DTL's own"
            if other != place:
                raise ConfigError(f"{self.key}={name}: registered twice, in {place} and in {other}. Rename yours.")
            self._parts[name], self._places[name] = cast(Part, part), place
            if traits is not None:
                self._traits[name] = traits
            elif name not in self._built_in:  # of an earlier version of the part
                self._traits.pop(name, None)
            return part

        return decorate

    def describe(self, name: str, traits: Traits) -> None:
        """Set the traits of one of DTL's own parts, to be read without importing it."""
        self._traits[name] = traits

    def traits(self, name: str) -> Traits | None:
        """The traits of the part of this name; None when it has none or does not exist. Imports nothing."""
        return self._traits.get(name)

    def names(self) -> list[str]:
        """All names that `get` knows, sorted."""
        return sorted({*self._built_in, *self._parts})

    def check(self, name: str, key: str | None = None) -> None:
        """Raise ConfigError when no part has this name.

        `key` is the config key that chose it, where that has more than one form. Imports nothing.
        """
        key = key or self.key
        if name not in self._built_in and name not in self._parts:
            raise ConfigError(
                f"{key}={name}: there is no part of this name. Known: {', '.join(self.names())}."
                f"{did_you_mean(name, self.names())} A part of your own needs plugins=its_module."
            )

    def checked_options(self, name: str, options: Mapping[str, Any], key: str | None = None) -> Options:
        """Return the `options` of the part of this name, in which a missing one is an error with key and remedy.

        Raises ConfigError when no part has this name, and for options of one of DTL's own parts, which have none.
        """
        self.check(name, key)
        key = key or self.key
        checked = Options.of(f"{key}={name}", f"{key.rpartition('.')[0]}.options", options)
        if options and name in self._built_in:
            raise ConfigError(
                f"{checked.key}={dict(options)}: {checked.part} has no options; they are for parts of your own. "
                "Leave them out."
            )
        return checked

    def get(self, name: str) -> Part:
        """Return the part registered under `name`. Raises ConfigError when there is none."""
        self.check(name)
        if name not in self._parts:
            importlib.import_module(self._built_in[name])
        return self._parts[name]


BLOCKS: Registry[Any, Any] = Registry(
    "model.arch.block", dict.fromkeys(("modern", "value_embeddings", "classic"), "dtl.model.transformer")
)
OPTIMIZERS: Registry[Any, Any] = Registry("optimizer.name", dict.fromkeys(("adamw", "muon"), "dtl.training.optimizer"))
SCHEDULES: Registry[Any, Any] = Registry(
    "schedule.name", dict.fromkeys(("cosine", "linear", "wsd"), "dtl.training.schedule")
)
LOSSES: Registry[Any, Any] = Registry("trainer.loss.name", {"cross_entropy": "dtl.training.loss"})
STOP_CRITERIA: Registry[Any, Any] = Registry(
    "trainer.stop_criteria", dict.fromkeys(("hours", "patience"), "dtl.training.stopping")
)
STEP_FIELDS: Registry[Any, Any] = Registry("trainer.step_fields", {"block_grad_norms": "dtl.training.step_fields"})
METRICS: Registry[Any, Any] = Registry("data.metrics", {"accuracy": "dtl.training.evaluate"})
SOURCES: Registry[Any, Any] = Registry(
    "data.sources.<name>.kind",
    {
        "qa": "dtl.data.qa.source",
        "text": "dtl.data.local.source",
        "wiki": "dtl.data.wikipedia.source",
        "hub": "dtl.data.hub.texts",
    },
)
TOKENIZERS: Registry[Any, Any] = Registry(
    "tokenizer.kind", dict.fromkeys(("bpe", "byte", "char", "gpt2"), "dtl.data.tokenizers.tokenizer")
)
TASKS: Registry[Any, Any] = Registry("data.tasks", dict.fromkeys(("exact_match", "f1", "lookup"), "dtl.data.tasks"))


def load_plugins(modules: Iterable[str]) -> None:
    """Import the modules named by `plugins=` and those that installed packages offer.

    Raises ConfigError when a module cannot be imported.
    """
    for entry_point in importlib.metadata.entry_points(group="dtl.plugins"):
        entry_point.load()
    for module in modules:
        # `python -m dtl.train` looks for modules in the working directory, the console script dtl-train does not.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except DTLError:
            raise
        except Exception as error:  # a module may fail in any way
            reason = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"plugins=[{module}]: cannot be imported ({reason}). Give the name of a module that Python "
                "finds from here, for example plugins=my_blocks for ./my_blocks.py."
            ) from error
