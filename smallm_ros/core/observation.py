"""Our words for what the sensors said, each value with its stamp, its age and its quality.

At the border a message becomes the plain fields of its family in `summary`; these become a
`Reading` of fixed size; the readings of one instant are an `Observation`.
Units and axes are REP-103: metres, radians, x ahead, y left, yaw counter-clockwise.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol


class Fields(Protocol):
    """What a message became: a frozen dataclass of its family in `summary`."""

    @property
    def stamp_ns(self) -> int:
        """ROS time of the header; 0 when there is none."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """One part of what a reading says, without the commas between the parts."""

    text: str
    less: int = 0
    """How much sooner than its sensor's `priority` it leaves a prompt that is too long; 0 is the
    last part to go."""


class Quality(str, enum.Enum):
    """How far a reading can be trusted now."""

    FRESH = 'fresh'
    OLD = 'old'
    """Later than its sensor's rate lets expect: still usable, and the prompt says how old."""
    STALE = 'stale'
    NEVER = 'never'

    @property
    def usable(self) -> bool:
        """Whether it still says how things are."""
        return self in (Quality.FRESH, Quality.OLD)


class StampFault(str, enum.Enum):
    """Why a header stamp was not used for the age, and arrival was."""

    NONE = 'none'
    ABSENT = 'absent'
    FUTURE = 'future'
    ABSURD = 'absurd'


@dataclass(frozen=True, slots=True)
class Received:
    """The newest message of one sensor, as fields, with its arrival."""

    sensor: str
    fields: Fields
    arrival_ns: int
    """Steady time at which it arrived in this process."""
    ros_arrival_ns: int | None = None
    """ROS time at which it arrived. In a paused world this does not age; None where unknown."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One sensor's summary at one instant."""

    sensor: str
    phrases: tuple[Phrase, ...]
    """What it says, or why it says nothing."""
    priority: int
    """0 is dropped last when the prompt must shrink."""
    required: bool
    quality: Quality
    arrival_ns: int | None
    """Steady arrival; None when nothing ever came."""
    arrival_age_ns: int | None
    stamp_ns: int | None
    """ROS time of the header; None when absent."""
    stamp_age_ns: int | None
    """ROS time now less the stamp; negative when the stamp is in the future."""
    stamp_fault: StampFault = StampFault.NONE
    rate_hz: float | None = None
    """Messages a second as they came lately; None while there are too few to tell."""

    @property
    def text(self) -> str:
        """All of it, on one line."""
        said = ', '.join(phrase.text for phrase in self.phrases)
        return f'{self.sensor}: {said}' if said else f'{self.sensor}:'

    @property
    def age_ns(self) -> int | None:
        """Age by stamp, or by arrival where the stamp cannot be believed; None: nothing came."""
        if self.stamp_fault is StampFault.NONE and self.stamp_age_ns is not None:
            return self.stamp_age_ns
        return self.arrival_age_ns


@dataclass(frozen=True, slots=True)
class Observation:
    """A snapshot of readings at one instant."""

    now_ns: int
    """Steady time of the snapshot."""
    ros_now_ns: int
    readings: tuple[Reading, ...]
    unfit: tuple[str, ...] = field(default=())
    """Names of required sensors that are stale or never came; a fit observation has none."""

    @property
    def fit(self) -> bool:
        """Whether a decision may be asked for."""
        return not self.unfit

    @property
    def arrival_ns(self) -> int | None:
        """Steady arrival of the newest required reading: where the deadline starts."""
        return max(
            (r.arrival_ns for r in self.readings if r.required and r.arrival_ns is not None),
            default=None,
        )

    @property
    def stamp_ns(self) -> int | None:
        """ROS stamp of the oldest required reading: what `max_observation_age` is checked on."""
        return min(
            (r.stamp_ns for r in self.readings if r.required and r.stamp_ns is not None),
            default=None,
        )
