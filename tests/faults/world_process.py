"""Sensors, a base with a time-out, an e-stop, and an operator's hands, all of which take orders.

An order is a line of JSON on stdin, its answer one on stdout with the same `id`. The base does
what diff_drive_controller does: the newest command, and a stop when it is older than 0.5 s. What
it really drove is one row of 24 bytes in PATH for each of its ticks. `world_process PATH [sim]
[urgent]`: a real base keeps its time-out beside busy neighbours too, so with `urgent` its loop is
SCHED_FIFO where that is permitted, below the gate.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import sys
from typing import Any

import rclpy
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import LaserScan
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from smallm_ros import steady
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.process import schedule_fifo
from smallm_ros.ros import qos
from smallm_ros.ros.take import subscribe, take_all

ROW = struct.Struct('<qdd')
TICK_NS = 10 * MS
SENSOR_NS = 50 * MS
BASE_TIMEOUT_NS = SECOND // 2
BEAMS = 360
WELL: dict[str, Any] = {
    'values': 'well', 'stamp': 'now', 'offset_ns': 0, 'times': 1,
    # /clock
    'factor': 1.0, 'jump_ns': 0, 'other_ns': 0,
    # /estop
    'estop': 'released',
}
"""What an order may set, for `scan`, `odom` or (without `of`) the world."""


class World:
    """Everything around the robot's software."""

    def __init__(self, truth: str, simulated: bool) -> None:
        self._simulated = simulated
        self._node = rclpy.create_node('world')
        # What is spun must not be what is polled: an executor would take its messages.
        self._hands = rclpy.create_node('hands')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._hands)
        create = self._node.create_publisher
        self._publishers = {'scan': create(LaserScan, '/scan', 1),
                            'odom': create(Odometry, '/odom', 1)}
        self._clock = create(Clock, '/clock', 1) if simulated else None
        self._estop = create(Bool, '/estop', 10)
        self._ear = subscribe(self._node, TwistStamped, '/cmd_vel', qos.CMD_VEL)
        self._truth = os.open(truth, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._how = {'scan': dict(WELL), 'odom': dict(WELL), '': dict(WELL)}
        self._kept: dict[str, Any] = {}
        self._waiting: list[tuple[int, Any, int]] = []
        self._clients: dict[str, Any] = {}
        self._ros_ns = 5 * SECOND
        self._sensed_ns = 0
        self._velocity = (0.0, 0.0)
        self._told_ns = 0
        self._pose = [0.0, 0.0, 0.0]
        self._flap = False
        self._count = {'scan': 0, 'odom': 0, 'estop': 0}
        self._words = b''
        os.set_blocking(0, False)

    def run(self) -> None:
        """Tick until stdin ends."""
        due_ns = steady.now_ns()
        before_ns = due_ns
        while self._orders():
            steady.sleep_until(due_ns)
            now_ns = steady.now_ns()
            self._tick(now_ns, now_ns - before_ns)
            before_ns = now_ns
            due_ns = max(due_ns + TICK_NS, steady.now_ns() - TICK_NS)

    def _tick(self, now_ns: int, dt_ns: int) -> None:
        for message in take_all(self._ear):
            self._velocity = (message.twist.linear.x, message.twist.angular.z)
            self._told_ns = now_ns
        if now_ns - self._told_ns > BASE_TIMEOUT_NS:
            self._velocity = (0.0, 0.0)
        v, w = self._velocity
        self._pose[2] += w * dt_ns / SECOND
        self._pose[0] += v * math.cos(self._pose[2]) * dt_ns / SECOND
        self._pose[1] += v * math.sin(self._pose[2]) * dt_ns / SECOND
        os.write(self._truth, ROW.pack(now_ns, v, w))
        how = self._how['']
        if self._clock is None:
            self._ros_ns = steady.wall_ns()
        elif how['factor'] is not None:
            self._ros_ns += round(dt_ns * how['factor']) + how['jump_ns']
            how['jump_ns'] = 0
            self._tell_time(self._ros_ns)
            if how['other_ns']:
                self._tell_time(self._ros_ns + how['other_ns'])
        sensed_on_ns = now_ns if self._clock is None else self._ros_ns
        if abs(sensed_on_ns - self._sensed_ns) >= SENSOR_NS:
            self._sensed_ns = sensed_on_ns
            for name in ('scan', 'odom'):
                self._sense(name)
        if now_ns // (100 * MS) != (now_ns - dt_ns) // (100 * MS) or how['estop'] == 'flap':
            self._press(how['estop'])
        if self._waiting:
            self._executor.spin_once(timeout_sec=0)
            self._answer()

    def _tell_time(self, ns: int) -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(max(ns, 0), SECOND)
        assert self._clock is not None
        self._clock.publish(message)

    def _press(self, estop: str) -> None:
        self._flap = not self._flap
        if estop != 'silent':
            pressed = estop == 'pressed' or (estop == 'flap' and self._flap)
            self._estop.publish(Bool(data=pressed))
            self._count['estop'] += 1

    def _sense(self, name: str) -> None:
        how = self._how[name]
        if how['values'] == 'silent':
            return
        message = self._scan(how) if name == 'scan' else self._odometry(how)
        if how['stamp'] == 'repeat':
            message = self._kept.setdefault(name, message)
        for _ in range(how['times']):
            self._publishers[name].publish(message)
            self._count[name] += 1

    def _stamp(self, how: dict[str, Any], message: Any) -> None:
        stamp_ns = self._ros_ns + how['offset_ns']
        if how['stamp'] == 'zero':
            stamp_ns = 0
        elif how['stamp'] == 'frozen':
            stamp_ns = how.setdefault('frozen_ns', stamp_ns)
        elif how['stamp'] == 'swapped':
            # A, B, C, D come as B, A, D, C.
            how['odd'] = not how.get('odd', False)
            stamp_ns += SENSOR_NS * (1 if how['odd'] else -1)
        sec, nanosec = divmod(max(stamp_ns, 0), SECOND)
        message.header.stamp.sec, message.header.stamp.nanosec = min(sec, 2**31 - 1), nanosec

    def _scan(self, how: dict[str, Any]) -> Any:
        ranges = {'nan': [math.nan] * BEAMS, 'inf': [math.inf] * BEAMS, 'empty': [],
                  'short': [5.0] * (BEAMS // 3), 'long': [5.0] * 200_000,
                  }.get(how['values'], [5.0] * BEAMS)
        message = LaserScan(
            angle_min=-3.14159, angle_max=3.14159, angle_increment=0.0174533, range_min=0.05,
            range_max=12.0, ranges=ranges)
        message.header.frame_id = 'laser'
        self._stamp(how, message)
        return message

    def _odometry(self, how: dict[str, Any]) -> Any:
        bad = {'nan': math.nan, 'inf': math.inf}.get(how['values'])
        message = Odometry()
        message.header.frame_id, message.child_frame_id = 'odom', 'base_link'
        position, turned = message.pose.pose.position, message.pose.pose.orientation
        position.x, position.y = (self._pose[0], self._pose[1]) if bad is None else (bad, bad)
        turned.z, turned.w = math.sin(self._pose[2] / 2), math.cos(self._pose[2] / 2)
        if how['values'] == 'empty':
            turned.z = turned.w = 0.0
        message.twist.twist.linear.x, message.twist.twist.angular.z = (
            self._velocity if bad is None else (bad, bad))
        self._stamp(how, message)
        return message

    # --- orders -----------------------------------------------------------------------------

    def _orders(self) -> bool:
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        *lines, self._words = (self._words + data).split(b'\n')
        for line in lines:
            self._obey(json.loads(line))
        return True

    def _obey(self, order: dict[str, Any]) -> None:
        if 'call' in order:
            self._ask(order['id'], f'/watchdog_node/{order["call"]}', Trigger, Trigger.Request())
            return
        if 'parameters' in order:
            request = SetParameters.Request(parameters=[
                Parameter(name, value=value).to_parameter_msg()
                for name, value in order['parameters'].items()])
            self._ask(order['id'], f'/{order["node"]}/set_parameters', SetParameters, request)
            return
        if 'well' in order:
            for how in self._how.values():
                how.clear()
                how.update(WELL)
            self._kept.clear()
        for name in order.get('of', ['']):
            self._how[name].update(order.get('set', {}))
        if 'estop' in order.get('set', {}):
            self._press(order['set']['estop'])
        self._say({'id': order['id'], 'at_ns': steady.now_ns(), 'count': self._count})

    def _ask(self, number: int, name: str, kind: type, request: Any) -> None:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = self._hands.create_client(kind, name)
        if not client.service_is_ready():
            self._say({'id': number, 'ok': False, 'why': f'no service {name}'})
            return
        self._waiting.append((number, client.call_async(request), steady.now_ns()))

    def _answer(self) -> None:
        for each in list(self._waiting):
            number, future, asked_ns = each
            if not future.done():
                # A server that was killed is in the graph until its lease ends.
                if steady.now_ns() - asked_ns > SECOND:
                    self._waiting.remove(each)
                    self._say({'id': number, 'ok': False, 'why': 'no service answers'})
                continue
            self._waiting.remove(each)
            response = future.result()
            if isinstance(response, Trigger.Response):
                ok, why = response.success, response.message
            else:
                ok = all(result.successful for result in response.results)
                why = '; '.join(result.reason for result in response.results)
            self._say({'id': number, 'ok': ok, 'why': why})

    def _say(self, words: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(words) + '\n')
        sys.stdout.flush()


def main() -> None:
    """Run until stdin is closed."""
    rclpy.init()
    if 'urgent' in sys.argv:
        with contextlib.suppress(PermissionError):
            schedule_fifo(20)
    World(sys.argv[1], 'sim' in sys.argv[2:]).run()


if __name__ == '__main__':
    main()
