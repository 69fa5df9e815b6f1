"""The histogram keeps what `hdrh` loses, and is byte for byte what other HdrHistogram tools read."""

from __future__ import annotations

import base64
import contextlib
import math
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import RecordingError
from harness.recorder.histogram import (
    DIGITS,
    HIGHEST,
    LOWEST,
    Histogram,
    _index_of,
    _lower_edge,
    unit_of,
)

US, MS, S, HOUR = 1_000, 1_000_000, 1_000_000_000, 3_600_000_000_000
TIMES = st.integers(0, HOUR) | st.integers(0, 10 * MS)
SAMPLES = st.lists(TIMES, min_size=1, max_size=200)


def exact(histogram: Histogram) -> dict[str, int]:
    return {
        "n": histogram.n,
        "min": histogram.min,
        "max": histogram.max,
        "sum": histogram.sum,
        "clamped": histogram.clamped,
        "unit": histogram.unit,
    }


def hdrh_of(values: list[int]) -> HdrHistogram:
    """`hdrh` fed one value at a time, in its own unit."""
    reference = HdrHistogram(LOWEST, HIGHEST, DIGITS)
    for value in values:
        assert reference.record_value(value // US)
    return reference


def blob_of(
    payload: bytes, *, lowest: int = LOWEST, highest: int = HIGHEST, digits: int = DIGITS
) -> str:
    """An HdrHistogram V2 blob around any payload."""
    head = struct.pack(">IIIIQQd", 0x1C849313, len(payload), 0, digits, lowest, highest, 1.0)
    deflated = zlib.compress(head + payload)
    return base64.b64encode(struct.pack(">II", 0x1C849314, len(deflated)) + deflated).decode()


# --- what hdrh gets wrong --------------------------------------------------------------------------


def test_hdrh_still_has_the_faults_this_module_works_around() -> None:
    reference = HdrHistogram(LOWEST, HIGHEST, DIGITS)
    assert reference.get_value_at_percentile(99) == 0, "an empty histogram answers 0"
    assert not reference.record_value(2 * HIGHEST), "a value above the range is dropped"
    for value in range(1, 61):
        reference.record_value(value)
    assert reference.get_value_at_percentile(99) == 59, "p99 of 60 samples is rank 59"


def test_values_outside_the_range_are_clamped_and_counted_never_dropped() -> None:
    h = Histogram.of([-5 * MS, 3 * MS, HOUR, HOUR + US, 9 * HOUR])
    assert (h.n, int(h.counts.sum()), h.clamped) == (5, 5, 3)
    assert (h.min, h.max) == (-5 * MS, 9 * HOUR), "the extremes stay what was seen"
    assert h.sum == -2 * MS + 11 * HOUR + US
    assert h.quantile(0.4) == pytest.approx(3 * MS, rel=1e-3)


def test_a_clamped_histogram_survives_a_round_trip_and_a_merge() -> None:
    h = Histogram.of([-1 * MS, 2 * HOUR, 5 * MS])
    back = Histogram.decode(h.encode(), **exact(h))
    merged = Histogram.merged([back, Histogram.of([3 * HOUR])])
    assert (merged.n, merged.clamped, merged.max) == (4, 3, 3 * HOUR)


@pytest.mark.parametrize(
    ("n", "q", "rank"),
    [
        (60, 0.99, 60),
        (1, 0.5, 1),
        (2, 0.5, 1),
        (3, 0.5, 2),
        (100, 0.99, 99),
        (101, 0.99, 100),
        (1000, 0.999, 999),
        (100, 0.29, 29),
        (100, 0.07, 7),  # 0.07 · 100 is 7.000000000000001
        (1000, 0.001, 1),
        (5, 0.0001, 1),
        (7, 1.0, 7),
    ],
)
def test_a_quantile_is_the_sample_of_rank_ceil_of_q_times_n(n: int, q: float, rank: int) -> None:
    """Values below 2 ms stand alone in their bucket of 1 µs, so the rank can be read off."""
    h = Histogram.of([i * US for i in range(1, n + 1)])
    assert h.quantile(q) // US == rank


@given(SAMPLES, st.integers(1, 9999))
def test_any_quantile_is_the_sorted_samples_own_within_one_bucket(
    values: list[int], ten_thousandths: int
) -> None:
    rank = max(1, -(-ten_thousandths * len(values) // 10_000))
    true = sorted(values)[rank - 1]
    got = Histogram.of(values).quantile(ten_thousandths / 10_000)
    assert true <= got <= true + max(US, true * 0.001)


@given(SAMPLES)
def test_quantiles_rise_with_q_from_the_minimum_to_the_maximum(values: list[int]) -> None:
    h = Histogram.of(values)
    found = [h.quantile(q) for q in (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)]
    assert found == sorted(found)
    assert min(values) <= found[0]
    assert found[-1] == max(values)


def test_an_empty_histogram_has_no_percentile_no_extreme_and_no_mean() -> None:
    for h in (Histogram.empty(), Histogram.of([]), Histogram.merged([])):
        assert (h.n, h.min, h.max, h.mean, h.sum) == (0, None, None, None, 0)
        assert h.quantile(0.99) is None
        assert h.at_rank(1) is None
        assert h.count_over(0) == (0, 0)


def test_a_rank_outside_one_to_n_is_no_sample() -> None:
    h = Histogram.of([MS, 2 * MS])
    assert (h.at_rank(0), h.at_rank(3), h.at_rank(-1)) == (None, None, None)


def test_merging_an_empty_histogram_leaves_the_minimum_alone() -> None:
    h = Histogram.of([5 * MS, 7 * MS])
    for parts in ([h, Histogram.empty()], [Histogram.empty(), h], [Histogram.empty(), h, h]):
        assert Histogram.merged(parts).min == 5 * MS
        assert Histogram.merged(parts).max == 7 * MS


@given(st.lists(st.lists(TIMES, max_size=50), max_size=5))
def test_a_merge_is_the_histogram_of_all_samples_together(parts: list[list[int]]) -> None:
    together = Histogram.of([value for part in parts for value in part])
    merged = Histogram.merged(Histogram.of(part) for part in parts)
    assert exact(merged) == exact(together)
    assert merged.indices.tolist() == together.indices.tolist()
    assert merged.counts.tolist() == together.counts.tolist()


def test_a_merge_keeps_counts_beyond_what_a_32_bit_float_or_int_holds() -> None:
    index = np.array([10], dtype=np.int64)
    count = np.array([2**40 + 1], dtype=np.int64)
    part = Histogram(index, count, 2**40 + 1, 10 * US, 10 * US, 0)
    assert Histogram.merged([part, part]).counts.tolist() == [2**41 + 2]


def test_mean_is_exact_where_buckets_are_not() -> None:
    values = [1_234_567_891, 2_345_678_912, 3_456_789_123]
    assert Histogram.of(values).mean == sum(values) / 3


def test_tokens_are_counted_one_by_one_and_times_in_microseconds() -> None:
    assert unit_of("output_tokens") == 1
    assert unit_of("ttft") == US
    h = Histogram.of([100, 101, 102], unit_of("output_tokens"))
    assert h.values.tolist() == [100, 101, 102]
    assert h.quantile(0.5) == 101


# --- the encoding ----------------------------------------------------------------------------------


@given(SAMPLES)
def test_the_encoding_is_what_hdrh_writes_for_the_same_values_one_by_one(values: list[int]) -> None:
    assert Histogram.of(values).encode() == hdrh_of(values).encode().decode()


def test_the_encoding_of_nothing_is_what_hdrh_writes() -> None:
    assert Histogram.empty().encode() == hdrh_of([]).encode().decode()


@given(SAMPLES)
def test_exact_count_extremes_and_sum_survive_encoding(values: list[int]) -> None:
    h = Histogram.of(values)
    back = Histogram.decode(h.encode(), **exact(h))
    assert exact(back) == exact(h)
    assert back.indices.tolist() == h.indices.tolist()
    assert back.counts.tolist() == h.counts.tolist()
    assert (back.n, back.min, back.max, back.sum) == (
        len(values),
        min(values),
        max(values),
        sum(values),
    )


def test_encodings_leave_nothing_behind_for_the_next_one() -> None:
    first = Histogram.of([1 * MS, 900 * MS])
    second = Histogram.of([2 * MS])
    once = second.encode()
    first.encode()
    assert second.encode() == once


def test_threads_that_encode_at_the_same_time_do_not_disturb_each_other() -> None:
    histograms = [Histogram.of([place * MS, place * S]) for place in range(1, 5)]
    alone = [histogram.encode() for histogram in histograms]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(histograms)) as threads:
            rounds = [list(threads.map(Histogram.encode, histograms)) for _ in range(200)]
    finally:
        sys.setswitchinterval(before)
    assert all(together == alone for together in rounds)


def test_index_and_edges_agree_with_hdrh_over_the_entire_range() -> None:
    reference = HdrHistogram(LOWEST, HIGHEST, DIGITS)
    powers = [p + d for p in (2**k for k in range(32)) for d in (-1, 0, 1)]
    spread = np.geomspace(1, HIGHEST, 20_000).astype(np.int64).tolist()
    values = np.array(
        [v for v in [*range(5000), *powers, *spread] if 0 <= v <= HIGHEST], dtype=np.int64
    )
    index = _index_of(values)
    assert index.tolist() == [reference.get_counts_array_index(int(v)) for v in values]
    every = np.arange(reference.counts_len, dtype=np.int64)
    edges = _lower_edge(every)
    assert edges.tolist() == [reference.get_value_from_index(int(i)) for i in every]
    assert (edges[index] <= values).all()
    assert (values < _lower_edge(index + 1)).all()


def test_a_bucket_is_at_most_a_thousandth_of_its_values_wide() -> None:
    index = _index_of(np.array([2048, HIGHEST], dtype=np.int64))
    every = np.arange(index[0], index[1] + 1)
    width = _lower_edge(every + 1) - _lower_edge(every)
    assert (width / _lower_edge(every)).max() <= 0.001


# --- damaged and hostile blobs ---------------------------------------------------------------------


def decode_one(blob: str) -> Histogram:
    return Histogram.decode(blob, n=1, min=MS, max=MS, sum=MS, unit=US)


ONE = Histogram.of([MS]).encode()


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (blob_of(bytes(10_000_000)), "inflates beyond"),
        (blob_of(b"\x01" * 100_000), "damaged"),
        (blob_of(b"\x80"), "damaged"),
        (ONE[:-7], "damaged"),
        (ONE[:-8], "damaged|its record says"),
        (ONE[:10], "damaged"),
        ("", "damaged"),
        ("not base64!", "damaged"),
        ("é" + ONE, "damaged"),
        (base64.b64encode(b"\0" * 50).decode(), "damaged"),
        (blob_of(b"\x02", highest=1_000_000), "another range"),
        (blob_of(b"\x02", lowest=1000), "another range"),
        (blob_of(b"\x02", digits=2), "another range"),
        (Histogram.of([MS, MS]).encode(), "holds 2 samples, its record says 1"),
        (Histogram.empty().encode(), "holds 0 samples, its record says 1"),
    ],
    ids=lambda value: None if not value else f"{len(value)}-{value[:12]}",
)
def test_a_blob_that_is_no_honest_histogram_of_ours_is_refused(blob: str, says: str) -> None:
    with pytest.raises(RecordingError, match=says):
        decode_one(blob)
    assert decode_one(ONE).n == 1, "and the next honest one is read as ever"


