"""What the engine's socket carries: frames of msgpack, of one version, bounded both ways.

A frame is magic, version, length and a body `[kind, {field: value, ...}]`. The kinds are the
dataclasses of `core/exchange`, and their annotations are the schema: a body with a field too many,
too few, twice, of another type or not finite is no frame. Each side knows only the kinds that the
other may send. What does not fit raises FrameError, and the connection that sent it is closed,
because after one bad length nothing that follows can be trusted.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import os
import stat
import struct
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgpack

from smallm_ros.core.errors import FrameError, OperatorError
from smallm_ros.core.exchange import (
    Cancel,
    Cancelled,
    Decided,
    Declaration,
    DeclarationRejected,
    Declared,
    EngineUp,
    Missed,
    ModelLimits,
    Progress,
    Question,
    Refused,
    Said,
)

MAGIC = b'sml'
VERSION = 3
_HEADER = struct.Struct('<3sBI')
_INT64 = 2**63
_PATH_LIMIT = 107
"""Bytes in sockaddr_un.sun_path, less the final zero: unix(7)."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of a client: who it is."""

    client: str
    version: str
    """Version of the client's package, for the log; the frames' own version is in their header."""


Request = Hello | Declaration | Question | Cancel
Event = (
    EngineUp | ModelLimits | Progress | Declared | DeclarationRejected
    | Decided | Refused | Missed | Cancelled | Said
)
_T = TypeVar('_T')


@dataclass(frozen=True, slots=True)
class Vocabulary(Generic[_T]):
    """The kinds that one side may send, and the largest body that it may send them in."""

    kinds: Mapping[str, type[_T]]
    max_bytes: int


REQUESTS: Vocabulary[Request] = Vocabulary(
    {kind.__name__: kind for kind in typing.get_args(Request)}, 1024 * 1024
)
EVENTS: Vocabulary[Event] = Vocabulary(
    {kind.__name__: kind for kind in typing.get_args(Event)}, 256 * 1024
)

# --- values <-> plain msgpack -----------------------------------------------------------------


def _fields(kind: type[Any], known: dict[type[Any], dict[str, Any]]) -> None:
    if kind in known:
        return
    known[kind] = typing.get_type_hints(kind)
    for hint in known[kind].values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                _fields(typing.cast('type[Any]', part), known)


_SCHEMA: dict[type[Any], dict[str, Any]] = {}
"""Every dataclass that travels, with its fields and their types."""
for _kind in (*REQUESTS.kinds.values(), *EVENTS.kinds.values()):
    _fields(_kind, _SCHEMA)


def _tuple_hints(hint: Any, length: int, place: str) -> tuple[Any, ...]:
    parts = typing.get_args(hint)
    if parts[-1] is Ellipsis:
        return (parts[0],) * length
    if length != len(parts):
        raise FrameError(f'{place}: {length} values where {len(parts)} belong')
    return parts


def _plain(hint: Any, value: Any, place: str) -> Any:
    """Return `value` as msgpack knows it, or raise FrameError where it is not a `hint`."""
    if hint in _SCHEMA:
        if type(value) is not hint:
            raise FrameError(f'{place}: {value!r:.40} is no {hint.__name__}')
        return {
            name: _plain(part, getattr(value, name), f'{place}.{name}')
            for name, part in _SCHEMA[hint].items()
        }
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            raise FrameError(f'{place}: {value!r:.40} is no tuple')
        parts = _tuple_hints(hint, len(value), place)
        return [
            _plain(part, item, f'{place}[{i}]')
            for i, (part, item) in enumerate(zip(parts, value, strict=True))
        ]
    if issubclass(hint, enum.Enum):
        if not isinstance(value, hint):
            raise FrameError(f'{place}: {value!r:.40} is no {hint.__name__}')
        return value.value
    return _scalar(hint, value, place)


def _value(hint: Any, plain: Any, place: str) -> Any:
    """Return the value of type `hint` that msgpack gave as `plain`, or raise FrameError."""
    if hint in _SCHEMA:
        fields = _SCHEMA[hint]
        if not isinstance(plain, dict):
            raise FrameError(f'{place}: {plain!r:.40} is no map')
        if plain.keys() != fields.keys():
            missing = ', '.join(fields.keys() - plain.keys())
            extra = ', '.join(str(key) for key in plain.keys() - fields.keys())
            raise FrameError(f'{place}: missing: {missing or "none"}; unknown: {extra or "none"}'
                             [:200])
        return hint(**{
            name: _value(part, plain[name], f'{place}.{name}') for name, part in fields.items()
        })
    if typing.get_origin(hint) is tuple:
        if not isinstance(plain, tuple):
            raise FrameError(f'{place}: {plain!r:.40} is no array')
        parts = _tuple_hints(hint, len(plain), place)
        return tuple(
            _value(part, item, f'{place}[{i}]')
            for i, (part, item) in enumerate(zip(parts, plain, strict=True))
        )
    if issubclass(hint, enum.Enum):
        try:
            return hint(_scalar(str, plain, place))
        except ValueError as err:
            known = ', '.join(member.value for member in hint)
            raise FrameError(f'{place}: {plain!r:.40} is none of: {known}') from err
    return _scalar(hint, plain, place)


