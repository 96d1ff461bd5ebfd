"""Imu -> which way the base leans, whether it was hit, which way it turns.

Axes are REP-103's: x ahead, y left, z up. Where the driver says that it has no orientation
(covariance -1, as sensor_msgs/Imu defines) the tilt is that of gravity, while the acceleration is
gravity's. Of a driver of 200 Hz the newest message is read, so a blow between two looks goes
unseen: who must not miss one counts it where it is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from smallm_ros.core.sensor import Angle, Phrase, Positive, Scene, SensorBase, Word
from smallm_ros.core.summary.odometry import STANDING_RAD_S
from smallm_ros.core.summary.words import Levels, worded

G_M_S2 = 9.80665
STILL = 0.1
"""What share of gravity the acceleration may differ from it and still tell where up is."""
SIDE_DEG, OVER_DEG = 60.0, 120.0
"""From where on a base lies on its side, and on its back."""

Axis = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Imu:
    """What a sensor_msgs/Imu tells of the base, in the base's frame."""

    stamp_ns: int
    up: Axis | None
    """Of length 1, where up is; None where nothing tells."""
    acceleration_m_s2: float
    """Its length; NaN where it is not measured."""
    turn_rad_s: float
    """About up; NaN where it is not measured."""


class ImuSensor(SensorBase):
    """An inertial unit, summarised as tilt, shock and turning."""

    type: Literal['sensor_msgs/msg/Imu']
    mount_roll_deg: Angle = 0.0
    mount_pitch_deg: Angle = 0.0
    mount_yaw_deg: Angle = 0.0
    """How the unit sits in base_link: turned about x, then y, then z."""
    level_deg: Annotated[float, Field(ge=1, le=45)] = 5.0
    """A base that leans less is level."""
    step_deg: Annotated[int, Field(ge=1, le=45)] = 5
    """What a tilt is rounded to: a number that trembles is read anew each time."""
    bins: Levels = ()
    """Words for the tilt, `below` in degrees, from `level_deg` on: `nose up steep`."""
    top_word: Word = 'steep'
    gravity: bool = True
    """Whether the acceleration has gravity in it, as the message defines; some drivers take it
    out."""
    shock_m_s2: Positive = 5.0
    """An acceleration that differs from rest by more is a shock."""

    def say(self, fields: Imu, scene: Scene) -> tuple[Phrase, ...]:
        """Return `level`, `nose up 15 deg`, `leaning left 10 deg`, `shock`, `turning left`."""
        said = [Phrase(text) for text in self._tilt(fields.up)]
        rest = G_M_S2 if self.gravity else 0.0
        if abs(fields.acceleration_m_s2 - rest) > self.shock_m_s2:  # NaN is not
            said.append(Phrase('shock'))
        if math.isnan(fields.turn_rad_s):
            said.append(Phrase('turning unknown', 1))
        elif abs(fields.turn_rad_s) >= STANDING_RAD_S:
            said.append(Phrase(f'turning {"left" if fields.turn_rad_s > 0 else "right"}', 1))
        return tuple(said)

    def draw(self, random: np.random.Generator) -> Imu:
        """Return one that is level as often as it leans."""
        lean = math.radians(random.choice([0.0, 0.0, 2 * self.level_deg + self.step_deg]))
        way = random.uniform(-math.pi, math.pi)
        up = (math.sin(lean) * math.cos(way), math.sin(lean) * math.sin(way), math.cos(lean))
        return Imu(0, up, G_M_S2 if self.gravity else 0.0, float(random.choice([-0.5, 0.0, 0.5])))

    def _tilt(self, up: Axis | None) -> list[str]:
        if up is None:
            return ['tilt unknown']
        x, y, z = up
        whole_deg = math.degrees(math.acos(min(max(z, -1.0), 1.0)))
        if whole_deg > SIDE_DEG:
            return ['upside down' if whole_deg > OVER_DEG else 'on its side']
        said = []
        for degrees, words in (
            (math.degrees(math.asin(min(max(x, -1.0), 1.0))), ('nose up', 'nose down')),
            (math.degrees(math.asin(min(max(y, -1.0), 1.0))), ('leaning right', 'leaning left')),
        ):
            steps = round(abs(degrees) / self.step_deg) * self.step_deg
            if abs(degrees) >= self.level_deg and steps:
                size = worded(abs(degrees), self.bins, self.top_word, 0, '')
                said.append(f'{words[degrees < 0]} {size if self.bins else f"{steps} deg"}')
        return said or ['level']
