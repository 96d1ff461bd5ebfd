"""Actions that say something other than a velocity: declared messages of any installed type.

`outputs` of the policy file names the topics, `command` of an action the fields of the message
that stands for it: constants, lists, and values by a parameter's choice. As the action space is
finite, so are the messages: every one is known, checked and built before the first decision. What
the real message class has is told by a `Describe`; nothing here imports one.

A velocity is none of these: it goes through `twist` and the envelope, and the types that carry one
are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from smallm_ros.core.choice import Choice, choice_text, keys_as_written
from smallm_ros.core.sensor import TOPIC, Finite, Part, Word

MAX_FIELDS = 64
MAX_ITEMS = 64
"""Of a list in a message."""
NOW = 'now'
"""Of a builtin_interfaces/Time: ROS time at which the message leaves."""
TIME = 'builtin_interfaces/Time'

VELOCITIES = frozenset({
    'geometry_msgs/msg/Twist', 'geometry_msgs/msg/TwistStamped',
    'geometry_msgs/msg/TwistWithCovariance', 'geometry_msgs/msg/TwistWithCovarianceStamped',
    'geometry_msgs/msg/Accel', 'geometry_msgs/msg/AccelStamped',
    'ackermann_msgs/msg/AckermannDrive', 'ackermann_msgs/msg/AckermannDriveStamped',
})
"""What drives a base, and so may only leave through the envelope."""
OURS = frozenset({'cmd_vel', 'estop', 'clock', 'diagnostics'})
"""The last words of topics that are never an output's."""

Path = Annotated[str, Field(pattern=(
    r'^[a-z][a-z0-9_]*(?:\[[0-9]{1,2}\])?(?:\.[a-z][a-z0-9_]*(?:\[[0-9]{1,2}\])?)*$'
), max_length=200)]
"""Of a field: `pose.position.x`, `points[0].positions`."""
Scalar = bool | int | Finite | Annotated[str, Field(max_length=1024)]
Plain = Scalar | tuple[Scalar, ...]


class ByChoice(Part):
    """A value looked up by a parameter's choice; without `values` the choice is the value."""

    by: Word
    values: dict[str, Scalar | Annotated[tuple[Scalar, ...], Field(max_length=MAX_ITEMS)]] | None \
        = None
    """By the choice as it is written in the answer; a number or true and false may be the key."""

    _keys = field_validator('values', mode='before')(keys_as_written)

    def of(self, chosen: Mapping[str, Choice]) -> Plain:
        """Return the value for a member of the action space."""
        choice = chosen[self.by]
        return choice if self.values is None else self.values[choice_text(choice)]


Item = Scalar | ByChoice
Term = Item | Annotated[tuple[Item, ...], Field(max_length=MAX_ITEMS)]
Terms = Annotated[dict[Path, Term], Field(max_length=MAX_FIELDS)]
"""A message: its fields in the order in which they are set; what is not named keeps its default.

An empty one, `{}`, is a message all of whose fields have their defaults."""


class OutputDeclaration(Part):
    """A topic that actions speak on; the watchdog alone publishes there, and only while ACTIVE."""

    type: Annotated[str, Field(
        pattern=r'^[a-z][a-z0-9_]*/msg/[A-Z][A-Za-z0-9]*$', max_length=200)]
    """Of the message, `package/msg/Name`."""
    topic: Annotated[str, Field(pattern=TOPIC)]
    on_change: bool = False
    """Whether a message that is the last one again is left out: of a goal, which would be planned
    for anew."""
    on_stop: Terms | None = None
    """What leaves once when the gate leaves ACTIVE; constants only."""

    @field_validator('type')
    @classmethod
    def _no_velocity(cls, kind: str) -> str:
        if kind in VELOCITIES:
            raise ValueError(f'{kind} is a velocity: say it with `twist`, so that it goes through '
                             'the envelope')
        return kind

    @field_validator('topic')
    @classmethod
    def _not_ours(cls, topic: str) -> str:
        if topic.rpartition('/')[2] in OURS:
            raise ValueError(f'{topic!r} is not for actions; a velocity is said with `twist`')
        return topic

    @field_validator('on_stop')
    @classmethod
    def _constant(cls, terms: Terms | None) -> Terms | None:
        if terms is not None and (wrong := misused(terms, {})):
            raise ValueError(f'{wrong[0]}; nothing is chosen when the robot stops')
        return terms


Command = Annotated[dict[Word, Terms], Field(min_length=1, max_length=16)]
"""By output, in the order in which the messages leave."""


class Commanding(Part):
    """What of an action's declaration has to do with messages."""

    command: Command | None = None
    """What is said, by output."""

    @model_validator(mode='after')
    def _in_order(self) -> Commanding:
        for output, terms in (self.command or {}).items():
            if wrong := disordered(terms):
                raise ValueError(f'command: {output}: {wrong}')
        return self


# --- what the policy file alone can tell ----------------------------------------------------


def misused(terms: Terms, choices: Mapping[str, tuple[Choice, ...]]) -> list[str]:
    """Return what is wrong with the parameters that the terms name, `choices` by parameter."""
    out = []
    for path, term in terms.items():
        for item in term if isinstance(term, tuple) else (term,):
            if not isinstance(item, ByChoice):
                continue
            if item.by not in choices:
                known = ', '.join(choices) or 'none declared'
                out.append(f'{path}: by {item.by!r} is no parameter; there are: {known}')
                continue
            lacks = [text for text in map(choice_text, choices[item.by])
                     if item.values is not None and text not in item.values]
            if lacks:
                out.append(f'{path}: no value for choice {lacks[0]!r} of {item.by!r}')
            if isinstance(term, tuple) and any(
                    isinstance(value, tuple) for value in (item.values or {}).values()):
                out.append(f'{path}: a list in a list')
    return out


