"""One decision over the action tree, in at most two forward passes when the tree allows.

Pass one evaluates what changed in the prompt and yields the first choice; pass two evaluates the
whole chosen branch, each of its paths as a sequence of its own over the shared prompt, so that all
further choices are read off at once. The result is that of stepwise greedy decoding under the same
constraint. A branch too wide for the sequences or the batch is taken choice by choice.

KV: sequence 0 is the working prompt and keeps the longest common prefix from one decision to the
next; each declared static part is pinned in a sequence of its own; the rest are for branches and
are empty between decisions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from smallm_ros.core.action import ChoicePoint, Decision, Timings, TokenCounts
from smallm_ros.core.budget import CostModel, fits
from smallm_ros.core.clock import Clock
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
    Segment,
)
from smallm_ros.core.prompt import MAX_SEGMENT_CHARACTERS
from smallm_ros.core.tree import ROOT, Tree, tips
from smallm_ros.engine.model import Batch, DecodeError, Model
from smallm_ros.engine.templates import Rendered, conversation

WORKING = 0
MAX_SPACES = 8
FIRST_BRANCH = 1 + MAX_SPACES
STATIC_CHUNK = 64
"""Tokens of a static part in one batch."""
LINE_CACHE = 4096

Logits = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]


class Beats(Protocol):
    """Who is told when a batch goes in and comes out; see `engine/progress`."""

    def begin(self, bound_ns: int) -> None:
        """Say that a batch begins which should take at most `bound_ns`."""
        ...

    def end(self) -> None:
        """Say that it came back."""
        ...


class Decider(Protocol):
    """What a worker serves: the real one is `TreeDecider`, the scripted one is for tests."""

    @property
    def limits(self) -> ModelLimits:
        """What the model can do."""
        ...

    def declare(self, declaration: Declaration) -> Declared | DeclarationRejected:
        """Evaluate and pin a static part; the same one again costs nothing."""
        ...

    def decide(
        self, question: Question, received_ns: int, cancelled: Callable[[], bool]
    ) -> Answer:
        """Answer one question: exactly one answer, at the latest soon after its deadline."""
        ...

    def forget(self, space: str) -> None:
        """Free what a declaration holds."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@dataclass(slots=True)
class _Space:
    declaration: Declaration
    tree: Tree
    prompt: Rendered
    pinned: int
    """The sequence that holds the prefix."""
    widest_branch: int
    """Tokens of the largest second pass, 0 when the first choice decides everything."""
    bias: dict[int, Scores]
    """For each choice node, its children's mean logits over the reference observations."""


@dataclass(slots=True)
class _Tally:
    passes_ns: list[int] = field(default_factory=list)
    evaluated: int = 0


class _Overdue(Exception):
    """The next pass would end after the deadline."""


class _NotFinite(Exception):
    """The model's logits are no numbers."""


class _Withdrawn(Exception):
    """The client took its question back."""


