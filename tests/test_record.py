"""Records on disk: whole after a kill, dropped and counted when the disk or the queue is full."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jsonschema
import pytest
from mcap.reader import make_reader

from smallm_ros.core.clock import SECOND
from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import BagError, OperatorError
from smallm_ros.record import writer as writer_module
from smallm_ros.record.reader import read_records
from smallm_ros.record.writer import RecordWriter
from tests.fakes.recordings import a_record


def some(n: int) -> list[DecisionRecord]:
    return [a_record(1_000 * SECOND + k * SECOND, command=k + 1) for k in range(n)]


def write(path: Path, records: list[DecisionRecord]) -> RecordWriter:
    writer = RecordWriter(path)
    for record in records:
        assert writer.put_nowait(record)
    writer.close()
    return writer


def read(path: Path) -> tuple[list[DecisionRecord], list[str]]:
    said: list[str] = []
    return list(read_records(path, said.append)), said


def test_what_was_put_is_read_in_order(tmp_path: Path) -> None:
    records = some(20)
    writer = write(tmp_path / 'decisions.mcap', records)
    assert (writer.written, writer.dropped, writer.fault) == (20, 0, '')
    assert read(tmp_path / 'decisions.mcap') == (records, [])


def test_other_readers_find_the_messages_and_their_schema(tmp_path: Path) -> None:
    path = tmp_path / 'decisions.mcap'
    write(path, some(3))
    with path.open('rb') as file:
        found = list(make_reader(file).iter_messages())
    assert len(found) == 3
    for schema, channel, message in found:
        assert schema is not None
        assert schema.encoding == 'jsonschema'
        assert (channel.topic, channel.message_encoding) == ('/decision', 'json')
        content = json.loads(message.data)
        jsonschema.validate(content, json.loads(schema.data))


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / 'decisions.mcap'
    write(path, some(1))
    with pytest.raises(OperatorError, match='File exists'):
        RecordWriter(path)


def test_the_folder_is_made(tmp_path: Path) -> None:
    write(tmp_path / 'absent' / 'too' / 'x.mcap', some(1))
    assert (tmp_path / 'absent' / 'too' / 'x.mcap').exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(OperatorError, match=r'file/x.mcap: cannot record decisions: '):
        RecordWriter(tmp_path / 'file' / 'x.mcap')


def test_every_truncation_reads_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = tmp_path / 'whole.mcap'
    records = some(4)
    write(whole, records)
    data = whole.read_bytes()
    cut = tmp_path / 'cut.mcap'
    counts = set()
    for length in range(8, len(data) - 8, 97):
        cut.write_bytes(data[:length])
        found, said = read(cut)
        assert found == records[:len(found)]
        assert len(said) == 1
        assert f'after {len(found)} records' in said[0]
        counts.add(len(found))
    assert counts == {0, 1, 2, 3, 4}


def test_damage_in_the_middle_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / 'decisions.mcap'
    records = some(4)
    write(path, records)
    data = bytearray(path.read_bytes())
    place = data.rindex(b'"version":1,"policy"')
    data[place:place + 4] = b'\xff\xff\xff\xff'
    path.write_bytes(data)
    found, said = read(path)
    assert found == records[:3]
    assert len(said) == 1
    assert 'damaged after 3 records' in said[0]


@pytest.mark.parametrize('data', [b'', b'abc', b'not a recording at all'])
def test_what_is_no_recording_is_said(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / 'x.mcap'
    path.write_bytes(data)
    with pytest.raises(BagError, match=r'x.mcap: not an MCAP file'):
        read(path)


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r'absent.mcap: cannot be read: No such file'):
        read(tmp_path / 'absent.mcap')


def test_a_kill_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / 'decisions.mcap'
    program = (
        'import sys\n'
        'from pathlib import Path\n'
        'from tests.fakes.recordings import a_record\n'
        'from smallm_ros.record.writer import RecordWriter\n'
        f'writer = RecordWriter(Path({str(path)!r}))\n'
        'for k in range(5):\n'
        '    writer.put_nowait(a_record(command=k + 1))\n'
        'while writer.written < 5:\n'
        '    pass\n'
        'print("written", flush=True)\n'
        'sys.stdin.read()\n'
    )
    child = subprocess.Popen(
        [sys.executable, '-c', program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])},
    )
    assert child.stdout is not None
    assert child.stdin is not None
    with child:
        assert child.stdout.readline() == b'written\n'
        child.send_signal(signal.SIGKILL)
    found, said = read(path)
    assert [record.command_sequence for record in found] == [1, 2, 3, 4, 5]
    assert len(said) == 1


def test_a_full_disk_drops_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'decisions.mcap'
    writer = RecordWriter(path)
    real, calls = os.write, [0]

    def full(fd: int, data: bytes) -> int:
        """Take half of the third record, then nothing of it; later there is room again."""
        calls[0] += 1
        if calls[0] == 3:
            return real(fd, data[:len(data) // 2])
        if calls[0] == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(writer_module.os, 'write', full)
    records = some(5)
    for record in records:
        assert writer.put_nowait(record)
    writer.close()
    assert (writer.written, writer.dropped) == (4, 1)
    assert writer.fault == 'No space left on device'
    assert read(path) == (records[:2] + records[3:], [])


def test_a_full_queue_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, began = threading.Event(), threading.Event()
    real = os.write
    path = tmp_path / 'decisions.mcap'
    writer = RecordWriter(path, queue_limit=2)

    def stuck(fd: int, data: bytes) -> int:
        began.set()
        assert held.wait(10)
        return real(fd, data)

    monkeypatch.setattr(writer_module.os, 'write', stuck)
    assert writer.put_nowait(a_record())
    assert began.wait(10)
    assert [writer.put_nowait(record) for record in some(4)] == [True, True, False, False]
    held.set()
    writer.close()
    assert (writer.written, writer.dropped) == (3, 2)
    assert len(read(path)[0]) == 3
