"""Frames: every value there and back, and nothing else gets in."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm_ros.core import exchange as ex
from smallm_ros.core.action import ChoicePoint, Decision, Timings, TokenCounts
from smallm_ros.core.errors import FrameError, OperatorError
from smallm_ros.engine.wire import (
    EVENTS,
    REQUESTS,
    VERSION,
    Event,
    FrameReader,
    Hello,
    Request,
    default_socket,
    encode,
    prepare_socket_directory,
)

integers = st.integers(-2**63, 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=['Cs']), max_size=40)
choice_points = st.builds(
    ChoicePoint, prefix=texts, children=st.lists(st.tuples(texts, floats), max_size=4).map(tuple)
)
decisions = st.builds(
    Decision, leaf=integers, confidence=floats,
    choices=st.lists(choice_points, max_size=3).map(tuple),
    tokens=st.builds(TokenCounts, *[integers] * 4),
    timings=st.builds(Timings, *[integers] * 4, st.lists(integers, max_size=3).map(tuple)),
)
strings = st.lists(texts, max_size=3).map(tuple)
shorter = st.lists(st.builds(ex.Shorter, integers, texts), max_size=2).map(tuple)
segments = st.builds(ex.Segment, texts, texts, integers, shorter)
requests = st.one_of(
    st.builds(Hello, texts, texts),
    st.builds(ex.Cancel, integers),
    st.builds(ex.Declaration, texts, texts,
              st.lists(st.tuples(texts, texts), max_size=3).map(tuple), strings, integers,
              strings),
    st.builds(ex.Question, integers, texts, integers,
              st.lists(segments, max_size=3).map(tuple)),
)
events = st.one_of(
    st.builds(ex.EngineUp, integers, integers),
    st.builds(ex.ModelLimits, texts, texts, texts, *[integers] * 6),
    st.builds(ex.Progress, st.sampled_from(ex.EngineState), *[integers] * 5),
    st.builds(ex.Declared, texts, *[integers] * 3),
    st.builds(ex.DeclarationRejected, texts, texts),
    st.builds(ex.Decided, integers, decisions, strings, texts),
    st.builds(ex.Refused, integers, st.sampled_from(ex.RefusedWhy), texts),
    st.builds(ex.Missed, integers, st.sampled_from(ex.MissedWhy), texts),
    st.builds(ex.Cancelled, integers),
)


def frame(body: bytes, version: int = VERSION, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return struct.pack('<3sBI', b'sml', version, size) + body


def packed(kind: object, fields: object) -> bytes:
    return frame(msgpack.packb([kind, fields]))


@given(items=st.lists(requests, max_size=4), cut=st.integers(1, 50))
def test_requests_arrive_however_they_are_cut(items: list[Request], cut: int) -> None:
    data = b''.join(map(encode, items))
    reader = FrameReader(REQUESTS)
    arrived: list[Request] = []
    for start in range(0, len(data), cut):
        arrived += reader.feed(data[start:start + cut])
    reader.end()
    assert arrived == items


@given(item=events)
def test_events_arrive(item: Event) -> None:
    (arrived,) = FrameReader(EVENTS).feed(encode(item))
    assert arrived == item
    assert type(arrived) is type(item)


def test_every_kind_of_the_exchange_has_a_way() -> None:
    there = set(REQUESTS.kinds) | set(EVENTS.kinds)
    local = {'Segment', 'Shorter', 'EngineLost', 'Decision', 'FreeText'}
    values = {name for name, kind in vars(ex).items() if hasattr(kind, '__dataclass_fields__')}
    assert values - local == there - {'Hello'}


@settings(max_examples=300)
@given(data=st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    try:
        assert FrameReader(REQUESTS).feed(data) == []
    except FrameError:
        pass


@settings(max_examples=300)
@given(body=st.binary(max_size=120))
def test_a_garbage_body_is_a_frame_error(body: bytes) -> None:
    with pytest.raises(FrameError):
        FrameReader(REQUESTS).feed(frame(body))


@given(item=events, at=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_a_value_or_a_frame_error(item: Event, at: int, bit: int) -> None:
    data = bytearray(encode(item))
    data[at % len(data)] ^= 1 << bit
    try:
        for arrived in FrameReader(EVENTS).feed(bytes(data)):
            assert FrameReader(EVENTS).feed(encode(arrived)) == [arrived]
    except FrameError:
        pass


@given(item=requests, at=st.integers(0))
def test_a_truncated_frame_is_named_at_the_end(item: Request, at: int) -> None:
    data = encode(item)
    reader = FrameReader(REQUESTS)
    assert reader.feed(data[:1 + at % (len(data) - 1)]) == []
    with pytest.raises(FrameError, match='ended after'):
        reader.end()


@pytest.mark.parametrize(('data', 'what'), [
    (b'GET / HTTP/1.1\r\n', "b'GET' where a frame begins"),
    (frame(b'', version=1), 'frame version 1, this side speaks 3'),
    (frame(b'', length=1 << 30), 'a frame of 1073741824 bytes, at most 1048576'),
    (frame(b'\xc1'), 'not msgpack'),
    (frame(b''), 'not msgpack'),
    (frame(msgpack.packb(['Cancel', {'request': 1}]) + b'\x00'), 'not msgpack'),
    (frame(b'\x91' * 5000 + b'\x90'), 'not msgpack'),
    (frame(b'\xdd\xff\xff\xff\xff'), 'not msgpack'),
    (packed('Shutdown', {}), "unknown kind 'Shutdown'; there are: Hello"),
    (packed('EngineUp', {'worker_pid': 1, 'worker_start_ticks': 1}), "unknown kind 'EngineUp'"),
    (packed(['Cancel'], {'request': 1}), 'no \\[kind, fields\\]'),
    (packed('Cancel', {}), 'Cancel: missing: request; unknown: none'),
    (packed('Cancel', {'request': 1, 'why': 'x'}), 'Cancel: missing: none; unknown: why'),
    (packed('Cancel', [1]), 'Cancel: .* is no map'),
    (packed('Cancel', {'request': '1'}), "Cancel.request: '1' is no int"),
    (packed('Cancel', {'request': True}), 'Cancel.request: True is no int'),
    (packed('Cancel', {'request': 1.0}), 'Cancel.request: 1.0 is no int'),
    (packed('Cancel', {'request': 2**63}), 'has more than 64 bits'),
    (packed('Cancel', {'request': None}), 'None is no int'),
    (packed('Cancel', {1: 1}), 'not msgpack|missing'),
    (packed('Hello', {'client': b'raw', 'version': '1'}), 'is no str'),
    (frame(b'\x92\xa6Cancel\x82\xa7request\x01\xa7request\x02'), 'a field stands twice'),
    (frame(b'\x92\xa6Cancel\x81\xa7request\xd4\x01\x00'), 'is no int'),
    (frame(b'\x92\xa5Hello\x82\xa6client\xa1\xff\xa7version\xa0'), 'not msgpack'),
], ids=lambda value: value[:24] if isinstance(value, str) else '')
def test_what_is_wrong_is_said(data: bytes, what: str) -> None:
    with pytest.raises(FrameError, match=what):
        FrameReader(REQUESTS).feed(data)


@pytest.mark.parametrize('size', [None, 1, 3])
def test_a_pair_has_two(size: int | None) -> None:
    example: Any = 'text' if size is None else ['a'] * size
    fields = {'space': 's', 'system': '', 'examples': [example], 'answers': [],
              'max_prompt_tokens': 1, 'references': [], 'correction': 'none',
              'decide': 'greedy', 'actions': [], 'departures': [], 'history': 0,
              'text': {'lead': '', 'max_tokens': 0, 'max_characters': 0}}
    with pytest.raises(FrameError, match=r'Declaration\.examples\[0\]'):
        FrameReader(REQUESTS).feed(packed('Declaration', fields))


def test_an_enum_names_its_members() -> None:
    with pytest.raises(FrameError, match="Refused.why: 'lazy' is none of: not_ready"):
        FrameReader(EVENTS).feed(packed('Refused', {'request': 1, 'why': 'lazy', 'detail': ''}))


def decided(confidence: float) -> ex.Decided:
    return ex.Decided(1, Decision(
        0, confidence, (), TokenCounts(1, 0, 1, 1), Timings(1, 2, 3, 0, (1,))
    ), (), 'f' * 64)


@pytest.mark.parametrize('number', [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_passes_neither_way(number: float) -> None:
    with pytest.raises(FrameError, match='confidence: .* is not finite'):
        encode(decided(number))
    good = encode(decided(0.123456789))
    bad = good.replace(struct.pack('>d', 0.123456789), struct.pack('>d', number))
    assert bad != good
    with pytest.raises(FrameError, match='confidence: .* is not finite'):
        FrameReader(EVENTS).feed(bad)


@pytest.mark.parametrize(('item', 'what'), [
    (ex.Cancel(2**63), 'more than 64 bits'),
    (ex.Cancel(True), 'is no int'),
    (ex.Cancel('1'), 'is no int'),  # type: ignore[arg-type]
    (Hello('\ud800', ''), 'not UTF-8'),
    (Hello('x' * (1 << 20), ''), 'at most 1048576'),
    (ex.Declared('x' * (1 << 18), 1, 1, 1), 'at most 262144'),
    (ex.Question(1, 's', 1, [ex.Segment('a', 'b', 0)]), 'is no tuple'),  # type: ignore[arg-type]
    (ex.Question(1, 's', 1, (ex.Cancel(1),)), 'is no Segment'),  # type: ignore[arg-type]
    (ex.Refused(1, 'busy', ''), 'is no RefusedWhy'),  # type: ignore[arg-type]
    (ex.EngineLost('local'), 'does not travel'),
])
def test_what_no_frame_may_hold_is_not_sent(item: Any, what: str) -> None:
    with pytest.raises(FrameError, match=what):
        encode(item)


def test_good_frames_before_a_bad_one_do_not_save_it() -> None:
    with pytest.raises(FrameError):
        FrameReader(REQUESTS).feed(encode(ex.Cancel(1)) + b'garbage')


def test_the_socket_has_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('SMALLM_SOCKET', '/somewhere/e.sock')
    assert default_socket() == Path('/somewhere/e.sock')
    monkeypatch.delenv('SMALLM_SOCKET')
    monkeypatch.setenv('XDG_RUNTIME_DIR', str(tmp_path))
    assert default_socket() == tmp_path / 'smallm' / 'engine.sock'
    monkeypatch.setenv('XDG_RUNTIME_DIR', str(tmp_path / 'absent'))
    assert default_socket() == Path(f'/tmp/smallm-{os.getuid()}/engine.sock')


def test_the_directory_is_private(tmp_path: Path) -> None:
    prepare_socket_directory(tmp_path / 'new' / 'e.sock')
    assert (tmp_path / 'new').stat().st_mode & 0o777 == 0o700
    (tmp_path / 'new').chmod(0o777)
    with pytest.raises(OperatorError, match='writable by everyone'):
        prepare_socket_directory(tmp_path / 'new' / 'e.sock')
    with pytest.raises(OperatorError, match='at most 107 bytes'):
        prepare_socket_directory(tmp_path / ('x' * 107))
    (tmp_path / 'file').write_text('')
    with pytest.raises(OperatorError, match='cannot hold the socket'):
        prepare_socket_directory(tmp_path / 'file' / 'e.sock')
