"""What every converter needs: times, finite numbers, frames, rotations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from smallm_ros.core.clock import SECOND
from smallm_ros.core.errors import DroppedError
from smallm_ros.core.observation import Fields

Converter = Callable[[Any, Any], Fields]
"""From a message and its sensor's declaration to its fields; raises DroppedError."""
MAX_FRAME_ID = 256
QUATERNION_NORM = (0.5, 2.0)
"""Norms outside are no rotation; inside, rounding of a driver is forgiven by dividing it out."""


class Stamp(Protocol):
    """A builtin_interfaces/Time."""

    sec: int
    nanosec: int


def stamp_ns(stamp: Stamp) -> int:
    """Return a message's time in nanoseconds; 0 means that the driver set none.

    A time before 1970 can be said (builtin_interfaces/Time has a signed `sec`) and is one: that it
    is absurd, its age will tell.
    """
    sec, nanosec = int(stamp.sec), int(stamp.nanosec)
    if not (-2**31 <= sec < 2**32 and 0 <= nanosec < SECOND):
        raise DroppedError(f'stamp: sec {sec}, nanosec {nanosec} is no time')
    return sec * SECOND + nanosec


def ros_stamp(ns: int) -> tuple[int, int]:
    """Return nanoseconds (not negative) as the (sec, nanosec) of a builtin_interfaces/Time."""
    return divmod(ns, SECOND)


def finite(place: str, value: float) -> float:
    """Return a number that must be finite; `place` names it where it is not."""
    number = float(value)
    if not math.isfinite(number):
        raise DroppedError(f'{place} is {number:g}, must be finite')
    return number


def frame(frame_id: str) -> str:
    """Return a frame's name, of bounded length."""
    if not isinstance(frame_id, str):
        raise DroppedError(f'frame_id {frame_id!r:.40} is no text')
    if len(frame_id) > MAX_FRAME_ID:
        raise DroppedError(f'frame_id of {len(frame_id)} characters, at most {MAX_FRAME_ID}')
    return frame_id


def unit(place: str, q: Any) -> tuple[float, float, float, float]:
    """Return (x, y, z, w) of a quaternion that is nearly of unit norm, divided by its norm."""
    x, y, z, w = float(q.x), float(q.y), float(q.z), float(q.w)
    norm = math.sqrt(x * x + y * y + z * z + w * w) if max(map(abs, (x, y, z, w))) < 10 else 10.0
    if not QUATERNION_NORM[0] <= norm <= QUATERNION_NORM[1]:  # NaN fails the comparison too
        raise DroppedError(f'{place}: orientation ({x:g}, {y:g}, {z:g}, {w:g}) is no rotation')
    return x / norm, y / norm, z / norm, w / norm


def yaw(place: str, q: Any) -> float:
    """Return the yaw of a quaternion that is nearly of unit norm, in -pi to pi (REP-103)."""
    x, y, z, w = unit(place, q)
    return math.atan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)
