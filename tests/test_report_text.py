"""Terminal, Markdown, JUnit and JSON say the same verdict, whatever the names and numbers are."""

from __future__ import annotations

import json
import re
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from harness.budget import Budget, parse_budget
from harness.recorder import Limits, Recorder, Recording, RunFolder, StageWindow, load_recording
from harness.report import export
from harness.report.export import verdict_json
from harness.report.facts import Findings, SlowStep, findings
from harness.report.junit import render_junit
from harness.report.markdown import github_annotations, render_markdown
from harness.report.terminal import render_terminal
from harness.verdict import BudgetVerdict, Outcome, Verdict, judge

MS = 1_000_000
BROKEN = (
    "chat.ttft p99 < 300ms",
    "answer/generate.e2el p99.9 < 10s",
    "chat.ttft p50 < 300ms",
    "run.goodput > 10%",
    "run.error_rate < 50%",
    "chat.output_tokens max < 500",
    "run.rate > 5/s",
)
HELD = ("chat.ttft p50 < 500ms", "run.error_rate < 50%")

# --- runs -----------------------------------------------------------------------------------------


def limits(budgets: list[Budget]) -> Limits:
    tops: dict[tuple[str, str], tuple[int, ...]] = {}
    for b in budgets:
        if b.kind in ("time", "tokens"):
            tops[b.step, b.metric] = (*tops.get((b.step, b.metric), ()), b.threshold)
    return Limits(thresholds=tops)


def second(r: Recorder, rng: np.random.Generator, stage: str, t_s: int, slow: float) -> None:
    """Twenty chats and ten answers of two steps; now and then a chat fails."""
    load = r.load(stage)
    load.planned += 30
    load.sent += 30
    load.finished += 30
    for _ in range(20):
        ttft = int(rng.lognormal(np.log(150 * MS * slow), 0.3))
        tokens = int(rng.integers(20, 90))
        r.request(
            stage, "chat", {"ttft": ttft, "e2el": 2 * ttft, "output_tokens": tokens, "send_lag": MS}
        )
    for _ in range(10):
        rank, generate = (int(rng.lognormal(np.log(m * MS), 0.3)) for m in (80, 900))
        r.request(stage, "answer/rank", {"e2el": rank})
        r.request(stage, "answer/generate", {"e2el": generate})
        r.request(stage, "answer", {"e2el": rank + generate, "send_lag": MS})
        spans = [("answer/rank", 0, rank), ("answer/generate", rank, rank + generate)]
        r.journey(
            {
                "stage": stage,
                "root": "answer",
                "t_s": t_s,
                "duration_ns": rank + generate,
                "ok": True,
                "steps": [
                    {"step": s, "start_ns": a, "end_ns": b, "failure": None, "detail": {}}
                    for s, a, b in spans
                ],
            }
        )
    if t_s % 20 == 0:
        load.failed += 1
        r.request(stage, "chat", {}, failure="status 429")


def record(
    texts: tuple[str, ...], *, dropped: int = 0, answered: bool = True, **run: object
) -> Recording:
    """Forty seconds at 20/s, then forty at 2.4 times the latency, through a real run folder."""
    stages = [
        StageWindow("steady", 0, 40, True, "poisson 30/s", 30.0),
        StageWindow("spike", 40, 80, True, "poisson 30/s", 30.0),
    ]
    described = {
        "name": "checkout-assistant",
        "id": "418",
        "target": {"url": "https://chat/v1", "api": "openai-chat", "model": "m"},
        "seed": 7,
        "interval_s": 1.0,
        "stages": [asdict(s) for s in stages],
        **run,
    }
    folder = RunFolder.create(Path(tempfile.mkdtemp()) / "run", described)
    folder.begin(1_795_183_320.0)
    recorder = Recorder(limits([parse_budget(text) for text in texts]))
    rng = np.random.default_rng(1)
    for t_s in range(80):
        stage = "steady" if t_s < 40 else "spike"
        if answered:
            second(recorder, rng, stage, t_s, 1.0 if t_s < 40 else 2.4)
        else:
            recorder.load(stage).planned += 1
            recorder.load(stage).sent += 1
            recorder.load(stage).failed += 1
            recorder.request(stage, "chat", {}, failure="connect")
        if stage == "spike":
            recorder.load(stage).planned += dropped
            recorder.load(stage).dropped += dropped
        folder.append(recorder.flush(t_s, cpu=0.3))
    folder.update(status=run.get("status", "complete"))
    folder.close()
    return load_recording(folder.path)


