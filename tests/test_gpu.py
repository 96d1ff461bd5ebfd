"""The GPU's memory after a worker's death: the ledger, NVML behind its adapter, and none at all.

NVML is a fake here: no machine of this project's tests has a GPU.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from smallm_ros.core.clock import MS, SECOND, ManualClock
from smallm_ros.core.exchange import EngineLost, ModelLimits
from smallm_ros.engine import gpu
from smallm_ros.engine.gpu import GpuLedger, GpuMemory, GpuUnseenError, Nvml, Seen
from smallm_ros.steady import SteadyClock, now_ns
from tests.fakes.engine_process import Listener, close_listeners, wait_for

GIB = 1 << 30


def seen(at_s: float, *pids: int, gib: float = 1.0) -> Seen:
    return Seen(round(at_s * SECOND), frozenset(pids), round(gib * GIB))


# --- the ledger ------------------------------------------------------------------------------


def test_a_worker_that_was_listed_is_gone_when_it_is_listed_no_more() -> None:
    ledger = GpuLedger()
    assert ledger.free(0, seen(1))
    ledger.lives(42, seen(2, 42, gib=15))
    assert not ledger.free(3 * SECOND, seen(4, 42, gib=15)), 'the driver still has it'
    # Another process took memory meanwhile: that is not ours.
    assert ledger.free(3 * SECOND, seen(5, 7, gib=9))


def test_a_look_from_before_the_end_says_nothing() -> None:
    ledger = GpuLedger()
    assert not ledger.free(0, None), 'nobody looked yet'
    assert ledger.free(0, seen(1))
    ledger.lives(42, seen(1))
    assert not ledger.free(3 * SECOND, seen(2))
    assert ledger.free(3 * SECOND, seen(3))


def test_a_worker_that_is_never_listed_is_gone_when_its_memory_is() -> None:
    ledger = GpuLedger()
    assert ledger.free(0, seen(1, gib=1))
    ledger.lives(42, seen(2, 90_042, gib=15))
    assert not ledger.free(3 * SECOND, seen(4, gib=15))
    assert ledger.free(3 * SECOND, seen(5, gib=1.05)), 'a little more is noise'


def test_each_worker_has_an_account_of_its_own() -> None:
    ledger = GpuLedger()
    assert ledger.free(0, seen(1))
    ledger.lives(42, seen(2, 42, gib=15))
    assert ledger.free(3 * SECOND, seen(4, gib=1))
    ledger.lives(43, seen(5, gib=15))
    assert not ledger.free(6 * SECOND, seen(7, gib=15)), 'that 42 was listed says nothing of 43'


# --- NVML ------------------------------------------------------------------------------------


class NVMLError(Exception):
    """NVML's own."""


