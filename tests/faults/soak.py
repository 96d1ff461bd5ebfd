"""`python -m tests.faults.soak`: a healthy system beside busy neighbours; all trips of its gate.

A trip is false when what was heard disproves its condition: an observer that hears all that the
gate hears, and the gate's own log for its gaps. What the neighbours really made late is counted
apart. The dwells are the shipped ones, the operator arms whenever the gate is in HOLD.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallm_ros import steady
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.policy import Policy
from tests.faults.judge import Row, reacted
from tests.faults.observer_process import (
    COMMAND,
    ESTOP,
    MISSES,
    ODOM,
    PASS,
    PROGRESS,
    SCAN,
)
from tests.faults.run import Interrupted
from tests.faults.system import BOUND_MS, Setting, System

Seen = Sequence[tuple[int, int, float]]

LOOK_BACK_NS = 6 * SECOND
"""Misses count over five seconds."""
LOOK_AHEAD_NS = 2 * SECOND
CLOSE_MS = 60.0
"""A tick, and what one process may hear later than another."""


def proven(cause: str, at_ns: int, seen: Seen, rows: Sequence[Row], policy: Policy) -> bool:
    """Return whether what was heard around `at_ns` bears out a cause."""
    near = [row for row in seen if at_ns - LOOK_BACK_NS <= row[0] <= at_ns + LOOK_AHEAD_NS]

    def silent(kinds: Sequence[int], limit_ms: float) -> bool:
        return any(_gap_ms([at for at, kind, _ in near if kind == each]) > limit_ms - CLOSE_MS
                   for each in kinds)

    def most(kind: int) -> float:
        return max((value for _, each, value in near if each == kind), default=0.0)

    missed = len({value for _, kind, value in near if kind == MISSES}) > 1
    rules = policy.control
    match cause:
        case 'own_gap':
            return _gap_ms([r['published_ns'] for r in rows]) > 3e3 / rules.rate_hz - CLOSE_MS
        case 'sensor_stale' | 'sensor_stamp' | 'sensor_frozen':
            limit_ms = min(s.stale_after_ms for s in policy.sensors.values())
            return silent((SCAN, ODOM), limit_ms)
        case 'estop_silent':
            return silent((ESTOP,), 1000.0)
        case 'status_silent':
            return silent((PROGRESS,), rules.status_limit_ms)
        case 'engine_stalled':
            return most(PROGRESS) > rules.progress_limit_ms - CLOSE_MS
        case 'engine_throttled':
            return missed or most(PASS) > 1.25 * BOUND_MS
        case ('answer_missed' | 'answers_missed' | 'command_expired' | 'command_silent'
              | 'command_late' | 'observation_old'):
            return missed or silent((COMMAND,), policy.ttl_ns / MS)
    return False


def _gap_ms(times_ns: Sequence[int]) -> float:
    return max((b - a for a, b in itertools.pairwise(times_ns)), default=0) / MS


class Soak:
    """What was counted so far."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._judged_ns = 0
        self._before: Row | None = None
        self.ticks = 0
        self.gaps = 0
        self.late_ms: list[float] = []
        self.canary_ms: list[float] = []
        self.trips: Counter[str] = Counter()
        """Departures of the model from the wheels, by their first cause."""
        self.real: Counter[str] = Counter()
        self.false: Counter[str] = Counter()
        self.kept: list[dict[str, Any]] = []
        """The rows around each false one."""

    def take(self, system: System, until_ns: int) -> None:
        """Judge the rows up to `until_ns`, for which everything has been heard."""
        limit_ns = self._policy.control_period_ns + self._policy.allowed_lateness_ns
        for row in system.since(self._judged_ns + 1):
            if row['steady_ns'] > until_ns:
                break
            before, self._before = self._before, row
            self._judged_ns = row['steady_ns']
            self.ticks += 1
            self.late_ms.append(row['late_ns'] / MS)
            if before is None:
                continue
            self.gaps += row['published_ns'] - before['published_ns'] > limit_ns
            if reacted(row) and not reacted(before):
                self.trips[row['cause']] += 1
            if reacted(row) and row['cause'] not in ('none', before['cause']):
                self._cause(row, system)
        self.canary_ms += [late / MS for due, late, _ in system.late
                           if due > until_ns - 2 * SECOND]

    def _cause(self, row: Row, system: System) -> None:
        at_ns = row['steady_ns']
        rows = [r for r in system.since(at_ns - LOOK_BACK_NS)
                if r['steady_ns'] <= at_ns + LOOK_AHEAD_NS]
        good = proven(row['cause'], at_ns, system.seen, rows, self._policy)
        (self.real if good else self.false)[row['cause']] += 1
        if not good:
            self.kept.append({'cause': row['cause'], 'at_ns': at_ns, 'rows': rows,
                              'seen': [s for s in system.seen if abs(s[0] - at_ns) < SECOND]})

    def table(self, gate: str, hogs: int, seconds: float, arms: int) -> str:
        """Return the figures."""
        return '\n'.join([
            f'{seconds / 60:.1f} min, {hogs} hogs, gate {gate}: {self.ticks} ticks, armed {arms} '
            'times',
            f'false trips: {sum(self.false.values())} {dict(self.false)}',
            f'causes that were true: {sum(self.real.values())} {dict(self.real)}',
            f'the model lost the wheels {sum(self.trips.values())} times {dict(self.trips)}',
            f'gaps over T + X: {self.gaps}; bound 3/N: {3 / max(1, self.ticks):.2g} a tick',
            f'watchdog late: {_figures(self.late_ms)}',
            f'canary late:   {_figures(self.canary_ms)}', ''])


