"""Samples to histograms to a run folder, and back: what was measured, kept exactly.

`record` counts in a worker, `histogram` is the HDR arithmetic (and hides `hdrh`), `folder` writes a
run to disk, `reading` makes columns of it again, `losses` finds what is missing, and `recording` is
the run as they tell it, with each metric's samples as a `series`.
"""

from harness.recorder.folder import RunFolder, write_atomically
from harness.recorder.histogram import Histogram
from harness.recorder.losses import CLOSED
from harness.recorder.record import (
    LEAST,
    MOST,
    RUN,
    Limits,
    Load,
    Recorder,
    Report,
    merge_reports,
)
from harness.recorder.recording import (
    Journey,
    LoadTotals,
    Recording,
    StageWindow,
    StepSpan,
    Timeline,
    load_recording,
    repetition_name,
)
from harness.recorder.series import Requests, Series

__all__ = [
    "CLOSED",
    "LEAST",
    "MOST",
    "RUN",
    "Histogram",
    "Journey",
    "Limits",
    "Load",
    "LoadTotals",
    "Recorder",
    "Recording",
    "Report",
    "Requests",
    "RunFolder",
    "Series",
    "StageWindow",
    "StepSpan",
    "Timeline",
    "load_recording",
    "merge_reports",
    "repetition_name",
    "write_atomically",
]
