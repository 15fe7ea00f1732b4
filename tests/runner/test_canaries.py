"""Thirty secrets in a sweep, its trials, its checkpoints, W&B's files and a report: none of them is in any file."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import write_pairs

from dtl.base.files import write_atomically
from dtl.base.redaction import HIDDEN, redact
from dtl.base.safe_text import SafeStream, safe_logger
from dtl.run_dir.provenance import RESULT, git_state, write_result
from dtl.run_dir.trial import FOLDER, note_error

# In the environment, by name.
VARIABLES = {
    "WANDB_API_KEY": "0canary01" * 4,
    "HF_TOKEN": "canary02-hub-token",
    "AWS_SECRET_ACCESS_KEY": "canary03/with+signs=",
    "AWS_ACCESS_KEY_ID": "canary04-access-id",
    "OPENAI_API_KEY": "canary05-key",
    "DB_PASSWORD": 'canary06"quoted\\back',
    "MY_PAT": "canary07-pat",
    "GITHUB_TOKEN": "canary08-é-accent",
    "SSH_PRIVATE_KEY": "-----BEGIN KEY-----\ncanary09abcdefghijkl\ncanary10mnopqrstuvw\n-----END KEY-----",
}
NETRC = "machine a.example login me password canary11-netrc\nmachine b.example login me password canary12-netrc\n"
# In a config group of the user's.
IN_CONFIG = {
    "api_token": "canary13-token",
    "password": "canary14",
    "nested": {"client_secret": "canary15-secret", "url": "https://me:canary16@host.example/x"},
    "mirror": "ftp://canary17:canary18@host.example",
    "key_like": "hf_canary19abcdefghijklmnop",
    "from_environment": "${oc.env:OPENAI_API_KEY}",
}
# In the text of an exception, a log, and what a plugin prints.
IN_TEXTS = [
    "GET https://me:canary20@host.example/data failed",
    "headers: {'Authorization-Token': 'canary21-x'}",
    "api_key=canary22-y",
    'password: "canary23-z"',
    "sk-canary24abcdefghijklmnopqr",
    "ghp_canary25abcdefghijklmnop",
    "glpat-canary26abcdefghijklmnop",
    "xoxb-canary27-abcdef",
    "github_pat_canary28abcdefghijklmnop",
    "client_secret='canary29-w'",
    "https://canary30:canary31@host.example?x=1",
    "private_key : canary32-v",
]
PLUGIN = """
import os, sys, logging, warnings
from dtl.registry import OPTIMIZERS
from dtl.training.optimizer import adamw

TEXTS = {texts!r} + [os.environ[name] for name in {names!r}]

@OPTIMIZERS.register("leaky")
def leaky(model, config):
    for text in TEXTS:
        print(text)
        print(text, file=sys.stderr)
        logging.getLogger("leaky").warning("%s", text)
        warnings.warn(text)
    if config.lr > 0.5:
        raise RuntimeError("cannot continue: " + " | ".join(TEXTS))
    return adamw(model, config)
