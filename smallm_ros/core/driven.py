"""What the base was told, and so what it may have done since a scan and may still be doing.

A scan is a picture of where the robot was. Nothing measured says how far it has come since, so the
commands of the last seconds bound it: what lies further back than they reach counts at full speed.
A base that is told to stop without a ramp does not stand at once: until it can have braked inside
the limits it is coasting, and no odometry may say that it stands.
"""

from __future__ import annotations

from collections import deque

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.envelope import Motion, Seen, Told, approach, faster_of
from smallm_ros.core.facts import Inputs, arrival_age_ns, stamp_age_ns
from smallm_ros.core.observation import Received
from smallm_ros.core.policy import Policy
from smallm_ros.core.summary.odometry import Odometry, OdometrySensor
from smallm_ros.core.summary.scan import Scan, ScanSensor

STANDING_M_S = 0.03
STANDING_RAD_S = 0.1
"""Measured speeds below these are noise of a base that stands."""

_HISTORY_NS = 3 * SECOND


class Driven:
    """The commands of the last seconds."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._told: deque[tuple[int, float, float]] = deque()
        self.velocity = STOP
        """What the base was told last."""
        self.coasting_m_s = 0.0
        """Forward speed that it may have beyond that."""
        self._changed = STOP
        """By how much what it was told last differed from what it was told before."""

    def told(self, stretch: float = 1.0) -> Told:
        """Return what the envelope must know of it, one control period later."""
        period_s = self._policy.control_period_ns / SECOND
        return Told(
            self.velocity, self.coasting_m_s, period_s,
            self._changed.linear_x_m_s / period_s, self._changed.angular_z_rad_s / period_s,
            stretch,
        )

    def seen(
        self, now_ns: int, inputs: Inputs, stretch: float = 1.0,
    ) -> tuple[Seen, ...] | None:
        """Return the newest scan of each obstacle sensor; None where one lacks."""
        out = []
        for name in self._policy.envelope.obstacle_sensors:
            received, sensor = inputs.sensors.get(name), self._policy.sensors[name]
            if received is None or not isinstance(received.fields, Scan):
                return None
            assert isinstance(sensor, ScanSensor)
            since = self._since(now_ns, received, inputs, stretch)
            out.append(Seen(received.fields, sensor, since))
        return tuple(out)

    def retune(self, policy: Policy) -> None:
        """Bound by other limits from now on."""
        self._policy = policy

    def tell(self, now_ns: int, velocity: Velocity, coasting_m_s: float) -> None:
        """Note what the base is told now."""
        self._changed = Velocity(
            velocity.linear_x_m_s - self.velocity.linear_x_m_s,
            velocity.angular_z_rad_s - self.velocity.angular_z_rad_s,
        )
        self.velocity, self.coasting_m_s = velocity, coasting_m_s
        speed = max(abs(velocity.linear_x_m_s), abs(coasting_m_s))
        self._told.append((now_ns, speed, velocity.angular_z_rad_s))
        while now_ns - self._told[0][0] > _HISTORY_NS:
            self._told.popleft()

    def halted_m_s(self) -> float:
        """Return the coasting after a stop without a ramp: the base brakes as well as it can."""
        brakes = self._policy.envelope.max_deceleration_m_s2 * self._policy.control_period_ns
        return approach(
            faster_of(self.velocity.linear_x_m_s, self.coasting_m_s), 0.0, 0.0, brakes / SECOND,
        )

    def _since(
        self, now_ns: int, received: Received, inputs: Inputs, stretch: float,
    ) -> Motion:
        """Bound what the base did since a scan, from what it was told since."""
        age_ns = now_ns - received.arrival_ns
        by_stamp_ns = stamp_age_ns(received.fields.stamp_ns, inputs.ros_now_ns)
        if by_stamp_ns is None:
            age_ns += self._policy.control_period_ns  # it may have waited that long to be taken
        elif by_stamp_ns > age_ns:
            age_ns = by_stamp_ns
        since_ns = now_ns - age_ns - round(self._policy.robot.base_delay_ms * MS)
        rules = self._policy.envelope
        distance = left = right = 0.0
        end_ns = now_ns
        for began_ns, speed, turn in reversed(self._told):
            lasted_s = (end_ns - max(began_ns, since_ns)) / SECOND
            distance += speed * lasted_s
            left += max(turn, 0.0) * lasted_s
            right += max(-turn, 0.0) * lasted_s
            end_ns = max(began_ns, since_ns)
            if began_ns <= since_ns:
                break
        if self._told and end_ns > since_ns:  # older than what is remembered
            rest_s = (end_ns - since_ns) / SECOND
            distance += max(rules.max_forward_m_s, rules.max_reverse_m_s) * rest_s
            left += rules.max_turn_rad_s * rest_s
            right += rules.max_turn_rad_s * rest_s
        return Motion(distance * stretch, left * stretch, right * stretch)

    def standing(self, now_ns: int, inputs: Inputs) -> bool:
        """Whether the base stands, by what it was told and by what odometry measures."""
        if self.velocity != STOP or self.coasting_m_s != 0.0:
            return False
        for name, sensor in self._policy.sensors.items():
            received = inputs.sensors.get(name)
            if not isinstance(sensor, OdometrySensor) or received is None:
                continue
            measured = received.fields
            age_ns = arrival_age_ns(received, now_ns, inputs.ros_now_ns)
            if isinstance(measured, Odometry) and age_ns <= sensor.stale_after_ns and (
                abs(measured.linear_x_m_s) > STANDING_M_S
                or abs(measured.angular_z_rad_s) > STANDING_RAD_S
            ):
                return False
        return True
