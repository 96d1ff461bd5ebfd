"""Says when the machine was not ours: a process that only sleeps, in short absolute steps.

How late it wakes is what a thread that wants a core has to wait; `steal` in /proc/stat is what a
hypervisor took, and what is busy there beyond our own processes is other people's work, which
slows ours even on a core of its own. Stretches in which one of them exceeds the rule are left out,
in every arm alike, and the rule is fixed before the run.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smallm_ros import process, steady
from smallm_ros.core.clock import MS, SECOND

STEP_NS = 5 * MS
_ROW = struct.Struct('<qqq')
START_LIMIT_NS = 20 * SECOND
GRAIN_MS = 30.0
"""/proc/stat counts in hundredths of a second, and each of its fields rounds for itself."""


@dataclass(frozen=True, slots=True)
class Step:
    """One waking."""

    due_ns: int
    late_ns: int
    stolen_ms: float
    """Since boot, of all cores."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a stretch of time was not ours."""

    late_ms: float = 20.0
    """More than this late at one waking."""
    stolen_share: float = 0.10
    """More than this share of one core's time stolen."""
    others_share: float = 0.25
    """More than this share of one core's time taken by processes that are not the benchmark's."""

    def __str__(self) -> str:
        return (f'a round is left out, in every arm, when in it the canary woke more than '
                f'{self.late_ms:g} ms late, or more than {100 * self.stolen_share:g} % of a '
                f"core's time was stolen, or other processes took more than "
                f'{100 * self.others_share:g} % of a core (each at least {GRAIN_MS:g} ms)')

    def judge(self, steps: Sequence[Step], begin_ns: int, end_ns: int, others_ms: float) -> str:
        """Return '' when the stretch was ours, or why not.

        `steps` are the canary's, in order; one that is missing at the end is as late as the end.
        `others_ms` is the CPU time that other processes took.
        """
        inside = [s for s in steps if s.due_ns + s.late_ns >= begin_ns and s.due_ns <= end_ns]
        due_ns = inside[-1].due_ns + STEP_NS if inside else begin_ns
        late_ns = max([end_ns - due_ns, *(s.late_ns for s in inside)])
        if late_ns > self.late_ms * MS:
            return f'canary {late_ns / MS:.0f} ms late'
        stolen_ms = inside[-1].stolen_ms - inside[0].stolen_ms
        share = stolen_ms * MS / max(1, end_ns - begin_ns)
        if stolen_ms > GRAIN_MS and share > self.stolen_share:
            return f'stolen {100 * share:.0f} %'
        share = others_ms * MS / max(1, end_ns - begin_ns)
        if others_ms > GRAIN_MS and share > self.others_share:
            return f'others {100 * share:.0f} %'
        return ''


def others_ms(ours: Sequence[int]) -> float:
    """Return the CPU time since boot, on all cores, of all processes but `ours`, by pid.

    Ours that have ended count as others, so only the difference of two calls says something.
    """
    cpu = Path('/proc/stat').read_text(encoding='ascii').split('\n', 1)[0].split()
    busy = sum(int(cpu[i]) for i in (1, 2, 3, 6, 7))  # user, nice, system, irq, softirq: proc(5)
    for pid in ours:
        fields = Path(f'/proc/{pid}/stat').read_text(encoding='ascii').rpartition(')')[2].split()
        busy -= int(fields[11]) + int(fields[12])  # utime, stime
    return 1000 * busy / os.sysconf('SC_CLK_TCK')


class Canary:
    """The process, from its start to `close`."""

    def __init__(self, path: Path) -> None:
        """Start it, and return when it writes to `path`."""
        self._path = path
        path.touch()
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'smallm_ros.bench.canary', str(os.getpid()), str(path)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )
        until_ns = steady.now_ns() + START_LIMIT_NS
        while not self.steps() and self._process.poll() is None and steady.now_ns() < until_ns:
            steady.sleep_until(steady.now_ns() + STEP_NS)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def steps(self) -> list[Step]:
        """Return every waking so far."""
        raw = self._path.read_bytes()
        whole = len(raw) - len(raw) % _ROW.size
        return [Step(due, late, stolen / 1000) for due, late, stolen in
                _ROW.iter_unpack(raw[:whole])]

    def close(self) -> None:
        """End the process and remove what it wrote."""
        self._process.kill()
        self._process.wait()
        self._path.unlink()


def main() -> None:
    """Sleep and write until the parent ends."""
    if not process.die_with(int(sys.argv[1]), signal.SIGKILL):
        return
    with Path(sys.argv[2]).open('ab', buffering=0) as file:
        due_ns = steady.now_ns()
        while True:
            due_ns += STEP_NS
            steady.sleep_until(due_ns)
            late_ns = steady.now_ns() - due_ns
            file.write(_ROW.pack(due_ns, late_ns, round(1000 * process.stolen_ms())))
            if late_ns > STEP_NS:  # what was missed is not made up for
                due_ns += late_ns // STEP_NS * STEP_NS


if __name__ == '__main__':
    main()
