"""The gate: which velocity leaves for the wheels, in this control period, and why.

Facts go in, once each period; exactly one velocity comes out. Each fact that is not well is a
Finding: a Cause, and the Response that it demands. Responses are ordered and the most careful
wins, in the same step; adding a check can only make the robot more careful. Back it goes one state
at a time, after a dwell in which nothing demanded the state: it clears more slowly than it trips.

    STANDBY        stop; until every guard was good for a while
    HOLD           stop; until armed, and every guard is good
    ACTIVE         the model's newest accepted action, while it is valid
    DEGRADED       the last accepted action while it is valid (source `hold`), else the baseline
    FALLBACK       the baseline; answers are judged but not applied ("shadow")
    SAFE_STOP      brakes inside the limits, then stands; then HOLD
    ESTOP_LATCHED  stop, no ramp; until released for a while and then reset; then HOLD
    FAULT_LATCHED  stop; until the process is started again

A command is judged once, when it arrives, and its ages again in every step. One session of the
policy node is live at a time. A pause of ROS time (a paused world) makes no sensor older, and the
base is told to stand while it lasts; deadlines and times-to-live are steady and run on.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from smallm_ros.core import baseline
from smallm_ros.core.action import (
    STOP,
    ActionSpace,
    Applied,
    Command,
    NodeStatus,
    Origin,
    Velocity,
)
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.envelope import Motion, approach, faster_of, limit
from smallm_ros.core.observation import Odometry, Received, Scan
from smallm_ros.core.policy import FallbackKind, GoalSensor, OdometrySensor, Policy


class State(str, enum.Enum):
    """What the gate is doing."""

    STANDBY = 'STANDBY'
    HOLD = 'HOLD'
    ACTIVE = 'ACTIVE'
    DEGRADED = 'DEGRADED'
    FALLBACK = 'FALLBACK'
    SAFE_STOP = 'SAFE_STOP'
    ESTOP_LATCHED = 'ESTOP_LATCHED'
    FAULT_LATCHED = 'FAULT_LATCHED'


class Response(enum.IntEnum):
    """What a finding demands; the greatest wins."""

    NONE = 0
    WAIT = 1
    """Stand while it lasts, in the same state."""
    DEGRADE = 2
    FALLBACK = 3
    SAFE_STOP = 4
    ESTOP = 5
    FAULT = 6


class Cause(str, enum.Enum):
    """Why; of causes with the same response, the first named here is reported."""

    INVARIANT = 'invariant'
    EXCEPTIONS = 'exceptions'
    SECOND_PUBLISHER = 'second_publisher'
    ENGINE_DEATHS = 'engine_deaths'
    ESTOP = 'estop'
    ESTOP_SILENT = 'estop_silent'
    EXCEPTION = 'exception'
    OWN_GAP = 'own_gap'
    CLOCK_ABSENT = 'clock_absent'
    CLOCK_JUMP = 'clock_jump'
    SENSOR_NEVER = 'sensor_never'
    SENSOR_STALE = 'sensor_stale'
    SENSOR_STAMP = 'sensor_stamp'
    PUBLISHER_STANDING = 'publisher_standing'
    NODE_INACTIVE = 'node_inactive'
    SESSION_NEW = 'session_new'
    WORKER_DEAD = 'worker_dead'
    NODE_DEAD = 'node_dead'
    ENGINE_STALLED = 'engine_stalled'
    HOST_FOREIGN = 'host_foreign'
    STATUS_NEVER = 'status_never'
    STATUS_SILENT = 'status_silent'
    ENGINE_FAILED = 'engine_failed'
    ENGINE_ABSENT = 'engine_absent'
    ENGINE_LOADING = 'engine_loading'
    ANSWERS_MISSED = 'answers_missed'
    COMMAND_NEVER = 'command_never'
    COMMAND_SILENT = 'command_silent'
    COMMAND_FOREIGN = 'command_foreign'
    COMMAND_REPEATED = 'command_repeated'
    COMMAND_LATE = 'command_late'
    COMMAND_TTL = 'command_ttl'
    COMMAND_ACTION = 'command_action'
    COMMAND_VELOCITY = 'command_velocity'
    COMMAND_UNSURE = 'command_unsure'
    OBSERVATION_OLD = 'observation_old'
    ANSWER_MISSED = 'answer_missed'
    COMMAND_EXPIRED = 'command_expired'
    SESSION_FOREIGN = 'session_foreign'
    OPTIONAL_SENSOR_LOST = 'optional_sensor_lost'
    CLOCK_PAUSED = 'clock_paused'
    NONE = 'none'


_RANK = {cause: i for i, cause in enumerate(Cause)}

RESPONSES: Mapping[Cause, Response] = MappingProxyType({
    Cause.INVARIANT: Response.FAULT,
    Cause.EXCEPTIONS: Response.FAULT,
    Cause.SECOND_PUBLISHER: Response.FAULT,
    Cause.ENGINE_DEATHS: Response.FAULT,
    Cause.ESTOP: Response.ESTOP,
    Cause.ESTOP_SILENT: Response.ESTOP,
    Cause.EXCEPTION: Response.SAFE_STOP,
    Cause.OWN_GAP: Response.SAFE_STOP,
    Cause.CLOCK_ABSENT: Response.SAFE_STOP,
    Cause.CLOCK_JUMP: Response.SAFE_STOP,
    Cause.SENSOR_NEVER: Response.SAFE_STOP,
    Cause.SENSOR_STALE: Response.SAFE_STOP,
    Cause.SENSOR_STAMP: Response.SAFE_STOP,
    Cause.PUBLISHER_STANDING: Response.SAFE_STOP,
    Cause.NODE_INACTIVE: Response.SAFE_STOP,
    Cause.SESSION_NEW: Response.SAFE_STOP,
    Cause.WORKER_DEAD: Response.FALLBACK,
    Cause.NODE_DEAD: Response.FALLBACK,
    Cause.ENGINE_STALLED: Response.FALLBACK,
    Cause.HOST_FOREIGN: Response.FALLBACK,
    Cause.STATUS_NEVER: Response.FALLBACK,
    Cause.STATUS_SILENT: Response.FALLBACK,
    Cause.ENGINE_FAILED: Response.FALLBACK,
    Cause.ENGINE_ABSENT: Response.FALLBACK,
    Cause.ENGINE_LOADING: Response.FALLBACK,
    Cause.ANSWERS_MISSED: Response.FALLBACK,
    Cause.COMMAND_NEVER: Response.FALLBACK,
    Cause.COMMAND_SILENT: Response.FALLBACK,
    Cause.COMMAND_FOREIGN: Response.DEGRADE,
    Cause.COMMAND_REPEATED: Response.DEGRADE,
    Cause.COMMAND_LATE: Response.DEGRADE,
    Cause.COMMAND_TTL: Response.DEGRADE,
    Cause.COMMAND_ACTION: Response.DEGRADE,
    Cause.COMMAND_VELOCITY: Response.DEGRADE,
    Cause.COMMAND_UNSURE: Response.DEGRADE,
    Cause.OBSERVATION_OLD: Response.DEGRADE,
    Cause.ANSWER_MISSED: Response.DEGRADE,
    Cause.COMMAND_EXPIRED: Response.DEGRADE,
    Cause.SESSION_FOREIGN: Response.DEGRADE,
    Cause.OPTIONAL_SENSOR_LOST: Response.DEGRADE,
    Cause.CLOCK_PAUSED: Response.WAIT,
    Cause.NONE: Response.NONE,
})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not well, with its numbers in words."""

    cause: Cause
    detail: str

    @property
    def response(self) -> Response:
        """What it demands."""
        return RESPONSES[self.cause]


