"""A virtual robot around the real gate: quick, seedable, and broken on order.

A round room, a base that acts late, sensors, an engine, a policy node and an operator, advanced
one control period at a time on a manual clock. Whatever is done to it is an event (`faults`), a
name and numbers, noted with its tick: a run is its `Setting` and its events, and goes again the
same.
Nothing in here judges; that is `oracle`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from smallm_ros.core.action import STOP, Command, NodeStatus, Velocity
from smallm_ros.core.cause import Dwells
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import DroppedError
from smallm_ros.core.facts import CommandArrival, Inputs, Process, StatusArrival
from smallm_ros.core.gate import Gate, Output, State
from smallm_ros.core.observation import Fields, Received
from smallm_ros.core.policy import Policy, parse_policy
from smallm_ros.core.sensor import SensorBase
from smallm_ros.core.summary.odometry import Odometry, OdometrySensor
from smallm_ros.core.summary.scan import Scan, ScanSensor
from smallm_ros.ros.convert import fields_of

BEAMS = 36
ROOM_M = 3.0
PERIOD_NS = 50 * MS
DELAY_NS = 100 * MS
SEGMENT_NS = 25 * MS
HOST, BOOT = 'robot', 'boot-1'
LATENCY_NS = 80 * MS
BOUND_NS = 130 * MS
LOADING_NS = 100 * MS
SCAN_PERIODS = 2
GIVEN: dict[str, Any] = {'topic': 'any', 'rate_hz': 10, 'stale_after_ms': 500}
SENSORS: dict[str, SensorBase] = {
    'scan': ScanSensor(type='sensor_msgs/msg/LaserScan', **GIVEN),
    'odom': OdometrySensor(type='nav_msgs/msg/Odometry', **GIVEN),
    'wheels': OdometrySensor(type='nav_msgs/msg/Odometry', **GIVEN),
}


LADDERS = {'creep': ['creep', 'stop'], 'gap': ['hold', 'follow_gap', 'stop'],
           'turn': ['hold', 'turn_to_free', 'decelerate', 'stop']}


@cache
def policy_of(ladder: str = 'creep', **envelope: float) -> Policy:
    """Return the round robot, deciding faster, with other numbers of its envelope."""
    path = Path(__file__).parent.parent / 'fakes' / 'round_robot.yaml'
    content = yaml.safe_load(path.read_text())
    content['decision'] |= {'rate_hz': 4, 'budget_ms': 200, 'max_observation_age_ms': 900}
    content['control'] |= {
        'rate_hz': SECOND / PERIOD_NS, 'allowed_lateness_ms': 5, 'progress_limit_ms': 200,
        'status_limit_ms': 300, 'reaction_time_ms': 500,
    }
    content['envelope'] |= envelope
    content['fallback'] |= {'ladder': LADDERS[ladder]}
    return parse_policy(yaml.safe_dump(content).encode(), path.name)


POLICY = policy_of()
DECISION_NS = POLICY.decision_period_ns
ANSWERS = (
    ('forward', {'speed': 'fast'}, 0.3, 0.0),
    ('forward', {'speed': 'fast'}, 0.3, 0.0),
    ('left', {}, 0.1, 0.5),
    ('forward', {'speed': 'slow'}, 0.1, 0.0),
    ('left', {}, 0.1, 0.5),
)

SHORT = Dwells(
    standby_good_ns=150 * MS, degraded_clean_ns=100 * MS, degraded_answers=1,
    miss_window_ns=2 * SECOND, fallback_clean_ns=200 * MS, shadow_answers=1,
    safe_stop_clear_ns=150 * MS, estop_released_ns=100 * MS, engine_death_window_ns=2 * SECOND,
    return_window_ns=0,
)
PROFILES = {'short': SHORT, 'shipped': Dwells()}


class Broken(AssertionError):
    """Something did not hold that always must."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run begins with."""

    auto_arm: bool = True
    profile: str = 'short'
    wheels: bool = False
    """Whether the optional sensor speaks."""
    simulated: bool = True
    """Whether ROS time is /clock's."""
    ladder: str = 'creep'


