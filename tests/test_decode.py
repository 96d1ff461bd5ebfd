"""One decision: equal to stepwise greedy decoding, in two passes, with KV left as it was found."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm_ros.core.clock import MS
from smallm_ros.core.errors import WorkerError
from smallm_ros.core.exchange import (
    Cancelled,
    Decided,
    Declaration,
    DeclarationRejected,
    Declared,
    Missed,
    MissedWhy,
    Refused,
    RefusedWhy,
    Segment,
    Shorter,
)
from smallm_ros.core.passes import Passes
from smallm_ros.engine.decode import LINE_CACHE
from smallm_ros.engine.kv import FIRST_LANE, LEAST_BATCH, MAX_SPACES
from smallm_ros.engine.model import DecodeError
from tests.fakes.decider_bench import ANSWERS, Bench, stepwise
from tests.fakes.history_model import HistoryModel

WORDS = st.text('abc ', min_size=1, max_size=6).filter(lambda w: w.strip() == w)
SPACES = st.lists(WORDS, min_size=2, max_size=24, unique=True).map(tuple)
OBSERVATIONS = st.lists(st.text('xyz 0.5', max_size=12), min_size=1, max_size=4)


@given(SPACES, st.lists(OBSERVATIONS, min_size=1, max_size=3), st.sampled_from(Passes))
@settings(max_examples=300, deadline=None)
def test_it_equals_stepwise_decoding(
    answers: tuple[str, ...], observations: list[list[str]], passes: Passes
) -> None:
    bench = Bench(passes=passes)
    bench.declare(answers)
    for texts in observations:
        decided = bench.decided(*texts)
        assert decided.decision.leaf == stepwise(answers, tuple(texts))
        assert 0 < decided.decision.confidence <= 1
        for choice in decided.decision.choices:
            assert sum(share for _, share in choice.children) == pytest.approx(1)


@given(SPACES, st.lists(OBSERVATIONS, min_size=1, max_size=3), st.sampled_from(Passes),
       st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_a_tree_too_wide_for_the_sequences_takes_more_passes_to_the_same_answer(
    answers: tuple[str, ...], observations: list[list[str]], passes: Passes, lanes: int
) -> None:
    bench = Bench(n_seq_max=FIRST_LANE + 1 + lanes, passes=passes)
    bench.declare(answers)
    for texts in observations:
        assert bench.decided(*texts).decision.leaf == stepwise(answers, tuple(texts))


def test_only_what_changed_is_evaluated() -> None:
    bench = Bench()
    bench.declare()
    first = bench.decided('scan far\n', 'odom 1')
    second = bench.decided('scan far\n', 'odom 2')
    suffix = 1
    assert first.decision.tokens.reused < second.decision.tokens.reused
    prompt_part = second.decision.tokens.prompt - second.decision.tokens.reused
    assert prompt_part == len('2') + suffix
    again = bench.decided('scan far\n', 'odom 2')
    assert again.decision.tokens.prompt - again.decision.tokens.reused == LEAST_BATCH
    assert again.decision.leaf == second.decision.leaf


def test_kv_does_not_grow() -> None:
    bench = Bench()
    bench.declare()
    sizes = set()
    for i in range(200):
        bench.decided(f'scan {i % 10}\n', f'odom {i % 7}')
        sizes.add(bench.model.cells)
    assert len(sizes) == 1


def test_the_static_part_is_evaluated_once() -> None:
    bench = Bench()
    bench.declare()
    batches = len(bench.batches)
    bench.declare()
    assert len(bench.batches) == batches


def test_spaces_take_turns_and_the_least_used_is_forgotten() -> None:
    bench = Bench()
    for i in range(MAX_SPACES + 1):
        bench.declare(space=f'space{i}')
    refused = bench.ask(bench.question('a', space='space0'))
    assert isinstance(refused, Refused)
    assert refused.why is RefusedWhy.UNKNOWN_SPACE
    for _ in range(2):
        for i in range(1, MAX_SPACES + 1):
            answer = bench.ask(bench.question('a', space=f'space{i}'))
            assert isinstance(answer, Decided)
            assert answer.decision.leaf == stepwise(ANSWERS, ('a',))


def test_a_deadline_that_passed_is_refused_before_any_work() -> None:
    bench = Bench()
    bench.declare()
    batches = len(bench.batches)
    refused = bench.ask(bench.question('a', ms=0))
    assert isinstance(refused, Refused)
    assert refused.why is RefusedWhy.TOO_LATE
    assert len(bench.batches) == batches


def test_what_does_not_fit_is_refused_at_once_and_says_by_how_much() -> None:
    bench = Bench()
    bench.declare()
    batches = len(bench.batches)
    question = bench.question('x' * 100, ms=50)
    refused = bench.ask(question)
    assert isinstance(refused, Refused)
    assert refused.why is RefusedWhy.DOES_NOT_FIT
    assert '50 ms are left' in refused.detail
    assert len(bench.batches) == batches


def test_a_long_prompt_loses_its_least_important_segments() -> None:
    bench = Bench()
    bench.declare()
    answer = bench.decided('scan far\n', 'x' * 250)
    assert answer.dropped == ('s1',)
    assert answer.decision.leaf == stepwise(ANSWERS, ('scan far\n', 'left out: s1'))


def test_parts_of_a_reading_leave_before_it_and_the_model_reads_that_they_did() -> None:
    bench = Bench()
    bench.declare()
    question = dataclasses.replace(bench.question('odom 1\n'), segments=(
        Segment('odom', 'odom: ahead, turning\n', 1, (Shorter(2, 'odom: ahead\n'),)),
        Segment('scan', 'scan: free, ' + 'x' * 180, 0, (Shorter(3, 'scan: free'),)),
    ))
    answer = bench.ask(question)
    assert isinstance(answer, Decided)
    assert answer.dropped == ('some of scan',)
    read = ('odom: ahead, turning\n', 'scan: free\n', 'left out: some of scan')
    assert bytes(answer.ids[:-1]) == ''.join(read).encode()
    assert answer.decision.leaf == stepwise(ANSWERS, read)


def test_a_deadline_that_is_near_leaves_parts_out_as_a_token_limit_does() -> None:
    bench = Bench()
    bench.declare()
    answers = []
    for far, ms in (('x', 400), ('y', 120)):
        long = Segment('scan', 'scan: free, ' + far * 150, 0, (Shorter(3, 'scan: free'),))
        answers.append(bench.ask(dataclasses.replace(bench.question(ms=ms), segments=(long,))))
    assert [a.dropped for a in answers if isinstance(a, Decided)] == [(), ('some of scan',)]


def test_a_shorter_text_beyond_the_limit_is_refused_unread_too() -> None:
    bench = Bench()
    bench.declare()
    odd = Segment('scan', 'scan: free', 0, (Shorter(1, 'x' * 5000),))
    refused = bench.ask(dataclasses.replace(bench.question(), segments=(odd,)))
    assert isinstance(refused, Refused)
    assert '5000 characters' in refused.detail


def test_the_lines_whose_tokens_are_kept_are_bounded() -> None:
    bench = Bench()
    bench.declare()
    for n in range(LINE_CACHE + 50):
        bench.decider._line(f'scan {n}')
    assert len(bench.decider._lines) == LINE_CACHE
    assert 'scan 0' not in bench.decider._lines


def test_a_prompt_that_cannot_shrink_is_refused() -> None:
    bench = Bench()
    bench.declare()
    refused = bench.ask(bench.question('x' * 250))
    assert isinstance(refused, Refused)
    assert refused.why is RefusedWhy.PROMPT_TOO_LONG


def test_a_slow_first_pass_is_a_miss_and_the_next_decision_is_right() -> None:
    bench = Bench()
    bench.declare()
    bench.ms_per_token = 30
    missed = bench.ask(bench.question('scan far\n', ms=100))
    assert isinstance(missed, Missed)
    assert missed.why is MissedWhy.DEADLINE
    bench.ms_per_token = 1
    assert bench.decided('scan near').decision.leaf == stepwise(ANSWERS, ('scan near',))


def test_one_slow_stretch_does_not_refuse_for_ever() -> None:
    bench = Bench()
    bench.declare()
    bench.ms_per_token = 30
    bench.ask(bench.question('a', ms=100))
    bench.ms_per_token = 1
    answers = [bench.ask(bench.question(f'{i}', ms=100)) for i in range(20)]
    assert isinstance(answers[0], Refused)
    assert isinstance(answers[-1], Decided)


def test_a_withdrawn_question_is_cancelled_between_the_passes() -> None:
    bench = Bench()
    bench.declare(('go a', 'go b', 'stay a', 'stay b'))
    assert bench.ask(bench.question('a'), cancelled=True) == Cancelled(bench.requests)
    assert bench.decided('b').decision.leaf == stepwise(
        ('go a', 'go b', 'stay a', 'stay b'), ('b',)
    )


def test_logits_that_are_no_numbers_are_a_miss() -> None:
    bench = Bench()
    bench.declare()
    bench.model.poison = True
    missed = bench.ask(bench.question('a'))
    assert isinstance(missed, Missed)
    assert missed.why is MissedWhy.NOT_FINITE
    bench.model.poison = False
    assert bench.decided('b').decision.leaf == stepwise(ANSWERS, ('b',))


def logits_of(*cycle: float) -> Callable[[tuple[int, ...]], npt.NDArray[np.float32]]:
    """Return logits that repeat these values over the vocabulary, whatever was read."""
    return lambda history: np.resize(np.array(cycle, np.float32), HistoryModel.n_vocab)


@pytest.mark.parametrize('cycle', [
    (np.nan,), (np.inf,), (-np.inf,), (np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0),
])
def test_a_single_logit_that_is_no_number_is_a_miss_too(
    cycle: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.declare(('b', 'c'))
    monkeypatch.setattr(bench.model, '_logits', logits_of(*cycle))
    missed = bench.ask(bench.question('a'))
    assert isinstance(missed, Missed)
    assert missed.why is MissedWhy.NOT_FINITE
    monkeypatch.undo()
    assert bench.decided('b').decision.leaf == stepwise(('b', 'c'), ('b',))


@pytest.mark.parametrize('value', [0.0, 1e30, -1e30])
def test_logits_that_are_all_the_same_say_that_nothing_is_known(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.declare(('left', 'right', 'stop', 'go'))
    monkeypatch.setattr(bench.model, '_logits', logits_of(value))
    decision = bench.decided('a').decision
    # As sure as a die with four sides: far below any min_confidence, and no margin at all.
    assert decision.confidence == pytest.approx(0.25)
    assert decision.margin == pytest.approx(0.0)


@pytest.mark.parametrize(('code', 'why'), [
    (1, MissedWhy.DECODE_FAILED), (2, MissedWhy.DEADLINE),
])
def test_a_batch_that_failed_is_a_miss_and_leaves_kv_consistent(
    code: int, why: MissedWhy
) -> None:
    bench = Bench()
    bench.declare()
    bench.decided('a')
    bench.model.fail_with = code
    missed = bench.ask(bench.question('b'))
    assert isinstance(missed, Missed)
    assert missed.why is why
    assert bench.decided('c').decision.leaf == stepwise(ANSWERS, ('c',))


@pytest.mark.parametrize('code', [-1, -2, -3])
def test_a_broken_computation_ends_the_worker(code: int) -> None:
    bench = Bench()
    bench.declare()
    bench.model.fail_with = code
    with pytest.raises(DecodeError):
        bench.ask(bench.question('b'))


def answers_at(bench: Bench, factors: Iterable[float], ms: float) -> Counter[str]:
    """Ask once in each `ms`, each time on a machine so many times slower; count the answers.

    None may come after its deadline, whatever it says.
    """
    counted: Counter[str] = Counter()
    for number, factor in enumerate(factors):
        bench.ms_per_token = factor
        question = bench.question(f'scan {number} m ahead, wall {number * 7 % 13}\n', ms=ms)
        answer = bench.ask(question)
        if isinstance(answer, Decided):
            assert answer.decision.timings.finished_ns <= question.deadline_ns
        assert bench.clock.now_ns() <= question.deadline_ns, 'the answer itself came late'
        counted[type(answer).__name__] += 1
        bench.clock.advance_ms((question.deadline_ns - bench.clock.now_ns()) / MS)
    return counted


def healthy() -> tuple[Bench, float]:
    """Return a bench, and 1.6 times what a decision takes on it in milliseconds."""
    bench = Bench()
    bench.declare()
    took = bench.decided('scan 0 m ahead, wall 0\n').decision.timings
    ms = 1.6 * (took.finished_ns - took.started_ns) / MS
    assert answers_at(bench, [1.0] * 20, ms) == {'Decided': 20}
    return bench, ms


def test_a_chip_that_throttles_to_a_third_refuses_more_and_more_and_is_never_late() -> None:
    bench, ms = healthy()
    ramp = [1.0 / (1.0 - 0.7 * step / 99) for step in range(100)]
    parts = [answers_at(bench, ramp[begin:begin + 25], ms) for begin in (0, 25, 50, 75)]
    assert [part['Decided'] for part in parts] == sorted(
        (part['Decided'] for part in parts), reverse=True
    )
    assert parts[0]['Decided'] > 12 and parts[-1]['Decided'] == 0
    assert sum(part['Refused'] for part in parts) > sum(part['Missed'] for part in parts)
    # It cools down, and drives again within a dozen questions.
    assert answers_at(bench, [1.0] * 24, ms)['Decided'] >= 12


@pytest.mark.parametrize(('factor', 'decides'), [(1.5, True), (3.0, False), (10.0, False)])
def test_tokens_that_take_longer_are_refused_rather_than_late(
    factor: float, decides: bool
) -> None:
    bench, ms = healthy()
    counted = answers_at(bench, [factor] * 60, ms)
    assert (counted['Decided'] > 0) == decides
    assert counted['Refused'] > counted['Missed'] > 0
    assert answers_at(bench, [1.0] * 24, ms)['Decided'] >= 12


def test_each_batch_is_announced_and_ended() -> None:
    bench = Bench()
    bench.declare()
    bench.decided('a')
    assert bench.beats.began == bench.beats.ended == len(bench.batches)


def test_a_static_part_beyond_the_context_is_rejected_with_the_numbers() -> None:
    bench = Bench()
    told = bench.decider.declare(Declaration('big', 'x' * 5000, (), ANSWERS, 200))
    assert isinstance(told, DeclarationRejected)
    assert '4096' in told.why


def test_two_answers_with_the_same_tokens_are_rejected() -> None:
    bench = Bench()
    told = bench.decider.declare(Declaration('twice', 'x', (), ('go', 'go'), 200))
    assert isinstance(told, DeclarationRejected)
    assert 'answers 0 and 1' in told.why


def test_forgetting_a_space_frees_its_kv() -> None:
    bench = Bench()
    before = bench.model.cells
    bench.declare()
    bench.decided('a')
    bench.decider.forget('room')
    assert bench.model.cells == before


def test_the_limits_are_those_of_the_model() -> None:
    limits = Bench().decider.limits
    assert dataclasses.asdict(limits)['sha256'] == HistoryModel.sha256
    assert limits.cost_per_token_ns == pytest.approx(MS, rel=0.01)


def test_a_space_makes_room_by_forgetting_who_was_there_longest() -> None:
    bench = Bench()
    for i in range(6):
        told = bench.decider.declare(Declaration(f's{i}', 'x' * 1000, (), ANSWERS, 200))
        assert isinstance(told, Declared)
    answer = bench.ask(bench.question('a', space='s5'))
    assert isinstance(answer, Decided)
    refused = bench.ask(bench.question('a', space='s0'))
    assert isinstance(refused, Refused)
    assert refused.why is RefusedWhy.UNKNOWN_SPACE


def test_one_answer_is_no_choice_and_no_mistake() -> None:
    bench = Bench()
    bench.declare(('stop',))
    assert bench.decided('a').decision.confidence == 1.0


def test_references_that_are_no_numbers_end_the_worker_and_leave_no_space() -> None:
    bench = Bench()
    bench.model.poison = True
    with pytest.raises(WorkerError, match='not finite'):
        bench.decider.declare(Declaration('sick', 'x', (), ANSWERS, 200, ('scan 1',)))
    bench.model.poison = False
    assert bench.model.cells == 0
    assert isinstance(bench.ask(bench.question('a', space='sick')), Refused)


def test_a_tree_that_fills_the_batch_takes_more_passes() -> None:
    bench = Bench()
    names = tuple(f'{a}{"x" * 30}{b}' for a in 'abcdefghij' for b in '12')
    bench.declare(names)
    for turn in range(20):
        decided = bench.decided(f'scan {turn}')
        assert decided.decision.leaf == stepwise(names, (f'scan {turn}',))
    assert max(len(batch.tokens) for batch in bench.batches) <= bench.model.n_batch


def test_a_prompt_that_fills_the_batch_is_rejected_before_it_is_tried() -> None:
    bench = Bench()
    told = bench.decider.declare(Declaration('long', 'x', (), ANSWERS, 500, ('scan 1',)))
    assert isinstance(told, DeclarationRejected)
    assert '512' in told.why


def test_a_segment_beyond_its_limit_is_refused_unread() -> None:
    bench = Bench()
    bench.declare()
    refused = bench.ask(bench.question('x' * 5000))
    assert isinstance(refused, Refused)
    assert refused.why is RefusedWhy.PROMPT_TOO_LONG
    assert '5000 characters' in refused.detail
