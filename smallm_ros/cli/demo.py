"""`smallm demo`: every process for real, a robot in a simulated room, and a report of what it did.

Starts engine, simulator, watchdog and policy node as a launch file would, without needing one;
waits for readiness by events; lets the model drive; ends every process that it started, whatever
happens. Exit code 1 says that a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from smallm_ros import process, steady
from smallm_ros.cli.running import child_error, make_folder, seconds
from smallm_ros.core.action import Applied
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import OperatorError, PackageMissingError
from smallm_ros.core.exchange import ModelLimits, Progress
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.engine.client import EngineClient
from smallm_ros.engine.options import add_load_options, load_request
from smallm_ros.record.reader import read_records
from smallm_ros.replay import report
from smallm_ros.share import find_share

if TYPE_CHECKING:
    from smallm_ros.replay.live import Seen, Witness

READY_LIMIT_S = 300
"""From the start of the processes to the robot's first ACTIVE; a 14 GB model loads in a minute."""
END_LIMIT_S = 4.0
RESPAWN_DELAY_NS = SECOND // 2
"""A policy node that dies at once is not started again faster than this."""
STOPPED_FOR_S = 2.0
"""How long a policy node that `--inject` stops stays stopped; nobody else would wake it."""


@dataclass(frozen=True, slots=True)
class Injection:
    """A signal to one process in mid-demo."""

    target: str
    signal: signal.Signals
    after_s: float

    def __str__(self) -> str:
        return f'SIG{self.signal.name.removeprefix("SIG")} to the {self.target}'


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `smallm demo`."""
    parser = commands.add_parser(
        'demo', help='drive a simulated robot with the resident model, and report',
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--duration', type=seconds, default=60.0, metavar='S',
                        help='seconds of driving (default: %(default)g)')
    parser.add_argument('--out', type=Path, metavar='DIR',
                        help='where the record and the report go (default: runs/<time>)')
    parser.add_argument('--seed', type=int, default=0, metavar='N',
                        help='seed of the sensors\' noise (default: %(default)s)')
    parser.add_argument('--policy', type=Path, metavar='FILE',
                        help='default: config/policies/explorer.yaml')
    parser.add_argument('--world', default='room', metavar='NAME|FILE',
                        help='an SDF world (default: %(default)s)')
    parser.add_argument('--domain', type=int, choices=range(102), metavar='N',
                        help='ROS domain, 0 to 101 (default: one of its own, never that of the '
                             'environment)')
    parser.add_argument('--inject', type=_injection, action='append', default=[],
                        metavar='TARGET:SIGNAL@S',
                        help='send KILL or STOP to the engine\'s worker or the policy node after '
                             'S seconds, for example worker:KILL@20; may be given again')
    add_load_options(parser)
    parser.set_defaults(run=run)


def _injection(text: str) -> Injection:
    match = re.fullmatch(r'(worker|policy):(KILL|STOP)@([0-9]+(?:\.[0-9]+)?)', text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not TARGET:SIGNAL@SECONDS with worker or policy, KILL or STOP'
        )
    return Injection(match[1], signal.Signals[f'SIG{match[2]}'], float(match[3]))


def run(args: argparse.Namespace) -> int:
    """Run the demo and return 0 when every promise was kept."""
    late = [i for i in args.inject if i.after_s >= args.duration]
    if late:
        raise OperatorError(f'--inject {late[0].target}:…@{late[0].after_s:g} is not before the '
                            f'end, --duration {args.duration:g}')
    policy_path = args.policy or find_share('config') / 'policies' / 'explorer.yaml'
    policy = load_policy(policy_path)
    _require_ros()
    _own_domain(args.domain)
    out = (args.out or Path('runs') / steady.wall_text()).absolute()
    make_folder(out)
    failure = None
    with tempfile.TemporaryDirectory(prefix='smallm-') as private:
        demo = Demo(args, policy, policy_path.absolute(), out, Path(private) / 'engine.sock')
        try:
            demo.start()
            demo.drive()
        except OperatorError as err:
            if not demo.begin_ns:
                raise
            # The run that failed is the one whose report is needed most.
            failure = err
            demo.notes.append(str(err))
        finally:
            demo.end()
    code = demo.write_report()
    if failure is not None:
        raise failure
    return code


def _own_domain(asked: int | None) -> None:
    """Keep this run's topics on this machine and apart from everybody's, a real robot's above all.

    What the environment says is not used: its domain is the robot's, and a demo arms itself.
    """
    taken = os.environ.get('ROS_DOMAIN_ID', '0')
    domain = str(1 + os.getpid() % 100) if asked is None else str(asked)
    if asked is None and domain == taken:
        domain = '101'
    for name in ('ROS_STATIC_PEERS', 'ROS_DISCOVERY_SERVER'):
        os.environ.pop(name, None)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = domain


def _require_ros() -> None:
    missing = [name for name in ('rclpy', 'mujoco', 'plotly') if find_spec(name) is None]
    if missing:
        raise PackageMissingError(
            f'the demo needs {", ".join(missing)}: pip install "smallm_ros[ros,sim,replay]"'
        )


@dataclass(slots=True)
class Child:
    """One process of the demo and where its output goes."""

    name: str
    words: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes]
    started_ns: int

    @classmethod
    def spawn(cls, name: str, words: Sequence[str], log: Path) -> Child:
        """Start `python -m words…`, in a session of its own: Ctrl-C reaches the demo alone."""
        command = [sys.executable, '-m', 'smallm_ros.cli.child', str(os.getpid()), *words]
        with log.open('ab') as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )
        return cls(name, words, log, process, steady.now_ns())

    def end(self) -> None:
        """SIGTERM, and SIGKILL to what does not follow."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