def test_a_blob_of_another_encoding_version_is_refused() -> None:
    raw = bytearray(base64.b64decode(ONE))
    raw[3] ^= 1
    with pytest.raises(RecordingError, match="not HdrHistogram V2"):
        decode_one(base64.b64encode(bytes(raw)).decode())


@given(st.binary(max_size=40))
def test_any_payload_is_read_or_refused(payload: bytes) -> None:
    with contextlib.suppress(RecordingError):
        decode_one(blob_of(payload))


@given(st.integers(0, len(ONE) - 1), st.characters(codec="utf-8"))
def test_a_blob_with_one_wrong_character_is_read_or_refused(at: int, character: str) -> None:
    with contextlib.suppress(RecordingError):
        decode_one(ONE[:at] + character + ONE[at + 1 :])


# --- counting over a limit -------------------------------------------------------------------------


@given(
    st.lists(TIMES | st.integers(-MS, 3 * HOUR), min_size=1, max_size=100),
    TIMES | st.integers(-2 * MS, 4 * HOUR),
)
def test_the_bounds_of_a_count_over_a_limit_bracket_the_true_count(
    values: list[int], limit: int
) -> None:
    low, high = Histogram.of(values).count_over(limit)
    assert low <= sum(value > limit for value in values) <= high


def test_a_limit_on_a_buckets_edge_is_counted_exactly() -> None:
    h = Histogram.of([i * US for i in range(1, 101)])
    assert h.count_over(50 * US - 1) == (51, 51)
    assert h.count_over(50 * US) == (50, 51), "50 µs itself may have been 50.9 µs"


def test_the_exact_extremes_decide_a_limit_outside_the_samples() -> None:
    h = Histogram.of([3_000_500, 3_000_700])
    assert h.count_over(3_000_700) == (0, 0)
    assert h.count_over(3_000_499) == (2, 2)
    assert h.count_over(3_000_600) == (0, 2)
    assert math.isclose(h.mean or 0, 3_000_600)
