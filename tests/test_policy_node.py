"""policy_node as a process over DDS, with a real engine process whose model is a script."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('rclpy')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import LaserScan
from std_msgs.msg import String

from smallm_ros import steady
from smallm_ros.core.action import ActionSpace, Command, NodeStatus, parse_frame
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import PolicyError
from smallm_ros.core.policy import load_policy
from smallm_ros.core.prompt import declaration
from smallm_ros.record.reader import read_declarations, read_models, read_records, read_texts
from smallm_ros.ros import qos
from smallm_ros.ros.policy_node import PolicyNode
from smallm_ros.ros.take import Newest, Taken, subscribe

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


def engine(
    socket: Path, **line: object
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    script = json.dumps([{'leaf': 1, 'delay_ns': DELAY_MS * MS, **line}])
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
        self.texts: list[dict[str, object]] = []
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
            (String, 'say', lambda m: self.texts.append(json.loads(m.data))),
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


def test_what_the_model_adds_is_said_and_recorded(world: World, tmp_path: Path) -> None:
    path = tmp_path / 'policy.yaml'
    path.write_text(
        WANDERER.read_text(encoding='utf-8').replace('{rate_hz: 2,', '{anytime: true, rate_hz: 2,')
        + 'free_text: {name: reason}\n', encoding='utf-8')
    socket = tmp_path / 'engine.sock'
    line = {'partial': True, 'text': 'the way is "free"', 'delay_ns': 20 * MS}
    with engine(socket, **line), node(socket, policy=path, record_dir=tmp_path) as policy_node:
        world.wait(lambda: len(world.texts) >= 2 and len(world.commands) >= 2, 'two texts')
        assert world.texts[0] == {
            'request': world.texts[0]['request'], 'text': 'the way is "free"', 'cut': False}
        assert all(command.partial for command in world.commands)
        assert world.commands[0].parameters == {'speed': 'slow'}, 'the declared default'
        policy_node.send_signal(signal.SIGTERM)
        assert policy_node.wait(10) == 0
    (record_file,) = tmp_path.glob('decisions*.mcap')
    texts = read_texts(record_file)
    assert {text.request for text in texts} >= {text['request'] for text in world.texts}
    declared = declaration(load_policy(path))
    assert read_declarations(record_file) == {declared.space: declared}
    (model,) = read_models(record_file)
    kept = [r for r in read_records(record_file, pytest.fail) if r.outcome == 'decided']
    assert {(r.partial, r.space, r.model_sha256) for r in kept} == {
        (True, declared.space, model.sha256)}


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
    (tmp_path / 'file').touch()
    with node(tmp_path / 'engine.sock', record_dir=tmp_path / 'file') as policy_node:
        said, _ = policy_node.communicate(timeout=20)
        assert policy_node.returncode == 2
        assert 'cannot record decisions: ' in said


# --- in this process, where a test can say what time it is --------------------------------------


@contextlib.contextmanager
def own_node(**parameters: object) -> Iterator[PolicyNode]:
    words = [word for name, value in parameters.items() for word in ('-p', f'{name}:={value}')]
    rclpy.init(args=['--ros-args', '-r', '__ns:=/a_robot_of_the_fleet', *words])
    node = PolicyNode()
    try:
        yield node
    finally:
        node.free()
        node.destroy_node()
        rclpy.shutdown()


def held(node: PolicyNode) -> dict[str, int]:
    """Count what a configure makes."""
    links = []
    for link in Path('/proc/self/fd').iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(link))
    return {
        'threads': sum(t.name in ('engine-waker', 'record') for t in threading.enumerate()),
        'epolls': links.count('anon_inode:[eventpoll]'),
        'eventfds': sum('eventfd' in link for link in links),
        'records': sum(link.endswith('.mcap') for link in links),
        'guards': len(list(node.guards)),
        'timers': len(list(node.timers)),
        'subscriptions': len(list(node.subscriptions)),
    }


def test_a_configure_that_fails_halfway_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / 'policy.yaml'
    text = WANDERER.read_text(encoding='utf-8')
    topic = 'g' * 240  # for the policy file a topic; with the namespace too long for ROS
    path.write_text(text.replace('/goal_pose', topic), encoding='utf-8')
    records = tmp_path / 'records'
    with own_node(policy=path, socket=tmp_path / 'engine.sock', record_dir=records) as node:
        before = held(node)
        for _ in range(3):
            assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
            assert held(node) == before
        assert isinstance(node.fault, PolicyError)
        assert len(str(node.fault).splitlines()) == 1
        assert str(node.fault).startswith(
            f'{path}: sensors.goal.topic: {topic!r}: Invalid topic name: ')
        assert not list(tmp_path.rglob('*.mcap'))

        path.write_text(text, encoding='utf-8')
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert held(node) != before
        assert node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
        assert held(node) == before
    assert 'Traceback' not in capfd.readouterr().err


def test_two_lives_within_one_second_write_two_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady, 'wall_text', lambda: '20250102-030405')
    with own_node(policy=WANDERER, socket=tmp_path / 'e.sock', record_dir=tmp_path) as node:
        for _ in range(2):
            assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
            assert node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    assert len(list(tmp_path.glob('decisions-20250102-030405-*.mcap'))) == 2


def test_a_flood_costs_no_more_than_the_newest_message_of_each_step(tmp_path: Path) -> None:
    """Ten times the promised rate: one conversion a step, and the executor does nothing."""
    steps, flood = 20, 10
    with own_node(policy=WANDERER, socket=tmp_path / 'e.sock') as node:
        talker = rclpy.create_node('talker')
        told = talker.create_publisher(LaserScan, '/scan', flood)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        parts = node._configured()
        end_ns = steady.now_ns() + int(LIMIT_S * SECOND)
        while not told.get_subscription_count():
            assert steady.now_ns() < end_ns, 'never: a subscription'
            executor.spin_once(timeout_sec=0.01)
        ear = parts.ears['scan']
        for step in range(steps):
            before_ns = steady.now_ns()
            for number in range(flood):
                told.publish(LaserScan(
                    range_max=1000.0, ranges=[float(step * flood + number)]))
            assert ear.taken == step
            node._observe(parts)
            newest = parts.pilot._newest['scan']
            assert newest.fields.ranges_m[0] == step * flood + flood - 1
            assert before_ns <= newest.arrival_ns <= steady.now_ns()
        assert ear.taken == steps
        assert ear.count == 1 + (steps - 1) * flood  # the first number says nothing
        scan = parts.pilot.look(steady.now_ns(), 0).readings[0]
        assert scan.rate_hz is not None
        told.publish(LaserScan())
        executor.remove_node(node)
        for _ in range(flood):
            executor.spin_once(timeout_sec=0)
        assert ear.taken == steps
        executor.shutdown()
        talker.destroy_node()


def test_an_arrival_that_the_wall_clock_cannot_tell_is_as_early_as_it_can_be(
    tmp_path: Path
) -> None:
    with own_node(policy=WANDERER, socket=tmp_path / 'e.sock') as node:
        told = node.create_publisher(String, 'words', 1)
        begin_ns = steady.now_ns()
        source = Newest(subscribe(node, String, 'words', qos.SENSOR), begin_ns)
        end_ns = begin_ns + int(LIMIT_S * SECOND)
        while not told.get_subscription_count():
            assert steady.now_ns() < end_ns, 'never: a subscription'
        looked_ns = steady.now_ns()
        assert source.look(looked_ns, steady.wall_ns(), 7) is None
        for set_by_ns, exact in ((0, True), (-SECOND, False), (3600 * SECOND, False)):
            told.publish(String(data='a'))
            now_ns = steady.now_ns()
            taken = source.look(now_ns, steady.wall_ns() + set_by_ns, 8)
            assert taken is not None
            assert (taken.arrival_ns == looked_ns) is not exact
            assert looked_ns <= taken.arrival_ns <= now_ns
            assert taken.ros_arrival_ns == (7 if exact else 8), 'ROS time of the look before'
            assert taken.messages == 1
            looked_ns = now_ns


@dataclass
class Times:
    """The two clocks of a node, set by hand."""

    steady_ns: int = 1000 * SECOND
    ros_ns: int = 1_700_000_000 * SECOND

    def advance_s(self, steady_s: float, ros_s: float) -> None:
        self.steady_ns += round(steady_s * SECOND)
        self.ros_ns += round(ros_s * SECOND)


class Stage:
    """A configured node without an executor: scans are handed in, diagnostics are read."""

    def __init__(self, node: PolicyNode, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = Times()
        monkeypatch.setattr(steady, 'now_ns', lambda: self.times.steady_ns)
        monkeypatch.setattr(node, '_ros_now_ns', lambda: self.times.ros_ns)
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        self._node = node
        self._said: list[DiagnosticArray] = []
        (told,) = (p for p in node.publishers if p.topic_name == '/diagnostics')
        monkeypatch.setattr(told, 'publish', self._said.append)
        self._ros_arrives = bool(node.get_parameter('use_sim_time').value)

    def hear_scan(self, *, stamp_ago_s: float | None = 0.05) -> None:
        """Hand in a scan; None: without a stamp."""
        scan = LaserScan(angle_min=-3.14, angle_increment=0.0175, range_min=0.1, range_max=8.0,
                         ranges=[2.0] * 360)
        scan.header.frame_id = 'laser'
        if stamp_ago_s is not None:
            stamp_ns = self.times.ros_ns - round(stamp_ago_s * SECOND)
            scan.header.stamp.sec, scan.header.stamp.nanosec = divmod(stamp_ns, SECOND)
        times = self.times
        ros_ns = times.ros_ns if self._ros_arrives else None
        arrived = Taken(scan, times.steady_ns, ros_ns, messages=1)
        self._node._hear(self._node._configured(), 'scan', arrived)

    def scan_status(self) -> tuple[bytes, str]:
        """Let both timers come due; return what is told of the scan."""
        for timer in self._node.timers:
            timer.callback()
        (status,) = (s for s in self._said[-1].status if s.name.endswith('sensor scan'))
        return status.level, status.message


@pytest.mark.parametrize(('stamp_ago_s', 'level', 'words'), [
    (0.05, DiagnosticStatus.OK, 'fresh'),
    (3.0, DiagnosticStatus.ERROR, 'it talks, but its stamp is 3.0 s old'),
    (-2.0, DiagnosticStatus.ERROR, 'it talks, but its stamp is 2.0 s in the future'),
    (1_600_000_000.0, DiagnosticStatus.ERROR, 'it talks, but its stamp is 1600000000.0 s old'),
    (None, DiagnosticStatus.WARN, 'fresh by arrival, its stamp is absent'),
])
def test_diagnostics_do_not_call_a_bad_stamp_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stamp_ago_s: float | None, level: bytes,
    words: str,
) -> None:
    with own_node(policy=WANDERER, socket=tmp_path / 'e.sock') as node:
        stage = Stage(node, monkeypatch)
        assert stage.scan_status()[1].endswith('/scan')
        stage.hear_scan(stamp_ago_s=stamp_ago_s)
        assert stage.scan_status() == (level, words)


@pytest.mark.parametrize(('simulated', 'expected'), [
    (False, (DiagnosticStatus.ERROR, 'silent for 10.0 s')),
    (True, (DiagnosticStatus.OK, 'fresh')),  # ROS time stands still: the world is paused
])
def test_a_wall_clock_that_is_set_back_makes_no_silent_sensor_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulated: bool,
    expected: tuple[bytes, str],
) -> None:
    with own_node(
        policy=WANDERER, socket=tmp_path / 'e.sock', use_sim_time=simulated
    ) as node:
        stage = Stage(node, monkeypatch)
        stage.hear_scan()
        assert stage.scan_status() == (DiagnosticStatus.OK, 'fresh')
        stage.times.advance_s(10, 0.1)  # set back by 9.9 s meanwhile
        assert stage.scan_status() == expected
