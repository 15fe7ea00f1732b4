"""Settings of the evaluation. Imports no torch."""

from dataclasses import dataclass, field

from dtl.base.checks import MANY, check_choices, check_device, check_range
from dtl.data.config import DataConfig
from dtl.training.config import PRECISIONS

EVALUATION_FILE = "evaluation.json"  # in a run folder: all metrics of the best checkpoint
MIN_PROBABILITY = 0.5  # of being right: an answer that is more likely wrong counts as not known


@dataclass
class EvaluateConfig:
    """Settings of `python -m dtl.evaluate`."""

    ckpt: str | None = None  # latest | run | checkpoint | Hugging Face folder
    data: DataConfig = field(default_factory=DataConfig)  # default: what the checkpoint was trained on
    batch_size: int = 8  # sequences in one forward pass; affects no metric except tokens/s
    max_batches: int | None = None  # maximum batches of each split; null = all
    questions: int | None = 2000  # maximum questions of each split, chosen by the seed; null = all
    unanswerable: str | None = None  # .jsonl of questions without an answer in the data; null = those for the facts
    leakage_tokens: int | None = 20_000_000  # maximum training tokens compared with the held-out text; null = all
    worst: int = 10  # confident wrong answers to show
    out: str | None = None  # file for all metrics; null = evaluation.json in the run folder
    precision: str | None = None  # auto | fp32 | bf16 | fp16; null = as the run was trained
    device: str = "auto"  # auto (CUDA, MPS, CPU) | cpu | cuda | cuda:1 | mps
    plugins: list[str] = field(default_factory=list)  # modules that register user-defined parts
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Raises ConfigError, with key, value and rule, for invalid values. `data` is validated once it is merged with
        the checkpoint's."""
        check_device(self.device)
        check_choices(self, "", ", or null", precision=PRECISIONS)
        check_range(self, "", batch_size=(1, 65_536), worst=(0, MANY))
        counts = {"max_batches": (1, MANY), "questions": (1, MANY), "leakage_tokens": (0, MANY)}
        check_range(self, "", ", or null for all", **counts)
