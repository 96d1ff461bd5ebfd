"""The worker's progress on a page of shared memory: written by the thread that owns the model.

The page answers one question, is the model's thread getting on, for two readers that must not
wait for it: the worker's socket thread and the supervisor. It is a memfd that the worker inherits.
Two slots are written in turn, each with a sequence number and a checksum: a reader takes the
newest slot whose sum is right, so that a writer that is stopped or killed in the middle of a write
leaves the record before it. That holds without the memory barriers that Python does not have.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib

from smallm_ros.core.clock import Clock
from smallm_ros.core.exchange import EngineState, Progress

_RECORD = struct.Struct('<QQQqQqq')
_SUM = struct.Struct('<I')
_SLOT_BYTES = 128
_STATES = tuple(EngineState)


class ProgressPage:
    """A page that one thread writes and any process reads, without a lock."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, mmap.PAGESIZE)
        self._last = Progress(EngineState.LOADING, 0, 0, 0, 0, 0)
        self._sequence = self._newest()[0]

    @classmethod
    def create(cls, now_ns: int) -> ProgressPage:
        """Make a new page that says: loading since `now_ns`. Its `fd` can be inherited."""
        fd = os.memfd_create('smallm-progress')
        os.ftruncate(fd, mmap.PAGESIZE)
        page = cls(fd)
        page.write(Progress(EngineState.LOADING, 0, now_ns, 0, 0, 0))
        return page

    def write(self, progress: Progress) -> None:
        """Replace what the page says. Only one thread of one process ever calls this."""
        self._sequence += 1
        record = _RECORD.pack(
            self._sequence, _STATES.index(progress.state), progress.count, progress.beat_ns,
            progress.in_flight, progress.since_ns, progress.bound_ns,
        )
        start = self._sequence % 2 * _SLOT_BYTES
        end = start + _RECORD.size + _SUM.size
        self._map[start:end] = record + _SUM.pack(zlib.crc32(record))

    def read(self) -> Progress:
        """Return the newest whole record, or what this reader saw last when neither slot is."""
        sequence, state, *numbers = self._newest()
        if sequence:
            self._last = Progress(_STATES[state], *numbers)
        return self._last

    def _newest(self) -> tuple[int, ...]:
        newest: tuple[int, ...] = (0,) * 7
        for start in (0, _SLOT_BYTES):
            record = self._map[start:start + _RECORD.size]
            (total,) = _SUM.unpack_from(self._map, start + _RECORD.size)
            if zlib.crc32(record) == total:
                newest = max(newest, _RECORD.unpack(record))
        return newest

    def close(self) -> None:
        """Give the page back; the other processes keep theirs."""
        self._map.close()
        os.close(self.fd)


class ProgressWriter:
    """Counts what the thread that owns the model does: idle turns, load steps, batches."""

    def __init__(self, page: ProgressPage, clock: Clock) -> None:
        self._page = page
        self._clock = clock
        self._state = EngineState.LOADING
        self._count = 0
        self._batches = 0
        self._loaded = 0.0

    def idle(self) -> None:
        """Count a turn that found nothing to do, or a step between two batches."""
        self._put(0, 0, 0)

    def loading(self, fraction: float) -> None:
        """Count a step of the load; one that does not get further is no progress."""
        if fraction > self._loaded:
            self._loaded = fraction
            self._put(0, 0, 0)

    def ready(self) -> None:
        """Say that the model is loaded: from now on silence is judged strictly."""
        self._state = EngineState.READY
        self._put(0, 0, 0)

    def begin(self, bound_ns: int) -> None:
        """Say that a batch goes into llama_decode, which should take at most `bound_ns`."""
        self._batches += 1
        self._put(self._batches, self._clock.now_ns(), bound_ns)

    def end(self) -> None:
        """Say that the batch came back."""
        self._put(0, 0, 0)

    def _put(self, in_flight: int, since_ns: int, bound_ns: int) -> None:
        self._count += 1
        self._page.write(Progress(
            self._state, self._count, self._clock.now_ns(), in_flight, since_ns, bound_ns
        ))
