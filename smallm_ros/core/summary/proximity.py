"""Range -> the one distance of an infrared or ultrasonic ranger, as sensor_msgs/Range defines it.

REP-117 for what is no distance: `-inf` is too near to measure, `inf` is nothing within range, NaN
is an error. A ranger whose least and greatest range are the same only tells that something is
there, or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from smallm_ros.core.sensor import Phrase, Positive, Scene, SensorBase, Word
from smallm_ros.core.summary.scan import Bins, distance, drawn_m


@dataclass(frozen=True, slots=True)
class Range:
    """The fields of a sensor_msgs/Range that decide anything."""

    stamp_ns: int
    min_m: float
    max_m: float
    range_m: float
    """NaN, inf and -inf pass: they mean something."""


class RangeSensor(SensorBase):
    """A ranger, summarised as its distance."""

    type: Literal['sensor_msgs/msg/Range']
    far_m: Positive = 5.0
    far_word: Word = 'far'
    near_word: Word = 'touching'
    """For what is too near to measure."""
    bins: Bins = ()

    def say(self, fields: Range, scene: Scene) -> tuple[Phrase, ...]:
        """Return `0.4`, the word of its bin, `far`, `touching` or `unknown`."""
        metres = fields.range_m
        if metres == -math.inf:
            return (Phrase('something' if fields.min_m == fields.max_m else self.near_word),)
        if fields.min_m == fields.max_m:
            return (Phrase('nothing' if metres == math.inf else 'unknown'),)
        if metres < fields.min_m or fields.max_m < metres < math.inf:
            metres = math.nan  # to be discarded, says the message
        return (Phrase(distance(metres, self.bins, self.far_m, self.far_word)),)

    def draw(self, random: np.random.Generator) -> Range:
        """Return one as often in one bin as in another."""
        metres = drawn_m(random, self.bins, self.far_m)
        return Range(0, 0.0, 2 * metres, metres)