_WELL = Finding(Cause.NONE, '')


# --- the facts ------------------------------------------------------------------------------

Process = tuple[int, int]
"""A process for good: its pid and the start ticks of /proc/PID/stat."""


@dataclass(frozen=True, slots=True)
class CommandArrival:
    """The newest command of the policy node, and when it was taken."""

    command: Command
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class StatusArrival:
    """The newest status of the policy node, and when it was taken."""

    status: NodeStatus
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that the gate may know in one step. Edges are true in one step only."""

    ros_now_ns: int | None
    """None before the first /clock."""
    sensors: Mapping[str, Received] = field(default_factory=dict)
    command: CommandArrival | None = None
    status: StatusArrival | None = None
    dead: frozenset[Process] = frozenset()
    """Those processes named by statuses that have ended."""
    estop: bool = False
    estop_silent: bool = False
    publishers: int | None = None
    """Publishers on the output topic, this one among them; None before the graph was read."""
    arm: bool = False
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Dwells:
    """How long and how often, steady time; the defaults are for robots."""

    standby_good_ns: int = 1 * SECOND
    degraded_clean_ns: int = 2 * SECOND
    degraded_answers: int = 5
    """Good answers in a row before the model drives again."""
    misses: int = 3
    miss_window_ns: int = 5 * SECOND
    fallback_clean_ns: int = 5 * SECOND
    shadow_answers: int = 3
    safe_stop_clear_ns: int = 2 * SECOND
    estop_released_ns: int = SECOND // 2
    engine_deaths: int = 5
    engine_death_window_ns: int = 60 * SECOND
    exceptions: int = 3
    exception_window_ns: int = 1 * SECOND
    clock_still_ns: int = SECOND // 5
    """ROS time that stood still this long is paused; shorter is a slow /clock."""
    clock_jump_ns: int = 1 * SECOND


# --- the table ------------------------------------------------------------------------------


class Emit(enum.Enum):
    """What a state asks of the base."""

    STOP = 'stop at once'
    BRAKE = 'brake inside the limits'
    MODEL = 'the model\'s action'
    LAST = 'the last accepted action, then the baseline'
    BASELINE = 'the baseline'


@dataclass(frozen=True, slots=True)
class WayBack:
    """What a state's way back may depend on."""

    armed: bool
    reset: bool
    standing: bool
    good_answers: int
    """Accepted in a row since the state was entered."""
    dwells: Dwells


@dataclass(frozen=True, slots=True)
class Row:
    """A state: what it emits, where each response leads, and its one way back."""

    emits: Emit
    on: Mapping[Response, State]
    back: State | None = None
    clear_of: Response = Response.FAULT
    """Findings of this response or a greater one keep it here, and start its dwell anew."""
    dwell_ns: Callable[[Dwells], int] = lambda dwells: 0
    when: Callable[[WayBack], bool] = lambda way: True


def _on(
    here: State, degrade: State | None = None, fallback: State | None = None,
    safe_stop: State | None = None,
) -> Mapping[Response, State]:
    return MappingProxyType({
        Response.NONE: here,
        Response.WAIT: here,
        Response.DEGRADE: degrade or here,
        Response.FALLBACK: fallback or here,
        Response.SAFE_STOP: safe_stop or here,
        Response.ESTOP: State.ESTOP_LATCHED,
        Response.FAULT: State.FAULT_LATCHED,
    })


