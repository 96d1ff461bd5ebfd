"""A real worker process whose model is a script: `--script` is a JSON list of lines.

`--load` says how its load goes, `--habit` what it does as a process once it is loaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallm_ros.core.clock import MS, Clock
from smallm_ros.core.errors import ModelFileError
from smallm_ros.core.exchange import Answer, Question
from smallm_ros.engine.options import FIRST_TO_GO
from smallm_ros.engine.progress import ProgressWriter
from smallm_ros.engine.scripted import LIMITS, Act, Line, ScriptedDecider
from smallm_ros.engine.worker import add_place_options, place, serve
from smallm_ros.steady import SteadyClock, now_ns, sleep_until

if TYPE_CHECKING:
    from smallm_ros.engine.decode import Decider


HELD: list[bytearray] = []
"""What a greedy load has taken."""


def greedy(writer: ProgressWriter) -> None:
    """Take 8 MiB of memory every 20 ms, and get on with it."""
    for step in itertools.count(1):
        HELD.append(bytearray(os.urandom(1)) * (8 << 20))
        writer.loading(0.5 + step * 1e-6)
        sleep_until(now_ns() + 20 * MS)


def endless(writer: ProgressWriter) -> None:
    """Get on, a little at a time, and never come to an end."""
    for step in itertools.count(1):
        writer.loading(0.5 + step * 1e-6)
        sleep_until(now_ns() + 20 * MS)


def closes_its_streams() -> None:
    """Close stdout and stderr."""
    os.closerange(1, 3)


def floods() -> None:
    """Write to stderr as fast as it is read, on a thread of its own."""
    def flood() -> None:
        while True:
            try:
                os.write(2, b'x' * 1000 + b'\n')
            except BlockingIOError:
                sleep_until(now_ns() + MS)
    threading.Thread(target=flood, daemon=True).start()


def forks() -> None:
    """Leave a child behind that holds what the worker inherited, the lock among it."""
    child = subprocess.Popen(['sleep', '300'], close_fds=False)
    os.write(2, f'child {child.pid}\n'.encode())


def escapes() -> None:
    """Do as `forks`, and put the child out of reach, in a session of its own."""
    child = subprocess.Popen(['sleep', '300'], close_fds=False, start_new_session=True)
    os.write(2, f'child {child.pid}\n'.encode())


def is_deaf() -> None:
    """Hear neither SIGTERM nor SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


HABITS = {each.__name__: each for each in (closes_its_streams, floods, forks, escapes, is_deaf)}
LOADS = {each.__name__: each for each in (greedy, endless)}


def script(text: str) -> list[Line]:
    """Return the lines of a script from its JSON."""
    return [
        Line(**{**fields, 'act': Act(fields.get('act', 'decide'))})
        for fields in json.loads(text)
    ]


class Ordered(ScriptedDecider):
    """Looks before each question whether a file says what to do instead of the script."""

    def __init__(self, orders: Path, lines: list[Line], *given: Any, **named: Any) -> None:
        super().__init__(lines, *given, **named)
        self._orders, self._own = orders, tuple(lines)

    def decide(
        self, question: Question, received_ns: int, cancelled: Callable[[], bool]
    ) -> Answer:
        """Answer as the orders say, or the script."""
        try:
            self._script = tuple(script(self._orders.read_text(encoding='utf-8')))
        except FileNotFoundError:
            self._script = self._own
        return super().decide(question, received_ns, cancelled)


def main() -> int:
    """Run the worker."""
    parser = argparse.ArgumentParser()
    add_place_options(parser)
    parser.add_argument('--script', default='[{}]')
    parser.add_argument('--bound-ms', type=int, default=0,
                        help='bound of each batch, where its delay is shorter')
    parser.add_argument('--orders', type=Path,
                        help='a file with another script, which holds while it is there')
    parser.add_argument('--load-until', type=Path, help='load until this file is there')
    parser.add_argument('--load', default='good', choices=(
        'good', 'bad-file', 'crash', 'hang', 'abort', 'no-memory', *LOADS
    ))
    parser.add_argument('--habit', choices=HABITS)
    parser.add_argument('--oom-score-adj', type=int, default=FIRST_TO_GO)
    parser.add_argument('--declare-passes', type=int, default=0)
    options = parser.parse_args()
    lines = script(options.script)

    def load(writer: ProgressWriter, clock: Clock) -> Decider:
        writer.loading(0.5)
        while options.load_until is not None and not options.load_until.exists():
            sleep_until(now_ns() + 10 * MS)
        if options.load == 'bad-file':
            raise ModelFileError('model.gguf: truncated')
        if options.load == 'crash':
            raise RuntimeError('the script says so')
        if options.load == 'abort':
            os.abort()
        if options.load == 'no-memory':
            raise MemoryError('the script says so')
        if options.load in LOADS:
            LOADS[options.load](writer)
        if options.habit is not None:
            HABITS[options.habit]()
        while options.load == 'hang':
            sleep_until(now_ns() + 100 * MS)
        kind = ScriptedDecider if options.orders is None else partial(Ordered, options.orders)
        limits = replace(LIMITS, cost_fixed_ns=max(LIMITS.cost_fixed_ns, options.bound_ms * MS))
        return kind(lines, clock, sleep_until, writer, limits,
                    declare_passes=options.declare_passes)

    return serve(place(options), load, SteadyClock(), options.oom_score_adj)


if __name__ == '__main__':
    sys.exit(main())