Sample = tuple[Recording, Verdict, Findings]


def judged(recording: Recording, texts: tuple[str, ...]) -> Sample:
    verdict = judge(recording, [parse_budget(text) for text in texts])
    return recording, verdict, findings(recording, verdict)


@cache
def failed() -> Sample:
    recording, verdict, found = judged(record(BROKEN), BROKEN)
    slow = SlowStep(step="answer/generate", share=0.993, root="answer", stage="spike")
    return recording, verdict, replace(found, slow_step=slow)


@cache
def passed() -> Sample:
    return judged(record(HELD), HELD)


@cache
def unfit() -> Sample:
    return judged(record(HELD, dropped=20), HELD)


@cache
def without_data() -> Sample:
    texts = ("chat.ttft p50 < 300ms",)
    return judged(record(texts, answered=False), texts)


def terminal(
    sample: Sample,
    *,
    color: bool = False,
    unicode: bool = True,
    files: tuple[str, ...] = ("report.html", "verdict.json"),
) -> str:
    recording, verdict, found = sample
    return render_terminal(verdict, found, recording.run, files, color=color, unicode=unicode)


def with_rows(sample: Sample, rows: list[BudgetVerdict]) -> Sample:
    recording, verdict, found = sample
    return recording, replace(verdict, budgets=tuple(rows)), found


def many(n: int, outcome: Outcome = Outcome.PASS, step: str = "answer/tool") -> list[BudgetVerdict]:
    row = next(r for r in failed()[1].budgets if r.budget.step == "chat" and r.budget.quantile)
    return [
        replace(
            row,
            outcome=outcome,
            used=max(0.1, 0.897 - i / 1000),
            budget=replace(row.budget, step=f"{step}_{i:04}"),
        )
        for i in range(n)
    ]


# any text at all, and texts of what is hard to show
texts = st.text(st.characters(), max_size=120) | st.text("ab/_<|`$@*\x1b\n世é\u202e", max_size=120)
numbers = st.none() | st.floats(0, 4e12)


@st.composite
def rows(draw: st.DrawFn) -> BudgetVerdict:
    """A budget's verdict with any step, stage, reason and numbers."""
    row = draw(st.sampled_from(failed()[1].budgets))
    step = draw(texts | st.text("abc/_", min_size=1, max_size=300))
    return replace(
        row,
        budget=replace(row.budget, step=step, text=step),
        stage=draw(texts),
        outcome=draw(st.sampled_from(list(Outcome))),
        observed=draw(numbers),
        low=draw(numbers),
        high=draw(numbers),
        used=draw(numbers),
        n=draw(st.integers(0, 10**12)),
        reason=draw(st.none() | texts),
    )


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """A verdict of any budgets, with any names around it."""
    recording, verdict, found = failed()
    changed = replace(
        verdict,
        budgets=tuple(draw(st.lists(rows(), min_size=1, max_size=4))),
        outcome=draw(st.sampled_from(list(Outcome))),
        sentence=draw(texts),
        detail=draw(texts),
    )
    step = SlowStep(step=draw(texts), share=0.5, root=draw(texts), stage=draw(texts))
    return recording, changed, replace(found, slow_step=step)


# --- terminal -------------------------------------------------------------------------------------


def test_a_failed_run_says_what_broke_by_how_much_since_when_and_which_step_is_slow() -> None:
    lines = terminal(failed()).splitlines()
    assert re.fullmatch(r"✗ FAIL  2 of 14 budgets broken, 3 inconclusive +run 418", lines[0])
    text = " ".join(" ".join(lines).split())
    assert re.search(r"chat\.ttft p99 was [0-9]{3}ms in spike, [0-9.]+× its 300ms limit\.", text)
    assert "ver the limit since 0:40" in text or "is over its limit since 0:40" in text
    assert re.search(
        r"answer/generate makes 99% of the extra time of slow answer journeys in spike\.", text
    )
    assert "✓ measurement valid: 2,400 of 2,400 sent, 0 dropped, send lag p99 1ms" in lines
    assert re.fullmatch(r"report\.html  verdict\.json +exit code 3", lines[-1])


