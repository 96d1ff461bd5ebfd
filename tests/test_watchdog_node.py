"""watchdog_node as a process over DDS, beside a policy node that is a child we can kill."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
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
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
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
from smallm_ros.process import ProcessWatch, host, scheduling, start_ticks
from smallm_ros.ros import qos
from smallm_ros.ros.heard import Heard
from smallm_ros.ros.jitter import Jitter
from smallm_ros.ros.params import refuse_clock_changes
from smallm_ros.ros.take import (
    REPLY_AFTER_NS,
    Replies,
    serve,
    subscribe,
    take,
    take_all,
    take_request,
)
from smallm_ros.ros.transport import RANGE, RECEIVE_BYTES, share_nothing
from smallm_ros.ros.watchdog_node import WatchdogNode

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
def process(*words: str, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """Run a process; whatever happens, it has ended afterwards."""
    child = subprocess.Popen(
        words, text=True, stdout=subprocess.PIPE, stderr=stderr,
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


def watchdog(
    *before: str, stderr: int = subprocess.PIPE, namespace: str = '/', **parameters: object,
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Run a watchdog with ROS parameters; `before` is a command line that executes its own end."""
    given = {'policy': FILE, 'auto_arm': True, **parameters}
    words = [
        word for name, value in given.items() if value is not None
        for word in ('-p', f'{name}:={str(value).lower() if isinstance(value, bool) else value}')
    ]
    command = (sys.executable, '-m', 'smallm_ros.ros.watchdog_node', '--ros-args',
               '-r', f'__ns:={namespace}', *words)
    return process(*before, *command, stderr=stderr)


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
        self.asked: dict[str, Any] = {
            'action': 'forward', 'parameters': {'speed': 'fast'}, 'linear_x_m_s': 0.3}
        self.garbled = ''
        self.velocities: list[tuple[int, float]] = []
        self.applied: list[Applied] = []
        self.diagnosis: dict[str, str] = {}
        self.said: dict[str, str] = {}
        self.watchdog = '/watchdog_node'
        self.state: dict[str, Any] = {}
        self._said_ns = 0
        self._sequence = 0
        create = self.node.create_publisher
        self._scan, self._odom = create(LaserScan, '/scan', 1), create(Odometry, '/odom', 1)
        self._clock = create(Clock, '/clock', 1)
        self._status = create(
            String, '/policy_node/status', qos.status(POLICY.control.status_limit_ms))
        self._command = create(String, '/policy_node/command', qos.COMMAND)
        self.estop = create(Bool, '/estop', 1)
        self.kind: type = TwistStamped
        self.node.create_subscription(
            String, '/watchdog_node/applied',
            lambda m: self.applied.append(parse_frame(Applied, m.data)), qos.APPLIED)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnose, 10)
        self.node.create_subscription(
            String, '/watchdog_node/state',
            lambda m: setattr(self, 'state', json.loads(m.data)), qos.STATE)

    def listen(self, kind: type = TwistStamped) -> None:
        def keep(msg: Any) -> None:
            twist = msg.twist if kind is TwistStamped else msg
            self.velocities.append((steady.now_ns(), twist.linear.x))
        self.node.create_subscription(kind, '/cmd_vel', keep, 10)

    def _diagnose(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            self.said[status.name] = status.message
            self.diagnosis |= {v.key: v.value for v in status.values}

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
            session='a' * 16, sequence=self._sequence, steady_ns=now_ns, pid=node.pid,
            start_ticks=node_ticks, active=True,
            engine='ready', worker_pid=worker.pid, worker_start_ticks=worker_ticks,
            progress=self._sequence, progress_ns=now_ns, in_flight=0, in_flight_since_ns=0,
            in_flight_bound_ns=0, request=0, misses=0, served=self._sequence,
            last_outcome='decided', **home,
        ).to_json()))
        if self.garbled and self._sequence % 5 == 2:   # between two good ones: newest wins
            self._command.publish(String(data=self.garbled))
        if self._sequence % 5 == 0:
            self._command.publish(String(data=Command(
                session='a' * 16, sequence=self._sequence, request=self._sequence,
                **self.asked, angular_z_rad_s=0.0,
                observation_stamp_ns=max(self.ros_ns() - 100 * MS, 1),
                arrival_ns=now_ns - 100 * MS, deadline_ns=now_ns + 200 * MS,
                valid_until_ns=now_ns + POLICY.ttl_ns, confidence=0.9, partial=False, **home,
            ).to_json()))

    def call(self, name: str) -> Trigger.Response:
        return self.ask(Trigger, name)

    def ask(self, kind: Any, name: str, node: str = '', **content: Any) -> Any:
        client = self.node.create_client(kind, f'{node or self.watchdog}/{name}')
        self.wait(client.service_is_ready, f'the service {name}')
        future = client.call_async(kind.Request(**content))
        self.wait(future.done, f'the answer of {name}')
        return future.result()

    def set(self, **values: object) -> tuple[bool, str]:
        """Set limits in one request; return whether they were taken, and why not."""
        given = [Parameter(f'limits.{name}', value=value).to_parameter_msg()
                 for name, value in values.items()]
        result = self.ask(SetParametersAtomically, 'set_parameters_atomically', parameters=given)
        return result.result.successful, result.result.reason

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
    world.wait(lambda: world.applied and world.applied[-1].linear_x_m_s > 0.25
               and world.applied[-1].source == 'model', 'driving by the model')
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


