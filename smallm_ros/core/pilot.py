"""The policy node's brain: what came in -> what is to be done, without a clock, a socket or ROS.

Readings and engine events are handed in, `step` is called each control period, and all three give
back things to do. There is at most one open question, and never a queue: a tick that finds one
open takes it back, because the newest observation wins. Its deadline is absolute and starts at
the steady arrival of the newest required reading, so that a slow summary or a late step cannot
stretch it. Answers count by request id; what comes for another id is discarded and counted, and so
is a text that does not belong to the newest decision. An answer that its declaration does not
allow is a miss. Every tick ends in exactly one `DecisionRecord`, and only the outcome `decided`
becomes a `Command`.

Ticks lie on an absolute grid from activation. A step that comes late makes one tick and skips the
others. A tick without a required reading newer than the last question's is idle: the answer could
only be the one that is known, and a paused world is no fault of the engine's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallm_ros.core import prompt
from smallm_ros.core.action import ActionSpace, Command, NodeStatus
from smallm_ros.core.clock import MS
from smallm_ros.core.decision_record import (
    DecisionRecord,
    Outcome,
    ReadingRecord,
    SegmentRecord,
)
from smallm_ros.core.exchange import (
    Answer,
    Cancelled,
    Decided,
    Declaration,
    DeclarationRejected,
    Declared,
    EngineEvent,
    EngineLost,
    EngineUp,
    Missed,
    ModelLimits,
    Progress,
    Question,
    Refused,
    RefusedWhy,
    Said,
    Segment,
)
from smallm_ros.core.mission import Mission
from smallm_ros.core.observation import Observation, Received
from smallm_ros.core.observe import Rate, observe
from smallm_ros.core.policy import Policy

MAX_OUTCOME = 64
"""Length of `NodeStatus.last_outcome`."""
ROUNDING = 1e-9
"""By how much a difference of two sums of probabilities may be beyond 1."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who speaks: what the watchdog needs to hold a process to its word."""

    session: str
    """64 random bits as 16 hexadecimal digits, drawn at the node's start."""
    host: str
    boot: str
    pid: int
    start_ticks: int
    """Start time from /proc/PID/stat."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this question to the engine."""

    question: Question


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell the engine that this question's answer is no longer wanted."""

    request: int


@dataclass(frozen=True, slots=True)
class Declare:
    """Declare the policy's static part to the engine."""

    declaration: Declaration


@dataclass(frozen=True, slots=True)
class Send:
    """Publish this command for the watchdog."""

    command: Command


@dataclass(frozen=True, slots=True)
class Tell:
    """Publish this status for the watchdog."""

    status: NodeStatus


@dataclass(frozen=True, slots=True)
class Record:
    """Keep this record of one decision tick."""

    record: DecisionRecord


@dataclass(frozen=True, slots=True)
class Say:
    """Publish the text that the model added to its newest decision; nothing acts on it."""

    request: int
    text: str
    cut: bool
    """Whether it was cut short."""


Do = Ask | Withdraw | Declare | Send | Tell | Record | Say

Engine = Literal['absent', 'loading', 'ready', 'failed']


@dataclass(frozen=True, slots=True)
class _Tick:
    """One decision tick while its outcome is not yet known."""

    now_ns: int
    observation: Observation
    request: int = 0
    deadline_ns: int = 0
    segments: tuple[Segment, ...] = ()
    mission: str = ''


