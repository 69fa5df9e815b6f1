"""The live view shows a load without touching it: plain lines, one screen, nothing that raises."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from harness.swarm.live import LiveView

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def progress(t_s: float, stage: str = "steady", **changes: Any) -> dict[str, Any]:
    return {
        "type": "progress", "t_s": t_s, "total_s": 70.0, "stage": stage, "stage_left_s": 50.2,
        "record": True, "draining": False, "planned_rate": 20.1, "sent_rate": 19.8,
        "in_flight": 12, "waiting": 0, "errors": 3, "finished": 240,
        "budgets": [{"text": "chat.ttft p99 < 800ms", "now": "612\u202fms", "limit": "800\u202fms",
                     "ok": True, "n": 231}],
        **changes,
    }  # fmt: skip


def console(*, terminal: bool, encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    return Console(file=file, force_terminal=terminal, width=80, height=24, color_system="standard",
                   _environ={}), raw  # fmt: skip


def shown(
    reports: list[Any],
    *,
    terminal: bool = False,
    plain: bool = False,
    quiet: bool = False,
    encoding: str = "utf-8",
) -> str:
    screen, raw = console(terminal=terminal, encoding=encoding)
    with LiveView(screen, plain=plain, quiet=quiet) as view:
        for report in reports:
            view.update(report)
    return raw.getvalue().decode(encoding)


def frames(text: str) -> list[str]:
    """Every line that was ever drawn, without the codes that place and colour it."""
    return CONTROL.sub("", text).replace("\r", "\n").split("\n")


def test_a_plain_line_tells_time_stage_rate_and_what_is_over() -> None:
    over = [{"text": "a.ttft p99 < 1s", "ok": False}, {"text": "b.ttft p99 < 1s", "ok": True}]
    assert shown([progress(12.0, budgets=over, waiting=4)]) == (
        "0:12/1:10 steady: 19.8/s of 20.1/s, 12 in flight, 4 waiting, 3 errors\n"
    )
    assert shown([progress(12.0, budgets=over)]) == (
        "0:12/1:10 steady: 19.8/s of 20.1/s, 12 in flight, 3 errors, 1/2 budgets over\n"
    )


def test_a_line_comes_first_every_five_seconds_at_each_stage_and_last() -> None:
    reports = [progress(float(t), "warmup" if t < 7 else "steady") for t in range(15)]
    reports[14]["draining"] = True
    reports += [progress(15.0, draining=True), progress(16.0, draining=True)]
    heads = [line.split(":", 2)[:3] for line in shown(reports).splitlines()]
    assert [":".join(head[:2]).split("/")[0] for head in heads] == [
        "0:00", "0:05", "0:07", "0:12", "0:14", "0:16"
    ]  # fmt: skip


def test_a_warmup_is_marked_and_its_budgets_are_left_out() -> None:
    line = shown([progress(3.0, "warmup", record=False)])
    assert line == "0:03/1:10 warmup (not judged): 19.8/s of 20.1/s, 12 in flight, 3 errors\n"


def test_a_terminal_that_wants_plain_lines_gets_no_control_characters() -> None:
    for text in (shown([progress(1.0)], terminal=True, plain=True), shown([progress(1.0)])):
        assert text.count("\n") == 1
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


def test_quiet_shows_nothing() -> None:
    assert shown([progress(1.0), progress(9.0)], terminal=True, quiet=True) == ""
    assert shown([progress(1.0)], quiet=True) == ""


def test_no_report_is_no_line() -> None:
    assert shown([]) == ""


def test_the_screen_shows_stage_clock_rate_and_each_budget_against_its_limit() -> None:
    lines = frames(shown([progress(35.0)], terminal=True))
    assert re.fullmatch(r"steady  0:50 left +0:35/1:10", lines[0])
    assert lines[1] == "━" * 40 + "─" * 40
    assert lines[2].rstrip() == "19.8/s of 20.1/s   12 in flight   3 errors"
    assert re.fullmatch(r" +budget so far +limit +now +n", lines[4])
    assert re.fullmatch(r"✓ chat\.ttft p99 +<800ms +612ms +231", lines[5])


def test_the_screen_lists_a_dozen_budgets_those_over_their_limit_first() -> None:
    budgets = [
        {"text": f"step_{i}.ttft p99 < 1s", "now": "2s", "limit": "1s", "ok": i != 17, "n": i}
        for i in range(20)
    ]
    lines = frames(shown([progress(35.0, budgets=budgets)], terminal=True))
    assert lines[5].startswith("✗ step_17.ttft p99 ")
    assert [line[0] for line in lines[5:17]] == ["✗", *"✓" * 11]
    assert "  8 more, none of them over" in lines[17]


def test_a_console_without_unicode_gets_ascii() -> None:
    lines = frames(shown([progress(35.0, stage="größe…")], terminal=True, encoding="ascii"))
    assert lines[1] == "#" * 40 + "-" * 40
    assert lines[5].startswith("+ chat.ttft p99")
    assert shown([progress(1.0, stage="größe")], encoding="ascii").startswith("0:01/1:10 gr??e:")


def test_the_screen_is_taken_away_and_the_cursor_given_back() -> None:
    text = shown([progress(35.0)], terminal=True)
    assert text.startswith("\x1b[?25l")
    assert text.rindex("\x1b[?25h") > text.rindex("chat.ttft")
    assert text.endswith("\x1b[2K")


def test_the_cursor_is_given_back_when_the_load_breaks_down() -> None:
    screen, raw = console(terminal=True)

    def load() -> None:
        with LiveView(screen, plain=False, quiet=False) as view:
            view.update(progress(1.0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load()
    assert "\x1b[?25h" in raw.getvalue().decode()


def test_stdout_is_left_alone_for_whoever_pipes_the_verdict() -> None:
    screen, _ = console(terminal=True)
    before = sys.stdout
    with LiveView(screen, plain=False, quiet=False):
        assert sys.stdout is before


def test_a_console_that_is_gone_does_not_end_the_load() -> None:
    screen, _ = console(terminal=False)
    with LiveView(screen, plain=False, quiet=False) as view:
        view.update(progress(1.0))
        screen.file.close()
        view.update(progress(30.0))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e300, 10**99, "9", None, True])
def test_a_number_that_is_none_shows_less(number: Any) -> None:
    names = ("t_s", "total_s", "stage_left_s", "planned_rate", "sent_rate", "in_flight", "errors")
    budget = {"text": "chat.ttft p99 < 1s", "now": None, "ok": None, "n": number}
    report = progress(5.0, budgets=[budget]) | dict.fromkeys(names, number)
    assert shown([report]) == "steady: 0/1 budget over\n"
    lines = [line.rstrip() for line in frames(shown([report], terminal=True))]
    assert lines[0] == "steady"
    assert lines[5].split() == ["·", "chat.ttft", "p99", "<1s", "-", "-"]


def test_the_second_ctrl_c_is_offered_while_a_run_stops() -> None:
    report = progress(35.0, stopping=True)
    assert frames(shown([report], terminal=True))[0].startswith("Stopping: ")
    assert shown([report]).startswith("0:35/1:10 stopping: 12 in flight, ")


odd = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=100)
    | st.just([None])
)
keys = st.sampled_from([*progress(0.0), "text", "now", "limit", "ok", "n"])
reports = st.dictionaries(
    keys, odd | st.lists(odd | st.dictionaries(keys, odd, max_size=5), max_size=15), max_size=14
)


@settings(max_examples=100, deadline=None)
@given(told=st.lists(reports | odd, max_size=4))
def test_no_odd_report_raises_or_makes_a_line_too_wide(told: list[Any]) -> None:
    for terminal in (True, False):
        for encoding in ("utf-8", "ascii"):
            text = shown(told, terminal=terminal, encoding=encoding)
            assert all(cell_len(line) <= 80 for line in frames(text))
            assert terminal or not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
