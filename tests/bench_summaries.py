"""What a tick's summaries cost, beside plain loops: `python -m tests.bench_summaries`.

One tick is what the policy node does at it: the newest message of each sensor becomes its fields,
the readings an observation, the observation the prompt's segments. An IMU of 200 Hz costs a tick
no more than its newest message.
"""

from __future__ import annotations

import array
import gc
import math
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from smallm_ros.core.observation import Received
from smallm_ros.core.observe import observe
from smallm_ros.core.policy import Policy, parse_policy
from smallm_ros.core.prompt import segments
from smallm_ros.core.sensor import Scene
from smallm_ros.ros.convert import fields_of
from tests.fakes.recordings import POLICY
from tests.fakes.summaries import sensor

NOW_NS, ROS_NS = 10**12, 1_700_000_000 * 10**9
POINTS = 65_536
MORE = b"""\
  imu: {type: sensor_msgs/msg/Imu, topic: /imu, rate_hz: 200, stale_after_ms: 1000}
  battery: {type: sensor_msgs/msg/BatteryState, topic: /battery, rate_hz: 1, stale_after_ms: 5000}
  odom: {"""


def policy() -> Policy:
    """Return one with the four sensors."""
    return parse_policy(POLICY.replace(b'  odom: {', MORE), 'summaries.yaml')


def messages(beams: int = 360) -> dict[str, SimpleNamespace]:
    """Return a message of each sensor, its arrays as rclpy has them."""
    stamp = SimpleNamespace(sec=ROS_NS // 10**9, nanosec=0)
    header = SimpleNamespace(stamp=stamp, frame_id='base')
    zero = SimpleNamespace(x=0.1, y=0.0, z=0.0)
    turn = SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
    random = np.random.default_rng(1)
    nine = [0.0] * 9
    return {
        'scan': SimpleNamespace(
            header=header, angle_min=-math.pi, angle_increment=2 * math.pi / beams, range_min=0.1,
            range_max=10.0, ranges=array.array('f', random.uniform(0.2, 12.0, beams))),
        'odom': SimpleNamespace(
            header=header, pose=SimpleNamespace(
                pose=SimpleNamespace(position=zero, orientation=turn)),
            twist=SimpleNamespace(twist=SimpleNamespace(linear=zero, angular=zero))),
        'imu': SimpleNamespace(
            header=header, orientation=turn, orientation_covariance=nine, angular_velocity=zero,
            angular_velocity_covariance=nine, linear_acceleration_covariance=nine,
            linear_acceleration=SimpleNamespace(x=0.0, y=0.0, z=9.8)),
        'battery': SimpleNamespace(
            header=header, percentage=0.73, voltage=24.0, present=True, power_supply_status=2,
            power_supply_health=1),
    }


def tick(of: Policy, heard: dict[str, SimpleNamespace]) -> str:
    """Return the prompt's text of one tick."""
    newest = {
        name: Received(name, fields_of(of.sensors[name], msg), NOW_NS)
        for name, msg in heard.items()
    }
    return ''.join(s.text for s in segments(of, observe(of, newest, NOW_NS, ROS_NS)))


def plain_scan(of: Policy, msg: SimpleNamespace) -> list[float]:
    """Return the nearest distance of each sector by a loop over the beams."""
    declared: Any = of.sensors['scan']
    nearest = [math.inf] * len(declared.sectors)
    for index, metres in enumerate(msg.ranges):
        if not msg.range_min <= metres <= msg.range_max:
            continue
        bearing = msg.angle_min + index * msg.angle_increment
        degrees = math.degrees(math.atan2(math.sin(bearing), math.cos(bearing)))
        for at, sector in enumerate(declared.sectors):
            if sector.from_deg <= degrees < sector.to_deg:
                nearest[at] = min(nearest[at], metres)
    return nearest


def cloud(points: int = POINTS) -> SimpleNamespace:
    """Return a cloud of a lidar of 16 bytes a point."""
    random = np.random.default_rng(1)
    data = np.zeros((points, 4), np.float32)
    data[:, :2] = random.uniform(-10, 10, (points, 2))
    data[:, 2] = random.uniform(0.1, 2.0, points)  # no height saves work
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=1, nanosec=0), frame_id='lidar'),
        height=1, width=points, point_step=16, row_step=16 * points, is_bigendian=False,
        is_dense=True, data=array.array('B', data.tobytes()), fields=[
            SimpleNamespace(name=name, offset=4 * at, datatype=7, count=1)
            for at, name in enumerate('xyz')])


def plain_cloud(declared: Any, msg: SimpleNamespace) -> list[float]:
    """Return the nearest distance of each sector by a loop over the points."""
    import struct

    nearest = [math.inf] * len(declared.sectors)
    for x, y, z, _ in struct.iter_unpack('<4f', msg.data):
        if not declared.from_z_m <= z <= declared.to_z_m:
            continue
        degrees, metres = math.degrees(math.atan2(y, x)), math.hypot(x, y)
        for at, sector in enumerate(declared.sectors):
            if sector.from_deg <= degrees < sector.to_deg:
                nearest[at] = min(nearest[at], metres)
    return nearest


def summarised(declared: Any, msg: SimpleNamespace) -> str:
    """Return what is said of a cloud."""
    text: str = declared.text(fields_of(declared, msg), Scene())
    return text


def times_ms(job: Callable[[], object], count: int) -> tuple[float, float, float]:
    """Return p50, p99 and maximum of so many runs, in milliseconds."""
    job()
    gc.collect()
    taken = []
    for _ in range(count):
        began_ns = time.perf_counter_ns()
        job()
        taken.append((time.perf_counter_ns() - began_ns) / 1e6)
    p50, p99 = np.percentile(taken, (50, 99))
    return float(p50), float(p99), max(taken)


def main() -> int:
    """Print a table."""
    of, heard = policy(), messages()
    declared, points = sensor('sensor_msgs/msg/PointCloud2'), cloud()
    print(f'{"":52} p50 ms  p99 ms  max ms')
    rows: list[tuple[str, Callable[[], object], int]] = [
        ('a tick: scan of 360, odometry, IMU, battery, prompt', lambda: tick(of, heard), 5000),
        ('its scan by a plain loop', lambda: plain_scan(of, heard['scan']), 1000),
        (f'a cloud of {POINTS} points', lambda: summarised(declared, points), 500),
        ('the same by a plain loop', lambda: plain_cloud(declared, points), 20),
    ]
    figures = {}
    for name, job, count in rows:
        figures[name] = times_ms(job, count)
        print(f'{name:52}' + ''.join(f'{value:8.3f}' for value in figures[name]), flush=True)
    p50 = [value[0] for value in figures.values()]
    print(f'plain loop / ours: scan alone against the whole tick {p50[1] / p50[0]:.1f}, cloud '
          f'{p50[3] / p50[2]:.0f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
