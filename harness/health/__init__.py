"""Was the generator fit to judge the target? Each check says what was measured and what it must be.

A broken check makes its stage INVALID: what it cost cannot be told from what the target did. Where
arrivals waited because every allowed user was busy with the target, the target is to blame
(`Check.target_caused`), and where the scenario's code broke journeys off, the scenario is: a broken
budget then stands, only a met one is void (`Check.fail_stands`). What a limit of the client itself
kept from being sent voids both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from harness import stats
from harness.budget import Budget
from harness.health.streams import remarks
from harness.health.workers import generator_remedy
from harness.limits import name_in, setting
from harness.recorder import CLOSED, RUN, Recording, StageWindow
from harness.units import format_count, format_duration, format_rate, format_share

SEND_LAG_LIMIT_NS = 10_000_000
RATE_REACHED_MIN = 0.90
CPU_LIMIT = 0.85
CUT_OFF_LIMIT = 0.01
RAISED_LIMIT = 0.01
STALL_LIMIT_NS = 50_000_000
GAPS_OFF_LIMIT = 0.05
GAPS_CHANCE = 0.001
UNSTAMPED_LIMIT = 0.01
_SEND_LAG_SHARE, _SEND_LAG_LEAST_NS, _SEND_LAG_MOST_NS = 0.05, 1_000_000, 100_000_000
_FROM_START = ("ttft", "ttfo", "e2el", "e2el_all")
_STEP_NOTICED_S = 1.0  # the transport samples the offset of the clocks once a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One condition of a fit measurement; `stage` is None when it holds for the whole run."""

    name: str
    stage: str | None
    measured: str
    must: str
    ok: bool
    why: str
    remedy: str
    target_caused: bool = False
    scenario_caused: bool = False
    from_load: bool = False
    """True where the generator was too busy: requests that failed whatever it did failed anyway."""

    @property
    def fail_stands(self) -> bool:
        """True when it takes back a PASS alone: what was measured is no better than it looks."""
        return self.target_caused or self.scenario_caused


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """All checks of a run, and the figures of its recorded stages that the trust line shows.

    `raised` journeys were ended by an exception of the scenario's own; `first_exception` is the
    run's first.
    """

    checks: tuple[Check, ...]
    planned: int
    sent: int
    dropped: int
    cut_off: int
    waited: int
    send_lag_p99_ns: int | None
    send_lag_limit_ns: int
    cpu_p95: float | None
    clock: str
    raised: int = 0
    first_exception: str | None = None
    remarks: tuple[str, ...] = ()
    """What to know of the streams that were measured, beside any check."""

    @property
    def valid(self) -> bool:
        """True when every check holds."""
        return all(check.ok for check in self.checks)

    def broken(self, stage: str) -> tuple[Check, ...]:
        """Return the broken checks that concern a stage."""
        return tuple(c for c in self.checks if not c.ok and c.stage in (None, stage))


def send_lag_limit(budgets: Iterable[Budget]) -> int:
    """Return how late, in ns, the p99 of the sends may be.

    A twentieth of the tightest limit on a time that counts from the planned start, so that the
    generator's delay cannot decide a verdict; between 1 and 100 ms, and 10 ms without such a limit.
    """
    limits = [b.limit for b in budgets if b.metric in _FROM_START and b.kind == "time"]
    if not limits:
        return SEND_LAG_LIMIT_NS
    return round(min(max(min(limits) * _SEND_LAG_SHARE, _SEND_LAG_LEAST_NS), _SEND_LAG_MOST_NS))