@dataclass(slots=True)
class Work:
    """A request in the engine."""

    request: int
    asked_ns: int
    left_ns: float
    deadline_ns: int
    arrival_ns: int
    stamp_ns: int


@dataclass(slots=True)
class Edges:
    """What an operator asks for in one period."""

    arm: bool = False
    reset: bool = False


class Robot:
    """One run."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.dwells = PROFILES[setting.profile]
        self.policy = policy_of(setting.ladder)
        """What holds now: it may be retuned."""
        self.gate = Gate(
            self.policy, auto_arm=setting.auto_arm, host=HOST, boot=BOOT, dwells=self.dwells)
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.ticks = 0
        self.now_ns = 1_000 * SECOND
        self.ros_ns: float = 5_000 * SECOND
        self.since_ns = 0
        self.last: Output | None = None
        self.inputs: Inputs | None = None
        self.excepted = False
        # the world
        self.x = self.y = self.yaw = self.v = self.w = 0.0
        self.told: deque[tuple[int, Velocity]] = deque([(self.now_ns, STOP)])
        self.honest = True
        """Whether the sensors told the truth and the loop was on time since the last rest."""
        # sensors
        self.newest: dict[str, Received] = {}
        self.past: dict[str, deque[Fields]] = {name: deque(maxlen=8) for name in SENSORS}
        # processes
        self.sessions = self.pids = 0
        self.node: Process = (0, 0)
        self.worker: Process = (0, 0)
        self.dead: set[Process] = set()
        self.genuine: deque[Command] = deque(maxlen=16)
        self.new_session()
        self.new_worker()
        self.status: StatusArrival | None = None
        self.applied: tuple[str, int, int] | None = None
        """Session, sequence and request of the command that was applied last."""
        self.command: CommandArrival | None = None
        # how many times what latches was done, for the oracle
        self.deaths: list[int] = []
        self.exceptions: list[int] = []
        self.intruded = False
        self.heal()

    # --- what events change -----------------------------------------------------------------

    def heal(self) -> None:
        """End every fault; what was learnt, latched or lost stays so."""
        self.happened_ns: int | None = None
        self.phase_ns: int | None = None
        self.sensor_faults: dict[str, tuple[str, float]] = {}
        self.clock_rate, self.clock_absent = 1.0, False
        self.estop = self.estop_silent = self.estop_never = False
        self.flapping = 0
        self.publishers: int | None = 1
        self.status_with: dict[str, Any] = {}
        self.status_silent = self.commands_silent = False
        self.frozen_until_ns = self.node_frozen_until_ns = 0
        self.slow, self.stalled, self.bad = 1.0, False, ''
        self.kill_when: tuple[str, bool] | None = None
        self.deaths_left = 0
        self.hostile: tuple[str, float] | None = None
        self.forwards_late = False
        self.two_nodes = False
        self.raises = 0
        self.operating = False
        self.edges = Edges()
        self.next_period_ns = PERIOD_NS
        if self.node in self.dead:
            self.new_session()
        if self.worker in self.dead:
            self.new_worker()
        if not self.honest:
            self.x = self.y = self.v = self.w = 0.0
            self.told = deque([(self.now_ns, STOP)])
            self.newest.pop('scan', None)
            self.honest = True

    def retune(self, **envelope: float) -> str:
        """Ask the gate to take other limits; return why it does not."""
        policy = policy_of(self.setting.ladder, **envelope)
        refused = self.gate.retune(policy)
        if not refused:
            self.policy = policy
        return refused

    def new_session(self) -> None:
        self.sessions += 1
        self.pids += 1
        self.session = f'{self.sessions:016x}'
        self.node = (1000 + self.pids, 7)
        self.sequence = self.command_sequence = self.request = self.misses = self.served = 0
        self.open: Work | None = None
        self.works: list[Work] = []
        self.outcome = 'decided'
        self.next_decision_ns = self.now_ns

    def new_worker(self) -> None:
        self.pids += 1
        self.worker = (1000 + self.pids, 7)
        self.works: list[Work] = []
        self.progress_ns = self.now_ns
        self.in_flight = (0, 0)
        """The batch that the engine said it has, and since when."""
        self.ready_ns = self.now_ns + (LOADING_NS if self.ticks else 0)

    def kill_worker(self) -> None:
        if self.worker not in self.dead:
            self.dead.add(self.worker)
            self.deaths.append(self.now_ns)
            self.works = []

    # --- one control period -----------------------------------------------------------------

    def tick(self) -> Output:
        period_ns, self.next_period_ns = self.next_period_ns, PERIOD_NS
        before_ns, self.now_ns = self.now_ns, self.now_ns + period_ns
        self.since_ns = period_ns
        self.ticks += 1
        self._move(before_ns)
        if period_ns > PERIOD_NS + POLICY.allowed_lateness_ns:
            self.honest = False
        ros_now_ns = None
        if not self.clock_absent:
            self.ros_ns += period_ns * self.clock_rate
            ros_now_ns = int(self.ros_ns)
        if self.phase_ns is not None:
            self.happened_ns, self.phase_ns = self.now_ns - self.phase_ns, None
        self._sense(ros_now_ns)
        self._work(period_ns)
        if self.node_frozen_until_ns <= self.now_ns and self.node not in self.dead:
            self._decide(ros_now_ns)
            if self.hostile is not None:
                self._attack(ros_now_ns)
            if not self.status_silent:
                self._tell()
        if self.two_nodes:
            self._tell(session=f'{self.ticks:015x}f', pid=77)
        if self.flapping:
            self.estop = self.ticks % self.flapping == 0
        edges = self._edges()
        self.inputs = Inputs(
            ros_now_ns=ros_now_ns, simulated=self.setting.simulated,
            sensors=dict(self.newest), command=self.command, status=self.status,
            dead=frozenset(self.dead), estop=self.estop,
            estop_silent=self.estop_silent, estop_never=self.estop_never,
            publishers=self.publishers,
            arm=edges.arm, reset=edges.reset,
        )
        self.excepted = self.raises > 0
        if self.excepted:
            self.raises -= 1
            self.exceptions.append(self.now_ns)
            out = self.gate.excepted(self.now_ns, 'planted')
        else:
            out = self.gate.step(self.now_ns, self.inputs)
        if self.publishers is not None and self.publishers > 1:
            self.intruded = True
        if out.command is not None:
            self.applied = out.command.session, out.command.sequence, out.command.request
        self.told.append((self.now_ns, out.velocity))
        self.last = out
        return out

    def _edges(self) -> Edges:
        """Return what is asked for now; a present operator does what is due."""
        edges, self.edges = self.edges, Edges()
        if not self.operating or self.ticks % 2:
            return edges
        state = self.gate.state
        return Edges(arm=state is State.HOLD, reset=state is State.ESTOP_LATCHED)

    # --- the world --------------------------------------------------------------------------

    def _move(self, at_ns: int) -> None:
        """Drive: the command of DELAY ago, braking no harder than declared."""
        told = self.told
        brakes = POLICY.envelope.max_deceleration_m_s2
        while at_ns < self.now_ns:
            dt_ns = min(SEGMENT_NS, self.now_ns - at_ns)
            at_ns += dt_ns
            while len(told) > 1 and told[1][0] + DELAY_NS < at_ns:
                told.popleft()
            goal, dt_s = told[0][1], dt_ns / SECOND
            v = goal.linear_x_m_s
            if self.v * v < 0.0:
                v = 0.0  # through standing
            if abs(v) < abs(self.v):
                v = math.copysign(max(abs(v), abs(self.v) - brakes * dt_s), self.v)
            self.v, self.w = v, goal.angular_z_rad_s
            self.yaw += self.w * dt_s
            self.x += v * math.cos(self.yaw) * dt_s
            self.y += v * math.sin(self.yaw) * dt_s

    def clearance_m(self) -> float:
        return ROOM_M - math.hypot(self.x, self.y) - POLICY.robot.radius_m

    def ranges(self) -> np.ndarray[Any, Any]:
        """Return what a laser at base_link sees of the round room."""
        angles = self.yaw + _ANGLES
        along = self.x * np.cos(angles) + self.y * np.sin(angles)
        square = along * along + (ROOM_M * ROOM_M - self.x * self.x - self.y * self.y)
        return (np.sqrt(np.maximum(square, 0.0)) - along).astype(np.float32)

    # --- sensors ----------------------------------------------------------------------------

    def _sense(self, ros_now_ns: int | None) -> None:
        if ros_now_ns is not None and self.clock_rate == 0.0:
            return  # a paused world sends nothing
        stamp_ns = ros_now_ns or 0
        for name in SENSORS:
            fault = self.sensor_faults.get(name)
            if name == 'wheels' and not self.setting.wheels:
                continue
            if name == 'scan' and self.ticks % SCAN_PERIODS:
                continue
            fields = (
                self._scan(stamp_ns) if name == 'scan' else
                Odometry(stamp_ns, 'odom', self.x, self.y, 0.0, self.v, self.w)
            )
            if fault is not None:
                broken = self._break(name, fault, fields, stamp_ns)
                if broken is None:
                    continue
                fields = broken
            self.past[name].append(fields)
            self.newest[name] = Received(
                name, fields, self.now_ns, ros_now_ns if self.setting.simulated else None)

    def _scan(self, stamp_ns: int, ranges: np.ndarray[Any, Any] | None = None) -> Scan:
        return Scan(stamp_ns, 'laser', -math.pi, 2 * math.pi / BEAMS, 0.05, 12.0,
                    self.ranges() if ranges is None else ranges)

    def _break(
        self, name: str, fault: tuple[str, float], fields: Fields, stamp_ns: int,
    ) -> Fields | None:
        """Return what a broken sensor says instead; None when nothing of it gets through."""
        mode, number = fault
        past = self.past[name]
        if mode == 'silent':
            return None
        if mode == 'stamp':  # 0 by its own mode: a stamp of exactly 0 is none
            return _stamped(fields, max(1, stamp_ns + round(number)))
        if mode == 'stamp_zero':
            return _stamped(fields, 0)
        if mode == 'frozen_stamp':
            return _stamped(fields, past[-1].stamp_ns) if past else fields
        if mode == 'duplicate':
            return past[-1] if past and self.ticks % 4 else fields
        if mode == 'order':
            return past[-2] if len(past) > 1 and self.ticks % 4 else fields
        if name == 'scan' and mode == 'inf':
            self.honest = False
        return _garbled(name, mode, fields)

    # --- the engine and the policy node -----------------------------------------------------

    def _work(self, period_ns: int) -> None:
        """Let the engine work for a period, or die, or stand still."""
        if self.kill_when is not None:
            self._kill_in_its_phase(*self.kill_when)
        if self.deaths_left and self.worker in self.dead:
            self.new_worker()
            self.ready_ns = self.now_ns
        elif self.deaths_left:
            self.kill_worker()
            self.deaths_left -= 1
        if self.worker in self.dead or self.frozen_until_ns > self.now_ns or self.stalled:
            return
        if self.works:
            work = self.works[0]
            work.left_ns -= period_ns / self.slow
            if work.left_ns <= 0:
                self.works.pop(0)
                self.progress_ns = self.now_ns
                self._answer(work)
                for waits in self.works:
                    waits.asked_ns = self.now_ns
        else:
            self.progress_ns = self.now_ns
        running = self.works[0] if self.works else None
        self.in_flight = (running.request, running.asked_ns) if running else (0, 0)

    def _kill_in_its_phase(self, phase: str, told: bool) -> None:
        left_ns = self.works[0].left_ns if self.works else 0.0
        writing = bool(self.works) and left_ns <= PERIOD_NS
        if phase == ('idle' if not self.works else 'writing' if writing else 'prefill'):
            self.kill_when = None
            self.happened_ns = self.now_ns
            self.kill_worker()
            self.status_with = {'engine': 'absent', 'worker_pid': 0} if told else {}

    def _answer(self, work: Work) -> None:
        if self.node in self.dead or self.node_frozen_until_ns > self.now_ns:
            return
        own = self.open is work
        if own:
            self.open = None
            late = self.now_ns > work.deadline_ns
            if late or self.bad:
                self.misses += 1
                self.outcome = self.bad or 'missed'
                own = False
                if self.bad or not self.forwards_late:
                    return
        if own:
            self.served += 1
            self.outcome = 'decided'
        elif not self.forwards_late:
            return
        if not self.commands_silent:
            command = self._send(self._command_of(work))
            # The loop looks once in a period, and so is a command taken that was on time.
            if self.now_ns <= work.deadline_ns + PERIOD_NS + POLICY.allowed_lateness_ns:
                self.genuine.append(command)

    def _send(self, values: dict[str, Any]) -> Command:
        command = Command.model_construct(**values)
        self.command = CommandArrival(command, self.now_ns)
        return command

    def _command_of(self, work: Work) -> dict[str, Any]:
        self.command_sequence += 1
        action, parameters, v, w = ANSWERS[work.request % len(ANSWERS)]
        if self.clearance_m() < 0.6:
            action, parameters, v, w = ANSWERS[2]
        return {
            'version': 1, 'session': self.session, 'sequence': self.command_sequence,
            'request': work.request, 'action': action, 'parameters': parameters,
            'linear_x_m_s': v, 'angular_z_rad_s': w, 'observation_stamp_ns': work.stamp_ns,
            'arrival_ns': work.arrival_ns, 'deadline_ns': work.deadline_ns,
            'valid_until_ns': self.now_ns + POLICY.ttl_ns, 'confidence': 0.9, 'partial': False,
            'host': HOST, 'boot': BOOT,
        }

    def _decide(self, ros_now_ns: int | None) -> None:
        """Be the policy node for a period."""
        if self.open is not None and self.now_ns > self.open.deadline_ns:
            self.open = None
            self.misses += 1
            self.outcome = 'missed'
        if self.now_ns < self.next_decision_ns:
            return
        self.next_decision_ns = self.now_ns + DECISION_NS
        readings = [self.newest.get(name) for name in ('scan', 'odom')]
        if ros_now_ns is None or any(
            r is None or self.now_ns - r.arrival_ns > 300 * MS for r in readings
        ):
            return
        if self.status_with.get('engine', 'ready') != 'ready' or self.worker in self.dead or (
            self.now_ns < self.ready_ns
        ):
            self.outcome = 'no engine'
            return
        self.request += 1
        scan, odom = readings
        assert scan is not None and odom is not None
        arrival_ns = max(scan.arrival_ns, odom.arrival_ns)
        self.open = Work(
            self.request, self.now_ns, LATENCY_NS + self.request % 3 * 10 * MS,
            self.now_ns + POLICY.budget_ns, arrival_ns,
            min(scan.fields.stamp_ns, odom.fields.stamp_ns),
        )
        self.works = [*self.works[:1], self.open]

    def _attack(self, ros_now_ns: int | None) -> None:
        """Send one command that must never be applied."""
        assert self.hostile is not None
        kind, number = self.hostile
        if self.applied is None or self.applied[0] != self.session or self.works:
            return  # nothing to repeat yet, or busy with an honest one
        self.hostile, self.happened_ns = None, self.now_ns
        now_ns = self.now_ns
        work = Work(self.request, now_ns, 0, now_ns, now_ns - 100 * MS, int(ros_now_ns or 0))
        values = self._command_of(work)
        values |= {'request': self.request + 1, 'action': 'forward',
                   'parameters': {'speed': 'fast'}, 'linear_x_m_s': 0.3, 'angular_z_rad_s': 0.0}
        past = -round(number)
        values |= {
            'out_of_range': {'linear_x_m_s': number},
            'nan': {'linear_x_m_s': math.nan} if number < 0 else {'angular_z_rad_s': math.nan},
            'stale': {'deadline_ns': max(0, now_ns + past - PERIOD_NS - 5 * MS)},
            'expired': {'valid_until_ns': max(0, now_ns + past)},
            'old': {'arrival_ns': max(0, now_ns + past - POLICY.max_observation_age_ns)},
            'future': {'arrival_ns': now_ns + round(number)},
            'future_stamp': {'observation_stamp_ns': int(ros_now_ns or 0) + round(number)
                             + POLICY.max_observation_age_ns},
            'immortal': {'valid_until_ns': now_ns + POLICY.ttl_ns + round(number)},
            'duplicate': {'sequence': max(1, self.applied[1] - round(number))},
            'wrong_request': {'request': max(1, self.applied[2] - round(number))},
            'unknown_source': {'session': 'f' * 16},
            'foreign_host': {'host': 'other'} if number < 0 else {'boot': 'boot-0'},
            'no_action': {'action': 'fly'} if number < 0 else {'parameters': {'speed': 'warp'}},
            'unsure': {'confidence': 0.1} if number < 0 else {'confidence': math.nan},
        }[kind]
        self._send(values)
        self.open, self.works = None, []  # this was the answer
        self.request += 1

    def _tell(self, **changed: Any) -> None:
        """Send the node's status."""
        self.sequence += 1
        in_flight, since_ns = self.in_flight
        engine, worker = 'ready', self.worker
        if self.now_ns < self.ready_ns:
            engine = 'loading'
        values: dict[str, Any] = {
            'version': 1, 'session': self.session, 'sequence': self.sequence,
            'steady_ns': self.now_ns, 'pid': self.node[0], 'start_ticks': self.node[1],
            'active': True, 'engine': engine,
            'worker_pid': worker[0], 'worker_start_ticks': worker[1], 'progress': self.request,
            'progress_ns': self.progress_ns, 'in_flight': in_flight,
            'in_flight_since_ns': since_ns, 'in_flight_bound_ns': BOUND_NS if in_flight else 0,
            'request': self.open.request if self.open else 0, 'misses': self.misses,
            'served': self.served, 'last_outcome': self.outcome, 'host': HOST, 'boot': BOOT,
            **self.status_with, **changed,
        }
        self.status = StatusArrival(NodeStatus.model_construct(**values), self.now_ns)


