"""The `harness` command: parse, call, print. Every error ends in one message and its exit code."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import __version__
from harness.errors import ExitCode, HarnessError, UserError

if TYPE_CHECKING:
    from harness.plan import Plan
    from harness.runs import Result
    from harness.search import Over
    from harness.swarm.frames import Probe

_RUN_ONLY = {  # option by parameter: what a plan file says itself
    "api": "--api", "model": "--model", "rate": "--rate", "arrivals": "--arrivals",
    "concurrency": "--concurrency", "duration": "--for", "budgets": "--budget",
    "inputs": "--inputs", "headers": "--header",
}  # fmt: skip


_BASELINE = "Saved run to compare with, for regression budgets."


class _Group(click.Group):
    """Turns our errors into a message and an exit code, for every command."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal without µ is no reason to fail
        try:
            return super().invoke(ctx)
        except HarnessError as error:
            click.echo(_scrubbed(ctx, f"harness: {error}"), err=True)
            ctx.exit(int(error.exit_code))
        except KeyboardInterrupt as error:
            click.echo(f"harness: interrupted {error}".rstrip(), err=True)
            ctx.exit(int(ExitCode.INTERRUPTED))


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="harness")
def main() -> None:
    r"""Load-test a model endpoint; fail the run when a latency budget is exceeded.

    \b
    Exit codes: 0 PASS, 2 usage or plan error, 3 FAIL, 4 INCONCLUSIVE, 5 INVALID measurement,
    6 target unreachable, 130 interrupted (what was recorded is saved and reported), 1 our defect.
    """


@main.command()
@click.argument("scenario", metavar="PLAN.yaml|LOCUSTFILE.py", type=click.Path(path_type=Path))
@click.option("--target", "url", help="Base URL of the endpoint, or `embedded`.")
@click.option("--api", help="openai-chat, openai-completions, openai-embeddings or json.")
@click.option("--model", help="Model name sent with each request.")
@click.option("--rate", help="Poisson arrivals, like 20/s (open model).")
@click.option("--arrivals", help="Arrival process, like `constant 5/s` (open model).")
@click.option("--concurrency", help="Number of users, each waiting for its reply (closed model).")
@click.option("--for", "duration", help="How long, like 60s.")
@click.option("--budget", "budgets", multiple=True, help='Like "chat.ttft p99 < 800ms".')
@click.option("--inputs", type=click.Path(path_type=Path), help="File of prompts or a trace.")
@click.option("--header", "headers", multiple=True, help='Like "X-Team: search"; repeatable.')
@click.option("--seed", help="Seed of arrivals and inputs; the same seed plans the same run.")
@click.option("--workers", help="Worker processes, each on one core.")
@click.option("--repeat", help="Play the load so often, by new processes with new seeds.")
@click.option("--baseline", type=click.Path(path_type=Path), help=_BASELINE)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--json", "json_to", type=click.Choice(["-"]), help="Print verdict.json to stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Only the summary, no live view.")
@click.option("-v", "--verbose", is_flag=True, help="Also the evidence of every budget.")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    scenario: Path,
    json_to: str | None,
    out: Path | None,
    baseline: Path | None,
    *,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Run a load and judge it.

    With a plan file, only --target, --seed, --workers, --repeat, --baseline and --out may be given
    beside it.
    """
    from harness.recorder import load_recording
    from harness.runs import run_plan, without_baseline
    from harness.selftest import warning
    from harness.swarm.manifest import default_folder

    plan = _plan(scenario, options)
    ctx.find_root().obj = plan
    folder = out or default_folder(plan.name)
    base = load_recording(baseline) if baseline else None
    for text in filter(None, (warning(plan), None if base else without_baseline(plan.budgets))):
        click.echo(_scrubbed(ctx, f"harness: warning: {text}"), err=True)
    with _live(quiet=quiet) as show:
        result = run_plan(plan, folder, show, baseline=base)
    _finish(ctx, result, json_to=json_to, quiet=quiet, verbose=verbose)


@main.command()
@click.argument("plan_file", metavar="PLAN.yaml", type=click.Path(path_type=Path))
@click.option("--target", "url", help="Base URL of the endpoint, or `embedded`.")
@click.pass_context
def check(ctx: click.Context, plan_file: Path, url: str | None) -> None:
    """Validate a plan and send one request of each task; no load."""
    from harness.runs import preflight
    from harness.sizing import undecidable

    plan = _plan(plan_file, {"url": url})
    ctx.find_root().obj = plan
    target, probes = preflight(plan)
    click.echo(_scrubbed(ctx, _describe_preflight(plan, target, probes)))
    for text in undecidable(plan):
        click.echo(f"harness: warning: {text}", err=True)


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Judge by its budgets.")
@click.option("--baseline", type=click.Path(path_type=Path), help=_BASELINE)
@click.option("--json", "json_to", type=click.Choice(["-"]), help="Print verdict.json to stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Also the evidence of every budget.")
@click.pass_context
def gate(
    ctx: click.Context,
    run_folder: Path,
    plan_file: Path | None,
    baseline: Path | None,
    json_to: str | None,
    *,
    verbose: bool,
) -> None:
    """Judge a saved run again, by its own budgets or another plan's."""
    from harness.plan import load_plan
    from harness.recorder import load_recording
    from harness.runs import judge_folder

    plan = load_plan(plan_file) if plan_file else None
    base = load_recording(baseline) if baseline else None
    result = judge_folder(run_folder, plan, baseline=base)
    _finish(ctx, result, json_to=json_to, quiet=False, verbose=verbose)


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--baseline", type=click.Path(path_type=Path), help=_BASELINE)
def report(run_folder: Path, baseline: Path | None) -> None:
    """Render a saved run's reports again."""
    from harness.recorder import load_recording
    from harness.runs import judge_folder

    base = load_recording(baseline) if baseline else None
    for file in judge_folder(run_folder, baseline=base).files:
        click.echo(_shown(file))


