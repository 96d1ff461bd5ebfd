"""The client against a server that a test plays, and against a real engine with a script."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from smallm_ros.core.clock import MS, SECOND, ManualClock
from smallm_ros.core.exchange import (
    Answer,
    Cancel,
    Cancelled,
    Decided,
    Declaration,
    Declared,
    EngineLost,
    EngineState,
    EngineUp,
    FreeText,
    Missed,
    MissedWhy,
    ModelLimits,
    Progress,
    Question,
    Refused,
    RefusedWhy,
    Said,
    Segment,
)
from smallm_ros.engine.client import EngineClient
from smallm_ros.engine.wire import REQUESTS, VERSION, Event, FrameReader, Hello, Request, encode
from smallm_ros.steady import now_ns, sleep_until
from tests.fakes.engine_process import Listener, close_listeners, engine, gone, wait_for

DECLARATION = Declaration('space', 'drive', (), ('go', 'stop'), 64)
ANSWERS = (Decided, Refused, Missed, Cancelled)
UP = EngineUp(4711, 99)


def question(request: int, budget_ms: int = 5000, space: str = 'space') -> Question:
    return Question(request, space, now_ns() + budget_ms * MS, (Segment('scan', 'near', 0),))


# --- a server that the test plays ------------------------------------------------------------


class Server:
    """The other end of one connection, on the same thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.listener.settimeout(5)
        self.connection: socket.socket | None = None
        self.reader = FrameReader(REQUESTS)

    def accept(self) -> None:
        self.connection, _ = self.listener.accept()
        self.connection.setblocking(False)
        self.reader = FrameReader(REQUESTS)

    def heard(self) -> list[Request]:
        assert self.connection is not None
        items: list[Request] = []
        try:
            while data := self.connection.recv(1 << 16):
                items += self.reader.feed(data)
        except BlockingIOError:
            pass
        return items

    def say(self, data: bytes) -> None:
        assert self.connection is not None
        self.connection.sendall(data)

    def hang_up(self) -> None:
        assert self.connection is not None
        self.heard()  # What is left unread would be a reset to the client, not an end.
        self.connection.close()

    def end(self) -> None:
        self.listener.close()
        self.path.unlink(missing_ok=True)
        if self.connection is not None:
            self.connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'e.sock'


@pytest.fixture(autouse=True)
def _no_listener_stays() -> Iterator[None]:
    yield
    close_listeners()


@pytest.fixture
def server(path: Path) -> Iterator[Server]:
    server = Server(path)
    yield server
    server.end()


@pytest.fixture
def client(path: Path) -> Iterator[EngineClient]:
    client = EngineClient(path, 'test')
    yield client
    client.close()


def test_a_greeting_then_everything(server: Server, client: EngineClient) -> None:
    clock = ManualClock()
    assert client.fileno() is None
    assert client.poll(clock.now_ns()) == []
    assert client.fileno() is not None
    server.accept()
    (hello,) = server.heard()
    assert isinstance(hello, Hello) and hello.client == 'test'
    assert not client.send_nowait(DECLARATION), 'nobody has answered the greeting'
    server.say(encode(UP))
    assert client.poll(clock.now_ns()) == [UP]
    assert client.send_nowait(DECLARATION)
    assert client.send_nowait(Cancel(3))
    assert server.heard() == [DECLARATION, Cancel(3)]


