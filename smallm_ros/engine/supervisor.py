"""smallm_engine: the small parent of the worker that owns the model.

It starts the worker, watches its pidfd and its progress page, kills it when it stands still,
starts it again with a growing delay, and gives up after five deaths in a minute. All that is
decided by `Watch`, a pure step over facts; the rest of the file carries it out. The parent holds a
lock beside the socket and hands it on to the worker, so that no second engine can come between,
and no new worker starts while an old one lives. Nothing here waits: neither for the worker nor for
stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import errno
import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import EngineLatchedError, EngineRunningError, OperatorError
from smallm_ros.core.exchange import EngineState, Progress
from smallm_ros.engine.options import add_load_options, load_request
from smallm_ros.engine.progress import ProgressPage
from smallm_ros.engine.wire import default_socket, prepare_socket_directory
from smallm_ros.steady import now_ns as steady_now_ns
from smallm_ros.steady import sleep_until

_OPERATOR_ERRORS: tuple[type[OperatorError], ...] = (
    OperatorError, *OperatorError.__subclasses__()
)
OPERATOR_EXIT_CODES = frozenset(kind.exit_code for kind in _OPERATOR_ERRORS)
"""The worker's exit codes after which starting it again cannot help."""
CANNOT_START = 126
"""What the shell says of a program that cannot be started; stands for a spawn that failed."""

