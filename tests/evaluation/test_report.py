"""Laws of the whole report: comparable across tokenizers, the same for any batch size, flat in memory."""

import io
import json
import math
import random
import weakref
from contextlib import nullcontext
from dataclasses import astuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoint_examples import tiny_model, tiny_tokenizer
from rich.console import Console

from dtl.data.batches import PackedSequences
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import QuestionAnswer
from dtl.data.pack import pack_stream
from dtl.data.prepare import PreparedData, prepare_data
from dtl.data.tokenizers.prompt import Prompt
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.errors import ConfigError
from dtl.evaluation.answers import likelihoods
from dtl.evaluation.detection import calibrate, detect, natural_questions, unanswerable_questions
from dtl.evaluation.measure import Plan, chosen_questions, measure
from dtl.evaluation.metrics import Calibration
from dtl.evaluation.tables import show_report
from dtl.evaluation.text import count_token_bytes, decoded_bits_per_byte, text_scores
from dtl.generation.config import SamplingConfig
from dtl.generation.conversation import GreedyAnswer, answer_greedily, continue_text
from dtl.registry import METRICS
from dtl.training import loss as loss_module

pytestmark = pytest.mark.usefixtures("one_thread_one_seed")
CONTEXT = 97


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """11 facts in two topics, each in one wording of each split."""
    file = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    facts = [
        {
            "id": f"f{n}",
            "topic": ("sea", "land")[n % 2],
            "answer": f"name {n // 3}",
            "train": [f"What is fact {n}?"],
            "validation": f"Tell fact number {n}",
            "test": f"fact {n} please",
        }
        for n in range(11)
    ]
    file.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    return file


def data_of(file, tokenizer: Tokenizer, cache) -> PreparedData:
    config = DataConfig(
        sources={"mine": SourceConfig("qa", str(file))}, loss_on="answer", document_mask=True, cache_dir=str(cache)
    )
    return prepare_data(config, tokenizer, seq_len=CONTEXT, seed=0)


@pytest.fixture
def byte_data(file, tmp_path) -> PreparedData:
    return data_of(file, tiny_tokenizer(), tmp_path)


def model_for(tokenizer: Tokenizer, **sizes):
    return tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=CONTEXT, **sizes)


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("kind", ["byte", "bpe", "char"])
def test_a_uniform_model_pays_the_same_bits_for_each_token(file, tmp_path, kind):
    """log2(v) bits a token, spread over the bytes of the text; perplexity is the vocabulary's size."""
    tokenizer = tiny_tokenizer(kind)
    data, model = data_of(file, tokenizer, tmp_path), model_for(tokenizer)
    with torch.no_grad():
        model.head.weight.zero_()
    scores = text_scores(model, data.rows, count_token_bytes(tokenizer), 5, None, nullcontext)
    assert [score.split for score in scores] == ["validation", "test"]
    for score in scores:
        assert score.perplexity == pytest.approx(tokenizer.vocab_size, rel=1e-4)
        assert score.bits_per_byte == pytest.approx(
            score.targets * math.log2(tokenizer.vocab_size) / score.bytes, rel=1e-5
        )
        if kind != "char":  # some characters of the questions are unknown to it
            assert score.bytes == sum(len(f" {pair.answer}".encode()) for pair in data.pairs[score.split])


@pytest.mark.fault("eval-out-of-memory")
def test_scores_are_the_same_where_memory_is_too_little_and_it_is_said_once(byte_data, monkeypatch):
    model, token_bytes = model_for(byte_data.tokenizer), count_token_bytes(byte_data.tokenizer)
    expected = text_scores(model, byte_data.rows, token_bytes, 5, None, nullcontext)
    hidden, failures, said = model.hidden, [], []

    def cramped(inputs, *rest):
        if len(inputs) > 2:
            failures.append(len(inputs))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return hidden(inputs, *rest)

    monkeypatch.setattr(model, "hidden", cramped)
    scores = text_scores(model, byte_data.rows, token_bytes, 5, None, nullcontext, log=said.append)
    assert failures == [5, 3]  # in the first split, and not again in the second
    assert [line for line in said if "memory" in line] == [
        "no memory for 5 sequences at once. From here on 2: the same loss."
    ]
    assert [score.targets for score in scores] == [score.targets for score in expected]
    assert [score.loss for score in scores] == pytest.approx([score.loss for score in expected], rel=1e-6)


def test_rows_and_questions_agree_on_the_expected_answers(byte_data):
    """The loss of packed rows whose answers count is the likelihood of the answers, asked for one by one."""
    model, token_bytes = model_for(byte_data.tokenizer), count_token_bytes(byte_data.tokenizer)
    (validation, _) = text_scores(model, byte_data.rows, token_bytes, 3, None, nullcontext)
    gold = likelihoods(model, byte_data.tokenizer, byte_data.pairs["validation"], token_bytes, 7, byte_data.prompt)
    assert sum(one.n_bytes for one in gold) == validation.bytes
    assert sum(one.nats for one in gold) == pytest.approx(validation.loss * validation.targets, rel=1e-5)


