"""Every error this package raises on purpose, and the exit codes.

HarnessError                      1  a defect of ours, or of the machine
├── UserError                     2  the plan, the command line or a saved run is not usable
│   ├── PlanError                    place:line:column: found, allowed, what to do
│   ├── BudgetSyntaxError            the same for one budget's text
│   └── RecordingError               a folder that is not a run, or cannot be written
├── TargetError                   6  the target did not answer the preflight as declared
├── GeneratorError                5  the machine that makes the load has no room for it
└── RequestFailed                 -  one request of the load failed; it is counted, not fatal
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process says to whoever called it."""

    PASS = 0
    INTERNAL = 1
    USAGE = 2
    FAIL = 3
    INCONCLUSIVE = 4
    INVALID = 5
    TARGET = 6
    INTERRUPTED = 130


class HarnessError(Exception):
    """Root of the tree; `exit_code` is what the command ends with."""

    exit_code = ExitCode.INTERNAL


class UserError(HarnessError):
    """Something the user wrote or named cannot be used."""

    exit_code = ExitCode.USAGE


class PlanError(UserError):
    """A plan that cannot run: where, what was found, what is allowed, what to do."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}" if place else problem)
        self.place = place
        self.problem = problem


class BudgetSyntaxError(UserError):
    """A budget's text that does not follow the grammar; `column` is 1-based within it."""

    def __init__(self, text: str, column: int, problem: str) -> None:
        super().__init__(f"budget {text!r}, column {column}: {problem}")
        self.text = text
        self.column = column
        self.problem = problem


class RecordingError(UserError):
    """A run folder that cannot be read or written."""


class TargetError(HarnessError):
    """The target is down, refuses, or does not speak the declared API."""

    exit_code = ExitCode.TARGET


class GeneratorError(HarnessError):
    """The machine that makes the load met a limit of its own; the message names the setting."""

    exit_code = ExitCode.INVALID


class RequestFailed(HarnessError):
    """One request of the load failed.

    `kind` is the class that `error_rate` counts by: connect, timeout, reset, `status 429`,
    truncated stream, truncated body, malformed event, invalid reply, cut off. `generator limit
    EMFILE` is no failure of the target: the machine that makes the load met a limit of its own.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail
