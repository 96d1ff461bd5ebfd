"""What every decider keeps, the scripted one and the real one alike."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from smallm_ros.core.budget import CostModel
from smallm_ros.core.clock import MS, SECOND, ManualClock
from smallm_ros.core.errors import WorkerError
from smallm_ros.core.exchange import (
    Answer,
    Cancelled,
    Decided,
    Declaration,
    DeclarationRejected,
    Declared,
    EngineState,
    FreeText,
    Missed,
    MissedWhy,
    Question,
    Refused,
    RefusedWhy,
    Said,
    Segment,
)
from smallm_ros.engine.decode import Decider, TreeDecider
from smallm_ros.engine.load import load_decider
from smallm_ros.engine.model import Batch
from smallm_ros.engine.options import LoadRequest
from smallm_ros.engine.progress import ProgressPage, ProgressWriter
from smallm_ros.engine.scripted import Act, Line, ScriptedDecider
from smallm_ros.steady import SteadyClock
from tests.fakes.decider_bench import VirtualAlarm
from tests.fakes.engine_process import wait_for
from tests.fakes.history_model import HistoryModel

DECLARATION = Declaration(
    space='explorer', system='You drive a small robot.',
    examples=(('ahead 2.0 m', 'forward fast'), ('ahead 0.2 m', 'stop')),
    answers=('forward slow', 'forward fast', 'turn left', 'turn right', 'stop'),
    max_prompt_tokens=64,
)
ACTIONS, DEPARTURES = (0, 0, 1, 1, 2), (1, 0, 0, 1, 0)
"""Of the answers above: fast and left are the defaults."""
SEGMENTS = (
    Segment('goal', 'goal: 3 m ahead\n', 1),
    Segment('scan', 'left 1.2 ahead 0.8 right 2.0\n', 0),
)


@dataclass
class Bench:
    """A decider with what a test needs to know of it."""

    decider: Decider
    now_ns: Callable[[], int]
    page: ProgressPage
    patient_ns: int
    """Enough time for any question."""
    virtual: bool = True
    """Whether its time is a manual clock's, and a batch calls `in_the_middle`."""
    repeats: bool = True
    """Whether the same question gets the same answer: not from a script."""
    speaks: bool = True
    """Whether it can say a text."""
    hooks: list[Callable[[], None]] = field(default_factory=list)

    def question(self, request: int = 1, space: str = 'explorer') -> Question:
        return Question(request, space, self.now_ns() + self.patient_ns, SEGMENTS)

    def decide(
        self, question: Question, cancelled: Callable[[], bool] = lambda: False
    ) -> Answer:
        answer = self.decider.decide(question, self.now_ns(), cancelled)
        assert answer.request == question.request
        return answer

    def decided(self, request: int, space: str = 'explorer') -> Decided:
        answer = self.decide(self.question(request, space))
        assert isinstance(answer, Decided), answer
        return answer

    def same(self, one: Decided, other: Decided) -> bool:
        return not self.repeats or one.decision.leaf == other.decision.leaf

    def in_the_middle(self) -> None:
        """Look at what every batch shows, then call what the test wants."""
        seen = self.page.read()
        assert seen.in_flight > 0
        assert seen.bound_ns > 0, 'the supervisor must know how long to look on'
        if self.hooks:
            self.hooks.pop()()

    @contextmanager
    def in_next_batch(self, what: Callable[[], None]) -> Iterator[None]:
        """Call `what` once while the next batch is in flight."""
        if self.virtual:
            self.hooks.append(what)
            yield
            assert not self.hooks
            return

        def watch() -> None:
            wait_for(lambda: self.page.read().in_flight)
            what()

        watcher = threading.Thread(target=watch)
        watcher.start()
        yield
        watcher.join()


def scripted_bench(*lines: Line) -> Bench:
    clock = ManualClock()

    def wait(until_ns: int) -> None:
        clock.advance_ms(max(0, until_ns - clock.now_ns()) / MS)
        bench.in_the_middle()

    page = ProgressPage.create(clock.now_ns())
    writer = ProgressWriter(page, clock)
    script = lines or tuple(
        Line(leaf=n, delay_ns=20 * MS, text='the way is free') for n in range(5)
    )
    decider = ScriptedDecider(script, clock, wait, writer, declare_passes=0 if lines else 3)
    writer.ready()
    bench = Bench(decider, clock.now_ns, page, SECOND, repeats=False)
    return bench


