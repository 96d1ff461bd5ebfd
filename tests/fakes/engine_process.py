"""Starts real engine processes for tests and waits for what they do, with a bound."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.exchange import EngineEvent, EngineUp
from smallm_ros.engine.client import EngineClient
from smallm_ros.steady import now_ns, sleep_until

PATIENCE_NS = 20 * SECOND
QUICK = {'retry_ns': [50 * MS], 'end_ns': SECOND}
_T = TypeVar('_T')
_E = TypeVar('_E')


def wait_for(what: Callable[[], _T | None], patience_ns: int = PATIENCE_NS) -> _T:
    """Return the first value of `what()` that is true, asking every few milliseconds."""
    end_ns = now_ns() + patience_ns
    while now_ns() < end_ns:
        value = what()
        if value:
            return value
        sleep_until(now_ns() + 5 * MS)
    raise AssertionError(f'{what} did not come true in {patience_ns / SECOND:g} s')


def gone(pid: int) -> bool:
    """Return whether a process has ended, as a zombie or altogether."""
    try:
        text = Path(f'/proc/{pid}/stat').read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text.rpartition(')')[2].split()[0] in 'ZX'


class Engine:
    """A supervisor process and what it writes to stderr."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text()

    def wait(self) -> int:
        """Return its exit code."""
        return wait_for(lambda: (self.process.poll(),)[:self.process.poll() is not None])[0] or 0


@contextmanager
def engine(
    socket_path: Path, *worker: str, script: object = None, **limits: Any
) -> Iterator[Engine]:
    """Run a supervisor over a scripted worker; whatever happens it ends, and its worker too."""
    script_words = [] if script is None else ['--script', json.dumps(script)]
    with _running(socket_path, [
        str(Path(__file__).with_name('scripted_engine.py')), str(socket_path),
        json.dumps({**QUICK, **limits}), *script_words, *worker,
    ]) as running:
        yield running


@contextmanager
def real_engine(socket_path: Path, *words: str) -> Iterator[Engine]:
    """Run `smallm_engine` as it is shipped, on the CPU alone, with these options."""
    with _running(socket_path, [
        '-m', 'smallm_ros.engine.supervisor', '--socket', str(socket_path),
        '--n-gpu-layers', '0', *words,
    ]) as running:
        yield running


@contextmanager
def _running(socket_path: Path, words: list[str]) -> Iterator[Engine]:
    log = socket_path.with_suffix(f'.{now_ns()}.log')
    with log.open('wb') as stderr:
        process = subprocess.Popen(
            [sys.executable, *words], stderr=stderr,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        )
    try:
        yield Engine(process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


_LISTENERS: list[Listener] = []


def close_listeners() -> None:
    """Close every listener that a test opened."""
    while _LISTENERS:
        _LISTENERS.pop().client.close()


class Listener:
    """A client that keeps every event, so that a test can wait for one of a kind."""

    def __init__(self, socket_path: Path, name: str = 'test') -> None:
        self.client = EngineClient(socket_path, name)
        _LISTENERS.append(self)
        self.events: list[EngineEvent] = []

    def until(self, kind: type[_E]) -> _E:
        """Return the next event of this kind; the events up to it are taken from the list."""
        def next_one() -> _E | None:
            self.events += self.client.poll(now_ns())
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, kind):
                    return event
            return None
        return wait_for(next_one)

    def up(self) -> int:
        """Wait for a worker and return its pid."""
        return self.until(EngineUp).worker_pid
