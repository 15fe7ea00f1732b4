"""How likely a model finds the expected answers to questions.

Nothing is kept of a batch but texts and sums. Letters: b batch, t time, d model width, n targets, v vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dtl.data.documents import QuestionAnswer
from dtl.data.qa import document
from dtl.data.tokenizer import Tokenizer
from dtl.generation.conversation import by_length
from dtl.model.transformer import TransformerLM
from dtl.training.loss import IGNORE


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of a given answer, its end token included."""

    nats: float
    n_bytes: int  # UTF-8 bytes of the answer's text, its leading space included


@torch.inference_mode()
def likelihoods(
    model: TransformerLM,
    tokenizer: Tokenizer,
    pairs: Sequence[QuestionAnswer],
    of_token: np.ndarray,
    batch_size: int,
    lower_case: bool = False,
) -> list[Likelihood]:
    """How likely the model finds each pair's own answer. `of_token`: see `dtl.evaluation.token_bytes`; `lower_case`:
    see `dtl.data.qa.prompt`.

    Of a pair that is longer than the model's context the beginning is cut.
    """
    texts = [document(pair, lower_case=lower_case) for pair in pairs]
    asked = tokenizer.encode_batch([text.text[: text.answer_start] for text in texts])
    answers = tokenizer.encode_batch([text.text[text.answer_start :] for text in texts])
    found: dict[int, Likelihood] = {}
    was_training = model.training
    model.eval()
    try:
        for chosen in by_length([len(a) + len(b) for a, b in zip(asked, answers, strict=True)], batch_size):
            nats = _nats(model, [asked[i] for i in chosen], [[*answers[i], tokenizer.eos_id] for i in chosen])
            for i, total in zip(chosen, nats, strict=True):
                found[i] = Likelihood(total, int(of_token[answers[i]].sum()))
    finally:
        model.train(was_training)
    return [found[i] for i in range(len(pairs))]


def _nats(model: TransformerLM, begins: list[list[int]], ends: list[list[int]]) -> list[float]:
    """-log p of each end after its beginning, in nats, summed over its tokens."""
    inputs_bt, targets_bt = _padded(begins, ends, model.config.max_seq_len)
    device = next(model.parameters()).device
    x_btd = model.hidden(inputs_bt.to(device))
    row_n, time_n = torch.nonzero(targets_bt != IGNORE, as_tuple=True)
    logits_nv = model.head(x_btd[row_n.to(device), time_n.to(device)]).float()
    loss_n = F.cross_entropy(logits_nv, targets_bt[row_n, time_n].to(device), reduction="none").cpu().double()
    return torch.zeros(len(begins), dtype=torch.float64).index_add(0, row_n, loss_n).tolist()


def _padded(begins: list[list[int]], ends: list[list[int]], context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (b, t), padded on the right, where causal attention does not see it."""
    whole = [(begin + end)[-context - 1 :] for begin, end in zip(begins, ends, strict=True)]
    longest = max(map(len, whole)) - 1
    inputs_bt = torch.zeros(len(whole), longest, dtype=torch.long)
    targets_bt = torch.full_like(inputs_bt, IGNORE)
    for row, (ids, end) in enumerate(zip(whole, ends, strict=True)):
        inputs_bt[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        n_targets = min(len(end), len(ids) - 1)
        targets_bt[row, len(ids) - 1 - n_targets : len(ids) - 1] = torch.tensor(ids[-n_targets:])
    return inputs_bt, targets_bt
