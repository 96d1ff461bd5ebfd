"""Messages become our fields here, by attribute, whoever made the message: rclpy or a bag reader.

What does not fit is refused with a DroppedError that quotes the value: the caller counts it, and
the last good reading grows old by itself. Sizes are checked before anything is copied. A scan's
ranges are copied once, as float32, because the message's own buffer belongs to the middleware.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from smallm_ros.core.clock import SECOND
from smallm_ros.core.errors import DroppedError
from smallm_ros.core.observation import Fields, Goal, Odometry, Scan

MAX_BEAMS = 20_000
"""More than any planar lidar has; a longer list is a mistake or an attack."""
MAX_FRAME_ID = 256
QUATERNION_NORM = (0.5, 2.0)
"""Norms outside are no rotation; inside, rounding of a driver is forgiven by dividing it out."""


class Stamp(Protocol):
    """A builtin_interfaces/Time."""

    sec: int
    nanosec: int


def stamp_ns(stamp: Stamp) -> int:
    """Return a message's time in nanoseconds; 0 means that the driver set none."""
    sec, nanosec = int(stamp.sec), int(stamp.nanosec)
    if not (0 <= sec < 2**32 and 0 <= nanosec < SECOND):
        raise DroppedError(f'stamp: sec {sec}, nanosec {nanosec} is no time')
    return sec * SECOND + nanosec


def ros_stamp(ns: int) -> tuple[int, int]:
    """Return nanoseconds (not negative) as the (sec, nanosec) of a builtin_interfaces/Time."""
    return divmod(ns, SECOND)


def scan(msg: Any) -> Scan:
    """Turn a sensor_msgs/LaserScan into its fields.

    `inf` and NaN beams pass: they mean something. Raises DroppedError for no beams at all, more
    than MAX_BEAMS, or angles and limits that are not finite.
    """
    beams = len(msg.ranges)
    if not 0 < beams <= MAX_BEAMS:
        raise DroppedError(f'LaserScan: {beams} beams, must be 1 to {MAX_BEAMS}')
    increment = _finite('LaserScan: angle_increment', msg.angle_increment)
    if increment == 0.0 and beams > 1:
        raise DroppedError(f'LaserScan: angle_increment is 0 for {beams} beams')
    range_min = _finite('LaserScan: range_min', msg.range_min)
    range_max = float(msg.range_max)
    if not 0.0 <= range_min < range_max:
        raise DroppedError(f'LaserScan: range_min {range_min:g}, range_max {range_max:g}')
    ranges = np.array(msg.ranges, dtype=np.float32)
    if ranges.ndim != 1:
        raise DroppedError(f'LaserScan: ranges have shape {ranges.shape}, must be one list')
    ranges.flags.writeable = False
    return Scan(
        stamp_ns=stamp_ns(msg.header.stamp),
        frame_id=_frame(msg.header.frame_id),
        angle_min_rad=_finite('LaserScan: angle_min', msg.angle_min),
        angle_increment_rad=increment,
        range_min_m=range_min,
        range_max_m=range_max,
        ranges_m=ranges,
    )


def odometry(msg: Any) -> Odometry:
    """Turn a nav_msgs/Odometry into its planar fields.

    Raises DroppedError for a number that is not finite or a quaternion that is no rotation.
    """
    twist = msg.twist.twist
    return Odometry(
        stamp_ns=stamp_ns(msg.header.stamp),
        frame_id=_frame(msg.header.frame_id),
        x_m=_finite('Odometry: position.x', msg.pose.pose.position.x),
        y_m=_finite('Odometry: position.y', msg.pose.pose.position.y),
        yaw_rad=_yaw('Odometry', msg.pose.pose.orientation),
        linear_x_m_s=_finite('Odometry: linear.x', twist.linear.x),
        angular_z_rad_s=_finite('Odometry: angular.z', twist.angular.z),
    )


def goal(msg: Any) -> Goal:
    """Turn a geometry_msgs/PoseStamped into a planar goal.

    Raises DroppedError for a number that is not finite or a quaternion that is no rotation.
    """
    return Goal(
        stamp_ns=stamp_ns(msg.header.stamp),
        frame_id=_frame(msg.header.frame_id),
        x_m=_finite('PoseStamped: position.x', msg.pose.position.x),
        y_m=_finite('PoseStamped: position.y', msg.pose.position.y),
        yaw_rad=_yaw('PoseStamped', msg.pose.orientation),
    )


CONVERTERS: dict[str, Callable[[Any], Fields]] = {
    'sensor_msgs/msg/LaserScan': scan,
    'nav_msgs/msg/Odometry': odometry,
    'geometry_msgs/msg/PoseStamped': goal,
}
"""Message type, as the policy file writes it, to its converter."""


def fields_of(type_name: str, msg: Any) -> Fields:
    """Turn a message of a type that a policy file can name into its fields.

    Raises DroppedError when this message cannot be used; the next one may be good.
    """
    try:
        return CONVERTERS[type_name](msg)
    except (AttributeError, TypeError, ValueError, OverflowError) as err:
        raise DroppedError(f'{type_name}: not such a message: {err}'[:200]) from err


def _finite(place: str, value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise DroppedError(f'{place} is {number:g}, must be finite')
    return number


def _frame(frame_id: str) -> str:
    if len(frame_id) > MAX_FRAME_ID:
        raise DroppedError(f'frame_id of {len(frame_id)} characters, at most {MAX_FRAME_ID}')
    return frame_id


def _yaw(place: str, q: Any) -> float:
    """Return the yaw of a quaternion that is nearly of unit norm, in -pi to pi (REP-103)."""
    x, y, z, w = float(q.x), float(q.y), float(q.z), float(q.w)
    norm = math.sqrt(x * x + y * y + z * z + w * w) if max(map(abs, (x, y, z, w))) < 10 else 10.0
    if not QUATERNION_NORM[0] <= norm <= QUATERNION_NORM[1]:  # NaN fails the comparison too
        raise DroppedError(f'{place}: orientation ({x:g}, {y:g}, {z:g}, {w:g}) is no rotation')
    return math.atan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)
