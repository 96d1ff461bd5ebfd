"""What waits for the model: stories of instants, and one answer for each question in any order."""

from __future__ import annotations

import itertools

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
from smallm_ros.engine.scheduler import DECLARATION_DUE_NS, Announced, Asked, Desk

T = 1000 * SECOND


def question(request: int, deadline_ms: int = 100) -> Question:
    return Question(request, 's', T + deadline_ms * MS, ())


def declaration(space: str) -> Declaration:
    return Declaration(space, '', (), ('a', 'b'), 10)


def open_desk() -> Desk:
    desk = Desk()
    desk.open()
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
    desk.open()
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


@given(steps=st.lists(st.tuples(
    st.sampled_from(['ask', 'cancel', 'expire', 'take', 'done']), st.integers(1, 3),
    st.integers(0, 200),
), max_size=60))
def test_every_question_gets_one_answer(steps: list[tuple[str, int, int]]) -> None:
    desk = open_desk()
    numbers = itertools.count(1)
    now_ns, asked, answered = T, [], []
    running: Asked | None = None
    for what, client, ms in steps:
        now_ns += ms * MS // 10
        if what == 'ask':
            request = next(numbers)
            asked.append((client, request))
            replies = desk.ask(client, Question(request, 's', now_ns + ms * MS, ()), now_ns)
        elif what == 'cancel':
            replies = desk.cancel(client, asked[-1][1] if asked else 0)
        elif what == 'expire':
            replies = desk.expire(now_ns)
        else:
            replies = []
            if running is not None:
                answered.append((running.client, running.question.request))
                desk.done()
                running = None
            if what == 'take':
                work = desk.take(0)
                assert work is None or isinstance(work, Asked)
                running = work
        answered += [(c, e.request) for c, e in replies if not isinstance(e, DeclarationRejected)]
    desk.stop()
    answered += [(c, e.request) for c, e in desk.clear() if not isinstance(e, DeclarationRejected)]
    if running is not None:
        answered.append((running.client, running.question.request))
    assert sorted(answered) == sorted(asked)