@main.command()
@click.argument("base_folder", metavar="BASE", type=click.Path(path_type=Path))
@click.argument("candidate_folder", metavar="CANDIDATE", type=click.Path(path_type=Path))
@click.option("--limit", help="Allowed growth of every step's p99, like 5%.")
@click.option("--budget", "budgets", multiple=True, help='Like "chat.ttft p95 regression < 5%".')
@click.option("--json", "json_to", type=click.Choice(["-"]), help="Print all as JSON to stdout.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a comment for a PR; or -.")
@click.pass_context
def compare(
    ctx: click.Context,
    base_folder: Path,
    candidate_folder: Path,
    limit: str | None,
    budgets: Sequence[str],
    json_to: str | None,
    markdown: Path | None,
) -> None:
    """Compare two saved runs: what changed, by how much, and whether that is allowed.

    Without --limit and --budget, CANDIDATE's own regression budgets are judged.
    """
    from harness.compare import compare as compared
    from harness.compare import regressions
    from harness.recorder import load_recording, write_atomically
    from harness.report.comparison import as_json, render_markdown, render_text
    from harness.runs import budgets_of
    from harness.verdict.regression import Pair

    pair = Pair(load_recording(base_folder), load_recording(candidate_folder))
    limits = regressions(pair, limit, budgets)
    if limit is None and not budgets:
        limits = tuple(budget for budget in budgets_of(pair.candidate) if budget.regression)
    found = compared(pair, limits)
    to_stdout = json_to is not None or str(markdown) == "-"
    stream = sys.stderr if to_stdout else sys.stdout
    color = stream.isatty() and "NO_COLOR" not in os.environ
    unicode = (stream.encoding or "ascii").lower().startswith("utf")
    width = shutil.get_terminal_size().columns if stream.isatty() else 80
    click.echo(
        render_text(found, color=color, unicode=unicode, width=width), file=stream, color=color
    )
    if json_to:
        click.echo(json.dumps(as_json(found), indent=1, allow_nan=False))
    if str(markdown) == "-":
        click.echo(render_markdown(found), nl=False)
    elif markdown is not None:
        write_atomically(markdown, render_markdown(found))
    ctx.exit(int(found.exit_code))


