"""Questions and answers: how they are written, which ids they get, and which files are understood."""

import json
from datetime import date
from decimal import Decimal

import jinja2
import pyarrow
import pyarrow.parquet
import pytest

from dtl.data import collect
from dtl.data.config import DataConfig, QuestionsConfig, SourceConfig, TokenizerConfig
from dtl.data.documents import Document, QuestionAnswer, document
from dtl.data.encode import encode_documents
from dtl.data.local.readers import Record
from dtl.data.pack import answer_mask
from dtl.data.prepare import prepare_data
from dtl.data.qa import source as qa
from dtl.data.sources import plan_sources
from dtl.data.tokenizers.prompt import Prompt, chat_template
from dtl.data.tokenizers.tokenizer import build_tokenizer
from dtl.errors import ConfigError, DataError

FACT = {
    "id": "geography-001",
    "topic": "geography",
    "answer": "Paris",
    "train": ["What is the capital of France?", "Which city is France's capital?", "name the capital of france"],
    "validation": "France is governed from where?",
    "test": "What city serves as France's capital?",
}


def documents_of(path: object = None, **settings: object) -> tuple[dict[str, list[Document]], list[str]]:
    questions = QuestionsConfig(**settings)  # pyright: ignore
    config = DataConfig(sources={"qa": SourceConfig("qa", None if path is None else str(path))}, qa=questions)
    config.validate()
    (source,) = (plan.source for plan in plan_sources(config, 0))
    documents = {split: list(documents) for split, documents in source.splits().items()}
    return documents, source.notes()


def read(path: object = None, **settings: object) -> tuple[dict[str, list[QuestionAnswer]], list[str]]:
    """The pairs, and the notes but those on what was recognised."""
    documents, notes = documents_of(path, **settings)
    pairs = {split: [document.pair for document in of_split] for split, of_split in documents.items()}
    return pairs, [note for note in notes if ": read as " not in note]  # pyright: ignore


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_pair_is_written_so_that_its_answer_brings_the_space():
    written = document(QuestionAnswer(" What is 2 + 2? ", " 4 "), Prompt())
    assert written.text == "Question: What is 2 + 2?\nAnswer: 4"
    assert written.answer_start is not None
    assert (
        written.text[: written.answer_start] == Prompt().text("What is 2 + 2?") == "Question: What is 2 + 2?\nAnswer:"
    )
    assert written.text[written.answer_start :] == " 4"


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_the_prompt_has_the_same_ids_in_training_and_in_chat(kind):
    # A tokenizer that has seen nothing but these would gladly merge across the border of prompt and answer.
    pairs = [QuestionAnswer(f"Is it {n}?", "...:" * n + "Paris") for n in range(1, 6)]
    texts = [document(pair, Prompt()).text for pair in pairs] * 7
    tokenizer = build_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), lambda: texts)
    encoded = encode_documents([document(pair, Prompt()) for pair in pairs], tokenizer)
    for pair, start, end, n_prompt in zip(
        pairs, encoded.offsets, encoded.offsets[1:], encoded.answer_starts, strict=False
    ):
        ids = encoded.tokens[start:end].tolist()
        assert ids[:n_prompt] == tokenizer.encode(Prompt().text(pair.question))
        assert ids[n_prompt:] == [*tokenizer.encode(f" {pair.answer}"), tokenizer.eos_id]


