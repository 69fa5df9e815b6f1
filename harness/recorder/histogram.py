"""HDR histograms as numpy arrays: the only importer of `hdrh`.

`hdrh` gives the bucket layout and the standard encoding (HdrHistogram V2, deflated, base64), so any
HdrHistogram tool reads what is written here. Counting, merging and quantiles are done on arrays,
because `hdrh` drops values above its range, ranks p99 of 60 samples at 59, answers 0 for an empty
histogram and forgets the exact minimum and maximum.
"""

from __future__ import annotations

import binascii
import math
import struct
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from harness.errors import RecordingError
from harness.metrics import METRICS, Kind

IntArray = npt.NDArray[np.int64]

LOWEST, HIGHEST, DIGITS = 1, 3_600_000_000, 3  # 1 µs to 1 h, three significant digits
TIME_UNIT_NS = 1_000  # times are counted in µs, tokens one by one
MONEY_UNIT = 10  # n$: three digits from $0.00001, about 500 embedded tokens, up to $36
_UNITS: dict[Kind, int] = {"tokens": 1, "money": MONEY_UNIT}
_HALF_BITS = 10  # 2 048 sub-buckets: the power of two above 2·10^DIGITS
_HALF = 1 << _HALF_BITS
_HEADER = struct.Struct(">IIIIQQd")  # cookie, payload bytes, offset, digits, lowest, highest, ratio
_COOKIE_BASES = (0x1C849304, 0x1C849303)  # compressed envelope, encoded payload; low nibbles vary
_MAX_VARINT = 8  # bytes of 7 bits: no honest count needs more
_BUCKETS = 23 * _HALF
_MAX_INFLATED = _HEADER.size + 9 * _BUCKETS  # no honest histogram of this layout is larger


def unit_of(metric: str) -> int:
    """Return how many of the metric's own units (ns, tokens, n$) one histogram unit stands for."""
    known = METRICS.get(metric)
    return _UNITS.get(known.kind, TIME_UNIT_NS) if known else TIME_UNIT_NS


def _index_of(units: IntArray) -> IntArray:
    """Counts-array index of each value; the layout of HdrHistogram with 2 048 sub-buckets."""
    _, bits = np.frexp((units | (2 * _HALF - 1)).astype(np.float64))
    bucket = bits.astype(np.int64) - (_HALF_BITS + 1)
    return ((bucket + 1) << _HALF_BITS) + (units >> bucket) - _HALF


def _lower_edge(index: IntArray) -> IntArray:
    """Smallest value, in histogram units, that counts at each index."""
    bucket = (index >> _HALF_BITS) - 1
    sub = (index & (_HALF - 1)) + np.where(bucket < 0, 0, _HALF)
    edges: IntArray = sub << np.maximum(bucket, 0)
    return edges


