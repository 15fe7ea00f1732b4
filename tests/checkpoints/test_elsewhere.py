"""Checkpoints in other programs: transformers asks as DTL does, and what it saves again still chats alike."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from checkpoint_examples import moments, tiny_model, tiny_tokenizer

from dtl.base.files import MANIFEST, read_manifest, write_manifest
from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.load import load_model, load_tokenizer
from dtl.checkpoints.save import save_checkpoint
from dtl.data.tokenizers.prompt import Prompt
from dtl.errors import CheckpointError
from dtl.generation.config import SamplingConfig
from dtl.terminal.config import ChatConfig
from dtl.terminal.loading import load

BLOCKS = ("modern", "classic")
GREEDY = SamplingConfig(temperature=0, top_k=None, max_new_tokens=7)
LEARNT = Prompt("{context}\nQ: {question}\nA:", lower_case=True)
QUESTIONS = ["What is the capital of FRANCE?", "Who?", "  12 345 É  "]


def saved(folder: Path, block: str, prompt: Prompt | None = LEARNT, kind: str = "bpe") -> Path:
    tokenizer = tiny_tokenizer(kind).with_prompt(prompt)
    model = tiny_model(block, vocab_size=tokenizer.vocab_size, max_seq_len=101)
    state = {"step": 7, "epoch": 1}
    return save_checkpoint(folder, model, tokenizer, "data: {sources: {a: {kind: qa}}}\n", state, moments(model))


def in_transformers(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def answers(folder: Path) -> list[str]:
    """What `dtl.chat` answers."""
    model = load(folder, ChatConfig(device="cpu"))
    return ["".join(model.continue_text(model.prompt(question), GREEDY, 0)) for question in QUESTIONS]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("prompt", [LEARNT, None], ids=["questions", "plain text"])
@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_saved_again_by_transformers_it_is_asked_and_answers_as_before(tmp_path, block, prompt, kind):
    """config.yaml is lost on the way, and a rule that was in it alone: other answers, without any message."""
    folder = saved(tmp_path / "run", block, prompt, kind)
    model, tokenizer = in_transformers(folder)
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.prompt == load_tokenizer(folder).prompt == prompt
    assert again.kind == kind
    assert (tmp_path / "again" / "chat_template.jinja").exists() is (prompt is not None)
    assert answers(tmp_path / "again") == answers(folder)
    facts = load(tmp_path / "again", ChatConfig(device="cpu")).facts
    assert facts.learned_plain_text is (prompt is None)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_pipeline_of_messages_answers_as_dtl(tmp_path, block):
    from transformers import pipeline

    folder = saved(tmp_path / "run", block)
    assert "chat_template.jinja" in read_manifest(folder).files
    ask = pipeline("text-generation", model=str(folder), device="cpu")
    messages = [[{"role": "user", "content": question}] for question in QUESTIONS]
    with warnings.catch_warnings(action="ignore"):  # on `generate`'s arguments, of transformers itself
        written = ask(messages, max_new_tokens=GREEDY.max_new_tokens, batch_size=len(QUESTIONS))
    assert [each[0]["generated_text"][-1] for each in written] == [
        {"role": "assistant", "content": text} for text in answers(folder)
    ]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_batch_is_continued_as_each_of_its_prompts(tmp_path, block):
    """Padding on the right would be continued in place of the prompts, and GPT-2 would embed token_type_ids."""
    folder = saved(tmp_path / "run", block)
    model, tokenizer = in_transformers(folder)
    prompts = [LEARNT.text(question) for question in QUESTIONS]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    settings = {"max_new_tokens": GREEDY.max_new_tokens, "do_sample": False}
    together = model.generate(**batch, **settings)[:, batch.input_ids.shape[1] :]
    texts = tokenizer.batch_decode(together, skip_special_tokens=True)
    for prompt, text in zip(prompts, texts, strict=True):
        alone = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**alone, **settings)[0, alone.input_ids.shape[1] :]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert texts == answers(folder)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_server_reads_the_answer_and_not_the_question(tmp_path, block):
    """`transformers serve` parses what a model writes by a rule, which it takes from the tokenizer."""
    _, tokenizer = in_transformers(saved(tmp_path / "run", block))
    asked = tokenizer(LEARNT.text("Who?")).input_ids
    written = [*tokenizer(" It is <b>me</b>.").input_ids, tokenizer.eos_token_id]
    assert tokenizer.parse_response(written, prefix=asked) == {"role": "assistant", "content": "It is <b>me</b>."}


def test_llama_cpp_finds_its_key(tmp_path):
    config = json.loads((saved(tmp_path / "run", "classic") / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == 101


# --- checkpoints of format 1 ----------------------------------------------------------------------------------------


def of_format_1(folder: Path, data: str) -> Path:
    """Change a checkpoint to what DTL wrote before config.json had the prompt."""
    config = json.loads((folder / "config.json").read_text())
    del config["dtl"]["prompt"]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("padding_side", "model_input_names", "response_template"):
        settings.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"split_special_tokens": True}))
    (folder / "config.yaml").write_text(f"data: {data}\n")
    (folder / "chat_template.jinja").unlink()
    (folder / MANIFEST).unlink()
    write_manifest(folder, format_version=1, step=7, epoch=1)
    return folder


@pytest.mark.parametrize(
    ("data", "prompt", "is_plain"),
    [
        ("{sources: {qa: {kind: qa}}, lower_case_questions: true}", Prompt(lower_case=True), False),
        ("{sources: {qa: {kind: qa}}}", Prompt(), False),
        ("{sources: {texts: {kind: text, path: x}}}", None, True),
    ],
)
@pytest.mark.parametrize("block", BLOCKS)
def test_an_old_checkpoint_keeps_its_own_form(tmp_path, block, data, prompt, is_plain):
    folder = of_format_1(saved(tmp_path / "run", block), data)
    assert find_checkpoint(str(tmp_path / "run"), tmp_path) == folder
    model = load(folder, ChatConfig(device="cpu"))
    assert model.prompt("Who is ADA?") == (prompt or Prompt()).text("Who is ADA?")
    assert model.facts.learned_plain_text is is_plain
    assert load_tokenizer(folder).prompt == prompt
    assert len("".join(model.continue_text(model.prompt("Who?"), GREEDY, 0))) > 0


def test_a_checkpoint_of_a_newer_dtl_asks_for_an_upgrade(tmp_path):
    folder = saved(tmp_path / "run", "modern")
    version = read_manifest(folder).facts["format_version"]
    (folder / MANIFEST).unlink()
    write_manifest(folder, format_version=version + 1, step=7, epoch=1)
    with pytest.raises(CheckpointError, match="Upgrade DTL"):
        load_tokenizer(folder)


@pytest.mark.parametrize("entry", [{"template": "{{ x }}", "lower_case_questions": True}, "{question}"])
def test_a_prompt_that_is_none_stops_the_chat_and_not_the_model(tmp_path, entry):
    folder = saved(tmp_path / "run", "modern")
    config = json.loads((folder / "config.json").read_text())
    config["dtl"]["prompt"] = entry
    for name in (MANIFEST, "state.json", "optimizer.safetensors"):
        (folder / name).unlink()
    (folder / "config.json").write_text(json.dumps(config))
    load_model(folder)
    with pytest.raises(CheckpointError, match=r"config\.json: dtl\.prompt"):
        load(folder, ChatConfig(device="cpu"))


# --- folders of other trainers --------------------------------------------------------------------------------------


def adapter(folder: Path, **more: Any) -> Path:
    """Write what PEFT saves, with the pickle that TRL adds."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "outputs/x/checkpoints/best", **more}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for name in ("adapter_model.safetensors", "training_args.bin"):
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_is_named_with_the_lines_that_merge_it(tmp_path, with_config):
    folder = adapter(tmp_path / "it's lora")
    if with_config:  # some trainers copy it there
        (folder / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(CheckpointError) as error:
        find_checkpoint(str(folder), tmp_path)
    lines = [line.removeprefix("    ") for line in str(error.value).splitlines() if line.startswith("    ")]
    compile("\n".join(lines), "lines", "exec")
    assert "an adapter of LoRA" in str(error.value) and "outputs/x/checkpoints/best" in lines[2]
    assert f"{folder}-merged" in str(error.value)


@pytest.mark.parametrize("name", ["x')\nimport os; os.abort() #", "\x1b[2J", "\u202e", 7, None])
def test_a_hostile_adapter_stays_one_string_in_them(tmp_path, name):
    folder = adapter(tmp_path / "lora", base_model_name_or_path=name, peft_type="\x1b[1m\nIA3")
    with pytest.raises(CheckpointError) as error:
        find_checkpoint(str(folder), tmp_path)
    message = str(error.value)
    assert len(message.splitlines()) == 7
    assert not {"\x1b", "\u202e"} & set(message)


def test_the_folder_of_a_trainer_names_its_checkpoints(tmp_path):
    for name in ("checkpoint-80", "checkpoint-100", "checkpoint-9"):
        (tmp_path / "sft" / name).mkdir(parents=True)
        (tmp_path / "sft" / name / "config.json").write_text("{}")
    (tmp_path / "sft" / "training_args.bin").write_bytes(b"x")
    adapter(tmp_path / "tuned" / "checkpoint-5")
    snapshot = tmp_path / "models--me--x" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    for folder, expected in {
        "sft": ["checkpoint-100", "checkpoint-80", "checkpoint-9"],
        "tuned": ["checkpoint-5"],
        "models--me--x": ["abc"],
    }.items():
        with pytest.raises(CheckpointError, match="contains models, but is not one") as error:
            find_checkpoint(str(tmp_path / folder), tmp_path)
        assert [Path(line).name for line in str(error.value).splitlines()[1:]] == expected
