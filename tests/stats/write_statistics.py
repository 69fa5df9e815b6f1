"""Simulate, check every bound and write docs/statistics.md: `make stats`.

    python tests/stats/write_statistics.py [--effort SHARE] [--out FILE]

The prose is `statistics.template.md`; all numbers are put in by this command. A bound that is
broken, also by four times the runs, stands in the page in its own section, and the exit code is 1.
"""

# ruff: noqa: T201 - what it found is for people to read

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import one_run
import processes
import scipy
import shares
import simulate
import two_runs
from bounds import Check, Part, table
from simulate import SCENARIOS, SERVICE_SIGMA

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "statistics.md"
RUNS = {  # simulated runs of each cell, or pairs of them, by part of the page
    "overload": 400,
    "repeats": 1_000,
    "queues": 400,
    "shares": 1_000,
    "means": 2_000,
    "windows": 300,
    "equal": 1_000,
    "planned": 400,
    "designs": 1_000,
    "steady": 400,
    "unsteady": 200,
    "arrivals": 400,
    "early": 60,
}
_LEAST_RUNS = 20
_PIECES = 20  # in which progress is told
Key = tuple[str, Any]
Parts = dict[Key, Part]


@dataclass(frozen=True)
class Job:
    """A piece of work for one process; `weight` orders them, the heaviest first."""

    key: Key
    work: Callable[..., Part]
    args: tuple[Any, ...]
    weight: float = 1.0


def jobs(effort: float) -> Iterator[Job]:
    """Yield the work; what the wall clock waits for longest has the largest weight."""
    runs = {part: scaled(size, effort) for part, size in RUNS.items()}
    for scenario in SCENARIOS:
        yield from of_process(scenario, runs, effort)
    alike: tuple[tuple[str, Callable[..., Part], Iterable[Any], float], ...] = (
        ("overload", one_run.overload, one_run.OVERLOADED, 1),
        ("repeats", one_run.several_runs, one_run.REPEATS, 5),
        ("queues", one_run.queue, one_run.QUEUES, 100),
        ("shares", shares.judge_key, shares.every_key(), 3),
        ("means", shares.mean, shares.MEANS, 1),
        ("designs", two_runs.design, two_runs.DESIGNS, 5),
    )
    for part, work, keys, weight in alike:
        yield from (Job((part, key), work, (key, runs[part]), weight) for key in keys)
    crossed: tuple[tuple[str, Callable[..., Part], Iterable[Any], float], ...] = (
        ("planned", two_runs.planned, product(two_runs.SIZED, two_runs.QUANTILES), 20),
        ("unsteady", processes.unsteady, product(processes.HAPPENINGS, processes.STEADY_SIZES), 1),
        ("arrivals", processes.arrivals, product(processes.GENERATORS, processes.ARRIVALS_N), 1),
    )
    for part, work, keys, weight in crossed:
        yield from (Job((part, key), work, (*key, runs[part]), weight) for key in keys)
    yield Job(("windows", None), shares.every_window, (runs["windows"],))


def of_process(scenario: simulate.Scenario, runs: dict[str, int], effort: float) -> Iterator[Job]:
    """Yield what each process is judged by."""
    name, slow = scenario.name, 2.0 if scenario.kind == "queue" else 1.0
    for n, size in one_run.RUNS.items():
        work = (one_run.judge_size, (name, n, scaled(size, effort)))
        yield Job(("one run", (name, n)), by_name, work, slow * n / 1_000 + 5)
    for n in two_runs.SIZES:
        work = (two_runs.equal_runs, (name, n, runs["equal"]))
        yield Job(("equal", (name, n)), by_name, work, slow * n / 1_000 + 5)
    for n in processes.STEADY_SIZES:
        yield Job(("steady", (name, n)), by_name, (processes.steady, (name, n, runs["steady"])))
    for offset in processes.OFFSETS:
        work = (processes.early, (name, offset, runs["early"]))
        yield Job(("early", (name, offset)), by_name, work, 5 * slow)


def by_name(judge: Callable[..., Part], args: tuple[Any, ...]) -> Part:
    """Judge a process by its name: its functions cannot be sent to another process."""
    return judge(processes.BY_NAME[args[0]], *args[1:])


def scaled(runs: int, effort: float) -> int:
    return max(_LEAST_RUNS, round(runs * effort))


def perform(job: Job) -> tuple[Key, Part]:
    return job.key, job.work(*job.args)


def learn(law: simulate.Law) -> tuple[simulate.Law, simulate.FloatArray]:
    return law, simulate.simulated_survival(*law)


