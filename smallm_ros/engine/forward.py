"""What goes into llama_decode: one batch at a time, announced, measured, and ended on time.

A pass is a batch of new prompt tokens and of tree nodes. Each way to a tip of the tree is a lane,
a sequence that shares the prompt with the others; a lone way rides on the sequence of what stands
above it. Only a question's batch is ever ended early: at its limit by the alarm, or by `interrupt`
when nobody wants the answer any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from smallm_ros.core.budget import CostModel
from smallm_ros.core.clock import Clock
from smallm_ros.core.tree import ROOT, tips
from smallm_ros.engine.alarm import Alarm
from smallm_ros.engine.kv import LEAST_BATCH, WORKING, Cache
from smallm_ros.engine.model import ABORTED, Batch, DecodeError, Model
from smallm_ros.engine.prior import Scores
from smallm_ros.engine.space import Space
from smallm_ros.engine.walk import GONE, Walk, among


class Beats(Protocol):
    """Who is told when a batch goes in and comes out; see `engine/progress`."""

    def begin(self, bound_ns: int) -> None:
        """Say that a batch begins which should take at most `bound_ns`."""
        ...

    def end(self) -> None:
        """Say that it came back."""
        ...


class Forward:
    """Evaluates batches on one model and its cache."""

    def __init__(
        self, model: Model, kv: Cache, costs: CostModel, beats: Beats, clock: Clock,
        alarm: Alarm | None,
    ) -> None:
        """Take what a decider has; without an alarm, batches run to their end."""
        self._model = model
        self._kv = kv
        self._costs = costs
        self._beats = beats
        self._clock = clock
        self._alarm = alarm
        self._watching = False

    def interrupt(self) -> None:
        """End a question's batch in flight, from any thread; nothing else is ended."""
        if self._watching:
            self._model.abort()

    def close(self) -> None:
        """Let the alarm go."""
        if self._alarm is not None:
            self._alarm.close()

    def run(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Evaluate one batch; raises DecodeError."""
        size = len(batch.tokens)
        if not self._watching:
            self._model.clear_abort()
        began_ns = self._clock.now_ns()
        self._beats.begin(self._costs.bound_ns(size))
        try:
            logits = self._model.evaluate(batch)
        except DecodeError as err:
            if err.code == ABORTED:
                self._costs.at_least(size, self._clock.now_ns() - began_ns)
            raise
        finally:
            self._beats.end()
        if size >= LEAST_BATCH:
            # Free text, a token at a time, says little about the batches that drive.
            self._costs.measured(size, self._clock.now_ns() - began_ns)
        return logits

    def extend(self, space: Space, tokens: Sequence[int], start: int, end: int) -> None:
        """Bring the working sequence from the first `start` tokens of a prompt to `end`."""
        self._kv.rewind(space.pinned, space.prompt.prefix, start)
        self._kv.begin()
        self.run(Batch(
            tokens=tokens[start:end], positions=range(start, end),
            sequences=((WORKING,),) * (end - start), outputs=(),
        ))
        self._kv.hold(tokens[:end])

    def ended_by(
        self, walk: Walk, start: int, nodes: Sequence[int], limit_ns: int,
        cancelled: Callable[[], bool],
    ) -> dict[int, Scores]:
        """Do as `pass_`, and end it at the absolute `limit_ns` or when the question is withdrawn.

        Raises DecodeError with code ABORTED then.
        """
        if self._alarm is None or not self.abortable:
            return self.pass_(walk, start, nodes)
        # In this order: what comes from here on ends this batch, and is not lost.
        self._model.clear_abort()
        self._watching = True
        self._alarm.arm(limit_ns, self._model.abort)
        try:
            if cancelled():
                raise DecodeError(ABORTED)
            return self.pass_(walk, start, nodes)
        finally:
            self._alarm.disarm()
            self._watching = False

    @property
    def abortable(self) -> bool:
        """Whether a question's batch ends at its limit at the latest."""
        return self._alarm is not None and self._model.abortable

    def pass_(self, walk: Walk, start: int, nodes: Sequence[int]) -> dict[int, Scores]:
        """Evaluate the prompt from `start` on and tree nodes; return the choices' child logits.

        A node stands at prompt length + depth - 1. The way to one tip rides on the sequence of
        what stands above it when nothing else does; several tips are lanes of their own.
        """
        space, tree = walk.space, walk.space.tree
        prompt = walk.tokens[start:]
        base = len(walk.tokens)
        if prompt:
            self._kv.rewind(space.pinned, space.prompt.prefix, start)
        walk.held.setdefault(WORKING, base)
        lanes = self._lanes(walk, nodes, start)
        if lanes is None:
            # Too many branches so far: the path is evaluated again, on lanes of its own.
            self._kv.clear(base)
            walk.lanes = dict.fromkeys(walk.lanes, GONE)
            walk.held = {WORKING: base}
            nodes = sorted({*nodes, *tree.path(nodes[0])})
            lanes = self._lanes(walk, nodes, start)
            assert lanes is not None, 'the planner keeps a pass within the lanes'
        shared = tuple(dict.fromkeys((WORKING, *(s for ids in lanes.values() for s in ids))))
        outputs, rows = [], []
        if prompt and tree.nodes[ROOT].is_choice:
            outputs.append(len(prompt) - 1)
            rows.append(ROOT)
        for index, node in enumerate(nodes, start=len(prompt)):
            if tree.nodes[node].is_choice:
                outputs.append(index)
                rows.append(node)
        batch = Batch(
            tokens=[*prompt, *(tree.nodes[n].token for n in nodes)],
            positions=[*range(start, base), *(base + tree.nodes[n].depth - 1 for n in nodes)],
            sequences=[*(shared,) * len(prompt), *(tuple(lanes[n]) for n in nodes)],
            outputs=outputs,
        )
        if len(batch.tokens) < LEAST_BATCH:
            batch = self._doubled(batch)
        rides = any(WORKING in ids for ids in lanes.values())
        if prompt or rides:
            self._kv.begin()
        began_ns = self._clock.now_ns()
        logits = self.run(batch)
        walk.passes_ns.append(self._clock.now_ns() - began_ns)
        walk.evaluated += len(batch.tokens)
        if prompt:
            self._kv.hold(walk.tokens, more=rides)
        for node, ids in lanes.items():
            walk.lanes[node] = ids[0]
            walk.held.update(dict.fromkeys(ids, base + tree.nodes[node].depth))
        return {node: among(logits[row], space.children[node]) for row, node in enumerate(rows)}

    def _doubled(self, batch: Batch) -> Batch:
        """Return a batch of one token with a twin of it on a sequence of its own."""
        lane = self._kv.twin(batch.sequences[0][0], batch.positions[0])
        return Batch(
            tokens=[*batch.tokens, *batch.tokens], positions=[*batch.positions, *batch.positions],
            sequences=[*batch.sequences, (lane,)], outputs=batch.outputs,
        )

    def _lanes(
        self, walk: Walk, nodes: Sequence[int], start: int
    ) -> dict[int, list[int]] | None:
        """Return the sequences of each node, one for each tip below it; None when too few are."""
        tree, base = walk.space.tree, len(walk.tokens)
        ends = tips(tree, nodes)
        lanes: dict[int, list[int]] = {n: [] for n in nodes}
        for tip in ends:
            at = tip
            way = []
            while at in lanes:
                way.append(at)
                at = tree.nodes[at].parent
            # `at` is evaluated, or the root: the new lane begins with what it holds.
            source = walk.lanes.get(at, WORKING)
            if source == GONE:
                return None
            above = base + tree.nodes[at].depth
            sequence: int | None = source
            if len(ends) > 1 or walk.held[source] != above:
                sequence = self._kv.lane(source, min(above, start) if start < base else above)
            if sequence is None:
                return None
            for each in way:
                lanes[each].append(sequence)
        return lanes
