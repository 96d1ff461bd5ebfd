"""One decision over the action tree, in as few forward passes as are cheapest here.

The first pass evaluates what changed in the prompt and, beside it, as much of the tree as the
planner finds worth its tokens; further passes evaluate the branch that was chosen, each of its
paths as a sequence of its own over the shared prompt. The result is that of stepwise greedy
decoding under the same constraint, or, with `best`, the exact most probable answer. A plan is
admitted by the cost model's bound, submitted whole, and ended at its deadline where the backend
can; what had been decided by then may go out with default parameters. See core/passes for the
layouts and engine/kv for what stays in the cache.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from smallm_ros.core.action import Decision, Timings, TokenCounts
from smallm_ros.core.budget import CostModel, fits
from smallm_ros.core.clock import MS, Clock
from smallm_ros.core.errors import PackageMissingError, WorkerError
from smallm_ros.core.exchange import (
    Answer,
    Cancelled,
    Decide,
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
    Said,
)
from smallm_ros.core.passes import Layout, Passes, Planner
from smallm_ros.core.prompt import MAX_SEGMENT_CHARACTERS, leaving, without
from smallm_ros.core.tree import ROOT, Tree
from smallm_ros.engine import prior
from smallm_ros.engine.alarm import Alarm
from smallm_ros.engine.forward import Beats, Forward
from smallm_ros.engine.history import History
from smallm_ros.engine.kv import LEAST_BATCH, MAX_SPACES, SPARE, WORKING, Cache
from smallm_ros.engine.model import ABORTED, Batch, DecodeError, Model
from smallm_ros.engine.space import Space
from smallm_ros.engine.speech import Speech
from smallm_ros.engine.templates import conversation
from smallm_ros.engine.walk import Walk, log_shares

LINE_CACHE = 4096
CHECK_NS = 50 * MS
HANDOVER_NS = 5 * MS
"""Held back before the deadline for a partial answer's way to the client, and an abort's delay."""

Logits = npt.NDArray[np.float32]


def nothing() -> None:
    """Do nothing between two pieces of work."""


class Decider(Protocol):
    """What a worker serves: the real one is `TreeDecider`, the scripted one is for tests."""

    @property
    def limits(self) -> ModelLimits:
        """What the model can do."""
        ...

    def declare(
        self, declaration: Declaration, between: Callable[[], None] = nothing
    ) -> Declared | DeclarationRejected:
        """Evaluate and pin a static part; the same one again costs nothing.

        `between` is called between two batches, and may call `decide` for another space.
        """
        ...

    def decide(
        self, question: Question, received_ns: int, cancelled: Callable[[], bool]
    ) -> Answer:
        """Answer one question: exactly one answer, at the latest soon after its deadline."""
        ...

    def speak(self, request: int, interrupted: Callable[[], bool]) -> Said | None:
        """Return the free text after the last decision; None when there is none to give."""
        ...

    def idle(self) -> bool:
        """Do one small piece of what can wait; False when there is none."""
        ...

    def interrupt(self) -> None:
        """Say, from any thread, that nobody wants what runs any more."""
        ...

    def forget(self, space: str) -> None:
        """Free what a declaration holds."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@dataclass(frozen=True, slots=True)
class _Plan:
    """What was admitted."""

    dropped: tuple[str, ...]
    """What was left out of the prompt."""
    tokens: list[int]
    layout: Layout
    reused: int
    limits_ns: tuple[int, int]
    """Absolute: when the first pass is ended at the latest, and when those after it are."""


@dataclass(frozen=True, slots=True)
class _Spoken:
    """What free text may follow: the last decision."""

    space: Space
    request: int
    deadline_ns: int
    tokens: tuple[int, ...]
    """Of the answer, without its end."""


class _Overdue(Exception):
    """The next pass would end after the deadline, or the last one was ended at it."""


class _NotFinite(Exception):
    """The model's logits are no numbers."""


class _Withdrawn(Exception):
    """The client took its question back."""


class _Rejected(Exception):
    """A declaration cannot be used; the text says why."""