def test_what_actions_say_leaves_once_for_each_command_and_a_stop_at_the_end(
    world: World, tmp_path: Path,
) -> None:
    file = tmp_path / 'talking.yaml'
    file.write_text(FILE.read_text(encoding='utf-8').replace(
        'fast: 0.3}}}\n', 'fast: 0.3}}}\n    command: {lamp: {data: true}}\n') +
        'outputs:\n  lamp: {type: std_msgs/msg/Bool, topic: lamp, on_stop: {data: false}}\n')
    said: list[tuple[bool, int]] = []
    world.node.create_subscription(
        Bool, '/lamp', lambda msg: said.append((msg.data, len(world.applied))), 100)
    with watchdog(policy=file) as child:
        driving(world)
        world.turn(1000)
        world.processes[1].kill()
        world.wait_for(State.FALLBACK)
        world.turn(300)
        lights = [light for light, _ in said]
        commands = {a.command_sequence for a in world.applied if a.source == 'model'}
        assert lights == [True] * (len(lights) - 1) + [False]
        assert 2 <= lights.count(True) <= len(commands) + 1
        world.wait(lambda: json.loads(world.diagnosis.get('outputs', '{}')) == {
            'lamp': len(lights)}, 'them counted')
        assert json.loads(world.diagnosis['exceptions']) == 0
        child.send_signal(signal.SIGTERM)
        world.wait(lambda: child.poll() is not None, 'the end')
        assert len(said) == len(lights), 'the stop is said once'


def test_without_a_base_there_is_no_velocity_and_the_loop_goes_on(
    world: World, tmp_path: Path,
) -> None:
    file = tmp_path / 'still.yaml'
    text = FILE.read_text(encoding='utf-8')
    head, _, rest = text.partition('robot:')
    sensors = rest.partition('\n')[2].partition('  wheels')[0]
    file.write_text(
        f'{head}base: none\n{sensors}'
        'outputs:\n  lamp: {type: std_msgs/msg/Bool, topic: lamp}\n'
        'actions:\n  light: {description: light, command: {lamp: {data: true}}}\n'
        '  dark: {description: dark, command: {lamp: {data: false}}}\n'
        'decision: {rate_hz: 2, budget_ms: 400, max_observation_age_ms: 2000}\n')
    said: list[bool] = []
    world.node.create_subscription(Bool, '/lamp', lambda msg: said.append(msg.data), 100)
    world.asked = {'action': 'light', 'parameters': {}, 'linear_x_m_s': 0.0}
    with watchdog(policy=file):
        world.wait_for(State.ACTIVE)
        world.wait(lambda: said, 'a message')
        assert world.node.count_publishers('/cmd_vel') == 0
        assert {a.linear_x_m_s for a in world.applied} == {0.0}
        world.sensing = False
        world.wait_for(State.SAFE_STOP)


