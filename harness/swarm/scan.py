"""What a scenario does, read from its source without running it: its steps' names, its requests.

Steps that only happen sometimes (an escalation, a retry) do not show in the preflight, so a
budget's step is held against the names that stand in the source as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_CALLS = {"chat": "chat", "complete": "completion", "embed": "embedding", "predict": "predict"}
_STREAMED = ("chat", "complete")
_CLIENT_CALLS = (
    "delete", "get", "head", "options", "patch", "post", "put", "request", "send", "stream",
)  # fmt: skip


class Requests(NamedTuple):
    """How many requests a task makes; `streams` of `total` are replies by tokens."""

    total: int
    streams: int


def written_requests(scenario: Path) -> Requests | None:
    """Count the requests in the function whose source has the most; None when none has any.

    Loops, branches and what a function calls are not followed. None also for what is not Python,
    which the preflight refuses with its place.
    """
    try:
        tree = ast.parse(scenario.read_bytes())
    except (SyntaxError, ValueError):
        return None
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    most = max(map(_requests_in, functions), default=Requests(0, 0))
    return most if most.total else None


def _requests_in(function: ast.FunctionDef) -> Requests:
    called = [
        node.func
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    models = [call.attr for call in called if call.attr in _CALLS]
    clients = [
        call
        for call in called
        if call.attr in _CLIENT_CALLS and getattr(call.value, "attr", "") == "client"
    ]
    streams = sum(name in _STREAMED for name in models)
    return Requests(len(models) + len(clients), streams)


def known_steps(
    scenario: Path, seen: Iterable[str], wanted: Iterable[str]
) -> tuple[str, ...] | None:
    """Return the steps seen in the preflight and those of `wanted` made of names in the source.

    None when the scenario computes step names, so that nothing can be said.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(scenario.read_bytes())):
        if isinstance(node, ast.Call):
            found = _names_in(node)
            if found is None:
                return None
            names |= found
    possible = (path for path in wanted if set(path.split("/")) <= names)
    return tuple(dict.fromkeys([*seen, *possible]))


def _names_in(call: ast.Call) -> set[str] | None:
    """Step names that one call gives; None when it computes them."""
    called = getattr(call.func, "attr", getattr(call.func, "id", ""))
    named = [word.value for word in call.keywords if word.arg == "step"]
    if called == "step" and call.args:
        named.append(call.args[0])
    if not named:
        return {_CALLS[called]} if called in _CALLS else set()
    if not all(isinstance(name, ast.Constant) and isinstance(name.value, str) for name in named):
        return None
    return {str(name.value) for name in named if isinstance(name, ast.Constant)}