class TreeDecider:
    """Decides with a `Model`, a token trie per declared space, and a cost model."""

    def __init__(self, model: Model, template: str, costs: CostModel, beats: Beats,
                 clock: Clock) -> None:
        self._model = model
        self._template = template
        self._costs = costs
        self._beats = beats
        self._clock = clock
        self._spaces: OrderedDict[str, _Space] = OrderedDict()
        self._current: _Space | None = None
        self._kv: list[int] = []
        """Tokens of the working sequence, one a position."""
        self._branches = 0
        """Sequences in use from FIRST_BRANCH on."""
        self._lines: OrderedDict[str, tuple[int, ...]] = OrderedDict()

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

    def declare(self, declaration: Declaration) -> Declared | DeclarationRejected:
        """Evaluate the static part in chunks and pin it; the same one again costs nothing."""
        space = self._spaces.get(declaration.space)
        if space is None:
            rejected = self._admit(declaration)
            if isinstance(rejected, str):
                return DeclarationRejected(declaration.space, rejected)
            space = rejected
        self._spaces.move_to_end(declaration.space)
        return Declared(
            declaration.space, len(space.prompt.prefix), len(declaration.answers),
            space.tree.choices,
        )

    def _admit(self, declaration: Declaration) -> _Space | str:
        prompt = conversation(
            self._template, self._model, declaration.system, declaration.examples
        )
        answers = [self._model.tokenize(answer) for answer in declaration.answers]
        try:
            tree = Tree.of(answers, prompt.end)
        except ValueError as err:
            return f'action space: {err}'
        room = self._room(prompt, declaration.max_prompt_tokens, tree)
        if room > self._model.n_ctx:
            return (f'static part {len(prompt.prefix)} + dynamic part at most '
                    f'{declaration.max_prompt_tokens} + answers = {room} tokens, the context has '
                    f'{self._model.n_ctx}: a larger context, or a shorter mission')
        if room - len(prompt.prefix) > self._model.n_batch:
            return (f'dynamic part and answers of {room - len(prompt.prefix)} tokens do not fit '
                    f'one batch of {self._model.n_batch}: a smaller prompt_tokens')
        while self._spaces and (
            len(self._spaces) == MAX_SPACES
            or room + sum(len(s.prompt.prefix) for s in self._spaces.values()) > self._model.n_ctx
        ):
            # Whoever still needs it is told that it is unknown, and declares it again.
            self.forget(next(iter(self._spaces)))
        used = {space.pinned for space in self._spaces.values()}
        pinned = next(s for s in range(1, FIRST_BRANCH) if s not in used)
        first = (ROOT, *tree.forced_run(ROOT))[-1]
        widest = max((len(tree.open_nodes(c)) for c in tree.nodes[first].children), default=0)
        space = _Space(declaration, tree, prompt, pinned, widest, {})
        self._spaces[declaration.space] = space
        try:
            self._evaluate_static(prompt.prefix, pinned)
            space.bias = self._measure_bias(space)
        except WorkerError:
            self.forget(declaration.space)
            raise
        return space

    def _room(self, prompt: Rendered, dynamic: int, tree: Tree) -> int:
        """Return how many KV cells a decision of this space can need at the most."""
        nodes = len(tree.open_nodes(ROOT))
        return len(prompt.prefix) + dynamic + len(prompt.suffix) + nodes

    def _evaluate_static(self, tokens: Sequence[int], sequence: int) -> None:
        for start in range(0, len(tokens), STATIC_CHUNK):
            chunk = tokens[start:start + STATIC_CHUNK]
            self._run(Batch(
                tokens=chunk, positions=range(start, start + len(chunk)),
                sequences=((sequence,),) * len(chunk), outputs=(),
            ), _Tally())

    def _measure_bias(self, space: _Space) -> dict[int, Scores]:
        """Return the mean logits of each choice over the references, in one pass for each.

        A tree too wide for one pass has only its first choice corrected.
        """
        tree = space.tree
        rows: dict[int, list[Scores]] = {}
        nodes = tree.open_nodes(ROOT)[1:]
        if not self._one_pass(tree, nodes):
            nodes = tree.open_path(ROOT)[1:]
        for text in space.declaration.references:
            tokens, fixed = self._tokens(space, text.splitlines(keepends=True))
            if len(tokens) - fixed > space.declaration.max_prompt_tokens:
                continue
            reused = self._reusable(space, tokens)
            self._rewind(space, reused)
            known = self._pass(tree, tokens[reused:], reused, nodes, _Tally())
            self._kv = tokens
            for node, logits in known.items():
                rows.setdefault(node, []).append(_scores(tree, node, logits))
            self._clear_branches(len(tokens))
        bias = {node: np.mean(scores, axis=0) for node, scores in rows.items()}
        if not all(np.isfinite(scores).all() for scores in bias.values()):
            raise WorkerError('the logits of the reference observations are not finite')
        return bias

    def _one_pass(self, tree: Tree, nodes: Sequence[int]) -> bool:
        """Return whether there are sequences enough for the branches of these nodes."""
        return len(tips(tree, nodes)) <= self._model.n_seq_max - FIRST_BRANCH

    def forget(self, space: str) -> None:
        """Free the pinned prefix of a space."""
        known = self._spaces.pop(space, None)
        if known is not None:
            self._model.remove(known.pinned, 0, -1)
            if self._current is known:
                self._drop_working()

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    # --- one decision ---------------------------------------------------------------------

    def decide(
        self, question: Question, received_ns: int, cancelled: Callable[[], bool]
    ) -> Answer:
        """Answer one question: exactly one answer, at the latest soon after its deadline."""
        started_ns = self._clock.now_ns()
        space = self._spaces.get(question.space)
        if space is None:
            return Refused(question.request, RefusedWhy.UNKNOWN_SPACE,
                           f'space {question.space!r} was not declared to this worker')
        if started_ns >= question.deadline_ns:
            return Refused(question.request, RefusedWhy.TOO_LATE,
                           f'deadline passed {(started_ns - question.deadline_ns) / 1e6:.1f} ms '
                           'before work began')
        self._spaces.move_to_end(question.space)
        kept, plan = self._fit(space, question)
        tokenised_ns = self._clock.now_ns()
        if isinstance(plan, Refused):
            self._costs.relax()
            return plan
        tally = _Tally()
        try:
            leaf, confidence, choices, reused = self._choose(
                space, plan, question.deadline_ns, cancelled, tally
            )
        except _Withdrawn:
            return Cancelled(question.request)
        except _Overdue as err:
            return Missed(question.request, MissedWhy.DEADLINE, str(err))
        except _NotFinite as err:
            self._drop_working()
            return Missed(question.request, MissedWhy.NOT_FINITE, str(err))
        except DecodeError as err:
            self._drop_working()
            if err.code < 0:
                raise
            return Missed(question.request, MissedWhy.DECODE_FAILED, str(err))
        finished_ns = self._clock.now_ns()
        if finished_ns > question.deadline_ns:
            return Missed(
                question.request, MissedWhy.DEADLINE,
                f'answer known {(finished_ns - question.deadline_ns) / 1e6:.1f} ms late',
            )
        decision = Decision(
            leaf=leaf, confidence=confidence, choices=choices,
            tokens=TokenCounts(prompt=len(plan), reused=reused, evaluated=tally.evaluated,
                               passes=len(tally.passes_ns)),
            timings=Timings(received_ns, started_ns, finished_ns, tokenised_ns - started_ns,
                            tuple(tally.passes_ns)),
        )
        dropped = tuple(s.name for s in question.segments if s not in kept)
        return Decided(question.request, decision, dropped, self._model.sha256)

    def _fit(
        self, space: _Space, question: Question
    ) -> tuple[tuple[Segment, ...], list[int] | Refused]:
        """Return the segments kept and the prompt's tokens, or why it cannot be.

        Segments go by priority, largest number first, until the token limit and the deadline hold.
        """
        kept = question.segments
        longest = max((len(s.text) for s in kept), default=0)
        if longest > MAX_SEGMENT_CHARACTERS + 1:
            # Refused unread: tokenising it would take the time of a driving decision.
            return kept, Refused(
                question.request, RefusedWhy.PROMPT_TOO_LONG,
                f'a segment of {longest} characters, at most {MAX_SEGMENT_CHARACTERS}',
            )
        while True:
            tokens, fixed = self._tokens(space, [s.text for s in kept])
            changed = len(tokens) - self._reusable(space, tokens)
            branch = (space.widest_branch,) if space.widest_branch else ()
            cost = self._costs.bound_ns(changed, *branch)
            now_ns = self._clock.now_ns()
            too_long = len(tokens) - fixed > space.declaration.max_prompt_tokens
            if not too_long and fits(now_ns, question.deadline_ns, cost):
                return kept, tokens
            least = max((s.priority for s in kept), default=0)
            if least == 0:
                break
            kept = tuple(s for s in kept if s.priority < least)
        if too_long:
            return kept, Refused(
                question.request, RefusedWhy.PROMPT_TOO_LONG,
                f'{len(tokens) - fixed} tokens, at most {space.declaration.max_prompt_tokens}',
            )
        return kept, Refused(
            question.request, RefusedWhy.DOES_NOT_FIT,
            f'needs up to {cost / 1e6:.0f} ms for {changed} tokens and the branch, '
            f'{(question.deadline_ns - now_ns) / 1e6:.0f} ms are left',
        )

    def _tokens(self, space: _Space, lines: Sequence[str]) -> tuple[list[int], int]:
        """Return the whole prompt and how many of its tokens are not dynamic."""
        prompt = space.prompt
        tokens = list(prompt.prefix)
        for line in lines:
            tokens += self._line(line)
        return tokens + list(prompt.suffix), len(prompt.prefix) + len(prompt.suffix)

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

    def _reusable(self, space: _Space, tokens: Sequence[int]) -> int:
        """Return how many leading tokens KV holds; the last is always evaluated for its logits."""
        if self._current is not space:
            return len(space.prompt.prefix)
        common = 0
        for ours, theirs in zip(self._kv, tokens, strict=False):
            if ours != theirs:
                break
            common += 1
        return min(common, len(tokens) - 1)

    def _choose(
        self, space: _Space, tokens: list[int], deadline_ns: int,
        cancelled: Callable[[], bool], tally: _Tally,
    ) -> tuple[int, float, tuple[ChoicePoint, ...], int]:
        """Return (leaf, its probability, the choices on its path, tokens reused)."""
        tree = space.tree
        reused = self._reusable(space, tokens)
        self._rewind(space, reused)
        opening = tree.forced_run(ROOT) if tree.nodes[ROOT].choice_below else ()
        known = self._pass(tree, tokens[reused:], reused, opening, tally)
        self._kv = tokens
        try:
            node = (ROOT, *opening)[-1]
            confidence, choices = 1.0, []
            while tree.nodes[node].leaf < 0:
                if tree.nodes[node].is_choice:
                    if node not in known:
                        if cancelled():
                            raise _Withdrawn
                        nodes = self._next_nodes(tree, node, known)
                        bound_ns = self._costs.bound_ns(len(nodes))
                        now_ns = self._clock.now_ns()
                        if not fits(now_ns, deadline_ns, bound_ns):
                            raise _Overdue(
                                f'{(deadline_ns - now_ns) / 1e6:.1f} ms left before pass '
                                f'{len(tally.passes_ns) + 1}, which takes up to '
                                f'{bound_ns / 1e6:.1f} ms'
                            )
                        known |= self._pass(tree, (), len(tokens), nodes, tally)
                    chosen, point = self._weigh(space, node, known[node])
                    confidence *= point.children[chosen][1]
                    choices.append(point)
                    node = tree.nodes[node].children[chosen]
                else:
                    node = tree.nodes[node].children[0]
            return tree.nodes[node].leaf, confidence, tuple(choices), reused
        finally:
            self._clear_branches(len(tokens))

    def _next_nodes(self, tree: Tree, node: int, known: dict[int, Logits]) -> tuple[int, ...]:
        """Return the nodes of the next pass: the whole branch, or the path when it is too wide."""
        top = node
        while tree.nodes[top].parent not in known:
            top = tree.nodes[top].parent
        nodes = tree.open_nodes(top)
        if not self._one_pass(tree, nodes):
            nodes = tree.open_path(top)
        return nodes

    def _pass(
        self, tree: Tree, prompt: Sequence[int], start: int, nodes: Sequence[int], tally: _Tally
    ) -> dict[int, Logits]:
        """Evaluate new prompt tokens and tree nodes in one batch; return logits of the choices.

        Tokens of the prompt begin at position `start`; a node stands at prompt length + depth - 1.
        A path of one tip rides on the working sequence, several tips on branches of their own.
        """
        base = start + len(prompt)
        ends = tips(tree, nodes)
        lanes: dict[int, list[int]] = {n: [] for n in nodes}
        self._branches = len(ends) if len(ends) > 1 else 0
        branches = [FIRST_BRANCH + lane for lane in range(self._branches)]
        for sequence in branches:
            self._model.copy_sequence(WORKING, sequence, 0, -1)
        for sequence, tip in zip(branches or [WORKING], ends, strict=False):
            at = tip
            while at in lanes:
                lanes[at].append(sequence)
                at = tree.nodes[at].parent
        outputs, rows = [], []
        if prompt and tree.nodes[ROOT].is_choice:
            outputs.append(len(prompt) - 1)
            rows.append(ROOT)
        for index, node in enumerate(nodes, start=len(prompt)):
            if tree.nodes[node].is_choice:
                outputs.append(index)
                rows.append(node)
        logits = self._run(Batch(
            tokens=[*prompt, *(tree.nodes[n].token for n in nodes)],
            positions=[*range(start, base), *(base + tree.nodes[n].depth - 1 for n in nodes)],
            sequences=[*((WORKING, *branches),) * len(prompt), *(tuple(lanes[n]) for n in nodes)],
            outputs=outputs,
        ), tally)
        return {node: logits[row] for row, node in enumerate(rows)}

    def _run(self, batch: Batch, tally: _Tally) -> Logits:
        size = len(batch.tokens)
        began_ns = self._clock.now_ns()
        self._beats.begin(self._costs.bound_ns(size))
        try:
            logits = self._model.evaluate(batch)
        finally:
            self._beats.end()
        took_ns = self._clock.now_ns() - began_ns
        self._costs.measured(size, took_ns)
        tally.passes_ns.append(took_ns)
        tally.evaluated += size
        return logits

    def _weigh(self, space: _Space, node: int, logits: Logits) -> tuple[int, ChoicePoint]:
        """Return the index of the likeliest child (the first of equals) and the softmax."""
        tree = space.tree
        children = tree.nodes[node].children
        scores = _scores(tree, node, logits) - space.bias.get(node, 0.0)
        if not np.isfinite(scores).all():
            raise _NotFinite(f'logits of the choice after {self._text(tree, node)!r}: {scores}')
        weights = np.exp(scores - scores.max())
        shares = weights / weights.sum()
        point = ChoicePoint(
            prefix=self._text(tree, node),
            children=tuple(
                (self._text(tree, c, above=node), float(share))
                for c, share in zip(children, shares, strict=True)
            ),
        )
        return int(scores.argmax()), point

    def _text(self, tree: Tree, node: int, above: int = ROOT) -> str:
        pieces = []
        while node not in (above, ROOT):
            pieces.append(self._model.piece(tree.nodes[node].token))
            node = tree.nodes[node].parent
        return b''.join(reversed(pieces)).decode('utf-8', 'replace')

    # --- what KV holds ----------------------------------------------------------------------

    def _rewind(self, space: _Space, keep: int) -> None:
        """Make the working sequence hold exactly the first `keep` tokens of the prompt."""
        if self._current is not space:
            self._drop_working()
            self._model.copy_sequence(space.pinned, WORKING, 0, -1)
            self._current = space
            self._kv = list(space.prompt.prefix)
        self._model.remove(WORKING, keep, -1)
        self._kv = self._kv[:keep]

    def _clear_branches(self, length: int) -> None:
        for lane in range(self._branches):
            self._model.remove(FIRST_BRANCH + lane, 0, -1)
        self._branches = 0
        self._model.remove(WORKING, length, -1)

    def _drop_working(self) -> None:
        self._clear_branches(0)
        self._current = None
        self._kv = []


def _scores(tree: Tree, node: int, logits: Logits) -> Scores:
    """Return the logits of a choice's children, in their order."""
    return logits[[tree.nodes[c].token for c in tree.nodes[node].children]].astype(np.float64)
