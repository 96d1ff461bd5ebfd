"""One decision on its way through the tree: what the passes have told so far, and what follows.

Nothing here evaluates anything. The probabilities of each known choice are kept as logarithms, so
that those of an answer are a sum; of a choice that is not known yet it counts what stands above
it, because no answer below can be worth more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from smallm_ros.core.action import ChoicePoint
from smallm_ros.core.exchange import Decide
from smallm_ros.core.tree import ROOT
from smallm_ros.engine.model import Model
from smallm_ros.engine.prior import Scores
from smallm_ros.engine.space import Space

GONE = -1
"""A lane that was given back during the decision."""


@dataclass(slots=True)
class Walk:
    """What is known of one decision."""

    space: Space
    tokens: list[int]
    """Of the whole prompt."""
    shares: dict[int, list[float]] = field(default_factory=dict)
    """For each choice that is known, the logarithms of its children's probabilities."""
    lanes: dict[int, int] = field(default_factory=dict)
    """For each tree node that was evaluated, a sequence that holds the way to it; or GONE."""
    held: dict[int, int] = field(default_factory=dict)
    """How many positions each of those sequences holds."""
    passes_ns: list[int] = field(default_factory=list)
    evaluated: int = 0

    def reached(self) -> int:
        """Return the leaf's node that is decided, or the choice that must be known next."""
        if self.space.declaration.decide is Decide.GREEDY:
            return self.greedy()
        return max(self._outcomes(), key=lambda each: (each[0], -self._order(each[1])))[1]

    def greedy(self) -> int:
        """Return where the likeliest child of each choice leads, as far as it is known."""
        nodes, at = self.space.tree.nodes, ROOT
        while nodes[at].leaf < 0:
            if not nodes[at].is_choice:
                at = nodes[at].children[0]
            elif at in self.shares:
                shares = self.shares[at]
                at = nodes[at].children[shares.index(max(shares))]
            else:
                break
        return at

    def contenders(self) -> tuple[int, ...]:
        """Return where the answer may still lie: one node where the likeliest child decides.

        With `best`, every unknown choice that may be worth more than the best answer known, and
        that one; the likeliest first.
        """
        if self.space.declaration.decide is Decide.GREEDY:
            return (self.greedy(),)
        found = []
        for _, node in sorted(self._outcomes(), reverse=True):
            found.append(node)
            if self.space.tree.nodes[node].leaf >= 0:
                break
        return tuple(found)

    def standing(self, node: int) -> tuple[float, float]:
        """Return the probability of what was reached, and its margin over all else."""
        nodes, way = self.space.tree.nodes, {node, *self.space.tree.path(node)}
        mine, others = -math.inf, -math.inf
        todo = [(0.0, ROOT)]
        while todo:
            log_share, at = todo.pop()
            if log_share <= others and at not in way:
                continue
            while len(nodes[at].children) == 1:
                at = nodes[at].children[0]
            shares = self.shares.get(at)
            if shares is not None:
                # Last in, first out: the likeliest is looked into first, and rules others out.
                each = sorted(
                    (log_share + share, child)
                    for share, child in zip(shares, nodes[at].children, strict=True)
                )
                todo += [pair for pair in each if pair[0] > others or pair[1] in way]
            elif at == node:
                mine = log_share
            else:
                others = max(others, log_share)
        share = min(1.0, math.exp(mine))
        return share, max(-1.0, share - math.exp(others))

    def unevaluated(self, node: int) -> int:
        """Return the first node on the way to `node` that no pass has evaluated."""
        nodes, top = self.space.tree.nodes, node
        while nodes[top].parent != ROOT and nodes[top].parent not in self.lanes:
            top = nodes[top].parent
        return top

    def points(self, model: Model, path: Sequence[int]) -> Iterator[ChoicePoint]:
        """Yield the softmax of each choice that was decided on the way along `path`."""
        nodes = self.space.tree.nodes
        for node in (ROOT, *path[:-1]):
            if nodes[node].is_choice:
                shares = map(math.exp, self.shares[node])
                yield ChoicePoint(
                    prefix=self.space.answer_so_far(model, node),
                    children=tuple(
                        (self.space.text(model, child), share)
                        for child, share in zip(nodes[node].children, shares, strict=True)
                    ),
                )

    def _outcomes(self) -> list[tuple[float, int]]:
        """Return (logarithm of the probability, node) of each leaf and each unknown choice."""
        nodes = self.space.tree.nodes
        out: list[tuple[float, int]] = []
        todo = [(0.0, ROOT)]
        while todo:
            log_share, at = todo.pop()
            while len(nodes[at].children) == 1:
                at = nodes[at].children[0]
            shares = self.shares.get(at)
            if shares is None:
                out.append((log_share, at))
            else:
                todo += [
                    (log_share + share, child)
                    for share, child in zip(shares, nodes[at].children, strict=True)
                ]
        return out

    def _order(self, node: int) -> int:
        """Return the place of a node among equals: that of the first answer below it."""
        nodes = self.space.tree.nodes
        while nodes[node].leaf < 0:
            node = nodes[node].children[0]
        return nodes[node].leaf


def among(logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.intp]) -> Scores:
    """Return the logits of the admissible tokens, of a row as long as the vocabulary."""
    return logits[tokens].astype(np.float64)


def log_shares(scores: list[float]) -> list[float]:
    """Return the logarithms of the softmax of `scores`.

    Of a handful of numbers: after a forward pass, whose weights have emptied the caches, this is a
    fifth of the time that six calls to numpy take. The greatest is taken off first and never added
    again: beside 1e30 the logarithm of a sum is nothing, and each of equals would be certain.
    """
    top = max(scores)
    total = math.log(sum(math.exp(score - top) for score in scores))
    return [score - top - total for score in scores]
