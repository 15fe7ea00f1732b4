"""The choice of a kernel: an exact one, the fastest by a margin, the one asked for or a reason why not."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dtl.errors import ConfigError
from dtl.model import kernel_choice
from dtl.model.attention import (
    DOCUMENT_KERNELS,
    AttentionFn,
    document_mask,
    reference_documents,
    sdpa_attention,
    sdpa_documents,
)
from dtl.model.kernel_choice import KernelChoice, KernelContext, KernelProbe, choose_kernel, fastest

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4], [0] * 9 + [1] * 2, [0] * 11])
CUDA: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda"))  # rows on a card, as far as a choice looks
GIVEN = KernelContext(DOCUMENTS, torch.float32, deterministic=False, compiled=False)


@pytest.fixture
def trial(tiny_config) -> KernelProbe:
    return KernelProbe.of(tiny_config(), DOCUMENTS, torch.float32)


def changed(change) -> Any:
    """A kernel whose result is the right one, changed."""

    def kernel(documents_bt: torch.Tensor) -> AttentionFn:
        attend = reference_documents(documents_bt)
        return lambda q, k, v, dropout=0.0: change(attend(q, k, v, dropout=dropout))

    return kernel


def causal(documents_bt: torch.Tensor) -> AttentionFn:
    """Looks into other documents."""
    return sdpa_documents(torch.zeros_like(documents_bt))


def sees_the_last_token_of_the_document_before(documents_bt: torch.Tensor) -> AttentionFn:
    """Wrong in one pair for each border: the kind of slip that averages would hide."""
    mask_bts = document_mask(documents_bt)
    mask_bts[:, 3, 2] = True
    return partial(sdpa_attention, mask_bts=mask_bts)


class HalfGradient(torch.autograd.Function):
    """The identity, with a backward pass that is wrong."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] / 2


def raising(documents_bt: torch.Tensor) -> AttentionFn:
    raise RuntimeError("no kernel image\n  is available for this card")


# --- exactness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", kernel_choice.TOLERANCE)
def test_the_fall_back_and_the_formula_are_exact_in_every_dtype(tiny_config, dtype):
    trial = KernelProbe.of(tiny_config(), DOCUMENTS, dtype)
    assert trial.q_bhtk.shape == (3, 6, 11, 10) and trial.k_bgtk.shape == (3, 2, 11, 10)
    assert trial.problem(sdpa_documents) is None and trial.problem(reference_documents) is None


@pytest.mark.parametrize("dtype", kernel_choice.TOLERANCE)
@pytest.mark.parametrize(
    "kernel",
    [
        causal,
        sees_the_last_token_of_the_document_before,
        changed(lambda y: 1.1 * y),
        changed(HalfGradient.apply),
        changed(lambda y: y * float("nan")),
    ],
)
def test_a_kernel_that_is_not_exact_is_out(tiny_config, kernel, dtype):
    assert "not exact, off by" in str(KernelProbe.of(tiny_config(), DOCUMENTS, dtype).problem(kernel))


def test_a_kernel_that_raises_is_out_with_what_it_said(trial):
    assert trial.problem(raising) == "RuntimeError: no kernel image is available for this card"
    fails_backwards = changed(lambda y: y.detach())
    assert "does not require grad" in str(trial.problem(fails_backwards))


def test_a_trial_leaves_the_runs_random_state_alone(tiny_config):
    before = torch.get_rng_state()
    trial = KernelProbe.of(tiny_config(), DOCUMENTS, torch.float32)
    fastest({"sdpa": sdpa_documents, "other": reference_documents}, trial, {})
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(trial.q_bhtk, KernelProbe.of(tiny_config(), DOCUMENTS, torch.float32).q_bhtk)


# --- speed --------------------------------------------------------------------------------------------------------