def history_bench() -> Bench:
    """Return the real decider on a model that is a hash; a token takes a millisecond."""
    clock = ManualClock()

    def batch_goes_in(batch: Batch) -> None:
        clock.advance_ms(len(batch.tokens))
        bench.in_the_middle()

    page = ProgressPage.create(clock.now_ns())
    writer = ProgressWriter(page, clock)
    model = HistoryModel(on_evaluate=batch_goes_in)
    costs = CostModel([(1, MS), (512, 512 * MS)])
    decider = TreeDecider(
        model, 'mistral-v7-tekken', costs, writer, clock, alarm=VirtualAlarm(clock)
    )
    writer.ready()
    bench = Bench(decider, clock.now_ns, page, 10 * SECOND, speaks=False)
    return bench


def real_bench() -> Bench:
    """Return the whole of what a worker loads: the embedded model, its file verified."""
    clock = SteadyClock()
    page = ProgressPage.create(clock.now_ns())
    writer = ProgressWriter(page, clock)
    decider = load_decider(LoadRequest(), writer, clock)
    writer.ready()
    return Bench(decider, clock.now_ns, page, 60 * SECOND, virtual=False)


VIRTUAL = {'scripted': scripted_bench, 'history': history_bench}
SPACES = ('explorer', 'new', 'apart', *(f's{n}' for n in range(9)))


@pytest.fixture(scope='module')
def real() -> Iterator[Callable[[], Bench]]:
    """Load the embedded model once, when it is first wanted."""
    loaded: list[Bench] = []

    def bench() -> Bench:
        if not loaded:
            loaded.append(real_bench())
        for space in SPACES:
            loaded[0].decider.forget(space)
        return loaded[0]

    yield bench
    for each in loaded:
        each.decider.close()
        each.page.close()


@pytest.fixture(
    params=['scripted', 'history', pytest.param('real', marks=pytest.mark.model)]
)
def bench(request: pytest.FixtureRequest, real: Callable[[], Bench]) -> Iterator[Bench]:
    if request.param == 'real':
        yield real()
        return
    bench = VIRTUAL[request.param]()
    yield bench
    bench.decider.close()
    bench.page.close()


@pytest.fixture
def declared(bench: Bench) -> Bench:
    assert isinstance(bench.decider.declare(DECLARATION), Declared)
    return bench


def test_a_declaration_is_confirmed_with_its_sizes(bench: Bench) -> None:
    answer = bench.decider.declare(DECLARATION)
    assert isinstance(answer, Declared)
    assert (answer.space, answer.leaves) == ('explorer', 5)
    assert answer.prompt_tokens > 0
    assert 1 <= answer.choice_nodes < 5
    assert bench.decider.declare(DECLARATION) == answer, 'again is the same'


@pytest.mark.parametrize('answers', [('stop', 'stop'), ()])
def test_answers_that_are_no_choice_are_rejected(bench: Bench, answers: tuple[str, ...]) -> None:
    answer = bench.decider.declare(replace(DECLARATION, answers=answers))
    assert isinstance(answer, DeclarationRejected)
    assert answer.space == 'explorer'
    assert answer.why


def test_a_decision_adds_up(declared: Bench) -> None:
    for request in range(1, 6):
        began_ns = declared.now_ns()
        answer = declared.decide(declared.question(request))
        assert isinstance(answer, Decided)
        decision = answer.decision
        assert 0 <= decision.leaf < 5
        for point in decision.choices:
            assert len(point.children) > 1
            assert math.isclose(sum(p for _, p in point.children), 1.0, rel_tol=1e-6)
            assert all(0.0 <= p <= 1.0 for _, p in point.children)
        words = DECLARATION.answers[decision.leaf]
        on_the_way = [p for p in decision.choices if words.startswith(p.prefix.strip())]
        assert len(on_the_way) == len(decision.choices)
        assert 0.0 < decision.confidence <= 1.0
        assert -1.0 <= decision.margin <= decision.confidence
        assert decision.plan
        assert not answer.partial, 'nobody declared defaults'
        assert 1 <= decision.tokens.passes <= 2
        assert len(decision.timings.passes_ns) == decision.tokens.passes
        times = decision.timings
        assert began_ns <= times.received_ns <= times.started_ns <= times.finished_ns
        assert times.finished_ns <= declared.now_ns()
        assert sum(times.passes_ns) + times.tokenise_ns <= times.finished_ns - times.started_ns
        assert answer.dropped == ()
        assert answer.model_sha256 == declared.decider.limits.sha256


