"""docs/statistics.md is what `make stats` writes from its template."""

from __future__ import annotations

import re

import write_statistics
from bounds import Check


def test_the_page_was_written_from_the_present_template() -> None:
    template = (write_statistics.HERE / "statistics.template.md").read_text(encoding="utf-8")
    page, at = write_statistics.PAGE.read_text(encoding="utf-8"), 0
    for prose in re.split(r"{{\w+}}", template.rstrip()):
        found = page.find(prose, at)
        assert found >= 0, f"run `make stats`: the page lacks {prose[:200]!r}"
        at = found + len(prose)


def test_no_piece_of_work_is_done_twice() -> None:
    keys = [job.key for job in write_statistics.jobs(0.01)]
    assert len(keys) == len(set(keys))


def test_a_bound_that_is_not_kept_stands_in_the_page() -> None:
    kept = Check("here", "false PASS", 0.04, 0.05, 100)
    broken = Check("there", "false FAIL", 0.12, 0.05, 400)
    assert "| there | false FAIL | 12.0 | 5.0 | 400 |" in write_statistics.not_kept([kept, broken])
    assert "there" not in write_statistics.not_kept([kept])
