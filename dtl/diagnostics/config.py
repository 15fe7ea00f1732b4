"""Settings of dtl.diagnose. Imports no torch."""

from dataclasses import dataclass, field


@dataclass
class DiagnoseConfig:
    """Everything that `python -m dtl.diagnose` can be told."""

    plugins: list[str] = field(default_factory=list)  # modules of your own, to see whether they can be imported
    debug: bool = False  # show tracebacks

    def validate(self) -> None:
        """Nothing here can be wrong in its value."""
