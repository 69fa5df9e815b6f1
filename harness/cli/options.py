"""What several commands are given alike, and the plan that it comes to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.plan import Plan

_Command = TypeVar("_Command", bound=Callable[..., Any])

_RUN_ONLY = {  # option by parameter: what a plan file says itself
    "api": "--api", "model": "--model", "rate": "--rate", "arrivals": "--arrivals",
    "concurrency": "--concurrency", "ramp": "--ramp", "duration": "--for", "budgets": "--budget",
    "inputs": "--inputs", "headers": "--header",
}  # fmt: skip

plan_file_argument = click.argument(
    "plan_file", metavar="PLAN.yaml", type=click.Path(path_type=Path)
)
run_folder_argument = click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
target_option = click.option("--target", "url", help="Base URL of the endpoint, or `embedded`.")
workers_option = click.option("--workers", help="Worker processes, each on one core.")
baseline_option = click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="Saved run to compare with, for regression budgets.",
)
limit_option = click.option("--limit", help="Allowed growth of every step's p99, like 5%.")
regressions_option = click.option(
    "--budget", "budgets", multiple=True, help='Like "chat.ttft p95 regression < 5%".'
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Only the summary, no live view.")
verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Also the evidence of every budget."
)


def json_option(what: str) -> Callable[[_Command], _Command]:
    """Return the option to print `what` on stdout, which people then do not get."""
    return click.option(
        "--json", "json_to", type=click.Choice(["-"]), help=f"Print {what} to stdout."
    )


def check_writable(option: str, file: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it shall hold."""
    folder = file.parent
    if file.is_dir():
        problem = "it is a folder"
    elif not folder.is_dir():
        problem = f"there is no folder {folder}"
    elif os.access(folder, os.W_OK):
        return
    else:
        problem = f"the folder {folder} cannot be written to"
    raise UserError(f"{option}: found {file}, but {problem}; name a file in a writable folder")


def check_reports_folder(out: Path, run_folder: Path, *, others: bool) -> None:
    """Refuse a folder whose own run's reports would be replaced, by `others`' budgets or run."""
    from harness.recorder.folder import RUN_FILE

    own = out.resolve() == run_folder.resolve()
    if own and others:
        raise UserError(
            f"--out: found {out}, the run's own folder, whose reports are by its own budgets; "
            "choose another folder for those by --plan"
        )
    if not own and (out / RUN_FILE).exists():
        raise UserError(
            f"--out: found {out}, the folder of another run, whose reports would be replaced; "
            "choose a folder without a run"
        )


def plan_of(ctx: click.Context, path: Path, options: dict[str, Any]) -> Plan:
    """Return the plan of a file, or of a locust file and options; from now on `ctx` knows it."""
    plan = ctx.find_root().obj = _written_or_given(path, options)
    return plan


def _written_or_given(path: Path, options: dict[str, Any]) -> Plan:
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
