"""The prompt of questions: their text, its entry in the `dtl` block of config.json, the chat template made of it.

Other programs keep that block when they load and save a checkpoint again, and lose files such as config.yaml. Imports
no torch: sources of questions are opened with the prompt of `init=` before it is imported.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtl.base.json_files import as_object, read_json_or_empty, read_yaml_or_empty
from dtl.base.safe_text import in_one_line
from dtl.data.config import PLACEHOLDERS, DataConfig, no_questions, prompt_problem
from dtl.errors import CheckpointError
from dtl.registry import SOURCES

_PLACEHOLDER = re.compile(rf"\{{({'|'.join(PLACEHOLDERS)})\}}")


@dataclass(frozen=True)
class Prompt:
    """The form in which a model learns questions: training, evaluation and chat use the same.

    Of a template only `{question}` and `{context}` are replaced, in one pass: nothing in it is executed, and braces in
    a question are text. Its rules: `prompt_problem`.
    """

    template: str = "Context: {context}\nQuestion: {question}\nAnswer:"
    lower_case: bool = False  # of the question: to a tokenizer "Jeans" and "jeans" have nothing in common

    @classmethod
    def of(cls, data: DataConfig, learnt: "Prompt | None" = None) -> "Prompt":
        """Return the prompt of a configuration: as given, else the one that the model has `learnt`, else DTL's."""
        default = learnt or cls(lower_case=data.recommended.lower_case_questions)
        return cls(
            default.template if data.qa.template is None else data.qa.template,
            default.lower_case if data.lower_case_questions is None else data.lower_case_questions,
        )

    def text(self, question: str, context: str = "") -> str:
        """Return the text after which the model writes its answer. A context is a text to answer from."""
        question = question.strip().lower() if self.lower_case else question.strip()
        values = {"question": question, "context": context.strip()}
        template = self.template if values["context"] else without_context(self.template)
        return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def without_context(template: str) -> str:
    """Return the template for a question without a context: the line of `{context}` is left out."""
    return "\n".join(line for line in template.split("\n") if "{context}" not in line)


def space_after(asked: str) -> str:
    """Return the space with which an answer begins: byte-level tokenizers join it to the word after it."""
    return "" if asked.endswith("\n") else " "


def with_prompt(data: DataConfig, learnt: Prompt | None) -> DataConfig:
    """Return the configuration with the settings of `Prompt.of`; unchanged where no source has questions."""
    if no_questions(data.resolved_sources()):
        return data
    prompt = Prompt.of(data, learnt)
    return replace(data, qa=replace(data.qa, prompt=prompt.template), lower_case_questions=prompt.lower_case)


# --- in a checkpoint ----------------------------------------------------------------------------------------------

KEY = "prompt"  # of the `dtl` block; null: the model has learnt plain text


def prompt_entry(prompt: Prompt | None) -> dict[str, Any] | None:
    """Return a prompt as config.json holds it."""
    return prompt and {"template": prompt.template, "lower_case_questions": prompt.lower_case}


def read_prompt(folder: Path) -> Prompt | None:
    """Return the prompt that the model in a checkpoint or Hugging Face folder has learnt; None for a model of plain
    text, and of another program.

    Raises CheckpointError for an entry that is no prompt: the file may come from anywhere.
    """
    return _read_prompt(folder)[0]


def has_learnt_plain_text(folder: Path) -> bool:
    """Return True for a model of DTL that was trained without questions. Raises CheckpointError as `read_prompt`."""
    return _read_prompt(folder) == (None, True)


def has_learnt_questions_alone(folder: Path) -> bool:
    """Return True for a checkpoint of DTL that was trained on questions and no other text, from random weights."""
    init = as_object(read_yaml_or_empty(folder / "config.yaml")).get("init")
    return init is None and was_trained_on_questions_alone(folder)


def was_trained_on_questions_alone(folder: Path) -> bool:
    """Return True for a checkpoint of DTL whose run had questions and no other text, whatever its weights began as."""
    data = as_object(as_object(read_yaml_or_empty(folder / "config.yaml")).get("data"))
    return not _is_added(data, "wiki") and _all_questions_are(data, "all")