class TreeDecider:
    """Decides with a `Model`, a token trie per declared space, and a cost model."""

    def __init__(
        self, model: Model, template: str, costs: CostModel, beats: Beats, clock: Clock, *,
        alarm: Alarm | None = None, check_ns: int = CHECK_NS, passes: Passes = Passes.AUTO,
        cache: Path | None = None,
    ) -> None:
        """Take a loaded model over.

        `alarm` ends batches at their deadline; without one they run to their end. `check_ns` is
        how long a batch of work that can wait may take. `cache` is a folder for what was measured
        over the references.
        """
        self._model = model
        self._template = template
        self._costs = costs
        self._clock = clock
        self._check_ns = check_ns
        self._passes = passes
        self._folder = cache
        self._kv = Cache(model)
        self._forward = Forward(model, self._kv, costs, beats, clock, alarm)
        self._spaces: OrderedDict[str, Space] = OrderedDict()
        self._current: Space | None = None
        """Whose history the working sequence holds."""
        self._lines: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._spoken: _Spoken | None = None
        self._speech: Speech | None = None

    @property
    def limits(self) -> ModelLimits:
        """What the model can do; the costs are those of now."""
        model = self._model
        fixed = self._costs.median_ns(1)
        return ModelLimits(
            name=model.name, sha256=model.sha256, template=self._template,
            context_tokens=model.n_ctx, vocabulary=model.n_vocab, threads=model.threads,
            gpu_layers=model.gpu_layers, cost_fixed_ns=fixed,
            cost_per_token_ns=max(0, self._costs.median_ns(65) - fixed) // 64,
        )

    # --- declarations ---------------------------------------------------------------------

    def declare(
        self, declaration: Declaration, between: Callable[[], None] = nothing
    ) -> Declared | DeclarationRejected:
        """Evaluate the static part in small batches and pin it; the same one again costs nothing.

        `between` is called between two batches, and may call `decide` for another space.
        """
        space = self._spaces.get(declaration.space)
        if space is None:
            made = self._make(declaration)
            if isinstance(made, str):
                return DeclarationRejected(declaration.space, made)
            space = made
            try:
                self._evaluate_static(space, between)
                self._correct(space, between)
            except _Rejected as err:
                self._kv.free(space.pinned)
                return DeclarationRejected(declaration.space, str(err))
            except DecodeError as err:
                self._kv.free(space.pinned)
                if err.code < 0:
                    raise
                return DeclarationRejected(declaration.space, str(err))
            except WorkerError:
                self._kv.free(space.pinned)
                raise
            self._spaces[declaration.space] = space
        self._spaces.move_to_end(declaration.space)
        return Declared(
            declaration.space, len(space.prompt.prefix), len(declaration.answers),
            space.tree.choices,
        )

    def _make(self, declaration: Declaration) -> Space | str:
        """Return a space with room in KV and nothing evaluated yet, or why there can be none."""
        prompt = conversation(
            self._template, self._model, declaration.system, declaration.examples
        )
        answers = [self._model.tokenize(answer) for answer in declaration.answers]
        try:
            tree = Tree.of(answers, prompt.end)
        except ValueError as err:
            return f'action space: {err}'
        own = len(declaration.answers)
        for each in (declaration.actions, declaration.departures):
            if each and len(each) != own:
                return f'actions and departures: {len(each)} for {own} answers'
        planner = Planner(tree, self._kv.most_lanes, self._model.n_batch)
        dynamic = declaration.max_prompt_tokens + len(prompt.suffix)
        nodes = len(tree.reach(ROOT, tree.levels))
        longest = max(map(len, answers)) + 1
        turn = dynamic + longest + len(prompt.between)
        past = History.most(declaration.history) * turn
        text = longest + declaration.text.max_tokens + len(declaration.text.lead.encode())
        room = len(prompt.prefix) + dynamic + past + max(nodes, text)
        if room > self._model.n_ctx:
            said = f' + history {past}' if past else ''
            return (f'static part {len(prompt.prefix)} + dynamic part at most '
                    f'{declaration.max_prompt_tokens}{said} + answers = {room} tokens, the '
                    f'context has {self._model.n_ctx}: a larger context, or a shorter mission')
        widest = len(planner.stage(ROOT, tree.levels))
        batch = dynamic + longest + len(prompt.between) + widest
        if batch > self._model.n_batch:
            return (f'dynamic part and answers of {batch} tokens do not fit '
                    f'one batch of {self._model.n_batch}: a smaller prompt_tokens')
        if declaration.text.max_tokens and self._speech is None:
            try:
                self._speech = Speech(self._model, prompt.end)
            except PackageMissingError as err:
                return str(err)
        own_tail = room - len(prompt.prefix)
        while self._spaces and (
            len(self._spaces) == MAX_SPACES
            or len(prompt.prefix) + sum(len(s.prompt.prefix) for s in self._spaces.values())
            # One prompt at a time stands behind its prefix: the longest of all must find room.
            + max(own_tail, *(s.tail for s in self._spaces.values())) > self._model.n_ctx
        ):
            # Whoever still needs it is told that it is unknown, and declares it again.
            self.forget(next(iter(self._spaces)))
        used = {space.pinned for space in self._spaces.values()}
        return Space(
            declaration, tree, prompt,
            pinned=next(s for s in range(1, 1 + MAX_SPACES) if s not in used),
            tail=own_tail, planner=planner, history=History(declaration.history),
        )

    def _evaluate_static(self, space: Space, between: Callable[[], None]) -> None:
        tokens, start = space.prompt.prefix, 0
        while start < len(tokens):
            most = self._chunk
            # No token is left over for a batch of its own: see LEAST_BATCH.
            chunk = tokens[start:start + most + (len(tokens) - start == most + 1)]
            self._forward.run(Batch(
                tokens=chunk, positions=range(start, start + len(chunk)),
                sequences=((space.pinned,),) * len(chunk), outputs=(),
            ))
            start += len(chunk)
            between()

    @property
    def _chunk(self) -> int:
        """Tokens of a batch of work that can wait, so that it takes about `check_ns`."""
        return max(LEAST_BATCH, min(self._costs.largest(self._check_ns), self._model.n_batch))

    def _correct(self, space: Space, between: Callable[[], None]) -> None:
        """Give the space its bias: from the cache, or measured, one reference after the other."""
        declaration = space.declaration
        if not declaration.references or not space.children:
            return
        file = self._folder and prior.cache_file(
            self._folder, declaration.space, self._model.sha256, self._template,
            self._model.gpu_layers,
        )
        reach = (ROOT, *space.planner.stage(ROOT, space.tree.levels))
        choices = [node for node in reach if node in space.children]
        bias = prior.load(file, space.tree, choices) if file else None
        if bias is None:
            bias = self._measure_bias(space, between)
            if file:
                prior.save(file, bias)
        space.bias = bias
        space.prior = f'{declaration.correction.value}:{prior.digest(bias)}'

    def _measure_bias(self, space: Space, between: Callable[[], None]) -> prior.Bias:
        """Return the mean logits of each choice over the references, one pass for each.

        A tree too wide for one pass has its first levels corrected, as many as one pass reaches.
        """
        rows: dict[int, list[prior.Scores]] = {}
        nodes = space.planner.stage(ROOT, space.tree.levels)
        for text in space.declaration.references:
            tokens = self._tokens(space, text.splitlines(keepends=True), ())
            if not self._short_enough(space, tokens, 0):
                continue
            reused = self._bring_near(space, tokens, between)
            known = self._forward.pass_(Walk(space, tokens), reused, nodes)
            for node, scores in known.items():
                rows.setdefault(node, []).append(scores)
            self._kv.clear(len(tokens))
            between()
        if not rows:
            raise _Rejected(
                f'none of the {len(space.declaration.references)} reference texts has at most '
                f'{space.declaration.max_prompt_tokens} tokens: a larger prompt_tokens'
            )
        bias = {node: np.mean(scores, axis=0) for node, scores in rows.items()}
        if not all(np.isfinite(scores).all() for scores in bias.values()):
            raise WorkerError('the logits of the reference observations are not finite')
        return bias

    def _bring_near(
        self, space: Space, tokens: Sequence[int], between: Callable[[], None]
    ) -> int:
        """Evaluate a prompt in small batches but for the last; return how much of it KV holds.

        Whoever is served in between may take the working sequence: then the rest is one batch,
        because with a question each time it would never come to an end.
        """
        undisturbed = True
        while True:
            self._enter(space)
            held = self._kv.reusable(space.pinned, space.prompt.prefix, tokens)
            if len(tokens) - held <= self._chunk or not undisturbed:
                return held
            self._forward.extend(space, tokens, held, held + self._chunk)
            between()
            undisturbed = self._current is space

    def bias(self, space: str) -> prior.Bias:
        """Return what is subtracted at each choice. KeyError when the space is not declared."""
        return self._spaces[space].bias

    def prefix(self, space: str) -> tuple[int, ...]:
        """Return the tokens of a declared static part. KeyError when it is not declared."""
        return tuple(self._spaces[space].prompt.prefix)

    def forget(self, space: str) -> None:
        """Free the pinned prefix of a space."""
        known = self._spaces.pop(space, None)
        if known is not None:
            self._kv.free(known.pinned)
            if self._current is known:
                self._current = None

    def close(self) -> None:
        """Free the model."""
        self._forward.close()
        self._speech = None  # it holds on to the vocabulary
        self._model.close()

    # --- one decision ---------------------------------------------------------------------

    def decide(
        self, question: Question, received_ns: int, cancelled: Callable[[], bool]
    ) -> Answer:
        """Answer one question: exactly one answer, at the latest soon after its deadline."""
        started_ns = self._clock.now_ns()
        self._spoken = None
        space = self._spaces.get(question.space)
        if space is None:
            return Refused(question.request, RefusedWhy.UNKNOWN_SPACE,
                           f'space {question.space!r} was not declared to this worker')
        if started_ns >= question.deadline_ns:
            return Refused(question.request, RefusedWhy.TOO_LATE,
                           f'deadline passed {(started_ns - question.deadline_ns) / 1e6:.1f} ms '
                           'before work began')
        self._spaces.move_to_end(question.space)
        plan = self._fit(space, question)
        tokenised_ns = self._clock.now_ns()
        if isinstance(plan, Refused):
            if plan.why is RefusedWhy.DOES_NOT_FIT:
                self._costs.relax()
            return plan
        self._enter(space)
        walk = Walk(space, plan.tokens)
        try:
            node, partial = self._descend(walk, plan, cancelled)
        except _Withdrawn:
            return Cancelled(question.request)
        except _Overdue as err:
            return Missed(question.request, MissedWhy.DEADLINE, str(err))
        except _NotFinite as err:
            self._drop(space)
            return Missed(question.request, MissedWhy.NOT_FINITE, str(err))
        except DecodeError as err:
            self._drop(space)
            if err.code < 0:
                raise
            return Missed(question.request, MissedWhy.DECODE_FAILED, str(err))
        finally:
            self._kv.clear(len(self._kv.tokens))
        finished_ns = self._clock.now_ns()
        if finished_ns > question.deadline_ns:
            return Missed(
                question.request, MissedWhy.DEADLINE,
                f'answer known {(finished_ns - question.deadline_ns) / 1e6:.1f} ms late',
            )
        leaf = (space.least_departure(*walk.contenders()) if partial
                else space.tree.nodes[node].leaf)
        timings = Timings(received_ns, started_ns, finished_ns, tokenised_ns - started_ns,
                          tuple(walk.passes_ns))
        decided = self._decided(question.request, walk, plan, node, leaf, timings)
        self._remember(space, plan, leaf, question, partial)
        return replace(decided, partial=partial, dropped=plan.dropped)

    def redecide(self, space: str, ids: Sequence[int]) -> Decided:
        """Decide again on exactly these tokens after the static part, without a deadline.

        KeyError when the space is not declared; WorkerError when the model fails.
        """
        known = self._spaces[space]
        self._enter(known)
        tokens = [*known.prompt.prefix, *ids]
        reused = self._bring_near(known, tokens, nothing)
        layout = self._layouts(known, len(tokens) - reused)[0]
        never = 2**62
        plan = _Plan((), tokens, layout, reused, (never, never))
        walk = Walk(known, tokens)
        started_ns = self._clock.now_ns()
        try:
            node, _ = self._descend(walk, plan, lambda: False)
        except _NotFinite as err:
            raise WorkerError(str(err)) from err
        finally:
            self._kv.clear(len(self._kv.tokens))
        now_ns = self._clock.now_ns()
        timings = Timings(started_ns, started_ns, now_ns, 0, tuple(walk.passes_ns))
        return self._decided(0, walk, plan, node, known.tree.nodes[node].leaf, timings)

    def interrupt(self) -> None:
        """Say, from any thread, that nobody wants what runs any more.

        A question's batch is ended where the backend can; what is done for later is not.
        """
        self._forward.interrupt()

    def _enter(self, space: Space) -> None:
        """Make it this space's turn. A history that KV does not hold any more is forgotten."""
        if self._current is not space:
            if self._current is not None:
                self._current.history.forget()
            space.history.forget()
            self._current = space

    def _drop(self, space: Space) -> None:
        """Forget the working sequence, after a batch of which KV may hold an unknown part."""
        self._kv.drop()
        space.history.forget()

    def _decided(
        self, request: int, walk: Walk, plan: _Plan, node: int, leaf: int, timings: Timings
    ) -> Decided:
        space = walk.space
        path = space.tree.path(node)
        confidence, margin = walk.standing(node)
        accepted = sum(n in path for n in plan.layout.guess)
        return Decided(
            request=request,
            decision=Decision(
                leaf=leaf, confidence=confidence, choices=tuple(walk.points(self._model, path)),
                tokens=TokenCounts(
                    prompt=len(plan.tokens), reused=plan.reused, evaluated=walk.evaluated,
                    passes=len(walk.passes_ns), guessed=len(plan.layout.guess), accepted=accepted,
                ),
                timings=timings, margin=margin, plan=plan.layout.name,
            ),
            dropped=(), model_sha256=self._model.sha256,
            ids=tuple(plan.tokens[len(space.prompt.prefix):]), prior=space.prior,
        )

    def _remember(
        self, space: Space, plan: _Plan, leaf: int, question: Question, partial: bool
    ) -> None:
        """Take the decision in: as the next guess, as a turn, and as what text may follow."""
        if not partial:
            space.planner.decided(leaf)
        answer = [space.tree.nodes[n].token for n in space.tree.path(space.tree.ends[leaf])]
        if space.declaration.history:
            past = len(space.prompt.prefix) + len(space.history.tokens)
            space.history.add(plan.tokens[past:], [*answer, *space.prompt.between])
        if space.declaration.text.max_tokens:
            self._spoken = _Spoken(
                space, question.request, question.deadline_ns, tuple(answer[:-1])
            )

    # --- admission ------------------------------------------------------------------------

    def _fit(self, space: Space, question: Question) -> _Plan | Refused:
        """Return the cheapest plan that the cost model admits, or why there is none.

        Segments and their lesser parts go by priority, largest number first, until the token limit
        and the deadline hold; then, where a partial answer is allowed, the time for the first pass
        is enough.
        """
        said = question.segments
        texts = [text for s in said for text in (s.text, *(each.text for each in s.shorter))]
        longest = max(map(len, texts), default=0)
        if longest > MAX_SEGMENT_CHARACTERS + 1:
            # Refused unread: tokenising it would take the time of a driving decision.
            return Refused(
                question.request, RefusedWhy.PROMPT_TOO_LONG,
                f'a segment of {longest} characters, at most {MAX_SEGMENT_CHARACTERS}',
            )
        levels = iter(leaving(said))
        lines = tuple(s.text for s in said)
        dropped: tuple[str, ...] = ()
        while True:
            past = space.history.tokens
            tokens = self._tokens(space, lines, past)
            reused = self._kv.reusable(space.pinned, space.prompt.prefix, tokens)
            if past and reused < len(space.prompt.prefix) + space.history.held:
                space.history.forget()  # evaluating it again would be a spike
                continue
            short = self._short_enough(space, tokens, len(past))
            if short:
                plan = self._cheapest(space, question, dropped, tokens, reused)
                if plan is not None:
                    return plan
            level = next(levels, None)
            if level is None:
                break
            lines, dropped = without(said, level)
        if not short:
            dynamic = len(tokens) - len(space.prompt.prefix) - len(past) - len(space.prompt.suffix)
            return Refused(
                question.request, RefusedWhy.PROMPT_TOO_LONG,
                f'{dynamic} tokens, at most {space.declaration.max_prompt_tokens}',
            )
        return self._first_only(space, question, dropped, tokens, reused)

    def _cheapest(
        self, space: Space, question: Question, dropped: tuple[str, ...], tokens: list[int],
        reused: int,
    ) -> _Plan | None:
        """Return the plan of least expected cost of those whose bound ends by the deadline."""
        changed = len(tokens) - reused
        now_ns = self._clock.now_ns()
        limits_ns = self._limits(space, question.deadline_ns)
        for layout in self._layouts(space, changed):
            first, *later = layout.sizes
            first += changed + len(layout.guess)
            if first <= self._model.n_batch and fits(
                now_ns, limits_ns[1 if later else 0], self._costs.bound_ns(first, *later)
            ):
                return _Plan(dropped, tokens, layout, reused, limits_ns)
        return None

    def _first_only(
        self, space: Space, question: Question, dropped: tuple[str, ...], tokens: list[int],
        reused: int,
    ) -> _Plan | Refused:
        """Return a plan that has time for its first pass, where a partial answer is allowed."""
        changed = len(tokens) - reused
        limits_ns = self._limits(space, question.deadline_ns)
        now_ns = self._clock.now_ns()
        layouts = sorted(self._layouts(space, changed), key=lambda each: each.sizes[0])
        for layout in layouts:
            size = changed + layout.sizes[0]
            if (
                space.declaration.actions and layout.levels[0] >= space.action_levels
                and not layout.guess and size <= self._model.n_batch
                and fits(now_ns, limits_ns[1], self._costs.bound_ns(size))
            ):
                return _Plan(dropped, tokens, layout, reused, limits_ns)
        least = layouts[0].sizes
        cost_ns = self._costs.bound_ns(changed + least[0], *least[1:])
        return Refused(
            question.request, RefusedWhy.DOES_NOT_FIT,
            f'needs up to {cost_ns / 1e6:.0f} ms for {changed} tokens and the branch, '
            f'{(question.deadline_ns - now_ns) / 1e6:.0f} ms are left',
        )

    def _layouts(self, space: Space, changed: int) -> list[Layout]:
        """Return the layouts for so many new tokens, the least expected cost first.

        The best answer needs the whole tree: in one pass where that is possible.
        """
        layouts = space.planner.choices(changed, self._costs, self._passes)
        if space.declaration.decide is Decide.BEST:
            whole = [each for each in layouts if len(each.sizes) == 1]
            return whole or layouts
        return layouts

    def _limits(self, space: Space, deadline_ns: int) -> tuple[int, int]:
        later_ns = deadline_ns - HANDOVER_NS if space.declaration.actions else deadline_ns
        return deadline_ns, later_ns

    def _short_enough(self, space: Space, tokens: Sequence[int], past: int) -> bool:
        fixed = len(space.prompt.prefix) + past + len(space.prompt.suffix)
        return len(tokens) - fixed <= space.declaration.max_prompt_tokens

    def _tokens(self, space: Space, lines: Sequence[str], past: Sequence[int]) -> list[int]:
        """Return the whole prompt: static part, history, lines, the template's tail."""
        tokens = [*space.prompt.prefix, *past]
        for line in lines:
            tokens += self._line(line)
        return tokens + space.prompt.suffix

    def _line(self, text: str) -> tuple[int, ...]:
        known = self._lines.get(text)
        if known is None:
            known = tuple(self._model.tokenize(text))
            self._lines[text] = known
            if len(self._lines) > LINE_CACHE:
                self._lines.popitem(last=False)
        else:
            self._lines.move_to_end(text)
        return known

    # --- down the tree --------------------------------------------------------------------

    def _descend(
        self, walk: Walk, plan: _Plan, cancelled: Callable[[], bool]
    ) -> tuple[int, bool]:
        """Return the node that was reached, and whether the time ended before a leaf."""
        planner = walk.space.planner
        first = sorted({*planner.stage(ROOT, plan.layout.levels[0]), *plan.layout.guess})
        first_ns, later_ns = plan.limits_ns
        self._question_pass(walk, plan.reused, first, first_ns, cancelled)
        while True:
            node = walk.reached()
            if walk.space.tree.nodes[node].leaf >= 0:
                return node, False
            top = walk.unevaluated(node)
            nodes = planner.stage(top, plan.layout.wanted(walk.space.tree.level(top)))
            size = max(LEAST_BATCH, len(nodes))
            # A batch that can be ended in time is worth trying when it is likely to be done.
            bound_ns = (self._costs.median_ns(size) if self._forward.abortable
                        else self._costs.bound_ns(size))
            now_ns = self._clock.now_ns()
            try:
                if not fits(now_ns, later_ns, bound_ns):
                    raise _Overdue(
                        f'{(later_ns - now_ns) / 1e6:.1f} ms left before pass '
                        f'{len(walk.passes_ns) + 1}, which takes up to {bound_ns / 1e6:.1f} ms'
                    )
                self._question_pass(walk, len(walk.tokens), nodes, later_ns, cancelled)
            except _Overdue:
                contenders = walk.contenders()
                if walk.space.least_departure(*contenders) < 0:
                    raise
                return contenders[0], True

    # --- passes ---------------------------------------------------------------------------

    def _question_pass(
        self, walk: Walk, start: int, nodes: Sequence[int], limit_ns: int,
        cancelled: Callable[[], bool],
    ) -> None:
        """Evaluate one pass of a question, ended at `limit_ns` or when the question is withdrawn.

        Raises _Withdrawn, _Overdue, _NotFinite or DecodeError.
        """
        space = walk.space
        if cancelled():
            raise _Withdrawn
        try:
            known = self._forward.ended_by(walk, start, nodes, limit_ns, cancelled)
        except DecodeError as err:
            if err.code != ABORTED:
                raise
            # What KV held before is as it was; the rest is removed before the next batch.
            if cancelled():
                raise _Withdrawn from err
            raise _Overdue(f'pass {len(walk.passes_ns) + 1} was ended at the deadline') from err
        for node, scores in known.items():
            bias = space.bias.get(node)
            corrected = (scores if bias is None else scores - bias).tolist()
            if not math.isfinite(sum(corrected)):
                after = space.answer_so_far(self._model, node)
                raise _NotFinite(f'logits of the choice after {after!r}: {corrected}'[:200])
            walk.shares[node] = log_shares(corrected)

    # --- what can wait --------------------------------------------------------------------

    def speak(self, request: int, interrupted: Callable[[], bool]) -> Said | None:
        """Return the free text after the last decision; None when there is none to give.

        Token by token until its end, its limits, the question's deadline or `interrupted()`; what
        was said by then is returned. It leaves nothing in KV.
        """
        spoken, self._spoken = self._spoken, None
        if spoken is None or spoken.request != request or self._current is not spoken.space:
            return None
        prompt = len(self._kv.tokens)
        position = prompt
        rest = list(spoken.tokens)

        def step(tokens: Sequence[int]) -> Logits:
            nonlocal position
            new = [*rest, *tokens]
            rest.clear()
            self._kv.begin()
            logits = self._forward.run(Batch(
                tokens=new, positions=range(position, position + len(new)),
                sequences=((WORKING,),) * len(new), outputs=(len(new) - 1,),
            ))
            position += len(new)
            row: Logits = logits[0]
            return row

        def may_go_on() -> bool:
            bound_ns = self._costs.bound_ns(max(1, len(rest)))
            return not interrupted() and fits(
                self._clock.now_ns(), spoken.deadline_ns, bound_ns
            )

        assert self._speech is not None, 'made with the declaration that asks for text'
        try:
            text, tokens, cut = self._speech.speak(spoken.space.declaration.text, step, may_go_on)
        except DecodeError as err:
            self._drop(spoken.space)
            if err.code < 0:
                raise
            return Said(request, '', 0, cut=True)
        self._kv.clear(prompt)
        return Said(request, text, tokens, cut)

    def idle(self) -> bool:
        """Write one small piece of the current history anew; False when there is none to write."""
        space = self._current
        if space is None or not space.history.due:
            return False
        prefix = space.prompt.prefix
        if space.history.begins:
            self._model.remove(SPARE, 0, -1)
            self._model.copy_sequence(space.pinned, SPARE, 0, -1)
        written, piece = space.history.piece(self._chunk)
        start = len(prefix) + written
        try:
            self._forward.run(Batch(
                tokens=piece, positions=range(start, start + len(piece)),
                sequences=((SPARE,),) * len(piece), outputs=(),
            ))
        except DecodeError as err:
            self._drop(space)
            if err.code < 0:
                raise
            return False
        if space.history.wrote(len(piece)):
            space.history.roll_over()
            self._kv.adopt_spare([*prefix, *space.history.tokens])
        return True

