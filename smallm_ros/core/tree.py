"""The action space as a trie of tokens: what is forced, what is a choice.

Every complete answer is tokenised as a whole and ended with the template's end token, so that each
path is the canonical sequence and an answer that is the prefix of another is a choice like any
other. Only a node with several children is a choice; its logits are needed, and so the tokens on
the path to it. Whatever is forced is never evaluated for its own sake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROOT = 0


@dataclass(frozen=True, slots=True)
class Node:
    """One token of the trie."""

    token: int
    """-1 at the root."""
    parent: int
    depth: int
    """Tokens from the root; 0 at the root."""
    children: tuple[int, ...]
    """In the order of the leaves, so that ties go to the action declared first."""
    leaf: int
    """Index of the answer that ends here, or -1."""
    choice_below: bool
    """Whether this node or one below it is a choice, so that it must be evaluated."""

    @property
    def is_choice(self) -> bool:
        """Whether the model has something to choose here."""
        return len(self.children) > 1


@dataclass(frozen=True, slots=True)
class Tree:
    """The trie; node 0 is the root, parents stand before their children."""

    nodes: tuple[Node, ...]
    ends: tuple[int, ...]
    """For each answer the node of its end token."""

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]], end: int) -> Tree:
        """Merge the token sequences of all answers, each ended by `end`.

        Raises ValueError when there is no answer, two have the same tokens, or one has none.
        """
        if not answers:
            raise ValueError('there is no answer to choose')
        tokens, parents, depths, leaves = [-1], [-1], [0], [-1]
        children: list[dict[int, int]] = [{}]
        for leaf, answer in enumerate(answers):
            if not answer:
                raise ValueError(f'answer {leaf} has no tokens')
            node = ROOT
            for token in (*answer, end):
                child = children[node].get(token)
                if child is None:
                    child = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                    depths.append(depths[node] + 1)
                    leaves.append(-1)
                    children.append({})
                    children[node][token] = child
                node = child
            if leaves[node] >= 0:
                raise ValueError(f'answers {leaves[node]} and {leaf} have the same tokens')
            leaves[node] = leaf
        below = [False] * len(tokens)
        for node in reversed(range(len(tokens))):
            below[node] = len(children[node]) > 1 or any(below[c] for c in children[node].values())
        rows = zip(tokens, parents, depths, children, leaves, below, strict=True)
        ends = {leaf: node for node, leaf in enumerate(leaves) if leaf >= 0}
        return cls(
            tuple(
                Node(token, parent, depth, tuple(after.values()), leaf, choice_below)
                for token, parent, depth, after, leaf, choice_below in rows
            ),
            tuple(ends[leaf] for leaf in range(len(answers))),
        )

    def reach(self, node: int, levels: int) -> tuple[int, ...]:
        """Return `node` and what must be evaluated below it to know the next `levels` choices.

        Ascending, so that parents come first; empty when there is nothing left to choose. What is
        forced after the last of these choices is not among them, and a leaf never is.
        """
        if not self.nodes[node].choice_below or levels < 1:
            return ()
        out, todo = [], [(node, levels)]
        while todo:
            at, left = todo.pop()
            out.append(at)
            left -= self.nodes[at].is_choice
            if left:
                todo += [(c, left) for c in self.nodes[at].children if self.nodes[c].choice_below]
        return tuple(sorted(out))

    def path(self, node: int) -> tuple[int, ...]:
        """Return the nodes from the root to `node`, without the root and with `node`."""
        out = []
        while node != ROOT:
            out.append(node)
            node = self.nodes[node].parent
        return tuple(reversed(out))

    def leaves(self, node: int) -> tuple[int, ...]:
        """Return the answers that are still possible at `node`, in their order."""
        out, todo = [], [node]
        while todo:
            at = todo.pop()
            if self.nodes[at].leaf >= 0:
                out.append(self.nodes[at].leaf)
            todo += self.nodes[at].children
        return tuple(sorted(out))

    def level(self, node: int) -> int:
        """Return how many choices lie above `node`."""
        return sum(self.nodes[n].is_choice for n in (ROOT, *self.path(self.nodes[node].parent))
                   ) if node != ROOT else 0

    @property
    def levels(self) -> int:
        """Most choices on the way to one answer."""
        most = [0] * len(self.nodes)
        for index, node in enumerate(self.nodes):
            above = most[node.parent] if index else 0
            most[index] = above + node.is_choice
        return max(most)

    @property
    def choices(self) -> int:
        """Number of choice nodes."""
        return sum(node.is_choice for node in self.nodes)


def tips(tree: Tree, nodes: Sequence[int]) -> tuple[int, ...]:
    """Return those of `nodes` that have no child among them: each needs a sequence of its own."""
    parents = {tree.nodes[n].parent for n in nodes}
    return tuple(n for n in nodes if n not in parents)
