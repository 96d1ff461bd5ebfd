"""One number, one truth, one text: the std_msgs types that have nothing but `data`.

They have no stamp, so that their age is from arrival. A text is hostile until shown otherwise: it
is quoted, with the topic that it came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from smallm_ros.core.sensor import Finite, Phrase, Priority, Scene, SensorBase, Word
from smallm_ros.core.summary.words import Digits, Levels, Unit, quoted, spread, worded

MAX_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Number:
    """A std_msgs number of whatever width."""

    stamp_ns: int
    value: float


class NumberSensor(SensorBase):
    """A number."""

    type: Literal[
        'std_msgs/msg/Int8', 'std_msgs/msg/Int16', 'std_msgs/msg/Int32', 'std_msgs/msg/Int64',
        'std_msgs/msg/UInt8', 'std_msgs/msg/UInt16', 'std_msgs/msg/UInt32', 'std_msgs/msg/UInt64',
        'std_msgs/msg/Float32', 'std_msgs/msg/Float64',
    ]
    unit: Unit = ''
    digits: Digits = 1
    """Decimals; a whole number has none."""
    bins: Levels = ()
    top_word: Word = 'high'
    usual: tuple[Finite, Finite] = (0.0, 1.0)
    """Between what it mostly is: only the correction of the prior asks."""

    def say(self, fields: Number, scene: Scene) -> tuple[Phrase, ...]:
        """Return `0.3 m`, `12`, or the word of its bin."""
        digits = 0 if 'Int' in self.type else self.digits
        return (Phrase(worded(fields.value, self.bins, self.top_word, digits, self.unit)),)

    def draw(self, random: np.random.Generator) -> Number:
        """Return one that is usual, as often in one bin as in another."""
        return Number(0, spread(random, self.bins, *self.usual))


@dataclass(frozen=True, slots=True)
class Truth:
    """A std_msgs/Bool."""

    stamp_ns: int
    value: bool


class TruthSensor(SensorBase):
    """A contact, a switch, a lamp."""

    type: Literal['std_msgs/msg/Bool']
    true_word: Word = 'true'
    false_word: Word = 'false'

    def say(self, fields: Truth, scene: Scene) -> tuple[Phrase, ...]:
        """Return the word for what it is."""
        return (Phrase(self.true_word if fields.value else self.false_word),)

    def draw(self, random: np.random.Generator) -> Truth:
        """Return one or the other."""
        return Truth(0, bool(random.integers(2)))


@dataclass(frozen=True, slots=True)
class Text:
    """The beginning of a std_msgs/String."""

    stamp_ns: int
    text: str
    """At most MAX_CHARACTERS, as they came."""
    length: int
    """Of the whole, in characters."""


class TextSensor(SensorBase):
    """A text, of which nobody knows who wrote it."""

    type: Literal['std_msgs/msg/String']
    priority: Priority = 1
    characters: Annotated[int, Field(ge=1, le=MAX_CHARACTERS)] = 60
    """How many of them are quoted."""

    def say(self, fields: Text, scene: Scene) -> tuple[Phrase, ...]:
        """Return `topic /chatter has "go on"`, and `cut` where that is not all."""
        said = Phrase(f'topic {self.topic} has {quoted(fields.text, self.characters)}')
        return (said, Phrase('cut')) if fields.length > self.characters else (said,)

    def draw(self, random: np.random.Generator) -> Text:
        """Return one of three texts that ask for nothing."""
        text = str(random.choice(['', 'ok', 'all is well']))
        return Text(0, text, len(text))
