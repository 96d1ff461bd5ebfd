"""The processes of the fault suite: started, watched, signalled, and all of them ended.

The real watchdog, the real policy node and a real supervisor, with a world and an observer of our
own, in a ROS domain of their own. They stay up over many injections; what a fault kills is started
anew. What the gate did is read from its log, as it grows.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallm_ros import steady
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.process import scheduling

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name('robot.yaml')
HERE = 'tests.faults'
QUICK = 'rate_hz: 4, budget_ms: 220, max_observation_age_ms: 1200'
UNHURRIED = 'rate_hz: 2, budget_ms: 420, max_observation_age_ms: 2200'
PATIENCE_S = 40.0
KEPT_NS = 90 * SECOND
"""Rows older than this are forgotten."""
LOOK_NS = 10 * MS
DRIVING_M_S = 0.2
DELAY_NS = 60 * MS
BOUND_MS = 100
"""A model's batch is well below its bound, too: that is a q99 with a reserve."""
SCRIPT = [{'leaf': 1, 'delay_ns': DELAY_NS}]
LIMITS = {'retry_ns': [100 * MS], 'deaths': 1_000_000, 'end_ns': SECOND}
"""A supervisor that does not give up: sixty deaths in a row are the experiment."""


class Never(Exception):
    """What was waited for did not come."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How the processes are started."""

    dwells: str = 'short'
    simulated: bool = False
    real_engine: bool = False
    fifo: bool = True
    all_seen: bool = False
    """Whether the observer hears everything that the gate hears."""
    domain: int = 51


