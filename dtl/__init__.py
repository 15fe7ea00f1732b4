"""DTL: the laboratory bench for small language models on one consumer GPU.

These names are DTL in Python (docs/python.md); `dtl.train`, `dtl.chat` and so on are the modules of the commands. A
name is imported when it is first used: `import dtl` imports neither torch nor Hydra.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtl.api.runs import FitResult, fit, open_data
    from dtl.api.runs import Steps as steps
    from dtl.api.text import complete, score
    from dtl.checkpoints.load import load_model, load_tokenizer
    from dtl.commandline.compose import compose
    from dtl.config import RunConfig
    from dtl.errors import DTLError
    from dtl.model.transformer import create_model
    from dtl.training.loss import mean_cross_entropy as loss

__version__ = "0.1.0"
__all__ = [
    "DTLError",
    "FitResult",
    "RunConfig",
    "__version__",
    "complete",
    "compose",
    "create_model",
    "fit",
    "load_model",
    "load_tokenizer",
    "loss",
    "open_data",
    "score",
    "steps",
]
_PLACES = {
    "DTLError": "dtl.errors:DTLError",
    "FitResult": "dtl.api.runs:FitResult",
    "RunConfig": "dtl.config:RunConfig",
    "complete": "dtl.api.text:complete",
    "compose": "dtl.commandline.compose:compose",
    "create_model": "dtl.model.transformer:create_model",
    "fit": "dtl.api.runs:fit",
    "load_model": "dtl.checkpoints.load:load_model",
    "load_tokenizer": "dtl.checkpoints.load:load_tokenizer",
    "loss": "dtl.training.loss:mean_cross_entropy",
    "open_data": "dtl.api.runs:open_data",
    "score": "dtl.api.text:score",
    "steps": "dtl.api.runs:Steps",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` when it is first used (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'dtl' has no attribute '{name}'")
    module, _, attribute = _PLACES[name].partition(":")
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "importlib"})
