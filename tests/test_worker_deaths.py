"""Every way in which a worker can die, hang or misbehave as a process, with real processes.

Each test first sees that its fault happened. What must follow is the same each time: the client
hears of it, the supervisor names it, and the next worker serves, or it is said why none does.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import EngineLatchedError, EngineRunningError, FrameError
from smallm_ros.core.exchange import (
    Decided,
    Declaration,
    Declared,
    EngineLost,
    ModelLimits,
    Progress,
    Question,
)
from smallm_ros.engine.options import FIRST_TO_GO
from smallm_ros.engine.wire import EVENTS, FrameReader, Hello, encode
from smallm_ros.steady import now_ns, sleep_until
from tests.fakes.engine_process import Engine, Listener, close_listeners, engine, gone, wait_for

DECLARATION = Declaration('space', 'drive', (), ('go', 'stop'), 64)
FREEZER = Path('/sys/fs/cgroup/freezer')
"""The freezer of cgroup v1: what it holds is in state D, and SIGKILL waits until it is let go."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'e.sock'


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    yield Listener(path)
    close_listeners()


def ready(listener: Listener) -> int:
    """Wait for a worker that is ready, declare to it and return its pid."""
    pid = listener.up()
    listener.until(ModelLimits)
    assert listener.client.send_nowait(DECLARATION)
    listener.until(Declared)
    return pid


def ask(listener: Listener, request: int, ms: int = 60_000) -> None:
    assert listener.client.send_nowait(Question(request, 'space', now_ns() + ms * MS, ()))


def serves(listener: Listener, other_than: int) -> int:
    """Wait until another worker decides; return its pid."""
    pid = ready(listener)
    assert pid != other_than
    ask(listener, 1_000_000)
    assert listener.until(Decided).request == 1_000_000
    return pid


def state_of(pid: int) -> str:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]


def child_of(running: Engine) -> int:
    found = wait_for(lambda: re.search(r'^child (\d+)$', running.log, re.MULTILINE))
    return int(found[1])


def started(running: Engine) -> list[str]:
    """Return the pids of the workers that were started."""
    return re.findall(r'worker (\d+) started$', running.log, re.MULTILINE)


# --- SIGKILL, wherever it stands -------------------------------------------------------------


def test_sigkill_in_a_prefill(path: Path, listener: Listener) -> None:
    script = [{'delay_ns': 600 * MS}]
    with engine(path, '--declare-passes', '50', script=script, in_flight_ns=60 * SECOND):
        pid = listener.up()
        listener.until(ModelLimits)
        listener.client.send_nowait(DECLARATION)
        wait_for(lambda: listener.until(Progress).in_flight == 3)
        os.kill(pid, signal.SIGKILL)
        listener.until(EngineLost)
        assert not [each for each in listener.events if isinstance(each, Declared)]
        assert listener.up() != pid


def test_sigkill_in_a_branch(path: Path, listener: Listener) -> None:
    with engine(path, script=[{'delay_ns': SECOND}], in_flight_ns=60 * SECOND) as running:
        pid = ready(listener)
        ask(listener, 1)
        wait_for(lambda: listener.until(Progress).in_flight == 2)
        os.kill(pid, signal.SIGKILL)
        listener.until(EngineLost)
        assert not [each for each in listener.events if isinstance(each, Decided)]
        serves(listener, other_than=pid)
        assert f'worker {pid} died of SIGKILL' in running.log


