"""The planner: layouts, what they cost, and when a guess or one pass pays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm_ros.core.budget import CostModel
from smallm_ros.core.clock import MS
from smallm_ros.core.passes import Passes, Planner
from smallm_ros.core.tree import ROOT, Tree, tips

END = 99
ANSWERS = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple), min_size=1, max_size=30,
    unique=True,
)
EIGHT_BY_SIX = [(a, 100 + v) for a in range(8) for v in range(6)]
DEEP = [(a, 10 + b, 20 + c, 30 + d) for a in range(2) for b in range(2) for c in range(2)
        for d in range(2)]
CPU = CostModel([(1, 10 * MS), (101, 260 * MS)])
"""2.5 ms a token and hardly anything a batch, as a small model on two cores."""
GPU = CostModel([(1, 20 * MS), (64, 37 * MS), (128, 57 * MS)])
"""An RTX 4090 with 24B, by the figures of docs/performance.md."""


def planner(answers: list[tuple[int, ...]], lanes: int = 200, n_batch: int = 512) -> Planner:
    return Planner(Tree.of(answers, END), lanes, n_batch)


def test_on_a_gpu_the_whole_tree_rides_with_the_prompt() -> None:
    plan = planner(EIGHT_BY_SIX)
    assert plan.choices(60, GPU, Passes.AUTO)[0].levels == (2,)
    assert plan.choices(60, CPU, Passes.AUTO)[0].levels == (1, 1)


def test_sizes_are_the_tokens_of_the_tree_in_each_pass() -> None:
    plan = planner(EIGHT_BY_SIX)
    sizes = {p: plan.choices(60, CPU, p)[0].sizes for p in Passes if p is not Passes.AUTO}
    assert sizes == {Passes.ONE: (8,), Passes.TWO: (0, 2), Passes.LEVELS: (0, 2)}


@given(ANSWERS, st.integers(1, 6), st.integers(8, 64))
@settings(max_examples=200, deadline=None)
def test_no_pass_is_beyond_its_stated_size_or_the_lanes(
    answers: list[tuple[int, ...]], lanes: int, n_batch: int
) -> None:
    tree = Tree.of(answers, END)
    plan = Planner(tree, lanes, n_batch)
    for passes in Passes:
        for layout in plan.choices(5, CPU, passes):
            for leaf in range(len(answers)):
                taken = walk(tree, plan, layout.levels, leaf)
                assert len(taken) <= len(layout.sizes)
                for nodes, size in zip(taken, layout.sizes, strict=False):
                    assert len(nodes) <= size
                    assert len(tips(tree, nodes)) <= max(1, lanes)


def walk(
    tree: Tree, plan: Planner, levels: tuple[int, ...], leaf: int
) -> list[tuple[int, ...]]:
    """Return the nodes of each pass on the way to `leaf`."""
    layout = next(each for each in plan.choices(5, CPU, Passes.AUTO) if each.levels == levels)
    way = [ROOT, *tree.path(tree.ends[leaf])]
    passes = [plan.stage(ROOT, layout.wanted(0))]
    known = {ROOT, *passes[0]}
    decided = 0
    for node in way:
        if node not in known and tree.nodes[node].choice_below:
            passes.append(plan.stage(node, layout.wanted(decided)))
            known |= {*passes[-1]}
        decided += tree.nodes[node].is_choice
    return passes


def test_a_guess_pays_when_answers_repeat_and_the_tree_is_deep() -> None:
    plan = planner(DEEP)
    costs = CostModel([(1, 20 * MS), (400, 1000 * MS)])
    assert not any(each.guess for each in plan.choices(60, costs, Passes.AUTO))
    for _ in range(20):
        plan.decided(5)
    best = plan.choices(60, costs, Passes.AUTO)[0]
    assert best.guess
    assert best.name.endswith('+guess')
    assert set(best.guess) <= set(plan.tree.path(plan.tree.ends[5]))


def test_a_guess_that_never_comes_true_is_not_made() -> None:
    plan = planner(DEEP)
    costs = CostModel([(1, 20 * MS), (400, 1000 * MS)])
    for turn in range(40):
        plan.decided(turn % 16)
    assert plan.repeated == 0.0
    assert not any(each.guess for each in plan.choices(60, costs, Passes.AUTO))


def test_a_rare_repetition_does_not_pay() -> None:
    plan = planner(DEEP)
    flat = CostModel([(1, 20 * MS), (8, 160 * MS)])
    for turn in range(32):
        plan.decided(turn % 16 if turn % 8 else 0)
    assert not plan.choices(60, flat, Passes.AUTO)[0].guess


@pytest.mark.parametrize('passes', list(Passes))
def test_one_answer_is_one_pass(passes: Passes) -> None:
    plan = planner([(1, 2)])
    assert [each.sizes for each in plan.choices(9, CPU, passes)] == [(0,)]


def test_a_deep_tree_has_few_layouts() -> None:
    plan = planner([tuple(int(bit) for bit in f'{n:08b}') for n in range(256)])
    layouts = plan.choices(60, CPU, Passes.AUTO)
    assert {len(each.levels) for each in layouts} == {1, 2, 8}


def test_five_hundred_and_twelve_leaves() -> None:
    plan = planner([(a, 100 + b, 200 + c) for a in range(8) for b in range(8) for c in range(8)])
    one = plan.choices(60, GPU, Passes.ONE)[0]
    assert one.sizes == (72,), 'eight actions and their eight values; a leaf is never evaluated'
    narrow = planner(
        [(a, 100 + b, 200 + c) for a in range(8) for b in range(8) for c in range(8)], lanes=32)
    assert narrow.choices(60, GPU, Passes.ONE)[0].sizes == (8, 2)
