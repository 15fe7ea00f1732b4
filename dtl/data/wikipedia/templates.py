"""Templates and formulas that are part of a sentence, as text.

Every other template is a box, a mark, a reference or navigation, and is cut.
"""

import re
from collections.abc import Callable
from functools import lru_cache

# --- formulas -----------------------------------------------------------------------------------------------------
# TeX as plain text, where that is possible: `\frac{a}{2}` as `a/2`, `x^2` as `x²`.

# ruff: noqa: RUF001, RUF002  (dashes, primes and letters of other scripts are what this file is about)

_NAMES = r"""
    alpha=α beta=β gamma=γ delta=δ epsilon=ε varepsilon=ε zeta=ζ eta=η theta=θ vartheta=θ iota=ι kappa=κ lambda=λ mu=μ
    nu=ν xi=ξ pi=π rho=ρ sigma=σ tau=τ upsilon=υ phi=φ varphi=φ chi=χ psi=ψ omega=ω Gamma=Γ Delta=Δ Theta=Θ Lambda=Λ
    Xi=Ξ Pi=Π Sigma=Σ Phi=Φ Psi=Ψ Omega=Ω times=× cdot=· div=÷ pm=± mp=∓ le=≤ leq=≤ ge=≥ geq=≥ ne=≠ neq=≠ approx=≈
    equiv=≡ sim=∼ thicksim=∼ cong=≅ propto=∝ infty=∞ infin=∞ partial=∂ nabla=∇ in=∈ notin=∉ subset=⊂ subseteq=⊆ cup=∪
    cap=∩ emptyset=∅ varnothing=∅ forall=∀ exists=∃ neg=¬ lnot=¬ land=∧ wedge=∧ lor=∨ vee=∨ to=→ rightarrow=→ mapsto=↦
    Rightarrow=⇒ implies=⇒ iff=⇔ Leftrightarrow=⇔ leftrightarrow=↔ leftarrow=← sum=∑ prod=∏ int=∫ oint=∮ ldots=… dots=…
    cdots=… dotsc=… dotsb=… circ=° ell=ℓ hbar=ℏ Re=Re Im=Im R=ℝ N=ℕ Z=ℤ Q=ℚ C=ℂ reals=ℝ setminus=∖ mid=| parallel=∥
    perp=⊥ langle=⟨ rangle=⟩ prime=′ ll=≪ gg=≫ ast=∗ star=⋆ bullet=• oplus=⊕ otimes=⊗ lfloor=⌊ rfloor=⌋ lceil=⌈ rceil=⌉
    sin=sin cos=cos tan=tan arcsin=arcsin arccos=arccos arctan=arctan sinh=sinh cosh=cosh tanh=tanh log=log ln=ln
    exp=exp lim=lim max=max min=min det=det gcd=gcd dim=dim ker=ker deg=deg
"""
_SYMBOLS: dict[str, str] = {name: sign for name, _, sign in (pair.partition("=") for pair in _NAMES.split())}
_NOTHING = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|left|right|bigg?|Bigg?|limits|quad|qquad|[,;:!> ])(?![A-Za-z])"
)
_STYLE = re.compile(
    r"\\(?:mathrm|mathbf|mathit|mathbb|mathcal|mathfrak|mathsf|boldsymbol|operatorname|text|textrm|textit|mbox|rm|bf"
    r"|vec|hat|bar|overline|underline|tilde|dot)\*?\s*(?:\s*\{([^{}]*)\}|(?![A-Za-z]))"
)
_FRACTION = re.compile(r"\\[td]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ROOT = re.compile(r"\\sqrt\s*\{([^{}]*)\}")
_RAISED = re.compile(r"\^\s*(?:\{([^{}]*)\}|([0-9A-Za-z+*′−-]))")
_LOWERED = re.compile(r"_\s*(?:\{([^{}]*)\}|([0-9A-Za-z]))")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SUPERSCRIPTS = str.maketrans("0123456789+-−n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ⁿ")
_SUBSCRIPTS = str.maketrans("0123456789+−aeoxijknm", "₀₁₂₃₄₅₆₇₈₉₊₋ₐₑₒₓᵢⱼₖₙₘ")
_LONGEST_FORMULA = 80  # characters of a formula that still reads well inside a sentence
# Letters raised by custom, not as exponents: the 1st, la 1ère, Mme.
_CUSTOM = "st nd rd th er re ère ers nde ème ter de te me mme lle mes lles gr ve tm sm bis ste"
_BY_CUSTOM = frozenset(_CUSTOM.split())
_ONE_LETTER = {"o": "º", "a": "ª"}


def raised(text: str, before: str = "") -> str:
    """Return an exponent: digits as superscripts, anything else after `^`.

    `before` is the word that it is raised after: in `1<sup>st</sup>`, `XIX<sup>e</sup>`, `n<sup>o</sup>` the letters
    belong to it.
    """
    text = text.strip()
    if before and text.lower() in _BY_CUSTOM:
        return text
    if text in ("e", "d") and re.fullmatch(r"\d+|[IVXL]+", before):
        return text
    if text in ("r", "s", "t") and before in ("D", "M", "S"):  # Dr, Mr, St
        return text
    if text in _ONE_LETTER and re.fullmatch(r"\d+|[nN]", before):
        return _ONE_LETTER[text]
    if text in ("°", "′", "*"):
        return text
    if text and all(ord(letter) in _SUPERSCRIPTS for letter in text):
        return text.translate(_SUPERSCRIPTS)
    return f"^{text}" if len(text) < 2 else f"^({text})"


def lowered(text: str) -> str:
    """Return an index: digits and letters that have a subscript form as subscripts, anything else after `_`."""
    text = text.strip()
    if text and all(ord(letter) in _SUBSCRIPTS for letter in text):
        return text.translate(_SUBSCRIPTS)
    return f"_{text}" if len(text) < 2 else f"_({text})"


def tex_to_text(tex: str) -> str:
    """Return the formula on one line without TeX; empty where TeX would remain or it is too long for a sentence."""
    text = _NOTHING.sub(" ", tex.replace("\\{", "⦃").replace("\\}", "⦄").replace("\\%", "%"))
    text = _COMMAND.sub(lambda match: _SYMBOLS.get(match[1], match[0]), text)
    for _ in range(8):  # from the innermost braces outwards
        before = text
        text = _STYLE.sub(lambda match: match[1] or "", text)
        text = _FRACTION.sub(lambda match: f"{_operand(match[1])}/{_operand(match[2])}", text)
        text = _ROOT.sub(lambda match: f"√{_operand(match[1])}", text)
        text = _RAISED.sub(lambda match: raised(match[1] or match[2] or ""), text)
        text = _LOWERED.sub(lambda match: lowered(match[1] or match[2] or ""), text)
        if text == before:
            break
    text = " ".join(text.replace("{", "").replace("}", "").replace("~", " ").split())
    text = text.replace("⦃", "{").replace("⦄", "}")
    return "" if "\\" in text or "&" in text or len(text) > _LONGEST_FORMULA else text


def _operand(text: str) -> str:
    """Return the text, in brackets when it is more than one number or name."""
    text = text.strip()
    return text if text.isalnum() else f"({text})"


# --- templates ----------------------------------------------------------------------------------------------------

_LONGEST = 2000  # characters; a longer template is a box
_SEPARATOR = re.compile(r"\|(?![^\[\]]*\]\])")  # a bar that is not inside a link
_NUMBER = re.compile(r"[1-9][0-9]?")
_NAMED = re.compile(r"\s*([\w -]+?)\s*=")
_CENTURY = re.compile(r"[IVX]+(?:er|re|e) siècle(?: av\. J\.-C\.)?")  # French templates named after their text
_ORDINAL = re.compile(r"(?:[IVX]+|\d+)(?:er|re|e|nd|nde)|M\.|Mme|Mlle|Dr|Mgr|Ve|\d+/\d+")  # the same
# {{lang-sq|Shqipëria}}, {{frS|oui}}, {{Zitat-en|Yes}}, {{script/Hebrew|...}}
_IN_A_LANGUAGE = re.compile(r"(?:[Ll]ang|[Zz]itat|[Kk])-[a-z0-9-]{2,12}|[Ss]cript/\w+|[A-Za-z][a-z]{1,2}S")
_ROMAN = re.compile(r"[IVXL]+")
_RANGES = {
    "-": "–", "–": "–", "to": " to ", "and": " and ", "or": " or ", "by": " by ", "x": " × ", "×": " × ",
    "to(-)": " to ", "+": "+", "±": "±", "+/-": "±",
}  # fmt: skip
_UNIT_SIGNS = {
    "C": "°C", "F": "°F", "sqmi": "sq mi", "sqft": "sq ft", "sqyd": "sq yd", "sqkm": "km²", "sqm": "m²",
    "cuin": "cu in", "cuft": "cu ft", "cuyd": "cu yd", "cum": "m³", "usgal": "US gal", "impgal": "imp gal",
}  # fmt: skip
_MONTHS = "January February March April May June July August September October November December"
_COMMA_IN_NUMBERS = "da de el es hr id is it nl no pt ro sl sr tr vi"  # languages that write 1.234,5
_SPACE_IN_NUMBERS = "be bg cs et fi fr hu lt lv pl ru sk sv uk"  # 1 234,5
_CURRENCIES = """
    us$=US$ usd=US$ a$=A$ au$=A$ aud=A$ c$=C$ ca$=C$ cad=C$ nz$=NZ$ nzd=NZ$ hk$=HK$ hkd=HK$ s$=S$ sgd=S$ r$=R$ brl=R$
    £=£ gbp=£ gb£=£ pound=£ €=€ eur=€ euro=€ ¥=¥ jpy=¥ yen=¥ cny=CN¥ rmb=CN¥ ₹=₹ inr=₹ ₩=₩ krw=₩
    ₽=₽ rub=₽ ₱=₱ php=₱ ₪=₪ ils=₪ uah=₴
"""
_SHIPS = """
    hms hmas hmcs hmnzs hmis hmhs hmt uss usns uscgc usat usrc css ss rms ms mv mt mf nms ins sms ps pns rv rfa rss sts
    tss gts hsc hnlms hswms hnoms hdms nrp orp ara bns jds roks
"""
_CONSTANTS = {
    "eqm": "⇌",
    "snd spaced_ndash spnd spaced_en_dash -": " – ",
    "ndash en_dash endash": "–",
    "mdash em_dash emdash": "—",
    "nbsp space sp pad thinsp hair_space": " ",
    "' apostrophe": "'",
    "'s": "'s",
    "... ellipsis": "…",
    "pi": "π",
    "'\"": "'\"",
    "\"'": "\"'",
    "н._э.": "н. э.",
    "до_н._э.": "до н. э.",
    "sharp": "♯",
    "flat": "♭",
    "natural": "♮",
    "! pipe": "|",
    "= equals": "=",
    "· dot middot •": " · ",
    "av_j.-c. -av_jc av_jc": "av. J.-C.",
    "ap_j.-c. ap_jc": "apr. J.-C.",
}

Handler = Callable[[list[str], dict[str, str]], str]  # from the positional and the named values to the text


def _first(values: list[str], named: dict[str, str]) -> str:
    return values[0] if values else ""


def _named_or(names: str, position: int = 0) -> Handler:
    """Return the first of the named values; else the positional one."""

    def handler(values: list[str], named: dict[str, str]) -> str:
        given = next((named[name] for name in names.split() if named.get(name)), "")
        return given or "".join(values[position : position + 1])

    return handler


def _measure(values: list[str], named: dict[str, str]) -> str:
    """Return `{{convert|5|km|mi}}` and its ranges in the unit that the author gave."""
    if len(values) >= 4 and values[1] in _RANGES:
        return f"{values[0]}{_RANGES[values[1]]}{values[2]} {_UNIT_SIGNS.get(values[3], values[3])}"
    if len(values) >= 4 and (values[1], values[3]) in (("ft", "in"), ("lb", "oz"), ("st", "lb")):
        return f"{values[0]} {values[1]} {values[2]} {values[3]}"
    return " ".join([*values[:1], *(_UNIT_SIGNS.get(unit, unit) for unit in values[1:2])])


def _french_measure(values: list[str], named: dict[str, str]) -> str:
    """Return `{{unité|5|m||s|-1}}` as `5 m s⁻¹`: a number, then units with their exponents."""
    exponents = [raised(value) if value else "" for value in [*values[2::2], ""]]
    return " ".join([*values[:1], *map("".join, zip(values[1::2], exponents, strict=False))])


def _size(values: list[str], named: dict[str, str]) -> str:
    """Return `{{height|ft=5|in=6}}` as `5 ft 6 in`."""
    return " ".join(f"{named[unit]} {unit}" for unit in ("m", "cm", "kg", "ft", "in", "st", "lb") if named.get(unit))


def _grouped(comma: str, point: str) -> Handler:
    """Return the digits of `{{formatnum:1234.5}}` in groups of three, as a language writes them."""

    def handler(values: list[str], named: dict[str, str]) -> str:
        number = re.fullmatch(r"([-−]?\d+)(?:\.(\d+))?", _first(values, named))
        if number is None:
            return _first(values, named)
        groups = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", comma, number[1])
        return f"{groups}{point}{number[2]}" if number[2] else groups

    return handler


def _date(values: list[str], named: dict[str, str]) -> str:
    """Return `{{start date|1912|4|15}}` as `April 15, 1912`, with `df=y` as `15 April 1912`."""
    return _day(values, month_first=not named.get("df"))


def _day(values: list[str], month_first: bool) -> str:
    year, month, day = (*values[:3], "", "", "")[:3]
    if month.isdecimal() and 1 <= int(month) <= 12:
        month = _MONTHS.split()[int(month) - 1]
    day = day.lstrip("0")
    return f"{month} {day}, {year}" if day and month_first else " ".join(filter(None, (day, month, year)))


def _as_of(values: list[str], named: dict[str, str]) -> str:
    if named.get("alt") or not values:
        return named.get("alt", "")
    begin = "Since" if named.get("since") else "As of"
    return f"{begin.lower() if named.get('lc') else begin} {_day(values, named.get('df', '').lower() == 'us')}"


def _value(values: list[str], named: dict[str, str]) -> str:
    """Return `{{val|3.2|0.1|e=5|u=m|up=s}}` as `3.2±0.1×10^5 m/s`, `{{val|3|+1|-2}}` as `3+1−2`."""
    if len(values) > 2 and values[1] in _RANGES:
        values = [f"{values[0]}{_RANGES[values[1]]}{values[2]}"]
    errors = [value for value in values[1:3] if value]
    signed = errors and all(value[0] in "+-−(" for value in errors)
    error = "".join(errors).replace("-", "−") if signed else f"±{errors[0]}" if len(values) > 1 and values[1] else ""
    exponent = f"×10^{named['e']}" if named.get("e") else ""
    unit = named.get("u") or named.get("ul") or ""
    per = named.get("up") or named.get("upl")
    number = f"{named.get('p', '')}{_first(values, named)}{error}{exponent}{named.get('s', '')}"
    return f"{number}{unit if unit == '%' else f' {unit}' if unit else ''}{f'/{per}' if per else ''}"


def _power_of_ten(values: list[str], named: dict[str, str]) -> str:
    """Return `{{e|5}}`, in German `{{ZahlExp|3|5}}`, as powers of ten; without a number the letter."""
    if len(values) > 1 and values[1]:
        return f"{values[0]}×10^{values[1]}"
    return f"×10^{values[0]}" if values else "e"


def _fraction(values: list[str], named: dict[str, str]) -> str:
    if len(values) == 3:
        return f"{values[0]} {values[1]}/{values[2]}"
    return "/".join(values[:2]) if len(values) == 2 else f"1/{_first(values, named)}"


def _years(sign: str, between: str = "–") -> Handler:
    """Return `{{floruit|1560|1570}}` as `fl. 1560–1570`."""
    return lambda values, named: f"{sign} " + between.join(values[:2]) if values else sign


def _ship(prefix: str) -> Handler:
    """Return `{{USS|Enterprise|CV-6}}` as `USS Enterprise (CV-6)`; a third value chooses parts of it."""

    def handler(values: list[str], named: dict[str, str]) -> str:
        ship, number, form = (*values[:3], "", "", "")[:3]
        if not ship:  # a mark such as {{ps|date=May}}
            return ""
        name = f"{prefix} {ship}".strip() if form in ("", "6") else ship
        return number if form == "1" else f"{name} ({number})" if number and form in ("", "5") else name

    return handler


def _any_ship(values: list[str], named: dict[str, str]) -> str:
    return _ship(_first(values, named))(values[1:], named)


def _ship_class(values: list[str], named: dict[str, str]) -> str:
    return f"{values[0]}-class {values[1]}" if len(values) > 1 else _first(values, named)


def _siglo(values: list[str], named: dict[str, str]) -> str:
    """Return the Spanish `{{siglo|V|a}}` as `siglo V a. C.`."""
    era = {"a": " a. C.", "d": " d. C."}.get("".join(values[1:2]), "")
    return f"siglo {values[0]}{era}" if values else ""


def _century(values: list[str], named: dict[str, str]) -> str:
    """Return the French `{{s|XIX}}` as `XIXe siècle`."""
    return f"{_first(values, named)}e siècle" if values else ""


def _amount(sign: str) -> Handler:
    return lambda values, named: f"{sign}{_first(values, named)}"


def _constant(text: str) -> Handler:
    return lambda values, named: text


def _joined(separator: str) -> Handler:
    return lambda values, named: separator.join(values)


def _around(before: str, after: str) -> Handler:
    return lambda values, named: f"{before}{values[0]}{after}" if values else ""


# Handlers by the names of templates, in lower case. Most Wikipedias accept the English names.
_GROUPS: list[tuple[str, Handler]] = [
    ("nowrap nobr nobreak small smaller big larger abbr mvar math tt code mono em strong sic nowrapped", _first),
    ("wikt as_of_text visible_anchor noitalic nobold italic bold allow_wrap tooltip hover_title j w esd", _first),
    ("vanchor anchor_text usurped num japonais zh_text not_a_typo as_written typo versalita", _first),
    ("flag flagcountry flagu country pays drapeau2 drapeau unicode polytonic grec hebrew he-n", _first),
    ("angbr angle_bracket keypress key key_press vr grapheme nts bibleverse linktext ruby флагификация", _first),
    ("число comment подсказка 仮リンク 補助漢字フォント 僻字 lj inglese dal fmtn ルビ 読み仮名", _first),
    ("ucfirst lcfirst kbd samp var underline huge midsize large overline vec nihongo2 ko-hhrm ruby-ja", _first),
    ("nihongo", lambda values, named: next(filter(None, values), "")),
    ("nihongo3", lambda values, named: "".join(values[2:3]) or _first(values, named)),
    ("korean", _named_or("hangul")),
    ("quote blockquote block_quote bquote quotation cquote centered quote_text poemquote zitat citaat cytat "
     "citazione citation_bloc cita citação цитата citat sitat lainaus idézet alıntı 引用 引文",
     _named_or("text quote content texto texte testo tekst inhalt citation цитата текст")),
    ('" qi quote_inline', _around('"', '"')),
    ("citation guil guillemets", _named_or("texte citation")),
    ("incise", _around("– ", " –")),
    ("ill interlanguage_link illm link-interwiki interlanguage_link_multi", _named_or("lt")),
    ("lien", lambda values, named: _named_or("texte fr trad")([*values[1:2], *values[:1]], named)),
    ("нп нп2 нп3 нп4 нп5 не_переведено iw", lambda values, named: "".join(values[1:2]) or _first(values, named)),
    ("le", lambda values, named: _named_or("lt d")([*filter(None, values[2:3]), *values[:1]], named)),
    ("tsl", lambda values, named: "".join((values[2:3] or values[1:2])[:1])),
    ("wikt-lang", lambda values, named: "".join((values[2:3] or values[1:2])[:1])),
    ("sc smallcaps small_caps sc1 sc2 uc", lambda values, named: _first(values, named).upper()),
    ("oldstyledate oldstyledatedy", lambda v, named: " ".join(v[:2])),  # Gregorian day, year; then Julian day
    ("simplenuclide simplenuclide2 nuclide", lambda values, named: "-".join(values[:2])),
    ("lang langx langue audio-text font color colour tooltip_text lang2 angbr_text script h:title resize textcolor "
     "rtl-lang llang lång cizojazyčně vjazyce2",
     _named_or("text texte", 1)),
    ("transl transliteration translit tlit", lambda values, named: "".join(values[-1:])),
    ("zh lang-zh", _named_or("s c t")),
    ("convert cvt unidad", _measure),
    ("unité unite unit", _french_measure),
    ("nombre", lambda values, named: " ".join(values[:2])),
    ("height", _size),
    ("formatnum", _grouped(",", ".")),
    ("lc", lambda values, named: _first(values, named).lower()),
    ("frac fraction sfrac bruch дробь", _fraction),
    ("circa ca. c. ca", _years("c.", " – c. ")),
    ("floruit fl. fl", _years("fl.")),
    ("reign r.", _years("r.")),
    ("b.", _years("b.")),
    ("d.", _years("d.")),
    ("start_date end_date film_date birth_date death_date birth-date death-date dob dts birth_date_and_age "
     "death_date_and_age start_date_and_age release_date", _date),
    ("as_of", _as_of),
    ("music", lambda values, named: _CONSTANTS.get(_first(values, named), _first(values, named))),
    ("section_link slink", _joined(" § ")),
    ("chem chem2 fchim gaps", _joined("")),
    ("val", _value),
    ("e exp10 ×10 ×10^ x10^ esp zahlexp", _power_of_ten),
    ("su", lambda values, named: "".join(f(named[n]) for n, f in (("b", lowered), ("p", raised)) if named.get(n))),
    ("pct", lambda values, named: f"{_first(values, named)}%"),
    ("deg degree °", lambda values, named: f"{_first(values, named)}°"),
    ("10^", lambda values, named: f"10^{_first(values, named)}"),
    ("radic sqrt", lambda values, named: f"√{_first(values, named)}"),
    ("sup exp hoch", lambda values, named: f"<sup>{_first(values, named)}</sup>"),
    ("sub ind tief", _first),
    ("ship", _any_ship),
    ("sclass sclass2 sclass- sclass2-", _ship_class),
    ("n° nº num°", lambda values, named: f"nº {_first(values, named)}".strip()),
    ("heure", lambda values, named: f"{_first(values, named)} h {''.join(values[1:2])}".strip()),
    ("siglo", _siglo),
    ("séc século", lambda values, named: f"século {values[0]}" if values else ""),
    ("höhe", lambda values, named: f"{values[0]} m" if values else ""),
    ("s siècle", _century),
    ("s-", lambda values, named: f"{values[0]}e" if values else ""),
    ("s2", lambda values, named: f"{'e et '.join(values[:2])}e siècles"),
    ("s2-", lambda values, named: f"{'e et '.join(values[:2])}e"),
    ("-s -s-", lambda values, named: f"{_century(values, named)} av. J.-C."),
    ("date date_de_naissance date_de_décès date-", _joined(" ")),
    *((names, _constant(text)) for names, text in _CONSTANTS.items()),
    *((code, _amount(sign)) for code, _, sign in (pair.partition("=") for pair in _CURRENCIES.split())),
    *((prefix, _ship(prefix.upper())) for prefix in _SHIPS.split()),
]  # fmt: skip
_HANDLERS = {name.replace("_", " "): handler for names, handler in _GROUPS for name in names.split()}
# Names that mean something else in some Wikipedias.
_BY_LANGUAGE: dict[tuple[str, str], Handler] = {
    ("ru", "s"): _first,  # a wrapper without line breaks
    ("uk", "s"): _first,
    ("be", "s"): _first,
    ("de", '"'): _around("„", "“"),
    ("fr", "citation"): _around("« ", " »"),
    ("fr", "guil"): _around("« ", " »"),
    ("fr", "guillemets"): _around("« ", " »"),
    ("fr", "sp"): lambda values, named: " ".join(["".join(values[:2]), *values[2:3]]),
    ("it", "m"): lambda values, named: _value(values[:2], {"u": "".join(values[2:3]), **named}),
    **{(code, "formatnum"): _grouped(".", ",") for code in _COMMA_IN_NUMBERS.split()},
    **{(code, "formatnum"): _grouped(" ", ",") for code in _SPACE_IN_NUMBERS.split()},
}


def template_text(content: str, language: str = "") -> str:
    """Return the words of a template, given the text between its braces; empty for most templates.

    `language` is the wiki's, such as `fr`: some names mean something else in another. Empty: unknown.
    """
    if len(content) > _LONGEST:
        return ""
    name, bar, rest = content.partition("|")
    if not bar and ":" in name:  # {{formatnum:1234}}, {{lc:Word}}
        name, _, rest = name.partition(":")
    handler = _handler(name.strip(), bool(bar), language)
    if handler is None or isinstance(handler, str):
        return handler or ""
    values, named = _arguments(rest)
    if handler is _century and language != "fr" and values and not _ROMAN.fullmatch(values[0]):
        handler = _first  # only French numbers centuries so: in other languages it keeps words on one line
    return handler(values, named)


@lru_cache(maxsize=2000)  # a page repeats few names
def _handler(name: str, has_values: bool, language: str) -> Handler | str | None:
    """Return how to make words of a template of this name, or the words themselves; None where it has none."""
    if _CENTURY.fullmatch(name) or (not has_values and _ORDINAL.fullmatch(name)):
        return name
    known = re.sub(r"^link-[a-z-]{2,12}$", "le", name.lower().replace("_", " "))
    handler = _BY_LANGUAGE.get((language, known)) or _HANDLERS.get(known)
    if handler is None and _IN_A_LANGUAGE.fullmatch(name.replace("_", " ")):
        handler = _named_or("text")
    return handler


def _arguments(rest: str) -> tuple[list[str], dict[str, str]]:
    """Return the positional and the named values of a template; a number is the name of a positional one."""
    numbered: dict[int, str] = {}
    named: dict[str, str] = {}
    n_unnamed = 0
    for value in _SEPARATOR.split(rest) if rest else []:
        match = _NAMED.match(value)
        if match is None:
            n_unnamed += 1
            numbered[n_unnamed] = value.strip()
        elif _NUMBER.fullmatch(match[1]):  # {{lang|fr|2=...}}
            numbered[int(match[1])] = value[match.end() :].strip()
        else:
            named[match[1].lower()] = value[match.end() :].strip()
    return [numbered.get(number, "") for number in range(1, max(numbered, default=0) + 1)], named