_ANGLES = -math.pi + 2 * math.pi / BEAMS * np.arange(BEAMS)


def _stamped(fields: Fields, stamp_ns: int) -> Fields:
    if isinstance(fields, Scan):
        return Scan(stamp_ns, 'laser', -math.pi, 2 * math.pi / BEAMS, 0.05, 12.0,
                    fields.ranges_m)
    assert isinstance(fields, Odometry)
    return Odometry(stamp_ns, 'odom', fields.x_m, fields.y_m, 0.0, fields.linear_x_m_s,
                    fields.angular_z_rad_s)


def _garbled(name: str, mode: str, fields: Fields) -> Fields | None:
    """Put a sensor's message with broken content through the real converter."""
    stamp = SimpleNamespace(**dict(zip(
        ('sec', 'nanosec'), divmod(fields.stamp_ns, SECOND), strict=True)))
    header = SimpleNamespace(stamp=stamp, frame_id='laser')
    number = {'nan': math.nan, 'inf': math.inf, 'minus_inf': -math.inf}.get(mode, 0.0)
    if isinstance(fields, Scan):
        ranges = {
            'empty': [], 'length': list(fields.ranges_m[:5]), 'zero': [0.0] * BEAMS,
        }.get(mode, [number] * BEAMS)
        message = SimpleNamespace(
            header=header, ranges=ranges, angle_min=-math.pi,
            angle_increment=2 * math.pi / BEAMS, range_min=0.05, range_max=12.0)
    else:
        nowhere = SimpleNamespace(
            position=SimpleNamespace(x=number, y=0.0),
            orientation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=0.0 if mode == 'zero' else 1.0))
        speed = SimpleNamespace(
            linear=SimpleNamespace(x=number), angular=SimpleNamespace(z=0.0))
        message = SimpleNamespace(
            header=header, pose=SimpleNamespace(pose=nowhere),
            twist=SimpleNamespace(twist=speed))
        if mode in ('empty', 'length'):
            del message.twist
    try:
        return fields_of(SENSORS[name], message)
    except DroppedError:
        return None  # the last good one grows old
