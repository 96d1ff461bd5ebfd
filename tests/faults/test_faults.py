"""The fault suite's short form: a few real faults, and the judge of them all.

`make faults` is the whole of it. Here no duration is asserted: two cores that other people use
make any process late; what the gate did, and why, must be right all the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('rclpy')

from smallm_ros.core.cause import RESPONSES
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.policy import load_policy
from tests.faults import classes, soak
from tests.faults.judge import Episode, Expected, judge
from tests.faults.observer_process import MISSES, PROGRESS, SCAN
from tests.faults.run import Run, Stage, inject, series, table, trace_of
from tests.faults.system import FILE, Setting, System

POLICY = load_policy(FILE)
SAVED = sorted((Path(__file__).parent / 'saved').glob('*.json'))
BY_NAME = {fault.name: fault for fault in classes.FAULTS}
FALLBACK = Expected(frozenset({'worker_dead'}), frozenset({'engine_absent'}), 70.0)

# --- real processes -------------------------------------------------------------------------


@pytest.fixture(scope='module')
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp('faults')) as out:
        yield out


@pytest.mark.ros
@pytest.mark.slow
@pytest.mark.parametrize('name', [
    name for name in ('worker KILL', 'policy STOP 1 s', 'scan silent', 'estop pressed',
                      'gate raises') for _ in range(2)
] + ['policy KILL', 'gate KILL'])
def test_a_fault_is_answered_as_promised_and_lived_through(stage: Stage, name: str) -> None:
    fault = BY_NAME[name]
    result = inject(stage.system(Setting(domain=59)), fault)
    assert result['resume_ms'] is not None, result['violations']
    assert set(result['violations']) <= set(result['late']), result['violations']
    assert result['reaction_ms'] is not None


@pytest.mark.ros
@pytest.mark.slow
def test_a_run_goes_on_where_it_was_left(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage.clear()
    wanted = [(BY_NAME['estop pressed'], 2)]
    run, setting = Run(tmp_path), Setting(domain=58)
    lines = series(run, wanted, setting)
    assert '1/2' in next(lines)
    lines.close()
    assert len(run.results()) == 1
    assert len(list(series(run, wanted, setting))) == 1
    assert len(run.results()) == 2
    assert 'estop pressed' in table(run.results())


# --- the judge ------------------------------------------------------------------------------


def row(at_ms: float, state: str = 'ACTIVE', cause: str = 'none', v: float = 0.3,
        **more: Any) -> dict[str, Any]:
    return {
        'steady_ns': round(at_ms * MS), 'published_ns': round((at_ms + 1) * MS),
        'sequence': 1 + round(at_ms / 50), 'state': state, 'cause': cause,
        'source': 'model' if state == 'ACTIVE' else 'stop', 'linear_x_m_s': v,
        'angular_z_rad_s': 0.0, 'late_ns': 0, **more,
    }


def story() -> list[dict[str, Any]]:
    """The worker dies at 1,010 ms; the fallback at 1,050; the model again at 2,000."""
    return [row(at) if at < 1050 or at >= 2000 else row(
        at, *(('FALLBACK', 'worker_dead') if at < 1500 else ('DEGRADED', 'worker_dead')), v=0.05)
        for at in range(0, 3000, 50)]


def verdict(rows: list[dict[str, Any]], expected: Expected = FALLBACK, **more: Any) -> list[str]:
    episode = Episode(1010 * MS, 1300 * MS, 2000 * MS, rows)
    return judge(replace(episode, **more), expected, POLICY).violations


def test_a_good_answer_is_no_violation_and_is_measured() -> None:
    out = judge(Episode(1010 * MS, 1300 * MS, 2000 * MS, story()), FALLBACK, POLICY)
    assert out.violations == []
    assert (out.cause, out.detection_ms, out.reaction_ms) == ('worker_dead', 40, 41)
    assert out.resume_ms == 700
    assert out.worst_gap_ms == 50


@pytest.mark.parametrize(('at', 'change', 'says'), [
    (30, {'linear_x_m_s': 0.51}, 'outside the limits'),
    (30, {'linear_x_m_s': float('nan')}, 'outside the limits'),
    (30, {'angular_z_rad_s': -1.01}, 'outside the limits'),
    (30, {'source': 'model'}, 'the model drives in DEGRADED'),
    (30, {'sequence': 7}, 'sequence 30 to 7'),
    (25, {'cause': 'sensor_stale'}, 'later causes sensor_stale'),
    (21, {'cause': 'node_dead'}, 'cause node_dead, not worker_dead'),
    (25, {'state': 'HOLD'}, 'motion in HOLD'),
    (25, {'state': 'ESTOP_LATCHED'}, 'motion in ESTOP_LATCHED'),
    (25, {'state': 'ACTIVE'}, 'from FALLBACK to ACTIVE'),
    (25, {'published_ns': 1352 * MS}, 'gap of 151 ms'),
    (39, {'state': 'HOLD', 'linear_x_m_s': 0.0}, 'it armed itself'),
])
def test_each_broken_promise_is_named(at: int, change: dict[str, Any], says: str) -> None:
    rows = story()
    assert verdict(rows) == []
    rows[at].update(change)
    assert says in '; '.join(verdict(rows))


def test_an_operator_may_arm() -> None:
    rows = story()
    rows[39].update(state='HOLD', linear_x_m_s=0.0)
    assert verdict(rows, armed_ns=[1990 * MS]) == []


def test_speed_may_not_grow_in_a_safe_stop_nor_last() -> None:
    expected = replace(FALLBACK, causes=frozenset({'sensor_stale'}))
    rows = [row(at) if at < 1050 else row(at, 'SAFE_STOP', 'sensor_stale', 0.0)
            for at in range(0, 4000, 50)]
    assert verdict(rows, expected) == []
    rows[30]['linear_x_m_s'] = 0.1
    assert 'speed grew in SAFE_STOP' in verdict(rows, expected)
    for each in rows[21:]:
        each['linear_x_m_s'] = 0.1
    assert 'still moving in SAFE_STOP' in verdict(rows, expected)


def test_late_reactions_and_returns_that_never_come() -> None:
    assert verdict(story(), replace(FALLBACK, limit_ms=40.0)) == [
        'reacted after 41 ms, limit 40 ms']
    assert 'never resumed' in verdict(story(), resumed_ns=None)
    well = [row(at) for at in range(0, 3000, 50)]
    assert verdict(well) == ['never reacted']
    assert verdict(well, replace(FALLBACK, leaves=None)) == []
    assert 'left for FALLBACK by worker_dead' in verdict(story(), replace(FALLBACK, leaves=False))


def test_what_must_stand_and_moves_on_is_seen() -> None:
    expected = replace(FALLBACK, leaves=None, stands=True, limit_ms=200.0)
    moving = [row(at) for at in range(0, 3000, 50)]
    assert verdict(moving, expected) == ['never reacted']
    stands = [row(at, v=0.0 if 1150 <= at < 1500 else 0.3) for at in range(0, 3000, 50)]
    assert verdict(stands, expected) == []


def test_only_the_fault_itself_excuses_a_gap() -> None:
    rows = [each for each in story() if not 1100 <= each['steady_ns'] / MS < 1600]
    for number, each in enumerate(rows, 1):
        each['sequence'] = number
    assert 'gap of 550 ms, limit 100 ms' in verdict(rows)
    assert verdict(rows, replace(FALLBACK, gaps=True)) == []


@pytest.mark.parametrize('path', SAVED, ids=lambda path: path.stem)
def test_a_saved_trace_is_judged_as_it_was(path: Path) -> None:
    content = json.loads(path.read_text(encoding='utf-8'))
    found = judge(trace_of(content), BY_NAME[content['fault']].expected, POLICY)
    assert found.violations == content['violations']


def test_the_classes_name_causes_that_there_are_and_no_name_twice() -> None:
    known = {cause.value for cause in RESPONSES}
    for fault in classes.FAULTS:
        assert fault.causes | fault.after <= known, fault.name
    assert len(BY_NAME) == len(classes.FAULTS)


# --- the soak's judgement -------------------------------------------------------------------


def heard(kind: int, *times_ms: float, value: float = 0.0) -> list[tuple[int, int, float]]:
    return [(round(at * MS), kind, value) for at in times_ms]


@pytest.mark.parametrize(('cause', 'seen', 'expected'), [
    ('sensor_stale', heard(SCAN, *range(9000, 10_000, 50)), False),
    ('sensor_stale', heard(SCAN, 9000, 9310, 9400), True),
    ('engine_stalled', heard(PROGRESS, 9000, 9050, value=40.0), False),
    ('engine_stalled', heard(PROGRESS, 9000, value=310.0), True),
    ('answer_missed', heard(MISSES, 9000, value=3.0), False),
    ('answer_missed', heard(MISSES, 9000) + heard(MISSES, 9050, value=1.0), True),
    ('second_publisher', [], False),
])
def test_a_cause_that_was_heard_is_true_and_any_other_false(
    cause: str, seen: list[tuple[int, int, float]], expected: bool,
) -> None:
    assert soak.proven(cause, 10 * SECOND, seen, [], POLICY) is expected


def test_a_gap_of_its_own_stands_in_the_gates_log() -> None:
    rows = [row(at) for at in range(0, 1000, 50)]
    assert not soak.proven('own_gap', SECOND, [], rows, POLICY)
    rows = [each for a, each in zip(itertools.count(), rows, strict=False) if not 5 <= a < 9]
    assert soak.proven('own_gap', SECOND, [], rows, POLICY)


def test_nothing_is_left_of_a_system_that_is_closed(tmp_path: Path) -> None:
    system = System(Setting(domain=57), tmp_path)
    system.start_engine()
    pids = [system.pid('engine'), system.pid('worker')]
    system.close()
    assert not [pid for pid in pids if Path(f'/proc/{pid}').exists()]
