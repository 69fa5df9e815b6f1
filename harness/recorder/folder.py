"""The run folder on disk: opened before the load, flushed every interval, never half a line.

    run.json         what was run, on what, how it ended (replaced as a whole, atomically)
    latency.hlog     HdrHistogram log 1.3: a line per stage, step, metric and interval, in µs,
                     costs in 10 n$ (1e-8 US dollars)
    intervals.jsonl  per interval: exact counts, extremes, sums, counts over each limit, load
    requests.jsonl   kept journeys (slowest, random, failed) with their steps

A write that fails (a full disk) leaves the file at its last whole interval; what could not be
written stays in memory and is tried again with the next one.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.errors import RecordingError
from harness.masking import mask
from harness.recorder.record import Finished, Key, Measured, Report

SCHEMA_VERSION = 1  # 1: first
RUN_FILE, HLOG_FILE = "run.json", "latency.hlog"
INTERVALS_FILE, REQUESTS_FILE = "intervals.jsonl", "requests.jsonl"
_HLOG_UNITS_PER_MS = 1000
_MOST_NAMED = 4


@lru_cache(maxsize=4096)
def tag_of(key: Key) -> str:
    """Return the `.hlog` tag `stage:step.metric`; a tag may hold no comma, space or line end."""
    stage, step, metric = key
    return f"{quote(stage, safe='-_.')}:{quote(step, safe='-_./')}.{metric}"


class RunFolder:
    """The writing side of a run folder."""

    def __init__(self, path: Path, run: dict[str, Any], secrets: Sequence[str] = ()) -> None:
        self.path = path
        self.run = run
        self._secrets = tuple(filter(None, secrets))
        self._files: dict[str, _Appender] = {}
        self._intervals = 0
        self._planned: Counter[str] = Counter()
        self.is_new = False
        """Whether `create` made the folder itself, and not only what is in it."""

    @classmethod
    def create(cls, path: Path, run: dict[str, Any], *, secrets: Sequence[str] = ()) -> RunFolder:
        """Make the folder and write the first `run.json`, which holds no secrets as it comes.

        `secrets` are masked in the journeys, where a server's words may repeat them.

        Raises RecordingError when it cannot be written, or already holds a run.
        """
        appended = (HLOG_FILE, INTERVALS_FILE, REQUESTS_FILE)
        folder = cls(path, {"schema_version": SCHEMA_VERSION, **run}, secrets)
        try:
            folder.is_new = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            if any((path / name).exists() for name in (RUN_FILE, *appended)):
                raise RecordingError(
                    f"{path} already holds a run; choose another --out or remove it"
                )
            with _nothing_left(path, (RUN_FILE, *appended), is_new=folder.is_new):
                folder.update(status="running")
                for name in appended:
                    (path / name).touch()
        except OSError as error:
            raise _unwritable(path, error) from error
        return folder

    def update(self, **changes: Any) -> None:
        """Merge `changes` into run.json and replace the file as a whole.

        Raises RecordingError when it cannot be written; the old file then stands.
        """
        run = {**self.run, **changes}
        text = json.dumps(run, indent=1, default=str) + "\n"
        try:
            write_atomically(self.path / RUN_FILE, text)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.run = run

    @property
    def begun(self) -> bool:
        """True once a load has begun."""
        return "started_unix_s" in self.run

    def begin(self, started_unix_s: float) -> None:
        """Write the log's head; time zero of every interval is `started_unix_s`."""
        stamp = time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime(started_unix_s))
        self._append(
            HLOG_FILE,
            "#[Logged with latency-harness; values in microseconds, tokens as they are, costs in "
            "1e-8 US dollars]\n"
            "#[Histogram log format version 1.3]\n"
            f"#[StartTime: {started_unix_s:.3f} (seconds since epoch), {stamp}]\n"
            '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n',
        )
        self.update(started_unix_s=started_unix_s)

    def append(self, report: Report) -> None:
        """Write one interval to all three files."""
        length_s = self.run["interval_s"]
        start_s = report.index * length_s
        lines = []
        for key, measured in _forms(report):
            histogram = measured.histogram
            if not histogram.n:  # has no row in intervals.jsonl that it could belong to
                continue
            top = (histogram.max or 0) / histogram.unit / _HLOG_UNITS_PER_MS
            lines.append(
                f"Tag={tag_of(key)},{start_s:.3f},{length_s:.3f},{top:.3f},{histogram.encode()}\n"
            )
        self._append(HLOG_FILE, "".join(lines))
        journeys = (self._redacted(journey) for journey in report.journeys)
        self._append(REQUESTS_FILE, "".join(_line(journey, default=str) for journey in journeys))
        self._append(INTERVALS_FILE, _line(_interval(report), default=int))
        self._intervals += 1
        for stage, load in report.load.items():
            self._planned[stage] += load.planned

    @property
    def unsaved(self) -> int:
        """Intervals that wait for the disk to take them again; 0 is the healthy state."""
        return max((file.waiting for file in self._files.values()), default=0)

    def close(self) -> int:
        """Close the files; returns how many intervals could not be saved even now.

        The next `update` of run.json says how much there must be, so that a later loss is seen.
        """
        saved = {"intervals": self._intervals, "planned": dict(self._planned)}
        self.run = {**self.run, "saved": saved}
        for file in self._files.values():
            file.retry()
        lost = self.unsaved
        for file in self._files.values():
            file.close()
        return lost

    def _redacted(self, value: Any) -> Any:
        """Return `value` with the secrets masked in every text it holds."""
        if isinstance(value, str):
            return mask(value, self._secrets)
        if isinstance(value, dict):
            return {key: self._redacted(item) for key, item in value.items()}
        return [self._redacted(item) for item in value] if isinstance(value, list) else value

    def _append(self, name: str, text: str) -> None:
        if name not in self._files:
            self._files[name] = _Appender(self.path / name)
        self._files[name].append(text.encode())