def gathered(effort: float) -> Parts:
    """Simulate in as many processes as there are cores; true quantiles first, as all need them."""
    laws = {*simulate.MANY_SERVERS.values(), *(queue.law for queue in one_run.QUEUES)}
    workers, began = get_context("fork"), time.monotonic()
    with workers.Pool(os.cpu_count()) as pool:
        simulate.known.update(pool.imap_unordered(learn, sorted(laws, key=repr)))
    print(
        f"true quantiles of {len(laws)} queues: {time.monotonic() - began:.0f} s", file=sys.stderr
    )
    work = sorted(jobs(effort), key=lambda job: -job.weight)
    found: Parts = {}
    with workers.Pool(os.cpu_count()) as pool:
        for key, part in pool.imap_unordered(perform, work):
            found[key] = part
            for before, after in part.redone:
                print(f"again: {before} → {after.share:.1%}", file=sys.stderr)
            if len(found) % (len(work) // _PIECES) == 0:
                share, seconds = len(found) / len(work), time.monotonic() - began
                print(f"{share:.0%} of the cells, {seconds:.0f} s", file=sys.stderr)
    return found


def fields(parts: Parts, effort: float) -> dict[str, str]:
    """Return what goes into each place of the template."""
    cells: one_run.Cells = {}
    for found in values(parts, "one run").values():
        cells |= found
    checks = [check for part in parts.values() for check in part.checks]
    redone = [pair for part in parts.values() for pair in part.redone]
    sizes = {f"{part}_runs": f"{scaled(size, effort):,}" for part, size in RUNS.items()}
    return sizes | {
        "stamp": stamp(effort),
        "one_run_runs": " / ".join(f"{scaled(r, effort):,}" for r in one_run.RUNS.values()),
        "errors": by_size(cells, one_run.error_table),
        "power": by_size(cells, one_run.power_table),
        "coverage": one_run.coverage_table(cells),
        "overload": one_run.overload_table(ordered(parts, "overload")),
        "repeats": one_run.repeats_table(ordered(parts, "repeats")),
        "queues": one_run.queues_table(in_order(parts, "queues", one_run.QUEUES)),
        "service_sigma": f"{SERVICE_SIGMA:g}",
        "failures": shares.failures_table(in_order(parts, "shares", shares.every_key())),
        "means": shares.means_table(in_order(parts, "means", shares.MEANS)),
        "windows": windows_line(parts["windows", None].value),
        "equal": two_runs.equal_runs_table(in_order(parts, "equal", pairs_of(two_runs.SIZES))),
        "planned": two_runs.planned_table(
            in_order(parts, "planned", product(two_runs.SIZED, two_runs.QUANTILES))
        ),
        "designs": two_runs.designs_table(in_order(parts, "designs", two_runs.DESIGNS)),
        "steady": processes.steady_table(values(parts, "steady")),
        "unsteady": processes.unsteady_table(values(parts, "unsteady")),
        "arrivals": processes.arrivals_table(values(parts, "arrivals")),
        "early": processes.early_table(in_order(parts, "early", pairs_of(processes.OFFSETS))),
        "checked": f"{len(checks):,}",
        "redone_count": f"{len(redone)}",
        "redone": redone_table(redone),
        "not_kept": not_kept(checks),
    }


def values(parts: Parts, name: str) -> dict[Any, Any]:
    return {key[1]: part.value for key, part in parts.items() if key[0] == name}


def ordered(parts: Parts, name: str) -> dict[Any, Any]:
    return dict(sorted(values(parts, name).items()))


def in_order(parts: Parts, name: str, keys: Any) -> dict[Any, Any]:
    found = values(parts, name)
    return {key: found[key] for key in keys}


def pairs_of(second: Any) -> list[tuple[str, Any]]:
    return [(scenario.name, one) for scenario in SCENARIOS for one in second]


def stamp(effort: float) -> str:
    today = datetime.now(UTC).date().isoformat()
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}"
    share = "" if effort == 1 else f", with {effort:g} of the runs"
    return f"{today}, Python {platform.python_version()}, {versions}{share}"


def by_size(cells: one_run.Cells, of_size: Callable[[one_run.Cells, int], str]) -> str:
    return "\n\n".join(
        f"**n = {n:,}** ({rate}/s for {seconds} s)\n\n{of_size(cells, n)}"
        for n, (rate, seconds) in one_run.SIZES.items()
    )


def windows_line(found: tuple[int, tuple[float, float, float]]) -> str:
    runs, (wrong, holds, finds) = found
    return (
        f"{runs} runs of 30 windows with 1,000 samples each, p95: with every window's truth at the\n"
        f"limit {100 * wrong:.1f} % FAIL; 20 % under it {100 * holds:.0f} % PASS; with one window "
        f"60 % slower {100 * finds:.0f} % FAIL."
    )


def redone_table(redone: list[tuple[Check, Check]]) -> str:
    """Return the cells that were simulated again, and what came of it."""
    if not redone:
        return "None."
    rows = [
        [
            before.place,
            before.what,
            *(f"{100 * check.share:.1f} of {check.runs:,}" for check in (before, after)),
            f"{100 * after.most:.1f}",
        ]
        for before, after in sorted(redone, key=lambda pair: pair[0].place)
    ]
    return table(["cell", "what", "first, %", "again, %", "allowed again, %"], rows)


def not_kept(checks: list[Check]) -> str:
    """Return the bounds that are broken for real."""
    broken = [check for check in checks if check.broken]
    if not broken:
        return "None: all of them are kept."
    rows = [
        [
            check.place,
            check.what,
            f"{100 * check.share:.1f}",
            f"{100 * check.most:.1f}",
            f"{check.runs:,}",
        ]
        for check in broken
    ]
    return table(["cell", "what", "found, %", "allowed, %", "runs"], rows)


def page(parts: Parts, effort: float) -> str:
    """Fill in the template; ValueError for a place that nothing fills."""
    text = (HERE / "statistics.template.md").read_text(encoding="utf-8")
    for name, value in fields(parts, effort).items():
        text = text.replace("{{" + name + "}}", value)
    if "{{" in text:
        raise ValueError(f"nothing fills a place of the template: {text[text.index('{{') :][:40]}")
    return text.rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--effort", type=float, default=1.0, help="share of the simulated runs")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args()
    parts = gathered(options.effort)
    options.out.write_text(page(parts, options.effort), encoding="utf-8")
    print(f"wrote {options.out}", file=sys.stderr)
    broken = [check for part in parts.values() for check in part.checks if check.broken]
    for check in broken:
        print(f"not kept: {check}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