TABLE: Mapping[State, Row] = MappingProxyType({
    State.STANDBY: Row(
        Emit.STOP, _on(State.STANDBY), back=State.HOLD, clear_of=Response.FALLBACK,
        dwell_ns=lambda dwells: dwells.standby_good_ns,
    ),
    State.HOLD: Row(
        Emit.STOP, _on(State.HOLD), back=State.ACTIVE, clear_of=Response.WAIT,
        when=lambda way: way.armed,
    ),
    State.ACTIVE: Row(
        Emit.MODEL,
        _on(State.ACTIVE, State.DEGRADED, State.FALLBACK, State.SAFE_STOP),
    ),
    State.DEGRADED: Row(
        Emit.LAST,
        _on(State.DEGRADED, fallback=State.FALLBACK, safe_stop=State.SAFE_STOP),
        back=State.ACTIVE, clear_of=Response.DEGRADE,
        dwell_ns=lambda dwells: dwells.degraded_clean_ns,
        when=lambda way: way.good_answers >= way.dwells.degraded_answers,
    ),
    State.FALLBACK: Row(
        Emit.BASELINE,
        _on(State.FALLBACK, safe_stop=State.SAFE_STOP),
        back=State.DEGRADED, clear_of=Response.FALLBACK,
        dwell_ns=lambda dwells: dwells.fallback_clean_ns,
        when=lambda way: way.good_answers >= way.dwells.shadow_answers,
    ),
    State.SAFE_STOP: Row(
        Emit.BRAKE, _on(State.SAFE_STOP), back=State.HOLD, clear_of=Response.SAFE_STOP,
        dwell_ns=lambda dwells: dwells.safe_stop_clear_ns,
        when=lambda way: way.standing,
    ),
    State.ESTOP_LATCHED: Row(
        Emit.STOP, _on(State.ESTOP_LATCHED), back=State.HOLD, clear_of=Response.ESTOP,
        dwell_ns=lambda dwells: dwells.estop_released_ns,
        when=lambda way: way.reset,
    ),
    State.FAULT_LATCHED: Row(
        Emit.STOP,
        MappingProxyType(dict.fromkeys(Response, State.FAULT_LATCHED)),
    ),
})
"""Every state has a row, every row every response; what lacks is a bug and raises."""

CAREFUL = frozenset({State.SAFE_STOP, State.ESTOP_LATCHED, State.FAULT_LATCHED})
"""States in which speed never grows."""

STANDING_M_S = 0.03
STANDING_RAD_S = 0.1
"""Measured speeds below these are noise of a base that stands."""

_HISTORY_NS = 3 * SECOND


# --- what comes out -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Output:
    """What leaves in one step, and why."""

    now_ns: int
    sequence: int
    state: State
    cause: Cause
    """The worst active cause, or the one that led here when none is active any more."""
    detail: str
    findings: tuple[Finding, ...]
    """All that are active, the worst first."""
    velocity: Velocity
    source: Origin
    valid_until_ns: int
    command: Command | None
    """The command that was applied."""
    fallback: FallbackKind | None
    """The baseline that was applied."""
    limited: bool
    why_limited: str

    def applied(self, late_ns: int) -> Applied:
        """Return what `~/applied` says of this step, which began `late_ns` late."""
        command = self.command
        return Applied(
            sequence=self.sequence,
            steady_ns=self.now_ns,
            state=self.state.value,
            cause=self.cause.value,
            source=self.source,
            valid_until_ns=self.valid_until_ns,
            linear_x_m_s=self.velocity.linear_x_m_s,
            angular_z_rad_s=self.velocity.angular_z_rad_s,
            command_session=command.session if command else '',
            command_sequence=command.sequence if command else 0,
            observation_stamp_ns=command.observation_stamp_ns if command else 0,
            late_ns=max(late_ns, 0),
            limited=self.limited,
        )


# --- the gate -------------------------------------------------------------------------------


