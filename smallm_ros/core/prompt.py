"""A policy and an observation -> the texts of the prompt, slowest changing first.

The static part is told to the engine once (`declaration`) and stays in KV; a decision sends only
the readings (`segments`). Text from topics stays plain text until the engine tokenises it with
special tokens off: nothing here knows a control token.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.exchange import Correction, Decide, Declaration, FreeText, Segment
from smallm_ros.core.observation import Observation
from smallm_ros.core.policy import Parameter, Policy, choice_text
from smallm_ros.core.reference import content_free, draw

MAX_SEGMENT_CHARACTERS = 2000
MAX_LISTED = 12
"""Numbers of a grid that the system text lists; of more it shows how they begin and end."""


def declaration(policy: Policy) -> Declaration:
    """Return the static part of a policy: system text, examples, answers and how to choose."""
    space = ActionSpace.of(policy).actions
    order = {name: index for index, name in enumerate(policy.actions)}
    anytime, said = policy.decision.anytime, policy.free_text
    told = Declaration(
        space='',
        system='\n'.join((
            policy.mission.strip(),
            'Answer with exactly one of these actions:',
            *_action_lines(policy),
            *([f"After the action add '{said.lead.strip()}' and a short {said.name}."]
              if said else []),
        )),
        examples=tuple((e.observation.strip(), e.answer) for e in policy.examples),
        answers=tuple(action.answer for action in space),
        max_prompt_tokens=policy.decision.prompt_tokens,
        references=reference_texts(policy),
        correction=Correction(policy.prior.correction),
        decide=Decide(policy.decision.decide),
        actions=tuple(order[action.name] for action in space) if anytime else (),
        departures=tuple(action.departure for action in space) if anytime else (),
        history=policy.decision.history,
        text=FreeText(said.lead, said.max_tokens, said.max_characters) if said else FreeText(),
    )
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(told)).encode()).hexdigest()[:16]
    return dataclasses.replace(told, space=f'{policy.name}-{digest}')


def _action_lines(policy: Policy) -> list[str]:
    return [
        ' '.join((name, *map(_form, action.parameters.values()))) + f': {action.description}'
        for name, action in policy.actions.items()
    ]


def _form(parameter: Parameter) -> str:
    """Return `slow|fast`, `0.1|0.2|...|2`; of an optional one `[fast, else slow]`."""
    words = parameter.written
    if parameter.grid is not None and len(words) > MAX_LISTED:
        words = (*words[:2], '...', words[-1])
    form = '|'.join(words)
    return f'[{form}, else {choice_text(parameter.default)}]' if parameter.optional else form


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
    """Return the dynamic texts over which the bias is measured, without repetition."""
    match policy.prior.correction:
        case 'reference':
            observations = draw(policy, policy.prior.seed, policy.prior.references)
        case 'content_free':
            observations = content_free(policy)
        case _:
            observations = ()
    texts = (''.join(s.text for s in segments(policy, o)) for o in observations)
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
