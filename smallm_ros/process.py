"""Facts about processes of this host, and what this one may ask of its kernel.

A pid and its start time name one process for ever. What is asked for and not permitted raises the
OSError that says so: whoever asks decides whether it can go on without.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
from collections import OrderedDict
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_MCL_CURRENT, _MCL_FUTURE = 1, 2
_CAP_IPC_LOCK = 14
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEPT_BYTES = 1 << 30
_PF_EXITING, _PF_SIGNALED = 0x4, 0x400
_STAT_BYTES = 1024


def start_ticks(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot; None when there is no such process.

    With it a pid names one process for ever: a reused pid has another start time. Field 22 of
    /proc/PID/stat, proc(5).
    """
    try:
        return int(_fields(Path(f'/proc/{pid}/stat').read_bytes())[19])
    except (OSError, IndexError, ValueError):
        return None


def _fields(stat: bytes) -> list[bytes]:
    """Return /proc/PID/stat from field 3 on; the name in field 2 may hold anything, `)` too."""
    return stat.rpartition(b')')[2].split()


def own_start_ticks() -> int:
    """Return this process's start time in clock ticks since boot."""
    ticks = start_ticks(os.getpid())
    assert ticks is not None, '/proc must be mounted'
    return ticks


def stolen_ms() -> float:
    """Return the time since boot in which a core wanted to run and its hypervisor did not let it.

    The field `steal` of /proc/stat, proc(5), of all cores together; 0 on bare metal.
    """
    cpu = Path('/proc/stat').read_text(encoding='ascii').split('\n', 1)[0].split()
    return 1000 * int(cpu[8]) / os.sysconf('SC_CLK_TCK')


def host() -> str:
    """Return this host's name, in at most 64 characters."""
    return socket.gethostname()[:64]


def die_with(parent: int, number: signal.Signals) -> bool:
    """Have the kernel send this process `number` when its parent dies; False when it has died.

    To be called in the child: between fork and exec of a parent with threads nothing is safe.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return os.getppid() == parent


def lock_memory() -> None:
    """Keep all memory of this process, present and future, from being paged out; mlockall(2).

    What is freed is kept, too, and large blocks come from the heap like small ones: the kernel
    need not hand out and clear 64 MB each time that somebody publishes so much, mallopt(3).

    Raises OSError when that is not permitted without limit: under a limit the next allocation
    beyond it would fail, which is worse than a page fault.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit != resource.RLIM_INFINITY and not _capable(_CAP_IPC_LOCK):
        raise PermissionError(1, f'only {limit // 1024} KiB may be locked')
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def schedule_fifo(priority: int) -> None:
    """Schedule the calling thread, and none that it starts, as SCHED_FIFO; sched(7).

    Raises OSError when that is not permitted.
    """
    os.sched_setscheduler(
        0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))


def scheduling(thread: int = 0) -> str:
    """Return how a thread is scheduled, the calling one by default: `fifo 50`, `other`."""
    policy = os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK
    priority = os.sched_getparam(thread).sched_priority
    name = {os.SCHED_FIFO: 'fifo', os.SCHED_RR: 'rr', os.SCHED_BATCH: 'batch',
            os.SCHED_IDLE: 'idle'}.get(policy, 'other')
    return f'{name} {priority}' if priority else name


def _capable(number: int) -> bool:
    """Whether this process has a capability, proc(5)."""
    for line in Path('/proc/self/status').read_text(encoding='ascii').splitlines():
        if line.startswith('CapEff:'):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


class ProcessWatch:
    """Knows when processes end: without waiting, without being their parent.

    A pidfd says so for certain, but late: after the kernel has taken the process's memory down,
    which is 35 ms for a worker of 374 MB and seconds for one of 14 GB. Before that, as soon as
    the first thread is on its way out, flags in field 9 of /proc/PID/stat tell; PF_* in Linux'
    include/linux/sched.h. An open file of that name never becomes another process's.
    """

    _MOST = 8

    def __init__(self) -> None:
        self._fds: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()
        """Its pidfd, and its /proc/PID/stat."""
        self._dead: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._poll = select.poll()

    def watch(self, process: tuple[int, int]) -> None:
        """Watch (pid, start ticks) from now on; the longest watched leaves when there are many."""
        if process in self._fds or process in self._dead:
            return
        pid, began_ticks = process
        with contextlib.ExitStack() as undo:
            try:
                fd = os.pidfd_open(pid)
            except (ProcessLookupError, OverflowError):
                self._bury(process)
                return
            except OSError:
                return  # no right or no descriptor left: its silence will tell
            undo.callback(os.close, fd)
            try:
                stat = os.open(f'/proc/{pid}/stat', os.O_RDONLY | os.O_CLOEXEC)
                undo.callback(os.close, stat)
                found_ticks = int(_fields(os.pread(stat, _STAT_BYTES, 0))[19])
            except OSError:
                if select.select([fd], [], [], 0)[0]:
                    self._bury(process)
                return  # else it cannot be read, for want of a descriptor: the next time
            if found_ticks != began_ticks:
                self._bury(process)
                return
            undo.pop_all()
        self._fds[process] = fd, stat
        self._poll.register(fd, select.POLLIN)
        if len(self._fds) > self._MOST:
            self._forget(next(iter(self._fds)))

    def dead(self) -> frozenset[tuple[int, int]]:
        """Return those that have ended, or are about to and cannot do anything else."""
        ready = {fd for fd, _ in self._poll.poll(0)}
        for process, (fd, stat) in list(self._fds.items()):
            if fd in ready or _ending(stat):
                self._forget(process)
                self._bury(process)
        return frozenset(self._dead)

    def close(self) -> None:
        """Close every descriptor."""
        for process in list(self._fds):
            self._forget(process)

    def _forget(self, process: tuple[int, int]) -> None:
        fd, stat = self._fds.pop(process)
        self._poll.unregister(fd)
        os.close(fd)
        os.close(stat)

    def _bury(self, process: tuple[int, int]) -> None:
        self._dead[process] = None
        if len(self._dead) > self._MOST:
            self._dead.popitem(last=False)


def _ending(stat: int) -> bool:
    """Whether the process of an open /proc/PID/stat is on its way out; 15 us."""
    try:
        flags = int(_fields(os.pread(stat, _STAT_BYTES, 0))[6])
    except OSError:
        return False  # not readable, or reaped, which the pidfd tells
    return bool(flags & (_PF_EXITING | _PF_SIGNALED))
