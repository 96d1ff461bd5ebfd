"""How simulated time follows steady time: absolute deadlines, and a bounded debt.

A tick that ran late is made up for at once, so that the mean rate is exact; but a simulation that
fell further behind than `DEBT_NS` lets the rest go and runs slow, which shows in `factor`, rather
than race through many ticks that nobody could react to.
"""

from __future__ import annotations

from collections import deque

from smallm_ros.core.clock import MS, SECOND

DEBT_NS = 100 * MS
WINDOW_NS = 2 * SECOND


class Pace:
    """The deadlines of ticks of `tick_ns` simulated time at `factor` times real time."""

    def __init__(self, now_ns: int, tick_ns: int, factor: float) -> None:
        self._period_ns = tick_ns / factor
        self._tick_ns = tick_ns
        self._start_ns = now_ns
        self._ticks = 0
        self._done: deque[int] = deque([now_ns])
        self.forgiven_ns = 0
        """Steady time that the simulation fell behind and did not make up for."""

    def done(self, now_ns: int) -> int:
        """Note that a tick ended at `now_ns`; return the steady time at which the next is due."""
        self._ticks += 1
        self._done.append(now_ns)
        while len(self._done) > 2 and now_ns - self._done[1] >= WINDOW_NS:
            self._done.popleft()
        due_ns = self._start_ns + round(self._ticks * self._period_ns)
        excess_ns = now_ns - due_ns - DEBT_NS
        if excess_ns > 0:
            self._start_ns += excess_ns
            self.forgiven_ns += excess_ns
            due_ns += excess_ns
        return due_ns

    @property
    def factor(self) -> float:
        """Simulated time over steady time, measured over about the last two seconds."""
        passed_ns = self._done[-1] - self._done[0]
        return (len(self._done) - 1) * self._tick_ns / passed_ns if passed_ns > 0 else 0.0