def test_an_answer_longer_than_the_context_counts_the_bytes_that_are_scored(byte_data):
    """A uniform model pays the same bits for a byte, however much of the answer was cut off."""
    model, token_bytes = model_for(byte_data.tokenizer), count_token_bytes(byte_data.tokenizer)
    with torch.no_grad():
        model.head.weight.zero_()
    pairs = [QuestionAnswer("Why?", "x" * n) for n in (CONTEXT // 2, CONTEXT - 2, CONTEXT, 3 * CONTEXT)]
    for gold in likelihoods(model, byte_data.tokenizer, pairs, token_bytes, 3, byte_data.prompt):
        n_scored = gold.n_bytes + 1  # the end token has no byte
        assert n_scored <= CONTEXT
        assert gold.nats == pytest.approx(n_scored * math.log(byte_data.tokenizer.vocab_size), rel=1e-5)


def test_the_likelihood_of_answers_needs_no_more_than_a_few_logits_at_once(byte_data, monkeypatch):
    model, token_bytes = model_for(byte_data.tokenizer), count_token_bytes(byte_data.tokenizer)
    arguments = (model, byte_data.tokenizer, byte_data.pairs["validation"], token_bytes, 7, byte_data.prompt)
    expected, at_once, widen = likelihoods(*arguments), [], loss_module.at_least_fp32

    def seen(logits_nv):
        at_once.append(len(logits_nv))
        return widen(logits_nv)

    monkeypatch.setattr(loss_module, "CACHED_LOGITS", 4 * byte_data.tokenizer.vocab_size)
    monkeypatch.setattr(loss_module, "at_least_fp32", seen)
    found = likelihoods(*arguments)
    assert [one.nats for one in found] == pytest.approx([one.nats for one in expected], rel=1e-6)
    assert max(at_once) == 4
    assert sum(at_once) == sum(one.n_bytes + 1 for one in found)  # bytes are tokens here, and there is the end's


def test_metrics_of_tokens_are_in_the_report_for_each_split(byte_data, monkeypatch):
    monkeypatch.setitem(METRICS._parts, "nats", lambda *rows: F.cross_entropy(*rows, reduction="none"))
    report = measure(model_for(byte_data.tokenizer), byte_data, Plan(metrics=["accuracy", "nats"]), quiet)
    for split in ("validation", "test"):
        assert report.metrics()[f"{split}/nats"] == pytest.approx(report.metrics()[f"{split}/loss"])
        assert 0 <= report.metrics()[f"{split}/accuracy"] <= 1
    assert report.as_values()["text"][0]["metrics"] == report.text[0].metrics


def untimed(figures):
    return {name: value for name, value in figures.items() if not name.endswith("tokens_per_second")}


def test_no_figure_depends_on_the_batch_size(byte_data):
    model = model_for(byte_data.tokenizer)
    plans = [
        Plan(batch_size=n, questions_at_once=m, unanswerable=["Who are you?", "Where?", "When was that?"], worst=3)
        for n, m in ((1, 1), (2, 5), (100, 100))
    ]
    first, *others = [measure(model, byte_data, plan, quiet) for plan in plans]
    assert first.answers and first.detection and len(first.worst) == 3 and first.question_leakage
    assert len(first.answers) == 3 * (1 + 2)  # three splits; all topics, and two of them
    for other in others:
        assert untimed(other.metrics()) == pytest.approx(untimed(first.metrics()), rel=1e-3, nan_ok=True)
        assert other.detection is not None
        assert astuple(other.detection.calibration) == pytest.approx(astuple(first.detection.calibration), rel=1e-3)
        assert [wrong.question for wrong in other.worst] == [wrong.question for wrong in first.worst]


def test_answers_are_those_of_the_chat(byte_data):
    model, tokenizer = model_for(byte_data.tokenizer), byte_data.tokenizer
    questions = [pair.question for pair in byte_data.pairs["test"]]
    said = answer_greedily(model, tokenizer, [Prompt().text(question) for question in questions], 11, 5)
    greedy = SamplingConfig(temperature=0, top_k=None, max_new_tokens=11)
    chatted = [continue_text(model, tokenizer, Prompt().text(question), greedy, seed=0) for question in questions]
    assert [one.text for one in said] == ["".join(pieces).strip() for pieces in chatted]


def test_confidence_is_the_mean_log_probability_of_what_was_said(byte_data):
    model, tokenizer = model_for(byte_data.tokenizer), byte_data.tokenizer
    with torch.no_grad():
        model.head.weight[tokenizer.eos_id] = 0
    (said,) = answer_greedily(model, tokenizer, [Prompt().text("Why?")], 5, 1)
    ids = tokenizer.encode(Prompt().text("Why?"))
    logprobs = []
    for _ in range(5):
        of_next = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        logprobs.append(of_next.max().item())
        ids.append(int(of_next.argmax()))
    assert said.confidence == pytest.approx(sum(logprobs) / 5, rel=1e-4)


def test_the_calibration_looks_at_nothing_but_validation(byte_data):
    """Other test wordings, natural wordings, near misses, and other questions in the half that is kept for the test."""
    model = model_for(byte_data.tokenizer)
    unanswerable = [f"Unknown {n}" for n in range(8)]
    first = measure(model, byte_data, Plan(questions_at_once=1, unanswerable=unanswerable), quiet).detection
    byte_data.pairs["test"] = [QuestionAnswer("Something else?", "yes")]
    changed = [question if n % 2 == 0 else "x" * 50 for n, question in enumerate(unanswerable)]
    natural = {"natural": [QuestionAnswer("and wat else", "no")], "near_misses": ["another thing"]}
    second = measure(model, byte_data, Plan(questions_at_once=1, unanswerable=changed, **natural), quiet).detection
    assert first and second and first.test != second.test and first.natural is None and second.natural is not None
    assert (first.calibration, first.validation) == (second.calibration, second.validation)
    third = measure(
        model, byte_data, Plan(questions_at_once=1, unanswerable=["z" * 60, *unanswerable[1:]]), quiet
    ).detection
    assert third and third.calibration != first.calibration


def test_natural_wordings_are_scored_beside_the_splits(byte_data):
    natural = [QuestionAnswer(f"fact {n}??", f"name {n // 3}", "sea", f"f{n}") for n in range(5)]
    plan = Plan(unanswerable=["Who?", "Where?"], natural=natural, near_misses=["fact 99?", "fact 98?", "fact 97?"])
    report = measure(model_for(byte_data.tokenizer), byte_data, plan, quiet)
    metrics = report.metrics()
    for name in ("exact_match", "lookup/exact_match", "auc", "calibration_error", "abstention/refused"):
        assert f"{name}/natural" in metrics
    assert metrics["lookup/exact_match/natural"] == 1 and "natural" not in byte_data.pairs
    assert report.detection and report.detection.natural
    assert (report.detection.natural.answerable, report.detection.natural.unanswerable) == (5, 3)
    shown = io.StringIO()
    show_report(Console(file=shown, width=80, force_terminal=True, color_system=None), report, "none")
    assert all(len(line) <= 80 for line in shown.getvalue().splitlines())
    for words in ("natural: wordings as people type them", "majority: always", "near misses", "calibration error"):
        assert words in " ".join(shown.getvalue().split())


# --- calibration ----------------------------------------------------------------------------------------------------


def test_a_calibration_finds_the_probabilities_that_the_answers_were_drawn_with():
    chance = random.Random(5)
    scores = [math.log(chance.uniform(0.01, 0.999)) for _ in range(6000)]
    drawn = Calibration(0.8, -1.5)
    right = [chance.random() < drawn.probability(score) for score in scores]
    # Unanswerable ones as the answerable ones that are wrong: the balance of the two changes nothing but the rate.
    fitted = calibrate(scores, right, [])
    assert astuple(fitted) == pytest.approx(astuple(drawn), abs=0.12)
    probabilities = [fitted.probability(score) for score in scores]
    assert sum(probabilities) == pytest.approx(sum(right), rel=0.01)  # the first-order condition of the fit


@pytest.mark.parametrize(
    ("right", "scores", "unanswerable", "known"),
    [
        ([True] * 9, [-0.01] * 9, [-3.0] * 4, (True, False)),  # separated without an error: still finite
        ([False] * 9, [-0.01] * 9, [-3.0] * 4, (False, False)),  # nothing is right
        ([True] * 9, [-3.0] * 9, [-0.01] * 4, None),  # the confidence is upside down: it says nothing
        ([True] * 3, [-math.inf] * 3, [-math.inf] * 3, None),  # empty answers alone
    ],
)
def test_a_calibration_is_finite_and_never_falling(right, scores, unanswerable, known):
    fitted = calibrate(scores, right, unanswerable)
    assert math.isfinite(fitted.intercept) and 0 <= fitted.slope < math.inf
    high, low = fitted.probability(-0.01), fitted.probability(-3.0)
    if known is None:
        assert high == pytest.approx(low, abs=1e-3)
    else:
        assert (high >= 0.5, low >= 0.5) == known


def test_a_text_of_which_nothing_is_held_out_has_no_loss(tmp_path):
    (tmp_path / "a.txt").write_text("To be, or not to be.\n" * 29)
    data = DataConfig({"text": SourceConfig("text", str(tmp_path / "a.txt"))}, validation_fraction=0)
    prepared, logged, shown = prepare_data(data, tiny_tokenizer(), 16, 3), list[str](), io.StringIO()
    report = measure(tiny_model(), prepared, Plan(batch_size=3, compare_text=["text"]), logged.append)
    show_report(Console(file=shown, width=120), report, "none")
    assert (
        shown.getvalue()
        == "Nothing is held out of this text, so there is no loss. To measure another: data.path=FILE\n"
    )
    assert logged == []


def test_nothing_is_detected_without_questions():
    assert detect({"validation": []}, [GreedyAnswer("a", -1.0)] * 3) is None


def test_logits_are_not_kept(byte_data):
    """However many batches there are, at most those of two are alive at any time."""
    model = model_for(byte_data.tokenizer)
    alive: list[weakref.ref] = []
    most = 0

    def count(module, arguments, logits):
        nonlocal most
        alive.append(weakref.ref(logits))
        most = max(most, sum(ref() is not None for ref in alive))

    model.head.register_forward_hook(count)
    measure(model, byte_data, Plan(batch_size=1, questions_at_once=1, unanswerable=["a", "b"]), quiet)
    assert len(alive) > 50 and most <= 2


def test_chosen_questions_are_the_same_each_time():
    pairs = {"train": [QuestionAnswer(str(n), "") for n in range(31)], "test": []}
    chosen = chosen_questions(pairs, 7, seed=3)
    assert chosen == chosen_questions(pairs, 7, seed=3) != chosen_questions(pairs, 7, seed=4)
    assert list(chosen) == ["train"] and len(chosen["train"]) == 7
    assert chosen_questions(pairs, None, seed=3)["train"] == pairs["train"]


def test_questions_without_an_answer_belong_to_the_facts(file, tmp_path):
    own = DataConfig(sources={"qa": SourceConfig("qa", str(file))})
    assert unanswerable_questions(None, own) == []
    assert natural_questions(own, [QuestionAnswer("q", "a", fact="geography-001")]) == ([], [])
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "Who?"}\n{"question": " Where? "}\n')
    assert unanswerable_questions(str(asked), own) == ["Who?", "Where?"]


def test_natural_wordings_ask_for_what_was_taught_alone():
    """With data.max_samples some of the facts are not taught: these are not asked for."""
    shipped = DataConfig(sources={"qa": SourceConfig("qa")})
    taught = [QuestionAnswer("q", "Paris", fact="geography-001"), QuestionAnswer("q", "a", fact="no-such")]
    natural, near_misses = natural_questions(shipped, taught)
    assert {(pair.fact, pair.answer, pair.topic) for pair in natural} == {("geography-001", "Paris", "geography")}
    assert len(near_misses) == 100
    assert natural_questions(shipped, []) == ([], [])


def test_json_holds_no_infinity(byte_data):
    report = measure(model_for(byte_data.tokenizer), byte_data, Plan(questions=2), quiet)
    written = json.loads(json.dumps(report.as_values(checkpoint="here"), allow_nan=False))
    assert written["checkpoint"] == "here" and written["detection"] is None
    assert {answers["questions"] for answers in written["answers"] if not answers["topic"]} == {2}


@torch.no_grad()
def test_bits_per_byte_of_decoding_are_those_of_the_model():
    """In fp32 the same; in int8 others, by the rounding of the weights."""
    model = tiny_model()
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    length = model.config.max_seq_len
    ids = np.random.default_rng(3).integers(0, model.vocab_size - 8, 3 * length + 1)
    rows = PackedSequences(ids, pack_stream(len(ids), length), pad_id=0)
    token_bytes = np.random.default_rng(5).integers(1, 5, model.vocab_size)
    ids_bt = rows.batch([0, 1]).inputs
    logprobs_btv = model.eval()(ids_bt).double().log_softmax(-1)[:, :-1]
    nats = -logprobs_btv.gather(2, ids_bt[:, 1:, None]).sum().item()
    expected = nats / math.log(2) / token_bytes[ids_bt[:, 1:].numpy()].sum()
    assert decoded_bits_per_byte(model, rows, token_bytes, "fp32", n_rows=2) == pytest.approx(expected, rel=1e-5)
    assert decoded_bits_per_byte(model, rows, token_bytes, "fp32", n_rows=3) != pytest.approx(expected, rel=1e-5)
    try:
        rounded = decoded_bits_per_byte(model, rows, token_bytes, "int8", n_rows=2)
    except ConfigError:
        return
    assert 1e-5 * expected < abs(rounded - expected) < 0.1 * expected
