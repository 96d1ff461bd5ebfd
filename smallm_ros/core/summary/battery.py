"""Battery -> how full, whether it charges, and what ails it.

The message has the charge as a fraction from 0 to 1, or NaN. Some drivers send 0 to 100: that is
believed only where the policy declares it, because 0.9 could then be nearly full or nearly empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from smallm_ros.core.sensor import Phrase, Scene, SensorBase, Word
from smallm_ros.core.summary.words import Levels, number, spread, worded

CHARGING, DISCHARGING, NOT_CHARGING, FULL = 1, 2, 3, 4
STATUS = {
    0: '', CHARGING: 'charging', DISCHARGING: '', NOT_CHARGING: 'not charging', FULL: 'full',
}
"""sensor_msgs/BatteryState, POWER_SUPPLY_STATUS; a battery that empties goes without saying."""
HEALTH = {
    0: '', 1: '', 2: 'overheated', 3: 'dead', 4: 'overvoltage', 5: 'failed', 6: 'cold',
    7: 'watchdog expired', 8: 'safety timer expired',
}
"""sensor_msgs/BatteryState, POWER_SUPPLY_HEALTH."""
OVERFULL = 0.005
"""What float32 and a driver's rounding may add to a full battery or take from an empty one."""


@dataclass(frozen=True, slots=True)
class Battery:
    """The fields of a sensor_msgs/BatteryState that decide anything."""

    stamp_ns: int
    percentage: float
    """As it came; NaN where it is not measured."""
    voltage_v: float
    status: int
    health: int
    present: bool


class BatterySensor(SensorBase):
    """A battery, summarised as its charge, and what is out of the ordinary."""

    type: Literal['sensor_msgs/msg/BatteryState']
    full_is: Literal[1, 100] = 1
    """What the driver sends for a full battery: 1 as the message says, or 100."""
    bins: Levels = ()
    """Words for the charge, `below` in percent."""
    top_word: Word = 'good'
    with_voltage: bool = False
    """Whether the voltage is said although the charge is known."""

    def say(self, fields: Battery, scene: Scene) -> tuple[Phrase, ...]:
        """Return `73%`, `charging`, `24.1 V`, `overheated`, or what is absurd about them."""
        fraction = fields.percentage / self.full_is
        known = -OVERFULL <= fraction <= 1 + OVERFULL
        volts = math.isfinite(fields.voltage_v) and fields.voltage_v > 0
        if not fields.present and not (volts or (known and fraction > 0)):
            return (Phrase('no battery'),)
        said = [Phrase(self._charge(fraction) if known else _unknown(fields.percentage))]
        said += [
            Phrase(word, less) for word, less in (
                (HEALTH.get(fields.health, f'health {fields.health} absurd'), 0),
                (STATUS.get(fields.status, f'status {fields.status} absurd'), 1),
            ) if word
        ]
        if volts and (self.with_voltage or not known):
            said.append(Phrase(f'{number(fields.voltage_v, 1)} V', 2))
        elif self.with_voltage:
            said.append(Phrase(f'voltage {fields.voltage_v:.3g} absurd', 2))
        return tuple(said)

    def draw(self, random: np.random.Generator) -> Battery:
        """Return one as often in one bin as in another; one in four charges."""
        percent = spread(random, self.bins, 0.0, 100.0)
        status = CHARGING if random.random() < 0.25 else DISCHARGING
        return Battery(0, percent / 100 * self.full_is, 12.0, status, 1, True)

    def _charge(self, fraction: float) -> str:
        percent = min(max(100 * fraction, 0.0), 100.0)
        word = worded(percent, self.bins, self.top_word, 0, '')
        return word if self.bins else f'{word}%'


def _unknown(percentage: float) -> str:
    if math.isnan(percentage):
        return 'charge unknown'
    return f'charge unknown, percentage {percentage:.3g} absurd'
