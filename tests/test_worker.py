"""The worker's main thread, without processes: what comes before what, and one answer each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest

from smallm_ros.core.clock import MS, SECOND, Clock, ManualClock
from smallm_ros.core.errors import FrameError, WorkerError
from smallm_ros.core.exchange import (
    Answer,
    Cancelled,
    Declaration,
    Declared,
    FreeText,
    Missed,
    MissedWhy,
    ModelLimits,
    Question,
    Refused,
    RefusedWhy,
    Said,
)
from smallm_ros.engine import worker
from smallm_ros.engine.progress import ProgressPage, ProgressWriter
from smallm_ros.engine.scheduler import Desk
from smallm_ros.engine.scripted import Line, ScriptedDecider
from smallm_ros.engine.wire import Event

Story = Callable[['Bench'], None]


NO_TEXT = FreeText()


def declaration(space: str, text: FreeText = NO_TEXT) -> Declaration:
    return Declaration(space, 'drive', (), ('go', 'stop'), 64, text=text)


class Door:
    """Keeps what is posted, in order."""

    def __init__(self, posted: list[tuple[int, object]]) -> None:
        self.posted = posted

    def announce(self, limits: ModelLimits) -> None:
        pass

    def post(self, client: int, event: Event) -> None:
        if isinstance(event, Said) and event.text == 'unspeakable':
            raise FrameError('it cannot travel')
        self.posted.append((client, event))


class Telling(ScriptedDecider):
    """The scripted decider; it writes down what it is asked to do, and has some idle work."""

    def __init__(self, bench: Bench, writer: ProgressWriter, script: list[Line]) -> None:
        super().__init__(script, bench.clock, bench.wait, writer, declare_passes=3)
        self.bench = bench

    def decide(
        self, question: Question, received_ns: int, cancelled: Callable[[], bool]
    ) -> Answer:
        self.bench.log.append(f'decide {question.request}')
        return super().decide(question, received_ns, cancelled)

    def speak(self, request: int, interrupted: Callable[[], bool]) -> Said | None:
        self.bench.log.append(f'speak {request}')
        return super().speak(request, interrupted)

    def idle(self) -> bool:
        self.bench.log.append('idle')
        self.bench.turn()
        return self.bench.idle_work > 0


class Bench:
    """The main thread's loop over a desk; a story goes on a step at each idle turn or pass."""

    def __init__(self, *script: Line) -> None:
        self.clock = ManualClock()
        self.page = ProgressPage.create(self.clock.now_ns())
        self.desk = Desk()
        self.posted: list[tuple[int, object]] = []
        self.log: list[str] = []
        self.idle_work = 0
        self.script = list(script) or [Line(delay_ns=20 * MS)]
        self.story: list[Story] = []
        self.in_pass: list[Story] = []

    def wait(self, until_ns: int) -> None:
        self.clock.advance_ms(max(0, until_ns - self.clock.now_ns()) / MS)
        if self.in_pass:
            self.in_pass.pop(0)(self)

    def turn(self) -> None:
        self.idle_work -= 1
        if self.story:
            self.story.pop(0)(self)
        else:
            self.desk.stop()

    def run(self, *story: Story) -> None:
        self.story = list(story)

        def load(writer: ProgressWriter, clock: Clock) -> ScriptedDecider:
            return Telling(self, writer, self.script)

        worker._work(load, ProgressWriter(self.page, self.clock), self.desk,
                     cast('worker.Frontdoor', Door(self.posted)), self.clock)

    def ask(self, client: int, request: int, space: str = 's', budget_ms: int = 5000) -> None:
        now_ns = self.clock.now_ns()
        question = Question(request, space, now_ns + budget_ms * MS, ())
        self.posted += self.desk.ask(client, question, now_ns)

    def announce(self, client: int, *declarations: Declaration) -> None:
        for each in declarations:
            self.posted += self.desk.announce(client, each, self.clock.now_ns())

    def said(self) -> list[tuple[int, str, object]]:
        """Return (client, kind, request or space) of all that was posted."""
        return [(client, type(event).__name__,
                 getattr(event, 'request', None) or getattr(event, 'space', None))
                for client, event in self.posted]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.page.close()


def test_what_can_wait_is_done_piece_by_piece_and_a_question_comes_first(bench: Bench) -> None:
    bench.idle_work = 5
    bench.run(
        lambda b: b.announce(1, declaration('s')),
        lambda b: None,
        lambda b: b.ask(1, 1),
        lambda b: None,
    )
    assert bench.log == ['idle', 'idle', 'idle', 'decide 1', 'speak 1', 'idle', 'idle']
    assert bench.said() == [(1, 'Declared', 's'), (1, 'Decided', 1)]


