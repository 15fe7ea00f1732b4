"""Synthetic text, the same for the same seed: an encyclopedia of pseudo-words, and a MediaWiki dump of it.

Words follow Zipf's law, and the most frequent ones are English, so that a tokenizer finds what prose contains: a few
frequent words, many rare ones, numbers, names, punctuation, some accents. The sentences have no meaning.
"""

import bz2
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

COMMON = (
    "the of and in to a was is for on as by with he that at from his it an were which are this also be had or not has "
    "first their its after one new but who have two her they been she other when time during there into all may more "
    "than years would over only most some city between about known part later up such where many made out used under "
    "three while became early war state since south north"
)
STEMS = (
    "act appear attack bank build call change claim climb collect command consider contain control cover cross design "
    "develop direct discover east employ enter establish expand explain farm field film fish flow follow form found "
    "garden govern ground group grow hand head help hold house hunt island join kill lake land last law lead light "
    "link list long market mark master mean member mill mountain move music name night number offer open order own "
    "paint park peak perform plan plant play point port power present press print produce publish rain reach read "
    "record report return river road rock rule school season second ship show sing song sound station stone storm "
    "story stream strength student support teach team test tower town track train travel treat turn view village "
    "visit walk wall water west white wild wind winter wood word work world write yard year"
)
SUFFIXES = ("", "s", "ed", "ing", "er", "ers", "al", "ment", "able", "ly")
ONSETS = "b c d f g h l m n p r s t v w br ch cl cr dr fl gr pl pr sh sl st th tr"
VOWELS = "a a a e e e i i o o o u u ai ea ee ie oo ou é"
ENDINGS = "n r s t l nd st ck ng m th rt ly ed ing er al ion ism ia"
N_WORDS = 30_000
ZIPF_SHIFT = 2.7  # Zipf-Mandelbrot: without it the most frequent word alone would be a tenth of the text
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">
<siteinfo><sitename>Made</sitename><dbname>madewiki</dbname><namespaces>
<namespace key="0" case="first-letter" /><namespace key="1" case="first-letter">Talk</namespace>
<namespace key="6" case="first-letter">File</namespace><namespace key="14" case="first-letter">Category</namespace>
</namespaces></siteinfo>
"""
FOOT = "</mediawiki>\n"


class Writer:
    """A generator of synthetic titles, sentences and paragraphs."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.onsets, self.vowels, self.endings = ONSETS.split(), VOWELS.split(), ["", *ENDINGS.split()]
        derived = [stem + suffix for suffix in SUFFIXES for stem in STEMS.split()]
        words = dict.fromkeys((*COMMON.split(), *derived))
        while len(words) < N_WORDS:
            words[self._word()] = None
        self.words = list(words)
        self.weights = list(itertools.accumulate(1 / (rank + ZIPF_SHIFT) for rank in range(N_WORDS)))

    def _word(self) -> str:
        pick = self.random.choice
        syllables = self.random.choices((1, 2, 3), (3, 4, 2))[0]
        return "".join(pick(self.onsets) + pick(self.vowels) for _ in range(syllables)) + pick(self.endings)

    def title(self) -> str:
        """Return one to three capitalised words, none of them frequent."""
        return " ".join(self.random.choice(self.words[2000:]).capitalize() for _ in range(self.random.randint(1, 3)))

    def sentence(self) -> str:
        """Return a sentence of 6 to 30 words, with commas, numbers and names."""
        words = self.random.choices(self.words, cum_weights=self.weights, k=self.random.randint(6, 30))
        for at in range(1, len(words)):
            chance = self.random.random()
            if chance < 0.06:
                words[at - 1] += ","
            elif chance < 0.10:
                words[at] = words[at].capitalize()
            elif chance < 0.13:
                words[at] = str(self.random.choice((self.random.randint(2, 99), self.random.randint(1400, 2020))))
            elif chance < 0.14:
                words[at] = f'"{words[at]}"'
            elif chance < 0.15:
                words[at] += f" ({self.random.randint(1, 999):,}.{self.random.randint(0, 9)} km)"
            elif chance < 0.16:
                words[at] += "'s"
        words[0] = words[0].capitalize()
        return " ".join(words) + self.random.choice("......?")

    def paragraph(self) -> str:
        return " ".join(self.sentence() for _ in range(self.random.randint(2, 7)))

    def n_paragraphs(self) -> int:
        """Return the length of an article: most are short, a few are long."""
        return 1 + int(self.random.lognormvariate(1.6, 0.9))