class Gate:
    """The state machine of one watchdog. `step` once each control period, nothing else."""

    def __init__(
        self, policy: Policy, *, auto_arm: bool, host: str, boot: str,
        dwells: Dwells | None = None,
    ) -> None:
        self._policy = policy
        self._space = ActionSpace.of(policy)
        self._auto_arm = auto_arm
        self._home = (host, boot)
        self._dwells = dwells or Dwells()
        self._state = State.STANDBY
        self._entered: Finding | None = None
        self._clear_since_ns: int | None = None
        self._stepped_ns: int | None = None
        self._sequence = 0
        self._must_arm = False
        self._velocity = STOP
        self._coasting_m_s = 0.0
        self._driven: deque[tuple[int, float, float]] = deque()
        self._ros = _RosTime(self._dwells)
        self._answers = _Answers(policy, self._space, self._home, self._dwells)
        self._deaths: deque[int] = deque()
        self._dead_counted: set[Process] = set()
        self._worker: Process | None = None
        self._exceptions: deque[int] = deque()

    @property
    def state(self) -> State:
        """The state after the last step."""
        return self._state

    def step(self, now_ns: int, inputs: Inputs) -> Output:
        """Take the facts of one control period, return what leaves. `now_ns` never goes back."""
        findings = sorted(self._find(now_ns, inputs), key=_severity, reverse=True)
        self._advance(now_ns, inputs, findings)
        velocity, source, command, kind = self._ask(now_ns, inputs, findings)
        limited, why = False, ''
        emits = TABLE[self._state].emits
        if emits is Emit.STOP:
            self._halt()
        else:
            allowed = limit(
                velocity, self._velocity, self._policy.control_period_ns / SECOND,
                self._scan(inputs), self._motion(now_ns, inputs), self._policy,
            )
            velocity, limited, why = allowed.velocity, allowed.limited, allowed.why
            self._coasting_m_s = allowed.coasting_m_s
        broken = broken_invariant(self._state, source, velocity, self._velocity, self._policy)
        if broken:
            finding = Finding(Cause.INVARIANT, broken)
            findings.insert(0, finding)
            self._go(State.FAULT_LATCHED, finding)
            self._halt()
            velocity, source, command, kind = STOP, 'stop', None, None
        return self._output(
            now_ns, findings, velocity, source, command, kind, limited, why,
        )

    def excepted(self, now_ns: int, why: str) -> Output:
        """Return a stop for a step that raised; several in a short time latch the fault."""
        self._exceptions.append(now_ns)
        while now_ns - self._exceptions[0] > self._dwells.exception_window_ns:
            self._exceptions.popleft()
        count = len(self._exceptions)
        many = count >= self._dwells.exceptions
        finding = Finding(
            Cause.EXCEPTIONS if many else Cause.EXCEPTION,
            f'{count} in {self._dwells.exception_window_ns / SECOND:g} s, the last: {why}'[:300],
        )
        self._stepped_ns = now_ns
        target = TABLE[self._state].on[finding.response]
        if target is not self._state:
            self._go(target, finding)
        self._clear_since_ns = None
        self._halt()
        return self._output(now_ns, [finding], STOP, 'stop', None, None, False, '')

    # --- findings ---------------------------------------------------------------------------

    def _find(self, now_ns: int, inputs: Inputs) -> list[Finding]:
        findings: list[Finding] = []
        if self._stepped_ns is not None:
            gap_ns, most_ns = now_ns - self._stepped_ns, 3 * self._policy.control_period_ns
            if gap_ns > most_ns:
                findings.append(Finding(
                    Cause.OWN_GAP, f'own gap {gap_ns / MS:.0f} ms, limit {most_ns / MS:.0f} ms',
                ))
        self._stepped_ns = now_ns
        findings += self._ros.update(now_ns, inputs.ros_now_ns)
        findings += self._sensor_findings(now_ns, inputs)
        findings += self._answers.update(now_ns, inputs, auto_arm=self._auto_arm)
        findings += self._death_findings(now_ns, inputs)
        if inputs.estop:
            findings.append(Finding(Cause.ESTOP, 'emergency stop asserted'))
        if inputs.estop_silent:
            findings.append(Finding(Cause.ESTOP_SILENT, 'the emergency stop\'s source is silent'))
        if inputs.publishers is not None and inputs.publishers > 1:
            # One that was there first is perhaps what discovery still lists of a killed watchdog.
            cause = (
                Cause.PUBLISHER_STANDING if self._state is State.STANDBY
                else Cause.SECOND_PUBLISHER
            )
            findings.append(Finding(
                cause, f'{inputs.publishers} publishers on the output topic, 1 allowed',
            ))
        return findings

    def _sensor_findings(self, now_ns: int, inputs: Inputs) -> list[Finding]:
        findings = []
        for name, sensor in self._policy.sensors.items():
            received = inputs.sensors.get(name)
            if received is None:
                if sensor.required:
                    findings.append(Finding(Cause.SENSOR_NEVER, f'{name}: nothing on '
                                                                f'{sensor.topic} yet'))
                continue
            if not sensor.required and isinstance(sensor, GoalSensor):
                continue  # said once, not a stream: it cannot be lost
            limit_ns = sensor.stale_after_ns
            age_ns = _arrival_age_ns(received, now_ns, inputs.ros_now_ns)
            cause = None
            if age_ns > limit_ns:
                cause = Cause.SENSOR_STALE
                text = f'{name}: arrived {age_ns / MS:.0f} ms ago, limit {limit_ns / MS:.0f} ms'
            else:
                stamp_age_ns = self._stamp_age_ns(received.fields.stamp_ns, inputs)
                if stamp_age_ns is not None and abs(stamp_age_ns) > limit_ns:
                    cause = Cause.SENSOR_STAMP
                    text = (f'{name}: stamp {stamp_age_ns / MS:.0f} ms old, limit '
                            f'{limit_ns / MS:.0f} ms to either side')
            if cause is not None:
                findings.append(Finding(
                    cause if sensor.required else Cause.OPTIONAL_SENSOR_LOST, text,
                ))
        return findings

    @staticmethod
    def _stamp_age_ns(stamp_ns: int, inputs: Inputs) -> int | None:
        """Age in ROS time; None where there is no stamp (0) or no ROS time."""
        if stamp_ns == 0 or inputs.ros_now_ns is None:
            return None
        return inputs.ros_now_ns - stamp_ns

    def _death_findings(self, now_ns: int, inputs: Inputs) -> list[Finding]:
        """Count each worker's death once, whether its end was seen or only its successor."""
        status = self._answers.status
        if status is not None and status.worker_pid:
            worker = (status.worker_pid, status.worker_start_ticks)
            if self._worker not in (None, worker):
                assert self._worker is not None
                self._count_death(self._worker, now_ns)
            self._worker = worker
        if self._worker in inputs.dead:
            assert self._worker is not None
            self._count_death(self._worker, now_ns)
        window_ns = self._dwells.engine_death_window_ns
        while self._deaths and now_ns - self._deaths[0] > window_ns:
            self._deaths.popleft()
        if len(self._deaths) < self._dwells.engine_deaths:
            return []
        return [Finding(
            Cause.ENGINE_DEATHS,
            f'the engine died {len(self._deaths)} times in {window_ns / SECOND:g} s',
        )]

    def _count_death(self, worker: Process, now_ns: int) -> None:
        if worker not in self._dead_counted:
            self._dead_counted.add(worker)
            self._deaths.append(now_ns)

    # --- the interpreter of the table -------------------------------------------------------

    def _advance(self, now_ns: int, inputs: Inputs, findings: list[Finding]) -> None:
        row = TABLE[self._state]
        worst = findings[0] if findings else _WELL
        target = row.on[worst.response]
        if target is not self._state:
            self._go(target, worst)
        elif worst.response >= row.clear_of or row.back is None:
            self._clear_since_ns = None
        else:
            if self._clear_since_ns is None:
                self._clear_since_ns = now_ns
            dwelt = now_ns - self._clear_since_ns >= row.dwell_ns(self._dwells)
            if dwelt and row.when(self._way_back(now_ns, inputs)):
                self._go(row.back, None)

    def _way_back(self, now_ns: int, inputs: Inputs) -> WayBack:
        return WayBack(
            armed=inputs.arm or (self._auto_arm and not self._must_arm),
            reset=inputs.reset,
            standing=self._standing(now_ns, inputs),
            good_answers=self._answers.good,
            dwells=self._dwells,
        )

    def _go(self, state: State, because: Finding | None) -> None:
        """Change the state: towards safety with its finding, back with None."""
        if state is State.ESTOP_LATCHED:
            self._must_arm = True  # a reset never restarts motion, not even under auto_arm
        if state is State.ACTIVE:
            self._must_arm = False
        if because is not None:
            self._entered = because
        elif state in (State.HOLD, State.ACTIVE):
            self._entered = None
        self._state = state
        self._clear_since_ns = None
        self._answers.good = 0

    # --- velocity ---------------------------------------------------------------------------

    def _ask(
        self, now_ns: int, inputs: Inputs, findings: list[Finding],
    ) -> tuple[Velocity, Origin, Command | None, FallbackKind | None]:
        emits = TABLE[self._state].emits
        wait = any(finding.response is Response.WAIT for finding in findings)
        if emits in (Emit.STOP, Emit.BRAKE) or wait:
            return STOP, 'stop', None, None
        command = self._answers.accepted
        if emits is not Emit.BASELINE and command is not None and self._answers.live(
            now_ns, inputs.ros_now_ns,
        ):
            asked = Velocity(command.linear_x_m_s, command.angular_z_rad_s)
            return asked, 'model' if emits is Emit.MODEL else 'hold', command, None
        # The obstacle sensor is a required one: were it not fit, the state would be SAFE_STOP.
        kind, asked = baseline.choose(
            self._policy, self._scan(inputs), self._velocity,
            self._policy.control_period_ns / SECOND,
        )
        return asked, 'baseline', None, kind

    def _halt(self) -> None:
        """Note that a stop without a ramp was commanded: the base brakes as well as it can."""
        self._coasting_m_s = approach(
            faster_of(self._velocity.linear_x_m_s, self._coasting_m_s), 0.0, 0.0,
            self._policy.envelope.max_deceleration_m_s2 * self._policy.control_period_ns / SECOND,
        )

    def _scan(self, inputs: Inputs) -> Scan | None:
        """Return the newest scan; how old it is, `_motion` accounts for."""
        received = inputs.sensors.get(self._policy.envelope.obstacle_sensor)
        fields = received.fields if received else None
        return fields if isinstance(fields, Scan) else None

    def _motion(self, now_ns: int, inputs: Inputs) -> Motion:
        """Bound what the base did since the newest scan, from what it was told since."""
        received = inputs.sensors.get(self._policy.envelope.obstacle_sensor)
        if received is None:
            return Motion(coasting_m_s=self._coasting_m_s)
        age_ns = now_ns - received.arrival_ns
        stamp_age_ns = self._stamp_age_ns(received.fields.stamp_ns, inputs)
        if stamp_age_ns is None:
            age_ns += self._policy.control_period_ns  # it may have waited that long to be taken
        elif stamp_age_ns > age_ns:
            age_ns = stamp_age_ns
        since_ns = now_ns - age_ns - round(self._policy.robot.base_delay_ms * MS)
        rules = self._policy.envelope
        distance = left = right = 0.0
        end_ns = now_ns
        for began_ns, speed, turn in reversed(self._driven):
            lasted_s = (end_ns - max(began_ns, since_ns)) / SECOND
            distance += speed * lasted_s
            left += max(turn, 0.0) * lasted_s
            right += max(-turn, 0.0) * lasted_s
            end_ns = max(began_ns, since_ns)
            if began_ns <= since_ns:
                break
        if self._driven and end_ns > since_ns:  # older than what is remembered
            rest_s = (end_ns - since_ns) / SECOND
            distance += max(rules.max_forward_m_s, rules.max_reverse_m_s) * rest_s
            left += rules.max_turn_rad_s * rest_s
            right += rules.max_turn_rad_s * rest_s
        return Motion(distance, left, right, self._coasting_m_s)

    def _standing(self, now_ns: int, inputs: Inputs) -> bool:
        if self._velocity != STOP or self._coasting_m_s != 0.0:
            return False
        for name, sensor in self._policy.sensors.items():
            received = inputs.sensors.get(name)
            if not isinstance(sensor, OdometrySensor) or received is None:
                continue
            measured = received.fields
            age_ns = _arrival_age_ns(received, now_ns, inputs.ros_now_ns)
            if isinstance(measured, Odometry) and age_ns <= sensor.stale_after_ns and (
                abs(measured.linear_x_m_s) > STANDING_M_S
                or abs(measured.angular_z_rad_s) > STANDING_RAD_S
            ):
                return False
        return True

    def _output(
        self, now_ns: int, findings: list[Finding], velocity: Velocity, source: Origin,
        command: Command | None, kind: FallbackKind | None, limited: bool, why: str,
    ) -> Output:
        speed = max(abs(velocity.linear_x_m_s), abs(self._coasting_m_s))
        self._driven.append((now_ns, speed, velocity.angular_z_rad_s))
        while now_ns - self._driven[0][0] > _HISTORY_NS:
            self._driven.popleft()
        self._velocity = velocity
        self._sequence += 1
        worst = findings[0] if findings else _WELL
        if self._entered is not None and worst.response < TABLE[self._state].clear_of:
            worst = self._entered
        due_ns = self._policy.control_period_ns + self._policy.allowed_lateness_ns
        return Output(
            now_ns=now_ns,
            sequence=self._sequence,
            state=self._state,
            cause=worst.cause,
            detail=worst.detail,
            findings=tuple(findings),
            velocity=velocity,
            source=source,
            valid_until_ns=command.valid_until_ns if command else now_ns + due_ns,
            command=command,
            fallback=kind,
            limited=limited,
            why_limited=why,
        )


