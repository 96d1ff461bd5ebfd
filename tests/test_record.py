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
from mcap.writer import CompressionType, Writer

from smallm_ros.core.clock import SECOND
from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import BagError, OperatorError
from smallm_ros.core.exchange import ModelLimits
from smallm_ros.core.pilot import Say
from smallm_ros.record import writer as writer_module
from smallm_ros.record.reader import read_declarations, read_models, read_records, read_texts
from smallm_ros.record.writer import RecordWriter
from tests.fakes.recordings import a_declaration, a_record

MODEL = ModelLimits('tiny', 'ab' * 32, 'chatml', 4096, 1000, 1, 0, 20, 1)


def some(n: int) -> list[DecisionRecord]:
    return [a_record(1_000 * SECOND + k * SECOND, command=k + 1) for k in range(n)]


def write(path: Path, records: list[DecisionRecord]) -> RecordWriter:
    writer = RecordWriter(path, None)
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
    whole(path)
    with path.open('rb') as file:
        found = list(make_reader(file).iter_messages())
    for schema, channel, message in found:
        assert schema is not None
        assert schema.encoding == 'jsonschema'
        assert channel.message_encoding == 'json'
        content = json.loads(message.data)
        jsonschema.validate(content, json.loads(schema.data))
    assert [channel.topic for _, channel, _ in found] == [
        '/declaration', '/model', '/decision', '/say', '/decision']
    times = [message.log_time for _, _, message in found]
    assert times == sorted(times)
    assert times[0] == a_record().ros_now_ns  # nothing lies in 1970


def whole(path: Path) -> RecordWriter:
    """Write a recording with one entry of each kind."""
    writer = RecordWriter(path, a_declaration())
    first, second = some(2)
    for entry in (MODEL, first, Say(1, 'the way is \u202e free', False), second):
        assert writer.put_nowait(entry)
    writer.close()
    return writer


def test_a_recording_holds_all_that_deciding_again_needs(tmp_path: Path) -> None:
    path = tmp_path / 'decisions.mcap'
    writer = whole(path)
    assert (writer.written, writer.dropped) == (2, 0)
    assert read_declarations(path) == {'small-1': a_declaration()}
    assert read_models(path) == [MODEL]
    assert read_texts(path) == [Say(1, 'the way is \u202e free', False)]
    assert read(path) == (some(2), [])
    record = read(path)[0][0]
    assert (record.space, record.ids) == ('small-1', (11, 12, 13))
    assert record.decision is not None
    assert record.decision.tokens.reused == 150


def test_the_declaration_is_written_once_and_none_without_a_record(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / 'a.mcap', a_declaration())
    for record in some(3):
        writer.put_nowait(record)
    writer.close()
    with (tmp_path / 'a.mcap').open('rb') as file:
        topics = [channel.topic for _, channel, _ in make_reader(file).iter_messages()]
    assert topics == ['/declaration', *['/decision'] * 3]
    RecordWriter(tmp_path / 'b.mcap', a_declaration()).close()
    assert read_declarations(tmp_path / 'b.mcap') == {}


@pytest.mark.parametrize('version', [1, 3])
def test_a_recording_of_another_version_is_one_line(tmp_path: Path, version: int) -> None:
    path = tmp_path / 'old.mcap'
    with path.open('wb') as file:  # as the release that wrote this version did
        mcap = Writer(file, compression=CompressionType.NONE, use_chunking=False)
        mcap.start(profile='', library='smallm_ros')
        channel = mcap.register_channel(
            '/decision', 'json', mcap.register_schema('x', 'jsonschema', b'{}'))
        mcap.add_metadata('smallm_ros', {'record_version': str(version)})
        mcap.add_message(channel, 0, b'{"version":1,"policy":"small"}', 0)
        mcap.finish()
    for reader in (read, read_declarations, read_texts):
        with pytest.raises(BagError) as caught:
            reader(path)
        assert str(caught.value) == (
            f'{path}: a recording of version {version}, this smallm reads version 2: use the '
            'release that recorded it')


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / 'decisions.mcap'
    write(path, some(1))
    with pytest.raises(OperatorError, match='File exists'):
        RecordWriter(path, None)


def test_the_folder_is_made(tmp_path: Path) -> None:
    write(tmp_path / 'absent' / 'too' / 'x.mcap', some(1))
    assert (tmp_path / 'absent' / 'too' / 'x.mcap').exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(OperatorError, match=r'file/x.mcap: cannot record decisions: '):
        RecordWriter(tmp_path / 'file' / 'x.mcap', None)


def test_every_truncation_reads_as_far_as_it_goes(tmp_path: Path) -> None:
    complete = tmp_path / 'whole.mcap'
    records = some(4)
    write(complete, records)
    data = complete.read_bytes()
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
    place = data.rindex(b'"version":2,"policy"')
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
        f'writer = RecordWriter(Path({str(path)!r}), None)\n'
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
    writer = RecordWriter(path, a_declaration())
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
    assert read_declarations(path) == {'small-1': a_declaration()}


def test_a_disk_that_is_full_at_first_gets_the_declaration_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'decisions.mcap'
    writer = RecordWriter(path, a_declaration())
    real, calls = os.write, [0]

    def full_once(fd: int, data: bytes) -> int:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(writer_module.os, 'write', full_once)
    for record in some(3):
        writer.put_nowait(record)
    writer.close()
    assert (writer.written, writer.dropped) == (2, 1)
    assert read_declarations(path) == {'small-1': a_declaration()}
    assert read(path)[0] == some(3)[1:]


def test_a_full_queue_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, began = threading.Event(), threading.Event()
    real = os.write
    path = tmp_path / 'decisions.mcap'
    writer = RecordWriter(path, None, queue_limit=2)

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
