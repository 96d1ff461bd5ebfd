"""A velocity that somebody asks for or measures -> how that base would move, in the same words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from smallm_ros.core.sensor import Phrase, Scene, SensorBase, Word
from smallm_ros.core.summary.odometry import motion
from smallm_ros.core.summary.words import Levels


@dataclass(frozen=True, slots=True)
class Twist:
    """The planar part of a geometry_msgs/Twist, in the base's frame."""

    stamp_ns: int
    """0 for a Twist, which has none."""
    linear_x_m_s: float
    linear_y_m_s: float
    angular_z_rad_s: float


class TwistSensor(SensorBase):
    """A velocity, summarised as odometry's is; a base that can go sideways says so."""

    type: Literal['geometry_msgs/msg/Twist', 'geometry_msgs/msg/TwistStamped']
    bins: Levels = ()
    """Words for the speed, `below` in metres a second: `ahead slow`."""
    top_word: Word = 'fast'

    def say(self, fields: Twist, scene: Scene) -> tuple[Phrase, ...]:
        """Return `standing`, `ahead 0.2`, `left 0.1 turning right`."""
        return (Phrase(motion(
            fields.linear_x_m_s, fields.angular_z_rad_s, fields.linear_y_m_s,
            bins=self.bins, top_word=self.top_word)),)

    def draw(self, random: np.random.Generator) -> Twist:
        """Return one that goes ahead, or turns, or both."""
        return Twist(0, float(random.uniform(0.0, 0.5)), 0.0,
                     float(random.choice([-0.5, 0.0, 0.5])))
