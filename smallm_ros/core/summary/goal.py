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
    dx, dy = goal.x_m - odometry.x_m, goal.y_m - odometry.y_m
    distance = math.hypot(dx, dy)
    if not math.isfinite(distance):
        return 'not a finite pose'
    if distance < REACHED_M:
        return 'reached'
    bearing = math.degrees(
        math.remainder(math.atan2(dy, dx) - odometry.yaw_rad, 2 * math.pi)
    )
    return f'{distance:.1f} m {_direction(bearing)}'


def _direction(bearing_deg: float) -> str:
    side = 'left' if bearing_deg > 0 else 'right'
    size = abs(bearing_deg)
    if size <= 20:
        return 'ahead'
    if size <= 60:
        return f'ahead-{side}'
    return side if size <= 120 else 'behind'
