"""Odometry -> how the base moves now, in one or two words and one or two numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from smallm_ros.core.sensor import Phrase, Scene, SensorBase, Word
from smallm_ros.core.summary.words import Level, Levels, worded

STANDING_M_S = 0.02
STANDING_RAD_S = 0.05
"""Below these a base stands: wheel encoders are no better."""


@dataclass(frozen=True, slots=True)
class Odometry:
    """The fields of a nav_msgs/Odometry that decide anything: planar pose and body velocity."""

    stamp_ns: int
    frame_id: str
    x_m: float
    y_m: float
    yaw_rad: float
    linear_x_m_s: float
    angular_z_rad_s: float


class OdometrySensor(SensorBase):
    """Wheel odometry, summarised as forward and turning speed."""

    type: Literal['nav_msgs/msg/Odometry']
    bins: Levels = ()
    """Words for the speed, `below` in metres a second: `ahead slow`."""
    top_word: Word = 'fast'

    def say(self, fields: Odometry, scene: Scene) -> tuple[Phrase, ...]:
        """Return one phrase: see `motion`."""
        return (Phrase(motion(fields.linear_x_m_s, fields.angular_z_rad_s,
                              bins=self.bins, top_word=self.top_word)),)

    def draw(self, random: np.random.Generator) -> Odometry:
        """Return one that stands at the origin of its frame and is on its way."""
        return Odometry(0, 'odom', 0.0, 0.0, 0.0, float(random.uniform(0.0, 0.5)),
                        float(random.choice([-0.5, 0.0, 0.5])))


def text(moved: Odometry) -> str:
    """Return the base's motion in words: see `motion`."""
    return motion(moved.linear_x_m_s, moved.angular_z_rad_s)


def motion(
    x_m_s: float, turn_rad_s: float, y_m_s: float = 0.0, *, bins: tuple[Level, ...] = (),
    top_word: str = '',
) -> str:
    """Return `standing`, `ahead 0.2`, `back 0.1 turning left`: metres a second to one decimal.

    With `bins` the speed is the word of its bin.
    """
    def speed(m_s: float) -> str:
        text = worded(abs(m_s), bins, top_word, 1, '')
        return 'slowly' if text == '0.0' else text  # what rounds to nothing and does not stand

    words = []
    if abs(x_m_s) >= STANDING_M_S:
        words.append(f'{"ahead" if x_m_s > 0 else "back"} {speed(x_m_s)}')
    if abs(y_m_s) >= STANDING_M_S:
        words.append(f'{"left" if y_m_s > 0 else "right"} {speed(y_m_s)}')
    if abs(turn_rad_s) >= STANDING_RAD_S:
        words.append(f'turning {"left" if turn_rad_s > 0 else "right"}')
    return ' '.join(words) or 'standing'
