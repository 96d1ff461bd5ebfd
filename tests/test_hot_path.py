"""What the hot path does besides deciding: best, anytime, aborts, guesses, history, memory."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm_ros.core.clock import MS
from smallm_ros.core.exchange import (
    Cancelled,
    Correction,
    Decide,
    Decided,
    Declaration,
    DeclarationRejected,
    Declared,
    Missed,
    MissedWhy,
    Refused,
    RefusedWhy,
)
from smallm_ros.core.passes import Passes
from smallm_ros.engine.decode import HANDOVER_NS
from smallm_ros.engine.history import History
from smallm_ros.engine.kv import FIRST_LANE, LEAST_BATCH
from smallm_ros.engine.templates import conversation
from tests.fakes.decider_bench import ANSWERS, TEMPLATE, Bench, stepwise
from tests.fakes.history_model import HistoryModel

WORDS = st.text('abc ', min_size=1, max_size=6).filter(lambda w: w.strip() == w)
SPACES = st.lists(WORDS, min_size=2, max_size=24, unique=True).map(tuple)
GRID = tuple(f'{a} {b}' for a in ('go', 'left', 'right') for b in ('fast', 'mid', 'slow'))
ACTIONS = (0, 0, 0, 1, 1, 1, 2, 2, 2)
DEPARTURES = (1, 0, 1) * 3
DEEP = tuple(' '.join(each) for each in itertools.product(('go', 'hold'), 'ab', 'cd', 'ef'))


def probabilities(answers: tuple[str, ...], text: str) -> list[float]:
    """Return the probability of each answer, by walking each alone on a fresh model."""
    model = HistoryModel()
    prompt = conversation(TEMPLATE, model, 'drive', (('o', 'left'),))
    start = [*prompt.prefix, *model.tokenize(text), *prompt.suffix]
    paths = [[*model.tokenize(a), prompt.end] for a in answers]
    out = []
    for path in paths:
        share = 1.0
        for taken, token in enumerate(path):
            among = {p[taken] for p in paths if p[:taken] == path[:taken] and len(p) > taken}
            logits = model._logits((*start, *path[:taken]))
            share *= math.exp(logits[token]) / sum(math.exp(logits[t]) for t in among)
        out.append(share)
    return out


# --- best, confidence, margin -----------------------------------------------------------------


@given(SPACES, st.text('xyz', max_size=6), st.sampled_from(Passes), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_best_is_the_most_probable_answer_of_all(
    answers: tuple[str, ...], text: str, passes: Passes, lanes: int
) -> None:
    bench = Bench(n_seq_max=FIRST_LANE + 1 + lanes, passes=passes)
    bench.declare(answers, decide=Decide.BEST)
    shares = probabilities(answers, text)
    decision = bench.decided(text).decision
    assert decision.leaf == max(range(len(answers)), key=lambda i: shares[i])
    assert decision.confidence == pytest.approx(max(shares), rel=1e-5)
    assert decision.margin >= 0


@given(SPACES, st.text('xyz', max_size=6), st.sampled_from(Decide))
@settings(max_examples=100, deadline=None)
def test_confidence_and_margin_of_a_whole_tree_are_exact(
    answers: tuple[str, ...], text: str, decide: Decide
) -> None:
    bench = Bench(passes=Passes.ONE, n_seq_max=256)
    bench.declare(answers, decide=decide)
    shares = probabilities(answers, text)
    decision = bench.decided(text).decision
    others = [share for i, share in enumerate(shares) if i != decision.leaf]
    assert decision.tokens.passes == 1
    assert decision.confidence == pytest.approx(shares[decision.leaf], rel=1e-5)
    assert decision.margin == pytest.approx(shares[decision.leaf] - max(others), abs=1e-6)


@given(SPACES, st.text('xyz', max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_margin_that_is_not_exact_is_not_overstated(answers: tuple[str, ...], text: str) -> None:
    bench = Bench(passes=Passes.LEVELS)
    bench.declare(answers)
    shares = probabilities(answers, text)
    decision = bench.decided(text).decision
    others = [share for i, share in enumerate(shares) if i != decision.leaf]
    assert decision.margin <= shares[decision.leaf] - max(others) + 1e-6


# --- passes and guesses -----------------------------------------------------------------------


def test_a_guess_that_comes_true_spares_the_later_passes() -> None:
    bench = Bench()
    bench.costs(fixed_ms=8)
    bench.declare(DEEP)
    decisions = [bench.decided('scan far').decision for _ in range(10)]
    assert decisions[0].tokens.guessed == 0
    assert decisions[-1].tokens.accepted == decisions[-1].tokens.guessed > 0
    assert decisions[-1].tokens.passes == 1 < decisions[0].tokens.passes
    assert {each.leaf for each in decisions} == {decisions[0].leaf}


def test_a_guess_that_does_not_come_true_is_counted_and_costs_one_stretch() -> None:
    bench = Bench()
    bench.costs(fixed_ms=8)
    bench.declare(DEEP)
    for _ in range(10):
        bench.decided('scan far')
    missed = next(
        decision for turn in range(50)
        if (decision := bench.decided(f'{turn}').decision).tokens.guessed
        and decision.tokens.accepted < decision.tokens.guessed
    )
    assert missed.plan.endswith('+guess')


@given(st.lists(st.text('xy', max_size=3), min_size=2, max_size=12), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_guesses_never_change_a_decision(texts: list[str], lanes: int) -> None:
    bench = Bench(n_seq_max=FIRST_LANE + 1 + lanes)
    bench.costs(fixed_ms=8)
    bench.declare(DEEP)
    guessed = 0
    for text in texts:
        bench.decider._spaces['room'].planner._repeats.extend([True] * 32)
        decision = bench.decided(text).decision
        assert decision.leaf == stepwise(DEEP, (text,))
        guessed += decision.tokens.guessed
    assert guessed > 0, 'no guess was made, so this test showed nothing'


def test_twenty_changed_tokens_evaluate_twenty_the_tail_and_the_tree() -> None:
    bench = Bench(passes=Passes.ONE)
    bench.declare(GRID)
    bench.decided('scan ' + 'a' * 60 + 'b' * 20)
    decision = bench.decided('scan ' + 'a' * 60 + 'c' * 20).decision
    tree = bench.decider._spaces['room'].tree
    tail, branches = 1, len(tree.reach(0, tree.levels)) - 1
    assert decision.tokens.evaluated == 20 + tail + branches
    assert decision.tokens.passes == 1


# --- deadlines inside -------------------------------------------------------------------------


def test_a_pass_is_ended_at_the_deadline_and_the_next_decision_is_a_fresh_engines() -> None:
    bench = Bench()
    bench.declare()
    bench.ms_per_token = 30
    question = bench.question('scan far and wide', ms=40)
    missed = bench.ask(question)
    assert isinstance(missed, Missed)
    assert missed.why is MissedWhy.DEADLINE
    assert bench.alarm.fired == 1
    assert bench.clock.now_ns() == question.deadline_ns, 'not a moment later'
    bench.ms_per_token = 1
    assert bench.decided('scan near').decision.leaf == stepwise(ANSWERS, ('scan near',))


def test_a_machine_that_became_slow_is_believed_though_every_batch_is_aborted() -> None:
    bench = Bench()
    bench.declare()
    bench.ms_per_token = 30
    answers = [bench.ask(bench.question('scan far and wide', ms=40)) for _ in range(12)]
    assert isinstance(answers[0], Missed)
    assert any(isinstance(answer, Refused) for answer in answers[:4])


def test_a_withdrawal_ends_the_batch_in_flight() -> None:
    bench = Bench()
    bench.declare()
    asked = bench.question('scan far')
    withdrawn: list[bool] = []

    def withdraw() -> None:
        withdrawn.append(True)
        bench.decider.interrupt()

    bench.on_batch = withdraw
    answer = bench.decider.decide(asked, bench.clock.now_ns(), lambda: bool(withdrawn))
    assert answer == Cancelled(asked.request)
    assert len(withdrawn) == 1, 'one batch, and that was not finished'
    bench.on_batch = lambda: None
    assert bench.decided('scan near').decision.leaf == stepwise(ANSWERS, ('scan near',))


def test_a_deadline_that_passes_while_the_batch_is_made_is_not_lost() -> None:
    bench = Bench()
    bench.declare()
    rewind = bench.decider._kv.rewind

    def slow(*args: Any) -> None:
        bench.clock.advance_ms(60)
        bench.alarm.look(bench.clock.now_ns())
        rewind(*args)

    bench.decider._kv.rewind = slow
    missed = bench.ask(bench.question('scan far', ms=50))
    assert isinstance(missed, Missed)
    assert bench.alarm.fired == 1


def test_what_was_withdrawn_while_the_batch_is_made_never_runs() -> None:
    bench = Bench()
    bench.declare()
    bench.decided('a')
    batches = len(bench.batches)
    asks = itertools.count()
    answer = bench.decider.decide(
        bench.question('scan far'), bench.clock.now_ns(), lambda: next(asks) >= 1)
    assert isinstance(answer, Cancelled)
    assert len(bench.batches) == batches


def test_an_interrupt_while_nothing_runs_harms_nobody() -> None:
    bench = Bench()
    bench.declare()
    bench.decider.interrupt()
    assert bench.decided('scan near').decision.leaf == stepwise(ANSWERS, ('scan near',))


@given(st.lists(st.tuples(st.text('xyz', max_size=8), st.integers(1, 60)), max_size=30),
       st.sampled_from(Passes), st.sampled_from([1.0, 3.0, 9.0]))
@settings(max_examples=100, deadline=None)
def test_aborts_at_any_moment_leave_a_fresh_engine(
    asked: list[tuple[str, int]], passes: Passes, slowness: float
) -> None:
    bench = Bench(passes=passes)
    bench.declare(GRID)
    for text, ms in asked:
        bench.ms_per_token = slowness
        question = bench.question(text, ms=ms)
        answer = bench.ask(question)
        assert isinstance(answer, (Decided, Missed, Refused))
        assert bench.clock.now_ns() <= question.deadline_ns
        if isinstance(answer, Decided):
            assert answer.decision.leaf == stepwise(GRID, (text,))
    bench.ms_per_token = 1
    bench.settle()
    assert bench.decided('scan near').decision.leaf == stepwise(GRID, ('scan near',))


def test_without_time_for_the_second_pass_the_action_goes_out_with_its_defaults() -> None:
    bench = Bench(passes=Passes.TWO)
    bench.declare(GRID, actions=ACTIONS, departures=DEPARTURES)
    bench.decided('scan')
    for text in ('near', 'far', 'none', 'left', 'right'):
        whole = stepwise(GRID, (text,))
        question = bench.question(text, ms=len(text) + 1 + HANDOVER_NS / MS + 2)
        answer = bench.ask(question)
        assert isinstance(answer, Decided)
        assert answer.partial
        assert ACTIONS[answer.decision.leaf] == ACTIONS[whole], 'the action is the whole one'
        assert DEPARTURES[answer.decision.leaf] == 0
        assert answer.decision.tokens.passes == 1
        assert len(answer.decision.choices) == 1
        assert bench.clock.now_ns() <= question.deadline_ns - HANDOVER_NS


def test_what_was_chosen_already_stays_in_a_partial_answer() -> None:
    names = (*(f'go {a} {b}' for a in 'xy' for b in 'pq'), 'stay')
    bench = Bench(passes=Passes.LEVELS)
    bench.declare(names, actions=(0, 0, 0, 0, 1), departures=(0, 1, 2, 3, 0))
    space = bench.decider._spaces['room']
    below_y = next(n for n, node in enumerate(space.tree.nodes)
                   if space.tree.leaves(n) == (2, 3) and node.parent)
    assert space.least_departure(below_y) == 2
    assert space.least_departure(0) == -1, 'two actions are still possible'


def test_a_policy_without_anytime_has_no_partial_answers() -> None:
    bench = Bench(passes=Passes.TWO)
    bench.declare(GRID)
    bench.decided('scan')
    answer = bench.ask(bench.question('near', ms=12))
    assert isinstance(answer, (Missed, Refused))


def test_a_pass_that_overruns_leaves_a_partial_answer_in_time() -> None:
    bench = Bench(passes=Passes.TWO)
    bench.declare(GRID, actions=ACTIONS, departures=DEPARTURES)
    bench.decided('scan')
    passes = itertools.count()

    def slow_second_pass() -> None:
        bench.ms_per_token = 1 if next(passes) == 0 else 500

    bench.on_batch = slow_second_pass
    question = bench.question('near', ms=100)
    answer = bench.ask(question)
    assert isinstance(answer, Decided)
    assert answer.partial
    assert bench.clock.now_ns() == question.deadline_ns - HANDOVER_NS


def test_best_is_partial_only_when_no_other_action_can_win() -> None:
    names = ('b', *(f'a {p} {q}' for p in 'uvw' for q in 'xyz'))
    actions, departures = (0, *(1,) * 9), (0, 0, 1, 1, 2, 3, 3, 2, 3, 3)
    partial = 0
    for turn in range(300):
        bench = Bench(n_seq_max=FIRST_LANE + 1)
        bench.declare(names, decide=Decide.BEST, actions=actions, departures=departures)
        shares = probabilities(names, f'{turn}')
        best = max(range(len(names)), key=lambda i: shares[i])
        answer = bench.ask(bench.question(f'{turn}', ms=HANDOVER_NS / MS + 5 + turn % 9))
        if isinstance(answer, Decided):
            assert actions[answer.decision.leaf] == actions[best]
            partial += answer.partial
    assert partial > 2, 'there was hardly a partial answer, so this showed little'


def test_actions_that_begin_alike_are_not_begun_without_time_for_them() -> None:
    names = ('turn left a', 'turn left b', 'turn right a', 'turn right b')
    bench = Bench(passes=Passes.LEVELS)
    bench.declare(names, actions=(0, 0, 1, 1), departures=(0, 1, 0, 1))
    assert bench.decider._spaces['room'].action_levels == 1
    alike = ('go ab x', 'go ab y', 'go a', 'go b x', 'go b y')
    bench.declare(alike, space='alike', actions=(0, 0, 1, 2, 2), departures=(0, 1, 0, 0, 1))
    assert bench.decider._spaces['alike'].action_levels == 2
    answer = bench.ask(bench.question('q', ms=HANDOVER_NS / MS + 4, space='alike'))
    assert isinstance(answer, Refused)


# --- what can wait ----------------------------------------------------------------------------


def test_a_declaration_is_evaluated_in_pieces_and_others_are_served_between() -> None:
    bench = Bench(check_ms=20)
    bench.declare()
    decided = []

    def between() -> None:
        text = f'scan {len(decided)}'
        decided.append(bench.decided(text).decision.leaf == stepwise(ANSWERS, (text,)))

    sizes = len(bench.batches)
    told = bench.decider.declare(
        Declaration('big', 'm' * 300, (), ANSWERS, 200, ('scan 1', 'scan 2')), between)
    assert isinstance(told, Declared)
    assert len(decided) >= 15 and all(decided)
    static = [b for b in bench.batches[sizes:] if not b.outputs]
    assert max(len(b.tokens) for b in static) <= 20
    assert bench.ask(bench.question('x', space='big')).decision.leaf in range(len(ANSWERS))


def test_a_space_is_unknown_until_it_is_whole() -> None:
    bench = Bench(check_ms=20)
    seen = []

    def between() -> None:
        seen.append(bench.ask(bench.question('x', space='big')))

    bench.decider.declare(Declaration('big', 'm' * 100, (), ANSWERS, 200, ('a', 'b')), between)
    assert seen
    assert all(isinstance(answer, Refused) for answer in seen)
    assert isinstance(bench.ask(bench.question('x', space='big')), Decided)


# --- history ----------------------------------------------------------------------------------


class Talk:
    """What a conversation with a history must be: every turn in full, on a fresh model."""

    def __init__(self, answers: tuple[str, ...]) -> None:
        self.answers = answers
        self.turns: list[tuple[str, int]] = []

    def decide(self, text: str, turns: int) -> int:
        model = HistoryModel()
        prompt = conversation(TEMPLATE, model, 'drive', (('o', 'left'),))
        tokens = list(prompt.prefix)
        for said, leaf in self.turns[len(self.turns) - turns:]:
            tokens += [*model.tokenize(said), *prompt.suffix,
                       *model.tokenize(self.answers[leaf]), prompt.end, *prompt.between]
        tokens += [*model.tokenize(text), *prompt.suffix]
        paths = [[*model.tokenize(a), prompt.end] for a in self.answers]
        left, taken = dict(enumerate(paths)), 0
        while len(left) > 1:
            logits = model._logits(tuple(tokens))
            best = max({p[taken] for p in left.values()}, key=lambda t: logits[t])
            left = {i: p for i, p in left.items() if p[taken] == best}
            tokens.append(best)
            taken += 1
        (leaf,) = left
        self.turns.append((text, leaf))
        return leaf


@pytest.mark.parametrize('idle_turns', [0, 1, 3, 50])
def test_a_history_is_every_turn_in_full(idle_turns: int) -> None:
    bench = Bench(check_ms=25)
    bench.declare(history=4)
    history = bench.decider._spaces['room'].history
    talk = Talk(ANSWERS)
    for turn in range(60):
        text, turns = f'scan {turn}', history.turns
        decided = bench.decided(text)
        assert decided.decision.leaf == talk.decide(text, turns), turn
        for _ in range(idle_turns):
            bench.decider.idle()
    assert history.turns <= 8
    assert history.rollovers > 5 if idle_turns > 1 else history.forgotten > 0


def test_no_decision_pays_for_a_roll_over() -> None:
    bench = Bench(check_ms=20, n_ctx=16_384)
    bench.declare(history=6)
    history = bench.decider._spaces['room'].history
    after: list[int] = []
    others: list[int] = []
    rolled = 0
    for turn in range(200):
        tokens = bench.decided(f'scan {turn % 10}').decision.tokens
        (after if history.rollovers > rolled else others).append(tokens.evaluated)
        rolled = history.rollovers
        while bench.decider.idle():
            pass
    assert len(after) >= 10
    assert history.forgotten == 0
    assert max(after) <= max(others)


def test_idle_work_comes_in_small_pieces() -> None:
    bench = Bench(check_ms=10, n_ctx=16_384)
    bench.declare(history=8)
    for turn in range(13):
        bench.decided(f'scan {turn}')
    pieces = len(bench.batches)
    while bench.decider.idle():
        pass
    assert len(bench.batches) - pieces > 5
    assert max(len(b.tokens) for b in bench.batches[pieces:]) <= 10


def test_the_turns_of_one_mission_do_not_reach_another() -> None:
    bench = Bench()
    bench.declare(history=3)
    bench.declare(space='other')
    for _ in range(3):
        bench.decided('a')
    answer = bench.ask(bench.question('a', space='other'))
    assert isinstance(answer, Decided)
    assert answer.decision.leaf == stepwise(ANSWERS, ('a',))
    assert bench.decided('a').decision.leaf == stepwise(ANSWERS, ('a',)), 'and is forgotten'


@given(st.lists(st.tuples(st.text('xyz', min_size=1, max_size=8), st.integers(1, 80),
                          st.integers(0, 4)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_kv_is_bounded_whatever_happens(asked: list[tuple[str, int, int]]) -> None:
    bench = Bench(check_ms=10)
    bench.declare(GRID, history=3, actions=ACTIONS, departures=DEPARTURES)
    for text, ms, idle in asked:
        bench.ms_per_token = 1 + ms % 5
        bench.ask(bench.question(text, ms=ms))
        for _ in range(idle):
            bench.decider.idle()
        space = bench.decider._spaces['room']
        turn = 8 + len(space.prompt.suffix) + len('right fast') + 1 + len(space.prompt.between)
        assert bench.model.cells <= len(space.prompt.prefix) + 9 + History.most(3) * turn


def test_a_history_that_overflows_is_forgotten_whole_and_costs_no_more() -> None:
    bench = Bench(n_ctx=16_384)
    told = bench.decider.declare(
        Declaration('room', 'drive', (), ANSWERS, 400, history=1, actions=(0, 0, 1, 1, 2),
                    departures=(0, 1, 0, 1, 0)))
    assert isinstance(told, Declared)
    for turn in range(20):
        text = f'front: {str(turn % 10) * 380}'
        decision = bench.decided(text).decision
        assert decision.tokens.evaluated < 450, turn
    assert bench.decider._spaces['room'].history.forgotten > 3


def test_a_second_mission_leaves_room_for_the_first() -> None:
    bench = Bench(n_ctx=560)
    bench.declare()
    long = 'x' * 180
    told = bench.decider.declare(Declaration('B', 's' * 400, (), ANSWERS, 20))
    assert isinstance(told, Declared)
    answer = bench.ask(bench.question(long))
    assert isinstance(answer, Refused)
    assert answer.why is RefusedWhy.UNKNOWN_SPACE, 'it made way, and its client is told so'


def test_a_declaration_after_questions_does_not_end_the_worker() -> None:
    bench = Bench(n_ctx=1500)
    bench.declare(history=1)
    for _ in range(2):
        bench.decided('x' * 190)
    told = bench.decider.declare(Declaration('B', 's' * 1250, (), ANSWERS, 20))
    assert isinstance(told, Declared)
    bench.model.fail_with = 1
    told = bench.decider.declare(Declaration('C', 's', (), ANSWERS, 20))
    assert isinstance(told, DeclarationRejected)
    assert 'no room' in told.why


def test_idle_work_that_finds_no_room_is_given_up() -> None:
    bench = Bench(n_ctx=16_384)
    bench.declare(history=3)
    for turn in range(6):
        bench.decided(f'scan {turn}')
    bench.model.fail_with = 1
    assert not bench.decider.idle()
    assert bench.decided('a').decision.leaf == stepwise(ANSWERS, ('a',))


@pytest.mark.parametrize('passes', list(Passes))
@pytest.mark.parametrize('lanes', [0, 1, 3, 6])
def test_no_token_is_ever_alone(passes: Passes, lanes: int) -> None:
    bench = Bench(n_seq_max=FIRST_LANE + 1 + lanes, passes=passes)
    bench.declare(GRID)
    sizes = len(bench.batches)
    for turn in range(20):
        bench.decided(f'scan {turn % 3}')
    assert min(len(batch.tokens) for batch in bench.batches[sizes:]) >= LEAST_BATCH


def test_a_question_that_is_too_long_does_not_relax_the_cost_model() -> None:
    bench = Bench()
    bench.declare()
    bench.ms_per_token = 3
    for turn in range(10):
        bench.decided(f'{turn}')
    bound_ns = bench.decider._costs.bound_ns(50)
    for _ in range(16):
        assert isinstance(bench.ask(bench.question('x' * 250)), Refused)
    assert bench.decider._costs.bound_ns(50) == bound_ns


# --- the prior on disk ------------------------------------------------------------------------


def test_a_bias_is_measured_once_and_kept(tmp_path: Path) -> None:
    first, again = Bench(cache=tmp_path), Bench(cache=tmp_path)
    narrow = Bench(cache=tmp_path, n_seq_max=FIRST_LANE + 1)
    for bench in (first, again, narrow):
        bench.declare(GRID, references=('a', 'b'), correction=Correction.REFERENCE)
    measured = len(first.batches) - len(again.batches)
    assert measured == 2, 'one batch a reference'
    assert first.decider.bias('room').keys() == again.decider.bias('room').keys()
    assert first.decided('x').prior == again.decided('x').prior
    assert first.decided('x').prior.startswith('reference:')
    kept = narrow.decider.bias('room')
    assert kept.keys() < first.decider.bias('room').keys(), 'fewer choices are another bias'
    for file in tmp_path.rglob('*.json'):
        file.write_text('{"0": "[1, NaN]"}')
    damaged = Bench(cache=tmp_path)
    damaged.declare(GRID, references=('a', 'b'), correction=Correction.REFERENCE)
    assert damaged.decided('x').prior == first.decided('x').prior


# --- again ------------------------------------------------------------------------------------


def test_the_same_ids_give_the_same_decision_again() -> None:
    bench = Bench()
    bench.declare(GRID, references=('a', 'b'))
    for turn in range(20):
        first = bench.decided(f'scan {turn}')
        again = Bench(passes=Passes.LEVELS)
        again.declare(GRID, references=('a', 'b'))
        second = again.decider.redecide('room', first.ids)
        assert (second.decision.leaf, second.ids) == (first.decision.leaf, first.ids)
        assert second.decision.confidence == pytest.approx(first.decision.confidence)
        assert second.prior == first.prior
    assert bench.decider.prefix('room') == again.decider.prefix('room')