def test_a_question_is_put_in_lower_case_where_the_setting_says_so(tmp_path):
    """The answer and the context stay as they are, and so does the question that reports show."""
    file = tmp_path / "pairs.jsonl"
    pairs = [{"question": f"Who is Ada {n}?", "answer": f"Ada {n}", "context": "Ada."} for n in range(23)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    sources = {"qa": SourceConfig("qa", str(file))}
    config = DataConfig(sources=sources, lower_case_questions=True, cache_dir=str(tmp_path))
    data = prepare_data(config, TokenizerConfig("byte"), 97, seed=0)
    assert data.prompt.text("Who is Ada 3?", "Ada.") == "Context: Ada.\nQuestion: who is ada 3?\nAnswer:"
    text = data.tokenizer.decode(data.rows["qa"]["train"].batch([0]).inputs[0].tolist())
    assert "Context: Ada.\nQuestion: who is ada" in text and "Answer: Ada" in text
    assert {pair.question[:10] for of_split in data.pairs.values() for pair in of_split} == {"Who is Ada"}


def test_an_end_token_in_a_question_is_text():
    tokenizer = build_tokenizer(TokenizerConfig(kind="byte"), lambda: [])
    encoded = encode_documents([document(QuestionAnswer("<|endoftext|>?", "<|endoftext|>"), Prompt())], tokenizer)
    assert encoded.tokens.tolist().count(tokenizer.eos_id) == 1


def test_the_shipped_facts_split_by_wording(monkeypatch):
    monkeypatch.setattr(qa, "shipped_facts", lambda: [Record("geography.jsonl:1", FACT)])
    pairs, notes = read()
    assert {split: [pair.question for pair in of_split] for split, of_split in pairs.items()} == {
        "train": FACT["train"],
        "validation": [FACT["validation"]],
        "test": [FACT["test"]],
    }
    assert {(pair.answer, pair.topic, pair.fact) for of_split in pairs.values() for pair in of_split} == {
        ("Paris", "geography", "geography-001")
    }
    assert notes == []


def test_the_facts_in_the_package_are_found():
    records = qa.shipped_facts()
    assert len(records) >= 100
    assert all({"answer", "train", "validation", "test"} <= set(record.fields) for record in records)


def test_facts_of_ones_own_are_understood_too(tmp_path):
    pairs, _ = read(write(tmp_path / "facts.jsonl", FACT))
    assert [len(pairs[split]) for split in ("train", "validation", "test")] == [3, 1, 1]


@pytest.mark.parametrize(
    "names",
    [
        ("question", "answer"),
        ("instruction", "output"),
        ("prompt", "completion"),
        ("prompt", "response"),
        ("input", "output"),
        (" Question", "ANSWER "),
        ("question", "answers"),
    ],
)
def test_common_names_of_the_fields(tmp_path, names):
    question, answer = names
    pairs, _ = read(write(tmp_path / "a.jsonl", {"id": 3, question: "Why?", answer: 42}))
    assert pairs == {"train": [QuestionAnswer("Why?", "42", fact="3")]}


def test_files_named_by_split(tmp_path):
    write(tmp_path / "train.jsonl", {"question": "a?", "answer": "b"})
    write(tmp_path / "test.jsonl", {"question": "c?", "answer": "d"})
    pairs, _ = read(tmp_path)
    assert pairs == {"train": [QuestionAnswer("a?", "b")], "test": [QuestionAnswer("c?", "d")]}


@pytest.mark.counted("broken inputs of data, read right or told")
def test_empty_pairs_are_skipped_and_told(tmp_path):
    records = [{"question": "a?", "answer": None}, {"question": " ", "answer": "b"}, {"question": "c?", "answer": "d"}]
    pairs, notes = read(write(tmp_path / "a.jsonl", *records))
    assert pairs == {"train": [QuestionAnswer("c?", "d")]}
    assert [note.partition("a.jsonl: ")[2] for note in notes] == [
        "1 x an empty answer, left out: line 1.",
        "1 x an empty question, left out: line 2.",
    ]


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"query": "a?", "answer": "b"}, ["in 1 record. line 1:", "question", "query, answer"]),
        ({"question": "a?", "reply": "b"}, ["in 1 record. line 1:", "answer", "question, reply"]),
        ({"question": "a?", "answer": [["b"]]}, ["a.jsonl:1", "list"]),
        ({"question": "a?", "answer": {"b": 1}}, ["a.jsonl:1", "dict"]),
        ({"question": True, "answer": "b"}, ["a.jsonl:1", "bool"]),
    ],
)
def test_what_is_no_pair_is_named(tmp_path, record, words):
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "a.jsonl", record))
    for word in words:
        assert word in str(caught.value)


def only_pair(path: object) -> QuestionAnswer:
    pairs, notes = read(path)
    assert notes == []
    (pair,) = pairs["train"]
    return pair


