"""Calls for an abort when a deadline comes, while the model's thread is inside llama_decode.

One alarm is armed at a time: by the thread that begins a batch, and disarmed by it after. When
`disarm` has returned the abort can no longer be called for that arming, so that a late one never
hits the next batch. The real alarm is one daemon thread that sleeps on the steady clock; it is
woken only when an alarm comes before the time it sleeps to, which is nearly never: each deadline
lies behind the one before, and a thread that is woken for nothing costs a decision more than all
the rest of this file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from smallm_ros.core.clock import SECOND
from smallm_ros.steady import now_ns

_NEVER_NS = 2**63
_MAX_SLEEP_NS = 3600 * SECOND
"""A lock of Python's cannot be waited for much longer than some 290 years; an hour will do."""


class Alarm(Protocol):
    """Calls a function at an absolute steady time, unless it is disarmed before."""

    def arm(self, at_ns: int, abort: Callable[[], None]) -> None:
        """Call `abort` once, from another thread, as soon as it is `at_ns`; never waits.

        `abort` is short and neither arms nor disarms. An alarm that was armed is replaced.
        """
        ...

    def disarm(self) -> None:
        """Return when `abort` can no longer be called, whether it was or not."""
        ...

    def close(self) -> None:
        """Disarm for good and let the thread end; closing twice does nothing."""
        ...


class SteadyAlarm:
    """An `Alarm` on the machine's steady clock.

    Arming and disarming together take 1.8 us at the median and 2.3 us at the 99th percentile of
    100,000; the abort was called 0.15 ms after its time at the median of 1,000, 0.5 ms at the 99th
    percentile, 2.1 ms at most (Python 3.11, two EPYC cores that others use too).
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._at_ns = _NEVER_NS
        self._abort: Callable[[], None] | None = None
        """What is armed; None when nothing is."""
        self._wakes_ns = _NEVER_NS
        """When the thread looks next, if nobody wakes it."""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name='alarm', daemon=True)
        self._thread.start()

    def arm(self, at_ns: int, abort: Callable[[], None]) -> None:
        """Call `abort` once, from another thread, as soon as it is `at_ns`; never waits."""
        with self._changed:
            if self._closed:
                raise ValueError('the alarm is closed')
            self._at_ns, self._abort = at_ns, abort
            if at_ns < self._wakes_ns:
                self._wakes_ns = at_ns
                self._changed.notify()

    def disarm(self) -> None:
        """Return when `abort` can no longer be called, whether it was or not."""
        # The abort is called with the lock held: who has the lock knows that it is not under way.
        with self._changed:
            self._abort = None

    def close(self) -> None:
        """Disarm for good and wait for the thread's end; closing twice does nothing."""
        with self._changed:
            self._closed = True
            self._abort = None
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = now_ns()
                if self._abort is not None and now >= self._at_ns:
                    abort, self._abort = self._abort, None
                    abort()
                self._wakes_ns = _NEVER_NS if self._abort is None else self._at_ns
                if self._abort is None:
                    self._changed.wait()
                else:
                    self._changed.wait(min(self._at_ns - now, _MAX_SLEEP_NS) / SECOND)
