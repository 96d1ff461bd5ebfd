"""Goal pose -> distance and bearing from where the odometry says that the robot is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from smallm_ros.core.sensor import Phrase, Scene, SensorBase
from smallm_ros.core.summary.odometry import Odometry

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
    """A goal pose, summarised as bearing and distance from the newest odometry."""

    type: Literal['geometry_msgs/msg/PoseStamped']

    def say(self, fields: Goal, scene: Scene) -> tuple[Phrase, ...]:
        """Return one phrase: see `text`."""
        poses = (each for each in scene.fields.values() if isinstance(each, Odometry))
        return (Phrase(text(fields, next(poses, None))),)

    def draw(self, random: np.random.Generator) -> Goal:
        """Return one anywhere around the origin."""
        bearing, distance = random.uniform(-math.pi, math.pi), random.uniform(0.5, 8.0)
        return Goal(0, 'odom', float(distance * math.cos(bearing)),
                    float(distance * math.sin(bearing)), 0.0)


def text(goal: Goal, odometry: Odometry | None) -> str:
    """Return `2.5 m ahead-left`, `reached`, or why the bearing is not known."""
    if odometry is None:
        return 'bearing unknown, no odometry'
    if goal.frame_id != odometry.frame_id:
        return f'bearing unknown, given in frame {goal.frame_id[:32]}'
    bearing, distance = from_robot(goal, odometry)
    if not math.isfinite(distance):
        return 'not a finite pose'
    if distance < REACHED_M:
        return 'reached'
    return f'{distance:.1f} m {_direction(math.degrees(bearing))}'


def from_robot(goal: Goal, odometry: Odometry) -> tuple[float, float]:
    """Return bearing and distance, radians and metres; both NaN unless all is finite."""
    dx, dy = goal.x_m - odometry.x_m, goal.y_m - odometry.y_m
    distance = math.hypot(dx, dy)
    if not (math.isfinite(distance) and math.isfinite(odometry.yaw_rad)):
        return math.nan, math.nan
    return math.remainder(math.atan2(dy, dx) - odometry.yaw_rad, 2 * math.pi), distance


def _direction(bearing_deg: float) -> str:
    side = 'left' if bearing_deg > 0 else 'right'
    size = abs(bearing_deg)
    if size <= 20:
        return 'ahead'
    if size <= 60:
        return f'ahead-{side}'
    return side if size <= 120 else 'behind'
