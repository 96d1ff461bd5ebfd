"""A tiny world of discs and walls, a robot in it, its lasers, and policies that mean harm."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.envelope import approach, reach_m
from smallm_ros.core.policy import Policy
from smallm_ros.core.summary.scan import Scan, ScanSensor

BEAMS = 360
STEP_S = 0.01
KINDS = ('noise', 'ram', 'swerve', 'bursts')


class PointWorld:
    """Discs and walls, a robot that brakes no harder than declared and acts late.

    A polygon brakes its turns no harder than declared either; lasers are where they are mounted.
    """

    def __init__(self, rng: np.random.Generator, policy: Policy) -> None:
        self.policy = policy
        reach = reach_m(policy)
        self.half_m = 2.5
        self.discs: list[tuple[float, float, float]] = []
        for _ in range(int(rng.integers(3, 12))):
            x, y = rng.uniform(-2.2, 2.2, size=2)
            radius = rng.uniform(0.05, 0.3)
            if math.hypot(x, y) > reach + radius + 0.02:
                self.discs.append((float(x), float(y), float(radius)))
        self.x = self.y = 0.0
        self.yaw = float(rng.uniform(-math.pi, math.pi))
        self.v = self.w = 0.0
        steps = round(policy.robot.base_delay_ms / 10)
        self.pipe = deque([STOP] * steps, maxlen=max(1, steps))

    def scan(self, stamp_ns: int, sensor: ScanSensor | None = None, span_deg: int = 360) -> Scan:
        """Look around with a beam each degree; a narrower span has its middle ahead."""
        x0, y0, yaw = self.x, self.y, self.yaw
        if sensor is not None:
            x0 += sensor.mount_x_m * math.cos(yaw) - sensor.mount_y_m * math.sin(yaw)
            y0 += sensor.mount_x_m * math.sin(yaw) + sensor.mount_y_m * math.cos(yaw)
            yaw += math.radians(sensor.mount_yaw_deg)
        angles = yaw - math.radians(span_deg / 2) + 2 * math.pi / BEAMS * np.arange(span_deg)
        cos, sin = np.cos(angles), np.sin(angles)
        with np.errstate(divide='ignore'):
            ranges = np.minimum(
                np.where(cos > 0, (self.half_m - x0) / cos, (-self.half_m - x0) / cos),
                np.where(sin > 0, (self.half_m - y0) / sin, (-self.half_m - y0) / sin),
            )
        for x, y, radius in self.discs:
            along = (x - x0) * cos + (y - y0) * sin
            across2 = (x - x0) ** 2 + (y - y0) ** 2 - along ** 2
            hit = (along > 0) & (across2 < radius * radius)
            depth = np.sqrt(np.maximum(radius * radius - across2, 0.0))
            ranges = np.where(hit, np.minimum(ranges, along - depth), ranges)
        return Scan(stamp_ns, 'laser', -math.radians(span_deg / 2), 2 * math.pi / BEAMS, 0.05,
                    12.0, ranges.astype(np.float32))

    def move(self, command: Velocity, seconds: float) -> float:
        """Command the base and let time pass; return the metres driven."""
        slower = self.policy.envelope.max_deceleration_m_s2
        driven = 0.0
        for _ in range(round(seconds / STEP_S)):
            goal = self.pipe.popleft()
            self.pipe.append(command)
            self.v = approach(self.v, goal.linear_x_m_s, math.inf, slower * STEP_S)
            slows = math.inf if self.policy.robot.footprint is None else (
                self.policy.envelope.max_angular_acceleration_rad_s2 * STEP_S)
            self.w = approach(self.w, goal.angular_z_rad_s, math.inf, slows)
            self.yaw += self.w * STEP_S
            self.x += self.v * math.cos(self.yaw) * STEP_S
            self.y += self.v * math.sin(self.yaw) * STEP_S
            driven += abs(self.v) * STEP_S
        return driven

    def clearance_m(self) -> float:
        footprint = self.policy.robot.footprint
        if footprint is not None:
            return self._clearance_of_m(np.array(footprint))
        walls = self.half_m - max(abs(self.x), abs(self.y))
        discs = [math.hypot(x - self.x, y - self.y) - r for x, y, r in self.discs]
        return min([walls, *discs]) - self.policy.robot.radius_m


    def _clearance_of_m(self, corners: np.ndarray[Any, Any]) -> float:
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        turned = corners @ np.array([[cos, sin], [-sin, cos]]) + (self.x, self.y)
        walls = self.half_m - float(np.abs(turned).max())
        discs = [outside_m(turned, (x, y)) - r for x, y, r in self.discs]
        return min([walls, *discs])


def outside_m(corners: np.ndarray[Any, Any], point: tuple[float, float]) -> float:
    """Return the distance of a point from a convex polygon, counter-clockwise; 0 inside."""
    sides = np.roll(corners, -1, axis=0) - corners
    way = np.asarray(point) - corners
    if bool((sides[:, 0] * way[:, 1] - sides[:, 1] * way[:, 0] >= 0).all()):
        return 0.0
    along = np.clip((way * sides).sum(axis=1) / (sides ** 2).sum(axis=1), 0.0, 1.0)
    return float(np.hypot(*(way - along[:, None] * sides).T).min())


def wild(rng: np.random.Generator, kind: str, tick: int, held: Velocity) -> Velocity:
    """A policy that means harm."""
    if kind == 'noise':
        return Velocity(float(rng.uniform(-2, 2)), float(rng.uniform(-3, 3)))
    if kind == 'ram' or tick % 15:
        return held if kind != 'ram' else Velocity(5.0, 0.0)
    if kind == 'swerve':
        return Velocity(1.0, float(rng.choice([-1.5, 0.0, 1.5])))
    return Velocity(float(rng.choice([-0.5, 0.3, 1.0])), float(rng.uniform(-1.5, 1.5)))