@dataclass(slots=True)
class Demo:
    """One run: its processes, its witness and its report."""

    args: argparse.Namespace
    policy: Policy
    policy_path: Path
    out: Path
    socket: Path
    children: dict[str, Child] = field(default_factory=dict)
    limits: ModelLimits | None = None
    begin_ns: int = 0
    end_ns: int = 0
    stolen_ms: float = 0.0
    injected: list[tuple[Injection, int]] = field(default_factory=list)
    """With the steady time at which each signal was sent."""
    notes: list[str] = field(default_factory=list)
    respawned_ns: list[int] = field(default_factory=list)
    """When the policy node was started again, steady."""
    _witness: Witness | None = None
    _spin: _Spin | None = None
    _wake: list[tuple[int, int]] = field(default_factory=list)
    """(when, pid) of processes that `--inject` stopped."""
    _started_text: str = ''

    @property
    def seen(self) -> Seen:
        """What the witness saw."""
        assert self._witness is not None
        return self._witness.seen

    # --- processes --------------------------------------------------------------------------

    def start(self) -> None:
        """Start every process and return when the model drives."""
        self._started_text = steady.wall_text()
        (self.out / 'logs').mkdir()
        self._spawn('engine', 'smallm_ros.engine.supervisor', '--socket', str(self.socket),
                    *load_request(self.args).words())
        self._spawn_node('sim_node', 'smallm_ros.sim.sim_node', world=self.args.world,
                         seed=self.args.seed)
        self._spawn_node('watchdog_node', 'smallm_ros.ros.watchdog_node', auto_arm='true',
                         policy=self.policy_path, use_sim_time='true')
        self._spawn_policy()
        self._spin = _Spin()
        self._witness = self._spin.witness
        self._await_ready()

    def _spawn(self, name: str, *words: str) -> None:
        self.children[name] = Child.spawn(name, words, self.out / 'logs' / f'{name}.log')

    def _spawn_node(self, name: str, module: str, **parameters: object) -> None:
        words = [word for key, value in parameters.items() for word in ('-p', f'{key}:={value}')]
        self._spawn(name, module, '--ros-args', *words)

    def _spawn_policy(self) -> None:
        self._spawn_node('policy_node', 'smallm_ros.ros.policy_node', policy=self.policy_path,
                         socket=self.socket, autostart='true', record_dir=self.out,
                         use_sim_time='true')

    def _check_children(self) -> None:
        """Respawn the policy node as a launch file would; any other end is the demo's end."""
        for child in tuple(self.children.values()):
            code = child.process.poll()
            if code is None:
                continue
            if child.name != 'policy_node' or not self.begin_ns:
                raise child_error(child.name, code, child.log)
            if steady.now_ns() - child.started_ns > RESPAWN_DELAY_NS:
                self._spawn_policy()
                self.respawned_ns.append(self.children['policy_node'].started_ns)

    def _await_ready(self) -> None:
        """Wait until the engine is ready, the policy declared and the gate ACTIVE."""
        client = EngineClient(self.socket, 'demo')
        limit_ns = steady.now_ns() + READY_LIMIT_S * SECOND
        said = ''
        try:
            while not (self.limits and self._driving()):
                self._turn()
                for event in client.poll(steady.now_ns()):
                    if isinstance(event, ModelLimits):
                        self.limits = event
                    elif isinstance(event, Progress) and said != event.state.value:
                        said = event.state.value
                        print(f'engine: {said}', flush=True)
                if steady.now_ns() > limit_ns:
                    state = self.seen.applied[-1] if self.seen.applied else None
                    raise OperatorError(
                        f'not driving after {READY_LIMIT_S} s: engine {said or "absent"}, gate '
                        f'{f"{state.state}, {state.cause}" if state else "silent"}; logs in '
                        f'{self.out / "logs"}'
                    )
        finally:
            client.close()

    def _driving(self) -> bool:
        return bool(self.seen.applied) and self.seen.applied[-1].state == 'ACTIVE'

    def _turn(self) -> None:
        assert self._spin is not None
        self._spin.once()
        self._check_children()

    # --- the episode ------------------------------------------------------------------------

    def drive(self) -> None:
        """Let it drive for the duration, with a live line, and inject what was asked for."""
        assert self.limits is not None
        print(report.model_line(self.limits))
        print(f'driving for {self.args.duration:g} s in ROS domain '
              f'{os.environ["ROS_DOMAIN_ID"]}; record and report go to {self.out}', flush=True)
        stolen_ms = process.stolen_ms()
        self.begin_ns = steady.now_ns()
        self.end_ns = self.begin_ns + round(self.args.duration * SECOND)
        todo = sorted(self.args.inject, key=lambda i: i.after_s)
        line = _LiveLine()
        while (now_ns := steady.now_ns()) < self.end_ns:
            self._turn()
            if todo and now_ns >= self.begin_ns + todo[0].after_s * SECOND \
                    and self._inject(todo[0]):
                todo.pop(0)
            self._wake_due(now_ns)
            line.show(now_ns, self._state_text(now_ns))
        line.end()
        self.stolen_ms = process.stolen_ms() - stolen_ms
        if self.stolen_ms > 0:
            self.notes.append(f'the hypervisor kept {self.stolen_ms:.0f} ms of core time')

    def _inject(self, injection: Injection) -> bool:
        """Send the signal; False when there is nobody to send it to, at this turn."""
        status = self.seen.status
        if injection.target == 'policy':
            pid = self.children['policy_node'].process.pid
        else:
            pid = status.worker_pid if status is not None else 0
        if pid <= 0:
            return False
        try:
            os.kill(pid, injection.signal)
        except ProcessLookupError:
            return False
        now_ns = steady.now_ns()
        self.injected.append((injection, now_ns))
        self.notes.append(f'{injection} after {(now_ns - self.begin_ns) / SECOND:.1f} s')
        if injection.target == 'policy' and injection.signal == signal.SIGSTOP:
            self._wake.append((now_ns + round(STOPPED_FOR_S * SECOND), pid))
        return True

    def _wake_due(self, now_ns: int) -> None:
        for due in [d for d in self._wake if now_ns >= d[0]]:
            self._wake.remove(due)
            with contextlib.suppress(ProcessLookupError):
                os.kill(due[1], signal.SIGCONT)

    def _state_text(self, now_ns: int) -> str:
        seen, status = self.seen, self.seen.status
        last = seen.applied[-1]
        served = status.served if status else 0
        misses = status.misses if status else 0
        return (
            f'{(now_ns - self.begin_ns) / SECOND:6.1f} s  {last.state:<9} {last.cause:<20.20} '
            f'{seen.action:<14.14} {last.linear_x_m_s:5.2f} m/s {last.angular_z_rad_s:5.2f} '
            f'rad/s  decided {served}, not {misses}, collisions {seen.collisions}'
        )

    def end(self) -> None:
        """End every process that was started: the mind first, the engine last."""
        self.end_ns = min(self.end_ns, steady.now_ns())
        for name in ('policy_node', 'watchdog_node', 'sim_node', 'engine'):
            if name in self.children:
                self.children[name].end()
        if self._spin is not None:
            self._spin.close()

    # --- the report -------------------------------------------------------------------------

    def write_report(self) -> int:
        """Write the report, print its table, return the exit code."""
        from smallm_ros.sim.world import find_world, load_world, outline

        records = [
            record
            for path in sorted(self.out.glob('decisions*.mcap'))
            for record in read_records(path, say=self.notes.append)
            if self.begin_ns <= record.tick_ns <= self.end_ns
        ]
        seen = self.seen
        applied = [a for a in seen.applied if self.begin_ns <= a.steady_ns <= self.end_ns]
        for started_ns in self.respawned_ns:
            first = next((r.ended_ns for r in records
                          if r.outcome == 'decided' and r.ended_ns > started_ns), None)
            took = 'never decided' if first is None else (
                f'first decision {(first - started_ns) / MS:.0f} ms after its start')
            self.notes.append(f'policy node started again: {took}')
        result = report.Run(
            kind='demo', title=self.args.world, command=shlex.join(['smallm', *sys.argv[1:]]),
            started=self._started_text, policy=self.policy, policy_file=str(self.policy_path),
            machine=report.describe_machine(), model=self.limits, begin_ns=self.begin_ns,
            end_ns=self.end_ns, records=records, applied=applied,
            command_times_ns=[t for t in seen.command_times_ns
                              if self.begin_ns <= t <= self.end_ns],
            trail=[p for p in seen.trail if self.begin_ns <= p.steady_ns <= self.end_ns],
            outline=outline(load_world(find_world(self.args.world))), collisions=seen.collisions,
            stolen_ms=self.stolen_ms,
            promises=[
                *(reaction(i, at_ns, applied, self.policy) for i, at_ns in self.injected),
                *(recovery(i, at_ns, applied) for i, at_ns in self.injected),
            ],
            notes=self.notes,
        )
        _, page = report.write_report(result, self.out)
        print(report.table(result))
        print(f'report: {page}')
        if not any(r.outcome == 'decided' for r in records):
            print('smallm demo: the model decided nothing', file=sys.stderr)
            return 1
        return 0 if all(p.ok for p in report.check_promises(result)) else 1


