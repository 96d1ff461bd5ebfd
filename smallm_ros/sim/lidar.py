"""The planar lidar: one ray a beam against the collision shapes, the robot's own left out.

A return beyond the farthest range is `inf`, one nearer than the least is `-inf` (REP-117), a beam
that fails is NaN. Noise is drawn for every beam of every scan, so that what one beam hits does not
change what the next one draws.
"""

from __future__ import annotations

import math

import mujoco
import numpy as np

from smallm_ros.core.summary.scan import Scan
from smallm_ros.sim.world import ROBOT_GROUP, World

_NO_NORMALS = (None,) if 'normal:' in (mujoco.mj_multiRay.__doc__ or '') else ()
"""Later releases of MuJoCo 3 gave mj_multiRay one more output, the normals of what was hit."""


class Lidar:
    """The robot's lidar in one MuJoCo simulation."""

    def __init__(
        self, world: World, model: mujoco.MjModel, data: mujoco.MjData,
        random: np.random.Generator, noise: float, dropout: float,
    ) -> None:
        self._sensor = world.lidar
        self._model = model
        self._data = data
        self._random = random
        self._noise = noise
        self._dropout = dropout
        self._site = int(model.site(world.lidar.site).id)
        angles = world.lidar.angle_min_rad + (
            world.lidar.angle_increment_rad * np.arange(world.lidar.beams))
        self._beams = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1)
        self._groups = np.ones(6, dtype=np.uint8)
        self._groups[ROBOT_GROUP] = 0
        self._hit = np.zeros(world.lidar.beams, dtype=np.int32)
        self._distance = np.zeros(world.lidar.beams)

    def scan(self, stamp_ns: int) -> Scan:
        """Return a scan of the world as it stands now."""
        sensor = self._sensor
        mujoco.mj_kinematics(self._model, self._data)
        rays = self._beams @ self._data.site_xmat[self._site].reshape(3, 3).T
        # The cutoff leaves room for noise that carries a far return back into range.
        cutoff = sensor.range_max_m + 6 * sensor.noise_stddev_m + abs(sensor.noise_mean_m)
        mujoco.mj_multiRay(
            self._model, self._data, self._data.site_xpos[self._site], rays.ravel(), self._groups,
            True, -1, self._hit, self._distance, *_NO_NORMALS, sensor.beams, cutoff)
        noise = sensor.noise_mean_m + (
            sensor.noise_stddev_m * self._random.standard_normal(sensor.beams))
        failed = self._random.random(sensor.beams) < self._dropout
        ranges = np.where(self._hit < 0, math.inf, self._distance + self._noise * noise)
        ranges[ranges > sensor.range_max_m] = math.inf
        ranges[ranges < sensor.range_min_m] = -math.inf
        ranges[failed] = math.nan
        return Scan(
            stamp_ns=stamp_ns, frame_id=sensor.frame_id, angle_min_rad=sensor.angle_min_rad,
            angle_increment_rad=sensor.angle_increment_rad, range_min_m=sensor.range_min_m,
            range_max_m=sensor.range_max_m, ranges_m=ranges.astype(np.float32),
        )
