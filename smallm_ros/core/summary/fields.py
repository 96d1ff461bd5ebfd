"""Any message that has no family of its own -> the values that the policy names by their paths.

A path is names and array indexes, `poses[0].position.x`: it cannot call, and no name begins with
an underscore. What it leads to is a number, a truth or a text. `mistakes` holds the paths against
the message's real definition, once, before the robot moves.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field as Limits
from pydantic import field_validator, model_validator

from smallm_ros.core.choice import choice_text, keys_as_written
from smallm_ros.core.sensor import Finite, Part, Phrase, Scene, SensorBase, Word
from smallm_ros.core.summary.words import Digits, Levels, Unit, quoted, spread, worded

TYPE = r'^[a-z][a-z0-9_]*/msg/[A-Z][A-Za-z0-9]*$'
_STEP = r'[A-Za-z][A-Za-z0-9_]*(?:\[[0-9]{1,5}\])?'
PATH = rf'^{_STEP}(?:\.{_STEP}){{0,7}}$'
MAX_CHARACTERS = 80
MAX_FIELDS = 16

Value = bool | int | float | str | None
"""None: the array had no such element."""
TypesOf = Callable[[str], Mapping[str, str]]
"""From `package/msg/Name` to its fields' types, as rclpy's get_fields_and_field_types has them."""


@dataclass(frozen=True, slots=True)
class Values:
    """What stood at the end of each path, in the order of the declaration."""

    stamp_ns: int
    values: tuple[Value, ...]


class Field(Part):
    """One value of a message: where it is, and how it is said."""

    path: Annotated[str, Limits(pattern=PATH, max_length=200)]
    """`pose.pose.position.z`, `axes[2]`, `status[0].name`."""
    name: Word
    unit: Unit = ''
    digits: Digits = 1
    """Decimals of a number that is not whole."""
    words: dict[Annotated[str, Limits(max_length=32)], Word] = Limits(
        default_factory=dict, max_length=32)
    """By the value as it is written (`2`, `true`, `IDLE`); what is not listed is said itself."""
    bins: Levels = ()
    top_word: Word = 'high'
    characters: Annotated[int, Limits(ge=1, le=MAX_CHARACTERS)] = 32
    """How much of a text is quoted."""
    less: Annotated[int, Limits(ge=0, le=9)] = 0
    """How much sooner than the sensor's `priority` it leaves a prompt that is too long."""
    usual: tuple[Finite, Finite] = (0.0, 1.0)
    """Between what a number mostly is: only the correction of the prior asks."""

    @field_validator('words', mode='before')
    @classmethod
    def _keys_as_written(cls, words: object) -> object:
        return keys_as_written(words)

    def say(self, value: Value) -> str:
        """Return `height 0.3 m`, `mode idle`, `who "anna"`, `gap absent`."""
        if value is None:
            return f'{self.name} absent'
        word = None if isinstance(value, float) else self.words.get(choice_text(value))
        if word is None:
            if isinstance(value, bool):
                word = choice_text(value)
            elif isinstance(value, str):
                word = quoted(value, self.characters)
            else:
                digits = 0 if isinstance(value, int) else self.digits
                word = worded(value, self.bins, self.top_word, digits, self.unit)
        return f'{self.name} {word}'

    def draw(self, random: np.random.Generator) -> Value:
        """Return one of the values that have words, or a usual number."""
        if self.words:
            key = str(random.choice(list(self.words)))
            return {'true': True, 'false': False}.get(key, int(key) if _WHOLE.match(key) else key)
        return spread(random, self.bins, *self.usual)


class FieldsSensor(SensorBase):
    """Values of a message of any installed type, each by its path."""

    type: Annotated[str, Limits(pattern=TYPE, max_length=200)]
    fields: tuple[Field, ...] = Limits(min_length=1, max_length=MAX_FIELDS)

    @model_validator(mode='after')
    def _names_differ(self) -> FieldsSensor:
        names = [field.name for field in self.fields]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'fields: the name {name!r} stands twice')
        return self

    def say(self, fields: Values, scene: Scene) -> tuple[Phrase, ...]:
        """Return one phrase for each path."""
        return tuple(
            Phrase(field.say(value), field.less)
            for field, value in zip(self.fields, fields.values, strict=True)
        )

    def draw(self, random: np.random.Generator) -> Values:
        """Return values that have words, or usual numbers."""
        return Values(0, tuple(field.draw(random) for field in self.fields))


_WHOLE = re.compile(r'-?[0-9]{1,18}$')


@functools.lru_cache(maxsize=1024)
def steps(path: str) -> tuple[str | int, ...]:
    """Return a path's names and indexes: `a.b[2].c` is a, b, 2, c."""
    return tuple(int(s) if s.isdigit() else s for s in re.findall(r'[A-Za-z0-9_]+', path))


# --- against the message's definition -----------------------------------------------------------

_ARRAY = re.compile(r'sequence<(?P<item>[^,]+?)(?:, *(?P<most>\d+))?>$|(?P<of>.+)\[(?P<n>\d+)\]$')


def mistakes(sensor: FieldsSensor, types_of: TypesOf) -> tuple[str, ...]:
    """Return one line for each path that the message does not have, or that ends in no value."""
    found = (
        (f'fields.{index}.path: {field.path!r}', _mistake(sensor.type, field, types_of))
        for index, field in enumerate(sensor.fields)
    )
    return tuple(f'{place}: {what}' for place, what in found if what)


def _mistake(kind: str, field: Field, types_of: TypesOf) -> str:
    """Return what is wrong with a path through a message of type `kind`; '' for nothing."""
    so_far = ''
    for step in steps(field.path):
        array = _ARRAY.match(kind)
        if isinstance(step, int):
            if not array:
                return f'{so_far} is {kind}, no array: leave [{step}] out'
            most = array['most'] or array['n']
            if most and step >= int(most):
                return f'{so_far} has {most} elements, [{step}] is beyond: they begin with [0]'
            kind, so_far = array['item'] or array['of'], f'{so_far}[{step}]'
            continue
        if array:
            return f'{so_far} is an array, {kind}: give an index, {so_far}[0]'
        if '/' not in kind:
            return f'{so_far} is {kind}, it has no field {step!r}'
        types = types_of(_full(kind))
        if step not in types:
            close = difflib.get_close_matches(step, types, n=1)
            way = f'did you mean {close[0]!r}?' if close else f'there are: {", ".join(types)}'
            return f'{_full(kind)} has no field {step!r}; {way}'
        kind, so_far = types[step], f'{so_far}.{step}'.lstrip('.')
    if _ARRAY.match(kind):
        return f'is an array, {kind}: give an index, {so_far}[0]'
    if '/' in kind:
        return f'is a {kind}, no value: go on with .{" or .".join(types_of(_full(kind)))}'
    if field.bins and 'string' in kind:
        return f'is {kind}: bins are for numbers, words for texts'
    return ''


def _full(kind: str) -> str:
    """Return `package/msg/Name`; rclpy leaves the middle out of the types of fields."""
    package, *_, name = kind.split('/')
    return f'{package}/msg/{name}'
