"""The drawings: every colour a role, every text whole and legible, the numbers said in words."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from report_samples import HOSTILE, SAMPLES

from harness.report import charts, words
from harness.report.facts import Findings, OverTime, findings
from harness.report.paper import PHONE, ROLES, Paper, Scale, drawing

NAMES = ["fail", "pass", "invalid", "sweep", "users", "tiny", "hostile", "many-steps", "steady"]


@cache
def found(name):
    recording, verdict = SAMPLES[name]()
    return recording, verdict, findings(recording, verdict)


def papers(name):
    """Every drawing of a sample as paper with its texts measured, wide and for phones."""
    recording, _, facts_of_run = found(name)
    light = {role: pair[0] for role, pair in ROLES.items()}
    with drawing():
        for chart in charts._CHARTS:
            facts = charts._facts_of(chart, facts_of_run)
            if facts is None:
                continue
            for width in (chart.width, PHONE):
                paper = Paper(width, chart.height(facts), light)
                chart.draw(paper, recording, facts_of_run, facts)
                renderer = FigureCanvasAgg(paper.figure).get_renderer()
                boxes = [
                    (t.get_text(), t.get_window_extent(renderer))
                    for t in paper.figure.findobj(Text)
                    if t.get_text()
                ]
                yield f"{chart.name} {width}", paper, boxes


@pytest.mark.parametrize("name", NAMES)
def test_no_text_leaves_its_drawing(name):
    for where, paper, boxes in papers(name):
        for text, box in boxes:
            assert box.x0 >= -1, (where, text)
            assert box.x1 <= paper.width + 4, (where, text)
            assert box.y0 >= -4, (where, text)
            assert box.y1 <= paper.height + 4, (where, text)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_texts_of_a_drawing_overlap(name):
    for where, _, boxes in papers(name):
        for (one, a), (other, b) in itertools.combinations(boxes, 2):
            wide = min(a.x1, b.x1) - max(a.x0, b.x0)
            high = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert wide < 3 or high < 5, (where, one, other)


@pytest.mark.parametrize("name", ["fail", "invalid", "sweep"])
def test_every_colour_of_an_svg_is_a_role(name):
    recording, _, facts = found(name)
    for drawn in charts.draw_all(recording, facts).values():
        for svg in (drawn.wide, drawn.phone):
            assert not re.search(r"#[0-9a-f]{6}\b", svg)
            assert set(re.findall(r"var\(--([a-z0-9-]+)\)", svg)) <= set(ROLES)


def test_an_svg_carries_no_font_family_so_that_the_page_decides():
    recording, _, facts = found("fail")
    for drawn in charts.draw_all(recording, facts).values():
        assert "font-family" not in drawn.wide
        assert "DejaVu" not in drawn.wide


def test_every_drawing_says_its_finding_and_its_numbers_to_those_who_cannot_see_it():
    recording, verdict, facts = found("fail")
    for drawn in charts.draw_all(recording, facts).values():
        for svg in (drawn.wide, drawn.phone):
            assert 'role="img"' in svg
            assert re.search(r"<title id=\"[^\"]+\">[^<]{10,}</title>", svg)
            assert re.search(r"<desc id=\"[^\"]+\">[^<]*\d[^<]*</desc>", svg)
    assert words.observed(verdict.budgets[0]) in charts.draw_all(recording, facts)["nines"].wide


def test_ids_of_all_drawings_of_a_page_differ_and_every_reference_has_its_target():
    recording, _, facts = found("fail")
    every = dict(charts.draw_all(recording, facts))
    every |= {f"o-{k}": d for k, d in charts.draw_all(recording, facts, prefix="o-").items()}
    text = "".join(d.wide + d.phone for d in every.values())
    ids = Counter(re.findall(r'\bid="([^"]+)"', text))
    assert max(ids.values()) == 1
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_a_name_with_dollars_and_tags_is_drawn_as_it_is_written():
    recording, _, facts = found("hostile")
    svg = charts.draw_all(recording, facts)["waterfall"].wide
    assert re.search(r"<text[^>]*>answer/\$x\$ &amp; \$y\$</text>", svg)
    assert "<script" not in svg
    assert HOSTILE not in svg


def test_the_squares_in_the_picture_are_the_flagged_windows_of_the_facts():
    recording, _, facts = found("fail")
    assert isinstance(facts.over_time, OverTime)
    seen = []
    paper = Paper(1088, 260, {role: pair[0] for role, pair in ROLES.items()})
    paper.mark = lambda x, y, outcome, size=0: seen.append(outcome)  # type: ignore[method-assign]
    charts.draw_over_time(paper, recording, facts, facts.over_time)
    assert len(seen) == facts.over_time.flagged > 1


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
    recording, _, facts = found("users")
    assert isinstance(facts, Findings)
    assert facts.focus is None
    assert set(charts.draw_all(recording, facts)) == {
        "waterfall",
        "over-time",
        "load",
        "heatmap",
        "nines",
    } - ({"waterfall"} if not hasattr(facts.waterfall, "bars") else set())