def test_a_context_stands_before_the_question():
    asked = document(QuestionAnswer("Where?", "Here", context=" It is here. "), Prompt())
    assert asked.text == "Context: It is here.\nQuestion: Where?\nAnswer: Here"
    assert asked.text[: asked.answer_start] == Prompt().text("Where?", "It is here.")
    assert Prompt().text("Where?", " ") == Prompt().text("Where?") == "Question: Where?\nAnswer:"


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    ("record", "pair"),
    [
        (
            {"instruction": "Translate.", "input": "chat", "output": "cat"},
            QuestionAnswer("Translate.", "cat", context="chat"),
        ),
        ({"instruction": "Say yes.", "input": "", "output": "yes"}, QuestionAnswer("Say yes.", "yes")),
        (
            {"instruction": "Who?", "context": "Ada did.", "response": "Ada", "category": "closed"},
            QuestionAnswer("Who?", "Ada", topic="closed", context="Ada did."),
        ),
        (
            {"question": "Who?", "answers": ["Ada", " Ada L.", "Ada", ""]},
            QuestionAnswer("Who?", "Ada", accepted=("Ada", "Ada L.")),
        ),
        (
            {"question": "Who?", "answer": "A. L.", "answers": ["Ada", "A. L."]},
            QuestionAnswer("Who?", "A. L.", accepted=("A. L.", "Ada")),
        ),
        (
            {
                "id": "x1",
                "question": "Who?",
                "context": "c",
                "answers": {"text": ["Ada", "A."], "answer_start": [0, 5]},
            },
            QuestionAnswer("Who?", "Ada", fact="x1", context="c", accepted=("Ada", "A.")),
        ),
        ({"question": "Who?", "answers": [{"text": "Ada", "answer_start": 3}]}, QuestionAnswer("Who?", "Ada")),
    ],
)
def test_shapes_that_people_keep_pairs_in(tmp_path, record, pair):
    assert only_pair(write(tmp_path / "a.jsonl", record)) == pair
    (tmp_path / "a.json").write_text(json.dumps([record], indent=1))
    assert only_pair(tmp_path / "a.json") == pair
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "a.parquet")
    assert only_pair(tmp_path / "a.parquet") == pair


def test_a_table_with_headers_as_people_type_them(tmp_path):
    (tmp_path / "a.csv").write_text('Question ;ANSWER;Context\n"Why; not?";Because;\nWho?;Ada;It was Ada.\n')
    pairs, _ = read(tmp_path / "a.csv")
    assert pairs == {
        "train": [QuestionAnswer("Why; not?", "Because"), QuestionAnswer("Who?", "Ada", context="It was Ada.")]
    }


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Bridges",
            "paragraphs": [
                {
                    "context": "The bridge opened in 1907.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "When did it open?",
                            "answers": [{"text": "1907", "answer_start": 21}, {"text": "in 1907", "answer_start": 18}],
                            "is_impossible": False,
                        },
                        {"id": "q2", "question": "Who built it?", "answers": [], "is_impossible": True},
                    ],
                },
                {"context": "It is red.", "qas": [{"id": "q3", "question": "Colour?", "answers": [{"text": "red"}]}]},
            ],
        }
    ],
}


@pytest.mark.parametrize("indent", [None, 2])
def test_squad_as_it_is_published(tmp_path, indent):
    (tmp_path / "train-v2.0.json").write_text(json.dumps(SQUAD, indent=indent))
    pairs, (note,) = read(tmp_path / "train-v2.0.json")
    first = QuestionAnswer(
        "When did it open?", "1907", fact="q1", context="The bridge opened in 1907.", accepted=("1907", "in 1907")
    )
    assert pairs == {"train": [first, QuestionAnswer("Colour?", "red", fact="q3", context="It is red.")]}
    assert "1 x marked as unanswerable" in note and "data[0] paragraphs[0] qas[1]" in note


def test_an_empty_list_of_answers_is_how_the_hub_says_unanswerable(tmp_path):
    records = [
        {"question": "a?", "context": "c", "answers": {"text": [], "answer_start": []}},
        {"question": "b?", "context": "c", "answers": {"text": ["d"], "answer_start": [0]}},
    ]
    pairs, (note,) = read(write(tmp_path / "a.jsonl", *records))
    assert [pair.question for pair in pairs["train"]] == ["b?"] and "1 x marked as unanswerable" in note


