"""What is compared: a key of result.json, its name for people, and which way is better."""

from dataclasses import dataclass

BEST_LOSS = "value"
BITS = "validation/bits_per_byte"


@dataclass(frozen=True)
class Metric:
    """A number that each finished run has."""

    key: str = BEST_LOSS
    higher_is_better: bool = False

    @property
    def title(self) -> str:
        """As it stands in tables and sentences."""
        return "best validation loss" if self.key == BEST_LOSS else self.key

    @property
    def label(self) -> str:
        """With its unit, for an axis."""
        unit = {"loss": " (nats per target token)", "bits_per_byte": " (bits per byte)"}
        ending = "loss" if self.key == BEST_LOSS else self.key.rpartition("/")[2]
        return self.title + unit.get(ending, "")

    @property
    def is_per_token(self) -> bool:
        """Whether another tokenizer alone changes it."""
        return self.key == BEST_LOSS or self.key.rpartition("/")[2] in ("loss", "perplexity")

    @property
    def better(self) -> str:
        """`lower` or `higher`."""
        return "higher" if self.higher_is_better else "lower"


def shown_number(value: float | None, digits: int = 4) -> str:
    """A number for people: that many significant digits, a dash where there is none."""
    return "-" if value is None else f"{value:#.{digits}g}".removesuffix(".")
