"""A bag through the pilot, the engine and the gate, at recorded pace.

The same core as on the robot, in one loop without threads: readings are handed in at their
recorded times, shifted to steady time; pilot and gate step each control period; in between the
loop waits for the engine alone. The recorded robot goes its own way whatever is decided here: the
gate shows what it would have allowed. Time comes from `Pace`: tests replay an hour in no time.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from smallm_ros import steady
from smallm_ros.core.action import STOP, Applied
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import OperatorError, PolicyError
from smallm_ros.core.exchange import Cancel, Declaration, EngineEvent, ModelLimits, Question
from smallm_ros.core.facts import CommandArrival, Inputs, StatusArrival
from smallm_ros.core.gate import Gate
from smallm_ros.core.observation import Received
from smallm_ros.core.pilot import (
    Ask,
    Declare,
    Do,
    Identity,
    Pilot,
    Record,
    Say,
    Send,
    Tell,
    Withdraw,
)
from smallm_ros.core.policy import Policy
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.record.writer import Entry
from smallm_ros.replay.bag import Bag, Recorded

READY_LIMIT_NS = 1800 * SECOND
"""14 GB from a slow disk, hashed once, take minutes; more is a fault."""
LAST_ANSWER_NS = 200 * MS
"""How long after its deadline the last question's answer is waited for."""


class Engine(Protocol):
    """What the replay needs of `engine.client.EngineClient`."""

    def poll(self, now_ns: int) -> list[EngineEvent]:
        """Return what happened since the last call, without waiting."""
        ...

    def send_nowait(self, item: Declaration | Question | Cancel) -> bool:
        """Send now or not at all."""
        ...

    def fileno(self) -> int | None:
        """Return what to wait on for the next event; None when there is nothing."""
        ...


class Pace(Protocol):
    """The time of a replay."""

    def now_ns(self) -> int:
        """Return the steady time."""
        ...

    def wait(self, until_ns: int, fileno: int | None) -> None:
        """Return at `until_ns`, or as soon as `fileno` is readable."""
        ...