def test_a_required_estop_source_that_is_silent_stops(world: World) -> None:
    with watchdog(estop_required=True):
        world.wait(lambda: world.applied and world.applied[-1].cause == 'estop_never',
                   'that it was never heard')
        world.turn(1500)
        assert {applied.state for applied in world.applied} == {State.STANDBY.value}

        def leaves_standby() -> bool:
            world.estop.publish(Bool(data=False))
            return world.applied[-1].state != State.STANDBY.value
        world.wait(leaves_standby, 'another state than STANDBY')
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


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGHUP])
def test_every_polite_end_is_three_stops(world: World, number: signal.Signals) -> None:
    world.listen()
    with watchdog() as child:
        driving(world)
        child.send_signal(number)
        world.wait(lambda: child.poll() is not None, 'the end')
        world.turn(200)
        _, err = child.communicate()
    assert child.returncode == 0, err
    assert [v for _, v in world.velocities[-3:]] == [0.0, 0.0, 0.0]
    assert max(v for _, v in world.velocities) > 0.25


def test_a_watchdog_killed_and_started_again_holds_until_it_is_armed(world: World) -> None:
    with watchdog(auto_arm=False) as child:
        world.wait_for(State.HOLD)
        assert world.call('arm').success
        driving(world)
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL
    world.applied.clear()
    # The policy node goes on commanding all the while; discovery lists the dead one for a lease.
    with watchdog(auto_arm=False):
        world.wait_for(State.HOLD)
        world.turn(2000)
        assert {a.state for a in world.applied} == {'STANDBY', 'HOLD'}
        assert {(a.linear_x_m_s, a.angular_z_rad_s) for a in world.applied} == {(0.0, 0.0)}
        assert world.call('arm').success
        driving(world)


def threads(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f'/proc/{pid}/task')]


def locked_kib(pid: int) -> int:
    text = Path(f'/proc/{pid}/status').read_text()
    return int(text.split('VmLck:')[1].split()[0])


def test_fifo_and_locked_memory_are_asked_for_and_reported(world: World) -> None:
    with watchdog(realtime_priority=50, lock_memory=True) as child:
        driving(world)
        world.wait(lambda: world.state, 'a state')
        assert scheduling(child.pid) == world.state['scheduling'].split(':')[0]
        others = [scheduling(thread) for thread in threads(child.pid) if thread != child.pid]
        assert set(others) == {'other'}
        assert (locked_kib(child.pid) > 0) == (world.state['memory'] == 'locked')
        if scheduling(child.pid) != 'fifo 50':
            assert 'not permitted' in world.state['scheduling']


POWERLESS = """
import ctypes, os, sys
for capability in (14, 23):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Drops CAP_IPC_LOCK and CAP_SYS_NICE for good, where there is anything to drop."""


def test_what_the_kernel_refuses_is_said_and_gone_without(world: World) -> None:
    if resource.getrlimit(resource.RLIMIT_RTPRIO)[0] or resource.getrlimit(
        resource.RLIMIT_MEMLOCK,
    )[0] == resource.RLIM_INFINITY:
        pytest.skip('this user may do it without a capability')
    with watchdog(
        sys.executable, '-c', POWERLESS, realtime_priority=50, lock_memory=True,
    ) as child:
        driving(world)
        world.wait(lambda: world.said.get('watchdog_node: loop'), 'a diagnosis')
        assert scheduling(child.pid) == 'other'
        assert world.state['scheduling'] == (
            'other: not permitted (EPERM: Operation not permitted)')
        assert world.state['memory'].startswith('pageable: not permitted (EPERM: only ')
        assert 'not permitted' in world.said['watchdog_node: loop']
        child.terminate()
        _, err = child.communicate()
    assert err.count('realtime_priority 50: not permitted') == 1
    assert 'LimitRTPRIO' in err
    assert 'ulimit -l' in err


def test_the_state_is_told_with_its_counters_and_jitter(world: World) -> None:
    with watchdog():
        driving(world)
        world.garbled = '{"speed": NaN}'
        world.wait(lambda: world.state.get('dropped'), 'a dropped command')
        state = world.state
    assert state['state'] == 'ACTIVE'
    assert state['auto_arm'] is True
    assert 'not JSON' in state['last_dropped']
    assert state['exceptions'] == state['invariant'] == 0
    assert state['transitions']
    assert state['parameter_generation'] == 1
    for what in ('late', 'gap'):
        for span in ('minute', 'start'):
            figures = state[what][span]
            assert 0 < figures['count'] <= state['ticks']
            assert 0 <= figures['p50_ms'] <= figures['p99_ms'] <= figures['max_ms']
    assert state['gap']['start']['p50_ms'] >= 40


