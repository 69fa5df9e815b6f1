"""JUnit XML for CI: one test case per budget and stage, one per check of the measurement.

    FAIL                  <failure>                    the target broke the budget
    INVALID, NO DATA      <error type="invalid">       nothing can be said about the target
    INCONCLUSIVE          <error type="inconclusive">  the run was too short to tell
    PASS                  no child

Everything but a PASS turns the job red, as the command's exit code does. The suite `measurement`
holds the checks: a broken one is an <error>, but only <skipped> where the run passes all the same
(no budget was judged in that stage), so that the file never contradicts the exit code.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from harness.health import Check
from harness.recorder import Recording
from harness.verdict import BudgetVerdict, Outcome, Verdict

MEASUREMENT = "measurement"

_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PROPERTIES = ("seed", "commit", "harness", "status")


def render_junit(recording: Recording, verdict: Verdict) -> str:
    """Return the XML document, with its declaration and a line end."""
    name = _name(recording)
    root = ET.Element("testsuites", name=_legal(name))
    budgets = _suite(root, name, recording)
    _properties(budgets, recording, verdict)
    for row in verdict.budgets:
        _budget(budgets, name, row)
    if not verdict.budgets and verdict.outcome is not Outcome.PASS:
        case = _case(budgets, name, "the run can be judged")
        _child(case, "error", verdict.outcome, verdict.sentence, verdict.detail)
    checks = _suite(root, MEASUREMENT, recording)
    for check in verdict.health.checks:
        _check(checks, check, passed=verdict.outcome is Outcome.PASS)
    for element in (budgets, checks, root):
        _count(element)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _name(recording: Recording) -> str:
    return str(recording.run.get("name") or recording.folder.name)


def _suite(root: ET.Element, name: str, recording: Recording) -> ET.Element:
    suite = ET.SubElement(root, "testsuite", name=_legal(name))
    started = recording.run.get("started_unix_s")
    if isinstance(started, int | float):
        suite.set("timestamp", datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    end = max((stage.end_s for stage in recording.stages), default=0.0)
    suite.set("time", f"{end:.3f}")
    return suite


def _properties(suite: ET.Element, recording: Recording, verdict: Verdict) -> None:
    run, target = recording.run, recording.run.get("target")
    known: Mapping[str, Any] = target if isinstance(target, Mapping) else {"url": target}
    values: dict[str, Any] = {
        "run": run.get("id", recording.folder.name),
        "target": known.get("url"),
        "model": known.get("model"),
        **{key: run.get(key) for key in _PROPERTIES},
        "verdict": verdict.outcome,
        "exit_code": int(verdict.exit_code),
        "judged_by": verdict.judged_by,
    }
    parent = ET.SubElement(suite, "properties")
    for key, value in values.items():
        if value is not None:
            ET.SubElement(parent, "property", name=key, value=_legal(str(value)))


def _budget(suite: ET.Element, name: str, row: BudgetVerdict) -> None:
    where = "" if row.budget.stage else f" in {row.stage}"
    case = _case(suite, f"{name}.{row.budget.step}", f"{row.budget.text}{where}")
    if row.outcome is Outcome.PASS:
        return
    tag = "failure" if row.outcome is Outcome.FAIL else "error"
    _child(case, tag, row.outcome, row.sentence, row.evidence)


def _check(suite: ET.Element, check: Check, *, passed: bool) -> None:
    where = f" in {check.stage}" if check.stage else ""
    case = _case(suite, MEASUREMENT, f"{check.name}{where}")
    if not check.ok:
        message = f"{check.name}{where}: {check.measured}, must be {check.must}"
        text = f"{check.why}\n{check.remedy}"
        _child(case, "skipped" if passed else "error", Outcome.INVALID, message, text)


def _case(suite: ET.Element, classname: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=_legal(classname), name=_legal(name))


def _child(case: ET.Element, tag: str, outcome: Outcome, message: str, text: str) -> None:
    child = ET.SubElement(case, tag, message=_legal(message))
    if tag != "skipped":
        child.set("type", "budget" if outcome is Outcome.FAIL else outcome.lower())
    child.text = _legal(text)


def _count(element: ET.Element) -> None:
    for plural, tag in (
        ("tests", "testcase"),
        ("failures", "failure"),
        ("errors", "error"),
        ("skipped", "skipped"),
    ):
        element.set(plural, str(sum(1 for _ in element.iter(tag))))


def _legal(text: str) -> str:
    """Remove what XML 1.0 cannot hold, not even escaped."""
    return _ILLEGAL.sub("", text)
