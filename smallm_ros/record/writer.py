"""What a pilot decided, into an MCAP file, from a side thread that nobody waits for.

Each entry is one JSON message with its schema beside it, handed to the kernel whole and at once,
without chunks: after a `kill -9` the file reads up to the last entry. When the queue or the disk
is full the entry is dropped and counted; the robot never waits for its diary. With the first
record goes the declaration that was asked, once, so that a recording is enough to decide again.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from pathlib import Path
from typing import Any

from mcap.writer import CompressionType, Writer
from pydantic import TypeAdapter

from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import OperatorError
from smallm_ros.core.exchange import Declaration, ModelLimits
from smallm_ros.core.pilot import Say

Entry = DecisionRecord | ModelLimits | Say
"""What may be handed over: a record, the model that decides from now on, a decision's text."""

TOPIC = '/decision'
TOPICS: dict[type, str] = {
    DecisionRecord: TOPIC, Declaration: '/declaration', ModelLimits: '/model', Say: '/say',
}
"""One channel each; the schema of each is its type's."""
ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in TOPICS}
METADATA = 'smallm_ros'
VERSION = 2
"""Of the records, as in `DecisionRecord.version`."""
CLOSE_LIMIT_S = 10.0


class RecordWriter:
    """Writes the records of one process to one new file."""

    def __init__(
        self, path: Path, declaration: Declaration | None, *, queue_limit: int = 256
    ) -> None:
        """Create `path`, which must not exist, and its folder. OperatorError when that fails."""
        self.path = path
        self.written = 0
        """Decision records that are in the file."""
        self.fault = ''
        """Why the disk refused the last entry that it refused; empty when it refused none."""
        self._refused = 0
        self._overflowed = 0
        self._limit = queue_limit
        self._first: list[Declaration | Entry] = [] if declaration is None else [declaration]
        """What waits for the first record, whose time it takes: it has none of its own."""
        self._stamp_ns: int | None = None
        """ROS time of the last record's tick; None before the first."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = _Sink(path)
            self._mcap, self._channels = _open_mcap(self._sink)
        except OSError as err:
            raise OperatorError(f'{path}: cannot record decisions: {err.strerror}') from err
        # A SimpleQueue is never full: the bound is kept by hand, so that the closing None always
        # finds room.
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name='record', daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Entries that were lost to a full queue or a full disk."""
        return self._overflowed + self._refused

    def put_nowait(self, entry: Entry) -> bool:
        """Hand over an entry; False when the queue is full and it was dropped."""
        if self._queue.qsize() >= self._limit:
            self._overflowed += 1
            return False
        self._queue.put(entry)
        return True

    def close(self) -> None:
        """Write what is queued and the closing of the file, and wait for that, at most 10 s."""
        self._queue.put(None)
        self._thread.join(CLOSE_LIMIT_S)

    def _write(self) -> None:
        while (entry := self._queue.get()) is not None:
            if isinstance(entry, DecisionRecord):
                self._stamp_ns = max(0, entry.ros_now_ns)
            elif self._stamp_ns is None:
                self._first.append(entry)
                continue
            for each in (*self._first, entry):
                self._add(each)
            if self._commit():
                self._first.clear()
                self.written += isinstance(entry, DecisionRecord)
            else:
                self._refused += 1
        self._mcap.finish()
        self._commit()
        self._sink.close()

    def _add(self, item: Declaration | Entry) -> None:
        kind = type(item)
        stamp_ns = self._stamp_ns or 0
        self._mcap.add_message(
            self._channels[kind], log_time=stamp_ns, publish_time=stamp_ns,
            sequence=self.written, data=ADAPTERS[kind].dump_json(item),
        )

    def _commit(self) -> bool:
        try:
            self._sink.commit()
        except OSError as err:
            self.fault = err.strerror or str(err)
            return False
        return True


def _open_mcap(sink: _Sink) -> tuple[Writer, dict[type, int]]:
    # No statistics at the end: they would count messages that the disk refused.
    mcap = Writer(
        sink, compression=CompressionType.NONE, use_chunking=False, use_statistics=False
    )
    mcap.start(profile='', library='smallm_ros')
    channels = {}
    for kind, topic in TOPICS.items():
        schema = json.dumps(ADAPTERS[kind].json_schema()).encode()
        name = f'smallm_ros.{kind.__name__}'
        channels[kind] = mcap.register_channel(
            topic, 'json', mcap.register_schema(name, 'jsonschema', schema)
        )
    # Metadata makes the library hand over schemas and channels now, not with the first record.
    mcap.add_metadata(METADATA, {'record_version': str(VERSION)})
    sink.commit()
    return mcap, channels


class _Sink:
    """A file that takes each commit whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._pending = bytearray()
        self._length = 0

    def write(self, data: bytes) -> int:
        self._pending += data
        return len(data)

    def tell(self) -> int:
        return self._length + len(self._pending)

    def commit(self) -> None:
        data, self._pending = bytes(self._pending), bytearray()
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError:
            os.ftruncate(self._fd, self._length)
            os.lseek(self._fd, self._length, os.SEEK_SET)
            raise
        self._length += len(data)

    def close(self) -> None:
        os.close(self._fd)