def made_articles(n_characters: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield titles and texts up to `n_characters`."""
    writer = Writer(seed)
    written = 0
    while written < n_characters:
        title = writer.title()
        text = "\n".join(writer.paragraph() for _ in range(writer.n_paragraphs()))
        written += len(text)
        yield title, text


def write_made_dump(file: Path, n_characters: int, seed: int, repeats: int = 1) -> int:
    """Write a dump of about `repeats` times `n_characters` of wikitext, and return its number of articles.

    Each repetition is a bz2 stream of its own, as in Wikipedia's multistream dumps.
    """
    n_articles, pages = _made_pages(n_characters, seed)
    stream = bz2.compress(pages.encode())
    with file.open("wb") as out:
        out.write(bz2.compress(HEAD.encode()))
        for _ in range(repeats):
            out.write(stream)
        out.write(bz2.compress(FOOT.encode()))
    return n_articles * repeats


def _made_pages(n_characters: int, seed: int) -> tuple[int, str]:
    writer = Writer(seed)
    pages: list[str] = []
    written = n_articles = 0
    for number in itertools.count(1):
        if written >= n_characters:
            return n_articles, "".join(pages)
        title, kind = f"{writer.title()} {number}", writer.random.random()
        if kind < 0.25:
            text, namespace = f"#REDIRECT [[{writer.title()}]]", 0
        elif kind < 0.30:
            text, namespace = writer.paragraph(), 1
        else:
            text, namespace = _article(writer, title), 0
            n_articles += 1
        written += len(text)
        pages.append(_page(number, f"Talk:{title}" if namespace else title, namespace, text))
    raise AssertionError


def _page(number: int, title: str, namespace: int, text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    redirect = '<redirect title="A" />' if text.startswith("#REDIRECT") else ""
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>{number}</id>{redirect}<revision><id>{number}</id>"
        "<timestamp>2020-01-01T00:00:00Z</timestamp><contributor><username>A</username><id>1</id></contributor>"
        f'<model>wikitext</model><format>text/x-wiki</format><text xml:space="preserve">{escaped}</text>'
        "<sha1>a</sha1></revision></page>\n"
    )


def _article(writer: Writer, title: str) -> str:
    name = writer.title
    parts = [
        f"{{{{Infobox place|name={title}|image=[[File:{name()}.jpg|thumb|A {name()}]]|population="
        f"{{{{formatnum:{writer.random.randint(100, 999_999)}}}}}|founded={writer.random.randint(900, 1990)}}}}}\n",
        f"'''{title}''' {_marked(writer)}\n\n",
    ]
    for number in range(writer.n_paragraphs()):
        if number % 3 == 2:
            parts.append(f"=={'=' * (number % 2)} {name()} =={'=' * (number % 2)}\n")
        parts.append(_marked(writer) + "\n\n")
        chance = writer.random.random()
        if chance < 0.15:
            rows = "".join(f"|-\n| {name()} || {writer.random.randint(1, 9999)} || {name()}\n" for _ in range(5))
            parts.append(f'{{| class="wikitable sortable"\n! Name !! Number !! Place\n{rows}|}}\n\n')
        elif chance < 0.30:
            parts.append("".join(f"* [[{name()}]], {writer.sentence()}\n" for _ in range(4)) + "\n")
    parts.append(f"== References ==\n{{{{reflist|2}}}}\n\n[[Category:{name()}]]\n[[Category:{name()}s]]\n")
    return "".join(parts)


def _marked(writer: Writer) -> str:
    """Return a paragraph with links, references and other markup among its words."""
    words = writer.paragraph().split(" ")
    for at, word in enumerate(words):
        chance = writer.random.random()
        if chance < 0.05:
            words[at] = f"[[{writer.title()}|{word}]]"
        elif chance < 0.08:
            words[at] = f"[[{word}]]"
        elif chance < 0.10:
            cite = f"{{{{cite web|url=http://example.org/{at}|title={writer.title()}|year=2001}}}}"
            words[at] = f"{word}<ref name=r{at}>{cite}</ref>"
        elif chance < 0.11:
            words[at] = f"''{word}''"
        elif chance < 0.115:
            words[at] = f"{{{{convert|{at + 1}|km|mi}}}}"
    return " ".join(words)
