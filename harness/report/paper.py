"""Paper to draw on: CSS pixels on a bare matplotlib figure, and colours by role.

In SVG every colour is a CSS variable (`var(--fail)`), so one drawing serves light, dark and print;
in a file it is the colour of one theme. Texts are never read as mathematics.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D

from harness.report.words import short
from harness.verdict import Outcome

WIDE, HALF, PHONE = 1088, 528, 358

ROLES: dict[str, tuple[str, str]] = {
    "bg": ("#ffffff", "#12161b"),
    "ink": ("#1b1f24", "#e8ebef"),
    "ink2": ("#57606b", "#a3acb8"),
    "limit": ("#1b1f25", "#e8ebf0"),
    "line": ("#d5dae1", "#38404a"),
    "grid": ("#e6e9ee", "#252c34"),
    "band": ("#f1f3f6", "#1b2128"),
    "p50": ("#6497c6", "#4f86ba"),
    "p95": ("#2f6fb0", "#86bdf0"),
    "p99": ("#0b3a6b", "#e0f0ff"),
    "heat": ("#0b3a6c", "#a9d3ff"),
    "pass": ("#0b7285", "#4fd6b0"),
    "fail": ("#9b1035", "#ff6b6b"),
    "inconclusive": ("#8f6200", "#ffd166"),
    "invalid": ("#5b3fa0", "#bda4f6"),
    "fail-tint": ("#fbebef", "#381a20"),
    "invalid-tint": ("#f1edfa", "#272038"),
}
"""The colour of each role on a light and on a dark page."""

CODES = {role: f"#f0{i:02x}5a" for i, role in enumerate(ROLES)}
MARKS = {
    Outcome.PASS: ("o", "pass"),
    Outcome.FAIL: ("s", "fail"),
    Outcome.INCONCLUSIVE: ("D", "inconclusive"),
    Outcome.INVALID: ("o", "invalid"),
    Outcome.NO_DATA: ("s", "ink2"),
}
_RECTANGLE = re.compile(r"M (\S+) (\S+) L (\S+) \2 L \3 (\S+) L \1 \4 z ?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DECIMALS = re.compile(r"(\.\d)\d+")
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "harness",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "hatch.linewidth": 0.8,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Set matplotlib up for as long as something is drawn, and leave it as it was."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


Floats = Sequence[float] | npt.NDArray[np.float64]


class Paper:
    """A figure of `width` by `height` CSS pixels; y runs down from the top."""

    def __init__(
        self, width: int, height: int, colours: dict[str, str], *, head: int = 0, foot: int = 0
    ) -> None:
        self.width, self.height, self.phone = width, height, width <= PHONE
        self.colours = colours
        whole = head + height + foot
        self.figure = Figure(figsize=(width / 72, whole / 72), dpi=72, facecolor="none")
        self._place = (
            Affine2D().scale(1 / 72, -1 / 72).translate(0, (whole - head) / 72)
            + self.figure.dpi_scale_trans
        )
        self.size = 11 if self.phone else 12

    def _add(self, artist: Artist) -> None:
        artist.set_transform(self._place)
        artist.set_figure(self.figure)
        artist.set_zorder(len(self.figure.artists) + 1)  # as a painter: later lies on top
        self.figure.add_artist(artist)

    def line(
        self,
        xs: Floats,
        ys: Floats,
        role: str,
        width: float = 1.0,
        *,
        dash: str | None = None,
        alpha: float = 1.0,
    ) -> None:
        """Draw a line; `dash` is `dashed` or `dotted`."""
        style: Any = {"dashed": (0, (5, 3)), "dotted": (0, (1, 2.5)), None: "-"}[dash]
        self._add(
            Line2D(
                xs,
                ys,
                color=self.colours[role],
                linewidth=width,
                linestyle=style,
                alpha=alpha,
                solid_joinstyle="miter",
                solid_capstyle="butt",
            )
        )

    def mark(self, x: float, y: float, outcome: Outcome, size: float = 7.5) -> None:
        """Draw an outlined verdict mark."""
        shape, role = MARKS[outcome]
        self.dots([x], [y], shape, role, size, face="bg")

    def dots(
        self,
        xs: Floats,
        ys: Floats,
        shape: str,
        role: str,
        size: float,
        *,
        face: str | None = None,
        width: float = 1.8,
    ) -> None:
        """Draw markers, filled with `face` or the role's own colour."""
        self._add(
            Line2D(
                xs,
                ys,
                linestyle="none",
                marker=shape,
                markersize=size,
                markeredgecolor=self.colours[role],
                markeredgewidth=width,
                markerfacecolor=self.colours[face or role],
            )
        )

    def area(
        self,
        points: Iterable[Sequence[tuple[float, float]]],
        role: str,
        *,
        alpha: float = 1.0,
        hatch: bool = False,
        crisp: bool = False,
    ) -> None:
        """Fill polygons, all in one path; `hatch` strokes them instead."""
        parts = [Outline([*p, p[0]], closed=True) for p in points if len(p) > 2]
        if not parts:
            return
        colour = self.colours[role]
        patch = PathPatch(Outline.make_compound_path(*parts), linewidth=0, alpha=alpha)
        patch.set_facecolor("none" if hatch else colour)
        if hatch:
            patch.set_hatch("////")
            patch.set_edgecolor(colour)
        patch.set_antialiased(not crisp)
        if crisp:
            patch.set_gid("crisp")
        self._add(patch)

    def box(self, x0: float, y0: float, x1: float, y1: float, role: str, **how: Any) -> None:
        """Fill a rectangle."""
        self.area([rectangle(x0, y0, x1, y1)], role, **how)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        role: str = "ink2",
        *,
        size: float | None = None,
        align: Literal["left", "center", "right"] = "left",
        bold: bool = False,
        middle: bool = True,
    ) -> None:
        """Write one line, centred on `y` or standing on it."""
        size = size or self.size
        text = _CONTROL.sub(" ", text)
        self._add(
            Text(
                x,
                y + (0.36 * size if middle else 0),
                text,
                color=self.colours[role],
                fontsize=size,
                horizontalalignment=align,
                verticalalignment="baseline",
                fontweight="bold" if bold else "normal",
            )
        )

    def width_of(self, text: str, *, size: float | None = None, bold: bool = False) -> float:
        """Return how many pixels a text takes; other fonts of a reader's system are narrower."""
        font = FontProperties(weight="bold" if bold else "normal", size=size or self.size)
        width, _, _ = text_to_path.get_text_width_height_descent(
            _CONTROL.sub(" ", text), font, ismath=False
        )
        return float(width)

    def fitted(self, text: str, room: float, *, bold: bool = False) -> str:
        """Return the text, its middle left out where it does not fit into `room` pixels."""
        length = len(text)
        while length > 3 and self.width_of(short(text, length), bold=bold) > room:
            length -= 1
        return short(text, length)

    def svg(self, name: str, title: str, described: str) -> Markup:
        """Return the drawing as an SVG element, its colours as CSS variables."""
        FigureCanvasSVG(self.figure)
        out = io.StringIO()
        self.figure.savefig(out, format="svg", transparent=True)
        raw = out.getvalue()
        body = raw[raw.index("</metadata>") + len("</metadata>") : raw.rindex("</svg>")]
        body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
        body = re.sub(r' id="(?:figure|patch|line2d|text)_\d+"', "", body)
        body = body.replace(' id="crisp"', ' shape-rendering="crispEdges"')
        body = re.sub(r" font-family: [^;\"]*;?", "", body)
        body = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", body)
        body = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: _DECIMALS.sub(r"\1", found[0]), body)
        body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
        body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
        body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
        for role, code in CODES.items():
            body = body.replace(code, f"var(--{role})")
        body = _RECTANGLE.sub(r"M\1 \2H\3V\4H\1z", re.sub(r"\s*\n\s*", " ", body))
        body = re.sub(r">\s+<", "><", body)
        return Markup(  # noqa: S704 - matplotlib escapes its texts, we escape ours
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-labelledby="{name}-t {name}-d"><title id="{name}-t">{escape(title)}</title>'
            f'<desc id="{name}-d">{escape(described)}</desc>{body}</svg>'
        )

    def png(self, path: Path) -> None:
        """Write the drawing at two device pixels per CSS pixel."""
        FigureCanvasAgg(self.figure)
        self.figure.savefig(path, format="png", dpi=144, facecolor=self.colours["bg"])


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """Return the corners of a rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to pixels, linear or logarithmic, between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low / 1e3)), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def all(self, values: Floats) -> list[float]:
        """Return the pixels of several values; NaN stays NaN."""
        return [v if math.isnan(v) else self(float(v)) for v in values]

    def ticks(self, apart: float) -> list[float]:
        """Return round values between the ends, at least `apart` pixels from each other."""
        room = max(2, int(abs(self.end - self.start) / apart))
        if self.log:
            for steps in ((1, 2, 5), (1,)):
                decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)))
                found = [m * 10.0**d for d in decades for m in steps]
                found = [v for v in [*found, 10.0**decades.stop] if self.low <= v <= self.high]
                gaps = [abs(self(b) - self(a)) for a, b in itertools.pairwise(found)]
                if min(gaps, default=apart) >= apart:
                    return found
            return found
        size = 10 ** math.floor(math.log10((self.high - self.low) / room))
        step = next(m * size for m in (1, 2, 5, 10) if m * size * room >= self.high - self.low)
        first = math.ceil(self.low / step - 1e-7)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-7) + 1)]
