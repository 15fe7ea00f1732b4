"""The turns of a chat, and their file: Markdown, or .jsonl that data=qa reads."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.base.files import write_atomically
from dtl.base.safe_text import escaped, visible
from dtl.base.units import number_of
from dtl.errors import DTLError
from dtl.generation.config import SamplingConfig, in_words

if TYPE_CHECKING:
    from dtl.generation.conversation import Ending


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str
    seed: int
    sampling: SamplingConfig
    mean_logprob: float  # natural logarithm, a token; nan for an empty answer
    n_tokens: int
    seconds: float
    ended: "Ending | None"  # None: stopped by Ctrl-C


def save_transcript(turns: Sequence[Turn], checkpoint: Path, path: Path) -> None:
    """Write the turns to a new file: a .jsonl that `data.qa.path` can name, or else Markdown.

    Raises DTLError when the file exists already or cannot be written.
    """
    lines = (escaped(json.dumps(_record(turn, checkpoint), ensure_ascii=False)) + "\n" for turn in turns)
    text = "".join(lines) if path.suffix == ".jsonl" else _as_markdown(turns, checkpoint)
    try:
        if path.exists():
            raise DTLError(f"{path}: exists already and is not overwritten. Give another name.")
        write_atomically(path, text)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise DTLError(f"{path}: cannot be written ({why}). Give another place: /save FILE") from error


def default_path(now: datetime) -> Path:
    """Return the default file name of a transcript."""
    return Path(f"chat-{now:%Y-%m-%d-%H%M%S}.md")


def _record(turn: Turn, checkpoint: Path) -> dict[str, object]:
    return {
        "question": turn.question,
        "answer": turn.answer,
        "seed": turn.seed,
        "sampling": asdict(turn.sampling),
        "mean_logprob": None if math.isnan(turn.mean_logprob) else turn.mean_logprob,
        "ended": turn.ended or "stopped",
        "checkpoint": str(checkpoint),
    }


def _as_markdown(turns: Sequence[Turn], checkpoint: Path) -> str:
    parts = [f"# Chat with {checkpoint}\n"]
    for turn in turns:
        logprob = "" if math.isnan(turn.mean_logprob) else f", mean log-probability {turn.mean_logprob:.3f}"
        ending = {"end": "", "stop": "", "length": ", cut off", None: ", stopped"}[turn.ended]
        parts += [
            f"**You:** {turn.question}\n",
            f"**DTL:** {turn.answer}\n",
            f"*seed {turn.seed}, {in_words(turn.sampling)}; {number_of('tokens', turn.n_tokens)}{logprob}{ending}*\n",
        ]
    return visible("\n".join(parts))
