"""The policy node's end of the engine's socket. It never waits.

It speaks with an engine of its own user or of root alone: without XDG_RUNTIME_DIR the socket is in
/tmp, where anybody could have made the directory first.

Who calls `poll` each control period gets what happened since the last call, and a connection that
is lost is made again by itself, at most once a second. Nothing is queued: what cannot be sent now
is the caller's to decide about, because an observation that waits is an old observation.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from smallm_ros import __version__
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import FrameError
from smallm_ros.core.exchange import (
    Cancel,
    Declaration,
    EngineEvent,
    EngineLost,
    EngineUp,
    Progress,
    Question,
)
from smallm_ros.engine.wire import EVENTS, Event, FrameReader, Hello, encode

FIRST_RETRY_NS = 100 * MS
LAST_RETRY_NS = SECOND
_CHUNK_BYTES = 64 * 1024
_PEER = struct.Struct('=iII')
"""struct ucred: pid, uid, gid."""
_CHUNKS_A_POLL = 16
"""More than this waits for the next poll: a flood cannot hold the caller."""


class EngineClient:
    """One connection to the engine, remade as often as needed."""

    def __init__(self, socket_path: Path, name: str) -> None:
        self._path = socket_path
        self._name = name
        self._socket: socket.socket | None = None
        self._reader = FrameReader(EVENTS)
        self._unsent = b''
        self._up = False
        self._lost_said = False
        self._retry_ns = FIRST_RETRY_NS
        self._next_try_ns: int | None = None

    def poll(self, now_ns: int) -> list[EngineEvent]:
        """Read what is there, connect when due; return what happened, oldest first.

        Of several Progress events in one poll the newest alone is kept. EngineLost comes once for
        each loss, and once when there was no engine to begin with.
        """
        if self._socket is None:
            if self._next_try_ns is not None and now_ns < self._next_try_ns:
                return []
            lost = self._connect(now_ns)
            if lost is not None:
                return lost
        events: list[EngineEvent] = []
        why = self._read(events)
        if why is None:
            why = self._flush()
        newest = max((i for i, e in enumerate(events) if isinstance(e, Progress)), default=0)
        events = [e for i, e in enumerate(events) if i == newest or not isinstance(e, Progress)]
        if why is not None:
            events += self._lose(now_ns, why)
        return events

    def send_nowait(self, item: Declaration | Question | Cancel) -> bool:
        """Send now, or return False: not connected, or the socket's buffer is full.

        Raises FrameError when `item` itself cannot travel.
        """
        frame = encode(item)
        if self._socket is None or not self._up or self._unsent:
            return False
        self._unsent = frame
        self._flush()
        if len(self._unsent) == len(frame):
            self._unsent = b''
            return False
        return True

    def fileno(self) -> int | None:
        """Return the connection's file descriptor, None while there is none.

        It changes with each connection.
        """
        return None if self._socket is None else self._socket.fileno()

    def close(self) -> None:
        """Close the connection; the next `poll` would make a new one."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._up = False
        self._unsent = b''

    def _connect(self, now_ns: int) -> list[EngineEvent] | None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._reader = FrameReader(EVENTS)
        try:
            self._socket.connect(str(self._path))
        except OSError as err:
            # EAGAIN is a full backlog: a Unix socket connects at once or not at all.
            return self._lose(now_ns, f'no engine at {self._path}: {err.strerror}')
        peer = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        _, uid, _ = _PEER.unpack(peer)
        if uid not in (os.getuid(), 0):
            return self._lose(
                now_ns, f'the engine belongs to uid {uid}, not to {os.getuid()}: {self._path}')
        self._unsent = encode(Hello(self._name, __version__))
        return None

    def _lose(self, now_ns: int, why: str) -> list[EngineEvent]:
        self.close()
        self._next_try_ns = now_ns + self._retry_ns
        self._retry_ns = min(2 * self._retry_ns, LAST_RETRY_NS)
        if self._lost_said:
            return []
        self._lost_said = True
        return [EngineLost(why)]

    def _read(self, events: list[EngineEvent]) -> str | None:
        """Append what came to `events`; return why the connection is lost, None when it is not."""
        assert self._socket is not None
        for _ in range(_CHUNKS_A_POLL):
            try:
                data = self._socket.recv(_CHUNK_BYTES)
            except BlockingIOError:
                return None
            except OSError as err:
                return f'the connection to the engine broke: {err.strerror}'
            try:
                if not data:
                    self._reader.end()
                    return 'the engine closed the connection'
                items = self._reader.feed(data)
            except FrameError as err:
                return f'the engine sent no frame: {err}'
            for item in items:
                self._note(item)
                events.append(item)
        return None

    def _note(self, item: Event) -> None:
        if isinstance(item, EngineUp):
            self._up = True
            self._lost_said = False
            self._retry_ns = FIRST_RETRY_NS

    def _flush(self) -> str | None:
        """Send what is begun; return why the connection is lost, None when it is not."""
        if not self._unsent:
            return None
        assert self._socket is not None
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent):]
        except BlockingIOError:
            pass
        except OSError as err:
            return f'the connection to the engine broke: {err.strerror}'
        return None
