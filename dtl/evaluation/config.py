"""Settings of the evaluation. Imports no torch."""

from dataclasses import dataclass, field

from dtl.base.checks import check_at_least, check_choices, check_device
from dtl.data.config import DataConfig
from dtl.training.config import PRECISIONS

FIGURES = "evaluation.json"  # in a run's folder: all figures of its best checkpoint


@dataclass
class EvaluateConfig:
    """Everything that `python -m dtl.evaluate` can be told."""

    ckpt: str | None = None  # latest | run | checkpoint | Hugging Face folder
    data: DataConfig = field(default_factory=DataConfig)  # default: what the checkpoint was trained on
    batch_size: int = 8  # rows in one forward pass; changes no figure but tokens/s
    max_batches: int | None = None  # of each split at most so many batches; null = all
    questions: int | None = 2000  # of each split at most so many questions, chosen by the seed; null = all
    unanswerable: str | None = None  # .jsonl of questions without an answer in the data; null = those for the facts
    leakage_tokens: int | None = 20_000_000  # training tokens compared with the held-out text at most; null = all
    worst: int = 10  # confident wrong answers to show
    out: str | None = None  # file for all figures; null = evaluation.json in the run's folder
    precision: str | None = None  # auto | fp32 | bf16 | fp16; null = as the run was trained
    device: str = "auto"  # auto (CUDA, MPS, CPU) | cpu | cuda | cuda:1 | mps
    plugins: list[str] = field(default_factory=list)  # modules that register parts of your own
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Raises ConfigError, naming key, value, rule and remedy, for values that cannot be. The data is validated
        when it is known whether it is the checkpoint's own."""
        check_device(self.device)
        check_choices(self, "", ", or null", precision=PRECISIONS)
        check_at_least(self, "", batch_size=1, worst=0)
        check_at_least(self, "", ", or null for all", max_batches=1, questions=1, leakage_tokens=0)