class Tail:
    """Reads what was added to a file since the last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def lines(self) -> list[bytes]:
        """Return the whole lines that are new."""
        data = self._read()
        end = data.rfind(b'\n') + 1
        self._at += end
        return data[:end].splitlines()

    def rows(self, row: struct.Struct) -> list[tuple[Any, ...]]:
        """Return the whole rows that are new."""
        data = self._read()
        end = len(data) - len(data) % row.size
        self._at += end
        return list(row.iter_unpack(data[:end]))

    def _read(self) -> bytes:
        with contextlib.suppress(FileNotFoundError), self._path.open('rb') as file:
            file.seek(self._at)
            return file.read()
        return b''


class System:
    """All processes of one setting."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting = setting
        self._folder = Path(tempfile.mkdtemp(prefix='smallm-faults-', dir=_tmpfs()))
        self._file = FILE
        if setting.real_engine:  # a model of 135 M on two cores takes longer than a script
            self._file = self._folder / 'robot.yaml'
            self._file.write_text(FILE.read_text(encoding='utf-8').replace(QUICK, UNHURRIED),
                                  encoding='utf-8')
        self.policy: Policy = load_policy(self._file)
        self._logs = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = self._folder / 'engine.sock'
        self.orders = self._folder / 'orders.json'
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._number = itertools.count(1)
        self.rows: list[dict[str, Any]] = []
        """The gate's log, of every gate process."""
        self.seen: list[tuple[int, int, float]] = []
        """What the observer heard: arrival, kind, speed."""
        self.truth: list[tuple[int, float, float]] = []
        """What the base drove."""
        self.late: list[tuple[int, int, float]] = []
        """The canary: when it was due, how late it woke, what a hypervisor stole until then."""
        self.armed_ns: list[int] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._words = b''
        self._gate_tail = Tail(self._folder / 'none')
        self.gate_began_ns = 0

    def start(self) -> None:
        """Start everything, and return when the model drives."""
        self._start_world()
        self._start('observer', self._python('observer_process', self._folder / 'seen',
                                             *(('all',) if self.setting.all_seen else ())))
        self._start('canary', [sys.executable, '-m', 'smallm_ros.bench.canary', str(os.getpid()),
                               str(self._folder / 'late')])
        self._seen_tail = Tail(self._folder / 'seen')
        self._truth_tail = Tail(self._folder / 'truth')
        self._late_tail = Tail(self._folder / 'late')
        self.start_engine()
        self.start_policy_node()
        self.start_gate()
        self.until_driving(patience_s=240.0 if self.setting.real_engine else PATIENCE_S)

    def close(self) -> None:
        """End every process."""
        for name in list(self._children):
            self.end(name)
        shutil.rmtree(self._folder, ignore_errors=True)
        sweep()

    # --- processes --------------------------------------------------------------------------

    def pid(self, name: str) -> int:
        """Return the pid of a child; `worker` is the engine's, `herald` the gate's."""
        parent = {'worker': 'engine', 'herald': 'gate'}.get(name)
        if parent is None:
            return self._children[name].pid
        found: list[int] = []

        def spawned() -> bool:
            found[:] = children_of(self._children[parent].pid)
            return bool(found)
        self.wait(spawned, f'a {name}')
        return found[0]

    def send(self, name: str, number: signal.Signals) -> int:
        """Send a signal, and return when (steady ns), once the kernel shows that it took it."""
        pid = self.pid(name)
        at_ns = steady.now_ns()
        os.kill(pid, number)
        wanted = {signal.SIGKILL: 'ZX', signal.SIGSTOP: 'T'}.get(number)
        if wanted is not None:
            self.wait(lambda: state_of(pid) in wanted, f'{name} {pid} in {wanted}')
        return at_ns

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a child, by force if it does not."""
        child = self._children.pop(name, None)
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGCONT)
        if child.stdin is not None:
            child.stdin.close()
        child.send_signal(number)
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()

    def start_gate(self, stderr: int | None = None) -> None:
        """Start a watchdog; the one before must have ended."""
        self.end('gate')
        number = next(self._number)
        log = self._folder / f'gate-{number}.jsonl'
        self.poll()
        self._gate_tail = Tail(log)
        urgent = ['-p', 'realtime_priority:=50', '-p', 'lock_memory:=true']
        self.gate_began_ns = steady.now_ns()
        self._start('gate', [
            *self._python('gate_process', '--log', log, '--dwells', self.setting.dwells),
            '--ros-args', '-p', f'policy:={self._file}', '-p', 'estop_required:=true',
            '-p', f'use_sim_time:={str(self.setting.simulated).lower()}',
            *(urgent if self.setting.fifo else ()),
        ], stderr=stderr)

    def start_policy_node(self) -> None:
        """Start a policy node; the one before must have ended."""
        self.end('policy')
        records = self._folder / 'records'
        shutil.rmtree(records, ignore_errors=True)
        self._start('policy', [
            sys.executable, '-m', 'smallm_ros.ros.policy_node', '--ros-args',
            '-p', f'policy:={self._file}', '-p', f'socket:={self.socket}',
            '-p', f'record_dir:={records}',
            '-p', f'use_sim_time:={str(self.setting.simulated).lower()}'])

    def start_engine(self) -> None:
        """Start a supervisor and its worker."""
        self.end('engine')
        if self.setting.real_engine:
            words = self._python('engine_process', self.socket, json.dumps(LIMITS),
                                 '--model', 'smollm2-135m-instruct')
        else:
            words = [sys.executable, str(ROOT / 'tests' / 'fakes' / 'scripted_engine.py'),
                     str(self.socket), json.dumps(LIMITS), '--script', json.dumps(SCRIPT),
                     '--orders', str(self.orders), '--bound-ms', str(BOUND_MS)]
        self._start('engine', words)

    def start_other(self, name: str, *words: object) -> dict[str, Any]:
        """Start an intruder and return its first line, which it prints once it is at work."""
        child = self._start(name, self._python('intruder_process', *words),
                            stdout=subprocess.PIPE)
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise Never(f'{name} ended before it said anything')
        said: dict[str, Any] = json.loads(line)
        return said

    def _start_world(self) -> None:
        words = self._python('world_process', self._folder / 'truth',
                             *(('sim',) if self.setting.simulated else ()),
                             *(('urgent',) if self.setting.fifo else ()))
        child = self._start('world', words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)

    def _python(self, module: str, *words: object) -> list[str]:
        return [sys.executable, '-m', f'{HERE}.{module}', *map(str, words)]

    def _start(
        self, name: str, words: Sequence[str], *, stderr: int | None = None, **streams: Any,
    ) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path]),
            'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
            'ROS_DOMAIN_ID': str(self.setting.domain),
        }
        # A suite that is killed leaves nothing behind.
        tie = ['setpriv', '--pdeathsig', 'KILL'] if shutil.which('setpriv') else []
        with (self._logs / f'{name}.log').open('ab') as log:
            child = subprocess.Popen(
                [*tie, *words], env=environment, cwd=ROOT, start_new_session=True,
                **{'stdin': subprocess.DEVNULL, 'stdout': log, **streams},
                stderr=log if stderr is None else stderr)
        self._children[name] = child
        return child

    # --- the world --------------------------------------------------------------------------

    def order(self, **order: Any) -> dict[str, Any]:
        """Give the world an order and return its answer."""
        number = next(self._number)
        stream = self._children['world'].stdin
        assert stream is not None
        stream.write(json.dumps({'id': number, **order}).encode() + b'\n')
        stream.flush()
        self.wait(lambda: number in self._answers, f'the answer to {order}')
        return self._answers.pop(number)

    def spoil(self, *of: str, **how: Any) -> int:
        """Make sensors, or the world, what they should not be; return since when."""
        answer = self.order(of=of or [''], set=how)
        return int(answer['at_ns'])

    def heal(self) -> None:
        """Make the world well again."""
        self.order(well=True)

    def script(self, *lines: dict[str, Any]) -> int:
        """Have the scripted worker do this from the next question on; return since when."""
        whole = self.orders.with_suffix('.new')
        whole.write_text(json.dumps(lines), encoding='utf-8')
        at_ns = steady.now_ns()
        whole.replace(self.orders)
        return at_ns

    def unscript(self) -> None:
        """Have the worker do again what it was started with."""
        self.orders.unlink(missing_ok=True)

    # --- waiting ----------------------------------------------------------------------------

    def poll(self) -> None:
        """Read what is new, forget what is old."""
        self.rows += [json.loads(line) for line in self._gate_tail.lines()]
        if '_late_tail' in vars(self):
            self.seen += self._seen_tail.rows(struct.Struct('<qqd'))
            self.truth += self._truth_tail.rows(struct.Struct('<qdd'))
            self.late += [(due, late, stolen_us / 1000) for due, late, stolen_us in
                          self._late_tail.rows(struct.Struct('<qqq'))]
        world = self._children.get('world')
        if world is not None and world.stdout is not None:
            with contextlib.suppress(BlockingIOError):
                self._words += world.stdout.read() or b''
            *lines, self._words = self._words.split(b'\n')
            for line in lines:
                answer = json.loads(line)
                self._answers[answer['id']] = answer

    def forget(self) -> None:
        """Forget what is old."""
        since_ns = steady.now_ns() - KEPT_NS
        self.rows = [row for row in self.rows if row['steady_ns'] > since_ns]
        self.seen = [row for row in self.seen if row[0] > since_ns]
        self.truth = [row for row in self.truth if row[0] > since_ns]
        self.late = [row for row in self.late if row[0] > since_ns]
        self.armed_ns = [ns for ns in self.armed_ns if ns > since_ns]

    def wait(
        self, until: Callable[[], object], what: str, patience_s: float = PATIENCE_S,
    ) -> None:
        """Wait until something holds; Never, by name, when it does not come."""
        end_ns = steady.now_ns() + round(patience_s * SECOND)
        while True:
            self.poll()
            if until():
                return
            if steady.now_ns() > end_ns:
                last = self.rows[-1] if self.rows else None
                raise Never(f'{what} did not come in {patience_s:g} s; the gate said last: {last}')
            steady.sleep_until(steady.now_ns() + LOOK_NS)

    def pause(self, seconds: float) -> None:
        """Let the world turn for a while."""
        end_ns = steady.now_ns() + round(seconds * SECOND)
        self.wait(lambda: steady.now_ns() >= end_ns, 'the end of time', seconds + PATIENCE_S)

    def since(self, ns: int) -> list[dict[str, Any]]:
        """Return the gate's rows since then."""
        return list(reversed(list(itertools.takewhile(
            lambda row: row['steady_ns'] >= ns, reversed(self.rows)))))

    def until_state(self, state: str, since_ns: int, patience_s: float = PATIENCE_S) -> None:
        """Wait until the gate is in a state."""
        self.wait(lambda: any(row['state'] == state for row in self.since(since_ns)),
                  state, patience_s)

    def call(self, what: str) -> dict[str, Any]:
        """Ask the gate to `arm` or `reset`."""
        if what == 'arm':
            self.armed_ns.append(steady.now_ns())
        return self.order(call=what)

    def until_holding(self, since_ns: int) -> None:
        """Wait until the gate is in HOLD; reset it where it latched before it was there."""
        def holds() -> bool:
            state = self.rows[-1]['state'] if self.since(since_ns) else ''
            if state == 'ESTOP_LATCHED':
                self.call('reset')
            return state == 'HOLD'
        self.wait(holds, 'HOLD')

    def until_driving(self, since_ns: int = 0, patience_s: float = PATIENCE_S) -> int:
        """Do what an operator would until the model drives; return since when (steady ns)."""
        end_ns = steady.now_ns() + round(patience_s * SECOND)
        since_ns = since_ns or steady.now_ns()
        asked_ns = 0
        while True:
            self.poll()
            rows = self.since(since_ns)
            last = rows[-1] if rows else None
            if (last is not None and last['state'] == 'ACTIVE' and last['cause'] == 'none'
                    and last['source'] == 'model' and (
                        last['linear_x_m_s'] > DRIVING_M_S or self.setting.real_engine)):
                back = itertools.takewhile(lambda row: row['state'] == 'ACTIVE', reversed(rows))
                return int(list(back)[-1]['published_ns'])
            if steady.now_ns() > end_ns:
                raise Never(f'the model does not drive after {patience_s:g} s; last: '
                            f'{self.rows[-1:]}')
            state = last['state'] if last is not None else ''
            what = {'HOLD': 'arm', 'ESTOP_LATCHED': 'reset'}.get(state)
            if state == 'FAULT_LATCHED':
                self.start_gate()
                since_ns = steady.now_ns()
            elif what is not None and steady.now_ns() - asked_ns > 200 * MS:
                self.call(what)
                asked_ns = steady.now_ns()
            steady.sleep_until(steady.now_ns() + LOOK_NS)

    # --- what the base did, and how punctual the machine was --------------------------------

    def stood_ns(self, since_ns: int) -> int | None:
        """Return when the base stood for good after `since_ns`."""
        rows = [row for row in self.truth if row[0] >= since_ns]
        moving = [i for i, (_, v, w) in enumerate(rows) if v or w]
        at = moving[-1] + 1 if moving else 0
        return rows[at][0] if at < len(rows) else None

    def canary_ms(self, from_ns: int, to_ns: int) -> float:
        """Return how late the canary woke at most."""
        return max((late for due, late, _ in self.late if from_ns <= due <= to_ns),
                   default=0) / MS

    def stolen_ms(self, from_ns: int, to_ns: int) -> float:
        """Return how much core time a hypervisor took, of all cores together."""
        stolen = [ms for due, _, ms in self.late if from_ns <= due <= to_ns]
        return stolen[-1] - stolen[0] if stolen else 0.0

    def seen_gap_ms(self, from_ns: int, to_ns: int) -> float:
        """Return the longest gap between two velocities at the observer."""
        times = [at for at, kind, _ in self.seen if kind == 0 and from_ns <= at <= to_ns]
        return max((b - a for a, b in itertools.pairwise(times)), default=0) / MS

    def priority(self) -> str:
        """Return how the gate is scheduled, and whether it is locked in memory."""
        pid = self.pid('gate')
        text = Path(f'/proc/{pid}/status').read_text(encoding='ascii')
        locked = next(int(line.split()[1]) for line in text.splitlines()
                      if line.startswith('VmLck:'))
        return f'{scheduling(pid)}, {"locked" if locked else "pageable"}'


