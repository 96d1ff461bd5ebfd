"""A decider without a model: it answers from a script, with stated delays and stated misbehaviour.

For the tests of everything that talks to an engine, and for replay in virtual time. It keeps the
contract of `decode.Decider`; only the lines of a script that say so break it. Same script, same
questions and same clock: same answers. A token is a word here.
"""

from __future__ import annotations

import enum
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
    Missed,
    MissedWhy,
    ModelLimits,
    Question,
    Refused,
    RefusedWhy,
)
from smallm_ros.engine.progress import ProgressWriter

MAX_SPACES = 8
PASSES = 2
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
    FAIL = 'fail'
    """Raise WorkerError, as llama_decode's negative codes do."""


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
    real time, a manual clock's advance in virtual time.
    """

    def __init__(
        self, script: Sequence[Line], clock: Clock, wait: Callable[[int], None],
        beats: ProgressWriter, limits: ModelLimits = LIMITS,
    ) -> None:
        if not script:
            raise ValueError('a script has at least one line')
        self._script = tuple(script)
        self._clock = clock
        self._wait = wait
        self._beats = beats
        self._limits = limits
        self._turn = 0
        self._spaces: OrderedDict[str, _Space] = OrderedDict()

    @property
    def limits(self) -> ModelLimits:
        """What the model would be able to do."""
        return self._limits

    def declare(self, declaration: Declaration) -> Declared | DeclarationRejected:
        """Keep a static part; the least recently used goes when there are too many."""
        space = _Space(declaration, tuple(tuple(a.split()) for a in declaration.answers))
        if not declaration.answers or len(set(space.words)) != len(space.words):
            return DeclarationRejected(
                declaration.space, f'answers must be there and differ: {declaration.answers}'[:200]
            )
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
        space = self._spaces.get(question.space)
        if space is None:
            return Refused(question.request, RefusedWhy.UNKNOWN_SPACE,
                           f'space {question.space!r} was not declared to this worker')
        if started_ns >= question.deadline_ns:
            return Refused(question.request, RefusedWhy.TOO_LATE,
                           'the deadline passed before work began')
        self._spaces.move_to_end(question.space)
        kept = question.segments
        limit = space.declaration.max_prompt_tokens
        while (size := sum(len(s.text.split()) for s in kept)) > limit:
            least = max(s.priority for s in kept)
            if least == 0:
                return Refused(
                    question.request, RefusedWhy.PROMPT_TOO_LONG,
                    f'{size} tokens, at most {limit}',
                )
            kept = tuple(s for s in kept if s.priority < least)
        line = self._script[self._turn % len(self._script)]
        self._turn += 1
        passes_ns: list[int] = []
        for _ in range(PASSES):
            if cancelled():
                return Cancelled(question.request)
            began_ns = self._clock.now_ns()
            if began_ns >= question.deadline_ns:
                return Missed(question.request, MissedWhy.DEADLINE,
                              f'no time for pass {len(passes_ns) + 1}')
            self._pass(line, began_ns)
            passes_ns.append(self._clock.now_ns() - began_ns)
        finished_ns = self._clock.now_ns()
        if finished_ns > question.deadline_ns:
            return Missed(question.request, MissedWhy.DEADLINE,
                          f'answer known {(finished_ns - question.deadline_ns) / MS:.1f} ms late')
        leaf = line.leaf % len(space.words)
        choices = space.path(leaf, line.share)
        confidence = 1.0
        for point in choices:
            confidence *= max(share for word, share in point.children
                              if word == _word_after(space.words[leaf], point.prefix))
        decision = Decision(
            leaf=leaf, confidence=confidence, choices=choices,
            tokens=TokenCounts(prompt=size, reused=0, evaluated=size, passes=PASSES),
            timings=Timings(received_ns, started_ns, finished_ns, 0, tuple(passes_ns)),
        )
        answer = Decided(
            question.request, decision,
            tuple(s.name for s in question.segments if s not in kept), self._limits.sha256,
        )
        if line.act is Act.NOT_FINITE:
            return replace(answer, decision=replace(decision, confidence=float('nan')))
        if line.act is Act.OTHER_REQUEST:
            return replace(answer, request=question.request + 1_000_000)
        return answer

    def _pass(self, line: Line, began_ns: int) -> None:
        self._beats.begin(max(line.delay_ns // PASSES, self._limits.cost_fixed_ns))
        while line.act is Act.STALL:
            self._wait(self._clock.now_ns() + 100 * MS)
        self._wait(began_ns + line.delay_ns // PASSES)
        self._beats.end()
        if line.act is Act.FAIL:
            raise WorkerError('llama_decode returned -3: the script says so')

    def forget(self, space: str) -> None:
        """Free what a declaration holds."""
        self._spaces.pop(space, None)

    def close(self) -> None:
        """Forget everything."""
        self._spaces.clear()


def _word_after(words: tuple[str, ...], prefix: str) -> str:
    return (*words, '')[len(prefix.split())]
