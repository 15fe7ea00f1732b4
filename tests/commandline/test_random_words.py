"""Words of all kinds after `dtl.train`: each is taken, or rejected in one message; what is taken runs."""

import random
import time

import pytest

import dtl
from dtl.commandline.compose import COMMAND, compose
from dtl.config import RunConfig
from dtl.errors import DTLError

CHOICES = COMMAND.groups()
DEFAULTS = {key.name: key.default for key in COMMAND.settings}
NUMBERS = [
    *("0", "-1", "1", "2", "3.5", "1e-3", "1e-320", "1e9", "1e26", "1e400", "-0.0", "inf", "-inf", "nan", "9" * 40),
    *("0x1F", "1_000", "1:30", "007", "+5", "1e", ".5", "5."),
]
TEXTS = [
    *(
        "",
        "null",
        "true",
        "off",
        "???",
        "~",
        "text",
        "a b",
        "é漢",
        "\u202e",
        "\x1b[2J",
        "/tmp/x",
        "../../x",
        "{}",
        "[]",
    ),
    *("[1,2]", "[0.9,0.95]", "[a,[b]]", "{a:1}", "{a:{b:[1]}}", "[", "]", "{", "}", "'", '"', "\\", "${seed}", "${x}"),
    *(
        "${oc.env:HOME}",
        "${",
        "$",
        "a=b",
        "=",
        "==",
        "1,2",
        "choice(1,2)",
        "range(0,1,0)",
        "range(1,3)",
        "int(x)",
        "()",
    ),
    *("sort(1,2)", "shuffle", "glob(*)", "#", "%", "@", "!x", "&a", "*a", "|", ">", "- a", ": b", "a: b", "\t", "\n"),
]
SECONDS = 30  # of processor time: a line that takes longer hangs
# What is accepted runs for two steps at this size, whatever else was chosen.
TINY = "model.dim=16 model.n_layers=1 model.n_heads=2 model.n_kv_heads=null model.head_dim=null model.ffn_dim=23 "
TINY += "model.max_seq_len=48 data.seq_len=48 tokenizer=byte trainer.micro_batch_size=2 trainer.grad_accum_steps=1 "
TINY += "trainer.total_steps=2 trainer.compile=false device=cpu data.max_samples=7"


def a_word(chooser: random.Random) -> str:
    key = chooser.choice([*DEFAULTS, *CHOICES])
    usual = CHOICES.get(key) or [DEFAULTS[key], *NUMBERS]
    value = chooser.choice([*NUMBERS, *TEXTS] if chooser.random() < 0.5 else [*usual])
    if chooser.random() < 0.1:
        place = chooser.randrange(len(key))
        key = key[:place] + chooser.choice("aäx.0_/@ ='\"[") + key[place + chooser.randrange(2) :]
    form = chooser.choices(
        ["{key}={value}", "+{key}={value}", "++{key}={value}", "~{key}", "--{key} {value}", "{key}", "{value}"],
        [20, 1, 2, 1, 1, 1, 1],
    )
    return form[0].format(key=key, value=value)


def taken(*words: str) -> RunConfig | None:
    """The config of the words, None where they are rejected as an error for people."""
    try:
        return compose(*words)
    except DTLError as error:
        assert str(error).strip()
        return None


@pytest.mark.fault("wrong-setting")
@pytest.mark.parametrize(
    ("part", "n_lines"),
    [
        pytest.param(47, 47, marks=pytest.mark.slow),
        *(pytest.param(n, 1250, marks=pytest.mark.torture) for n in range(4)),
    ],
)
def test_any_words_are_taken_or_rejected_by_name(elsewhere, figure, part, n_lines):
    """A line of one to three words. Two steps are trained with each of what was taken, of a few with a sample."""
    chooser = random.Random(part)
    n_taken, n_trained, failed = 0, 0, []
    for number in range(n_lines):
        words = [a_word(chooser) for _ in range(chooser.randint(1, 3))]
        began = time.process_time()
        try:
            config = taken(*words)
            n_taken += config is not None
            if config is not None and (number % 7 == 0 or n_lines > 100):
                n_trained += trained_two_steps(words)
        except Exception as error:
            failed.append(f"{words}: {type(error).__name__}: {error}")
        if time.process_time() - began > SECONDS:
            failed.append(f"{words}: takes {time.process_time() - began:.0f} s")
    figure("lines of random words, rejected in a sentence or taken", n_lines, len(failed))
    figure("lines of random words that were taken and trained with", n_trained, 0)
    assert failed == []
    assert 0 < n_taken < n_lines


def trained_two_steps(words: list[str]) -> bool:
    """True when these words at a tiny size train for two steps; False where the two do not go together."""
    config = taken(*words, *TINY.split())
    if config is None or config.data.path:
        return False
    try:
        assert [report.step for report in dtl.steps(config)] == [1, 2], words
    except DTLError as error:
        assert str(error).strip(), words
        return False
    return True