def test_a_question_of_another_space_is_served_between_two_batches(bench: Bench) -> None:
    def while_it_is_declared(b: Bench) -> None:
        b.ask(1, 1)
        b.ask(2, 1, space='new')
        b.ask(3, 1, space='nobody')

    def declare(b: Bench) -> None:
        b.in_pass.append(while_it_is_declared)
        b.announce(2, declaration('new'))

    bench.run(lambda b: b.announce(1, declaration('s')), declare, lambda b: None)
    assert bench.said() == [
        (1, 'Declared', 's'), (1, 'Decided', 1), (3, 'Refused', 1), (2, 'Declared', 'new'),
        (2, 'Decided', 1),
    ]
    refused = bench.posted[2][1]
    assert isinstance(refused, Refused) and refused.why is RefusedWhy.UNKNOWN_SPACE


def test_a_question_whose_time_passed_in_between_is_too_late(bench: Bench) -> None:
    def declare(b: Bench) -> None:
        b.in_pass.append(lambda b: b.ask(1, 1, budget_ms=1))
        b.announce(2, declaration('new'))

    bench.script = [Line(delay_ns=40 * MS)]
    bench.run(lambda b: b.announce(1, declaration('s')), declare, lambda b: None)
    assert bench.said()[1] == (1, 'Refused', 1)
    refused = bench.posted[1][1]
    assert isinstance(refused, Refused) and refused.why is RefusedWhy.TOO_LATE


def test_a_text_is_cut_by_whatever_comes_and_silent_inside_a_declaration() -> None:
    bench = Bench(Line(delay_ns=20 * MS, text='one two three four'))
    speaking = declaration('s', FreeText('', 8, 80))

    def twice(b: Bench) -> None:
        # Two passes of the decision, then the first word.
        b.in_pass += [lambda b: None, lambda b: None, lambda b: b.ask(2, 1)]
        b.ask(1, 1)

    def in_a_declaration(b: Bench) -> None:
        b.in_pass.append(lambda b: b.ask(1, 2))
        b.announce(2, declaration('new'))

    bench.run(lambda b: b.announce(1, speaking), twice, in_a_declaration, lambda b: None)
    texts = [event for _, event in bench.posted if isinstance(event, Said)]
    # The word in flight is broken off and counts for the script.
    assert texts == [
        Said(1, 'one', 1, True), Said(1, 'one two three four', 4, False), Said(2, '', 0, True),
    ]
    assert bench.said()[-1] == (2, 'Declared', 'new')
    bench.page.close()


def test_a_text_that_cannot_travel_is_dropped() -> None:
    bench = Bench(Line(text='unspeakable'))
    speaking = declaration('s', FreeText('', 8, 80))
    bench.run(lambda b: b.announce(1, speaking), lambda b: b.ask(1, 1), lambda b: b.ask(1, 2))
    assert bench.said() == [(1, 'Declared', 's'), (1, 'Decided', 1), (1, 'Decided', 2)]
    bench.page.close()


def test_what_is_taken_back_ends_in_its_pass_and_the_next_one_runs_whole(bench: Bench) -> None:
    began_ns = 0

    def ask(b: Bench) -> None:
        nonlocal began_ns
        began_ns = b.clock.now_ns()
        b.in_pass.append(lambda b: b.ask(1, 2, budget_ms=60_000))
        b.ask(1, 1, budget_ms=60_000)

    bench.script = [Line(delay_ns=20 * SECOND), Line(delay_ns=4 * SECOND)]
    bench.run(lambda b: b.announce(1, declaration('s')), ask)
    assert bench.posted[-2] == (1, Cancelled(1))
    assert bench.said()[-1] == (1, 'Decided', 2)
    assert bench.clock.now_ns() - began_ns < 5 * SECOND


def test_a_broken_model_in_between_is_one_answer_and_the_end(bench: Bench) -> None:
    def declare(b: Bench) -> None:
        b.in_pass.append(lambda b: b.ask(1, 1))
        b.announce(2, declaration('new'))

    class Broken(Telling):
        def decide(self, *_: object) -> Answer:
            raise WorkerError('llama_decode returned -3')

    def load(writer: ProgressWriter, clock: Clock) -> ScriptedDecider:
        return Broken(bench, writer, bench.script)

    bench.story = [lambda b: b.announce(1, declaration('s')), declare]
    with pytest.raises(WorkerError, match='-3'):
        worker._work(load, ProgressWriter(bench.page, bench.clock), bench.desk,
                     cast('worker.Frontdoor', Door(bench.posted)), bench.clock)
    assert bench.posted[1:] == [
        (1, Missed(1, MissedWhy.DECODE_FAILED, 'llama_decode returned -3'))
    ]


def test_at_the_end_who_waits_is_refused_and_who_runs_is_cancelled(bench: Bench) -> None:
    def ask(b: Bench) -> None:
        b.in_pass += [lambda b: b.ask(2, 1), lambda b: b.desk.stop()]
        b.ask(1, 1)

    bench.script = [Line(delay_ns=2 * SECOND)]
    bench.run(lambda b: b.announce(1, declaration('s')), ask)
    assert bench.posted[1:] == [
        (1, Cancelled(1)), (2, Refused(1, RefusedWhy.NOT_READY, 'the engine ends')),
    ]
    assert isinstance(bench.posted[0][1], Declared)
