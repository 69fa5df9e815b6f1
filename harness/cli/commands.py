"""The commands: parse, call, print. Every error ends in one message and its exit code."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import __version__
from harness.cli.options import (
    baseline_option,
    check_reports_folder,
    check_writable,
    json_option,
    limit_option,
    plan_file_argument,
    plan_of,
    quiet_option,
    regressions_option,
    run_folder_argument,
    target_option,
    verbose_option,
    workers_option,
)
from harness.cli.screen import (
    Screen,
    describe_preflight,
    finish,
    live,
    note,
    scrubbed,
    shown,
    unsent,
    unwritten_told,
    warn,
)
from harness.cli.streams import outlive_readers, print_document, tell_lost_output
from harness.errors import ExitCode, HarnessError, UserError
from harness.limits import raise_descriptor_limit

if TYPE_CHECKING:
    from harness.search import Over


class _Group(click.Group):
    """Turns our errors into a message and an exit code, for every command."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        outlive_readers()
        try:
            return super().main(*args, **kwargs)
        finally:
            tell_lost_output()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HarnessError as error:
            click.echo(scrubbed(ctx, f"harness: {error}"), err=True)
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
    """Load-test a model endpoint; fail the run when a latency budget is exceeded.

    \b
    Exit codes: 0 PASS, 2 usage or plan error, 3 FAIL, 4 INCONCLUSIVE, 5 INVALID measurement,
    6 target unreachable, 130 interrupted (what was recorded is saved and reported), 1 our defect.
    """  # noqa: D301 - click looks for the character, not for its name
    raise_descriptor_limit()


@main.command()
@click.argument("scenario", metavar="PLAN.yaml|LOCUSTFILE.py", type=click.Path(path_type=Path))
@target_option
@click.option("--api", help="openai-chat, openai-completions, openai-embeddings or json.")
@click.option("--model", help="Model name sent with each request.")
@click.option("--rate", help="Poisson arrivals, like 20/s (open model).")
@click.option("--arrivals", help="Arrival process, like `constant 5/s` (open model).")
@click.option("--concurrency", help="Number of users, each waiting for its reply (closed model).")
@click.option("--ramp", help="How long the users take to start, like 5s (closed model).")
@click.option("--for", "duration", help="How long, like 60s.")
@click.option("--budget", "budgets", multiple=True, help='Like "chat.ttft p99 < 800ms".')
@click.option("--inputs", type=click.Path(path_type=Path), help="File of prompts or a trace.")
@click.option("--header", "headers", multiple=True, help='Like "X-Team: search"; repeatable.')
@click.option("--seed", help="Seed of arrivals and inputs; the same seed plans the same run.")
@workers_option
@click.option("--repeat", help="Play the load so often, by new processes with new seeds.")
@baseline_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.")
@json_option("verdict.json")
@quiet_option
@verbose_option
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
    from harness.selftest import expected, warning
    from harness.swarm.manifest import default_folder
    from harness.swarm.preconditions import misfits

    plan = plan_of(ctx, scenario, options)
    folder = out or default_folder(plan.name)
    base = load_recording(baseline) if baseline else None
    warn(ctx, warning(plan), *misfits(plan), None if base else without_baseline(plan.budgets))
    note(ctx, expected(plan))
    note(ctx, unsent(plan))
    with live(quiet=quiet) as show:
        result = run_plan(plan, folder, show, baseline=base)
    finish(ctx, result, json_to=json_to, quiet=quiet, verbose=verbose)


@main.command()
@plan_file_argument
@target_option
@click.pass_context
def check(ctx: click.Context, plan_file: Path, url: str | None) -> None:
    """Validate a plan and send one request of each task; no load."""
    from harness.runs import preflight
    from harness.sizing import out_of_reach, undecidable
    from harness.swarm.preconditions import misfits

    plan = plan_of(ctx, plan_file, {"url": url})
    target, probes = preflight(plan)
    click.echo(scrubbed(ctx, describe_preflight(plan, target, probes)))
    note(ctx, unsent(plan))
    warn(ctx, *misfits(plan), *out_of_reach(plan), *undecidable(plan))


