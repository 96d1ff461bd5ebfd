"""A declared space: its tree, its prompt, and what the model was found to favour in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from smallm_ros.core.exchange import Declaration
from smallm_ros.core.passes import Planner
from smallm_ros.core.tree import Tree
from smallm_ros.engine.history import History
from smallm_ros.engine.model import Model
from smallm_ros.engine.prior import Bias
from smallm_ros.engine.templates import Rendered


@dataclass(slots=True)
class Space:
    """What the engine keeps of one declaration."""

    declaration: Declaration
    tree: Tree
    prompt: Rendered
    pinned: int
    """The sequence that holds the prefix."""
    tail: int
    """Most KV cells that a decision needs besides the prefix, history included."""
    planner: Planner
    history: History
    bias: Bias = field(default_factory=dict)
    """What is subtracted from the logits of each choice's children."""
    prior: str = 'none'
    """`correction:digest` of the bias, for the record."""
    children: dict[int, npt.NDArray[np.intp]] = field(init=False)
    """For each choice node, its children's tokens: where their logits stand in a row."""
    action_levels: int = field(init=False)
    """Choices after which the action is certain, whatever was chosen: what `anytime` waits for."""
    _texts: dict[int, str] = field(default_factory=dict)
    _prefixes: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look up once what every decision needs."""
        nodes = self.tree.nodes
        self.children = {
            index: np.array([nodes[child].token for child in node.children], np.intp)
            for index, node in enumerate(nodes) if node.is_choice
        }
        self.action_levels = max(
            (self.tree.level(index) + 1 for index in self.children
             if self.declaration.actions and self.least_departure(index) < 0),
            default=0,
        )

    def least_departure(self, *nodes: int) -> int:
        """Return the answer below these nodes with the most default parameters, -1 for none.

        There is none while answers of different actions are possible, or without `anytime`.
        """
        actions, departures = self.declaration.actions, self.declaration.departures
        leaves = sorted(leaf for node in nodes for leaf in self.tree.leaves(node))
        if not actions or len({actions[leaf] for leaf in leaves}) > 1:
            return -1
        return min(leaves, key=lambda leaf: departures[leaf] if departures else 0)

    def text(self, model: Model, node: int) -> str:
        """Return what the token of a node adds to the answer."""
        known = self._texts.get(node)
        if known is None:
            known = model.piece(self.tree.nodes[node].token).decode('utf-8', 'replace')
            self._texts[node] = known
        return known

    def answer_so_far(self, model: Model, node: int) -> str:
        """Return the answer's text up to and with a node."""
        known = self._prefixes.get(node)
        if known is None:
            pieces = [model.piece(self.tree.nodes[n].token) for n in self.tree.path(node)]
            known = b''.join(pieces).decode('utf-8', 'replace')
            self._prefixes[node] = known
        return known
