"""What a command shows to people, and where."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from harness.cli.streams import print_document

if TYPE_CHECKING:
    from harness.plan import Plan
    from harness.runs import Result
    from harness.swarm.frames import Probe


@dataclass(frozen=True, slots=True)
class Screen:
    """Where a command's result is shown to people: on stderr where stdout is for machines."""

    stream: TextIO
    color: bool
    unicode: bool
    width: int

    @classmethod
    def beside(cls, machine: object) -> Screen:
        """Return the terminal that is left beside output for machines, if there is any."""
        stream = sys.stderr if machine else sys.stdout
        return cls(
            stream,
            color=stream.isatty() and "NO_COLOR" not in os.environ,
            unicode=(stream.encoding or "ascii").lower().startswith("utf"),
            width=shutil.get_terminal_size().columns if stream.isatty() else 80,
        )

    @property
    def style(self) -> dict[str, Any]:
        """What the renderers ask of it."""
        return {"color": self.color, "unicode": self.unicode, "width": self.width}

    def show(self, text: str) -> None:
        """Print a text for people."""
        click.echo(text, file=self.stream, color=self.color)


@contextmanager
def live(*, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open the live view of a run; what is yielded takes its states."""
    from rich.console import Console

    from harness.swarm.live import LiveView

    console = Console(stderr=True)
    with LiveView(console, plain=not console.is_terminal, quiet=quiet) as view:
        yield view.update


def finish(
    ctx: click.Context, result: Result, *, json_to: str | None, quiet: bool, verbose: bool
) -> None:
    """Print the summary (to stderr when stdout is for JSON) and end with the run's exit code."""
    from harness.report.export import verdict_json
    from harness.report.facts import findings
    from harness.report.markdown import github_annotations
    from harness.report.terminal import render_terminal
    from harness.units import NARROW_SPACE

    screen, verdict = Screen.beside(json_to), result.verdict
    found = findings(result.recording, verdict)
    text = render_terminal(
        verdict,
        found,
        result.recording.run,
        [shown(file) for file in result.files],
        **screen.style,
        exit_code=int(result.exit_code),
    )
    screen.show(text)
    if verbose:
        for budget in verdict.budgets:
            evidence = budget.evidence.replace(NARROW_SPACE, "")
            screen.show(evidence if screen.unicode else evidence.replace("µ", "u"))
    if os.environ.get("GITHUB_ACTIONS") == "true" and not quiet:
        for line in github_annotations(verdict):
            screen.show(line)
    warn(ctx, *result.warnings)
    if json_to:
        document = json.dumps(verdict_json(result.recording, verdict, found), indent=1)
        print_document(document + "\n", "--json -")
    ctx.exit(int(result.exit_code))


def _usage(detail: Mapping[str, Any]) -> str:
    """Say which counts of tokens a reply reported; an embedding has none of output."""
    counts = {"in": detail["input_tokens"], "out": detail["output_tokens"]}
    said = [f"{tokens} {way}" for way, tokens in counts.items() if tokens is not None]
    if detail["tokens_counted"] or not said:
        return "usage missing: tokens are counted events"
    return f"usage sent: {', '.join(said)}"


def describe_preflight(plan: Plan, target: str, probes: Sequence[Probe]) -> str:
    """Say what the plan will do and what the endpoint answered."""
    from harness.health.streams import in_one_read

    lines = [f"{plan.name}: {target} answers, the plan is usable"]
    for probe in probes:
        for name, _, detail in probe.steps:
            facts = [f"status {detail['status']}"] if "status" in detail else []
            if "streamed" in detail:
                facts.append("streams" if detail["streamed"] else "does not stream")
                facts.append(_usage(detail))
            asked = f" ({detail['url']})" if detail.get("url") else ""
            lines.append(f"  {probe.task}: step {name}: {', '.join(facts) or 'ok'}{asked}")
            if "one_read" in detail:
                lines.append(f"    {in_one_read(detail['one_read'])}")
    if plan.repeat > 1:
        lines.append(f"  {plan.repeat} times, by new processes with new seeds:")
    for stage in plan.load:
        kept = "" if stage.record else ", not judged"
        ramp = f", started within {stage.spread_ns / 1e9:g}s" if stage.spread_ns else ""
        spread = ramp if stage.concurrency else ""
        lasts = f"{stage.duration_ns / 1e9:g}s"
        lines.append(f"  stage {stage.name}: {stage.load} for {lasts}{spread}{kept}")
    lines += [f"  budget {budget.text}" for budget in plan.budgets]
    return "\n".join(lines)


def warn(ctx: click.Context, *texts: str | None) -> None:
    """Print the warnings that there are."""
    for text in filter(None, texts):
        click.echo(scrubbed(ctx, f"harness: warning: {text}"), err=True)


def note(ctx: click.Context, text: str | None) -> None:
    """Print what is worth knowing beside the result, if there is something."""
    if text:
        click.echo(scrubbed(ctx, f"harness: {text}"), err=True)


def unsent(plan: Plan) -> str | None:
    """Say which columns of the plan's inputs are not sent; None when all are."""
    from harness.inputs import unsent_columns

    if plan.inputs is None or plan.target.api == "json":
        return None
    columns = unsent_columns(plan.inputs)
    return f"of {plan.inputs.name} is not sent: {', '.join(columns)}" if columns else None


@contextmanager
def unwritten_told(ctx: click.Context, where: Path) -> Iterator[None]:
    """Warn of what could not be written: a result that is known is not lost with it."""
    try:
        yield
    except OSError as error:
        warn(ctx, f"{shown(where)} cannot be written ({error.strerror}): the result is not there")


def scrubbed(ctx: click.Context, text: str) -> str:
    """Mask the plan's secrets in what is printed; a server's message may echo a key."""
    from harness.plan import masked

    plan = ctx.find_root().obj
    return text if plan is None else masked(plan, text)


def shown(path: Path) -> str:
    """Return a path as short as it can be said from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
