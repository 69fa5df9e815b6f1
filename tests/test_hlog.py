"""latency.hlog read by other implementations: Java's HdrHistogram and hdrh's own log reader."""

from __future__ import annotations

import math
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from conftest import stage
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from harness.recorder import Limits, Recorder, Recording, RunFolder, load_recording
from harness.recorder.folder import tag_of

JAR = "/usr/share/java/hdrhistogram.jar"  # Debian's libhdrhistogram-java
MS = 1_000_000
ODD = ["chat", "rag/generate", "ask, then wait", "größe/日本", "a:b=c", 'x"y', "50%", "dot.ted"]
INTERVALS = 4

READER = """
import java.util.*;
import org.HdrHistogram.*;

public class Reader {
    public static void main(String[] args) throws Exception {
        HistogramLogReader reader = new HistogramLogReader(args[0]);
        Map<String, Histogram> sums = new TreeMap<>();
        Map<String, Double> ends = new TreeMap<>();
        while (reader.hasNext()) {
            Histogram h = (Histogram) reader.nextIntervalHistogram();
            sums.computeIfAbsent(h.getTag(), tag -> new Histogram(1, 3600000000L, 3)).add(h);
            ends.put(h.getTag(), (h.getEndTimeStamp() / 1000.0) - reader.getStartTimeSec());
        }
        for (Map.Entry<String, Histogram> e : sums.entrySet()) {
            Histogram h = e.getValue();
            System.out.println(e.getKey() + "," + h.getTotalCount() + "," + h.getValueAtPercentile(50)
                + "," + h.getValueAtPercentile(99) + "," + h.getMinValue() + "," + h.getMaxValue()
                + "," + ends.get(e.getKey()));
        }
    }
}
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A run with odd names, an empty series, values at both ends of the range, and tokens."""
    rng = np.random.default_rng(11)
    recorder = Recorder(Limits())
    stages = [stage("warm up, 1"), stage("steady")]
    path = tmp_path_factory.mktemp("hlog") / "run"
    folder = RunFolder.create(path, {"interval_s": 1.0, "stages": stages})
    folder.begin(1_700_000_000.25)
    for i in range(INTERVALS):
        for where in ("warm up, 1", "steady"):
            for step in ODD:
                for value in rng.lognormal(np.log(200 * MS), 1, 101).astype(int).tolist():
                    values = {"ttft": value, "output_tokens": value % 700}
                    recorder.request(where, step, values, series={"itl": []})
        recorder.add("steady", "edge", "ttft", 0)
        recorder.add("steady", "edge", "ttft", 3_600_000_000_000)
        recorder.add("steady", "edge", "ttft", 5_000_000_000_000)
        folder.append(recorder.flush(i))
    folder.close()
    return load_recording(path)


def ours(recording: Recording) -> dict[str, tuple[int, int, int, int, int]]:
    """Per tag: count, p50, p99, min and max, in the log's own unit."""
    found = {}
    for where in recording.stages:
        for step in (*recording.steps(where.name), "edge"):
            for metric in recording.metrics(where.name, step):
                series = recording.series(where.name, step, metric)
                assert series is not None
                h, unit = series.total, 1 if metric.endswith("_tokens") else 1000
                figures = (h.quantile(0.5), h.quantile(0.99), h.min, h.max)
                found[tag_of((where.name, step, metric))] = (
                    h.n,
                    *(int(figure or 0) // unit for figure in figures),
                )
    return found


def same_bucket(one: int, other: int) -> bool:
    return abs(one - other) <= max(1, 0.001 * max(one, other))


def test_every_name_makes_a_tag_without_comma_space_or_line_end_and_is_found_in_it() -> None:
    for step in [*ODD, "line\nend", "tab\tbed", ""]:
        tag = tag_of(("steady", step, "ttft"))
        assert not set(tag) & set(', \t\r\n"')
        assert tag.isascii()
        assert unquote(tag) == f"steady:{step}.ttft"


def test_different_names_never_share_a_tag() -> None:
    names = ["a", "a:b", "a%3Ab", "b", "a.b", "a/b", "a%2Fb", ":"]
    tags = {tag_of((where, step, "ttft")) for where in names for step in names}
    assert len(tags) == len(names) ** 2


def test_java_reads_every_tag_with_the_same_counts_quantiles_and_extremes(
    recording: Recording, require: Callable[[str], str], tmp_path: Path
) -> None:
    source = tmp_path / "Reader.java"
    source.write_text(READER)
    log = recording.folder / "latency.hlog"
    command = [require("java"), "-cp", require(JAR), str(source), str(log)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    java = {tag: figures for tag, *figures in (line.split(",") for line in output.splitlines())}
    expected = ours(recording)
    assert len(expected) == 2 * len(ODD) * 2 + 1
    assert java.keys() == expected.keys()
    for tag, (n, p50, p99, low, high) in expected.items():
        count, *values, end_s = java[tag]
        assert int(count) == n, tag
        # What is above the range stands at its edge in the log, but keeps its value in ours.
        for mine, theirs in zip((p50, p99, low, min(high, 3_600_000_000)), values, strict=True):
            assert same_bucket(mine, int(theirs)), (tag, mine, theirs)
        assert float(end_s) == pytest.approx(INTERVALS)


def test_javas_log_processor_finds_an_oddly_named_step_by_its_tag(
    recording: Recording, require: Callable[[str], str]
) -> None:
    tag = tag_of(("steady", "ask, then wait", "ttft"))
    log = recording.folder / "latency.hlog"
    command = [require("java"), "-cp", require(JAR), "org.HdrHistogram.HistogramLogProcessor"]
    options = ["-i", str(log), "-tag", tag, "-csv", "-outputValueUnitRatio", "1"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=True, timeout=100
    )
    rows = [line.split(",") for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert int(rows[-1][2]) == ours(recording)[tag][0] == 101 * INTERVALS


def test_hdrhs_own_log_reader_reads_every_interval(recording: Recording) -> None:
    sums: dict[str, HdrHistogram] = defaultdict(lambda: HdrHistogram(1, 3_600_000_000, 3))
    reader = HistogramLogReader(str(recording.folder / "latency.hlog"), None)
    lines = 0
    while (histogram := reader.get_next_interval_histogram()) is not None:
        sums[histogram.get_tag()].add(histogram)
        lines += 1
    reader.close()
    expected = ours(recording)
    assert lines == len(expected) * INTERVALS, "a series without samples has no line"
    assert sums.keys() == expected.keys()
    assert reader.get_start_time_sec() == pytest.approx(1_700_000_000.25)
    for tag, (n, *_) in expected.items():
        assert sums[tag].get_total_count() == n
        rank = math.ceil(0.99 * n)
        theirs = sums[tag].get_value_at_percentile(100 * rank / n)
        assert same_bucket(expected[tag][2], theirs)
