"""A trained model generates what Hugging Face generates from the same checkpoint directory, token for token.

Random weights could hide what training makes large; so both architectures are trained here for some seconds.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.load import load_model, load_tokenizer
from dtl.config import RunConfig
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.tokenizers.prompt import Prompt
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.generation.config import SamplingConfig
from dtl.generation.conversation import continuations, continue_text
from dtl.generation.engine import generate
from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.transformer import TransformerLM
from dtl.runner.run import train
from dtl.tracking.config import TrackerConfig
from dtl.training.config import OptimizerConfig, ScheduleConfig, TrainerConfig

pytestmark = pytest.mark.slow  # trains twice, and imports transformers

ANSWERS = ["red", "blue as the sea", "seven, or eight on a good day", "\u00e9t\u00e9", "no", "\U0001f642 always"]
QUESTIONS = ["What 0?", "Who 1?", "Which 2?", "When 3?", "Why 4?", "Where 5?", "How 6?", "Whose 7?"]
GREEDY = SamplingConfig(temperature=0, top_k=None, max_new_tokens=41)
PROMPTS = [
    Prompt().text(QUESTIONS[0]),
    Prompt().text(QUESTIONS[5]),
    Prompt().text("A wording that was never seen, and a long one?"),
    "Question:",
    "a",
    "\u00e9t\u00e9",
]


@pytest.fixture(scope="module", params=["modern", "classic"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that knows most answers and is sure of few others."""
    folder = tmp_path_factory.mktemp(request.param)
    facts = [
        {"id": f"fact-{i}", "answer": ANSWERS[i % 6], "train": [question], "validation": [question.lower()]}
        for i, question in enumerate(QUESTIONS)
    ]
    (folder / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
    grouped: dict[str, Any] = {"n_kv_heads": 1, "head_dim": 22} if request.param == "modern" else {}
    config = RunConfig(
        model=ModelConfig(
            ArchConfig(request.param),
            dim=44,
            n_layers=2,
            n_heads=2,
            ffn_dim=67,
            max_seq_len=131,
            dropout=0.0,
            **grouped,
        ),
        tokenizer=TokenizerConfig(kind="byte"),
        data=DataConfig(
            sources={"qa": SourceConfig(kind="qa", path=str(folder / "facts.jsonl"))}, seq_len=131, document_mask=True
        ),
        optimizer=OptimizerConfig(lr=0.01),
        schedule=ScheduleConfig(warmup_steps=5),
        trainer=TrainerConfig(
            micro_batch_size=4,
            grad_accum_steps=1,
            precision="fp32",
            total_steps=150,
            eval_every_steps=150,
            save_every_steps=150,
            save_every_epochs=None,
            early_stopping_patience=None,
        ),
        tracker=TrackerConfig(kind="local"),
        seed=11,
        device="cpu",
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(config, folder / "run")
    torch.set_num_threads(threads)
    return find_checkpoint(str(folder / "run"), folder)


@pytest.fixture
def model(checkpoint: Path) -> TransformerLM:
    return load_model(checkpoint)


@pytest.fixture
def tokenizer(checkpoint: Path) -> Tokenizer:
    return load_tokenizer(checkpoint)


@pytest.fixture
def twin(checkpoint: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


@pytest.fixture
def twin_tokenizer(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint, padding_side="left")


def twin_writes(
    twin: Any, twin_tokenizer: Any, prompts: list[str], **settings: Any
) -> tuple[list[list[int]], list[str]]:
    """Ids up to the end token and texts, as somebody would have them who knows nothing of DTL."""
    batch = twin_tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    written_bt = twin.generate(**batch, do_sample=False, **({"max_new_tokens": 41} | settings))
    new = [row.tolist() for row in written_bt[:, batch["input_ids"].shape[1] :]]
    end = twin.generation_config.eos_token_id
    ids = [row[: row.index(end)] if end in row else row for row in new]
    return ids, twin_tokenizer.batch_decode(new, skip_special_tokens=True)


def test_the_models_have_learnt_something(model: TransformerLM, tokenizer: Tokenizer) -> None:
    """Else this file would compare noise."""
    answers = continuations(model, tokenizer, [Prompt().text(question) for question in QUESTIONS], GREEDY, seed=0)
    right = sum(text.strip() == ANSWERS[i % 6] for i, text in enumerate(answers))
    assert right >= 6, answers


@pytest.mark.parametrize("text", PROMPTS)
def test_greedy_texts_of_single_prompts(
    model: TransformerLM, tokenizer: Tokenizer, twin: Any, twin_tokenizer: Any, text: str
) -> None:
    (ids,), (expected,) = twin_writes(twin, twin_tokenizer, [text])
    continuation = continue_text(model, tokenizer, text, GREEDY, seed=0)
    assert "".join(continuation) == expected
    assert continuation.ids == ids
    assert continuation.ended == ("end" if len(ids) < 41 else "length")


def test_greedy_texts_of_a_batch(model: TransformerLM, tokenizer: Tokenizer, twin: Any, twin_tokenizer: Any) -> None:
    """They pad on the left, we on the right."""
    ids, expected = twin_writes(twin, twin_tokenizer, PROMPTS)
    assert len({len(row) for row in ids}) > 1  # some end before others
    assert continuations(model, tokenizer, PROMPTS, GREEDY, seed=0) == expected
    assert generate(model, tokenizer.encode_batch(PROMPTS), GREEDY, tokenizer.eos_id) == ids


@pytest.mark.parametrize("penalty", [1.3, 2.0, 0.3])
def test_greedy_texts_with_a_repetition_penalty(
    model: TransformerLM, tokenizer: Tokenizer, twin: Any, twin_tokenizer: Any, penalty: float
) -> None:
    """One by one: in a batch their padding counts as said before."""
    changed = 0
    for text in PROMPTS:
        (ids,), (expected,) = twin_writes(twin, twin_tokenizer, [text], repetition_penalty=penalty)
        sampling = replace(GREEDY, repetition_penalty=penalty)
        assert continuations(model, tokenizer, [text], sampling, seed=0) == [expected]
        assert generate(model, [tokenizer.encode(text)], sampling, tokenizer.eos_id) == [ids]
        changed += continuations(model, tokenizer, [text], GREEDY, seed=0) != [expected]
    assert changed


@pytest.mark.parametrize("stop", [" ", "e"])
def test_greedy_texts_up_to_a_stop_text(
    model: TransformerLM, tokenizer: Tokenizer, twin: Any, twin_tokenizer: Any, stop: str
) -> None:
    """They leave the stop text in; every token is a byte, so that theirs ends with it."""
    for text in PROMPTS:
        _, (expected,) = twin_writes(twin, twin_tokenizer, [text], stop_strings=[stop], tokenizer=twin_tokenizer)
        continuation = continue_text(model, tokenizer, text, replace(GREEDY, stop=[stop]), seed=0)
        assert "".join(continuation) == expected.removesuffix(stop)
        assert (continuation.ended == "stop") == expected.endswith(stop)
