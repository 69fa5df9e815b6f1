"""Runs the probes that the decision asks for, each a run of its own, and keeps what is done."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.errors import ExitCode, HarnessError, TargetError, UserError
from harness.plan import Plan, masked
from harness.runs import Result, run_plan
from harness.search.decision import Purpose, Range, Shown, Step, next_step
from harness.search.result import Probe, Search, probe_of
from harness.search.template import Template

Live = Callable[[], AbstractContextManager[Callable[[dict[str, Any]], None]]]

PAUSES_S = (2.0, 5.0, 15.0)  # before the preflight of a probe is tried once more
LONGER = 4  # times the samples: half the width of an interval


class Searcher:
    """One search; `probes` grows while it runs.

    `live` opens the view of one run, `say` tells a line about what is done next and what came out.
    """

    def __init__(
        self,
        template: Template,
        within: Range,
        folder: Path,
        *,
        live: Live,
        say: Callable[[str], None],
    ) -> None:
        self._template, self._within, self._folder = template, within, folder
        self._live, self._say = live, say
        self._url = urlsplit(template.plan.target.url)._replace(query="", fragment="").geturl()
        self._started_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._probes: list[Probe] = []

    def run(self) -> Search:
        """Probe until nothing is left to learn. A Ctrl-C, or a target that is gone, ends it early.

        Raises what the first run raises before it has recorded anything, a plan or a target that
        cannot be used, and UserError for a folder that holds something.
        """
        if self._folder.exists() and any(self._folder.iterdir()):
            raise UserError(f"{self._folder} is not empty; choose another --out, or empty it")
        try:
            for step in self._steps():
                self._probes.append(self._probe(step))
                if self._probes[-1].shown is None:
                    return self._search(ExitCode.INTERRUPTED, "Interrupted.")
        except (KeyboardInterrupt, HarnessError) as error:
            if not self._probes:
                with suppress(OSError):
                    self._folder.rmdir()
                raise
            if isinstance(error, HarnessError):
                why = masked(self._template.plan, f"Probe {len(self._probes) + 1}: {error}")
                return self._search(error.exit_code, why)
            return self._search(ExitCode.INTERRUPTED, f"Interrupted {error}".rstrip() + ".")
        return self._search()

    def _search(self, stopped: ExitCode | None = None, why: str = "") -> Search:
        return Search(
            template=self._template,
            within=self._within,
            url=self._url,
            started_at=self._started_at,
            probes=tuple(self._probes),
            folder=self._folder,
            stopped=stopped,
            stopped_why=why,
        )

    def _steps(self) -> Iterator[Step]:
        while step := next_step(self._within, self._search().trials):
            yield step

    def _probe(self, step: Step) -> Probe:
        template, number = self._template, len(self._probes) + 1
        duration_ns = self._duration_ns(step)
        trial = 1 + sum(probe.load == step.load for probe in self._probes)
        plan = template.at(step.load, duration_ns, trial=trial)
        said = f"probe {number}: {template.load_text(step.load)}"
        self._say(f"{said} for {duration_ns / 1e9:g}s ({step.purpose})")
        folder = self._folder / f"{number:02d}-{_part(template.load_text(step.load))}"
        result = self._played(plan, folder, said)
        probe = probe_of(
            result,
            number=number,
            load=step.load,
            purpose=step.purpose,
            stage=template.stage.name,
            lasted_s=duration_ns / 1e9,
        )
        self._say(f"{said} {probe.shown or 'was interrupted'}")
        return probe

    def _played(self, plan: Plan, folder: Path, said: str) -> Result:
        """Run a probe. A target that answered before may need a while to do so again."""
        for pause_s in PAUSES_S if self._probes else ():
            try:
                return self._run(plan, folder)
            except TargetError as error:
                self._say(f"{said}: {masked(plan, str(error))}; again in {pause_s:g}s")
                time.sleep(pause_s)
        return self._run(plan, folder)

    def _run(self, plan: Plan, folder: Path) -> Result:
        with self._live() as show:
            return run_plan(plan, folder, show)

    def _duration_ns(self, step: Step) -> int:
        """As long as the budgets need; a longer repeat four times as long as what it repeats."""
        last_ns = round(self._probes[-1].lasted_s * 1e9) if self._probes else 0
        if step.purpose is Purpose.RETRY:
            return last_ns
        if step.purpose is Purpose.LONGER:
            return min(last_ns * LONGER, self._template.longest_ns)
        fit = [p for p in self._probes if p.shown not in (None, Shown.UNFIT)]
        rate = fit[-1].completed_per_s if fit else None
        return self._template.duration_ns(step.load, rate)


def _part(text: str) -> str:
    """Make a load's text a part of a path: `11.3-per-s`, `16-users`."""
    return re.sub(r"[^\w.]+", "-", text.replace("/", " per ").replace(",", ""))
