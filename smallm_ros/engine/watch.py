"""What the supervisor does about its worker: a pure step over facts.

One worker after another: when to start it, to kill it and to give up. It never waits: a worker
that has been killed and does not end is spoken of, and no other one is started meanwhile. The
clock is an argument, so that an hour of deaths is a story of milliseconds in a test.
"""

from __future__ import annotations

import enum
import signal
from collections import deque
from dataclasses import dataclass

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import EngineLatchedError, OperatorError
from smallm_ros.core.exchange import EngineState, Progress

_OPERATOR_ERRORS: tuple[type[OperatorError], ...] = (
    OperatorError, *OperatorError.__subclasses__()
)
OPERATOR_EXIT_CODES = frozenset(kind.exit_code for kind in _OPERATOR_ERRORS)
"""The worker's exit codes after which starting it again cannot help."""
LEFT_BEHIND = 1
"""The supervisor's exit code when a worker outlives even SIGKILL."""
MIB = 1 << 20
CANNOT_START = 126
"""What the shell says of a program that cannot be started; stands for a spawn that failed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the supervisor looks on. The defaults are the product's."""

    poll_ns: int = 20 * MS
    in_flight_ns: int = 2 * SECOND
    """Least time that a batch may take once the worker is ready, whatever its bound."""
    in_flight_bounds: int = 4
    """A batch may take so many times its bound."""
    idle_ns: int = 2 * SECOND
    """Age of the beat of a worker that has nothing in flight."""
    loading_ns: int = 120 * SECOND
    """Age of the beat of a worker that loads: one step may hash 14 GB."""
    own_gap_ns: int = SECOND // 2
    """A gap in the supervisor's own loop from which on it does not trust the ages that it sees."""
    retry_ns: tuple[int, ...] = tuple(s * SECOND // 2 for s in (1, 2, 4, 8, 16, 32, 60))
    healthy_ns: int = 60 * SECOND
    """A worker that was ready for so long sets the delays back to the first."""
    deaths: int = 5
    deaths_within_ns: int = 60 * SECOND
    end_ns: int = 3 * SECOND
    """From SIGTERM to SIGKILL."""
    load_ns: int = 1800 * SECOND
    """A load that gets on but never ends is one that hangs: 14 GB at 8 MB/s take so long."""
    corpse_ns: int = 5 * SECOND
    """From SIGKILL until it is said that the worker does not end; then each `corpse_again_ns`."""
    corpse_again_ns: int = 60 * SECOND
    gpu_free_ns: int = 10 * SECOND
    """How long the next worker waits for the memory of the last one on the GPU to be free."""
    memory_bytes: int | None = None
    """What the worker may hold, resident and swapped; None is whatever there is."""


class Do(enum.Enum):
    """What the supervisor is to do now."""

    WAIT = 'wait'
    SPAWN = 'spawn'
    TERMINATE = 'terminate'
    KILL = 'kill'
    EXIT = 'exit'


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and the line to log about it, empty when there is nothing to say."""

    do: Do
    line: str = ''
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What the supervisor sees in one turn of its loop."""

    pid: int | None
    """The worker, None when none was started or the last one's end has been reported; 0 for one
    that could not be started."""
    exit_code: int | None
    """How the worker ended: its code, or minus its signal; None while it lives."""
    progress: Progress | None
    stop: bool
    """Whether SIGTERM or SIGINT came."""
    memory_bytes: int | None = None
    """What the worker holds, resident and swapped; None when nobody asks."""
    gpu_free: bool | None = None
    """Whether the last worker's memory on the GPU is seen free; None where nobody can see it."""


_WAIT = Verdict(Do.WAIT)


class Watch:
    """One worker after another: when to start, to kill and to give up."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._turn_ns: int | None = None
        self._trusted_ns = 0
        """Silence is counted from here on at the earliest."""
        self._spawned_ns = 0
        self._ready_ns: int | None = None
        self._next_spawn_ns = 0
        self._tries = 0
        """Deaths since the delays were last set back."""
        self._deaths: deque[int] = deque()
        self._end_ns: int | None = None
        """When a worker that was told to end is killed."""
        self._killed_ns: int | None = None
        self._mourn_ns = 0
        """When it is said next that a killed worker is still there."""
        self._gpu_since_ns: int | None = None
        """Since when the next worker waits for the GPU's memory."""

    def step(self, now_ns: int, facts: Facts) -> Verdict:
        """Return what to do, given what is seen at `now_ns`."""
        if self._turn_ns is None or now_ns - self._turn_ns > self._limits.own_gap_ns:
            # We stood still ourselves, and perhaps the worker with us: it gets its time again.
            self._trusted_ns = now_ns
        self._turn_ns = now_ns
        if facts.pid is None:
            return self._absent(now_ns, facts)
        if facts.exit_code is not None:
            return self._ended(now_ns, facts.pid, facts.exit_code, facts.stop)
        if facts.stop:
            return self._ending(now_ns, facts.pid)
        if self._killed_ns is not None:
            return self._corpse(now_ns, facts.pid, self._killed_ns)
        return self._living(now_ns, facts.pid, facts)

    def _absent(self, now_ns: int, facts: Facts) -> Verdict:
        if facts.stop:
            return Verdict(Do.EXIT, 'ended')
        if now_ns < self._next_spawn_ns:
            return _WAIT
        line = ''
        if facts.gpu_free is False:
            limit_s = self._limits.gpu_free_ns / SECOND
            if self._gpu_since_ns is None:
                self._gpu_since_ns = now_ns
                return Verdict(Do.WAIT, 'waiting until the memory of the GPU is seen free, for '
                                        f'{limit_s:g} s at the most')
            if now_ns - self._gpu_since_ns < self._limits.gpu_free_ns:
                return _WAIT
            line = (f'the memory of the GPU was not seen free within {limit_s:g} s: starting all '
                    'the same')
        self._spawned_ns = now_ns
        self._ready_ns = self._killed_ns = self._gpu_since_ns = None
        return Verdict(Do.SPAWN, line)

    def _ended(self, now_ns: int, pid: int, exit_code: int, stop: bool) -> Verdict:
        uptime_s = (now_ns - self._spawned_ns) / SECOND
        line = f'worker {pid} {_ending_text(exit_code)} after {uptime_s:.1f} s'
        if stop:
            return Verdict(Do.EXIT, f'{line}; ended')
        if exit_code in OPERATOR_EXIT_CODES:
            return Verdict(Do.EXIT, f'{line}; not started again', exit_code)
        self._deaths.append(now_ns)
        while self._deaths[0] <= now_ns - self._limits.deaths_within_ns:
            self._deaths.popleft()
        if len(self._deaths) >= self._limits.deaths:
            window_s = self._limits.deaths_within_ns / SECOND
            return Verdict(
                Do.EXIT,
                f'{line}; {len(self._deaths)} deaths in {window_s:g} s: giving up, see the lines '
                'above for their causes',
                EngineLatchedError.exit_code,
            )
        delay_ns = self._limits.retry_ns[min(self._tries, len(self._limits.retry_ns) - 1)]
        self._tries += 1
        self._next_spawn_ns = now_ns + delay_ns
        return Verdict(Do.WAIT, f'{line}; next try in {delay_ns / SECOND:g} s')

    def _ending(self, now_ns: int, pid: int) -> Verdict:
        if self._end_ns is None:
            self._end_ns = now_ns + self._limits.end_ns
            return Verdict(Do.TERMINATE, f'asked to end; worker {pid} gets SIGTERM')
        if self._killed_ns is None:
            if now_ns < self._end_ns:
                return _WAIT
            return self._kill(now_ns, f'worker {pid} did not end within '
                                      f'{self._limits.end_ns / SECOND:g} s of SIGTERM: killed')
        if now_ns - max(self._killed_ns, self._end_ns) < self._limits.corpse_ns:
            return _WAIT
        return Verdict(Do.EXIT, f'worker {pid} is left behind: SIGKILL did not end it; no engine '
                                'starts on this socket while it is there', LEFT_BEHIND)

    def _kill(self, now_ns: int, line: str) -> Verdict:
        self._killed_ns = now_ns
        self._mourn_ns = now_ns + self._limits.corpse_ns
        return Verdict(Do.KILL, line)

    def _corpse(self, now_ns: int, pid: int, killed_ns: int) -> Verdict:
        """Say that a killed worker is still there: a driver or a disk holds it in the kernel."""
        if now_ns < self._mourn_ns:
            return _WAIT
        self._mourn_ns = now_ns + self._limits.corpse_again_ns
        age_s = (now_ns - killed_ns) / SECOND
        return Verdict(Do.WAIT, f'worker {pid} has not ended {age_s:.0f} s after SIGKILL: the '
                                'kernel holds it; no other is started')

    def _living(self, now_ns: int, pid: int, facts: Facts) -> Verdict:
        held, limit = facts.memory_bytes, self._limits.memory_bytes
        if held is not None and limit is not None and held > limit:
            return self._kill(now_ns, f'worker {pid} holds {held / MIB:.0f} MiB of memory, limit '
                                      f'{limit / MIB:.0f} MiB: killed')
        progress = facts.progress
        if progress is None:
            return _WAIT
        stalled = self._stalled(now_ns, progress)
        if stalled:
            return self._kill(now_ns, f'worker {pid} stands still: {stalled}: killed')
        if progress.state is EngineState.LOADING:
            load_ns = now_ns - max(self._spawned_ns, self._trusted_ns)
            if load_ns > self._limits.load_ns:
                return self._kill(now_ns, f'worker {pid} is not ready after '
                                          f'{load_ns / SECOND:.0f} s: killed')
            return _WAIT
        if self._ready_ns is None:
            self._ready_ns = now_ns
            return Verdict(Do.WAIT, f'worker {pid} is ready after '
                                    f'{(now_ns - self._spawned_ns) / SECOND:.1f} s')
        if now_ns - self._ready_ns >= self._limits.healthy_ns:
            self._tries = 0
        return _WAIT

    def _stalled(self, now_ns: int, progress: Progress) -> str:
        """Return how the worker stands still, '' when it does not."""
        limits = self._limits
        loading = progress.state is EngineState.LOADING
        if progress.in_flight:
            age_ns = now_ns - max(progress.since_ns, self._trusted_ns)
            # While it loads nothing is known yet of what a batch takes here.
            least_ns = limits.loading_ns if loading else limits.in_flight_ns
            limit_ns = max(least_ns, limits.in_flight_bounds * progress.bound_ns)
            what = f'batch {progress.in_flight}, bound {progress.bound_ns / MS:.0f} ms, in flight'
        else:
            age_ns = now_ns - max(progress.beat_ns, self._trusted_ns)
            limit_ns = limits.loading_ns if loading else limits.idle_ns
            what = 'no step of the load' if loading else 'no beat'
        if age_ns <= limit_ns:
            return ''
        return f'{what} for {age_ns / MS:.0f} ms, limit {limit_ns / MS:.0f} ms'


def _ending_text(exit_code: int) -> str:
    if exit_code == CANNOT_START:
        return 'could not be started'
    if exit_code >= 0:
        return f'exited with code {exit_code}'
    try:
        return f'died of {signal.Signals(-exit_code).name}'
    except ValueError:
        return f'died of signal {-exit_code}'
