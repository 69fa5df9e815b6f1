"""The page and the facts behind it, held against runs whose truth is known."""

from __future__ import annotations

import html
import math
import os
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from report_samples import (
    HOSTILE,
    SAMPLES,
    WORSE_FROM_S,
    StageWindow,
    budgets,
    build,
    from_second,
)
from scipy.stats import binom

from harness.report import words
from harness.report.facts import (
    Heat,
    Knee,
    Load,
    Nines,
    OverTime,
    Waterfall,
    WhyNot,
    findings,
)
from harness.report.facts.over_time import _beyond_chance
from harness.report.facts.waterfall import find_waterfall
from harness.report.page import render_page
from harness.report.paper import ROLES
from harness.units import NARROW_SPACE, format_clock
from harness.verdict import Outcome, judge

VOID = {"meta", "link", "br", "wbr", "img", "hr", "input", "source"}


@cache
def found(name):
    recording, verdict = SAMPLES[name]()
    return SimpleNamespace(recording=recording, verdict=verdict, facts=findings(recording, verdict))


@pytest.fixture(scope="module")
def page():
    """The page of a sample, rendered once."""
    made = {}

    def render(name):
        if name not in made:
            run = found(name)
            made[name] = render_page(run.recording, run.verdict, run.facts)
        return made[name]

    return render