# --- limits that change while it runs -------------------------------------------------------


def test_limits_tighten_at_once_and_loosen_in_hold_only(world: World) -> None:
    with watchdog():
        driving(world)
        assert world.set(max_forward_m_s=0.1) == (True, '')
        world.wait(lambda: world.applied[-1].linear_x_m_s <= 0.1, 'the tighter limit')
        taken, why = world.set(max_forward_m_s=0.9)
        assert not taken
        assert 'HOLD' in why
        world.turn(500)
        assert max(a.linear_x_m_s for a in world.applied[-5:]) <= 0.1
        world.wait(lambda: world.state.get('parameter_sets_refused') == 1, 'the refusal, counted')
        assert world.state['parameter_generation'] == 2
    with watchdog(auto_arm=False):
        world.wait_for(State.HOLD)
        assert world.set(max_forward_m_s=0.9) == (True, '')


@pytest.mark.parametrize(('bad', 'says'), [
    ({'max_turn_rad_s': math.nan}, 'max_turn_rad_s'),
    ({'max_turn_rad_s': math.inf}, 'max_turn_rad_s'),
    ({'max_turn_rad_s': -1.0}, 'max_turn_rad_s'),
    ({'max_turn_rad_s': 1}, 'type'),
    ({'min_confidence': 2.0}, 'min_confidence'),
    ({'fallback_speed_m_s': 0.5}, 'speed_m_s'),
    ({'no_such_limit': 1.0}, 'no_such_limit'),
])
def test_a_set_is_refused_whole(
    alone: World, bad: dict[str, object], says: str,
) -> None:
    taken, why = alone.set(max_forward_m_s=0.2, **bad)
    assert not taken
    assert says in why
    given = [Parameter(f'limits.{name}', value=value).to_parameter_msg()
             for name, value in ({'max_forward_m_s': 0.2} | bad).items()]
    results = alone.ask(SetParameters, 'set_parameters', parameters=given).results
    assert [each.successful for each in results] == [False, False]
    names = ['limits.max_forward_m_s', 'limits.max_turn_rad_s', 'limits.fallback_speed_m_s']
    values = alone.ask(GetParameters, 'get_parameters', names=names).values
    assert [value.double_value for value in values] == [1.0, 1.5, 0.05]


def test_the_deployment_and_the_clock_cannot_be_changed(alone: World) -> None:
    for name, value in (('use_sim_time', True), ('auto_arm', True), ('lock_memory', True)):
        given = [Parameter('limits.max_forward_m_s', value=0.2).to_parameter_msg(),
                 Parameter(name, value=value).to_parameter_msg()]
        result = alone.ask(
            SetParametersAtomically, 'set_parameters_atomically', parameters=given).result
        assert not result.successful
        assert name in result.reason
    value = alone.ask(GetParameters, 'get_parameters', names=['limits.max_forward_m_s']).values[0]
    assert value.double_value == 1.0


def test_limits_are_listed_and_described_to_the_standard_tools(alone: World) -> None:
    names = alone.ask(ListParameters, 'list_parameters', prefixes=['limits']).result.names
    assert {'limits.max_forward_m_s', 'limits.min_confidence', 'limits.margin_m'} <= set(names)
    described = alone.ask(DescribeParameters, 'describe_parameters', names=names).descriptors
    assert not any(each.read_only for each in described)
    assert all('of the policy file' in each.description for each in described)
    types = alone.ask(GetParameterTypes, 'get_parameter_types', names=names).types
    assert set(types) == {Parameter.Type.DOUBLE.value}
    broken = Parameter('limits.margin_m', value=0.1).to_parameter_msg()
    broken.value.type = 99
    result = alone.ask(
        SetParametersAtomically, 'set_parameters_atomically', parameters=[broken]).result
    assert not result.successful