"""
CANARIES = [f"canary{n:02d}" for n in range(1, 33) if n not in (17, 30)]  # those two are user names of a URL


def leaks(root: Path) -> list[tuple[str, str]]:
    found = []
    for file in root.rglob("*"):
        if file.is_file() and not file.is_symlink():
            contents = file.read_bytes().replace(b"\0", b"")
            found += [(str(file.relative_to(root)), name) for name in CANARIES if name.encode() in contents]
    return found


@pytest.mark.fault("secrets")
@pytest.mark.torture
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the home folder of ~/.netrc")
def test_no_canary_is_in_a_file(tmp_path, figure):
    work, home, code = tmp_path / "work", tmp_path / "home", tmp_path / "code"
    for folder in (work, home, code / "optimizer"):
        folder.mkdir(parents=True)
    (home / ".netrc").write_text(NETRC)
    pairs = write_pairs(work / "pairs.jsonl")
    (code / "leaky_parts.py").write_text(PLUGIN.format(texts=IN_TEXTS, names=list(VARIABLES)))
    (code / "optimizer" / "leaky.yaml").write_text(json.dumps({"name": "leaky", "lr": 0.01, "options": IN_CONFIG}))
    path = os.pathsep.join([str(code), *sys.path])
    environment = {
        **os.environ,
        **VARIABLES,
        "HOME": str(home),
        "PYTHONPATH": path,
        "DEBUG_URL": "https://a:canary31@b",
    }
    shared = (
        *("plugins=[leaky_parts]", "optimizer=leaky", f"--config-dir={code}", "data=qa", f"data.path={pairs}"),
        *("tokenizer=byte", "trainer=debug", "tracker=wandb", "device=cpu", "model.dim=16", "model.n_layers=1"),
        *("model.n_heads=2", "model.ffn_dim=32", "data.seq_len=73", "data.cache_dir=cache"),
    )

    def dtl(name: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", f"dtl.{name}", *arguments]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)

    lines = [
        dtl("train", "-m", "optimizer.lr=0.01,0.9", *shared),
        dtl("train", "optimizer.lr=0.9", "debug=true", *shared),
    ]
    lines.append(dtl("report", "runs=outputs/multirun"))
    for number, done in enumerate(lines):
        (work / f"output{number}.txt").write_text(done.stdout + done.stderr)
    names = {file.name for file in work.rglob("*")}
    # The run that failed has no folder; its trial has one.
    wanted = {"config.yaml", "overrides.yaml", "hydra.yaml", "run.json", "result.json", "error.json", "traceback.txt"}
    wanted |= {"trial.log", "trial.json", "sweep.json", "metrics.jsonl", "multirun.yaml", "packages.txt", "best"}
    assert wanted <= names and any(name.endswith(".wandb") for name in names), (wanted - names, lines[0].stderr)
    assert any(name.endswith(".html") for name in names), lines[2].stderr
    assert any(HIDDEN in file.read_text() for file in work.rglob("checkpoints/*/config.yaml"))
    found = leaks(work)
    kinds = {re.sub(r"\d+", "N", path.relative_to(work).as_posix()) for path in work.rglob("*") if path.is_file()}
    print(f"{len(kinds)} kinds of files: {sorted(kinds)}")
    assert len(kinds) >= 15
    figure("secrets in settings, variables and texts: in no file of a sweep", len(CANARIES), len({n for _, n in found}))
    assert found == []


# --- the gates, one by one ----------------------------------------------------------------------------------------


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A text with every canary; those of the environment are in it."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text(NETRC)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    netrc = [line.split()[-1] for line in NETRC.splitlines()]
    return "\n".join([*IN_TEXTS, *VARIABLES.values(), *netrc, json.dumps([IN_CONFIG, VARIABLES])])


@pytest.mark.fault("secrets")
def test_every_gate(secrets, tmp_path, monkeypatch, caplog):
    out = tmp_path / "out"
    out.mkdir()
    assert all(name in secrets for name in CANARIES) and len(CANARIES) == 30
    write_atomically(out / "text", secrets)
    write_atomically(out / "json", json.dumps({"a": secrets}))
    write_result(out, "failed", None, 1, "0", error=secrets)
    monkeypatch.setenv(FOLDER, str(out))
    try:
        raise RuntimeError(secrets)
    except RuntimeError as error:
        note_error(error, secrets)
    with (out / "printed").open("w", encoding="utf-8") as stream:
        print(secrets, file=SafeStream(stream))
    with caplog.at_level(logging.WARNING):
        safe_logger("dtl.canaries").warning("%s", secrets)
    (out / "log").write_text(caplog.text)
    assert {file.name for file in out.iterdir()} >= {"text", RESULT, "error.json", "traceback.txt", "printed", "log"}
    assert leaks(out) == []


def test_the_diff_of_a_checkout_keeps_its_code(secrets, tmp_path):
    package = tmp_path / "repository" / "dtl"
    package.mkdir(parents=True)
    git = ["git", "-C", str(package), "-c", "user.name=a", "-c", "user.email=a@b"]
    (package / "__init__.py").write_text("")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    code = "token = tokenizer.decode(ids)\nkey, n_keys = 1234567, 2\nsecret_size: int = 12\ntokenizer='gpt2-v1'\n"
    (package / "__init__.py").write_text(f"{code}{secrets}\n")
    diff = git_state(package)[1].decode()
    assert [name for name in CANARIES if name in diff] == []
    assert "".join(f"+{line}\n" for line in code.splitlines()) in diff


def test_redaction_is_done_once(secrets):
    assert redact(redact(secrets)) == redact(secrets)
