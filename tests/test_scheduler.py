"""What waits for the model: stories of instants, and one answer for each question in any order."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.exchange import (
    Cancelled,
    Declaration,
    DeclarationRejected,
    Question,
    Refused,
    RefusedWhy,
)
from smallm_ros.engine.scheduler import DECLARATION_DUE_NS, Announced, Asked, Desk, Reply

T = 1000 * SECOND


def question(request: int, deadline_ms: int = 100, space: str = 's') -> Question:
    return Question(request, space, T + deadline_ms * MS, ())


def declaration(space: str) -> Declaration:
    return Declaration(space, '', (), ('a', 'b'), 10)


def open_desk(interrupt: Callable[[], None] = lambda: None) -> Desk:
    desk = Desk()
    desk.open(interrupt)
    return desk


def taken(desk: Desk) -> Question | Declaration | None:
    work = desk.take(0)
    if isinstance(work, Asked):
        return work.question
    return work.declaration if isinstance(work, Announced) else None


def test_while_the_model_loads_questions_are_refused_and_declarations_wait() -> None:
    desk = Desk()
    ((client, refused),) = desk.ask(1, question(1), T)
    assert client == 1
    assert refused == Refused(1, RefusedWhy.NOT_READY, 'the model is loading')
    assert desk.announce(1, declaration('s'), T) == []
    desk.open(lambda: None)
    assert taken(desk) == declaration('s')
    assert taken(desk) is None


def test_the_newest_question_of_a_client_wins() -> None:
    desk = open_desk()
    assert desk.ask(1, question(1), T) == []
    assert desk.ask(1, question(2), T) == [(1, Cancelled(1))]
    assert taken(desk) == question(2)
    assert not desk.withdrawn()
    assert desk.ask(1, question(3), T) == []
    assert desk.withdrawn(), 'the one that runs is no longer wanted'
    desk.done()
    assert taken(desk) == question(3)
    assert not desk.withdrawn()


def test_a_client_does_not_disturb_another() -> None:
    desk = open_desk()
    desk.ask(1, question(1), T)
    assert taken(desk) == question(1)
    assert desk.ask(2, question(1), T) == []
    desk.leave(2)
    assert desk.cancel(2, 1) == []
    assert not desk.withdrawn()


def test_the_earliest_deadline_goes_first_and_a_declaration_counts_as_a_second() -> None:
    desk = open_desk()
    desk.announce(4, declaration('s'), T)
    desk.ask(1, question(1, 300), T)
    desk.ask(2, question(1, 100), T)
    desk.ask(3, question(1, DECLARATION_DUE_NS // MS + 1), T)
    order = [taken(desk) for _ in range(4)]
    assert order == [question(1, 100), question(1, 300), declaration('s'), question(1, 1001)]


def test_a_deadline_that_passes_while_waiting_is_too_late() -> None:
    desk = open_desk()
    desk.ask(1, question(1, 100), T)
    assert desk.expire(T + 100 * MS - 1) == []
    ((client, refused),) = desk.expire(T + 101 * MS)
    assert client == 1
    assert refused == Refused(1, RefusedWhy.TOO_LATE,
                              'the deadline passed 1.0 ms before work began')
    assert taken(desk) is None
    ((_, refused),) = desk.ask(1, question(2, 0), T)
    assert isinstance(refused, Refused) and refused.why is RefusedWhy.TOO_LATE


def test_cancel_takes_back_what_waits_and_what_runs_and_nothing_else() -> None:
    desk = open_desk()
    desk.ask(1, question(1), T)
    assert desk.cancel(1, 7) == []
    assert desk.cancel(1, 1) == [(1, Cancelled(1))]
    desk.ask(1, question(2), T)
    taken(desk)
    assert desk.cancel(1, 1) == []
    assert not desk.withdrawn()
    assert desk.cancel(1, 2) == []
    assert desk.withdrawn()
    desk.done()
    assert desk.cancel(1, 2) == []


def test_a_client_that_leaves_is_forgotten() -> None:
    desk = open_desk()
    desk.ask(1, question(1), T)
    taken(desk)
    desk.ask(1, question(2), T)
    desk.announce(1, declaration('s'), T)
    desk.leave(1)
    assert desk.withdrawn()
    desk.done()
    assert taken(desk) is None


def test_a_declaration_in_place_of_another_says_so() -> None:
    desk = open_desk()
    desk.announce(1, declaration('s'), T)
    assert desk.announce(1, declaration('s'), T) == []
    assert desk.announce(1, declaration('t'), T) == [
        (1, DeclarationRejected('s', 't was declared in its place'))
    ]
    assert taken(desk) == declaration('t')
    assert taken(desk) is None


def test_at_the_end_everyone_is_told() -> None:
    desk = open_desk()
    desk.ask(1, question(1), T)
    desk.ask(2, question(5), T)
    assert taken(desk) == question(1)
    desk.stop()
    assert desk.stopped and desk.withdrawn()
    assert desk.clear() == [(2, Refused(5, RefusedWhy.NOT_READY, 'the engine ends'))]
    ((_, refused),) = desk.ask(3, question(1), T)
    assert isinstance(refused, Refused) and refused.why is RefusedWhy.NOT_READY


def test_while_a_declaration_runs_questions_of_other_spaces_are_served() -> None:
    desk = open_desk()
    desk.announce(1, declaration('new'), T)
    assert taken(desk) == declaration('new')
    assert desk.take_question() is None
    desk.ask(1, question(1, 50, 'new'), T)
    desk.ask(2, question(1, 100), T)
    desk.ask(3, question(1, 90), T)
    for client in (3, 2):
        asked = desk.take_question()
        assert asked is not None and asked.client == client
        assert not desk.withdrawn()
        assert desk.cancel(client, 1) == [] and desk.withdrawn()
        desk.done()
    assert desk.take_question() is None, 'the space of the last one is not there yet'
    desk.done()
    assert taken(desk) == question(1, 50, 'new')


def test_who_withdraws_what_runs_interrupts_it_once_and_nothing_else() -> None:
    calls: list[str] = []
    desk = open_desk(lambda: calls.append('now'))
    desk.ask(1, question(1), T)
    desk.cancel(1, 1)
    assert calls == [], 'it had not begun'
    desk.ask(1, question(2), T)
    taken(desk)
    desk.ask(2, question(1), T)
    desk.announce(2, declaration('s'), T)
    assert calls == [], 'what others ask waits'
    desk.ask(1, question(3), T)
    desk.cancel(1, 2)
    desk.leave(1)
    assert calls == ['now']
    desk.done()
    assert taken(desk) == question(1)
    desk.done()
    assert taken(desk) == declaration('s')
    desk.cancel(2, 1)
    desk.stop()
    assert calls == ['now'], 'a declaration is nobody\'s question'


def test_the_end_interrupts_the_question_that_runs() -> None:
    calls: list[str] = []
    desk = open_desk(lambda: calls.append('now'))
    desk.ask(1, question(1), T)
    taken(desk)
    desk.stop()
    assert calls == ['now']


def test_what_follows_an_answer_gives_way_to_any_work() -> None:
    calls: list[str] = []
    desk = open_desk(lambda: calls.append('now'))
    desk.ask(1, question(1), T)
    taken(desk)
    desk.answered()
    assert not desk.withdrawn()
    desk.ask(2, question(1), T)
    assert desk.withdrawn() and calls == ['now']
    desk.done()
    taken(desk)
    assert not desk.withdrawn()
    desk.announce(1, declaration('t'), T)
    desk.answered()
    assert desk.withdrawn(), 'a declaration waits'
    desk.done()
    taken(desk)
    desk.ask(2, question(2), T)
    assert desk.take_question() is not None
    desk.answered()
    assert desk.withdrawn(), 'a declaration is in the middle of it'


@given(steps=st.lists(st.tuples(
    st.sampled_from(['ask', 'cancel', 'expire', 'take', 'between', 'done', 'announce']),
    st.integers(1, 3), st.integers(0, 200),
), max_size=60))
def test_every_question_gets_one_answer(steps: list[tuple[str, int, int]]) -> None:
    interrupted: list[int] = []
    desk = open_desk(lambda: interrupted.append(0))
    numbers = itertools.count(1)
    now_ns, asked, answered = T, [], []
    running: list[Asked | Announced] = []

    def done() -> None:
        work = running.pop()
        if isinstance(work, Asked):
            assert len(interrupted) <= 1, 'a question is interrupted once'
            assert not interrupted or desk.withdrawn()
            interrupted.clear()
            answered.append((work.client, work.question.request))
        desk.done()

    for what, client, ms in steps:
        now_ns += ms * MS // 10
        replies: list[Reply] = []
        if what == 'ask':
            request = next(numbers)
            asked.append((client, request))
            replies = desk.ask(
                client, Question(request, f's{ms % 2}', now_ns + ms * MS, ()), now_ns
            )
        elif what == 'announce':
            replies = desk.announce(client, declaration(f's{ms % 2}'), now_ns)
        elif what == 'cancel':
            replies = desk.cancel(client, asked[-1][1] if asked else 0)
        elif what == 'expire':
            replies = desk.expire(now_ns)
        elif what == 'between':
            if running and isinstance(running[-1], Announced):
                between = desk.take_question()
                if between is not None:
                    assert between.question.space != running[-1].declaration.space
                    running.append(between)
        else:
            while running:
                done()
            if what == 'take':
                work = desk.take(0)
                if work is not None:
                    running.append(work)
        answered += [(c, e.request) for c, e in replies if not isinstance(e, DeclarationRejected)]
    desk.stop()
    answered += [(c, e.request) for c, e in desk.clear() if not isinstance(e, DeclarationRejected)]
    while running:
        done()
    assert sorted(answered) == sorted(asked)
