"""The faults: how each is injected and undone, and what it may lead to.

One entry is one class. `inject` returns since when the fault is there (steady ns) and raises when
it could not be brought about; `undo` takes it away. Limits come from robot.yaml and from what the
issue promises: a death is seen through its pidfd, so within one tick and a little, a freeze within
the silence limit H and one tick.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from smallm_ros import steady
from smallm_ros.core.clock import MS, SECOND
from tests.faults.judge import Expected
from tests.faults.system import DELAY_NS, System, state_of

DEATH_MS = 70.0
FREEZE_MS = 350.0
"""H (300 ms) + T."""
SILENCE_MS = 350.0
"""A sensor's limit (300 ms) + T."""
REPEATED_MS = SILENCE_MS + 100.0
"""The first message with that stamp is new: a sensor's period and its lateness come on top."""
TICK_MS = 100.0
"""T + X: what is seen in the very next tick."""
NEXT_ANSWER_MS = 650.0
"""A decision period, its budget, and a tick with its lateness: one answer that does not come."""
GRAPH_MS = 3300.0
"""Discovery, which repeats itself each 3 s by Fast DDS' default, a count each 200 ms, a tick."""
STAND_MS = 850.0
"""A sensor's limit, a tick, and the brakes."""
SILENT_MS = 1110.0
"""The emergency stop's time-out, a tick until its last word was taken, a tick, and a little."""
BASE_STOPS_MS = 550.0
"""The base's own time-out, and a tick."""

ENGINE = frozenset({
    'worker_dead', 'engine_stalled', 'engine_failed', 'engine_absent', 'engine_loading',
    'answers_missed', 'answer_missed', 'command_never', 'command_silent', 'command_expired',
    'command_repeated', 'command_late', 'observation_old', 'engine_throttled',
})
NODE = ENGINE | {'node_dead', 'status_silent', 'status_never', 'session_new', 'session_foreign',
                 'node_inactive', 'publisher_standing'}
SENSORS = ENGINE | {'sensor_never', 'sensor_stale', 'sensor_stamp', 'sensor_frozen'}
CLOCK = SENSORS | {'clock_absent', 'clock_jump', 'clock_paused', 'clock_fast'}
BUSY = NODE | SENSORS | {'own_gap', 'estop_silent'}
"""What a machine that is too busy may bring about."""
START = NODE | SENSORS | {'clock_absent', 'estop_never', 'estop_silent', 'none'}
"""What a gate that has just been started may miss."""


STARTING = {'STANDBY', 'ESTOP_LATCHED'}
"""Where a gate without its sensors stays. It latches where the e-stop was heard and then was not,
as when the middleware stumbles over a process that was killed."""


def _nothing(system: System) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Fault:
    """One class of faults."""

    name: str
    inject: Callable[[System], int]
    causes: frozenset[str]
    undo: Callable[[System], None] = _nothing
    limit_ms: float | None = 500.0
    after: frozenset[str] = NODE
    leaves: bool | None = True
    stands: bool = False
    gaps: bool = False
    hold_s: float = 0.3
    """How long it lasts after the reaction, or in all where there is none."""
    main: bool = False
    """One of the classes that get the large number of injections."""
    simulated: bool = False
    real_engine: bool = False
    detect: Callable[[System, int], int | None] | None = None
    """Return when the reaction came, of a fault that shows elsewhere than in the gate's log."""
    check: Callable[[System, int], list[str]] = field(default=lambda system, began_ns: [])
    """Return what else is wrong, before the fault is undone."""

    @property
    def expected(self) -> Expected:
        """What the judge is to expect."""
        return Expected(self.causes, self.after, self.limit_ms, self.leaves, self.stands,
                        self.gaps)


def _signals(
    name: str, number: signal.Signals,
) -> Callable[[System], int]:
    return lambda system: system.send(name, number)


def _wakes(name: str) -> Callable[[System], None]:
    def undo(system: System) -> None:
        try:
            system.send(name, signal.SIGCONT)
        except ProcessLookupError:
            pass  # it was killed for standing still
    return undo