def _tmpfs() -> str | None:
    return '/dev/shm' if os.access('/dev/shm', os.W_OK) else None


def sweep() -> None:
    """Remove the segments that killed DDS processes left in shared memory.

    Those are old, and no process maps them. Ports are left: they belong to nobody.
    """
    mapped = ''
    for entry in os.listdir('/proc'):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                mapped += Path(f'/proc/{entry}/maps').read_text(encoding='utf-8')
    for path in Path('/dev/shm').glob('fast*_*'):
        if 'port' in path.name:
            continue
        with contextlib.suppress(OSError):
            old = steady.wall_ns() - path.stat().st_mtime_ns > 10 * SECOND
            if old and path.name.removesuffix('_el') not in mapped:
                path.unlink()


def state_of(pid: int) -> str:
    """Return the state of a process as proc(5) has it; X when there is none."""
    try:
        text = Path(f'/proc/{pid}/stat').read_text(encoding='ascii', errors='replace')
    except (FileNotFoundError, ProcessLookupError):
        return 'X'
    return text.rpartition(')')[2].split()[0]


def children_of(parent: int) -> list[int]:
    """Return the living children of a process."""
    return [pid for pid, of in _parents() if of == parent]


def _parents() -> Iterator[tuple[int, int]]:
    for entry in os.listdir('/proc'):
        if not entry.isdecimal():
            continue
        try:
            text = Path(f'/proc/{entry}/stat').read_text(encoding='ascii', errors='replace')
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = text.rpartition(')')[2].split()
        if fields[0] not in 'ZX':
            yield int(entry), int(fields[1])
