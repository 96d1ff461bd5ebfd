"""What all sensors of a policy file have in common; a family adds its own in `summary`.

A family is one module: what the policy file may declare of it, the fields that a message of it
becomes, and the words for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.observation import Fields
from smallm_ros.core.observation import Phrase as Phrase  # noqa: PLC0414 (families say them)

TOPIC = r'^(?:~/|/)?[A-Za-z_][A-Za-z0-9_]*(?:/[A-Za-z_][A-Za-z0-9_]*)*$'
"""What ROS takes as a topic's name: design.ros2.org, Topic and Service Names."""

Word = Annotated[str, Field(pattern=r'^[a-z][a-z0-9_-]{0,31}$')]
Priority = Annotated[int, Field(ge=0, le=9)]
Angle = Annotated[float, Field(ge=-180, le=180)]
"""Degrees."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Part(BaseModel):
    """A mapping of the policy file: unknown keys are mistakes, nothing changes once it is read."""

    model_config = ConfigDict(frozen=True, extra='forbid', strict=False)


@dataclass(frozen=True, slots=True)
class Scene:
    """The other sensors' newest fields, as far as they are fresh: a goal needs a pose."""

    fields: Mapping[str, Fields] = field(default_factory=dict)
    """By sensor."""


class SensorBase(Part):
    """What every sensor of a policy file declares, and what its family can do with it."""

    type: str
    """Of the message, `package/msg/Name`; a family says which."""
    topic: Annotated[str, Field(pattern=TOPIC)]
    required: bool = False
    rate_hz: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
    """The rate that the driver promises; its period bounds `max_observation_age_ms` from below."""
    stale_after_ms: Positive
    """Older than this, by arrival or by stamp, the reading counts as lost."""
    stamps: Literal['trust', 'arrival'] = 'trust'
    """`arrival` says that the driver's clock is known to be wrong: a stamp in the future or hours
    off then leaves the age to the arrival, where it else makes the reading count as lost. Refused
    for all that the watchdog goes by: nobody knows of when such a reading tells."""
    priority: Priority = 0
    """0 stays longest when the prompt must shrink. What carries foreign text has 1 by default, so
    that no text can keep the sensors out."""
    in_prompt: bool = True
    """Whether the model reads it; a sensor can be required for safety alone."""
    changes: Literal['rarely', 'often'] | None = None
    """How often its words change, where `rate_hz` does not tell: what changes `rarely` stands
    first in the prompt and what changes `often` last, because all that follows a change is read
    anew by the model. Else the slower sensor stands first."""

    @property
    def stale_after_ns(self) -> int:
        """Staleness limit in nanoseconds."""
        return round(self.stale_after_ms * MS)

    @property
    def period_ns(self) -> int:
        """Time between two messages as the driver promises it, in nanoseconds."""
        return round(SECOND / self.rate_hz)

    def say(self, fields: Any, scene: Scene) -> tuple[Phrase, ...]:
        """Return what the model reads of these fields: pure, and of bounded size."""
        raise NotImplementedError

    def text(self, fields: Any, scene: Scene) -> str:
        """Return all of what is said, on one line."""
        return ', '.join(phrase.text for phrase in self.say(fields, scene))

    def draw(self, random: np.random.Generator) -> Fields:
        """Return fields that this sensor might give: for the correction of the prior."""
        raise NotImplementedError
