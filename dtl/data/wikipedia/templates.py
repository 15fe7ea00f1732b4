"""The templates that stand for words of a sentence: without them it would have holes.

Every other template draws boxes, marks, references or navigation, and is cut.
"""

# ruff: noqa: RUF001  (dashes, primes and letters of other scripts are what this file is about)
import re
from collections.abc import Callable

_LONGEST = 2000  # characters; what is longer is a box
_SEPARATOR = re.compile(r"\|(?![^\[\]]*\]\])")  # a bar that is not inside a link
_NAMED = re.compile(r"\s*([\w -]+?)\s*=")
_CENTURY = re.compile(r"[IVX]+(?:er|re|e) siècle(?: av\. J\.-C\.)?")  # French templates named after their text
_IN_A_LANGUAGE = re.compile(r"lang-[a-z-]{2,12}")  # {{lang-sq|Shqipëria}}
_RANGES = {
    "-": "–",
    "–": "–",
    "to": " to ",
    "and": " and ",
    "or": " or ",
    "by": " by ",
    "x": " × ",
    "×": " × ",
    "to(-)": " to ",
}


def _first(values: list[str]) -> str:
    return values[0] if values else ""


def _second(values: list[str]) -> str:
    return values[1] if len(values) > 1 else ""


def _last(values: list[str]) -> str:
    return values[-1] if values else ""


def _measure(values: list[str]) -> str:
    """`{{convert|5|km|mi}}` and its ranges, in the unit that the author gave."""
    if len(values) >= 4 and values[1] in _RANGES:
        return f"{values[0]}{_RANGES[values[1]]}{values[2]} {values[3]}"
    if len(values) >= 4 and (values[1], values[3]) in (("ft", "in"), ("lb", "oz"), ("st", "lb")):
        return f"{values[0]} {values[1]} {values[2]} {values[3]}"
    return " ".join(values[:2])


def _fraction(values: list[str]) -> str:
    if len(values) == 3:
        return f"{values[0]} {values[1]}/{values[2]}"
    return "/".join(values[:2]) if len(values) == 2 else f"1/{_first(values)}"


def _circa(values: list[str]) -> str:
    return "c. " + " – ".join(values[:2]) if values else "c."


def _day_and_year(values: list[str]) -> str:
    """`{{OldStyleDate|February 2|1905|January 20}}`: the day of today's calendar, and the year."""
    return " ".join(values[:2])


def _constant(text: str) -> Callable[[list[str]], str]:
    return lambda values: text


def _joined(separator: str) -> Callable[[list[str]], str]:
    return lambda values: separator.join(values)


def _table() -> dict[str, Callable[[list[str]], str]]:
    """Handlers by the templates' names, in lower case. English names are understood by most Wikipedias."""
    groups: list[tuple[str, Callable[[list[str]], str]]] = [
        ("nowrap nobr nobreak small smaller big larger abbr mvar math tt code mono em strong sic", _first),
        ("ill interlanguage_link illm lien wikt wikt-lang quote blockquote cquote as_of_text visible_anchor", _first),
        ("vanchor anchor_text usurped lc uc ucfirst formatnum num nombre nihongo japonais zh_text", _first),
        ("flag flagcountry flagu country pays drapeau2 drapeau unicode polytonic grec hebrew he-n", _first),
        ("angbr angle_bracket keypress key key_press vr grapheme nts bibleverse", _first),
        ("sc smallcaps small_caps sc1 sc2", lambda values: _first(values).upper()),
        ("oldstyledate oldstyledatedy", _day_and_year),
        ("eqm", _constant("⇌")),
        ("simplenuclide simplenuclide2 nuclide", lambda values: "-".join(values[:2])),
        ("lang langue audio-text font color colour tooltip_text lang2 angbr_text script", _second),
        ("transl transliteration translit", _last),
        ("convert cvt unité unite unit", _measure),
        ("frac fraction sfrac", _fraction),
        ("circa ca.", _circa),
        ("snd spaced_ndash spnd spaced_en_dash -", _constant(" – ")),
        ("ndash en_dash endash", _constant("–")),
        ("mdash em_dash emdash", _constant("—")),
        ("nbsp space sp pad thinsp hair_space", _constant(" ")),
        ("' apostrophe", _constant("'")),
        ("'s", _constant("'s")),
        ("! pipe", _constant("|")),
        ("= equals", _constant("=")),
        ("· dot middot •", _constant(" · ")),
        ("as_of", lambda values: f"As of {values[0]}" if values else ""),
        ("chem chem2", _joined("")),
        ("val", _first),
        ("sup", lambda values: f"<sup>{_first(values)}</sup>"),
        ("sub e", _first),
        ("av_j.-c. -av_jc", _constant("av. J.-C.")),
        ("s siècle", lambda values: f"{_first(values)}e siècle" if values else ""),
        ("s- s2-", lambda values: f"{_first(values)}e" if values else ""),
        ("date date_de_naissance date_de_décès date-", _joined(" ")),
    ]
    return {name.replace("_", " "): handler for names, handler in groups for name in names.split()}


_HANDLERS = _table()


def template_text(content: str) -> str:
    """The words that a template stands for, given what is between its braces; most stand for none."""
    if len(content) > _LONGEST:
        return ""
    name, bar, rest = content.partition("|")
    if not bar and ":" in name:  # {{formatnum:1234}}, {{lc:Word}}
        name, _, rest = name.partition(":")
    if _CENTURY.fullmatch(name.strip()):
        return name.strip()
    known = name.strip().lower().replace("_", " ")
    handler = _first if _IN_A_LANGUAGE.fullmatch(known) else _HANDLERS.get(known)
    if handler is None:
        return ""
    values: list[str] = []
    for value in _SEPARATOR.split(rest) if rest else []:
        named = _NAMED.match(value)
        if named is None:
            values.append(value.strip())
        elif named[1] == str(len(values) + 1):  # {{lang|fr|2=...}}
            values.append(value[named.end() :].strip())
    return handler(values)
