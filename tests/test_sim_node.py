"""sim_node as a process over DDS: its topics, its stamps, its obedience, its end."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('mujoco')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import LaserScan
from std_msgs.msg import String

from smallm_ros import steady
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.ros.convert import motion, space
from smallm_ros.ros.convert.common import stamp_ns

pytestmark = pytest.mark.ros

ROOT = Path(__file__).parents[1]
LIMIT_S = 20.0
BEST_EFFORT = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)


def words(**parameters: object) -> list[str]:
    given = [word for name, value in parameters.items() for word in ('-p', f'{name}:={value}')]
    return [sys.executable, '-m', 'smallm_ros.sim.sim_node', '--ros-args', *given]


def environment() -> dict[str, str]:
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}


class Listener:
    """Everything that the simulator says, and a base's driver that talks while one waits."""

    def __init__(self, twist: type = TwistStamped) -> None:
        os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('listener', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.scans: list[LaserScan] = []
        self.odometry: list[Odometry] = []
        self.clocks_ns: list[int] = []
        self.truths: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []
        self.diagnostics: list[DiagnosticArray] = []
        self.command: tuple[float, float] | None = None
        self._twist = twist
        self._publisher = self.node.create_publisher(twist, '/cmd_vel', 1)
        self._sent_ns = 0
        for kind, topic, keep, qos in (
            (LaserScan, '/scan', self.scans.append, BEST_EFFORT),
            (Odometry, '/odom', self.odometry.append, 100),
            (Clock, '/clock', lambda m: self.clocks_ns.append(stamp_ns(m.clock)),
             BEST_EFFORT),
            (String, '/sim_node/truth', lambda m: self.truths.append(json.loads(m.data)), 100),
            (String, '/sim_node/state', lambda m: self.states.append(json.loads(m.data)), 100),
            (DiagnosticArray, '/diagnostics', self.diagnostics.append, 100),
        ):
            self.node.create_subscription(kind, topic, keep, qos)

    def wait(self, until: Callable[[], object], what: str) -> None:
        """Listen until something holds; fail by name when it never does."""
        end_ns = steady.now_ns() + int(LIMIT_S * SECOND)
        while not until():
            now_ns = steady.now_ns()
            assert now_ns < end_ns, f'never: {what}; last truth {self.truths[-1:]}'
            if self.command is not None and now_ns - self._sent_ns > 50 * MS:
                self._sent_ns = now_ns
                self._send(*self.command)
            self.executor.spin_once(timeout_sec=0.01)

    def _send(self, linear: float, angular: float) -> None:
        message = self._twist()
        twist = message if isinstance(message, Twist) else message.twist
        twist.linear.x, twist.angular.z = linear, angular
        self._publisher.publish(message)

    @property
    def truth(self) -> dict[str, Any]:
        return self.truths[-1]

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@contextlib.contextmanager
def simulation(
    twist: type = TwistStamped, **parameters: object,
) -> Iterator[tuple[Listener, subprocess.Popen[str]]]:
    """Run a simulator with someone who hears it; both have ended afterwards."""
    listener = Listener(twist)
    child = subprocess.Popen(words(**parameters), env=environment(), text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        listener.wait(lambda: listener.truths and listener.states, 'a first word')
        yield listener, child
    finally:
        listener.close()
        child.terminate()
        try:
            child.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()


@pytest.fixture(scope='class')
def corridor() -> Iterator[tuple[Listener, subprocess.Popen[str]]]:
    with simulation(world='corridor', seed=3) as pair:
        yield pair


class TestOneRun:
    """One simulator for the tests that only listen or drive; it ends before the next begins."""

    def test_the_topics_carry_simulated_time_at_their_rates(
        self, corridor: tuple[Listener, subprocess.Popen[str]],
    ) -> None:
        listener, _ = corridor
        listener.wait(lambda: len(listener.scans) >= 15 and len(listener.odometry) >= 75
                      and len(listener.truths) >= 15, 'fifteen scans')
        for stamps_ns, period_ns in (
            (listener.clocks_ns, 10 * MS),
            ([stamp_ns(m.header.stamp) for m in listener.odometry], 20 * MS),
            ([stamp_ns(m.header.stamp) for m in listener.scans], 100 * MS),
            ([truth['sim_time_ns'] for truth in listener.truths], 100 * MS),
        ):
            steps = np.diff(stamps_ns)
            # A busy machine may lose a message; it cannot make a period shorter or crooked.
            assert (steps > 0).all() and (steps % period_ns == 0).all()
            assert np.median(steps) == period_ns

    def test_the_scan_is_that_of_the_world_and_fits_our_own_reader(
        self, corridor: tuple[Listener, subprocess.Popen[str]],
    ) -> None:
        listener, _ = corridor
        message = listener.scans[-1]
        scan = space.scan(message, None)
        assert scan.ranges_m.shape == (360,)
        assert scan.frame_id == 'lidar_link'
        assert (scan.range_min_m, scan.range_max_m) == pytest.approx((0.12, 8.0))
        assert scan.ranges_m[180] == pytest.approx(7.0, abs=0.06)
        assert scan.ranges_m[270] == pytest.approx(1.0, abs=0.06)
        assert message.scan_time == pytest.approx(0.1)
        last = message.angle_min + 359 * message.angle_increment
        assert message.angle_max == pytest.approx(last, abs=1e-4)
        odometry = motion.odometry(listener.odometry[-1], None)
        assert (odometry.x_m, odometry.y_m, odometry.yaw_rad) == pytest.approx((0, 0, 0), abs=0.01)
        assert odometry.frame_id == 'odom'
        assert listener.odometry[-1].child_frame_id == 'base_link'

    def test_it_drives_while_told_to_and_stops_when_nobody_tells_it(
        self, corridor: tuple[Listener, subprocess.Popen[str]],
    ) -> None:
        listener, _ = corridor
        start = listener.truth
        listener.command = (0.4, 0.0)
        listener.wait(lambda: listener.truth['x_m'] > start['x_m'] + 0.3
                      and abs(listener.truth['linear_x_m_s'] - 0.4) < 0.02, 'driving at 0.4 m/s')
        listener.command = None
        listener.wait(lambda: abs(listener.truth['linear_x_m_s']) < 1e-3, 'standing still')
        assert listener.truth['collisions'] == 0
        # It went on for at most its own time-out, the ramp and what was under way.
        assert listener.truth['distance_m'] < 1.5
        seen = listener.odometry[-1].pose.pose.position.x
        assert seen == pytest.approx(listener.truth['x_m'] - start['x_m'], abs=0.05)

    def test_commands_that_are_no_numbers_are_counted_and_move_nothing(
        self, corridor: tuple[Listener, subprocess.Popen[str]],
    ) -> None:
        listener, _ = corridor
        place = listener.truth['x_m']
        listener.command = (math.nan, math.inf)
        listener.wait(lambda: listener.states[-1]['commands_refused'] >= 3, 'three refused')
        listener.command = None
        assert listener.truth['x_m'] == pytest.approx(place, abs=0.01)

    def test_it_says_how_fast_it_runs_and_costs_little(
        self, corridor: tuple[Listener, subprocess.Popen[str]],
    ) -> None:
        listener, child = corridor
        ticks_a_second = os.sysconf('SC_CLK_TCK')

        def cpu_s() -> float:
            fields = Path(f'/proc/{child.pid}/stat').read_text().rsplit(')', 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / ticks_a_second

        seen, before_s, begin_ns = len(listener.states), cpu_s(), steady.now_ns()
        listener.wait(lambda: len(listener.states) >= seen + 2, 'two more reports')
        # Measured 0.08 to 0.1 of a core on an idle machine.
        assert (cpu_s() - before_s) / ((steady.now_ns() - begin_ns) / SECOND) < 0.5
        state = listener.states[-1]
        assert state['real_time_factor_wanted'] == 1.0
        assert 0.3 < state['real_time_factor'] < 1.1
        names = {s.name for array in listener.diagnostics for s in array.status}
        assert 'sim_node: real time' in names


def test_a_twist_without_stamp_and_wall_time_will_do_too() -> None:
    parameters = {'twist_stamped': 'false', 'publish_clock': 'false', 'real_time_factor': 3}
    with simulation(Twist, world='corridor', noise=0, **parameters) as (listener, _):
        listener.command = (0.4, 0.0)
        listener.wait(lambda: listener.scans and listener.truth['x_m'] > -2.8, 'motion')
        listener.command = None
        assert listener.node.count_publishers('/clock') == 0
        age_ns = steady.wall_ns() - stamp_ns(listener.scans[-1].header.stamp)
        assert 0 <= age_ns < 5 * SECOND
        first, last = listener.truths[0], listener.truth
        passed_ns = last['steady_ns'] - first['steady_ns']
        assert (last['sim_time_ns'] - first['sim_time_ns']) / passed_ns > 1.5


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    with simulation(world='corridor') as (_, child):
        child.send_signal(number)
        output, _ = child.communicate(timeout=10)
        assert child.returncode == 0
        assert 'Traceback' not in output


@pytest.mark.parametrize(('parameters', 'code', 'line'), [
    ({'world': 'moon'}, 7, "sim_node: world 'moon': no such file"),
    ({'seed': 'x'}, 2, "sim_node: parameter seed: 'x' is no int"),
    ({'real_time_factor': '.nan'}, 2, 'sim_node: real_time_factor nan must be'),
    ({'twist_stamped': 1}, 2, 'sim_node: parameter twist_stamped: 1 is no bool'),
], ids=str)
def test_what_cannot_run_says_so_in_one_line(
    parameters: dict[str, object], code: int, line: str,
) -> None:
    done = subprocess.run(words(**parameters), env=environment(), text=True, timeout=60,
                          capture_output=True, check=False)
    assert done.returncode == code
    assert done.stderr.startswith(line) and done.stderr.count('\n') == 1