def test_the_table_shows_each_budget_with_its_numbers_in_columns() -> None:
    lines = terminal(failed()).splitlines()
    head = next(line for line in lines if "95% bounds" in line)
    assert head.split() == ["verdict", "budget", "limit", "observed", "95%", "bounds"]
    row = next(line for line in lines if line.startswith("✗ FAIL         chat.ttft p99 spike"))
    assert re.search(r" +<300ms +[0-9]{3}ms  [0-9]{3}–([0-9]{3}|\?)$", row)
    limit_ends, observed_ends = head.index("limit") + 5, head.index("observed") + 8
    assert row[:limit_ends].endswith("<300ms")
    assert row[:observed_ends].endswith("ms")
    reason = next(i for i, line in enumerate(lines) if "more samples" in line)
    assert lines[reason].startswith(" " * head.index("budget"))
    assert lines[reason - 1].startswith("? INCONCLUSIVE chat.ttft p99 steady")


def test_a_passed_run_names_the_budget_that_is_closest_to_its_limit() -> None:
    text = " ".join(terminal(passed()).split())
    assert text.startswith("✓ PASS 4 of 4 budgets pass")
    assert "Closest to its limit: chat.ttft p50 was" in text
    assert text.endswith("exit code 0")


def test_an_unfit_measurement_lists_its_broken_checks_once_and_brackets_the_value() -> None:
    lines = terminal(unfit()).splitlines()
    text = " ".join(" ".join(lines).split())
    assert lines[0].startswith("⊘ INVALID  2 of 4 budgets not measured")
    assert "⊘ measurement not valid in spike: 2,400 of 3,200 sent, 800 dropped" in text
    assert text.count("Arrivals never sent in spike: 800, must be 0") == 1
    assert "cannot be judged" not in text
    row = next(line for line in lines if "chat.ttft p50 spike" in line and "<500ms" in line)
    assert re.search(r"\([0-9]+ms\)  not judged$", row)


def test_a_run_without_data_says_what_failed_instead() -> None:
    lines = terminal(without_data()).splitlines()
    assert lines[0].startswith("⊘ NO DATA  2 of 2 budgets not measured")
    assert "⊘ nothing measured: 80 of 80 sent, 0 dropped, 80 failed (connect)" in lines
    assert sum("all 40 requests failed (connect)" in line for line in lines) == 1
    assert lines[-1].endswith("exit code 5")


def test_a_run_without_budgets_says_so() -> None:
    recording = passed()[0]
    text = terminal(judged(recording, ()))
    assert text.startswith("✓ PASS  no budget was judged")
    assert "No budgets were declared" in text
    assert "verdict  " not in text


def test_an_interrupted_run_says_so() -> None:
    text = " ".join(terminal(judged(record(HELD, status="interrupted"), HELD)).split())
    assert "The run was interrupted" in text
    assert text.endswith("exit code 0")


def test_the_exit_code_can_be_that_of_an_interrupted_command() -> None:
    recording, verdict, found = passed()
    text = render_terminal(
        verdict, found, recording.run, [], color=False, unicode=True, exit_code=130
    )
    assert text.endswith("exit code 130")


def test_more_than_fifteen_budgets_are_folded_to_the_five_closest() -> None:
    sample = with_rows(failed(), [*many(2, Outcome.FAIL), *many(28)])
    lines = terminal(sample).splitlines()
    assert sum(line.startswith("✓ PASS") for line in lines) == 5
    assert "✓ 23 more budgets pass, none above 89.2% of its limit" in lines
    assert terminal(with_rows(failed(), many(15))).count("✓ PASS") == 15


def test_thousands_of_broken_budgets_do_not_scroll_the_verdict_away() -> None:
    lines = terminal(with_rows(failed(), many(5000, Outcome.FAIL))).splitlines()
    assert len(lines) < 80
    assert "  4,940 more are not shown: 4,940 FAIL" in lines


def test_a_long_step_loses_its_middle_but_keeps_metric_and_stage() -> None:
    row = failed()[1].budgets[0]
    long = replace(row, budget=replace(row.budget, step="answer/" + "tool_call_" * 20 + "end"))
    line = next(x for x in terminal(with_rows(failed(), [long])).splitlines() if "answer/t" in x)
    assert re.search(r"answer/t\S*…\S*end\.ttft p99 spike ", line)


def test_a_word_of_a_sentence_that_is_wider_than_a_line_keeps_both_ends() -> None:
    recording, verdict, found = failed()
    verdict = replace(verdict, sentence=f"start{'_' * 200}end.ttft p99 was slow.")
    assert re.search(
        r"^  start_+…_+end\.ttft$", terminal((recording, verdict, found)), re.MULTILINE
    )


