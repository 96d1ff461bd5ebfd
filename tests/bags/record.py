"""Record `tests/bags/room`: 12 s of the simulated robot in config/worlds/room.sdf, as MCAP.

    PYTHONPATH=. python tests/bags/record.py

No ROS: the episode steps in simulated time and rosbags writes the file, whose stamps begin at
2023-11-14 22:13:20 UTC. The robot is driven by the `follow_gap` baseline through the envelope, so
that it passes obstacles without touching one. Each scan is 120 of the lidar's 360 beams and comes
five times a second, odometry ten times: 135 kB. The same code gives the same file.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from smallm_ros.core.action import STOP
from smallm_ros.core.baseline import Senses, follow_gap
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.envelope import STANDING, Seen, Surroundings, Told, limit
from smallm_ros.core.policy import load_policy
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.scan import Scan, ScanSensor
from smallm_ros.sim.episode import Episode
from smallm_ros.sim.world import load_world

ROOT = Path(__file__).resolve().parents[2]
BAG = Path(__file__).with_name('room')
BEGIN_NS = 1_700_000_000 * SECOND
SECONDS = 12
SEED = 1
BEAM_STEP = 3


def main() -> None:
    """Drive, and write the bag anew."""
    policy = load_policy(ROOT / 'config' / 'policies' / 'explorer.yaml')
    sensor = policy.sensors['scan']
    assert isinstance(sensor, ScanSensor)
    episode = Episode(load_world(ROOT / 'config' / 'worlds' / 'room.sdf'), SEED)
    store = get_typestore(Stores.ROS2_KILTED)
    shutil.rmtree(BAG, ignore_errors=True)
    with Writer(BAG, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        scans = writer.add_connection('/scan', 'sensor_msgs/msg/LaserScan', typestore=store)
        odoms = writer.add_connection('/odom', 'nav_msgs/msg/Odometry', typestore=store)
        velocity = STOP
        for _ in range(10 * SECONDS):
            at_ns = BEGIN_NS + episode.now_ns
            scan, odometry = episode.scan(), episode.odometry()
            seen = (Seen(scan, sensor, STANDING),)
            told = Told(velocity, 0.0, 0.1)
            asked = follow_gap(policy, Senses(Surroundings.of(seen, policy), velocity, 0.1))
            assert asked is not None
            velocity = limit(asked, told, seen, policy).velocity
            if episode.now_ns % (200 * MS) == 0:
                message = laser_scan(store.types, scan, at_ns)
                writer.write(scans, at_ns, store.serialize_cdr(message, scans.msgtype))
            message = wheel_odometry(store.types, odometry, at_ns)
            writer.write(odoms, at_ns, store.serialize_cdr(message, odoms.msgtype))
            episode.command(velocity, episode.now_ns)
            episode.step(100 * MS)
    size = sum(file.stat().st_size for file in BAG.iterdir())
    print(f'{BAG}: {size} bytes, {episode.distance_m:.2f} m, '
          f'{episode.collision_count} collisions')


def header(types: Any, at_ns: int, frame_id: str) -> Any:
    """Return a std_msgs/Header."""
    stamp = types['builtin_interfaces/msg/Time'](*divmod(at_ns, SECOND))
    return types['std_msgs/msg/Header'](stamp, frame_id)


def laser_scan(types: Any, scan: Scan, at_ns: int) -> Any:
    """Return a sensor_msgs/LaserScan of every third beam, to the millimetre."""
    ranges = np.round(scan.ranges_m[::BEAM_STEP], 3).astype(np.float32)
    step = scan.angle_increment_rad * BEAM_STEP
    return types['sensor_msgs/msg/LaserScan'](
        header(types, at_ns, scan.frame_id), scan.angle_min_rad,
        scan.angle_min_rad + step * (len(ranges) - 1), step, 0.0, 0.2, scan.range_min_m,
        scan.range_max_m, ranges, np.zeros(0, np.float32),
    )


def wheel_odometry(types: Any, odometry: Odometry, at_ns: int) -> Any:
    """Return a nav_msgs/Odometry without covariances."""
    vector, point = types['geometry_msgs/msg/Vector3'], types['geometry_msgs/msg/Point']
    half = odometry.yaw_rad / 2
    rotation = types['geometry_msgs/msg/Quaternion'](0.0, 0.0, math.sin(half), math.cos(half))
    pose = types['geometry_msgs/msg/Pose'](point(odometry.x_m, odometry.y_m, 0.0), rotation)
    twist = types['geometry_msgs/msg/Twist'](
        vector(odometry.linear_x_m_s, 0.0, 0.0), vector(0.0, 0.0, odometry.angular_z_rad_s)
    )
    return types['nav_msgs/msg/Odometry'](
        header(types, at_ns, odometry.frame_id), 'base_link',
        types['geometry_msgs/msg/PoseWithCovariance'](pose, np.zeros(36)),
        types['geometry_msgs/msg/TwistWithCovariance'](twist, np.zeros(36)),
    )


if __name__ == '__main__':
    main()
