"""The token trie: canonical paths, prefixes, and what must be evaluated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallm_ros.core.tree import ROOT, Tree, tips

END = 99
ANSWERS = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple), min_size=1, max_size=20,
    unique=True,
)


def path(tree: Tree, node: int) -> list[int]:
    tokens = []
    while node != ROOT:
        tokens.append(tree.nodes[node].token)
        node = tree.nodes[node].parent
    return tokens[::-1]


@given(ANSWERS)
def test_each_path_is_one_whole_answer(answers: list[tuple[int, ...]]) -> None:
    tree = Tree.of(answers, END)
    leaves = {n.leaf: path(tree, i) for i, n in enumerate(tree.nodes) if n.leaf >= 0}
    assert leaves == {i: [*answer, END] for i, answer in enumerate(answers)}


@given(ANSWERS)
def test_what_is_open_decides_everything_and_nothing_more(answers: list[tuple[int, ...]]) -> None:
    tree = Tree.of(answers, END)
    nodes = set(tree.reach(ROOT, tree.levels))
    choices = {i for i, n in enumerate(tree.nodes) if n.is_choice}
    assert choices <= nodes
    for node in nodes:
        assert tree.nodes[node].parent in nodes or node == ROOT
    assert all(tree.nodes[tip].is_choice for tip in tips(tree, sorted(nodes)))
    assert not any(tree.nodes[n].leaf >= 0 for n in nodes)


def test_an_answer_that_is_the_prefix_of_another_is_a_choice_of_the_end() -> None:
    tree = Tree.of([(1,), (1, 2)], END)
    one = tree.nodes[ROOT].children[0]
    assert [tree.nodes[c].token for c in tree.nodes[one].children] == [END, 2]
    assert tree.reach(ROOT, 1) == (ROOT, one)


def test_forced_runs_stop_at_the_choice() -> None:
    tree = Tree.of([(1, 2, 3), (1, 2, 4)], END)
    assert [tree.nodes[n].token for n in tree.reach(ROOT, 1)] == [-1, 1, 2]
    assert tree.choices == 1


def test_the_same_answer_twice_is_refused() -> None:
    with pytest.raises(ValueError, match='answers 0 and 1 have the same tokens'):
        Tree.of([(1,), (1,)], END)


def test_an_answer_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match='answer 1 has no tokens'):
        Tree.of([(1,), ()], END)
