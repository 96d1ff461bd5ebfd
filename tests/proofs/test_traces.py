"""A short form of the traces; `make faults` runs the long one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smallm_ros.core.gate import State
from tests.proofs import traces
from tests.proofs.faults import FAULTS
from tests.proofs.robot import Broken, Setting

SAVED = sorted(traces.SAVED.glob('*.json'))


@pytest.fixture(autouse=True)
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, 'FAILING', tmp_path)


@pytest.mark.parametrize('name', list(FAULTS))
def test_each_fault_is_seen_in_time_and_driving_goes_on_after_it(name: str) -> None:
    tally = traces.campaign(name, 3, seed=7)
    assert tally.failures == []
    assert tally.injected[name] == 3
    if FAULTS[name].causes and FAULTS[name].must(FAULTS[name].draw(traces.random.Random(1))):
        assert tally.seen[name] >= 1


def test_any_faults_in_any_order_break_nothing_and_it_drives_again() -> None:
    tally = traces.total(traces.wanders(6_000, seed=11), jobs=1)
    assert tally.failures == []
    assert sum(tally.injected.values()) > 300
    assert all(tally.states[state] for state in State)


def test_three_healthy_minutes_have_no_trip() -> None:
    tally = traces.healthy(0, seconds=180)
    assert (tally.trips, tally.failures) == (0, [])
    assert tally.steps > 3_600


@pytest.mark.parametrize('path', SAVED, ids=[path.stem for path in SAVED])
def test_what_once_broke_a_rule_breaks_none(path: Path) -> None:
    trace = json.loads(path.read_text())
    assert trace['events'] and trace['says']
    traces.replay(trace)


def test_a_gate_that_is_wrong_is_caught_shrunk_and_goes_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    monkeypatch.setattr('smallm_ros.core.stamps.stamp_age_ns', lambda *_: None)
    tally = traces.campaign('sensor stamp future', 8, seed=1)
    assert tally.failures
    path = next(tmp_path.glob('*.json'))
    trace = json.loads(path.read_text())
    assert any(name == 'sensor stamp future' for _, name, _ in trace['events'])
    if traces.fails(trace):
        with pytest.raises(Broken, match=trace['says'].partition(':')[0]):
            traces.replay(trace)
    monkeypatch.undo()
    traces.replay(trace)


def test_a_run_goes_again_the_same() -> None:
    first, again = (traces.Run(Setting(), traces.Tally()) for _ in range(2))
    seen = []
    for run in (first, again):
        run.recover()
        run.apply('engine freeze 1 s', {'ns': 10**9, 'forwards_late': True, 'phase_ns': 5})
        seen.append([(o.state, o.cause, o.velocity) for o in (run.step() for _ in range(40))])
    assert seen[0] == seen[1]
    assert State.FALLBACK in {state for state, *_ in seen[0]}
