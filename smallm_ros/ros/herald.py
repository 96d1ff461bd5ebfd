"""The watchdog's end of its herald: a process of its own that asks the graph and tells people.

A call into the middleware can wait for discovery's locks, and rclpy waits with the interpreter's
lock held, whichever thread calls it: beside a thread that looks at the graph the loop was up to
380 ms late. So nothing but the loop calls rclpy in the watchdog's process. What the herald finds
comes back over a pipe; what is to be told goes there; neither is ever waited for. When it dies it
is started again, and until it has looked nobody knows who else publishes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from smallm_ros.core.clock import SECOND

AGAIN_NS = 5 * SECOND
"""Between two starts."""
_MOST_BYTES = 1 << 20


class Herald:
    """Starts it, hears it, hands it what is to be told."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        """`about`: what `herald_process` must know of the node, JSON's types only."""
        self._about = about
        self._child: subprocess.Popen[bytes] | None = None
        self._start_again_ns = 0
        self._heard = b''
        self._untold = b''
        """The rest of a line that the pipe had no room for."""
        self.publishers: int | None = None
        """Publishers on the output topic, the node's own among them; None before a look."""
        self.others: tuple[str, ...] = ()
        """Whose they are, the node's own left out."""
        self.wrong: tuple[str, ...] = ()
        """What else is not as it should be on the graph, in words."""

    def turn(self, now_ns: int) -> str:
        """Hear what is new, see that it lives; return a line to log, or ''."""
        child = self._child
        if child is None:
            if now_ns >= self._start_again_ns:
                self._start(now_ns)
            return ''
        assert child.stdout is not None
        try:
            data = os.read(child.stdout.fileno(), 65536)
        except BlockingIOError:
            return ''
        if not data:
            self._end()
            return 'the herald has ended; nobody looks for a second publisher until it is back'
        *lines, self._heard = (self._heard + data)[-_MOST_BYTES:].split(b'\n')
        if lines:
            found = json.loads(lines[-1])
            self.publishers = int(found['publishers'])
            self.others, self.wrong = tuple(found['others']), tuple(found['wrong'])
        return ''

    def tell(self, news: Mapping[str, Any]) -> None:
        """Hand it something to tell; it is lost where the last has not gone yet."""
        if not self._untold:
            self._untold = _line(news)
        self._push()

    def close(self) -> None:
        """End it; it ends by itself once nobody holds its pipe."""
        if self._child is not None:
            self._end()

    def _start(self, now_ns: int) -> None:
        self._start_again_ns = now_ns + AGAIN_NS
        with contextlib.suppress(OSError):  # no process or descriptor left: the next time
            child = subprocess.Popen(
                [sys.executable, '-m', 'smallm_ros.ros.herald_process', str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            assert child.stdin is not None
            assert child.stdout is not None
            for pipe in (child.stdin, child.stdout):
                os.set_blocking(pipe.fileno(), False)
            self._child = child
            self._heard, self._untold = b'', _line(self._about)
            self._push()

    def _push(self) -> None:
        child = self._child
        if child is None:
            self._untold = b''
            return
        assert child.stdin is not None
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            self._untold = self._untold[os.write(child.stdin.fileno(), self._untold):]

    def _end(self) -> None:
        child, self._child = self._child, None
        self.publishers = None
        assert child is not None
        child.kill()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        child.wait()


def _line(news: Mapping[str, Any]) -> bytes:
    return json.dumps(news, allow_nan=False).encode() + b'\n'
