"""The pilot and the engine over a vocabulary alone: each tick's prompt, token for token.

When to ask, what to say, what to leave out and what of it KV still holds are the pilot's and the
engine's own doing. Only the forward pass is left out, so that no weights are needed; whatever is
answered means nothing. Every batch is believed to cost nothing: what a deadline would leave out is
known on the robot alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smallm_ros.bench.workload import Vocabulary
from smallm_ros.core.budget import CostModel
from smallm_ros.core.clock import MS, SECOND, ManualClock
from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import PackageMissingError, PolicyError
from smallm_ros.core.exchange import (
    Answer,
    Decided,
    DeclarationRejected,
    EngineEvent,
    EngineUp,
    FreeText,
    Question,
    Segment,
)
from smallm_ros.core.observation import Received
from smallm_ros.core.pilot import Ask, Declare, Do, Identity, Pilot, Record
from smallm_ros.core.policy import Policy
from smallm_ros.engine.decode import TreeDecider
from smallm_ros.engine.model import Batch

CONTEXT_TOKENS = 32_768
"""More than any policy file can fill."""
_FREE = CostModel(((1, 1), (CONTEXT_TOKENS, 2)))
_NOBODY = Identity(session='0' * 16, host='', boot='', pid=1, start_ticks=1)


@dataclass(frozen=True, slots=True)
class DryTick:
    """One decision tick of the pilot, and what became of its question."""

    record: DecisionRecord
    segments: tuple[Segment, ...]
    """As they were asked, before anything was left out; none where nothing was asked."""
    answer: Answer | None

    @property
    def decided(self) -> Decided | None:
        """The answer, where the prompt was one that can be evaluated."""
        return self.answer if isinstance(self.answer, Decided) else None


class DryRun:
    """A policy, a vocabulary, and ticks without a model."""

    def __init__(self, policy: Policy, words: Vocabulary, begin_ns: int = SECOND) -> None:
        """Declare the policy. Raises PolicyError when the engine would reject it."""
        self.pilot = Pilot(policy, _NOBODY)
        self._clock = ManualClock(begin_ns)
        self._decider = TreeDecider(_DryModel(words), words.template, _FREE, _Unheard(),
                                    self._clock)
        self._asked: Question | None = None
        self._answer: Answer | None = None
        for event in (EngineUp(0, 0), self._decider.limits):
            for _ in self._do(self.pilot.receive(event, begin_ns)):
                pass
        if self.pilot.engine != 'ready':
            raise PolicyError(f'policy {policy.name!r}: the engine rejects it: '
                              f'{self.pilot.engine_why}')
        self.pilot.activate(begin_ns)

    def observe(self, received: Received) -> None:
        """Keep a message."""
        self.pilot.observe(received)

    def step(self, now_ns: int, ros_now_ns: int) -> Iterator[DryTick]:
        """Step the pilot, and yield the ticks that this ended."""
        self._clock.advance_ms((now_ns - self._clock.now_ns()) / MS)
        for record in self._do(self.pilot.step(now_ns, ros_now_ns)):
            asked, answer = self._asked, self._answer
            yield DryTick(record, asked.segments if asked and record.request else (),
                          answer if record.request else None)

    def _do(self, things: Iterable[Do]) -> Iterator[DecisionRecord]:
        for thing in things:
            match thing:
                case Declare(declaration):
                    # Neither the bias nor free text changes the prompt, and both need a model.
                    told = dataclasses.replace(declaration, references=(), text=FreeText())
                    yield from self._hear(self._decider.declare(told))
                case Ask(question):
                    self._asked = question
                    self._answer = self._decider.decide(
                        question, self._clock.now_ns(), lambda: False)
                    yield from self._hear(self._answer)
                case Record(record):
                    yield record
                case _:
                    pass  # commands and status are for a watchdog

    def _hear(self, event: EngineEvent | DeclarationRejected) -> Iterator[DecisionRecord]:
        return self._do(self.pilot.receive(event, self._clock.now_ns()))


class _DryModel:
    """A `Model` that knows its vocabulary and takes every token to be as likely as any."""

    name, sha256 = 'none', ''
    n_ctx, n_batch, n_seq_max = CONTEXT_TOKENS, CONTEXT_TOKENS, 256
    threads, gpu_layers = 1, 0
    abortable = False

    def __init__(self, words: Vocabulary) -> None:
        self.n_vocab = words.size
        self._words = words

    def tokenize(self, text: str) -> list[int]:
        return self._words.tokenize(text)

    def control_token(self, text: str) -> int:
        return self._words.control_token(text)

    def piece(self, token: int) -> bytes:
        return self._words.piece(token)

    def evaluate(self, batch: Batch) -> npt.NDArray[np.float32]:
        return np.zeros((len(batch.outputs), self.n_vocab), np.float32)

    def abort(self) -> None:
        pass

    def clear_abort(self) -> None:
        pass

    def copy_sequence(self, source: int, target: int, start: int, end: int) -> None:
        pass

    def remove(self, sequence: int, start: int, end: int) -> None:
        pass

    def llguidance_tokenizer(self) -> object:
        raise PackageMissingError('a vocabulary alone says nothing')

    def close(self) -> None:
        pass


class _Unheard:
    """Takes the engine's beats: nobody watches here."""

    def begin(self, _bound_ns: int) -> None:
        pass

    def end(self) -> None:
        pass


def shown(words: Vocabulary, ids: Sequence[int]) -> str:
    """Return the text of some tokens; what is no whole character of UTF-8 shows as one sign."""
    return b''.join(words.piece(token) for token in ids).decode('utf-8', 'replace')
