"""Range checks: messages, the ends of a range, null and NaN."""

from types import SimpleNamespace

import pytest

from dtl.base.checks import (
    check_choices,
    check_device,
    check_fractions,
    check_positive,
    check_range,
    check_seed,
)
from dtl.errors import ConfigError

NAN, INFINITY = float("nan"), float("inf")


def refusal(check, *args, **kwargs) -> str | None:
    """The message of a check; None when it passes."""
    try:
        check(*args, **kwargs)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        *((value, None) for value in (7, 1300, 7.0, None)),
        *((value, "at least 7") for value in (6, NAN, -INFINITY)),
        *((value, "at most 1,300") for value in (1301, 10**26, INFINITY)),
    ],
)
def test_range(value, rule):
    said = refusal(check_range, SimpleNamespace(n=value), "model", n=(7, 1300))
    assert said == (rule and f"model.n={value}: must be {rule}.")


def test_range_names_the_first_and_goes_on_as_told():
    settings = SimpleNamespace(n_heads=11, n_kv_heads=0, ffn_dim=-3)
    ends = dict.fromkeys(("n_heads", "n_kv_heads", "ffn_dim"), (1, 17))
    said = refusal(check_range, settings, "model", ", or null for its default", **ends)
    assert said == "model.n_kv_heads=0: must be at least 1, or null for its default."
    assert refusal(check_range, SimpleNamespace(limit=0), "", limit=(1, 17)) == "limit=0: must be at least 1."


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        *((value, None) for value in (1e-9, 13, None)),
        *((value, "above 0") for value in (0, -INFINITY, NAN)),
        *((value, "at most 1,000,000,000") for value in (2e9, INFINITY)),
    ],
)
def test_positive(value, rule):
    settings = SimpleNamespace(fine=17, lr=value)
    said = refusal(check_positive, settings, "optimizer", "fine", "lr", rest=", or null")
    assert said == (rule and f"optimizer.lr={value}: must be {rule}, or null.")


@pytest.mark.parametrize("interval", ["[0, 1]", "(0, 1]", "[0, 1)", "(0, 1)"])
def test_fractions(interval):
    for value, passes in {
        0.37: True,
        0: interval[0] == "[",
        1.0: interval[-1] == "]",
        -0.01: False,
        1.01: False,
        NAN: False,
        None: True,
    }.items():
        said = refusal(check_fractions, SimpleNamespace(fine=0.5, p=value), "s", "fine", "p", interval=interval)
        assert said == (None if passes else f"s.p={value}: a fraction in {interval}.")


def test_fractions_in_other_words():
    words = {"interval": "[0, 1)", "rule": "a probability in", "rest": ". 0 turns it off"}
    said = refusal(check_fractions, SimpleNamespace(dropout=1.0), "model", "dropout", **words)
    assert said == "model.dropout=1.0: a probability in [0, 1). 0 turns it off."


def test_choices():
    settings = SimpleNamespace(layout="padde", verify="full", rows=None)
    known = {"verify": ("quick", "full"), "rows": ("text",), "layout": ("packed", "padded")}
    assert refusal(check_choices, settings, "data", **known) == "data.layout=padde: one of packed, padded."
    hinted = refusal(check_choices, settings, "", ", or null", hint=True, **known)
    assert hinted == "layout=padde: one of packed, padded, or null. Did you mean 'padded'?"
    settings.layout = "padded"
    assert refusal(check_choices, settings, "data", **known) is None


@pytest.mark.parametrize(("seed", "passes"), [(0, True), (2**63 - 1, True), (2**63, False), (-1, False), (NAN, False)])
def test_seed(seed, passes):
    assert refusal(check_seed, seed) == (None if passes else f"seed={seed}: must be an integer in [0, 2^63).")


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:17"])
def test_device(device):
    assert refusal(check_device, device) is None
    assert refusal(check_device, f"{device}x") == f"device={device}x: one of auto, cpu, cuda, cuda:0, mps."
