"""Keeps secrets out of every file: none is accepted on the command line, none of the environment is written.

Secrets are the values of environment variables and netrc entries that are keys, tokens or
passwords, passwords inside URLs, and settings whose name or value looks like one. `write_atomically` redacts every
text on its way to the disk, `print_lines`, logs and errors on their way to a log. Imports no torch.
"""

import json
import netrc
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dtl.errors import ConfigError

HIDDEN = "[hidden]"
# Whole words of a name: api_key is a secret, n_keys and tokenizer are not, nor is eos_token.
SECRET_WORDS = {"apikey", "secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "netrc"}
KEY_OWNERS = {"api", "access", "private", "secret", "auth", "wandb", "tracker", "account", "hf", "aws"}
TEXT_TOKENS = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "stop", "start", "end", "begin", "special", "new"}
LOOKS_LIKE_A_KEY = re.compile(
    r"(?:\b|(?<=\\[nrt]))(?:hf_[A-Za-z0-9]{20,}|wandb_v\d_\w{20,}|sk-[\w-]{20,}|gh[opsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|AKIA[A-Z0-9]{16}|xox[abp]-[\w-]{10,}|glpat-[\w-]{20,})"
)
URL_PASSWORD = re.compile(r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)")
# A value beside a name, in YAML, code or a message, and inside JSON, where a line ends in \n and quotes are \".
# With a digit in it: `token = tokenizer.decode` is none.
_IN_VALUE = r"""[^\s"',;(){}\[\]<>\\]"""
_VALUE_END = re.compile(r"""[\s"',;(){}\[\]<>\\]""")
NAMED_VALUE = re.compile(
    r"""(?:(?<![\w.\\-])|(?<=\\[nrt]))([\w.-]{1,80}+)\\*["']?\s{0,9}[:=]\s{0,9}\\*["']?"""
    rf"(?={_IN_VALUE}{{0,99}}\d)(?={_IN_VALUE}{{6}})"  # looked at only: it may be a name itself
)


def check_no_secrets(overrides: Iterable[str]) -> None:
    """Raise ConfigError when a `key=value` word of the command line looks like a key, token or password.

    Hydra, W&B and the shell's history all keep the command line. The message does not repeat the value.
    """
    for override in overrides:
        name, _, value = override.partition("=")
        inside = re.findall(r"([\w./-]+)\s*[:=]", value) if value.lstrip().startswith(("{", "[{")) else []
        named = next((key for key in (name, *inside) if is_secret_name(key)), None)
        if named is None and redact(LOOKS_LIKE_A_KEY.sub(HIDDEN, override)) == override:
            continue
        shown = named or ("a word" if redact(LOOKS_LIKE_A_KEY.sub(HIDDEN, name)) != name else name)
        raise ConfigError(
            f"{shown.lstrip('+~')}=...: this looks like a key or a password, and the command line ends up in files.\n"
            "Keys come from the environment or from ~/.netrc: run `wandb login` or set WANDB_API_KEY for W&B, "
            "run `hf auth login` or set HF_TOKEN for the hub."
        )


def is_secret_name(name: str) -> bool:
    """Return True when a setting or variable of this name holds a secret: api_key, HF_TOKEN, aws.secret, password."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    before = dict(zip(words[1:], words, strict=False))
    if SECRET_WORDS & set(words) or ("key" in before and before["key"] in KEY_OWNERS):
        return True
    return bool(words) and words[-1] == "token" and before.get("token") not in TEXT_TOKENS


def redact(text: str) -> str:
    """Replace by `[hidden]` every secret of this environment, passwords inside URLs, and what looks like a key or is
    the value of a name that is a secret's."""
    for secret in _secrets(tuple(os.environ.items())):
        text = text.replace(secret, HIDDEN)
    text = LOOKS_LIKE_A_KEY.sub(HIDDEN, URL_PASSWORD.sub(HIDDEN, text))
    parts, at = [], 0
    for named in NAMED_VALUE.finditer(text):
        if named.start() >= at and is_secret_name(named[1]):
            parts += [text[at : named.end()], HIDDEN]
            end = _VALUE_END.search(text, named.end())
            at = end.start() if end else len(text)
    return "".join([*parts, text[at:]])


def redact_all(value: Any) -> Any:
    """Apply `redact` to every text inside nested mappings and lists, and hide each text whose key is a secret's."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        hidden = {key for key, item in value.items() if item and isinstance(item, str) and is_secret_name(str(key))}
        return {key: HIDDEN if key in hidden else redact_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_all(item) for item in value]
    return value


@lru_cache(maxsize=4)
def _secrets(environment: tuple[tuple[str, str], ...]) -> list[str]:
    """The secrets as they may be written: plain, inside JSON, in a URL, a line of several; longest first."""
    words = {"KEY", "TOKEN", "PASS", "PAT"}
    named = {value for name, value in environment if is_secret_name(name) or words & set(name.upper().split("_"))}
    lines = {line.strip() for value in (*named, *_netrc_passwords()) for line in (value, *value.splitlines())}
    # Short or plain values would be hidden wherever they occur by chance: GREETING_KEY=training.
    kept = {line for line in lines if len(line) >= (16 if line.isalpha() else 8)}
    written = {form for line in kept for form in (line, repr(line)[1:-1], quote(line, safe=""))}
    for _ in range(2):  # a message in JSON may quote JSON
        written |= {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in written for ascii_only in (True, False)}
    return sorted(written, key=len, reverse=True)


def _netrc_passwords() -> Iterator[str]:
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            entries = netrc.netrc(os.path.expanduser(file)).hosts.values()
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        yield from (password for _, _, password in entries if password)
