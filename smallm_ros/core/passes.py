"""How a decision's tree is spread over forward passes, and which way costs least here.

A layout says how many levels of choice each pass decides: `2` is the whole tree beside the prompt
in one pass, `1+1` the action first and its parameters second. More levels cost tokens, fewer cost
passes; on a GPU, where a batch of 70 costs what one of 60 does, one pass nearly always wins, on a
CPU often two. With a guess the path of the previous answer rides along in the first pass: where
the model chooses it again, the later passes are spared. Every layout gives the same decision.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from smallm_ros.core.budget import CostModel
from smallm_ros.core.tree import ROOT, Tree, tips

MOST_COMPOSED = 4
"""Up to so many levels every layout is tried; beyond, those of one, two or single-level passes."""
REMEMBERED = 32
"""Decisions over which it is counted how often the answer was the one before."""


class Passes(str, enum.Enum):
    """Who chooses the layout; the forced ones are for measurements."""

    AUTO = 'auto'
    ONE = 'one'
    TWO = 'two'
    LEVELS = 'levels'
    """One level a pass: stepwise decoding without its forced tokens."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How many levels of choice each pass decides, and what that costs in tokens at the most."""

    levels: tuple[int, ...]
    sizes: tuple[int, ...]
    """Tree tokens of each pass, the most over all paths; the first rides with the prompt."""
    guess: tuple[int, ...] = ()
    """Nodes of the previous answer's path that ride along in the first pass besides."""

    @property
    def name(self) -> str:
        """How records call it."""
        return '+'.join(map(str, self.levels)) + ('+guess' if self.guess else '')

    def wanted(self, decided: int) -> int:
        """Return how many levels the next pass is to decide, after so many are decided."""
        bound = 0
        for levels in self.levels:
            bound += levels
            if bound > decided:
                return bound - decided
        return 1


class Planner:
    """The layouts of one tree, and the memory of how often an answer repeats itself."""

    def __init__(self, tree: Tree, lanes: int, n_batch: int) -> None:
        """Take the sequences that branches may use and the tokens that one pass may have."""
        self.tree = tree
        self._lanes = lanes
        self._n_batch = n_batch
        self._stages: dict[tuple[int, int], tuple[int, ...]] = {}
        self._repeats: deque[bool] = deque(maxlen=REMEMBERED)
        self._last: int | None = None
        levels = max(1, tree.levels)
        self._layouts = {
            shape: Layout(shape, self._sizes(shape)) for shape in _compositions(levels)
        }
        self._forced = {
            Passes.ONE: (levels,),
            Passes.TWO: (1, levels - 1) if levels > 1 else (1,),
            Passes.LEVELS: (1,) * levels,
        }

    def stage(self, top: int, levels: int) -> tuple[int, ...]:
        """Return what one pass evaluates to decide up to `levels` choices from `top` on.

        Fewer levels when the branches are more than the sequences, or the tokens than a batch;
        one level is a single path and always fits. Without the root: its logits are the prompt's.
        """
        known = self._stages.get((top, levels))
        if known is None:
            known = self._clipped(top, levels)
            self._stages[top, levels] = known
        return known

    def choices(self, changed: int, costs: CostModel, passes: Passes) -> list[Layout]:
        """Return the layouts for `changed` new prompt tokens, the least expected cost first."""
        if passes is not Passes.AUTO:
            return [self._layouts[self._forced[passes]]]
        priced: list[tuple[int, int, Layout]] = []
        for layout in self._layouts.values():
            rest = sum(costs.median_ns(size) for size in layout.sizes[1:] if size)
            first = changed + layout.sizes[0]
            priced.append((costs.median_ns(first) + rest, len(priced), layout))
            guess = self._guess(layout) if rest and self.repeated else ()
            if guess:
                cost = costs.median_ns(first + len(guess)) + (1.0 - self.repeated) * rest
                guessed = Layout(layout.levels, layout.sizes, guess)
                priced.append((round(cost), len(priced), guessed))
        return [layout for _, _, layout in sorted(priced, key=lambda p: p[:2])]

    def decided(self, leaf: int) -> None:
        """Take in what was answered: the next guess."""
        if self._last is not None:
            self._repeats.append(leaf == self._last)
        self._last = leaf

    @property
    def repeated(self) -> float:
        """Share of the last decisions whose answer was the one before; 0 when there are none."""
        return sum(self._repeats) / len(self._repeats) if self._repeats else 0.0

    def _guess(self, layout: Layout) -> tuple[int, ...]:
        """Return what of the last answer's path the first pass of `layout` would not evaluate."""
        if self._last is None:
            return ()
        first = set(self.stage(ROOT, layout.levels[0]))
        path = self.tree.path(self.tree.ends[self._last])
        guess = tuple(n for n in path if self.tree.nodes[n].choice_below and n not in first)
        together = sorted((*first, *guess))
        return guess if len(tips(self.tree, together)) <= self._lanes else ()

    def _clipped(self, top: int, levels: int) -> tuple[int, ...]:
        while True:
            nodes = tuple(n for n in self.tree.reach(top, levels) if n != ROOT)
            fits = len(tips(self.tree, nodes)) <= self._lanes and len(nodes) <= self._n_batch // 2
            if levels == 1 or fits:
                return nodes
            levels -= 1

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the most tokens of each pass over all the ways through the tree."""
        sizes: list[int] = []
        todo = [(ROOT, 0, 0)]
        layout = Layout(shape, ())
        while todo:
            top, decided, turn = todo.pop()
            nodes = self.stage(top, layout.wanted(decided))
            if len(sizes) <= turn:
                sizes.append(0)
            # A lone token is submitted twice: see LEAST_BATCH in engine/kv.
            sizes[turn] = max(sizes[turn], len(nodes), 2 if turn else 0)
            known = {*nodes, *((ROOT,) if top == ROOT else ())}
            for node in known:
                above = sum(self.tree.nodes[n].is_choice for n in (ROOT, *self.tree.path(node)))
                todo += [
                    (child, above, turn + 1) for child in self.tree.nodes[node].children
                    if child not in known and self.tree.nodes[child].choice_below
                ]
        return tuple(sizes)


def _compositions(levels: int) -> Sequence[tuple[int, ...]]:
    """Return the ways to spread so many levels over passes, fewest passes first."""
    if levels > MOST_COMPOSED:
        two = [(first, levels - first) for first in range(1, levels)]
        return [(levels,), *two, (1,) * levels]
    found: list[tuple[int, ...]] = []

    def extend(shape: tuple[int, ...], left: int) -> None:
        if not left:
            found.append(shape)
        for first in range(1, left + 1):
            extend((*shape, first), left - first)

    extend((), levels)
    return sorted(found, key=lambda shape: (len(shape), shape))
