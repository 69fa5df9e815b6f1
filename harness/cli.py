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
    from harness.swarm.frames import Probe

_RUN_ONLY = {  # option by parameter: what a plan file says itself
    "api": "--api", "model": "--model", "rate": "--rate", "arrivals": "--arrivals",
    "concurrency": "--concurrency", "duration": "--for", "budgets": "--budget",
    "inputs": "--inputs", "headers": "--header",
}  # fmt: skip


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
    *,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Run a load and judge it.

    With a plan file, only --target, --seed, --workers and --out may be given beside it.
    """
    from harness.runs import run_plan
    from harness.selftest import warning
    from harness.swarm.manifest import default_folder

    plan = _plan(scenario, options)
    ctx.find_root().obj = plan
    folder = out or default_folder(plan.name)
    asks_too_much = warning(plan)
    if asks_too_much:
        click.echo(_scrubbed(ctx, f"harness: warning: {asks_too_much}"), err=True)
    with _live(quiet=quiet) as show:
        result = run_plan(plan, folder, show)
    _finish(ctx, result, json_to=json_to, quiet=quiet, verbose=verbose)


@main.command()
@click.argument("plan_file", metavar="PLAN.yaml", type=click.Path(path_type=Path))
@click.option("--target", "url", help="Base URL of the endpoint, or `embedded`.")
@click.pass_context
def check(ctx: click.Context, plan_file: Path, url: str | None) -> None:
    """Validate a plan and send one request of each task; no load."""
    from harness.runs import preflight

    plan = _plan(plan_file, {"url": url})
    ctx.find_root().obj = plan
    target, probes = preflight(plan)
    click.echo(_scrubbed(ctx, _describe_preflight(plan, target, probes)))


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Judge by its budgets.")
@click.option("--json", "json_to", type=click.Choice(["-"]), help="Print verdict.json to stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Also the evidence of every budget.")
@click.pass_context
def gate(
    ctx: click.Context,
    run_folder: Path,
    plan_file: Path | None,
    json_to: str | None,
    *,
    verbose: bool,
) -> None:
    """Judge a saved run again, by its own budgets or another plan's."""
    from harness.plan import load_plan
    from harness.runs import judge_folder

    budgets = load_plan(plan_file).budgets if plan_file else None
    _finish(ctx, judge_folder(run_folder, budgets), json_to=json_to, quiet=False, verbose=verbose)


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
def report(run_folder: Path) -> None:
    """Render a saved run's reports again."""
    from harness.runs import judge_folder

    for file in judge_folder(run_folder).files:
        click.echo(_shown(file))


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
    found = machine.measure(say=lambda text: click.echo(text, err=True))
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
    from harness.plan import load_plan, plan_from_options, with_url

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
