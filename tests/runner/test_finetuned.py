"""A checkpoint that others train further: TRL fine-tunes it, PEFT merges a LoRA adapter, and DTL chats with both."""

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import start, tiny_config, write_pairs

from dtl.checkpoints.find import find_checkpoint
from dtl.data.config import QuestionsConfig, TokenizerConfig
from dtl.data.tokenizers.prompt import Prompt
from dtl.errors import CheckpointError
from dtl.generation.config import SamplingConfig
from dtl.model.config import ArchConfig
from dtl.terminal.config import ChatConfig
from dtl.terminal.loading import load

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of TRL, PEFT and what they call

PAGE = Path(__file__).parents[2] / "docs" / "elsewhere.md"
BLOCKS = ("modern", "classic")
LEARNT = Prompt("Q: {question}\nA:", lower_case=True)
COLOURS = {"Grass?": "green", "And the SEA?": "blue", "What colour has a ROSE?": "red"}
GREEDY = SamplingConfig(temperature=0, top_k=None, max_new_tokens=20)


@pytest.fixture(scope="module", params=BLOCKS)
def trained(request, tmp_path_factory) -> Path:
    """The best checkpoint of a short run."""
    folder = tmp_path_factory.mktemp(request.param)
    config = tiny_config(write_pairs(folder / "pairs.jsonl"), total_steps=60, eval_every_steps=60)
    data = replace(config.data, qa=QuestionsConfig(prompt=LEARNT.template), lower_case_questions=True)
    model = replace(config.model, arch=ArchConfig(request.param), dim=128, ffn_dim=256, n_heads=4, dropout=0.0)
    start(replace(config, data=data, model=model, tokenizer=TokenizerConfig("byte")), folder / "run")
    return find_checkpoint(str(folder / "run"), folder)


def chats(folder: Path) -> dict[str, tuple[str, str | None]]:
    """What `dtl.chat` answers, and how each answer ended."""
    model = load(folder, ChatConfig(device="cpu"))
    given = {}
    for question in COLOURS:
        continuation = model.continue_text(model.prompt(question), GREEDY, 0)
        given[question] = "".join(continuation).strip(), continuation.ended
    return given


def records(form: str) -> list[dict[str, Any]]:
    """The questions in one of the forms that TRL takes."""
    if form == "messages":
        return [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
            for asked, answer in COLOURS.items()
        ]
    return [{"prompt": LEARNT.text(asked), "completion": f" {answer}"} for asked, answer in COLOURS.items()]


def tune(folder: Path, out: Path, form: str, **more: Any) -> Any:
    """160 steps of TRL's supervised fine-tuning."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(
        output_dir=str(out), max_steps=160, learning_rate=4e-3, lr_scheduler_type="linear",
        warmup_steps=5, per_device_train_batch_size=3, report_to=[], use_cpu=True, bf16=False, max_length=64,
        save_strategy="no", logging_steps=160, disable_tqdm=True, seed=1,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=Dataset.from_list(records(form)),
        args=settings,
        **more,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return trainer


EXPECTED = {question: (answer, "end") for question, answer in COLOURS.items()}


@pytest.mark.parametrize("form", ["messages", "prompts"])
def test_a_model_that_trl_has_tuned_stops_and_answers_in_dtl(trained, tmp_path, form):
    """The end token is learnt as the token, not as the letters of its name, and questions are put as DTL does."""
    assert chats(trained) != EXPECTED
    tune(trained, tmp_path / "sft", form).save_model()
    assert chats(tmp_path / "sft") == EXPECTED


def test_the_lines_of_the_page_do_so(trained, tmp_path, monkeypatch):
    (example,) = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    example = example.replace('"outputs/<date>/<run>/checkpoints/best"', repr(str(trained)))
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"question": asked, "answer": answer}) for asked, answer in COLOURS.items()]
    Path("my_pairs.jsonl").write_text("\n".join(lines))
    # A smaller model than a reader's: with 80 steps whether it has learnt all depends on the processor.
    example = example.replace("max_steps=80, learning_rate=1e-3", "max_steps=160, learning_rate=4e-3, use_cpu=True")
    assert "use_cpu" in example
    exec(example, {})
    assert chats(tmp_path / "tuned") == EXPECTED


def test_an_adapter_is_rejected_with_lines_that_merge_it(trained, tmp_path):
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "lora"
    lora = LoraConfig(r=16, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    tune(trained, folder, "messages", peft_config=lora).save_model()
    with pytest.raises(CheckpointError, match="an adapter of LoRA") as error:
        load(find_checkpoint(str(folder), tmp_path), ChatConfig())
    lines = [line.removeprefix("    ") for line in str(error.value).splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})

    merged = Path(f"{folder}-merged")
    assert json.loads((merged / "config.json").read_text())["dtl"]["prompt"]["template"] == LEARNT.template
    given = chats(merged)
    assert given != chats(trained)
    with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trained), folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    for question, (answer, _) in given.items():
        asked = tokenizer(LEARNT.text(question), return_tensors="pt")
        with torch.no_grad():
            ids = with_adapter.generate(**asked, max_new_tokens=GREEDY.max_new_tokens, do_sample=False)
        text = tokenizer.decode(ids[0, asked.input_ids.shape[1] :], skip_special_tokens=True)
        assert text.strip() == answer