@main.command()
@run_folder_argument
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Judge by its budgets.")
@baseline_option
@click.option("--out", type=click.Path(path_type=Path), help="Write the reports to this folder.")
@json_option("verdict.json")
@verbose_option
@click.pass_context
def gate(
    ctx: click.Context,
    run_folder: Path,
    plan_file: Path | None,
    baseline: Path | None,
    out: Path | None,
    json_to: str | None,
    *,
    verbose: bool,
) -> None:
    """Judge a saved run again, by its own budgets or another plan's.

    The run's folder stays as it is: --out says where reports of this verdict shall go.
    """
    from harness.plan import load_plan
    from harness.recorder import load_recording
    from harness.runs import judge_folder, with_reports

    if out is not None:
        check_reports_folder(out, run_folder, others=plan_file is not None)
    plan = load_plan(plan_file) if plan_file else None
    base = load_recording(baseline) if baseline else None
    result = judge_folder(run_folder, plan, baseline=base)
    if out is not None:
        result = with_reports(result, out, baseline=base)
    finish(ctx, result, json_to=json_to, quiet=False, verbose=verbose)


@main.command()
@run_folder_argument
@baseline_option
def report(run_folder: Path, baseline: Path | None) -> None:
    """Write a saved run's reports again, by its own budgets."""
    from harness.recorder import load_recording
    from harness.runs import judge_folder, with_reports

    base = load_recording(baseline) if baseline else None
    result = with_reports(judge_folder(run_folder, baseline=base), run_folder, baseline=base)
    if result.unwritten:
        raise UserError(f"{result.unwritten}; harness gate RUN --out FOLDER writes them elsewhere")
    for file in result.files:
        click.echo(shown(file))


@main.command()
@click.argument("base_folder", metavar="BASE", type=click.Path(path_type=Path))
@click.argument("candidate_folder", metavar="CANDIDATE", type=click.Path(path_type=Path))
@limit_option
@regressions_option
@json_option("all as JSON")
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

    if json_to and str(markdown) == "-":
        raise UserError("--json - and --markdown - both want stdout; give --markdown a file")
    if markdown is not None and str(markdown) != "-":
        check_writable("--markdown", markdown)
    pair = Pair(load_recording(base_folder), load_recording(candidate_folder))
    limits = regressions(pair, limit, budgets)
    if limit is None and not budgets:
        limits = tuple(budget for budget in budgets_of(pair.candidate) if budget.regression)
    found = compared(pair, limits)
    screen = Screen.beside(json_to or str(markdown) == "-")
    screen.show(render_text(found, **screen.style))
    if json_to:
        print_document(json.dumps(as_json(found), indent=1, allow_nan=False) + "\n", "--json -")
    if str(markdown) == "-":
        print_document(render_markdown(found), "--markdown -")
    elif markdown is not None:
        with unwritten_told(ctx, markdown):
            write_atomically(markdown, render_markdown(found))
    ctx.exit(int(found.exit_code))


@main.command()
@plan_file_argument
@click.option("--a", "a", required=True, help="Base URL of the baseline, or `embedded`.")
@click.option("--b", "b", required=True, help="Base URL of the candidate, or `embedded`.")
@click.option("--b-set", multiple=True, metavar="NAME=VALUE", help="If b is embedded: slots=4.")
@limit_option
@regressions_option
@click.option("--block", help="Length of a block.  [default: 5s, or a 20th of the stage]")
@click.option("--pause", default="1s", show_default=True, help="Between blocks, for what runs on.")
@click.option("--seed", help="Seed of arrivals, inputs and the order of the blocks.")
@click.option("--workers", help="Worker processes of each target.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of both runs.")
@json_option("ab.json")
@quiet_option
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
    from harness.swarm.preconditions import misfits

    plan = plan_of(ctx, plan_file, options)
    plans = interleaved.plans(interleaved.limited(plan, limit, budgets), a, b, b_set)
    turns = interleaved.turns(plan, block, pause)
    once = None if plan.repeat == 1 else "repeat is not used: blocks are repeated instead"
    early = plan.abort_on or any(budget.abort for budget in plan.budgets)
    whole = "abort and abort_on are not used: both targets are played to the end" if early else None
    warn(ctx, once, whole, warning(plan), *misfits(plan))
    folder = out or default_folder(f"{plan.name}-ab")
    with live(quiet=quiet) as show:
        found = interleaved.play(plans, folder, turns, show, limit=limit)
    for arm in found.arms:
        warn(ctx, *arm.result.warnings)
    with unwritten_told(ctx, folder):
        text.write(found, folder)
    screen = Screen.beside(json_to)
    screen.show(text.render_text(found, **screen.style, shown=shown))
    if json_to:
        document = json.dumps(text.as_json(found), indent=1, allow_nan=False)
        print_document(document + "\n", "--json -")
    ctx.exit(int(found.exit_code))