def test_batches_are_counted_and_none_stays_in_flight(declared: Bench) -> None:
    before = declared.page.read()
    answer = declared.decide(declared.question())
    assert isinstance(answer, Decided)
    after = declared.page.read()
    assert after.count - before.count == 2 * answer.decision.tokens.passes
    assert after.in_flight == 0
    assert after.state is EngineState.READY


def test_an_unknown_space_is_refused(bench: Bench) -> None:
    answer = bench.decide(bench.question(space='nobody'))
    assert isinstance(answer, Refused)
    assert answer.why is RefusedWhy.UNKNOWN_SPACE
    assert 'nobody' in answer.detail


def test_a_forgotten_space_is_unknown_and_can_be_declared_again(declared: Bench) -> None:
    declared.decider.forget('explorer')
    declared.decider.forget('explorer')
    answer = declared.decide(declared.question())
    assert isinstance(answer, Refused)
    assert answer.why is RefusedWhy.UNKNOWN_SPACE
    assert isinstance(declared.decider.declare(DECLARATION), Declared)
    assert isinstance(declared.decide(declared.question()), Decided)


def test_the_ninth_space_displaces_the_one_that_was_not_used_longest(bench: Bench) -> None:
    for n in range(8):
        bench.decider.declare(replace(DECLARATION, space=f's{n}'))
    assert isinstance(bench.decide(bench.question(1, 's0')), Decided)
    assert isinstance(bench.decider.declare(replace(DECLARATION, space='s8')), Declared)
    assert isinstance(bench.decide(bench.question(2, 's1')), Refused)
    for request, name in enumerate(('s0', 's2', 's8'), start=3):
        assert isinstance(bench.decide(bench.question(request, name)), Decided)


def test_a_deadline_that_has_passed_is_too_late(declared: Bench) -> None:
    answer = declared.decide(replace(declared.question(), deadline_ns=declared.now_ns()))
    assert isinstance(answer, Refused)
    assert answer.why is RefusedWhy.TOO_LATE


def test_what_cannot_be_done_in_time_is_refused_or_missed_never_decided(declared: Bench) -> None:
    answer = declared.decide(replace(declared.question(), deadline_ns=declared.now_ns() + 1000))
    assert isinstance(answer, (Refused, Missed))
    assert isinstance(declared.decide(declared.question(2)), Decided), 'and life goes on'


def test_what_was_taken_back_is_cancelled(declared: Bench) -> None:
    answer = declared.decide(declared.question(), cancelled=lambda: True)
    # A decider with one pass may have finished before it could look.
    assert isinstance(answer, (Cancelled, Decided))
    assert isinstance(declared.decide(declared.question(2)), Decided)


def test_a_long_prompt_loses_its_least_important_segment(declared: Bench) -> None:
    long = Segment('story', 'once upon a time ' * 40, 5)
    answer = declared.decide(replace(declared.question(), segments=(long, *SEGMENTS)))
    assert isinstance(answer, Decided)
    assert answer.dropped == ('story',)


def test_a_prompt_that_cannot_shrink_is_too_long(declared: Bench) -> None:
    long = Segment('scan', 'left 1.2 ' * 100, 0)
    answer = declared.decide(replace(declared.question(), segments=(long,)))
    assert isinstance(answer, Refused)
    assert answer.why is RefusedWhy.PROMPT_TOO_LONG


# --- what runs beside and after a question ----------------------------------------------------


def test_between_two_batches_of_a_declaration_others_are_served(declared: Bench) -> None:
    wanted = declared.decided(1)
    answers: list[Answer] = []

    def between() -> None:
        request = 2 + 2 * len(answers)
        answers.append(declared.decided(request))
        answers.append(declared.decide(declared.question(request + 1, 'new')))

    longer = replace(DECLARATION, space='new', system=DECLARATION.system * 5)
    assert isinstance(declared.decider.declare(longer, between), Declared)
    assert len(answers) >= 4, 'it was asked at least twice'
    for inside, unknown in zip(answers[::2], answers[1::2], strict=True):
        assert isinstance(inside, Decided) and declared.same(inside, wanted)
        assert isinstance(unknown, Refused) and unknown.why is RefusedWhy.UNKNOWN_SPACE
    assert isinstance(declared.decider.declare(replace(longer, space='apart')), Declared)
    apart = declared.decided(1000, 'apart')
    assert declared.same(declared.decided(1001, 'new'), apart), 'nothing of the others is in it'
    assert declared.same(declared.decided(1002), wanted)


