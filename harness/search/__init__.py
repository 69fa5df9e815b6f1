"""The highest load at which all budgets hold, with confidence: a search by whole runs.

`decision` says which load comes next, `template` makes the plan of each probe, `running` runs them,
`result` is what came out, and `chart`, `page`, `text` and `export` show it.
"""

from harness.search.decision import most_probes
from harness.search.export import as_json, write_results
from harness.search.running import Searcher
from harness.search.template import Over, Template, longest_ns_of, range_of
from harness.search.text import render_terminal

__all__ = [
    "Over",
    "Searcher",
    "Template",
    "as_json",
    "longest_ns_of",
    "most_probes",
    "range_of",
    "render_terminal",
    "write_results",
]