def test_sigkill_while_it_writes_leaves_half_a_frame_and_nobody_takes_it(
    path: Path, listener: Listener
) -> None:
    with engine(path), socket.socket(socket.AF_UNIX) as slow:
        pid = ready(listener)
        slow.connect(str(path))
        slow.sendall(encode(Hello('slow', '1')))
        slow.setblocking(False)
        reader = FrameReader(EVENTS)
        # Refused at once, and not read: until the worker itself holds what does not fit.
        questions = b''.join(encode(Question(n, 'x', 0, ())) for n in range(3000))
        while questions:
            with contextlib.suppress(BlockingIOError):
                questions = questions[slow.send(questions):]
        wait_for(lambda: not waiting(slow, termios.TIOCOUTQ), patience_ns=60 * SECOND)
        wait_for(lambda: settled(slow) and waiting(slow, termios.FIONREAD) > 10_000)
        # Now there is room for a part of what it holds.
        reader.feed(slow.recv(1 << 16))
        wait_for(lambda: settled(slow) and waiting(slow, termios.FIONREAD) > 50_000)
        listener.until(Progress)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: gone(pid))
        slow.settimeout(5)
        cut = False
        with contextlib.suppress(ConnectionResetError):
            while data := slow.recv(1 << 16):
                reader.feed(data)
        try:
            reader.end()
        except FrameError:
            cut = True
        assert cut, 'the fault did not happen: the last frame is whole'
        listener.until(EngineLost)
        serves(listener, other_than=pid)


def waiting(client: socket.socket, which: int) -> int:
    """Return how many bytes wait to be read: FIONREAD by us, TIOCOUTQ by the worker."""
    buffer = array.array('i', [0])
    fcntl.ioctl(client, which, buffer)
    return buffer[0]


def settled(client: socket.socket) -> bool:
    """Whether nothing has come for some beats: the buffer is full."""
    before = waiting(client, termios.FIONREAD)
    sleep_until(now_ns() + 60 * MS)
    return 0 < before == waiting(client, termios.FIONREAD)


# --- other ends ------------------------------------------------------------------------------


@pytest.mark.parametrize(('act', 'said'), [
    ('abort', 'died of SIGABRT'), ('no_memory', 'exited with code 70'),
])
def test_an_end_in_the_middle_of_a_batch(
    path: Path, listener: Listener, act: str, said: str
) -> None:
    with engine(path, script=[{'act': act}]) as running:
        pid = ready(listener)
        ask(listener, 1)
        listener.until(EngineLost)
        assert listener.up() != pid
        assert f'worker {pid} {said}' in running.log
        assert act != 'no_memory' or 'MemoryError: the script says so' in running.log


def test_an_assert_while_it_loads_is_tried_again_and_counted(path: Path) -> None:
    with engine(path, '--load', 'abort', retry_ns=[MS], deaths=2) as running:
        assert running.wait() == EngineLatchedError.exit_code
        assert running.log.count('died of SIGABRT') == 2


def test_a_load_for_which_there_is_no_memory_is_tried_again(path: Path) -> None:
    with engine(path, '--load', 'no-memory', retry_ns=[MS], deaths=2) as running:
        assert running.wait() == EngineLatchedError.exit_code
        assert running.log.count('exited with code 70') == 2
        assert running.log.count('MemoryError: the script says so') == 2


def test_a_signal_of_a_broken_machine_is_named(path: Path, listener: Listener) -> None:
    with engine(path) as running:
        pid = ready(listener)
        os.kill(pid, signal.SIGSEGV)
        listener.until(EngineLost)
        serves(listener, other_than=pid)
        assert f'worker {pid} died of SIGSEGV' in running.log


def test_a_load_that_never_ends_is_killed(path: Path) -> None:
    with engine(path, '--load', 'endless', load_ns=SECOND, loading_ns=SECOND) as running:
        wait_for(lambda: 'is not ready after 1 s: killed' in running.log)
        wait_for(lambda: len(started(running)) == 2)


def test_how_a_worker_died_is_known_where_who_started_us_ignores_dead_children(
    path: Path, listener: Listener
) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with engine(path) as running:
            signal.signal(signal.SIGCHLD, before)
            pid = ready(listener)
            os.kill(pid, signal.SIGKILL)
            listener.until(EngineLost)
            serves(listener, other_than=pid)
            assert f'worker {pid} died of SIGKILL' in running.log
    finally:
        signal.signal(signal.SIGCHLD, before)


# --- hangs -----------------------------------------------------------------------------------