def highest_values(index: IntArray, unit: int) -> IntArray:
    """Largest value, in the metric's own unit, that counts at each index."""
    tops: IntArray = _lower_edge(index + 1) * unit - 1
    return tops


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts by bucket, with the exact count, minimum, maximum and sum beside them.

    `min`, `max`, `sum` and every value returned are in the metric's own unit (ns, tokens, n$);
    `min` and `max` are None without samples.
    """

    indices: IntArray
    counts: IntArray
    n: int
    min: int | None
    max: int | None
    sum: int
    clamped: int = 0
    unit: int = TIME_UNIT_NS
    _cumulative: IntArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cumulative", np.cumsum(self.counts))

    @classmethod
    def of(cls, values: Sequence[int] | IntArray, unit: int = TIME_UNIT_NS) -> Histogram:
        """Count `values`; those outside 0 to 1 h, or $36, count at the edge and in `clamped`."""
        array = np.asarray(values, dtype=np.int64)
        if not len(array):
            return cls.empty(unit)
        units = array // unit
        inside = np.clip(units, 0, HIGHEST)
        dense = np.bincount(_index_of(inside))
        indices = np.flatnonzero(dense)
        return cls(
            indices=indices,
            counts=dense[indices],
            n=len(array),
            min=int(array.min()),
            max=int(array.max()),
            sum=int(array.sum()),
            clamped=int(np.count_nonzero(inside != units)),
            unit=unit,
        )

    @classmethod
    def empty(cls, unit: int = TIME_UNIT_NS) -> Histogram:
        """Return a histogram without samples: no minimum, no maximum, no quantile."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, nothing, 0, None, None, 0, 0, unit)

    @classmethod
    def merged(cls, parts: Iterable[Histogram], unit: int = TIME_UNIT_NS) -> Histogram:
        """Return the histogram of all samples of `parts` together."""
        full = [part for part in parts if part.n]
        if not full:
            return cls.empty(unit)
        if len(full) == 1:
            return full[0]
        every = np.concatenate([part.indices for part in full])
        weights = np.concatenate([part.counts for part in full])
        dense = np.bincount(every, weights=weights).astype(np.int64)
        indices = np.flatnonzero(dense)
        return cls(
            indices=indices,
            counts=dense[indices],
            n=sum(part.n for part in full),
            min=min(part.min for part in full if part.min is not None),
            max=max(part.max for part in full if part.max is not None),
            sum=sum(part.sum for part in full),
            clamped=sum(part.clamped for part in full),
            unit=full[0].unit,
        )

    @property
    def mean(self) -> float | None:
        """Return the exact mean, or None without samples."""
        return self.sum / self.n if self.n else None

    @property
    def values(self) -> IntArray:
        """Lower edge of each occupied bucket, in the metric's own unit, ascending."""
        return _lower_edge(self.indices) * self.unit

    def at_rank(self, rank: int) -> int | None:
        """Return the `rank`-th smallest sample, within its bucket's width; None outside 1…n."""
        if not 1 <= rank <= self.n or self.max is None or self.min is None:
            return None
        where = int(np.searchsorted(self._cumulative, rank))
        top = int(_lower_edge(self.indices[where : where + 1] + 1)[0]) * self.unit - 1
        return max(self.min, min(top, self.max))

    def quantile(self, q: float) -> int | None:
        """Return the sample of rank ⌈q·n⌉: the smallest with at least q of all at or below it."""
        return self.at_rank(max(1, math.ceil(round(q * self.n, 6))))

    def count_over(self, threshold: float) -> tuple[int, int]:
        """Bound how many samples are above `threshold`; both are equal where a bucket's edge or an
        extreme decides it."""
        if self.max is None or self.min is None or threshold >= self.max:
            return 0, 0
        if threshold < self.min:
            return self.n, self.n
        lower = _lower_edge(self.indices) * self.unit
        upper = _lower_edge(self.indices + 1) * self.unit - 1
        lower[0], upper[-1] = self.min, self.max  # clamped samples lie outside their bucket
        return int(self.counts[lower > threshold].sum()), int(self.counts[upper > threshold].sum())

    def encode(self) -> str:
        """Return the standard HdrHistogram V2 compressed encoding, base64."""
        scratch = _SCRATCH.histogram
        scratch.total_count = self.n
        scratch.max_value = int(_lower_edge(self.indices[-1:])[0]) if self.n else 0
        _SCRATCH.counts[self.indices] = self.counts
        blob: bytes = scratch.encode()
        _SCRATCH.counts[self.indices] = 0
        return blob.decode("ascii")

    @classmethod
    def decode(
        cls, blob: str, *, n: int, min: int, max: int, sum: int, clamped: int = 0, unit: int
    ) -> Histogram:
        """Rebuild a histogram from its encoding and the exact figures kept beside it.

        Raises RecordingError when the blob is damaged, of another layout, or inflates beyond what
        this layout can hold.
        """
        _, indices, counts = decode_cells([blob])
        if int(counts.sum()) != n:
            raise RecordingError(f"histogram holds {counts.sum()} samples, its record says {n}")
        return cls(indices, counts, n, min, max, sum, clamped, unit)