def timed(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[str]:
    """Have kernels take the time given; returns the list of those that are going to be timed."""
    asked: list[str] = []

    def fake(self: KernelProbe, kernels: Any) -> dict[str, float]:
        asked.extend(kernels)
        return {name: seconds[name] for name in kernels}

    monkeypatch.setattr(KernelProbe, "seconds", fake)
    return asked


@pytest.mark.parametrize(
    ("other", "third", "winner"),
    [(0.5, 0.7, "other"), (0.7, 0.5, "third"), (0.89, 2.0, "other"), (0.91, 0.95, "sdpa"), (2.0, 3.0, "sdpa")],
)
def test_another_kernel_must_be_clearly_quicker(monkeypatch, trial, other, third, winner):
    timed(monkeypatch, sdpa=1.0, other=other, third=third)
    kernels = {"sdpa": sdpa_documents, "other": reference_documents, "third": reference_documents}
    choice = fastest(kernels, trial, {})
    assert choice.name == winner
    assert f"other {1000 * other:.2f} ms" in choice.reason and "sdpa 1000.00 ms" in choice.reason


def test_the_quickest_of_all_does_not_win_when_it_is_wrong(monkeypatch, trial):
    asked = timed(monkeypatch, sdpa=1.0, right=0.6, wrong=0.1, broken=0.1)
    kernels = {"sdpa": sdpa_documents, "right": reference_documents, "wrong": causal, "broken": raising}
    choice = fastest(kernels, trial, {"known": "needs another card"})
    assert choice.name == "right" and asked == ["sdpa", "right"]
    assert choice.reason.startswith(
        "auto: right 600.00 ms, sdpa 1000.00 ms; known: needs another card; wrong: not exact"
    )
    assert "broken: RuntimeError: no kernel image" in choice.reason


def test_one_kernel_alone_is_not_timed(monkeypatch, trial):
    asked = timed(monkeypatch)
    choice = fastest({"sdpa": sdpa_documents, "wrong": causal}, trial, {})
    assert choice.name == "sdpa" and asked == []
    monkeypatch.setattr(KernelProbe, "results", None)  # nothing is computed either
    assert fastest({"sdpa": sdpa_documents}, trial, {"x": "why"}) == KernelChoice("sdpa", "auto: x: why")


def test_time_is_measured_over_all_layers_without_the_first_round(trial, monkeypatch):
    n_calls, clock = [], [0.0]
    monkeypatch.setattr(kernel_choice.time, "perf_counter", lambda: clock[0])

    def slow(documents_bt: torch.Tensor) -> AttentionFn:
        n_calls.append("prepared")
        clock[0] += 0.5 if len(n_calls) == 1 else 0.25
        return sdpa_documents(documents_bt)

    seconds = replace(trial, n_layers=5).seconds({"sdpa": sdpa_documents, "slow": slow})
    assert seconds == {"sdpa": 0.0, "slow": 0.25}
    assert len(n_calls) == 1 + kernel_choice.ROUNDS  # once for all layers of a pass


# --- the choice ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "KernelProbe", None)


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize(
    ("asked", "given", "name", "reason"),
    [
        ("auto", {}, "padded", "auto: computes the fewest pairs on cpu"),
        ("auto", {"compiled": True}, "sdpa", "auto: varlen and flex need CUDA, this is cpu"),
        ("auto", {"documents_bt": None}, "sdpa", "auto: causal, no document mask"),
        ("auto", {"documents_bt": CUDA, "deterministic": True}, "sdpa", "trainer.deterministic=true"),
        ("auto", {"documents_bt": CUDA, "earlier": "sdpa"}, "sdpa", "auto: as before"),
        ("sdpa", {"documents_bt": CUDA, "earlier": "varlen"}, "sdpa", "as requested"),
        ("reference", {}, "reference", "as requested"),
        ("reference", {"documents_bt": None}, "reference", "as requested"),
    ],
)
def test_what_needs_no_probe_costs_none(tiny_config, asked, given, name, reason):
    choice = choose_kernel(tiny_config(attention=asked), replace(GIVEN, **given))
    assert choice.name == name and reason in choice.reason


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize("asked", ["varlen", "flex"])
@pytest.mark.parametrize(
    ("given", "dropout", "message"),
    [
        ({}, 0.0, "needs a CUDA device, this is cpu"),
        ({"documents_bt": None}, 0.0, r"document mask, which this run does not use.*data\.document_mask=true"),
        ({"documents_bt": CUDA}, 0.1, r"supports no attention dropout, and model\.dropout=0\.1"),
    ],
)
def test_a_kernel_asked_for_that_cannot_be_had_is_an_error(tiny_config, asked, given, dropout, message):
    with pytest.raises(ConfigError, match=rf"^model\.attention={asked}: .*{message}.* model\.attention=auto"):
        choose_kernel(tiny_config(attention=asked, dropout=dropout), replace(GIVEN, **given))


@pytest.mark.usefixtures("no_probe")
def test_a_cpu_lays_documents_side_by_side(tiny_config):
    dropping = tiny_config(dropout=0.1)
    for config in (tiny_config(dropout=0.0), dropping):
        assert choose_kernel(config, GIVEN) == KernelChoice("padded", "auto: computes the fewest pairs on cpu")
    compiled = replace(GIVEN, compiled=True)
    assert choose_kernel(dropping, compiled).name == "padded"
    assert choose_kernel(tiny_config(dropout=0.1, attention_dropout=0.0), compiled).name == "sdpa"
    assert choose_kernel(dropping, replace(GIVEN, deterministic=True)).name == "sdpa"
    assert choose_kernel(dropping, replace(GIVEN, documents_bt=None)).name == "sdpa"
    assert choose_kernel(dropping, replace(GIVEN, earlier="sdpa")).name == "sdpa"
    assert choose_kernel(dropping, replace(GIVEN, earlier="padded")).name == "padded"


class OnACard:
    """Stands for a card: which kernels it finds wrong, and what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **problems: str) -> None:
        self.tried: list[str] = []
        self.problems = problems
        monkeypatch.setattr(KernelProbe, "of", lambda *_: self)
        self.times = {"sdpa": 1.0, "varlen": 0.3, "flex": 0.2}

    def problem(self, kernel: Any) -> str | None:
        name = next(name for name, one in DOCUMENT_KERNELS.items() if one is kernel)
        self.tried.append(name)
        return self.problems.get(name)

    def seconds(self, kernels: Any) -> dict[str, float]:
        return {name: self.times[name] for name in kernels}


def test_a_card_takes_the_quickest(monkeypatch, tiny_config):
    card = OnACard(monkeypatch)
    choice = choose_kernel(tiny_config(), replace(GIVEN, documents_bt=CUDA))
    assert choice.name == "varlen" and card.tried == ["varlen"]
    assert choice.reason == (
        "auto: varlen 300.00 ms, sdpa 1000.00 ms; "
        "flex: compiles for a while, so only with trainer.compile=true or by name"
    )
    assert choose_kernel(tiny_config(), replace(GIVEN, documents_bt=CUDA, compiled=True)).name == "flex"
    assert choose_kernel(tiny_config(attention="flex"), replace(GIVEN, documents_bt=CUDA)).reason == "as requested"


def test_dropout_leaves_a_card_with_the_fall_back_untried(monkeypatch, tiny_config):
    card = OnACard(monkeypatch)
    choice = choose_kernel(tiny_config(dropout=0.1), replace(GIVEN, documents_bt=CUDA, compiled=True))
    assert choice.name == "sdpa" and card.tried == []
    assert "varlen: supports no attention dropout, and model.dropout=0.1" in choice.reason and "flex:" in choice.reason
    alone = choose_kernel(tiny_config(dropout=0.0, attention_dropout=0.2), replace(GIVEN, documents_bt=CUDA))
    assert alone.name == "sdpa" and "dropout, and model.attention_dropout=0.2" in alone.reason


def test_dropout_outside_attention_leaves_a_card_its_kernels(monkeypatch, tiny_config):
    card = OnACard(monkeypatch)
    config = tiny_config(dropout=0.1, attention_dropout=0.0)
    assert choose_kernel(config, replace(GIVEN, documents_bt=CUDA)).name == "varlen" and card.tried == ["varlen"]
    assert choose_kernel(replace(config, attention="flex"), replace(GIVEN, documents_bt=CUDA)).name == "flex"


def test_a_card_that_cannot_says_why(monkeypatch, tiny_config):
    OnACard(monkeypatch, varlen="no bf16 units")
    on_card = replace(GIVEN, documents_bt=CUDA)
    assert choose_kernel(tiny_config(), on_card).name == "sdpa"
    assert "varlen: no bf16 units" in choose_kernel(tiny_config(), on_card).reason
    with pytest.raises(
        ConfigError, match=r"model\.attention=varlen: no bf16 units\. Use model\.attention=auto or sdpa"
    ):
        choose_kernel(tiny_config(attention="varlen"), on_card)


def test_a_resumed_run_keeps_its_kernel_where_it_can(monkeypatch, tiny_config):
    card = OnACard(monkeypatch)
    resumed = replace(GIVEN, documents_bt=CUDA, earlier="flex")
    assert choose_kernel(tiny_config(), resumed) == KernelChoice("flex", "auto: as before")
    assert card.tried == ["flex"]
    OnACard(monkeypatch, flex="out of shared memory")
    other_card = choose_kernel(tiny_config(), resumed)
    assert other_card == KernelChoice("sdpa", "auto: flex, used before, is not available: out of shared memory")
    assert choose_kernel(tiny_config(), replace(resumed, documents_bt=DOCUMENTS)).name == "padded"