def _figures(values: list[float]) -> str:
    known = sorted(values)
    if not known:
        return '-'
    return (f'p50 {known[len(known) // 2]:.2f} ms, p99 {known[int(0.99 * len(known))]:.2f} ms, '
            f'max {known[-1]:.2f} ms')


def main() -> int:
    """Run the command line; 1 when there was a false trip or a gap."""
    parser = argparse.ArgumentParser(prog='python -m tests.faults.soak', description=__doc__)
    parser.add_argument('--minutes', type=float, default=15.0)
    parser.add_argument('--hours', type=float, help='instead of minutes')
    parser.add_argument('--hogs', type=int, default=4)
    parser.add_argument('--no-fifo', action='store_true')
    parser.add_argument('--domain', type=int, default=53)
    parser.add_argument('--out', type=Path)
    options = parser.parse_args()
    folder = options.out or Path('runs') / f'soak-{steady.wall_text()}'
    setting = Setting(dwells='shipped', fifo=not options.no_fifo, domain=options.domain,
                      all_seen=True)

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise Interrupted

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    system = System(setting, folder / 'logs')
    soak = Soak(system.policy)
    gate, arms = '', 0
    began_ns = steady.now_ns()
    try:
        system.start()
        if options.hogs:
            system.start_other('intruder', 'hogs', options.hogs)
        began_ns = steady.now_ns()
        gate = system.priority()
        system.rows = []
        wanted_ns = round((options.hours * 60 if options.hours else options.minutes) * 60 * SECOND)
        while (gone_ns := steady.now_ns() - began_ns) < wanted_ns:
            system.pause(2.0)
            soak.take(system, steady.now_ns() - LOOK_AHEAD_NS)
            if system.rows and system.rows[-1]['state'] == 'HOLD':
                system.call('arm')
                arms += 1
            if gone_ns // (60 * SECOND) != (gone_ns - 2 * SECOND) // (60 * SECOND):
                print(f'{gone_ns / 60 / SECOND:.0f} of {wanted_ns / 60 / SECOND:.0f} min: false '
                      f'{dict(soak.false)}, true {dict(soak.real)}, gaps {soak.gaps}', flush=True)
            system.forget()
    except Interrupted:
        print('interrupted')
    finally:
        system.close()
    text = soak.table(gate, options.hogs, (steady.now_ns() - began_ns) / SECOND, arms)
    print(text)
    (folder / 'soak.txt').write_text(text, encoding='utf-8')
    (folder / 'false.json').write_text(json.dumps(soak.kept), encoding='utf-8')
    return int(bool(soak.false) or bool(soak.gaps))


if __name__ == '__main__':
    sys.exit(main())
