"""What must hold in every step of the gate, said again, without asking the gate.

Numbers come from the policy file and the shapes of the world; no function of the gate, its guards
or its envelope is called. What breaks raises `Broken`, with a rule's name first.
"""

from __future__ import annotations

import math

from smallm_ros.core.clock import SECOND
from smallm_ros.core.gate import Output, State
from smallm_ros.core.summary.scan import Scan
from tests.proofs.robot import ANSWERS, PERIOD_NS, POLICY, Broken, Robot

S = State
STANDING_STATES = frozenset({S.STANDBY, S.HOLD, S.ESTOP_LATCHED, S.FAULT_LATCHED})
CAREFUL = frozenset({S.SAFE_STOP, S.ESTOP_LATCHED, S.FAULT_LATCHED})
_LATCHES = {S.ESTOP_LATCHED, S.FAULT_LATCHED}
LEGAL: dict[State, frozenset[State]] = {
    S.STANDBY: frozenset({S.STANDBY, S.HOLD, *_LATCHES}),
    S.HOLD: frozenset({S.HOLD, S.ACTIVE, *_LATCHES}),
    S.ACTIVE: frozenset({S.ACTIVE, S.DEGRADED, S.FALLBACK, S.SAFE_STOP, *_LATCHES}),
    S.DEGRADED: frozenset({S.DEGRADED, S.ACTIVE, S.FALLBACK, S.SAFE_STOP, *_LATCHES}),
    S.FALLBACK: frozenset({S.FALLBACK, S.DEGRADED, S.SAFE_STOP, *_LATCHES}),
    S.SAFE_STOP: frozenset({S.SAFE_STOP, S.HOLD, *_LATCHES}),
    S.ESTOP_LATCHED: frozenset({S.ESTOP_LATCHED, S.HOLD, S.FAULT_LATCHED}),
    S.FAULT_LATCHED: frozenset({S.FAULT_LATCHED}),
}
"""From where to where; the design's table, written down once more."""

SLACK = 1e-9
REACH_M = POLICY.robot.radius_m + POLICY.envelope.margin_m
LATENCY_S = (
    (PERIOD_NS + POLICY.allowed_lateness_ns) / SECOND + POLICY.robot.base_delay_ms / 1000)


