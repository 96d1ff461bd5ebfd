"""The safety envelope: what is left of a velocity once limits and obstacles have had their say.

Every velocity goes through `limit`, whoever asked for it. A speed is allowed when the base can
stand before it touches anything: v * latency + v^2 / (2 a) at most the free distance of the newest
scan, with latency = control period + allowed lateness + the base's own delay. The free distance is
taken over every heading that the base can have until it stands, for a disc of the footprint plus
margin, widened by all that the base may have driven since the scan was taken. So a curved path is
inside the cone that is checked, and braking along the present curve stays allowed to its end.
Turning on the spot is free: the footprint is a disc. Pure functions; seconds, metres, radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.clock import SECOND
from smallm_ros.core.observation import Scan
from smallm_ros.core.policy import Policy, ScanSensor

UNKNOWN_CONE_RAD = math.pi / 6
"""A direction without a valid beam blocks headings nearer to it than this: what stands further
aside and still in the way is less than two reaches away, and was ahead a moment ago."""

_SAMPLE_RAD = math.radians(2.0)
_SAME = 1e-9
_SAME_BEAM = 1e-3
"""Share of a beam that the rounding of a message's float32 increment may add up to in a gap."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Motion:
    """Bounds on what the base has done since the scan was taken, and is still doing."""

    distance_m: float = 0.0
    left_rad: float = 0.0
    """At most this far turned to the left at any moment since."""
    right_rad: float = 0.0
    coasting_m_s: float = 0.0
    """Forward speed that the base may still have when commands fell faster than it can brake."""


STANDING = Motion()


@dataclass(frozen=True, slots=True)
class Limited:
    """A velocity that the envelope allows, and why it differs from what was asked for."""

    velocity: Velocity
    limited: bool
    why: str
    """Empty, or the reasons in words with their numbers."""
    free_m: float
    """Free distance along the motion; `inf` when nothing was seen or the base only turns."""
    coasting_m_s: float
    """To be handed back in the next `Motion`."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A scan as points around base_link, and the directions that it says nothing about."""

    ranges_m: Floats
    bearings_rad: Floats
    unknown_rad: Floats
    """Bearings of beams that are NaN or nearer than range_min, drop-outs left out."""
    start_rad: float
    """Bearing of the clockwise-most beam."""
    span_rad: float
    """From there to the last beam, counter-clockwise."""
    step_rad: float

    @classmethod
    def of(cls, scan: Scan, policy: Policy) -> Surroundings:
        """Sort a scan's beams: `inf` and beyond range_max is nothing, -inf is at range_min.

        Drop-outs have been given the nearer neighbour's distance, `Envelope.unknown_gap_deg`.
        """
        sensor = policy.sensors[policy.envelope.obstacle_sensor]
        assert isinstance(sensor, ScanSensor)
        ranges = np.asarray(scan.ranges_m, dtype=np.float64)
        beams = np.arange(ranges.size, dtype=np.float64)
        mount = math.radians(sensor.mount_yaw_deg)
        bearings: Floats = scan.angle_min_rad + scan.angle_increment_rad * beams + mount
        near = np.isneginf(ranges)
        unknown = np.isnan(ranges) | ((ranges < scan.range_min_m) & ~near)
        ranges = np.where(near, max(scan.range_min_m, 0.0), ranges)
        ranges = np.where(ranges > scan.range_max_m, np.inf, ranges)
        ranges, unknown = _fill(
            ranges, unknown, abs(scan.angle_increment_rad),
            math.radians(policy.envelope.unknown_gap_deg),
        )
        seen = np.isfinite(ranges) & ~unknown
        span = abs(scan.angle_increment_rad) * max(ranges.size - 1, 0)
        turn = min(0.0, scan.angle_increment_rad * max(ranges.size - 1, 0))
        return cls(
            ranges_m=ranges[seen],
            bearings_rad=bearings[seen],
            unknown_rad=bearings[unknown],
            start_rad=scan.angle_min_rad + mount + turn,
            span_rad=span if ranges.size else -1.0,
            step_rad=abs(scan.angle_increment_rad),
        )

    def covered(self, headings: Floats) -> Flags:
        """Whether there is a beam, valid or not, within half a step of each heading."""
        if self.span_rad < 0:
            return np.zeros(headings.shape, dtype=np.bool_)
        half = self.step_rad / 2 + _SAME
        offset = np.mod(headings - self.start_rad, 2 * math.pi)
        return (offset <= self.span_rad + half) | (offset >= 2 * math.pi - half)

    def known(self, low_rad: float, high_rad: float) -> bool:
        """Whether valid beams look everywhere from `low_rad` to `high_rad` and a cone beside."""
        low, high = low_rad - UNKNOWN_CONE_RAD, high_rad + UNKNOWN_CONE_RAD
        count = max(2, math.ceil((high - low) / _SAMPLE_RAD) + 1)
        if not bool(self.covered(np.linspace(low, high, count)).all()):
            return False
        return not bool((_aside(self.unknown_rad, low, high) <= 0.0).any())

    def free_m(self, low_rad: float, high_rad: float, reach_m: float) -> float:
        """Return how far a disc of radius `reach_m` gets on any path with headings in the range.

        A path whose headings lie in a cone narrower than pi stays in that cone, and is never
        shorter than its end is far; so the shortest straight way of the cone bounds it. A point
        already inside the disc blocks every heading towards it and no heading away from it.
        """
        aside = _aside(self.bearings_rad, low_rad, high_rad)
        if high_rad - low_rad >= math.pi:
            aside = np.zeros_like(aside)
        ahead = self.ranges_m * np.cos(aside)
        side = self.ranges_m * np.sin(aside)
        hit = (ahead > 0.0) & (side < reach_m)
        if not bool(hit.any()):
            return math.inf
        contact = ahead[hit] - np.sqrt(reach_m * reach_m - side[hit] ** 2)
        return max(0.0, float(contact.min()))