class Reader(HTMLParser):
    """Checks that tags nest, and collects what a browser would load, link and show."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.loads = [], [], [], []
        self.tags, self.shown = Counter(), []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        for name, value in attrs:
            if name in ("src", "srcset", "data", "action", "poster", "xlink:href") or (
                name == "href" and not value.startswith("#")
            ):
                self.loads.append(value)
            elif name == "href":
                self.links.append(value[1:])
            assert not name.startswith("on")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.shown.append(data)


# --- the facts -----------------------------------------------------------------------------------


def test_since_lies_within_one_window_of_the_second_in_which_latency_rose():
    facts = found("fail").facts
    since = facts.since
    first = next(w for w in facts.over_time.windows if w.flagged)
    assert since.stage == "spike"
    assert first.t0 <= since.t_s <= first.t1
    assert abs(since.t_s - WORSE_FROM_S) < first.t1 - first.t0
    assert since.offset_s == since.t_s - 360
    assert since.flagged == sum(w.flagged for w in facts.over_time.windows)


@pytest.mark.parametrize("rises_s", [70.0, 131.0])
def test_since_follows_the_truth_wherever_it_lies_in_a_stage(rises_s):
    stages = [StageWindow("steady", 0, 200, True, "constant 20/s", 20.0)]
    chosen = budgets([("chat.ttft p95 < 700ms", None)])
    recording = build(worse=from_second(rises_s, 2.0), stages=stages, chosen=chosen, seed=9)
    since = findings(recording, judge(recording, chosen)).since
    assert since is not None
    assert rises_s - 1 <= since.t_s <= rises_s + 12  # a request is counted when it ends


def test_a_run_that_holds_has_no_since_and_says_so():
    run = found("pass")
    assert run.facts.since is None
    heading = words.over_time(run.recording, run.facts, run.facts.over_time).heading
    assert " held: " in heading
    assert f"of {run.facts.over_time.judged} windows" in heading


def test_windows_hold_about_300_requests_and_never_cross_a_stage():
    run = found("fail")
    stages = {s.name: s for s in run.recording.stages}
    for window in run.facts.over_time.windows:
        assert 200 <= window.n <= 420
        assert stages[window.stage].start_s <= window.t0 < window.t1 <= stages[window.stage].end_s
    series = run.recording.series("spike", "chat", "ttft")
    spike = [w for w in run.facts.over_time.windows if w.stage == "spike"]
    assert sum(w.n for w in spike) == series.total.n


def test_a_window_is_flagged_exactly_when_chance_would_rarely_give_its_overs():
    for name in ("fail", "pass", "sweep", "many-steps"):
        facts = found(name).facts
        for w in facts.over_time.windows:
            if w.over is not None:
                p = binom.sf(w.over - 1, w.n, 1 - facts.subject.quantile)
                assert w.flagged == (p < 0.01)


@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.99, 0.999])
def test_one_window_in_a_hundred_is_flagged_by_chance_at_most(quantile):
    for over in range(300):
        p = binom.sf(over - 1, 300, 1 - quantile)
        assert _beyond_chance(300, over, quantile, 1.0) == (p < 0.01)


def test_gaps_between_tokens_are_no_more_evidence_than_the_requests_they_came_from():
    assert _beyond_chance(300, 12, 0.99, 1.0)
    assert _beyond_chance(30_000, 1200, 0.99, 1.0)
    assert not _beyond_chance(30_000, 500, 0.99, 100.0)


def test_a_percentile_is_left_out_of_a_window_that_is_too_small_for_it():
    stages = [StageWindow("steady", 0, 12, True, "constant 6/s", 6.0)]
    chosen = budgets([("chat.ttft p95 < 800ms", None)])
    recording = build(stages=stages, chosen=chosen, seed=2)
    (window,) = findings(recording, judge(recording, chosen)).over_time.windows
    assert 20 <= window.n < 100
    assert window.percentiles[1] is not None
    assert window.percentiles[2] is None


def test_the_focus_is_the_worst_failing_latency_budget_else_the_closest_to_its_limit():
    assert found("fail").facts.focus.budget.subject == "chat.ttft p99"
    run = found("pass")
    timed = [v for v in run.verdict.budgets if v.budget.kind == "time"]
    assert run.facts.focus.used == max(v.used for v in timed)


def test_the_heatmap_counts_every_request_once():
    run = found("fail")
    heat = run.facts.heat
    assert isinstance(heat, Heat)
    samples = [run.recording.series(s.name, "chat", "ttft").total for s in run.recording.stages]
    assert heat.counts.sum() == sum(h.n for h in samples)
    assert heat.edges[0] <= min(h.min for h in samples)
    assert heat.edges[-1] >= max(h.max for h in samples)
    assert heat.wider(10).counts.sum() == heat.counts.sum()
    assert heat.counts.shape[1] >= 24


@pytest.mark.parametrize("length_s", [12, 30, 400])
def test_short_runs_get_narrower_columns(length_s):
    stages = [StageWindow("steady", 0, length_s, True, "constant 5/s", 5.0)]
    load = findings(r := build(stages=stages), judge(r, ())).load
    assert isinstance(load, Load)
    assert len(load.t_s) >= min(24, length_s)
    assert load.column_s <= 5


def test_the_curve_by_nines_is_the_histograms_quantiles_with_an_open_end():
    run = found("fail")
    assert isinstance(run.facts.nines, Nines)
    curve = run.facts.nines.curves[0]
    total = run.recording.series(curve.stage, "chat", "ttft").total
    at = int(np.argmin(abs(curve.nines - 1)))
    assert curve.values[at] == total.quantile(1 - 10 ** -curve.nines[at])
    assert math.isclose(curve.solid_to, math.log10(total.n / 10))
    assert math.isnan(curve.high[-1])


def test_the_step_that_was_made_slow_is_named_and_shares_add_up():
    facts = found("fail").facts
    assert isinstance(facts.waterfall, Waterfall)
    assert facts.slow_step.step == "answer/generate"
    assert facts.slow_step.share > 0.9
    assert math.isclose(sum(bar.share for bar in facts.waterfall.bars), 1, abs_tol=1e-6)
    assert math.isclose(
        sum(bar.slow_length for bar in facts.waterfall.bars), facts.waterfall.slow, rel_tol=1e-6
    )


def test_no_waterfall_is_drawn_of_a_stage_that_was_not_measured_properly():
    assert found("invalid").facts.waterfall.stage == "steady"


def test_time_in_a_step_that_holds_other_steps_counts_once():
    from harness.recorder import Journey, StepSpan
    from harness.report.facts.waterfall import _means

    steps = [("a", 0, 100), ("a/b", 10, 40), ("a/c", 40, 90)]
    spans = tuple(StepSpan(s, a, b, None, {}) for s, a, b in steps)
    means = _means([Journey("s", "a", 0.0, 100, True, "random", spans)])
    assert means == {"a/b": (10, 30), "a/c": (40, 50), "": (80, 20)}


def test_journeys_of_one_request_have_no_waterfall_and_say_why():
    run = found("pass")
    only = [j for j in run.recording.journeys if j.root == "chat"]
    fake = SimpleNamespace(journeys=only, stages=run.recording.stages)
    why = find_waterfall(fake, run.verdict.budgets, frozenset())
    assert why == WhyNot("Every journey is one request, so there are no steps to tell apart.")


def test_the_knee_holds_up_to_the_last_level_before_the_first_that_does_not_pass():
    facts = found("sweep").facts
    assert isinstance(facts.capacity, Knee)
    outcomes = [level.outcome for level in facts.capacity.levels]
    passing = outcomes.index(next(o for o in outcomes if o is not Outcome.PASS))
    assert facts.capacity.holds is facts.capacity.levels[passing - 1]
    assert facts.capacity.breaks.outcome is Outcome.FAIL


def test_errors_are_counted_by_kind_and_stage_with_their_first_time():
    run = found("fail")
    total = sum(sum(kind.by_stage.values()) for kind in run.facts.errors)
    stages = run.recording.stages
    assert total == sum(run.recording.requests(s.name, "run").n_failed for s in stages)
    worst = run.facts.errors[0]
    assert worst.kind == "status 429"
    assert worst.by_stage["spike"] > worst.by_stage["steady"]


def test_a_short_run_says_for_every_chart_why_it_is_left_out():
    facts = found("tiny").facts
    for chart in (facts.over_time, facts.heat, facts.nines, facts.capacity, facts.waterfall):
        assert isinstance(chart, WhyNot)
        assert "eeds at least" in chart.reason
        assert "has" in chart.reason or "level" in chart.reason


# --- the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_a_page_is_well_formed_and_loads_nothing(page, name):
    reader = Reader(page(name))
    assert reader.tags["script"] == 0
    assert set(reader.loads) == {"data:,"}
    assert reader.tags["h1"] == 1
    assert "@import" not in page(name)
    assert not re.search(r"url\((?!#)", page(name))


@pytest.mark.parametrize("name", SAMPLES)
def test_ids_of_a_page_differ_and_every_link_inside_it_arrives(page, name):
    reader = Reader(page(name))
    assert max(Counter(reader.ids).values()) == 1
    assert set(reader.links) <= set(reader.ids)
    labels = " ".join(re.findall(r'aria-labelledby="([^"]+)"', page(name))).split()
    assert set(labels) <= set(reader.ids)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("pass", "PASS"),
        ("fail", "FAIL"),
        ("invalid", "INVALID"),
        ("inconclusive", "INCONCLUSIVE"),
        ("no-data", "NO DATA"),
    ],
)
def test_the_verdict_is_a_word_and_a_shape(page, name, word):
    big = re.search(r'<p class="big">(.*?)</p>', page(name), re.DOTALL)[1]
    slug = word.lower().replace(" ", "-")
    assert big.endswith(word)
    assert f'href="#m-{slug}"' in big
    assert f'<symbol id="m-{slug}"' in page(name)


def test_every_colour_is_defined_for_light_and_for_dark_and_print_is_always_light(page):
    text = page("fail")
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", text)) - {"depth"}
    light, dark = re.findall(r":root \{ ([^}]*) \}", text)
    for theme in (light, dark):
        assert used <= set(re.findall(r"--([a-z0-9-]+):", theme)) == set(ROLES)
    assert "@media screen and (prefers-color-scheme: dark)" in text
    assert "(prefers-color-scheme" not in text.replace(
        "screen and (prefers-color-scheme: dark)", ""
    )
    assert "A4 landscape" in text


def test_hostile_names_are_text_and_nothing_else(page):
    text = page("hostile")
    assert html.escape(HOSTILE.replace("/", "")) in text.replace("/<wbr>", "").replace("/", "")
    assert "<script" not in text
    assert "<b>$s$</b>" not in text
    assert "$x$" in "".join(Reader(text).shown)


def test_the_headings_say_what_the_facts_say(page):
    run, text = found("fail"), page("fail")
    since = run.facts.since
    assert format_clock(since.t_s) in re.search(r'<h2 id="since">(.*?)</h2>', text)[1]
    assert "nearly all" in re.search(r'<h2 id="step">(.*?)</h2>', text)[1]
    heading = re.search(r'<h2 id="budgets">(.*?)</h2>', text)[1]
    assert heading == "2 of 9 budgets are broken"
    assert run.verdict.tallies()[Outcome.FAIL] == 2


def test_a_generator_that_fell_behind_is_named_with_what_was_never_sent(page):
    shown = " ".join(Reader(page("invalid")).shown)
    assert "spike not measured properly" in shown
    assert f"29{NARROW_SPACE}% of requests were never sent" in shown
    assert "not judged" in shown


def test_a_run_without_data_says_what_happened_instead_of_drawing_nothing(page):
    reader = Reader(page("no-data"))
    shown = " ".join(reader.shown)
    assert "Every chart is left out." in shown
    assert "600 failed" in shown
    assert "connect" in shown
    assert reader.tags["figure"] == 0


def test_every_chart_that_is_left_out_has_a_dashed_box_with_the_reason(page):
    boxes = re.findall(r'<p class="left-out"><strong>(.*?)</strong>(.*?)</p>', page("tiny"))
    assert len(boxes) == 6
    assert all(reason.strip() for _, reason in boxes)
    assert any("No baseline" in reason for _, reason in boxes)


def test_forty_budgets_show_what_did_not_pass_and_the_five_closest(page):
    text = page("many-steps")
    shown, folded = text.split(" more budgets pass, none above ")
    rows = re.findall(r'<tr class="(pass|fail|inconclusive|invalid)">', shown)
    assert Counter(rows) == {"fail": 2, "pass": 5}
    assert re.search(r"<summary>(\d+)$", shown)[1] == "33"
    assert folded.count('<tr class="pass">') == 33


def test_two_hundred_steps_become_a_table_of_twelve_and_the_rest(page):
    text = page("many-steps")
    table = re.search(r'<table class="extra">.*?</table>', text, re.DOTALL)[0]
    assert table.count("<tr>") == 1 + 12
    assert "188 other steps" in table
    assert "1 of 200 steps" in text


def test_a_reason_that_holds_for_several_budgets_is_given_once(page):
    reasons = re.findall(r"<small>(.*?)</small>", page("invalid"))
    assert len(reasons) == 1
    assert found("invalid").verdict.tallies()[Outcome.INVALID] == 3


def test_long_names_are_cut_in_the_middle_and_whole_in_the_title(page):
    name = "answer/tool_call_customer_order_policy_check_v2/step_013_retrieve.e2el"
    cut = words.short(name)
    assert len(cut) == 46
    assert f'title="{name}"' in page("many-steps")
    assert cut.replace("/", "/<wbr>").replace("_", "_<wbr>") in page("many-steps")


def test_under_every_chart_stand_its_numbers(page):
    text = page("fail")
    assert text.count("<figure>") == text.count('<details class="numbers">')
    first = found("fail").facts.over_time.windows[0]
    assert f"{format_clock(first.t0)} – {format_clock(first.t1)}" in text


def test_only_metrics_that_occur_are_defined(page):
    defined = re.findall(r"<dt>([a-z0-9_]+)</dt>", page("fail"))
    assert "ttft" in defined
    assert "goodput" in defined
    assert "ttfo" not in defined


def test_other_broken_budgets_have_their_charts_folded(page):
    others = re.findall(r'<details class="other"><summary>(.*?)</summary>', page("fail"))
    assert len(others) == 1
    assert others[0].startswith("answer.e2el p99")


# --- numbers in words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0"), (0.0004, "<1"), (0.986, "99"), (0.999, "≈100"), (1, "100"), (-0.02, "−2")],
)
def test_whole_percents_never_round_to_nothing_or_all(share, text):
    assert words.percent(share) == f"{text}{NARROW_SPACE}%"


@pytest.mark.parametrize(("share", "text"), [(1.02, "all"), (0.997, "nearly all")])
def test_a_step_that_makes_more_than_all_of_the_extra_time_makes_all_of_it(share, text):
    assert words.share_of_extra(share) == text


def test_limits_are_written_as_they_were_declared():
    (budget,) = budgets([("chat.ttft p99 < 1500ms", None)])
    assert words.limit_of(budget) == f"1500{NARROW_SPACE}ms"


# --- in a browser --------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="chromium is not installed"
)
@pytest.mark.parametrize("name", ["fail", "many-steps", "hostile"])
def test_nothing_scrolls_sideways_on_a_phone(page, tmp_path, name):
    assert CHROMIUM, "CI must have chromium"
    inside = html.escape(page(name), quote=True)
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" style="border:0;width:390px;height:844px" srcdoc="{inside}"></iframe>'
        "<script>onload = () => { const root = f.contentDocument.documentElement;"
        "document.title = root.clientWidth + ' ' + root.scrollWidth; }</script>",
        encoding="utf-8",
    )
    dom = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars"),
            *("--window-size=800,900", "--dump-dom", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    client, scroll = map(int, re.search(r"<title>(\d+) (\d+)</title>", dom).groups())
    assert 370 <= client <= 390
    assert scroll <= client


def test_over_time_facts_exist_for_a_run_without_budgets():
    facts = found("users").facts
    assert isinstance(facts.over_time, OverTime)
    assert facts.over_time.judged == 0