def disordered(terms: Terms) -> str:
    """Return what is wrong with the order of list elements; each list is filled from 0."""
    filled: dict[str, int] = {}
    for path in terms:
        way = ''
        for name, index in steps(path):
            way = f'{way}.{name}' if way else name
            if index is None:
                continue
            if index > filled.get(way, 0) or index >= MAX_ITEMS:
                return (f'{path}: {way}[{index}] after {filled.get(way, 0)} elements: a list is '
                        f'filled from [0] on, up to {MAX_ITEMS}')
            filled[way] = max(filled.get(way, 0), index + 1)
            way = f'{way}[{index}]'
        if index is not None:
            return f'{path}: give the list as a whole, not one element of it'
    return ''


def steps(path: str) -> tuple[tuple[str, int | None], ...]:
    """Return the fields of a path, each with the index of an element or None."""
    out = []
    for part in path.split('.'):
        name, _, index = part.rstrip(']').partition('[')
        out.append((name, int(index) if index else None))
    return tuple(out)


def resolved(terms: Terms, chosen: Mapping[str, Choice]) -> dict[str, Plain]:
    """Return the message of one member of the action space: values by path."""
    return {
        path: tuple(_scalar(item, chosen) for item in term) if isinstance(term, tuple)
        else term.of(chosen) if isinstance(term, ByChoice) else term
        for path, term in terms.items()
    }


def _scalar(item: Item, chosen: Mapping[str, Choice]) -> Scalar:
    value = item.of(chosen) if isinstance(item, ByChoice) else item
    assert not isinstance(value, tuple), 'refused by `misused`'
    return value


# --- what the message class tells -----------------------------------------------------------

Describe = Callable[[str], Mapping[str, str]]
"""From `package/msg/Name` to the types of its fields, as `get_fields_and_field_types` has them."""

_WHOLE = {f'{sign}int{bits}': (-2 ** (bits - 1) if not sign else 0,
                               2 ** (bits - (not sign)) - 1)
          for sign in ('', 'u') for bits in (8, 16, 32, 64)} | {'octet': (0, 255),
                                                               'char': (0, 255)}
_REAL = {'float': 3.4028234663852886e38, 'double': math.inf}
_TEXT = re.compile(r'^w?string(?:<=?(\d+)>?)?$')
_FIXED = re.compile(r'^(.+)\[(\d+)\]$')
_SEQUENCE = re.compile(r'^sequence<(.+?)(?:, *(\d+))?>$')


def misfits(kind: str, values: Mapping[str, Plain], describe: Describe) -> Iterator[str]:
    """Yield where a message does not fit its class, as `path: what`; bounded by its fields."""
    for path, value in values.items():
        of = field_type(kind, path, describe)
        wrong = of[1:] if of.startswith('!') else _misfit(of, value)
        if wrong:
            yield f'{path}: {wrong}'


def field_type(kind: str, path: str, describe: Describe) -> str:
    """Return the type of the field at a path; `!why` where there is none."""
    of = kind
    for name, index in steps(path):
        if '/' not in of:
            return f'!{of} has no fields, not {name!r} either'
        fields = describe(message_type(of))
        if name not in fields:
            return f'!{of} has no field {name!r}; it has: {", ".join(fields)}'
        of = fields[name]
        element, length, _ = listed(of)
        if index is None:
            continue
        if element is None:
            return f'!{name} is one {of}, no list'
        if length is not None and index >= length:
            return f'!{name} has {length} elements, none is [{index}]'
        of = element
    return of


def message_type(of: str) -> str:
    """Return `package/msg/Name` for what a field's type calls `package/Name`."""
    package, _, name = of.partition('/')
    return of if name.startswith('msg/') else f'{package}/msg/{name}'


def listed(of: str) -> tuple[str | None, int | None, bool]:
    """Return (element type or None, greatest length or None, whether it is always that long)."""
    if found := _FIXED.match(of):
        return found[1], int(found[2]), True
    if found := _SEQUENCE.match(of):
        return found[1], int(found[2]) if found[2] else None, False
    return None, None, False


def _misfit(of: str, value: Plain) -> str:
    """Return why a value is none of a type; empty where it is."""
    element, length, fixed = listed(of)
    if element is None:
        if isinstance(value, tuple):
            return f'is one {of}, not a list'
        return _no_scalar(of, value)
    if not isinstance(value, tuple):
        return f'is a list of {element}, not {value!r:.40}'
    if length is not None and (len(value) != length if fixed else len(value) > length):
        return f'has {"exactly" if fixed else "at most"} {length} elements, not {len(value)}'
    return next((wrong for one in value if (wrong := _no_scalar(element, one))), '')


def _no_scalar(of: str, value: Scalar) -> str:
    if of == TIME:
        return '' if value == NOW else f'is a {TIME}: {NOW!r}, or its .sec and .nanosec'
    if '/' in of:
        return f'is a {of}: name its fields, after a dot'
    if of == 'boolean':
        return '' if isinstance(value, bool) else f'is true or false, not {value!r:.40}'
    number = None if isinstance(value, (bool, str)) else value
    if of in _REAL:
        fits = number is not None and abs(number) <= _REAL[of]
        return '' if fits else f'is a {of}, not {value!r:.40}'
    if of in _WHOLE:
        low, high = _WHOLE[of]
        fits = isinstance(number, int) and low <= number <= high
        return '' if fits else f'is {of}, {low} to {high}, not {value!r:.40}'
    if found := _TEXT.match(of):
        if not isinstance(value, str):
            return f'is a string, not {value!r:.40}'
        most = int(found[1]) if found[1] else None
        if most is not None and len(value) > most:
            return f'has at most {most} characters, not {len(value)}'
        return ''
    return f'is {of}, which no value here can be'