def test_what_was_withdrawn_is_ended_and_does_no_harm(declared: Bench) -> None:
    wanted = declared.decided(1)
    declared.decider.forget('explorer')
    declared.decider.declare(DECLARATION)
    withdrawn = threading.Event()

    def withdraw() -> None:
        withdrawn.set()
        declared.decider.interrupt()

    with declared.in_next_batch(withdraw):
        answer = declared.decide(declared.question(2), withdrawn.is_set)
    assert answer == Cancelled(2)
    assert declared.page.read().in_flight == 0
    assert declared.same(declared.decided(3), wanted)


def test_an_interrupt_between_two_questions_is_void(declared: Bench) -> None:
    wanted = declared.decided(1)
    declared.decider.interrupt()
    assert declared.same(declared.decided(2), wanted)
    declared.decider.interrupt()
    assert isinstance(declared.decider.declare(replace(DECLARATION, space='new')), Declared)


def test_who_asks_for_no_text_gets_none(declared: Bench) -> None:
    declared.decided(1)
    assert declared.decider.speak(1, lambda: False) is None
    assert not declared.decider.idle()


def test_a_text_follows_the_last_decision_once_and_changes_nothing(bench: Bench) -> None:
    if not bench.speaks:
        pytest.skip('a model without a vocabulary that llguidance reads')
    rules = FreeText(' because', 6, 30)
    assert isinstance(bench.decider.declare(replace(DECLARATION, text=rules)), Declared)
    wanted = bench.decided(1)
    said = bench.decider.speak(1, lambda: False)
    assert isinstance(said, Said) and said.request == 1
    assert 0 < said.tokens <= 6 and len(said.text) <= 30
    assert said.text == said.text.strip() and said.text.isprintable()
    assert bench.decider.speak(1, lambda: False) is None, 'once'
    assert bench.same(bench.decided(2), wanted)
    assert bench.decider.speak(1, lambda: False) is None, 'not the last decision'
    bench.decided(3)
    assert bench.decider.speak(3, lambda: True) == Said(3, '', 0, cut=True)
    assert bench.same(bench.decided(4), wanted)


def test_idle_work_comes_to_an_end_and_decisions_go_on(bench: Bench) -> None:
    assert isinstance(bench.decider.declare(replace(DECLARATION, history=2)), Declared)
    for request in range(1, 9):
        bench.decided(request)
        assert any(not bench.decider.idle() for _ in range(200))
    assert bench.page.read().in_flight == 0


def test_at_any_deadline_an_answer_is_whole_or_declared_or_none(bench: Bench) -> None:
    anytime = replace(DECLARATION, actions=ACTIONS, departures=DEPARTURES)
    assert isinstance(bench.decider.declare(anytime), Declared)
    times = bench.decided(1).decision.timings
    whole_ns = times.finished_ns - times.started_ns
    for request in range(2, 14):
        deadline_ns = bench.now_ns() + whole_ns * request // 6
        answer = bench.decide(replace(bench.question(request), deadline_ns=deadline_ns))
        assert isinstance(answer, (Decided, Missed, Refused))
        if isinstance(answer, Decided):
            assert answer.decision.timings.finished_ns <= deadline_ns
            if answer.partial:
                assert DEPARTURES[answer.decision.leaf] == 0
        elif isinstance(answer, Missed):
            assert answer.why is MissedWhy.DEADLINE
    assert not bench.decided(14).partial, 'with time enough it is whole'


# --- the script's own words ------------------------------------------------------------------


def test_a_script_says_which_leaf_when_and_how_sure() -> None:
    bench = scripted_bench(Line(leaf=1, delay_ns=40 * MS, share=0.9), Line(leaf=4))
    bench.decider.declare(DECLARATION)
    began_ns = bench.now_ns()
    answers = [bench.decide(bench.question(n)) for n in range(1, 4)]
    decisions = [a.decision for a in answers if isinstance(a, Decided)]
    assert [d.leaf for d in decisions] == [1, 4, 1]
    assert decisions[0].timings.finished_ns == began_ns + 40 * MS
    first, second = decisions[0].choices
    assert (first.prefix, second.prefix) == ('', 'forward')
    assert dict(first.children) == pytest.approx({'forward': 0.9, 'turn': 0.05, 'stop': 0.05})
    assert dict(second.children) == pytest.approx({'slow': 0.1, 'fast': 0.9})
    assert decisions[0].confidence == pytest.approx(0.81)