def reaction(
    injection: Injection, at_ns: int, applied: Sequence[Applied], policy: Policy
) -> report.Promise:
    """Return how long after the fault the first command of the fallback left.

    `hold` is none: it repeats what the model last said.
    """
    after = [a for a in applied if a.steady_ns > at_ns]
    other = next((a.steady_ns for a in after if a.source in ('baseline', 'stop')), None)
    took_ms = None if other is None else (other - at_ns) / MS
    limit_ms = policy.control.reaction_time_ms
    return report.Promise(
        name=f'fallback after {injection}', unit='ms', limit=limit_ms, worst=took_ms,
        violations=int(took_ms is None or took_ms > limit_ms), n=1,
    )


def recovery(injection: Injection, at_ns: int, applied: Sequence[Applied]) -> report.Promise:
    """Return how many seconds after the fault the model drove again, at the latest at the end.

    The gate's dwells are meant to be slow: this says that it came back, not that it was quick.
    """
    fell_ns = next((a.steady_ns for a in applied
                    if a.steady_ns > at_ns and a.source != 'model'), None)
    back_ns = None if fell_ns is None else next(
        (a.steady_ns for a in applied if a.steady_ns > fell_ns and a.state == 'ACTIVE'
         and a.source == 'model'), None)
    end_s = (applied[-1].steady_ns - at_ns) / SECOND if applied else 0.0
    return report.Promise(
        name=f'drives again after {injection}', unit='s', limit=end_s,
        worst=None if back_ns is None else (back_ns - at_ns) / SECOND,
        violations=int(back_ns is None), n=1,
    )


class _Spin:
    """The demo's own node, which carries the witness."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        from smallm_ros.replay.live import Witness

        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node('smallm_demo', enable_rosout=False)
        self.witness = Witness(self._node)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)

    def once(self) -> None:
        """Handle what has come, waiting for it for at most 50 ms."""
        self._executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        """Leave the ROS graph."""
        import rclpy

        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown()


class _LiveLine:
    """One line that is rewritten on a terminal, and a line every five seconds elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._period_ns = SECOND // 5 if self._terminal else 5 * SECOND
        self._next_ns = 0

    def show(self, now_ns: int, text: str) -> None:
        """Show `text` when it is time to."""
        if now_ns < self._next_ns:
            return
        self._next_ns = now_ns + self._period_ns
        if self._terminal:
            width = shutil.get_terminal_size().columns
            print(f'\r{text[:width - 1]:<{width - 1}}', end='', flush=True)
        else:
            print(text, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._terminal:
            print()