class Pilot:
    """Decides when to ask, what an answer is worth, and what to tell of it."""

    def __init__(self, policy: Policy, identity: Identity) -> None:
        self.declaration = prompt.declaration(policy)
        self.late_answers = 0
        """Decisions that came for a question that was no longer open."""
        self.dropped_texts = 0
        """Texts that came for another than the newest decision, or that were not asked for."""
        self.skipped_ticks = 0
        """Grid points that passed without a step, so without a tick."""
        self.engine: Engine = 'absent'
        self.engine_why = 'no engine has answered yet'
        """Why the engine is not ready, in one line; empty when it is."""
        self.limits: ModelLimits | None = None
        """What the resident model can do; None until the engine has said so."""
        self.mission = Mission(policy.mission_topic) if policy.mission_topic else None
        """The operator's words; None where the policy has no topic for them."""
        self._policy = policy
        self._identity = identity
        self._space = ActionSpace.of(policy)
        self._newest: dict[str, Received] = {}
        self._rates = {name: Rate() for name in policy.sensors}
        self._worker = (0, 0)
        self._progress: Progress | None = None
        self._declare_again = False
        self._next_tick_ns: int | None = None
        self._open: _Tick | None = None
        self._asked_arrival_ns = -1
        self._text_due = 0
        """The newest decided request while its text has not come; 0 when none is due."""
        self._requests = 0
        self._commands = 0
        self._statuses = 0
        self._served = 0
        self._misses = 0
        self._last_outcome = 'none yet'

    @property
    def active(self) -> bool:
        """Whether decision ticks are made."""
        return self._next_tick_ns is not None

    @property
    def waiting(self) -> bool:
        """Whether a question is open."""
        return self._open is not None

    @property
    def served(self) -> int:
        """Ticks of this session that ended in a command."""
        return self._served

    @property
    def misses(self) -> int:
        """Ticks of this session that ended without one."""
        return self._misses

    @property
    def last_outcome(self) -> str:
        """How the last tick ended, in words."""
        return self._last_outcome

    def observe(self, received: Received, messages: int = 1) -> None:
        """Keep a message, the newest of so many that its sensor sent since the last one."""
        self._newest[received.sensor] = received
        at_ns = received.ros_arrival_ns
        # Rates are declared in the robot's time, which a simulation may slow down.
        self._rates[received.sensor].arrived(
            received.arrival_ns if at_ns is None else at_ns, messages)

    def told(self, words: str, now_ns: int) -> bool:
        """Hear the operator; return False where the words are dropped, or nobody listens."""
        return self.mission is not None and self.mission.hear(words, now_ns)

    def look(self, now_ns: int, ros_now_ns: int) -> Observation:
        """Return what the newest messages are worth at this instant; changes nothing."""
        rates_hz = {name: hz for name, rate in self._rates.items() if (hz := rate.hz) is not None}
        return observe(self._policy, self._newest, now_ns, ros_now_ns, rates_hz)

    def activate(self, now_ns: int) -> list[Do]:
        """Begin to tick, at the next step."""
        self._next_tick_ns = now_ns
        return [self._tell(now_ns)]

    def deactivate(self, now_ns: int) -> list[Do]:
        """Stop ticking, take back what is open and tell the watchdog at once."""
        self._next_tick_ns = None
        self._text_due = 0
        return [*self._take_back(now_ns, 'cancelled', 'deactivated'), self._tell(now_ns)]

    def step(self, now_ns: int, ros_now_ns: int) -> list[Do]:
        """Do what is due at this instant; called each control period."""
        out: list[Do] = []
        if self._declare_again:
            self._declare_again = False
            out.append(Declare(self.declaration))
        if self._open is not None and now_ns >= self._open.deadline_ns:
            out += self._end('missed', 'no answer by the deadline', now_ns)
        if self._next_tick_ns is not None and now_ns >= self._next_tick_ns:
            late = (now_ns - self._next_tick_ns) // self._policy.decision_period_ns
            self.skipped_ticks += late
            self._next_tick_ns += (late + 1) * self._policy.decision_period_ns
            out += self._tick(now_ns, ros_now_ns)
        return [*out, self._tell(now_ns)]

    def receive(self, event: EngineEvent, now_ns: int) -> list[Do]:
        """Take in what the engine said."""
        match event:
            case EngineUp():
                out = self._end('missed', 'the engine was started anew', now_ns)
                self._link('loading', 'the engine is loading its model')
                self._worker = (event.worker_pid, event.worker_start_ticks)
                return out
            case EngineLost():
                out = self._end('missed', f'engine lost: {event.why}', now_ns)
                self._link('absent', event.why)
                return out
            case ModelLimits():
                self.limits = event
                self.engine, self.engine_why = 'loading', 'the engine evaluates the mission'
                return [Declare(self.declaration)]
            case Progress():
                self._progress = event
            case Declared() if event.space == self.declaration.space:
                self.engine, self.engine_why = 'ready', ''
            case DeclarationRejected() if event.space == self.declaration.space:
                out = self._end('refused', event.why, now_ns)
                self.engine, self.engine_why = 'failed', event.why
                return out
            case Decided() | Refused() | Missed() | Cancelled():
                return self._answer(event, now_ns)
            case Said():
                return self._said(event)
            case _:
                pass  # of another declaration: a policy node that shared this connection's name
        return []

    def unsent(self, item: Ask | Declare, now_ns: int) -> list[Do]:
        """Take back an item that the connection could not take: nothing is queued."""
        match item:
            case Ask(question) if self._open and question.request == self._open.request:
                return self._end('missed', 'the engine did not take the question', now_ns)
            case Declare():
                self._declare_again = self.engine != 'absent'
        return []

    # --- one tick ---------------------------------------------------------------------------

    def _tick(self, now_ns: int, ros_now_ns: int) -> list[Do]:
        out = self._take_back(now_ns, 'missed', 'a newer observation came first')
        observation = self.look(now_ns, ros_now_ns)
        mission = self.mission.text if self.mission else ''
        tick = _Tick(now_ns, observation, mission=mission)
        arrival_ns = observation.arrival_ns
        if not observation.fit or arrival_ns is None:
            qualities = {r.sensor: r.quality.value for r in observation.readings}
            why = ', '.join(f'{name} {qualities[name]}' for name in observation.unfit)
            return [*out, self._close(tick, 'unfit', why, now_ns)]
        if arrival_ns <= self._asked_arrival_ns:
            return [*out, self._close(tick, 'idle', 'no new reading', now_ns)]
        if self.engine != 'ready':
            return [*out, self._close(tick, 'no_engine', self.engine_why, now_ns)]
        deadline_ns = arrival_ns + self._policy.budget_ns
        if deadline_ns <= now_ns:
            late_ms = (now_ns - deadline_ns) / MS
            tick = _Tick(now_ns, observation, deadline_ns=deadline_ns, mission=mission)
            why = f'too late: the newest required reading left no time, by {late_ms:.0f} ms'
            return [*out, self._close(tick, 'missed', why, now_ns)]
        self._requests += 1
        self._asked_arrival_ns = arrival_ns
        self._open = _Tick(
            now_ns, observation, self._requests, deadline_ns,
            prompt.segments(self._policy, observation, mission), mission,
        )
        question = Question(
            request=self._requests, space=self.declaration.space, deadline_ns=deadline_ns,
            segments=self._open.segments,
        )
        return [*out, Ask(question)]

    def _answer(self, answer: Answer, now_ns: int) -> list[Do]:
        tick = self._open
        if tick is None or answer.request != tick.request:
            self.late_answers += isinstance(answer, Decided)
            return []
        match answer:
            case Decided():
                return self._decided(tick, answer, now_ns)
            case Refused():
                if answer.why is RefusedWhy.UNKNOWN_SPACE:
                    self.engine, self.engine_why = 'loading', 'the engine forgot the mission'
                    self._declare_again = True
                return self._end('refused', f'{answer.why.value}: {answer.detail}', now_ns)
            case Missed():
                return self._end('missed', f'{answer.why.value}: {answer.detail}', now_ns)
            case Cancelled():
                return self._end('cancelled', 'by the engine', now_ns)

    def _decided(self, tick: _Tick, answer: Decided, now_ns: int) -> list[Do]:
        decision = answer.decision
        if misfit := self._misfit(answer):
            return self._end('missed', misfit, now_ns)
        if now_ns >= tick.deadline_ns:
            late_ms = (now_ns - tick.deadline_ns) / MS
            return self._end('missed', f'the answer came {late_ms:.0f} ms late', now_ns, answer)
        confidence = decision.confidence
        least = self._policy.decision.min_confidence
        if confidence < least:
            why = f'confidence {confidence:.2f} is below {least:.2f}'
            return self._end('unsure', why, now_ns, answer)
        action = self._space.actions[decision.leaf]
        self._commands += 1
        self._text_due = tick.request if self.declaration.text.max_tokens else 0
        command = Command(
            session=self._identity.session,
            sequence=self._commands,
            request=tick.request,
            action=action.name,
            parameters=dict(action.parameters),
            linear_x_m_s=action.velocity.linear_x_m_s,
            angular_z_rad_s=action.velocity.angular_z_rad_s,
            observation_stamp_ns=_oldest_stamp_ns(tick.observation),
            arrival_ns=tick.observation.arrival_ns or 0,
            deadline_ns=tick.deadline_ns,
            # Never beyond max_observation_age: the policy file is refused where it could be.
            valid_until_ns=now_ns + self._policy.ttl_ns,
            confidence=confidence,
            partial=answer.partial,
            host=self._identity.host,
            boot=self._identity.boot,
        )
        return [Send(command), *self._end('decided', '', now_ns, answer, command)]

    def _misfit(self, answer: Decided) -> str:
        """Return why this can be no answer to our declaration; empty when it can."""
        decision = answer.decision
        if not 0 <= decision.leaf < len(self._space.actions):
            return f'leaf {decision.leaf} is none of the {len(self._space.actions)} answers'
        if not 0 <= decision.confidence <= 1:  # nor is NaN
            return f'confidence {decision.confidence} is no probability'
        if not abs(decision.margin) <= 1 + ROUNDING:
            return f'margin {decision.margin} is no difference of probabilities'
        if answer.partial and not self.declaration.actions:
            return 'a partial answer, and the policy is not anytime'
        return ''

    def _said(self, said: Said) -> list[Do]:
        due, limit = self._text_due, self.declaration.text.max_characters
        if not due or said.request != due or len(said.text) > limit:
            self.dropped_texts += 1
            return []
        self._text_due = 0
        return [Say(said.request, said.text, said.cut)]

    def _take_back(self, now_ns: int, outcome: Outcome, why: str) -> list[Do]:
        if self._open is None:
            return []
        return [Withdraw(self._open.request), *self._end(outcome, why, now_ns)]

    def _end(
        self,
        outcome: Outcome,
        why: str,
        now_ns: int,
        answer: Decided | None = None,
        command: Command | None = None,
    ) -> list[Do]:
        """End the open tick, if there is one."""
        if self._open is None:
            return []
        tick, self._open = self._open, None
        return [self._close(tick, outcome, why, now_ns, answer, command)]

    def _close(
        self,
        tick: _Tick,
        outcome: Outcome,
        why: str,
        now_ns: int,
        answer: Decided | None = None,
        command: Command | None = None,
    ) -> Record:
        """Count the tick and write its one record."""
        if outcome == 'decided':
            self._served += 1
        elif outcome != 'idle':
            self._misses += 1
        words = outcome.replace('_', ' ')
        self._last_outcome = (f'{words}: {why}' if why else words)[:MAX_OUTCOME]
        readings = tick.observation.readings
        chosen = None if answer is None else self._space.actions[answer.decision.leaf]
        return Record(DecisionRecord(
            policy=self._policy.name,
            session=self._identity.session,
            request=tick.request,
            tick_ns=tick.now_ns,
            ros_now_ns=tick.observation.ros_now_ns,
            observation_stamp_ns=_oldest_stamp_ns(tick.observation),
            arrival_ns=tick.observation.arrival_ns or 0,
            deadline_ns=tick.deadline_ns,
            ended_ns=now_ns,
            outcome=outcome,
            why=why,
            segments=tuple(
                SegmentRecord(name=s.name, text=s.text, priority=s.priority)
                for s in tick.segments
            ),
            mission=tick.mission,
            dropped=() if answer is None else answer.dropped,
            ages_ms={r.sensor: r.age_ns / MS for r in readings if r.age_ns is not None},
            readings={
                r.sensor: ReadingRecord(
                    quality=r.quality, stamp=r.stamp_fault,
                    rate_hz=None if r.rate_hz is None else round(r.rate_hz, 2),
                ) for r in readings
            },
            action='' if chosen is None else chosen.name,
            parameters={} if chosen is None else dict(chosen.parameters),
            linear_x_m_s=0.0 if command is None else command.linear_x_m_s,
            angular_z_rad_s=0.0 if command is None else command.angular_z_rad_s,
            command_sequence=0 if command is None else command.sequence,
            decision=None if answer is None else answer.decision,
            model_sha256='' if answer is None else answer.model_sha256,
            space=self.declaration.space if tick.request else '',
            partial=answer is not None and answer.partial,
            ids=() if answer is None else answer.ids,
            prior='none' if answer is None else answer.prior,
        ))

    # --- what is told -----------------------------------------------------------------------

    def _link(self, engine: Engine, why: str) -> None:
        """Start the engine's life anew: whatever was known of the last worker is void."""
        self.engine, self.engine_why = engine, why
        self.limits = None
        self._worker = (0, 0)
        self._progress = None
        self._declare_again = False

    def _tell(self, now_ns: int) -> Tell:
        self._statuses += 1
        progress = self._progress
        return Tell(NodeStatus(
            session=self._identity.session,
            sequence=self._statuses,
            steady_ns=now_ns,
            pid=self._identity.pid,
            start_ticks=self._identity.start_ticks,
            active=self.active,
            engine=self.engine,
            worker_pid=self._worker[0],
            worker_start_ticks=self._worker[1],
            progress=progress.count if progress else 0,
            progress_ns=progress.beat_ns if progress else 0,
            in_flight=progress.in_flight if progress else 0,
            in_flight_since_ns=progress.since_ns if progress else 0,
            in_flight_bound_ns=progress.bound_ns if progress else 0,
            request=self._open.request if self._open else 0,
            misses=self._misses,
            served=self._served,
            last_outcome=self._last_outcome,
            host=self._identity.host,
            boot=self._identity.boot,
        ))


def _oldest_stamp_ns(observation: Observation) -> int:
    """Return the ROS time of the oldest required reading; 0 when there is none.

    An unfit stamp is replaced by the time of arrival, told in ROS time.
    """
    ages = [age for r in observation.readings if r.required and (age := r.age_ns) is not None]
    return max(0, observation.ros_now_ns - max(ages)) if ages else 0
