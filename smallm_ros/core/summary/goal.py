"""Goal pose -> distance and bearing from where the odometry says that the robot is."""

from __future__ import annotations

import math

from smallm_ros.core.observation import Goal, Odometry

REACHED_M = 0.3


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
