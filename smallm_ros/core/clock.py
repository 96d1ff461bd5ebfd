"""Time as an argument: whoever must ask the time is given a `Clock`; tests give a manual one."""

from __future__ import annotations

from typing import Protocol

MS = 1_000_000
SECOND = 1_000_000_000


class Clock(Protocol):
    """A source of steady time."""

    def now_ns(self) -> int:
        """Return the steady time in nanoseconds."""
        ...


class ManualClock:
    """A clock that stands still until it is told to move, and never goes back."""

    def __init__(self, now_ns: int = 1_000 * SECOND) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        """Return the time that was set, in nanoseconds."""
        return self._now_ns

    def advance_ms(self, ms: float) -> int:
        """Move forward by `ms` milliseconds (at least 0) and return the new time."""
        if ms < 0:
            raise ValueError(f'a clock does not go back: advance_ms({ms})')
        self._now_ns += round(ms * MS)
        return self._now_ns