def _fill(
    ranges_m: Floats, unknown: Flags, step_rad: float, gap_rad: float,
) -> tuple[Floats, Flags]:
    """Give the beams in each gap of at most `gap_rad` the nearer of its two sides' distances.

    A gap reaches from valid beam to valid beam, in a scan of a whole turn over its seam too. What
    is at an end of a narrower scan has one side only and stays unknown.
    """
    valid, gaps = np.flatnonzero(~unknown), np.flatnonzero(unknown)
    if not (valid.size and gaps.size):
        return ranges_m, unknown
    after = np.searchsorted(valid, gaps)
    left, right = valid[after - 1], valid[after % valid.size]
    seam = (after == 0) | (after == valid.size)
    whole = abs(2 * math.pi - step_rad * (unknown.size - 1)) < 1.5 * step_rad
    width = (right - left) * step_rad + np.where(seam, 2 * math.pi, 0.0)
    dropped = (width <= gap_rad + _SAME_BEAM * step_rad) & (whole | ~seam)
    ranges, still = ranges_m.copy(), unknown.copy()
    ranges[gaps[dropped]] = np.minimum(ranges_m[left], ranges_m[right])[dropped]
    still[gaps[dropped]] = False
    return ranges, still


def _aside(bearings: Floats, low_rad: float, high_rad: float) -> Floats:
    """Angle from each bearing to the nearest heading in the range; 0 inside, at most pi."""
    half = (high_rad - low_rad) / 2
    away = np.mod(bearings - (low_rad + high_rad) / 2 + math.pi, 2 * math.pi) - math.pi
    return np.maximum(np.abs(away) - half, 0.0)


def latency_s(policy: Policy) -> float:
    """Longest time from a scan's evaluation to the base acting on what follows the next one."""
    delay_ns = policy.control_period_ns + policy.allowed_lateness_ns
    return delay_ns / SECOND + policy.robot.base_delay_ms * 1e-3


def stopping_speed_m_s(free_m: float, delay_s: float, deceleration_m_s2: float) -> float:
    """Return the largest v with v * delay + v^2 / (2 a) at most `free_m`."""
    if math.isinf(free_m):
        return math.inf
    a = deceleration_m_s2
    return a * (math.sqrt(delay_s * delay_s + 2.0 * max(free_m, 0.0) / a) - delay_s)


def reach_m(policy: Policy) -> float:
    """Radius of the disc that must stay free."""
    return policy.robot.radius_m + policy.envelope.margin_m


