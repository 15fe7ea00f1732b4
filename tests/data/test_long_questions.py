"""Questions longer than a sequence: question and answer are kept, the context is cut, what cannot fit is counted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_examples import tiny_model, tiny_tokenizer

from dtl.data.config import DataConfig, SourceConfig
from dtl.data.documents import QuestionAnswer
from dtl.data.fit import cut_context
from dtl.data.prepare import PreparedData, prepare_data
from dtl.data.tokenizers.prompt import Prompt
from dtl.errors import DataError
from dtl.generation.conversation import prompts_of

SEQ_LEN = 131
TOKENIZER = tiny_tokenizer()  # a token a byte
WORDS = [f"w{n:03}" for n in range(200)]


def context(n: int, answer: str) -> str:
    words = list(WORDS)
    words[n * 31 % 197] = answer
    words[n * 31 % 197 + 2] = f"subject{n}"
    return " ".join(words)


def pair(n: int, answer: str = "") -> QuestionAnswer:
    answer = answer or f"answer{n}"
    return QuestionAnswer(f"Who is subject{n}?", answer, context=context(n, answer))


def prepared(folder: Path, records: list[dict], **settings) -> PreparedData:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = DataConfig(
        sources={"qa": SourceConfig("qa", str(file))},
        loss_on="answer",
        document_mask=True,
        cache_dir=str(folder / "cache"),
        **settings,
    )
    return prepare_data(config, TOKENIZER, SEQ_LEN, 0)


def records(n: int, **changes) -> list[dict]:
    pairs = [pair(i) for i in range(n)]
    return [{"question": p.question, "answer": p.answer, "context": p.context, **changes} for p in pairs]


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("small_bytes", [2**20, 0])
def test_a_long_context_is_cut_around_the_answer_and_that_is_said(tmp_path, monkeypatch, small_bytes):
    """It was cut at multiples of the length: most answers were learnt without their question."""
    monkeypatch.setattr("dtl.data.collect.SMALL_BYTES", small_bytes)
    for _ in range(2):  # the second time out of the cache
        data = prepared(tmp_path, records(23), validation_fraction=0.0, test_fraction=0.0)
        texts = data.samples("qa", 99, 10_000)
        assert len(texts) == len(data.pairs["train"]) == 23
        for text in texts:
            begin, asked = text.split("\nQuestion: Who is subject")
            name = asked.partition("?")[0]
            assert begin.startswith("Context: ") and f"answer{name}" in begin and f" answer{name}" in asked
        assert any("23 of 23 questions are longer than a sequence of 131 tokens" in note for note in data.notes)
        assert all(len(TOKENIZER.encode(text)) > SEQ_LEN - 30 for text in texts)  # no more is cut than needed
        places = {data.pairs["train"][n].context.find("answer") > 40 for n in range(23)}
        assert places == {False, True}  # a fixed place in the window would be a hint


def test_the_part_shown_of_a_held_out_context_does_not_depend_on_the_answer():
    for n in range(19):
        asked = pair(n)
        window = cut_context(asked, Prompt(), TOKENIZER, 100, by_answer=False)
        assert window and window == cut_context(replace(asked, answer="w007"), Prompt(), TOKENIZER, 100, False)
        assert f"subject{n}" in window and len(Prompt().text(asked.question, window)) <= 100
        by_answer = cut_context(replace(asked, answer="w007"), Prompt(), TOKENIZER, 100, True)
        assert by_answer and "w007" in by_answer


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize("text", ["x" * 997, "天" * 331, "  \n ".join("ab" * 40 for _ in range(20)), "a b", " "])
@pytest.mark.parametrize("max_tokens", [20, 47, 97, 211])
def test_any_context_fits_or_is_said_not_to(text, max_tokens):
    for by_answer in (False, True):
        window = cut_context(QuestionAnswer("b?", "a b", context=text), Prompt(), TOKENIZER, max_tokens, by_answer)
        if window is not None:
            assert window in text and len(TOKENIZER.encode(Prompt().text("b?", window))) <= max_tokens
        else:
            assert max_tokens < 47 or not text.strip()


@pytest.mark.counted("broken inputs of data, read right or told")
def test_what_cannot_fit_is_left_out_and_counted(tmp_path):
    long = {"question": "Why " * 40 + "?", "answer": "308"}
    no_room = {"question": "Who?", "answer": "z " * 60 + "z", "context": WORDS[0] * 50}
    story = {"question": "Tell.", "answer": "Once upon a time. " * 20}
    data = prepared(tmp_path, [*records(3), long, no_room, story], validation_fraction=0.0, test_fraction=0.0)
    assert {p.question for p in data.pairs["train"]} == {"Tell.", *(pair(n).question for n in range(3))}
    (left_out,) = (note for note in data.notes if "left out" in note)
    assert "2 questions left out: longer than a sequence of 131 tokens, first 'Why Why" in left_out
    assert "data.seq_len=" in left_out
    assert any("1 answer longer than a sequence" in note for note in data.notes)
    with pytest.raises(DataError, match="1 question left out"):
        prepared(tmp_path, [long], validation_fraction=0.0, test_fraction=0.0)


@pytest.mark.counted("broken inputs of data, read right or told")
def test_a_long_dialogue_is_split_between_its_turns(tmp_path):
    turns = [(f"Question number {n}?", f"It is {n}.") for n in range(9)]
    messages = [
        {"role": role, "content": t} for turn in turns for role, t in zip(("user", "assistant"), turn, strict=True)
    ]
    data = prepared(tmp_path, [{"messages": messages}], validation_fraction=0.0, test_fraction=0.0)
    text = "".join(data.samples("qa", 99, 10_000))
    assert all(f"Question: {question}\nAnswer:" in text and answer in text for question, answer in turns)
    assert [p.question for p in data.pairs["train"]] == ["Question number 0?"]
    assert any("1 dialogue longer than a sequence of 131 tokens: split between turns" in note for note in data.notes)


def test_nothing_is_said_of_questions_that_fit(tmp_path):
    data = prepared(tmp_path, records(5, context="Short."), validation_fraction=0.0, test_fraction=0.0)
    assert not any("longer than" in note or "left out" in note for note in data.notes)


@pytest.mark.counted("broken inputs of data, read right or told")
def test_a_question_to_a_model_keeps_its_form_where_the_context_is_too_long_for_it():
    model = tiny_model(vocab_size=258, max_seq_len=97)
    (prompt,) = prompts_of(model, TOKENIZER, Prompt(), [pair(7)], 17)
    assert len(prompt) <= 80 and prompt.startswith("Context: ") and "subject7" in prompt.split("\n")[0]
    assert prompt.endswith(f"\nQuestion: {pair(7).question}\nAnswer:")
