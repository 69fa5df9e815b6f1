"""What a selftest found, in words: the text in the terminal and the warning before a run."""

from __future__ import annotations

from collections.abc import Iterator

from harness.endpoint.instep import TICK_NS
from harness.plan import Plan
from harness.selftest.fitting import Fit, fit
from harness.selftest.result import Ceiling, InStep, Selftest, saved
from harness.selftest.shape import shape_of
from harness.units import NARROW_SPACE, format_count, format_duration, format_rate, format_share


def describe_fit(fitting: Fit, found: Selftest) -> str:
    """Say in a sentence or two whether the plan fits."""
    demand = fitting.demand
    if demand is None:
        return f"is not judged: in {', '.join(fitting.not_judged)} the target decides the rate"
    asked = (
        f"stage {demand.stage} asks for {_rate(demand.requests_per_s)} requests and "
        f"{_rate(demand.events_per_s)} token events ({demand.basis})"
    )
    has = f"{fitting.workers} worker{'s' if fitting.workers > 1 else ''}"
    carry = "carry" if fitting.workers > 1 else "carries"
    if fitting.fits_as_assumed:
        taken = _plain(format_share(fitting.share / fitting.workers))
        verdict = f"fits: it takes {taken} of what {has} of this machine {carry}"
    elif (needed := fitting.needed if fitting.fits else fitting.least) is None:
        verdict = "does not fit: this machine carried no load well enough to judge"
    else:
        needs = f"{format_count(needed)} worker{'s' if needed > 1 else ''}"
        most = "at most " if fitting.at_most else ""
        held = "would need" if fitting.fits else "needs"
        verdict = f"{held} {most}{needs}, it has {fitting.workers}"
        if needed > fitting.cores:
            verdict += f" and this machine {_cores(fitting.cores)}"
        elif fitting.workers > fitting.cores:
            verdict += f" on {_cores(fitting.cores)}"
        if fitting.fits:
            verdict = f"fits unless what is assumed holds: it {verdict}"
    carried = f"one worker carries {_carried(found)}"
    left = f"; not judged: {', '.join(fitting.not_judged)}" if fitting.not_judged else ""
    return f"{verdict}; {asked}; {carried}{left}"


def describe_in_step(found: InStep) -> str:
    """Say in a sentence what error to expect in a plan's own shape, and what was left out of it."""
    shape = found.shape
    by = "1 worker" if shape.workers == 1 else f"{shape.workers} workers"
    errors = (("ttft", found.ttft), ("itl", found.itl), ("e2el", found.e2el))
    expect = ", ".join(
        f"{name} {_time(one.p99_ns)} (at most {_time(one.max_ns)})" for name, one in errors
    )
    over = " over HTTP/2" if found.http2 else " over TLS" if found.tls else ""
    many = "1 stream" if found.streams == 1 else f"{format_count(found.streams)} streams"
    said = (
        f"with {many} in step{over}, by {by}, as in stage {shape.stage}, "
        f"expect errors at p99 of {expect}; "
        f"the event loop stood still for {_time(found.stall_ns)} at most, "
        f"{_plain(format_share(found.merged))} of the tokens shared a later one's stamp"
    )
    return "; ".join([said, *_left_out(found)])


def _left_out(found: InStep) -> Iterator[str]:
    """Say what of the plan is not in the figures, or is milder in them."""
    shape, left = found.shape, "not in these figures"
    if found.streams < shape.streams:
        most = f"{format_count(found.streams)} of {format_count(shape.streams)} streams"
        yield f"{most} were tested, the most that the test server keeps in step"
    if found.failed:
        yield f"{format_count(found.failed)} replies failed and are {left}"
    if shape.tls and not found.tls:
        what = "HTTP/2 and TLS are" if shape.http2 else "TLS is"
        yield f"{what} {left}: a certificate needs the program openssl, which is not there"
    if shape.proxy:
        yield f"the proxy is {left}"
    if found.server_late_ns > TICK_NS // 2:
        late = _time(found.server_late_ns)
        yield f"the test server took {late} to write a tick, so that the load was milder"


