"""Settings of sampling: how the next token is drawn from the model's logits, and when a text ends. Imports no torch."""

from dataclasses import dataclass, field

from dtl.errors import ConfigError


@dataclass
class SamplingConfig:
    """How a text is continued."""

    temperature: float = 0.8  # 0 = greedy, always the likeliest token; higher = more varied
    top_k: int | None = 50  # draw from the k likeliest tokens; null = all
    top_p: float = 1.0  # draw from the likeliest tokens that hold this share of the probability; 1 = all
    min_p: float = 0.0  # draw from tokens at least this likely, as a share of the likeliest's probability; 0 = all
    repetition_penalty: float = 1.0  # above 1 makes tokens of the prompt and of the text so far less likely; 1 = off
    max_new_tokens: int = 64  # tokens at most in one continuation
    stop: list[str] = field(default_factory=list)  # texts that end a continuation, and are left out of it

    def validate(self) -> None:
        if not self.temperature >= 0:
            raise ConfigError(f"sampling.temperature={self.temperature}: must be at least 0 (0 is greedy).")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"sampling.top_k={self.top_k}: must be at least 1, or null for all tokens.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling.top_p={self.top_p}: a share in (0, 1].")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"sampling.min_p={self.min_p}: a share in [0, 1].")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"sampling.repetition_penalty={self.repetition_penalty}: must be above 0 (1 is off).")
        if self.max_new_tokens < 1:
            raise ConfigError(f"sampling.max_new_tokens={self.max_new_tokens}: must be at least 1.")
        if "" in self.stop:
            raise ConfigError("sampling.stop: an empty text would end every continuation. Leave it out.")