def _read_prompt(folder: Path) -> tuple[Prompt | None, bool]:
    """Return the prompt, and True where the folder says which it is."""
    # A config.json that is missing or damaged is reported where the model is loaded.
    block = read_json_or_empty(folder / "config.json").get("dtl")
    if isinstance(block, dict) and KEY in block:
        return None if block[KEY] is None else _checked(block[KEY], folder / "config.json"), True
    if isinstance(block, dict) and (folder / "config.yaml").is_file():
        return _prompt_of_format_1(folder / "config.yaml"), True
    return None, False


def _checked(entry: object, file: Path) -> Prompt:
    values = as_object(entry)
    template, lower_case = values.get("template"), values.get("lower_case_questions")
    if not isinstance(template, str) or not isinstance(lower_case, bool) or len(values) != 2:
        raise CheckpointError(
            f"{file}: dtl.prompt={in_one_line(json.dumps(entry))}: must be null, or have a text `template` and a true "
            "or false `lower_case_questions`, and nothing else."
        )
    if problem := prompt_problem(template):
        raise CheckpointError(f"{file}: dtl.prompt.template={in_one_line(template)}: {problem}")
    return Prompt(template, lower_case)


def _prompt_of_format_1(file: Path) -> Prompt | None:
    """Return the prompt of a checkpoint that was saved before config.json had it, by the settings of its data."""
    data = as_object(read_yaml_or_empty(file).get("data"))
    # Runs from before this setting was added were asked as typed.
    return None if _has_no_questions(data) else Prompt(lower_case=data.get("lower_case_questions") is True)


def _has_no_questions(data: Mapping[str, Any]) -> bool:
    return not _is_added(data, "qa") and _all_questions_are(data, "none")


def _is_added(data: Mapping[str, Any], name: str) -> bool:
    """Return True where data.qa.path or data.qa.weight adds questions to any other source, or data.wiki.* text."""
    added = as_object(data.get(name))
    return added.get("path") is not None or added.get("weight") is not None


def _all_questions_are(data: Mapping[str, Any], how_many: str) -> bool:
    """Return True where `none` or `all` of the documents of each source are questions."""
    kinds = [as_object(source).get("kind") for source in as_object(data.get("sources")).values()]
    traits = [SOURCES.traits(kind) if isinstance(kind, str) else None for kind in kinds]
    return bool(traits) and all(trait is not None and trait.questions == how_many for trait in traits)


# --- for other programs -------------------------------------------------------------------------------------------

_CHAT_TEMPLATE = """\
{#- Written by DTL from the prompt of the training questions. Each question with its answer is a text by itself. -#}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set text = message['content'] | trim -%}
{%- else -%}
{%- set text = message['content'] | map(attribute='text') | join('') | trim -%}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- BEFORE + QUESTION + AFTER -}}
{%- elif message['role'] == 'assistant' -%}
{{- SPACE + text + eos_token -}}
{%- else -%}
{{- raise_exception('This model has learnt questions and answers only: no role but user and assistant.') -}}
{%- endif -%}
{%- endfor -%}
"""


def chat_template(prompt: Prompt) -> str:
    """Return the Jinja template that writes a question exactly as `prompt.text` does. DTL itself never runs one.

    Texts are written as JSON strings, which Jinja reads as the same texts: no character of them is code.
    """
    template = without_context(prompt.template)
    before, after = template.split("{question}")
    parts = {
        "BEFORE": json.dumps(before, ensure_ascii=False),
        "QUESTION": "(text | lower)" if prompt.lower_case else "text",
        "AFTER": json.dumps(after, ensure_ascii=False),
        "SPACE": json.dumps(space_after(template)),
    }
    return re.sub("|".join(parts), lambda match: parts[match[0]], _CHAT_TEMPLATE)


def response_template(end: str) -> dict[str, Any]:
    """Return the rule by which other programs read an answer: all text up to the end token.

    Without it `transformers serve` reads answers of the model type qwen3 by Qwen's own markers, and the question
    becomes a part of the answer.
    """
    content = {"content": "text", "close": end}
    return {"defaults": {"role": "assistant"}, "start_anchor_pattern": r"\Z", "fields": {"content": content}}
