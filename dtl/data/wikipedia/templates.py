"""Templates and formulas that are part of a sentence, as text.

Every other template is a box, a mark, a reference or navigation, and is cut.
"""

import re
from collections.abc import Callable

# --- formulas -----------------------------------------------------------------------------------------------------
# TeX as plain text, where that is possible: `\frac{a}{2}` as `a/2`, `x^2` as `x²`.

# ruff: noqa: RUF001  (dashes, primes and letters of other scripts are what this file is about)

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


def raised(text: str) -> str:
    """Return an exponent: digits as superscripts, anything else after `^`."""
    text = text.strip()
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


def _measure(values: list[str]) -> str:
    """Return `{{convert|5|km|mi}}` and its ranges in the unit that the author gave."""
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


def _constant(text: str) -> Callable[[list[str]], str]:
    return lambda values: text


def _joined(separator: str) -> Callable[[list[str]], str]:
    return lambda values: separator.join(values)


def _table() -> dict[str, Callable[[list[str]], str]]:
    """Return handlers by the templates' names, in lower case. Most Wikipedias accept the English names."""
    groups: list[tuple[str, Callable[[list[str]], str]]] = [
        ("nowrap nobr nobreak small smaller big larger abbr mvar math tt code mono em strong sic", _first),
        ("ill interlanguage_link illm lien wikt wikt-lang quote blockquote cquote as_of_text visible_anchor", _first),
        ("vanchor anchor_text usurped lc uc ucfirst formatnum num nombre nihongo japonais zh_text", _first),
        ("flag flagcountry flagu country pays drapeau2 drapeau unicode polytonic grec hebrew he-n", _first),
        ("angbr angle_bracket keypress key key_press vr grapheme nts bibleverse", _first),
        ("sc smallcaps small_caps sc1 sc2", lambda values: _first(values).upper()),
        ("oldstyledate oldstyledatedy", lambda values: " ".join(values[:2])),  # Gregorian day, year; then Julian day
        ("eqm", _constant("⇌")),
        ("simplenuclide simplenuclide2 nuclide", lambda values: "-".join(values[:2])),
        ("lang langue audio-text font color colour tooltip_text lang2 angbr_text script", lambda v: "".join(v[1:2])),
        ("transl transliteration translit", lambda values: "".join(values[-1:])),
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
    """Return the words of a template, given the text between its braces; empty for most templates."""
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
