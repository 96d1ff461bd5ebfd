"""The watchdog as it is shipped, with two things added: declared dwells and a log of its own.

The dwells are an argument of a test's entry and no parameter of the product: nobody shortens them
on a robot. The log has one row for each tick, what `~/applied` said and when both messages had
left; it goes to tmpfs and does not depend on DDS. SIGUSR1 makes the next look at the inputs raise.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from smallm_ros import steady
from smallm_ros.core.cause import Dwells
from smallm_ros.core.clock import MS
from smallm_ros.ros.heard import Heard
from smallm_ros.ros.watchdog_node import WatchdogNode, main

SHORT = replace(
    Dwells(),
    standby_good_ns=200 * MS, degraded_clean_ns=300 * MS, degraded_answers=2,
    fallback_clean_ns=300 * MS, shadow_answers=1, safe_stop_clear_ns=300 * MS,
    estop_released_ns=200 * MS, miss_window_ns=1500 * MS,
    return_window_ns=1,  # no doubling: the next fault is seconds away, not hours
    # Sixty deaths in a row are the experiment here, not a broken engine.
    engine_deaths=1_000_000,
)
PROFILES = {'short': SHORT, 'shipped': Dwells()}


class _Log:
    """A publisher that writes down what it published, and when."""

    def __init__(self, publisher: Any, path: Path, heard: Heard) -> None:
        self._publisher = publisher
        self._heard = heard
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def publish(self, message: Any) -> None:
        self._publisher.publish(message)
        row = (f'{{"published_ns":{steady.now_ns()},"dropped":{self._heard.dropped},'
               f'{message.data[1:]}\n')
        os.write(self._fd, row.encode())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._publisher, name)


class LoggedNode(WatchdogNode):
    """The watchdog, writing down each tick; raises on SIGUSR1."""

    def __init__(self, log: Path, dwells: Dwells) -> None:
        super().__init__(dwells=dwells)
        self._applied = _Log(self._applied, log, self._heard)
        self._raise = 0
        signal.signal(signal.SIGUSR1, self._order)

    def _order(self, *_: object) -> None:
        self._raise += 1

    def _take(self, *given: Any) -> Any:
        if self._raise:
            self._raise -= 1
            raise RuntimeError('the fault suite says so')
        return super()._take(*given)


def entry() -> int:
    """Run it: `gate_process --log PATH --dwells short --ros-args ...`."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--log', type=Path, required=True)
    parser.add_argument('--dwells', choices=sorted(PROFILES), default='short')
    parser.add_argument('--open-files', type=int, help='so many descriptors and no more')
    options, ros = parser.parse_known_args()
    if options.open_files:
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.open_files, options.open_files))
    return main([sys.argv[0], *ros], partial(LoggedNode, options.log, PROFILES[options.dwells]))


def read(text: bytes) -> list[dict[str, Any]]:
    """Return the rows of a piece of the log that ends in a whole line."""
    return [json.loads(line) for line in text.splitlines()]


if __name__ == '__main__':
    sys.exit(entry())
