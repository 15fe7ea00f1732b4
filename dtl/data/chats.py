"""Chats as questions with answers: messages with roles (OpenAI, ShareGPT, TRL), or a text with the markers of a chat.

A chat is a list of messages, each a role and a text. `turns_of` makes questions with answers of it.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

Message = tuple[str, str]  # role, text

MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "data")
_ROLE = ("role", "from", "speaker", "author")
_CONTENT = ("content", "value", "text", "message")
_USER = "user human prompter person question instruction input context client customer inst"
_ASSISTANT = "assistant gpt bot model ai chatgpt chatbot bing bard response answer output /inst"
USER, ASSISTANT = frozenset(_USER.split()), frozenset(_ASSISTANT.split())

# --- messages -----------------------------------------------------------------------------------------------------


def messages_in(fields: dict[str, Any], names: Sequence[str] = MESSAGES) -> list[Message] | None:
    """Return the messages in the first field of such a name; also in TRL's `prompt` with `completion` and in `chosen`.

    None for a record without messages.
    """
    for name in names:
        messages = _messages(fields.get(name))
        if messages:
            return messages
    asked = _messages(fields.get("prompt")) or []
    for value in (fields.get(name) for name in ("completion", "chosen", "response")):
        reply = [("assistant", value)] if asked and isinstance(value, str) else _messages(value)
        if reply:
            return [*asked, *reply]
    return None


def _messages(value: Any) -> list[Message] | None:
    """Return a list of messages, which a table may hold as JSON; texts without roles take turns. None for others."""
    if isinstance(value, str) and re.match(r"\s*\[\s*\{", value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(element, str) for element in value):
        return [(("user", "assistant")[number % 2], text) for number, text in enumerate(value)]
    messages = [_message(element) for element in value if isinstance(element, dict)]
    found = [message for message in messages if message is not None]
    return found if len(found) == len(value) else None


def _message(element: dict[str, Any]) -> Message | None:
    role = next((element[name] for name in _ROLE if isinstance(element.get(name), str)), None)
    name = next((name for name in _CONTENT if name in element), None)
    if role is None or (name is None and "tool_calls" not in element and "function_call" not in element):
        return None
    return role.strip().lower(), _text(element[name] if name else None)


def _text(content: Any) -> str:
    """Return the text of a message's content: a text, or parts of which some are texts. Images and calls are none."""
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(text for text in texts if isinstance(text, str)).strip()
    return content.strip() if isinstance(content, str) else ""


# --- texts with markers -------------------------------------------------------------------------------------------

_OPENING = re.compile(
    r"""<\|im_start\|>[ \t]*(\w+)[ \t]*(?:\n|<\|im_sep\|>)?
    | <start_of_turn>[ \t]*(\w+)[ \t]*\n?
    | <\|(?:start_header_id|header_start|start_of_role)\|>\s*(\w+)\s*<\|(?:end_header_id|header_end|end_of_role)\|>\s*
    | <\|start\|>(\w+)(?:<\|channel\|>\w+)?<\|message\|>
    | <\|(user|assistant|system|prompter|human|bot|chatbot|tool)(?:_token)?\|>
    | <｜(user|assistant)｜>
    | \[(/?inst)\]
    | (?:^[ \t]*\#{2,4}|\#{3})[ \t]*
      (instruction|input|response|human|assistant|user|system|question|answer|output|context)[ \t]*:
    | ^(human|assistant|user|system)[ \t]*:
    | (?-i:\b(USER|HUMAN|ASSISTANT):)""",  # noqa: RUF001
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_BEGINNING = re.compile(r"<\|endoftext\|>|<\|begin_of_text\|>|<bos>|<｜begin▁of▁sentence｜>")  # noqa: RUF001  # of a chat, where a text has several
_ENDING = re.compile(
    r"<\|\w+\|>|<end_of_turn>|</?s>|<eos>|<BOS_TOKEN>|<｜[\w▁]+｜>"  # noqa: RUF001
    r"|Below is an instruction that describes a task.*?completes the request\.",  # Alpaca's, before each instruction
    re.DOTALL,
)
_SYSTEM = re.compile(r"<<SYS>>(.*?)<</SYS>>", re.DOTALL)


def chats_in(text: str) -> list[list[Message]]:
    """Return the chats in a text with markers: `<|im_start|>user`, `<start_of_turn>user`, `<|user|>`, `[INST]`,
    `### Instruction:`, `Human:` and the like. Empty for a text without.

    A system message and an `### Instruction:` begin another chat, and so do the tokens that begin or end a text.
    """
    chats: list[list[Message]] = []
    for part in _BEGINNING.split(text):
        opened = [*_OPENING.finditer(part)]
        if not opened:
            continue
        chat: list[Message] = []
        if before := _ENDING.sub("", part[: opened[0].start()]).strip():
            chat.append(("", before))
        ends = [match.start() for match in opened[1:]] + [len(part)]
        for match, end in zip(opened, ends, strict=True):
            role = next(group for group in match.groups() if group).lower()
            content = _ENDING.sub("", part[match.end() : end])
            if role in ("system", "instruction") and any(known in ASSISTANT for known, _ in chat):
                chats.append(chat)
                chat = []
            chat += [("system", found.strip()) for found in _SYSTEM.findall(content)]
            chat.append((role, _SYSTEM.sub("", content).strip()))
        if chats and chat[0][0] in ASSISTANT:  # each message ended, not each chat
            chats[-1] += chat
        else:
            chats.append(chat)
    return [chat for chat in chats if any(role in ASSISTANT for role, _ in chat)]


# Markers that no prose has, and a part of each: a test for the parts is several times as fast.
_MARKER = re.compile(
    r"<\|[A-Za-z]\w*\|>|<｜[A-Za-z][\w▁]*｜>|</?(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"  # noqa: RUF001
    r"|<[be]os>|<pad>|\A<s>|</s>$|(?:^\#{2,4}|\#{3}) ?(?:Instruction|Input|Response|Human|Assistant):",
    re.MULTILINE,
)
_PARTS = ("<|", "<｜", "_of_turn>", "INST]", "<<SYS", "<bos>", "<eos>", "<pad>", "<s>", "</s>", "## ", "###")  # noqa: RUF001


def markers_in(text: str) -> set[str]:
    """Return the markers of chats and tokens spelt out in a text; empty for prose."""
    return set(_MARKER.findall(text)) if any(part in text for part in _PARTS) else set()


# --- turns --------------------------------------------------------------------------------------------------------


BEFORE_TURNS = "text before the first turn"


def turns_of(messages: Sequence[Message], left_out: Counter[str]) -> list[tuple[str, str]]:
    """Return questions with answers: what users wrote before an assistant's message, and the message.

    Messages of one role in a row are joined by a line end. `left_out` counts the other messages by reason.
    """
    turns: list[tuple[str, str]] = []
    asked: list[str] = []
    for role, text in messages:
        if role in USER and text:
            asked.append(text)
        elif role not in ASSISTANT or not text:
            reason = "an empty message" if role in USER | ASSISTANT else f"role {role}" if role else BEFORE_TURNS
            left_out[reason] += 1
        elif asked:
            turns.append(("\n".join(asked), text))
            asked = []
        elif turns:
            turns[-1] = (turns[-1][0], f"{turns[-1][1]}\n{text}")
        else:
            left_out[f"role {role} before any question"] += 1
    if asked:
        left_out["a question without an answer"] += len(asked)
    return turns