class Oracle:
    """Watches one robot."""

    def __init__(self, robot: Robot) -> None:
        self.robot = robot
        self.state = State.STANDBY
        self.sequence = 0
        self.v = self.w = 0.0
        self.may_move = robot.setting.auto_arm
        """Whether an operator, or auto_arm, let it move since it last had to be asked."""
        self.reset_since_estop = True

    def check(self, out: Output) -> None:
        """Look at one step; `robot.inputs` is what it was given."""
        robot, before = self.robot, self.state
        inputs = robot.inputs
        assert inputs is not None
        v, w = out.velocity.linear_x_m_s, out.velocity.angular_z_rad_s
        self._expect(out.sequence == self.sequence + 1, 'sequence', out.sequence)
        self._expect(out.now_ns == robot.now_ns < out.valid_until_ns, 'validity', out)
        self._expect(out.state in LEGAL[before], 'transition', (before, out.state))
        self._limits(out, v, w)
        self._latches(out, before)
        self._facts(out)
        self._command(out)
        if v > 0.0 and w == 0.0 == self.w:
            self._stops_in_time(out, v)
        if robot.honest:
            self._expect(robot.clearance_m() > 0.0, 'touched', robot.clearance_m())
        self.state, self.sequence, self.v, self.w = out.state, out.sequence, v, w

    def _limits(self, out: Output, v: float, w: float) -> None:
        expect = self._expect
        expect(math.isfinite(v) and math.isfinite(w), 'finite', (v, w))
        rules, dt_s = self.robot.policy.envelope, PERIOD_NS / SECOND
        # A limit that was lowered while the base is faster is reached by braking inside limits.
        braked = abs(self.v) - rules.max_deceleration_m_s2 * dt_s
        most = rules.max_forward_m_s if v > 0.0 else rules.max_reverse_m_s
        expect(abs(v) <= max(most, braked) + SLACK, 'speed', (self.v, v, most))
        slowed = abs(self.w) - rules.max_angular_acceleration_rad_s2 * dt_s
        expect(abs(w) <= max(rules.max_turn_rad_s, slowed) + SLACK, 'turn', (self.w, w))
        expect(abs(v) <= abs(self.v) + rules.max_acceleration_m_s2 * dt_s + SLACK,
               'acceleration', (self.v, v))
        expect(v * self.v >= 0.0, 'through standing', (self.v, v))
        expect(abs(w) <= abs(self.w) + rules.max_angular_acceleration_rad_s2 * dt_s + SLACK,
               'angular acceleration', (self.w, w))
        if out.state in CAREFUL:
            expect(abs(v) <= abs(self.v) + SLACK and abs(w) <= abs(self.w) + SLACK,
                   'careful states grow no faster', (self.v, self.w, v, w))
        if out.state in STANDING_STATES:
            expect(v == 0.0 == w and out.source == 'stop', 'stands', (out.state, v, w))

    def _latches(self, out: Output, before: State) -> None:
        inputs, robot = self.robot.inputs, self.robot
        assert inputs is not None
        if out.state is S.ESTOP_LATCHED:
            self.reset_since_estop = self.may_move = False
        if before is S.ESTOP_LATCHED and out.state is S.HOLD:
            self._expect(inputs.reset and not inputs.estop and not inputs.estop_silent,
                         'left the emergency stop without a reset', inputs)
            self.reset_since_estop = True
        if not robot.setting.auto_arm and out.state is S.HOLD:
            self.may_move = False
        if inputs.arm and before is S.HOLD and not robot.excepted:
            self.may_move = True
        if out.state is S.ACTIVE or out.velocity.linear_x_m_s or out.velocity.angular_z_rad_s:
            self._expect(self.may_move and self.reset_since_estop, 'moves unasked', out.state)
        if out.state is S.FAULT_LATCHED and before is not S.FAULT_LATCHED:
            late_ns = robot.now_ns
            deaths = sum(late_ns - t <= robot.dwells.engine_death_window_ns for t in robot.deaths)
            raised = sum(late_ns - t <= robot.dwells.exception_window_ns
                         for t in robot.exceptions)
            self._expect(deaths >= 5 or raised >= 3 or robot.intruded, 'latched without a fault',
                         out.detail)

    def _facts(self, out: Output) -> None:
        """Check that what plainly is not well shows, whatever else is going on."""
        robot, inputs = self.robot, self.robot.inputs
        assert inputs is not None
        if robot.excepted:
            self._expect(out.velocity.linear_x_m_s == 0.0, 'an exception stops', out)
            return
        if inputs.estop or inputs.estop_silent:
            self._expect(out.state in _LATCHES, 'emergency stop', out.state)
        if inputs.publishers is not None and inputs.publishers > 1 and self.state is not S.STANDBY:
            self._expect(out.state is S.FAULT_LATCHED, 'second publisher', out.state)
        driving = out.state in (S.ACTIVE, S.DEGRADED, S.FALLBACK)
        if driving:
            self._expect(not inputs.estop_never, 'an emergency stop that never was', inputs)
            self._expect(robot.since_ns <= 3 * PERIOD_NS, 'own gap', robot.since_ns)
            for name in ('scan', 'odom'):
                received = inputs.sensors.get(name)
                self._expect(received is not None, 'a sensor that never was', name)
                assert received is not None
                age_ns = robot.now_ns - received.arrival_ns
                limit_ns = POLICY.sensors[name].stale_after_ns
                if inputs.ros_now_ns is not None and received.ros_arrival_ns is not None and (
                    inputs.ros_now_ns >= received.ros_arrival_ns
                ):  # a paused or slow world ages nothing faster than it goes
                    age_ns = min(age_ns, inputs.ros_now_ns - received.ros_arrival_ns)
                self._expect(age_ns <= limit_ns, 'stale sensor', (name, age_ns))
                if received.fields.stamp_ns and inputs.ros_now_ns is not None:
                    off_ns = abs(inputs.ros_now_ns - received.fields.stamp_ns)
                    self._expect(off_ns <= limit_ns, 'stamp', (name, off_ns))
        if out.state is S.ACTIVE:
            self._expect(robot.worker not in inputs.dead or not self._named_worker(),
                         'active with a dead engine', robot.worker)
            self._expect(robot.node not in inputs.dead, 'active with a dead node', robot.node)

    def _named_worker(self) -> bool:
        """Whether the newest status names the worker that the engine has now."""
        status = self.robot.status
        return status is not None and self.robot.worker == (
            status.status.worker_pid, status.status.worker_start_ticks)

    def _command(self, out: Output) -> None:
        robot, inputs, command = self.robot, self.robot.inputs, out.command
        assert inputs is not None
        if out.source == 'model':
            self._expect(out.state is S.ACTIVE, 'source model', out.state)
        if out.source == 'hold':
            ladder = out.state is S.FALLBACK and out.fallback == 'hold'
            self._expect(out.state is S.DEGRADED or ladder, 'source hold', out.state)
        if out.source == 'baseline':
            self._expect(out.state in (S.ACTIVE, S.DEGRADED, S.FALLBACK), 'source', out.state)
        if command is None:
            self._expect(out.source in ('stop', 'baseline'), 'from nowhere', out.source)
            return
        self._expect(out.source in ('model', 'hold'), 'source of a command', out.source)
        honest = any(command is other for other in robot.genuine)
        self._expect(honest, 'hostile command', command)
        self._expect(robot.now_ns < command.valid_until_ns, 'expired', command)
        limit_ns = POLICY.max_observation_age_ns
        self._expect(robot.now_ns - command.arrival_ns <= limit_ns, 'old observation', command)
        if command.observation_stamp_ns and inputs.ros_now_ns is not None:
            off_ns = abs(inputs.ros_now_ns - command.observation_stamp_ns)
            self._expect(off_ns <= limit_ns, 'old stamp', (off_ns, command))
        said = (command.action, dict(command.parameters), command.linear_x_m_s,
                command.angular_z_rad_s)
        self._expect(said in ANSWERS, 'no member of the action space', said)
        self._expect(
            abs(out.velocity.linear_x_m_s) <= max(abs(command.linear_x_m_s), abs(self.v)) + SLACK,
            'faster than asked', (out.velocity, command))

    def _stops_in_time(self, out: Output, v: float) -> None:
        """Check a straight drive against the newest scan: v t + v^2 / 2a before it touches."""
        inputs = self.robot.inputs
        assert inputs is not None
        received = inputs.sensors.get('scan')
        scan = received.fields if received else None
        if not isinstance(scan, Scan):
            raise Broken(f'drives blind: {v} m/s')
        way_m = v * LATENCY_S + v * v / (2 * POLICY.envelope.max_deceleration_m_s2)
        for i, reach in enumerate(scan.ranges_m.tolist()):
            if not scan.range_min_m <= reach <= scan.range_max_m:
                continue
            bearing = scan.angle_min_rad + i * scan.angle_increment_rad
            ahead, aside = reach * math.cos(bearing), reach * math.sin(bearing)
            if ahead > 0.0 and abs(aside) < REACH_M:
                free_m = ahead - math.sqrt(REACH_M * REACH_M - aside * aside)
                self._expect(way_m <= max(free_m, 0.0) + 1e-6, 'stopping distance',
                             (v, way_m, free_m))

    def _expect(self, holds: bool, rule: str, what: object) -> None:
        if not holds:
            raise Broken(f'{rule}: {what!r:.300} in tick {self.robot.ticks}')