def _scalar(hint: type[Any], value: Any, place: str) -> Any:
    if hint is float and type(value) is not bool and isinstance(value, (float, int)):
        number = float(value) if abs(value) < _INT64 or isinstance(value, float) else math.inf
        if not math.isfinite(number):
            raise FrameError(f'{place}: {value!r:.40} is not finite')
        return number
    if type(value) is not hint:
        raise FrameError(f'{place}: {value!r:.40} is no {hint.__name__}')
    if hint is int and not -_INT64 <= value < _INT64:
        raise FrameError(f'{place}: {value} has more than 64 bits')
    return value


# --- frames -----------------------------------------------------------------------------------


def encode(item: Request | Event) -> bytes:
    """Return the frame of `item`; FrameError when it holds what no frame may, or is too large."""
    kind = type(item)
    name = kind.__name__
    if kind not in _SCHEMA:
        raise FrameError(f'{item!r:.40} does not travel')
    limit = (REQUESTS if name in REQUESTS.kinds else EVENTS).max_bytes
    try:
        body = msgpack.packb([name, _plain(kind, item, name)])
    except UnicodeEncodeError as err:
        raise FrameError(f'{name}: not UTF-8: {err.reason}') from err
    if len(body) > limit:
        raise FrameError(f'{name}: {len(body)} bytes, at most {limit}')
    return _HEADER.pack(MAGIC, VERSION, len(body)) + bytes(body)


class FrameReader(Generic[_T]):
    """Turns the bytes of one connection into values; after a FrameError it is of no more use."""

    def __init__(self, vocabulary: Vocabulary[_T]) -> None:
        self._vocabulary = vocabulary
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[_T]:
        """Take the bytes that came and return the values that they complete.

        Holds at most one frame. Raises FrameError that says what is wrong with the first bad one.
        """
        self._buffer += data
        items: list[_T] = []
        start = 0
        while (end := self._frame_end(start)) is not None:
            items.append(self._decode(bytes(self._buffer[start + _HEADER.size:end])))
            start = end
        del self._buffer[:start]
        return items

    def end(self) -> None:
        """Say that the other side closed: FrameError when that was in the middle of a frame."""
        if self._buffer:
            raise FrameError(f'the connection ended after {len(self._buffer)} bytes of a frame')

    def _frame_end(self, start: int) -> int | None:
        """Return where the frame at `start` ends, or None while it is not complete."""
        head = bytes(self._buffer[start:start + _HEADER.size])
        if head[:len(MAGIC)] != MAGIC[:len(head)]:
            raise FrameError(f'{head[:len(MAGIC)]!r} where a frame begins with {MAGIC!r}')
        if len(head) > len(MAGIC) and head[len(MAGIC)] != VERSION:
            raise FrameError(f'frame version {head[len(MAGIC)]}, this side speaks {VERSION}: '
                             'install the same smallm_ros on both sides')
        if len(head) < _HEADER.size:
            return None
        length = _HEADER.unpack(head)[2]
        if length > self._vocabulary.max_bytes:
            raise FrameError(f'a frame of {length} bytes, at most {self._vocabulary.max_bytes}')
        end = start + _HEADER.size + int(length)
        return end if end <= len(self._buffer) else None

    def _decode(self, body: bytes) -> _T:
        try:
            plain = msgpack.unpackb(body, use_list=False, object_pairs_hook=_unique)
        except FrameError:
            raise
        except (ValueError, msgpack.UnpackException, RecursionError, TypeError) as err:
            raise FrameError(f'not msgpack: {err}'[:200]) from err
        if not (isinstance(plain, tuple) and len(plain) == 2 and isinstance(plain[0], str)):
            raise FrameError(f'{plain!r:.40} is no [kind, fields]')
        kind = self._vocabulary.kinds.get(plain[0])
        if kind is None:
            known = ', '.join(self._vocabulary.kinds)
            raise FrameError(f'unknown kind {plain[0]!r:.40}; there are: {known}')
        return typing.cast('_T', _value(kind, plain[1], plain[0]))


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise FrameError('a field stands twice')
    return out


# --- where the socket is ----------------------------------------------------------------------


def default_socket() -> Path:
    """Return the engine's socket of this user: for the engine and its clients the same."""
    named = os.environ.get('SMALLM_SOCKET')
    if named:
        return Path(named)
    runtime = os.environ.get('XDG_RUNTIME_DIR')
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / 'smallm' / 'engine.sock'
    # Shared by all users, so prepare_socket_directory refuses one that another user made.
    return Path(f'/tmp/smallm-{os.getuid()}') / 'engine.sock'


def prepare_socket_directory(socket_path: Path) -> None:
    """Make sure that `socket_path` can be bound and that nobody else could have put it there.

    Creates the directory (0700) where it is missing. Raises OperatorError when the path is too
    long for a Unix socket, or the directory is another user's or writable by everyone.
    """
    if len(os.fsencode(socket_path)) > _PATH_LIMIT:
        raise OperatorError(f'{socket_path}: a socket path has at most {_PATH_LIMIT} bytes; '
                            'use a shorter --socket')
    directory = socket_path.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as err:
        raise OperatorError(f'{directory}: cannot hold the socket: {err.strerror}') from err
    if found.st_uid != os.getuid():
        raise OperatorError(f'{directory}: belongs to uid {found.st_uid}, not to {os.getuid()}; '
                            'use another --socket')
    if found.st_mode & stat.S_IWOTH:
        raise OperatorError(f'{directory}: writable by everyone; chmod o-w it, or use another '
                            '--socket')
