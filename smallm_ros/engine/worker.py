"""The process that owns the model: loads it, then answers questions on a Unix socket.

Two threads. The main thread owns the model and counts what it does; it takes one piece of work at
a time from the scheduler's desk. A question comes first: between two batches of a declaration, in
place of the free text after an answer, before whatever can wait. The socket thread owns the
connections and never waits for the model: it greets while the model loads, refuses what came too
late, and sends heartbeats that repeat the main thread's count, so that a heartbeat without
progress shows a stall. Every question gets exactly one answer, whatever its client does. The
supervisor alone starts this, and removes what it leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from smallm_ros import process
from smallm_ros.core.clock import MS, SECOND, Clock
from smallm_ros.core.errors import FrameError, OperatorError, WorkerError
from smallm_ros.core.exchange import (
    Answer,
    Cancel,
    Decided,
    Declaration,
    DeclarationRejected,
    Declared,
    EngineUp,
    Missed,
    MissedWhy,
    ModelLimits,
    Question,
)
from smallm_ros.engine.options import FIRST_TO_GO, add_load_options, load_request
from smallm_ros.engine.progress import ProgressPage, ProgressWriter
from smallm_ros.engine.scheduler import Announced, Asked, Desk, Reply, Work, too_late
from smallm_ros.engine.wire import REQUESTS, Event, FrameReader, Hello, Request, encode
from smallm_ros.steady import SteadyClock

if TYPE_CHECKING:
    from smallm_ros.engine.decode import Decider

Load = Callable[[ProgressWriter, Clock], 'Decider']
"""Loads a model on the main thread and returns what decides with it."""

BROKEN_EXIT_CODE = 70
"""The worker cannot go on and wants to be started again: EX_SOFTWARE of sysexits.h."""
IDLE_TURN_S = 0.02
HEARTBEAT_NS = 25 * MS
NICENESS = 5
MAX_CLIENTS = 16
MAX_UNREAD_NS = 2 * SECOND
"""A client that has not taken a byte for so long is dropped."""
MAX_UNREAD_BYTES = 1024 * 1024
ACCEPT_PAUSE_NS = SECOND
_CHUNK_BYTES = 64 * 1024


# --- the socket thread --------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Client:
    number: int
    socket: socket.socket
    reader: FrameReader[Request]
    taken_ns: int
    """When it last took all there was for it, or a part."""
    greeted: bool = False
    last_request: int | None = None
    unsent: bytearray = field(default_factory=bytearray)


class Frontdoor:
    """The connections: owned by the socket thread; the main thread only posts."""

    def __init__(self, listener: socket.socket, desk: Desk, page: ProgressPage, clock: Clock,
                 signals: socket.socket, up: EngineUp) -> None:
        self._listener = listener
        self._desk = desk
        self._page = page
        self._clock = clock
        self._signals = signals
        self._up = encode(up)
        self._limits: bytes | None = None
        self._clients: dict[int, _Client] = {}
        self._number = 0
        self._post: deque[tuple[int | None, bytes]] = deque()
        self._doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._paused_ns: int | None = None
        """Since when nobody is accepted, because the process is out of file descriptors."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, 'listener')
        self._selector.register(signals, selectors.EVENT_READ, 'signals')
        self._selector.register(self._doorbell, selectors.EVENT_READ, 'doorbell')

    def post(self, client: int, event: Event) -> None:
        """Send `event` to a client, if it is still there. FrameError when it cannot travel."""
        self._post.append((client, encode(event)))
        os.eventfd_write(self._doorbell, 1)

    def announce(self, limits: ModelLimits) -> None:
        """Tell every client, now and later, that the model is ready."""
        self._post.append((None, encode(limits)))
        os.eventfd_write(self._doorbell, 1)

    def close(self) -> None:
        """Let the thread send what is posted and come to an end."""
        self._closing = True
        os.eventfd_write(self._doorbell, 1)

    def run(self) -> None:
        """Serve until closed. A mistake in here ends the process: nobody would hear of it else."""
        try:
            next_beat_ns = self._clock.now_ns()
            while not self._closing:
                now_ns = self._clock.now_ns()
                if now_ns >= next_beat_ns:
                    next_beat_ns = now_ns + HEARTBEAT_NS
                    self._beat(now_ns)
                timeout_s = max(0, next_beat_ns - now_ns) / SECOND
                for key, _ in self._selector.select(timeout_s):
                    self._serve(key.data)
            self._deliver(self._clock.now_ns())
            for client in tuple(self._clients.values()):
                client.socket.close()
        except BaseException:
            say(traceback.format_exc().strip().replace('\n', ' | '))
            os._exit(BROKEN_EXIT_CODE)

    def _serve(self, who: object) -> None:
        now_ns = self._clock.now_ns()
        if who == 'listener':
            self._accept(now_ns)
        elif who == 'signals':
            self._signals.recv(_CHUNK_BYTES)
            self._desk.stop()
            if not self._desk.opened:
                # The main thread is inside the loader and may not look up for a minute.
                os._exit(0)
        elif who == 'doorbell':
            os.eventfd_read(self._doorbell)
            self._deliver(now_ns)
        elif isinstance(who, _Client) and who.number in self._clients:
            self._read(who, now_ns)

    def _beat(self, now_ns: int) -> None:
        self._reply(self._desk.expire(now_ns), now_ns)
        heartbeat = encode(self._page.read())
        for client in tuple(self._clients.values()):
            if client.unsent:
                self._flush(client, now_ns)
            elif client.greeted:
                self._send(client, heartbeat, now_ns)
            stuck = client.unsent or not client.greeted
            if stuck and now_ns - client.taken_ns > MAX_UNREAD_NS:
                self._drop(client)
        if self._paused_ns is not None and now_ns - self._paused_ns >= ACCEPT_PAUSE_NS:
            self._paused_ns = None
            self._selector.register(self._listener, selectors.EVENT_READ, 'listener')

    def _accept(self, now_ns: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as err:
            say(f'a client could not be accepted: {err.strerror}')
            self._selector.unregister(self._listener)
            self._paused_ns = now_ns
            return
        if len(self._clients) >= MAX_CLIENTS:
            say(f'a client was turned away: {MAX_CLIENTS} are connected')
            connection.close()
            return
        connection.setblocking(False)
        self._number += 1
        client = _Client(self._number, connection, FrameReader(REQUESTS), now_ns)
        self._clients[client.number] = client
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _read(self, client: _Client, now_ns: int) -> None:
        try:
            data = client.socket.recv(_CHUNK_BYTES)
            items = client.reader.feed(data)
            for item in items:
                if client.number in self._clients:
                    self._handle(client, item, now_ns)
        except BlockingIOError:
            return
        except OSError:
            data = b''
        except FrameError as err:
            say(f'client {client.number} is disconnected: {err}')
            data = b''
        if not data:
            self._drop(client)

    def _handle(self, client: _Client, item: Request, now_ns: int) -> None:
        if isinstance(item, Hello):
            if client.greeted:
                raise FrameError('greets twice')
            client.greeted = True
            self._send(client, self._up, now_ns)
            self._send(client, encode(self._page.read()), now_ns)
            if self._limits is not None:
                self._send(client, self._limits, now_ns)
        elif not client.greeted:
            raise FrameError(f'{type(item).__name__} before Hello')
        elif isinstance(item, Question):
            if client.last_request is not None and item.request <= client.last_request:
                raise FrameError(f'request {item.request} after {client.last_request}')
            client.last_request = item.request
            self._reply(self._desk.ask(client.number, item, now_ns), now_ns)
        elif isinstance(item, Declaration):
            self._reply(self._desk.announce(client.number, item, now_ns), now_ns)
        elif isinstance(item, Cancel):
            self._reply(self._desk.cancel(client.number, item.request), now_ns)

    def _deliver(self, now_ns: int) -> None:
        while self._post:
            number, frame = self._post.popleft()
            if number is None:
                self._limits = frame
                for client in tuple(self._clients.values()):
                    if client.greeted:
                        self._send(client, frame, now_ns)
            elif number in self._clients:
                self._send(self._clients[number], frame, now_ns)

    def _reply(self, replies: Iterable[Reply], now_ns: int) -> None:
        for number, event in replies:
            if number in self._clients:
                self._send(self._clients[number], encode(event), now_ns)

    def _send(self, client: _Client, frame: bytes, now_ns: int) -> None:
        if len(client.unsent) + len(frame) > MAX_UNREAD_BYTES:
            say(f'client {client.number} is disconnected: it does not read its answers')
            self._drop(client)
            return
        if not client.unsent:
            client.taken_ns = now_ns
        client.unsent += frame
        self._flush(client, now_ns)

    def _flush(self, client: _Client, now_ns: int) -> None:
        try:
            sent = client.socket.send(client.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        del client.unsent[:sent]
        client.taken_ns = now_ns

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.number, None) is not None:
            self._desk.leave(client.number)
            self._selector.unregister(client.socket)
            client.socket.close()


# --- the main thread ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker stands: what its supervisor tells it."""

    socket: Path
    progress_fd: int
    parent: int
    """The supervisor's pid: the worker dies with it."""


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options that `place` reads."""
    parser.add_argument('--socket', type=Path, required=True)
    parser.add_argument('--progress-fd', type=int, required=True)
    parser.add_argument('--parent', type=int, required=True)


def place(options: argparse.Namespace) -> Place:
    """Return what the options of `add_place_options` say."""
    return Place(options.socket, options.progress_fd, options.parent)


def serve(where: Place, load: Load, clock: Clock, oom_score_adj: int = FIRST_TO_GO) -> int:
    """Bind the socket, load the model, answer until SIGTERM; return the exit code."""
    os.set_blocking(2, False)
    _first_to_go(oom_score_adj)
    try:
        if not process.die_with(where.parent, signal.SIGKILL):
            raise WorkerError(f'the supervisor {where.parent} is gone')
        os.nice(NICENESS)
        page = ProgressPage(where.progress_fd)
        desk = Desk()
        door = Frontdoor(_listen(where.socket), desk, page, clock, _signals(),
                         EngineUp(os.getpid(), process.own_start_ticks()))
        thread = threading.Thread(target=door.run, name='socket', daemon=True)
        thread.start()
        try:
            _work(load, ProgressWriter(page, clock), desk, door, clock)
        finally:
            door.close()
            thread.join(timeout=1.0)
    except OperatorError as err:
        say(str(err))
        return err.exit_code
    except (WorkerError, MemoryError, OSError) as err:
        say(f'{type(err).__name__}: {err}')
        return BROKEN_EXIT_CODE
    return 0


def _work(
    load: Load, writer: ProgressWriter, desk: Desk, door: Frontdoor, clock: Clock
) -> None:
    """Load, then answer until the desk is stopped; whoever still waits then is refused."""
    decider = load(writer, clock)
    # What is loaded stays: a full collection over it would take 100 ms and more.
    gc.collect()
    gc.freeze()
    writer.ready()
    desk.open(decider.interrupt)
    door.announce(decider.limits)
    while not desk.stopped:
        writer.idle()
        work = desk.take(0)
        if work is None and not decider.idle():
            work = desk.take(IDLE_TURN_S)
        if work is not None:
            _do(work, decider, desk, door, clock)
    for client, refused in desk.clear():
        door.post(client, refused)
    decider.close()


def _do(work: Work, decider: Decider, desk: Desk, door: Frontdoor, clock: Clock) -> None:
    """Do one piece of work. WorkerError passes through, after a question is answered."""
    try:
        if isinstance(work, Asked):
            _answer(work, decider, desk, door, clock)
        else:
            declared = decider.declare(
                work.declaration, lambda: _serve_between(decider, desk, door, clock)
            )
            _post_declared(door, work, declared)
    finally:
        desk.done()


def _serve_between(decider: Decider, desk: Desk, door: Frontdoor, clock: Clock) -> None:
    """Answer one question that waits while a declaration runs: one, so that both get on."""
    asked = desk.take_question()
    if asked is not None:
        _do(asked, decider, desk, door, clock)


def _answer(
    asked: Asked, decider: Decider, desk: Desk, door: Frontdoor, clock: Clock
) -> None:
    """Answer a question, then send the free text that may follow, as far as there is time."""
    question = asked.question
    if asked.due_ns <= clock.now_ns():
        door.post(asked.client, too_late(question, clock.now_ns()))
        return
    try:
        answer = decider.decide(question, asked.received_ns, desk.withdrawn)
    except WorkerError as err:
        door.post(asked.client, Missed(question.request, MissedWhy.DECODE_FAILED, str(err)))
        raise
    if isinstance(_post_answer(door, asked, answer), Decided):
        desk.answered()
        said = decider.speak(question.request, desk.withdrawn)
        if said is not None:
            # A text that cannot travel is not worth a word: its answer is there.
            with contextlib.suppress(FrameError):
                door.post(asked.client, said)


def _post_declared(
    door: Frontdoor, work: Announced, declared: Declared | DeclarationRejected
) -> None:
    try:
        door.post(work.client, declared)
    except FrameError as err:
        door.post(work.client, DeclarationRejected(work.declaration.space[:200], str(err)))


def _post_answer(door: Frontdoor, work: Asked, answer: Answer) -> Answer:
    """Send the one answer of a question; return what was sent."""
    request = work.question.request
    if answer.request != request:
        answer = Missed(request, MissedWhy.DECODE_FAILED,
                        f'the answer was for request {answer.request}')
    try:
        door.post(work.client, answer)
    except FrameError as err:
        answer = Missed(request, MissedWhy.NOT_FINITE, str(err))
        door.post(work.client, answer)
    return answer


def _first_to_go(oom_score_adj: int) -> None:
    """Offer this process to the kernel when memory runs out; its parent keeps its own score.

    Raising needs no privilege; lowering below what was set with one does. See proc(5).
    """
    path = Path('/proc/self/oom_score_adj')
    try:
        path.write_text(str(oom_score_adj), encoding='ascii')
    except OSError as err:
        say(f'{path} cannot be set to {oom_score_adj}: {err.strerror}: when memory runs out, the '
            'kernel may kill another process of the robot first')


def say(line: str) -> None:
    """Write one line to stderr; drop it when stderr would block or is gone."""
    with contextlib.suppress(OSError):
        os.write(2, f'{line}\n'.encode(errors='replace')[:4096])


def _signals() -> socket.socket:
    """Make SIGTERM readable from a socket, so that a thread hears it while the main one works."""
    readable, writable = socket.socketpair()
    readable.setblocking(False)
    writable.setblocking(False)
    signal.set_wakeup_fd(writable.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return readable


def _listen(path: Path) -> socket.socket:
    """Bind and listen, readable and writable by this user alone from the first instant."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as err:
        raise OperatorError(f'{path}: cannot be bound: {err.strerror}') from err
    finally:
        os.umask(before)
    listener.setblocking(False)
    listener.listen(MAX_CLIENTS)
    return listener


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker of `smallm_engine`; its supervisor gives the options."""
    parser = argparse.ArgumentParser(prog='smallm_ros.engine.worker')
    add_place_options(parser)
    add_load_options(parser)
    options = parser.parse_args(argv)
    request = load_request(options)

    def load(writer: ProgressWriter, clock: Clock) -> Decider:
        # llama.cpp is loaded here, not above: the socket answers before that takes its second.
        from smallm_ros.engine.load import load_decider
        return load_decider(request, writer, clock)

    return serve(place(options), load, SteadyClock(), request.oom_score_adj)


if __name__ == '__main__':
    sys.exit(main())
