"""The supervisor: its judgement on a manual clock, and real processes that die in every way."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallm_ros.core.clock import MS, SECOND, ManualClock
from smallm_ros.core.errors import (
    EngineLatchedError,
    EngineRunningError,
    ModelFileError,
    OperatorError,
)
from smallm_ros.core.exchange import EngineLost, EngineState, ModelLimits, Progress
from smallm_ros.engine.options import add_load_options, load_request
from smallm_ros.engine.supervisor import main
from smallm_ros.engine.watch import LEFT_BEHIND, MIB, Do, Facts, Limits, Verdict, Watch
from smallm_ros.steady import now_ns, sleep_until
from tests.fakes.engine_process import Listener, close_listeners, engine, gone, wait_for

# --- the judgement ---------------------------------------------------------------------------


SHIPPED = Limits()


class Story:
    """A watch, its clock and a worker that does what the test says."""

    def __init__(self, limits: Limits = SHIPPED) -> None:
        self.clock = ManualClock()
        self.watch = Watch(limits)
        self.pid: int | None = None
        self.pids = 100
        self.state = EngineState.READY
        self.beats = True
        self.beat_ns = 0
        self.batch: tuple[int, int] | None = None
        """(since, bound) of a batch in flight."""
        self.stop = False
        self.memory_bytes: int | None = None
        self.gpu_free: bool | None = None

    def turn(self, exit_code: int | None = None) -> Verdict:
        now_ns = self.clock.now_ns()
        if self.beats:
            self.beat_ns = now_ns
        since_ns, bound_ns = self.batch or (0, 0)
        progress = Progress(
            self.state, 1, self.beat_ns, 1 if self.batch else 0, since_ns, bound_ns
        )
        facts = Facts(self.pid, exit_code, progress if self.pid else None, self.stop,
                      self.memory_bytes, self.gpu_free)
        verdict = self.watch.step(now_ns, facts)
        if exit_code is not None:
            self.pid = None
        if verdict.do is Do.SPAWN:
            self.pids += 1
            self.pid = self.pids
            self.beat_ns = now_ns
        return verdict

    def run_ms(self, ms: int) -> Verdict:
        """Turn every 20 ms for so long, or until there is something to do; return that."""
        for _ in range(ms // 20):
            self.clock.advance_ms(20)
            verdict = self.turn()
            if verdict.do is not Do.WAIT:
                return verdict
        return Verdict(Do.WAIT)

    def started(self) -> Story:
        assert self.turn().do is Do.SPAWN
        self.turn()
        return self


def delays_s(story: Story, deaths: int) -> list[float]:
    out = []
    for _ in range(deaths):
        story.turn(exit_code=-9)
        begin_ns = story.clock.now_ns()
        assert story.run_ms(100_000).do is Do.SPAWN
        out.append(round((story.clock.now_ns() - begin_ns) / SECOND, 1))
    return out


def test_deaths_are_answered_more_and_more_slowly() -> None:
    story = Story().started()
    assert delays_s(story, 4) == [0.5, 1, 2, 4]
    story.run_ms(54_000)
    assert delays_s(story, 3) == [8, 16, 30]


def test_a_minute_of_health_sets_the_delay_back() -> None:
    story = Story().started()
    assert delays_s(story, 3) == [0.5, 1, 2]
    story.run_ms(59_000)
    assert delays_s(story, 1) == [4]
    story.run_ms(61_000)
    assert delays_s(story, 1) == [0.5]


def test_loading_for_a_minute_is_not_health() -> None:
    story = Story().started()
    story.state = EngineState.LOADING
    assert delays_s(story, 2) == [0.5, 1]
    story.run_ms(61_000)
    assert delays_s(story, 1) == [2]


def test_five_deaths_in_a_minute_latch() -> None:
    story = Story().started()
    delays_s(story, 4)
    verdict = story.turn(exit_code=1)
    assert (verdict.do, verdict.exit_code) == (Do.EXIT, EngineLatchedError.exit_code)
    assert '5 deaths in 60 s: giving up' in verdict.line


def test_five_deaths_in_more_than_a_minute_do_not() -> None:
    story = Story().started()
    delays_s(story, 4)
    story.run_ms(60_000)
    assert story.turn(exit_code=1).do is Do.WAIT


@pytest.mark.parametrize('code', [2, 3, 4, 5, 8])
def test_what_the_operator_must_mend_is_not_tried_again(code: int) -> None:
    story = Story().started()
    verdict = story.turn(exit_code=code)
    assert (verdict.do, verdict.exit_code) == (Do.EXIT, code)


@pytest.mark.parametrize(('code', 'text'), [
    (0, 'exited with code 0'), (1, 'exited with code 1'), (70, 'exited with code 70'),
    (-6, 'died of SIGABRT'), (-7, 'died of SIGBUS'), (-9, 'died of SIGKILL'),
    (-11, 'died of SIGSEGV'), (-50, 'died of signal 50'),
    (126, 'could not be started'),
])
def test_a_death_is_told_with_its_numbers(code: int, text: str) -> None:
    story = Story().started()
    story.run_ms(3000)
    verdict = story.turn(exit_code=code)
    assert verdict == Verdict(Do.WAIT, f'worker 101 {text} after 3.0 s; next try in 0.5 s')


@pytest.mark.parametrize(('bound_ms', 'limit_ms'), [(0, 2000), (100, 2000), (1000, 4000)])
def test_a_batch_that_stays_in_flight_is_a_stall(bound_ms: int, limit_ms: int) -> None:
    story = Story().started()
    story.beats = False
    story.batch = (story.clock.now_ns(), bound_ms * MS)
    assert story.run_ms(limit_ms).do is Do.WAIT
    verdict = story.run_ms(20)
    assert verdict.do is Do.KILL
    assert f'bound {bound_ms} ms, in flight for {limit_ms + 20} ms' in verdict.line


def test_a_silent_idle_worker_is_a_stall_and_is_killed_once() -> None:
    story = Story().started()
    story.beats = False
    assert story.run_ms(2000).do is Do.WAIT
    assert 'no beat for 2020 ms' in story.run_ms(20).line
    # The corpse may take its time, and nothing is started meanwhile.
    assert story.run_ms(60_000).do is Do.WAIT
    assert 'next try' in story.turn(exit_code=-9).line
    assert story.run_ms(1000).do is Do.SPAWN


def test_loading_has_a_limit_of_its_own() -> None:
    story = Story().started()
    story.state = EngineState.LOADING
    story.beats = False
    assert story.run_ms(120_000).do is Do.WAIT
    assert 'no step of the load for 120020 ms' in story.run_ms(20).line


def test_a_batch_while_loading_has_the_time_of_loading() -> None:
    story = Story().started()
    story.state = EngineState.LOADING
    story.beats = False
    story.batch = (story.clock.now_ns(), 0)
    assert story.run_ms(120_000).do is Do.WAIT
    assert story.run_ms(20).do is Do.KILL


def test_a_supervisor_that_stood_still_itself_blames_nobody() -> None:
    story = Story().started()
    story.beats = False
    story.batch = (story.clock.now_ns(), 100 * MS)
    story.clock.advance_ms(60_000)
    assert story.turn().do is Do.WAIT
    assert story.run_ms(2000).do is Do.WAIT
    assert story.run_ms(20).do is Do.KILL


def test_the_end_is_asked_for_then_made() -> None:
    story = Story().started()
    story.stop = True
    assert story.turn().do is Do.TERMINATE
    assert story.run_ms(2980).do is Do.WAIT
    assert story.run_ms(20).do is Do.KILL
    assert story.run_ms(4_980).do is Do.WAIT
    verdict = story.turn(exit_code=-9)
    assert (verdict.do, verdict.exit_code) == (Do.EXIT, 0)


def test_a_worker_that_outlives_sigkill_is_spoken_of_and_has_no_heir() -> None:
    story = Story().started()
    story.beats = False
    story.run_ms(2000)
    assert story.run_ms(20).do is Do.KILL
    said = []
    for _ in range(200_000 // 20):
        story.clock.advance_ms(20)
        verdict = story.turn()
        assert verdict.do is Do.WAIT
        said += [verdict.line] if verdict.line else []
    assert [line.split(' s after')[0].rsplit(' ', 1)[1] for line in said] == [
        '5', '65', '125', '185'
    ]
    assert said[0] == ('worker 101 has not ended 5 s after SIGKILL: the kernel holds it; no other '
                       'is started')
    # It goes at last, and is one death like any other.
    assert 'died of SIGKILL' in story.turn(exit_code=-9).line
    story.beats = True
    assert story.run_ms(1000).do is Do.SPAWN


@pytest.mark.parametrize('killed_before', [False, True])
def test_the_end_does_not_wait_for_a_worker_that_outlives_sigkill(killed_before: bool) -> None:
    story = Story().started()
    if killed_before:
        story.beats = False
        story.run_ms(2000)
        assert story.run_ms(20).do is Do.KILL
        story.run_ms(100_000)
    story.stop = True
    assert story.turn().do is Do.TERMINATE
    if not killed_before:
        assert story.run_ms(3000).do is Do.KILL
    verdict = story.run_ms(9000)
    assert (verdict.do, verdict.exit_code) == (Do.EXIT, LEFT_BEHIND)
    assert 'worker 101 is left behind' in verdict.line


def test_a_load_that_gets_on_for_ever_is_killed() -> None:
    story = Story(Limits(load_ns=60 * SECOND)).started()
    story.state = EngineState.LOADING
    assert story.run_ms(60_000).do is Do.WAIT
    verdict = story.run_ms(20)
    assert (verdict.do, verdict.line) == (Do.KILL, 'worker 101 is not ready after 60 s: killed')


def test_more_memory_than_the_limit_is_a_death() -> None:
    story = Story(Limits(memory_bytes=800 * MIB)).started()
    story.memory_bytes = 800 * MIB
    assert story.run_ms(1000).do is Do.WAIT
    story.memory_bytes = 801 * MIB
    verdict = story.run_ms(20)
    assert verdict == Verdict(
        Do.KILL, 'worker 101 holds 801 MiB of memory, limit 800 MiB: killed'
    )
    assert 'next try' in story.turn(exit_code=-9).line


def test_without_a_limit_any_memory_is_right() -> None:
    story = Story().started()
    story.memory_bytes = 1 << 50
    assert story.run_ms(1000).do is Do.WAIT


def test_the_next_worker_waits_for_the_memory_of_the_gpu() -> None:
    story = Story().started()
    story.turn(exit_code=-9)
    story.gpu_free = False
    verdict = story.run_ms(600)
    assert verdict.do is Do.WAIT
    assert story.run_ms(8000).do is Do.WAIT
    story.gpu_free = True
    assert story.run_ms(20) == Verdict(Do.SPAWN)


def test_the_wait_for_the_gpu_is_said_and_bounded() -> None:
    story = Story().started()
    story.gpu_free = False
    died_ns = story.clock.now_ns()
    verdict = story.turn(exit_code=-9)
    lines = []
    for _ in range(12_000 // 20):
        story.clock.advance_ms(20)
        verdict = story.turn()
        lines += [verdict.line] if verdict.line else []
        if verdict.do is Do.SPAWN:
            break
    assert verdict.do is Do.SPAWN
    waited_ms = (story.clock.now_ns() - died_ns) / MS
    assert waited_ms == 10_500, 'the delay after a death, then all of the wait'
    assert lines == [
        'waiting until the memory of the GPU is seen free, for 10 s at the most',
        'the memory of the GPU was not seen free within 10 s: starting all the same',
    ]
    # The next one has as long again.
    story.turn(exit_code=-9)
    assert story.run_ms(10_000).do is Do.WAIT


def test_where_no_gpu_is_seen_nothing_waits_for_it() -> None:
    story = Story().started()
    story.turn(exit_code=-9)
    assert story.run_ms(500).do is Do.SPAWN


def test_the_end_between_two_tries_starts_nothing() -> None:
    story = Story().started()
    story.turn(exit_code=-9)
    story.stop = True
    assert story.turn().do is Do.EXIT


# --- real processes --------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'e.sock'


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    yield Listener(path)
    close_listeners()


def test_kill_and_stop_of_the_worker_are_mended(path: Path, listener: Listener) -> None:
    with engine(path, idle_ns=300 * MS) as running:
        first = listener.up()
        listener.until(ModelLimits)
        assert path.stat().st_mode & 0o777 == 0o600
        os.kill(first, signal.SIGKILL)
        listener.until(EngineLost)
        second = listener.up()
        listener.until(ModelLimits)
        os.kill(second, signal.SIGSTOP)
        listener.until(EngineLost)
        assert gone(second)
        third = listener.up()
        assert len({first, second, third}) == 3
        assert f'worker {first} died of SIGKILL' in running.log
        assert f'worker {second} stands still: no beat for' in running.log
        running.process.terminate()
        assert running.wait() == 0
        assert gone(third)
        assert not path.exists()


def test_a_load_that_hangs_is_killed(path: Path) -> None:
    with engine(path, '--load', 'hang', loading_ns=300 * MS) as running:
        wait_for(lambda: 'stands still: no step of the load' in running.log)
        wait_for(lambda: 'died of SIGKILL' in running.log)


def test_crash_upon_crash_latches(path: Path) -> None:
    with engine(path, '--load', 'crash', retry_ns=[MS], deaths=3) as running:
        assert running.wait() == EngineLatchedError.exit_code
        assert running.log.count('RuntimeError: the script says so') == 3
        assert '3 deaths in 60 s: giving up' in running.log.splitlines()[-1]
        assert not path.exists()


def test_a_bad_model_file_ends_it_with_one_line_and_its_code(path: Path) -> None:
    with engine(path, '--load', 'bad-file') as running:
        assert running.wait() == ModelFileError.exit_code
        assert running.log.count('model.gguf: truncated\n') == 1
        assert 'next try' not in running.log


def test_a_second_engine_is_refused_and_a_stale_socket_is_not_in_the_way(
    path: Path, listener: Listener
) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with engine(path) as running:
        pid = listener.up()
        with engine(path) as second:
            assert second.wait() == EngineRunningError.exit_code
            assert second.log.count('\n') == 1
            assert f'another engine serves this socket, pid {running.process.pid}' in second.log
        assert not gone(pid)
        assert path.exists()


def test_what_is_no_socket_is_not_removed(path: Path) -> None:
    path.write_text('precious')
    with engine(path) as running:
        assert running.wait() == OperatorError.exit_code
        assert 'exists and is no socket' in running.log
    assert path.read_text() == 'precious'


def test_a_worker_that_cannot_be_started_is_a_death(path: Path) -> None:
    log = path.with_suffix('.log')
    with log.open('wb') as stderr:
        code = subprocess.run(
            [sys.executable, '-c', 'import sys; from pathlib import Path\n'
             'from smallm_ros.engine.supervisor import supervise\n'
             'from smallm_ros.engine.watch import Limits\n'
             'sys.exit(supervise(Path(sys.argv[1]), ["/no/such/program"], Limits(retry_ns=(1,))))',
             str(path)], stderr=stderr, timeout=20, check=False,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        ).returncode
    assert code == EngineLatchedError.exit_code
    assert log.read_text().count('/no/such/program: cannot be started: No such file') == 5


def test_the_command_line_reaches_the_worker_as_it_was_given() -> None:
    parser = argparse.ArgumentParser()
    add_load_options(parser)
    given = ['--model', 'm.gguf', '--context', '512', '--n-gpu-layers', '0', '--use-mlock',
             '--kv-type', 'q8_0', '--threads', '3', '--check-ms', '20', '--memory-limit',
             '1.5GiB', '--oom-score-adj', '300']
    request = load_request(parser.parse_args(given))
    assert (request.model, request.context_tokens, request.n_gpu_layers) == ('m.gguf', 512, 0)
    assert (request.use_mlock, request.kv_type, request.threads) == (True, 'q8_0', 3)
    assert (request.check_ms, load_request(parser.parse_args([])).check_ms) == (20, 50)
    assert (request.memory_limit_bytes, request.oom_score_adj) == (3 << 29, 300)
    shipped = load_request(parser.parse_args([]))
    assert (shipped.memory_limit_bytes, shipped.oom_score_adj) == (None, 800)
    for words in (given, []):
        request = load_request(parser.parse_args(words))
        assert load_request(parser.parse_args(request.words())) == request


@pytest.mark.parametrize('words', [
    ['--threads', '0'], ['--n-gpu-layers', '-2'], ['--context', '1'], ['--kv-type', 'f64'],
    ['--check-ms', '0'], ['--memory-limit', '0'], ['--memory-limit', '16 gallons'],
    ['--oom-score-adj', '1001'], ['--oom-score-adj', '-1'],
])
def test_a_wrong_word_ends_the_engine_at_once(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match='2'):
        main(words)
    assert words[0] in capsys.readouterr().err


def test_the_worker_dies_with_its_supervisor_and_the_next_one_serves(
    path: Path, listener: Listener
) -> None:
    with engine(path) as running:
        pid = listener.up()
        running.process.kill()
        wait_for(lambda: gone(pid))
        listener.until(EngineLost)
    with engine(path):
        assert listener.up() != pid


def test_a_stopped_supervisor_does_not_kill_when_it_goes_on(
    path: Path, listener: Listener
) -> None:
    with engine(path, idle_ns=600 * MS, own_gap_ns=200 * MS) as running:
        pid = listener.up()
        listener.until(ModelLimits)
        running.process.send_signal(signal.SIGSTOP)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: _is_stopped(running.process.pid) and _is_stopped(pid))
        # How long the fault lasts: longer than the limit of an idle worker.
        sleep_until(now_ns() + 800 * MS)
        running.process.send_signal(signal.SIGCONT)
        os.kill(pid, signal.SIGCONT)
        after = listener.until(Progress).count + 20
        wait_for(lambda: listener.until(Progress).count > after)
        assert 'stands still' not in running.log
        assert not gone(pid)


def test_a_worker_that_does_not_hear_sigterm_is_killed(path: Path, listener: Listener) -> None:
    with engine(path, end_ns=200 * MS) as running:
        pid = listener.up()
        os.kill(pid, signal.SIGSTOP)
        running.process.terminate()
        assert running.wait() == 0
        assert gone(pid)
        assert f'worker {pid} did not end within 0.2 s of SIGTERM: killed' in running.log


def test_a_worker_that_nobody_listens_to_serves_on(path: Path, listener: Listener) -> None:
    with engine(path) as running:
        listener.up()
        listener.until(ModelLimits)
        running.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: _is_stopped(running.process.pid))
        # Each leaves a line in the pipe to the supervisor, which holds 64 KiB.
        for _ in range(900):
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(str(path))
                rude.sendall(b'GET / HTTP/1.1 and so on')
                rude.recv(1)
        after = listener.until(Progress).count + 2
        wait_for(lambda: listener.until(Progress).count > after)
        running.process.send_signal(signal.SIGCONT)
        wait_for(lambda: 'is disconnected' in running.log)


def _is_stopped(pid: int) -> bool:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'T'


def test_stderr_that_nobody_reads_stops_nothing(path: Path, listener: Listener) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b'x' * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    fakes = Path(__file__).parent / 'fakes'
    process = subprocess.Popen(
        [sys.executable, str(fakes / 'scripted_engine.py'), str(path), '{"retry_ns": [1000000]}'],
        stderr=write, env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    try:
        os.kill(listener.up(), signal.SIGKILL)
        listener.until(EngineLost)
        listener.up()
        process.terminate()
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)
