"""An engine and a pace in virtual time: the scripted decider behind the face of `EngineClient`.

The decider has a clock of its own that runs ahead to the end of each answer, so that it thinks
while the replay goes on, one question after the other, and its answers come when it says.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from smallm_ros.core.clock import MS, SECOND, ManualClock
from smallm_ros.core.exchange import (
    Cancel,
    Decided,
    Declaration,
    EngineEvent,
    EngineLost,
    EngineState,
    EngineUp,
    Progress,
    Question,
)
from smallm_ros.engine.progress import ProgressPage, ProgressWriter
from smallm_ros.engine.scripted import Line, ScriptedDecider

HEARTBEAT_NS = 50 * MS


class VirtualEngine:
    """Answers from a script; away during the stretches in `away` (seconds after the start)."""

    def __init__(
        self, clock: ManualClock, script: Sequence[Line], *,
        loading_s: float = 2.0, away: Sequence[tuple[float, float]] = (),
    ) -> None:
        self._clock = clock
        self._begin_ns = clock.now_ns()
        self._loading_ns = round(loading_s * SECOND)
        self._away = [(round(a * SECOND), round(b * SECOND)) for a, b in away]
        self._mind = ManualClock(clock.now_ns())
        self._page = ProgressPage.create(clock.now_ns())
        self._decider = ScriptedDecider(
            script, self._mind, self._think_until, ProgressWriter(self._page, self._mind)
        )
        self._coming: list[tuple[int, int, EngineEvent]] = []
        self._count = 0
        self._up = False
        self._busy: tuple[int, int] = (0, 0)
        self.asked: list[Question] = []
        self.cancelled: list[int] = []

    @property
    def next_ns(self) -> int | None:
        """When the next answer comes."""
        return self._coming[0][0] if self._coming else None

    def poll(self, now_ns: int) -> list[EngineEvent]:
        elapsed_ns = now_ns - self._begin_ns
        if any(a <= elapsed_ns < b for a, b in self._away):
            self._coming.clear()
            was, self._up = self._up, False
            return [EngineLost('the script says so')] if was else []
        events: list[EngineEvent] = []
        if not self._up:
            self._up = True
            events.append(EngineUp(4242, 1))
            self._come(max(now_ns, self._begin_ns + self._loading_ns), self._decider.limits)
        while self._coming and self._coming[0][0] <= now_ns:
            events.append(heapq.heappop(self._coming)[2])
        return [*events, self._progress(now_ns)]

    def send_nowait(self, item: Declaration | Question | Cancel) -> bool:
        now_ns = self._clock.now_ns()
        if not self._up:
            return False
        match item:
            case Declaration():
                self._come(now_ns + MS, self._decider.declare(item))
            case Cancel():
                self.cancelled.append(item.request)
            case Question():
                self.asked.append(item)
                self._think_until(now_ns)
                began_ns = self._mind.now_ns()
                answer = self._decider.decide(item, now_ns, lambda: False)
                self._busy = (began_ns, self._mind.now_ns())
                self._come(self._mind.now_ns(), answer)
                if isinstance(answer, Decided):
                    said = self._decider.speak(item.request, lambda: False)
                    if said is not None:
                        self._come(self._mind.now_ns(), said)
        return True

    def close(self) -> None:
        self._page.close()

    def fileno(self) -> int | None:
        return None

    def _come(self, at_ns: int, event: EngineEvent) -> None:
        self._count += 1
        heapq.heappush(self._coming, (at_ns, self._count, event))

    def _think_until(self, at_ns: int) -> None:
        self._mind.advance_ms(max(0, at_ns - self._mind.now_ns()) / MS)

    def _progress(self, now_ns: int) -> Progress:
        self._count += 1
        began_ns, ended_ns = self._busy
        if began_ns <= now_ns < ended_ns:
            return Progress(EngineState.READY, self._count, now_ns, 1, began_ns,
                            ended_ns - began_ns)
        return Progress(EngineState.READY, self._count, now_ns, 0, 0, 0)


class VirtualPace:
    """Moves a manual clock to what comes first: the time asked for, or the engine's answer."""

    def __init__(self, clock: ManualClock, engine: VirtualEngine) -> None:
        self._clock = clock
        self._engine = engine

    def now_ns(self) -> int:
        return self._clock.now_ns()

    def wait(self, until_ns: int, fileno: int | None) -> None:
        answer_ns = self._engine.next_ns
        target_ns = until_ns if answer_ns is None else min(until_ns, answer_ns)
        self._clock.advance_ms(max(0, target_ns - self._clock.now_ns()) / MS)
