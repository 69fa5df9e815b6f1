"""Budgets, a recording and its health become one verdict. Pure: a saved run can be judged again.

A budget PASSes when its whole interval lies on the good side of the limit, FAILs when it lies on
the bad side, and is INCONCLUSIVE between. A stage whose measurement was unfit is INVALID. No data
is never a pass, and neither are failures that no budget limits.
"""

from harness.verdict.judging import judge
from harness.verdict.outcome import (
    BudgetVerdict,
    Outcome,
    Verdict,
    format_bound,
    format_limit,
    format_value,
)

__all__ = [
    "BudgetVerdict",
    "Outcome",
    "Verdict",
    "format_bound",
    "format_limit",
    "format_value",
    "judge",
]
