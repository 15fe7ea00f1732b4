"""The prompt of the questions that a checkpoint's model has learnt: in the `dtl` block of its config.json for DTL, and
as a chat template for other programs.

Others keep that block when they load and save the folder again, and lose files such as config.yaml. Imports no torch:
sources of questions are opened with the prompt of `init=` before it is imported.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtl.base.json_files import as_object, read_json_or_empty, read_yaml_or_empty
from dtl.base.safe_text import in_one_line
from dtl.checkpoints.listing import is_checkpoint
from dtl.data.config import Prompt, prompt_problem, space_after, without_context
from dtl.errors import CheckpointError
from dtl.registry import SOURCES

KEY = "prompt"  # of the block; null: the model has learnt plain text


def prompt_entry(prompt: Prompt | None) -> dict[str, Any] | None:
    """Return a prompt as config.json holds it."""
    return prompt and {"template": prompt.template, "lower_case_questions": prompt.lower_case}


def read_prompt(folder: Path) -> Prompt | None:
    """Return the prompt that the model in a checkpoint or Hugging Face folder has learnt; None when it is not known, or
    for plain text.

    Raises CheckpointError for an entry that is no prompt: the file may come from anywhere.
    """
    block = _block(folder)
    if block is None or KEY not in block:
        return _prompt_of_format_1(folder) if is_checkpoint(folder) else None
    entry = block[KEY]
    return None if entry is None else _checked(entry, folder / "config.json")


def has_learnt_plain_text(folder: Path, prompt: Prompt | None) -> bool:
    """Return True when it is known that a model was trained without questions; `prompt` is the folder's."""
    return prompt is None and (is_checkpoint(folder) or KEY in (_block(folder) or ()))


def _block(folder: Path) -> Mapping[str, Any] | None:
    """Return the `dtl` block; None for a model of another program. (Loading the model reports a damaged file.)"""
    block = read_json_or_empty(folder / "config.json").get("dtl")
    return block if isinstance(block, dict) else None


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


# --- checkpoints of format 1, which have the settings of their data only ------------------------------------------


def _prompt_of_format_1(folder: Path) -> Prompt | None:
    data = read_yaml_or_empty(folder / "config.yaml").get("data")
    if not isinstance(data, dict):
        return Prompt()
    # Runs from before this setting was added were asked as typed.
    return None if _has_no_questions(data) else Prompt(lower_case=data.get("lower_case_questions") is True)


def _has_no_questions(data: Mapping[str, Any]) -> bool:
    sources = data.get("sources")
    if not isinstance(sources, dict):
        return False
    added = as_object(data.get("qa"))  # data.qa.path or data.qa.weight adds questions to any other source
    if added.get("path") is not None or added.get("weight") is not None:
        return False
    kinds = [source.get("kind") if isinstance(source, dict) else None for source in sources.values()]
    traits = [SOURCES.traits(kind) if isinstance(kind, str) else None for kind in kinds]
    return bool(traits) and all(trait is not None and trait.questions == "none" for trait in traits)
