"""What shows the space around: scans."""

from __future__ import annotations

from typing import Any

import numpy as np

from smallm_ros.core.errors import DroppedError
from smallm_ros.core.summary.scan import Scan
from smallm_ros.ros.convert.common import Converter, finite, frame, stamp_ns

MAX_BEAMS = 20_000
"""More than any planar lidar has; a longer list is a mistake or an attack."""


def scan(msg: Any, sensor: object) -> Scan:
    """Turn a sensor_msgs/LaserScan into its fields.

    `inf` and NaN beams pass: they mean something. Raises DroppedError for no beams at all, more
    than MAX_BEAMS, or angles and limits that are not finite.
    """
    beams = len(msg.ranges)
    if not 0 < beams <= MAX_BEAMS:
        raise DroppedError(f'LaserScan: {beams} beams, must be 1 to {MAX_BEAMS}')
    increment = finite('LaserScan: angle_increment', msg.angle_increment)
    if increment == 0.0 and beams > 1:
        raise DroppedError(f'LaserScan: angle_increment is 0 for {beams} beams')
    range_min = finite('LaserScan: range_min', msg.range_min)
    range_max = float(msg.range_max)
    if not 0.0 <= range_min < range_max:
        raise DroppedError(f'LaserScan: range_min {range_min:g}, range_max {range_max:g}')
    ranges = np.array(msg.ranges, dtype=np.float32)
    if ranges.ndim != 1:
        raise DroppedError(f'LaserScan: ranges have shape {ranges.shape}, must be one list')
    ranges.flags.writeable = False
    return Scan(
        stamp_ns=stamp_ns(msg.header.stamp),
        frame_id=frame(msg.header.frame_id),
        angle_min_rad=finite('LaserScan: angle_min', msg.angle_min),
        angle_increment_rad=increment,
        range_min_m=range_min,
        range_max_m=range_max,
        ranges_m=ranges,
    )


CONVERTERS: dict[str, Converter] = {
    'sensor_msgs/msg/LaserScan': scan,
}
