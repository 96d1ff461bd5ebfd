"""The sensors' messages as their stamps and arrivals tell: what is taken, and which is not fit.

A message older by its stamp than the newest one taken does not replace it. A required sensor is
fit while its newest message is young by arrival, its stamp within the limit to either side of ROS
time, and that stamp goes on; a stamp of 0 says nothing. After a jump of ROS time nothing counts
that arrived before. In a paused world nothing grows older.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from smallm_ros.core.cause import Cause, Finding
from smallm_ros.core.clock import MS
from smallm_ros.core.facts import Inputs, arrival_age_ns, stamp_age_ns
from smallm_ros.core.observation import Received
from smallm_ros.core.policy import Policy
from smallm_ros.core.summary import Sensor
from smallm_ros.core.summary.goal import GoalSensor


@dataclass(slots=True)
class _Taken:
    """The newest message of a sensor that was taken, and the newest that was looked at."""

    received: Received
    looked: Received
    """The newest by arrival, taken or not; its stamp must be fit, too."""
    still_since_ns: int | None = None
    """ROS time since when its messages repeat one stamp; None while they do not."""


class Stamps:
    """What was taken of each sensor of one watchdog."""

    def __init__(self, policy: Policy) -> None:
        self._sensors = policy.sensors
        self._taken: dict[str, _Taken] = {}
        self._flushed_ns = -1
        self.out_of_order = 0
        """Messages that were not taken because their stamp went back."""

    def take(self, inputs: Inputs) -> Inputs:
        """Return the facts with the newest messages by stamp instead of by arrival."""
        sensors: dict[str, Received] = {}
        for name, received in inputs.sensors.items():
            sensor = self._sensors.get(name)
            if sensor is not None:
                sensors[name] = self._newest(name, sensor, received, inputs.ros_now_ns)
        return replace(inputs, sensors=sensors)

    def flush(self, now_ns: int) -> None:
        """Count nothing any more that arrived until now: ROS time jumped."""
        self._flushed_ns = now_ns

    def findings(self, now_ns: int, inputs: Inputs) -> list[Finding]:
        """Return which sensors were never there, are too old or have a stamp that is."""
        findings = []
        for name, sensor in self._sensors.items():
            if name not in inputs.sensors:
                if sensor.required:
                    findings.append(Finding(
                        Cause.SENSOR_NEVER, f'{name}: nothing on {sensor.topic} yet'))
                continue
            if not sensor.required and isinstance(sensor, GoalSensor):
                continue  # said once, not a stream: it cannot be lost
            unfit = self._unfit(name, sensor, now_ns, inputs.ros_now_ns)
            if unfit is not None and sensor.stamps == 'arrival' and unfit.cause in (
                Cause.SENSOR_FROZEN, Cause.SENSOR_STAMP,
            ):
                continue  # declared to be of a wrong clock; nothing that moves the robot can be
            if unfit is not None and not sensor.required:
                unfit = Finding(Cause.OPTIONAL_SENSOR_LOST, unfit.detail)
            if unfit is not None:
                findings.append(unfit)
        return findings

    def _newest(
        self, name: str, sensor: Sensor, received: Received, ros_now_ns: int | None,
    ) -> Received:
        """Return the newest message of a sensor by stamp, and remember it."""
        stamp_ns = received.fields.stamp_ns
        taken = self._taken.get(name)
        if taken is None:
            self._taken[name] = _Taken(received, received)
            return received
        before = taken.received
        again = received.arrival_ns == taken.looked.arrival_ns
        taken.looked = received
        if again:
            if received.arrival_ns == before.arrival_ns:
                taken.received = received
            return taken.received
        # One absurd stamp, or one of before a jump, must not refuse all that come after it.
        off_ns = stamp_age_ns(before.fields.stamp_ns, ros_now_ns)
        told = (
            off_ns is not None and abs(off_ns) <= sensor.stale_after_ns
            and before.arrival_ns > self._flushed_ns and not isinstance(sensor, GoalSensor)
        )
        if told and 0 < stamp_ns < before.fields.stamp_ns:
            self.out_of_order += 1
            return before
        taken.received = received
        if stamp_ns == 0 or stamp_ns != before.fields.stamp_ns:
            taken.still_since_ns = None
        elif taken.still_since_ns is None:
            taken.still_since_ns = ros_now_ns
        return received

    def _unfit(
        self, name: str, sensor: Sensor, now_ns: int, ros_now_ns: int | None,
    ) -> Finding | None:
        taken, limit_ns = self._taken[name], sensor.stale_after_ns
        received = taken.received
        if received.arrival_ns <= self._flushed_ns:
            return Finding(Cause.SENSOR_STALE, f'{name}: nothing since ROS time jumped')
        age_ns = arrival_age_ns(received, now_ns, ros_now_ns)
        if age_ns > limit_ns:
            return Finding(
                Cause.SENSOR_STALE,
                f'{name}: arrived {age_ns / MS:.0f} ms ago, limit {limit_ns / MS:.0f} ms',
            )
        off_ns = max(
            (stamp_age_ns(each.fields.stamp_ns, ros_now_ns) or 0
             for each in (received, taken.looked)), key=abs,
        )
        still_ns = stamp_age_ns(taken.still_since_ns or 0, ros_now_ns)
        if still_ns is not None and max(still_ns, off_ns) > limit_ns:
            return Finding(
                Cause.SENSOR_FROZEN,
                f'{name}: messages come, their stamp stands still for '
                f'{max(still_ns, off_ns) / MS:.0f} ms, limit {limit_ns / MS:.0f} ms',
            )
        if abs(off_ns) > limit_ns:
            return Finding(
                Cause.SENSOR_STAMP,
                f'{name}: stamp {off_ns / MS:.0f} ms old, limit {limit_ns / MS:.0f} ms to either '
                'side',
            )
        return None
