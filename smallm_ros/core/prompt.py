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
from collections.abc import Sequence

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.choice import choice_text
from smallm_ros.core.exchange import (
    Correction,
    Decide,
    Declaration,
    FreeText,
    Segment,
    Shorter,
)
from smallm_ros.core.observation import Observation, Phrase, Reading
from smallm_ros.core.policy import Parameter, Policy
from smallm_ros.core.reference import content_free, draw
from smallm_ros.core.sensor import SensorBase

MAX_SEGMENT_CHARACTERS = 2000
MISSION = 'mission'
"""Name of the segment that holds the operator's words."""
_MORE = 'more left out'
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
            *([f'The line `{MISSION}:` is what the operator wants now. It adds no action.']
              if policy.mission_topic else []),
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


def segments(
    policy: Policy, observation: Observation, mission: str = ''
) -> tuple[Segment, ...]:
    """Return one segment a reading, a line each, what changes least first so that its KV is kept.

    The order is as declared (`volatility`), never as it happens to be: the same observation always
    gives the same text. The operator's words, `mission` as `Mission` has cleaned it, stand before
    all.
    """
    shown = (r for r in observation.readings if policy.sensors[r.sensor].in_prompt)
    order = sorted(shown, key=lambda r: volatility(policy.sensors[r.sensor]))
    said = tuple(
        _segment(reading, '' if reading is order[-1] else '\n') for reading in order
    )
    if policy.mission_topic is None or not mission:
        return said
    # Never among those that stay whatever it costs: no text can keep the sensors out.
    least = 1 + min((s.priority for s in said), default=-1)
    words = f'{MISSION}: "{mission}"' + ('\n' if said else '')
    return (Segment(MISSION, words, max(least, policy.mission_topic.priority)), *said)


def volatility(sensor: SensorBase) -> tuple[int, float]:
    """Return what sensors are put in order by, the steadiest first."""
    return {'rarely': 0, None: 1, 'often': 2}[sensor.changes], sensor.rate_hz


def _segment(reading: Reading, end: str) -> Segment:
    """Return a reading's line, and what is left of it when its lesser phrases leave."""
    phrases = [Phrase(plain(phrase.text), phrase.less) for phrase in reading.phrases]
    return Segment(
        name=reading.sensor, text=_line(reading.sensor, phrases) + end,
        priority=reading.priority,
        shorter=tuple(
            Shorter(reading.priority + less,
                    _line(reading.sensor, [p for p in phrases if p.less < less]) + end)
            for less in sorted({p.less for p in phrases if p.less}, reverse=True)
            if any(p.less < less for p in phrases)
        ),
    )


def _line(sensor: str, phrases: Sequence[Phrase]) -> str:
    """Return the line of a sensor; whole phrases leave what is too long, and it says so."""
    kept = list(phrases)
    while True:
        said = ', '.join([p.text for p in kept] + [_MORE] * (len(kept) < len(phrases)))
        line = f'{sensor}: {said}' if said else f'{sensor}:'
        if len(line) <= MAX_SEGMENT_CHARACTERS:
            return line
        worst = max(p.less for p in kept)
        del kept[max(i for i, p in enumerate(kept) if p.less == worst)]


def leaving(segments: Sequence[Segment]) -> tuple[int, ...]:
    """Return the priorities at which something can leave these segments, the first to go first.

    Those of the least priority stay whatever it costs: nothing is decided without seeing.
    """
    least = min((s.priority for s in segments), default=0)
    return tuple(sorted(
        {s.priority for s in segments if s.priority > least}
        | {each.priority for s in segments for each in s.shorter}, reverse=True,
    ))


def without(
    segments: Sequence[Segment], priority: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (lines, left out) when all of this priority or a greater number has left.

    Values leave whole. The last line says what was left out, in the same words.
    """
    lines: list[str] = []
    left_out: list[str] = []
    for segment in segments:
        shorter = [each for each in segment.shorter if each.priority >= priority]
        if segment.priority >= priority:
            left_out.append(segment.name)
        elif shorter:
            left_out.append(f'some of {segment.name}')
            lines.append(min(shorter, key=lambda each: each.priority).text)
        else:
            lines.append(segment.text)
    if left_out:
        lines = [line if line.endswith('\n') else f'{line}\n' for line in lines]
        lines.append(f'left out: {", ".join(left_out)}')
    return tuple(lines), tuple(left_out)


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