def expected(plan: Plan) -> str | None:
    """Return what error the last selftest of a plan like this says to expect; None without one."""
    found = saved()
    shape = found.of_shape(shape_of(plan)) if found else None
    return None if shape is None else f"{describe_in_step(shape)} (found by harness selftest)"


def render(found: Selftest, fitting: Fit | None = None, shape: InStep | None = None) -> str:
    """Return the result as text for a terminal; of a plan, how it fits and what its shape gave."""
    error = found.stamp_error
    quantiles = {"p50": error.p50_ns, "p99": error.p99_ns, "p99.9": error.p999_ns}
    facts = found.machine
    where = f"{facts['system']}, {_cores(facts['cores'])}, Python {facts['python']}"
    lines = [
        f"{where}; took {found.took_s:.0f} s",
        f"clock: {found.clock}",
        "",
        "stamp error    " + "   ".join(f"{name} {_time(ns)}" for name, ns in quantiles.items()),
        f"  reported − true of {format_count(error.events)} token events, {error.streams} streams;",
        "  true is the server's stamp right before its write, so that the write counts as error",
        "",
        *_table("token events", found.token_events),
        "",
        *_table("requests", found.requests),
        "",
        f"One worker of this machine carries {_carried(found)},",
        f"its send lag p99 below {_time(found.send_lag_limit_ns)}.",
    ]
    ends = {
        "token events": found.token_events,
        "requests": found.requests,
    }
    for name, ceiling in ends.items():
        more = "; the worker may carry more" if ceiling.at_least else ""
        lines.append(f"  {name}: ended by {ceiling.ended_by}{more}")
    if shape is not None:
        lines += ["", f"{_capital(describe_in_step(shape))}.".replace("; ", ";\n  ")]
    if fitting is not None:
        lines += ["", f"The plan {describe_fit(fitting, found)}.".replace("; ", ";\n  ")]
    return "\n".join(lines)


def _table(name: str, ceiling: Ceiling) -> list[str]:
    with_error = any(level.error_p99_ns is not None for level in ceiling.levels)
    head = f"  {name:<14}{'error p99':>11}" if with_error else f"  {name:<14}"
    lines = [f"{head}{'send lag p99':>14}{'CPU':>8}"]
    for level in ceiling.levels:
        said = list(level.broke) + (["the test server fell behind"] if level.server_late else [])
        error = f"{_time(level.error_p99_ns):>11}" if with_error else ""
        cpu = "–" if level.cpu is None else _plain(format_share(level.cpu))
        lines.append(
            f"  {_rate(level.per_s):<14}{error}{_time(level.send_lag_p99_ns):>14}{cpu:>8}"
            f"  {', '.join(said) or 'ok'}"
        )
    return lines


def _carried(found: Selftest) -> str:
    parts = []
    for name, ceiling in (("token events", found.token_events), ("requests", found.requests)):
        least = "at least " if ceiling.at_least else ""
        parts.append(f"{least}{_rate(ceiling.per_s)} {name}")
    return " or ".join(parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cores(number: int) -> str:
    return f"{number} core{'' if number == 1 else 's'}"


def _rate(per_s: float | None) -> str:
    return "–" if per_s is None else format_rate(round(per_s, 1))


def _time(ns: float | None) -> str:
    return "–" if ns is None else _plain(format_duration(ns))


def _plain(text: str) -> str:
    return text.replace(NARROW_SPACE, " ")


def warning(plan: Plan) -> str | None:
    """Return what to say before a run that asks for more than was found; None without a result."""
    found = saved()
    if found is None:
        return None
    fitting = fit(plan, found)
    if fitting.fits or fitting.demand is None:
        return None
    return f"the plan {describe_fit(fitting, found)} (found by harness selftest)"
