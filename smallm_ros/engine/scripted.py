"""A decider without a model: it answers from a script, with stated delays and stated misbehaviour.

For the tests of everything that talks to an engine, and for replay in virtual time. It keeps the
contract of `decode.Decider`; only the lines of a script that say so break it. Same script, same
questions and same clock: same answers. A token is a word here.
"""

from __future__ import annotations

import enum
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from smallm_ros.core.action import ChoicePoint, Decision, Timings, TokenCounts
from smallm_ros.core.clock import MS, Clock
from smallm_ros.core.errors import WorkerError
from smallm_ros.core.exchange import (
    Answer,
    Cancelled,
    Decided,
    Declaration,
    DeclarationRejected,
    Declared,
    FreeText,
    Missed,
    MissedWhy,
    ModelLimits,
    Question,
    Refused,
    RefusedWhy,
    Said,
)
from smallm_ros.core.prompt import leaving, without
from smallm_ros.engine.progress import ProgressWriter

MAX_SPACES = 8
PASSES = 2
LOOK_NS = 10 * MS
"""How often a pass looks whether it was interrupted."""
LIMITS = ModelLimits(
    name='scripted', sha256='0' * 64, template='none', context_tokens=4096, vocabulary=1,
    threads=1, gpu_layers=0, cost_fixed_ns=MS, cost_per_token_ns=0,
)


class Act(str, enum.Enum):
    """What a line of the script does when its turn comes."""

    DECIDE = 'decide'
    STALL = 'stall'
    """Begin a batch and never come back from it."""
    NOT_FINITE = 'not_finite'
    """Answer with a confidence that is no number."""
    OTHER_REQUEST = 'other_request'
    """Answer a question that nobody asked."""
    REFUSE = 'refuse'
    """Refuse the question."""
    FAIL = 'fail'
    """Raise WorkerError, as llama_decode's negative codes do."""
    ABORT = 'abort'
    """End the process by SIGABRT in the middle of a batch, as a GGML assert does."""
    NO_MEMORY = 'no_memory'
    """Raise MemoryError, as an allocation that failed does."""


@dataclass(frozen=True, slots=True)
class Line:
    """One answer of a script."""

    act: Act = Act.DECIDE
    leaf: int = 0
    """Index of the answer; taken modulo the size of the space that is asked about."""
    delay_ns: int = MS
    """How long all passes take together."""
    share: float = 0.75
    """Probability of the chosen child at each choice; its siblings share the rest."""
    partial: bool = False
    """Answer after the first pass with the action's default parameters, if the space allows it."""
    text: str = ''
    """Said after the decision where the space asks for text; each word takes half the delay."""


@dataclass(frozen=True, slots=True)
class _Spoken:
    question: Question
    line: Line
    rules: FreeText


@dataclass(frozen=True, slots=True)
class _Space:
    declaration: Declaration
    words: tuple[tuple[str, ...], ...]

    def path(self, leaf: int, share: float) -> tuple[ChoicePoint, ...]:
        """Return the choices on the way to `leaf`: the words that follow each shared beginning."""
        points = []
        chosen = self.words[leaf]
        for depth in range(len(chosen) + 1):
            # An answer that ends where others go on has '' as its last word.
            following = list(dict.fromkeys(
                (*words, '')[depth] for words in self.words if words[:depth] == chosen[:depth]
            ))
            if len(following) > 1:
                word = (*chosen, '')[depth]
                rest = (1.0 - share) / (len(following) - 1)
                points.append(ChoicePoint(
                    ' '.join(chosen[:depth]),
                    tuple((w, share if w == word else rest) for w in following),
                ))
        return tuple(points)

    def partial(self, leaf: int, share: float) -> tuple[int, tuple[ChoicePoint, ...]]:
        """Return the leaf with default parameters of the same action, and the choices up to it."""
        actions, departures = self.declaration.actions, self.declaration.departures
        same = [i for i, action in enumerate(actions) if action == actions[leaf]]
        chosen = min(same, key=lambda i: departures[i] if departures else 0)
        common = min((_common(self.words[leaf], self.words[i]) for i in same if i != leaf),
                     default=len(self.words[leaf]) + 1)
        points = self.path(leaf, share)
        return chosen, tuple(p for p in points if len(p.prefix.split()) < common)

    @property
    def choice_nodes(self) -> int:
        """Number of beginnings after which more than one word may follow."""
        following: dict[tuple[str, ...], set[str]] = {}
        for words in self.words:
            for depth in range(len(words) + 1):
                following.setdefault(words[:depth], set()).add((*words, '')[depth])
        return sum(len(words) > 1 for words in following.values())