class _Scratch(threading.local):
    """The dense histogram that a thread's encodings pass through; zero between uses."""

    def __init__(self) -> None:
        self.histogram: Any = HdrHistogram(LOWEST, HIGHEST, DIGITS)
        self.counts = np.frombuffer(self.histogram.counts, dtype=np.uint64)


_SCRATCH = _Scratch()


def decode_cells(blobs: Sequence[str]) -> tuple[IntArray, IntArray, IntArray]:
    """Decode many encodings at once: which blob, which bucket, how many; occupied buckets only.

    Raises RecordingError when a blob is damaged, of another layout, or inflates beyond what this
    layout can hold.
    """
    payloads = [_inflate(blob) for blob in blobs]
    numbers, ends = _varints(np.frombuffer(b"".join(payloads), dtype=np.uint8))
    sizes = np.cumsum([len(payload) for payload in payloads], dtype=np.int64)
    upto = np.searchsorted(ends, sizes, side="right")  # how many numbers end within each blob
    if not np.array_equal(np.append(0, ends)[upto], sizes):
        raise RecordingError("histogram blob is damaged: its last number is cut off")
    held = np.diff(upto, prepend=0)
    steps = np.where(numbers < 0, np.minimum(-numbers, _BUCKETS + 1), 1)  # below 0: a run of zeros
    behind = np.append(0, np.cumsum(steps))
    bucket = behind[:-1] - np.repeat(behind[upto - held], held)
    if (behind[upto] - behind[upto - held]).max(initial=0) > _BUCKETS:
        raise RecordingError("histogram blob is damaged: it has more buckets than its layout")
    full = numbers > 0
    return np.repeat(np.arange(len(payloads)), held)[full], bucket[full], numbers[full]


def _inflate(blob: str) -> bytes:
    """Return the encoded counts of a blob, after checking every length and the layout."""
    try:
        raw = binascii.a2b_base64(blob, strict_mode=True)
        cookie, length = struct.unpack_from(">II", raw)
        data = zlib.decompressobj().decompress(raw[8 : 8 + length], _MAX_INFLATED + 1)
        if len(data) > _MAX_INFLATED:
            raise RecordingError(f"histogram inflates beyond {_MAX_INFLATED:,} bytes")
        header = _HEADER.unpack_from(data)
    except (ValueError, struct.error, zlib.error) as error:
        raise RecordingError(f"histogram blob is damaged: {error}") from error
    if (cookie & ~0xF0, header[0] & ~0xF0) != _COOKIE_BASES:
        raise RecordingError("histogram blob is not HdrHistogram V2")
    if header[3:6] != (DIGITS, LOWEST, HIGHEST):
        raise RecordingError("histogram blob has another range or precision than this tool records")
    payload = data[_HEADER.size :]
    if len(payload) != header[1]:
        raise RecordingError(f"histogram blob is damaged: {len(payload)} bytes of {header[1]}")
    return payload


def _varints(data: npt.NDArray[np.uint8]) -> tuple[IntArray, IntArray]:
    """Return the zigzag LEB128 numbers of a payload, and where each ends (exclusive)."""
    ends = np.flatnonzero(data < 0x80) + 1
    starts = np.concatenate([[0], ends[:-1]])[: len(ends)]
    lengths = ends - starts
    if len(ends) and lengths.max() > _MAX_VARINT:
        raise RecordingError("histogram blob is damaged: a count of more than 56 bits")
    raw = (data[starts] & 0x7F).astype(np.int64)
    for place in range(1, int(lengths.max(initial=1))):
        longer = np.flatnonzero(lengths > place)
        raw[longer] |= (data[starts[longer] + place] & 0x7F).astype(np.int64) << (7 * place)
    return (raw >> 1) ^ -(raw & 1), ends
