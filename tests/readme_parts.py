"""The parts of README.md that are generated, between `<!-- NAME -->` and `<!-- /NAME -->`.

`make docs` writes them; a test holds README.md to them.
"""

import re
from pathlib import Path

import click

from harness.cli import main as harness
from harness.metrics import METRICS

README = Path(__file__).parents[1] / "README.md"


def metrics() -> str:
    rows = [f"| `{metric.name}` | {metric.definition} |" for metric in METRICS.values()]
    return "\n".join(["| metric | definition |", "|---|---|", *rows])


def commands() -> str:
    parts = []
    for name, command in harness.commands.items():
        context = click.Context(command, info_name=f"harness {name}", terminal_width=90)
        usage = command.get_usage(context).removeprefix("Usage: ")
        parts.append(f"{' '.join(usage.split())}\n    {command.get_short_help_str(80)}")
    return "\n".join(["```text", *parts, "```"])


PARTS = {"metrics": metrics, "commands": commands}


def part(text: str, name: str) -> re.Match[str]:
    found = re.search(rf"(<!-- {name} -->\n)(.*?)(\n<!-- /{name} -->)", text, re.DOTALL)
    assert found, f"README.md has no part {name}"
    return found


def write() -> None:
    text = README.read_text(encoding="utf-8")
    for name, make in PARTS.items():
        found = part(text, name)
        text = text[: found.start(2)] + make() + text[found.end(2) :]
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
