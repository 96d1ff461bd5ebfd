"""smallm_engine: the small parent of the worker that owns the model.

It starts the worker, watches its pidfd, its progress page and its memory, kills it when it stands
still, starts it again with a growing delay, and gives up after five deaths in a minute. All that
is decided by `watch.Watch`, a pure step over facts; this file gathers them and carries it out. The
parent holds a lock beside the socket and hands it on to the worker, so that no second engine can
come between, and no new worker starts while an old one lives. A worker leads a session of its own:
what it forked ends with it. Nothing here waits: neither for the worker, even one that SIGKILL does
not end, nor for the GPU, nor for stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import EngineRunningError, OperatorError
from smallm_ros.engine.gpu import GpuMemory, gpu_memory
from smallm_ros.engine.options import add_load_options, load_request
from smallm_ros.engine.progress import ProgressPage
from smallm_ros.engine.watch import CANNOT_START, Do, Facts, Limits, Watch
from smallm_ros.engine.wire import default_socket, prepare_socket_directory
from smallm_ros.steady import SteadyClock, sleep_until
from smallm_ros.steady import now_ns as steady_now_ns


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

    def __init__(self, socket_path: Path, argv: Sequence[str], limits: Limits,
                 gpu: GpuMemory | None = None) -> None:
        self._gpu = gpu
        self._gpu_trouble = ''
        """What was said of it."""
        self._ended_ns = 0
        """When the last worker was gone."""
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
                _kill(self._worker)
                _bury(self._worker.process)
                self._reap()
            _remove_stale(self._socket)
            os.close(lock)

    def _signals(self) -> int:
        """Note the signals that end us, and return what becomes readable when one comes."""
        readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        # Who started us may ignore it: then the kernel reaps, and nobody learns how a worker died.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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
                signal.pidfd_send_signal(worker.pidfd, signal.SIGTERM)
            elif verdict.do is Do.KILL and worker is not None:
                _kill(worker)
            self._pause(wakeup)

    def _facts(self) -> Facts:
        worker = self._worker
        if worker is None:
            return Facts(None, None, None, self._stop, gpu_free=self._gpu_free())
        if self._gpu is not None:
            self._gpu.lives(worker.process.pid)
        return Facts(
            worker.process.pid, _exit_code(worker), worker.page.read(), self._stop,
            None if self._limits.memory_bytes is None else _held_bytes(worker.process.pid),
        )

    def _gpu_free(self) -> bool | None:
        if self._gpu is None:
            return None
        free = self._gpu.free(self._ended_ns)
        if self._gpu.trouble != self._gpu_trouble:
            self._gpu_trouble = self._gpu.trouble
            self._log.line(f'the memory of the GPU is not watched: {self._gpu_trouble}')
        return free

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
            undo.callback(_bury, process)
            undo.callback(process.kill)
            worker = _Worker(process, os.pidfd_open(process.pid), words, page)
            undo.pop_all()
        return worker

    def _reap(self) -> None:
        """Free what belonged to a worker that has ended."""
        self._relay()
        worker, self._worker = self._worker, None
        if worker is not None:
            self._ended_ns = steady_now_ns()
            os.close(worker.words)
            os.close(worker.pidfd)
            worker.page.close()


def _exit_code(worker: _Worker) -> int | None:
    """Return how a worker ended, None while it lives.

    What it forked is killed before it is reaped: until then its pid, which is its group's number
    too, cannot become another's.
    """
    ended = select.poll()
    ended.register(worker.pidfd, select.POLLIN)
    if not ended.poll(0):
        return None
    _kill_group(worker)
    return worker.process.poll()


def _kill(worker: _Worker) -> None:
    """Kill a worker and what it forked; by its pidfd, which is never another process."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
    if worker.process.returncode is None:
        _kill_group(worker)


def _kill_group(worker: _Worker) -> None:
    with contextlib.suppress(OSError):
        os.killpg(worker.process.pid, signal.SIGKILL)


def _bury(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was killed, but not for one that the kernel holds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)


def _held_bytes(pid: int) -> int | None:
    """Return what a process holds, resident and swapped, mapped weights too; None: it has ended.

    VmRSS and VmSwap of /proc/PID/status, proc(5): what the kernel's own choice of a victim counts.
    """
    try:
        status = Path(f'/proc/{pid}/status').read_text(encoding='ascii', errors='replace')
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines()
             if line.startswith(('VmRSS:', 'VmSwap:'))]
    return sum(int(line[1]) << 10 for line in lines) if lines else None


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
            if err.errno not in (errno.EAGAIN, errno.EINTR):
                raise OperatorError(f'{path}: cannot be locked: {err.strerror}') from err
            named = os.pread(fd, 32, 0).decode(errors='replace').strip()
            holders = _holders(fd)
            if named in holders or steady_now_ns() > patience_ns:
                os.close(fd)
                # A pid that holds nothing is a dead engine's, or by now anybody's.
                who = (f'another engine serves this socket, pid {named}' if named in holders else
                       f'a dead engine left pid {", ".join(holders) or "unknown"}, which holds it')
                raise EngineRunningError(
                    f'{socket_path}: {who}: end it, or use another --socket'
                ) from err
            sleep_until(steady_now_ns() + 50 * MS)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f'{os.getpid()}\n'.encode(), 0)
    return fd


def _holders(lock: int) -> list[str]:
    """Return the pids of all others, as far as we may see them, that have this file open."""
    ours = os.fstat(lock)
    holders = []
    for pid in os.listdir('/proc'):
        if not pid.isdecimal() or pid == str(os.getpid()):
            continue
        # It may end, and close what it has open, while we look.
        with contextlib.suppress(OSError):
            if any(os.path.samestat(ours, each.stat())
                   for each in Path(f'/proc/{pid}/fd').iterdir()):
                holders.append(pid)
    return holders


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
    request = load_request(options)
    worker = [sys.executable, '-m', 'smallm_ros.engine.worker', *request.words()]
    return supervise(options.socket, worker, Limits(memory_bytes=request.memory_limit_bytes),
                     gpu_memory(request.n_gpu_layers, SteadyClock()))


def supervise(
    socket_path: Path, argv: Sequence[str], limits: Limits, gpu: GpuMemory | None = None
) -> int:
    """Run a supervisor to its end; what the operator must know becomes one line on stderr."""
    _hold_standard_streams()
    try:
        return Supervisor(socket_path, argv, limits, gpu).run()
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
