"""`smallm_engine` as it is shipped, with llama.cpp and a tiny model: killed, stopped, slowed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip('llama_cpp')

from smallm_ros.core.clock import MS
from smallm_ros.core.exchange import (
    Answer,
    Cancelled,
    Decided,
    Declaration,
    Declared,
    EngineLost,
    Missed,
    ModelLimits,
    Question,
    Refused,
    Segment,
)
from smallm_ros.steady import now_ns, sleep_until
from tests.fakes import tiny_gguf
from tests.fakes.engine_process import (
    Engine,
    Listener,
    close_listeners,
    gone,
    real_engine,
    wait_for,
)

pytestmark = pytest.mark.model

DECLARATION = Declaration('space', 'drive', (), ('go fast', 'go slow', 'stop'), 400)
WORDS = 'a wall ahead, open space to the left, a door behind it. ' * 4


class Robot(Listener):
    """Asks one question after the other and keeps count of what is answered."""

    def __init__(self, socket_path: Path) -> None:
        super().__init__(socket_path)
        self.request = 0
        self.deadline_ns = 0

    def ready(self) -> int:
        """Wait for a worker, declare to it, return its pid."""
        pid = self.up()
        self.until(ModelLimits)
        assert self.client.send_nowait(DECLARATION)
        self.until(Declared)
        return pid

    def ask(self, ms: float) -> None:
        """Send the next question; its text differs from all before."""
        self.request += 1
        self.deadline_ns = now_ns() + round(ms * MS)
        self.client.send_nowait(Question(self.request, 'space', self.deadline_ns, (
            Segment('scan', f'{self.request} {WORDS}', 0),
        )))

    def answer(self) -> Answer | EngineLost:
        """Return the answer to the last question; none to an earlier one may come."""
        def one() -> Answer | EngineLost | None:
            self.events += self.client.poll(now_ns())
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, EngineLost):
                    return event
                if isinstance(event, (Decided, Refused, Missed, Cancelled)):
                    assert event.request == self.request
                    return event
            return None
        return wait_for(one)

    def took_ms(self, ms: float) -> float:
        """Ask, and return how long the decision took; one that is not in time is no decision."""
        self.ask(ms)
        decided = self.answer()
        assert isinstance(decided, Decided), decided
        timings = decided.decision.timings
        return (timings.finished_ns - timings.started_ns) / MS


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp('model') / 'tiny.gguf')


@pytest.fixture
def running(tmp_path: Path, model: Path) -> Iterator[Engine]:
    with real_engine(tmp_path / 'e.sock', '--model', str(model), '--context', '1024') as engine:
        yield engine


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[Robot]:
    yield Robot(tmp_path / 'e.sock')
    close_listeners()


def test_killed_while_it_decides_it_is_there_again_and_answers_no_old_question(
    running: Engine, robot: Robot
) -> None:
    pids = []
    for turn in range(3):
        pid = robot.ready()
        pids.append(pid)
        killer = threading.Timer(0.05 + 0.013 * turn, os.kill, (pid, signal.SIGKILL))
        killer.start()
        answer: Answer | EngineLost | None = None
        while not isinstance(answer, EngineLost):
            robot.ask(60_000)
            answer = robot.answer()
        killer.join()
        wait_for(lambda pid=pid: f'worker {pid} died of SIGKILL' in running.log)
    pids.append(robot.ready())
    robot.ask(60_000)
    assert isinstance(robot.answer(), Decided)
    assert len(set(pids)) == 4


def test_stopped_it_is_killed_and_mended(running: Engine, robot: Robot) -> None:
    pid = robot.ready()
    robot.ask(60_000)
    assert isinstance(robot.answer(), Decided)
    os.kill(pid, signal.SIGSTOP)
    robot.ask(60_000)
    assert isinstance(robot.answer(), EngineLost)
    assert f'worker {pid} stands still' in running.log
    assert gone(pid)
    assert robot.ready() != pid
    robot.ask(60_000)
    assert isinstance(robot.answer(), Decided)


@contextmanager
def throttled(pid: int, share: float) -> Iterator[None]:
    """Let a process run only a share of the time, in slices of 10 ms."""
    done = threading.Event()

    def throttle() -> None:
        while not done.is_set():
            for number, ns in ((signal.SIGSTOP, (1 - share) * 10 * MS),
                               (signal.SIGCONT, share * 10 * MS)):
                os.kill(pid, number)
                sleep_until(now_ns() + round(ns))
        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize('factor', [3, 10])
def test_slowed_it_is_never_late_and_recovers(
    running: Engine, robot: Robot, factor: int
) -> None:
    pid = robot.ready()
    usual_ms = sorted(robot.took_ms(60_000) for _ in range(30))[15]
    with throttled(pid, 1 / factor):
        slow_ms = sorted(robot.took_ms(60_000) for _ in range(15))[7]
        assert slow_ms > 1.3 * usual_ms, 'the fault did not happen'
        kinds = []
        for _ in range(60):
            robot.ask(1.5 * usual_ms)
            answer = robot.answer()
            kinds.append(type(answer))
            if isinstance(answer, Decided):
                assert answer.decision.timings.finished_ns <= robot.deadline_ns
    assert kinds.count(Decided) < 60
    assert EngineLost not in kinds
    ms = 20 * usual_ms
    for _ in range(60):
        robot.ask(ms)
        if isinstance(robot.answer(), Decided):
            break
    else:
        raise AssertionError('it did not recover')
    assert 'stands still' not in running.log
    assert not gone(pid)
