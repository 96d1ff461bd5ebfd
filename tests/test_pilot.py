"""The policy node's brain, told as stories of instants on a manual clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm_ros.core.action import (
    ActionSpace,
    Command,
    Decision,
    NodeStatus,
    Timings,
    TokenCounts,
    parse_frame,
)
from smallm_ros.core.clock import MS, SECOND, ManualClock
from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.exchange import (
    Cancelled,
    Decided,
    DeclarationRejected,
    Declared,
    EngineLost,
    EngineState,
    EngineUp,
    FreeText,
    Missed,
    MissedWhy,
    ModelLimits,
    Progress,
    Refused,
    RefusedWhy,
    Said,
)
from smallm_ros.core.observation import Quality, Received, StampFault
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
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.scan import Scan

POLICY = load_policy(Path(__file__).parent / 'policies' / 'wanderer.yaml')
IDENTITY = Identity('00112233aabbccdd', 'robot', 'boot-1', 4711, 99)
LIMITS = ModelLimits('tiny', 'ab' * 32, 'chatml', 4096, 1000, 1, 0, 20 * MS, MS)
ROS_OFFSET_NS = 500 * SECOND
"""ROS time is another clock: it differs from steady time by this in these stories."""

_T = TypeVar('_T')


class Story:
    """A pilot, its clock, and everything that it wanted done so far."""

    def __init__(self, policy: Policy = POLICY, *, ready: bool = True) -> None:
        self.clock = ManualClock()
        self.policy = policy
        self.pilot = Pilot(policy, IDENTITY)
        self.done: list[Do] = []
        self.ros_stopped_ns: int | None = None
        if ready:
            self.engine_comes_up()
            self.do(self.pilot.activate(self.now_ns))

    @property
    def now_ns(self) -> int:
        return self.clock.now_ns()

    @property
    def ros_now_ns(self) -> int:
        if self.ros_stopped_ns is not None:
            return self.ros_stopped_ns
        return self.now_ns + ROS_OFFSET_NS

    def do(self, things: Iterable[Do]) -> list[Do]:
        new = list(things)
        self.done += new
        return new

    def engine_comes_up(self) -> None:
        self.do(self.pilot.receive(EngineUp(77, 5), self.now_ns))
        self.do(self.pilot.receive(LIMITS, self.now_ns))
        declared = Declared(self.pilot.declaration.space, 200, 6, 4)
        self.do(self.pilot.receive(declared, self.now_ns))

    def sense(self, *names: str, stamp_ns: int | None = None) -> None:
        stamp = self.ros_now_ns if stamp_ns is None else stamp_ns
        fields: dict[str, Scan | Odometry] = {
            'scan': Scan(stamp, 'laser', -3.14, 0.1, 0.1, 8.0, np.full(63, 2.0, np.float32)),
            'odom': Odometry(stamp, 'odom', 0.0, 0.0, 0.0, 0.1, 0.0),
        }
        for name in names or ('scan', 'odom'):
            self.pilot.observe(Received(name, fields[name], self.now_ns, self.ros_now_ns))

    def step(self, after_ms: float = 0) -> list[Do]:
        self.clock.advance_ms(after_ms)
        return self.do(self.pilot.step(self.now_ns, self.ros_now_ns))

    def ask(self, after_ms: float = 0) -> Ask:
        """Bring fresh readings, step, and return the question that must follow."""
        self.clock.advance_ms(after_ms)
        self.sense()
        return only(Ask, self.step())

    def answer(
        self, ask: Ask, after_ms: float = 0, *, partial: bool = False, **changes: object
    ) -> list[Do]:
        self.clock.advance_ms(after_ms)
        decided = decision(ask.question.request, **changes)
        decided = dataclasses.replace(decided, partial=partial)
        return self.do(self.pilot.receive(decided, self.now_ns))

    def declare(self, **changes: object) -> None:
        """Change what the policy declares; its answers stay."""
        self.pilot.declaration = dataclasses.replace(self.pilot.declaration, **changes)  # type: ignore[arg-type]

    def said(self, request: int, text: str = 'the way is free', **changes: object) -> list[Do]:
        said = dataclasses.replace(Said(request, text, 5, False), **changes)  # type: ignore[arg-type]
        return self.do(self.pilot.receive(said, self.now_ns))

    @property
    def records(self) -> list[DecisionRecord]:
        return [d.record for d in self.done if isinstance(d, Record)]

    @property
    def commands(self) -> list[Command]:
        return [d.command for d in self.done if isinstance(d, Send)]

    @property
    def status(self) -> NodeStatus:
        return [d.status for d in self.done if isinstance(d, Tell)][-1]


def decision(request: int, **changes: object) -> Decided:
    made = Decision(
        leaf=1, confidence=0.8, choices=(), tokens=TokenCounts(90, 60, 34, 2),
        timings=Timings(1, 2, 3, 1, (1, 1)),
    )
    return Decided(
        request, dataclasses.replace(made, **changes), (), LIMITS.sha256,  # type: ignore[arg-type]
        ids=(7, 8, 9), prior='reference:abcd',
    )


def of(kind: type[_T], things: Iterable[object]) -> list[_T]:
    return [thing for thing in things if isinstance(thing, kind)]


def only(kind: type[_T], things: Iterable[object]) -> _T:
    (thing,) = of(kind, things)
    return thing


def test_a_question_becomes_a_command() -> None:
    story = Story()
    ask = story.ask()
    assert ask.question.deadline_ns == story.now_ns + 420 * MS
    assert ask.question.space == story.pilot.declaration.space
    assert [s.name for s in ask.question.segments] == ['goal', 'scan', 'odom']
    assert story.status.request == 1

    arrival_ns, stamp_ns = story.now_ns, story.ros_now_ns
    command = only(Send, story.answer(ask, after_ms=200)).command
    assert (command.action, command.parameters) == ('forward', {'speed': 'fast'})
    assert command.linear_x_m_s == 0.25
    assert command.arrival_ns == arrival_ns
    assert command.observation_stamp_ns == stamp_ns
    assert command.valid_until_ns == story.now_ns + POLICY.ttl_ns
    record = only(Record, story.done).record
    assert (record.outcome, record.why, record.command_sequence) == ('decided', '', 1)
    assert record.latency_ns == 200 * MS
    assert record.model_sha256 == LIMITS.sha256
    assert (record.space, record.ids) == (story.pilot.declaration.space, (7, 8, 9))
    assert (record.prior, record.partial, command.partial) == ('reference:abcd', False, False)
    story.step()
    assert (story.status.served, story.status.misses, story.status.request) == (1, 0, 0)
    assert story.status.last_outcome == 'decided'


def test_an_old_reading_is_decided_on_and_the_prompt_and_the_record_say_so() -> None:
    story = Story()
    for _ in range(5):  # 5 Hz, where the policy says that the scan has 10
        story.clock.advance_ms(200)
        story.sense(stamp_ns=story.ros_now_ns - 350 * MS)
    story.sense('odom', stamp_ns=0)
    ask = only(Ask, story.step())
    scan, odom = ask.question.segments[1:]
    assert scan.text.endswith(', 0.2 s old\n')
    assert 'old' not in odom.text
    story.answer(ask)
    readings = story.records[-1].readings
    assert readings['scan'].quality is Quality.OLD
    assert readings['scan'].stamp is StampFault.NONE
    assert readings['scan'].rate_hz == pytest.approx(5)
    assert (readings['odom'].quality, readings['odom'].stamp) == (
        Quality.FRESH, StampFault.ABSENT)
    assert (readings['goal'].quality, readings['goal'].rate_hz) == (Quality.NEVER, None)
    assert story.records[-1].ages_ms == {'scan': 350, 'odom': 0}


def test_what_the_engine_left_out_is_recorded_in_its_words() -> None:
    story = Story()
    ask = story.ask()
    left_out = ('goal', 'some of scan')
    answer = dataclasses.replace(decision(ask.question.request), dropped=left_out)
    story.do(story.pilot.receive(answer, story.now_ns))
    assert story.records[-1].dropped == left_out
    assert DecisionRecord.model_validate_json(
        story.records[-1].model_dump_json()) == story.records[-1]


def test_a_command_never_outlives_the_age_of_its_observation() -> None:
    story = Story()
    story.sense('scan')
    scanned_ns = story.now_ns
    story.clock.advance_ms(100)
    story.sense('odom')
    ask = only(Ask, story.step())
    command = only(Send, story.answer(ask, after_ms=419)).command
    oldest_ns = command.observation_stamp_ns - ROS_OFFSET_NS
    assert oldest_ns == scanned_ns
    assert command.valid_until_ns - oldest_ns <= POLICY.max_observation_age_ns


def test_the_deadline_starts_at_the_arrival_of_the_newest_required_reading() -> None:
    story = Story()
    story.sense('scan')
    story.clock.advance_ms(30)
    story.sense('odom')
    arrival_ns = story.now_ns
    ask = only(Ask, story.step(after_ms=20))
    assert ask.question.deadline_ns == arrival_ns + POLICY.budget_ns


def test_a_miss_is_noticed_at_the_deadline_without_an_answer() -> None:
    story = Story()
    story.ask()
    assert not of(Record, story.step(after_ms=419.9))
    record = only(Record, story.step(after_ms=0.1)).record
    assert (record.outcome, record.why) == ('missed', 'no answer by the deadline')
    assert story.status.misses == 1


def test_an_answer_at_the_deadline_is_late() -> None:
    story = Story()
    ask = story.ask()
    done = story.answer(ask, after_ms=420)
    assert not of(Send, done)
    record = only(Record, done).record
    assert (record.outcome, record.why) == ('missed', 'the answer came 0 ms late')
    assert record.action == 'forward'  # told for the record; no velocity was asked for
    assert record.linear_x_m_s == 0.0


def test_a_late_answer_is_discarded_by_its_request_id() -> None:
    story = Story()
    first = story.ask()
    story.step(after_ms=430)
    second = story.ask(after_ms=70)
    assert (first.question.request, second.question.request) == (1, 2)
    assert story.answer(first, after_ms=5) == []
    assert story.pilot.late_answers == 1
    assert only(Send, story.answer(second, after_ms=5)).command.request == 2
    assert story.answer(second) == []  # a second answer to one question
    assert story.pilot.late_answers == 2
    assert len(story.commands) == 1


def test_newest_wins() -> None:
    """A tick that was made late leaves its question open when the next grid point comes."""
    story = Story()
    story.sense()
    first = only(Ask, story.step())
    story.answer(first, after_ms=10)
    story.clock.advance_ms(590)
    story.sense()
    second = only(Ask, story.step())  # 90 ms after its grid point, open until 1020
    story.clock.advance_ms(400)
    story.sense()
    done = story.step()
    assert only(Withdraw, done).request == second.question.request
    record = only(Record, done).record
    assert (record.request, record.outcome) == (2, 'missed')
    assert record.why == 'a newer observation came first'
    third = only(Ask, done)
    assert story.do(story.pilot.receive(Cancelled(2), story.now_ns)) == []
    assert only(Send, story.answer(third, after_ms=100)).command.request == 3


def test_a_stall_skips_ticks_and_keeps_the_grid() -> None:
    story = Story()
    start_ns = story.now_ns
    story.answer(story.ask(), after_ms=10)
    story.clock.advance_ms(2290)  # grid points at 500, 1000, 1500 and 2000 ms passed
    story.sense()
    story.answer(only(Ask, story.step()), after_ms=10)
    assert story.pilot.skipped_ticks == 3
    story.clock.advance_ms(180)
    story.sense()
    assert not of(Ask, story.step())
    story.sense()
    assert only(Ask, story.step(after_ms=10))
    assert story.now_ns - start_ns == 2500 * MS
    assert [r.tick_ns - start_ns for r in story.records] == [0, 2300 * MS]


def test_engine_lost_in_mid_question_and_back() -> None:
    story = Story()
    story.ask()
    story.clock.advance_ms(50)
    done = story.do(story.pilot.receive(EngineLost('connection closed'), story.now_ns))
    record = only(Record, done).record
    assert (record.outcome, record.why) == ('missed', 'engine lost: connection closed')
    story.step()
    assert (story.status.engine, story.status.worker_pid) == ('absent', 0)

    story.clock.advance_ms(450)
    story.sense()
    record = only(Record, story.step()).record
    assert (record.outcome, record.request) == ('no_engine', 0)
    assert story.status.last_outcome == 'no engine: connection closed'

    story.do(story.pilot.receive(EngineUp(78, 6), story.now_ns))
    story.step()
    assert (story.status.engine, story.status.worker_pid) == ('loading', 78)
    done = story.do(story.pilot.receive(LIMITS, story.now_ns))
    assert only(Declare, done).declaration == story.pilot.declaration
    story.step()
    assert story.status.engine == 'loading'
    story.pilot.receive(Declared(story.pilot.declaration.space, 200, 6, 4), story.now_ns)
    ask = story.ask(after_ms=500)
    assert story.status.engine == 'ready'
    assert only(Send, story.answer(ask, after_ms=100)).command.sequence == 1


def test_a_rejected_declaration_is_the_operators() -> None:
    story = Story(ready=False)
    story.pilot.receive(EngineUp(77, 5), story.now_ns)
    story.pilot.receive(LIMITS, story.now_ns)
    why = 'the mission has 9000 tokens, the context 4096'
    story.pilot.receive(DeclarationRejected(story.pilot.declaration.space, why), story.now_ns)
    story.do(story.pilot.activate(story.now_ns))
    story.sense()
    record = only(Record, story.step()).record
    assert (record.outcome, record.why) == ('no_engine', why)
    assert story.status.engine == 'failed'
    assert story.pilot.engine_why == why


def test_another_policys_declaration_says_nothing() -> None:
    story = Story(ready=False)
    story.pilot.receive(EngineUp(77, 5), story.now_ns)
    story.pilot.receive(Declared('other-0', 200, 6, 4), story.now_ns)
    story.pilot.receive(DeclarationRejected('other-0', 'too long'), story.now_ns)
    assert story.pilot.engine == 'loading'


@pytest.mark.parametrize(('answer', 'outcome', 'why'), [
    (Refused(1, RefusedWhy.DOES_NOT_FIT, '512 ms'), 'refused', 'does_not_fit: 512 ms'),
    (Refused(1, RefusedWhy.BUSY, ''), 'refused', 'busy: '),
    (Missed(1, MissedWhy.NOT_FINITE, 'NaN'), 'missed', 'not_finite: NaN'),
    (Cancelled(1), 'cancelled', 'by the engine'),
    (decision(1, leaf=6), 'missed', 'leaf 6 is none of the 6 answers'),
    (decision(1, leaf=-1), 'missed', 'leaf -1 is none of the 6 answers'),
    (decision(1, confidence=float('nan')), 'missed', 'confidence nan is no probability'),
    (decision(1, confidence=1.5), 'missed', 'confidence 1.5 is no probability'),
    (decision(1, margin=float('nan')), 'missed', 'margin nan is no difference of probabilities'),
    (decision(1, margin=-1.5), 'missed', 'margin -1.5 is no difference of probabilities'),
    (dataclasses.replace(decision(1), partial=True), 'missed',
     'a partial answer, and the policy is not anytime'),
])
def test_answers_that_are_no_decision(
    answer: Refused | Missed | Cancelled | Decided, outcome: str, why: str,
) -> None:
    story = Story()
    story.ask()
    done = story.do(story.pilot.receive(answer, story.now_ns))
    record = only(Record, done).record
    assert (record.outcome, record.why) == (outcome, why)
    assert story.commands == []


@pytest.mark.parametrize('changes', [{'leaf': 6}, {'leaf': -1}, {'confidence': float('nan')}])
def test_what_is_no_answer_is_none_when_it_is_late_either(changes: dict[str, object]) -> None:
    story = Story()
    record = only(Record, story.answer(story.ask(), after_ms=450, **changes)).record
    assert (record.outcome, record.decision) == ('missed', None)
    assert 'late' not in record.why


ANYTIME = {'actions': (0, 1, 1, 2, 3, 3), 'departures': (0, 1, 0, 0, 1, 0)}
TEXT = {'text': FreeText(' because', 16, 40)}


def test_a_partial_answer_is_a_partial_command() -> None:
    story = Story()
    story.declare(**ANYTIME)
    command = only(Send, story.answer(story.ask(), after_ms=200, partial=True)).command
    assert command.partial
    assert (command.action, command.linear_x_m_s) == ('forward', 0.25)
    record = only(Record, story.done).record
    assert (record.outcome, record.partial) == ('decided', True)
    assert not only(Send, story.answer(story.ask(after_ms=500))).command.partial


def test_a_partial_answer_must_be_sure_too() -> None:
    rules = POLICY.decision.model_copy(update={'min_confidence': 0.5})
    story = Story(POLICY.model_copy(update={'decision': rules}))
    story.declare(**ANYTIME)
    done = story.answer(story.ask(), partial=True, confidence=0.4)
    assert not of(Send, done)
    record = only(Record, done).record
    assert (record.outcome, record.partial) == ('unsure', True)


def test_the_text_follows_its_decision() -> None:
    story = Story()
    story.declare(**TEXT)
    story.answer(story.ask(), after_ms=100)
    story.ask(after_ms=500)  # the next question does not make the text another's
    assert story.said(1, cut=True) == [Say(1, 'the way is free', True)]
    assert story.said(1) == []  # once
    assert story.pilot.dropped_texts == 1


def test_texts_that_belong_to_no_decision_are_dropped_and_counted() -> None:
    story = Story()
    story.declare(**TEXT)
    assert story.said(0) == []
    assert story.said(1) == []  # before there was a question
    first = story.ask()
    assert story.said(1) == []  # before its decision
    story.answer(first, after_ms=100)
    second = story.ask(after_ms=500)
    story.answer(second, after_ms=100)
    assert story.said(1) == []  # a newer decision has come
    assert story.said(2, 'x' * 41) == []  # longer than was asked for
    assert len(story.said(2, 'x' * 40)) == 1
    third = story.ask(after_ms=500)
    story.step(after_ms=430)
    story.answer(third)
    assert story.said(3) == []  # its decision came late and was none
    assert story.pilot.dropped_texts == 6


def test_nothing_is_said_unasked_or_after_the_end() -> None:
    story = Story()
    story.answer(story.ask(), after_ms=100)
    assert story.said(1) == []  # the policy has no free text
    story.declare(**TEXT)
    story.answer(story.ask(after_ms=500), after_ms=100)
    story.do(story.pilot.deactivate(story.now_ns))
    assert story.said(2) == []
    assert story.pilot.dropped_texts == 2


def test_an_engine_that_forgot_is_told_again() -> None:
    story = Story()
    story.ask()
    story.pilot.receive(Refused(1, RefusedWhy.UNKNOWN_SPACE, 'evicted'), story.now_ns)
    assert only(Declare, story.step(after_ms=50))
    assert story.status.engine == 'loading'
    assert not of(Declare, story.step(after_ms=50))


def test_unsure_is_no_decision() -> None:
    rules = POLICY.decision.model_copy(update={'min_confidence': 0.5})
    story = Story(POLICY.model_copy(update={'decision': rules}))
    done = story.answer(story.ask(), confidence=0.49)
    assert not of(Send, done)
    record = only(Record, done).record
    assert (record.outcome, record.why) == ('unsure', 'confidence 0.49 is below 0.50')
    assert record.action == 'forward'
    assert only(Send, story.answer(story.ask(after_ms=500), confidence=0.5))


def test_unfit_sensors_ask_nothing() -> None:
    story = Story()
    record = only(Record, story.step()).record
    assert (record.outcome, record.why) == ('unfit', 'scan never, odom never')
    assert record.ages_ms == {}
    story.clock.advance_ms(500)
    story.sense('scan')
    assert only(Record, story.step()).record.why == 'odom never'
    story.sense('odom')
    story.clock.advance_ms(500)
    story.sense('odom')
    assert only(Ask, story.step())  # the scan is 500 ms old: at its limit, not beyond
    story.clock.advance_ms(500)
    story.sense('odom')
    done = story.step()
    assert of(Record, done)[-1].record.why == 'scan stale'
    assert not of(Ask, done)


def test_readings_without_time_left_are_a_miss() -> None:
    story = Story()
    story.sense()
    story.clock.advance_ms(450)  # fresh for another 50 ms, but the budget is 420
    record = only(Record, story.step()).record
    assert (record.outcome, record.request) == ('missed', 0)
    assert record.why == 'too late: the newest required reading left no time, by 30 ms'


def test_the_same_readings_are_not_asked_twice() -> None:
    rules = POLICY.decision.model_copy(update={'rate_hz': 10.0})
    story = Story(POLICY.model_copy(update={'decision': rules}))
    story.answer(story.ask(), after_ms=10)
    record = of(Record, story.step(after_ms=90))[-1].record
    assert (record.outcome, record.why) == ('idle', 'no new reading')


def test_a_paused_clock_makes_nothing_older_and_nothing_new() -> None:
    story = Story()
    story.answer(story.ask(), after_ms=100)
    story.ros_stopped_ns = story.ros_now_ns
    for _ in range(6):
        done = story.step(after_ms=500)
        assert only(Record, done).record.why == 'no new reading'
    assert (story.pilot.served, story.pilot.misses) == (1, 0), 'a pause is nobody\'s miss'
    story.ros_stopped_ns = None


def test_unfit_stamps_fall_back_to_the_arrival() -> None:
    story = Story()
    story.sense(stamp_ns=0)
    story.clock.advance_ms(40)
    ask = only(Ask, story.step())
    command = only(Send, story.answer(ask, after_ms=100)).command
    assert command.observation_stamp_ns == story.ros_now_ns - 140 * MS
    assert story.records[-1].ages_ms == {'scan': 40.0, 'odom': 40.0}


def test_deactivation_tells_the_watchdog_at_once() -> None:
    story = Story()
    story.ask()
    assert story.status.active
    done = story.do(story.pilot.deactivate(story.now_ns))
    assert only(Withdraw, done).request == 1
    assert only(Record, done).record.outcome == 'cancelled'
    assert not only(Tell, done).status.active
    story.sense()
    assert [type(d) for d in story.step(after_ms=500)] == [Tell]
    assert story.do(story.pilot.receive(decision(1), story.now_ns)) == []
    assert story.commands == []


def test_what_the_connection_did_not_take() -> None:
    story = Story()
    ask = story.ask()
    record = only(Record, story.do(story.pilot.unsent(ask, story.now_ns))).record
    assert (record.outcome, record.why) == ('missed', 'the engine did not take the question')
    assert story.pilot.unsent(ask, story.now_ns) == []
    assert story.pilot.unsent(Declare(story.pilot.declaration), story.now_ns) == []
    assert only(Declare, story.step(after_ms=50))


def test_the_status_carries_the_engines_progress() -> None:
    story = Story()
    story.pilot.receive(Progress(EngineState.READY, 12, 900, 13, 950, 80 * MS), story.now_ns)
    story.step()
    status = story.status
    assert (status.progress, status.progress_ns) == (12, 900)
    assert (status.in_flight, status.in_flight_since_ns) == (13, 950)
    assert status.in_flight_bound_ns == 80 * MS
    assert (status.worker_pid, status.worker_start_ticks) == (77, 5)


events = st.sampled_from([
    'step', 'late step', 'scan', 'odom', 'answer', 'old answer', 'wild answer', 'refuse', 'miss',
    'cancel', 'lose', 'up', 'unsent', 'progress', 'off', 'on', 'partial', 'say',
])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(events, st.integers(0, 400)), max_size=60))
def test_whatever_happens(script: list[tuple[str, int]]) -> None:
    """One record per tick, commands only in time and only of the space, ids that only grow."""
    story = Story()
    story.declare(**ANYTIME, **TEXT)
    asks: dict[int, Ask] = {}
    for what, ms in script:
        story.clock.advance_ms(ms)
        now_ns, last = story.now_ns, max(asks, default=0)
        match what:
            case 'step':
                new = story.step()
            case 'late step':
                new = story.step(after_ms=900)
            case 'scan' | 'odom':
                story.sense(what)
                new = []
            case 'answer':
                new = story.do(story.pilot.receive(decision(last), now_ns)) if last else []
            case 'partial':
                half = dataclasses.replace(decision(last), partial=True)
                new = story.do(story.pilot.receive(half, now_ns))
            case 'say':
                new = story.said(last)
            case 'old answer':
                new = story.do(story.pilot.receive(decision(max(1, last - 1)), now_ns))
            case 'wild answer':
                new = story.do(story.pilot.receive(decision(last, leaf=ms), now_ns))
            case 'refuse':
                refused = Refused(last, RefusedWhy.UNKNOWN_SPACE, '')
                new = story.do(story.pilot.receive(refused, now_ns))
            case 'miss':
                missed = Missed(last, MissedWhy.DEADLINE, '')
                new = story.do(story.pilot.receive(missed, now_ns))
            case 'cancel':
                new = story.do(story.pilot.receive(Cancelled(last), now_ns))
            case 'lose':
                new = story.do(story.pilot.receive(EngineLost('gone'), now_ns))
            case 'up':
                story.engine_comes_up()
                new = []
            case 'unsent':
                new = story.do(story.pilot.unsent(asks[last], now_ns)) if last else []
            case 'progress':
                beat = Progress(EngineState.READY, 1, now_ns, 0, 0, 0)
                new = story.do(story.pilot.receive(beat, now_ns))
            case 'off':
                new = story.do(story.pilot.deactivate(now_ns))
            case _:
                new = story.do(story.pilot.activate(now_ns))
        for ask in of(Ask, new):
            assert ask.question.deadline_ns > story.now_ns
            assert ask.question.request == last + 1
            asks[ask.question.request] = ask
        for send in of(Send, new):
            assert story.now_ns < asks[send.command.request].question.deadline_ns
            assert story.pilot.active

    story.do(story.pilot.deactivate(story.now_ns))
    asked = [r.request for r in story.records if r.request]
    assert sorted(asked) == list(asks)
    assert story.pilot.served == len(story.commands)
    texts = of(Say, story.done)
    assert len({text.request for text in texts}) == len(texts)
    assert {text.request for text in texts} <= {c.request for c in story.commands}
    assert {r.request for r in story.records if r.partial} >= {
        c.request for c in story.commands if c.partial}
    assert story.pilot.served + story.pilot.misses == len(story.records)
    assert [c.sequence for c in story.commands] == list(range(1, len(story.commands) + 1))
    space = ActionSpace.of(POLICY)
    for command in story.commands:
        assert parse_frame(Command, command.to_json()) == command
        action = space.find(command.action, command.parameters)
        assert action is not None
        assert action.velocity.linear_x_m_s == command.linear_x_m_s
        assert action.velocity.angular_z_rad_s == command.angular_z_rad_s
    statuses = [d.status for d in story.done if isinstance(d, Tell)]
    assert [s.sequence for s in statuses] == list(range(1, len(statuses) + 1))
    for status in statuses[-3:]:
        assert parse_frame(NodeStatus, status.to_json()) == status
    for record in story.records:
        assert DecisionRecord.model_validate_json(record.model_dump_json()) == record