@pytest.fixture(scope='module')
def alone() -> Iterator[World]:
    """A world that only asks; its watchdog is in STANDBY for want of sensors."""
    with process(*SLEEPER) as node, process(*SLEEPER) as worker, watchdog(
        namespace='/alone', auto_arm=False,
    ):
        out = World(node, worker)
        out.watchdog = '/alone/watchdog_node'
        out.sensing = out.speaking = False
        yield out
        out.close()


def test_the_policy_node_keeps_its_clock_too(world: World) -> None:
    with process(sys.executable, '-m', 'smallm_ros.ros.policy_node', '--ros-args', '-r',
                 '__node:=another', '-p', f'policy:={FILE}', '-p', 'socket:=/no/such/engine'):
        given = [Parameter('use_sim_time', value=True).to_parameter_msg()]
        (result,) = world.ask(
            SetParameters, 'set_parameters', '/another', parameters=given).results
        assert not result.successful
        assert 'use_sim_time is False' in result.reason


@pytest.mark.parametrize(('given', 'says'), [
    ({'realtime_priority': 100}, 'realtime_priority'),
    ({'lock_memory': 3}, 'lock_memory'),
    ({'limits.max_forward_m_s': -1.0}, 'max_forward_m_s'),
    ({'limits.max_forward_m_s': 0.01}, 'fallback: speed_m_s'),
])
def test_parameters_that_cannot_be_are_one_line(given: dict[str, object], says: str) -> None:
    with watchdog(**given) as child:
        _, err = child.communicate(timeout=LIMIT_S)
    assert child.returncode in (2, 3)
    assert says in err
    assert 'Traceback' not in err


# --- the others on the graph ----------------------------------------------------------------


def test_a_second_publisher_and_what_does_not_fit_are_named(
    world: World, strangers: list[Any],
) -> None:
    with watchdog():
        driving(world)
        world.wait(lambda: world.state.get('graph') == [], 'a graph where all is well')
        stranger, base = strangers
        stranger.create_publisher(String, '/policy_node/status', 1)
        base.create_subscription(Twist, '/cmd_vel', lambda m: None, 1)
        world.wait(lambda: len(world.state.get('graph', ())) == 2, 'what does not fit')
        text = '; '.join(world.state['graph'])
        assert '/base listens to /cmd_vel as geometry_msgs/msg/Twist' in text
        assert '/stranger publishes /policy_node/status with a QoS that does not fit' in text
        world.wait(lambda: world.said['watchdog_node: graph'] == text, 'the same on /diagnostics')
        assert world.applied[-1].state != 'FAULT_LATCHED'
        stranger.create_publisher(TwistStamped, '/cmd_vel', 1)
        world.wait_for(State.FAULT_LATCHED)
        world.wait(lambda: world.state.get('other_publishers') == ['/stranger'], 'the name')


@pytest.fixture
def strangers() -> Iterator[list[Any]]:
    """Nodes of others, `stranger` and `base`: a participant has one type a topic."""
    contexts, nodes = [rclpy.Context(), rclpy.Context()], []
    for context, name in zip(contexts, ('stranger', 'base'), strict=True):
        rclpy.init(context=context)
        nodes.append(rclpy.create_node(name, context=context))
    yield nodes
    for context, node in zip(contexts, nodes, strict=True):
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_two_clocks_are_told(world: World) -> None:
    world.simulated_ns = 5 * SECOND
    other = world.node.create_publisher(Clock, '/clock', 1)
    with watchdog(use_sim_time=True):
        world.wait(lambda: world.node.count_publishers('/clock') > 1, 'two clocks')
        world.wait(
            lambda: f'{world.node.count_publishers("/clock")} publishers on /clock'
            in world.said.get('watchdog_node: graph', ''), 'two clocks told')
    world.node.destroy_publisher(other)


def test_lost_liveliness_is_told_beside_the_silence(world: World) -> None:
    with watchdog():
        driving(world)
        world.wait(lambda: world.state.get('policy_node_alive') == 1, 'one alive')
        losses = world.state['policy_node_losses']
        world.speaking = False
        world.wait_for(State.FALLBACK)
        world.wait(lambda: world.state['policy_node_losses'] > losses, 'the loss')
        assert world.state['policy_node_alive'] == 0


