"""suite=generate: both sides generate the same tokens, or there is no result. No test requires a speed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dtl.benchmarks import generate, generate_sides
from dtl.benchmarks.config import SUITES, BenchConfig, GenerationSuiteConfig
from dtl.benchmarks.measuring import MissingPeerError
from dtl.benchmarks.suite import Workplace
from dtl.errors import DTLError

WITHOUT_WORDS = SimpleNamespace(utils=SimpleNamespace(logging=SimpleNamespace(set_verbosity_error=lambda: None)))
NAMES = ["modern", "classic"]
PEER_NAMES = ["generate", "batch8"]


def place(folder: Path, batch_size: int = 3, **settings) -> Workplace:
    return Workplace(
        BenchConfig(
            suite="generate", tiny=True, rounds=2, generation=GenerationSuiteConfig(batch_size=batch_size), **settings
        ),
        folder,
    )


def counting(n_prompts: int, wrong_from: int | None = None):
    """A writer that counts: p, p + 1, p + 2, ... for prompt p; the last text goes wrong from some token on."""

    def write(n_new: int) -> list[list[int]]:
        texts = [[prompt + number for number in range(n_new)] for prompt in range(n_prompts)]
        if wrong_from is not None:
            texts[-1][wrong_from:] = [-5] * (n_new - wrong_from)
        return texts

    return write


@pytest.fixture
def sides(monkeypatch):
    """Sets both writers, and asks for no transformers."""
    monkeypatch.setattr(generate, "peer", lambda module, install: WITHOUT_WORDS)

    def are(ours, theirs) -> None:
        monkeypatch.setattr(generate, "both_sides", lambda *given: (ours, theirs, 1_700_000))

    return are


def test_the_suite_is_found_by_its_name():
    suite = SUITES.get("generate")
    assert list(suite.chosen(BenchConfig())) == list(suite.chosen(BenchConfig(full=True))) == [*NAMES, *PEER_NAMES]


def test_two_rows_for_the_same_tokens(tmp_path, sides):
    sides(counting(3), counting(3))
    speed, first = generate.continuing(place(tmp_path), "modern")
    assert (speed.name, speed.unit, first.name, first.unit) == ("modern", "tokens/s", "modern_first", "s")
    assert speed.note == ("1.7 million parameters, fp32, 3 x 7 tokens continued by 11; the same 33 tokens, 13 distinct")
    assert speed.goal is not None and first.goal is None and speed.rounds == first.rounds == 2


def test_other_tokens_give_no_figure(tmp_path, sides):
    sides(counting(3), counting(3, wrong_from=6))
    with pytest.raises(DTLError, match=r"modern: .* different tokens for prompt 3, from new token 7 on\."):
        list(generate.continuing(place(tmp_path), "modern"))


def test_where_texts_begin_to_differ():
    generate.check_same_tokens("a", [[3, 5], [7]], [[3, 5], [7]])
    for theirs, where in (
        ([[3, 5], [8]], "prompt 2, from new token 1 on"),
        ([[3], [7]], "prompt 1, from new token 2 on"),
        ([[3, 5, 7], [7]], "prompt 1, from new token 3 on"),
    ):
        with pytest.raises(DTLError, match=where):
            generate.check_same_tokens("a", [[3, 5], [7]], theirs)


def test_a_missing_peer_is_two_skipped_rows(tmp_path, monkeypatch):
    def missing(module: str, install: str):
        raise MissingPeerError(f"install {module}: {install}")

    monkeypatch.setattr(generate, "peer", missing)
    rows = list(generate.continuing(place(tmp_path), "classic"))
    assert [(row.name, row.skipped, row.ours) for row in rows] == [
        (name, "install transformers: pip install transformers", None) for name in ("classic", "classic_first")
    ]


def test_the_model_is_laid_out_as_the_commands_do_it(tmp_path, monkeypatch):
    models = []
    monkeypatch.setattr(generate_sides, "twin_of", lambda model, transformers: models.append(model))
    monkeypatch.setattr(generate_sides, "twin_writer", lambda twin, prompts: None)
    generate.both_sides(place(tmp_path, device="cpu"), WITHOUT_WORDS, "modern", 7, 11)
    (model,) = models
    assert not model.head.weight.is_contiguous()
    assert model.config.max_seq_len == 18 and model.vocab_size == 257


@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_a_random_model_writes_many_different_tokens(tmp_path, monkeypatch, arch):
    """One that repeats a token would hide a difference between the two."""
    monkeypatch.setattr(generate_sides, "twin_of", lambda model, transformers: None)
    monkeypatch.setattr(generate_sides, "twin_writer", lambda twin, prompts: None)
    write, _, n_parameters = generate.both_sides(place(tmp_path, device="cpu"), WITHOUT_WORDS, arch, 7, 43)
    texts = write(43)
    assert [len(text) for text in texts] == [43] * 3 and n_parameters > 100_000
    assert len({token for text in texts for token in text}) > 43


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize("name", NAMES)
def test_the_twin_writes_the_same_tokens(tmp_path, name):
    speed, first = SUITES.get("generate").measurements[name](place(tmp_path, device="cpu"))
    assert (speed.name, first.name) == (name, f"{name}_first")
    for row in (speed, first):
        assert row.skipped is None and row.ratio is not None and row.ours is not None and row.peer is not None
    assert "3 x 7 tokens continued by 11; the same 33 tokens" in speed.note
    assert speed.reached is not None


@pytest.mark.slow  # imports transformers
def test_a_twin_with_another_weight_is_found_out(tmp_path, monkeypatch):
    made = generate_sides.twin_of

    def spoilt(model, transformers):
        twin = made(model, transformers)
        with torch.no_grad():
            twin.lm_head.weight.neg_()
        return twin

    monkeypatch.setattr(generate_sides, "twin_of", spoilt)
    with pytest.raises(DTLError, match="different tokens for prompt 1"):
        list(generate.continuing(place(tmp_path, device="cpu"), "modern"))


@pytest.mark.slow  # the whole command
def test_the_command_shows_and_writes_every_row(tmp_path):
    out = tmp_path / "figures.json"
    environment = {key: value for key, value in os.environ.items() if key != generate_sides.LLAMA_CPP_LIB}
    done = subprocess.run(
        [sys.executable, "-m", "dtl.bench", "suite=generate", "tiny=true", "rounds=1", "device=cpu", f"out={out}"],
        capture_output=True, text=True, cwd=tmp_path, env=environment | {"COLUMNS": "120"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(out.read_text())
    assert [row["name"] for row in written["rows"]] == [
        *(f"{name}{end}" for name in NAMES for end in ("", "_first")),
        *(f"{name}_{side}" for name in PEER_NAMES for side in generate.PEERS),
    ]
    assert written["machine"]["device"] == "cpu" and written["settings"]["generation"]["model"] == "qa"
    assert "models on: cpu" in done.stdout and "tokens/s" in done.stdout
    assert list(tmp_path.iterdir()) == [out]


# --- peers in processes of their own ------------------------------------------------------------------------------


def written(seconds: float, texts: list[list[int]], numbers: str = "fp32 with fp16 weights"):
    return generate_sides.Written(seconds, texts, numbers)


def test_each_round_begins_with_another_side(tmp_path, monkeypatch):
    ran = []

    def run(work):
        ran.append(work.side)
        assert (work.batch_size, work.n_prompt, work.n_new, work.weights) == (8, 7, 11, "auto")
        texts = [[1] * 11] * 8 if work.side != "hf" else [[1] * 10 + [2]] * 8
        return written({"dtl": 2.0, "hf": 5.0, "llamacpp_f16": 1.0}[work.side], texts)

    monkeypatch.setattr(generate, "_run", run)
    monkeypatch.setattr(generate, "_ask_for", lambda side: None)
    rows = list(generate.against_peers(place(tmp_path), 8))
    assert ran == ["dtl", "hf", "llamacpp_f16", "hf", "llamacpp_f16", "dtl"]
    assert [(row.name, row.ours, row.peer, row.ratio.median, row.reached) for row in rows] == [
        ("batch8_hf", 44.0, 17.6, 2.5, True),
        ("batch8_llamacpp_f16", 44.0, 88.0, 0.5, False),
    ]
    assert [row.note.partition("; ")[2] for row in rows] == [
        f"8 x 7 tokens continued by 11, one thread; {n} of 88 tokens are the peer's" for n in (80, 88)
    ]


def test_quick_has_few_new_tokens():
    lengths = [
        generate._lengths(Workplace(BenchConfig(suite="generate", quick=quick), Path())) for quick in (False, True)
    ]  # fmt: skip
    assert lengths == [(64, 256), (64, generate.QUICK_TOKENS)]


def test_a_missing_llama_cpp_is_a_skipped_row(tmp_path, monkeypatch):
    monkeypatch.delenv(generate_sides.LLAMA_CPP_LIB, raising=False)
    monkeypatch.setattr(generate, "_run", lambda work: written(1.0, [[1] * 11]))
    monkeypatch.setattr(generate, "peer", lambda module, install: WITHOUT_WORDS)
    hf, llama = generate.against_peers(place(tmp_path), 1)
    assert (hf.name, hf.skipped, hf.ratio.median) == ("generate_hf", None, 1.0)
    assert (llama.name, llama.ours) == ("generate_llamacpp_f16", None)
    assert llama.skipped.startswith("install llama.cpp: npm install") and "LLAMA_CPP_LIB=" in llama.skipped


def test_a_side_that_fails_is_named(tmp_path):
    work = generate._work(place(tmp_path), 1)
    with pytest.raises(DTLError, match=r"(?s)no-such-side: a text was not continued: .*KeyError"):
        generate._run(generate.replace(work, side="no-such-side"))


@pytest.mark.slow  # imports transformers, in processes of their own
def test_the_sides_write_the_same_tokens(tmp_path):
    """Those of llama.cpp where it is installed; a small model is in fp32."""
    hf, llama = generate.against_peers(place(tmp_path, device="cpu"), 8)
    assert hf.ratio is not None and hf.skipped is None
    assert hf.note == "fp32; 8 x 7 tokens continued by 11, one thread; 88 of 88 tokens are the peer's"
    assert llama.skipped is not None or llama.note.startswith("fp32; 8 x 7 tokens")