class RecordedPace:
    """Real time: the replay takes as long as the recording did."""

    def now_ns(self) -> int:
        """Return the steady time."""
        return steady.now_ns()

    def wait(self, until_ns: int, fileno: int | None) -> None:
        """Sleep, or wait for the engine."""
        if fileno is None:
            steady.sleep_until(until_ns)
            return
        remaining_ns = until_ns - steady.now_ns()
        if remaining_ns > 0:
            select.select([fileno], [], [], remaining_ns / SECOND)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave."""

    begin_ns: int
    end_ns: int
    """Steady."""
    model: ModelLimits | None
    records: tuple[DecisionRecord, ...]
    applied: tuple[Applied, ...]


def replay(
    bag: Bag,
    policy: Policy,
    engine: Engine,
    pace: Pace,
    identity: Identity,
    *,
    record: Callable[[Entry], object],
    say: Callable[[str], None],
    check_engine: Callable[[], None],
    limit_ns: int | None = None,
) -> Replayed:
    """Replay `bag`, or its first `limit_ns`, once the engine is ready.

    `record` gets the model, and each record and text as it comes; `say` gets a line of progress
    each second; `check_engine` raises when the engine cannot come back. Raises PolicyError when
    the engine rejects the policy, OperatorError when it does not become ready.
    """
    return _Replay(bag, policy, engine, pace, identity, record, say, check_engine).run(limit_ns)


class _Replay:
    def __init__(
        self, bag: Bag, policy: Policy, engine: Engine, pace: Pace, identity: Identity,
        record: Callable[[Entry], object], say: Callable[[str], None],
        check_engine: Callable[[], None],
    ) -> None:
        self._bag = bag
        self._policy = policy
        self._engine = engine
        self._pace = pace
        self._record = record
        self._say = say
        self._check_engine = check_engine
        self._pilot = Pilot(policy, identity)
        self._gate = Gate(policy, auto_arm=True, host=identity.host, boot=identity.boot)
        self._records: list[DecisionRecord] = []
        self._applied: list[Applied] = []
        self._sensors: dict[str, Received] = {}
        self._velocity = STOP
        self._command: CommandArrival | None = None
        self._status: StatusArrival | None = None
        self._question: Question | None = None
        self._model: ModelLimits | None = None

    def run(self, limit_ns: int | None) -> Replayed:
        self._wait_for_engine()
        begin_ns = self._pace.now_ns()
        length_ns = self._bag.duration_ns
        if limit_ns is not None:
            length_ns = min(length_ns, limit_ns)
        self._do(self._pilot.activate(begin_ns), begin_ns)
        end_ns = begin_ns + length_ns
        self._drive(begin_ns, end_ns)
        self._hear_last_answer()
        now_ns = self._pace.now_ns()
        self._do(self._pilot.deactivate(now_ns), now_ns)
        return Replayed(
            begin_ns, end_ns, self._model, tuple(self._records), tuple(self._applied)
        )

    def _wait_for_engine(self) -> None:
        begin_ns = now_ns = self._pace.now_ns()
        said_ns = begin_ns
        while self._pilot.engine != 'ready':
            if now_ns - begin_ns > READY_LIMIT_NS:
                raise OperatorError(
                    f'the engine was not ready after {READY_LIMIT_NS // SECOND} s: '
                    f'{self._pilot.engine_why}'
                )
            self._check_engine()
            if now_ns - said_ns >= SECOND:
                said_ns = now_ns
                self._say(f'{(now_ns - begin_ns) // SECOND} s: {self._pilot.engine_why}')
            self._pace.wait(now_ns + self._policy.control_period_ns, self._engine.fileno())
            now_ns = self._pace.now_ns()
            self._hear(now_ns)
            # Inactive, the pilot makes no tick; this sends what the engine could not take before.
            self._do(self._pilot.step(now_ns, self._ros_ns(self._bag.begin_ns)), now_ns)
            if self._pilot.engine == 'failed':
                raise PolicyError(
                    f'policy {self._policy.name!r}: the engine rejects it: '
                    f'{self._pilot.engine_why}'
                )

    def _drive(self, begin_ns: int, end_ns: int) -> None:
        """Step pilot and gate each control period from `begin_ns` until `end_ns`."""
        readings = self._bag.readings()
        coming = next(readings, None)
        missions = deque(self._bag.missions)
        period_ns = self._policy.control_period_ns
        next_ns = said_ns = now_ns = begin_ns
        while now_ns < end_ns:
            self._hear(now_ns)
            if now_ns >= next_ns:
                while coming is not None and self._due_ns(coming, begin_ns) <= now_ns:
                    self._take(coming, begin_ns)
                    coming = next(readings, None)
                while missions and begin_ns + missions[0][0] - self._bag.begin_ns <= now_ns:
                    self._pilot.told(missions.popleft()[1], now_ns)
                ros_ns = self._ros_ns(self._bag.begin_ns + now_ns - begin_ns)
                self._do(self._pilot.step(now_ns, ros_ns), now_ns)
                self._step_gate(now_ns, ros_ns, late_ns=now_ns - next_ns)
                next_ns += period_ns * ((now_ns - next_ns) // period_ns + 1)
            if now_ns - said_ns >= SECOND:
                said_ns = now_ns
                self._check_engine()
                self._say(self._progress_line(now_ns - begin_ns, end_ns - begin_ns))
            self._pace.wait(min(next_ns, end_ns), self._engine.fileno())
            now_ns = self._pace.now_ns()

    def _hear_last_answer(self) -> None:
        """Let the question that is open at the end of the bag have its answer."""
        now_ns = self._pace.now_ns()
        while self._question is not None:
            last_ns = self._question.deadline_ns + LAST_ANSWER_NS
            if now_ns >= last_ns:
                return
            self._pace.wait(
                min(last_ns, now_ns + self._policy.control_period_ns), self._engine.fileno()
            )
            now_ns = self._pace.now_ns()
            self._hear(now_ns)

    def _hear(self, now_ns: int) -> None:
        for event in self._engine.poll(now_ns):
            if isinstance(event, ModelLimits):
                self._model = event
                self._record(event)
            self._do(self._pilot.receive(event, now_ns), now_ns)

    def _due_ns(self, recorded: Recorded, begin_ns: int) -> int:
        return begin_ns + recorded.bag_ns - self._bag.begin_ns

    def _take(self, recorded: Recorded, begin_ns: int) -> None:
        received = Received(
            sensor=recorded.sensor, fields=recorded.fields,
            arrival_ns=self._due_ns(recorded, begin_ns),
            ros_arrival_ns=self._ros_ns(recorded.bag_ns),
        )
        self._sensors[recorded.sensor] = received
        self._pilot.observe(received)

    def _ros_ns(self, bag_ns: int) -> int:
        return self._bag.ros_time.at(bag_ns)

    def _step_gate(self, now_ns: int, ros_ns: int, late_ns: int) -> None:
        output = self._gate.step(now_ns, Inputs(
            ros_now_ns=ros_ns,
            sensors={name: self._obedient(r) for name, r in self._sensors.items()},
            command=self._command, status=self._status, publishers=1,
        ))
        self._velocity = output.velocity
        self._applied.append(output.applied(late_ns))

    def _obedient(self, received: Received) -> Received:
        """Return what the gate is to see: odometry of a base that does as the gate says.

        The recorded speed is that of another driver; the gate would wait for ever for it to stand.
        """
        if not isinstance(received.fields, Odometry):
            return received
        return replace(received, fields=replace(
            received.fields, linear_x_m_s=self._velocity.linear_x_m_s,
            angular_z_rad_s=self._velocity.angular_z_rad_s,
        ))

    def _do(self, things: Iterable[Do], now_ns: int) -> None:
        for thing in things:
            match thing:
                case Ask(question):
                    self._question = question
                    if not self._engine.send_nowait(question):
                        self._do(self._pilot.unsent(thing, now_ns), now_ns)
                case Declare(declaration):
                    if not self._engine.send_nowait(declaration):
                        self._do(self._pilot.unsent(thing, now_ns), now_ns)
                case Withdraw(request):
                    # Unsent, the engine does work that nobody waits for; its deadline ends it.
                    self._engine.send_nowait(Cancel(request))
                case Send(command):
                    self._command = CommandArrival(command, now_ns)
                case Tell(status):
                    self._status = StatusArrival(status, now_ns)
                case Record(record):
                    if self._question and record.request == self._question.request:
                        self._question = None
                    self._records.append(record)
                    self._record(record)
                case Say():
                    self._record(thing)

    def _progress_line(self, elapsed_ns: int, length_ns: int) -> str:
        ended = len(self._records)
        decided = sum(record.outcome == 'decided' for record in self._records)
        return (
            f'{elapsed_ns / SECOND:5.1f} of {length_ns / SECOND:.1f} s  '
            f'{self._gate.state.value:<9}  {decided} of {ended} ticks served'
        )