@pytest.mark.counted("broken inputs of data, read right or told")
def test_records_without_a_pair_are_counted_with_their_places(tmp_path):
    good, bad = {"question": "a?", "answer": "b"}, {"Frage": "c?", "answer": "d"}
    pairs, notes = read(write(tmp_path / "a.jsonl", bad, good, bad, bad, bad, bad))
    assert len(pairs["train"]) == 1
    assert "5 x no field for a question" in notes[0] and notes[0].endswith("and 2 more.")
    assert "left out: line 1, line 3, line 4 and 2 more" in notes[0]
    assert "a.jsonl: line 1: no field 'question', 'questions', 'instruction', '" in notes[1]
    assert "frage, answer" in notes[1]


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"question": "", "answer": "x"}\n{"question": "a?", "answer": " "}\n{"question": "", "answer": "y"}\n',
            "no question with an answer in 3 records. 2 x an empty question, left out: line 1, line 3; "
            "1 x an empty answer, left out: line 2.",
        ),
        (
            "a.csv",
            "Which sea?~The north one.\nWhich hill?~None.\n",
            "For columns that ~ separates, write before the first line the two lines sep=~ and question~answer",
        ),
        ("a.csv", "question~answer\na?~b\n", "write before the first line the line sep=~"),
        ("a.tsv", "Which sea\nWhich hill\n", "one of , ; | and tab, and its first line names the columns"),
        ("a.jsonl", '["a?", "b"]\n', 'is not a JSON object, such as {"question": "...", "answer": "..."}.'),
        ("a.jsonl", "a? b\n{}\n", 'one JSON object, such as {"question": "...", "answer": "..."}; '),
        ("a.json", "[{]", 'JSON objects, such as {"question": "...", "answer": "..."}; '),
        ("a.txt", "A text.", "in 1 record. the text: no field 'question', '"),
        ("a.jsonl", '{"n": 3}\n', 'a question and an answer: {"question": "...", "answer": "..."}.'),
    ],
)
def test_a_file_without_any_pair_is_told_once_and_with_the_form_it_needs(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    told = str(caught.value)
    assert message in told and '{"text"' not in told and told.count(str(tmp_path)) == 1


def test_a_table_with_a_delimiter_of_its_own(tmp_path):
    (tmp_path / "a.csv").write_text("sep=~\nquestion~answer\nWhich sea?~The north one.\n")
    pairs, _ = read(tmp_path / "a.csv")
    assert [(pair.question, pair.answer) for pair in pairs["train"]] == [("Which sea?", "The north one.")]


@pytest.mark.counted("broken inputs of data, read right or told")
def test_named_files_without_any_pair_are_refused_while_they_are_read(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        write(tmp_path / name, {"a": "b"})
    with pytest.raises(DataError, match=r"test.jsonl:1: no field .*Found the fields: a\."):
        read(tmp_path)


def test_a_source_that_is_read_twice_says_the_same(tmp_path):
    write(tmp_path / "a.jsonl", {"question": "a?", "answer": ""}, {"question": "c?", "answer": "d"})
    config = DataConfig(sources={"qa": SourceConfig("qa", str(tmp_path))})
    (source,) = (plan.source for plan in plan_sources(config, 0))
    told = []
    for _ in range(2):
        assert len(list(source.splits()["train"])) == 1
        told.append(source.notes())
    assert told[0] == told[1]


# What it is recognised as, and columns of other names.


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"question": "a?", "answer": "b"}, "question 'question', answer 'answer' (3 records)."),
        (
            {"instruction": "Add.", "input": "1 2", "output": 3},
            "question 'instruction', context 'input', answer 'output' (3 records).",
        ),
        (FACT, "question 'train validation test', answer 'answer' (3 records)."),
    ],
)
def test_what_was_recognised_is_reported(tmp_path, record, words):
    _, (note,) = documents_of(write(tmp_path / "a.jsonl", record, record, record))
    assert note.startswith("data.sources.qa.path=") or note.startswith("data.qa.path=")
    assert note.endswith(f"a.jsonl: read as {words}")


