"""Temperature -> degrees Celsius, and how far they can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from smallm_ros.core.sensor import Phrase, Scene, SensorBase, Word
from smallm_ros.core.summary.words import Digits, Levels, number, spread, worded

ABSOLUTE_ZERO_C = -273.15


@dataclass(frozen=True, slots=True)
class Temperature:
    """The fields of a sensor_msgs/Temperature."""

    stamp_ns: int
    temperature_c: float
    variance_c2: float
    """0 is unknown, as the message defines."""


class TemperatureSensor(SensorBase):
    """A thermometer."""

    type: Literal['sensor_msgs/msg/Temperature']
    digits: Digits = 0
    bins: Levels = ()
    """Words for degrees Celsius."""
    top_word: Word = 'hot'

    def say(self, fields: Temperature, scene: Scene) -> tuple[Phrase, ...]:
        """Return `31 C`; of a deviation that the digits would show also `give or take 4`."""
        said = [Phrase(worded(fields.temperature_c, self.bins, self.top_word, self.digits, 'C'))]
        if not 0 <= fields.variance_c2 < math.inf:
            said.append(Phrase(f'variance {fields.variance_c2:.3g} absurd', 1))
        elif (deviation := math.sqrt(fields.variance_c2)) >= 10 ** -self.digits:
            said.append(Phrase(f'give or take {number(deviation, self.digits)}', 1))
        return tuple(said)

    def draw(self, random: np.random.Generator) -> Temperature:
        """Return one as often in one bin as in another."""
        return Temperature(0, spread(random, self.bins, -10.0, 90.0), 0.0)
