"""Style of all plots: colours, fonts, and figures as PNG and as SVG that follows the page's light or dark theme.

The SVG names colours by CSS variables, so that one drawing is legible on both backgrounds. Colours also differ in
lightness, and each has its own marker and dash pattern: no series is marked by hue alone.
"""

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# After Okabe and Ito, darkened to a contrast of 3:1 on white; the second of each pair is for a dark background.
SERIES = (
    ("#0072b2", "#4da6e0"),
    ("#d55e00", "#ff8a3d"),
    ("#00815d", "#2cc79a"),
    ("#a8487e", "#e592c6"),
    ("#7a6200", "#d9bc3a"),
    ("#3a93cb", "#a5d8ff"),
    ("#3d3d44", "#d4d4da"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), (0, (8, 2)), (0, (2, 2, 5, 2)))
INK, FAINT, GREY = ("#1b1b20", "#e8e8ec"), ("#d9d9de", "#3a3a42"), ("#8a8a91", "#7d7d86")
GROUND = ("#ffffff", "#16161a")
# Names of the CSS variables, by the light theme's colour that they replace in the SVG.
VARIABLES = {
    INK[0]: "--ink",
    FAINT[0]: "--faint",
    GREY[0]: "--grey",
    GROUND[0]: "--ground",
    **{light: f"--series-{number}" for number, (light, _) in enumerate(SERIES, 1)},
}
MAX_SVG_BYTES = 700_000  # a larger drawing is shown as its PNG
WIDTH = 10.0  # inches: the full width of the page


@dataclass(frozen=True)
class Drawing:
    """A finished plot as PNG and as markup."""

    name: str  # of its PNG, without suffix
    title: str
    caption: str  # how to read it
    alternative: str  # text for screen readers
    png: bytes
    inline: str  # markup for the page: an <svg>, or an <img> that holds the PNG


@dataclass(frozen=True)
class Skipped:
    """Placeholder for a plot that was not drawn, with the reason."""

    reason: str


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of all plots, with a backend that needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    settings: dict[Any, Any] = {
        "figure.facecolor": GROUND[0],
        "savefig.facecolor": GROUND[0],
        "axes.facecolor": "none",
        "text.color": INK[0],
        "axes.labelcolor": INK[0],
        "axes.edgecolor": GREY[0],
        "xtick.color": INK[0],
        "ytick.color": INK[0],
        "grid.color": FAINT[0],
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10.5,
        "font.size": 10,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "svg.fonttype": "path",
        "svg.hashsalt": "dtl",
        "text.parse_math": False,  # names of runs may contain dollar signs
        "figure.constrained_layout.use": True,
    }
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a box is drawn in its place
        yield


def new_figure(width: float, height: float) -> "Figure":
    """Return a figure outside pyplot's registry, which would keep it alive."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def finish(figure: "Figure", name: str, title: str, caption: str, alternative: str) -> Drawing:
    """Return the drawing of a figure: a PNG on white, and markup for the page."""
    svg = io.StringIO()
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
    png = _as_png(figure)
    figure.set_layout_engine("none")  # the PNG has computed the layout: not again for the SVG
    figure.savefig(svg, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    inline = _for_the_page(svg.getvalue(), name)
    if len(inline) > MAX_SVG_BYTES:
        inline = f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    return Drawing(name, title, caption, alternative, png, inline)


def _as_png(figure: "Figure") -> bytes:
    """Return the PNG with a palette: a third of the bytes, for pictures that a repository stores."""
    from PIL import Image

    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=150)
    Image.open(full).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()


def _for_the_page(svg: str, name: str) -> str:
    """Return the <svg> element at full width, with unique ids and with CSS variables as colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)  # repeats texts that are drawn as paths
    svg = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    # All drawings have one text size on a wide screen; a narrow screen shrinks them.
    svg = re.sub(r'(<svg[^>]*?) width="([0-9.]+)pt"', r'\1 style="max-width: \2pt"', svg, count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
