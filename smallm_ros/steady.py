"""The one file that reads the machine's clock.

Deadlines and budgets are integer nanoseconds of CLOCK_MONOTONIC, which is the same clock in every
process of a host. Ages of sensor data are ROS time and never come from here. Everything else takes
its `now_ns` as an argument, so that a test can say what time it is.
"""

from __future__ import annotations

import time
from pathlib import Path


def now_ns() -> int:
    """Return CLOCK_MONOTONIC in nanoseconds."""
    return time.monotonic_ns()


def wall_ns() -> int:
    """Return the wall clock in nanoseconds since 1970, for names of files and ROS time alone."""
    return time.time_ns()


def wall_text() -> str:
    """Return the local wall time as `YYYYmmdd-HHMMSS`, for the names of run directories."""
    return time.strftime('%Y%m%d-%H%M%S')


def sleep_until(deadline_ns: int) -> None:
    """Sleep until the absolute steady time `deadline_ns`; return at once if it has passed."""
    remaining_ns = deadline_ns - time.monotonic_ns()
    if remaining_ns > 0:
        time.sleep(remaining_ns * 1e-9)


def boot_id() -> str:
    """Return the kernel's boot id: steady times of two hosts, or two boots, do not compare."""
    return Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()


class SteadyClock:
    """The real steady clock, as the `Clock` that other modules ask for."""

    def now_ns(self) -> int:
        """Return CLOCK_MONOTONIC in nanoseconds."""
        return now_ns()
