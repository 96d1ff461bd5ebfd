"""One decision of ours beside `Llama.create_chat_completion`, which is what one would write first.

The same GGUF, threads, context, KV type, flash attention, mission, examples and observations,
taken in turns in one process (ours, theirs, ours, theirs). The static prefix is warm for both, and
each keeps the longest common prefix of its last prompt, as it does by default.

What is not equal: theirs answers in JSON, in the shortest form that a schema can hold, and so do
its examples. It generates that token by token, a pass for each and one more for the end; ours
reads the answer off two passes. Theirs also compiles the schema's grammar at each call, because
`response_format` has no place to keep one. Ours corrects the prior, theirs does not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('llama_cpp')

import llama_cpp

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.choice import choice_text
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.exchange import Decided, Declaration, Declared, Question, Segment
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.core.prompt import declaration, segments
from smallm_ros.core.reference import draw
from smallm_ros.engine import registry
from smallm_ros.engine.decode import TreeDecider
from smallm_ros.engine.load import load_decider
from smallm_ros.engine.options import LoadRequest
from smallm_ros.engine.progress import ProgressPage, ProgressWriter
from smallm_ros.steady import SteadyClock

pytestmark = [pytest.mark.model, pytest.mark.slow]

POLICY = Path(__file__).resolve().parent.parent / 'config' / 'policies' / 'explorer.yaml'
SEED, DRAWN = 52, 40
OBSERVATIONS = 15
MOST_PASSES = 2
LEAST_RATIO = 2.0
PATIENCE_NS = 60 * SECOND
COMPACT = (',', ':')


@dataclass(frozen=True, slots=True)
class Shot:
    """One answer: what it said, how long it took, and what it cost."""

    answer: str
    took_ns: int
    passes: int
    prompt_tokens: int
    generated_tokens: int


class Ours:
    """A decider as the worker loads it, with the policy declared."""

    def __init__(self, declared: Declaration, page: ProgressPage) -> None:
        self._clock, self._page = SteadyClock(), page
        writer = ProgressWriter(page, self._clock)
        self.decider: TreeDecider = load_decider(LoadRequest(), writer, self._clock)
        writer.ready()
        self._declared = declared
        assert isinstance(self.decider.declare(declared), Declared)

    def ask(self, text: tuple[Segment, ...]) -> Shot:
        before = self._page.read().count
        began_ns = self._clock.now_ns()
        question = Question(1, self._declared.space, began_ns + PATIENCE_NS, text)
        answer = self.decider.decide(question, began_ns, lambda: False)
        took_ns = self._clock.now_ns() - began_ns
        assert isinstance(answer, Decided)
        assert answer.dropped == ()
        decision = answer.decision
        passes = (self._page.read().count - before) // 2  # each batch is counted when it begins
        assert passes == decision.tokens.passes           # and when it is done
        words = self._declared.answers[decision.leaf]
        return Shot(words, took_ns, passes, decision.tokens.prompt, 0)


class CountingLlama(llama_cpp.Llama):  # type: ignore[misc]
    """The high-level class, which counts its forward passes."""

    passes = 0

    def eval(self, tokens: Sequence[int]) -> None:
        self.passes += 1
        super().eval(tokens)


class Theirs:
    """A chat completion with a JSON schema of the action space."""

    def __init__(self, policy: Policy, declared: Declaration, ours: TreeDecider) -> None:
        self._clock = SteadyClock()
        threads = ours.limits.threads
        self._llama = CountingLlama(
            str(registry.resolve(LoadRequest().model).path), n_ctx=ours.limits.context_tokens,
            n_threads=threads, n_threads_batch=threads, n_gpu_layers=-1, flash_attn=True,
            verbose=False,
        )
        self._format = {'type': 'json_object', 'schema': schema(policy)}
        self._turns = [{'role': 'system', 'content': declared.system}]
        for text, answer in declared.examples:
            said = json.dumps(as_object(policy, answer), separators=COMPACT)
            self._turns += [{'role': 'user', 'content': text},
                            {'role': 'assistant', 'content': said}]

    def ask(self, text: tuple[Segment, ...]) -> Shot:
        before = self._llama.passes
        began_ns = self._clock.now_ns()
        turn = {'role': 'user', 'content': ''.join(s.text for s in text)}
        found: Any = self._llama.create_chat_completion(
            messages=[*self._turns, turn], response_format=self._format, temperature=0.0,
        )
        took_ns = self._clock.now_ns() - began_ns
        said = json.loads(found['choices'][0]['message']['content'])
        used = found['usage']
        return Shot(' '.join(said.values()), took_ns, self._llama.passes - before,
                    used['prompt_tokens'], used['completion_tokens'])

    def close(self) -> None:
        self._llama.close()


def as_object(policy: Policy, answer: str) -> dict[str, str]:
    """Return an answer as theirs gives it: {"action": "left", "amount": "sharp"}."""
    name, *values = answer.split(' ')
    return {'action': name, **dict(zip(policy.actions[name].parameters, values, strict=True))}


def schema(policy: Policy) -> dict[str, Any]:
    """Return the JSON schema that admits the answers of the action space and no other."""
    return {'oneOf': [
        {
            'type': 'object',
            'properties': {
                'action': {'const': name},
                **{p: {'enum': [choice_text(c) for c in parameter.choices]}
                   for p, parameter in action.parameters.items()},
            },
            'required': ['action', *action.parameters],
            'additionalProperties': False,
        }
        for name, action in policy.actions.items()
    ]}


@pytest.fixture
def page() -> Iterator[ProgressPage]:
    page = ProgressPage.create(SteadyClock().now_ns())
    yield page
    page.close()


def test_two_passes_beside_a_chat_completion(
    page: ProgressPage, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = load_policy(POLICY)
    declared = declaration(policy)
    texts = tuple(dict.fromkeys(segments(policy, o) for o in draw(policy, SEED, DRAWN)))
    warm, *asked = texts[:OBSERVATIONS + 1]
    assert len(asked) == OBSERVATIONS
    ours = Ours(declared, page)
    theirs = Theirs(policy, declared, ours.decider)
    shots: list[tuple[Shot, Shot]] = []
    try:
        for text in (warm, *asked):
            shots.append((ours.ask(text), theirs.ask(text)))
    finally:
        theirs.close()
        ours.decider.close()

    del shots[0]  # the warm-up: the static prefix is in both caches after it
    answers = ActionSpace.of(policy).answers
    assert all(shot.answer in answers for pair in shots for shot in pair)
    ratio = median([t for _, t in shots]) / median([o for o, _ in shots])
    with capsys.disabled():
        print(f'\n{ours.decider.limits.name}, {ours.decider.limits.threads} thread(s), '
              f'{len(shots)} observations, load {os.getloadavg()[0]:.1f}')
        print(row('decide', [o for o, _ in shots]))
        print(row('create_chat_completion', [t for _, t in shots]))
        print(f'ratio of the medians {ratio:.1f}')
    assert max(o.passes for o, _ in shots) <= MOST_PASSES
    assert ratio >= LEAST_RATIO


def median(shots: list[Shot]) -> float:
    return float(np.median([s.took_ns for s in shots]))


def row(name: str, shots: list[Shot]) -> str:
    took_ms = np.array([s.took_ns for s in shots]) / MS
    p50, p99 = np.percentile(took_ms, (50, 99))
    return (f'{name:<22}  p50 {p50:.1f} ms, p99 {p99:.1f}, max {took_ms.max():.1f}; at most '
            f'{max(s.passes for s in shots)} passes, {max(s.generated_tokens for s in shots)} '
            f'tokens generated, prompt of {max(s.prompt_tokens for s in shots)}')
