"""The prompt of questions: the text that a template gives, templates that are rejected, and that others ask alike."""

import json
import string

import jinja2
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dtl.data.config import DataConfig, QuestionsConfig, RecommendedConfig, SourceConfig, prompt_problem
from dtl.data.documents import QuestionAnswer, document
from dtl.data.tokenizers.prompt import (
    Prompt,
    chat_template,
    has_learnt_plain_text,
    has_learnt_questions_alone,
    prompt_entry,
    read_prompt,
    was_trained_on_questions_alone,
    with_prompt,
)
from dtl.errors import CheckpointError, ConfigError

# Text that a careless replacement, str.format or Jinja would read as code.
LETTERS = st.sampled_from(string.printable + "é🙂\u2028\x85{}%#'\"\\$") | st.characters(exclude_categories=["Cs"])
TEXTS = st.text(LETTERS)
HOSTILE = st.sampled_from(["{context}", "{question}", "{{ 7 * 7 }}", "{% if x %}", "{0.__class__}", "\\n", "%s", "#}"])
WORDS = st.lists(TEXTS | HOSTILE, max_size=4).map("".join)


@st.composite
def templates(draw: st.DrawFn) -> str:
    """Valid templates of any text, with or without a context before or after the question."""
    before, after, around = draw(WORDS), draw(WORDS), draw(WORDS)
    lines = [f"{before}{{question}}{after}"]
    if draw(st.booleans()):
        lines.insert(draw(st.integers(0, 1)), f"{around}{{context}}")
    template = "\n".join(lines)
    assume(prompt_problem(template) is None)
    return template


def test_the_default_is_the_form_of_all_models_so_far():
    assert Prompt().text(" What is 2 + 2? ") == "Question: What is 2 + 2?\nAnswer:"
    assert Prompt().text("Where?", " It is here. ") == "Context: It is here.\nQuestion: Where?\nAnswer:"
    assert Prompt(lower_case=True).text("Is É?", "HERE") == "Context: HERE\nQuestion: is é?\nAnswer:"


@settings(max_examples=200)
@given(templates(), WORDS, WORDS, st.booleans())
def test_placeholders_are_replaced_once_and_nothing_else_is(template, question, context, lower_case):
    """What a question or a context says is text, even when it looks like a placeholder."""
    text = Prompt(template, lower_case).text(question, context)
    asked = question.strip().lower() if lower_case else question.strip()
    lines = template.split("\n")
    if not context.strip():
        lines = [line for line in lines if "{context}" not in line]
    expected = "\n".join(
        context.strip().join(asked.join(part.split("{question}")) for part in line.split("{context}")) for line in lines
    )
    assert text == expected


@pytest.mark.parametrize(
    ("template", "text", "answer"),
    [
        ("Q: {question}\nA:", "Q: Why?\nA:", " So."),
        ("### {question}\n\n", "### Why?\n\n", "So."),
        ("{question}", "Why?", " So."),
        ("{question}\n\n{context}", "Why?\n", "So."),
    ],
)
def test_an_answer_brings_its_space_unless_a_line_has_begun(template, text, answer):
    learnt = document(QuestionAnswer("Why?", " So. "), Prompt(template))
    assert (learnt.text, learnt.answer_start) == (text + answer, len(text))


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        ("", "must contain {question} once"),
        ("Question: \nAnswer:", "must contain {question} once"),
        ("{question} {question}", "must contain {question} once"),
        ("{context}\n{context}\n{question}", "{context} at most once"),
        ("{context} {question}", "a line of its own"),
        ("{qestion}:", "{qestion} is no placeholder. Known: {question}, {context}. Did you mean 'question'?"),
        ("{question}\n{answer}", "{answer} is no placeholder"),
        ("{{ question }}", "single braces, no spaces"),
        ("{{question}}", "single braces, no spaces"),
        ("{ question }", "single braces, no spaces"),
        ("{question} ", "must not end in a space"),
        ("{question}\t", "must not end in a space"),
        ("{question} \n{context}:", "must not end in a space"),
        ("${question}", "interpolation"),
        ("{question}\ud800", "UTF-8"),
    ],
)
def test_a_template_that_is_none_is_rejected_by_name(template, rule):
    data = DataConfig(sources={"qa": SourceConfig("qa")}, qa=QuestionsConfig(prompt=template))
    with pytest.raises(ConfigError) as error:
        data.validate()
    assert str(error.value).startswith("data.qa.prompt=") and rule in str(error.value)
    assert "\n" not in str(error.value)


