"""What waits for the model and what it does next: earliest deadline first, newest wins.

The worker's two threads meet here and nowhere else: the socket thread puts questions in and takes
them back, the model's thread takes one piece of work at a time. Time is an argument. Whatever
waits here when its deadline passes is refused, so that a question is answered once in any case.

A declaration takes seconds, so the model's thread looks here between its batches and takes a
question in between. What runs can be withdrawn: by its client, or, once it is answered and only
its free text is still being written, by whatever comes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.exchange import (
    Cancelled,
    Declaration,
    DeclarationRejected,
    Question,
    Refused,
    RefusedWhy,
)

DECLARATION_DUE_NS = SECOND
"""A declaration has no deadline; this one gives it a place among the questions."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that waits or runs."""

    client: int
    question: Question
    received_ns: int

    @property
    def due_ns(self) -> int:
        """When it must be done."""
        return self.question.deadline_ns


@dataclass(frozen=True, slots=True)
class Announced:
    """A declaration that waits or runs."""

    client: int
    declaration: Declaration
    received_ns: int

    @property
    def due_ns(self) -> int:
        """When it should be done."""
        return self.received_ns + DECLARATION_DUE_NS


Work = Asked | Announced
Reply = tuple[int, Refused | Cancelled | DeclarationRejected]
"""A client's number and what it is to be told."""


def choose(waiting: Iterable[Work]) -> Work | None:
    """Return the work to do next: earliest deadline first."""
    return min(waiting, key=lambda work: work.due_ns, default=None)


