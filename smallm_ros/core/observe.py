"""Received messages -> an Observation: what each sensor says, how old it is, how good.

Age has two clocks. By stamp (ROS time) it says when the world looked so; a stamp in the future or
absurd makes the reading stale, one that is absent leaves the arrival. By arrival it says whether
the sensor still talks: silence counts only while both clocks run, so that a paused simulation
makes nothing older.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.facts import arrival_age_ns
from smallm_ros.core.observation import (
    Observation,
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


def observe(
    policy: Policy, newest: Mapping[str, Received], now_ns: int, ros_now_ns: int
) -> Observation:
    """Summarise the newest message of every sensor of the policy.

    `newest` maps a sensor's name to what it sent last; a sensor that never sent is not in it.
    """
    scene = Scene({
        name: received.fields for name, received in newest.items()
        if name in policy.sensors
        and not _age(policy.sensors[name], received, now_ns, ros_now_ns).stale
    })
    readings = tuple(
        _reading(name, sensor, newest.get(name), scene, now_ns, ros_now_ns)
        for name, sensor in policy.sensors.items()
    )
    unfit = tuple(r.sensor for r in readings if r.required and r.quality is not Quality.FRESH)
    return Observation(now_ns, ros_now_ns, readings, unfit)


def stamp_age(stamp_ns: int, ros_now_ns: int) -> tuple[int | None, StampFault]:
    """Return (age, fault); the age is None where the stamp cannot be believed."""
    if stamp_ns == 0:
        return None, StampFault.ABSENT
    age_ns = ros_now_ns - stamp_ns
    if abs(age_ns) > ABSURD_NS:
        return None, StampFault.ABSURD
    if age_ns < -FUTURE_TOLERANCE_NS:
        return None, StampFault.FUTURE
    return age_ns, StampFault.NONE


def _reading(
    name: str,
    sensor: SensorBase,
    received: Received | None,
    scene: Scene,
    now_ns: int,
    ros_now_ns: int,
) -> Reading:
    if received is None:
        return Reading(
            sensor=name, text=f'{name}: nothing received yet', priority=sensor.priority,
            required=sensor.required, quality=Quality.NEVER, arrival_ns=None,
            arrival_age_ns=None, stamp_ns=None, stamp_age_ns=None, stamp_fault=StampFault.ABSENT,
        )
    age = _age(sensor, received, now_ns, ros_now_ns)
    text = f'{name}: lost' if age.stale else f'{name}: {sensor.text(received.fields, scene)}'
    return Reading(
        sensor=name, text=text, priority=sensor.priority, required=sensor.required,
        quality=Quality.STALE if age.stale else Quality.FRESH, arrival_ns=received.arrival_ns,
        arrival_age_ns=age.arrival_ns,
        stamp_ns=None if age.fault is StampFault.ABSENT else received.fields.stamp_ns,
        stamp_age_ns=age.stamp_ns, stamp_fault=age.fault,
    )


@dataclass(frozen=True, slots=True)
class _Age:
    arrival_ns: int
    stamp_ns: int | None
    fault: StampFault
    stale: bool


def _age(sensor: SensorBase, received: Received, now_ns: int, ros_now_ns: int) -> _Age:
    """Return how old a message is by both clocks, and whether it still says how things are.

    A stamp of the future or of another clock is as bad as an old one: nobody knows of when it
    tells. Only an absent stamp is replaced by the arrival.
    """
    arrival_ns = arrival_age_ns(received, now_ns, ros_now_ns)
    stamp_ns, fault = stamp_age(received.fields.stamp_ns, ros_now_ns)
    stale = (
        fault in (StampFault.FUTURE, StampFault.ABSURD)
        or max(arrival_ns, stamp_ns or 0) > sensor.stale_after_ns
    )
    return _Age(arrival_ns, stamp_ns, fault, stale)
