"""Whether a dead worker's memory on the GPU is free again, seen through NVML.

The driver frees it some time after the process is gone, and a second 14 GB beside the first do not
fit. NVML is asked on a thread of its own, since a driver in trouble may never answer; the
supervisor reads what was seen last and never waits. This is the only file that names pynvml.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from smallm_ros.core.clock import Clock
from smallm_ros.core.errors import SmallmError

SLACK_BYTES = 64 << 20
"""What may differ from before a worker whose pid NVML never showed: in a container it cannot."""
DEVICE = Path('/dev/nvidiactl')
"""There where NVIDIA's driver is loaded."""


class GpuUnseenError(SmallmError):
    """Nobody acts: the GPU cannot be looked at, and nothing waits for it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at all GPUs."""

    at_ns: int
    """Steady time at which the look began."""
    pids: frozenset[int]
    """Who computes on any of them."""
    used_bytes: int
    """In use on all of them together."""


class Gpus(Protocol):
    """What can look at the GPUs: NVML, or a script in tests."""

    def look(self, at_ns: int) -> Seen:
        """Look at all of them. Raises GpuUnseenError. May take long."""
        ...


class Nvml:
    """NVIDIA's management library. Raises GpuUnseenError, one line, when it cannot be had."""

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as err:
            raise GpuUnseenError("pip install 'smallm_ros[gpu]' to see it") from err
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._devices = [
                pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())
            ]
        except pynvml.NVMLError as err:
            raise GpuUnseenError(f'NVML: {err}') from err

    def look(self, at_ns: int) -> Seen:
        """Ask each device for its processes and its memory."""
        try:
            return Seen(
                at_ns,
                frozenset(
                    each.pid for device in self._devices
                    for each in self._nvml.nvmlDeviceGetComputeRunningProcesses(device)
                ),
                sum(self._nvml.nvmlDeviceGetMemoryInfo(each).used for each in self._devices),
            )
        except self._nvml.NVMLError as err:
            raise GpuUnseenError(f'NVML: {err}') from err


class GpuLedger:
    """Who of our workers was seen on the GPU, and whether the last one is gone from it. Pure."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._listed = False
        self._before_bytes: int | None = None
        """In use when no worker of ours was there."""

    def lives(self, pid: int, seen: Seen | None) -> None:
        """Note what is seen while worker `pid` lives."""
        if pid != self._pid:
            self._pid, self._listed = pid, False
        self._listed |= seen is not None and pid in seen.pids

    def free(self, ended_ns: int, seen: Seen | None) -> bool:
        """Return whether a look since the end of the last worker shows its memory free.

        A worker that NVML showed is gone when it shows it no more. One that it never showed, in a
        container or on the CPU, is gone when no more is in use than before it.
        """
        if seen is None or seen.at_ns < ended_ns or self._pid in seen.pids:
            return False
        if (self._pid is not None and not self._listed and self._before_bytes is not None
                and seen.used_bytes > self._before_bytes + SLACK_BYTES):
            return False
        self._before_bytes = seen.used_bytes
        return True


class GpuMemory:
    """Looks at the GPUs on a thread of its own: once a second, and at once when it is asked."""

    def __init__(self, find: Callable[[], Gpus], clock: Clock) -> None:
        self._find = find
        self._clock = clock
        self._ledger = GpuLedger()
        self._asked = threading.Event()
        self._seen: Seen | None = None
        self.trouble = ''
        """Why nothing is seen any more, '' while there is hope."""
        threading.Thread(target=self._watch, name='gpu', daemon=True).start()

    def lives(self, pid: int) -> None:
        """Note that worker `pid` lives."""
        self._ledger.lives(pid, self._seen)

    def free(self, ended_ns: int) -> bool | None:
        """Return whether the memory of the worker that ended then is seen free; None: unseen."""
        if self.trouble:
            return None
        self._asked.set()
        return self._ledger.free(ended_ns, self._seen)

    def _watch(self) -> None:
        try:
            gpus = self._find()
            while True:
                self._asked.clear()
                self._seen = gpus.look(self._clock.now_ns())
                self._asked.wait(timeout=1.0)
        except GpuUnseenError as err:
            self.trouble = str(err)


def gpu_memory(n_gpu_layers: int, clock: Clock) -> GpuMemory | None:
    """Return what looks at the GPUs, None where no layer goes to one or none is NVIDIA's."""
    if n_gpu_layers == 0 or not DEVICE.exists():
        return None
    return GpuMemory(Nvml, clock)