def test_the_real_policy_node_asserts_its_liveliness_and_loses_it(world: World) -> None:
    world.speaking = False
    world.node.destroy_publisher(world._status)  # the only one shall be the real one
    with watchdog(), process(
        sys.executable, '-m', 'smallm_ros.ros.policy_node', '--ros-args',
        '-p', f'policy:={FILE}', '-p', 'socket:=/no/such/engine',
    ) as node:
        world.wait(lambda: 'engine_absent' in world.state.get('causes', ()), 'its status')
        assert world.state['policy_node_alive'] == 1
        assert world.state['graph'] == []
        losses = world.state['policy_node_losses']
        node.send_signal(signal.SIGSTOP)
        world.wait(lambda: world.state['policy_node_losses'] > losses, 'the loss')
        world.wait(lambda: 'status_silent' in world.state['causes'], 'the silence')


def test_a_pipe_that_nobody_reads_stops_no_command(world: World) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b'.' * 4096)
    os.set_blocking(writing, True)  # for the child: one description, one flag
    world.listen()
    with watchdog(stderr=writing) as child:
        driving(world)
        before = world.applied[-1].sequence
        world.wait(lambda: world.applied[-1].sequence > before + 30, 'thirty ticks')
        assert world.velocities[-1][1] > 0.0
        os.set_blocking(writing, False)
        with pytest.raises(BlockingIOError):  # full all the while: its lines are waiting
            os.write(writing, b'.')
        os.set_blocking(writing, True)
        other = world.node.create_publisher(TwistStamped, '/cmd_vel', 1)
        world.wait_for(State.FAULT_LATCHED)  # the graph is looked at none the less
        world.node.destroy_publisher(other)
        child.terminate()
        world.wait(lambda: child.poll() is not None, 'the end')
        assert child.returncode == 0
    assert [v for _, v in world.velocities[-3:]] == [0.0, 0.0, 0.0]
    os.close(reading)
    os.close(writing)


def fast_dds_segments(pid: int) -> list[str]:
    lines = Path(f'/proc/{pid}/maps').read_text().splitlines()
    return [line for line in lines if '/dev/shm/fast' in line]


def test_the_watchdog_shares_no_memory_with_others_unless_told(
    world: World, monkeypatch: pytest.MonkeyPatch,
) -> None:
    with watchdog() as child:
        world.wait(lambda: 'transport' in world.state, 'a state')
        assert world.state['transport'] == 'nothing shared'
        assert fast_dds_segments(child.pid) == []
        assert fast_dds_segments(os.getpid()), 'this process does: Fast DDS would'
    world.state.clear()
    monkeypatch.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'DEFAULT')
    with watchdog() as child:
        world.wait(lambda: 'transport' in world.state, 'a state')
        assert world.state['transport'].startswith('shared memory')
        assert fast_dds_segments(child.pid)


UDP = 'UDPv4?sockets_size=4194304B'
SOCKETS = """
import os, socket
from smallm_ros.ros.transport import share_nothing
share_nothing(os.environ)
import rclpy
rclpy.init()
node = rclpy.create_node('ear')
for name in os.listdir('/proc/self/fd'):
    try:
        link = os.readlink(f'/proc/self/fd/{name}')
    except OSError:
        continue
    if link.startswith('socket:'):
        with socket.socket(fileno=os.dup(int(name))) as found:
            if found.type == socket.SOCK_DGRAM and found.family == socket.AF_INET:
                print(found.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
"""


@pytest.mark.parametrize('where', ['SUBNET', 'LOCALHOST'])
def test_its_sockets_have_room_for_a_cloud(where: str) -> None:
    most = int(Path('/proc/sys/net/core/rmem_max').read_text(encoding='ascii'))
    said = subprocess.run([sys.executable, '-c', SOCKETS], env=os.environ | {RANGE: where},
                          cwd=ROOT, capture_output=True, text=True, check=True)
    rooms = [int(line) for line in said.stdout.split()]
    assert rooms, said.stderr
    assert max(rooms) >= min(most, RECEIVE_BYTES)


