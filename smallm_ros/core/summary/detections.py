"""Detections -> how many of each class, and where the nearest or the largest of them is.

Class ids are text of whoever detects: one that the policy has no word for is quoted. Bearings are
in the frame of the message: REP-103's body axes, or the optical ones where its name ends so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from smallm_ros.core.sensor import Phrase, Priority, Scene, SensorBase, Word
from smallm_ros.core.summary.words import number, quoted

MAX_CLASSES = 8
MAX_CLASS_ID = 32

Score = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[dict[Annotated[str, Field(max_length=MAX_CLASS_ID)], Word],
                  Field(max_length=256)]
"""Words by class id: `{'0': person}`."""


@dataclass(frozen=True, slots=True)
class Chief:
    """The detection that matters most: the nearest in space, the largest in a picture."""

    class_id: str
    distance_m: float = math.nan
    bearing_rad: float = math.nan
    x_px: float = math.nan


@dataclass(frozen=True, slots=True)
class Detections:
    """The fields of a vision_msgs/Detection2DArray or Detection3DArray that decide anything."""

    stamp_ns: int
    counts: tuple[tuple[str, int], ...]
    """Class id and how many, the most frequent first, at most MAX_CLASSES."""
    others: int
    """Detections of further classes."""
    chief: Chief | None


class Detections3DSensor(SensorBase):
    """Things found in space."""

    type: Literal['vision_msgs/msg/Detection3DArray']
    priority: Priority = 1
    min_score: Score = 0.5
    names: Names = Field(default_factory=dict)

    def say(self, fields: Detections, scene: Scene) -> tuple[Phrase, ...]:
        """Return `2 person`, `1 chair`, `nearest person 1.2 m ahead-left`; or `none`."""
        return _say(fields, self.names, _where_3d)

    def draw(self, random: np.random.Generator) -> Detections:
        """Return none, or one of a class somewhere ahead."""
        bearing, distance = random.uniform(-1.5, 1.5), random.uniform(0.5, 8.0)
        return _draw(random, self.names, Chief('', float(distance), float(bearing)))


class Detections2DSensor(SensorBase):
    """Things found in a picture."""

    type: Literal['vision_msgs/msg/Detection2DArray']
    priority: Priority = 1
    min_score: Score = 0.5
    names: Names = Field(default_factory=dict)
    image_width_px: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Without it nothing is said of left and right."""

    def say(self, fields: Detections, scene: Scene) -> tuple[Phrase, ...]:
        """Return `2 person`, `1 chair`, `largest person left`; or `none`."""
        width_px = self.image_width_px

        def where(chief: Chief) -> tuple[str, str]:
            if width_px is None or not 0 <= chief.x_px <= width_px:
                return 'largest', ''
            third = min(int(3 * chief.x_px / width_px), 2)
            return 'largest', (' left', ' in the middle', ' right')[third]

        return _say(fields, self.names, where)

    def draw(self, random: np.random.Generator) -> Detections:
        """Return none, or one of a class somewhere in the picture."""
        x_px = random.uniform(0, self.image_width_px or 1)
        return _draw(random, self.names, Chief('', x_px=float(x_px)))


def _say(
    fields: Detections, names: dict[str, str], where: Callable[[Chief], tuple[str, str]]
) -> tuple[Phrase, ...]:
    """Return how many of each class, the rarest the first to go, and where the chief one is."""
    if not fields.counts:
        return (Phrase('none'),)
    said = [Phrase(f'{count} {_name(class_id, names)}', less)
            for less, (class_id, count) in enumerate(fields.counts)]
    if fields.others:
        said.append(Phrase(f'{fields.others} of other kinds', len(said)))
    if fields.chief is not None:
        which, place = where(fields.chief)
        if len(fields.counts) > 1 or fields.others:
            place = f' {_name(fields.chief.class_id, names)}{place}'
        if place:
            said.append(Phrase(which + place))
    return tuple(said)


def _where_3d(chief: Chief) -> tuple[str, str]:
    return 'nearest', f' {number(chief.distance_m, 1)} m {_side(math.degrees(chief.bearing_rad))}'


def _side(bearing_deg: float) -> str:
    side, size = 'left' if bearing_deg > 0 else 'right', abs(bearing_deg)
    if size <= 20:
        return 'ahead'
    return f'ahead-{side}' if size <= 60 else side if size <= 120 else 'behind'


def _name(class_id: str, names: dict[str, str]) -> str:
    return names.get(class_id) or quoted(class_id, MAX_CLASS_ID)


def _draw(random: np.random.Generator, names: dict[str, str], chief: Chief) -> Detections:
    class_id = str(random.choice([*names] or ['thing']))
    if random.random() < 0.25:
        return Detections(0, (), 0, None)
    return Detections(0, ((class_id, 1),), 0, dataclasses.replace(chief, class_id=class_id))
