"""`smallm replay BAG --policy FILE`: the recorded robot, the real model, and the figures.

The engine that is started here ends with this command, however that ends: by a context manager,
and by the kernel where nothing else is left to do it. With `--socket` a running engine is used
instead and left alone. The exit code is 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from smallm_ros import process, steady
from smallm_ros.cli.running import child_error, make_folder, seconds
from smallm_ros.core.clock import SECOND
from smallm_ros.core.errors import PackageMissingError
from smallm_ros.core.pilot import Identity
from smallm_ros.core.policy import load_policy
from smallm_ros.core.prompt import declaration
from smallm_ros.engine.options import LoadRequest, add_load_options, load_request

PROMISE_BROKEN = 1
ENGINE_END_S = 10.0
"""From asking the engine to end to killing it; it gives its worker 3 s."""
SOCKET_LIMIT_S = 10
"""The worker binds its socket before it loads, after a second of imports."""
PLAIN_PERIOD_NS = 10 * SECOND
"""Between two lines of progress where there is no terminal to write over."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command to the `smallm` command line."""
    parser = commands.add_parser(
        'replay', help='run a recorded bag through the model and the gate',
        description='Run a rosbag2 recording through the same core and the same engine as on the '
                    'robot, at recorded pace, and report latencies, misses and fallbacks.',
    )
    parser.add_argument('bag', type=Path, metavar='BAG',
                        help='a rosbag2 directory, or a bare .db3 or .mcap file')
    parser.add_argument('--policy', type=Path, required=True, metavar='FILE',
                        help='the policy file, such as config/policies/neato.yaml')
    parser.add_argument('--out', type=Path, metavar='DIR',
                        help='where the record and the reports go (default: runs/<time>)')
    parser.add_argument('--duration', type=seconds, metavar='S',
                        help='replay the first S seconds only')
    parser.add_argument('--socket', type=Path, metavar='PATH',
                        help='use the engine that serves this socket; the options of the model '
                             'then mean nothing')
    add_load_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay, print the figures and write the run's files; return the exit code."""
    try:
        import smallm_ros.replay.page  # noqa: F401  # better missed now than after the replay
        from smallm_ros.replay.bag import Bag
    except ImportError as err:
        raise PackageMissingError(
            f'{err.name} is not installed: pip install "smallm_ros[replay]"'
        ) from err
    from smallm_ros.engine.client import EngineClient
    from smallm_ros.record.writer import RecordWriter
    from smallm_ros.replay import report
    from smallm_ros.replay.runner import RecordedPace, replay

    policy = load_policy(args.policy)
    started = steady.wall_text()
    out: Path = args.out or Path('runs') / started
    with Bag(args.bag, policy) as bag, contextlib.ExitStack() as stack:
        for warning in bag.warnings:
            print(f'{args.bag}: {warning}')
        make_folder(out)
        writer = RecordWriter(out / 'decisions.mcap', declaration(policy))
        stack.callback(writer.close)
        progress = _Progress()
        stack.callback(progress.end)
        if args.socket is None:
            path, check = stack.enter_context(_engine(load_request(args), out / 'engine.log'))
        else:
            path, check = args.socket, _unwatched
        client = EngineClient(path, 'smallm replay')
        stack.callback(client.close)
        replayed = replay(
            bag, policy, client, RecordedPace(), _identity(),
            record=writer.put_nowait, say=progress.say, check_engine=check,
            limit_ns=None if args.duration is None else round(args.duration * SECOND),
        )
        progress.end()
        writer.close()
        notes = [f'ROS time is {bag.ros_time.source}', 'the gate armed itself', *bag.warnings]
    if writer.dropped:
        notes.append(f'{writer.dropped} records were not written: '
                     f'{writer.fault or "the queue was full"}')
    done = report.Run(
        kind='replay', title=args.bag.resolve().name,
        command=shlex.join(['smallm', *sys.argv[1:]]), started=started, policy=policy,
        policy_file=str(args.policy), machine=report.describe_machine(), model=replayed.model,
        begin_ns=replayed.begin_ns, end_ns=replayed.end_ns, records=replayed.records,
        applied=replayed.applied, notes=notes,
    )
    _, page = report.write_report(done, out)
    print(report.table(done))
    print(f'\n{page}')
    return 0 if all(promise.ok for promise in report.check_promises(done)) else PROMISE_BROKEN


def _identity() -> Identity:
    return Identity(
        session=secrets.token_hex(8), host=process.host(), boot=steady.boot_id()[:64],
        pid=os.getpid(), start_ticks=process.own_start_ticks(),
    )


# --- the engine -------------------------------------------------------------------------------


@contextlib.contextmanager
def _engine(request: LoadRequest, log: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Run an engine of our own; yield its socket and a check that raises when it has ended."""
    with tempfile.TemporaryDirectory(prefix='smallm-') as folder, log.open('wb') as lines:
        path = Path(folder) / 'engine.sock'
        child = subprocess.Popen(
            [sys.executable, '-m', 'smallm_ros.cli.child', str(os.getpid()),
             'smallm_ros.engine.supervisor', '--socket', str(path), *request.words()],
            stdin=subprocess.DEVNULL, stdout=lines, stderr=lines,
            # Ctrl-C is for this process, which then ends the engine in good order.
            start_new_session=True,
        )

        def check() -> None:
            code = child.poll()
            if code is not None:
                raise child_error('the engine', code, log)

        try:
            _await_socket(path, child, check)
            yield path, check
        finally:
            child.terminate()
            try:
                child.wait(ENGINE_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _await_socket(path: Path, child: subprocess.Popen[bytes], check: Callable[[], None]) -> None:
    """Wait for the worker, so that `no engine` is said only where something is wrong."""
    limit_ns = steady.now_ns() + SOCKET_LIMIT_S * SECOND
    while not path.exists() and steady.now_ns() < limit_ns:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.02)
        check()


def _unwatched() -> None:
    """Do nothing: an engine that somebody else started may come back."""


# --- progress ---------------------------------------------------------------------------------


class _Progress:
    """One live line on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._width = 0
        self._next_ns = 0

    def say(self, line: str) -> None:
        """Show `line` in place of the last."""
        if self._live:
            print(f'\r{line:<{self._width}}', end='', flush=True)
            self._width = len(line)
        elif steady.now_ns() >= self._next_ns:
            self._next_ns = steady.now_ns() + PLAIN_PERIOD_NS
            print(line, flush=True)

    def end(self) -> None:
        """Leave the live line as it stands."""
        if self._width:
            print()
            self._width = 0
