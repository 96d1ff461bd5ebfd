"""PointCloud2 -> the nearest distance in each named sector, within a band of heights.

The cloud is reduced where it is converted, once, to a number a sector: what is kept of 64,000
points is as small as of none. Points that are not finite are no points, whatever `is_dense` says,
nor are those at the sensor's origin: so some drivers say that nothing came back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from smallm_ros.core.sensor import (
    Angle,
    Finite,
    NotNegative,
    Phrase,
    Positive,
    Scene,
    SensorBase,
    Word,
)
from smallm_ros.core.summary.scan import SECTORS, Bins, Sector, distance, drawn_m

FloatArray = npt.NDArray[np.float32]
Metres = Annotated[float, Field(ge=-10, le=10)]


@dataclass(frozen=True, slots=True)
class Cloud:
    """What a sensor_msgs/PointCloud2 shows of the robot's surroundings."""

    stamp_ns: int
    frame_id: str
    nearest_m: tuple[float, ...]
    """By sector, from base_link along the ground; inf where no point is near."""
    points: int
    """Finite ones, in the band of heights or not, and none at the sensor's origin."""


class CloudSensor(SensorBase):
    """A 3D lidar or depth camera, summarised as the nearest distance in named sectors."""

    type: Literal['sensor_msgs/msg/PointCloud2']
    mount_x_m: Metres = 0.0
    mount_y_m: Metres = 0.0
    mount_z_m: Metres = 0.0
    """Where the cloud's frame is in base_link."""
    mount_roll_deg: Angle = 0.0
    mount_pitch_deg: Angle = 0.0
    mount_yaw_deg: Angle = 0.0
    """How it is turned there: about x, then y, then z. An optical frame (z ahead) of a camera that
    looks ahead is roll -90, pitch 0, yaw -90."""
    from_z_m: Finite = 0.1
    to_z_m: Finite = 2.0
    """Only points between these heights over base_link count: neither the floor nor the lamps."""
    beyond_m: NotNegative = 0.0
    """Points nearer to base_link than this are the robot's own body."""
    sectors: tuple[Sector, ...] = Field(default=SECTORS, min_length=1, max_length=16)
    """Only those into which it looks: from where a camera does not look no point comes, and that
    is `far`. The default is for a lidar that looks all around."""
    far_m: Positive = 5.0
    far_word: Word = 'far'
    bins: Bins = ()
    """Words instead of numbers, nearest first; beyond the last it is `far_word`."""

    @model_validator(mode='after')
    def _ordered(self) -> CloudSensor:
        if not self.from_z_m < self.to_z_m:
            raise ValueError(f'from_z_m {self.from_z_m:g} is not less than to_z_m {self.to_z_m:g}')
        return self

    def say(self, fields: Cloud, scene: Scene) -> tuple[Phrase, ...]:
        """Return `left 0.8`, `ahead far` in the order of the sectors, or `sees nothing`.

        A cloud without any point is that of a blind sensor as well as of an open field.
        """
        if not fields.points:
            return (Phrase('sees nothing'),)
        return tuple(
            Phrase(f'{sector.name} {distance(metres, self.bins, self.far_m, self.far_word)}')
            for sector, metres in zip(self.sectors, fields.nearest_m, strict=True)
        )

    def draw(self, random: np.random.Generator) -> Cloud:
        """Return a cloud with one obstacle a sector, as often in one bin as in another."""
        return Cloud(0, '', tuple(
            drawn_m(random, self.bins, self.far_m) for _ in self.sectors), 1)


def reduced(sensor: CloudSensor, x: FloatArray, y: FloatArray, z: FloatArray) -> tuple[
    tuple[float, ...], int
]:
    """Return the nearest distance by sector, and how many points there are.

    x, y and z are of shape (points,), metres in the cloud's frame.
    """
    turn = _rotation(sensor)
    # Bearings cost most, and what is far is told by no sector: its points get none.
    far_m = max([sensor.far_m, *(part.below_m for part in sensor.bins)])
    with np.errstate(invalid='ignore', over='ignore'):
        up = _along(turn[2], sensor.mount_z_m, x, y, z)
        # A number that is not finite makes the sum so: one look finds it.
        real = np.isfinite(x + y + up) & ((x != 0) | (y != 0) | (z != 0))
        points = int(real.sum())
        band = np.flatnonzero(real & (up >= sensor.from_z_m) & (up <= sensor.to_z_m))
        x, y, z = x[band], y[band], z[band]
        ahead = _along(turn[0], sensor.mount_x_m, x, y, z)
        left = _along(turn[1], sensor.mount_y_m, x, y, z)
        squared = ahead * ahead + left * left
        near = np.flatnonzero((squared <= far_m**2) & (squared >= sensor.beyond_m**2))
        degrees = np.degrees(np.arctan2(left[near], ahead[near]))
        metres = np.sqrt(squared[near])
    return tuple(sector.nearest(degrees, metres) for sector in sensor.sectors), points


def _along(
    row: FloatArray, offset_m: float, x: FloatArray, y: FloatArray, z: FloatArray
) -> FloatArray:
    """Return one coordinate in base_link; what a row of the rotation has no part of costs none."""
    parts = [axis if part == 1 else part * axis
             for part, axis in zip(row, (x, y, z), strict=True) if part]
    out: FloatArray = parts[0] if len(parts) == 1 else sum(parts[1:], parts[0])
    return out + np.float32(offset_m) if offset_m else out


def _rotation(sensor: CloudSensor) -> FloatArray:
    """Return the rotation from the cloud's frame to base_link, of shape (3, 3)."""
    return rotation(sensor.mount_roll_deg, sensor.mount_pitch_deg, sensor.mount_yaw_deg).astype(
        np.float32)


def rotation(roll_deg: float, pitch_deg: float, yaw_deg: float) -> npt.NDArray[np.float64]:
    """Return the rotation about x, then y, then z, all fixed axes (REP-103), of shape (3, 3)."""
    (cr, sr), (cp, sp), (cy, sy) = (
        (math.cos(math.radians(angle)), math.sin(math.radians(angle)))
        for angle in (roll_deg, pitch_deg, yaw_deg)
    )
    return np.array([
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ])
