"""A differential-drive base on the MuJoCo model: velocity in, wheel speeds out, odometry back.

It does what a base does and no more: holds the newest command until its own time-out, limits
acceleration, drives the wheels, counts their turns. Its odometry comes from the wheels alone, so
slip and a wrong wheel radius show in it; the true pose is another thing, kept for reports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.sim.world import Limits, World

COMMAND_TIMEOUT_NS = 500 * MS
"""What diff_drive_controller of ros2_control waits by default (`cmd_vel_timeout`)."""
WHEEL_SCALE_STDDEV = 0.005
"""Drift: each wheel's true radius differs from the stated one by about half a percent."""
SLIP_STDDEV_M = 0.003
"""Noise of one wheel's travel after one metre; grows with the root of the way."""


@dataclass(frozen=True, slots=True)
class Pose:
    """A true planar pose in the world's frame."""

    x_m: float
    y_m: float
    yaw_rad: float


class Robot:
    """The world's robot in one MuJoCo simulation; times are simulated nanoseconds."""

    def __init__(
        self, world: World, model: mujoco.MjModel, data: mujoco.MjData,
        random: np.random.Generator, noise: float, timeout_ns: int = COMMAND_TIMEOUT_NS,
    ) -> None:
        self._drive = world.drive
        self._data = data
        self._timeout_ns = timeout_ns
        self._command = STOP
        self._command_ns: int | None = None
        self._linear = 0.0
        self._angular = 0.0
        free = model.joint(world.base)
        self._free_q = int(free.qposadr[0])
        self._free_v = int(free.dofadr[0])
        names = (world.drive.left_joint, world.drive.right_joint)
        joints = [model.joint(f'{world.robot}::{name}') for name in names]
        self._wheel_q = [int(joint.qposadr[0]) for joint in joints]
        self._wheel_v = [int(joint.dofadr[0]) for joint in joints]
        self._servo = [int(model.actuator(name).id) for name in names]
        self._wheels = [float(data.qpos[q]) for q in self._wheel_q]
        self._random = random
        self._slip_m = SLIP_STDDEV_M * noise
        self._scale = [
            1.0 + WHEEL_SCALE_STDDEV * noise * float(error) for error in random.standard_normal(2)]
        self._x_m = self._y_m = self._yaw_rad = 0.0

    def command(self, velocity: Velocity, now_ns: int) -> None:
        """Take a command, received at `now_ns`; ValueError when a number is not finite."""
        if not (math.isfinite(velocity.linear_x_m_s) and math.isfinite(velocity.angular_z_rad_s)):
            raise ValueError(f'a velocity is finite: {velocity}')
        self._command = velocity
        self._command_ns = now_ns

    def drive(self, now_ns: int, dt_ns: int) -> None:
        """Set the wheels' speeds for the next `dt_ns`."""
        held = self._command_ns is not None and now_ns - self._command_ns <= self._timeout_ns
        wanted = self._command if held else STOP
        dt_s = dt_ns / SECOND
        self._linear = _limited(self._linear, wanted.linear_x_m_s, self._drive.linear, dt_s)
        self._angular = _limited(self._angular, wanted.angular_z_rad_s, self._drive.angular, dt_s)
        across = self._angular * self._drive.wheel_separation_m / 2
        radius = self._drive.wheel_radius_m
        self._data.ctrl[self._servo[0]] = (self._linear - across) / radius
        self._data.ctrl[self._servo[1]] = (self._linear + across) / radius

    def measure(self) -> None:
        """Integrate what the wheels turned since the last call, along the arc that they drew."""
        way = [0.0, 0.0]
        for side in (0, 1):
            turned = float(self._data.qpos[self._wheel_q[side]])
            way[side] = (turned - self._wheels[side]) * self._drive.wheel_radius_m
            way[side] *= self._scale[side]
            self._wheels[side] = turned
            if self._slip_m:
                error = float(self._random.standard_normal())
                way[side] += self._slip_m * math.sqrt(abs(way[side])) * error
        ahead = (way[0] + way[1]) / 2
        turn = (way[1] - way[0]) / self._drive.wheel_separation_m
        middle = self._yaw_rad + turn / 2
        self._x_m += ahead * math.cos(middle)
        self._y_m += ahead * math.sin(middle)
        self._yaw_rad = math.remainder(self._yaw_rad + turn, 2 * math.pi)

    def odometry(self, stamp_ns: int) -> Odometry:
        """Return what the wheels say, in the odometry frame that began at the start."""
        speeds = [
            float(self._data.qvel[v]) * self._drive.wheel_radius_m * scale
            for v, scale in zip(self._wheel_v, self._scale, strict=True)
        ]
        return Odometry(
            stamp_ns=stamp_ns, frame_id=self._drive.odometry_frame,
            x_m=self._x_m, y_m=self._y_m, yaw_rad=self._yaw_rad,
            linear_x_m_s=(speeds[0] + speeds[1]) / 2,
            angular_z_rad_s=(speeds[1] - speeds[0]) / self._drive.wheel_separation_m,
        )

    @property
    def pose(self) -> Pose:
        """The true pose."""
        x, y, _, w, i, j, k = (float(v) for v in self._data.qpos[self._free_q:self._free_q + 7])
        return Pose(x, y, math.atan2(2 * (w * k + i * j), 1 - 2 * (j * j + k * k)))

    @property
    def velocity(self) -> Velocity:
        """The true velocity, ahead and to the left."""
        yaw = self.pose.yaw_rad
        v = self._free_v
        ahead = self._data.qvel[v] * math.cos(yaw) + self._data.qvel[v + 1] * math.sin(yaw)
        return Velocity(float(ahead), float(self._data.qvel[v + 5]))

    def place(self, pose: Pose) -> None:
        """Put the robot elsewhere, with the height and tilt that the file gives it."""
        now = self.pose
        q = self._free_q
        self._data.qpos[q:q + 2] = (pose.x_m, pose.y_m)
        half = (pose.yaw_rad - now.yaw_rad) / 2
        turned = np.zeros(4)
        mujoco.mju_mulQuat(
            turned, np.array([math.cos(half), 0, 0, math.sin(half)]), self._data.qpos[q + 3:q + 7])
        self._data.qpos[q + 3:q + 7] = turned


def _limited(now: float, wanted: float, limits: Limits, dt_s: float) -> float:
    wanted = min(max(wanted, limits.min_velocity), limits.max_velocity)
    return min(max(wanted, now + limits.min_acceleration * dt_s),
               now + limits.max_acceleration * dt_s)
