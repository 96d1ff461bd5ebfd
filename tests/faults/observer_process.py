"""Listens to what is published and writes down when it came: `observer_process PATH [all]`.

One row of 24 bytes for each message: arrival (steady ns), what it was, and one number of it. It
hears the gate; with `all` everything that the gate hears too, for a soak to judge the gate by.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

import rclpy
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from sensor_msgs.msg import LaserScan
from std_msgs.msg import Bool, String

from smallm_ros import steady
from smallm_ros.core.clock import MS
from smallm_ros.ros import qos

ROW = struct.Struct('<qqd')
CMD_VEL, APPLIED, SCAN, ODOM, ESTOP, PROGRESS, MISSES, COMMAND, PASS = range(9)
"""Speed, 0, 0, 0, 0, age of the engine's progress in ms, misses so far, 0, longest pass in ms."""


def main() -> None:
    """Listen until SIGTERM."""
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    rclpy.init()
    node = rclpy.create_node('observer')

    def velocity(message: Any) -> None:
        os.write(fd, ROW.pack(steady.now_ns(), CMD_VEL, message.twist.linear.x))

    def applied(_: Any) -> None:
        os.write(fd, ROW.pack(steady.now_ns(), APPLIED, 0.0))

    node.create_subscription(TwistStamped, '/cmd_vel', velocity, 10)
    node.create_subscription(String, '/watchdog_node/applied', applied, qos.APPLIED)
    if 'all' in sys.argv:
        def note(what: int) -> Callable[[Any], None]:
            return lambda _: os.write(fd, ROW.pack(steady.now_ns(), what, 0.0)) and None

        def status(message: Any) -> None:
            now_ns, said = steady.now_ns(), json.loads(message.data)
            age_ms = (now_ns - said['progress_ns']) / MS
            os.write(fd, ROW.pack(now_ns, PROGRESS, age_ms))
            os.write(fd, ROW.pack(now_ns, MISSES, float(said['misses'])))

        def decision(message: Any) -> None:
            taken = json.loads(message.data).get('decision') or {}
            passes_ns = taken.get('timings', {}).get('passes_ns', [])
            os.write(fd, ROW.pack(steady.now_ns(), PASS, max(passes_ns, default=0) / MS))

        for kind, topic, hear, profile in (
            (LaserScan, '/scan', note(SCAN), qos.SENSOR),
            (Odometry, '/odom', note(ODOM), qos.SENSOR),
            (Bool, '/estop', note(ESTOP), qos.SENSOR),
            (String, '/policy_node/status', status, qos.SENSOR),
            (String, '/policy_node/command', note(COMMAND), qos.SENSOR),
            (String, '/policy_node/decision', decision, qos.SENSOR),
        ):
            node.create_subscription(kind, topic, hear, profile)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass


if __name__ == '__main__':
    main()