def limit(
    asked: Velocity,
    previous: Velocity,
    dt_s: float,
    scan: Scan | None,
    since: Motion,
    policy: Policy,
) -> Limited:
    """Return the allowed velocity nearest to `asked`, `dt_s` after `previous` was commanded.

    Without a scan the base may turn and brake, nothing else. A deceleration beyond the limit is
    commanded only when the stopping distance demands it.
    """
    rules = policy.envelope
    why: list[str] = []
    if not (math.isfinite(asked.linear_x_m_s) and math.isfinite(asked.angular_z_rad_s)):
        why.append(f'not finite: {asked.linear_x_m_s}, {asked.angular_z_rad_s}')
        asked = STOP
    speed = min(max(asked.linear_x_m_s, -rules.max_reverse_m_s), rules.max_forward_m_s)
    turn = min(max(asked.angular_z_rad_s, -rules.max_turn_rad_s), rules.max_turn_rad_s)
    if abs(speed - asked.linear_x_m_s) > _SAME or abs(turn - asked.angular_z_rad_s) > _SAME:
        why.append(f'speed {asked.linear_x_m_s:g} m/s, {asked.angular_z_rad_s:g} rad/s')
    faster, slower = rules.max_acceleration_m_s2, rules.max_deceleration_m_s2
    spin = rules.max_angular_acceleration_rad_s2
    linear = approach(previous.linear_x_m_s, speed, faster * dt_s, slower * dt_s)
    angular = approach(previous.angular_z_rad_s, turn, spin * dt_s, spin * dt_s)
    coasting = approach(
        faster_of(previous.linear_x_m_s, since.coasting_m_s), 0.0, 0.0, slower * dt_s)
    if linear * coasting < 0.0:
        linear = 0.0
    if abs(linear - speed) > _SAME or abs(angular - turn) > _SAME:
        why.append('acceleration')
    lead = faster_of(linear, coasting)
    free = math.inf
    if lead != 0.0:
        around = None
        if scan is not None:
            around = Surroundings.of(scan, policy)
        wish = angular
        free = _free_m(around, lead, wish, previous, since, policy)
        delay = latency_s(policy)
        allowed = stopping_speed_m_s(free, delay, slower)
        if allowed < abs(coasting):
            # Not even braking fits into this turn: braking along the old one, or straight, may.
            straighter = approach(previous.angular_z_rad_s, 0.0, spin * dt_s, spin * dt_s)
            for other in (straighter, previous.angular_z_rad_s):
                room = _free_m(around, lead, other, previous, since, policy)
                if room > free:
                    free, angular = room, other
            allowed = stopping_speed_m_s(free, delay, slower)
            if abs(angular - wish) > _SAME:
                why.append(f'no turn of {wish:.2f} rad/s at {abs(coasting):.2f} m/s')
        if abs(linear) > allowed:
            linear = math.copysign(allowed, linear) if allowed > 0.0 else 0.0
            why.append(f'free distance {free:.2f} m allows {allowed:.2f} m/s')
    return Limited(
        velocity=Velocity(linear, angular),
        limited=bool(why),
        why='; '.join(why),
        free_m=free,
        coasting_m_s=faster_of(linear, coasting),
    )


def approach(now: float, goal: float, up: float, down: float) -> float:
    """Move from `now` towards `goal`: away from 0 by at most `up`, towards 0 by at most `down`.

    It does not pass through 0 in one step.
    """
    if now == 0.0:
        return min(max(goal, -up), up)
    size, wanted = abs(now), goal * math.copysign(1.0, now)
    return math.copysign(min(max(wanted, size - down, 0.0), size + up), now)


def faster_of(a_m_s: float, b_m_s: float) -> float:
    """Return the one that is further from standing."""
    return a_m_s if abs(a_m_s) >= abs(b_m_s) else b_m_s


def _free_m(
    around: Surroundings | None,
    lead_m_s: float,
    turn_rad_s: float,
    previous: Velocity,
    since: Motion,
    policy: Policy,
) -> float:
    """Free distance over every heading that the base can have until it stands."""
    if around is None:
        return 0.0
    rules = policy.envelope
    until_s = latency_s(policy) + abs(lead_m_s) / rules.max_deceleration_m_s2
    low = min(0.0, turn_rad_s, previous.angular_z_rad_s) * until_s - since.right_rad
    high = max(0.0, turn_rad_s, previous.angular_z_rad_s) * until_s + since.left_rad
    if lead_m_s < 0.0:
        low, high = low + math.pi, high + math.pi
    if rules.unknown_is_blocked and not around.known(low, high):
        return 0.0
    return around.free_m(low, high, reach_m(policy) + since.distance_m)