class Desk:
    """What waits and what runs; the only state that both threads touch, under one lock.

    One question and one declaration wait for each client: the newest. Methods return the replies
    that follow at once.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._questions: dict[int, Asked] = {}
        self._declarations: dict[int, Announced] = {}
        self._asked: Asked | None = None
        """The question that runs."""
        self._announced: Announced | None = None
        """The declaration that runs; a question may run in between."""
        self._withdrawn = False
        self._answered = False
        """Whether the question that runs is answered, and gives way to any work."""
        self._interrupt: Callable[[], None] | None = None
        self._stopped = False

    def open(self, interrupt: Callable[[], None]) -> None:
        """Say that the model is loaded: from now on questions are taken.

        `interrupt` is called whenever the question that runs is withdrawn, from the thread that
        does so and with the lock held, so that it never hits the work that is taken next: it must
        not wait, nor call the desk.
        """
        with self._changed:
            self._interrupt = interrupt

    def stop(self) -> None:
        """Ask the main thread to come to an end; what runs is withdrawn."""
        with self._changed:
            self._stopped = True
            self._withdraw_running()
            self._changed.notify()

    @property
    def opened(self) -> bool:
        """Whether the model is loaded."""
        return self._interrupt is not None

    @property
    def stopped(self) -> bool:
        """Whether the worker is to end."""
        return self._stopped

    def withdrawn(self) -> bool:
        """Whether nobody wants the answer any more that the main thread is working on."""
        return self._withdrawn or self._stopped

    def ask(self, client: int, question: Question, now_ns: int) -> list[Reply]:
        """Take a question; an older one of the same client is cancelled."""
        with self._changed:
            replies = self._withdraw(client)
            if not self.opened or self._stopped:
                replies.append((client, Refused(
                    question.request, RefusedWhy.NOT_READY,
                    'the engine ends' if self._stopped else 'the model is loading',
                )))
            elif question.deadline_ns <= now_ns:
                replies.append((client, too_late(question, now_ns)))
            else:
                self._questions[client] = Asked(client, question, now_ns)
                self._came()
            return replies

    def announce(self, client: int, declaration: Declaration, now_ns: int) -> list[Reply]:
        """Take a declaration; it waits while the model loads."""
        with self._changed:
            older = self._declarations.get(client)
            self._declarations[client] = Announced(client, declaration, now_ns)
            self._came()
            if older is None or older.declaration.space == declaration.space:
                return []
            return [(client, DeclarationRejected(
                older.declaration.space, f'{declaration.space} was declared in its place'
            ))]

    def cancel(self, client: int, request: int) -> list[Reply]:
        """Take a question back, if it is still open."""
        with self._changed:
            waiting = self._questions.get(client)
            if waiting is not None and waiting.question.request == request:
                return self._withdraw(client)
            running = self._asked
            if running is not None and (running.client, running.question.request) == (
                client, request
            ):
                self._withdraw_running()
            return []

    def leave(self, client: int) -> None:
        """Forget a client; nobody wants its answers."""
        with self._changed:
            self._withdraw(client)
            self._declarations.pop(client, None)

    def expire(self, now_ns: int) -> list[Reply]:
        """Refuse the questions whose deadline passed while they waited."""
        with self._changed:
            late = [a for a in self._questions.values() if a.due_ns <= now_ns]
            for asked in late:
                del self._questions[asked.client]
            return [(asked.client, too_late(asked.question, now_ns)) for asked in late]

    def clear(self) -> list[Reply]:
        """Refuse all that waits, because the worker ends."""
        with self._changed:
            waiting = list(self._questions.values())
            self._questions.clear()
            return [(asked.client, Refused(
                asked.question.request, RefusedWhy.NOT_READY, 'the engine ends'
            )) for asked in waiting]

    def take(self, timeout_s: float) -> Work | None:
        """Return the work to do next, None when there is none within `timeout_s`."""
        with self._changed:
            if not (self._questions or self._declarations or self._stopped):
                self._changed.wait(timeout_s)
            work = choose((*self._questions.values(), *self._declarations.values()))
            if isinstance(work, Asked):
                self._begin(work)
            elif work is not None:
                self._announced = self._declarations.pop(work.client)
            return work

    def take_question(self) -> Asked | None:
        """Return the question to serve in between two batches of the declaration that runs.

        One about the space that is being declared waits for it, until its own deadline refuses it.
        None when there is no other, and at the end.
        """
        with self._changed:
            assert self._announced is not None and self._asked is None
            if self._stopped:
                return None
            space = self._announced.declaration.space
            asked = choose(a for a in self._questions.values() if a.question.space != space)
            if asked is not None:
                assert isinstance(asked, Asked)
                self._begin(asked)
            return asked

    def answered(self) -> None:
        """Say that the question which runs is answered; what goes on gives way to any work."""
        with self._changed:
            self._answered = True
            if self._questions or self._declarations or self._announced is not None:
                self._withdrawn = True

    def done(self) -> None:
        """Say that the work which was taken last is done."""
        with self._changed:
            if self._asked is not None:
                self._asked = None
            else:
                self._announced = None

    def _begin(self, asked: Asked) -> None:
        del self._questions[asked.client]
        self._asked = asked
        self._answered = False
        self._withdrawn = False

    def _came(self) -> None:
        """Wake the main thread, or take from it what can wait."""
        self._changed.notify()
        if self._answered:
            self._withdraw_running()

    def _withdraw_running(self) -> None:
        if self._asked is not None and not self._withdrawn:
            self._withdrawn = True
            if self._interrupt is not None:
                self._interrupt()

    def _withdraw(self, client: int) -> list[Reply]:
        """Cancel what the client asked: at once when it waits, as soon as can be when it runs."""
        if self._asked is not None and self._asked.client == client:
            self._withdraw_running()
        older = self._questions.pop(client, None)
        return [] if older is None else [(client, Cancelled(older.question.request))]


def too_late(question: Question, now_ns: int) -> Refused:
    """Return the refusal of a question whose deadline has passed."""
    late_ms = (now_ns - question.deadline_ns) / MS
    return Refused(question.request, RefusedWhy.TOO_LATE,
                   f'the deadline passed {late_ms:.1f} ms before work began')
