"""Goal pose -> distance and bearing from where a pose in its frame has the robot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from smallm_ros.core.sensor import Phrase, Scene, SensorBase
from smallm_ros.core.summary.place import MAX_FRAME, Planar, pose_in
from smallm_ros.core.summary.words import quoted

REACHED_M = 0.3


@dataclass(frozen=True, slots=True)
class Goal:
    """The planar part of a geometry_msgs/PoseStamped goal."""

    stamp_ns: int
    frame_id: str
    x_m: float
    y_m: float
    yaw_rad: float


class GoalSensor(SensorBase):
    """A goal pose, summarised as bearing and distance from a pose in its frame."""

    type: Literal['geometry_msgs/msg/PoseStamped']

    def say(self, fields: Goal, scene: Scene) -> tuple[Phrase, ...]:
        """Return one phrase: see `text`."""
        return (Phrase(text(fields, pose_in(fields.frame_id, scene.fields.values()))),)

    def draw(self, random: np.random.Generator) -> Goal:
        """Return one anywhere around the origin."""
        bearing, distance = random.uniform(-math.pi, math.pi), random.uniform(0.5, 8.0)
        return Goal(0, 'odom', float(distance * math.cos(bearing)),
                    float(distance * math.sin(bearing)), 0.0)


def text(goal: Goal, pose: Planar | None) -> str:
    """Return `2.5 m ahead-left`, `reached`, or why the bearing is not known."""
    if pose is None:
        return f'bearing unknown, no pose in frame {quoted(goal.frame_id, MAX_FRAME)}'
    bearing, distance = from_robot(goal, pose)
    if not math.isfinite(distance):
        return 'not a finite pose'
    if distance < REACHED_M:
        return 'reached'
    return f'{distance:.1f} m {direction(math.degrees(bearing))}'


def from_robot(goal: Goal, pose: Planar) -> tuple[float, float]:
    """Return bearing and distance, radians and metres; both NaN unless all is finite."""
    dx, dy = goal.x_m - pose.x_m, goal.y_m - pose.y_m
    distance = math.hypot(dx, dy)
    if not (math.isfinite(distance) and math.isfinite(pose.yaw_rad)):
        return math.nan, math.nan
    return math.remainder(math.atan2(dy, dx) - pose.yaw_rad, 2 * math.pi), distance


def direction(bearing_deg: float) -> str:
    """Return `ahead`, `ahead-left`, `left`, `behind`: in the words of a scan's sectors."""
    side = 'left' if bearing_deg > 0 else 'right'
    size = abs(bearing_deg)
    if size <= 20:
        return 'ahead'
    if size <= 60:
        return f'ahead-{side}'
    return side if size <= 120 else 'behind'
