"""What is decided on: observations by seed, each in our words and in a person's.

The compact text is what our engine reads. The sentence says the same to a chat model in the way
that people write prompts: whole words, units, a verb. The worded text is the compact one with
bins, as explorer.yaml has them: a word where a distance has three tokens. All come from the same
readings.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.exchange import Segment
from smallm_ros.core.observation import Observation
from smallm_ros.core.policy import Policy
from smallm_ros.core.prompt import segments
from smallm_ros.core.reference import draw
from smallm_ros.core.summary.goal import GoalSensor
from smallm_ros.core.summary.odometry import OdometrySensor
from smallm_ros.core.summary.scan import Bin, ScanSensor

_BINS = (Bin(word='blocked', below_m=0.6), Bin(word='near', below_m=1.2))
_FAR_WORD = 'free'
_SPARE_DRAWS = 4
"""Times as many are drawn as are asked for: coarse words repeat themselves."""


@dataclass(frozen=True, slots=True)
class Case:
    """One observation."""

    segments: tuple[Segment, ...]
    sentence: str
    worded: tuple[Segment, ...]

    @property
    def compact(self) -> str:
        """The segments as one text."""
        return ''.join(s.text for s in self.segments)


def cases(policy: Policy, seed: int, count: int) -> tuple[Case, ...]:
    """Return at most `count` observations, no two neighbours alike; equal for equal seeds."""
    found: list[Case] = []
    for observation in draw(policy, seed, count * _SPARE_DRAWS):
        text = segments(policy, observation)
        if not found or found[-1].segments != text:
            words = tuple(_worded(policy, segment) for segment in text)
            found.append(Case(text, sentence(policy, observation), words))
    return tuple(found[:count])


def in_words(policy: Policy) -> Policy:
    """Return the policy with bins for every scan that it gives in metres."""
    return policy.model_copy(update={'sensors': {
        name: sensor.model_copy(update={'bins': _BINS, 'far_word': _FAR_WORD})
        if isinstance(sensor, ScanSensor) and not sensor.bins else sensor
        for name, sensor in policy.sensors.items()
    }})


def _worded(policy: Policy, segment: Segment) -> Segment:
    """Return a segment as the policy `in_words` would give it."""
    sensor = policy.sensors[segment.name]
    if not isinstance(sensor, ScanSensor) or sensor.bins:
        return segment
    text = re.sub(rf'(?<= )([0-9.]+|{re.escape(sensor.far_word)})(?=,|\n|$)', _bin, segment.text)
    return replace(segment, text=text)


def _bin(found: re.Match[str]) -> str:
    if not found[1][0].isdigit():
        return _FAR_WORD
    return next((b.word for b in _BINS if float(found[1]) < b.below_m), _FAR_WORD)


def sentence(policy: Policy, observation: Observation) -> str:
    """Return the readings in the prompt as a person would write them."""
    said = []
    for segment in segments(policy, observation):
        sensor = policy.sensors[segment.name]
        text = segment.text.strip().removeprefix(f'{segment.name}: ')
        match sensor:
            case ScanSensor():
                parts = [_distance(*item.rsplit(' ', 1)) for item in text.split(', ')]
                said.append(f'The laser scanner {_listed(parts)}.')
            case OdometrySensor():
                said.append(_motion(text))
            case GoalSensor():
                said.append(_goal(text))
    return ' '.join(said)


def _distance(sector: str, word: str) -> str:
    place = f'to the {sector}' if sector in ('left', 'right') else \
        'straight ahead' if sector == 'ahead' else f'to the {sector.replace("-", " ")}'
    if re.fullmatch(r'[0-9.]+', word):
        return f'sees an obstacle {word} meters away {place}'
    if word in ('far', 'free'):
        return f'sees no obstacle {place}'
    return f'reports {word} {place}'


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ', '.join(parts[:-1]) + f' and {parts[-1]}'


def _motion(text: str) -> str:
    if text == 'standing':
        return 'The robot is standing still at the moment.'
    moved = re.fullmatch(r'(?:(ahead|back) ([0-9.]+))? ?(?:turning (left|right))?', text)
    if moved is None:
        return f'The odometry says: {text}.'
    how = []
    if moved[1]:
        way = 'forward' if moved[1] == 'ahead' else 'backward'
        how.append(f'moving {way} at {moved[2]} meters per second')
    if moved[3]:
        how.append(f'turning {moved[3]}')
    return f'The robot is currently {" and ".join(how)}.'


def _goal(text: str) -> str:
    found = re.fullmatch(r'([0-9.]+) m (.+)', text)
    if found is None:
        return f'The goal: {text}.'
    where = {'ahead': 'straight ahead', 'behind': 'behind the robot'}.get(
        found[2], f'to the {found[2].replace("-", " ")}'
    )
    return f'The goal is {found[1]} meters away, {where}.'


@dataclass(frozen=True, slots=True)
class AsJson:
    """The action space as a chat model is made to give it: {"action": "left", "amount": "sharp"}.

    The shortest JSON that names what it says; a decider's answers are words without keys.
    """

    objects: tuple[tuple[str, dict[str, str]], ...]
    """(our answer, the same as an object), for every leaf."""

    @classmethod
    def of(cls, policy: Policy) -> AsJson:
        """Return every member of the policy's action space as an object."""
        return cls(tuple(
            (action.answer, {'action': action.name, **dict(action.parameters)})
            for action in ActionSpace.of(policy).actions
        ))

    def text(self, answer: str) -> str:
        """Return one of our answers as compact JSON."""
        return json.dumps(dict(self.objects)[answer], separators=(',', ':'))

    def answer(self, text: str) -> str:
        """Return what a model said as one of our answers; '' when it is none of them."""
        try:
            said = json.loads(text)
        except ValueError:
            return ''
        return next((answer for answer, value in self.objects if value == said), '')

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema that admits these objects and no other."""
        names = dict.fromkeys(value['action'] for _, value in self.objects)
        return {'oneOf': [self._one(name) for name in names]}

    def _one(self, name: str) -> dict[str, Any]:
        values: dict[str, dict[str, None]] = {}
        for _, value in self.objects:
            if value['action'] == name:
                for key, text in value.items():
                    values.setdefault(key, {})[text] = None
        return {
            'type': 'object',
            'properties': {
                key: {'const': name} if key == 'action' else {'enum': list(found)}
                for key, found in values.items()
            },
            'required': list(values),
            'additionalProperties': False,
        }