def assess(recording: Recording, budgets: Iterable[Budget] = ()) -> Health:
    """Check a recording stage by stage, and as a whole; `budgets` set how late sends may be."""
    limit_ns = send_lag_limit(budgets)
    stages = [stage for stage in recording.stages if stage.record]
    totals = [recording.load_totals(stage.name) for stage in stages]
    lags = [_send_lag_p99(recording, stage.name) for stage in stages]
    cpus = [_cpu_p95(recording, stage) for stage in stages]
    checks = [check for stage in stages for check in _stage_checks(recording, stage, limit_ns)]
    return Health(
        checks=(*checks, *_run_checks(recording)),
        planned=sum(total.planned for total in totals),
        sent=sum(total.sent for total in totals),
        dropped=sum(total.dropped for total in totals),
        cut_off=sum(total.cut_off for total in totals),
        waited=sum(total.waited for total in totals),
        raised=sum(total.raised for total in totals),
        first_exception=recording.run.get("first_exception"),
        send_lag_p99_ns=max(
            (
                lag
                for stage, lag in zip(stages, lags, strict=True)
                if lag is not None and _shows_p99(recording, stage.name)
            ),
            default=None,
        ),
        send_lag_limit_ns=limit_ns,
        cpu_p95=max((cpu for cpu in cpus if cpu is not None), default=None),
        clock=recording.run.get("clock", "unknown"),
        remarks=remarks(recording),
    )


def _stage_checks(recording: Recording, stage: StageWindow, lag_limit_ns: int) -> list[Check]:
    checks = []
    lag, cpu = _send_lag_p99(recording, stage.name), _cpu_p95(recording, stage)
    stall_ns, gc_ns = recording.longest_pauses(stage)
    helps = generator_remedy(recording, cpu, lag_ns=lag, limit_ns=lag_limit_ns, stall_ns=stall_ns)
    if lag is not None:
        checks.append(_check_lag(recording, stage, lag, lag_limit_ns, helps))
    if stage.planned_rate_per_s is not None:
        checks.append(_check_rate(recording, stage, helps))
        checks.append(_check_dropped(recording, stage))
        checks.append(_check_waited(recording, stage))
        checks += _check_arrivals(recording, stage, lag_limit_ns)
    checks.append(_check_cut_off(recording, stage.name))
    checks.append(_check_raised(recording, stage.name))
    checks.append(_check_own_limits(recording, stage.name))
    if recording.load_totals(stage.name).backed_off:
        checks.append(_check_backed_off(recording, stage.name))
    if recording.load_totals(stage.name).token_events:
        checks.append(_check_merged(recording, stage.name))
    if cpu is not None:
        checks.append(_check_cpu(stage.name, cpu, helps))
    if stall_ns:
        checks.append(_check_stall(recording, stage.name, stall_ns, gc_ns))
    if _stamped_by_kernel(recording) and "clock_steps_s" in recording.run:
        checks.append(_check_clock_steps(recording, stage))
    return checks


def _check_lag(
    recording: Recording, stage: StageWindow, lag_ns: int, limit_ns: int, helps: str
) -> Check:
    return Check(
        name="Send lag, p99" if _shows_p99(recording, stage.name) else "Send lag, second largest",
        stage=stage.name,
        measured=format_duration(lag_ns),
        must=f"< {format_duration(limit_ns)}",
        ok=lag_ns < limit_ns,
        why="late sends hide queueing: the target would look other than it is",
        remedy=helps,
        from_load=True,
    )


def _check_rate(recording: Recording, stage: StageWindow, helps: str) -> Check:
    planned, in_time = _sent_in_time(recording, stage)
    reached = in_time / planned if planned else None
    totals = recording.load_totals(stage.name)
    users_busy = totals.waited > 0
    return Check(
        name="Planned rate reached",
        stage=stage.name,
        measured="no arrivals" if reached is None else format_share(reached),
        must=f"≥ {format_share(RATE_REACHED_MIN)}",
        ok=reached is not None and reached >= RATE_REACHED_MIN,
        why="less load than declared is a different test",
        remedy=(
            f"all {format_count(totals.max_in_flight)} users were busy with the target: raise "
            "max_in_flight or lower the rate"
            if users_busy
            else helps
        ),
        target_caused=users_busy,
        from_load=True,
    )


def _check_dropped(recording: Recording, stage: StageWindow) -> Check:
    totals = recording.load_totals(stage.name)
    return Check(
        name="Arrivals never sent",
        stage=stage.name,
        measured=format_count(totals.dropped),
        must="0",
        ok=totals.dropped == 0,
        why="requests that were never sent are the slowest ones",
        remedy="raise max_in_flight, lower the rate, or allow a longer drain",
        target_caused=totals.waited > 0,
    )


