"""LaserScan -> the nearest distance in each named sector, as a number or a word of one token.

As sensor_msgs/LaserScan defines: values outside [range_min, range_max] are to be discarded,
except that `+inf` says that nothing was there; NaN says nothing. A sector with no usable beam is
`unknown`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from smallm_ros.core.observation import FloatArray, Scan
from smallm_ros.core.policy import ScanSensor

BoolArray = npt.NDArray[np.bool_]


def text(sensor: ScanSensor, scan: Scan) -> str:
    """Return `left 0.8, ahead far, right unknown` in the order of the policy's sectors."""
    words = (
        f'{sector.name} {_word(sensor, metres)}'
        for sector, metres in zip(sensor.sectors, nearest(sensor, scan), strict=True)
    )
    return ', '.join(words)


def nearest(sensor: ScanSensor, scan: Scan) -> tuple[float, ...]:
    """Return the nearest obstacle of each sector in metres; inf when free, NaN when unknown."""
    usable, free = classify(scan)
    bearing = bearings(scan) + math.radians(sensor.mount_yaw_deg)
    degrees = np.degrees(np.arctan2(np.sin(bearing), np.cos(bearing)))
    out = []
    for sector in sensor.sectors:
        inside = sector.holds(degrees)
        hits = scan.ranges_m[inside & usable]
        if sector.width_m is not None:
            off_rad = np.radians(degrees[inside & usable] - sector.middle_deg)
            in_lane = np.abs(hits * np.sin(off_rad)) <= sector.width_m / 2
            hits = (hits * np.cos(off_rad))[in_lane]
        known = bool((inside & (usable | free)).any())
        out.append(float(hits.min(initial=math.inf)) if known else math.nan)
    return tuple(out)


def classify(scan: Scan) -> tuple[BoolArray, BoolArray]:
    """Return masks of shape (beams,): a hit at a usable distance; nothing within range."""
    ranges = scan.ranges_m
    usable = np.isfinite(ranges) & (ranges >= scan.range_min_m) & (ranges <= scan.range_max_m)
    free = np.isposinf(ranges) | (np.isfinite(ranges) & (ranges > scan.range_max_m))
    return usable, free


def bearings(scan: Scan) -> FloatArray:
    """Return the bearing of each beam in the laser's frame, radians, shape (beams,)."""
    index: FloatArray = np.arange(scan.ranges_m.size, dtype=np.float32)
    index *= np.float32(scan.angle_increment_rad)
    index += np.float32(scan.angle_min_rad)
    return index


def _word(sensor: ScanSensor, metres: float) -> str:
    if math.isnan(metres):
        return 'unknown'
    for part in sensor.bins:
        if metres < part.below_m:
            return part.word
    return sensor.far_word if sensor.bins or metres > sensor.far_m else f'{metres:.1f}'
