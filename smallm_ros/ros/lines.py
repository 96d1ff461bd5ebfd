"""Lines for people on stderr, from a process whose loop must never wait for a reader.

A pipe that nobody reads blocks its writer for ever, and rclpy's logger would do so with the
interpreter's lock held. Here a thread of its own blocks, and the oldest lines are lost.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque

from smallm_ros import steady
from smallm_ros.core.clock import SECOND

_MOST = 200
_PERIOD_S = 0.5


class Lines:
    """What one node says."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: deque[str] = deque(maxlen=_MOST)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, name='stderr', daemon=True)

    def say(self, level: str, text: str) -> None:
        """Have a line written soon, in the format of ROS's console; never waits."""
        self._lines.append(
            f'[{level}] [{steady.wall_ns() / SECOND:.3f}] [{self._name}]: {text}\n')

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Write what is left, where somebody reads it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _write(self) -> None:
        while True:
            ended = self._ended.wait(_PERIOD_S)
            while self._lines:
                text = self._lines.popleft().encode('utf-8', 'replace')
                with contextlib.suppress(OSError):  # nobody reads it
                    os.write(2, text)
            if ended:
                return
