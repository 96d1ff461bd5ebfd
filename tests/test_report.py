"""Reports: broken promises are found, pages are whole and harmless, figures name their n."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from smallm_ros.core.action import Applied, ChoicePoint
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import OperatorError
from smallm_ros.core.exchange import ModelLimits
from smallm_ros.replay.page import page
from smallm_ros.replay.report import (
    COLUMNS,
    Machine,
    Pose,
    Promise,
    Run,
    check_promises,
    describe_machine,
    document,
    fallbacks,
    seconds_in_state,
    spans,
    table,
    write_report,
)
from tests.fakes.recordings import BAG_BEGIN_NS, a_record, small_policy

START_NS = 1_000 * SECOND
MACHINE = Machine('A CPU', 2, 8.0, '6.1', '3.11.4', {'numpy': '2.0'})
MODEL = ModelLimits('tiny', 'ab' * 32, 'chatml', 4096, 49152, 1, 0, 9 * MS, 2 * MS)


@dataclass(frozen=True)
class Box:
    name: str = 'table <1>'
    kind: Literal['rectangle', 'circle'] = 'rectangle'
    x_m: float = 1.0
    y_m: float = 0.0
    yaw_rad: float = 0.5
    length_m: float = 0.4
    width_m: float = 0.2


def frame(k: int, state: str = 'ACTIVE', cause: str = 'none', **more: Any) -> Applied:
    """The frame of tick k: 50 ms apart, 0.1 m/s of a command that was seen 200 ms before."""
    now_ns = START_NS + k * 50 * MS
    driving = state == 'ACTIVE'
    values = {
        'sequence': k + 1, 'steady_ns': now_ns, 'state': state, 'cause': cause,
        'source': 'model' if driving else 'stop', 'valid_until_ns': now_ns + 300 * MS,
        'linear_x_m_s': 0.1 if driving else 0.0, 'angular_z_rad_s': 0.0,
        'command_session': '0123456789abcdef' if driving else '',
        'command_sequence': 1 if driving else 0,
        'observation_stamp_ns': now_ns + BAG_BEGIN_NS - 200 * MS if driving else 0,
        'late_ns': 0, 'limited': False,
    }
    return Applied(**{**values, **more})


def a_run(**more: Any) -> Run:
    records = [a_record(START_NS, latency_ms=100)]
    records += [
        a_record(START_NS + k * SECOND // 2, latency_ms=100 + k, command=k + 1)
        for k in range(1, 8)
    ]
    values: dict[str, Any] = {
        'kind': 'demo', 'title': 'room', 'command': 'smallm demo --seed 1',
        'started': '20260101-120000', 'policy': small_policy(), 'policy_file': 'small.yaml',
        'machine': MACHINE, 'model': MODEL, 'begin_ns': START_NS,
        'end_ns': START_NS + 4 * SECOND, 'records': records,
        'applied': [frame(k) for k in range(80)], 'collisions': 0,
        'command_times_ns': [START_NS + k * 50 * MS for k in range(80)],
    }
    return Run(**{**values, **more})


def promise(run: Run, name: str) -> Promise:
    return next(p for p in check_promises(run) if p.name.startswith(name))


def test_a_good_run_keeps_every_promise() -> None:
    found = check_promises(a_run())
    assert all(p.ok for p in found)
    assert all(p.n > 0 for p in found)
    assert promise(a_run(), 'age').worst == pytest.approx(200)
    assert promise(a_run(), 'gap').bound == pytest.approx(3 / 81)


def records_with(**changed: Any) -> list[DecisionRecord]:
    return [a_record(START_NS).model_copy(update=changed)]


def deep(levels: int, passes: int) -> DecisionRecord:
    """Return a record of a decision with so many choices on its way."""
    record = a_record(START_NS, passes=passes)
    assert record.decision is not None
    point = ChoicePoint('', (('a', 0.9), ('b', 0.1)))
    decision = dataclasses.replace(record.decision, choices=(point,) * levels)
    return record.model_copy(update={'decision': decision})


def test_a_deep_tree_may_take_a_pass_for_each_level() -> None:
    found = promise(a_run(records=[deep(4, passes=4), a_record(START_NS)]), 'forward passes')
    assert (found.ok, found.limit, found.worst) == (True, 4, 4)


def test_partial_answers_plans_guesses_and_margins_are_told_everywhere() -> None:
    records = [
        a_record(START_NS, plan='1+1<b>', guess=(4, 3), margin=0.5),
        a_record(START_NS + SECOND, plan='2', partial=True, margin=0.02, command=2),
    ]
    run = a_run(records=records)
    content = json.loads(json.dumps(document(run), allow_nan=False))['decisions']
    assert content['partial'] == 1
    assert content['plans'] == {'1+1<b>': 1, '2': 1}
    assert (content['guessed_tokens'], content['accepted_tokens']) == (4, 3)
    assert (content['margin']['n'], content['margin_least']) == (2, 0.02)
    for text in (table(run), html.unescape(page(run))):
        for words in ('1 of 2 decisions', '1 x 1+1<b>, 1 x 2', '3 of 4 guessed tokens were right',
                      'p50 0.02, least 0.02 of probability'):
            assert words in text
    assert '1+1<b>' not in page(run)
    assert 'forward, 100 ms, partial' in page(run)


@pytest.mark.parametrize(('name', 'more'), [
    ('gap', {'command_times_ns': [START_NS + k * 50 * MS for k in range(80) if k not in (5, 6)]}),
    ('gap', {'command_times_ns': [START_NS + k * 50 * MS for k in range(40)]}),
    ('gap', {'command_times_ns': ()}),
    ('age', {'applied': [frame(0, observation_stamp_ns=START_NS + BAG_BEGIN_NS - 3 * SECOND)]}),
    ('command applied', {'applied': [frame(0, valid_until_ns=START_NS - 1_000_000)]}),
    ('decision known', {'records': records_with(deadline_ns=START_NS)}),
    ('velocity', {'applied': [frame(0, linear_x_m_s=0.21)]}),
    ('velocity', {'applied': [frame(0, linear_x_m_s=-0.01)]}),
    ('velocity', {'applied': [frame(0, angular_z_rad_s=-1.1)]}),
    ('forward passes', {'records': [a_record(START_NS, passes=3)]}),
    ('forward passes', {'records': [deep(3, passes=4)]}),
    ('collisions', {'collisions': 2}),
    ('reaction', {'promises': [Promise('reaction', 'ms', 500, 700, 1, 1)]}),
])
def test_each_broken_promise_is_found_alone(name: str, more: dict[str, Any]) -> None:
    run = a_run(**more)
    assert [p.name for p in check_promises(run) if not p.ok] == [promise(run, name).name]
    assert 'BROKEN' in table(run)
    assert '<em class="bad">broken</em>' in page(run)
    json.dumps(document(run), allow_nan=False)


def test_what_was_not_tried_is_not_called_kept() -> None:
    run = a_run(kind='replay', applied=[], records=[], collisions=None)
    assert all(p.ok and p.n == 0 and p.bound is None for p in check_promises(run))
    text = table(run)
    assert 'kept' not in text
    assert 'no decision; budget 300 ms' in text
    assert 'not tried' in page(run)


def test_a_replay_promises_nothing_of_the_control_period() -> None:
    names = [p.name for p in check_promises(a_run(kind='replay', collisions=None))]
    assert 'gap between two commands' not in names
    assert 'collisions' not in names


def test_the_gate_in_stretches() -> None:
    applied = [
        frame(0, 'STANDBY', 'engine_loading'), frame(20, 'ACTIVE'),
        frame(40, 'DEGRADED', 'answer_missed'), frame(44, 'FALLBACK', 'answers_missed'),
        frame(60, 'DEGRADED', 'none'), frame(70, 'ACTIVE'),
        frame(74, 'SAFE_STOP', 'sensor_stale'),
    ]
    found = spans(applied, START_NS + 4 * SECOND)
    assert seconds_in_state(found) == pytest.approx({
        'STANDBY': 1.0, 'ACTIVE': 1.2, 'DEGRADED': 0.7, 'FALLBACK': 0.8, 'SAFE_STOP': 0.3,
    })
    assert sum(seconds_in_state(found).values()) == pytest.approx(4.0)
    assert fallbacks(found) == {
        ('DEGRADED', 'answer_missed'): 1, ('FALLBACK', 'answers_missed'): 1,
        ('SAFE_STOP', 'sensor_stale'): 1,
    }


def test_the_document_has_what_a_reader_of_machines_needs() -> None:
    content = json.loads(json.dumps(document(a_run()), allow_nan=False))
    assert set(content) == {
        'schema_version', 'kind', 'title', 'command', 'started', 'duration_s', 'machine', 'model',
        'policy', 'decisions', 'gate', 'command_gap_ms', 'collisions', 'stolen_ms',
        'promises', 'notes',
    }
    assert content['schema_version'] == 1
    assert content['machine']['cpu'] == 'A CPU'
    assert content['model']['sha256'] == 'ab' * 32
    assert content['decisions']['latency_ms']['n'] == 8
    assert content['decisions']['latency_p99_is_thin'] is True
    assert content['command_gap_ms']['seen_by'] == 'subscriber'
    assert all({'name', 'limit', 'worst', 'violations', 'n', 'ok'} <= set(p)
               for p in content['promises'])


def test_the_table_says_how_many_samples_and_fits_a_terminal() -> None:
    why = 'does_not_fit: ' + 'needs more time than there is ' * 6
    records = [a_record(START_NS + k, 'refused', why=f'{why} {"x" * k}') for k in range(9)]
    text = table(a_run(records=[a_record(START_NS), *records]))
    assert 'p99 100 (n=1, few)' in text
    assert 'and 4 more in report.json' in text
    assert max(map(len, text.splitlines())) <= COLUMNS


def test_the_page_is_whole_and_asks_nobody() -> None:
    trail = [Pose(START_NS + k * 50 * MS, 0.01 * k, 0.0) for k in range(80)]
    content = page(a_run(trail=trail, outline=[Box(), Box(kind='circle')], notes=['a note']))
    own = re.sub(r'<script>.*?</script>', '', content, flags=re.DOTALL)
    for words in ('p50 of decision latency', 'promises kept', 'Path driven', 'a note',
                  'smallm demo --seed 1', 'A CPU'):
        assert words in own
    assert not re.search(r'(src|href)\s*=', own)
    for key in ('latency', 'course', 'gate', 'path'):
        assert f'<div id="{key}"' in own
        assert f'Plotly.newPlot("{key}",' in content


def test_no_trail_no_path() -> None:
    assert 'Path driven' not in page(a_run())


def test_text_from_outside_stays_text() -> None:
    attack = '</script><script>alert(1)</script><b>'
    run = a_run(
        title=attack, notes=[attack], command=attack, policy_file=attack,
        records=[a_record(START_NS, 'missed', why=attack)],
        applied=[frame(0, 'HOLD', attack[:60])],
        outline=[dataclasses.replace(Box(), name=attack)],
        model=dataclasses.replace(MODEL, name=attack),
    )
    assert '<script>alert' not in page(run)
    assert '<b>' not in re.sub(r'<div class="tiles">.*?</div></div>', '', page(run))


def test_the_files_are_written(tmp_path: Path) -> None:
    paths = write_report(a_run(), tmp_path / 'runs' / '1')
    assert [path.name for path in paths] == ['report.json', 'report.html']
    assert all(path.stat().st_size > 1000 for path in paths)


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / 'out').write_text('')
    with pytest.raises(OperatorError, match='cannot write the report'):
        write_report(a_run(), tmp_path / 'out')


def test_this_machine_can_be_described() -> None:
    found = describe_machine()
    assert found.cores > 0
    assert found.memory_gib > 0
    assert 'numpy' in found.packages