@pytest.mark.parametrize(('given', 'added'), [
    ({}, {'FASTDDS_BUILTIN_TRANSPORTS': UDP}),
    ({'RMW_IMPLEMENTATION': 'rmw_fastrtps_dynamic_cpp'}, {'FASTDDS_BUILTIN_TRANSPORTS': UDP}),
    ({'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'}, {}),
    ({'FASTDDS_BUILTIN_TRANSPORTS': 'LARGE_DATA'}, {}),
    ({'FASTRTPS_DEFAULT_PROFILES_FILE': '/mine.xml', RANGE: 'LOCALHOST'}, {}),
    ({RANGE: 'LOCALHOST'}, {RANGE: 'SYSTEM_DEFAULT', 'FASTDDS_DEFAULT_PROFILES_FILE':
                            str(ROOT / 'config' / 'watchdog_transport.xml')}),
])
def test_what_the_operator_chose_of_the_transport_stays(
    given: dict[str, str], added: dict[str, str],
) -> None:
    environment = dict(given)
    share_nothing(environment)
    assert environment == {**given, **added}


def herald_of(child: subprocess.Popen[str]) -> int:
    [pid] = Path(f'/proc/{child.pid}/task/{child.pid}/children').read_text().split()
    return int(pid)


def test_a_herald_that_stands_still_delays_nothing_and_one_that_died_comes_back(
    world: World,
) -> None:
    with watchdog() as child:
        driving(world)
        world.wait(lambda: world.state.get('publishers') == 1, 'a first look')
        first = herald_of(child)
        os.kill(first, signal.SIGSTOP)
        told, count = world.state['steady_ns'], len(world.applied)
        world.turn(3000)
        assert world.state['steady_ns'] == told
        assert len(world.applied) - count > 40
        assert {applied.state for applied in world.applied[count:]} == {State.ACTIVE.value}
        os.kill(first, signal.SIGKILL)
        world.wait(lambda: world.state.get('steady_ns', 0) > told, 'another herald')
        world.wait(lambda: world.state.get('publishers') == 1, 'what it found')
        assert herald_of(child) != first
        assert world.applied[-1].state == State.ACTIVE.value


def test_what_cannot_be_told_stops_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch,
) -> None:
    rclpy.init(args=['--ros-args', '-p', f'policy:={FILE}'])
    try:
        node = WatchdogNode()
        monkeypatch.setattr(node, '_tell_programs', lambda *_: 1 / 0)
        monkeypatch.setattr(node._parameter_requests, 'answer_waiting', lambda *_: 1 / 0)
        heard = subscribe(world.node, TwistStamped, '/cmd_vel', qos.CMD_VEL)
        world.wait(lambda: node._cmd_vel.get_subscription_count() == 1, 'discovery')
        node._tick(0)
        end_ns = steady.now_ns() + 5 * SECOND
        while take(heard) is None:
            assert steady.now_ns() < end_ns
        assert node._exceptions == 1
        assert 'ZeroDivisionError' in node._heard.why_dropped
        node.close()
        node.destroy_node()
    finally:
        rclpy.shutdown()


def test_a_step_that_raises_publishes_a_stop_and_three_latch(
    world: World, monkeypatch: pytest.MonkeyPatch,
) -> None:
    rclpy.init(args=['--ros-args', '-p', f'policy:={FILE}'])
    try:
        node = WatchdogNode()
        heard = subscribe(world.node, TwistStamped, '/cmd_vel', qos.CMD_VEL)
        world.wait(lambda: node._cmd_vel.get_subscription_count() == 1, 'discovery')
        monkeypatch.setattr(node._gate, 'step', lambda *_: 1 / 0)
        for n, state in enumerate((State.STANDBY, State.STANDBY, State.FAULT_LATCHED)):
            node._tick(0)
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


LARGE = (sys.executable, '-c', 'import time; kept = b"1" * (400 << 20); time.sleep(60)')


