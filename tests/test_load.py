"""Making a model resident: measured once, cached, and a cache that lies is not believed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from smallm_ros.core.clock import MS, ManualClock
from smallm_ros.engine import load
from smallm_ros.engine.options import LoadRequest
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
