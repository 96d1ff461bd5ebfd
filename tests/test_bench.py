"""The benchmark's own arithmetic, and one small run of every arm on the embedded model."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from smallm_ros.bench import document, page, table
from smallm_ros.bench.canary import STEP_NS, Rule, Step
from smallm_ros.bench.names import FLOOR_B, FLOORS, ONE, OURS, SERVER, TWO, WORDS
from smallm_ros.bench.observations import AsJson, _worded, cases, in_words
from smallm_ros.bench.predict import THIS, predict
from smallm_ros.bench.result import (
    DIFFERS,
    SAME,
    TIE,
    Conditions,
    Round,
    Run,
    checks,
    equality,
    figures,
)
from smallm_ros.bench.roofline import DEVICES
from smallm_ros.bench.shot import Shot
from smallm_ros.core.action import ActionSpace
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import OperatorError
from smallm_ros.core.exchange import Segment
from smallm_ros.core.policy import load_policy
from smallm_ros.core.sensor import Scene
from smallm_ros.core.summary.scan import Scan, ScanSensor
from smallm_ros.replay.report import Machine

POLICIES = Path(__file__).resolve().parent.parent / 'config' / 'policies'
POLICY = POLICIES / 'bench.yaml'
CONDITIONS = Conditions(
    model='m', model_sha256='0' * 64, template='chatml', threads=1, gpu_layers=0,
    context_tokens=4096, kv_type='f16', policy='bench', declaration='bench-1', seed=0,
    observations=4, cpu='a CPU', cores=2, accelerator='', llama_cpp_python='0.3.36', xllamacpp='1',
    skipped=(), rule='none',
)
MACHINE = Machine('a CPU', 2, 23.5, '6.1', '3.11.7', {})
COSTS = ((1, 10 * MS), (101, 110 * MS))


def shot(ms: float, *batches: int, host_ms: float | None = 1.0, answer: str = 'left') -> Shot:
    took_ns = round(ms * MS)
    decode_ns = None if host_ms is None else took_ns - round(host_ms * MS)
    return Shot(took_ns, answer, batches, decode_ns)


def a_round(index: int, ms: Mapping[str, float], left_out: str = '', verdict: str = SAME) -> Round:
    return Round(
        index, 0, SECOND, 0.0, left_out,
        {arm: shot(value, 60, 4, host_ms=0.0 if 'floor' in arm else 1.0)
         for arm, value in ms.items()},
        {OURS: verdict},
    )


def run_of(*rounds: Round) -> Run:
    return Run('20260101-000000', 'smallm bench', CONDITIONS, MACHINE, (0.1, 0.2), rounds, COSTS,
               ())


EVEN = dict.fromkeys(WORDS, 100.0)
GOOD = {**EVEN, 'chat': 260.0, 'server': 300.0, 'chat-sentence': 500.0, 'server-sentence': 600.0}


# --- what counts --------------------------------------------------------------------------------


STRICT = Rule(late_ms=15.0, stolen_share=0.02, others_share=0.15)


def steps(*late_ms: float, stolen_ms: float = 0.0) -> list[Step]:
    return [Step((i + 1) * STEP_NS, round(late * MS), stolen_ms * i)
            for i, late in enumerate(late_ms)]


def test_a_stretch_in_which_the_canary_woke_in_time_counts() -> None:
    assert STRICT.judge(steps(0.1, 14.9, 0.1), 0, 3 * STEP_NS + MS, 0.0) == ''


@pytest.mark.parametrize(('found', 'end_ms', 'others_ms', 'why'), [
    (steps(0.1, 15.1, 0.1), 16, 0.0, 'canary 15 ms late'),
    (steps(0.1, 0.1), 40, 0.0, 'canary 25 ms late'),       # it never woke again
    ([], 40, 0.0, 'canary 40 ms late'),
    (steps(*[0.1] * 100, stolen_ms=0.5), 501, 0.0, 'stolen 10 %'),
    (steps(*[0.1] * 100), 501, 90.0, 'others 18 %'),
    (steps(0.1, 0.1, 0.1, stolen_ms=10.0), 16, 30.0, ''),  # within the grain of /proc/stat
])
def test_what_was_not_ours_is_left_out(
    found: list[Step], end_ms: int, others_ms: float, why: str
) -> None:
    assert STRICT.judge(found, 0, end_ms * MS, others_ms) == why


def test_the_canary_is_judged_within_the_stretch_alone() -> None:
    late_before = steps(90.0, 0.1, 0.1, 0.1)
    late_before[0] = dataclasses.replace(late_before[0], due_ns=-200 * MS)
    assert STRICT.judge(late_before, 9 * MS, 4 * STEP_NS, 0.0) == ''


def test_left_out_rounds_are_in_no_figure_and_in_every_equality() -> None:
    slow = dict.fromkeys(WORDS, 9000.0)
    run = run_of(a_round(0, GOOD), a_round(1, slow, 'others 50 %', DIFFERS), a_round(2, GOOD))
    by = {f.arm: f for f in figures(run)}
    assert by[OURS].n == 2 and by[OURS].took.max == 100.0
    assert equality(run)[OURS] == {SAME: 2, TIE: 0, DIFFERS: 1}


def test_without_a_round_that_counts_nothing_is_claimed() -> None:
    run = run_of(a_round(0, GOOD, 'others 50 %'))
    assert figures(run) == ()
    assert all(c.holds is None for c in checks(run) if 'stepwise' not in c.name)
    said = table.table(run)
    assert 'nothing is left to compare' in said and 'NOT COUNTED' in said
    assert 'promised' not in said and 'PREDICTED' not in said
    assert page.page(run)
    json.dumps(document.document(run), allow_nan=False)


# --- figures and promises -----------------------------------------------------------------------


def test_figures_are_ratios_of_medians_in_the_same_rounds() -> None:
    run = run_of(*(a_round(i, {**EVEN, ONE: ms, FLOORS[ONE]: ms / 2, FLOOR_B: 50.0})
                   for i, ms in enumerate((80.0, 100.0, 1000.0))))
    one = next(f for f in figures(run) if f.arm == ONE)
    assert (one.took.p50, one.took.max) == (100.0, 1000.0)
    assert one.over_floor_a == 2.0 and one.over_floor_b == 2.0
    assert (one.passes, one.evaluated) == (2, 64)
    assert one.host is not None and one.host.p99 == pytest.approx(1.0)


def test_what_is_promised_holds_at_its_limit_and_not_beyond() -> None:
    at = {**GOOD, 'chat': 250.0, 'server': 250.0, ONE: 110.0, TWO: 110.0}
    assert [c.holds for c in checks(run_of(a_round(0, at)))] == [True] * 11
    beyond = {**at, 'chat': 249.0, ONE: 111.0, 'server-sentence': 499.0}
    broken = [c.name for c in checks(run_of(a_round(0, beyond, verdict=DIFFERS))) if not c.holds]
    assert len(broken) == 4


def test_a_promise_about_an_arm_that_was_skipped_is_not_measured() -> None:
    some = {arm: ms for arm, ms in GOOD.items() if not arm.startswith(SERVER)}
    found = checks(run_of(a_round(0, some)))
    assert [c.holds for c in found if 'llama-server' in c.name] == [None, None]


def test_a_prediction_is_the_counted_batches_at_a_devices_cost() -> None:
    run = run_of(a_round(0, GOOD))
    here, *others = predict(run)
    assert here.device == THIS and here.p50_ms[OURS] == pytest.approx(69 + 13)
    assert [p.device for p in others] == list(DEVICES)
    for predicted in others:
        device = DEVICES[predicted.device]
        cost_ns = device.batch_ns(60) + device.batch_ns(4)
        assert predicted.p50_ms[OURS] == pytest.approx(cost_ns / MS)


# --- what is written ----------------------------------------------------------------------------


def test_the_json_is_versioned_and_read_back(tmp_path: Path) -> None:
    run = run_of(a_round(0, GOOD), a_round(1, GOOD, 'others 50 %'))
    path = tmp_path / 'bench.json'
    path.write_text(json.dumps(document.document(run), allow_nan=False))
    content = json.loads(path.read_text())
    assert content['version'] == 1
    assert content['left_out'] == [{'round': 1, 'why': 'others 50 %'}]
    assert set(content['arms']) == set(WORDS) and content['arms'][OURS]['n'] == 1
    older = document.Older.read(path)
    older.require_equal(CONDITIONS)
    assert {c.arm: c.ratio for c in older.changes(run)} == dict.fromkeys(WORDS, 1.0)


@pytest.mark.parametrize(('change', 'names'), [
    ({'threads': 2}, ['threads 1 then, 2 now']),
    ({'model_sha256': '1' * 64, 'seed': 3}, ['model_sha256', 'seed 0 then, 3 now']),
    ({'skipped': ('one',)}, ['skipped']),
])
def test_other_conditions_are_not_compared(
    tmp_path: Path, change: dict[str, object], names: list[str]
) -> None:
    path = tmp_path / 'bench.json'
    path.write_text(json.dumps(document.document(run_of(a_round(0, GOOD)))))
    now = dataclasses.replace(CONDITIONS, **change)  # type: ignore[arg-type]
    with pytest.raises(OperatorError) as refused:
        document.Older.read(path).require_equal(now)
    assert all(name in str(refused.value) for name in names)
    assert 'declaration' not in str(refused.value)


@pytest.mark.parametrize('content', ['', '[]', '{"version": 2}', 'no json'])
def test_what_is_no_bench_json_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / 'old.json'
    path.write_text(content)
    with pytest.raises(OperatorError, match='old.json'):
        document.Older.read(path)
    with pytest.raises(OperatorError, match='absent.json'):
        document.Older.read(tmp_path / 'absent.json')


def test_the_page_needs_no_network_and_marks_what_is_predicted() -> None:
    said = page.page(run_of(a_round(0, GOOD), a_round(1, GOOD, 'others 50 %')))
    head = said[:said.index('<script>')] + said[said.rindex('</script>', 0, -20):]
    assert 'src=' not in head and 'href=' not in head
    assert 'Predicted for other devices' in said and 'nothing was run there' in said
    assert all(words in said for words in WORDS.values())


def test_the_table_says_when_a_p99_is_of_few() -> None:
    said = table.table(run_of(a_round(0, GOOD)))
    assert 'n = 1 is few' in said and 'PREDICTED' in said


# --- what is asked ------------------------------------------------------------------------------


def test_observations_are_the_seeds_and_never_twice_in_a_row() -> None:
    policy = load_policy(POLICY)
    asked = cases(policy, 5, 30)
    assert asked == cases(policy, 5, 30) and asked != cases(policy, 6, 30)
    assert len(asked) == 30
    assert all(a.segments != b.segments for a, b in itertools.pairwise(asked))


def test_the_sentence_says_what_the_compact_text_says() -> None:
    for policy_file in ('bench.yaml', 'explorer.yaml'):
        for case in cases(load_policy(POLICIES / policy_file), 1, 20):
            words = case.compact.replace(',', ' ').split()
            for word in words:
                if word[0].isdigit() or word in ('blocked', 'near'):
                    assert word in case.sentence, case
            assert case.sentence.endswith('.') and len(case.sentence) > len(case.compact)


def test_the_words_are_what_the_summariser_says_with_bins() -> None:
    policy = load_policy(POLICY)
    worded = in_words(policy)
    scan, binned = policy.sensors['scan'], worded.sensors['scan']
    assert isinstance(scan, ScanSensor) and isinstance(binned, ScanSensor) and binned.bins
    beams = np.array([0.4, 0.75, 2.0, 20.0, 1.4, 0.3, 0.9] * 52, np.float32)[:360]
    for shift in range(0, 360, 23):
        seen = Scan(0, '', -math.pi, math.radians(1), 0.1, 12.0, np.roll(beams, shift))
        metres, words = scan.text(seen, Scene()), binned.text(seen, Scene())
        segment = _worded(policy, Segment('scan', f'scan: {metres}\n', 0))
        assert segment.text == f'scan: {words}\n'


def test_every_answer_goes_to_json_and_back() -> None:
    policy = load_policy(POLICY)
    form = AsJson.of(policy)
    for action in ActionSpace.of(policy).actions:
        assert form.answer(form.text(action.answer)) == action.answer
    assert form.answer('{"action":"left"}') == '' and form.answer('{') == ''
    assert form.schema['oneOf'][0] == {
        'type': 'object',
        'properties': {
            'action': {'const': 'forward'},
            'speed': {'enum': ['crawl', 'slow', 'easy', 'steady', 'brisk', 'fast']},
        },
        'required': ['action', 'speed'],
        'additionalProperties': False,
    }


# --- the real thing -----------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.slow
def test_every_arm_on_the_embedded_model(tmp_path: Path) -> None:
    pytest.importorskip('llama_cpp')
    from smallm_ros.bench import run as bench
    from smallm_ros.engine.options import LoadRequest
    from smallm_ros.steady import SteadyClock

    said: list[str] = []
    plan = bench.Plan(
        request=LoadRequest(context_tokens=1024), policy=load_policy(POLICY), observations=3,
        seed=1, skip=(), folder=tmp_path, rule=Rule(1e9, 1e9, 1e9), command='test', started='now',
    )
    run = bench.run(plan, SteadyClock(), said.append, said.append, lambda conditions: None)

    served = importlib.util.find_spec('xllamacpp') is not None
    arms = [arm for arm in WORDS if served or not arm.startswith(SERVER)]
    assert list(run.arms) == arms and len(run.kept) == 3
    assert served or run.notes == ('server left out: xllamacpp is not installed: '
                                   'pip install xllamacpp',)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['server.log'] * served
    assert any('a round is left out' in line for line in said)
    assert any(line.startswith('round 5 of 5') for line in said)

    assert not any(counts[DIFFERS] for counts in equality(run).values())
    assert sum(sum(counts.values()) for counts in equality(run).values()) == 3 * len(FLOORS)
    answers = ActionSpace.of(plan.policy).answers
    for each in run.kept:
        shots = each.shots
        for arm, floor in FLOORS.items():
            assert shots[floor].batches == shots[arm].batches
            assert shots[arm].reused == shots[OURS].reused
        assert len(shots[ONE].batches) == 1 and len(shots[TWO].batches) <= 2
        changed = shots[FLOOR_B].batches[0]
        assert len(shots[FLOOR_B].batches) == 1
        assert changed < shots[ONE].evaluated and changed == shots['stepwise'].batches[0]
        assert shots['stepwise'].batches[1:] == (1,) * (len(shots['stepwise'].batches) - 1)
        for arm, taken in shots.items():
            if 'floor' not in arm:
                assert taken.answer in answers, (arm, taken)
            if taken.decode_ns is not None:
                assert 0 < taken.decode_ns <= taken.took_ns
        assert shots['chat-sentence'].evaluated > shots['chat'].evaluated > changed


@pytest.mark.model
@pytest.mark.slow
def test_the_command_writes_its_files_and_refuses_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('llama_cpp')
    from smallm_ros.cli.main import main

    words = ['bench', '--observations', '2', '--context', '1024']
    for arm in ('two', 'stepwise', 'chat', 'server'):
        words += ['--skip', arm]
    out = tmp_path / 'first'
    assert main([*words, '--out', str(out), '--json']) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / 'bench.json').read_text())
    assert printed['conditions']['skipped'] == ['two', 'stepwise', 'chat', 'server']
    assert '</html>' in (out / 'bench.html').read_text()
    assert main([*words, '--out', str(tmp_path / 'second'), '--seed', '9',
                 '--against', str(out / 'bench.json')]) == OperatorError.exit_code
    assert 'seed 0 then, 9 now' in capsys.readouterr().err


@pytest.mark.model
@pytest.mark.slow
def test_a_shape_without_weights_is_measured_against_the_floor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ('llama_cpp', 'gguf', 'mistral_common'):
        pytest.importorskip(package)
    from smallm_ros.cli.main import main

    assert main(['bench', '--shape', 'tiny', '--observations', '2', '--context', '1024',
                 '--out', str(tmp_path / 'run')]) == 0
    said = capsys.readouterr().out
    assert 'mistral-v7-tekken' in said
    assert 'chat and server left out: the model file carries no chat template' in said
    assert '2 different' not in said