def test_the_engine_of_another_user_is_lost_and_told_nothing(
    server: Server, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = os.getuid()
    if uid == 0:  # The kernel keeps who listened last, and root can be anybody.
        uid = 65534
        os.seteuid(uid)
        server.listener.listen(1)
        os.seteuid(0)
    else:
        monkeypatch.setattr(os, 'getuid', lambda: uid + 1)
    (lost,) = client.poll(0)
    assert isinstance(lost, EngineLost)
    assert lost.why.startswith(f'the engine belongs to uid {uid}, not to ')
    assert client.fileno() is None
    server.accept()
    assert server.heard() == []


def test_of_several_heartbeats_the_newest_is_kept(server: Server, client: EngineClient) -> None:
    client.poll(0)
    server.accept()
    beats = [Progress(EngineState.READY, n, n, 0, 0, 0) for n in range(5)]
    first, second = Cancelled(1), Cancelled(2)
    said: list[Event] = [UP, *beats[:3], first, *beats[3:], second]
    server.say(b''.join(encode(event) for event in said))
    assert client.poll(0) == [UP, first, beats[4], second]
    assert client.poll(0) == []


def test_no_engine_is_said_once_and_tried_more_and_more_slowly(
    path: Path, client: EngineClient
) -> None:
    clock = ManualClock()
    (lost,) = client.poll(clock.now_ns())
    assert lost == EngineLost(f'no engine at {path}: No such file or directory')
    for delay_ms in (100, 200, 400, 800, 1000, 1000):
        clock.advance_ms(delay_ms - 1)
        server = Server(path)
        assert client.poll(clock.now_ns()) == [] and client.fileno() is None
        server.end()
        clock.advance_ms(1)
        assert client.poll(clock.now_ns()) == [], 'it was said already'
    server = Server(path)
    clock.advance_ms(1000)
    client.poll(clock.now_ns())
    server.accept()
    server.say(encode(UP))
    assert client.poll(clock.now_ns()) == [UP]
    server.hang_up()
    assert client.poll(clock.now_ns()) == [EngineLost('the engine closed the connection')]
    clock.advance_ms(100)
    client.poll(clock.now_ns())
    assert client.fileno() is not None, 'after a greeting the delay starts anew'
    server.end()


@pytest.mark.parametrize(('data', 'why'), [
    (b'garbage!', "the engine sent no frame: b'gar' where a frame begins with b'sml'"),
    (struct.pack('<3sBI', b'sml', VERSION, 1 << 30), 'a frame of 1073741824 bytes'),
    (struct.pack('<3sBI', b'sml', VERSION + 1, 1), f'frame version {VERSION + 1}'),
    (encode(Cancel(1)), "unknown kind 'Cancel'"),
    (encode(UP)[:-1], 'the connection ended after'),
])
def test_nonsense_loses_the_connection_and_says_why(
    server: Server, client: EngineClient, data: bytes, why: str
) -> None:
    client.poll(0)
    server.accept()
    server.say(encode(UP))
    client.poll(0)
    server.say(data)
    server.hang_up()
    (lost,) = client.poll(0)
    assert isinstance(lost, EngineLost) and why in lost.why
    assert client.fileno() is None
    assert not client.send_nowait(Cancel(1))


def test_a_server_that_does_not_read_stops_the_sending_not_the_caller(
    server: Server, client: EngineClient
) -> None:
    client.poll(0)
    server.accept()
    server.say(encode(UP))
    client.poll(0)
    sent: list[Request] = []
    large = Declaration('s', 'x' * 50_000, (), ('a', 'b'), 1)
    while client.send_nowait(large):
        sent.append(large)
        assert len(sent) < 1000
    assert not client.send_nowait(Cancel(1))
    heard: list[Request] = []
    while len(heard) < 1 + len(sent):
        heard += server.heard()
        assert client.poll(0) == []
    assert isinstance(heard[0], Hello) and heard[1:] == sent
    assert client.send_nowait(Cancel(1))
    assert server.heard() == [Cancel(1)]


def test_a_flood_does_not_hold_the_caller(server: Server, client: EngineClient) -> None:
    client.poll(0)
    server.accept()
    server.say(encode(UP))
    frames = b''.join(encode(Cancelled(n)) for n in range(1000))
    assert server.connection is not None
    server.connection.setblocking(False)
    waiting, got = memoryview(frames * 4), 0
    while got < 4000:
        try:
            waiting = waiting[server.connection.send(waiting):] if waiting else waiting
        except BlockingIOError:
            pass
        got += sum(isinstance(event, Cancelled) for event in client.poll(0))


# --- a real engine ---------------------------------------------------------------------------


@pytest.fixture(scope='module')
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One engine for the tests that leave it as they found it: each answer takes 100 ms."""
    path = tmp_path_factory.mktemp('engine') / 'e.sock'
    with engine(path, script=[{'leaf': 1, 'delay_ns': 100 * MS}]):
        ready = Listener(path)
        ready.until(ModelLimits)
        yield path


@pytest.fixture
def listener(shared: Path) -> Listener:
    return declared(shared)


def declared(path: Path) -> Listener:
    listener = Listener(path)
    listener.up()
    listener.until(ModelLimits)
    assert listener.client.send_nowait(DECLARATION)
    listener.until(Declared)
    return listener


def answers(listener: Listener, count: int) -> list[Answer]:
    out: list[Answer] = []

    def all_there() -> bool:
        out.extend(e for e in listener.client.poll(now_ns()) if isinstance(e, ANSWERS))
        return len(out) >= count
    wait_for(all_there)
    return out


def test_a_question_is_decided(listener: Listener) -> None:
    before_ns = now_ns()
    asked = question(1)
    assert listener.client.send_nowait(asked)
    answer = listener.until(Decided)
    assert (answer.request, answer.decision.leaf) == (1, 1)
    times = answer.decision.timings
    assert before_ns < times.received_ns <= times.started_ns < times.finished_ns < now_ns()


def test_the_newest_question_wins_and_each_is_answered_once(listener: Listener) -> None:
    for request in range(1, 6):
        assert listener.client.send_nowait(question(request))
    got = answers(listener, 5)
    assert sorted(a.request for a in got) == [1, 2, 3, 4, 5]
    assert [type(a) for a in sorted(got, key=lambda a: a.request)] == [Cancelled] * 4 + [Decided]


def test_a_question_can_be_taken_back(listener: Listener) -> None:
    listener.client.send_nowait(question(1))
    wait_for(lambda: listener.until(Progress).in_flight)
    listener.client.send_nowait(Cancel(1))
    assert answers(listener, 1) == [Cancelled(1)]


def test_the_past_is_too_late_and_the_unknown_unknown(listener: Listener) -> None:
    listener.client.send_nowait(question(1, budget_ms=-1))
    assert listener.until(Refused).why is RefusedWhy.TOO_LATE
    listener.client.send_nowait(question(2, space='nobody'))
    assert listener.until(Refused).why is RefusedWhy.UNKNOWN_SPACE


def test_between_clients_the_earlier_deadline_goes_first_and_who_waits_too_long_is_told(
    shared: Path, listener: Listener
) -> None:
    late, early, hopeless = declared(shared), declared(shared), declared(shared)
    listener.client.send_nowait(question(1, 5000))
    wait_for(lambda: listener.until(Progress).in_flight)
    late.client.send_nowait(question(1, 4000))
    early.client.send_nowait(question(1, 3000))
    hopeless.client.send_nowait(question(1, 20))
    assert hopeless.until(Refused).why is RefusedWhy.TOO_LATE
    first = early.until(Decided).decision.timings
    second = late.until(Decided).decision.timings
    assert first.finished_ns <= second.started_ns


def test_a_client_that_leaves_frees_the_engine_for_the_others(
    shared: Path, listener: Listener
) -> None:
    gone_soon = declared(shared)
    gone_soon.client.send_nowait(question(1))
    gone_soon.client.close()
    listener.client.send_nowait(question(1))
    assert listener.until(Decided).request == 1


@pytest.mark.parametrize('data', [
    b'GET / HTTP/1.1\r\n\r\n',
    encode(Cancel(1)),
    encode(Hello('a', '1')) * 2,
    encode(Hello('a', '1')) + encode(Question(2, 's', 1, ())) * 2,
    encode(Hello('a', '1')) + struct.pack('<3sBI', b'sml', VERSION, 1 << 30),
    struct.pack('<3sBI', b'sml', 9, 4),
], ids=['http', 'no hello', 'two hellos', 'request twice', 'too long', 'version'])
def test_who_talks_nonsense_is_disconnected_alone(
    shared: Path, listener: Listener, data: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(shared))
        rude.settimeout(5)
        rude.sendall(data)
        while rude.recv(1 << 16):
            pass
    listener.client.send_nowait(question(1))
    assert listener.until(Decided).request == 1


def test_who_does_not_greet_or_read_is_dropped(shared: Path, listener: Listener) -> None:
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as deaf:
        silent.connect(str(shared))
        deaf.connect(str(shared))
        deaf.setblocking(False)
        deaf.sendall(encode(Hello('deaf', '1')))
        request = 0
        # Questions of the past are refused at once: answers pile up until nothing more goes in.
        end_ns = now_ns() + 10 * SECOND
        while now_ns() < end_ns:
            request += 1
            try:
                deaf.sendall(encode(Question(request, 'space', 0, ())))
            except BlockingIOError:
                sleep_until(now_ns() + 5 * MS)
            except (BrokenPipeError, ConnectionResetError):
                break
        else:
            raise AssertionError('the deaf one is still connected')
        silent.settimeout(5)
        assert silent.recv(1) == b''
    listener.client.send_nowait(question(1))
    assert listener.until(Decided).request == 1


def test_the_seventeenth_client_is_turned_away(shared: Path) -> None:
    full = []
    try:
        for _ in range(40):
            one = socket.socket(socket.AF_UNIX)
            full.append(one)
            one.connect(str(shared))
        full[-1].settimeout(5)
        assert full[-1].recv(1) == b''
    finally:
        for one in full:
            one.close()
    declared(shared)


def test_out_of_file_descriptors_is_passing(path: Path) -> None:
    with engine(path) as running:
        listener = declared(path)
        worker = worker_pid(path)
        usual = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (0, usual[1]))
        late = Listener(path)
        late.client.poll(now_ns())
        wait_for(lambda: 'could not be accepted: Too many open files' in running.log)
        listener.client.send_nowait(question(1))
        assert listener.until(Decided).request == 1
        resource.prlimit(worker, resource.RLIMIT_NOFILE, usual)
        assert late.up() == worker
        assert running.log.count('could not be accepted') < 4


def test_heartbeats_count_on_while_nothing_is_asked(listener: Listener) -> None:
    first = listener.until(Progress)
    assert first.state is EngineState.READY
    wait_for(lambda: listener.until(Progress).count >= first.count + 5)


def test_a_batch_in_flight_shows_in_the_heartbeats(listener: Listener) -> None:
    listener.client.send_nowait(question(1))
    wait_for(lambda: listener.until(Progress).bound_ns == 50 * MS)
    listener.until(Decided)
    wait_for(lambda: listener.until(Progress).in_flight == 0)


def test_kill_9_and_the_same_client_is_served_again(path: Path) -> None:
    with engine(path):
        listener = declared(path)
        listener.client.send_nowait(question(1))
        listener.until(Decided)
        worker = worker_pid(path)
        listener.client.send_nowait(question(2))
        os.kill(worker, signal.SIGKILL)
        listener.until(EngineLost)
        assert not listener.client.send_nowait(question(3))
        assert listener.up() != worker
        assert gone(worker)
        assert listener.client.send_nowait(DECLARATION), 'while it loads'
        listener.until(Declared)
        listener.client.send_nowait(question(4))
        assert listener.until(Decided).request == 4


def worker_pid(path: Path) -> int:
    return Listener(path).up()


def test_while_the_model_loads(path: Path) -> None:
    loaded = path.with_name('loaded')
    with engine(path, '--load-until', str(loaded)):
        listener = Listener(path)
        listener.up()
        assert listener.until(Progress).state is EngineState.LOADING
        assert listener.client.send_nowait(DECLARATION)
        assert listener.client.send_nowait(question(1))
        assert listener.until(Refused).why is RefusedWhy.NOT_READY
        loaded.touch()
        listener.until(ModelLimits)
        assert listener.until(Declared).leaves == 2
        listener.client.send_nowait(question(2))
        assert listener.until(Decided).request == 2


def test_sigterm_while_the_model_loads_ends_it_at_once(path: Path) -> None:
    with engine(path, '--load', 'hang', end_ns=20 * SECOND) as running:
        listener = Listener(path)
        listener.up()
        asked_ns = now_ns()
        running.process.terminate()
        assert running.wait() == 0
        assert now_ns() - asked_ns < 10 * SECOND


def test_a_model_that_misbehaves_is_still_one_answer_each(path: Path) -> None:
    script = [{'act': 'not_finite'}, {'act': 'other_request'}, {}, {'act': 'fail'}]
    with engine(path, script=script) as running:
        listener = declared(path)
        listener.client.send_nowait(question(1))
        missed = listener.until(Missed)
        assert (missed.request, missed.why) == (1, MissedWhy.NOT_FINITE)
        assert 'confidence: nan is not finite' in missed.detail
        listener.client.send_nowait(question(2))
        missed = listener.until(Missed)
        assert (missed.request, missed.why) == (2, MissedWhy.DECODE_FAILED)
        listener.client.send_nowait(question(3))
        assert listener.until(Decided).request == 3
        listener.client.send_nowait(question(4))
        missed = listener.until(Missed)
        assert (missed.request, missed.why) == (4, MissedWhy.DECODE_FAILED)
        listener.until(EngineLost)
        listener.up()
        assert 'exited with code 70' in running.log
        assert 'WorkerError: llama_decode returned -3' in running.log


def test_a_stall_in_a_batch_is_killed_and_mended(path: Path) -> None:
    with engine(path, script=[{'act': 'stall'}], in_flight_ns=300 * MS) as running:
        listener = declared(path)
        listener.client.send_nowait(question(1))
        listener.until(EngineLost)
        assert 'stands still: batch 1, bound' in running.log
        listener.up()


def test_a_question_does_not_wait_for_another_clients_declaration(path: Path) -> None:
    with engine(path, '--declare-passes', '60', script=[{'delay_ns': 50 * MS}]):
        driver, other = Listener(path), Listener(path)
        driver.until(ModelLimits)
        other.until(ModelLimits)
        driver.client.send_nowait(DECLARATION)
        driver.until(Declared)
        other.client.send_nowait(replace(DECLARATION, space='other'))
        other.client.send_nowait(question(1, 60_000, space='other'))
        wait_for(lambda: driver.until(Progress).in_flight)
        for request in range(1, 4):
            driver.client.send_nowait(question(request))
            assert driver.until(Decided).request == request
            assert not [e for e in other.client.poll(now_ns()) if isinstance(e, Declared)]
        other.until(Declared)
        assert other.until(Decided).request == 1, 'what it asked meanwhile waited for it'


def test_a_text_follows_its_answer_and_gives_way_to_the_next_question(path: Path) -> None:
    speaking = replace(DECLARATION, text=FreeText(' because', 64, 240))
    text = ' '.join('a' for _ in range(50))
    script = [{'leaf': 1, 'delay_ns': 40 * MS, 'text': 'the way is free'},
              {'leaf': 1, 'delay_ns': 400 * MS, 'text': text}]
    with engine(path, script=script):
        listener, other = Listener(path), declared(path)
        listener.until(ModelLimits)
        listener.client.send_nowait(speaking)
        listener.until(Declared)
        listener.client.send_nowait(question(1))
        assert listener.until(Decided).request == 1
        assert listener.until(Said) == Said(1, 'the way is free', 4, False)
        for asker in (listener, other):
            listener.client.send_nowait(question(2 if asker is listener else 4, 20_000))
            decided = listener.until(Decided)
            asker.client.send_nowait(question(3))
            said = listener.until(Said)
            assert said.cut and said.request == decided.request
            assert said.tokens < 25, 'half of it would have taken 5 s'
            assert asker.until(Decided).request == 3


def test_what_was_taken_back_is_ended_in_the_middle_of_its_batch(path: Path) -> None:
    with engine(path, script=[{'delay_ns': 40 * SECOND}, {}], in_flight_ns=60 * SECOND):
        listener = declared(path)
        listener.client.send_nowait(question(1, 60_000))
        wait_for(lambda: listener.until(Progress).in_flight)
        listener.client.send_nowait(question(2))
        cancelled, decided = answers(listener, 2)
        assert cancelled == Cancelled(1)
        assert isinstance(decided, Decided) and decided.request == 2


def test_sigterm_refuses_who_waits(path: Path) -> None:
    with engine(path, script=[{'delay_ns': 400 * MS}]) as running:
        one, two = declared(path), declared(path)
        one.client.send_nowait(question(1))
        wait_for(lambda: one.until(Progress).in_flight)
        two.client.send_nowait(question(1))
        wait_for(lambda: two.until(Progress).in_flight)
        running.process.terminate()
        assert answers(one, 1) == [Cancelled(1)]
        (refused,) = answers(two, 1)
        assert refused == Refused(1, RefusedWhy.NOT_READY, 'the engine ends')
        assert running.wait() == 0
