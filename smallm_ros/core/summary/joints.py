"""JointState -> where the declared joints are, each by its name.

The message may name its joints in any order and leave positions, velocities or efforts out as a
whole. A joint that it does not name is said to be missing: an arm whose driver lost a motor still
sends the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from smallm_ros.core.sensor import Finite, Part, Phrase, Scene, SensorBase, Word
from smallm_ros.core.summary.words import Digits, Levels, spread, worded

MISSING = None


class Joint(Part):
    """One joint, and what is read of it."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r'^[!-~]+$')]
    """As the message has it."""
    word: Word | None = None
    """As the prompt has it; without, its name."""
    what: Literal['position', 'velocity', 'effort'] = 'position'
    unit: Literal['rad', 'deg', 'm', 'rad/s', 'deg/s', 'm/s', 'Nm', 'N', ''] = 'deg'
    """`deg` and `deg/s` are made of the message's radians; any other is said as it is."""
    digits: Digits = 0
    bins: Levels = ()
    """Words for the value, in its unit."""
    top_word: Word = 'high'
    usual: tuple[Finite, Finite] = (-90.0, 90.0)
    """Between what it mostly is: only the correction of the prior asks."""
    less: Annotated[int, Field(ge=0, le=9)] = 0
    """How much sooner than the sensor's `priority` it leaves a prompt that is too long."""

    def say(self, value: float | None) -> str:
        """Return `gripper 40 deg`, the word of its bin, `missing` or `unknown`."""
        name = self.word or self.name
        if value is MISSING:
            return f'{name} missing'
        shown = math.degrees(value) if self.unit.startswith('deg') else value
        return f'{name} {worded(shown, self.bins, self.top_word, self.digits, self.unit)}'


@dataclass(frozen=True, slots=True)
class Joints:
    """The declared joints' values out of a sensor_msgs/JointState, in the declared order."""

    stamp_ns: int
    values: tuple[float | None, ...]
    """NaN where the message has no such values, None where it has no such joint."""


class JointsSensor(SensorBase):
    """Joints of an arm, a gripper, a head."""

    type: Literal['sensor_msgs/msg/JointState']
    joints: tuple[Joint, ...] = Field(min_length=1, max_length=16)

    @field_validator('joints')
    @classmethod
    def _once(cls, joints: tuple[Joint, ...]) -> tuple[Joint, ...]:
        read = [(joint.name, joint.what) for joint in joints]
        for each in read:
            if read.count(each) > 1:
                raise ValueError(f'the {each[1]} of joint {each[0]!r} stands twice')
        return joints

    def say(self, fields: Joints, scene: Scene) -> tuple[Phrase, ...]:
        """Return a phrase a joint, in the declared order."""
        return tuple(
            Phrase(joint.say(value), joint.less)
            for joint, value in zip(self.joints, fields.values, strict=True)
        )

    def draw(self, random: np.random.Generator) -> Joints:
        """Return usual values, as often in one bin as in another."""
        return Joints(0, tuple(
            math.radians(value) if joint.unit.startswith('deg') else value
            for joint in self.joints for value in [spread(random, joint.bins, *joint.usual)]
        ))