def broken_invariant(
    state: State, source: Origin, velocity: Velocity, previous: Velocity, policy: Policy,
) -> str:
    """Return which invariant an output would break, in words; empty when it breaks none."""
    v, w = velocity.linear_x_m_s, velocity.angular_z_rad_s
    rules, slack = policy.envelope, 1e-9
    if not (math.isfinite(v) and math.isfinite(w)):
        return f'velocity {v}, {w} is not finite'
    if not -rules.max_reverse_m_s - slack <= v <= rules.max_forward_m_s + slack:
        return f'{v:g} m/s is outside -{rules.max_reverse_m_s:g} to {rules.max_forward_m_s:g}'
    if abs(w) > rules.max_turn_rad_s + slack:
        return f'{w:g} rad/s is more than {rules.max_turn_rad_s:g}'
    if state in CAREFUL and (
        abs(v) > abs(previous.linear_x_m_s) + slack
        or abs(w) > abs(previous.angular_z_rad_s) + slack
    ):
        return (f'speed grew in {state.value}: {previous.linear_x_m_s:g} m/s, '
                f'{previous.angular_z_rad_s:g} rad/s to {v:g}, {w:g}')
    if source == 'model' and state is not State.ACTIVE:
        return f'source model in {state.value}'
    return ''


def _severity(finding: Finding) -> tuple[int, int]:
    return finding.response, -_RANK[finding.cause]


