"""Real models for the tests of decisions: the embedded one and the tiny one of Tekken.

`Stepwise` is what they are held to: the same constraint, token by token, on a model of its own
that is never aborted, never guesses and never has a branch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from smallm_ros.core import prompt, reference
from smallm_ros.core.clock import SECOND
from smallm_ros.core.exchange import Decide, Declaration, Declared, Question, Segment
from smallm_ros.core.passes import Passes
from smallm_ros.core.policy import load_policy
from smallm_ros.core.tree import ROOT, Tree
from smallm_ros.engine import registry
from smallm_ros.engine.alarm import SteadyAlarm
from smallm_ros.engine.decode import TreeDecider
from smallm_ros.engine.load import cost_model
from smallm_ros.engine.model import Batch, LlamaModel, ModelSettings
from smallm_ros.engine.options import LoadRequest
from smallm_ros.engine.templates import conversation, fitting
from smallm_ros.steady import SteadyClock
from tests import tekken_gguf
from tests.fakes.decider_bench import Beats

ROOT_FOLDER = Path(__file__).resolve().parent.parent.parent
TIE = 0.1
"""A difference of logits that the order of a sum can make: ros_notes measured 0.07."""
CLOCK = SteadyClock()


def model(name: str) -> tuple[LlamaModel, str]:
    """Load `tiny` or `embedded`; return it with its chat template."""
    settings = ModelSettings()
    if name == 'tiny':
        path = tekken_gguf.cached()
        loaded = LlamaModel.load(path, name='tiny', sha256='0' * 64, settings=settings)
    else:
        file = registry.resolve(LoadRequest().model)
        loaded = LlamaModel.load(
            file.path, name=file.name, sha256=file.sha256, settings=settings)
    return loaded, fitting(None, loaded)


@contextmanager
def decider(name: str, passes: Passes = Passes.AUTO) -> Iterator[TreeDecider]:
    """Make a decider as a worker has it, with an alarm on the steady clock."""
    loaded, template = model(name)
    costs = cost_model(loaded, LoadRequest(), Beats(), CLOCK)
    made = TreeDecider(
        loaded, template, costs, Beats(), CLOCK, alarm=SteadyAlarm(), passes=passes)
    try:
        yield made
    finally:
        made.close()


@dataclass(frozen=True)
class Case:
    """A policy's declaration and observations drawn by seed, as the segments of questions."""

    declaration: Declaration
    observations: tuple[tuple[Segment, ...], ...]

    @classmethod
    def of(cls, path: str, count: int, seed: int = 7, **fields: object) -> Case:
        policy = load_policy(ROOT_FOLDER / path)
        told = replace(prompt.declaration(policy), decide=Decide.GREEDY, **fields)
        drawn = reference.draw(policy, seed, count)
        return cls(told, tuple(prompt.segments(policy, each) for each in drawn))

    def declare(self, to: TreeDecider) -> None:
        answer = to.declare(self.declaration)
        assert isinstance(answer, Declared), answer

    def question(self, number: int, ms: float = 60_000) -> Question:
        return Question(
            number + 1, self.declaration.space, CLOCK.now_ns() + round(ms * SECOND / 1e3),
            self.observations[number % len(self.observations)],
        )


class Stepwise:
    """Constrained greedy decoding, one token a pass, over a static prefix in KV."""

    def __init__(self, name: str, case: Case) -> None:
        self.model, template = model(name)
        told = case.declaration
        self._prompt = conversation(template, self.model, told.system, told.examples)
        answers = [self.model.tokenize(answer) for answer in told.answers]
        self.tree = Tree.of(answers, self._prompt.end)
        for start in range(0, len(self._prompt.prefix), 256):
            self._evaluate(self._prompt.prefix[start:start + 256], start)

    def decide(
        self, segments: Sequence[Segment], bias: dict[int, np.ndarray]
    ) -> tuple[int, float]:
        """Return the leaf and the least margin, in logits, of the choices on its path."""
        tokens = [t for s in segments for t in self.model.tokenize(s.text)] + self._prompt.suffix
        at = len(self._prompt.prefix)
        node, least = ROOT, float('inf')
        row = self._evaluate(tokens, at)
        at += len(tokens)
        while self.tree.nodes[node].leaf < 0:
            children = self.tree.nodes[node].children
            if len(children) > 1:
                scores = row[[self.tree.nodes[c].token for c in children]].astype(np.float64)
                scores -= bias.get(node, 0.0)
                second, first = np.sort(scores)[-2:]
                least = min(least, float(first - second))
                node = children[int(scores.argmax())]
            else:
                node = children[0]
            if self.tree.nodes[node].choice_below:
                row = self._evaluate([self.tree.nodes[node].token], at)
                at += 1
        self.model.remove(-1, len(self._prompt.prefix), -1)
        return self.tree.nodes[node].leaf, least

    def _evaluate(self, tokens: Sequence[int], start: int) -> np.ndarray:
        if len(tokens) == 1:
            # A twin beside it, because llama.cpp computes one token alone in another way.
            return self.model.evaluate(Batch(
                tokens=[*tokens, *tokens], positions=(start, start), sequences=((0,), (1,)),
                outputs=(0,),
            ))[0]
        return self.model.evaluate(Batch(
            tokens=tokens, positions=range(start, start + len(tokens)),
            sequences=((0, 1),) * len(tokens), outputs=(len(tokens) - 1,),
        ))[0]

    def close(self) -> None:
        self.model.close()
