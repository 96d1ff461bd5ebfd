"""Where the milliseconds go: what a batch of n tokens costs, and whether a plan fits.

`t(n)` is measured when the model is loaded and follows what is measured since, in two parts: a
hot chip or a busy neighbour makes every batch slower by a factor (the median of recent ratios),
and now and then a batch waits for a core, whatever its size (a high quantile of what is left).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

WINDOW = 64
"""Batches whose cost is remembered: with two passes at 3 Hz, the last ten seconds."""
QUANTILE = 0.95
"""Of the waits: a plan is admitted if at most one batch in twenty would overrun it."""
SPREAD = 1.1
TRUSTED = 8
"""Batches after which a machine that is faster than at the start is believed to be."""


class CostModel:
    """The measured cost of one batch, in nanoseconds, as a function of its tokens."""

    def __init__(self, points: Sequence[tuple[int, int]]) -> None:
        """Take (tokens, nanoseconds) points, at least two, tokens ascending."""
        if len(points) < 2 or any(a[0] >= b[0] for a, b in pairwise(points)):
            raise ValueError(f'cost model: at least two points of ascending size, not {points}')
        self.points = tuple(points)
        self._sizes = [size for size, _ in self.points]
        self._recent: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        """(idle cost, real cost) of the last batches."""
        self._now: tuple[float, float] | None = None
        """Factor and wait of `_recent`: they are asked for many times a plan."""
        self._news = 0
        """Batches since; one more changes little, and a decision of two passes pays once."""

    def idle_ns(self, tokens: int) -> int:
        """Return the cost measured at start: linear between the points and beyond the last."""
        right = min(max(bisect_left(self._sizes, tokens), 1), len(self.points) - 1)
        (n0, t0), (n1, t1) = self.points[right - 1], self.points[right]
        return max(1, round(t0 + (t1 - t0) * (tokens - n0) / (n1 - n0)))

    def median_ns(self, tokens: int) -> int:
        """Return the expected cost now."""
        return round(self.idle_ns(tokens) * self._weather()[0])

    def bound_ns(self, *batches: int) -> int:
        """Return the cost that admits a plan of batches of these sizes, one after the other."""
        factor, wait_ns = self._weather()
        if len(self._recent) < TRUSTED:
            factor = max(1.0, factor)
        expected = sum(self.idle_ns(tokens) for tokens in batches if tokens) * factor
        return round((expected + wait_ns) * SPREAD)

    def largest(self, limit_ns: int) -> int:
        """Return the most tokens whose expected cost is within `limit_ns`; at least 1."""
        low, high = 1, self._sizes[-1]
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.median_ns(middle) <= limit_ns else (low, middle - 1)
        return low

    def measured(self, tokens: int, took_ns: int) -> None:
        """Take in what a batch of `tokens` really cost."""
        self._recent.append((self.idle_ns(tokens), took_ns))
        self._news += 1
        if self._news > 1 or len(self._recent) <= TRUSTED:
            self._now = None

    def at_least(self, tokens: int, took_ns: int) -> None:
        """Take in that a batch was not done after `took_ns`: it was ended before its time.

        Only news when that is more than it was expected to take. Without it a machine that became
        slow would be believed for ever, because every batch that shows it is aborted.
        """
        if took_ns > self.median_ns(tokens):
            self.measured(tokens, took_ns)
            self._now = None

    def relax(self) -> None:
        """Forget the oldest quarter of the measurements, after a refusal.

        What is refused is not measured: without this, one slow stretch would refuse for ever. With
        it, a stretch of refusals ends within a dozen, and mostly within a few.
        """
        for _ in range((len(self._recent) + 3) // 4):
            self._recent.popleft()
        self._now = None

    def _weather(self) -> tuple[float, float]:
        """Return how many times slower than at the start it is now, and the wait in ns.

        Without numpy: after a forward pass, whose weights have emptied the caches, its calls take
        twice as long.
        """
        if self._now is None:
            self._now, self._news = (1.0, 0.0), 0
            if self._recent:
                ratios = sorted(took / idle for idle, took in self._recent)
                middle = len(ratios) // 2
                factor = (ratios[~middle] + ratios[middle]) / 2
                waits = sorted(took - idle * factor for idle, took in self._recent)
                self._now = factor, max(0.0, waits[math.ceil(QUANTILE * len(waits)) - 1])
        return self._now


def fits(now_ns: int, deadline_ns: int, cost_ns: int) -> bool:
    """Return whether work of this cost, begun now, ends by the deadline."""
    return now_ns + cost_ns <= deadline_ns
