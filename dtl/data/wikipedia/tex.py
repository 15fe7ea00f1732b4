"""Formulas of encyclopedias as plain text, where that is possible: `\\frac{a}{2}` as `a/2`, `x^2` as `x²`."""

# ruff: noqa: RUF001  (dashes, primes and letters of other scripts are what this file is about)
import re

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
_LONGEST = 80  # characters of a formula that still reads well inside a sentence


def raised(text: str) -> str:
    """An exponent: digits as superscripts, anything else after `^`."""
    text = text.strip()
    if text in ("°", "′", "*"):
        return text
    if text and all(ord(letter) in _SUPERSCRIPTS for letter in text):
        return text.translate(_SUPERSCRIPTS)
    return f"^{text}" if len(text) < 2 else f"^({text})"


def lowered(text: str) -> str:
    """An index: digits and the commonest letters as subscripts, anything else after `_`."""
    text = text.strip()
    if text and all(ord(letter) in _SUBSCRIPTS for letter in text):
        return text.translate(_SUBSCRIPTS)
    return f"_{text}" if len(text) < 2 else f"_({text})"


def tex_to_text(tex: str) -> str:
    """The formula on one line without TeX, or nothing where TeX would remain or a sentence could not hold it."""
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
    return "" if "\\" in text or "&" in text or len(text) > _LONGEST else text


def _operand(text: str) -> str:
    """Brackets around what is more than one number or name."""
    text = text.strip()
    return text if text.isalnum() else f"({text})"