def test_a_new_line_is_typed_as_a_backslash_and_an_n():
    assert Prompt.of(DataConfig(qa=QuestionsConfig(prompt=r"Q: {question}\nA:"))).template == "Q: {question}\nA:"


LEARNT = Prompt("Q: {question}\nA:", True)


@pytest.mark.parametrize(
    ("given", "learnt", "expected"),
    [
        ({}, None, Prompt()),
        ({}, LEARNT, LEARNT),
        ({"recommended": RecommendedConfig(lower_case_questions=True)}, None, Prompt(lower_case=True)),
        ({"recommended": RecommendedConfig(lower_case_questions=True)}, Prompt("x{question}"), Prompt("x{question}")),
        ({"lower_case_questions": False}, LEARNT, Prompt(LEARNT.template, False)),
        ({"qa": QuestionsConfig(prompt="{question}?")}, LEARNT, Prompt("{question}?", True)),
    ],
)
def test_a_setting_comes_before_what_the_model_has_learnt(given, learnt, expected):
    data = DataConfig(sources={"mine": SourceConfig("qa")}, **given)
    assert Prompt.of(data, learnt) == expected
    filled = with_prompt(data, learnt)
    assert (filled.qa.prompt, filled.lower_case_questions) == (expected.template, expected.lower_case)
    plain = DataConfig(sources={"mine": SourceConfig("text", "x")}, **given)
    assert with_prompt(plain, learnt) == plain


# --- in a checkpoint's files ----------------------------------------------------------------------------------------


def written(folder, config, yaml=None):
    (folder / "config.json").write_text(json.dumps(config))
    if yaml is not None:
        (folder / "config.yaml").write_text(yaml)
    return folder


@pytest.mark.parametrize("prompt", [LEARNT, Prompt(), Prompt("é {question}\n"), None])
def test_a_prompt_is_read_as_it_was_written(tmp_path, prompt):
    folder = written(tmp_path, {"dtl": {"prompt": prompt_entry(prompt)}}, "data: {lower_case_questions: true}")
    assert read_prompt(folder) == prompt
    assert has_learnt_plain_text(folder) is (prompt is None)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        7,
        "Q: {question}",
        [1],
        {"template": "{question}"},
        {"template": 7, "lower_case_questions": False},
        {"template": "{question}", "lower_case_questions": 1},
        {"template": "{question}", "lower_case_questions": False, "code": "x"},
        {"template": "{{ question }}", "lower_case_questions": False},
        {"template": "{question} \x1b[2J ", "lower_case_questions": False},
        {"template": "\ud800{question}", "lower_case_questions": False},
    ],
)
def test_an_entry_that_is_no_prompt_is_rejected_by_name(tmp_path, entry):
    with pytest.raises(CheckpointError, match=r"config\.json: dtl\.prompt") as error:
        read_prompt(written(tmp_path, {"dtl": {"prompt": entry}}))
    assert "\x1b" not in str(error.value)


QA, TEXT, WIKI = "{kind: qa}", "{kind: text, path: x}", "{kind: wiki}"


@pytest.mark.parametrize(
    ("data", "prompt"),
    [
        (f"{{sources: {{a: {QA}}}}}", Prompt()),
        (f"{{sources: {{a: {QA}}}, lower_case_questions: true}}", Prompt(lower_case=True)),
        (f"{{sources: {{a: {QA}}}, lower_case_questions: 'yes'}}", Prompt()),
        (f"{{sources: {{a: {TEXT}}}}}", None),
        (f"{{sources: {{a: {TEXT}, b: {WIKI}}}, qa: {{path: null, weight: null}}}}", None),
        (f"{{sources: {{a: {TEXT}, b: {QA}}}}}", Prompt()),
        (f"{{sources: {{wiki: {WIKI}}}, qa: {{path: null, weight: 0.5}}}}", Prompt()),
        ("{sources: {a: {kind: my_pairs}}}", Prompt()),
        ("{sources: [1, 2]}", Prompt()),
        ("{sources: {a: 7}}", Prompt()),
        ("null", Prompt()),
        ("{sources: {}}", Prompt()),
        ("{", Prompt()),
    ],
)
def test_checkpoints_of_format_1_are_known_by_the_settings_of_their_data(tmp_path, data, prompt):
    folder = written(tmp_path, {"dtl": {"attention": "auto"}}, f"name: x\ndata: {data}\n")
    assert read_prompt(folder) == prompt
    assert has_learnt_plain_text(folder) is (prompt is None)


