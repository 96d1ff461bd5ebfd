"""policy_node as a process over DDS, with a real engine process whose model is a script."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('rclpy')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import LaserScan
from std_msgs.msg import String

from smallm_ros import steady
from smallm_ros.core.action import ActionSpace, Command, NodeStatus, parse_frame
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.policy import load_policy
from smallm_ros.record.reader import read_records
from smallm_ros.ros import qos

pytestmark = pytest.mark.ros

ROOT = Path(__file__).parents[1]
WANDERER = ROOT / 'tests' / 'policies' / 'wanderer.yaml'
POLICY = load_policy(WANDERER)
DELAY_MS = 60
LIMIT_S = 20.0


def environment() -> dict[str, str]:
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}


@contextlib.contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process; whatever happens, it has ended afterwards."""
    child = subprocess.Popen(
        words, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()


def engine(socket: Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    script = json.dumps([{'leaf': 1, 'delay_ns': DELAY_MS * MS}])
    return process(sys.executable, str(ROOT / 'tests' / 'fakes' / 'scripted_engine.py'),
                   str(socket), json.dumps({'retry_ns': [100 * MS]}), '--script', script)


def node(socket: Path, **parameters: object) -> contextlib.AbstractContextManager[
    subprocess.Popen[str]
]:
    given = {'policy': WANDERER, 'socket': socket, **parameters}
    words = [word for name, value in given.items() for word in ('-p', f'{name}:={value}')]
    return process(sys.executable, '-m', 'smallm_ros.ros.policy_node', '--ros-args', *words)


class World:
    """Sensors that talk for as long as one waits, and everything that the node said."""

    def __init__(self) -> None:
        os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('world', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.commands: list[Command] = []
        self.statuses: list[NodeStatus] = []
        self.records: list[DecisionRecord] = []
        self.diagnostics: dict[str, tuple[bytes, str]] = {}
        self.sensing = True
        self._scan = self.node.create_publisher(LaserScan, '/scan', 1)
        self._odom = self.node.create_publisher(Odometry, '/odom', 1)
        self._sensed_ns = 0
        for kind, topic, keep in (
            (String, 'command', lambda m: self.commands.append(parse_frame(Command, m.data))),
            (String, 'status', lambda m: self.statuses.append(parse_frame(NodeStatus, m.data))),
            (String, 'decision', lambda m: self.records.append(
                DecisionRecord.model_validate_json(m.data))),
        ):
            self.node.create_subscription(kind, f'/policy_node/{topic}', keep, qos.COMMAND)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnose, 10)

    def _diagnose(self, msg: DiagnosticArray) -> None:
        self.diagnostics |= {s.name: (s.level, s.message) for s in msg.status}

    def wait(self, until: Callable[[], object], what: str) -> None:
        """Let the world turn until something holds; fail by name when it never does."""
        end_ns = steady.now_ns() + int(LIMIT_S * SECOND)
        while not until():
            now_ns = steady.now_ns()
            assert now_ns < end_ns, f'never: {what}; last status {self.statuses[-1:]}'
            if self.sensing and now_ns - self._sensed_ns > 50 * MS:
                self._sensed_ns = now_ns
                self._sense()
            self.executor.spin_once(timeout_sec=0.01)

    def wait_for_outcome(self, words: str) -> None:
        self.wait(lambda: self.statuses and words in self.statuses[-1].last_outcome, words)

    def _sense(self) -> None:
        stamp = self.node.get_clock().now().to_msg()
        scan = LaserScan(angle_min=-3.14, angle_increment=0.0175, range_min=0.1, range_max=8.0,
                         ranges=[2.0] * 360)
        odom = Odometry()
        odom.pose.pose.orientation.w = 1.0
        scan.header.stamp = odom.header.stamp = stamp
        scan.header.frame_id, odom.header.frame_id = 'laser', 'odom'
        self._scan.publish(scan)
        self._odom.publish(odom)

    def call(self, kind: type, name: str, request: Any) -> Any:
        client = self.node.create_client(kind, name)
        self.wait(client.service_is_ready, f'service {name}')
        future = client.call_async(request)
        self.wait(future.done, f'answer of {name}')
        return future.result()

    def transition(self, number: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=number))
        return bool(self.call(ChangeState, '/policy_node/change_state', request).success)

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_it_drives_and_says_when_it_ends(world: World, tmp_path: Path) -> None:
    socket = tmp_path / 'engine.sock'
    with engine(socket), node(socket, record_dir=tmp_path) as policy_node:
        world.wait(lambda: len(world.commands) >= 5, 'five commands')
        space = ActionSpace.of(POLICY)
        for command in world.commands:
            assert command.action == 'forward'
            assert space.find(command.action, command.parameters) is not None
            assert command.arrival_ns < command.deadline_ns < command.valid_until_ns
        # An answer is forwarded when it comes, not at the next control period.
        assert len({c.session for c in world.commands}) == 1
        served = [r for r in world.records if r.outcome == 'decided' and r.decision]
        waits_ns = [r.ended_ns - r.decision.timings.finished_ns for r in served if r.decision]
        assert min(waits_ns) < 20 * MS
        last = world.statuses[-1]
        assert (last.active, last.engine, last.pid) == (True, 'ready', policy_node.pid)
        name = 'policy_node: decisions'
        world.wait(lambda: world.diagnostics.get(name) == (b'\x00', 'deciding'), 'diagnostics')
        assert world.diagnostics['policy_node: sensor scan'] == (b'\x00', 'fresh')
        assert world.diagnostics['policy_node: sensor goal'][0] == b'\x00'

        policy_node.send_signal(signal.SIGTERM)
        world.wait(lambda: not world.statuses[-1].active, 'word that it ends')
        assert policy_node.wait(10) == 0
    (record_file,) = tmp_path.glob('decisions*.mcap')
    kept = list(read_records(record_file, pytest.fail))
    assert {r.command_sequence for r in kept} >= {c.sequence for c in world.commands}


def test_an_engine_that_dies_and_comes_back(world: World, tmp_path: Path) -> None:
    socket = tmp_path / 'engine.sock'
    with engine(socket), node(socket):
        world.wait(lambda: world.commands, 'a command')
        victim = world.statuses[-1].worker_pid
        os.kill(victim, signal.SIGKILL)
        world.wait(lambda: world.statuses[-1].worker_pid == 0, 'the loss told')
        assert world.statuses[-1].active
        before = len(world.commands)
        world.wait(lambda: len(world.commands) > before, 'a command from the next worker')
        assert world.statuses[-1].engine == 'ready'
        assert world.statuses[-1].worker_pid not in (0, victim)
        assert len({s.session for s in world.statuses}) == 1


def test_it_ticks_without_an_engine_and_without_sensors(world: World, tmp_path: Path) -> None:
    with node(tmp_path / 'engine.sock'):
        world.wait_for_outcome('no engine')
        assert world.statuses[-1].engine == 'absent'
        world.wait(
            lambda: 'no engine at' in world.diagnostics.get('policy_node: decisions', ('', ''))[1],
            'the reason on /diagnostics')
        name = 'policy_node: sensor goal'
        world.wait(
            lambda: world.diagnostics.get(name, ('', ''))[1] == 'nobody publishes /goal_pose',
            'what is missing')
        world.node.create_publisher(String, '/goal_pose', 1)
        world.wait(lambda: world.diagnostics[name][1] == (
            '/goal_pose is published as std_msgs/msg/String, the policy file says '
            'geometry_msgs/msg/PoseStamped'), 'what is wrong')
        world.sensing = False
        world.wait_for_outcome('unfit: scan stale, odom stale')
        assert world.commands == []


def test_the_managed_life(world: World, tmp_path: Path) -> None:
    socket = tmp_path / 'engine.sock'
    with engine(socket), node(socket, autostart='false') as policy_node:
        assert world.transition(Transition.TRANSITION_CONFIGURE)
        world.wait(lambda: world.statuses and world.statuses[-1].engine == 'ready', 'ready')
        assert not world.statuses[-1].active
        assert world.transition(Transition.TRANSITION_ACTIVATE)
        world.wait(lambda: world.commands, 'a command')
        assert world.transition(Transition.TRANSITION_DEACTIVATE)
        world.wait(lambda: not world.statuses[-1].active, 'word of the deactivation')
        assert world.transition(Transition.TRANSITION_CLEANUP)
        first = world.statuses[-1].session

        assert world.transition(Transition.TRANSITION_CONFIGURE)
        world.wait(lambda: world.statuses[-1].session != first, 'a session of its own')
        assert world.transition(Transition.TRANSITION_ACTIVATE)
        before = len(world.commands)
        world.wait(lambda: len(world.commands) > before, 'a command of the second life')
        assert world.transition(Transition.TRANSITION_ACTIVE_SHUTDOWN)
        assert policy_node.wait(10) == 0


def test_parameters_stand(world: World, tmp_path: Path) -> None:
    with node(tmp_path / 'engine.sock'):
        for name, value, why in (
            ('use_sim_time', True, 'use_sim_time is False from the start of policy_node'),
            ('policy', 'other.yaml', 'read-only'),
        ):
            wish = Parameter(name, value=value).to_parameter_msg()
            (result,) = world.call(
                SetParameters, '/policy_node/set_parameters',
                SetParameters.Request(parameters=[wish]),
            ).results
            assert not result.successful
            assert why in result.reason


@pytest.mark.parametrize(('text', 'code', 'line'), [
    ('version: 2\n', 3, 'policy.yaml:1: version:'),
    (None, 3, 'policy.yaml: cannot be read: No such file or directory'),
])
def test_a_policy_that_cannot_be_used(
    tmp_path: Path, text: str | None, code: int, line: str,
) -> None:
    path = tmp_path / 'policy.yaml'
    if text is not None:
        path.write_text(text, encoding='utf-8')
    with node(tmp_path / 'engine.sock', policy=path) as policy_node:
        said, _ = policy_node.communicate(timeout=20)
        assert policy_node.returncode == code
        assert line in said


def test_a_directory_that_cannot_be_recorded_to(tmp_path: Path) -> None:
    with node(tmp_path / 'engine.sock', record_dir=tmp_path / 'none') as policy_node:
        said, _ = policy_node.communicate(timeout=20)
        assert policy_node.returncode == 2
        assert 'cannot record decisions: No such file or directory' in said
