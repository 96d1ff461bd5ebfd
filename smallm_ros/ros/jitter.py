"""How late a loop was: median, p99 and maximum, since the start and over the last minute.

Nothing grows: a ring holds the last minute, a histogram of eight buckets an octave the rest. The
loop adds in constant time; whoever reads, in another thread, may see one value more or less.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from smallm_ros.core.clock import MS

_US = 1000
_BUCKETS = 272
"""Up to 2^36 us, 19 hours; the last holds what is longer."""


class Jitter:
    """One duration of a loop, in nanoseconds."""

    def __init__(self, in_a_minute: int) -> None:
        self._ring = array('q', bytes(8 * in_a_minute))
        self._buckets = array('Q', bytes(8 * _BUCKETS))
        self._count = 0
        self._most_ns = 0

    def add(self, ns: int) -> None:
        """Note one."""
        self._ring[self._count % len(self._ring)] = ns
        self._buckets[_bucket(ns)] += 1
        self._most_ns = max(self._most_ns, ns)
        self._count += 1

    def last_minute(self) -> Mapping[str, float]:
        """Return count, p50_ms, p99_ms and max_ms of the last minute."""
        values = sorted(self._ring[:min(self._count, len(self._ring))])
        if not values:
            return _figures(0, 0, 0, 0)
        middle, high = (values[_rank(len(values), q) - 1] for q in (50, 99))
        return _figures(len(values), middle, high, values[-1])

    def since_start(self) -> Mapping[str, float]:
        """Return the same since the start; p50_ms and p99_ms rounded up by at most an eighth."""
        count = sum(self._buckets)
        return _figures(
            count, self._quantile_ns(count, 50), self._quantile_ns(count, 99), self._most_ns)

    def _quantile_ns(self, count: int, percent: int) -> int:
        seen = 0
        for index, there in enumerate(self._buckets):
            seen += there
            if seen and seen >= _rank(count, percent):
                return min(_upper_ns(index), self._most_ns)
        return 0


def _rank(count: int, percent: int) -> int:
    return -(-count * percent // 100)


def _bucket(ns: int) -> int:
    us = max(ns, 0) // _US
    shift = max(us.bit_length() - 4, 0)
    return min(8 * shift + (us >> shift), _BUCKETS - 1)


def _upper_ns(index: int) -> int:
    shift = max(index // 8 - 1, 0)
    return ((index - 8 * shift + 1) << shift) * _US


def _figures(count: int, p50_ns: int, p99_ns: int, max_ns: int) -> Mapping[str, float]:
    return {
        'count': count,
        'p50_ms': round(p50_ns / MS, 3),
        'p99_ms': round(p99_ns / MS, 3),
        'max_ms': round(max_ns / MS, 3),
    }
