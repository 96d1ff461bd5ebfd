"""Facts about processes of this host, from /proc and prctl, that tell one from another."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def start_ticks(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot; None when there is no such process.

    With it a pid names one process for ever: a reused pid has another start time. Field 22 of
    /proc/PID/stat, proc(5); the name in field 2 may hold anything, a closing bracket too.
    """
    try:
        stat = Path(f'/proc/{pid}/stat').read_text(encoding='ascii', errors='replace')
        return int(stat.rpartition(')')[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


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
