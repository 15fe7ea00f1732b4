"""WikiText's marks undone: lines become articles, cut words become prose."""

import pytest

from dtl.data.hub.texts import articles, natural

TEXT = """
 a stray line before any title

 = The Heron ( bird ) =

 The heron is a long @-@ legged bird . It weighs 1 @.@ 5 kg ( 3 @.@ 3 lb ) , or 1 @,@ 500 g .

 = = Names = =

 = = = In the north = = =

 People there call it " the grey one " ; it 's rarely seen , and doesn 't mind .
 = 1923 in ferries =
 Nothing sank .
"""


def test_lines_become_articles():
    assert list(articles(TEXT.splitlines())) == [
        ("", "a stray line before any title"),
        (
            "The Heron (bird)",
            "The heron is a long-legged bird. It weighs 1.5 kg (3.3 lb), or 1,500 g.\nNames\nIn the north\n"
            "People there call it \"the grey one\"; it's rarely seen, and doesn't mind.",
        ),
        ("1923 in ferries", "Nothing sank."),
    ]
    assert list(articles([])) == []


@pytest.mark.parametrize(
    ("cut", "prose"),
    [
        ("60 % of them ( or more ) .", "60% of them (or more)."),
        ("He asked : why ? No one knew !", "He asked: why? No one knew!"),
        ('" One " and " two " .', '"One" and "two".'),
        ("x @-@ y @-@ z", "x-y-z"),
        ("a , b ) , c", "a, b), c"),
        ("1888 \u2013 89 and 5 \u00d7 3", "1888 \u2013 89 and 5 \u00d7 3"),
        (". . .", "..."),
        ("e @ mail . org", "e @ mail. org"),
    ],
)
def test_a_line_reads_as_it_was_written(cut, prose):
    assert natural(cut) == prose
