"""Settings of dtl.bench, and the suites by name. Imports no torch."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from dtl.base.checks import LONGEST, MANY, check_device, check_range, check_seed
from dtl.base.paths import choices
from dtl.errors import ConfigError, did_you_mean
from dtl.registry import Registry

SUITES: Registry = Registry(
    "suite",
    {
        "foresight": "dtl.benchmarks.foresight",
        "generate": "dtl.benchmarks.generate",
        "learn": "dtl.benchmarks.learn",
        "memory": "dtl.benchmarks.step",
        "questions": "dtl.benchmarks.questions",
        "search": "dtl.benchmarks.search",
        "startup": "dtl.benchmarks.startup",
        "step": "dtl.benchmarks.step",
        "text": "dtl.benchmarks.text",
    },
)

OWN_SUITES = SUITES.names()
ALL = "all"
QUICK_ROUNDS = 2


@dataclass
class GenerationSuiteConfig:
    """Model and sizes of suite=generate. tiny=true uses sizes of its own, except batch_size."""

    model: str = "qa"  # name of a file under conf/model: the size; its weights are random, its head untied
    batch_size: int = 1  # prompts continued together
    prompt_tokens: int = 64  # length of a prompt, of random tokens
    new_tokens: int = 256  # generated tokens per prompt

    def validate(self) -> None:
        """Raises ConfigError, naming key, value, rule and remedy, for invalid values."""
        known = choices("model")
        if self.model not in known:
            raise ConfigError(
                f"generation.model={self.model}: there is no such model. Known: {', '.join(known)}."
                f"{did_you_mean(self.model, known)}"
            )
        sizes = {"prompt_tokens": (1, LONGEST), "new_tokens": (1, LONGEST)}
        check_range(self, "generation", batch_size=(1, 65_536), **sizes)


@dataclass
class TextConfig:
    """Text to learn."""

    path: str | None = None  # for suite=learn: a text whose characters are learnt, such as tinyshakespeare.txt


@dataclass
class BenchConfig:
    """Settings of `python -m dtl.bench`."""

    suite: str = "text"  # registered name: see dtl.bench --help, all (one after the other), or your own
    rows: list[str] = field(default_factory=list)  # measurements, such as [waste, loader]; [] = all but the long ones
    full: bool = False  # the long measurements too, some minutes each
    quick: bool = False  # two rounds of fewer steps: three minutes a suite at most, with wider ranges
    tiny: bool = False  # little input, small models: tests in seconds that it runs; its speeds mean nothing
    rounds: int = 3  # measurements of both sides, in turns
    wiki: str | None = None  # text of Wikipedia as data=wiki reads it, file or folder; null = synthetic
    dump: str | None = None  # for suite=text: a MediaWiki dump, .xml or .xml.bz2; null = a synthetic one
    device: str = "auto"  # of models: auto (CUDA, MPS, CPU) | cpu | cuda | cuda:1 | mps
    seed: int = 1337  # of synthetic text, prompts, weights, order of the training sequences
    out: str | None = None  # new JSON file for all results
    plugins: list[str] = field(default_factory=list)  # modules that register suites of your own
    debug: bool = False  # show tracebacks
    data: TextConfig = field(default_factory=TextConfig)
    generation: GenerationSuiteConfig = field(default_factory=GenerationSuiteConfig)  # for suite=generate

    def of_each_suite(self) -> "list[BenchConfig]":
        """Return the settings of each suite that is asked for: one, or all of DTL's own; quick=true has two rounds."""
        settings = replace(self, rounds=min(self.rounds, QUICK_ROUNDS)) if self.quick else self
        return [replace(settings, suite=name) for name in OWN_SUITES] if self.suite == ALL else [settings]

    def validate(self) -> None:
        """Raises ConfigError, naming key, value, rule and remedy, for invalid values."""
        if self.suite != ALL:
            SUITES.check(self.suite)
        elif self.rows:
            raise ConfigError(f"rows={self.rows}: are those of one suite. Name it, such as suite=step, or omit rows.")
        check_device(self.device)
        self.generation.validate()
        check_range(self, "", rounds=(1, MANY))
        check_seed(self.seed)
        for key, given in {"wiki": self.wiki, "dump": self.dump, "data.path": self.data.path}.items():
            if given is not None and not Path(given).expanduser().exists():
                raise ConfigError(f"{key}={given}: there is no such file or folder. Omit it to use synthetic text.")
        if self.dump is not None and Path(self.dump).expanduser().is_dir():
            raise ConfigError(f"dump={self.dump}: is a folder. Give one dump, a .xml or .xml.bz2 file.")
        if self.out is not None:
            file = Path(self.out).expanduser()
            if file.exists():
                raise ConfigError(f"out={file}: exists already. Give a new name, or delete it.")
            if not file.parent.is_dir():
                raise ConfigError(f"out={file}: there is no folder {file.parent}. Create it first.")
