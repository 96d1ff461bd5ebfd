"""Range -> the one distance of an infrared or ultrasonic ranger, as sensor_msgs/Range defines it.

REP-117 for what is no distance: `-inf` is too near to measure, `inf` is nothing within range, NaN
is an error. A ranger whose least and greatest range are the same only tells that something is
there, or not; where both are 0 its driver left them unset.
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
        """Return `0.4`, the word of its bin, `far`, `over 0.3`, `touching` or `unknown`."""
        metres, unset = fields.range_m, fields.max_m == 0
        switch = fields.min_m == fields.max_m and not unset
        if metres == -math.inf:
            return (Phrase('something' if switch else self.near_word),)
        if metres == math.inf and (switch or unset):
            return (Phrase('nothing'),)
        if switch or not (unset or fields.min_m <= metres <= fields.max_m or metres == math.inf):
            metres = math.nan  # to be discarded, says the message
        return (Phrase(distance(
            metres, self.bins, self.far_m, self.far_word, fields.max_m)),)

    def draw(self, random: np.random.Generator) -> Range:
        """Return one as often in one bin as in another."""
        metres = drawn_m(random, self.bins, self.far_m)
        return Range(0, 0.0, 2 * metres, metres)
