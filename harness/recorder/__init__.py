"""Samples to histograms to a run folder, and back: what was measured, kept exactly.

`record` counts in a worker, `histogram` is the HDR arithmetic (and hides `hdrh`), `folder` writes a
run to disk, `recording` reads it back.
"""

from harness.recorder.folder import RunFolder, write_atomically
from harness.recorder.histogram import Histogram
from harness.recorder.record import (
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
    Requests,
    Series,
    StageWindow,
    StepSpan,
    Timeline,
    load_recording,
    repetition_name,
)

__all__ = [
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
