"""The gate: which velocity leaves for the wheels, in this control period, and why.

Facts go in, once each period; exactly one velocity comes out. Each fact that is not well is a
Finding: a Cause, and the Response that it demands. Responses are ordered and the most careful
wins, in the same step; adding a check can only make the robot more careful. Back it goes one state
at a time, after a dwell in which nothing demanded the state: it clears more slowly than it trips,
and the more slowly the oftener it trips.

    STANDBY        stop; until every guard was good for a while
    HOLD           stop; until armed, and every guard is good
    ACTIVE         the model's newest accepted action, while it is valid
    DEGRADED       the last accepted action while it is valid (source `hold`), else the baseline
    FALLBACK       the baseline; answers are judged but not applied ("shadow")
    SAFE_STOP      brakes inside the limits, then stands; then HOLD
    ESTOP_LATCHED  stop, no ramp; until released for a while and then reset; then HOLD
    FAULT_LATCHED  stop; until the process is started again

The facts of one period are `facts`, what is not well with them is found by `guards`, what each
finding demands is `cause`; here is what follows from it. `invariants` looks at what leaves.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from smallm_ros.core import baseline
from smallm_ros.core.action import STOP, ActionSpace, Applied, Command, Origin, Velocity
from smallm_ros.core.answers import Answers
from smallm_ros.core.baseline import Senses, goal_ahead
from smallm_ros.core.cause import WELL, Cause, Dwells, Finding, Response, severity
from smallm_ros.core.clock import SECOND
from smallm_ros.core.driven import Driven
from smallm_ros.core.dwell import Patience
from smallm_ros.core.envelope import Surroundings, limit
from smallm_ros.core.facts import Inputs
from smallm_ros.core.guards import Guards
from smallm_ros.core.invariants import Invariants
from smallm_ros.core.policy import FallbackKind, Policy
from smallm_ros.core.retune import compare


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

BOLDEST_FIRST = (
    State.ACTIVE, State.DEGRADED, State.FALLBACK, State.HOLD, State.SAFE_STOP, State.STANDBY,
    State.ESTOP_LATCHED, State.FAULT_LATCHED,
)
"""Time spent well in a bolder state than one that tripped is to its credit."""


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
    generation: int = 1
    """Of the limits that hold; goes up with each set that is taken."""

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
        self._auto_arm = auto_arm
        self._dwells = dwells or Dwells()
        self._answers = Answers(
            policy, ActionSpace.of(policy), (host, boot), self._dwells, auto_arm=auto_arm)
        self._guards = Guards(policy, self._answers, self._dwells)
        self._driven = Driven(policy)
        self._state = State.STANDBY
        self._entered: Finding | None = None
        self._driven_by: Command | None = None
        """The command that moved the base last, until it was told to stop."""
        self._clear_since_ns: int | None = None
        self._sequence = 0
        self._must_arm = False
        self._patience = Patience(self._dwells)
        self._invariants = Invariants(auto_arm=auto_arm)
        self._stepped_ns = 0
        self._generation = 1

    @property
    def state(self) -> State:
        """The state after the last step."""
        return self._state

    @property
    def out_of_order(self) -> int:
        """Sensor messages that were not taken because their stamp went back."""
        return self._guards.stamps.out_of_order

    @property
    def stretch(self) -> float:
        """Measured real-time factor that distances count with; at least 1."""
        return self._guards.stretch

    def step(self, now_ns: int, inputs: Inputs) -> Output:
        """Take the facts of one control period, return what leaves. `now_ns` never goes back."""
        inputs = self._guards.stamps.take(inputs)
        findings = sorted(
            self._guards.update(now_ns, inputs, standby=self._state is State.STANDBY),
            key=severity, reverse=True,
        )
        self._advance(now_ns, inputs, findings)
        velocity, source, command, kind = self._ask(now_ns, inputs, findings)
        driven = self._driven
        limited, why = False, ''
        if TABLE[self._state].emits is Emit.STOP:
            coasting_m_s = driven.halted_m_s()
        else:
            allowed = limit(
                velocity, driven.told(self._guards.stretch),
                driven.seen(now_ns, inputs, self._guards.stretch), self._policy,
            )
            velocity, limited, why = allowed.velocity, allowed.limited, allowed.why
            coasting_m_s = allowed.coasting_m_s
        broken = self._invariants.broken(
            self._sequence + 1, self._state.value, source, velocity, driven.velocity, inputs,
            self._policy,
        )
        if broken:
            finding = Finding(Cause.INVARIANT, broken)
            findings.insert(0, finding)
            self._go(now_ns, State.FAULT_LATCHED, finding)
            coasting_m_s = driven.halted_m_s()
            velocity, source, command, kind = STOP, 'stop', None, None
        driven.tell(now_ns, velocity, coasting_m_s)
        if self._state is State.ACTIVE:  # not before: a step that raises has armed nobody
            self._must_arm = False
        return self._output(now_ns, findings, source, command, kind, limited, why)

    def excepted(self, now_ns: int, why: str) -> Output:
        """Return a stop for a step that raised; several in a short time latch the fault."""
        finding = self._guards.excepted(now_ns, why)
        target = TABLE[self._state].on[finding.response]
        if target is not self._state:
            self._go(now_ns, target, finding)
        self._clear_since_ns, self._stepped_ns = None, now_ns
        self._driven.tell(now_ns, STOP, self._driven.halted_m_s())
        return self._output(now_ns, [finding], 'stop', None, None, False, '')

    def retune(self, policy: Policy) -> str:
        """Take other limits between two steps, all or none; return '' or why they are refused.

        What tightens is taken in any state, what loosens only where nothing moves.
        """
        change = compare(self._policy, policy)
        if change.fixed:
            return f'{", ".join(change.fixed)}: changes with a new start only'
        if change.looser and self._state not in (State.STANDBY, State.HOLD):
            return (f'{", ".join(change.looser)}: may loosen in STANDBY and HOLD only, this is '
                    f'{self._state.value}')
        if change.tighter or change.looser:
            self._policy = policy
            self._guards.retune(policy)
            self._driven.retune(policy)
            self._generation += 1
        return ''

    # --- the interpreter of the table -------------------------------------------------------

    def _advance(self, now_ns: int, inputs: Inputs, findings: list[Finding]) -> None:
        row = TABLE[self._state]
        worst = findings[0] if findings else WELL
        target = row.on[worst.response]
        self._credit(now_ns, worst)
        if target is not self._state:
            self._go(now_ns, target, worst)
        elif worst.response >= row.clear_of or row.back is None:
            self._clear_since_ns = None
        else:
            if self._clear_since_ns is None:
                self._clear_since_ns = now_ns
            dwell_ns = self._patience.dwell_ns(self._state, row.dwell_ns(self._dwells))
            dwelt = now_ns - self._clear_since_ns >= dwell_ns
            if dwelt and row.when(self._way_back(now_ns, inputs)):
                self._go(now_ns, row.back, None)

    def _credit(self, now_ns: int, worst: Finding) -> None:
        """Count the time since the last step for the states that this one is bolder than."""
        passed_ns, self._stepped_ns = now_ns - self._stepped_ns, now_ns
        for state in BOLDEST_FIRST[BOLDEST_FIRST.index(self._state) + 1:]:
            if worst.response < TABLE[state].clear_of:
                self._patience.well(state, passed_ns)

    def _way_back(self, now_ns: int, inputs: Inputs) -> WayBack:
        return WayBack(
            armed=inputs.arm or (self._auto_arm and not self._must_arm),
            reset=inputs.reset,
            standing=self._driven.standing(now_ns, inputs),
            good_answers=self._answers.good,
            dwells=self._dwells,
        )

    def _go(self, now_ns: int, state: State, because: Finding | None) -> None:
        """Change the state: towards safety with its finding, back with None."""
        if state is State.ESTOP_LATCHED:
            self._must_arm = True  # a reset never restarts motion, not even under auto_arm
        self._patience.left(self._state, now_ns)
        if because is not None:
            self._patience.tripped(state, TABLE[state].dwell_ns(self._dwells), now_ns)
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
            self._driven_by = None
            return STOP, 'stop', None, None
        command = self._answers.accepted
        held = None
        if command is not None and self._answers.live(now_ns, inputs.ros_now_ns):
            asked = Velocity(command.linear_x_m_s, command.angular_z_rad_s)
            if emits is not Emit.BASELINE:
                self._driven_by = command
                return asked, 'model' if emits is Emit.MODEL else 'hold', command, None
            if command is self._driven_by:  # a shadow answer drives nothing
                held = asked
        # Obstacle sensors are required ones: were one not fit, the state would be SAFE_STOP.
        seen = (self._driven.seen(now_ns, inputs, self._guards.stretch)
                if baseline.looks(self._policy) else None)
        kind, asked = baseline.choose(self._policy, Senses(
            around=None if seen is None else Surroundings.of(seen, self._policy),
            previous=self._driven.velocity,
            dt_s=self._policy.control_period_ns / SECOND,
            held=held,
            goal=goal_ahead(self._policy, now_ns, inputs),
        ))
        if kind == 'hold':
            return asked, 'hold', command, kind
        return asked, 'baseline', None, kind

    def _output(
        self, now_ns: int, findings: list[Finding], source: Origin, command: Command | None,
        kind: FallbackKind | None, limited: bool, why: str,
    ) -> Output:
        self._sequence += 1
        self._invariants.left(self._sequence, self._state.value)
        worst = findings[0] if findings else WELL
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
            velocity=self._driven.velocity,
            source=source,
            valid_until_ns=command.valid_until_ns if command else now_ns + due_ns,
            command=command,
            fallback=kind,
            limited=limited,
            why_limited=why,
            generation=self._generation,
        )
