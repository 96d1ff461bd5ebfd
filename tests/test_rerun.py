"""Deciding a recording again: each way in which it can be the same or not, and the real model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smallm_ros.cli import rerun
from smallm_ros.core.action import ChoicePoint, Decision
from smallm_ros.core.clock import MS, SECOND, ManualClock
from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import BagError, OperatorError, WorkerError
from smallm_ros.core.exchange import (
    Decide,
    Decided,
    Declaration,
    DeclarationRejected,
    Declared,
    EngineUp,
    ModelLimits,
)
from smallm_ros.core.observation import Received
from smallm_ros.core.pilot import Ask, Declare, Do, Identity, Pilot, Record
from smallm_ros.core.policy import load_policy
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.scan import Scan
from smallm_ros.record.reader import read_declarations, read_records
from smallm_ros.record.rerun import Again, Verdict, document, run_again, summary
from smallm_ros.record.writer import RecordWriter
from smallm_ros.steady import SteadyClock
from tests.fakes.recordings import a_declaration, a_record

LIMITS = ModelLimits('tiny', 'ab' * 32, 'chatml', 4096, 1000, 1, 0, MS, MS)
PREFIX = tuple(range(197))
"""What `a_record` leaves of its 200 tokens: 3 are its own."""
ANSWERS = ('stop', 'forward slow', 'forward fast', 'left')


def point(prefix: str = '', **shares: float) -> ChoicePoint:
    return ChoicePoint(prefix, tuple(shares.items()))


def decision(leaf: int, *choices: ChoicePoint, **more: Any) -> Decision:
    made = a_record().decision
    assert made is not None
    return dataclasses.replace(made, leaf=leaf, choices=choices, **more)


def record(leaf: int, *choices: ChoicePoint, **more: Any) -> DecisionRecord:
    return a_record().model_copy(update={'decision': decision(leaf, *choices), **more})


@dataclass
class Repeater:
    """A model that says what it is told to, and keeps what it was asked."""

    answers: list[Decision | Exception] = field(default_factory=list)
    limits: ModelLimits = LIMITS
    rejects: str = ''
    prefix_tokens: tuple[int, ...] = PREFIX
    prior: str = 'reference:abcd'
    declared: list[str] = field(default_factory=list)
    asked: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def declare(self, declaration: Declaration) -> Declared | DeclarationRejected:
        self.declared.append(declaration.space)
        if self.rejects:
            return DeclarationRejected(declaration.space, self.rejects)
        return Declared(declaration.space, len(self.prefix_tokens), len(declaration.answers), 2)

    def prefix(self, space: str) -> tuple[int, ...]:
        assert space in self.declared
        return self.prefix_tokens

    def redecide(self, space: str, ids: Sequence[int]) -> Decided:
        self.asked.append((space, tuple(ids)))
        answer = self.answers[(len(self.asked) - 1) % len(self.answers)]
        if isinstance(answer, Exception):
            raise answer
        return Decided(0, answer, (), self.limits.sha256, ids=tuple(ids), prior=self.prior)


def again(
    then: DecisionRecord, now: Decision | Exception, *, tolerance: float = 0.1,
    declaration: Declaration | None = None, **changes: Any,
) -> Again:
    declared = declaration or dataclasses.replace(a_declaration(), answers=ANSWERS)
    decider = Repeater([now], **changes)
    (one,) = run_again([then], {declared.space: declared}, decider, tolerance)
    return one


FORWARD = (point(stop=0.1, forward=0.7, left=0.2), point('forward', slow=0.4, fast=0.6))


def test_the_same_is_the_same() -> None:
    now = (point(stop=0.1, forward=0.69, left=0.21), point('forward', slow=0.45, fast=0.55))
    found = again(record(2, *FORWARD), decision(2, *now))
    assert (found.verdict, found.why, found.answer) == (Verdict.SAME, '', 'forward fast')
    assert found.drift == pytest.approx(0.05)


def test_the_tokens_of_the_record_are_what_is_asked() -> None:
    decider = Repeater([decision(2, *FORWARD)])
    declared = dataclasses.replace(a_declaration(), answers=ANSWERS)
    records = [record(2, *FORWARD), record(2, *FORWARD, ids=(4, 5, 6))]
    assert all(a.verdict is Verdict.SAME for a in run_again(
        records, {'small-1': declared}, decider))
    assert decider.asked == [('small-1', (11, 12, 13)), ('small-1', (4, 5, 6))]
    assert decider.declared == ['small-1'], 'evaluated once'


@pytest.mark.parametrize(('fast_then', 'fast_now', 'verdict'), [
    (0.51, 0.49, Verdict.TIE),
    (0.52, 0.48, Verdict.TIE),
    (0.60, 0.49, Verdict.OTHER_ANSWER),  # it was sure of it then
    (0.51, 0.40, Verdict.OTHER_ANSWER),  # it is sure of another now
])
def test_a_tie_is_a_choice_that_neither_run_was_sure_of(
    fast_then: float, fast_now: float, verdict: Verdict
) -> None:
    def ways(fast: float) -> tuple[ChoicePoint, ChoicePoint]:
        return FORWARD[0], point('forward', slow=1 - fast, fast=fast)

    found = again(record(2, *ways(fast_then)), decision(1, *ways(fast_now)))
    assert found.verdict is verdict
    assert found.why.startswith("'forward fast' then, 'forward slow' now")
    assert again(record(2, *ways(fast_then)), decision(1, *ways(fast_now)),
                 tolerance=9).verdict is Verdict.TIE


def test_the_tie_is_where_the_ways_part_not_further_down() -> None:
    now = (point(stop=0.1, forward=0.2, left=0.7),)
    found = again(record(2, point(stop=0.1, forward=0.7, left=0.2),
                         point('forward', slow=0.5, fast=0.5)), decision(3, *now))
    assert found.verdict is Verdict.OTHER_ANSWER
    assert found.why == "'forward fast' then, 'left' now; 1.253 apart, a tie up to 0.1"


@pytest.mark.parametrize(('margin', 'verdict'), [
    (0.01, Verdict.TIE), (0.2, Verdict.OTHER_ANSWER), (0.5, Verdict.OTHER_ANSWER),
])
def test_of_the_best_leaf_the_lead_over_the_runner_up_counts(
    margin: float, verdict: Verdict
) -> None:
    best = dataclasses.replace(a_declaration(), answers=ANSWERS, decide=Decide.BEST)
    then = record(2, decision=decision(2, *FORWARD, confidence=0.5, margin=0.02))
    now = decision(3, *FORWARD, confidence=0.5, margin=margin)
    assert again(then, now, declaration=best).verdict is verdict


def test_another_prior_is_named() -> None:
    now = (point(stop=0.1, forward=0.2, left=0.7),)
    found = again(record(2, *FORWARD), decision(3, *now), prior='none')
    assert 'subtracted was reference:abcd then, none now' in found.why
    found = again(record(2, *FORWARD), decision(2, *FORWARD), prior='none')
    assert (found.verdict, found.why) == (
        Verdict.SAME, 'subtracted was reference:abcd then, none now')


ANYTIME = dataclasses.replace(
    a_declaration(), answers=ANSWERS, actions=(0, 1, 1, 2), departures=(0, 0, 1, 0))


def test_of_a_partial_decision_only_what_was_decided_in_time_is_compared() -> None:
    partial = record(1, FORWARD[0], partial=True)
    assert again(partial, decision(2, *FORWARD), declaration=ANYTIME).verdict is Verdict.SAME
    now = (point(stop=0.1, forward=0.2, left=0.7),)
    found = again(partial, decision(3, *now), declaration=ANYTIME)
    assert found.verdict is Verdict.OTHER_ANSWER


@pytest.mark.parametrize(('then', 'changes', 'verdict', 'why'), [
    (record(2, model_sha256='cd' * 32), {}, Verdict.OTHER_MODEL,
     'recorded with model cdcdcdcdcdcd, this is abababababab (tiny)'),
    (record(2, space='other-2'), {}, Verdict.OTHER_STATIC,
     "the recording has no declaration 'other-2'"),
    (record(2), {'rejects': 'too long'}, Verdict.OTHER_STATIC,
     'the model rejects the declaration: too long'),
    (record(2), {'prefix_tokens': PREFIX[:-1]}, Verdict.OTHER_STATIC,
     'its static part had 197 tokens, the one here has 196'),
    (record(9), {}, Verdict.OTHER_STATIC, "leaf 9 is none of the declaration's 4 answers"),
    (record(2, ids=()), {}, Verdict.NOT_RUN, 'the record has no token ids'),
    (record(2, ids=(11, 1000, 13)), {}, Verdict.NOT_RUN,
     'token 1000 is none of the 1000 of the vocabulary'),
    (record(2, ids=(11, -1, 13)), {}, Verdict.NOT_RUN,
     'token -1 is none of the 1000 of the vocabulary'),
    (record(2), {'limits': dataclasses.replace(LIMITS, context_tokens=199)}, Verdict.NOT_RUN,
     '200 tokens, the context has 199: a larger --context'),
])
def test_what_was_different_before_it_chose_is_said_first(
    then: DecisionRecord, changes: dict[str, Any], verdict: Verdict, why: str
) -> None:
    found = again(then, WorkerError('was not to be asked'), **changes)
    assert (found.verdict, found.why, found.answer) == (verdict, why, '')
    assert not found.verdict.good


def test_an_engine_that_fails_is_said_and_the_next_one_is_tried() -> None:
    decider = Repeater([WorkerError('llama_decode returned 1'), ValueError('513 tokens'),
                        decision(1)])
    declared = dataclasses.replace(a_declaration(), answers=ANSWERS)
    found = list(run_again([record(1)] * 3, {'small-1': declared}, decider))
    assert [(a.verdict, a.why) for a in found] == [
        (Verdict.NOT_RUN, 'the engine could not: llama_decode returned 1'),
        (Verdict.NOT_RUN, 'the engine could not: 513 tokens'),
        (Verdict.SAME, ''),
    ]


STORY = [
    Again(record(2, request=1, action='forward', parameters={'speed': 'fast'}), Verdict.SAME,
          answer='forward fast', drift=0.0),
    Again(record(2, request=2, action='left', partial=True), Verdict.TIE, 'close', 'stop', 0.03),
    Again(record(2, request=3, action='stop'), Verdict.OTHER_MODEL, 'recorded with another'),
]


def test_the_summary_is_one_line() -> None:
    assert summary(STORY[:1]) == '1 of 1 the same; probabilities differ by at most 0'
    assert summary(STORY) == (
        '2 of 3 the same (1 as ties); 1 other model; probabilities differ by at most 0.03')
    assert summary(STORY[2:]) == '0 of 1 the same; 1 other model'


def test_the_table_has_a_line_for_each() -> None:
    head, *rows, last = rerun.lines(STORY)
    assert head.split() == ['request', 'recorded', 'took', 'reused']
    assert [row.split()[0] for row in rows] == ['1', '2', '3']
    assert rows[0].split()[1:] == ['forward', 'fast', '80', 'ms', '150/200', 'same']
    assert 'left (partial)' in rows[1]
    assert rows[2].endswith('other model  recorded with another')
    assert last == summary(STORY)


def test_the_document_is_plain_json() -> None:
    content = json.loads(json.dumps(document(STORY), allow_nan=False))
    assert (content['decisions'], content['all_same']) == (3, False)
    assert content['verdicts'] == {
        'same': 1, 'tie': 1, 'other answer': 0, 'other model': 1, 'other static part': 0,
        'not run': 0,
    }
    assert content['each'][0] == {
        'session': '0123456789abcdef', 'request': 1, 'verdict': 'same', 'why': '',
        'action': 'forward', 'parameters': {'speed': 'fast'}, 'answer_now': 'forward fast',
        'partial': False, 'drift': 0.0,
    }
    assert content['largest_drift'] == 0.03


def test_settings_that_differ_are_noted() -> None:
    other = dataclasses.replace(LIMITS, threads=4, context_tokens=8192)
    assert rerun.notes([LIMITS, other], LIMITS) == [
        'threads: 4 when it was recorded, 1 now', 'context: 8192 when it was recorded, 4096 now']
    assert rerun.notes([], LIMITS) == rerun.notes([LIMITS], LIMITS) == []


# --- the command ------------------------------------------------------------------------------


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    rerun.add_parser(parser.add_subparsers())
    return parser.parse_args(['rerun', *words])


@pytest.mark.parametrize('words', [
    ('--limit', '0'), ('--limit', 'x'), ('--tolerance', '-1'), ('--tolerance', 'nan'),
])
def test_odd_arguments_are_refused(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments('x.mcap', *words)
    assert f'{words[1]!r} is no ' in capsys.readouterr().err


def written(path: Path, *records: DecisionRecord, declaration: Declaration | None = None) -> Path:
    writer = RecordWriter(path, declaration)
    for each in records:
        assert writer.put_nowait(each)
    writer.close()
    return path


def test_a_recording_without_a_decision_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / 'x.mcap', a_record(outcome='missed', why='late'))
    with pytest.raises(BagError, match=r'x.mcap: has no decision that could be run again'):
        rerun.run(arguments(str(path)))


def test_no_such_recording_and_no_such_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BagError, match='No such file'):
        rerun.run(arguments(str(tmp_path / 'absent.mcap')))
    path = written(tmp_path / 'x.mcap', a_record())
    with pytest.raises(OperatorError, match=r'no\.gguf'):
        rerun.run(arguments(str(path), '--model', str(tmp_path / 'no.gguf')))


class Closing(Repeater):
    """A repeater with the end of a real one."""

    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def repeater(monkeypatch: pytest.MonkeyPatch) -> Closing:
    """Stands in for the loaded model."""
    from smallm_ros.engine import load

    decider = Closing([decision(1)])

    def loaded(request: object, beats: Any, clock: object) -> Closing:
        for step in range(101):
            beats.loading(step / 100)
        return decider

    monkeypatch.setattr(load, 'load_decider', loaded)
    return decider


def test_the_command_says_how_far_it_is_and_what_came_of_it(
    tmp_path: Path, repeater: Closing, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [a_record(1_000 * SECOND + k * SECOND) for k in range(5)]
    unsure = records[4].model_copy(update={'outcome': 'unsure', 'why': 'confidence'})
    path = written(tmp_path / 'x.mcap', *records[:4], a_record(outcome='missed', why='late'),
                   unsure, declaration=a_declaration())
    assert rerun.run(arguments(str(path))) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == '5 of 5 the same'
    assert len(said.out.splitlines()) == 7
    assert 'loading the model: 100 %' in said.err
    assert 'deciding again: 100 %, 0 not the same' in said.err
    assert repeater.closed

    assert rerun.run(arguments(str(path), '--limit', '2', '--json')) == 0
    content = json.loads(capsys.readouterr().out)
    assert content['decisions'] == 2


def test_one_that_is_not_the_same_is_the_exit_code(
    tmp_path: Path, repeater: Closing, capsys: pytest.CaptureFixture[str]
) -> None:
    repeater.answers = [decision(1), decision(0)]
    path = written(tmp_path / 'x.mcap', a_record(), a_record(), declaration=a_declaration())
    assert rerun.run(arguments(str(path))) == 1
    said = capsys.readouterr().out
    assert "other answer  'forward' then, 'stop' now" in said
    assert said.splitlines()[-1] == '1 of 2 the same; 1 other answer'


def test_a_truncated_recording_is_rerun_as_far_as_it_goes(
    tmp_path: Path, repeater: Closing, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / 'x.mcap', a_record(), a_record(), declaration=a_declaration())
    data = path.read_bytes()
    path.write_bytes(data[:data.rindex(b'"version":2,"policy"') + 40])
    assert rerun.run(arguments(str(path))) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == '1 of 1 the same'
    assert 'truncated or damaged after 1 records' in said.err


# --- the real model ---------------------------------------------------------------------------

EXPLORER = Path(__file__).resolve().parent.parent / 'config' / 'policies' / 'explorer.yaml'
PATIENCE_NS = 60 * SECOND
CHECK_MS = 10
"""Small batches for the static part: those of more than 32 tokens take other kernels."""
KERNELS = 1.0
"""Logits. How far two kernels may be apart on this model: 0.45 was seen."""


class Quiet:
    """Nobody to tell."""

    def begin(self, bound_ns: int) -> None: ...

    def end(self) -> None: ...

    def loading(self, fraction: float) -> None: ...


@pytest.fixture(scope='module')
def real() -> Iterator[Any]:
    """The embedded model, loaded once."""
    pytest.importorskip('llama_cpp')
    from smallm_ros.engine.load import load_decider
    from smallm_ros.engine.options import LoadRequest

    decider = load_decider(LoadRequest(check_ms=CHECK_MS), Quiet(), SteadyClock())
    yield decider
    decider.close()


def driven(decider: Any, path: Path, ticks: int = 10, **rules: Any) -> Path:
    """Record what a pilot decides with the real model, on scans of a seed."""
    policy = load_policy(EXPLORER)
    policy = policy.model_copy(update={'decision': policy.decision.model_copy(update=rules)})
    pilot = Pilot(policy, Identity('0123456789abcdef', 'host', 'boot', 10, 20))
    writer = RecordWriter(path, pilot.declaration)
    clock, real_clock, draw = ManualClock(), SteadyClock(), np.random.default_rng(3)

    def do(things: Sequence[Do]) -> None:
        for thing in things:
            match thing:
                case Declare(declaration):
                    do(pilot.receive(decider.declare(declaration), clock.now_ns()))
                case Ask(question):
                    late = dataclasses.replace(
                        question, deadline_ns=real_clock.now_ns() + PATIENCE_NS)
                    answer = decider.decide(late, real_clock.now_ns(), lambda: False)
                    do(pilot.receive(answer, clock.now_ns()))
                case Record(each):
                    assert writer.put_nowait(each)

    do(pilot.receive(EngineUp(77, 5), clock.now_ns()))
    do(pilot.receive(decider.limits, clock.now_ns()))
    assert writer.put_nowait(decider.limits)
    do(pilot.activate(clock.now_ns()))
    for _ in range(ticks):
        now_ns = clock.advance_ms(policy.decision_period_ns / MS)
        ranges = np.repeat(draw.uniform(0.3, 5.0, 12), 30).astype(np.float32)
        for name, fields in (
            ('scan', Scan(now_ns, 'laser', -math.pi, math.pi / 180, 0.1, 8.0, ranges)),
            ('odom', Odometry(now_ns, 'odom', 0, 0, 0, 0.1, 0)),
        ):
            pilot.observe(Received(name, fields, now_ns, now_ns))
        do(pilot.step(now_ns, now_ns))
    writer.close()
    assert pilot.served == ticks
    return path


def rerun_with(decider: Any, path: Path, records: Sequence[DecisionRecord] | None = None,
               tolerance: float = 0.1, **changes: Any) -> list[Again]:
    """Run a recording again, its records or its declaration changed."""
    (declared,) = read_declarations(path).values()
    if changes:
        decider.forget(declared.space)
    changed = dataclasses.replace(declared, **changes)
    chosen = list(read_records(path, pytest.fail)) if records is None else records
    return list(run_again(chosen, {changed.space: changed}, decider, tolerance))


@pytest.mark.model
@pytest.mark.parametrize('rules', [{}, {'decide': 'best'}])
def test_the_real_model_decides_the_same_again(
    tmp_path: Path, real: Any, rules: dict[str, Any]
) -> None:
    path = driven(real, tmp_path / 'x.mcap', **rules)
    found = rerun_with(real, path)
    assert len(found) == 10
    assert {a.verdict for a in found} == {Verdict.SAME}
    assert len({a.answer for a in found}) > 1, 'one answer to everything would prove nothing'
    # Other cells of KV, another order of sums: see the tolerance of `run_again`.
    assert max(a.drift for a in found if a.drift is not None) < 0.05


@pytest.mark.model
def test_a_history_is_decided_again_too(tmp_path: Path, real: Any) -> None:
    """Its batches may be larger than 32 tokens, once in one layout and once in another."""
    path = driven(real, tmp_path / 'x.mcap', history=2, anytime=True)
    found = rerun_with(real, path, tolerance=KERNELS)
    assert len({len(a.record.ids) for a in found}) > 1
    assert [a.why for a in found if not a.verdict.good] == []


@pytest.mark.model
def test_the_real_model_says_what_is_not_the_same(tmp_path: Path, real: Any) -> None:
    path = driven(real, tmp_path / 'x.mcap')
    records = list(read_records(path, pytest.fail))
    first = records[0]
    other = next(r for r in records if r.action != first.action)
    vocabulary = real.limits.vocabulary

    (found,) = rerun_with(real, path, [first.model_copy(update={'ids': other.ids})])
    assert found.verdict is Verdict.OTHER_ANSWER
    assert found.answer.startswith(other.action)
    (found,) = rerun_with(real, path, [first.model_copy(
        update={'ids': (*first.ids[:-1], vocabulary)})])
    assert found.why == f'token {vocabulary} is none of the {vocabulary} of the vocabulary'
    (found,) = rerun_with(real, path, [first.model_copy(update={'model_sha256': 'cd' * 32})])
    assert found.verdict is Verdict.OTHER_MODEL

    mission = read_declarations(path)[first.space].system
    (found,) = rerun_with(real, path, [first], system=f'{mission}\nMind the cat.')
    assert found.verdict is Verdict.OTHER_STATIC
    assert found.why.startswith('its static part had ')
    (found,) = rerun_with(real, path, [first], max_prompt_tokens=100_000)
    assert found.why.startswith('the model rejects the declaration: ')
    (found,) = rerun_with(real, path, [first], space='another')
    assert found.why == f'the recording has no declaration {first.space!r}'


@pytest.mark.model
def test_the_command_on_the_real_model(
    tmp_path: Path, real: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = driven(real, tmp_path / 'x.mcap', 4)
    assert rerun.run(arguments(str(path), '--limit', '3', '--check-ms', str(CHECK_MS))) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith('3 of 3 the same')
    assert 'when it was recorded' not in said.err
