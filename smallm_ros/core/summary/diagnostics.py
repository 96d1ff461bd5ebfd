"""Diagnostics -> what is in error, worst first, each by its name as a quotation.

A message holds what its publisher knows, and the newest message is all that is kept: where several
nodes publish on /diagnostics, take an aggregator's topic (/diagnostics_agg).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from smallm_ros.core.sensor import Phrase, Priority, Scene, SensorBase
from smallm_ros.core.summary.words import quoted

OK, WARN, ERROR, STALE = 0, 1, 2, 3
LEVELS = {WARN: 'warning', ERROR: 'error', STALE: 'stale'}
MAX_WORST = 8
MAX_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Trouble:
    """A status that is not OK."""

    level: int
    name: str
    message: str

    @property
    def rank(self) -> int:
        """0 is worst: an error, then a level that there is not, then stale, then a warning."""
        return {ERROR: 0, STALE: 2, WARN: 3}.get(self.level, 1)


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """The fields of a diagnostic_msgs/DiagnosticArray that decide anything."""

    stamp_ns: int
    total: int
    troubled: int
    """How many are not OK."""
    worst: tuple[Trouble, ...]
    """At most MAX_WORST of them, worst first, then by name."""


class DiagnosticsSensor(SensorBase):
    """The robot's own findings about itself."""

    type: Literal['diagnostic_msgs/msg/DiagnosticArray']
    priority: Priority = 1
    most: Annotated[int, Field(ge=1, le=MAX_WORST)] = 3
    """How many are named."""
    name_characters: Annotated[int, Field(ge=4, le=MAX_CHARACTERS)] = 32
    message_characters: Annotated[int, Field(ge=0, le=MAX_CHARACTERS)] = 0
    """How much of what it says about itself is quoted after the name: 0 is nothing."""

    def say(self, fields: Diagnostics, scene: Scene) -> tuple[Phrase, ...]:
        """Return `2 of 12 troubled`, `error "motor left"`, `warning "disk"`; or `all 12 ok`."""
        if not fields.troubled:
            return (Phrase(f'all {fields.total} ok' if fields.total else 'nothing reported'),)
        shown = fields.worst[:self.most]
        said = [Phrase(f'{fields.troubled} of {fields.total} troubled')]
        said += [Phrase(self._words(each), less) for less, each in enumerate(shown)]
        more = fields.troubled - len(shown)
        return (*said, Phrase(f'and {more} more', len(shown))) if more else tuple(said)

    def draw(self, random: np.random.Generator) -> Diagnostics:
        """Return none or one in trouble of ten."""
        level = int(random.choice([OK, WARN, ERROR, STALE]))
        worst = (Trouble(level, 'drive', ''),) if level else ()
        return Diagnostics(0, 10, len(worst), worst)

    def _words(self, trouble: Trouble) -> str:
        level = LEVELS.get(trouble.level, f'level {trouble.level}')
        words = f'{level} {quoted(trouble.name, self.name_characters)}'
        if self.message_characters and trouble.message:
            words += f' says {quoted(trouble.message, self.message_characters)}'
        return words