def test_an_interval_that_has_no_room_stands_below_its_row() -> None:
    row = replace(failed()[1].budgets[0], observed=3.5e12, low=3.4e12, high=3.6e12)
    budget = replace(row.budget, limit_text="3600000000us", limit=3.6e12)
    text = terminal(with_rows(failed(), [replace(row, budget=budget)]))
    assert "95% bounds 3,400,000,000–3,600,000,000" in text
    assert "  verdict budget" in text
    assert max(cell_len(line) for line in text.splitlines()) <= 80


def test_a_path_that_is_too_long_for_a_line_is_cut_but_whole() -> None:
    path = "/srv/" + "deep/" * 60 + "report.html"
    lines = terminal(failed(), files=(path, "verdict.json")).splitlines()
    assert path in "".join(line.rstrip() for line in lines).replace("  verdict.json", "")
    assert all(len(line) <= 80 for line in lines)


def test_colors_are_the_only_difference_that_color_makes() -> None:
    for sample in (failed(), passed(), unfit(), without_data()):
        plain, painted = terminal(sample), terminal(sample, color=True)
        assert "\x1b" not in plain
        assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain
        assert painted.startswith("\x1b[1;3")
        assert all(line.count("\x1b[") in (0, 2) for line in painted.splitlines())


@settings(max_examples=100, deadline=None)
@given(sample=samples(), files=st.lists(texts, max_size=3), name=texts)
def test_no_name_or_number_makes_a_line_wider_than_eighty_columns(
    sample: Sample, files: list[str], name: str
) -> None:
    recording, verdict, found = sample
    run = {**recording.run, "id": name}
    for unicode in (True, False):
        text = render_terminal(verdict, found, run, files, color=False, unicode=unicode)
        assert max(cell_len(line) for line in text.split("\n")) <= 80
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
        assert text.rstrip().endswith(f"exit code {verdict.exit_code:d}")
        assert unicode or text.isascii()


def test_without_unicode_every_sign_has_an_ascii_one() -> None:
    for sample in (failed(), passed(), unfit(), without_data()):
        text = terminal(sample, unicode=False)
        assert text.isascii()
        assert "?" not in text.replace("? INCONCLUSIVE", "").replace("-?", "")
    assert terminal(failed(), unicode=False).startswith("x FAIL")
    assert terminal(passed(), unicode=False).startswith("+ PASS")
    assert "! measurement not valid" in terminal(unfit(), unicode=False)
    assert "must be >= 90%" in " ".join(terminal(unfit(), unicode=False).split())
    assert "x its 300ms limit" in terminal(failed(), unicode=False)


# --- Markdown -------------------------------------------------------------------------------------

CELLS = re.compile(r"(?<!\\)\|")


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_the_markdown_of_a_failed_run_shows_the_breaches_and_folds_the_passes() -> None:
    text = render_markdown(*failed())
    assert text.startswith("## ❌ FAIL – checkout-assistant, run 418\n\n**chat.ttft p99 was ")
    assert "\n✅ **Measurement valid:** 2,400 of 2,400 sent, 0 dropped, send lag p99 1" in text
    shown, folded = text.split("<details><summary>")
    assert sum(line.startswith("| ❌ **FAIL** |") for line in table_lines(shown)) == 2
    assert "✅ **PASS**" not in shown
    assert folded.startswith("9 budgets pass</summary>\n\n|")
    assert sum(line.startswith("| ✅ **PASS** |") for line in table_lines(folded)) == 9
    assert "| `chat.ttft` p99 | spike | &lt;\u202f300\u202fms | **" in shown
    assert "Failed requests: 4 × `status 429`." in text


def test_the_markdown_of_an_unfit_run_lists_the_broken_checks_above_the_table() -> None:
    text = render_markdown(*unfit())
    assert "## 🚫 INVALID" in text
    assert "🚫 **Measurement not valid in spike:**" in text
    assert text.count("- Arrivals never sent in spike: 800, must be 0") == 1
    assert re.search(
        r"\| 🚫 \*\*INVALID\*\* \| `chat.ttft` p50 \| spike .* \| not judged \| – \|", text
    )


def test_the_markdown_of_a_run_without_data_says_what_failed() -> None:
    text = render_markdown(*without_data())
    assert "## 🚫 NO DATA" in text
    assert "🚫 **Nothing measured:** 80 of 80 sent, 0 dropped, 80 failed (connect)" in text


def test_more_than_fifteen_passes_show_the_five_closest() -> None:
    recording, verdict, found = with_rows(passed(), many(30))
    text = render_markdown(recording, verdict, found)
    shown, folded = text.split("<details><summary>")
    assert shown.count("| ✅ **PASS** |") == 5
    assert folded.startswith("25 more budgets pass, none above 89.2\u202f% of its limit")


