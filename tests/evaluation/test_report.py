"""Laws of the whole report: comparable across tokenizers, the same for any batch size, flat in memory."""

import json
import math
import weakref
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from checkpoint_examples import tiny_model, tiny_tokenizer

from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import QuestionAnswer
from dtl.data.prepare import PreparedData, prepare_data
from dtl.data.tokenizers.prompt import Prompt
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.evaluation.answers import likelihoods
from dtl.evaluation.detection import detect, unanswerable_questions
from dtl.evaluation.measure import Plan, chosen_questions, measure
from dtl.evaluation.text import count_token_bytes, text_scores
from dtl.generation.config import SamplingConfig
from dtl.generation.conversation import GreedyAnswer, answer_greedily, continue_text
from dtl.registry import METRICS

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


def test_metrics_of_tokens_are_in_the_report_for_each_split(byte_data, monkeypatch):
    monkeypatch.setitem(METRICS._parts, "nats", lambda *rows: F.cross_entropy(*rows, reduction="none"))
    report = measure(model_for(byte_data.tokenizer), byte_data, Plan(metrics=["accuracy", "nats"]), quiet)
    for split in ("validation", "test"):
        assert report.metrics()[f"{split}/nats"] == pytest.approx(report.metrics()[f"{split}/loss"])
        assert 0 <= report.metrics()[f"{split}/accuracy"] <= 1
    assert json.loads(report.to_json())["text"][0]["metrics"] == report.text[0].metrics


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
        assert untimed(other.metrics()) == pytest.approx(untimed(first.metrics()), rel=1e-4)
        assert other.detection is not None
        assert other.detection.threshold == pytest.approx(first.detection.threshold, rel=1e-4)
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


def test_the_threshold_never_looks_at_the_test(byte_data):
    """Other test wordings, and other questions in the half that is kept for the test: the same threshold."""
    model = model_for(byte_data.tokenizer)
    unanswerable = [f"Unknown {n}" for n in range(8)]
    first = measure(model, byte_data, Plan(questions_at_once=1, unanswerable=unanswerable), quiet).detection
    byte_data.pairs["test"] = [QuestionAnswer("Something else?", "yes")]
    changed = [question if n % 2 == 0 else "x" * 50 for n, question in enumerate(unanswerable)]
    second = measure(model, byte_data, Plan(questions_at_once=1, unanswerable=changed), quiet).detection
    assert first and second and first.test != second.test
    assert (first.threshold, first.validation) == (second.threshold, second.validation)
    third = measure(
        model, byte_data, Plan(questions_at_once=1, unanswerable=["z" * 60, *unanswerable[1:]]), quiet
    ).detection
    assert third and third.threshold != first.threshold


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
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "Who?"}\n{"question": " Where? "}\n')
    assert unanswerable_questions(str(asked), own) == ["Who?", "Where?"]


def test_json_holds_no_infinity(byte_data):
    report = measure(model_for(byte_data.tokenizer), byte_data, Plan(questions=2), quiet)
    written = json.loads(report.to_json(checkpoint="here"), parse_constant=lambda name: pytest.fail(name))
    assert written["checkpoint"] == "here" and written["detection"] is None
    assert {answers["questions"] for answers in written["answers"] if not answers["topic"]} == {2}
