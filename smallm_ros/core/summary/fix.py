"""NavSatFix -> whether there is a fix, how good, and where the declared targets lie.

Degrees of latitude say nothing in words: the policy names targets, and their distance and compass
direction are said. A fix has no heading, so they are not told as left or right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from smallm_ros.core.sensor import Part, Phrase, Positive, Scene, SensorBase, Word
from smallm_ros.core.summary.place import unsure

EARTH_M = 6_371_008.8
"""Mean radius: IUGG."""
NO_FIX = -1
"""sensor_msgs/NavSatStatus."""
COMPASS = ('north', 'north-east', 'east', 'south-east', 'south', 'south-west', 'west',
           'north-west')

Latitude = Annotated[float, Field(ge=-90, le=90)]
Longitude = Annotated[float, Field(ge=-180, le=180)]


@dataclass(frozen=True, slots=True)
class Fix:
    """What a sensor_msgs/NavSatFix tells; without a fix the position is NaN."""

    stamp_ns: int
    fixed: bool
    latitude_deg: float
    longitude_deg: float
    deviation_m: float
    """The greater standard deviation of east and north; NaN where it is not known."""


class Target(Part):
    """A place on the earth that has a name."""

    name: Word
    latitude_deg: Latitude
    longitude_deg: Longitude
    radius_m: Positive = 5.0
    """Within this the robot is there."""


class FixSensor(SensorBase):
    """A satellite fix, summarised as how good it is and where the targets lie."""

    type: Literal['sensor_msgs/msg/NavSatFix']
    targets: tuple[Target, ...] = Field(default=(), max_length=8)
    unsure_m: Positive = 10.0
    """From this standard deviation on it is said."""

    def say(self, fields: Fix, scene: Scene) -> tuple[Phrase, ...]:
        """Return `no fix`, or `dock 120 m north-east`, `at dock`, `unsure by 12 m`."""
        if not fields.fixed:
            return (Phrase('no fix'),)
        said = [Phrase(_where(fields, target)) for target in self.targets]
        if fields.deviation_m >= self.unsure_m:
            said.append(Phrase(unsure(fields.deviation_m)))
        return tuple(said) or (Phrase('fix'),)

    def draw(self, random: np.random.Generator) -> Fix:
        """Return one near a target, or none at all one time in eight."""
        if random.random() < 0.125 or not self.targets:
            return Fix(0, not self.targets, math.nan, math.nan, math.nan)
        near = self.targets[int(random.integers(len(self.targets)))]
        north, east = random.uniform(-1e-3, 1e-3), random.uniform(-1e-3, 1e-3)
        return Fix(0, True, min(max(near.latitude_deg + north, -90.0), 90.0),
                   math.remainder(near.longitude_deg + east, 360.0), 1.0)


def to_target(fix: Fix, target: Target) -> tuple[float, float]:
    """Return distance in metres and course in radians from north, clockwise: on a sphere."""
    one, two = math.radians(fix.latitude_deg), math.radians(target.latitude_deg)
    east = math.radians(math.remainder(target.longitude_deg - fix.longitude_deg, 360.0))
    half = (math.sin((two - one) / 2) ** 2
            + math.cos(one) * math.cos(two) * math.sin(east / 2) ** 2)
    distance = 2 * EARTH_M * math.asin(min(1.0, math.sqrt(half)))
    course = math.atan2(math.sin(east) * math.cos(two), math.cos(one) * math.sin(two)
                        - math.sin(one) * math.cos(two) * math.cos(east))
    return distance, course


def _where(fix: Fix, target: Target) -> str:
    distance, course = to_target(fix, target)
    if distance <= target.radius_m:
        return f'at {target.name}'
    eighth = round(course / (math.pi / 4)) % 8
    if distance >= 10_000:
        return f'{target.name} {distance / 1000:.0f} km {COMPASS[eighth]}'
    return f'{target.name} {_rounded(distance)} m {COMPASS[eighth]}'


def _rounded(metres: float) -> str:
    """Return metres to two digits: a third would change each second, and steers nobody."""
    return f'{float(f"{metres:.2g}"):.0f}'
