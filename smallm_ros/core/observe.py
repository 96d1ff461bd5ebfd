"""Received messages -> an Observation: what each sensor says, how old it is, how good.

Age has two clocks. By stamp (ROS time) it says when the world looked so; a stamp in the future or
absurd makes the reading stale unless the policy declares that clock to be wrong, one that is
absent leaves the arrival. By arrival it says whether the sensor still talks: silence counts only
while both clocks run, so that a paused simulation makes nothing older. Of what is missing, lost or
old the words say so; which clock told the age they say where there is a doubt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.facts import arrival_age_ns
from smallm_ros.core.observation import (
    Observation,
    Phrase,
    Quality,
    Reading,
    Received,
    StampFault,
)
from smallm_ros.core.policy import Policy
from smallm_ros.core.sensor import Scene, SensorBase

FUTURE_TOLERANCE_NS = 100 * MS
"""Clocks of one robot's computers differ by some milliseconds; more is a fault."""
ABSURD_NS = 3600 * SECOND
"""An age beyond an hour says that the stamp is of another clock, not that the data are old."""
OLD_PERIODS = 3
"""A lidar stamps its scan when that begins and sends it when it ends: two periods are usual."""
OLD_LEAST_NS = 200 * MS
"""Messages are taken once in a control period: what is younger is not worth a word."""
RATE_WINDOW = 16
"""Arrivals over which a rate is measured."""
_AGES_S = (0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
"""What an age is worded as, rounded down: few words, so that they seldom change."""


def observe(
    policy: Policy, newest: Mapping[str, Received], now_ns: int, ros_now_ns: int,
    rates_hz: Mapping[str, float] | None = None,
) -> Observation:
    """Summarise the newest message of every sensor of the policy.

    `newest` maps a sensor's name to what it sent last; a sensor that never sent is not in it.
    `rates_hz` are the measured rates, of those sensors that have one.
    """
    ages = {
        name: _age(policy.sensors[name], received, now_ns, ros_now_ns)
        for name, received in newest.items() if name in policy.sensors
    }
    scene = Scene({n: newest[n].fields for n, age in ages.items() if age.quality.usable})
    readings = tuple(
        _reading(name, sensor, newest[name], ages[name], scene, (rates_hz or {}).get(name))
        if name in ages else _never(name, sensor)
        for name, sensor in policy.sensors.items()
    )
    unfit = tuple(r.sensor for r in readings if r.required and not r.quality.usable)
    return Observation(now_ns, ros_now_ns, readings, unfit)


def stamp_age(stamp_ns: int, ros_now_ns: int) -> tuple[int | None, StampFault]:
    """Return (age, fault); the age is None where the stamp cannot be believed."""
    if stamp_ns == 0:
        return None, StampFault.ABSENT
    age_ns = ros_now_ns - stamp_ns
    if stamp_ns < 0 or abs(age_ns) > ABSURD_NS:
        return None, StampFault.ABSURD
    if age_ns < -FUTURE_TOLERANCE_NS:
        return None, StampFault.FUTURE
    return age_ns, StampFault.NONE


def age_words(age_ns: int) -> str:
    """Return `0.5 s old`, `2 s old`, `10 min old`: at least so old, in steps of 1, 2 and 5."""
    seconds = max((s for s in _AGES_S if s * SECOND <= age_ns), default=_AGES_S[0])
    if seconds < 60:
        return f'{seconds:g} s old'
    return f'{seconds / 60:g} min old' if seconds < 3600 else 'hours old'


class Rate:
    """Messages a second of one sensor over its last arrivals; silence does not change it."""

    def __init__(self) -> None:
        self._arrivals: deque[tuple[int, int]] = deque(maxlen=RATE_WINDOW)
        """(time of arrival, messages since the one before)."""

    def arrived(self, at_ns: int, messages: int) -> None:
        """Take a message in, the newest of so many that came since the last one."""
        if self._arrivals and at_ns < self._arrivals[-1][0]:
            self._arrivals.clear()  # time went back: what came before says nothing
        self._arrivals.append((at_ns, messages))

    @property
    def hz(self) -> float | None:
        """The rate; None while there are fewer than two arrivals at two instants."""
        if len(self._arrivals) < 2:
            return None
        span_ns = self._arrivals[-1][0] - self._arrivals[0][0]
        messages = sum(count for _, count in self._arrivals) - self._arrivals[0][1]
        return messages * SECOND / span_ns if span_ns > 0 else None


def _never(name: str, sensor: SensorBase) -> Reading:
    return Reading(
        sensor=name, phrases=(Phrase('nothing received yet'),), priority=sensor.priority,
        required=sensor.required, quality=Quality.NEVER, arrival_ns=None, arrival_age_ns=None,
        stamp_ns=None, stamp_age_ns=None, stamp_fault=StampFault.ABSENT,
    )


def _reading(
    name: str, sensor: SensorBase, received: Received, age: _Age, scene: Scene,
    rate_hz: float | None,
) -> Reading:
    if age.quality.usable:
        phrases = sensor.say(received.fields, scene)
        if age.quality is Quality.OLD:
            doubt = '' if age.fault is StampFault.NONE else ' by arrival'
            phrases = (*phrases, Phrase(age_words(age.worst_ns) + doubt))
    else:
        phrases = (Phrase('lost, wrong stamp' if age.refused else 'lost'),)
    return Reading(
        sensor=name, phrases=phrases, priority=sensor.priority, required=sensor.required,
        quality=age.quality, arrival_ns=received.arrival_ns, arrival_age_ns=age.arrival_ns,
        stamp_ns=None if age.fault is StampFault.ABSENT else received.fields.stamp_ns,
        stamp_age_ns=age.stamp_ns, stamp_fault=age.fault, rate_hz=rate_hz,
    )


@dataclass(frozen=True, slots=True)
class _Age:
    arrival_ns: int
    stamp_ns: int | None
    fault: StampFault
    refused: bool
    """Whether its stamp alone makes it stale."""
    quality: Quality

    @property
    def worst_ns(self) -> int:
        """The greater of its ages."""
        return max(self.arrival_ns, self.stamp_ns or 0)


def _age(sensor: SensorBase, received: Received, now_ns: int, ros_now_ns: int) -> _Age:
    """Return how old a message is by both clocks, and whether it still says how things are.

    A stamp of the future or of another clock is as bad as an old one: nobody knows of when it
    tells. Only an absent stamp is replaced by the arrival, or one of a clock that the policy
    declares to be wrong.
    """
    arrival_ns = arrival_age_ns(received, now_ns, ros_now_ns)
    stamp_ns, fault = stamp_age(received.fields.stamp_ns, ros_now_ns)
    refused = sensor.stamps == 'trust' and fault in (StampFault.FUTURE, StampFault.ABSURD)
    worst_ns = max(arrival_ns, stamp_ns or 0)
    if refused or worst_ns > sensor.stale_after_ns:
        quality = Quality.STALE
    elif worst_ns > max(OLD_PERIODS * sensor.period_ns, OLD_LEAST_NS):
        quality = Quality.OLD
    else:
        quality = Quality.FRESH
    return _Age(arrival_ns, stamp_ns, fault, refused, quality)
