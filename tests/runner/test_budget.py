"""What the data of a run can give: counted from its sequences and questions, in three lines of the start screen."""

from dataclasses import replace

import numpy as np
import pytest

from dtl.data.batches import PackedSequences, TrainingData
from dtl.data.documents import QuestionAnswer
from dtl.data.pack import pack_documents, pack_stream
from dtl.runner.budget import DataBudget


def text(n_tokens: int) -> PackedSequences:
    return PackedSequences(np.zeros(n_tokens, np.uint16), pack_stream(n_tokens, 7), pad_id=0)


def questions(n: int) -> PackedSequences:
    """Documents of five tokens, of which the last two count, in sequences of 13."""
    mask = np.tile([False, False, False, True, True], n)
    packing = pack_documents(np.arange(0, 5 * n + 1, 5), 13, mask)
    return PackedSequences(np.zeros(5 * n, np.uint16), packing, pad_id=0, loss_mask=mask, document_mask=True)


def test_text_is_counted_by_parameters_without_embeddings_and_capacity_by_all():
    train = TrainingData({"text": text(7 * 31 + 1)}, {"text": 1.0})
    budget = DataBudget.of(train, [], 5.0, n_parameters=3000, n_without_embeddings=155)
    assert budget.tokens == 5 * 7 * 31 and budget.tokens_per_parameter == 7.0
    assert budget.with_loss == 1.0 and budget.epochs == 5.0 and budget.capacity_bits == 6000
    assert list(budget.lines()) == [
        "7 tokens a parameter without embeddings; best 20 (Hoffmann 2022)",
        "5 epochs; over 4 help little (Muennighoff 2023); loss on 100 %",
        "room for 6,000 bit of facts (2 a parameter, Allen-Zhu 2024)",
    ]
    assert "up to 4 are good" in list(replace(budget, epochs=4.0).lines())[1]


def test_a_fact_is_seen_in_each_epoch_once_a_wording():
    """Those of a fact share its name; without one, questions that are equal but for case are one fact."""
    named = [QuestionAnswer(f"q{i}", f"é{i % 3}", fact=f"f{i % 3}") for i in range(9)]
    own = [QuestionAnswer("Who?", "a"), QuestionAnswer("who?", "a"), QuestionAnswer("Where?", "bb")]
    train = TrainingData({"qa": questions(9)}, {"qa": 1.0})
    budget = DataBudget.of(train, named, 11.0, 100, 50)
    assert budget.n_facts == 3 and budget.times_each_fact == 33.0
    assert budget.answer_bits == 3 * 3 * 8  # of UTF-8, each answer once
    positions = len(train) * 13
    assert budget.with_loss == train.n_targets / positions < 0.5
    first, last = budget.lines()
    assert first == f"a fact 33 times (11 epochs, 3 wordings); loss on {100 * budget.with_loss:.0f} % of positions"
    assert last == "answers 72 bit, room for 200 bit (2 a parameter, Allen-Zhu 2024)"
    assert DataBudget.of(train, own, 2.0, 100, 50).times_each_fact == 3.0
    (once, *_) = DataBudget.of(train, named[:3], 1.0, 100, 50).lines()
    assert once.startswith("a fact 1 time (1 epoch, 1 wording); ")


def test_a_mixture_has_a_line_of_facts_one_of_text_and_one_of_both():
    train = TrainingData({"qa": questions(9), "text": text(7 * 5 + 1)}, {"qa": 1.0, "text": 1.0})
    pairs = [QuestionAnswer("q", "a")] * 9
    assert len(list(DataBudget.of(train, pairs, 3.0, 100, 50).lines())) == 3


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_the_epochs_of_a_mixture_of_texts_are_those_of_the_one_that_is_repeated_most(weight):
    train = TrainingData({"a": text(7 * 20 + 1), "b": text(7 * 10 + 1)}, {"a": 1.0, "b": weight})
    budget = DataBudget.of(train, [], 2.0, 100, 50)
    assert budget.epochs == max(2.0, 2.0 * train.sequences_per_source["b"] / 10)


def test_the_lines_fit_the_second_column_of_a_terminal():
    largest = DataBudget(99.6, 3e10, 0.094, 999_900_000, 123_400_000, 2997, 999, 99_900)
    texts = replace(largest, n_questions=0, n_facts=0)
    assert max(len(line) for budget in (largest, texts) for line in budget.lines()) <= 69