# --- memory of the gate, by what it is about ------------------------------------------------


class _RosTime:
    """ROS time as seen from steady time: absent, jumping, paused."""

    def __init__(self, dwells: Dwells) -> None:
        self._dwells = dwells
        self._last_ns: int | None = None
        self._advanced_ns = 0

    def update(self, now_ns: int, ros_now_ns: int | None) -> list[Finding]:
        if ros_now_ns is None:
            return [Finding(Cause.CLOCK_ABSENT, 'no /clock yet')]
        last_ns, self._last_ns = self._last_ns, ros_now_ns
        if last_ns is None:
            self._advanced_ns = now_ns
            return []
        step_ns, quiet_ns = ros_now_ns - last_ns, now_ns - self._advanced_ns
        if step_ns == 0:
            if quiet_ns <= self._dwells.clock_still_ns:
                return []
            return [Finding(
                Cause.CLOCK_PAUSED, f'ROS time has stood still for {quiet_ns / MS:.0f} ms',
            )]
        self._advanced_ns = now_ns
        if step_ns < 0 or step_ns - quiet_ns > self._dwells.clock_jump_ns:
            return [Finding(
                Cause.CLOCK_JUMP,
                f'ROS time went {step_ns / MS:+.0f} ms in {quiet_ns / MS:.0f} ms of steady time',
            )]
        return []


def _arrival_age_ns(received: Received, now_ns: int, ros_now_ns: int | None) -> int:
    """Age by arrival, on the slower of the two clocks: a paused world makes no sensor older.

    ROS time that went back since says nothing; then steady time alone decides.
    """
    age_ns = now_ns - received.arrival_ns
    if received.ros_arrival_ns is None or ros_now_ns is None:
        return age_ns
    ros_age_ns = ros_now_ns - received.ros_arrival_ns
    return min(age_ns, ros_age_ns) if ros_age_ns >= 0 else age_ns


