"""A pose in a map, and how sure it is -> which place that is.

Coordinates mean nothing to a model that has no map: the policy names places, and the nearest is
said; without any it is the coordinates, to half a metre, and the heading in steps of 45 degrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field

from smallm_ros.core.sensor import Finite, Part, Phrase, Positive, Scene, SensorBase, Word
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.words import quoted

MAX_FRAME = 32
"""Characters of a frame that are said."""


class Planar(Protocol):
    """Where the robot is in some frame: an odometry, or a place."""

    @property
    def frame_id(self) -> str:
        """The frame of x, y and yaw."""

    @property
    def x_m(self) -> float:
        """Position."""

    @property
    def y_m(self) -> float:
        """Position."""

    @property
    def yaw_rad(self) -> float:
        """Heading, counter-clockwise from the frame's x."""


@dataclass(frozen=True, slots=True)
class Place:
    """The planar part of a geometry_msgs/PoseWithCovarianceStamped."""

    stamp_ns: int
    frame_id: str
    x_m: float
    y_m: float
    yaw_rad: float
    deviation_m: float
    """The greater standard deviation of x and y; 0 says that the driver did not tell."""


class Named(Part):
    """A place that has a name."""

    name: Word
    x_m: Finite
    y_m: Finite
    radius_m: Positive = 1.0
    """Within this the robot is there."""


class PlaceSensor(SensorBase):
    """Where the robot is in its map: what a localisation says."""

    type: Literal['geometry_msgs/msg/PoseWithCovarianceStamped']
    frame: Annotated[str, Field(min_length=1, max_length=64)] = 'map'
    """In which the places are given; a pose in another frame is said to be in it."""
    places: tuple[Named, ...] = Field(default=(), max_length=64)
    unsure_m: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    """From this standard deviation on the robot does not know well where it is."""

    def say(self, fields: Place, scene: Scene) -> tuple[Phrase, ...]:
        """Return `at dock`, `4 m from dock`, or `x 3.5, y -1, heading 90 deg`; `unsure by 2 m`."""
        if fields.frame_id != self.frame:
            return (Phrase(f'place unknown, given in frame {quoted(fields.frame_id, MAX_FRAME)}'),)
        said = [Phrase(text) for text in self._where(fields)]
        if fields.deviation_m >= self.unsure_m:
            said.append(Phrase(unsure(fields.deviation_m)))
        return tuple(said)

    def draw(self, random: np.random.Generator) -> Place:
        """Return one near a place, or anywhere around the origin."""
        x_m, y_m = 0.0, 0.0
        if self.places:
            near = self.places[int(random.integers(len(self.places)))]
            x_m, y_m = near.x_m, near.y_m
        away, way = random.choice([0.0, 5.0]), random.uniform(-math.pi, math.pi)
        return Place(0, self.frame, x_m + away * math.cos(way), y_m + away * math.sin(way),
                     float(random.uniform(-math.pi, math.pi)), 0.1)

    def _where(self, fields: Place) -> list[str]:
        if not self.places:
            eighth = (round(fields.yaw_rad / (math.pi / 4)) + 3) % 8 - 3
            return [f'x {_metres(fields.x_m)}', f'y {_metres(fields.y_m)}',
                    f'heading {45 * eighth} deg']
        away_m, nearest = min(
            ((math.hypot(fields.x_m - each.x_m, fields.y_m - each.y_m), each)
             for each in self.places), key=lambda pair: pair[0],
        )
        if away_m <= nearest.radius_m:
            return [f'at {nearest.name}']
        return [f'{_metres(away_m)} m from {nearest.name}']


def pose_in(frame_id: str, fields: Iterable[object]) -> Planar | None:
    """Return where the robot is in a frame, from those of the fields that can tell."""
    return next((each for each in fields
                 if isinstance(each, (Odometry, Place)) and each.frame_id == frame_id), None)


def unsure(deviation_m: float) -> str:
    """Return `unsure by 2 m`, or `unsure` where the driver's variance is absurd."""
    return f'unsure by {deviation_m:.2g} m' if math.isfinite(deviation_m) else 'unsure'


def _metres(value: float) -> str:
    """Return metres to half a metre below ten, and whole from there on."""
    return f'{round(2 * value) / 2:g}' if abs(value) < 10 else f'{value:.0f}'