@main.command()
@click.argument("plan_file", metavar="PLAN.yaml", type=click.Path(path_type=Path))
@click.option("--a", "a", required=True, help="Base URL of the baseline, or `embedded`.")
@click.option("--b", "b", required=True, help="Base URL of the candidate, or `embedded`.")
@click.option("--b-set", multiple=True, metavar="NAME=VALUE", help="If b is embedded: slots=4.")
@click.option("--limit", help="Allowed growth of every step's p99, like 5%.")
@click.option("--budget", "budgets", multiple=True, help='Like "chat.ttft p95 regression < 5%".')
@click.option("--block", help="Length of a block.  [default: 5s, or a 20th of the stage]")
@click.option("--pause", default="1s", show_default=True, help="Between blocks, for what runs on.")
@click.option("--seed", help="Seed of arrivals, inputs and the order of the blocks.")
@click.option("--workers", help="Worker processes of each target.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of both runs.")
@click.option("--json", "json_to", type=click.Choice(["-"]), help="Print ab.json to stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Only the summary, no live view.")
@click.pass_context
def ab(
    ctx: click.Context,
    /,
    plan_file: Path,
    a: str,
    b: str,
    b_set: Sequence[str],
    limit: str | None,
    budgets: Sequence[str],
    block: str | None,
    pause: str,
    out: Path | None,
    json_to: str | None,
    *,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare two targets in one run: blocks of the plan's load take turns, so that noise cancels.

    Each target gets the plan's whole load, so it takes twice as long. The exit code is that of the
    comparison: --limit and --budget, or the plan's regression budgets, with a as the baseline.
    """
    from harness import ab as interleaved
    from harness.ab import text
    from harness.selftest import warning
    from harness.swarm.manifest import default_folder

    plan = _plan(plan_file, options)
    ctx.find_root().obj = plan
    plans = interleaved.plans(interleaved.limited(plan, limit, budgets), a, b, b_set)
    turns = interleaved.turns(plan, block, pause)
    once = "" if plan.repeat == 1 else "repeat is not used: blocks are repeated instead"
    early = plan.abort_on or any(budget.abort for budget in plan.budgets)
    whole = "abort and abort_on are not used: both targets are played to the end" if early else ""
    for said in filter(None, (once, whole, warning(plan))):
        click.echo(_scrubbed(ctx, f"harness: warning: {said}"), err=True)
    folder = out or default_folder(f"{plan.name}-ab")
    with _live(quiet=quiet) as show:
        found = interleaved.play(plans, folder, turns, show, limit=limit)
    text.write(found, folder)
    stream = sys.stderr if json_to else sys.stdout
    color = stream.isatty() and "NO_COLOR" not in os.environ
    unicode = (stream.encoding or "ascii").lower().startswith("utf")
    width = shutil.get_terminal_size().columns if stream.isatty() else 80
    said = text.render_text(found, color=color, unicode=unicode, width=width, shown=_shown)
    click.echo(said, file=stream, color=color)
    if json_to:
        click.echo((folder / "ab.json").read_text(encoding="utf-8"), nl=False)
    ctx.exit(int(found.exit_code))


@main.command("plan-size")
@click.argument("plan_file", metavar="PLAN.yaml", type=click.Path(path_type=Path))
@click.option("--pilot", type=click.Path(path_type=Path), help="Saved run that tells the rest.")
@click.option("--vif", type=click.FloatRange(1), help="Variance inflation to assume, like 2.")
@click.option(
    "--power",
    type=click.FloatRange(0.5, 0.999),
    default=0.9,
    show_default=True,
    help="Chance that a good target passes.",
)
@click.option("--json", "json_to", type=click.Choice(["-"]), help="Print the result as JSON.")
@click.pass_context
def plan_size(
    ctx: click.Context,
    plan_file: Path,
    pilot: Path | None,
    vif: float | None,
    power: float,
    json_to: str | None,
) -> None:
    """Say how many samples, and how long, each budget of a plan needs; no load.

    The exit code is 4 when the plan gives a budget too few. --pilot RUN, a run of the same plan,
    tells how many samples an arrival makes and how they depend on each other.
    """
    from harness import sizing
    from harness.recorder import load_recording

    plan = _plan(plan_file, {})
    ctx.find_root().obj = plan
    found = sizing.needs(plan, power=power, vif=vif, pilot=load_recording(pilot) if pilot else None)
    stream = sys.stderr if json_to else sys.stdout
    unicode = (stream.encoding or "ascii").lower().startswith("utf")
    measured = pilot is not None
    click.echo(sizing.render(found, power=power, measured=measured, unicode=unicode), file=stream)
    if json_to:
        click.echo(json.dumps(sizing.as_json(found, power=power), indent=1))
    if not all(need.enough for need in found):
        ctx.exit(int(ExitCode.INCONCLUSIVE))


@main.command()
@click.argument("plan_file", metavar="PLAN.yaml", type=click.Path(path_type=Path))
@click.option("--over", type=click.Choice(["rate", "concurrency"]), required=True)
@click.option("--from", "low", required=True, help="Lowest load, like 1/s, or 1 user: 1.")
@click.option("--to", "high", required=True, help="Highest load, like 500/s, or 200 users: 200.")
@click.option("--precision", default="10%", show_default=True, help="How close to the limit.")
@click.option("--longest", default="5m", show_default=True, help="How long a probe may last.")
@click.option("--stage", help="Stage to judge, of a plan that records several.")
@click.option("--target", "url", help="Base URL of the endpoint, or `embedded`.")
@click.option("--seed", help="Seed of arrivals and inputs.")
@click.option("--workers", help="Worker processes, each on one core.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the search.")
@click.option("--json", "json_to", type=click.Choice(["-"]), help="Print search.json to stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Only the summary, no live view.")
@click.pass_context
def search(
    ctx: click.Context,
    /,
    plan_file: Path,
    over: Over,
    low: str,
    high: str,
    precision: str,
    longest: str,
    stage: str | None,
    out: Path | None,
    json_to: str | None,
    *,
    quiet: bool,
    **options: Any,
) -> None:
    """Find the highest load at which all budgets of a plan hold.

    Each probe is a run of its own. Exit codes: 0 found, 3 not even the lowest load holds, 4 that
    cannot be decided, 5 the generator was the limit, 6 target unreachable.
    """
    from harness.search import (
        Searcher,
        Template,
        longest_ns_of,
        most_probes,
        range_of,
        render_terminal,
        write_results,
    )
    from harness.swarm.manifest import default_folder

    within, longest_ns = range_of(over, low, high, precision), longest_ns_of(longest)
    plan = _plan(plan_file, options)
    ctx.find_root().obj = plan
    template = Template.of(plan, over, stage=stage, longest_ns=longest_ns)
    template.check(within.low)
    for text in template.warnings(within.low):
        click.echo(f"harness: warning: {text}", err=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    longest_s = template.longest_ns / 1e9
    say(f"about {most_probes(within)} probes, each at most {longest_s:g}s beside its warm-up")
    folder = out or default_folder(f"{plan.name[:40]}-search")
    searcher = Searcher(template, within, folder, live=lambda: _live(quiet=quiet), say=say)
    found = searcher.run()
    files = write_results(found)
    stream = sys.stderr if json_to else sys.stdout
    color = stream.isatty() and "NO_COLOR" not in os.environ
    text = render_terminal(
        found,
        [_shown(file) for file in files],
        color=color,
        unicode=(stream.encoding or "ascii").lower().startswith("utf"),
        width=shutil.get_terminal_size().columns if stream.isatty() else 80,
    )
    click.echo(_scrubbed(ctx, text), file=stream, color=color)
    if json_to:
        click.echo((folder / "search.json").read_text(encoding="utf-8"), nl=False)
    ctx.exit(int(found.exit_code))


@main.command()
def schema() -> None:
    """Print the JSON Schema of the plan file, for editors."""
    from harness.plan import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="0 takes a free one.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Like slots=4.")
def endpoint(host: str, port: int, settings: Sequence[str]) -> None:
    """Serve the embedded reference endpoint until Ctrl-C."""
    from harness.endpoint import Settings, serve

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    given = dict(text.partition("=")[::2] for text in settings)
    serve(Settings.of(given), host, port, ready=lambda url: click.echo(f"serving on {url}"))


@main.command()
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Does it fit?")
@click.option("--json", "json_to", type=click.Choice(["-"]), help="Print the result as JSON.")
@click.pass_context
def selftest(ctx: click.Context, plan_file: Path | None, json_to: str | None) -> None:
    """Measure in under a minute what this machine measures well.

    With --plan the exit code is 5 when the plan asks for more than its workers carry. The result is
    kept; `harness run` warns by it.
    """
    from harness import selftest as machine

    plan = _plan(plan_file, {}) if plan_file else None
    ctx.find_root().obj = plan
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    budgets = plan.budgets if plan else ()
    found = machine.measure(budgets=budgets, say=lambda text: click.echo(text, err=True))
    try:
        click.echo(f"kept in {_shown(machine.save(found))}", err=True)
    except OSError as error:
        click.echo(f"harness: warning: the result is not kept: {error}", err=True)
    fitting = machine.fit(plan, found) if plan else None
    stream = sys.stderr if json_to else sys.stdout
    click.echo(machine.render(found, fitting), file=stream)
    if json_to:
        click.echo(json.dumps(machine.as_json(found, fitting), indent=1))
    if fitting is not None and fitting.demand is not None and not fitting.fits:
        ctx.exit(int(ExitCode.INVALID))


@main.command()
@click.argument("url")
@click.option("--into", type=click.Path(path_type=Path), default=Path(), help="Folder to write to.")
@click.option("--header", "headers", multiple=True, help='Like "Authorization: Bearer $KEY".')
def init(url: str, into: Path, headers: Sequence[str]) -> None:
    """Probe an endpoint and write a plan and a scenario for it that run at once."""
    from harness.starter import write_starter

    found, files = write_starter(url, into, headers)
    click.echo(found)
    for file in files:
        click.echo(f"wrote {_shown(file)}")
    click.echo(f"next: harness check {_shown(files[0])}, then harness run {_shown(files[0])}")


def _plan(path: Path, options: dict[str, Any]) -> Plan:
    """Return the plan of a file, or of a locust file and options."""
    from harness.plan import MOST_REPEATS, load_plan, plan_from_options, with_url

    given = {name: value for name, value in options.items() if value not in (None, ())}
    if path.suffix == ".py":
        return plan_from_options(scenario=path, **given)
    surplus = [option for name, option in _RUN_ONLY.items() if name in given]
    if surplus:
        raise UserError(f"{', '.join(surplus)} beside a plan file: write it into {path}")
    plan = load_plan(path)
    if "url" in given:
        plan = with_url(plan, given["url"])
    return replace(
        plan,
        seed=_whole("--seed", given.get("seed", str(plan.seed)), 0, 2**63 - 1),
        workers=_whole("--workers", given.get("workers", str(plan.workers)), 1, 1024),
        repeat=_whole("--repeat", given.get("repeat", str(plan.repeat)), 1, MOST_REPEATS),
    )


def _whole(option: str, text: str, low: int, high: int) -> int:
    if len(text) > 19 or not text.isdecimal() or not low <= int(text) <= high:
        raise UserError(f"{option}: found {text!r}; allowed is a whole number, {low} to {high:,}")
    return int(text)


@contextmanager
def _live(*, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    from rich.console import Console

    from harness.swarm.live import LiveView

    console = Console(stderr=True)
    with LiveView(console, plain=not console.is_terminal, quiet=quiet) as view:
        yield view.update


def _finish(
    ctx: click.Context, result: Result, *, json_to: str | None, quiet: bool, verbose: bool
) -> None:
    """Print the summary (to stderr when stdout is for JSON) and end with the run's exit code."""
    from harness.report.facts import findings
    from harness.report.markdown import github_annotations
    from harness.report.terminal import render_terminal
    from harness.units import NARROW_SPACE

    stream = sys.stderr if json_to else sys.stdout
    color = stream.isatty() and "NO_COLOR" not in os.environ
    unicode = (stream.encoding or "ascii").lower().startswith("utf")
    verdict = result.verdict
    text = render_terminal(
        verdict,
        findings(result.recording, verdict),
        result.recording.run,
        [_shown(file) for file in result.files],
        color=color,
        unicode=unicode,
        width=shutil.get_terminal_size().columns if stream.isatty() else 80,
        exit_code=int(result.exit_code),
    )
    click.echo(text, file=stream, color=color)
    if verbose:
        for budget in verdict.budgets:
            evidence = budget.evidence.replace(NARROW_SPACE, "")
            click.echo(evidence if unicode else evidence.replace("µ", "u"), file=stream)
    if os.environ.get("GITHUB_ACTIONS") == "true" and not quiet:
        for line in github_annotations(verdict):
            click.echo(line, file=stream)
    if json_to:
        click.echo((result.folder / "verdict.json").read_text(encoding="utf-8"), nl=False)
    ctx.exit(int(result.exit_code))


def _describe_preflight(plan: Plan, target: str, probes: Sequence[Probe]) -> str:
    """Say what the plan will do and what the endpoint answered."""
    lines = [f"{plan.name}: {target} answers, the plan is usable"]
    for probe in probes:
        for name, _, detail in probe.steps:
            facts = [f"status {detail['status']}"] if "status" in detail else []
            if "streamed" in detail:
                facts.append("streams" if detail["streamed"] else "does not stream")
                counted = detail["tokens_counted"]
                facts.append(
                    "usage missing: tokens are counted events"
                    if counted or detail["output_tokens"] is None
                    else f"usage sent: {detail['input_tokens']} in, {detail['output_tokens']} out"
                )
            lines.append(f"  {probe.task}: step {name}: {', '.join(facts) or 'ok'}")
    if plan.repeat > 1:
        lines.append(f"  {plan.repeat} times, by new processes with new seeds:")
    for stage in plan.load:
        kept = "" if stage.record else ", not judged"
        lines.append(f"  stage {stage.name}: {stage.load} for {stage.duration_ns / 1e9:g}s{kept}")
    lines += [f"  budget {budget.text}" for budget in plan.budgets]
    return "\n".join(lines)


def _scrubbed(ctx: click.Context, text: str) -> str:
    """Mask the plan's secrets in what is printed; a server's message may echo a key."""
    from harness.plan import masked

    plan = ctx.find_root().obj
    return text if plan is None else masked(plan, text)


def _shown(path: Path) -> str:
    """Return a path as short as it can be said from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


if __name__ == "__main__":
    main()
