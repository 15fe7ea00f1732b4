"""No secret is accepted on the command line, and none of the environment passes `redact`."""

from pathlib import Path

import pytest

from dtl.base.redaction import HIDDEN, check_no_secrets, redact, redact_all
from dtl.errors import ConfigError

CANARY = "c4nary-0f-a-s3cret"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "override",
    [
        f"tracker.api_key={CANARY}",
        f"+wandb.api_key={CANARY}",
        f"++tracker.apiKey={CANARY}",
        f"WANDB_API_KEY={CANARY}",
        f"hf_token={CANARY}",
        f"data.token={CANARY}",
        f"data.secret={CANARY}",
        f"data.options.password={CANARY}",
        f"+aws_secret_access_key={CANARY}",
        f"~tracker.key={CANARY}",
        f"+tracker={{api_key: {CANARY}}}",
        f"+optimizer.options={{deep: {{token: {CANARY}}}}}",
        f"data.path=hf_{'a1B2' * 8}{CANARY}",
        f"data.path=https://user:{CANARY}@example.org/dump",
        f"sk-{CANARY}0123456789",
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_no_secrets(["model=small", override])
    assert CANARY not in str(caught.value)
    assert "WANDB_API_KEY" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


def test_the_value_of_a_secret_variable_is_refused_under_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    with pytest.raises(ConfigError, match=r"^name=\.\.\.") as caught:
        check_no_secrets([f"name={CANARY}"])
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "model=small",
        "tokenizer=bpe",
        "tokenizer.kind=gpt2",
        "model.n_kv_heads=2",
        "sampling.max_new_tokens=7",
        "data.eos_token=11",
        "data.wiki_subset=20231101.en",
        "+optimizer.options={beta_keys: 3, tokens: 5}",
        "prompt='What is the password: a token or a key?'",
        "data.path=https://example.org/a@b",
        "data.revision=0123456789abcdef0123456789abcdef01234567",
        "plugins=[my_keys]",
    ],
)
def test_settings_that_only_sound_like_secrets_pass(override: str) -> None:
    check_no_secrets([override])


@pytest.mark.fault("secrets")
@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DB_PASS"])
def test_values_of_secret_variables_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, CANARY)
    assert redact(f"lr=1 {CANARY} x") == f"lr=1 {HIDDEN} x"
    assert redact_all({"a": [f"<{CANARY}>", 3], "b": {"c": CANARY}}) == {"a": [f"<{HIDDEN}>", 3], "b": {"c": HIDDEN}}


@pytest.mark.fault("secrets")
def test_passwords_in_netrc_and_in_urls_are_hidden(home: Path) -> None:
    (home / ".netrc").write_text(f"machine api.example.org login user password {CANARY}\n")
    assert redact(f"a {CANARY} b") == f"a {HIDDEN} b"
    assert redact("https://me:pa55@example.org/x") == f"https://{HIDDEN}@example.org/x"


def test_plain_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREETING_KEY", "training")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "definitely-not")
    monkeypatch.setenv("SHORT_TOKEN", "1")
    text = "training 1 definitely-not https://example.org:8080/a"
    assert redact(text) == text
