"""The drawings: every colour a role, every text whole and legible, the numbers said in words."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image
from report_samples import HOSTILE, SAMPLES

from harness.report import charts, words
from harness.report.charts.course import draw_over_time
from harness.report.charts.distribution import _around_zero
from harness.report.facts import Findings, Load, Nines, OverTime, findings
from harness.report.paper import ROLES, Paper, Scale, drawing
from harness.units import format_clock

NAMES = [
    "fail",
    "pass",
    "invalid",
    "sweep",
    "users",
    "tiny",
    "hostile",
    "many-steps",
    "steady",
    "repeated",
    "overloaded",
]


@cache
def found(name):
    recording, verdict = SAMPLES[name]()
    return recording, verdict, findings(recording, verdict)


@dataclass
class Measured:
    """One drawing of a sample: its size, and where each of its texts lies."""

    where: str
    width: float
    height: float
    boxes: list[tuple[str, Bbox]]


@cache
def measured(name):
    """Every drawing of a sample with its texts measured, wide and for phones."""
    recording, _, facts_of_run = found(name)
    light = {role: pair[0] for role, pair in ROLES.items()}
    every = []
    with drawing():
        for chart in charts.CHARTS:
            facts = charts.facts_of(chart, facts_of_run)
            if facts is None:
                continue
            for phone in (False, True):
                paper = Paper(*chart.size(facts, phone=phone), light)
                chart.draw(paper, recording, facts_of_run, facts)
                renderer = FigureCanvasAgg(paper.figure).get_renderer()
                boxes = [
                    (t.get_text(), t.get_window_extent(renderer))
                    for t in paper.figure.findobj(Text)
                    if t.get_text()
                ]
                every.append(
                    Measured(f"{chart.name} {paper.width}", paper.width, paper.height, boxes)
                )
    return every


@cache
def drawn(name):
    """Every SVG of a sample, as its page has them."""
    recording, _, facts = found(name)
    return charts.draw_all(recording, facts)


@pytest.mark.parametrize("name", NAMES)
def test_no_text_leaves_its_drawing(name):
    for one in measured(name):
        for text, box in one.boxes:
            assert box.x0 >= -1, (one.where, text)
            assert box.x1 <= one.width + 4, (one.where, text)
            assert box.y0 >= -4, (one.where, text)
            assert box.y1 <= one.height + 4, (one.where, text)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_texts_of_a_drawing_overlap(name):
    for picture in measured(name):
        for (one, a), (other, b) in itertools.combinations(picture.boxes, 2):
            wide = min(a.x1, b.x1) - max(a.x0, b.x0)
            high = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert wide < 3 or high < 5, (picture.where, one, other)


@pytest.mark.parametrize("name", ["fail", "invalid", "sweep"])
def test_every_colour_of_an_svg_is_a_role(name):
    for picture in drawn(name).values():
        for svg in (picture.wide, picture.phone):
            assert not re.search(r"#[0-9a-f]{6}\b", svg)
            assert set(re.findall(r"var\(--([a-z0-9-]+)\)", svg)) <= set(ROLES)


def test_an_svg_carries_no_font_family_so_that_the_page_decides():
    for picture in drawn("fail").values():
        assert "font-family" not in picture.wide
        assert "DejaVu" not in picture.wide


def test_every_drawing_says_its_finding_and_its_numbers_to_those_who_cannot_see_it():
    _, verdict, _ = found("fail")
    for picture in drawn("fail").values():
        for svg in (picture.wide, picture.phone):
            assert 'role="img"' in svg
            assert re.search(r"<title id=\"[^\"]+\">[^<]{10,}</title>", svg)
            assert re.search(r"<desc id=\"[^\"]+\">[^<]*\d[^<]*</desc>", svg)
    assert words.observed(verdict.budgets[0]) in drawn("fail")["nines"].wide


def test_ids_of_all_drawings_of_a_page_differ_and_every_reference_has_its_target():
    recording, _, facts = found("fail")
    every = dict(drawn("fail"))
    every |= {f"o-{k}": d for k, d in charts.draw_all(recording, facts, prefix="o-").items()}
    text = "".join(d.wide + d.phone for d in every.values())
    ids = Counter(re.findall(r'\bid="([^"]+)"', text))
    assert max(ids.values()) == 1
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_a_name_with_dollars_and_tags_is_drawn_as_it_is_written():
    svg = drawn("hostile")["waterfall"].wide
    assert re.search(r"<text[^>]*>answer/\$x\$ &amp; \$y\$</text>", svg)
    assert "<script" not in svg
    assert HOSTILE not in svg


def test_the_squares_in_the_picture_are_the_flagged_windows_of_the_facts():
    recording, _, facts = found("fail")
    assert isinstance(facts.over_time, OverTime)
    seen = []
    paper = Paper(1088, 260, {role: pair[0] for role, pair in ROLES.items()})
    paper.mark = lambda x, y, outcome, size=0: seen.append(outcome)  # type: ignore[method-assign]
    draw_over_time(paper, recording, facts, facts.over_time)
    assert len(seen) == facts.over_time.flagged > 1


def texts(name, chart):
    return [text for one in measured(name) if one.where.startswith(chart) for text, _ in one.boxes]


def test_the_begin_of_an_overload_is_marked_where_the_load_is_shown():
    _, _, facts = found("overloaded")
    (begin,) = facts.overloads
    assert 60 <= begin < 75
    said = f"overload since {format_clock(begin)}"
    assert texts("overloaded", "load").count(said) == 2  # wide, and for phones
    assert not any("overload" in text for text in texts("fail", "load"))
    heading = drawn("overloaded")["load"].words.heading
    assert heading == f"The target got the planned load, and could not keep up from {said[15:]} on"


def test_repetitions_are_one_curve_with_each_run_beside_it():
    recording, verdict, facts = found("repeated")
    assert isinstance(facts.nines, Nines)
    (curve,) = facts.nines.curves
    assert (
        curve.n
        == verdict.budgets[0].n
        == sum(recording.series(stage.name, "chat", "ttft").total.n for stage in recording.stages)
    )
    assert len(curve.runs) == 4
    at = int(np.abs(curve.nines - np.log10(2)).argmin())
    assert max(curve.runs, key=lambda run: run[at]) is curve.runs[3]
    assert min(run[at] for run in curve.runs) < curve.values[at] < curve.runs[3][at]
    assert "Thin lines: each run by itself." in words.nines(recording, facts, facts.nines).note
    assert any(text.startswith("steady, run 4") for text in texts("repeated", "over-time"))
    assert isinstance(facts.load, Load)
    late = replace(facts.load, shortfalls={"steady~2": 0.2})
    said = words.load(recording, replace(facts, invalid_stages=frozenset(["steady~2"])), late)
    assert "behind its plan in the steady stage of run 2: 20" in said.heading


def test_a_difference_has_its_axis_where_the_curve_is():
    values = np.array([50.0, 60.0, 80.0])
    axis = _around_zero([values, values - 5, values + 10], 300, 0)
    assert axis.low < 0 < axis.high
    assert axis(0) - axis(90) > 0.7 * 300
    assert axis.ticks(26)[0] <= 0


def test_files_are_written_light_and_dark_at_two_pixels_per_css_pixel(tmp_path):
    recording, verdict, facts = found("fail")
    files = charts.write_charts(tmp_path, recording, verdict, facts)
    names = {f.name for f in files}
    for chart in ("waterfall", "over-time", "load", "heatmap", "nines", "budgets"):
        assert {f"{chart}-light.png", f"{chart}-dark.png"} <= names
    with Image.open(tmp_path / "charts" / "over-time-light.png") as light:
        assert light.width == 2 * 1088
        assert light.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    with Image.open(tmp_path / "charts" / "over-time-dark.png") as dark:
        assert dark.convert("RGB").getpixel((2, 2)) == (0x12, 0x16, 0x1B)


def test_a_run_without_data_writes_only_what_it_has(tmp_path):
    recording, verdict, facts = found("no-data")
    names = {f.name for f in charts.write_charts(tmp_path, recording, verdict, facts)}
    assert names == {f"{c}-{t}.png" for c in ("load", "budgets") for t in ("light", "dark")}


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (Scale(0, 100, 0, 500), [0, 20, 40, 60, 80, 100]),
        (Scale(90, 2100, 0, 400, log=True), [100, 200, 500, 1000, 2000]),
    ],
)
def test_ticks_are_round_values(scale, expected):
    assert np.allclose(scale.ticks(60), expected)


def test_ticks_never_stand_closer_than_asked():
    for high in np.geomspace(3, 1e7, 40):
        for log in (False, True):
            scale = Scale(0.7 if log else 0, float(high), 200, 0, log=log)
            places = [scale(t) for t in scale.ticks(24)]
            assert len(places) >= 1
            assert all(a - b >= 23.9 for a, b in itertools.pairwise(places))


def test_findings_without_a_budget_still_have_charts():
    _, _, facts = found("users")
    assert isinstance(facts, Findings)
    assert facts.focus is None
    assert set(drawn("users")) == {
        "waterfall",
        "over-time",
        "load",
        "heatmap",
        "nines",
    } - ({"waterfall"} if not hasattr(facts.waterfall, "bars") else set())
