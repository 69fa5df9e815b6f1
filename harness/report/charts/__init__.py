"""Draws the facts: each chart once as themed SVG (wide and for phones) and as PNG files.

Lines are labelled where they end; there are no legend boxes. A chart of which nothing is known is
not drawn: its facts are a `WhyNot`, and the page says so in its place.
"""

from harness.report.charts.render import (
    CHARTS,
    Chart,
    Drawing,
    draw_all,
    drawn,
    facts_of,
    write_charts,
)

__all__ = ["CHARTS", "Chart", "Drawing", "draw_all", "drawn", "facts_of", "write_charts"]