# --- what to do: pure ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the supervisor looks on. The defaults are the product's."""

    poll_ns: int = 20 * MS
    in_flight_ns: int = 2 * SECOND
    """Least time that a batch may take once the worker is ready, whatever its bound."""
    in_flight_bounds: int = 4
    """A batch may take so many times its bound."""
    idle_ns: int = 2 * SECOND
    """Age of the beat of a worker that has nothing in flight."""
    loading_ns: int = 120 * SECOND
    """Age of the beat of a worker that loads: one step may hash 14 GB."""
    own_gap_ns: int = SECOND // 2
    """A gap in the supervisor's own loop from which on it does not trust the ages that it sees."""
    retry_ns: tuple[int, ...] = tuple(s * SECOND // 2 for s in (1, 2, 4, 8, 16, 32, 60))
    healthy_ns: int = 60 * SECOND
    """A worker that was ready for so long sets the delays back to the first."""
    deaths: int = 5
    deaths_within_ns: int = 60 * SECOND
    end_ns: int = 3 * SECOND
    """From SIGTERM to SIGKILL."""


class Do(enum.Enum):
    """What the supervisor is to do now."""

    WAIT = 'wait'
    SPAWN = 'spawn'
    TERMINATE = 'terminate'
    KILL = 'kill'
    EXIT = 'exit'


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and the line to log about it, empty when there is nothing to say."""

    do: Do
    line: str = ''
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What the supervisor sees in one turn of its loop."""

    pid: int | None
    """The worker, None when none was started or the last one's end has been reported; 0 for one
    that could not be started."""
    exit_code: int | None
    """How the worker ended: its code, or minus its signal; None while it lives."""
    progress: Progress | None
    stop: bool
    """Whether SIGTERM or SIGINT came."""


_WAIT = Verdict(Do.WAIT)


class Watch:
    """One worker after another: when to start, to kill and to give up."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._turn_ns: int | None = None
        self._trusted_ns = 0
        """Silence is counted from here on at the earliest."""
        self._spawned_ns = 0
        self._ready_ns: int | None = None
        self._next_spawn_ns = 0
        self._tries = 0
        """Deaths since the delays were last set back."""
        self._deaths: deque[int] = deque()
        self._end_ns: int | None = None
        """When a worker that was told to end is killed."""
        self._killed = False

    def step(self, now_ns: int, facts: Facts) -> Verdict:
        """Return what to do, given what is seen at `now_ns`."""
        if self._turn_ns is None or now_ns - self._turn_ns > self._limits.own_gap_ns:
            # We stood still ourselves, and perhaps the worker with us: it gets its time again.
            self._trusted_ns = now_ns
        self._turn_ns = now_ns
        if facts.pid is None:
            return self._absent(now_ns, facts)
        if facts.exit_code is not None:
            return self._ended(now_ns, facts.pid, facts.exit_code, facts.stop)
        if facts.stop:
            return self._ending(now_ns, facts.pid)
        if self._killed:
            return _WAIT
        return self._living(now_ns, facts.pid, facts.progress)

    def _absent(self, now_ns: int, facts: Facts) -> Verdict:
        if facts.stop:
            return Verdict(Do.EXIT, 'ended')
        if now_ns < self._next_spawn_ns:
            return _WAIT
        self._spawned_ns = now_ns
        self._ready_ns = None
        self._killed = False
        return Verdict(Do.SPAWN)

    def _ended(self, now_ns: int, pid: int, exit_code: int, stop: bool) -> Verdict:
        uptime_s = (now_ns - self._spawned_ns) / SECOND
        line = f'worker {pid} {_ending_text(exit_code)} after {uptime_s:.1f} s'
        if stop:
            return Verdict(Do.EXIT, f'{line}; ended')
        if exit_code in OPERATOR_EXIT_CODES:
            return Verdict(Do.EXIT, f'{line}; not started again', exit_code)
        self._deaths.append(now_ns)
        while self._deaths[0] <= now_ns - self._limits.deaths_within_ns:
            self._deaths.popleft()
        if len(self._deaths) >= self._limits.deaths:
            window_s = self._limits.deaths_within_ns / SECOND
            return Verdict(
                Do.EXIT,
                f'{line}; {len(self._deaths)} deaths in {window_s:g} s: giving up, see the lines '
                'above for their causes',
                EngineLatchedError.exit_code,
            )
        delay_ns = self._limits.retry_ns[min(self._tries, len(self._limits.retry_ns) - 1)]
        self._tries += 1
        self._next_spawn_ns = now_ns + delay_ns
        return Verdict(Do.WAIT, f'{line}; next try in {delay_ns / SECOND:g} s')

    def _ending(self, now_ns: int, pid: int) -> Verdict:
        if self._end_ns is None:
            self._end_ns = now_ns + self._limits.end_ns
            return Verdict(Do.TERMINATE, f'asked to end; worker {pid} gets SIGTERM')
        if now_ns >= self._end_ns and not self._killed:
            self._killed = True
            return Verdict(Do.KILL, f'worker {pid} did not end within '
                                    f'{self._limits.end_ns / SECOND:g} s of SIGTERM: killed')
        return _WAIT

    def _living(self, now_ns: int, pid: int, progress: Progress | None) -> Verdict:
        if progress is None:
            return _WAIT
        stalled = self._stalled(now_ns, progress)
        if stalled:
            self._killed = True
            return Verdict(Do.KILL, f'worker {pid} stands still: {stalled}: killed')
        if progress.state is EngineState.LOADING:
            return _WAIT
        if self._ready_ns is None:
            self._ready_ns = now_ns
            return Verdict(Do.WAIT, f'worker {pid} is ready after '
                                    f'{(now_ns - self._spawned_ns) / SECOND:.1f} s')
        if now_ns - self._ready_ns >= self._limits.healthy_ns:
            self._tries = 0
        return _WAIT

    def _stalled(self, now_ns: int, progress: Progress) -> str:
        """Return how the worker stands still, '' when it does not."""
        limits = self._limits
        loading = progress.state is EngineState.LOADING
        if progress.in_flight:
            age_ns = now_ns - max(progress.since_ns, self._trusted_ns)
            # While it loads nothing is known yet of what a batch takes here.
            least_ns = limits.loading_ns if loading else limits.in_flight_ns
            limit_ns = max(least_ns, limits.in_flight_bounds * progress.bound_ns)
            what = f'batch {progress.in_flight}, bound {progress.bound_ns / MS:.0f} ms, in flight'
        else:
            age_ns = now_ns - max(progress.beat_ns, self._trusted_ns)
            limit_ns = limits.loading_ns if loading else limits.idle_ns
            what = 'no step of the load' if loading else 'no beat'
        if age_ns <= limit_ns:
            return ''
        return f'{what} for {age_ns / MS:.0f} ms, limit {limit_ns / MS:.0f} ms'


def _ending_text(exit_code: int) -> str:
    if exit_code == CANNOT_START:
        return 'could not be started'
    if exit_code >= 0:
        return f'exited with code {exit_code}'
    try:
        return f'died of {signal.Signals(-exit_code).name}'
    except ValueError:
        return f'died of signal {-exit_code}'


# --- carrying it out ----------------------------------------------------------------------------


class _Log:
    """Writes to stderr and never waits for it: a line that does not fit is dropped."""

    def __init__(self) -> None:
        self._fd = 2
        # A description of our own: O_NONBLOCK on the inherited one would be everybody's. A socket
        # cannot be opened again; there the poll before each write must do.
        with contextlib.suppress(OSError):
            self._fd = os.open('/proc/self/fd/2',
                               os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def line(self, text: str) -> None:
        """Write one line of our own."""
        self.raw(f'smallm_engine: {text}\n'.encode(errors='replace'))

    def raw(self, data: bytes) -> None:
        """Write what the worker said."""
        with contextlib.suppress(OSError):
            if self._poll.poll(0):
                # Not more than PIPE_BUF: whole lines do not mix with those of others.
                os.write(self._fd, data[:4096])


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    pidfd: int
    words: int
    """Where its stdout and stderr can be read, without waiting."""
    page: ProgressPage


class Supervisor:
    """Holds the socket's lock and one worker at a time.

    `argv` starts the worker; --socket, --progress-fd and --parent are added to it.
    """

    def __init__(self, socket_path: Path, argv: Sequence[str], limits: Limits) -> None:
        self._socket = socket_path
        self._argv = tuple(argv)
        self._limits = limits
        self._log = _Log()
        self._worker: _Worker | None = None
        self._stop = False

    def run(self) -> int:
        """Supervise until SIGTERM, SIGINT, SIGHUP or an end that another try cannot help.

        Returns the exit code. Raises OperatorError when the socket cannot be had.
        """
        prepare_socket_directory(self._socket)
        lock = _lock(self._socket)
        try:
            _remove_stale(self._socket)
            return self._watch(lock, self._signals())
        finally:
            if self._worker is not None:
                self._worker.process.kill()
                self._worker.process.wait()
                self._reap()
            _remove_stale(self._socket)
            os.close(lock)

    def _signals(self) -> int:
        """Note the signals that end us, and return what becomes readable when one comes."""
        readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        return readable

    def _on_signal(self, *_: object) -> None:
        self._stop = True

    def _watch(self, lock: int, wakeup: int) -> int:
        watch = Watch(self._limits)
        failed = False
        while True:
            facts = self._facts()
            if failed:
                facts, failed = Facts(0, CANNOT_START, None, self._stop), False
            verdict = watch.step(steady_now_ns(), facts)
            if facts.exit_code is not None:
                self._reap()
            if verdict.line:
                self._log.line(verdict.line)
            worker = self._worker
            if verdict.do is Do.EXIT:
                return verdict.exit_code
            if verdict.do is Do.SPAWN:
                failed = not self._spawn(lock)
            elif verdict.do is Do.TERMINATE and worker is not None:
                worker.process.terminate()
            elif verdict.do is Do.KILL and worker is not None:
                worker.process.kill()
            self._pause(wakeup)

    def _facts(self) -> Facts:
        worker = self._worker
        if worker is None:
            return Facts(None, None, None, self._stop)
        exit_code = worker.process.poll()
        return Facts(worker.process.pid, exit_code, worker.page.read(), self._stop)

    def _pause(self, wakeup: int) -> None:
        """Wait one turn, or until a signal or the worker's end; pass on what it said."""
        watched = select.poll()
        watched.register(wakeup, select.POLLIN)
        if self._worker is not None:
            watched.register(self._worker.pidfd, select.POLLIN)
        if (wakeup, select.POLLIN) in watched.poll(self._limits.poll_ns / MS):
            os.read(wakeup, 4096)
        self._relay()

    def _relay(self) -> None:
        """Pass on what the worker wrote; at most a pipe full in one turn."""
        if self._worker is None:
            return
        for _ in range(16):
            try:
                data = os.read(self._worker.words, 4096)
            except BlockingIOError:
                return
            if not data:
                return
            self._log.raw(data)

    def _spawn(self, lock: int) -> bool:
        _remove_stale(self._socket)
        try:
            self._worker = self._start(lock)
        except OSError as err:
            self._log.line(f'{self._argv[0]}: cannot be started: {err.strerror}')
            return False
        self._log.line(f'worker {self._worker.process.pid} started')
        return True

    def _start(self, lock: int) -> _Worker:
        with contextlib.ExitStack() as undo:
            page = ProgressPage.create(steady_now_ns())
            undo.callback(page.close)
            words, theirs = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, words)
            os.set_blocking(words, False)
            try:
                process = subprocess.Popen(
                    (*self._argv, '--socket', str(self._socket), '--progress-fd', str(page.fd),
                     '--parent', str(os.getpid())),
                    stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
                    pass_fds=(page.fd, lock), start_new_session=True,
                )
            finally:
                os.close(theirs)
            undo.callback(process.wait)
            undo.callback(process.kill)
            worker = _Worker(process, os.pidfd_open(process.pid), words, page)
            undo.pop_all()
        return worker

    def _reap(self) -> None:
        """Free what belonged to a worker that has ended."""
        self._relay()
        worker, self._worker = self._worker, None
        if worker is not None:
            os.close(worker.words)
            os.close(worker.pidfd)
            worker.page.close()


