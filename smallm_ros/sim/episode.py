"""One run of a robot in a world, in simulated time alone: no ROS, no real clock, no threads.

The same world, seed and commands at the same times give the same run, bit for bit, on one machine.
A collision is any touch between the robot and something that is not a floor; touches of the same
thing less than half a second apart are one collision.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import mujoco
import numpy as np

from smallm_ros.core.action import Velocity
from smallm_ros.core.clock import MS
from smallm_ros.core.errors import WorldError
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.scan import Scan
from smallm_ros.sim.lidar import Lidar
from smallm_ros.sim.robot import Pose, Robot
from smallm_ros.sim.world import ROBOT_GROUP, World

SAME_TOUCH_NS = 500 * MS
PATH_PERIOD_NS = 100 * MS
PATH_POINTS = 36_000
"""An hour; the oldest points go first, so that a simulator can run for days."""
COLLISIONS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Collision:
    """The first touch of an obstacle."""

    time_ns: int
    obstacle: str
    """Name of its model."""
    x_m: float
    y_m: float
    speed_m_s: float
    """How fast the robot was, backwards too."""


class Episode:
    """A robot in a world from time 0; `noise` scales what the file and the base say, 0 is none."""

    def __init__(
        self, world: World, seed: int, *, noise: float = 1.0, dropout: float = 0.0,
        start: Pose | None = None,
    ) -> None:
        self.world = world
        try:
            model = mujoco.MjModel.from_xml_string(world.mjcf)
        except ValueError as err:
            raise WorldError(f'{world.source}: MuJoCo refuses it: '
                             f'{" ".join(str(err).split())}') from err
        self._model = model
        self._data = mujoco.MjData(model)
        lidar_random, base_random = (
            np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
        self._robot = Robot(world, model, self._data, base_random, noise)
        self._lidar = Lidar(world, model, self._data, lidar_random, noise, dropout)
        if start is not None:
            self._robot.place(start)
        self._is_robot = np.asarray(model.geom_group == ROBOT_GROUP)
        self._is_floor = np.zeros(model.ngeom, dtype=bool)
        for name in world.floors:
            self._is_floor[model.geom(name).id] = True
        self._owner = [model.geom(i).name.split('::', 1)[0] for i in range(model.ngeom)]
        self._touched_ns: dict[str, int] = {}
        self._now_ns = 0
        self.collision_count = 0
        self.collisions: deque[Collision] = deque(maxlen=COLLISIONS_KEPT)
        self.distance_m = 0.0
        self.path: deque[tuple[int, Pose]] = deque([(0, self.pose)], maxlen=PATH_POINTS)

    @property
    def now_ns(self) -> int:
        """Simulated time since the start."""
        return self._now_ns

    @property
    def pose(self) -> Pose:
        """The robot's true pose in the world's frame."""
        return self._robot.pose

    @property
    def velocity(self) -> Velocity:
        """The robot's true velocity."""
        return self._robot.velocity

    def command(self, velocity: Velocity, now_ns: int) -> None:
        """Give the base a velocity, received at the simulated time `now_ns`."""
        self._robot.command(velocity, now_ns)

    def scan(self) -> Scan:
        """Return the lidar's scan of this instant; each call draws new noise."""
        return self._lidar.scan(self._now_ns)

    def odometry(self) -> Odometry:
        """Return the wheels' odometry of this instant."""
        return self._robot.odometry(self._now_ns)

    def step(self, dt_ns: int) -> None:
        """Go on by `dt_ns`, a multiple of the world's step; ValueError when it is not."""
        step_ns = self.world.step_ns
        if dt_ns <= 0 or dt_ns % step_ns:
            raise ValueError(f'dt_ns {dt_ns} is no multiple of the world\'s step, {step_ns} ns')
        for _ in range(dt_ns // step_ns):
            before = self._robot.pose
            self._robot.drive(self._now_ns, step_ns)
            mujoco.mj_step(self._model, self._data)
            self._now_ns += step_ns
            self._robot.measure()
            after = self._robot.pose
            self.distance_m += math.hypot(after.x_m - before.x_m, after.y_m - before.y_m)
            self._note_touches()
            if self._now_ns - self.path[-1][0] >= PATH_PERIOD_NS:
                self.path.append((self._now_ns, after))

    def _note_touches(self) -> None:
        pairs = self._data.contact.geom
        mine = self._is_robot[pairs]
        touching = mine.any(axis=1) & ~(mine | self._is_floor[pairs]).all(axis=1)
        if not touching.any():
            return
        for index in np.flatnonzero(touching):
            first, second = (int(g) for g in pairs[index])
            name = self._owner[second if self._is_robot[first] else first]
            last_ns = self._touched_ns.get(name)
            self._touched_ns[name] = self._now_ns
            if last_ns is not None and self._now_ns - last_ns < SAME_TOUCH_NS:
                continue
            x, y, _ = (float(v) for v in self._data.contact.pos[index])
            speed = abs(self.velocity.linear_x_m_s)
            self.collision_count += 1
            self.collisions.append(Collision(self._now_ns, name, x, y, speed))
