"""Making a model resident: measured once, cached, and a cache that lies is not believed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from smallm_ros.core.clock import MS, ManualClock
from smallm_ros.core.errors import OperatorError, WorkerError
from smallm_ros.engine import load
from smallm_ros.engine.options import KvType, LoadRequest
from tests.fakes import tiny_gguf
from tests.fakes.decider_bench import Beats
from tests.fakes.history_model import HistoryModel


class Machine:
    """A model on which a batch of n tokens takes 10 + n milliseconds."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.beats = Beats()
        self.batches: list[int] = []
        self.model = HistoryModel(on_evaluate=lambda batch: self._took(len(batch.tokens)))

    def _took(self, tokens: int) -> None:
        self.batches.append(tokens)
        self.clock.advance_ms(10 + tokens)

    def costs(self, request: LoadRequest | None = None) -> load.CostModel:
        return load.cost_model(self.model, request or LoadRequest(), self.beats, self.clock)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path


def test_the_cost_is_measured_after_a_warm_up() -> None:
    machine = Machine()
    costs = machine.costs()
    assert [costs.idle_ns(n) // MS for n in (1, 8, 50, 200)] == [11, 18, 60, 210]
    assert machine.batches[0] == load.SIZES[-1]
    assert machine.model.cells == 0
    assert machine.beats.began == machine.beats.ended == len(machine.batches)


def test_the_second_start_measures_nothing_and_only_warms_up() -> None:
    Machine().costs()
    again = Machine()
    assert again.costs().points == tuple((n, (10 + n) * MS) for n in load.SIZES)
    assert again.batches == [load.SIZES[-1]]


def test_other_settings_are_measured_anew() -> None:
    Machine().costs()
    other = Machine()
    other.costs(LoadRequest(kv_type='q8_0'))
    assert len(other.batches) > 1


@pytest.mark.parametrize('content', ['', '{', '[]', '{"1": "x"}', '{"8": "5", "1": "6"}', '3'])
def test_a_cache_that_makes_no_sense_is_measured_anew(own_cache: Path, content: str) -> None:
    Machine().costs()
    (path,) = own_cache.rglob('costs/*.json')
    path.write_text(content)
    again = Machine()
    assert again.costs().idle_ns(8) == 18 * MS
    assert json.loads(path.read_text())['8'] == str(18 * MS)


def test_a_slow_model_is_measured_once_a_size() -> None:
    machine = Machine()
    machine.model.on_evaluate = lambda batch: machine.clock.advance_ms(
        load.SLOW_NS / MS + len(batch.tokens)
    )
    measured = load.calibrate(machine.model, machine.beats, machine.clock)
    assert [size for size, _ in measured] == list(load.SIZES)
    assert machine.beats.began == 1 + len(load.SIZES)


def test_noise_never_makes_a_larger_batch_the_cheaper_one() -> None:
    machine = Machine()
    machine.model.on_evaluate = lambda batch: machine.clock.advance_ms(200 - len(batch.tokens))
    measured = load.calibrate(machine.model, machine.beats, machine.clock)
    assert all(a[1] < b[1] for a, b in pairwise(measured))


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert Machine().costs().idle_ns(8) == 18 * MS


def test_every_step_of_a_load_is_progress() -> None:
    class Told(Beats):
        def __init__(self) -> None:
            super().__init__()
            self.fractions: list[float] = []

        def loading(self, fraction: float) -> None:
            self.fractions.append(fraction)

    told = Told()
    steps = load._Steps(told)
    for what in ('hash', 'requantise', 'hash again'):
        for done in (0, 50, 100):
            steps.file(what, done, 100)
    steps.weights(0.0)
    steps.weights(1.0)
    assert all(a <= b for a, b in pairwise(told.fractions))
    assert len(set(told.fractions)) == len(told.fractions) - 2
    assert told.fractions[-1] == 1.0


def needs(weights_mib: int, kv_mib: int, process_mib: int = 100) -> load.Needs:
    return load.Needs(Path('m.gguf'), weights_mib << 20, kv_mib << 20, process_mib << 20)


def test_a_model_beyond_the_limit_is_the_operators_to_mend() -> None:
    request = LoadRequest(memory_limit_bytes=1000 << 20)
    needs(800, 100).check(request, 1000 << 20)
    with pytest.raises(OperatorError, match=(
        r'^m.gguf: needs about 1001 MiB of memory \(weights 800 MiB, KV 101 MiB, the process '
        r'100 MiB\), --memory-limit is 1000 MiB: a higher limit, '
    )):
        needs(800, 101).check(request, 1 << 50)


def test_memory_that_lacks_now_may_be_there_at_the_next_try() -> None:
    needs(800, 100).check(LoadRequest(), None)
    with pytest.raises(WorkerError, match=r'about 1001 MiB .*, 1000 MiB are available: end '):
        needs(800, 101).check(LoadRequest(), 1000 << 20)
    assert not issubclass(WorkerError, OperatorError), 'else the supervisor would give up at once'


def test_what_a_model_needs_is_read_off_its_head(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / 'tiny.gguf')
    size = path.stat().st_size
    for kv_type, share in (('f16', 1.0), ('q8_0', 34 / 64), ('q4_0', 18 / 64)):
        read = load.Needs.of(path, LoadRequest(
            n_gpu_layers=0, context_tokens=1024, kv_type=cast('KvType', kv_type)
        ))
        assert read.weights_bytes == size
        assert read.kv_bytes == round(1024 * tiny_gguf.KV_BYTES_PER_TOKEN * share)
        assert read.all_bytes == size + read.kv_bytes + read.process_bytes


def test_what_goes_to_a_gpu_is_not_taken_from_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf.write(tmp_path / 'tiny.gguf')
    monkeypatch.setattr(load, 'offloads', lambda layers: layers != 0)
    there = load.Needs.of(path, LoadRequest())
    assert (there.weights_bytes, there.kv_bytes) == (0, 0)
    assert load.Needs.of(path, LoadRequest(n_gpu_layers=0)).weights_bytes > 0


def test_the_kernel_says_what_is_available() -> None:
    available = load.available_bytes()
    assert available is not None and 1 << 20 < available < 1 << 50
