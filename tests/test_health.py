"""An unfit generator is noticed, named, and told what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import stage

from harness.budget import parse_budget
from harness.errors import RecordingError
from harness.health import Check, Health, assess
from harness.health.workers import MOST_WORKERS, wait_ratio, workers_for_wait
from harness.recorder import Recorder, Recording, load_recording
from harness.report.words import broken_checks

MS = 1_000_000
SaveRun = Callable[..., Recording]


def steady(
    *, n: int = 50, lag: int = MS, where: str = "steady", **load: int
) -> Callable[[Recorder, int], None]:
    """One interval of a healthy open load, with some counters set otherwise."""

    def fill(recorder: Recorder, _: int) -> None:
        for _ in range(n):
            recorder.request(where, "chat", {"ttft": 100 * MS, "send_lag": lag})
        counters = recorder.load(where)
        for name, value in {"planned": n, "sent": n, "finished": n, **load}.items():
            setattr(counters, name, value)

    return fill


def stalled(recording: Recording, stall_ms: int) -> Recording:
    """The run with one stall of the loop in it, and a collection of 7 ms."""
    path = recording.folder / "intervals.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3] |= {"stall_ns": stall_ms * MS, "gc_ns": 7 * MS}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_recording(recording.folder)


def check(health: Health, name: str, where: str | None = "steady") -> Check:
    (found,) = (c for c in health.checks if c.name.startswith(name) and c.stage == where)
    return found


def test_a_healthy_run_is_valid_and_shows_its_figures(save_run: SaveRun) -> None:
    health = assess(save_run(steady(), clock="monotonic, 1 host"))
    assert health.valid
    assert health.broken("steady") == ()
    assert (health.planned, health.sent, health.dropped, health.cut_off) == (1000, 1000, 0, 0)
    assert health.send_lag_p99_ns == pytest.approx(MS, rel=1e-3)
    assert health.cpu_p95 == pytest.approx(0.2)
    assert health.clock == "monotonic, 1 host"


@pytest.mark.parametrize(
    ("what", "fill", "run", "name", "measured", "must"),
    [
        ("late sends", steady(lag=12 * MS), {}, "Send lag", "12 ms", "< 10 ms"),
        (
            "a send lag of exactly the limit",
            steady(lag=10 * MS),
            {},
            "Send lag",
            "10 ms",
            "< 10 ms",
        ),
        ("a rate reached by 80 %", steady(sent=40), {}, "Planned rate", "80 %", "≥ 90 %"),
        ("no arrivals", steady(planned=0, sent=0), {}, "Planned rate", "no arrivals", "≥ 90 %"),
        ("one dropped arrival", steady(dropped=1), {}, "Arrivals never sent", "20", "0"),
        ("2 % cut off", steady(cut_off=1), {}, "Cut off", "20 (2 %)", "≤ 1 %"),
        ("a busy processor", steady(), {"cpu": 0.9}, "Generator CPU", "90 %", "< 85 %"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) and " " in value else "",
)
def test_what_makes_a_stage_unfit_is_measured_and_named(
    save_run: SaveRun,
    what: str,
    fill: Callable[[Recorder, int], None],
    run: dict[str, Any],
    name: str,
    measured: str,
    must: str,
) -> None:
    health = assess(save_run(fill, **run))
    broken = check(health, name)
    assert not broken.ok, what
    assert not health.valid
    assert broken in health.broken("steady")
    assert (broken.measured.replace("\u202f", " "), broken.must.replace("\u202f", " ")) == (
        measured,
        must,
    )
    assert broken.why
    assert broken.remedy


@pytest.mark.parametrize(
    ("what", "fill", "run", "name"),
    [
        ("a send lag below the limit", steady(lag=9_900_000), {}, "Send lag"),
        ("a rate reached by 90 %", steady(sent=45), {}, "Planned rate"),
        ("no more than 1 % cut off", steady(n=100, cut_off=1), {}, "Cut off"),
        ("a processor just below its limit", steady(), {"cpu": 0.84}, "Generator CPU"),
    ],
)
def test_what_is_just_good_enough_is_good_enough(
    save_run: SaveRun,
    what: str,
    fill: Callable[[Recorder, int], None],
    run: dict[str, Any],
    name: str,
) -> None:
    assert check(assess(save_run(fill, **run)), name).ok, what


@pytest.mark.parametrize(
    ("budgets", "limit_ms"),
    [
        ([], 10),
        (["chat.itl p99 < 20ms", "chat.error_rate < 1%"], 10),
        (["chat.ttft p99 < 800ms"], 40),
        (["chat.ttft p99 < 800ms", "chat.e2el p95 < 200ms"], 10),
        (["embed.e2el p99 < 5ms"], 1),
        (["chat.e2el max < 1m"], 100),
    ],
)
def test_sends_may_be_late_by_a_twentieth_of_the_tightest_time_from_the_start(
    save_run: SaveRun, budgets: list[str], limit_ms: int
) -> None:
    parsed = [parse_budget(text) for text in budgets]
    for lag_ns, ok in ((limit_ms * MS - MS // 100, True), (limit_ms * MS, False)):
        health = assess(save_run(steady(lag=lag_ns)), parsed)
        assert check(health, "Send lag").ok == ok
        assert health.send_lag_limit_ns == limit_ms * MS


@pytest.mark.parametrize(
    ("cpu", "run", "words"),
    [
        (0.9, {}, "used 90 % of its core: --workers 2 would cut the send lag to about 4.55 ms, by"),
        (0.9, {"machine": {"cores": 2}}, "--workers 2 would cut"),
        (0.9, {"workers": 4}, "of the core of its busiest worker: --workers 6 would cut"),
        (0.6, {}, "--workers 3 would cut the send lag to about 8.33 ms"),  # 2 would leave 14 ms
        (0.9, {"machine": {"cores": 1}},
         ("about 2 workers are needed by estimate, this machine has 1 core: use a larger machine, or "
         "50 % of the load")),
        (0.2, {}, "used 20 % of its core, so other work kept it waiting: use a quieter machine"),
        (None, {}, "lower the rate, use more workers"),
    ],
)  # fmt: skip
def test_a_late_generator_is_told_what_would_help(
    save_run: SaveRun, cpu: float | None, run: dict[str, Any], words: str
) -> None:
    late = check(assess(save_run(steady(lag=50 * MS), cpu=cpu, **run)), "Send lag")
    assert words in late.remedy.replace("\u202f", " ")


def test_a_worker_that_stood_still_gets_one_advice_for_all_that_it_broke(
    save_run: SaveRun,
) -> None:
    run = save_run(steady(lag=50 * MS), cpu=0.99, machine={"cores": 1})
    late, busy = (check(assess(run), name) for name in ("Send lag", "Generator CPU"))
    assert late.remedy == busy.remedy
    assert "use a larger machine" in late.remedy
    health = assess(stalled(run, 60))
    late, busy = (check(health, name) for name in ("Send lag", "Generator CPU"))
    assert late.remedy == busy.remedy
    assert late.remedy.startswith("a worker stood still for 60\u202fms")
    assert [late.remedy in text for text in broken_checks(health)].count(True) == 1


@pytest.mark.parametrize(
    ("cpu", "workers", "wanted"), [(0.9, 1, 2), (0.6, 1, 2), (1.0, 3, 5), (0.9, 4, 6), (1.0, 6, 10)]
)
def test_a_busy_generator_is_told_how_many_workers_its_cpu_asks_for(
    save_run: SaveRun, cpu: float, workers: int, wanted: int
) -> None:
    recording = save_run(steady(sent=40), cpu=cpu, workers=workers)
    for name in ("Generator CPU", "Planned rate"):
        remedy = check(assess(recording), name).remedy.replace("\u202f", " ")
        assert f"--workers {wanted} would bring it to about 60 %, by estimate" in remedy


@pytest.mark.parametrize("cpu", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("workers", [1, 7])
@pytest.mark.parametrize("ratio", [1e-9, 0.01, 0.5])
def test_the_workers_for_a_wait_are_the_fewest_that_suffice(
    cpu: float, workers: int, ratio: float
) -> None:
    wanted = workers_for_wait(cpu, workers, ratio)
    assert wanted == MOST_WORKERS or wait_ratio(cpu, workers / wanted) < ratio
    assert wait_ratio(cpu, workers / (wanted - 1)) >= ratio


def test_the_wait_follows_pollaczek_and_khinchine() -> None:
    assert wait_ratio(0.8, 0.5) == pytest.approx((0.4 / 0.6) / (0.8 / 0.2))
    assert wait_ratio(0.5, 1) == 1


KERNEL = "monotonic, kernel receive stamps (SO_TIMESTAMPNS)"


@pytest.mark.parametrize(
    ("steps_s", "broken", "measured"),
    [
        ([], [], ["0", "0"]),
        ([9.9], ["one"], ["1", "0; 1 outside the stage"]),
        ([10.5], ["one", "two"], ["1", "1"]),
        ([11.5], ["two"], ["0; 1 outside the stage", "1"]),
        ([-0.2, 21.5], [], ["0; 2 outside the stage", "0; 2 outside the stage"]),
    ],
)
def test_a_step_of_the_clock_breaks_the_stages_in_which_it_moved_stamps(
    save_run: SaveRun, steps_s: list[float], broken: list[str], measured: list[str]
) -> None:
    """It is noticed a second late at most, so that it may belong to what ended a second before."""
    stages = [stage("one", 0, 10), stage("two", 10, 20)]
    health = assess(save_run(steady(), stages=stages, clock=KERNEL, clock_steps_s=steps_s))
    found = [check(health, "Clock steps", name) for name in ("one", "two")]
    assert [c.measured for c in found] == measured
    assert [c.stage for c in found if not c.ok] == broken


def test_steps_are_no_matter_where_the_kernel_does_not_stamp(save_run: SaveRun) -> None:
    health = assess(save_run(steady(), clock="monotonic, user space", clock_steps_s=[3.0]))
    assert not any(c.name == "Clock steps" for c in health.checks)


@pytest.mark.parametrize(
    "damage",
    [
        {"clock_steps_s": ["x"]},
        {"clock_steps_s": 3},
        {"reads": {"stamped": None}},
        {"reads": [1]},
        {"machine": {"cores": "two"}},
        {"machine": 2},
    ],
    ids=str,
)
def test_a_damaged_fact_makes_no_run_of_ours(save_run: SaveRun, damage: dict[str, Any]) -> None:
    with pytest.raises(RecordingError):
        save_run(steady(), **damage)


@pytest.mark.parametrize(("unstamped", "ok"), [(10, True), (11, False)])
def test_reads_without_a_kernel_stamp_are_counted_and_many_make_a_stall_matter(
    save_run: SaveRun, unstamped: int, ok: bool
) -> None:
    reads = {"stamped": 1000 - unstamped, "unstamped": unstamped}
    health = assess(stalled(save_run(steady(), clock=KERNEL, reads=reads), 900))
    told = check(health, "Reads without a kernel stamp", None)
    assert told.measured.startswith(f"{unstamped} of 1,000 (1")
    assert told.ok
    assert check(health, "Event-loop stall").ok is ok


def test_one_late_send_in_two_hundred_is_no_slow_generator(save_run: SaveRun) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        steady(n=49)(recorder, i)
        recorder.request("steady", "chat", {"send_lag": MS if i % 4 else 500 * MS})

    assert check(assess(save_run(fill)), "Send lag").ok


def test_of_few_sends_one_late_one_breaks_no_stage_and_two_do(save_run: SaveRun) -> None:
    def late(times: int) -> Callable[[Recorder, int], None]:
        def fill(recorder: Recorder, i: int) -> None:
            recorder.request("steady", "chat", {"send_lag": 500 * MS if i < times else MS})

        return fill

    assert check(assess(save_run(late(1))), "Send lag").ok
    assert not check(assess(save_run(late(2))), "Send lag").ok


@pytest.mark.parametrize(
    ("status", "ok", "measured"),
    [
        ("complete", True, "complete"),
        ("interrupted", True, "interrupted"),
        ("running", False, "never ended (a crash, or a full disk?)"),
        ("crashed", False, "crashed"),
    ],
)
def test_only_a_run_that_ended_by_itself_or_by_the_user_is_whole(
    save_run: SaveRun, status: str, ok: bool, measured: str
) -> None:
    ended = check(assess(save_run(steady(), status=status)), "The run ended", None)
    assert (ended.ok, ended.measured) == (ok, measured)


def test_a_missing_histogram_is_a_lost_record(save_run: SaveRun) -> None:
    recording = save_run(steady())
    log = recording.folder / "latency.hlog"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-3]))
    health = assess(load_recording(recording.folder))
    assert check(health, "Lost records", None).measured == "3 histograms"
    assert not health.valid


def test_reports_that_workers_never_delivered_are_lost_records(save_run: SaveRun) -> None:
    lost = check(assess(save_run(steady(), lost_reports=2)), "Lost records", None)
    assert (lost.ok, lost.measured) == (False, "2 worker reports")


def test_samples_outside_the_range_are_said(save_run: SaveRun) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        steady()(recorder, i)
        recorder.add("steady", "chat", "connect", -1 if i == 3 else MS)

    clamped = check(assess(save_run(fill)), "Samples outside", None)
    assert (clamped.ok, clamped.measured) == (False, "1")


def test_what_holds_for_the_run_is_broken_in_every_stage(save_run: SaveRun) -> None:
    stages = [stage("one", 0, 10), stage("two", 10, 20)]
    health = assess(save_run(steady(where="one"), stages=stages, status="crashed"))
    assert "The run ended by itself" in [c.name for c in health.broken("one")]
    assert "The run ended by itself" in [c.name for c in health.broken("two")]


def test_a_stage_answers_for_its_own_checks_alone(save_run: SaveRun) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        steady(where="one" if i < 10 else "two", lag=MS if i < 10 else 50 * MS)(recorder, i)

    stages = [stage("one", 0, 10), stage("two", 10, 20)]
    health = assess(save_run(fill, stages=stages))
    assert health.broken("one") == ()
    assert [c.name for c in health.broken("two")] == ["Send lag, p99"]
    assert health.send_lag_p99_ns == pytest.approx(50 * MS, rel=1e-3), "the worst stage is shown"


def test_a_stage_that_is_not_recorded_is_not_checked(save_run: SaveRun) -> None:
    def fill(recorder: Recorder, i: int) -> None:
        if i < 5:
            steady(where="warmup", lag=900 * MS, sent=10, dropped=40)(recorder, i)
        else:
            steady()(recorder, i)

    stages = [stage("warmup", 0, 5, record=False), stage("steady", 5, 20)]
    health = assess(save_run(fill, stages=stages))
    assert health.valid
    assert (health.planned, health.dropped) == (750, 0)


def test_a_closed_load_has_no_planned_rate_to_reach(save_run: SaveRun) -> None:
    stages = [stage(planned_rate_per_s=None, load="50 users")]
    health = assess(save_run(steady(planned=0), stages=stages))
    assert health.valid
    assert not any(c.name.startswith(("Planned rate", "Arrivals")) for c in health.checks)


def test_what_was_sent_only_after_the_stage_does_not_reach_its_rate(save_run: SaveRun) -> None:
    """All 1,000 arrivals were sent in the end, but 300 of them when the stage was over."""

    def fill(recorder: Recorder, i: int) -> None:
        if i < 20:
            steady(n=35, planned=50)(recorder, i)
        else:
            steady(n=300, planned=0)(recorder, i)

    reached = check(assess(save_run(fill, intervals=21)), "Planned rate")
    assert (reached.ok, reached.measured) == (False, "70\u202f%")


@pytest.mark.parametrize("waited", [0, 7])
def test_a_rate_missed_because_users_were_busy_is_laid_to_the_target(
    save_run: SaveRun, waited: int
) -> None:
    fill = steady(sent=40, dropped=10, waited=waited, in_flight=64)
    health = assess(save_run(fill))
    for name in ("Planned rate", "Arrivals never sent"):
        assert check(health, name).target_caused == (waited > 0)
    remedy = check(health, "Planned rate").remedy
    assert ("all 64 users were busy" in remedy) == (waited > 0)


def test_no_blame_for_the_generators_own_faults_falls_on_the_target(save_run: SaveRun) -> None:
    health = assess(save_run(steady(lag=50 * MS, waited=9), cpu=0.99, status="crashed"))
    for name, where in (
        ("Send lag", "steady"),
        ("Generator CPU", "steady"),
        ("The run ended", None),
        ("Lost records", None),
    ):
        assert not check(health, name, where).target_caused


def test_without_send_lags_or_cpu_there_is_no_figure_rather_than_zero(save_run: SaveRun) -> None:
    def fill(recorder: Recorder, _: int) -> None:
        recorder.request("steady", "chat", {"ttft": MS})
        load = recorder.load("steady")
        load.planned += 1
        load.sent += 1

    health = assess(save_run(fill, cpu=None))
    assert (health.send_lag_p99_ns, health.cpu_p95, health.clock) == (None, None, "unknown")


def test_the_processor_is_judged_within_the_stage_only(save_run: SaveRun) -> None:
    recording = save_run(steady(), stages=[stage(end_s=10)], intervals=10)
    lines = recording.folder / "intervals.jsonl"
    late = json.dumps({"i": 15, "cpu": 0.99, "load": {}, "metrics": [], "steps": []}) + "\n"
    lines.write_text(lines.read_text() + late)
    assert assess(load_recording(recording.folder)).cpu_p95 == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("clock", "stall_ms", "ok"),
    [("monotonic, kernel receive stamps", 900, True), ("monotonic, user space", 60, False),
     ("monotonic, user space", 40, True)],
)  # fmt: skip
def test_a_stalled_loop_makes_a_stage_unfit_only_where_the_loop_itself_stamps(
    save_run: SaveRun, clock: str, stall_ms: int, ok: bool
) -> None:
    found = check(assess(stalled(save_run(steady(), clock=clock), stall_ms)), "Event-loop stall")
    assert found.ok is ok
    assert f"{stall_ms} ms".replace(" ", "\u202f") in found.measured
    assert "7\u202fms" in found.measured