@pytest.mark.parametrize(
    ("config", "alone"),
    [
        (f"data: {{sources: {{a: {QA}}}}}", True),
        (f"data: {{sources: {{a: {QA}}}, wiki: {{path: null, weight: null}}}}\ninit: null", True),
        (f"data: {{sources: {{a: {QA}}}, wiki: {{path: null, weight: 0.5}}}}", False),
        (f"data: {{sources: {{a: {QA}}}, wiki: {{path: dump.xml, weight: null}}}}", False),
        (f"data: {{sources: {{a: {QA}, b: {TEXT}}}}}", False),
        (f"data: {{sources: {{a: {TEXT}}}}}", False),
        (f"data: {{sources: {{a: {QA}}}}}\ninit: outputs/texts", False),  # what was learnt there is not lost
        ("data: {sources: {a: {kind: my_pairs}}}", False),
        ("data: 7", False),
        ("{", False),
    ],
)
def test_a_model_of_questions_alone_is_known_by_its_data(tmp_path, config, alone):
    (tmp_path / "config.yaml").write_text(config)
    assert has_learnt_questions_alone(tmp_path) is alone
    assert was_trained_on_questions_alone(tmp_path) is (alone or "init: outputs" in config)


def test_a_model_of_another_program_has_no_prompt_and_is_not_called_plain(tmp_path):
    for config in ({"model_type": "gpt2"}, {"dtl": {"attention": "auto"}}, {"dtl": None}):
        folder = written(tmp_path, config)
        assert read_prompt(folder) is None and not has_learnt_plain_text(folder)


# --- the chat template ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from checkpoint_examples import tiny_tokenizer
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save(folder)
    return AutoTokenizer.from_pretrained(folder)


def rendered(tokenizer, prompt, *messages, **more):
    messages = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(messages, chat_template=chat_template(prompt), tokenize=False, **more)


@settings(max_examples=150)
@given(template=templates(), question=WORDS, lower_case=st.booleans(), begun=st.booleans())
def test_others_ask_exactly_as_dtl_does(tokenizer, template, question, lower_case, begun):
    prompt = Prompt(template, lower_case)
    assert rendered(tokenizer, prompt, ("user", question), add_generation_prompt=begun) == prompt.text(question)
    parts = [{"type": "text", "text": question[:3]}, {"type": "text", "text": question[3:]}]
    assert rendered(tokenizer, prompt, ("user", parts)) == prompt.text(question)


@pytest.mark.parametrize("template", ["Q: {question}\nA:", "# {question}\n", "{context}\n'{question}'"])
def test_turns_are_documents_one_after_the_other(tokenizer, template):
    prompt = Prompt(template, lower_case=True)
    turns = [("user", "Why?"), ("assistant", " So. "), ("user", "HOW?"), ("assistant", "{{ 1 }}")]
    pairs = [QuestionAnswer("Why?", "So."), QuestionAnswer("HOW?", "{{ 1 }}")]
    texts = [document(pair, prompt).text for pair in pairs]
    assert rendered(tokenizer, prompt, *turns) == "".join(f"{text}<|endoftext|>" for text in texts)
    assert rendered(tokenizer, prompt, *turns[:3]) == f"{texts[0]}<|endoftext|>{prompt.text('HOW?')}"


@pytest.mark.parametrize("role", ["system", "tool", "developer"])
def test_a_role_that_the_model_has_never_seen_is_an_error(tokenizer, role):
    with pytest.raises(jinja2.TemplateError, match="no role but user and assistant"):
        rendered(tokenizer, Prompt(), (role, "You are helpful."), ("user", "Why?"))


def test_a_prompt_without_questions_is_rejected_and_not_ignored():
    data = DataConfig(sources={"text": SourceConfig("text", "book.txt")}, qa=QuestionsConfig(prompt="Q: {question}"))
    with pytest.raises(
        ConfigError, match=r"data\.qa\.prompt=Q: \{question\}: is for questions, and this data has none"
    ):
        data.validate()
    data.qa.weight = 0.5
    data.validate()