def _check_waited(recording: Recording, stage: StageWindow) -> Check:
    """What happened at `max_in_flight`: never broken, since the wait counts as response time."""
    totals = recording.load_totals(stage.name)
    series = recording.series(stage.name, RUN, "slot_wait")
    longest = series.total.max if series else None
    waited = f", up to {format_duration(longest)}" if longest is not None else ""
    limit = stage.max_in_flight
    return Check(
        name="Waited at max_in_flight" if limit is None else f"Waited at max_in_flight {limit}",
        stage=stage.name,
        measured=f"{format_count(totals.waited)} of {format_count(totals.planned)}{waited}",
        must="counted",
        ok=True,
        why="an arrival that finds every user busy waits, and its wait is response time",
        remedy="",
    )


def _check_arrivals(recording: Recording, stage: StageWindow, limit_ns: int) -> list[Check]:
    """Hold each worker's arrivals against the planned process; a small sample shows no breach.

    A gap may be off by as much as a send may be late.

    Independent Poisson streams of rate r/workers are together one of rate r, so the gaps within
    the workers, taken together, are those of one stream at r/workers.
    """
    gaps = recording.series(stage.name, RUN, "arrival_gap")
    planned = recording.series(stage.name, RUN, "planned_gap")
    if gaps is None or planned is None or stage.planned_rate_per_s is None:
        return []
    workers = int(recording.run.get("workers", 1))
    poisson = (
        stage.load == f"poisson {format_rate(stage.planned_rate_per_s)}"
        and "interleaved" not in recording.run  # gaps end with their block: no long ones
    )
    fit = (
        stats.poisson_fit(gaps.total, stage.planned_rate_per_s / workers, limit_ns)
        if poisson
        else stats.planned_fit(gaps.total, planned.total, limit_ns)
    )
    if fit is None:
        return []
    test = "Anderson-Darling" if poisson else "Kolmogorov-Smirnov"
    return [
        Check(
            name="Arrivals as planned",
            stage=stage.name,
            measured=f"{format_share(fit.distance)} of gaps off by over "
            f"{format_duration(fit.tolerance_ns)} ({test} p {fit.p:.2g})",
            must=f"≤ {format_share(GAPS_OFF_LIMIT)}, or p ≥ {GAPS_CHANCE:g}",
            ok=fit.distance <= GAPS_OFF_LIMIT or fit.p >= GAPS_CHANCE,
            why="arrivals that bunch are another test than the declared one",
            remedy="use more workers, a lower rate or a quieter machine",
            from_load=True,
        )
    ]


def _check_cut_off(recording: Recording, stage: str) -> Check:
    totals = recording.load_totals(stage)
    share = totals.cut_off / totals.sent if totals.sent else 0.0
    return Check(
        name="Cut off by the end of the run",
        stage=stage,
        measured=f"{format_count(totals.cut_off)} ({format_share(share)})",
        must=f"≤ {format_share(CUT_OFF_LIMIT)}",
        ok=share <= CUT_OFF_LIMIT,
        why="a request that was cut off has no latency, only a lower bound",
        remedy="allow a longer drain, or set the target's timeout below it",
        target_caused=True,
    )


def _check_raised(recording: Recording, stage: str) -> Check:
    totals = recording.load_totals(stage)
    share = totals.raised / totals.planned if totals.planned else 0.0
    return Check(
        name="Exceptions of the scenario",
        stage=stage,
        measured=f"{_part(totals.raised, totals.planned)} arrivals ({format_share(share)})",
        must=f"≤ {format_share(RAISED_LIMIT)}",
        ok=share <= RAISED_LIMIT,
        why="a journey that the scenario's own code broke off made other requests than planned",
        remedy="see the traceback in locust.log; where a reply is wrong, raise RequestFailed or "
        "call fail() of its step, which count as a failure of the step",
        scenario_caused=True,
    )


def _check_own_limits(recording: Recording, stage: str) -> Check:
    """What the client ran out of is no answer of the target: a single one voids the stage."""
    met = _own_limits(recording, stage)
    said = [f"{name} {_counted(n, 'time')}" for name, n in met.items()]
    return Check(
        name="The client's own limits",
        stage=stage,
        measured=", ".join(said) or "none",
        must="none",
        ok=not met,
        why="a request that this machine had no room for never met the target",
        remedy="; ".join(dict.fromkeys(setting(name) for name in met)),
    )