def test_an_answer_that_goes_on_where_another_ends_is_a_choice() -> None:
    bench = scripted_bench(Line(leaf=0))
    bench.decider.declare(replace(DECLARATION, answers=('stop', 'stop now')))
    answer = bench.decide(bench.question())
    assert isinstance(answer, Decided)
    (point,) = answer.decision.choices
    assert (point.prefix, point.children) == ('stop', (('', 0.75), ('now', 0.25)))
    assert answer.decision.confidence == 0.75


def test_a_slow_line_misses_its_deadline() -> None:
    bench = scripted_bench(Line(delay_ns=2 * SECOND))
    bench.decider.declare(DECLARATION)
    answer = bench.decide(replace(bench.question(), deadline_ns=bench.now_ns() + SECOND + 1))
    assert answer == Missed(1, MissedWhy.DEADLINE, 'answer known 1000.0 ms late')


def test_misbehaviour_is_as_written() -> None:
    bench = scripted_bench(Line(Act.NOT_FINITE), Line(Act.OTHER_REQUEST), Line(Act.FAIL))
    bench.decider.declare(DECLARATION)
    answer = bench.decide(bench.question())
    assert isinstance(answer, Decided) and math.isnan(answer.decision.confidence)
    assert bench.decider.decide(bench.question(), 0, lambda: False).request != 1
    with pytest.raises(WorkerError, match='-3'):
        bench.decide(bench.question())


def test_a_stall_stays_in_flight() -> None:
    bench = scripted_bench(Line(Act.STALL, delay_ns=20 * MS))
    bench.decider.declare(DECLARATION)

    class _EnoughError(Exception):
        pass

    seen = []

    def wait(_: int) -> None:
        seen.append(bench.page.read())
        if len(seen) == 100:
            raise _EnoughError

    assert isinstance(bench.decider, ScriptedDecider)
    bench.decider._wait = wait
    with pytest.raises(_EnoughError):
        bench.decide(bench.question())
    assert len(set(seen)) == 1
    assert (seen[0].in_flight, seen[0].bound_ns) == (1, 10 * MS)


def test_a_partial_line_gives_the_defaults_of_the_action_after_one_pass() -> None:
    bench = scripted_bench(*(Line(leaf=n, partial=True, share=0.9) for n in (0, 3, 4)))
    bench.decider.declare(replace(DECLARATION, actions=ACTIONS, departures=DEPARTURES))
    answers = [bench.decided(n) for n in range(1, 4)]
    assert [a.decision.leaf for a in answers] == [1, 2, 4]
    for answer in answers:
        assert answer.partial
        assert [p.prefix for p in answer.decision.choices] == ['']
        assert answer.decision.confidence == pytest.approx(0.9)
        assert answer.decision.margin == pytest.approx(0.85)
        assert (answer.decision.tokens.passes, answer.decision.plan) == (1, '1')
    bench.decider.declare(replace(DECLARATION, space='whole'))
    whole = bench.decided(4, 'whole')
    assert (whole.partial, whole.decision.leaf, whole.decision.plan) == (False, 0, '1+1')


def test_a_margin_is_over_the_likeliest_of_the_others() -> None:
    bench = scripted_bench(Line(leaf=1, share=0.6))
    bench.decider.declare(DECLARATION)
    # forward fast 0.36, forward slow 0.24, turn and stop 0.2 each
    assert bench.decided(1).decision.margin == pytest.approx(0.12)


def test_a_text_ends_at_its_limits_and_at_the_deadline() -> None:
    line = Line(delay_ns=20 * MS, text='the way is free')
    for rules, budget_ms, said in (
        (FreeText('', 9, 90), 1000, Said(1, 'the way is free', 4, False)),
        (FreeText('', 2, 90), 1000, Said(1, 'the way', 2, True)),
        (FreeText('', 9, 12), 1000, Said(1, 'the way is', 3, True)),
        (FreeText('', 9, 90), 45, Said(1, 'the way', 2, True)),
    ):
        bench = scripted_bench(line)
        bench.decider.declare(replace(DECLARATION, text=rules))
        deadline_ns = bench.now_ns() + budget_ms * MS
        assert isinstance(
            bench.decide(replace(bench.question(), deadline_ns=deadline_ns)), Decided
        )
        assert bench.decider.speak(1, lambda: False) == said
        assert bench.now_ns() <= deadline_ns


def test_a_script_has_a_line() -> None:
    page = ProgressPage.create(0)
    with pytest.raises(ValueError, match='at least one line'):
        ScriptedDecider((), ManualClock(), lambda _: None, ProgressWriter(page, ManualClock()))
    page.close()