class _Appender:
    """A file that grows by whole texts, or not at all."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._texts: list[bytes] = []

    @property
    def waiting(self) -> int:
        """How many texts wait to be written."""
        return len(self._texts)

    def append(self, data: bytes) -> None:
        """Write what waits and then `data`, or nothing and let both wait."""
        if data:
            self._texts.append(data)
        self.retry()

    def retry(self) -> None:
        """Write what waits, or nothing of it."""
        waiting = b"".join(self._texts)
        size = os.fstat(self._fd).st_size
        try:
            whole = os.write(self._fd, waiting) == len(waiting)
        except OSError:
            whole = False
        if whole:
            self._texts.clear()
        else:
            os.ftruncate(self._fd, size)

    def close(self) -> None:
        os.close(self._fd)


def read_run(path: Path) -> dict[str, Any]:
    """Return a folder's run.json; RecordingError says why it is not one of ours."""
    file = path / RUN_FILE
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordingError(
            f"{path} is not a run folder: it holds no {RUN_FILE}{_runs_below(path)}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordingError(f"{file} cannot be read: {error}") from error
    version = run.get("schema_version") if isinstance(run, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordingError(
            f"{file} has schema_version {version!r}; this version reads {SCHEMA_VERSION}"
        )
    return dict(run)


def _runs_below(path: Path) -> str:
    """Name the runs that a folder of several holds, like that of an A/B run or a search."""
    try:
        below = sorted(file.parent.name for file in path.glob(f"*/{RUN_FILE}"))
    except OSError:
        return ""
    names = ", ".join(f"{path / name}" for name in below[:_MOST_NAMED])
    more = f" and {len(below) - _MOST_NAMED} more" if len(below) > _MOST_NAMED else ""
    return f"; it holds the runs {names}{more}" if below else ""


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole: readers see the old text or the new, and so does a crash."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


@contextmanager
def _nothing_left(path: Path, names: Sequence[str], *, is_new: bool) -> Iterator[None]:
    """Remove files that were begun, and a folder that is new, when not all could be."""
    try:
        yield
    except (OSError, RecordingError):
        with suppress(OSError):
            for name in names:
                (path / name).unlink(missing_ok=True)
            if is_new:
                path.rmdir()
        raise


def _unwritable(path: Path, error: OSError) -> RecordingError:
    return RecordingError(
        f"{path} cannot be written ({error.strerror}); choose a writable folder with --out"
    )


def _line(data: dict[str, Any], *, default: Callable[[Any], Any]) -> str:
    return json.dumps(data, separators=(",", ":"), default=default) + "\n"


def _interval(report: Report) -> dict[str, Any]:
    """Return the JSON form of a report's exact numbers; `Recording` reads it back."""
    return {
        "i": report.index,
        "cpu": report.cpu,
        "stall_ns": report.stall_ns,
        "gc_ns": report.gc_ns,
        "load": {stage: asdict(load) for stage, load in report.load.items()},
        "metrics": [
            [*key, h.n, h.min, h.max, h.sum, h.clamped, list(measured.over.items())]
            for key, measured in _forms(report)
            if (h := measured.histogram).n
        ],
        "steps": [
            [*where, f.total, f.good, dict(f.kinds), *_rarities(f)]
            for where, f in report.finished.items()
        ],
    }


def _rarities(outcome: Finished) -> tuple[int, ...]:
    later = (outcome.replaced, outcome.replaced_good, outcome.unsure)
    return later if any(later) else ()


def _forms(report: Report) -> Iterator[tuple[Key, Measured]]:
    for (stage, step, metric), measured in report.measured.items():
        for name, form in measured.forms(metric):
            yield (stage, step, name), form