@main.command("plan-size")
@plan_file_argument
@click.option("--pilot", type=click.Path(path_type=Path), help="Saved run that tells the rest.")
@click.option("--vif", type=click.FloatRange(1), help="Variance inflation to assume, like 2.")
@click.option(
    "--power",
    type=click.FloatRange(0.5, 0.999),
    default=0.9,
    show_default=True,
    help="Chance that a good target passes.",
)
@json_option("the result as JSON")
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

    plan = plan_of(ctx, plan_file, {})
    found = sizing.needs(plan, power=power, vif=vif, pilot=load_recording(pilot) if pilot else None)
    screen = Screen.beside(json_to)
    measured = pilot is not None
    screen.show(sizing.render(found, power=power, measured=measured, unicode=screen.unicode))
    if json_to:
        print_document(json.dumps(sizing.as_json(found, power=power), indent=1) + "\n", "--json -")
    if not all(need.enough for need in found):
        ctx.exit(int(ExitCode.INCONCLUSIVE))


@main.command()
@plan_file_argument
@click.option("--over", type=click.Choice(["rate", "concurrency"]), required=True)
@click.option("--from", "low", required=True, help="Lowest load, like 1/s, or 1 user: 1.")
@click.option("--to", "high", required=True, help="Highest load, like 500/s, or 200 users: 200.")
@click.option("--precision", default="10%", show_default=True, help="How close to the limit.")
@click.option("--longest", default="5m", show_default=True, help="How long a probe may last.")
@click.option("--stage", help="Stage to judge, of a plan that records several.")
@target_option
@click.option("--seed", help="Seed of arrivals and inputs.")
@workers_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the search.")
@json_option("search.json")
@quiet_option
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
        as_json,
        longest_ns_of,
        most_probes,
        range_of,
        render_terminal,
        write_results,
    )
    from harness.swarm.interrupts import signals_like_ctrl_c
    from harness.swarm.manifest import default_folder
    from harness.swarm.preconditions import misfits

    within, longest_ns = range_of(over, low, high, precision), longest_ns_of(longest)
    plan = plan_of(ctx, plan_file, options)
    template = Template.of(plan, over, stage=stage, longest_ns=longest_ns)
    template.check(within.low)
    widest = template.at(within.high, template.stage.duration_ns)
    warn(ctx, *misfits(widest), *template.warnings(within.low))

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    longest_s = template.longest_ns / 1e9
    say(f"about {most_probes(within)} probes, each at most {longest_s:g}s beside its warm-up")
    folder = out or default_folder(f"{plan.name[:40]}-search")
    searcher = Searcher(template, within, folder, live=lambda: live(quiet=quiet), say=say)
    with signals_like_ctrl_c():
        found = searcher.run()
    files: Sequence[Path] = ()
    with unwritten_told(ctx, folder):
        files = write_results(found)
    screen = Screen.beside(json_to)
    text = render_terminal(found, [shown(file) for file in files], **screen.style)
    screen.show(scrubbed(ctx, text))
    if json_to:
        print_document(json.dumps(as_json(found), indent=1, allow_nan=False) + "\n", "--json -")
    ctx.exit(int(found.exit_code))


@main.command()
def schema() -> None:
    """Print the JSON Schema of the plan file, for editors."""
    from harness.plan import json_schema

    print_document(json.dumps(json_schema(), indent=2) + "\n", "the schema")


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
@json_option("the result as JSON")
@click.pass_context
def selftest(ctx: click.Context, plan_file: Path | None, json_to: str | None) -> None:
    """Measure in under a minute what this machine measures well.

    With --plan it also plays the plan's own shape, in step, and says what errors to expect; the
    exit code is then 5 when the plan asks for more than its workers carry. The result is kept;
    `harness run` warns by it and repeats what to expect.
    """
    from harness import selftest as machine
    from harness.swarm.interrupts import signals_like_ctrl_c

    plan = plan_of(ctx, plan_file, {}) if plan_file else None
    with signals_like_ctrl_c():
        found = machine.measure(plan=plan, say=lambda text: click.echo(text, err=True))
    try:
        click.echo(f"kept in {shown(machine.save(found))}", err=True)
    except OSError as error:
        warn(ctx, f"the result is not kept: {error}")
    fitting = machine.fit(plan, found) if plan else None
    Screen.beside(json_to).show(machine.render(found, fitting, next(iter(found.in_step), None)))
    if json_to:
        print_document(json.dumps(machine.as_json(found, fitting), indent=1) + "\n", "--json -")
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
        click.echo(f"wrote {shown(file)}")
    click.echo(f"next: harness check {shown(files[0])}, then harness run {shown(files[0])}")
