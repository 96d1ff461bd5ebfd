"""A recorded decision, decided again from its token ids: the same, or why not.

What was different before the model chose is looked for first (another model, another static part,
no token ids), because then another choice says nothing. Of two different choices one is a tie when
neither run preferred its own by more than `tolerance`, in log-probability: two builds, or batches
of other sizes, may round differently. Of a partial decision only what was chosen in time counts.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from smallm_ros.core.action import ChoicePoint, Decision
from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import SmallmError
from smallm_ros.core.exchange import (
    Decide,
    Decided,
    Declaration,
    DeclarationRejected,
    Declared,
    ModelLimits,
)

TOLERANCE = 0.1
"""Logits. Batches of the same kernels gave the same bits here, at any size up to 32 tokens."""


class Verdict(str, enum.Enum):
    """What deciding again came to."""

    SAME = 'same'
    TIE = 'tie'
    OTHER_ANSWER = 'other answer'
    OTHER_MODEL = 'other model'
    OTHER_STATIC = 'other static part'
    NOT_RUN = 'not run'

    @property
    def good(self) -> bool:
        """Whether the record was repeated."""
        return self in (Verdict.SAME, Verdict.TIE)


@dataclass(frozen=True, slots=True)
class Again:
    """One recorded decision and what came of it the second time."""

    record: DecisionRecord
    verdict: Verdict
    why: str = ''
    """Empty when the decision was the same and so was what led to it."""
    answer: str = ''
    """What was decided now; empty when nothing was."""
    drift: float | None = None
    """The largest difference of a probability at the choices that both made; None without any."""


class Redecider(Protocol):
    """What running again needs of `engine.decode.TreeDecider`."""

    @property
    def limits(self) -> ModelLimits:
        """The model that is resident now."""
        ...

    def declare(self, declaration: Declaration) -> Declared | DeclarationRejected:
        """Evaluate and pin a static part."""
        ...

    def prefix(self, space: str) -> tuple[int, ...]:
        """Return the token ids of a declared static part."""
        ...

    def redecide(self, space: str, ids: Sequence[int]) -> Decided:
        """Decide on exactly these tokens after the static part, without a deadline."""
        ...


def can_run_again(record: DecisionRecord) -> bool:
    """Whether the record has a decision that was judged for what it says, not for being late."""
    return record.outcome in ('decided', 'unsure') and record.decision is not None


def run_again(
    records: Iterable[DecisionRecord], declarations: Mapping[str, Declaration],
    decider: Redecider, tolerance: float = TOLERANCE,
) -> Iterator[Again]:
    """Yield each of `records`, which `can_run_again`, with what comes of it now.

    A declaration that a recording names is evaluated when the first decision asks for it.
    """
    prefixes: dict[str, int | str] = {}
    """Length of each static part, or why it cannot be evaluated."""
    limits = decider.limits
    for record in records:
        if record.model_sha256 != limits.sha256:
            yield Again(record, Verdict.OTHER_MODEL, (
                f'recorded with model {record.model_sha256[:12]}, this is {limits.sha256[:12]} '
                f'({limits.name})'))
            continue
        declaration = declarations.get(record.space)
        if declaration is None:
            yield Again(record, Verdict.OTHER_STATIC,
                        f'the recording has no declaration {record.space!r}')
            continue
        if record.space not in prefixes:
            prefixes[record.space] = _declare(decider, declaration)
        yield _run(record, declaration, prefixes[record.space], decider, tolerance)


def _declare(decider: Redecider, declaration: Declaration) -> int | str:
    told = decider.declare(declaration)
    if isinstance(told, DeclarationRejected):
        return f'the model rejects the declaration: {told.why}'
    return len(decider.prefix(declaration.space))


def _run(
    record: DecisionRecord, declaration: Declaration, prefix: int | str, decider: Redecider,
    tolerance: float,
) -> Again:
    assert record.decision is not None
    if isinstance(prefix, str):
        return Again(record, Verdict.OTHER_STATIC, prefix)
    if not record.ids:
        return Again(record, Verdict.NOT_RUN, 'the record has no token ids')
    recorded = record.decision.tokens.prompt - len(record.ids)
    if recorded != prefix:
        return Again(record, Verdict.OTHER_STATIC,
                     f'its static part had {recorded} tokens, the one here has {prefix}')
    odd = next((i for i in record.ids if not 0 <= i < decider.limits.vocabulary), None)
    if odd is not None:
        return Again(record, Verdict.NOT_RUN, (
            f'token {odd} is none of the {decider.limits.vocabulary} of the vocabulary'))
    if prefix + len(record.ids) > decider.limits.context_tokens:
        return Again(record, Verdict.NOT_RUN, (
            f'{prefix + len(record.ids)} tokens, the context has {decider.limits.context_tokens}: '
            'a larger --context'))
    if not 0 <= record.decision.leaf < len(declaration.answers):
        return Again(record, Verdict.OTHER_STATIC, (
            f'leaf {record.decision.leaf} is none of the declaration\'s '
            f'{len(declaration.answers)} answers'))
    try:
        now = decider.redecide(record.space, record.ids)
    except (SmallmError, ValueError) as err:  # the model's, or tokens that fit no batch
        return Again(record, Verdict.NOT_RUN, f'the engine could not: {err}')
    return compare(record, now, declaration, tolerance)


def compare(
    record: DecisionRecord, now: Decided, declaration: Declaration, tolerance: float
) -> Again:
    """Return what `record` is beside `now`, the decision on the same tokens."""
    assert record.decision is not None
    then = record.decision
    answer = declaration.answers[now.decision.leaf]
    drift = _drift(then.choices, now.decision.choices)
    prior = '' if record.prior == now.prior else (
        f'subtracted was {record.prior} then, {now.prior} now')
    if _chose_the_same(record, then, now.decision, declaration):
        return Again(record, Verdict.SAME, prior, answer, drift)
    gap = _gap(then, now.decision, declaration.decide)
    said = [f'{declaration.answers[then.leaf]!r} then, {answer!r} now', *filter(None, [prior])]
    tie = gap is not None and gap <= tolerance
    if gap is not None:
        said.append(f'{gap:.3f} apart' + ('' if tie else f', a tie up to {tolerance:g}'))
    verdict = Verdict.TIE if tie else Verdict.OTHER_ANSWER
    return Again(record, verdict, '; '.join(said), answer, drift)


def _chose_the_same(
    record: DecisionRecord, then: Decision, now: Decision, declaration: Declaration
) -> bool:
    if not record.partial:
        return then.leaf == now.leaf
    actions = declaration.actions
    if actions and actions[then.leaf] != actions[now.leaf]:
        return False
    shared = _shared(then.choices, now.choices)
    return len(shared) == len(then.choices) and all(_top(a) == _top(b) for a, b in shared)


def _shared(
    then: Sequence[ChoicePoint], now: Sequence[ChoicePoint]
) -> list[tuple[ChoicePoint, ChoicePoint]]:
    """Return the choices that both runs stood at, from the root on."""
    return list(takewhile(
        lambda pair: _texts(pair[0]) == _texts(pair[1]), zip(then, now, strict=False)
    ))


def _texts(point: ChoicePoint) -> tuple[str, ...]:
    return (point.prefix, *(text for text, _ in point.children))


def _top(point: ChoicePoint) -> int:
    shares = [share for _, share in point.children]
    return shares.index(max(shares))


def _drift(then: Sequence[ChoicePoint], now: Sequence[ChoicePoint]) -> float | None:
    differences = [
        abs(x - y)
        for a, b in _shared(then, now)
        for (_, x), (_, y) in zip(a.children, b.children, strict=True)
    ]
    return max(differences, default=None)


def _gap(then: Decision, now: Decision, decide: Decide) -> float | None:
    """Return by how much, in logits, the surer of the two runs preferred its own answer.

    Greedy: at the choice where their ways part, over the other's. The best leaf: over its
    runner-up, at least as likely as the other run's leaf. None where the record does not tell.
    """
    if decide is Decide.BEST:
        return max(_lead(then), _lead(now))
    for a, b in _shared(then.choices, now.choices):
        old, new = _top(a), _top(b)
        if old != new:
            return max(
                _log_ratio(a.children[old][1], a.children[new][1]),
                _log_ratio(b.children[new][1], b.children[old][1]),
            )
    return None


def _lead(decision: Decision) -> float:
    return _log_ratio(decision.confidence, decision.confidence - decision.margin)


def _log_ratio(more: float, less: float) -> float:
    return math.log(more / less) if more > 0 and less > 0 else math.inf


# --- what is told -----------------------------------------------------------------------------


def summary(again: Sequence[Again]) -> str:
    """Return one line: how many were repeated, and what became of the others."""
    counts = {verdict: sum(a.verdict is verdict for a in again) for verdict in Verdict}
    good = sum(a.verdict.good for a in again)
    others = ', '.join(
        f'{n} {verdict.value}' for verdict, n in counts.items() if n and not verdict.good
    )
    ties = f' ({counts[Verdict.TIE]} as ties)' if counts[Verdict.TIE] else ''
    drifts = [a.drift for a in again if a.drift is not None]
    drift = f'; probabilities differ by at most {max(drifts):.2g}' if drifts else ''
    return f'{good} of {len(again)} the same{ties}' + (f'; {others}' if others else '') + drift


def document(again: Sequence[Again]) -> dict[str, object]:
    """Return what `smallm rerun --json` prints: plain values."""
    drifts = [a.drift for a in again if a.drift is not None]
    return {
        'schema_version': 1,
        'decisions': len(again),
        'verdicts': {v.value: sum(a.verdict is v for a in again) for v in Verdict},
        'all_same': all(a.verdict.good for a in again),
        'largest_drift': max(drifts, default=None),
        'each': [
            {
                'session': a.record.session, 'request': a.record.request,
                'verdict': a.verdict.value, 'why': a.why,
                'action': a.record.action, 'parameters': a.record.parameters,
                'answer_now': a.answer, 'partial': a.record.partial, 'drift': a.drift,
            }
            for a in again
        ],
    }