# --- the engine and the policy node ---------------------------------------------------------


def _stop_worker(system: System) -> int:
    STOPPED[:] = [system.pid('worker')]
    return system.send('worker', signal.SIGSTOP)


STOPPED: list[int] = []
"""The worker that was stopped; by now another one may be running."""


def _wake_worker(system: System) -> None:
    for pid in STOPPED:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # the supervisor killed it for standing still
    STOPPED.clear()


def _gate_stands(system: System, began_ns: int) -> int | None:
    system.pause(BASE_STOPS_MS / 1000 + 0.25)
    for _ in range(20):
        # Longer than it may take: on a busy machine late is told from never.
        if system.stood_ns(began_ns) is not None:
            break
        system.pause(0.1)
    return system.stood_ns(began_ns)


def _holds(system: System) -> None:
    """Start the watchdog again: it must be in HOLD and stay there, for nobody armed it."""
    system.start_gate()
    began_ns = system.gate_began_ns
    system.until_holding(began_ns)
    system.pause(0.5)
    states = {row['state'] for row in system.since(began_ns)}
    assert states <= STARTING | {'HOLD'}, f'a gate that nobody armed was in {states}'


MAIN = (
    Fault('worker KILL', _signals('worker', signal.SIGKILL),
          frozenset({'worker_dead', 'engine_absent'}), limit_ms=DEATH_MS, main=True),
    Fault('worker STOP 1 s', _stop_worker, ENGINE, undo=_wake_worker, limit_ms=FREEZE_MS,
          hold_s=0.7, main=True),
    # Drivers publish to the policy node over shared memory, and wait for one that was killed.
    Fault('policy KILL', _signals('policy', signal.SIGKILL), frozenset({'node_dead'}),
          undo=System.start_policy_node, limit_ms=DEATH_MS, after=NODE | SENSORS, main=True),
    Fault('policy STOP 1 s', _signals('policy', signal.SIGSTOP),
          frozenset({'status_silent', 'engine_stalled'}), undo=_wakes('policy'),
          limit_ms=FREEZE_MS, hold_s=0.7, main=True),
    Fault('gate KILL', _signals('gate', signal.SIGKILL), START, undo=_holds, after=START,
          limit_ms=BASE_STOPS_MS, gaps=True, detect=_gate_stands, main=True),
)




def _ends_engine(system: System) -> int:
    return system.send('engine', signal.SIGKILL)


def _says(*lines: dict[str, Any]) -> Callable[[System], int]:
    return lambda system: system.script(*lines)


def _unscript(system: System) -> None:
    system.unscript()
    system.pause(0.3)  # the answer that was under way


