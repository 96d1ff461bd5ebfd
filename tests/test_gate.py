"""The gate: stories of instants on a manual clock, at each limit and one tick past it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from smallm_ros.core.action import STOP, ActionSpace, Applied, Command, NodeStatus, Velocity
from smallm_ros.core.cause import (
    CLEARS,
    RESPONSES,
    Cause,
    Clears,
    Dwells,
    Finding,
    Response,
)
from smallm_ros.core.clock import MS, SECOND, ManualClock
from smallm_ros.core.driven import Driven
from smallm_ros.core.dwell import Patience
from smallm_ros.core.envelope import reach_m
from smallm_ros.core.facts import CommandArrival, Inputs, Process, StatusArrival
from smallm_ros.core.gate import BOLDEST_FIRST, TABLE, Gate, Output, State
from smallm_ros.core.invariants import Invariants, broken_limit
from smallm_ros.core.observation import Fields, Received
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.core.retune import CAREFUL, compare
from smallm_ros.core.summary.battery import Battery, BatterySensor
from smallm_ros.core.summary.goal import Goal
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.scan import Scan
from tests.fakes.point_world import PointWorld

POLICY = load_policy(Path(__file__).parent / 'fakes' / 'round_robot.yaml')
SPACE = ActionSpace.of(POLICY)
PERIOD_MS = 50
HERE = ('robot', 'boot-1')
A, B = 'a' * 16, 'b' * 16
NODE, WORKER = (100, 1), (200, 1)
BEAMS = np.full(360, np.inf, dtype=np.float32)


class Story:
    """A healthy robot, told period by period; a story changes one thing and looks."""

    def __init__(
        self, *, auto_arm: bool = True, dwells: Dwells | None = None, policy: Policy = POLICY,
    ) -> None:
        self.clock = ManualClock()
        self.ros_ns = 5_000 * SECOND
        self.ros_rate = 1.0
        self.gate = Gate(policy, auto_arm=auto_arm, host=HERE[0], boot=HERE[1], dwells=dwells)
        self.session = A
        self.node: Process = NODE
        self.worker: Process = WORKER
        self.dead: set[Process] = set()
        self.publishers: int | None = 1
        self.estop = self.estop_silent = self.estop_never = False
        self.silent: set[str] = {'wheels', 'goal'}  # the optional ones never spoke
        self.status_silent = False
        self.deciding = True
        self.status_with: dict[str, Any] = {}
        self.command_with: dict[str, Any] = {}
        self.stamp_offset_ns: dict[str, int] = {}
        self.moving_m_s = 0.0
        self.simulated = False
        self.sequences = {A: [0, 0], B: [0, 0]}
        self.misses = self.served = 0
        self.newest: dict[str, Received] = {}
        self.command: CommandArrival | None = None
        self.status: StatusArrival | None = None
        self.ticks = 0
        self.fields_of_scan: Callable[[int], Scan] | None = None
        self.outputs: list[Output] = []

    @property
    def state(self) -> State:
        return self.gate.state

    @property
    def last(self) -> Output:
        return self.outputs[-1]

    def fields(self, name: str) -> Fields:
        stamp_ns = self.ros_ns + self.stamp_offset_ns.get(name, 0)
        if name == 'scan' and self.fields_of_scan is not None:
            return self.fields_of_scan(stamp_ns)
        if name == 'scan':
            return Scan(stamp_ns, 'laser', -math.pi, 2 * math.pi / 360, 0.05, 12.0, BEAMS)
        return Odometry(stamp_ns, 'odom', 0.0, 0.0, 0.0, self.moving_m_s, 0.0)

    def say_status(self, **changed: Any) -> None:
        now_ns = self.clock.now_ns()
        counts = self.sequences[self.session]
        counts[0] += 1
        values: dict[str, Any] = {
            'session': self.session, 'sequence': counts[0], 'steady_ns': now_ns,
            'pid': self.node[0],
            'start_ticks': self.node[1], 'active': True, 'engine': 'ready',
            'worker_pid': self.worker[0], 'worker_start_ticks': self.worker[1], 'progress': 1,
            'progress_ns': now_ns, 'in_flight': 0, 'in_flight_since_ns': 0,
            'in_flight_bound_ns': 0, 'request': 0, 'misses': self.misses, 'served': self.served,
            'last_outcome': 'decided', 'host': HERE[0], 'boot': HERE[1],
            **self.status_with, **changed,
        }
        self.status = StatusArrival(NodeStatus(**values), now_ns)

    def say_command(self, **changed: Any) -> Command:
        now_ns = self.clock.now_ns()
        counts = self.sequences[self.session]
        counts[1] += 1
        values: dict[str, Any] = {
            'session': self.session, 'sequence': counts[1], 'request': counts[1],
            'action': 'forward', 'parameters': {'speed': 'fast'}, 'linear_x_m_s': 0.3,
            'angular_z_rad_s': 0.0, 'observation_stamp_ns': self.ros_ns - 200 * MS,
            'arrival_ns': now_ns - 200 * MS, 'deadline_ns': now_ns + 200 * MS,
            'valid_until_ns': now_ns + POLICY.ttl_ns, 'confidence': 0.9, 'partial': False,
            'host': HERE[0], 'boot': HERE[1], **self.command_with, **changed,
        }
        command = Command.model_construct(**values)  # what parsing would refuse is tried too
        self.command = CommandArrival(command, now_ns)
        return command

    def tick(self, ms: float = PERIOD_MS, **edges: bool) -> Output:
        self.clock.advance_ms(ms)
        self.ros_ns += round(ms * MS * self.ros_rate)
        now_ns = self.clock.now_ns()
        self.ticks += 1
        if self.ros_rate:
            for name in ('scan', 'odom', 'wheels'):
                if name not in self.silent:
                    self.newest[name] = Received(name, self.fields(name), now_ns, self.ros_ns)
        if not self.status_silent:
            self.say_status()
        if self.deciding and self.ticks % 10 == 0:
            self.say_command()
        out = self.gate.step(now_ns, Inputs(
            ros_now_ns=self.ros_ns, sensors=dict(self.newest), command=self.command,
            status=self.status, dead=frozenset(self.dead), estop=self.estop,
            estop_silent=self.estop_silent, estop_never=self.estop_never,
            publishers=self.publishers,
            simulated=self.simulated, **edges,
        ))
        self.outputs.append(out)
        return out

    def run(self, ms: float) -> Output:
        for _ in range(math.ceil(ms / PERIOD_MS)):
            self.tick()
        return self.last

    def until(self, state: State, within_ms: float) -> float:
        """Run until a state; return how many ms it took."""
        for n in range(math.ceil(within_ms / PERIOD_MS) + 1):
            if self.state is state:
                return n * PERIOD_MS
            self.tick()
        raise AssertionError(f'{self.state} after {within_ms} ms: {self.last.findings}')


def active(**words: Any) -> Story:
    story = Story(**words)
    story.until(State.ACTIVE, 3000)
    story.run(1500)
    assert story.last.velocity.linear_x_m_s == pytest.approx(0.3)
    assert story.last.findings == ()
    return story


# --- the table ------------------------------------------------------------------------------


def test_every_state_has_a_row_and_every_row_every_response() -> None:
    assert set(TABLE) == set(State)
    for row in TABLE.values():
        assert set(row.on) == set(Response)
    assert set(RESPONSES) == set(Cause)
    assert sorted(BOLDEST_FIRST) == sorted(State)


def test_towards_safety_a_greater_response_never_leads_to_a_bolder_state() -> None:
    boldness = [State.ACTIVE, State.DEGRADED, State.FALLBACK, State.SAFE_STOP,
                State.STANDBY, State.HOLD, State.ESTOP_LATCHED, State.FAULT_LATCHED]
    for row in TABLE.values():
        led = [boldness.index(row.on[response]) for response in sorted(Response)]
        assert led == sorted(led)


def test_no_way_back_to_active_but_from_hold_and_degraded() -> None:
    assert {s for s, row in TABLE.items() if row.back is State.ACTIVE} == {
        State.HOLD, State.DEGRADED}
    assert TABLE[State.FAULT_LATCHED].back is None


# --- starting -------------------------------------------------------------------------------


def test_standby_publishes_stop_from_the_first_step_with_nothing_there() -> None:
    gate = Gate(POLICY, auto_arm=True, host=HERE[0], boot=HERE[1])
    out = gate.step(SECOND, Inputs(ros_now_ns=None))
    assert (out.state, out.velocity, out.source, out.sequence) == (State.STANDBY, STOP, 'stop', 1)
    assert {f.cause for f in out.findings} >= {
        Cause.CLOCK_ABSENT, Cause.SENSOR_NEVER, Cause.STATUS_NEVER, Cause.COMMAND_NEVER}
    assert out.cause is Cause.CLOCK_ABSENT


def test_standby_until_every_guard_was_good_for_a_second() -> None:
    story = Story(auto_arm=False)
    story.status_with = {'engine': 'loading', 'worker_pid': 0}
    assert story.run(60_000).cause is Cause.ENGINE_LOADING
    assert story.state is State.STANDBY
    story.status_with = {}
    story.tick()  # good from here
    story.run(950)
    assert story.state is State.STANDBY
    story.tick()
    assert story.state is State.HOLD


def test_hold_stays_until_armed() -> None:
    story = Story(auto_arm=False)
    story.until(State.HOLD, 3000)
    assert story.run(10_000).velocity == STOP
    assert story.state is State.HOLD
    assert story.tick(arm=True).state is State.ACTIVE


def test_arming_is_refused_while_anything_is_not_well() -> None:
    story = Story(auto_arm=False)
    story.until(State.HOLD, 3000)
    story.dead.add(WORKER)
    assert story.tick(arm=True).state is State.HOLD
    story.dead.clear()
    assert story.tick().state is State.HOLD, 'an edge is over when it is over'


def test_an_arm_edge_before_hold_is_not_remembered() -> None:
    story = Story(auto_arm=False)
    story.tick(arm=True)
    story.until(State.HOLD, 3000)
    assert story.run(1000).state is State.HOLD


def test_in_active_the_models_action_leaves_with_its_stamps() -> None:
    story = active()
    out = story.last
    assert story.command is not None
    assert out.source == 'model'
    assert out.command == story.command.command
    applied = out.applied(late_ns=7)
    assert applied.observation_stamp_ns == story.command.command.observation_stamp_ns > 0
    assert applied.valid_until_ns == story.command.command.valid_until_ns
    assert applied.late_ns == 7
    assert Applied.model_validate(applied.model_dump()) == applied


# --- one thing goes wrong -------------------------------------------------------------------


def change(**what: Any) -> Callable[[Story], None]:
    def do(story: Story) -> None:
        for name, value in what.items():
            setattr(story, name, value)
    return do


GUARDS: list[tuple[str, Callable[[Story], None], State, Cause]] = [
    ('the worker ends', lambda s: s.dead.add(WORKER), State.FALLBACK, Cause.WORKER_DEAD),
    ('the node ends', lambda s: s.dead.add(NODE), State.FALLBACK, Cause.NODE_DEAD),
    ('the node is deactivated', change(status_with={'active': False}), State.SAFE_STOP,
     Cause.NODE_INACTIVE),
    ('the engine is gone', change(status_with={'engine': 'absent', 'worker_pid': 0}),
     State.FALLBACK, Cause.ENGINE_ABSENT),
    ('the engine is ready without a worker', change(status_with={'worker_pid': 0}),
     State.FALLBACK, Cause.ENGINE_ABSENT),
    ('the engine loads', change(status_with={'engine': 'loading'}), State.FALLBACK,
     Cause.ENGINE_LOADING),
    ('the engine gave up', change(status_with={'engine': 'failed'}), State.FALLBACK,
     Cause.ENGINE_FAILED),
    ('another host speaks', change(status_with={'host': 'other'}), State.FALLBACK,
     Cause.HOST_FOREIGN),
    ('another boot speaks', change(status_with={'boot': 'boot-0'}), State.FALLBACK,
     Cause.HOST_FOREIGN),
    ('one answer is missed', change(misses=1), State.DEGRADED, Cause.ANSWER_MISSED),
    ('three answers are missed', change(misses=3), State.FALLBACK, Cause.ANSWERS_MISSED),
    ('the emergency stop', change(estop=True), State.ESTOP_LATCHED, Cause.ESTOP),
    ('its source is silent', change(estop_silent=True), State.ESTOP_LATCHED, Cause.ESTOP_SILENT),
    ('its source never spoke', change(estop_never=True), State.SAFE_STOP, Cause.ESTOP_NEVER),
    ('a second publisher', change(publishers=2), State.FAULT_LATCHED, Cause.SECOND_PUBLISHER),
]


@pytest.mark.parametrize(('what', 'do', 'state', 'cause'), GUARDS, ids=[g[0] for g in GUARDS])
def test_each_guard_of_active_acts_in_the_same_step(
    what: str, do: Callable[[Story], None], state: State, cause: Cause,
) -> None:
    story = active()
    do(story)
    out = story.tick()
    assert (out.state, out.cause) == (state, cause)
    assert out.detail
    assert out.source != 'model'


LIMITS: list[tuple[str, Callable[[Story], None], int, State, Cause]] = [
    ('scan silent', lambda s: s.silent.add('scan'), 500, State.SAFE_STOP, Cause.SENSOR_STALE),
    ('odometry silent', lambda s: s.silent.add('odom'), 500, State.SAFE_STOP, Cause.SENSOR_STALE),
    ('status silent', change(status_silent=True), 300, State.FALLBACK, Cause.STATUS_SILENT),
]


@pytest.mark.parametrize(('what', 'do', 'limit_ms', 'state', 'cause'), LIMITS,
                         ids=[g[0] for g in LIMITS])
def test_silence_at_its_limit_and_one_tick_past_it(
    what: str, do: Callable[[Story], None], limit_ms: int, state: State, cause: Cause,
) -> None:
    story = active()
    do(story)
    story.run(limit_ms)
    assert story.state is State.ACTIVE
    out = story.tick(1e-6)
    assert (out.state, out.cause) == (state, cause)
    assert f'limit {limit_ms}' in out.detail


@pytest.mark.parametrize('sign', [-1, 1])
def test_stamp_age_has_two_sides(sign: int) -> None:
    story = active()
    story.stamp_offset_ns['scan'] = sign * 500 * MS
    assert story.tick().state is State.ACTIVE
    story.stamp_offset_ns['scan'] = sign * (500 * MS + 1)
    out = story.tick()
    assert (out.state, out.cause) == (State.SAFE_STOP, Cause.SENSOR_STAMP)


def test_without_a_stamp_arrival_alone_decides() -> None:
    story = active()
    for _ in range(20):
        story.stamp_offset_ns['scan'] = -story.ros_ns - PERIOD_MS * MS
        story.tick()
        assert story.newest['scan'].fields.stamp_ns == 0
    assert story.state is State.ACTIVE


def test_an_optional_sensor_degrades_only_once_it_was_there() -> None:
    story = active()
    story.silent.discard('wheels')
    assert story.run(500).state is State.ACTIVE
    story.silent.add('wheels')
    assert story.run(500).state is State.ACTIVE
    out = story.tick()
    assert (out.state, out.cause) == (State.DEGRADED, Cause.OPTIONAL_SENSOR_LOST)
    assert out.source == 'hold'


@pytest.mark.parametrize(('bound_ms', 'limit_ms'), [(100, 300), (200, 300), (400, 600)])
def test_a_batch_in_flight_has_one_and_a_half_times_its_bound(
    bound_ms: int, limit_ms: int,
) -> None:
    story = active()
    began_ns = story.clock.now_ns()
    story.status_with = {'in_flight': 7, 'in_flight_since_ns': began_ns,
                         'in_flight_bound_ns': bound_ms * MS}
    assert story.run(limit_ms).state is State.ACTIVE
    out = story.tick(1e-6)
    assert (out.state, out.cause) == (State.FALLBACK, Cause.ENGINE_STALLED)
    assert f'limit {limit_ms} ms' in out.detail


def test_a_policy_node_that_falls_silent_is_no_stall_of_the_engine() -> None:
    story = active()
    story.status_silent = True
    for _ in range(20):
        out = story.tick()
        assert out.cause is not Cause.ENGINE_STALLED
    assert (out.state, out.cause) == (State.FALLBACK, Cause.STATUS_SILENT)


def test_an_idle_engine_must_show_progress() -> None:
    story = active()
    story.status_with = {'progress_ns': story.clock.now_ns()}
    assert story.run(300).state is State.ACTIVE
    assert story.tick(1e-6).cause is Cause.ENGINE_STALLED


def test_own_gap_of_three_periods_and_one_tick_more() -> None:
    story = active()
    assert story.tick(3 * PERIOD_MS).state is State.ACTIVE
    out = story.tick(3 * PERIOD_MS + 1e-6)
    assert (out.state, out.cause) == (State.SAFE_STOP, Cause.OWN_GAP)


@pytest.mark.parametrize('jump_ms', [-1, -3_600_000, 1051, 3_600_000])
def test_a_jump_of_ros_time_is_a_safe_stop(jump_ms: int) -> None:
    story = active()
    story.ros_ns += jump_ms * MS - PERIOD_MS * MS
    out = story.tick()
    assert (out.state, out.cause) == (State.SAFE_STOP, Cause.CLOCK_JUMP)


def test_a_second_of_ros_time_at_once_is_no_jump_yet() -> None:
    story = active()
    story.ros_ns += SECOND
    assert Cause.CLOCK_JUMP not in {f.cause for f in story.tick().findings}


def test_a_paused_world_trips_no_sensor_and_stands_and_goes_on() -> None:
    story = active()
    story.ros_rate = 0.0
    story.run(200)
    assert Cause.CLOCK_PAUSED not in {f.cause for f in story.last.findings}
    story.run(3000)
    assert story.last.cause is Cause.CLOCK_PAUSED
    assert story.state is State.ACTIVE
    assert story.last.velocity == STOP
    assert story.last.source == 'stop'
    story.ros_rate = 1.0
    story.run(100)
    assert story.state is State.ACTIVE
    assert story.run(1500).velocity.linear_x_m_s == pytest.approx(0.3)


def test_a_stopped_engine_trips_its_limit_in_a_paused_world_too() -> None:
    story = active()
    story.ros_rate = 0.0
    story.run(1000)
    story.status_with = {'progress_ns': story.clock.now_ns()}
    story.deciding = False
    assert story.run(350).state is State.FALLBACK


def test_a_slow_world_ages_by_its_own_clock() -> None:
    story = active()
    story.ros_rate = 0.1
    story.silent.add('scan')
    story.run(4500)
    assert Cause.SENSOR_STALE not in {f.cause for f in story.last.findings}
    story.run(1000)
    assert story.last.cause is Cause.SENSOR_STALE


# --- commands -------------------------------------------------------------------------------

REFUSALS: list[tuple[str, dict[str, Any], Cause]] = [
    ('other host', {'host': 'other'}, Cause.COMMAND_FOREIGN),
    ('other boot', {'boot': 'boot-0'}, Cause.COMMAND_FOREIGN),
    ('other session', {'session': B}, Cause.COMMAND_FOREIGN),
    ('sequence again', {'sequence': 1}, Cause.COMMAND_REPEATED),
    ('request again', {'request': 1}, Cause.COMMAND_REPEATED),
    ('unknown action', {'action': 'fly'}, Cause.COMMAND_ACTION),
    ('unknown choice', {'parameters': {'speed': 'warp'}}, Cause.COMMAND_ACTION),
    ('missing choice', {'parameters': {}}, Cause.COMMAND_ACTION),
    ('other velocity', {'linear_x_m_s': 0.31}, Cause.COMMAND_VELOCITY),
    ('other turn', {'angular_z_rad_s': 0.1}, Cause.COMMAND_VELOCITY),
    ('not a number', {'linear_x_m_s': math.nan}, Cause.COMMAND_VELOCITY),
    ('unsure', {'confidence': 0.19}, Cause.COMMAND_UNSURE),
    ('confidence NaN', {'confidence': math.nan}, Cause.COMMAND_UNSURE),
]


@pytest.mark.parametrize(('what', 'changed', 'cause'), REFUSALS, ids=[r[0] for r in REFUSALS])
def test_a_command_that_does_not_fit_is_refused_and_the_last_one_held(
    what: str, changed: dict[str, Any], cause: Cause,
) -> None:
    story = active()
    story.deciding = False
    before = story.last.command
    story.say_command(**changed)
    out = story.tick()
    assert (out.state, out.cause) == (State.DEGRADED, cause)
    assert (out.source, out.command) == ('hold', before)


def offset(name: str, ns: int) -> Callable[[int], dict[str, Any]]:
    return lambda now_ns: {name: now_ns + ns}


AT_LIMIT: list[tuple[str, Callable[[int], dict[str, Any]], Callable[[int], dict[str, Any]], Cause]]
AT_LIMIT = [
    ('late', offset('deadline_ns', -100 * MS), offset('deadline_ns', -100 * MS - 1),
     Cause.COMMAND_LATE),
    ('time-to-live', offset('valid_until_ns', POLICY.ttl_ns),
     offset('valid_until_ns', POLICY.ttl_ns + 1), Cause.COMMAND_TTL),
    ('from the future', offset('arrival_ns', 0), offset('arrival_ns', 1), Cause.COMMAND_TTL),
    ('expired', offset('valid_until_ns', 51 * MS), offset('valid_until_ns', 50 * MS),
     Cause.COMMAND_EXPIRED),
    ('old by arrival', offset('arrival_ns', -1950 * MS), offset('arrival_ns', -1950 * MS - 1),
     Cause.OBSERVATION_OLD),
]


@pytest.mark.parametrize(('what', 'good', 'bad', 'cause'), AT_LIMIT, ids=[a[0] for a in AT_LIMIT])
def test_times_of_a_command_at_the_limit_and_one_past_it(
    what: str, good: Callable[[int], dict[str, Any]], bad: Callable[[int], dict[str, Any]],
    cause: Cause,
) -> None:
    for changed, refused in ((good, False), (bad, True)):
        story = active()
        story.deciding = False
        command = story.say_command(**changed(story.clock.now_ns()))
        out = story.tick()
        assert (cause in {f.cause for f in out.findings}) == refused
        assert (out.command == command) != refused


@pytest.mark.parametrize('sign', [-1, 1])
def test_an_observation_too_old_or_too_new_by_stamp(sign: int) -> None:
    story = active()
    story.deciding = False
    stamp_ns = story.ros_ns + PERIOD_MS * MS - sign * 2000 * MS
    assert story.say_command(observation_stamp_ns=stamp_ns)
    assert story.tick().state is State.ACTIVE
    story.say_command(observation_stamp_ns=story.ros_ns + PERIOD_MS * MS - sign * 2000 * MS - sign)
    assert story.tick().cause is Cause.OBSERVATION_OLD


def test_an_applied_command_ends_at_its_valid_until_and_the_baseline_follows() -> None:
    story = active()
    story.deciding = False
    command = story.say_command(valid_until_ns=story.clock.now_ns() + 500 * MS)
    assert story.run(450).command == command
    out = story.tick()
    assert (out.state, out.cause) == (State.DEGRADED, Cause.COMMAND_EXPIRED)
    assert (out.source, out.command, out.fallback) == ('baseline', None, 'creep')
    story.run(1050)  # of a time-to-live of 1080
    assert story.tick(30).state is State.DEGRADED
    assert story.tick(1e-6).cause is Cause.COMMAND_SILENT
    assert story.state is State.FALLBACK


def test_an_observation_grows_too_old_while_its_command_is_applied() -> None:
    story = active()
    story.deciding = False
    story.say_command(arrival_ns=story.clock.now_ns() - 1800 * MS)
    story.run(200)
    assert story.state is State.ACTIVE
    assert story.tick().cause is Cause.OBSERVATION_OLD


def test_a_command_without_an_observation_stamp_ages_by_arrival_alone() -> None:
    story = active()
    story.deciding = False
    command = story.say_command(observation_stamp_ns=0)
    assert story.tick().command == command


def test_a_command_that_comes_before_its_session_is_known_waits_for_it() -> None:
    story = active()
    story.dead.add(NODE)
    story.status_silent = True
    story.deciding = False
    story.tick()
    story.session, story.node = B, (101, 9)
    story.say_command()
    assert Cause.COMMAND_FOREIGN not in {f.cause for f in story.tick().findings}
    story.status_silent = False
    out = story.tick()
    assert {Cause.COMMAND_NEVER, Cause.COMMAND_FOREIGN}.isdisjoint(f.cause for f in out.findings)


def test_the_baseline_may_hold_the_command_that_drove_until_it_ends() -> None:
    story = active(policy=limits(fallback={'ladder': ('hold', 'creep', 'stop')}))
    story.deciding = False
    command = story.say_command()
    story.tick()
    story.dead.add(WORKER)
    out = story.tick()
    assert (out.state, out.source, out.command, out.fallback) == (
        State.FALLBACK, 'hold', command, 'hold')
    story.say_command()
    assert story.tick().fallback == 'creep', 'a shadow answer drives nothing'


# --- back -----------------------------------------------------------------------------------


def test_degraded_goes_back_after_five_good_answers() -> None:
    story = active()
    story.misses = 1
    story.tick()
    assert story.state is State.DEGRADED
    took_ms = story.until(State.ACTIVE, 4000)
    good = {o.command.sequence for o in story.outputs[-round(took_ms / PERIOD_MS):] if o.command}
    assert 2000 <= took_ms <= 2600
    assert len(good) >= 5


def test_good_answers_are_in_a_row_and_take_two_seconds() -> None:
    story = active()
    story.misses = 1
    story.tick()
    for _ in range(10):  # many answers, but no two seconds
        story.say_command()
        story.tick()
    assert story.state is State.DEGRADED
    story.misses = 2
    story.tick()
    story.run(1800)
    assert story.state is State.DEGRADED


def test_answers_from_before_the_state_or_before_a_miss_do_not_count() -> None:
    story = active()
    story.dead.add(WORKER)
    story.tick()
    story.dead.clear()
    story.until(State.DEGRADED, 8000)  # with ten shadow answers
    story.deciding = False
    for _ in range(4):
        story.say_command()
        story.run(900)
    assert story.state is State.DEGRADED, 'four answers'
    story.misses += 1
    for _ in range(4):
        story.say_command()
        story.run(900)
    assert story.state is State.DEGRADED, 'four again, since the miss'
    story.say_command()
    assert story.tick().state is State.ACTIVE


def test_misses_without_an_engine_are_not_counted() -> None:
    story = active()
    story.status_with = {'engine': 'loading'}
    story.misses = 3
    assert Cause.ANSWERS_MISSED not in {f.cause for f in story.tick().findings}


def test_a_sensor_grows_old_by_steady_time_after_ros_time_went_back() -> None:
    story = active()
    story.ros_ns -= 10 * SECOND
    story.silent.add('scan')
    story.run(550)
    assert Cause.SENSOR_STALE in {f.cause for f in story.last.findings}


def test_a_safe_stop_is_not_left_before_the_base_was_told_to_stand() -> None:
    story = active(dwells=Dwells(safe_stop_clear_ns=0))
    story.tick(200)
    while story.last.velocity != STOP:
        assert story.tick().state is State.SAFE_STOP
    assert story.tick().state is State.HOLD


def test_misses_far_apart_do_not_add_up() -> None:
    story = active()
    for _ in range(6):
        story.misses += 1
        story.run(2600)
        assert story.state is not State.FALLBACK
    story.misses += 1
    story.run(1000)
    story.misses += 1
    story.run(1000)
    story.misses += 1
    assert story.tick().cause is Cause.ANSWERS_MISSED


def test_after_the_engines_death_three_shadow_answers_and_five_clean_seconds() -> None:
    story = active()
    story.dead.add(WORKER)
    story.deciding = False
    out = story.tick()
    assert (out.state, out.source, out.fallback) == (State.FALLBACK, 'baseline', 'creep')
    story.status_with = {'engine': 'loading', 'worker_pid': 0}
    story.run(2000)
    story.worker = (201, 5)
    story.status_with = {}
    story.run(6000)
    assert story.state is State.FALLBACK, 'clean, but no answers'
    story.deciding = True
    shadow_ms = story.until(State.DEGRADED, 10_000)
    assert shadow_ms >= 5000, 'clean again from the first answer on'
    assert story.last.source == 'hold'
    assert not any(o.source == 'model' for o in story.outputs[-round(shadow_ms / PERIOD_MS):])
    story.until(State.ACTIVE, 4000)


def test_a_new_session_passes_through_hold() -> None:
    story = Story(auto_arm=False)
    story.until(State.HOLD, 3000)
    story.tick(arm=True)
    story.run(2000)
    assert story.state is State.ACTIVE
    story.dead.add(NODE)
    assert story.tick().cause is Cause.NODE_DEAD
    story.session, story.node = B, (101, 9)
    out = story.tick()
    assert (out.state, out.cause) == (State.SAFE_STOP, Cause.SESSION_NEW)
    story.until(State.HOLD, 4000)
    assert story.run(8000).state is State.HOLD
    assert story.tick(arm=True).state is State.ACTIVE


def test_under_auto_arm_a_new_session_is_heard_out_in_fallback() -> None:
    story = active()
    story.dead.add(NODE)
    story.deciding = False
    story.tick()
    story.session, story.node = B, (101, 9)
    out = story.tick()
    assert (out.state, out.cause) == (State.FALLBACK, Cause.COMMAND_NEVER)
    story.deciding = True
    story.until(State.DEGRADED, 8000)
    story.until(State.ACTIVE, 4000)
    assert story.last.command is not None
    assert story.last.command.session == B


def test_one_session_is_live_at_a_time() -> None:
    story = active()
    story.session, story.node = B, (101, 9)
    out = story.tick()
    assert (out.state, out.cause) == (State.DEGRADED, Cause.SESSION_FOREIGN)
    story.say_command()
    assert Cause.COMMAND_FOREIGN in {f.cause for f in story.tick().findings}
    story.session, story.node = A, NODE
    assert story.tick().findings == ()


def test_a_safe_stop_brakes_inside_the_limits_and_holds_when_it_stands() -> None:
    story = active()
    story.silent.add('scan')
    story.until(State.SAFE_STOP, 600)
    before = 0.3
    while story.last.velocity != STOP:
        speed = story.last.velocity.linear_x_m_s
        assert before - 0.05 - 1e-9 <= speed < before
        before = speed
        story.tick()
    story.silent.discard('scan')
    story.moving_m_s = 0.2  # the wheels still turn
    story.run(4000)
    assert story.state is State.SAFE_STOP
    story.moving_m_s = 0.0
    story.tick()
    assert story.state is State.HOLD


def test_a_safe_stop_is_clear_for_two_seconds() -> None:
    story = active()
    story.tick(200)
    assert story.state is State.SAFE_STOP
    story.tick()  # clear from here
    story.run(1950)
    assert story.state is State.SAFE_STOP
    assert story.last.cause is Cause.OWN_GAP, 'what led here is named while it lasts'
    story.tick()
    assert story.state is State.HOLD


# --- emergency stop and faults --------------------------------------------------------------


def test_an_emergency_stop_is_released_for_half_a_second_then_reset_then_armed() -> None:
    story = active()  # auto_arm
    story.estop = True
    assert story.tick(reset=True).velocity == STOP
    assert story.tick(reset=True).state is State.ESTOP_LATCHED, 'reset while asserted'
    story.estop = False
    story.tick()  # released from here
    story.run(400)
    assert story.tick(reset=True).state is State.ESTOP_LATCHED
    assert story.run(5000).state is State.ESTOP_LATCHED, 'release alone is nothing'
    assert story.tick(reset=True).state is State.HOLD
    assert story.run(5000).state is State.HOLD, 'not even auto_arm moves after an emergency stop'
    assert story.tick(arm=True).state is State.ACTIVE


def test_a_flapping_emergency_stop_starts_the_half_second_anew() -> None:
    story = active()
    for _ in range(10):
        story.estop = True
        story.tick()
        story.estop = False
        story.run(450)
        assert story.tick(reset=True).state is State.ESTOP_LATCHED


@pytest.mark.parametrize('state', [s for s in State if s is not State.FAULT_LATCHED])
def test_the_emergency_stop_works_in_every_state(state: State) -> None:
    story = active()
    story.gate._state = state
    story.estop = True
    out = story.tick()
    assert (out.state, out.velocity, out.source) == (State.ESTOP_LATCHED, STOP, 'stop')


def test_five_deaths_of_the_engine_in_a_minute_latch() -> None:
    story = active()
    for n in range(5):
        assert story.state is not State.FAULT_LATCHED
        story.dead.add(story.worker)
        story.tick()
        story.worker = (300 + n, n)
        story.run(1000)
    assert story.state is State.FAULT_LATCHED
    assert story.last.cause is Cause.ENGINE_DEATHS
    story.run(120_000)
    assert story.tick(arm=True, reset=True).state is State.FAULT_LATCHED
    assert story.last.cause is Cause.ENGINE_DEATHS


def test_five_deaths_over_more_than_a_minute_do_not() -> None:
    story = active()
    for n in range(8):
        story.worker = (300 + n, n)
        story.run(16_000)
    assert story.state is State.ACTIVE


def test_a_publisher_that_was_there_first_is_waited_for() -> None:
    story = Story()
    story.publishers = 2
    out = story.run(5000)
    assert (out.state, out.cause) == (State.STANDBY, Cause.PUBLISHER_STANDING)
    story.publishers = 1
    story.until(State.ACTIVE, 2000)


def test_an_exception_stops_and_three_in_a_second_latch() -> None:
    story = active()
    out = story.gate.excepted(story.clock.advance_ms(50), 'ValueError()')
    assert (out.state, out.velocity, out.cause) == (State.SAFE_STOP, STOP, Cause.EXCEPTION)
    story.gate.excepted(story.clock.advance_ms(950), 'ValueError()')
    assert story.state is State.SAFE_STOP
    out = story.gate.excepted(story.clock.advance_ms(50), 'ValueError()')
    assert (out.state, out.cause) == (State.FAULT_LATCHED, Cause.EXCEPTIONS)


def test_three_exceptions_in_a_little_more_than_a_second_do_not() -> None:
    story = active()
    for ms in (50, 500, 500.001):
        story.gate.excepted(story.clock.advance_ms(ms), 'ValueError()')
    assert story.state is State.SAFE_STOP


def test_a_step_that_raises_arms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    story = active()
    story.estop = True
    story.tick()
    story.estop = False
    story.run(1000)
    assert story.tick(reset=True).state is State.HOLD
    with monkeypatch.context() as raising:
        raising.setattr(Driven, 'told', lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            story.tick(arm=True)
    out = story.gate.excepted(story.clock.now_ns(), 'ZeroDivisionError()')
    assert (out.state, out.cause) == (State.SAFE_STOP, Cause.EXCEPTION)
    assert story.run(10_000).state is State.HOLD
    assert story.tick(arm=True).state is State.ACTIVE
    assert story.run(1000).velocity.linear_x_m_s > 0.1


def test_an_exception_in_hold_moves_nothing_and_changes_nothing() -> None:
    story = Story(auto_arm=False)
    story.until(State.HOLD, 3000)
    out = story.gate.excepted(story.clock.advance_ms(50), 'ValueError()')
    assert (out.state, out.velocity) == (State.HOLD, STOP)


@pytest.mark.parametrize(('state', 'source', 'velocity', 'previous', 'says'), [
    (State.ACTIVE, 'model', Velocity(1.0, 1.5), Velocity(1.0, 1.5), ''),
    (State.ACTIVE, 'model', Velocity(1.01, 0.0), Velocity(1.0, 0.0), 'outside'),
    (State.ACTIVE, 'model', Velocity(-0.51, 0.0), Velocity(-0.5, 0.0), 'outside'),
    (State.ACTIVE, 'model', Velocity(0.0, -1.51), Velocity(0.0, -1.5), 'rad/s'),
    (State.ACTIVE, 'model', Velocity(math.nan, 0.0), STOP, 'not finite'),
    (State.ACTIVE, 'model', Velocity(0.0, math.inf), STOP, 'not finite'),
    (State.ACTIVE, 'model', Velocity(1.1, 0.0), Velocity(1.2, 0.0), ''),  # a limit came down
    (State.ACTIVE, 'model', Velocity(-0.6, 0.0), Velocity(-0.7, 0.0), ''),
    (State.ACTIVE, 'model', Velocity(0.0, 1.6), Velocity(0.0, -1.7), ''),
    (State.ACTIVE, 'model', Velocity(0.025, 0.15), STOP, ''),
    (State.ACTIVE, 'model', Velocity(0.026, 0.0), STOP, 'm/s2'),
    (State.ACTIVE, 'model', Velocity(0.0, 0.151), STOP, 'rad/s2'),
    (State.DEGRADED, 'model', STOP, STOP, 'source model'),
    (State.SAFE_STOP, 'stop', Velocity(0.1, 0.0), Velocity(0.1, 0.0), ''),
    (State.SAFE_STOP, 'stop', Velocity(0.11, 0.0), Velocity(0.1, 0.0), 'speed grew'),
    (State.ESTOP_LATCHED, 'stop', Velocity(0.0, 0.1), STOP, 'speed grew'),
])
def test_a_velocity_outside_the_limits_is_seen(
    state: State, source: Any, velocity: Velocity, previous: Velocity, says: str,
) -> None:
    broken = broken_limit(state.value, source, velocity, previous, POLICY)
    assert (says in broken) if says else broken == ''


WELL_FED = Inputs(ros_now_ns=1)
PRESSED = Inputs(ros_now_ns=1, estop=True)
ARM, RESET = Inputs(ros_now_ns=1, arm=True), Inputs(ros_now_ns=1, reset=True)


def through(
    *steps: tuple[str, Inputs], auto_arm: bool = True, moving: bool = False, skip: int = 0,
) -> str:
    """Let outputs in these states leave one after another; return what the last would break."""
    invariants = Invariants(auto_arm=auto_arm)
    broken = ''
    for n, (state, inputs) in enumerate(steps, 1):
        assert broken == ''
        last = n == len(steps)
        velocity = Velocity(0.01, 0.0) if moving and last else STOP
        broken = invariants.broken(
            n + skip * last, state, 'stop', velocity, velocity, inputs, POLICY)
        invariants.left(n, state)
    return broken


UP: tuple[tuple[str, Inputs], ...] = (('STANDBY', WELL_FED), ('HOLD', WELL_FED))
DRIVING = (*UP, ('ACTIVE', ARM))
STOPPED = (*DRIVING, ('ESTOP_LATCHED', PRESSED))


def test_an_order_of_states_that_must_not_be_is_seen() -> None:
    assert through(*DRIVING, ('DEGRADED', WELL_FED), ('ACTIVE', WELL_FED), moving=True) == ''
    for careful in ('FALLBACK', 'SAFE_STOP', 'STANDBY'):
        assert f'ACTIVE from {careful}' in through((careful, WELL_FED), ('ACTIVE', WELL_FED))
    assert 'emergency stop and ACTIVE' in through(*UP, ('ACTIVE', PRESSED))
    silent = Inputs(ros_now_ns=1, estop_silent=True)
    assert 'emergency stop and HOLD' in through(*UP, ('HOLD', silent))
    assert through(*UP, ('FAULT_LATCHED', PRESSED)) == ''
    assert 'FAULT_LATCHED was left' in through(('FAULT_LATCHED', WELL_FED), ('HOLD', RESET))
    assert 'left for HOLD' in through(*STOPPED, ('HOLD', WELL_FED))
    assert 'left for FALLBACK' in through(*STOPPED, ('FALLBACK', RESET))
    assert through(*STOPPED, ('ESTOP_LATCHED', WELL_FED), ('HOLD', RESET)) == ''


@pytest.mark.parametrize('skip', [-1, 1])
def test_each_step_publishes_one_output_and_their_numbers_rise(skip: int) -> None:
    assert through(*DRIVING) == ''
    assert 'each step publishes one' in through(*DRIVING, skip=skip)


@pytest.mark.parametrize('state', ['STANDBY', 'HOLD', 'ESTOP_LATCHED', 'FAULT_LATCHED'])
def test_motion_in_a_state_that_stands_is_seen(state: str) -> None:
    inputs = PRESSED if state == 'ESTOP_LATCHED' else WELL_FED
    assert 'nobody armed' in through(*DRIVING, (state, inputs), moving=True)


def test_motion_after_an_emergency_stop_before_reset_and_arm_is_seen() -> None:
    after = (*STOPPED, ('HOLD', RESET))
    assert 'nobody armed' in through(*after, ('ACTIVE', WELL_FED), moving=True)
    assert 'nobody armed' in through(*after, ('SAFE_STOP', WELL_FED), moving=True)
    assert through(*after, ('ACTIVE', ARM), moving=True) == ''
    assert through(*after, ('ACTIVE', ARM), ('HOLD', WELL_FED), ('ACTIVE', WELL_FED),
                   moving=True) == '', 'auto_arm'
    assert through(*UP, ('ACTIVE', WELL_FED), moving=True) == '', 'auto_arm'
    assert 'nobody armed' in through(
        *UP, ('ACTIVE', WELL_FED), auto_arm=False, moving=True)


def test_a_broken_invariant_latches(monkeypatch: pytest.MonkeyPatch) -> None:
    story = active()
    monkeypatch.setattr(Invariants, 'broken', lambda *_: 'speed grew')
    out = story.tick()
    assert (out.state, out.cause, out.velocity) == (State.FAULT_LATCHED, Cause.INVARIANT, STOP)


# --- what clears a cause --------------------------------------------------------------------


def heal(story: Story) -> None:
    story.silent = {'wheels', 'goal'}
    story.status_silent = story.estop = story.estop_silent = story.estop_never = False
    story.deciding, story.ros_rate, story.status_with, story.command_with = True, 1.0, {}, {}
    story.dead.clear()
    story.publishers = 1


def sleep(story: Story) -> None:
    story.clock.advance_ms(500)


BREAKS: list[tuple[str, Callable[[Story], None]]] = [
    *((what, do) for what, do, _, _ in GUARDS), *((what, do) for what, do, *_ in LIMITS),
    ('the world pauses', change(ros_rate=0.0)),
    ('ROS time jumps', lambda s: setattr(s, 'ros_ns', s.ros_ns + 60 * SECOND)),
    ('the loop sleeps', sleep),
    ('nonsense is answered', change(command_with={'action': 'fly'})),
]


@pytest.mark.parametrize(('what', 'do'), BREAKS, ids=[b[0] for b in BREAKS])
def test_what_clears_a_cause_is_what_the_table_says(
    what: str, do: Callable[[Story], None],
) -> None:
    story = active()
    do(story)
    while not story.last.findings:
        story.tick()
        assert story.ticks < 1000, 'nothing was broken'
    clears, state = story.last.findings[0].clears, story.state
    heal(story)
    story.tick()
    if clears is Clears.ITSELF:
        assert story.state is State.ACTIVE
        return
    assert story.state is state, 'not at once'
    story.run(30_000)
    assert (story.state is State.ACTIVE) == (clears is Clears.DWELL)
    story.tick(reset=True)
    story.tick(arm=True)
    assert (story.state is State.FAULT_LATCHED) == (clears is Clears.NEVER)
    assert (story.state is State.ACTIVE) == (clears is not Clears.NEVER)


def test_each_response_clears_in_one_way_and_no_more_easily_than_a_lesser_one() -> None:
    assert set(CLEARS) == set(Response)
    ease = list(Clears)
    ways = [ease.index(CLEARS[response]) for response in sorted(Response)]
    assert ways == sorted(ways)
    assert {Finding(cause, '').clears for cause in Cause} == set(Clears)


# --- patience -------------------------------------------------------------------------------


def test_a_dwell_doubles_on_each_return_within_a_minute_up_to_eight_times() -> None:
    story = active()
    took_ms = []
    for _ in range(6):
        story.misses += 1
        assert story.tick().state is State.DEGRADED
        took_ms.append(story.until(State.ACTIVE, 30_000))
    assert took_ms[0] < 3000
    assert [round(ms / 2000) for ms in took_ms] == [1, 2, 4, 8, 8, 8]


def test_a_return_at_a_minute_doubles_and_one_tick_later_does_not() -> None:
    for late_ns, dwell_s in ((0, 4), (1, 2)):
        patience = Patience(Dwells())
        patience.tripped('DEGRADED', 2 * SECOND, SECOND)
        assert patience.dwell_ns('DEGRADED', 2 * SECOND) == 2 * SECOND, 'the first time'
        patience.left('DEGRADED', 5 * SECOND)
        patience.tripped('DEGRADED', 2 * SECOND, 65 * SECOND + late_ns)
        assert patience.dwell_ns('DEGRADED', 2 * SECOND) == dwell_s * SECOND
        assert patience.dwell_ns('FALLBACK', 5 * SECOND) == 5 * SECOND


def test_time_spent_well_is_credited_at_a_quarter_and_never_below_the_table() -> None:
    patience = Patience(Dwells())
    patience.left('FALLBACK', 0)
    patience.tripped('FALLBACK', 5 * SECOND, 1)
    patience.well('FALLBACK', 8 * SECOND)
    patience.well('SAFE_STOP', 8 * SECOND)
    assert patience.dwell_ns('FALLBACK', 5 * SECOND) == 8 * SECOND
    patience.well('FALLBACK', 60 * SECOND)
    assert patience.dwell_ns('FALLBACK', 5 * SECOND) == 5 * SECOND


@pytest.mark.parametrize(('well_ms', 'dwell_ms'), [(100, 8000), (16_000, 4000)])
def test_a_robot_that_drove_well_for_long_is_believed_sooner(
    well_ms: int, dwell_ms: int,
) -> None:
    story = active()
    for _ in range(2):  # the second time the dwell is 4 s, and the third it would be 8
        story.misses += 1
        story.tick()
        story.until(State.ACTIVE, 30_000)
    story.run(well_ms)
    story.misses += 1
    story.tick()
    took_ms = story.until(State.ACTIVE, 30_000)
    assert dwell_ms - 100 <= took_ms <= dwell_ms + 600


def test_time_in_active_that_was_not_well_is_no_credit() -> None:
    """Another session speaks all the time: DEGRADED, and so no credit to DEGRADED itself."""
    story = active()
    for _ in range(2):
        story.misses += 1
        story.tick()
        story.until(State.ACTIVE, 30_000)
    story.silent.discard('wheels')
    story.tick()
    story.silent.add('wheels')
    story.run(16_000)
    assert story.last.cause is Cause.OPTIONAL_SENSOR_LOST
    story.silent.discard('wheels')
    assert story.until(State.ACTIVE, 30_000) >= 7500


# --- k of n ---------------------------------------------------------------------------------


def test_three_of_five_answers_missed_are_too_many_however_long_they_take() -> None:
    story = active(dwells=Dwells(miss_window_ns=SECOND // 2, longest=1))
    story.deciding = False

    def answer(good: bool) -> Output:
        story.misses += not good
        if good:
            story.say_command()
        out = story.tick()
        story.run(600)
        return out

    for good in (True, False, True, True, False, True, True, True, False, True, False):
        out = answer(good)
        assert Cause.ANSWERS_MISSED not in {f.cause for f in out.findings}
    out = answer(good=False)
    assert out.state is State.FALLBACK
    assert (out.cause, out.detail[:10]) == (Cause.ANSWERS_MISSED, '3 of the l')
    answer(good=True)
    assert story.last.findings[0].cause is Cause.ANSWERS_MISSED
    answer(good=True)
    assert Cause.ANSWERS_MISSED not in {f.cause for f in story.last.findings}


def test_a_command_of_another_host_with_a_huge_sequence_shuts_nobody_out() -> None:
    story = active()
    story.say_command(host='other', sequence=10**9, request=10**9)
    assert story.tick().cause is Cause.COMMAND_FOREIGN
    own = story.say_command()
    assert Cause.COMMAND_REPEATED not in {f.cause for f in story.tick().findings}
    assert story.last.command == own


def test_one_slow_batch_stops_nobody_and_three_of_five_degrade() -> None:
    story = active()

    def batch(number: int, ms: float) -> Output:
        story.status_with = {
            'in_flight': number, 'in_flight_bound_ns': 100 * MS,
            'in_flight_since_ns': story.clock.now_ns() + round((PERIOD_MS - ms) * MS),
        }
        return story.tick()

    # 1.25 of the bound, and two periods in which the status was written and taken
    for number, ms in ((1, 226), (2, 225), (3, 226), (4, 225), (5, 50), (6, 226), (7, 99)):
        assert batch(number, ms).findings == (), number
    assert batch(8, 226).findings == ()
    out = batch(9, 226)
    assert (out.state, out.cause) == (State.DEGRADED, Cause.ENGINE_THROTTLED)
    story.status_with = {}
    assert story.tick().cause is Cause.ENGINE_THROTTLED, 'idle says nothing'
    assert batch(12, 50).findings == (), 'of most batches no status tells'
    assert batch(13, 126).findings == ()
    assert batch(14, 126).findings == ()
    assert batch(2, 126).findings == (), 'another engine counts anew'
    story.status_with = {'in_flight': 3, 'in_flight_since_ns': story.clock.now_ns() - 200 * MS}
    assert story.tick().findings == (), 'without a bound there is nothing to overrun'


# --- stamps and clocks ----------------------------------------------------------------------


def test_a_stamp_that_stands_still_while_messages_come_is_a_safe_stop() -> None:
    story = active()
    frozen_ns = story.ros_ns
    for _ in range(10):
        story.stamp_offset_ns['scan'] = frozen_ns - story.ros_ns - PERIOD_MS * MS
        assert story.tick().state is State.ACTIVE
    story.stamp_offset_ns['scan'] = frozen_ns - story.ros_ns - round(1e-6 * MS)
    out = story.tick(1e-6)
    assert story.newest['scan'].fields.stamp_ns == frozen_ns
    assert (out.state, out.cause) == (State.SAFE_STOP, Cause.SENSOR_FROZEN)
    assert 'limit 500 ms' in out.detail


def test_a_stamp_in_the_future_that_stands_still_is_no_fresher_for_it() -> None:
    story = active()
    frozen_ns = story.ros_ns + 450 * MS
    story.stamp_offset_ns['scan'] = frozen_ns - story.ros_ns - PERIOD_MS * MS
    story.tick()
    for _ in range(11):
        story.stamp_offset_ns['scan'] = frozen_ns - story.ros_ns - PERIOD_MS * MS
        assert story.tick().state is State.ACTIVE
    story.stamp_offset_ns['scan'] = frozen_ns - story.ros_ns - PERIOD_MS * MS
    assert story.tick().cause is Cause.SENSOR_FROZEN
    del story.stamp_offset_ns['scan']
    assert story.tick().findings == (), 'a stamp that goes on'


def test_a_frozen_optional_sensor_is_a_lost_one() -> None:
    story = active()
    story.silent.discard('wheels')
    frozen_ns = story.ros_ns
    for _ in range(12):
        story.stamp_offset_ns['wheels'] = frozen_ns - story.ros_ns - PERIOD_MS * MS
        story.tick()
    assert (story.state, story.last.cause) == (State.DEGRADED, Cause.OPTIONAL_SENSOR_LOST)
    assert 'stands still' in story.last.detail


@pytest.mark.parametrize('declared', [False, True])
def test_a_clock_declared_to_be_wrong_loses_a_sensor_by_silence_alone(declared: bool) -> None:
    battery = BatterySensor(
        type='sensor_msgs/msg/BatteryState', topic='/battery', rate_hz=10, stale_after_ms=500,
        stamps='arrival' if declared else 'trust')
    story = active(policy=POLICY.model_copy(
        update={'sensors': {**POLICY.sensors, 'battery': battery}}))
    for _ in range(10):
        charge = Battery(story.ros_ns + 7200 * SECOND, 0.8, 12.0, 0, 0, present=True)
        story.newest['battery'] = Received(
            'battery', charge, story.clock.now_ns(), story.ros_ns)
        story.tick()
    assert (story.state is State.ACTIVE) is declared
    story.run(1200)
    assert (story.state, story.last.cause) == (State.DEGRADED, Cause.OPTIONAL_SENSOR_LOST)


def test_in_a_paused_world_no_stamp_is_frozen() -> None:
    story = active()
    story.ros_rate = 0.0
    for _ in range(60):
        story.tick()
        story.newest['scan'] = Received(
            'scan', story.newest['scan'].fields, story.clock.now_ns(), story.ros_ns)
    assert Cause.SENSOR_FROZEN not in {f.cause for o in story.outputs for f in o.findings}


def test_a_message_older_than_the_newest_does_not_replace_it() -> None:
    """Were it taken, the wall would be seen where it was."""
    story = active()
    story.stamp_offset_ns['scan'] = 10 * MS
    story.tick()
    newest_ns = story.newest['scan'].fields.stamp_ns
    for n in range(10):
        assert story.gate.out_of_order == n, 'each is counted once'
        story.stamp_offset_ns['scan'] = newest_ns - 1 - story.ros_ns - PERIOD_MS * MS
        assert story.tick().state is State.ACTIVE
    story.stamp_offset_ns['scan'] -= 1
    out = story.tick(1e-6)
    assert (out.state, out.cause) == (State.SAFE_STOP, Cause.SENSOR_STALE)
    story.stamp_offset_ns['scan'] = 0
    assert story.tick().findings == ()


def test_the_same_message_seen_twice_is_one() -> None:
    story = active()
    story.stamp_offset_ns['scan'] = -100 * MS
    story.tick()
    assert story.gate.out_of_order == 1
    story.silent.add('scan')
    story.run(200)
    assert story.gate.out_of_order == 1
    assert story.last.findings == ()


def test_one_stamp_of_far_ahead_does_not_blind_the_gate() -> None:
    story = active()
    story.stamp_offset_ns['scan'] = 365 * 86_400 * SECOND
    assert story.tick().cause is Cause.SENSOR_STAMP
    del story.stamp_offset_ns['scan']
    assert story.tick().findings == ()


def test_a_goal_may_have_any_stamp() -> None:
    story = active()
    for stamp_ns in (story.ros_ns, story.ros_ns - 100 * MS, 0):
        goal = Goal(stamp_ns, 'odom', 1.0, 0.0, 0.0)
        story.newest['goal'] = Received('goal', goal, story.clock.now_ns(), story.ros_ns)
        assert story.tick().findings == ()
    assert story.gate.out_of_order == 0


def test_an_input_that_no_policy_names_is_no_sensor() -> None:
    story = active()
    story.newest['sonar'] = story.newest['scan']
    story.silent.add('scan')
    story.run(600)
    assert story.last.cause is Cause.SENSOR_STALE


@pytest.mark.parametrize('jump_ms', [-60_000, -200, 60_000])
def test_a_jump_flushes_what_was_received_before_it(jump_ms: int) -> None:
    """A bag that loops: what is seen and asked for before the loop is nothing after it."""
    story = active(dwells=Dwells(safe_stop_clear_ns=0, standby_good_ns=0))
    before = story.say_command()
    story.deciding = False
    story.silent |= {'scan', 'odom'}
    story.ros_ns += jump_ms * MS
    out = story.tick()
    assert (out.state, out.cause) == (State.SAFE_STOP, Cause.CLOCK_JUMP)
    assert 'scan: nothing since ROS time jumped' in {f.detail for f in out.findings}
    assert story.tick().cause is Cause.SENSOR_STALE
    story.silent = {'wheels', 'goal'}
    story.stamp_offset_ns = {'scan': 1, 'odom': 1}
    assert story.tick().state is State.SAFE_STOP, 'it still brakes'
    story.until(State.HOLD, 2000)
    assert story.last.cause is Cause.COMMAND_NEVER
    assert 'since ROS time jumped' in story.last.detail
    story.say_command(  # its observation arrived before
        arrival_ns=before.arrival_ns + 10 * MS, observation_stamp_ns=0)
    out = story.tick()
    assert Cause.OBSERVATION_OLD in {f.cause for f in out.findings}
    assert 'before ROS time jumped' in ' '.join(f.detail for f in out.findings)
    story.run(5000)
    assert story.state is State.HOLD
    story.say_command()
    story.until(State.ACTIVE, 100)
    assert story.gate.out_of_order == 0


def test_what_arrives_with_the_jump_is_from_before_it_and_one_tick_later_is_not() -> None:
    story = active()
    story.deciding = False
    story.ros_ns += 60 * SECOND
    jumped_ns = story.tick().now_ns
    assert story.newest['scan'].arrival_ns == jumped_ns
    assert 'scan: nothing since ROS time jumped' in {f.detail for f in story.last.findings}
    assert {f.cause for f in story.tick().findings} == {Cause.COMMAND_NEVER}
    for late_ns, refused in ((0, True), (1, False)):
        story.say_command(arrival_ns=jumped_ns + late_ns, observation_stamp_ns=0)
        assert (Cause.OBSERVATION_OLD in {f.cause for f in story.tick().findings}) == refused


def test_an_optional_sensor_from_before_a_jump_is_a_lost_one() -> None:
    story = active()
    story.silent.discard('wheels')
    story.tick()
    story.silent.add('wheels')
    story.ros_ns += 60 * SECOND
    assert Cause.OPTIONAL_SENSOR_LOST in {f.cause for f in story.tick().findings}


# --- real-time factor -----------------------------------------------------------------------


@pytest.mark.parametrize(('rate', 'state'), [
    (0.5, State.ACTIVE), (1.2, State.ACTIVE), (1.21, State.FALLBACK), (5.0, State.FALLBACK),
])
def test_the_model_does_not_drive_in_a_world_that_runs_away(rate: float, state: State) -> None:
    story = active()
    story.simulated = True
    story.run(3000)
    story.ros_rate = rate
    story.run(3000)
    assert story.state is state
    assert story.gate.stretch == pytest.approx(max(rate, 1.0), rel=1e-6)
    if state is State.FALLBACK:
        assert story.last.cause is Cause.CLOCK_FAST
        assert 'limit 1.2' in story.last.detail
        story.ros_rate = 1.0
        story.run(1000)
        assert story.state is State.FALLBACK
        story.until(State.ACTIVE, 12_000)


def test_nobody_is_armed_in_a_world_that_runs_away() -> None:
    story = Story(auto_arm=False)
    story.simulated = True
    story.until(State.HOLD, 3000)
    story.ros_rate = 2.0
    story.run(2000)
    assert story.tick(arm=True).state is State.HOLD
    assert story.last.cause is Cause.CLOCK_FAST


def test_what_is_driven_in_a_latency_grows_with_the_pace_of_the_world() -> None:
    speeds = []
    for simulated in (False, True):
        story = Story()
        story.simulated, story.ros_rate = simulated, 1.15
        ranges = BEAMS.copy()
        ranges[180] = reach_m(POLICY) + 0.08  # straight ahead, and moving along
        story.fields_of_scan = lambda stamp_ns, ranges=ranges: Scan(
            stamp_ns, 'laser', -math.pi, 2 * math.pi / 360, 0.05, 12.0, ranges)
        story.until(State.ACTIVE, 3000)
        speeds.append(story.run(3000).velocity.linear_x_m_s)
        assert 'free distance' in story.last.why_limited
    assert 0.5 * speeds[0] < speeds[1] < 0.97 * speeds[0]


def test_in_lock_step_one_clock_is_both() -> None:
    story = active()
    story.ros_rate = 3.0
    assert story.run(3000).state is State.ACTIVE
    assert story.gate.stretch == 1.0


def test_a_factor_measured_before_a_jump_is_not_mixed_with_one_after() -> None:
    story = active()
    story.simulated = True
    story.run(3000)
    story.ros_ns += 3600 * SECOND
    story.tick()
    assert story.last.cause is Cause.CLOCK_JUMP
    assert Cause.CLOCK_FAST not in {f.cause for f in story.run(3000).findings}


# --- other limits at run time ---------------------------------------------------------------


def limits(base: Policy = POLICY, **sections: dict[str, Any]) -> Policy:
    """Return a policy with other values in some of its sections, validated."""
    content = base.model_dump(by_alias=True, exclude_unset=True)
    for section, values in sections.items():
        content[section] = content[section] | values
    return Policy.model_validate(content)


def test_a_lower_speed_limit_holds_at_once_and_is_approached_inside_the_others() -> None:
    story = active()
    assert story.gate.retune(limits(envelope={'max_forward_m_s': 0.1})) == ''
    speeds = [story.tick().velocity.linear_x_m_s for _ in range(6)]
    assert speeds == pytest.approx([0.25, 0.2, 0.15, 0.1, 0.1, 0.1])
    assert story.state is State.ACTIVE
    assert story.last.generation == 2


def test_what_was_accepted_is_judged_by_the_new_limits() -> None:
    story = active()
    story.deciding = False
    assert story.command is not None
    assert story.gate.retune(limits(decision={'min_confidence': 0.95})) == ''
    out = story.tick()
    assert (out.state, out.source, out.cause) == (
        State.DEGRADED, 'baseline', Cause.COMMAND_UNSURE)


TIGHTER: list[tuple[str, str, Any]] = [
    ('decision', 'min_confidence', 0.21), ('decision', 'max_observation_age_ms', 1999.0),
    ('control', 'progress_limit_ms', 299.0), ('control', 'status_limit_ms', 299.0),
    ('envelope', 'max_forward_m_s', 0.99), ('envelope', 'max_reverse_m_s', 0.49),
    ('envelope', 'max_turn_rad_s', 1.49), ('envelope', 'max_acceleration_m_s2', 0.49),
    ('envelope', 'margin_m', 0.09), ('envelope', 'unknown_gap_deg', 3.9),
    ('fallback', 'speed_m_s', 0.04), ('fallback', 'turn_rad_s', 0.49),
]


@pytest.mark.parametrize(('section', 'name', 'value'), TIGHTER, ids=[t[1] for t in TIGHTER])
def test_each_limit_tightens_at_once_and_loosens_in_hold_only(
    section: str, name: str, value: Any,
) -> None:
    tighter = limits(POLICY, **{section: {name: value}})
    for state in (State.ACTIVE, State.HOLD):
        story = Story(auto_arm=state is State.ACTIVE)
        story.until(state, 3000)
        story.tick()
        assert story.gate.retune(tighter) == ''
        assert story.tick().generation == 2
        why = story.gate.retune(POLICY)
        assert (f'{section}.{name}: may loosen' in why) == (state is State.ACTIVE)
        assert story.tick().generation == (2 if state is State.ACTIVE else 3)
        story.run(1000)
        assert Cause.INVARIANT not in {o.cause for o in story.outputs}


def test_every_direction_that_is_declared_is_tried() -> None:
    tried = {f'{section}.{name}' for section, name, _ in TIGHTER}
    assert tried | {'envelope.unknown_is_blocked'} == set(CAREFUL)


def test_unknown_directions_may_be_blocked_at_once_and_freed_in_hold_only() -> None:
    blind = limits(envelope={'unknown_is_blocked': False})
    assert compare(blind, POLICY).tighter == ('envelope.unknown_is_blocked',)
    assert compare(POLICY, blind).looser == ('envelope.unknown_is_blocked',)


@pytest.mark.parametrize('factor', [0.9, 1.1])
@pytest.mark.parametrize('name', ['max_deceleration_m_s2', 'max_angular_acceleration_rad_s2'])
def test_what_may_be_bolder_either_way_waits_for_hold(name: str, factor: float) -> None:
    other = limits(envelope={name: getattr(POLICY.envelope, name) * factor})
    assert f'envelope.{name}' in active().gate.retune(other)
    assert Story().gate.retune(other) == '', 'STANDBY'


def test_a_set_is_taken_whole_or_not_at_all() -> None:
    story = active()
    mixed = limits(envelope={'max_forward_m_s': 0.1, 'max_reverse_m_s': 0.9})
    assert story.gate.retune(mixed) == (
        'envelope.max_reverse_m_s: may loosen in STANDBY and HOLD only, this is ACTIVE')
    assert story.run(500).velocity.linear_x_m_s == pytest.approx(0.3)
    assert story.last.generation == 1
    assert story.gate.retune(limits()) == ''
    assert story.tick().generation == 1, 'nothing was changed'


@pytest.mark.parametrize(('place', 'changed'), [
    ('mission', {'mission': 'Stay.'}),
    ('robot.radius_m', {'robot': POLICY.robot.model_copy(update={'radius_m': 0.3})}),
    ('decision.rate_hz', {'decision': POLICY.decision.model_copy(update={'rate_hz': 1.5})}),
    ('control.rate_hz', {'control': POLICY.control.model_copy(update={'rate_hz': 10.0})}),
    ('sensors.scan.topic', {'sensors': POLICY.sensors | {
        'scan': POLICY.sensors['scan'].model_copy(update={'topic': '/other'})}}),
    ('actions.left', {'actions': {
        name: action for name, action in POLICY.actions.items() if name != 'left'}}),
    ('envelope.obstacle_sensors', {'envelope': POLICY.envelope.model_copy(
        update={'obstacle_sensors': ('other',)})}),
])
def test_what_is_no_limit_changes_with_a_new_start_only(
    place: str, changed: dict[str, Any],
) -> None:
    story = Story()  # in STANDBY, where a limit might loosen
    why = story.gate.retune(POLICY.model_copy(update=changed))
    assert place in why
    assert 'new start' in why
    assert story.tick().generation == 1


# --- in a world -----------------------------------------------------------------------------


def test_what_was_driven_since_the_newest_scan_shrinks_the_free_distance() -> None:
    story = Story()
    ranges = BEAMS.copy()
    ranges[180] = reach_m(POLICY) + 0.2  # straight ahead
    story.fields_of_scan = lambda stamp_ns: Scan(
        stamp_ns, 'laser', -math.pi, 2 * math.pi / 360, 0.05, 12.0, ranges)
    story.until(State.ACTIVE, 3000)
    assert story.run(2000).velocity.linear_x_m_s == pytest.approx(0.3), 'a wall that moves along'
    story.silent.add('scan')
    assert story.run(450).velocity.linear_x_m_s < 0.2
    assert story.state is State.ACTIVE
    assert 'free distance' in story.last.why_limited


@pytest.mark.parametrize('side', [-1, 1])
def test_what_was_turned_since_the_newest_scan_is_bounded_on_its_side(side: int) -> None:
    clock, driven = ManualClock(), Driven(POLICY)
    for _ in range(4):
        driven.tell(clock.now_ns(), Velocity(0.3, 0.0), 0.0)
        clock.advance_ms(50)
    ros_ns = 5_000 * SECOND
    scan = Scan(ros_ns, 'laser', -math.pi, 2 * math.pi / 360, 0.05, 12.0, BEAMS)
    received = Received('scan', scan, clock.now_ns(), ros_ns)
    for _ in range(8):
        driven.tell(clock.now_ns(), Velocity(0.0, side * 0.5), 0.0)
        clock.advance_ms(50)
    seen = driven.seen(clock.now_ns(), Inputs(ros_now_ns=ros_ns, sensors={'scan': received}))
    assert seen is not None
    motion = seen[0].since
    turned = (motion.right_rad, motion.left_rad)[::side]
    assert turned == pytest.approx((0.0, 0.2))
    assert motion.distance_m == pytest.approx(0.3 * 0.1), 'the base\'s delay before the scan'


def test_the_gate_in_a_closed_loop_touches_nothing_and_moves() -> None:
    assert sum(run_at_random(seed) for seed in range(6)) > 3.0


def run_at_random(seed: int) -> float:
    """Take actions at random over faults at random for 20 s; return the metres driven."""
    rng = np.random.default_rng(seed)
    world = PointWorld(rng, POLICY)
    story = Story()
    story.fields_of_scan = world.scan
    driven, faults = 0.0, {'scan', 'odom'}
    for tick in range(400):
        if tick % 7 == 0:
            action = SPACE.actions[int(rng.integers(len(SPACE.actions)))]
            story.command_with = {
                'action': action.name, 'parameters': dict(action.parameters),
                'linear_x_m_s': action.velocity.linear_x_m_s,
                'angular_z_rad_s': action.velocity.angular_z_rad_s,
            }
        if tick % 40 == 0:
            story.silent = {'wheels', 'goal'} | ({str(rng.choice(sorted(faults)))}
                                                 if rng.random() < 0.2 else set())
            story.misses += int(rng.integers(0, 2))
        out = story.tick(150 if rng.random() < 0.02 else PERIOD_MS)
        driven += world.move(out.velocity, PERIOD_MS / 1000)
        assert world.clearance_m() > 0.0, f'touched at tick {tick}, {out.state}, {out.detail}'
    return driven


# --- any story ------------------------------------------------------------------------------


class AnyStory(RuleBasedStateMachine):
    """Whatever happens, in whatever order, the invariants of the gate hold in every step."""

    @initialize(auto_arm=st.booleans())
    def begin(self, auto_arm: bool) -> None:
        self.story = Story(auto_arm=auto_arm, dwells=Dwells(
            standby_good_ns=SECOND // 5, fallback_clean_ns=SECOND // 2,
            degraded_clean_ns=SECOND // 4, degraded_answers=1, shadow_answers=1,
            safe_stop_clear_ns=SECOND // 4, estop_released_ns=SECOND // 10,
        ))
        self.told_arm = auto_arm
        self.after_estop = False
        self.seen = 0

    def go(self, ticks: int, **edges: bool) -> None:
        for _ in range(ticks):
            self.story.tick(**edges)
            edges = {}

    @rule(ticks=st.integers(1, 60))
    def time(self, ticks: int) -> None:
        self.go(ticks)

    @rule(ms=st.sampled_from([1, 49, 151, 400, 5000]))
    def gap(self, ms: int) -> None:
        self.story.tick(ms)

    @rule(arm=st.booleans(), reset=st.booleans())
    def edge(self, arm: bool, reset: bool) -> None:
        self.told_arm = self.told_arm or arm
        self.go(1, arm=arm, reset=reset)

    @rule()
    def recover(self) -> None:
        """All is well for long enough to come back as far as that goes by itself."""
        story = self.story
        story.silent = {'wheels', 'goal'}
        story.status_silent = story.estop = story.estop_silent = story.estop_never = False
        story.deciding, story.ros_rate, story.status_with, story.command_with = True, 1.0, {}, {}
        story.stamp_offset_ns = {}
        story.dead.discard(story.node)
        story.dead.discard(story.worker)
        self.go(1, reset=True)
        self.go(60)
        self.go(1, reset=True)
        self.told_arm = True
        self.go(30, arm=True)

    @rule(name=st.sampled_from(['scan', 'odom', 'wheels']), gone=st.booleans())
    def sensor(self, name: str, gone: bool) -> None:
        (self.story.silent.add if gone else self.story.silent.discard)(name)

    @rule(which=st.sampled_from(['node', 'worker']))
    def death(self, which: str) -> None:
        self.story.dead.add(getattr(self.story, which))

    @rule(session=st.sampled_from([A, B]), pid=st.integers(101, 104))
    def respawn(self, session: str, pid: int) -> None:
        self.story.session, self.story.node = session, (pid, 1)

    @rule(pid=st.integers(201, 204))
    def new_worker(self, pid: int) -> None:
        self.story.worker = (pid, 1)

    @rule(changed=st.sampled_from([
        {}, {'active': False}, {'engine': 'absent'}, {'engine': 'loading'}, {'host': 'other'},
        {'in_flight': 1, 'in_flight_since_ns': 1}, {'progress_ns': 1},
    ]))
    def status(self, changed: dict[str, Any]) -> None:
        self.story.status_with = changed

    @rule(changed=st.sampled_from([
        {}, {'action': 'fly'}, {'linear_x_m_s': 0.9}, {'linear_x_m_s': math.inf},
        {'confidence': 0.0}, {'deadline_ns': 1}, {'valid_until_ns': 2**62}, {'sequence': 1},
        {'action': 'left', 'parameters': {}, 'linear_x_m_s': 0.1, 'angular_z_rad_s': 0.5},
    ]))
    def commands(self, changed: dict[str, Any]) -> None:
        self.story.command_with = changed

    @rule(missed=st.integers(1, 3))
    def miss(self, missed: int) -> None:
        self.story.misses += missed

    @rule(rate=st.sampled_from([0.0, 0.1, 1.0, 3.0]))
    def world_rate(self, rate: float) -> None:
        self.story.ros_rate = rate

    @rule(simulated=st.booleans())
    def world(self, simulated: bool) -> None:
        self.story.simulated = simulated

    @rule(forward=st.sampled_from([0.1, 0.3, 1.0]), margin=st.sampled_from([0.08, 0.2]))
    def retune(self, forward: float, margin: float) -> None:
        self.story.gate.retune(
            limits(envelope={'max_forward_m_s': forward, 'margin_m': margin}))

    @rule(ms=st.sampled_from([-1000, 500, 2000]))
    def jump(self, ms: int) -> None:
        self.story.ros_ns += ms * MS

    @rule(pressed=st.booleans(), silent=st.booleans())
    def estop(self, pressed: bool, silent: bool) -> None:
        self.story.estop, self.story.estop_silent = pressed, silent

    @rule(what=st.sampled_from(['deciding', 'status_silent']), on=st.booleans())
    def toggle(self, what: str, on: bool) -> None:
        setattr(self.story, what, on)

    @rule()
    def exception(self) -> None:
        story = self.story
        story.outputs.append(story.gate.excepted(story.clock.advance_ms(50), 'planted'))

    @invariant()
    def invariants(self) -> None:
        outputs = self.story.outputs
        assert len(outputs) >= self.seen
        for i in range(max(self.seen, 1), len(outputs)):
            before, out = outputs[i - 1], outputs[i]
            v, w = out.velocity.linear_x_m_s, out.velocity.angular_z_rad_s
            v0, w0 = before.velocity.linear_x_m_s, before.velocity.angular_z_rad_s
            assert out.cause is not Cause.INVARIANT
            assert out.sequence == before.sequence + 1
            assert math.isfinite(v)
            assert -0.5 <= v <= 1.0
            assert abs(w) <= 1.5
            assert abs(v) <= abs(v0) + 0.025 + 1e-9, 'acceleration'
            assert abs(w) <= abs(w0) + 0.15 + 1e-9
            if out.state in (State.SAFE_STOP, State.ESTOP_LATCHED, State.FAULT_LATCHED):
                assert abs(v) <= abs(v0)
                assert abs(w) <= abs(w0)
            if out.source == 'model':
                assert out.state is State.ACTIVE
            if out.state in (State.STANDBY, State.HOLD, State.ESTOP_LATCHED, State.FAULT_LATCHED):
                assert out.velocity == STOP
            if out.command is not None:
                assert out.source in ('model', 'hold')
                assert out.now_ns < out.command.valid_until_ns
                assert out.now_ns - out.command.arrival_ns <= POLICY.max_observation_age_ns
                assert SPACE.find(out.command.action, out.command.parameters) is not None
            if out.state is State.ACTIVE and before.state is not State.ACTIVE:
                assert before.state in (State.HOLD, State.DEGRADED)
            if before.state is State.FAULT_LATCHED:
                assert out.state is State.FAULT_LATCHED
            if out.state is not State.STANDBY and out.velocity != STOP:
                assert self.told_arm, 'motion before arming'
            assert out.valid_until_ns > out.now_ns
        self.seen = len(outputs)


def test_the_invariants_hold_in_any_story() -> None:
    run_state_machine_as_test(AnyStory, settings=settings(
        max_examples=30, stateful_step_count=40, deadline=None,
        suppress_health_check=list(HealthCheck),
    ))


def test_without_a_scan_nothing_was_seen() -> None:
    assert Driven(POLICY).seen(SECOND, Inputs(ros_now_ns=None)) is None