def _lock(socket_path: Path) -> int:
    """Take the lock of a socket and write our pid into it; EngineRunningError when it is held.

    A dead engine's worker holds the lock until it is gone too; that is waited for, for 5 s.
    """
    path = socket_path.with_name(socket_path.name + '.lock')
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as err:
        raise OperatorError(f'{path}: cannot be opened: {err.strerror}') from err
    patience_ns = steady_now_ns() + 5 * SECOND
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as err:
            holder = os.pread(fd, 32, 0).decode(errors='replace').strip() or 'unknown'
            alive = holder.isdecimal() and Path(f'/proc/{holder}').exists()
            if err.errno not in (errno.EAGAIN, errno.EINTR):
                raise OperatorError(f'{path}: cannot be locked: {err.strerror}') from err
            if alive or steady_now_ns() > patience_ns:
                os.close(fd)
                raise EngineRunningError(
                    f'{socket_path}: another engine serves this socket, pid {holder}: end it, or '
                    'use another --socket'
                ) from err
            sleep_until(steady_now_ns() + 50 * MS)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f'{os.getpid()}\n'.encode(), 0)
    return fd


def _remove_stale(socket_path: Path) -> None:
    """Remove the socket of an engine that is gone. Only who holds the lock may call this."""
    try:
        if not stat.S_ISSOCK(os.lstat(socket_path).st_mode):
            raise OperatorError(f'{socket_path}: exists and is no socket: remove it, or use '
                                'another --socket')
        os.unlink(socket_path)
    except FileNotFoundError:
        pass
    except OSError as err:
        raise OperatorError(f'{socket_path}: cannot be removed: {err.strerror}') from err


def main(argv: Sequence[str] | None = None) -> int:
    """Run `smallm_engine` and return its exit code."""
    parser = argparse.ArgumentParser(
        prog='smallm_engine',
        description='Keep a language model resident and answer questions on a Unix socket.',
    )
    parser.add_argument('--socket', type=Path, default=default_socket(), metavar='PATH',
                        help='where to serve (default: %(default)s)')
    add_load_options(parser)
    options = parser.parse_args(argv)
    worker = [sys.executable, '-m', 'smallm_ros.engine.worker', *load_request(options).words()]
    return supervise(options.socket, worker, Limits())


def supervise(socket_path: Path, argv: Sequence[str], limits: Limits) -> int:
    """Run a supervisor to its end; what the operator must know becomes one line on stderr."""
    _hold_standard_streams()
    try:
        return Supervisor(socket_path, argv, limits).run()
    except OperatorError as err:
        _Log().line(str(err))
        return err.exit_code


def _hold_standard_streams() -> None:
    """Open what is closed of 0, 1 and 2, or the next file that is opened would get the log."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


if __name__ == '__main__':
    sys.exit(main())
