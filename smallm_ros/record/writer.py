"""Decision records into an MCAP file, from a side thread that nobody waits for.

Each record is one JSON message with its schema beside it, handed to the kernel whole and at once,
without chunks: after a `kill -9` the file reads up to the last record. When the queue or the disk
is full the record is dropped and counted; the robot never waits for its diary.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from pathlib import Path

from mcap.writer import CompressionType, Writer

from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import OperatorError

TOPIC = '/decision'
SCHEMA_NAME = 'smallm_ros.DecisionRecord'
CLOSE_LIMIT_S = 10.0


class RecordWriter:
    """Writes the records of one process to one new file."""

    def __init__(self, path: Path, *, queue_limit: int = 256) -> None:
        """Create `path`, which must not exist, and its folder. OperatorError when that fails."""
        self.path = path
        self.written = 0
        """Records that are in the file."""
        self.fault = ''
        """Why the disk refused the last record that it refused; empty when it refused none."""
        self._refused = 0
        self._overflowed = 0
        self._limit = queue_limit
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = _Sink(path)
            self._mcap, self._channel = _open_mcap(self._sink)
        except OSError as err:
            raise OperatorError(f'{path}: cannot record decisions: {err.strerror}') from err
        # A SimpleQueue is never full: the bound is kept by hand, so that the closing None always
        # finds room.
        self._queue: queue.SimpleQueue[DecisionRecord | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name='record', daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that were lost to a full queue or a full disk."""
        return self._overflowed + self._refused

    def put_nowait(self, record: DecisionRecord) -> bool:
        """Hand over a record; False when the queue is full and it was dropped."""
        if self._queue.qsize() >= self._limit:
            self._overflowed += 1
            return False
        self._queue.put(record)
        return True

    def close(self) -> None:
        """Write what is queued and the closing of the file, and wait for that, at most 10 s."""
        self._queue.put(None)
        self._thread.join(CLOSE_LIMIT_S)

    def _write(self) -> None:
        while (record := self._queue.get()) is not None:
            stamp_ns = max(0, record.ros_now_ns)
            self._mcap.add_message(
                self._channel, log_time=stamp_ns, publish_time=stamp_ns,
                sequence=self.written, data=record.model_dump_json().encode(),
            )
            if self._commit():
                self.written += 1
            else:
                self._refused += 1
        self._mcap.finish()
        self._commit()
        self._sink.close()

    def _commit(self) -> bool:
        try:
            self._sink.commit()
        except OSError as err:
            self.fault = err.strerror or str(err)
            return False
        return True


def _open_mcap(sink: _Sink) -> tuple[Writer, int]:
    # No statistics at the end: they would count messages that the disk refused.
    mcap = Writer(
        sink, compression=CompressionType.NONE, use_chunking=False, use_statistics=False
    )
    mcap.start(profile='', library='smallm_ros')
    schema = json.dumps(DecisionRecord.model_json_schema()).encode()
    channel = mcap.register_channel(
        TOPIC, 'json', mcap.register_schema(SCHEMA_NAME, 'jsonschema', schema)
    )
    # Metadata makes the library hand over schema and channel now, not with the first record.
    mcap.add_metadata('smallm_ros', {'record_version': '1'})
    sink.commit()
    return mcap, channel


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
