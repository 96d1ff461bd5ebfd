"""Observations over which the engine measures the model's bias (`policy.Prior`).

Either drawn from the policy's own summary space, by seed: what the robot might see. They pass
through the real summarisers, so their texts are those that the model will read. Or free of
content: of the same form, and what stands for the values says nothing.
"""

from __future__ import annotations

import math

import numpy as np

from smallm_ros.core.observation import (
    Fields,
    Goal,
    Observation,
    Odometry,
    Quality,
    Reading,
    Received,
    Scan,
)
from smallm_ros.core.policy import OdometrySensor, Policy, ScanSensor, Sensor
from smallm_ros.core.summary import observe

CONTENT_FREE = ('N/A', '[MASK]', '')
"""What stands for a value that says nothing: Zhao et al., 2021, arXiv:2102.09690, section 5."""
_NEAREST_M = 0.15


def draw(policy: Policy, seed: int, count: int) -> tuple[Observation, ...]:
    """Return `count` observations in which every sensor is fresh; equal for equal seeds."""
    random = np.random.default_rng(seed)
    return tuple(
        observe(
            policy,
            {name: Received(name, _fields(sensor, random), 0, 0)
             for name, sensor in policy.sensors.items()},
            now_ns=0, ros_now_ns=0,
        )
        for _ in range(count)
    )


def content_free(policy: Policy) -> tuple[Observation, ...]:
    """Return the observations in which every sensor says `N/A`, `[MASK]`, nothing."""
    return tuple(
        Observation(0, 0, tuple(
            Reading(
                sensor=name, text=f'{name}: {nothing}'.rstrip(), priority=sensor.priority,
                required=sensor.required, quality=Quality.FRESH, arrival_ns=0, arrival_age_ns=0,
                stamp_ns=0, stamp_age_ns=0,
            )
            for name, sensor in policy.sensors.items()
        ))
        for nothing in CONTENT_FREE
    )


def _fields(sensor: Sensor, random: np.random.Generator) -> Fields:
    match sensor:
        case ScanSensor():
            return _scan(sensor, random)
        case OdometrySensor():
            return Odometry(0, 'odom', 0.0, 0.0, 0.0, float(random.uniform(0.0, 0.5)),
                            float(random.choice([-0.5, 0.0, 0.5])))
        case _:
            bearing, distance = random.uniform(-math.pi, math.pi), random.uniform(0.5, 8.0)
            return Goal(0, 'odom', float(distance * math.cos(bearing)),
                        float(distance * math.sin(bearing)), 0.0)


def _scan(sensor: ScanSensor, random: np.random.Generator) -> Scan:
    """Return a scan with one obstacle a sector, as often in one bin as in another."""
    limits = [b.below_m for b in sensor.bins]
    limits.append(max(sensor.far_m, *limits) * 1.5 if limits else sensor.far_m * 1.5)
    limits.insert(0, min(_NEAREST_M, limits[0] / 2))
    # In the middle of each degree, so that no rounding moves a beam to the next sector.
    bearing = np.arange(-179.5, 180.0, dtype=np.float32)
    ranges = np.full(bearing.size, limits[-1], np.float32)
    for sector in sensor.sectors:
        band = int(random.integers(len(limits) - 1))
        metres = random.uniform(limits[band], limits[band + 1])
        ranges[np.abs(bearing - sector.middle_deg).argmin()] = metres
    return Scan(
        stamp_ns=0, frame_id='', angle_min_rad=math.radians(-179.5 - sensor.mount_yaw_deg),
        angle_increment_rad=math.radians(1.0), range_min_m=0.0,
        range_max_m=float(limits[-1]) * 2, ranges_m=ranges,
    )