def test_five_thousand_budgets_fit_into_a_step_summary() -> None:
    name = "a" * 400 + "<|>" * 100
    broken = [replace(row, reason=name * 20) for row in many(2500, Outcome.FAIL, name)]
    text = render_markdown(*with_rows(failed(), [*broken, *many(2500, step=name)]))
    assert len(text.encode()) < 1 << 20
    assert "2,400 more are in the report." in text
    assert len(render_markdown(*with_rows(failed(), many(5000))).encode()) < 65_000


HOSTILE = (
    "<script>alert(1)</script>",
    "a|b",
    "`x`",
    "$x$",
    "@team",
    "a\nb",
    "**b**",
    "[a](b)",
    "&lt;",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_text_in_markdown(name: str) -> None:
    recording, verdict, found = failed()
    row = verdict.budgets[0]
    row = replace(row, stage=name, reason=name, budget=replace(row.budget, step=name))
    verdict = replace(verdict, budgets=(row,), sentence=name, detail=name)
    text = render_markdown(recording, verdict, found)
    hidden = re.sub(r"</?(code|details|summary|br)>", "", text)
    assert "<" not in hidden
    line = table_lines(text)[1]
    assert len(CELLS.findall(line)) == 9
    assert "$" not in text
    assert not re.search(r"@(?!&#8203;)", text)
    assert "&lt;" not in name or "&amp;lt;" in text


@settings(max_examples=60, deadline=None)
@given(sample=samples())
def test_no_name_breaks_a_table_row_of_the_markdown(sample: Sample) -> None:
    text = render_markdown(*sample)
    lines = [line for line in text.split("\n") if line.startswith("|")]
    assert len(lines) >= 1 + len(sample[1].budgets)
    assert {len(CELLS.findall(line)) for line in lines} == {9}
    assert "<" not in re.sub(r"</?(code|details|summary|br)>", "", text)
    assert len(text.splitlines()) == len(text.rstrip("\n").split("\n"))


def test_each_broken_budget_is_one_annotation_in_one_line() -> None:
    verdict = failed()[1]
    row = replace(verdict.budgets[0], reason="50% more\nor less", stage="a,b:c\n")
    notes = github_annotations(replace(verdict, budgets=(row, *verdict.budgets[1:])))
    assert len(notes) == 2
    assert notes[0].startswith("::error title=chat.ttft p99 < 300ms in a%2Cb%3Ac%0A::chat.ttft p99")
    assert "50%25 more%0Aor less" in notes[0]
    assert not any("\n" in note for note in notes)
    assert github_annotations(passed()[1]) == []


# --- JUnit ----------------------------------------------------------------------------------------


def suites(sample: Sample) -> tuple[ET.Element, ET.Element, ET.Element]:
    root = ET.fromstring(render_junit(sample[0], sample[1]).encode())
    budgets, checks = root.findall("testsuite")
    return root, budgets, checks


def test_junit_has_one_case_per_budget_and_stage() -> None:
    root, budgets, checks = suites(failed())
    assert (budgets.get("tests"), budgets.get("failures"), budgets.get("errors")) == (
        "14",
        "2",
        "3",
    )
    assert len(budgets.findall("testcase")) == 14
    assert len(budgets.findall("testcase/failure")) == 2
    assert {e.get("type") for e in budgets.findall("testcase/error")} == {"inconclusive"}
    assert checks.get("name") == "measurement"
    assert checks.get("errors") == "0"
    assert root.get("tests") == str(14 + len(checks.findall("testcase")))
    case = budgets.find("testcase")
    assert case is not None
    assert case.get("classname") == "checkout-assistant.chat"
    assert case.get("name") == "chat.ttft p99 < 300ms in spike"
    failure = case.find("failure")
    assert failure is not None
    assert "beyond the limit" in (failure.text or "")
    names = [(c.get("classname"), c.get("name")) for c in root.iter("testcase")]
    assert len(set(names)) == len(names)


def test_junit_carries_run_target_and_seed() -> None:
    _, budgets, _ = suites(failed())
    values = {p.get("name"): p.get("value") for p in budgets.findall("properties/property")}
    assert values["run"] == "418"
    assert (values["target"], values["model"]) == ("https://chat/v1", "m")
    assert values["seed"] == "7"
    assert (values["verdict"], values["exit_code"]) == ("FAIL", "3")


def test_junit_calls_an_unfit_measurement_an_error_not_a_failure() -> None:
    root, budgets, checks = suites(unfit())
    assert root.get("failures") == "0"
    assert {e.get("type") for e in budgets.findall("testcase/error")} == {"invalid"}
    assert checks.get("errors") == "2"
    assert {e.get("type") for e in suites(without_data())[1].iter("error")} == {"no data"}


def test_junit_stays_green_when_no_budget_depends_on_the_broken_check() -> None:
    texts = ("chat.ttft p50 < 300ms in steady",)
    sample = judged(unfit()[0], texts)
    assert sample[1].outcome is Outcome.PASS
    root, _, checks = suites(sample)
    assert (root.get("errors"), root.get("failures"), root.get("skipped")) == ("0", "0", "2")
    assert len(checks.findall("testcase/skipped")) == 2


def test_junit_of_an_unfit_run_without_budgets_is_not_green() -> None:
    sample = judged(unfit()[0], ())
    assert sample[1].outcome is Outcome.INVALID
    assert suites(sample)[1].get("errors") == "1"


@settings(max_examples=40, deadline=None)
@given(row=rows(), sentence=texts)
def test_junit_holds_no_character_that_xml_cannot(row: BudgetVerdict, sentence: str) -> None:
    recording, verdict, _ = failed()
    verdict = replace(verdict, budgets=(row,), sentence=sentence)
    root = ET.fromstring(render_junit(recording, verdict))
    assert len(root.findall("testsuite/testcase")) > 1


# --- JSON -----------------------------------------------------------------------------------------


def through_json(sample: Sample) -> dict[str, object]:
    value = verdict_json(*sample)
    back = json.loads(json.dumps(value, allow_nan=False))
    assert back == value
    return value


def test_json_of_every_outcome_survives_the_round_trip() -> None:
    for sample in (failed(), passed(), unfit(), without_data(), judged(passed()[0], ())):
        value = through_json(sample)
        assert value["schema_version"] == 1
        assert value["outcome"] == sample[1].outcome
        assert value["exit_code"] == sample[1].exit_code


@settings(max_examples=12, deadline=None)
@given(sample=samples())
def test_json_takes_any_number_and_name(sample: Sample) -> None:
    through_json(sample)


def test_json_has_null_where_a_number_is_infinite() -> None:
    row = replace(failed()[1].budgets[0], used=float("inf"))
    value = verdict_json(*with_rows(failed(), [row]))
    assert value["budgets"][0]["used"] is None
    assert value["budgets"][0]["observed"] == row.observed


def test_json_names_the_unit_of_each_limit() -> None:
    units = {b["metric"]: b["unit"] for b in verdict_json(*failed())["budgets"]}
    assert units == {
        "ttft": "ns",
        "e2el": "ns",
        "goodput": "share",
        "error_rate": "share",
        "output_tokens": "tokens",
        "rate": "per_s",
    }


def test_json_keeps_every_field_of_a_budget_and_its_verdict() -> None:
    (first, *_), row = verdict_json(*failed())["budgets"], failed()[1].budgets[0]
    for field in fields(row):
        if field.name != "budget":
            assert first[field.name] == getattr(row, field.name)
    for field in fields(row.budget):
        if field.name != "stage":
            assert first[field.name] == getattr(row.budget, field.name)
    assert first["declared_stage"] is None
    assert first["stage"] == "spike"


def test_json_leaves_out_a_percentile_that_the_sample_cannot_support() -> None:
    steps = {(s["stage"], s["step"]): s for s in verdict_json(*failed())["steps"]}
    chat = steps["steady", "chat"]
    assert chat["n"] == 802
    assert chat["failures"] == {"status 429": 2}
    assert {"p50", "p95", "p99"} <= chat["metrics"]["ttft"].keys()
    assert "p99.9" not in chat["metrics"]["ttft"]
    assert 100 < chat["metrics"]["ttft"]["p50"] < 200
    assert chat["metrics"]["output_tokens"]["unit"] == "tokens"
    assert steps["spike", "answer/rank"]["metrics"]["e2el"]["unit"] == "ms"


def test_every_key_of_the_json_is_documented() -> None:
    value = verdict_json(*failed())
    known = re.findall(r"[a-z0-9_.]+", export.__doc__ or "")
    step = value["steps"][0]
    groups = [
        value,
        value["run"],
        value["budgets"][0],
        value["health"],
        value["health"]["checks"][0],
        value["stages"][0],
        value["stages"][0]["totals"],
        step,
        *step["metrics"].values(),
    ]
    for group in groups:
        assert set(group) <= set(known)