class _Answers:
    """The live session: its status, its engine, its commands, and how many were good."""

    def __init__(
        self, policy: Policy, space: ActionSpace, home: tuple[str, str], dwells: Dwells,
    ) -> None:
        self._policy = policy
        self._space = space
        self._home = home
        self._dwells = dwells
        self._status_limit_ns = round(policy.control.status_limit_ms * MS)
        self.status: NodeStatus | None = None
        self._status_arrival_ns = 0
        self.accepted: Command | None = None
        self.good = 0
        self._judged_ns: int | None = None
        self._last_sequence = 0
        self._last_request = 0
        self._misses: deque[int] = deque()

    def update(self, now_ns: int, inputs: Inputs, *, auto_arm: bool) -> list[Finding]:
        findings = self._hear(now_ns, inputs, auto_arm)
        if inputs.command is not None and inputs.command.arrival_ns != self._judged_ns:
            findings += self._receive(now_ns, inputs.command, inputs)
        findings += self._node_findings(now_ns, inputs)
        findings += self._command_findings(now_ns, inputs.ros_now_ns)
        while self._misses and now_ns - self._misses[0] > self._dwells.miss_window_ns:
            self._misses.popleft()
        if len(self._misses) >= self._dwells.misses:
            findings.append(Finding(
                Cause.ANSWERS_MISSED,
                f'{len(self._misses)} answers missed or refused in '
                f'{self._dwells.miss_window_ns / SECOND:g} s, limit {self._dwells.misses - 1}',
            ))
        return findings

    def live(self, now_ns: int, ros_now_ns: int | None) -> bool:
        """Whether the accepted command may still be applied."""
        return self.accepted is not None and self._ages(self.accepted, now_ns, ros_now_ns) is None

    def _hear(self, now_ns: int, inputs: Inputs, auto_arm: bool) -> list[Finding]:
        """Take the newest status, if it is of the live session or of its successor."""
        arrival = inputs.status
        if arrival is None:
            return []
        status = arrival.status
        if (status.host, status.boot) != self._home:
            return [Finding(
                Cause.HOST_FOREIGN,
                f'status from host {status.host!r}, boot {status.boot!r}; here is '
                f'{self._home[0]!r}, {self._home[1]!r}',
            )]
        old = self.status
        if old is not None and old.session == status.session:
            if status.sequence <= old.sequence:
                return []
            self.status, self._status_arrival_ns = status, arrival.arrival_ns
            missed = status.misses - old.misses
            if missed <= 0 or status.engine != 'ready':
                return []  # an engine that is not there has a cause of its own
            self._miss(now_ns, missed)
            return [Finding(Cause.ANSWER_MISSED, f'{missed} missed: {status.last_outcome}')]
        if old is not None and self._gone(now_ns, inputs) is None:
            return [Finding(
                Cause.SESSION_FOREIGN,
                f'session {status.session} speaks while {old.session} is live',
            )]
        self.status, self._status_arrival_ns = status, arrival.arrival_ns
        self.accepted = None
        self.good = 0
        self._last_sequence = self._last_request = 0
        if old is None or auto_arm:
            return []
        return [Finding(
            Cause.SESSION_NEW, f'session {status.session} follows {old.session}: arm again',
        )]

    def _gone(self, now_ns: int, inputs: Inputs) -> Finding | None:
        """Whether the live session's node has ended or fallen silent."""
        status = self.status
        if status is None:
            return Finding(Cause.STATUS_NEVER, 'no status of a policy node yet')
        if (status.pid, status.start_ticks) in inputs.dead:
            return Finding(Cause.NODE_DEAD, f'policy node, pid {status.pid}, has ended')
        silent_ns = now_ns - self._status_arrival_ns
        if silent_ns > self._status_limit_ns:
            return Finding(
                Cause.STATUS_SILENT,
                f'status is {silent_ns / MS:.0f} ms old, limit {self._status_limit_ns / MS:.0f}',
            )
        return None

    def _node_findings(self, now_ns: int, inputs: Inputs) -> list[Finding]:
        gone = self._gone(now_ns, inputs)
        status = self.status
        findings = [] if gone is None else [gone]
        if status is None:
            return findings
        if status.worker_pid and (status.worker_pid, status.worker_start_ticks) in inputs.dead:
            findings.append(Finding(
                Cause.WORKER_DEAD, f'the engine\'s worker, pid {status.worker_pid}, has ended',
            ))
        if gone is not None:
            return findings  # what it said last is no news of the engine
        if not status.active:
            findings.append(Finding(Cause.NODE_INACTIVE, 'the policy node is not active'))
        if status.engine == 'ready' and status.worker_pid:
            stalled = self._stalled(now_ns, status)
            if stalled is not None:
                findings.append(stalled)
        else:
            cause = {
                'loading': Cause.ENGINE_LOADING, 'failed': Cause.ENGINE_FAILED,
            }.get(status.engine, Cause.ENGINE_ABSENT)
            findings.append(Finding(cause, f'engine {status.engine}: {status.last_outcome}'))
        return findings

    def _stalled(self, now_ns: int, status: NodeStatus) -> Finding | None:
        limit_ns = round(self._policy.control.progress_limit_ms * MS)
        if status.in_flight:
            limit_ns = max(limit_ns, status.in_flight_bound_ns * 3 // 2)
            age_ns = now_ns - status.in_flight_since_ns
            what = f'batch {status.in_flight} in flight for'
        else:
            age_ns = now_ns - status.progress_ns
            what = 'the engine\'s last progress is older than'
        if age_ns <= limit_ns:
            return None
        return Finding(
            Cause.ENGINE_STALLED, f'{what} {age_ns / MS:.0f} ms, limit {limit_ns / MS:.0f} ms',
        )

    def _receive(
        self, now_ns: int, arrival: CommandArrival, inputs: Inputs,
    ) -> list[Finding]:
        """Judge a new command once; one whose session is not known yet waits for its status."""
        command = arrival.command
        own = self.status is not None and command.session == self.status.session
        if not own and self._gone(now_ns, inputs) is not None:
            return []
        self._judged_ns = arrival.arrival_ns
        refused = self._judge(command, arrival.arrival_ns, now_ns, inputs.ros_now_ns)
        if own and command.sequence > self._last_sequence:
            self._last_sequence = command.sequence
            self._last_request = max(self._last_request, command.request)
        if refused is not None:
            self._miss(now_ns, 1)
            return [refused]
        self.accepted = command
        self.good += 1
        return []

    def _judge(
        self, command: Command, arrival_ns: int, now_ns: int, ros_now_ns: int | None,
    ) -> Finding | None:
        policy = self._policy
        assert self.status is not None
        if (command.host, command.boot) != self._home:
            return Finding(Cause.COMMAND_FOREIGN, f'command from host {command.host!r}, boot '
                                                  f'{command.boot!r}')
        if command.session != self.status.session:
            return Finding(Cause.COMMAND_FOREIGN, f'command of session {command.session}, live '
                                                  f'is {self.status.session}')
        if command.sequence <= self._last_sequence or command.request <= self._last_request:
            return Finding(
                Cause.COMMAND_REPEATED,
                f'command {command.sequence} of request {command.request} after '
                f'{self._last_sequence} of {self._last_request}',
            )
        # The loop looks once in a period: a command on time is taken at most that much later.
        last_ns = command.deadline_ns + policy.control_period_ns + policy.allowed_lateness_ns
        if arrival_ns > last_ns:
            return Finding(
                Cause.COMMAND_LATE,
                f'command {command.sequence} came {(arrival_ns - command.deadline_ns) / MS:.0f} '
                f'ms after its deadline, limit {(last_ns - command.deadline_ns) / MS:.0f} ms',
            )
        ttl_ns = command.valid_until_ns - arrival_ns
        if ttl_ns > policy.ttl_ns:
            return Finding(
                Cause.COMMAND_TTL,
                f'command {command.sequence} would live {ttl_ns / MS:.0f} ms, limit '
                f'{policy.ttl_ns / MS:.0f} ms',
            )
        if command.arrival_ns > arrival_ns:
            return Finding(
                Cause.COMMAND_TTL,
                f'command {command.sequence}: its observation arrived '
                f'{(command.arrival_ns - arrival_ns) / MS:.0f} ms after the command',
            )
        action = self._space.find(command.action, command.parameters)
        if action is None:
            return Finding(
                Cause.COMMAND_ACTION,
                f'{command.action!r} {dict(command.parameters)!r} is no action'[:200],
            )
        asked = Velocity(command.linear_x_m_s, command.angular_z_rad_s)
        if not _same(asked, action.velocity):
            return Finding(
                Cause.COMMAND_VELOCITY,
                f'{action.answer!r} is {action.velocity.linear_x_m_s:g} m/s, '
                f'{action.velocity.angular_z_rad_s:g} rad/s, not {asked.linear_x_m_s:g}, '
                f'{asked.angular_z_rad_s:g}',
            )
        if not command.confidence >= policy.decision.min_confidence:
            return Finding(
                Cause.COMMAND_UNSURE,
                f'confidence {command.confidence:g}, limit {policy.decision.min_confidence:g}',
            )
        return self._ages(command, now_ns, ros_now_ns)

    def _command_findings(self, now_ns: int, ros_now_ns: int | None) -> list[Finding]:
        command = self.accepted
        if command is None:
            return [Finding(Cause.COMMAND_NEVER, 'no answer of this session was accepted yet')]
        old = self._ages(command, now_ns, ros_now_ns)
        if old is None:
            return []
        silent_ns = now_ns - command.valid_until_ns
        if silent_ns > self._policy.ttl_ns:
            old = Finding(
                Cause.COMMAND_SILENT,
                f'the last accepted command ended {silent_ns / MS:.0f} ms ago, limit '
                f'{self._policy.ttl_ns / MS:.0f} ms',
            )
        return [old]

    def _ages(self, command: Command, now_ns: int, ros_now_ns: int | None) -> Finding | None:
        """Check what grows with time: validity, and the observation's age on both clocks."""
        if now_ns >= command.valid_until_ns:
            return Finding(
                Cause.COMMAND_EXPIRED,
                f'command {command.sequence} ended '
                f'{(now_ns - command.valid_until_ns) / MS:.0f} ms ago',
            )
        limit_ns = self._policy.max_observation_age_ns
        age_ns = now_ns - command.arrival_ns
        if command.observation_stamp_ns and ros_now_ns is not None:
            stamp_age_ns = ros_now_ns - command.observation_stamp_ns
            if stamp_age_ns < -limit_ns:
                age_ns = stamp_age_ns
            else:
                age_ns = max(age_ns, stamp_age_ns)
        if abs(age_ns) <= limit_ns:
            return None
        return Finding(
            Cause.OBSERVATION_OLD,
            f'command {command.sequence}: observation {age_ns / MS:.0f} ms old, limit '
            f'{limit_ns / MS:.0f} ms',
        )

    def _miss(self, now_ns: int, count: int) -> None:
        self.good = 0
        self._misses.extend([now_ns] * min(count, self._dwells.misses))


def _same(a: Velocity, b: Velocity) -> bool:
    """Whether two velocities are equal but for rounding; NaN equals nothing."""
    return (
        abs(a.linear_x_m_s - b.linear_x_m_s) <= 1e-9
        and abs(a.angular_z_rad_s - b.angular_z_rad_s) <= 1e-9
    )