@pytest.mark.parametrize('ms', [100, 1000])
def test_a_stop_that_ends_in_time_is_no_death_and_its_late_answer_is_for_its_question(
    path: Path, listener: Listener, ms: int
) -> None:
    with engine(path, script=[{'delay_ns': 40 * MS}], idle_ns=20 * SECOND,
                in_flight_ns=20 * SECOND) as running:
        pid = ready(listener)
        ask(listener, 1, ms=80)
        wait_for(lambda: listener.until(Progress).in_flight)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: state_of(pid) == 'T')
        listener.events.clear()
        end_ns = now_ns() + ms * MS
        wait_for(lambda: now_ns() > end_ns)
        os.kill(pid, signal.SIGCONT)
        ask(listener, 2)
        late = listener.until(Decided)
        assert late.request == 2, 'what was asked before is too late, or taken back'
        assert 'stands still' not in running.log
        assert not gone(pid)


def test_a_worker_that_hears_no_signal_is_killed_at_a_stall_and_at_the_end(
    path: Path, listener: Listener
) -> None:
    with engine(path, '--habit', 'is_deaf', script=[{'act': 'stall'}], in_flight_ns=300 * MS,
                end_ns=300 * MS) as running:
        pid = ready(listener)
        os.kill(pid, signal.SIGTERM)
        ask(listener, 1)
        listener.until(EngineLost)
        second = ready(listener)
        assert f'worker {pid} stands still: batch' in running.log, 'SIGTERM did not end it'
        running.process.terminate()
        assert running.wait() == 0
        assert f'worker {second} did not end within 0.3 s of SIGTERM: killed' in running.log
        assert gone(second)


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A cgroup whose processes even SIGKILL does not end before they are let go."""
    group = FREEZER / f'smallm-test-{os.getpid()}'
    try:
        group.mkdir()
    except OSError as err:
        pytest.skip(f'{group} cannot be made: {err.strerror}: nothing can be held in state D')
    yield group
    (group / 'freezer.state').write_text('THAWED')
    wait_for(lambda: not (group / 'cgroup.procs').read_text())
    group.rmdir()


def test_a_worker_that_even_sigkill_does_not_end_has_no_heir_while_it_is_there(
    path: Path, listener: Listener, freezer: Path
) -> None:
    with engine(path, idle_ns=300 * MS, corpse_ns=300 * MS, corpse_again_ns=200 * MS) as running:
        pid = ready(listener)
        (freezer / 'cgroup.procs').write_text(str(pid))
        (freezer / 'freezer.state').write_text('FROZEN')
        wait_for(lambda: f'worker {pid} stands still: no beat' in running.log)
        wait_for(lambda: running.log.count(f'worker {pid} has not ended') >= 3)
        assert state_of(pid) == 'D'
        assert len(started(running)) == 1
        # Nobody else gets in either: the corpse and its supervisor hold the lock.
        with engine(path) as second:
            assert second.wait() == EngineRunningError.exit_code
        (freezer / 'freezer.state').write_text('THAWED')
        listener.until(EngineLost)
        serves(listener, other_than=pid)


def test_a_supervisor_ends_though_its_worker_does_not(
    path: Path, listener: Listener, freezer: Path
) -> None:
    with engine(path, end_ns=200 * MS, corpse_ns=300 * MS) as running:
        pid = ready(listener)
        (freezer / 'cgroup.procs').write_text(str(pid))
        (freezer / 'freezer.state').write_text('FROZEN')
        wait_for(lambda: state_of(pid) == 'D')
        running.process.terminate()
        assert running.wait() == 1
        assert f'worker {pid} is left behind' in running.log
        assert state_of(pid) == 'D'
    with engine(path) as late:
        assert late.wait() == EngineRunningError.exit_code
        assert f'a dead engine left pid {pid}, which holds it: end it' in late.log


# --- what it does with its descriptors, children and memory ----------------------------------


def test_a_worker_that_closes_its_streams_serves_on_and_costs_no_turn(
    path: Path, listener: Listener
) -> None:
    with engine(path, '--habit', 'closes_its_streams') as running:
        pid = ready(listener)
        streams = [os.readlink(each) for each in Path(f'/proc/{pid}/fd').iterdir()]
        assert not [each for each in streams if each.startswith('pipe:')], 'it did not close'
        before = cpu_ticks(running.process.pid)
        begin_ns = now_ns()
        wait_for(lambda: now_ns() > begin_ns + SECOND // 2)
        busy = (cpu_ticks(running.process.pid) - before) / os.sysconf('SC_CLK_TCK')
        assert busy < 0.25, 'it polls an end of file'
        ask(listener, 1)
        assert listener.until(Decided).request == 1
        os.kill(pid, signal.SIGKILL)
        listener.until(EngineLost)
        serves(listener, other_than=pid)


def cpu_ticks(pid: int) -> int:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_flood_of_words_hides_no_death(path: Path, listener: Listener) -> None:
    with engine(path, '--habit', 'floods') as running:
        pid = ready(listener)
        wait_for(lambda: len(running.log) > 1 << 20)
        ask(listener, 1)
        assert listener.until(Decided).request == 1
        os.kill(pid, signal.SIGKILL)
        listener.until(EngineLost)
        assert listener.up() != pid
        assert f'worker {pid} died of SIGKILL' in running.log


def test_what_a_worker_forked_ends_with_it_and_its_group_is_nobody_elses(
    path: Path, listener: Listener
) -> None:
    with engine(path, '--habit', 'forks') as running:
        pid = ready(listener)
        child = child_of(running)
        held = {os.readlink(each) for each in Path(f'/proc/{child}/fd').iterdir()}
        assert f'{path}.lock' in held, 'the fault did not happen'
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: gone(child))
        serves(listener, other_than=pid)
        running.process.terminate()
        assert running.wait() == 0
    with engine(path):
        listener.up()


def test_a_child_out_of_reach_that_holds_the_lock_is_named(
    path: Path, listener: Listener
) -> None:
    with engine(path, '--habit', 'escapes') as running:
        ready(listener)
        child = child_of(running)
        running.process.terminate()
        assert running.wait() == 0
    try:
        assert not gone(child)
        with engine(path) as late:
            assert late.wait() == EngineRunningError.exit_code
            assert f'a dead engine left pid {child}, which holds it: end it' in late.log
    finally:
        os.kill(child, signal.SIGKILL)
    with engine(path):
        listener.up()


def test_the_number_in_the_lock_is_not_believed_when_it_is_another_process_by_now(
    path: Path, listener: Listener
) -> None:
    lock = path.with_name('e.sock.lock')
    other = subprocess.Popen(['sleep', '300'])
    try:
        lock.write_text(f'{other.pid}\n')
        with engine(path):
            listener.up()
            assert lock.read_text() != f'{other.pid}\n'
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_worker_that_grows_beyond_its_limit_is_killed_and_counted(path: Path) -> None:
    with engine(path, '--load', 'greedy', memory_bytes=300 << 20, retry_ns=[MS],
                deaths=2) as running:
        assert running.wait() == EngineLatchedError.exit_code
        held = [int(each) for each in re.findall(r'holds (\d+) MiB of memory, limit 300 MiB: '
                                                 r'killed', running.log)]
        assert len(held) == 2 and min(held) > 300
        assert running.log.count('died of SIGKILL') == 2


def test_the_worker_is_the_first_to_go_and_its_supervisor_is_not(
    path: Path, listener: Listener
) -> None:
    with engine(path) as running:
        pid = ready(listener)
        assert oom_score_adj(pid) == FIRST_TO_GO
        assert oom_score_adj(running.process.pid) == oom_score_adj(os.getpid())
    with engine(path, '--oom-score-adj', '950'):
        assert oom_score_adj(listener.up()) == 950


def oom_score_adj(pid: int) -> int:
    return int(Path(f'/proc/{pid}/oom_score_adj').read_text())


def test_a_score_that_cannot_be_set_is_said_and_the_worker_serves(
    path: Path, listener: Listener
) -> None:
    with engine(path, '--oom-score-adj', '5000') as running:
        pid = ready(listener)
        assert oom_score_adj(pid) == oom_score_adj(os.getpid())
        assert 'oom_score_adj cannot be set to 5000: Invalid argument: when' in running.log