@pytest.mark.parametrize(
    ("answer", "text"),
    [(True, "true"), (False, "false"), (0, "0"), (1907, "1907"), (-3.5, "-3.5"), (["no", False], "no")],
)
def test_answers_that_are_no_text_are_written_as_json_does(tmp_path, answer, text):
    pair = only_pair(write(tmp_path / "a.jsonl", {"question": "a?", "answer": answer}))
    assert pair.answer == text


def test_answers_of_tables_are_taken_as_they_are_written(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\na?,TRUE\nb?,0\nc?,1.50\n")
    pairs, notes = read(tmp_path / "a.csv")
    assert [pair.answer for pair in pairs["train"]] == ["TRUE", "0", "1.50"] and not notes
    rows = [{"question": "a?", "answer": Decimal("1.50")}, {"question": "b?", "answer": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    pairs, (note,) = read(tmp_path / "a.parquet")
    assert [pair.answer for pair in pairs["train"]] == ["1.50"] and "1 x an empty answer" in note
    days = [{"question": "a?", "answer": date(1907, 3, 1)}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(days), tmp_path / "b.parquet")
    assert only_pair(tmp_path / "b.parquet").answer == "1907-03-01"
    (tmp_path / "c.jsonl").write_text('{"question": "a?", "answer": NaN}\n{"question": "b?", "answer": 1}\n')
    pairs, (note,) = read(tmp_path / "c.jsonl")
    assert [pair.answer for pair in pairs["train"]] == ["1"] and "1 x an empty answer" in note


def test_columns_of_other_names_are_read_by_a_map(tmp_path):
    record = {"Nr": 7, "Frage ": "a?", "Antwort": "b", "question": "no", "Thema": "c", "Text": "d"}
    columns = {"question": "frage", "answer": "Antwort", "topic": "Thema", "id": "nr", "context": "text"}
    pairs, _ = read(write(tmp_path / "a.jsonl", record), columns=columns)
    assert pairs == {"train": [QuestionAnswer("a?", "b", "c", "7", "d")]}


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    ("record", "advice"),
    [
        ({"Nr": 1, "Frage": "Wer?", "Antwort": "Ada"}, "'data.qa.columns={question: frage, answer: antwort}'"),
        ({"reply": "Ada", "My question": "Who?"}, "'data.qa.columns={question: \"my question\", answer: reply}'"),
        ({"q": "Say it", "a": 3, "n": 1}, "'data.qa.columns={question: q, answer: a}'"),
        ({"Who is it?": "Who was it?", "Ada": "Bob"}, "The first line must name the columns"),
        ({"text": "Only a text."}, "Plain text is read with data=text data.path=FILE."),
        ({"body": [1], "n": 3}, 'A record has a question and an answer: {"question": "...", "answer": "..."}.'),
    ],
)
def test_other_names_are_answered_with_the_setting_to_paste(tmp_path, record, advice):
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "a.jsonl", record))
    assert advice in str(caught.value).partition("\n")[0]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"questoin": "q", "answer": "a"}, ["question, answer, context", "Did you mean 'question'?"]),
        ({"question": "q"}, ["name both question and answer"]),
        ({"question": "q", "answer": " "}, ["gives the names of your columns"]),
    ],
)
def test_a_wrong_map_is_rejected(columns, words):
    with pytest.raises(ConfigError, match=r"^data\.qa\.columns=\{q") as caught:
        DataConfig(sources={"qa": SourceConfig("qa")}, qa=QuestionsConfig("a.csv", columns=columns)).validate()
    assert all(word in str(caught.value) for word in words)
    with pytest.raises(ConfigError, match=r"is for questions of your own: data\.qa\.path=FILE"):
        columns = {"question": "q", "answer": "a"}
        DataConfig(sources={"qa": SourceConfig("qa")}, qa=QuestionsConfig(columns=columns)).validate()


# Chats.