def _own_limits(recording: Recording, stage: str) -> Counter[str]:
    """Count the requests that met a limit of the client, by its name; most frequent first.

    A step that failed for one inside it is not counted again.
    """
    met = Counter[str]()
    for step in recording.steps(stage):
        outer = recording.requests(stage, step.rpartition("/")[0]).kinds
        for kind, n in recording.requests(stage, step).kinds.items():
            if name := name_in(kind):
                met[name] += n - min(n, outer.get(kind, 0))
    return Counter(dict(met.most_common()))


def _check_backed_off(recording: Recording, stage: str) -> Check:
    """Never broken: a client that does not pause after failures tests nothing but its own loop."""
    totals = recording.load_totals(stage)
    return Check(
        name="Pauses after failed rounds",
        stage=stage,
        measured=f"{format_count(totals.backed_off)} of {format_count(totals.finished)} rounds",
        must="counted",
        ok=True,
        why="a user whose round failed at once waits before its next: 10 ms, doubling up to 1 s",
        remedy="",
    )


def _check_merged(recording: Recording, stage: str) -> Check:
    """Never broken by itself: a target that sends two tokens in one packet merges them too."""
    totals = recording.load_totals(stage)
    share = totals.merged / totals.token_events
    return Check(
        name="Token stamps merged with the next",
        stage=stage,
        measured=f"{format_count(totals.merged)} of {format_count(totals.token_events)} "
        f"({format_share(share)})",
        must="counted",
        ok=True,
        why="tokens that came in one read share a stamp: budgets are judged at both ends of it",
        remedy="",
    )


def _check_cpu(stage: str, cpu: float, helps: str) -> Check:
    return Check(
        name="Generator CPU, p95",
        stage=stage,
        measured=format_share(cpu),
        must=f"< {format_share(CPU_LIMIT)}",
        ok=cpu < CPU_LIMIT,
        why="a busy generator reads its own clock late",
        remedy=helps,
        from_load=True,
    )


def _check_stall(recording: Recording, stage: str, stall_ns: int, gc_ns: int) -> Check:
    """Broken only where the loop's own clock stamps what comes in; late sends have their check."""
    by_kernel = _stamped_by_kernel(recording)
    return Check(
        name="Event-loop stall, max",
        stage=stage,
        measured=f"{format_duration(stall_ns)}; garbage collection {format_duration(gc_ns)}"
        if gc_ns
        else format_duration(stall_ns),
        must="counted" if by_kernel else f"< {format_duration(STALL_LIMIT_NS)}",
        ok=by_kernel or stall_ns < STALL_LIMIT_NS,
        why="a stalled loop stamps late, unless the kernel stamps",
        remedy="use more workers or a quieter machine",
        from_load=True,
    )


def _stamped_by_kernel(recording: Recording) -> bool:
    """Tell whether all but a few reads have a stamp of the kernel's."""
    clock = recording.run.get("clock", "")
    if "kernel" not in clock or "user space" in clock:  # several workers may differ
        return False
    unstamped, reads = _reads(recording)
    return unstamped <= UNSTAMPED_LIMIT * reads


def _reads(recording: Recording) -> tuple[int, int]:
    """Return the reads without a stamp of the kernel's, and all of them."""
    reads = recording.run.get("reads", {})
    unstamped = int(reads.get("unstamped", 0))
    return unstamped, unstamped + int(reads.get("stamped", 0))


def _check_clock_steps(recording: Recording, stage: StageWindow) -> Check:
    """A step is noticed up to a second after it, and until then stamps are off by its size."""
    times_s = [float(t_s) for t_s in recording.run["clock_steps_s"]]
    inside = [t_s for t_s in times_s if stage.start_s <= t_s < stage.end_s + _STEP_NOTICED_S]
    others = len(times_s) - len(inside)
    return Check(
        name="Clock steps",
        stage=stage.name,
        measured=format_count(len(inside))
        + (f"; {format_count(others)} outside the stage" if others else ""),
        must="0",
        ok=not inside,
        why="until a step of the wall clock is noticed, a second at most, stamps are off by it",
        remedy="have the clock slewed, not stepped, while a load runs (chrony, or ntpd -x)",
    )


