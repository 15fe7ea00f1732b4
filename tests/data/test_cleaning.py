"""Cleaning: what it removes from a text, and what must stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtl.data.cleaning import clean, cleaned
from dtl.data.documents import Document, QuestionAnswer

ODD = "\r\n\t \u00a0\u2009\u2028\x00\x1b\x85\u200b\ufeff()[];, ab"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("45\u00a0V and 3 \u2009\u00a0 m", "45 V and 3 m"),
        ("Lima (; ) is a city", "Lima is a city"),
        ("Lima ( ), [ ] and (, ; ): end", "Lima, and: end"),
        ("Lima (, ( )) is", "Lima is"),
        ("f(()) is (a ( ) b)", "f(()) is (a b)"),
        ("so\u00adft\x00 \x1b[0m\ufeff\u202ewords\x7f", "soft [0mwords"),
        ("end  \t\n\n\n\nbegin \n", "end\n\nbegin\n"),
        # Code and poems stay as they are.
        ("def f():\n    x = []\n\treturn g()\n", "def f():\n    x = []\n\treturn g()\n"),
        ("    indented  and  spaced", "    indented  and  spaced"),
        ("zero\u200dwidth \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None),
        ("(see below) [1] (a; b)", None),
        ("", None),
    ],
)
def test_what_goes_and_what_stays(text, expected):
    assert clean(text) == (text if expected is None else expected)


@given(st.text(alphabet=st.sampled_from(ODD)) | st.text())
def test_clean_text_is_left_alone(text):
    once = clean(text)
    assert clean(once) == once
    assert not set(once) & set("\r\x00\x1b\x85\u00a0\u2028\ufeff")


def test_questions_and_answers_are_not_touched():
    text = "Question: a\u00a0b ()\r\nAnswer: c\u00a0d"
    for document in (
        Document(text, answer_start=20),
        Document(text, pair=QuestionAnswer("a\u00a0b ()", "c\u00a0d")),
    ):
        assert cleaned(document) is document
    assert cleaned(Document(text)).text == "Question: a b\nAnswer: c d"
    plain = Document("plain")
    assert cleaned(plain) is plain