USER, REPLY = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}
SHARED = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "system", "content": "Be kind."}, USER, REPLY]},
        {"messages": [{"role": "developer", "content": "Be kind."}, USER, REPLY], "id": None},
        {"conversations": SHARED},
        {"Conversation": [{"from": "system", "value": "x"}, *SHARED]},
        {"messages": json.dumps([USER, REPLY])},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "image"}]}, REPLY]},
        {"prompt": [USER], "completion": [REPLY]},
        {"prompt": [USER], "completion": "Ada."},
        {"chosen": [USER, REPLY], "rejected": [USER]},
        {"dialog": ["Who?", "Ada."]},
        [USER, REPLY],
        {
            "text": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
            "<|im_start|>assistant\nAda.<|im_end|>"
        },
        {"text": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nWho? [/INST] Ada. </s>"},
        {"text": "<bos><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\nAda.<end_of_turn>\n"},
        {
            "text": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nAda.<|eot_id|>"
        },
        {"text": "<|system|>\nBe kind.<|end|>\n<|user|>\nWho?<|end|>\n<|assistant|>\nAda.<|end|>"},
        {"text": "<|prompter|>Who?<|endoftext|><|assistant|>Ada.<|endoftext|>"},
        {"text": "### Instruction:\nWho?\n\n### Response:\nAda."},
        {"text": "### Human: Who?### Assistant: Ada."},
        {"text": "A chat. USER: Who? ASSISTANT: Ada.</s>"},
        {"text": "<|im_start|>user<|im_sep|>Who?<|im_end|><|im_start|>assistant<|im_sep|>Ada.<|im_end|>"},
        {
            "text": "<|start_of_role|>user<|end_of_role|>Who?<|end_of_text|>\n"
            "<|start_of_role|>assistant<|end_of_role|>Ada."
        },
        {
            "text": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who?<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Ada.<|END_OF_TURN_TOKEN|>"
        },
        {"text": "<｜begin▁of▁sentence｜><｜User｜>Who?<｜Assistant｜>Ada.<｜end▁of▁sentence｜>"},  # noqa: RUF001
        {"chosen": "\n\nHuman: Who?\n\nAssistant: Ada.", "rejected": "\n\nHuman: Who?\n\nAssistant: Bob."},
    ],
)
def test_a_chat_of_one_turn_is_a_pair(tmp_path, record):
    pairs, _ = read(write(tmp_path / "a.jsonl", record))
    assert pairs == {"train": [QuestionAnswer("Who?", "Ada.")]}


def test_a_list_of_questions_has_one_answer(tmp_path):
    write(tmp_path / "a.jsonl", {"questions": ["Who?", "By whom?"], "answer": "Ada"})
    pairs, _ = read(tmp_path / "a.jsonl")
    assert pairs == {"train": [QuestionAnswer("Who?", "Ada"), QuestionAnswer("By whom?", "Ada")]}
    write(tmp_path / "b.jsonl", {"questions": ["Who?", "When?"], "answers": ["Ada", "1843"]})
    with pytest.raises(DataError, match=r"b\.jsonl:1: text is needed"):
        read(tmp_path / "b.jsonl")


def test_messages_in_a_column_of_another_name(tmp_path):
    write(tmp_path / "a.jsonl", {"talk": [USER, REPLY]})
    pairs, _ = read(tmp_path / "a.jsonl", columns={"messages": "talk"})
    assert pairs == {"train": [QuestionAnswer("Who?", "Ada.")]}


def test_a_chat_has_the_id_of_its_own_column(tmp_path):
    write(tmp_path / "a.jsonl", {"talk": [USER, REPLY], "Nr": 7, "id": "not this"})
    pairs, _ = read(tmp_path / "a.jsonl", columns={"messages": "talk", "id": "nr"})
    assert pairs == {"train": [QuestionAnswer("Who?", "Ada.", fact="7")]}


def test_a_text_may_have_several_chats(tmp_path):
    task = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    blocks = [f"{task}\n\n### Instruction:\nWhat is {n}?\n\n### Response:\nIt is {n}.\n\n" for n in range(3)]
    (tmp_path / "a.txt").write_text("".join(blocks))
    pairs, _ = read(tmp_path / "a.txt")
    assert pairs == {"train": [QuestionAnswer(f"What is {n}?", f"It is {n}.") for n in range(3)]}


