"""Our ways to decide: the tree in the passes that the planner wants, in one, in two, and stepwise.

Each has a context of its own and keeps the longest common prefix of its last prompt. All answer
the same question over the same answers; `Stepwise` is what constrained decoding is elsewhere, a
pass for each token, and the standard that the others must equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from smallm_ros.bench.contexts import NotedModel
from smallm_ros.bench.observations import Case
from smallm_ros.bench.shot import Shot
from smallm_ros.bench.tap import Tap
from smallm_ros.core.action import ChoicePoint
from smallm_ros.core.clock import SECOND, Clock
from smallm_ros.core.errors import OperatorError
from smallm_ros.core.exchange import Decided, Declaration, Declared, Question
from smallm_ros.core.tree import Tree
from smallm_ros.engine.decode import TreeDecider
from smallm_ros.engine.model import Batch
from smallm_ros.engine.prior import Bias
from smallm_ros.engine.templates import conversation

WORKING = 0
PATIENCE_NS = 3600 * SECOND
"""A deadline that no arm can miss: here it is measured, not driven."""
CLOSE = 0.1
"""Logits: closer ones are told apart by how the same tokens were cut into batches alone."""


class Arm(Protocol):
    """One of the ways to decide that are compared."""

    def ask(self, case: Case) -> Shot:
        """Decide on one observation."""
        ...


class Ours:
    """A decider with the policy declared, as an engine's worker has it."""

    def __init__(
        self, decider: TreeDecider, model: NotedModel, declared: Declaration, tap: Tap,
        clock: Clock, *, words: bool = False,
    ) -> None:
        """Take a decider; with `words` it reads the distances in words."""
        self.model = model
        self._decider, self._words = decider, words
        self._declared, self._tap, self._clock = declared, tap, clock
        self._asked = 0
        self._choices: tuple[ChoicePoint, ...] = ()
        end = conversation(decider.limits.template, model, '', ()).end
        self._end = model.piece(end).decode('utf-8', 'replace')
        self.changed = 0
        """New tokens of the prompt, in the last question."""
        model.steps.clear()
        told = decider.declare(declared)
        if not isinstance(told, Declared):
            raise OperatorError(f'the policy cannot be declared: {told.why}')

        batches = (step for step in model.steps if isinstance(step, Batch))
        self.static = tuple(len(batch.tokens) for batch in batches if not batch.outputs)
        """Tokens of each batch in which the static part was evaluated."""

    @property
    def bias(self) -> Bias:
        """What is subtracted at each choice."""
        return self._decider.bias(self._declared.space)

    def ask(self, case: Case) -> Shot:
        """Decide on one observation."""
        self._asked += 1
        self._tap.take()
        self.model.steps.clear()
        began_ns = self._clock.now_ns()
        answer = self._decider.decide(
            Question(self._asked, self._declared.space, began_ns + PATIENCE_NS,
                     case.worded if self._words else case.segments),
            began_ns, lambda: False,
        )
        took_ns = self._clock.now_ns() - began_ns
        if not isinstance(answer, Decided):
            raise OperatorError(f'observation {case.compact!r} was not decided: {answer}')
        if answer.dropped:
            raise OperatorError(f'observation {case.compact!r} is too long for the policy\'s '
                                f'prompt_tokens: {", ".join(answer.dropped)} left the prompt')
        passes = self._tap.take()
        tokens = answer.decision.tokens
        self.changed = tokens.prompt - tokens.reused
        self._choices = answer.decision.choices
        return Shot(
            took_ns=took_ns, answer=self._declared.answers[answer.decision.leaf],
            batches=tuple(p.tokens for p in passes), decode_ns=sum(p.took_ns for p in passes),
            reused=tokens.reused, plan=answer.decision.plan,
        )

    def apart(self, answer: str) -> float:
        """Return by how many logits the last answer was chosen where `answer` parts from it."""
        whole = answer + self._end
        for point in self._choices:
            best = max(share for _, share in point.children)
            # of two tokens that both begin what follows, the longer is the answer's
            _, share = max((len(text), share) for text, share in point.children
                           if whole.startswith(point.prefix + text))
            if share < best:
                return math.log(best) - math.log(share)
        return 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What stepwise decoding saw at one token."""

    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    """Corrected logits, in the order of `tokens`."""


class Stepwise:
    """Constrained greedy decoding, a pass for each token, with the prompt's prefix kept."""

    def __init__(
        self, model: NotedModel, template: str, declared: Declaration, bias: Bias,
        static: Sequence[int], tap: Tap, clock: Clock,
    ) -> None:
        """Take what a decider of ours subtracts, and in which batches it took the static part.

        Both so that only the way of decoding differs: in other batches the same static part gives
        logits up to 0.2 apart (SmolLM2 Q8_0 on AVX-512), which is more than between many answers.
        """
        self._model, self._tap, self._clock = model, tap, clock
        self._declared = declared
        self._prompt = conversation(template, model, declared.system, declared.examples)
        answers = [model.tokenize(answer) for answer in declared.answers]
        self._paths = [(*answer, self._prompt.end) for answer in answers]
        self._held: list[int] = []
        tree = Tree.of(answers, self._prompt.end)
        self._bias = {
            tuple(tree.nodes[n].token for n in tree.path(node)): scores
            for node, scores in bias.items()
        }
        self.choices: list[Choice] = []
        """Of the last answer, one a token; forced ones have one candidate."""
        self._keep(self._prompt.prefix, static)

    def ask(self, case: Case) -> Shot:
        """Decide on one observation."""
        self._tap.take()
        began_ns = self._clock.now_ns()
        tokens = self._tokens([s.text for s in case.segments])
        reused = self._common(tokens)
        logits = self._append(tokens, reused)
        path: tuple[int, ...] = ()
        self.choices = []
        left = list(range(len(self._paths)))
        while True:
            allowed = self._allowed(left, len(path))
            scores = logits[list(allowed)].astype(np.float64) - self._bias.get(path, 0.0)
            self.choices.append(Choice(allowed, tuple(map(float, scores))))
            path = (*path, allowed[int(scores.argmax())])
            left = [i for i in left if self._paths[i][:len(path)] == path]
            if path[-1] == self._prompt.end:
                break
            logits = self._step(path[-1], len(tokens) + len(path) - 1)
        self._model.remove(WORKING, len(tokens), -1)
        took_ns = self._clock.now_ns() - began_ns
        passes = self._tap.take()
        return Shot(
            took_ns=took_ns, answer=self._declared.answers[left[0]],
            batches=tuple(p.tokens for p in passes), decode_ns=sum(p.took_ns for p in passes),
            reused=reused, plan='a token a pass',
        )

    def apart(self, answer: str) -> float:
        """Return by how many logits the last answer was chosen where `answer` parts from it."""
        other = self._paths[self._declared.answers.index(answer)]
        for depth, choice in enumerate(self.choices):
            best = choice.tokens[int(np.argmax(choice.scores))]
            if other[depth] != best:
                return max(choice.scores) - choice.scores[choice.tokens.index(other[depth])]
        return 0.0

    def _allowed(self, left: Sequence[int], depth: int) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self._paths[i][depth] for i in left))

    def _tokens(self, lines: Sequence[str]) -> list[int]:
        tokens = list(self._prompt.prefix)
        for line in lines:
            tokens += self._model.tokenize(line)
        return tokens + list(self._prompt.suffix)

    def _common(self, tokens: Sequence[int]) -> int:
        """Return how many leading tokens KV holds; the last is evaluated for its logits."""
        common = 0
        for held, token in zip(self._held, tokens, strict=False):
            if held != token:
                break
            common += 1
        return min(common, len(tokens) - 1)

    def _append(self, tokens: list[int], reused: int) -> npt.NDArray[np.float32]:
        self._model.remove(WORKING, reused, -1)
        self._held = tokens
        count = len(tokens) - reused
        return self._row(Batch(
            tokens=tokens[reused:], positions=range(reused, len(tokens)),
            sequences=((WORKING,),) * count, outputs=(count - 1,),
        ))

    def _step(self, token: int, position: int) -> npt.NDArray[np.float32]:
        return self._row(Batch((token,), (position,), ((WORKING,),), (0,)))

    def _row(self, batch: Batch) -> npt.NDArray[np.float32]:
        row: npt.NDArray[np.float32] = self._model.evaluate(batch)[0]
        return row

    def _keep(self, tokens: Sequence[int], sizes: Sequence[int]) -> None:
        assert sum(sizes) == len(tokens), (sizes, len(tokens))
        start = 0
        for size in sizes:
            self._model.evaluate(Batch(
                tokens=tokens[start:start + size], positions=range(start, start + size),
                sequences=((WORKING,),) * size, outputs=(),
            ))
            start += size
        self._held = list(tokens)