class ScriptedDecider:
    """Takes the lines of a script in turn, and from the beginning again after the last.

    `wait` is called with an absolute steady time and returns when it has come: `sleep_until` in
    real time, a manual clock's advance in virtual time. `declare_passes` are the batches of a
    declaration, each as long as the first line's pass.
    """

    def __init__(
        self, script: Sequence[Line], clock: Clock, wait: Callable[[int], None],
        beats: ProgressWriter, limits: ModelLimits = LIMITS, *, declare_passes: int = 0,
    ) -> None:
        if not script:
            raise ValueError('a script has at least one line')
        self._script = tuple(script)
        self._clock = clock
        self._wait = wait
        self._beats = beats
        self._limits = limits
        self._declare_passes = declare_passes
        self._turn = 0
        self._interrupted = False
        self._spoken: _Spoken | None = None
        self._spaces: OrderedDict[str, _Space] = OrderedDict()

    @property
    def limits(self) -> ModelLimits:
        """What the model would be able to do."""
        return self._limits

    def declare(
        self, declaration: Declaration, between: Callable[[], None] = lambda: None
    ) -> Declared | DeclarationRejected:
        """Keep a static part; the least recently used goes when there are too many."""
        space = _Space(declaration, tuple(tuple(a.split()) for a in declaration.answers))
        if not declaration.answers or len(set(space.words)) != len(space.words):
            return DeclarationRejected(
                declaration.space, f'answers must be there and differ: {declaration.answers}'[:200]
            )
        if declaration.space not in self._spaces:
            for _ in range(self._declare_passes):
                self._pass(Line(delay_ns=self._script[0].delay_ns), self._clock.now_ns())
                between()
        self._spaces[declaration.space] = space
        self._spaces.move_to_end(declaration.space)
        if len(self._spaces) > MAX_SPACES:
            self._spaces.popitem(last=False)
        turns = ' '.join((declaration.system, *(t for turn in declaration.examples for t in turn)))
        return Declared(declaration.space, len(turns.split()), len(declaration.answers),
                        space.choice_nodes)

    def decide(
        self, question: Question, received_ns: int, cancelled: Callable[[], bool]
    ) -> Answer:
        """Answer as the next line of the script says."""
        started_ns = self._clock.now_ns()
        self._spoken = None
        space = self._spaces.get(question.space)
        if space is None:
            return Refused(question.request, RefusedWhy.UNKNOWN_SPACE,
                           f'space {question.space!r} was not declared to this worker')
        if started_ns >= question.deadline_ns:
            return Refused(question.request, RefusedWhy.TOO_LATE,
                           'the deadline passed before work began')
        self._spaces.move_to_end(question.space)
        levels = iter(leaving(question.segments))
        lines = tuple(s.text for s in question.segments)
        dropped: tuple[str, ...] = ()
        limit = space.declaration.max_prompt_tokens
        while (size := sum(len(line.split()) for line in lines)) > limit:
            level = next(levels, None)
            if level is None:
                return Refused(
                    question.request, RefusedWhy.PROMPT_TOO_LONG,
                    f'{size} tokens, at most {limit}',
                )
            lines, dropped = without(question.segments, level)
        line = self._script[self._turn % len(self._script)]
        self._turn += 1
        if line.act is Act.REFUSE:
            return Refused(question.request, RefusedWhy.BUSY, 'the script says so')
        partial = line.partial and bool(space.declaration.actions)
        passes_ns: list[int] = []
        for _ in range(1 if partial else PASSES):
            if cancelled():
                return Cancelled(question.request)
            began_ns = self._clock.now_ns()
            if began_ns >= question.deadline_ns:
                return Missed(question.request, MissedWhy.DEADLINE,
                              f'no time for pass {len(passes_ns) + 1}')
            self._pass(line, began_ns)
            if self._interrupted:
                return Cancelled(question.request)
            passes_ns.append(self._clock.now_ns() - began_ns)
        finished_ns = self._clock.now_ns()
        if finished_ns > question.deadline_ns:
            return Missed(question.request, MissedWhy.DEADLINE,
                          f'answer known {(finished_ns - question.deadline_ns) / MS:.1f} ms late')
        leaf = line.leaf % len(space.words)
        choices = space.path(leaf, line.share)
        if partial:
            leaf, choices = space.partial(leaf, line.share)
        confidence, others = 1.0, 0.0
        for point in choices:
            # What lies below a sibling is one answer with all its probability.
            others = max(others, confidence * (1.0 - line.share) / (len(point.children) - 1))
            confidence *= line.share
        decision = Decision(
            leaf=leaf, confidence=confidence, choices=choices,
            tokens=TokenCounts(prompt=size, reused=0, evaluated=size, passes=len(passes_ns)),
            timings=Timings(received_ns, started_ns, finished_ns, 0, tuple(passes_ns)),
            margin=confidence - others, plan='+'.join('1' * len(passes_ns)),
        )
        answer = Decided(
            question.request, decision, dropped, self._limits.sha256, partial=partial,
        )
        self._spoken = _Spoken(question, line, space.declaration.text)
        if line.act is Act.NOT_FINITE:
            return replace(answer, decision=replace(decision, confidence=float('nan')))
        if line.act is Act.OTHER_REQUEST:
            return replace(answer, request=question.request + 1_000_000)
        return answer

    def _pass(self, line: Line, began_ns: int) -> None:
        end_ns = began_ns + line.delay_ns // PASSES
        self._interrupted = False
        self._beats.begin(max(line.delay_ns // PASSES, self._limits.cost_fixed_ns))
        while line.act is Act.STALL:
            self._wait(self._clock.now_ns() + 100 * MS)
        while not self._interrupted and (now_ns := self._clock.now_ns()) < end_ns:
            self._wait(min(end_ns, now_ns + LOOK_NS))
        if line.act is Act.ABORT:
            os.abort()
        self._beats.end()
        if line.act is Act.NO_MEMORY:
            raise MemoryError('the script says so')
        if line.act is Act.FAIL:
            raise WorkerError('llama_decode returned -3: the script says so')

    def speak(self, request: int, interrupted: Callable[[], bool]) -> Said | None:
        """Return what the line of the last decision says, as far as there is time."""
        spoken, self._spoken = self._spoken, None
        if spoken is None or spoken.question.request != request:
            return None
        rules = spoken.rules
        if not rules.max_tokens:
            return None
        words, said = spoken.line.text.split(), ''
        for count, word in enumerate(words):
            now_ns = self._clock.now_ns()
            end_ns = now_ns + spoken.line.delay_ns // PASSES
            longer = f'{said} {word}'.strip()
            if (interrupted() or end_ns > spoken.question.deadline_ns
                    or count == rules.max_tokens or len(longer) > rules.max_characters):
                return Said(request, said, count, cut=True)
            self._pass(Line(delay_ns=spoken.line.delay_ns), now_ns)
            said = longer
        return Said(request, said, len(words), cut=False)

    def idle(self) -> bool:
        """Return False: a script leaves nothing for later."""
        return False

    def interrupt(self) -> None:
        """End the pass that runs, from any thread; what begins later is not meant."""
        self._interrupted = True

    def forget(self, space: str) -> None:
        """Free what a declaration holds."""
        self._spaces.pop(space, None)

    def close(self) -> None:
        """Forget everything."""
        self._spaces.clear()


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Return how many words two answers begin with in common."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)))