def _check_unstamped(recording: Recording) -> list[Check]:
    """Never broken by itself: where there are many, the loop must not stall instead."""
    unstamped, reads = _reads(recording)
    if not reads:
        return []
    return [
        Check(
            name="Reads without a kernel stamp",
            stage=None,
            measured=f"{format_count(unstamped)} of {format_count(reads)} "
            f"({format_share(unstamped / reads)})",
            must="counted",
            ok=True,
            why="such a read is stamped in user space, late if the loop is busy",
            remedy="",
        )
    ]


def _run_checks(recording: Recording) -> list[Check]:
    status = recording.run.get("status", "unknown")
    crashed = recording.run.get("crashed")
    why = ", ".join(map(str, crashed)) if isinstance(crashed, list) else ""
    ended = {
        "running": "never ended (a crash, or a full disk?)",
        "crashed": why or "crashed",
    }.get(status, status)
    clamped = recording.clamped
    return [
        Check(
            name="The run ended by itself",
            stage=None,
            measured=ended,
            must="complete, interrupted or aborted",
            ok=status in CLOSED,
            why="a crash loses what was in flight",
            remedy="see locust.log in the run's folder (what is killed leaves nothing there)",
        ),
        _check_lost(recording),
        Check(
            name="Samples outside 0 to 1 h or $36",
            stage=None,
            measured=format_count(clamped),
            must="0",
            ok=clamped == 0,
            why="they are counted at the edge of the range",
            remedy="set a timeout below 1 h and divide a step of more than $36; a negative time "
            "means that the clock was changed",
        ),
        *_check_unstamped(recording),
    ]


def _check_lost(recording: Recording) -> Check:
    found, reports = recording.losses, int(recording.run.get("lost_reports", 0))
    parts = [
        (reports, _counted(reports, "worker report")),
        (found.intervals, f"{_part(found.intervals, found.all_intervals)} intervals"),
        (found.arrivals > 0, f"{_part(found.arrivals, found.all_arrivals)} arrivals"),
        (found.arrivals < 0, f"{_counted(-found.arrivals, 'arrival')} too many"),
        (found.extra, f"{_counted(found.extra, 'interval')} too many"),
        (found.histograms, _counted(found.histograms, "histogram")),
        (found.orphans, f"{_counted(found.orphans, 'histogram')} without an interval"),
    ]
    said = [text for n, text in parts if n]
    return Check(
        name="Lost records",
        stage=None,
        measured=", ".join(said) or "none",
        must="none",
        ok=not said,
        why="samples that are missing may be the slow ones",
        remedy="copy the run's folder again if it is a copy; else check the disk and the workers, "
        "and run again",
    )


def _counted(n: int, noun: str) -> str:
    return f"{format_count(n)} {noun}{'' if n == 1 else 's'}"


def _part(n: int, whole: int) -> str:
    return f"{format_count(n)} of {format_count(whole)}"


def _shows_p99(recording: Recording, stage: str) -> bool:
    series = recording.series(stage, RUN, "send_lag")
    return series is not None and stats.supported(series.total.n, 0.99)


def _send_lag_p99(recording: Recording, stage: str) -> int | None:
    """The p99, or of fewer than 100 sends the second largest: one late send breaks no stage."""
    series = recording.series(stage, RUN, "send_lag")
    if series is None:
        return None
    lags = series.total
    return lags.at_rank(max(1, min(math.ceil(0.99 * lags.n), lags.n - 1)))


def _cpu_p95(recording: Recording, stage: StageWindow) -> float | None:
    line = recording.timeline
    inside = (line.t_s >= stage.start_s) & (line.t_s < stage.end_s) & ~np.isnan(line.cpu)
    return float(np.quantile(line.cpu[inside], 0.95)) if inside.any() else None


def _sent_in_time(recording: Recording, stage: StageWindow) -> tuple[int, int]:
    """Arrivals of a stage, and those that were sent before the stage was over."""
    planned = in_time = 0
    for t_s, load in recording.load_by_interval(stage.name):
        planned += load["planned"]
        if t_s < stage.end_s:
            in_time += load["sent"]
    return planned, in_time
