"""A decider on the history model and a virtual clock, and the decoding that it must equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from smallm_ros.core.budget import CostModel
from smallm_ros.core.clock import MS, ManualClock
from smallm_ros.core.exchange import Decided, Declaration, Declared, Question, Segment
from smallm_ros.core.passes import Passes
from smallm_ros.engine.decode import TreeDecider
from smallm_ros.engine.model import Batch
from smallm_ros.engine.templates import conversation
from tests.fakes.history_model import HistoryModel

TEMPLATE = 'mistral-v7-tekken'
ANSWERS = ('forward slow', 'forward fast', 'left', 'left sharp', 'right')


class Beats:
    """Counts what goes in and comes out, and takes the clock along with each batch."""

    def __init__(self) -> None:
        self.began = self.ended = 0

    def begin(self, bound_ns: int) -> None:
        assert bound_ns > 0
        self.began += 1

    def end(self) -> None:
        self.ended += 1


class VirtualAlarm:
    """Goes off when the virtual clock passes its time inside a batch."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.at_ns: int | None = None
        self.abort: Callable[[], None] = lambda: None
        self.fired = 0

    def arm(self, at_ns: int, abort: Callable[[], None]) -> None:
        self.at_ns, self.abort = at_ns, abort
        self.look(self._clock.now_ns())

    def disarm(self) -> None:
        self.at_ns = None

    def close(self) -> None:
        self.disarm()

    def look(self, now_ns: int) -> None:
        if self.at_ns is not None and now_ns >= self.at_ns:
            self.fired += 1
            self.at_ns = None
            self.abort()


class Bench:
    """A decider on the history model; a batch of n tokens takes n milliseconds."""

    def __init__(
        self, *, ms_per_token: float = 1.0, n_seq_max: int = 64, passes: Passes = Passes.AUTO,
        n_ctx: int = 4096, check_ms: float = 50.0, cache: Path | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.beats = Beats()
        self.ms_per_token = ms_per_token
        self.batches: list[Batch] = []
        self.alarm = VirtualAlarm(self.clock)
        self.model = HistoryModel(n_ctx, n_seq_max=n_seq_max, on_evaluate=self._batch)
        self.decider = TreeDecider(
            self.model, TEMPLATE, CostModel([(1, MS), (512, 512 * MS)]), self.beats, self.clock,
            alarm=self.alarm, passes=passes, check_ns=round(check_ms * MS), cache=cache,
        )
        self.on_batch: Callable[[], None] = lambda: None
        self.requests = 0

    def costs(self, fixed_ms: float) -> None:
        """Let a batch of n tokens be expected to take `fixed_ms` and n milliseconds."""
        fixed_ns = round(fixed_ms * MS)
        self.decider._costs = CostModel([(1, MS + fixed_ns), (512, 512 * MS + fixed_ns)])

    def settle(self) -> None:
        """Forget how slow the machine was."""
        while self.decider._costs._recent:
            self.decider._costs.relax()

    def _batch(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.on_batch()
        left_ms = self.ms_per_token * len(batch.tokens)
        if self.alarm.at_ns is not None:
            # An abort comes on time; the rest of the batch is never computed.
            left_ms = min(left_ms, max(0.0, (self.alarm.at_ns - self.clock.now_ns()) / MS))
        self.clock.advance_ms(left_ms)
        if left_ms < self.ms_per_token * len(batch.tokens):
            self.alarm.look(self.clock.now_ns())

    def declare(
        self, answers: tuple[str, ...] = ANSWERS, space: str = 'room', **fields: Any
    ) -> None:
        told = self.decider.declare(
            Declaration(space, 'drive', (('o', 'left'),), answers, 200, **fields)
        )
        assert isinstance(told, Declared), told

    def question(self, *texts: str, ms: float = 10_000, space: str = 'room') -> Question:
        self.requests += 1
        return Question(
            self.requests, space, self.clock.now_ns() + round(ms * MS),
            tuple(Segment(f's{i}', text, i) for i, text in enumerate(texts)),
        )

    def ask(self, question: Question, cancelled: bool = False) -> object:
        return self.decider.decide(question, self.clock.now_ns(), lambda: cancelled)

    def decided(self, *texts: str) -> Decided:
        answer = self.ask(self.question(*texts))
        assert isinstance(answer, Decided), answer
        return answer


def stepwise(answers: tuple[str, ...], texts: tuple[str, ...]) -> int:
    """Decide token by token on a fresh model: slow, obvious, the standard to equal."""
    model = HistoryModel()
    prompt = conversation(TEMPLATE, model, 'drive', (('o', 'left'),))
    tokens = [*prompt.prefix, *model.tokenize(''.join(texts)), *prompt.suffix]
    left = {i: [*model.tokenize(a), prompt.end] for i, a in enumerate(answers)}
    taken = 0
    while len(left) > 1 or len(next(iter(left.values()))) > taken:
        logits = model._logits(tuple(tokens))
        allowed = list(dict.fromkeys(path[taken] for path in left.values()))
        best = max(allowed, key=lambda t: logits[t])
        left = {i: path for i, path in left.items() if path[taken] == best}
        tokens.append(best)
        taken += 1
    return next(iter(left))