class FakeNvml:
    """The five names of pynvml that the adapter uses, over two devices."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        self.pids: list[list[int]] = [[], []]
        self.used = [GIB, GIB]
        self.broken = ''
        self.looks = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self._check()

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> list[SimpleNamespace]:  # noqa: N802
        self._check()
        self.looks += 1
        return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in self.pids[device]]

    def nvmlDeviceGetMemoryInfo(self, device: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=self.used[device], total=24 * GIB)

    def _check(self) -> None:
        if self.broken:
            raise NVMLError(self.broken)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, 'pynvml', fake)
    return fake


def test_the_fake_has_the_names_that_the_real_one_has() -> None:
    real = pytest.importorskip('pynvml')
    assert [name for name in dir(FakeNvml) if name.lower().startswith('nvml')
            and not hasattr(real, name)] == []


@pytest.mark.skipif(gpu.DEVICE.exists(), reason="NVIDIA's driver is here")
def test_the_real_nvml_without_a_driver_is_one_line() -> None:
    pytest.importorskip('pynvml')
    with pytest.raises(GpuUnseenError, match=r'^NVML: [^\n]+$'):
        Nvml()


def test_all_devices_are_one_look(nvml: FakeNvml) -> None:
    nvml.pids, nvml.used = [[1, 2], [3]], [2 * GIB, 3 * GIB]
    assert Nvml().look(5) == Seen(5, frozenset({1, 2, 3}), 5 * GIB)


def test_what_nvml_refuses_is_one_line(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Nvml()
    nvml.broken = 'GPU is lost'
    with pytest.raises(GpuUnseenError, match=r'^NVML: GPU is lost$'):
        there.look(0)
    nvml.broken = 'Driver Not Loaded'
    with pytest.raises(GpuUnseenError, match=r'^NVML: Driver Not Loaded$'):
        Nvml()
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    with pytest.raises(GpuUnseenError, match=r"pip install 'smallm_ros\[gpu\]'"):
        Nvml()


# --- on its own thread -----------------------------------------------------------------------


def test_a_death_to_its_free_memory_through_the_thread(nvml: FakeNvml) -> None:
    memory = GpuMemory(Nvml, SteadyClock())
    wait_for(lambda: memory.free(0))
    nvml.pids[1], nvml.used[1] = [42], 15 * GIB
    before = nvml.looks
    wait_for(lambda: nvml.looks > before + 2)
    memory.lives(42)
    ended_ns = now_ns()
    before = nvml.looks
    wait_for(lambda: memory.free(ended_ns) or nvml.looks > before + 6)
    assert not memory.free(ended_ns)
    nvml.pids[1], nvml.used[1] = [], GIB
    wait_for(lambda: memory.free(ended_ns))


def test_a_gpu_that_is_lost_is_waited_for_no_more(nvml: FakeNvml) -> None:
    memory = GpuMemory(Nvml, SteadyClock())
    wait_for(lambda: memory.free(0))
    nvml.broken = 'GPU is lost'
    wait_for(lambda: memory.free(now_ns()) is None)
    assert memory.trouble == 'NVML: GPU is lost'


def test_a_driver_that_never_answers_holds_nobody() -> None:
    let_go = threading.Event()

    def find() -> gpu.Gpus:
        let_go.wait()
        raise GpuUnseenError('let go')

    memory = GpuMemory(find, ManualClock())
    memory.lives(42)
    assert [memory.free(0) for _ in range(1000)] == [False] * 1000
    let_go.set()
    wait_for(lambda: memory.free(0) is None)


@pytest.mark.parametrize(('layers', 'driver', 'watched'), [
    (-1, True, True), (0, True, False), (-1, False, False),
])
def test_only_a_model_on_a_driver_that_is_there_is_watched(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    layers: int, driver: bool, watched: bool,
) -> None:
    device = tmp_path / 'nvidiactl'
    if driver:
        device.touch()
    monkeypatch.setattr(gpu, 'DEVICE', device)
    assert (gpu.gpu_memory(layers, SteadyClock()) is not None) == watched


# --- the supervisor over it ------------------------------------------------------------------

ENGINE = """
import sys
from pathlib import Path
from smallm_ros.engine.gpu import GpuMemory, GpuUnseenError, Seen
from smallm_ros.engine.supervisor import supervise
from smallm_ros.engine.watch import Limits
from smallm_ros.steady import SteadyClock

class Told:
    def look(self, at_ns):
        text = Path(sys.argv[2]).read_text()
        if text == 'lost':
            raise GpuUnseenError('the test says so')
        return Seen(at_ns, frozenset(map(int, text.split())), 0)

sys.exit(supervise(Path(sys.argv[1]), [sys.executable, sys.argv[3]],
                   Limits(retry_ns=(1,), gpu_free_ns=int(sys.argv[4])),
                   GpuMemory(Told, SteadyClock())))
"""


def test_no_second_worker_before_the_first_ones_memory_is_free(tmp_path: Path) -> None:
    _over_the_gpu(tmp_path, 60 * SECOND, lambda told: tell(told, '7'))


def test_after_the_wait_or_when_the_gpu_is_lost_it_goes_on(tmp_path: Path) -> None:
    log = _over_the_gpu(tmp_path, 300 * MS, lambda told: None)
    assert 'the memory of the GPU was not seen free within 0.3 s: starting all the same' in log
    log = _over_the_gpu(tmp_path, 60 * SECOND, lambda told: tell(told, 'lost'))
    assert 'the memory of the GPU is not watched: the test says so' in log


def tell(told: Path, text: str) -> None:
    """Say what is on the GPU; half a word is never read."""
    part = told.with_suffix('.part')
    part.write_text(text)
    part.replace(told)


def _over_the_gpu(tmp_path: Path, wait_ns: int, then: Callable[[Path], object]) -> str:
    """Kill a worker that stays on the GPU, let `then` happen, return the log up to its heir."""
    path, told, log = tmp_path / 'e.sock', tmp_path / 'told', tmp_path / 'log'
    tell(told, '')
    worker = Path(__file__).parent / 'fakes' / 'scripted_worker.py'
    with log.open('wb') as stderr:
        process = subprocess.Popen(
            [sys.executable, '-c', ENGINE, str(path), str(told), str(worker), str(wait_ns)],
            stderr=stderr, env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        )
    try:
        listener = Listener(path)
        pid = listener.up()
        listener.until(ModelLimits)
        tell(told, f'{pid} 7')
        # It is looked at once a second: the ledger must have seen it there.
        end_ns = now_ns() + 1500 * MS
        wait_for(lambda: now_ns() > end_ns)
        os.kill(pid, signal.SIGKILL)
        listener.until(EngineLost)
        waits = 'waiting until the memory of the GPU'
        wait_for(lambda: waits in log.read_text().partition('died')[2])
        assert log.read_text().count(' started\n') == 1
        then(told)
        assert listener.up() != pid
        return log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=10)
        close_listeners()
