"""`harness selftest`: what this machine measures well, and whether a plan asks for more.

`measurement` is the whole: `ramp` puts on rising load, `shape` the load of a plan's own shape, both
by `playing`; `stamps` compares with the truth. `result` is what was found and where it is kept,
`fitting` holds a plan against it, `text` tells people.
"""

from harness.selftest.fitting import as_json, fit
from harness.selftest.measurement import Bounds, measure
from harness.selftest.result import Selftest, save, saved
from harness.selftest.text import expected, render, warning

__all__ = [
    "Bounds",
    "Selftest",
    "as_json",
    "expected",
    "fit",
    "measure",
    "render",
    "save",
    "saved",
    "warning",
]
