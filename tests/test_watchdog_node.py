"""watchdog_node as a process over DDS, beside a policy node that is a child we can kill."""

from __future__ import annotations

import contextlib
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
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import LaserScan
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from smallm_ros import steady
from smallm_ros.core.action import Applied, Command, NodeStatus, parse_frame
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.gate import State
from smallm_ros.core.policy import load_policy
from smallm_ros.process import host, start_ticks
from smallm_ros.ros import qos
from smallm_ros.ros.params import refuse_clock_changes
from smallm_ros.ros.take import serve, subscribe, take, take_all, take_request
from smallm_ros.ros.watchdog_node import ProcessWatch, WatchdogNode

pytestmark = [
    pytest.mark.ros,
    # rclpy's generator imports lark, lark this.
    pytest.mark.filterwarnings('ignore:module .sre_:DeprecationWarning'),
]

ROOT = Path(__file__).parents[1]
FILE = ROOT / 'tests' / 'fakes' / 'round_robot.yaml'
POLICY = load_policy(FILE)
LIMIT_S = 30.0
SLEEPER = (sys.executable, '-c', 'import time; time.sleep(600)')


@contextlib.contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process; whatever happens, it has ended afterwards."""
    child = subprocess.Popen(
        words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'},
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGCONT)
        child.terminate()
        try:
            child.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()


def watchdog(**parameters: object) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    given = {'policy': FILE, 'auto_arm': True, **parameters}
    words = [
        word for name, value in given.items() if value is not None
        for word in ('-p', f'{name}:={str(value).lower() if isinstance(value, bool) else value}')
    ]
    return process(sys.executable, '-m', 'smallm_ros.ros.watchdog_node', '--ros-args', *words)


class World:
    """Sensors and a policy node, spoken for by this process; all that the watchdog said."""

    def __init__(self, node: subprocess.Popen[str], worker: subprocess.Popen[str]) -> None:
        os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('world', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.processes = (node, worker)
        self.ticks = [start_ticks(child.pid) for child in self.processes]
        self.sensing = self.speaking = True
        self.simulated_ns: int | None = None
        self.velocities: list[tuple[int, float]] = []
        self.applied: list[Applied] = []
        self.diagnosis: dict[str, str] = {}
        self._said_ns = 0
        self._sequence = 0
        create = self.node.create_publisher
        self._scan, self._odom = create(LaserScan, '/scan', 1), create(Odometry, '/odom', 1)
        self._clock = create(Clock, '/clock', 1)
        self._status = create(String, '/policy_node/status', qos.STATUS)
        self._command = create(String, '/policy_node/command', qos.COMMAND)
        self.estop = create(Bool, '/estop', 1)
        self.kind: type = TwistStamped
        self.node.create_subscription(
            String, '/watchdog_node/applied',
            lambda m: self.applied.append(parse_frame(Applied, m.data)), qos.APPLIED)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnose, 10)

    def listen(self, kind: type = TwistStamped) -> None:
        def keep(msg: Any) -> None:
            twist = msg.twist if kind is TwistStamped else msg
            self.velocities.append((steady.now_ns(), twist.linear.x))
        self.node.create_subscription(kind, '/cmd_vel', keep, 10)

    def _diagnose(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            self.diagnosis = {v.key: v.value for v in status.values}

    def wait(self, until: Callable[[], object], what: str) -> None:
        """Let the world turn until something holds; fail by name when it never does."""
        end_ns = steady.now_ns() + int(LIMIT_S * SECOND)
        while not until():
            now_ns = steady.now_ns()
            assert now_ns < end_ns, f'never: {what}; last {self.applied[-1:]} {self.diagnosis}'
            if now_ns - self._said_ns > 40 * MS:
                self._said_ns = now_ns
                self._talk(now_ns)
            self.executor.spin_once(timeout_sec=0.01)

    def wait_for(self, state: State) -> Applied:
        start = len(self.applied)
        self.wait(lambda: any(a.state == state.value for a in self.applied[start:]), state.value)
        return next(a for a in self.applied[start:] if a.state == state.value)

    def turn(self, ms: float) -> None:
        end_ns = steady.now_ns() + round(ms * MS)
        self.wait(lambda: steady.now_ns() >= end_ns, 'the end of time')

    def ros_ns(self) -> int:
        return steady.wall_ns() if self.simulated_ns is None else self.simulated_ns

    def _talk(self, now_ns: int) -> None:
        self._sequence += 1
        sec, nanosec = divmod(self.ros_ns(), SECOND)
        if self.simulated_ns is not None:
            message = Clock()
            message.clock.sec, message.clock.nanosec = sec, nanosec
            self._clock.publish(message)
        if self.sensing:
            scan = LaserScan(angle_min=-3.14159, angle_increment=0.0174533, range_min=0.05,
                             range_max=12.0, ranges=[5.0] * 360)
            odometry = Odometry()
            odometry.pose.pose.orientation.w = 1.0
            for message in (scan, odometry):
                message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
            self._scan.publish(scan)
            self._odom.publish(odometry)
        if not self.speaking:
            return
        home = {'host': host(), 'boot': steady.boot_id()[:64]}
        (node, worker), (node_ticks, worker_ticks) = self.processes, self.ticks
        assert node_ticks is not None
        assert worker_ticks is not None
        self._status.publish(String(data=NodeStatus(
            session='a' * 16, sequence=self._sequence, pid=node.pid, start_ticks=node_ticks,
            active=True, engine='ready', worker_pid=worker.pid, worker_start_ticks=worker_ticks,
            progress=self._sequence, progress_ns=now_ns, in_flight=0, in_flight_since_ns=0,
            in_flight_bound_ns=0, request=0, misses=0, served=self._sequence,
            last_outcome='decided', **home,
        ).to_json()))
        if self._sequence % 5 == 0:
            self._command.publish(String(data=Command(
                session='a' * 16, sequence=self._sequence, request=self._sequence,
                action='forward', parameters={'speed': 'fast'}, linear_x_m_s=0.3,
                angular_z_rad_s=0.0, observation_stamp_ns=max(self.ros_ns() - 100 * MS, 1),
                arrival_ns=now_ns - 100 * MS, deadline_ns=now_ns + 200 * MS,
                valid_until_ns=now_ns + POLICY.ttl_ns, confidence=0.9, partial=False, **home,
            ).to_json()))

    def call(self, name: str) -> Trigger.Response:
        client = self.node.create_client(Trigger, f'/watchdog_node/{name}')
        self.wait(client.service_is_ready, f'the service {name}')
        future = client.call_async(Trigger.Request())
        self.wait(future.done, f'the answer of {name}')
        return future.result()

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def world() -> Iterator[World]:
    with process(*SLEEPER) as node, process(*SLEEPER) as worker:
        out = World(node, worker)
        yield out
        out.close()


def driving(world: World) -> None:
    world.wait(lambda: world.applied and world.applied[-1].linear_x_m_s > 0.25, 'driving')
    assert world.applied[-1].source == 'model'
    assert world.applied[-1].observation_stamp_ns > 0


def test_stop_from_the_first_second_and_stop_as_the_last(world: World) -> None:
    world.listen()
    world.sensing = world.speaking = False
    with watchdog() as child:
        world.wait(lambda: len(world.velocities) > 5, 'a velocity with nobody else there')
        assert {v for _, v in world.velocities} == {0.0}
        assert world.applied[-1].state == 'STANDBY'
        world.sensing = world.speaking = True
        driving(world)
        world.turn(500)
        sequences = [a.sequence for a in world.applied]
        assert sequences == sorted(set(sequences))
        child.send_signal(signal.SIGTERM)
        world.wait(lambda: child.poll() is not None, 'the end')
        world.turn(200)
        assert [v for _, v in world.velocities[-3:]] == [0.0, 0.0, 0.0]
        _, err = child.communicate()
        assert child.returncode == 0, err
        assert 'STANDBY -> HOLD' in err
        assert 'the last command was stop' in err


@pytest.mark.parametrize('which', [0, 1])
def test_the_end_of_the_policy_node_or_the_worker_is_seen_at_once(
    world: World, which: int,
) -> None:
    with watchdog():
        driving(world)
        world.processes[which].kill()
        killed_ns = steady.now_ns()
        applied = world.wait_for(State.FALLBACK)
        assert applied.cause == ('node_dead', 'worker_dead')[which]
        assert applied.source == 'baseline'
        assert applied.steady_ns - killed_ns < 500 * MS
        world.wait(lambda: world.diagnosis.get('state') == 'FALLBACK', 'a diagnosis')


def test_silence_is_seen_and_what_is_silent_is_named(world: World) -> None:
    with watchdog():
        driving(world)
        world.speaking = False
        # What a message says happened before it arrived: the engine's progress in a status, or a
        # sensor's stamp, may pass the same limit one period before the silence itself does.
        assert world.wait_for(State.FALLBACK).cause in ('status_silent', 'engine_stalled')
        world.wait(lambda: world.applied[-1].cause == 'status_silent', 'the silence named')
        world.sensing = False
        assert world.wait_for(State.SAFE_STOP).cause in ('sensor_stale', 'sensor_stamp')
        world.wait(lambda: world.applied[-1].cause == 'sensor_stale', 'the silence named')
        world.wait(lambda: world.applied[-1].linear_x_m_s == 0.0, 'standing')


def test_arm_estop_and_reset_by_their_topics_and_services(world: World) -> None:
    world.listen(Twist)
    with watchdog(auto_arm=False, twist_stamped=False):
        world.wait_for(State.HOLD)
        refused = world.call('reset')
        assert not refused.success
        assert 'HOLD' in refused.message
        assert world.call('arm').success
        driving(world)
        assert world.velocities[-1][1] > 0
        world.estop.publish(Bool(data=True))
        applied = world.wait_for(State.ESTOP_LATCHED)
        assert applied.linear_x_m_s == 0.0
        assert not world.call('reset').success
        world.estop.publish(Bool(data=False))
        world.turn(800)
        assert world.call('reset').success
        assert world.wait_for(State.HOLD).linear_x_m_s == 0.0


def test_a_required_estop_source_that_is_silent_stops(world: World) -> None:
    with watchdog(estop_required=True):
        assert world.wait_for(State.ESTOP_LATCHED).cause == 'estop_silent'


def test_a_second_publisher_latches(world: World) -> None:
    with watchdog():
        driving(world)
        other = world.node.create_publisher(TwistStamped, '/cmd_vel', 1)
        assert world.wait_for(State.FAULT_LATCHED).cause == 'second_publisher'
        world.node.destroy_publisher(other)


def test_simulated_time_is_taken_from_clock(world: World) -> None:
    with watchdog(use_sim_time=True):
        world.wait(lambda: world.applied, 'a first step')
        assert world.applied[-1].cause == 'clock_absent'
        start_ns = steady.now_ns()
        world.simulated_ns = 5 * SECOND

        def until_driving() -> bool:
            world.simulated_ns = 5 * SECOND + steady.now_ns() - start_ns
            return bool(world.applied) and world.applied[-1].linear_x_m_s > 0.25

        world.wait(until_driving, 'driving in simulated time')
        world.sensing = False  # and time stands still: a paused world
        world.turn(1500)
        assert world.applied[-1].cause == 'clock_paused'
        assert world.applied[-1].linear_x_m_s == 0.0
        assert world.applied[-1].state == 'ACTIVE'


@pytest.mark.parametrize(('given', 'says', 'code'), [
    ({'policy': None}, 'must name a policy file', 2),
    ({'policy': '/no/such.yaml'}, '/no/such.yaml', 3),
])
def test_what_the_operator_must_put_right_is_one_line(
    given: dict[str, object], says: str, code: int,
) -> None:
    with watchdog(**given) as child:
        _, err = child.communicate(timeout=LIMIT_S)
    assert child.returncode == code
    assert says in err
    assert 'Traceback' not in err


def test_a_step_that_raises_publishes_a_stop_and_three_latch(
    world: World, monkeypatch: pytest.MonkeyPatch,
) -> None:
    rclpy.init(args=['--ros-args', '-p', f'policy:={FILE}'])
    try:
        node = WatchdogNode()
        heard = subscribe(world.node, TwistStamped, '/cmd_vel', qos.CMD_VEL)
        world.wait(lambda: node._cmd_vel.get_subscription_count() == 1, 'discovery')
        monkeypatch.setattr(node._gate, 'step', lambda *_: 1 / 0)
        start_ns = steady.now_ns()
        for n, state in enumerate((State.STANDBY, State.STANDBY, State.FAULT_LATCHED)):
            node._tick(start_ns + n * 50 * MS, 0)
            assert node._gate.state is state
            assert node._last is not None
            assert node._last.sequence == n + 1
            assert 'ZeroDivisionError' in node._last.detail
            end_ns = steady.now_ns() + 5 * SECOND
            while (message := take(heard)) is None:
                assert steady.now_ns() < end_ns
            assert message.twist.linear.x == 0.0
        node.close()
        node.destroy_node()
    finally:
        rclpy.shutdown()


# --- the pieces -----------------------------------------------------------------------------


def test_a_process_that_ends_is_seen_and_a_reused_pid_is_another() -> None:
    watch = ProcessWatch()
    with process(*SLEEPER) as child:
        ticks = start_ticks(child.pid)
        assert ticks is not None
        watch.watch((child.pid, ticks))
        assert watch.dead() == frozenset()
        watch.watch((child.pid, ticks + 1))
        assert watch.dead() == {(child.pid, ticks + 1)}
        child.kill()
        child.wait()
        end_ns = steady.now_ns() + 5 * SECOND
        while (child.pid, ticks) not in watch.dead():
            assert steady.now_ns() < end_ns
        watch.watch((child.pid, ticks))
        assert (child.pid, ticks) in watch.dead()
    watch.close()


def test_many_processes_leave_few_descriptors() -> None:
    watch, mine = ProcessWatch(), os.getpid()
    before = len(os.listdir('/proc/self/fd'))
    ticks = start_ticks(mine)
    assert ticks is not None
    for n in range(100):
        watch.watch((mine, ticks + n))
    assert len(os.listdir('/proc/self/fd')) <= before + 8
    watch.close()
    assert len(os.listdir('/proc/self/fd')) == before


def test_taking_gives_the_newest_without_an_executor(world: World) -> None:
    publisher = world.node.create_publisher(String, 'words', 10)
    newest = subscribe(world.node, String, 'words', qos.SENSOR)
    every = subscribe(world.node, String, 'words', 10)
    assert take(newest) is None
    world.wait(lambda: publisher.get_subscription_count() == 2, 'discovery')
    for n in range(5):
        publisher.publish(String(data=str(n)))
    heard: list[str] = []

    def all_came() -> bool:
        heard.extend(m.data for m in take_all(every))
        return len(heard) == 5

    end_ns = steady.now_ns() + 5 * SECOND
    while not all_came():
        assert steady.now_ns() < end_ns
    assert take(newest).data == '4'
    assert take(newest) is None


def test_a_polled_service_answers(world: World) -> None:
    service = serve(world.node, Trigger, 'polled')
    assert take_request(service) is None
    other = rclpy.create_node('other', context=world.context)
    client = other.create_client(Trigger, 'polled')
    world.wait(client.service_is_ready, 'the service')
    future = client.call_async(Trigger.Request())
    end_ns = steady.now_ns() + 5 * SECOND
    while (answer := take_request(service)) is None:
        assert steady.now_ns() < end_ns
    answer(Trigger.Response(success=True, message='yes'))
    executor = SingleThreadedExecutor(context=world.context)
    executor.add_node(other)
    while not future.done():
        assert steady.now_ns() < end_ns
        executor.spin_once(timeout_sec=0.05)
    assert future.result().message == 'yes'
    executor.shutdown()
    other.destroy_node()


def test_use_sim_time_cannot_be_set_at_run_time(world: World) -> None:
    refuse_clock_changes(world.node)
    result = world.node.set_parameters([Parameter('use_sim_time', value=True)])[0]
    assert not result.successful