def wait_for_pages(pid: int, count: int) -> None:
    end_ns = steady.now_ns() + 20 * SECOND
    while int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * resource.getpagesize() < count:
        assert steady.now_ns() < end_ns


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGABRT])
def test_a_death_is_seen_before_the_memory_is_taken_down(number: signal.Signals) -> None:
    for _ in range(5):  # this process may be away for just that long
        watch = ProcessWatch()
        with process(*LARGE) as child:
            wait_for_pages(child.pid, 400 << 20)
            ticks = start_ticks(child.pid)
            assert ticks is not None
            watch.watch((child.pid, ticks))
            assert watch.dead() == frozenset()
            pidfd = os.pidfd_open(child.pid)
            child.send_signal(number)
            end_ns = steady.now_ns() + 5 * SECOND
            while not watch.dead():
                assert steady.now_ns() < end_ns
            early = not select.select([pidfd], [], [], 0)[0]
            os.close(pidfd)
            child.wait()
        watch.close()
        if early:
            return
    pytest.fail('seen no sooner than by the pidfd, five times')


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


def descriptors_left() -> int:
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    for descriptor in taken:
        os.close(descriptor)
    return len(taken)


def test_without_a_descriptor_left_nobody_is_taken_for_dead() -> None:
    watch = ProcessWatch()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with process(*SLEEPER) as child:
        ticks = start_ticks(child.pid)
        assert ticks is not None
        name = (child.pid, ticks)
        free = os.open('/dev/null', os.O_RDONLY)
        os.close(free)  # the lowest that is free
        for left in (0, 1):  # none for the pidfd; one for it, and none for /proc
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, hard))
            try:
                assert descriptors_left() == left
                watch.watch(name)
                assert watch.dead() == frozenset()
                assert not watch._fds
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        watch.watch(name)
        child.kill()
        child.wait()
        assert watch.dead() == {name}
    watch.close()


def test_jitter_is_read_off_a_ring_and_a_histogram() -> None:
    jitter = Jitter(100)
    assert jitter.last_minute() == jitter.since_start() == {
        'count': 0, 'p50_ms': 0.0, 'p99_ms': 0.0, 'max_ms': 0.0}
    for ms in range(1, 101):
        jitter.add(ms * MS)
    assert jitter.last_minute() == {'count': 100, 'p50_ms': 50, 'p99_ms': 99, 'max_ms': 100}
    start = jitter.since_start()
    assert 50 <= start['p50_ms'] <= 50 * 9 / 8
    assert start['max_ms'] == 100
    for _ in range(100):
        jitter.add(MS)
    assert jitter.last_minute()['max_ms'] == 1
    assert jitter.since_start()['max_ms'] == 100
    assert jitter.since_start()['count'] == 200
    jitter.add(2**62)
    assert jitter.since_start()['max_ms'] == 2**62 / MS


@pytest.mark.parametrize('text', [
    '', '{', '[]', 'null', '{"version": 1}', '[' * 60_000, '{"a": NaN}', '{"a": 1e999}',
    '{"a": ' + '9' * 5000 + '}', '\ud800', 'x' * (1 << 22), '{"a": 1, "a": 2}',
])
def test_what_is_no_command_is_dropped_by_name(text: str) -> None:
    heard = Heard(POLICY)
    heard.command_text(text, 1)
    heard.status_text(text, 1)
    assert heard.command is heard.status is None
    assert heard.dropped == 2
    assert 0 < len(heard.why_dropped) <= 300


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


def test_a_reply_waits_until_its_asker_is_connected() -> None:
    replies, sent = Replies(), []
    replies.put(0, sent.append, 'first')
    replies.put(50 * MS, sent.append, 'second')
    replies.send_due(REPLY_AFTER_NS - 1)
    assert sent == []
    replies.send_due(REPLY_AFTER_NS)
    assert sent == ['first']
    replies.send_due(REPLY_AFTER_NS + 50 * MS)
    assert sent == ['first', 'second']


def test_a_polled_service_answers(world: World) -> None:
    service = serve(world.node, Trigger, 'polled')
    assert take_request(service) is None
    other = rclpy.create_node('other', context=world.context)
    client = other.create_client(Trigger, 'polled')
    world.wait(client.service_is_ready, 'the service')
    future = client.call_async(Trigger.Request())
    end_ns = steady.now_ns() + 5 * SECOND
    while (taken := take_request(service)) is None:
        assert steady.now_ns() < end_ns
    taken[1](Trigger.Response(success=True, message='yes'))
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
