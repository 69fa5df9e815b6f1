"""Everything a report shows that has to be computed: the renderers only draw and format.

A chart's facts are either data or a `WhyNot` that says what is missing. Latencies are nanoseconds
(tokens for token metrics), times are seconds since the run's start, shares are 0 to 1.
"""

from harness.report.facts.capacity import Knee, Level
from harness.report.facts.columns import HEAT_STEPS, Heat, Load
from harness.report.facts.costs import CostRow, Costs, CostTable
from harness.report.facts.distribution import Difference, Nines
from harness.report.facts.findings import Findings, findings
from harness.report.facts.over_time import OverTime, Since, Window
from harness.report.facts.subject import Subject, WhyNot
from harness.report.facts.tables import StepRow, StepTable
from harness.report.facts.waterfall import MOST_BARS, Bar, SlowStep, Waterfall

__all__ = [
    "HEAT_STEPS",
    "MOST_BARS",
    "Bar",
    "CostRow",
    "CostTable",
    "Costs",
    "Difference",
    "Findings",
    "Heat",
    "Knee",
    "Level",
    "Load",
    "Nines",
    "OverTime",
    "Since",
    "SlowStep",
    "StepRow",
    "StepTable",
    "Subject",
    "Waterfall",
    "WhyNot",
    "Window",
    "findings",
]