class _Rogue:
    """Listens on the engine's socket in its place, and sends what no engine sends."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._socket: socket.socket | None = None
        self._guests: list[socket.socket] = []
        self.served = 0

    def inject(self, system: System) -> int:
        """Take the place of an engine that was killed and cannot come back."""
        system.send('engine', signal.SIGSTOP)
        at_ns = system.send('worker', signal.SIGKILL)
        system.socket.unlink(missing_ok=True)
        self.served = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(system.socket))
        self._socket.listen(8)
        self._socket.settimeout(5.0)
        guest, _ = self._socket.accept()
        self._guests.append(guest)
        guest.sendall(self._data)
        return at_ns

    def undo(self, system: System) -> None:
        """Let the supervisor do its work again."""
        for each in (*self._guests, self._socket):
            if each is not None:
                each.close()
        self._guests.clear()
        system.socket.unlink(missing_ok=True)
        system.send('engine', signal.SIGCONT)


def _rogue(name: str, data: bytes) -> Fault:
    rogue = _Rogue(data)
    return Fault(f'engine sends {name}', rogue.inject, frozenset({'worker_dead', 'engine_absent'}),
                 undo=rogue.undo, limit_ms=DEATH_MS, hold_s=1.0)


def _slow(times: float, leaves: bool | None) -> Fault:
    return Fault(
        f'engine slow {times:g}x', _says({'leaf': 1, 'delay_ns': round(times * DELAY_NS)}),
        ENGINE, undo=_unscript, limit_ms=NEXT_ANSWER_MS if leaves else None, leaves=leaves,
        hold_s=1.0)


def _acts(act: str) -> Fault:
    return Fault(f'engine {act}', _says({'leaf': 1, 'delay_ns': DELAY_NS, 'act': act}), ENGINE,
                 undo=_unscript, limit_ms=NEXT_ANSWER_MS)


ENGINES = (
    Fault('worker STOP 0.1 s', _stop_worker, ENGINE, undo=_wake_worker, limit_ms=None,
          leaves=None, hold_s=0.1),
    Fault('worker STOP 10 s', _stop_worker, ENGINE, undo=_wake_worker, limit_ms=FREEZE_MS,
          hold_s=9.7),
    Fault('supervisor KILL', _ends_engine, frozenset({'worker_dead', 'engine_absent'}),
          undo=System.start_engine, limit_ms=DEATH_MS),
    _slow(1.5, None), _slow(3, None), _slow(10, True),
    Fault('engine stall', _says({'act': 'stall'}), ENGINE, undo=_unscript,
          limit_ms=NEXT_ANSWER_MS),
    _acts('not_finite'), _acts('other_request'), _acts('refuse'), _acts('fail'),
    _acts('abort'), _acts('no_memory'),
    _rogue('garbage', b'\x93\x07garbage' * 100),
    _rogue('another version', b'sml\x63' + bytes(64)),
    _rogue('a length of 1 GB', b'sml\x02' + (1 << 30).to_bytes(4, 'little') + bytes(64)),
)

# --- sensors --------------------------------------------------------------------------------


def _spoils(*of: str, **how: object) -> Callable[[System], int]:
    return lambda system: system.spoil(*of, **how)


def _sensor(
    name: str, of: str, how: dict[str, object], causes: frozenset[str] = frozenset(),
    **more: Any,
) -> Fault:
    given: dict[str, Any] = {
        'causes': causes or SENSORS, 'undo': System.heal, 'limit_ms': SILENCE_MS,
        'after': SENSORS, **more}
    return Fault(f'{of} {name}', _spoils(of, **how), **given)


STALE = frozenset({'sensor_stale', 'sensor_stamp'})
STAMP = frozenset({'sensor_stamp', 'sensor_stale', 'sensor_frozen'})
UNHARMED: dict[str, Any] = {'leaves': None, 'limit_ms': None, 'hold_s': 1.0}
"""What a robot may live through; where it reacts, by a cause that fits."""


def _only_started(system: System, began_ns: int) -> list[str]:
    states = {row['state'] for row in system.since(began_ns)}
    return [] if 'STANDBY' in states <= STARTING else [f'it was in {sorted(states)}']


def _never_there(of: str) -> Fault:
    def inject(system: System) -> int:
        system.spoil(of, values='silent')
        system.start_gate()
        return system.gate_began_ns

    return Fault(f'{of} never there', inject, START, undo=System.heal, limit_ms=None, after=START,
                 hold_s=1.5, check=_only_started)


ALL_SENSORS = (
    *(fault for of in ('scan', 'odom') for fault in (
        _never_there(of),
        _sensor('silent', of, {'values': 'silent'}, STALE),
        _sensor('stamp 0', of, {'stamp': 'zero'}, **UNHARMED),
        _sensor('stamp 10 s old', of, {'offset_ns': -10 * SECOND}, STAMP),
        _sensor('stamp 10 ms ahead', of, {'offset_ns': 10 * MS}, **UNHARMED),
        _sensor('stamp 1 s ahead', of, {'offset_ns': SECOND}, STAMP),
        _sensor('stamp 10 years ahead', of, {'offset_ns': 315_360_000 * SECOND}, STAMP),
        _sensor('stamp frozen', of, {'stamp': 'frozen'}, STAMP, limit_ms=REPEATED_MS),
        _sensor('out of order', of, {'stamp': 'swapped'}, **UNHARMED),
        _sensor('repeated', of, {'stamp': 'repeat'}, STAMP, limit_ms=REPEATED_MS),
        _sensor('flood 10x', of, {'times': 10}, **UNHARMED),
        _sensor('flood 100x', of, {'times': 100}, **UNHARMED),
    )),
    _sensor('NaN', 'scan', {'values': 'nan'}, leaves=None, stands=True, limit_ms=STAND_MS,
            hold_s=1.2),
    _sensor('inf', 'scan', {'values': 'inf'}, **UNHARMED),
    _sensor('empty', 'scan', {'values': 'empty'}, STALE),
    _sensor('of wrong length', 'scan', {'values': 'short'}, leaves=None, stands=True,
            limit_ms=STAND_MS, hold_s=1.2),
    _sensor('of 200,000 beams', 'scan', {'values': 'long'}, STALE),
    _sensor('NaN', 'odom', {'values': 'nan'}, STALE),
    _sensor('inf', 'odom', {'values': 'inf'}, STALE),
    _sensor('no rotation', 'odom', {'values': 'empty'}, STALE),
)

# --- clocks ---------------------------------------------------------------------------------


def _clock(name: str, how: dict[str, object], causes: frozenset[str], **more: Any) -> Fault:
    given: dict[str, Any] = {'undo': System.heal, 'after': CLOCK, 'simulated': True, **more}
    return Fault(f'clock {name}', _spoils(**how), causes, **given)


def _no_clock(system: System) -> int:
    system.spoil(factor=None)
    system.start_gate()
    return system.gate_began_ns


def _intrudes(*words: object) -> Callable[[System], int]:
    return lambda system: int(system.start_other('intruder', *words)['at_ns'])


def _leaves_alone(system: System) -> None:
    system.end('intruder', signal.SIGKILL)


def _dies_often(system: System) -> int:
    at_ns = steady.now_ns()
    said = system.start_other('intruder', 'dead', 50)
    assert said['left'] > 0, 'the killed left nothing'
    return at_ns


def _refuses(node: str, **parameters: object) -> Callable[[System], int]:
    def inject(system: System) -> int:
        at_ns = steady.now_ns()
        named = {name.replace('__', '.'): value for name, value in parameters.items()}
        answer = system.order(node=node, parameters=named)
        for _ in range(5):
            if 'no service' in answer['why']:
                system.pause(0.5)
                answer = system.order(node=node, parameters=named)
        assert not answer['ok'], f'{node} took {named}'
        assert 'no service' not in answer['why'], answer
        return at_ns
    return inject


def _loops(system: System) -> int:
    at_ns = system.spoil(jump_ns=-3 * SECOND)
    for _ in range(3):
        system.pause(1.0)
        system.spoil(jump_ns=-3 * SECOND)
    return at_ns


JUMP = frozenset({'clock_jump'})
CLOCKS = (
    _clock('paused', {'factor': 0.0}, CLOCK, leaves=None, stands=True, limit_ms=STAND_MS,
           hold_s=1.2),
    _clock('0.1x', {'factor': 0.1}, CLOCK, leaves=None, limit_ms=None, hold_s=2.0),
    _clock('10x', {'factor': 10.0}, CLOCK, leaves=None, limit_ms=None, hold_s=2.0),
    _clock('jumps 5 s ahead', {'jump_ns': 5 * SECOND}, JUMP | STAMP, limit_ms=TICK_MS),
    _clock('jumps 3 s back', {'jump_ns': -3 * SECOND}, JUMP | STAMP, limit_ms=TICK_MS),
    Fault('clock of a bag that loops', _loops, JUMP | STAMP, undo=System.heal, after=CLOCK,
          simulated=True, limit_ms=TICK_MS),
    Fault('clock of two publishers', _intrudes('clock'), CLOCK, undo=_leaves_alone,
          after=CLOCK, simulated=True, limit_ms=2 * TICK_MS),
    Fault('clock never started', _no_clock, START, undo=System.heal, after=CLOCK | START,
          limit_ms=None, simulated=True, hold_s=1.5, check=_only_started),
    Fault('use_sim_time set on the gate', _refuses('watchdog_node', use_sim_time=True),
          frozenset(), leaves=False, limit_ms=None),
    Fault('use_sim_time set on the policy node', _refuses('policy_node', use_sim_time=True),
          frozenset(), leaves=False, limit_ms=None),
)

# --- middleware and parameters --------------------------------------------------------------


def _tightens(system: System) -> int:
    at_ns = steady.now_ns()
    answer = system.order(node='watchdog_node', parameters={'limits.max_forward_m_s': 0.15})
    assert answer['ok'], answer
    return at_ns


def _swaps_under_load(system: System) -> int:
    at_ns = _intrudes('hogs', 2 * (os.cpu_count() or 1))(system)
    for most in (0.3, 0.28, 0.26, 0.24, 0.22, 0.2, 0.18, 0.15):
        answer = system.order(node='watchdog_node', parameters={
            'limits.max_forward_m_s': most, 'limits.max_turn_rad_s': 2 * most})
        assert answer['ok'], answer
    system.pause(0.5)
    return at_ns


def _leaves_and_starts(system: System) -> None:
    _leaves_alone(system)
    system.start_gate()


def _keeps_to_it(system: System, began_ns: int) -> list[str]:
    fast = [row['linear_x_m_s'] for row in system.since(began_ns + SECOND // 2)]
    return [f'{max(fast):g} m/s under a limit of 0.15'] if max(fast) > 0.1501 else []


def _ends_slow(system: System, began_ns: int) -> list[str]:
    fast = [row['linear_x_m_s'] for row in system.since(steady.now_ns() - SECOND // 2)]
    return [f'{max(fast):g} m/s under a limit of 0.15'] if max(fast) > 0.1501 else []


def _dropped(system: System, began_ns: int) -> list[str]:
    rows = system.since(began_ns)
    return [] if rows[-1]['dropped'] > rows[0]['dropped'] else ['none of it arrived']


def _latches(state: str, cause: str) -> Callable[[System, int], list[str]]:
    def check(system: System, began_ns: int) -> list[str]:
        rows = system.since(began_ns)
        if any(row['state'] == state and row['cause'] == cause for row in rows):
            return []
        return [f'never in {state} by {cause}']
    return check


MIDDLEWARE = (
    Fault('incompatible QoS', _intrudes('incompatible'), frozenset(), undo=_leaves_alone,
          leaves=False, limit_ms=None, hold_s=1.0),
    Fault('duplicate node names', _intrudes('namesakes'), frozenset(), undo=_leaves_alone,
          leaves=False, limit_ms=None, hold_s=1.5),
    Fault('second cmd_vel publisher', _intrudes('publisher'), frozenset({'second_publisher'}),
          undo=_leaves_alone, limit_ms=GRAPH_MS, after=START | {'second_publisher'},
          check=_latches('FAULT_LATCHED', 'second_publisher')),
    # Everybody who uses shared memory stumbles over what they leave, and fifty starts are a load.
    Fault('50 killed DDS processes', _dies_often, BUSY, undo=_leaves_alone,
          leaves=None, after=BUSY, limit_ms=None),
    Fault('garbage on the topics, as often', _intrudes('garbage', 1), NODE, undo=_leaves_alone,
          **UNHARMED, check=_dropped),
    Fault('garbage on the topics, 10x', _intrudes('garbage', 10), NODE, undo=_leaves_alone,
          **UNHARMED, check=_dropped),
    # What floods one socket is lost to whatever else comes there: sensors, too.
    Fault('16 MB on the topics', _intrudes('huge', 16 << 20), BUSY, undo=_leaves_alone,
          **{**UNHARMED, 'hold_s': 3.0}, after=BUSY, check=_dropped),
    Fault('64 MB on the topics', _intrudes('huge', 64 << 20), BUSY, undo=_leaves_alone,
          **{**UNHARMED, 'hold_s': 6.0}, after=BUSY, check=_dropped),
    Fault('parameter tightened', _tightens, frozenset(), undo=System.start_gate, leaves=False,
          after=START, limit_ms=None, hold_s=0.8, check=_keeps_to_it),
    Fault('parameters swapped under load', _swaps_under_load, BUSY, undo=_leaves_and_starts,
          leaves=None, after=BUSY | START, limit_ms=None, hold_s=0.8, check=_ends_slow),
    Fault('parameter NaN', _refuses('watchdog_node', limits__max_forward_m_s=math.nan),
          frozenset(), leaves=False, limit_ms=None),
    Fault('parameter loosened in motion', _refuses('watchdog_node', limits__max_forward_m_s=1.0),
          frozenset(), leaves=False, limit_ms=None),
)

# --- the gate itself, its host --------------------------------------------------------------


def _stop_gate(system: System) -> int:
    at_ns = system.send('gate', signal.SIGSTOP)
    system.pause(1.0)
    system.send('gate', signal.SIGCONT)
    return at_ns


def _base_stood(system: System, began_ns: int) -> list[str]:
    stood_by_ns = began_ns + round(BASE_STOPS_MS * MS)
    moved = [at for at, v, w in system.truth
             if stood_by_ns < at < began_ns + SECOND and (v or w)]
    return [f'the base moved {(moved[-1] - began_ns) / MS:.0f} ms after'] if moved else []


def _raises(times: int) -> Callable[[System], int]:
    def inject(system: System) -> int:
        at_ns = system.send('gate', signal.SIGUSR1)
        for _ in range(times - 1):
            system.pause(0.12)
            system.send('gate', signal.SIGUSR1)
        return at_ns
    return inject


def _gate_ends(system: System, began_ns: int) -> int | None:
    system.wait(lambda: state_of(system.pid('gate')) in 'ZX', 'the end of the gate')
    system.pause(0.3)
    return system.stood_ns(began_ns)


def _said_stop(system: System, began_ns: int) -> list[str]:
    last = [v for _, kind, v in system.seen if kind == 0][-3:]
    return [] if last == [0.0, 0.0, 0.0] else [f'its last three velocities were {last}']


class _BlockedPipe:
    """A gate whose stderr is a pipe that is full and that nobody reads."""

    def __init__(self) -> None:
        self._ends: tuple[int, int] | None = None

    def inject(self, system: System) -> int:
        """Start one, and have it say something."""
        _, writable = self._ends = os.pipe()
        os.set_blocking(writable, False)
        try:
            while True:
                os.write(writable, b'x' * 4096)
        except BlockingIOError:
            os.set_blocking(writable, True)
        system.start_gate(stderr=writable)
        system.until_driving(system.gate_began_ns)
        at_ns = system.send('worker', signal.SIGKILL)
        assert not select.select([], [writable], [], 0)[1], 'somebody reads the pipe'
        return at_ns

    def undo(self, system: System) -> None:
        """Give it its stderr back."""
        system.until_driving()
        system.start_gate()
        for end in self._ends or ():
            os.close(end)


class _FewDescriptors:
    """No process can open anything more, when the gate is to watch a new one."""

    def inject(self, system: System) -> int:
        """Leave the gate as many descriptors as it has."""
        pid = system.pid('gate')
        most = max(map(int, os.listdir(f'/proc/{pid}/fd'))) + 1
        _, self._hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, self._hard))
        return system.send('worker', signal.SIGKILL)

    def undo(self, system: System) -> None:
        """Give them back."""
        resource.prlimit(system.pid('gate'), resource.RLIMIT_NOFILE, (self._hard, self._hard))


def _no_space(system: System) -> int:
    pid = system.pid('policy')
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    return steady.now_ns()


LEFT_BYTES = 1 << 30
"""What somebody who takes all memory leaves; less, and the kernel kills one of us all."""
PIPE, DESCRIPTORS = _BlockedPipe(), _FewDescriptors()
OWN = (
    Fault('herald KILL', _signals('herald', signal.SIGKILL), frozenset(), leaves=False,
          limit_ms=None, hold_s=1.0),
    Fault('herald STOP 2 s', _signals('herald', signal.SIGSTOP), frozenset(),
          undo=_wakes('herald'), leaves=False, limit_ms=None, hold_s=2.0),
    Fault('gate STOP 1 s', _stop_gate, frozenset({'own_gap', 'clock_jump', 'estop_silent'}),
          gaps=True,
          limit_ms=1000.0 + 2 * TICK_MS, after=BUSY, check=_base_stood),
    Fault('gate raises', _raises(1), frozenset({'exception'}), limit_ms=TICK_MS, after=NODE),
    Fault('gate raises 3 times', _raises(3), frozenset({'exception'}), limit_ms=TICK_MS,
          hold_s=0.5, after=START | {'exceptions'}, check=_latches('FAULT_LATCHED', 'exceptions')),
    Fault('gate TERM', _signals('gate', signal.SIGTERM), START, undo=System.start_gate,
          after=START, limit_ms=TICK_MS + 10, detect=_gate_ends, check=_said_stop),
    Fault('load 2x', _intrudes('hogs', 2 * (os.cpu_count() or 1)), BUSY, undo=_leaves_alone,
          after=BUSY, leaves=None, limit_ms=None, hold_s=3.0),
    Fault('load 4x', _intrudes('hogs', 4 * (os.cpu_count() or 1)), BUSY, undo=_leaves_alone,
          after=BUSY, leaves=None, limit_ms=None, hold_s=3.0),
    Fault('memory pressure', _intrudes('memory', LEFT_BYTES), BUSY, undo=_leaves_alone,
          after=BUSY, leaves=None, limit_ms=None, hold_s=3.0),
    Fault('no space for records', _no_space, frozenset(), undo=System.start_policy_node,
          leaves=False, limit_ms=None, hold_s=1.5),
    Fault('stderr blocked', PIPE.inject, frozenset({'worker_dead', 'engine_absent'}),
          undo=PIPE.undo, limit_ms=DEATH_MS, after=START),
    Fault('no descriptor left', DESCRIPTORS.inject, frozenset({'worker_dead', 'engine_absent'}),
          undo=DESCRIPTORS.undo, limit_ms=DEATH_MS, hold_s=1.0),
)

# --- the e-stop -----------------------------------------------------------------------------


def _press(system: System) -> int:
    return system.spoil(estop='pressed')


def _latched_ns(system: System, began_ns: int) -> int | None:
    system.until_state('ESTOP_LATCHED', began_ns, patience_s=5.0)
    return next(int(row['published_ns']) for row in system.since(began_ns)
                if row['state'] == 'ESTOP_LATCHED')


def _stays(system: System, began_ns: int) -> list[str]:
    rows = system.since(began_ns)
    at = next((i for i, row in enumerate(rows) if row['state'] == 'ESTOP_LATCHED'), None)
    if at is None:
        return ['never latched']
    left = {row['state'] for row in rows[at:]} - {'ESTOP_LATCHED'}
    return [f'left ESTOP_LATCHED for {sorted(left)}'] if left else []


def _press_and_release(system: System) -> int:
    at_ns = _press(system)
    system.until_state('ESTOP_LATCHED', at_ns)
    system.heal()
    return at_ns


def _press_and_reset(system: System) -> int:
    at_ns = _press(system)
    system.until_state('ESTOP_LATCHED', at_ns)
    answer = system.call('reset')
    assert not answer['ok'], answer
    return at_ns


def _presses_in(state: str, before: Callable[[System], int]) -> Callable[[System], int]:
    def inject(system: System) -> int:
        system.until_state(state, before(system))
        return _press(system)
    return inject


def _press_when_latched(system: System) -> int:
    system.until_state('FAULT_LATCHED', _raises(3)(system))
    return _press(system)


def _stays_latched(system: System, began_ns: int) -> list[str]:
    states = {row['state'] for row in system.since(began_ns)}
    return [] if states == {'FAULT_LATCHED'} else [f'it was in {sorted(states)}']


def _never_heard(system: System) -> int:
    system.spoil(estop='silent')
    return _starts_gate(system)


def _degrades(system: System) -> int:
    # One answer that does not come; the next ones do.
    return system.script({'delay_ns': 10 * DELAY_NS}, *[{'leaf': 1, 'delay_ns': DELAY_NS}] * 9)


def _starts_gate(system: System) -> int:
    system.start_gate()
    return system.gate_began_ns


def _holds_now(system: System) -> int:
    at_ns = _starts_gate(system)
    system.until_holding(at_ns)
    return at_ns


def _waits_for_scan(system: System) -> int:
    system.spoil('scan', values='silent')
    return _starts_gate(system)


def _heals_all(system: System) -> None:
    _wake_worker(system)
    system.unscript()
    system.heal()


IN_STATES: tuple[tuple[str, Callable[[System], int]], ...] = (
    ('STANDBY', _waits_for_scan), ('HOLD', _holds_now), ('DEGRADED', _degrades),
    ('FALLBACK', _stop_worker), ('SAFE_STOP', _spoils('scan', values='silent')),
)
PRESSED = frozenset({'estop'})
ESTOP = (
    Fault('estop pressed', _press, PRESSED, undo=System.heal, limit_ms=TICK_MS, after=NODE),
    # In STANDBY the press may come before the middleware has connected the two; it stands anyway.
    *(Fault(f'estop in {state}', _presses_in(state, before), START | PRESSED, undo=_heals_all,
            limit_ms=GRAPH_MS if state == 'STANDBY' else TICK_MS, after=START | PRESSED,
            detect=_latched_ns, check=_stays) for state, before in IN_STATES),
    Fault('estop in FAULT_LATCHED', _press_when_latched, frozenset({'exceptions'}),
          undo=System.heal, limit_ms=None, leaves=None, after=START | {'exception', 'exceptions'},
          hold_s=1.0, check=_stays_latched),
    Fault('estop never heard', _never_heard, START, undo=System.heal, limit_ms=None, after=START,
          hold_s=1.5, check=_only_started),
    Fault('estop flapping', _spoils(estop='flap'), PRESSED, undo=System.heal, limit_ms=TICK_MS,
          hold_s=1.0, check=_stays),
    Fault('estop silent', _spoils(estop='silent'), frozenset({'estop_silent'}), undo=System.heal,
          limit_ms=SILENT_MS, check=_stays),
    Fault('estop released, not reset', _press_and_release, PRESSED, limit_ms=TICK_MS, hold_s=1.5,
          check=_stays),
    Fault('estop reset while pressed', _press_and_reset, PRESSED, undo=System.heal,
          limit_ms=TICK_MS, hold_s=0.5, check=_stays),
)

# --- the engine with a real model -----------------------------------------------------------


class _Slowed:
    """Stops and wakes the worker in turn, so that its model runs at a part of its speed."""

    def __init__(self, times: float) -> None:
        self._times = times
        self._ended = threading.Event()

    def inject(self, system: System) -> int:
        """Begin."""
        pid = system.pid('worker')
        self._ended.clear()
        at_ns = steady.now_ns()
        threading.Thread(target=self._slow, args=(pid,), daemon=True).start()
        return at_ns

    def _slow(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            while not self._ended.wait(0.02):
                os.kill(pid, signal.SIGSTOP)
                self._ended.wait(0.02 * (self._times - 1))
                os.kill(pid, signal.SIGCONT)

    def undo(self, system: System) -> None:
        """End."""
        self._ended.set()


REAL = (
    Fault('real worker KILL', _signals('worker', signal.SIGKILL),
          frozenset({'worker_dead', 'engine_absent'}), limit_ms=DEATH_MS, real_engine=True),
    Fault('real worker STOP 1 s', _stop_worker, ENGINE, undo=_wake_worker, limit_ms=FREEZE_MS,
          hold_s=0.7, real_engine=True),
    *(Fault(f'real engine slow {times:g}x', slowed.inject, ENGINE, undo=slowed.undo,
            leaves=None, limit_ms=None, hold_s=2.0, real_engine=True)
      for times in (1.5, 3.0, 10.0) for slowed in [_Slowed(times)]),
)

FAULTS: tuple[Fault, ...] = (
    *MAIN, *ENGINES, *ALL_SENSORS, *CLOCKS, *MIDDLEWARE, *OWN, *ESTOP, *REAL)
