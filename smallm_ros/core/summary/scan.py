"""LaserScan -> the nearest distance in each named sector, as a number or a word of one token.

As sensor_msgs/LaserScan defines: values outside [range_min, range_max] are to be discarded,
except that `+inf` says that nothing was there; NaN says nothing. A sector with no usable beam is
`unknown`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from smallm_ros.core.sensor import Part, Phrase, Positive, Scene, SensorBase, Word

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
_NEAREST_M = 0.15
"""The nearest obstacle that `draw` puts somewhere."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The fields of a sensor_msgs/LaserScan that decide anything."""

    stamp_ns: int
    """ROS time of the header; 0 when the driver set none."""
    frame_id: str
    angle_min_rad: float
    angle_increment_rad: float
    range_min_m: float
    range_max_m: float
    ranges_m: FloatArray
    """Shape (beams,). `inf` is nothing within range, NaN is unknown: as the message defines."""


class Sector(Part):
    """A named range of bearings in degrees, counter-clockwise from ahead, without its end."""

    name: Word
    from_deg: Annotated[float, Field(ge=-180, le=180)]
    to_deg: Annotated[float, Field(ge=-180, le=180)]
    width_m: Positive | None = None
    """Makes it a lane: only what lies within this width of the sector's middle line counts, and
    its distance is taken along that line. None: a wedge, distances from the laser."""

    @model_validator(mode='after')
    def _ordered(self) -> Sector:
        if not self.from_deg < self.to_deg:
            raise ValueError(f'from_deg {self.from_deg:g} is not less than to_deg {self.to_deg:g}')
        return self


    @property
    def middle_deg(self) -> float:
        """The bearing of its middle line."""
        return (self.from_deg + self.to_deg) / 2

    def holds(self, degrees: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Return which bearings lie inside; a bearing of 180 degrees is one of -180 too."""
        inside = (degrees >= self.from_deg) & (degrees < self.to_deg)
        return inside | (degrees == 180) if self.to_deg == 180 else inside


class Bin(Part):
    """A word for all distances below a limit: one token instead of three."""

    word: Word
    below_m: Positive


_SECTORS = (
    Sector(name='left', from_deg=60, to_deg=120),
    Sector(name='ahead-left', from_deg=20, to_deg=60),
    Sector(name='ahead', from_deg=-20, to_deg=20),
    Sector(name='ahead-right', from_deg=-60, to_deg=-20),
    Sector(name='right', from_deg=-120, to_deg=-60),
)


class ScanSensor(SensorBase):
    """A planar lidar, summarised as the nearest distance in named sectors."""

    type: Literal['sensor_msgs/msg/LaserScan']
    mount_x_m: Annotated[float, Field(ge=-10, le=10)] = 0.0
    mount_y_m: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Where the laser is in base_link. The summary for the model takes no account of it."""
    mount_yaw_deg: Annotated[float, Field(ge=-180, le=180)] = 0.0
    """Yaw of the laser's frame in the base frame."""
    sectors: tuple[Sector, ...] = Field(default=_SECTORS, min_length=1, max_length=16)
    far_m: Positive = 5.0
    """Beyond this, distances are worded as `far_word`: every digit is a token."""
    far_word: Word = 'far'
    bins: tuple[Bin, ...] = Field(default=(), max_length=8)
    """Words instead of numbers, nearest first; beyond the last it is `far_word`."""


    @model_validator(mode='after')
    def _bins_ascend(self) -> ScanSensor:
        limits = [b.below_m for b in self.bins]
        if any(a >= b for a, b in itertools.pairwise(limits)):
            raise ValueError(f'bins: below_m must ascend, not {limits}')
        return self

    def say(self, fields: Scan, scene: Scene) -> tuple[Phrase, ...]:
        """Return `left 0.8`, `ahead far`, `right unknown` in the order of the sectors."""
        return tuple(
            Phrase(f'{sector.name} {_word(self, metres)}')
            for sector, metres in zip(self.sectors, nearest(self, fields), strict=True)
        )

    def draw(self, random: np.random.Generator) -> Scan:
        """Return a scan with one obstacle a sector, as often in one bin as in another."""
        limits = [b.below_m for b in self.bins]
        limits.append(max(self.far_m, *limits) * 1.5 if limits else self.far_m * 1.5)
        limits.insert(0, min(_NEAREST_M, limits[0] / 2))
        # In the middle of each degree, so that no rounding moves a beam to the next sector.
        bearing = np.arange(-179.5, 180.0, dtype=np.float32)
        ranges = np.full(bearing.size, limits[-1], np.float32)
        for sector in self.sectors:
            band = int(random.integers(len(limits) - 1))
            metres = random.uniform(limits[band], limits[band + 1])
            ranges[np.abs(bearing - sector.middle_deg).argmin()] = metres
        return Scan(
            stamp_ns=0, frame_id='', angle_min_rad=math.radians(-179.5 - self.mount_yaw_deg),
            angle_increment_rad=math.radians(1.0), range_min_m=0.0,
            range_max_m=float(limits[-1]) * 2, ranges_m=ranges,
        )


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
