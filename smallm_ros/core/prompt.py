"""A policy and an observation -> the texts of the prompt, slowest changing first.

The static part is told to the engine once (`declaration`) and stays in KV; a decision sends only
the readings (`segments`). Text from topics stays plain text until the engine tokenises it with
special tokens off: nothing here knows a control token.
"""

from __future__ import annotations

import hashlib
import unicodedata

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.exchange import Declaration, Segment
from smallm_ros.core.observation import Observation
from smallm_ros.core.policy import Policy, choice_text
from smallm_ros.core.reference import draw

MAX_SEGMENT_CHARACTERS = 2000


def declaration(policy: Policy) -> Declaration:
    """Return the static part of a policy: system text, examples, the complete answers."""
    system = '\n'.join((
        policy.mission.strip(),
        'Answer with exactly one of these actions:',
        *_action_lines(policy),
    ))
    examples = tuple((e.observation.strip(), e.answer) for e in policy.examples)
    answers = ActionSpace.of(policy).answers
    references = reference_texts(policy) if policy.prior.correction == 'reference' else ()
    limit = policy.decision.prompt_tokens
    digest = hashlib.sha256(
        repr((system, examples, answers, limit, references)).encode()
    ).hexdigest()[:16]
    return Declaration(
        space=f'{policy.name}-{digest}', system=system, examples=examples, answers=answers,
        max_prompt_tokens=limit, references=references,
    )


def _action_lines(policy: Policy) -> list[str]:
    lines = []
    for name, action in policy.actions.items():
        form = ' '.join((
            name,
            *('|'.join(choice_text(c) for c in p.choices) for p in action.parameters.values()),
        ))
        lines.append(f'{form}: {action.description}')
    return lines


def segments(policy: Policy, observation: Observation) -> tuple[Segment, ...]:
    """Return one segment a reading, optional and slow sensors first, a line each.

    The order is by declared rate, so that what changes least stands first and its KV is kept.
    """
    shown = (r for r in observation.readings if policy.sensors[r.sensor].in_prompt)
    order = sorted(shown, key=lambda r: policy.sensors[r.sensor].rate_hz)
    last = len(order) - 1
    return tuple(
        Segment(
            name=reading.sensor,
            text=plain(reading.text) + ('' if index == last else '\n'),
            priority=reading.priority,
        )
        for index, reading in enumerate(order)
    )


def reference_texts(policy: Policy) -> tuple[str, ...]:
    """Return the dynamic texts of observations drawn by the policy's seed, without repetition."""
    drawn = draw(policy, policy.prior.seed, policy.prior.references)
    texts = (''.join(s.text for s in segments(policy, o)) for o in drawn)
    return tuple(dict.fromkeys(texts))


def plain(text: str) -> str:
    """Return the text NFKC-normalised, on one line, without control or format characters.

    Normalised first and stripped after: full-width text can become a control token's spelling.
    """
    normal = unicodedata.normalize('NFKC', text[:MAX_SEGMENT_CHARACTERS])
    kept = ''.join(
        c for c in normal if c == ' ' or unicodedata.category(c) not in _DROPPED
    )
    return kept[:MAX_SEGMENT_CHARACTERS]


_DROPPED = frozenset({'Cc', 'Cf', 'Cs', 'Co', 'Cn', 'Zl', 'Zp'})