@pytest.mark.counted("broken inputs of data, read right or told")
def test_several_turns_are_a_document_in_the_chat_template(tmp_path):
    """Its tokens are those of the template, and each answer with its end token has a loss, nothing else."""
    said = [("assistant", "Hello!"), ("tool", "x"), ("user", "Who?"), ("assistant", "Ada."), ("user", "And")]
    said += [("user", "then?"), ("assistant", "Bob."), ("user", "Bye")]
    chat = [{"role": role, "content": text} for role, text in said]
    file = write(tmp_path / "a.jsonl", {"messages": chat}, {"messages": [USER, REPLY]})
    documents, (note, left_out) = documents_of(file)
    dialogue, single = documents["train"]
    assert single.pair == dialogue.pair == QuestionAnswer("Who?", "Ada.") and not single.turns
    assert "1 with one turn as pairs, 1 with several turns as documents in the chat template" in note
    assert all(why in left_out for why in ("1 x role tool", "1 x role assistant before any", "1 x a question without"))

    tokenizer = build_tokenizer(TokenizerConfig("byte"), lambda: ())
    encoded = encode_documents([dialogue, single, Document("plain")], tokenizer)
    assert encoded.n_documents == 3 and len(encoded.turns) == 5
    messages = [USER, REPLY, {"role": "user", "content": "And\nthen?"}, chat[-2]]
    end = tokenizer.backend.id_to_token(tokenizer.eos_id)
    written = jinja2.Environment().from_string(chat_template(Prompt())).render(messages=messages, eos_token=end)
    first = encoded.tokens[: encoded.offsets[1]].tolist()
    assert tokenizer.backend.decode(first, skip_special_tokens=False) == written
    mask = answer_mask(encoded)
    assert mask is not None
    with_loss = [token for token, has_loss in zip(first, mask[: len(first)], strict=True) if has_loss]
    assert tokenizer.backend.decode(with_loss, skip_special_tokens=False) == f" Ada.{end} Bob.{end}"


def test_a_dialogue_is_kept_in_the_cache_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "SMALL_BYTES", 0)
    asked = [{"role": "user", "content": f"Who is {n}?"} for n in range(40)]
    chats = [{"messages": [question, REPLY] * (1 + n % 3)} for n, question in enumerate(asked)]
    sources = {"qa": SourceConfig("qa", str(write(tmp_path / "a.jsonl", *chats)))}
    config = DataConfig(sources=sources, cache_dir=str(tmp_path / "cache"), loss_on="answer", validation_fraction=0.2)
    made, found = (prepare_data(config, TokenizerConfig("byte"), 512, 0) for _ in range(2))
    assert list((tmp_path / "cache").glob("*/tokens-*"))
    monkeypatch.setattr(collect, "SMALL_BYTES", 2**20)
    in_memory = prepare_data(config, TokenizerConfig("byte"), 512, 0)
    assert made.fingerprint == found.fingerprint == in_memory.fingerprint
    assert found.decode(found.train[0]) == in_memory.decode(in_memory.train[0])


@pytest.mark.counted("broken inputs of data, read right or told")
@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        (["red", "blue"], 1, "blue"),  # MMLU
        (["red", "blue"], "B", "blue"),  # RACE
        ({"label": ["1", "2"], "text": ["red", "blue"]}, "2", "blue"),  # ARC
        ([{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}], "B", "blue"),  # OpenBookQA
        ({"A": "red", "B": "blue"}, "B", "blue"),  # MedQA
        (["red", "blue"], "blue", "blue"),
        (["3", "1"], 1, "1"),
        (["red", "blue"], "1", "1"),  # a text is a number only where the data says so
        (["red", "blue"], "green", "green"),
    ],
)
def test_choices_are_not_dropped_without_a_word(tmp_path, choices, answer, expected):
    file = write(tmp_path / "a.jsonl", {"question": "Which is it?", "options": choices, "answer": answer})
    pairs, notes = read(file)
    assert [pair.answer for pair in pairs["train"]] == [expected]
    assert any("1 record with choices, which are not in the questions" in note for note in notes)
    assert any("read as its text" in note for note in notes) == (str(answer) != expected)
    pairs, notes = read(file, columns={"choices": "options"})
    (pair,) = pairs["train"]
    texts = ["3", "1"] if "3" in choices else ["red", "blue"]
    assert pair.question == f"Which is it? Choices: {'; '.join(texts)}."
    assert not any("with choices" in note for note in notes)
