"""The safety envelope: what is left of a velocity once limits and obstacles have had their say.

Every velocity goes through `limit`, whoever asked for it. A speed is allowed when the base can
stand before it touches anything: v * latency + v^2 / (2 a) at most the free distance of the newest
scans, with latency = control period + allowed lateness + the base's own delay. The free distance
is taken over every heading that the base can have until it stands, for the footprint plus margin,
widened by all that the base may have driven since each scan was taken. So a curved path is inside
the cone that is checked, and braking along the present curve stays allowed to its end. A disc
turns freely; a polygon turns no faster than it can stop before a corner touches (`shape`). Every
further point can only slow. Pure functions; seconds, metres, radians.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.clock import SECOND
from smallm_ros.core.policy import Policy
from smallm_ros.core.shape import Flags, Floats, Shape, aside, edge_m
from smallm_ros.core.summary.scan import Scan, ScanSensor

UNKNOWN_CONE_RAD = math.pi / 6
"""A direction without a valid beam blocks headings nearer to it than this: what stands further
aside and still in the way is less than two reaches away, and was ahead a moment ago."""

_SAME = 1e-9
_SAME_BEAM = 1e-3
"""Share of a beam that the rounding of a message's float32 increment may add up to in a gap."""
_DEGREES = np.arange(360, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Motion:
    """Bounds on what the base has done since a scan was taken."""

    distance_m: float = 0.0
    left_rad: float = 0.0
    """At most this far turned to the left at any moment since."""
    right_rad: float = 0.0


STANDING = Motion()


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest scan of one obstacle sensor, and what the base may have done since."""

    scan: Scan
    sensor: ScanSensor
    since: Motion


@dataclass(frozen=True, slots=True)
class Told:
    """What the base was told last, `dt_s` ago, and what it may still be doing."""

    velocity: Velocity
    coasting_m_s: float
    """Forward speed that it may still have when commands fell faster than it can brake."""
    dt_s: float
    acceleration_m_s2: float = 0.0
    """By how much the last command differed from the one before, a second."""
    angular_acceleration_rad_s2: float = 0.0
    stretch: float = 1.0
    """How many times further a simulated base drives in a time than the steady clock says."""


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
    """To be handed back in the next `Told`."""


@dataclass(frozen=True, slots=True)
class Beams:
    """One scan: points around base_link as it was then, and what the laser does not know."""

    ranges_m: Floats
    bearings_rad: Floats
    unknown_rad: Floats
    """From the laser, of beams that are NaN or nearer than range_min, without drop-outs."""
    since: Motion
    points_m: Floats
    """Shape (2, points): x and y."""
    blind: Flags
    """Shape (360,): the degrees of present headings of which it does not know everything."""
    close: Flags
    """The same of what is near enough to be touched in a turn."""

    @classmethod
    def of(cls, seen: Seen, shape: Shape, gap_rad: float) -> Beams:
        """Sort a scan's beams: `inf` and beyond range_max is nothing, -inf is at range_min.

        Drop-outs have been given the nearer neighbour's distance, `Envelope.unknown_gap_deg`.
        """
        scan, sensor = seen.scan, seen.sensor
        ranges: Floats = np.array(scan.ranges_m, dtype=np.float64)
        step = abs(scan.angle_increment_rad)
        mount = math.radians(sensor.mount_yaw_deg)
        beams = np.arange(ranges.size, dtype=np.float64)
        bearings: Floats = scan.angle_min_rad + scan.angle_increment_rad * beams + mount
        near = np.isneginf(ranges)
        unknown = np.isnan(ranges) | ((ranges < scan.range_min_m) & ~near)
        ranges[near] = max(scan.range_min_m, 0.0)
        ranges[ranges > scan.range_max_m] = np.inf
        ranges, unknown = _fill(ranges, unknown, step, gap_rad)
        echo = np.isfinite(ranges) & ~unknown
        missing = bearings[unknown]
        far: Floats = ranges[echo]
        sides: Floats = bearings[echo]
        off = (sensor.mount_x_m, sensor.mount_y_m)
        points = np.stack((far * np.cos(sides) + off[0], far * np.sin(sides) + off[1]))
        if off != (0.0, 0.0):
            far, sides = np.hypot(*points), np.arctan2(points[1], points[0])
        blind = close = _unseen(missing, scan, mount)
        if blind.any():
            from_m, near_m = _sweeps(shape, *off)
            blind, close = (_blind(blind, sweep, seen.since) for sweep in (from_m, near_m))
        return cls(far, sides, missing, seen.since, points, blind, close)


def _unseen(missing_rad: Floats, scan: Scan, mount_rad: float) -> Flags:
    """Return the degrees of bearing, from the laser, that no valid beam looks into all through."""
    step, count = abs(scan.angle_increment_rad), len(scan.ranges_m)
    if count == 0:
        return np.ones(360, dtype=np.bool_)
    span = step * (count - 1)
    if span >= 2 * math.pi - 1.5 * step:
        unseen = np.zeros(360, dtype=np.bool_)
    else:
        start = scan.angle_min_rad + mount_rad + min(0.0, scan.angle_increment_rad * (count - 1))
        slack = 1e-6
        offset = np.mod(np.radians(_DEGREES) - start + step / 2 + slack, 2 * math.pi)
        unseen = offset > span + step - math.radians(1.0) + 2 * slack
    if missing_rad.size:
        first = np.floor(np.degrees(missing_rad - step / 2) + 1e-6).astype(np.int64)
        last = np.ceil(np.degrees(missing_rad + step / 2) - 1e-6).astype(np.int64)
        for more in range(int((last - first).max())):
            unseen[np.minimum(first + more, last - 1) % 360] = True
    return unseen


@functools.lru_cache(maxsize=32)
def _sweeps(shape: Shape, x_m: float, y_m: float) -> tuple[tuple[Floats, Floats], ...]:
    """Return which bearings from a laser what lies in each degree from base_link can be in.

    First for a robot that drives: of all that is at least two reaches away; what is nearer was
    further away a moment ago, `UNKNOWN_CONE_RAD`. Then for one that turns: from the footprint's
    edge on. Shapes (360,): relative to the degree's begin and end. Assumed: the laser is inside
    the footprint, so that what hides something from it is itself nearer in the way.
    """
    edges = np.radians(np.arange(361.0))
    out = []
    for nearest in (np.full(361, 2.0 * shape.reach_m), edge_m(shape, edges)):
        point = nearest * np.exp(1j * edges) - complex(x_m, y_m)
        swing = np.degrees(np.angle(point * np.exp(-1j * edges)))
        out.append((np.minimum(0.0, np.minimum(swing[:-1], swing[1:] + 1.0)),
                    np.maximum(0.0, np.maximum(swing[1:], swing[:-1] - 1.0))))
    return tuple(out)


def _blind(unseen: Flags, sweep: tuple[Floats, Floats], since: Motion) -> Flags:
    """Return the degrees of heading in which something could be unseen."""
    low = np.floor(_DEGREES + sweep[0] - math.degrees(since.right_rad) + 1e-6)
    high = np.ceil(_DEGREES + 1.0 + sweep[1] + math.degrees(since.left_rad) - 1e-6)
    count = np.concatenate(([0], np.cumsum(np.tile(unseen, 3))))
    begin = np.clip(low + 360, 0, 1080).astype(np.int64)
    end = np.clip(high + 360, 0, 1080).astype(np.int64)
    out: Flags = (count[end] > count[begin]) | (high - low >= 360)
    return out


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What any number of scans say: points around base_link, and headings that none knows.

    A heading is known when one scan knows it all; two do not complete each other inside of a
    degree.
    """

    beams: tuple[Beams, ...]
    blind: Flags
    """Shape (360,): the degrees of heading, [k, k + 1), that no scan knows."""
    close: Flags
    """The same of what is near enough to be touched in a turn."""
    shape: Shape

    @classmethod
    def of(cls, seen: tuple[Seen, ...], policy: Policy) -> Surroundings:
        """Sort the beams of every scan; at least one."""
        shape = shape_of(policy)
        gap_rad = math.radians(policy.envelope.unknown_gap_deg)
        beams = tuple(Beams.of(one, shape, gap_rad) for one in seen)
        blind = np.logical_and.reduce([b.blind for b in beams])
        return cls(beams, blind, np.logical_and.reduce([b.close for b in beams]), shape)

    def known(self, low_rad: float, high_rad: float) -> bool:
        """Whether scans know every heading from `low_rad` to `high_rad` and a cone beside."""
        if not bool(self.blind.any()):
            return True
        first = math.floor(math.degrees(low_rad - UNKNOWN_CONE_RAD) + 1e-6)
        last = math.ceil(math.degrees(high_rad + UNKNOWN_CONE_RAD) - 1e-6)
        return not bool(self.blind[np.arange(first, min(last, first + 360)) % 360].any())

    def free_m(self, low_rad: float, high_rad: float, reach_m: float) -> float:
        """Return how far a disc of radius `reach_m` gets on any path with headings in the range.

        A path whose headings lie in a cone narrower than pi stays in that cone, and is never
        shorter than its end is far; so the shortest straight way of the cone bounds it. A point
        already inside the disc blocks every heading towards it and no heading away from it.
        """
        return min(
            _disc_m(b, low_rad - b.since.right_rad, high_rad + b.since.left_rad,
                    reach_m + b.since.distance_m)
            for b in self.beams
        )

    def way_m(self, low_rad: float, high_rad: float, *, backwards: bool = False) -> float:
        """Return how far the footprint and its margin get while base_link's heading is in a range.

        The body counts in each of those orientations all along the way.
        """
        shape, about = self.shape, math.pi if backwards else 0.0
        if shape.round or high_rad - low_rad >= math.pi:
            return self.free_m(low_rad + about, high_rad + about, shape.reach_m)
        free = math.inf
        for b in self.beams:
            since = b.since
            low, high = low_rad - since.right_rad, high_rad + since.left_rad
            if high - low >= math.pi:
                one = _disc_m(b, low, high, shape.reach_m + since.distance_m)
            else:
                one = shape.way_m(b.points_m, low, high, about, since.distance_m)
            free = min(free, one)
        return free

    def turn_rad(self, *, left: bool, unknown_is_blocked: bool) -> float:
        """Return how far the footprint can turn to a side on the spot before it touches."""
        free = math.inf
        for b in self.beams:
            turned = b.since.left_rad if left else b.since.right_rad
            free = min(free, self.shape.turn_rad(
                b.ranges_m, b.bearings_rad, b.since.distance_m, left=left) - turned)
        if unknown_is_blocked and bool(self.close.any()):
            degrees = np.radians(_DEGREES[self.close] + 0.5)
            free = min(free, self.shape.turn_rad(np.zeros(degrees.size), degrees, 0.0, left=left))
        return max(free, 0.0)


def _disc_m(beams: Beams, low_rad: float, high_rad: float, reach_m: float) -> float:
    beside = aside(beams.bearings_rad, low_rad, high_rad)
    if high_rad - low_rad >= math.pi:
        beside = np.zeros_like(beside)
    ahead = beams.ranges_m * np.cos(beside)
    side = beams.ranges_m * np.sin(beside)
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


def latency_s(policy: Policy) -> float:
    """Longest time from a scan's evaluation to the base acting on what follows the next one."""
    delay_ns = policy.control_period_ns + policy.allowed_lateness_ns
    return delay_ns / SECOND + policy.robot.base_delay_ms * 1e-3


def stopping_speed_m_s(free_m: float, delay_s: float, deceleration_m_s2: float) -> float:
    """Return the largest v with v * delay + v^2 / (2 a) at most `free_m`; of angles too."""
    if math.isinf(free_m):
        return math.inf
    a = deceleration_m_s2
    return a * (math.sqrt(delay_s * delay_s + 2.0 * max(free_m, 0.0) / a) - delay_s)


def shape_of(policy: Policy) -> Shape:
    """Return the footprint with its margin; made once for each."""
    return Shape.of(policy.robot.footprint, policy.robot.radius_m, policy.envelope.margin_m)


def reach_m(policy: Policy) -> float:
    """Radius of the disc around base_link that must stay free for it to turn everywhere."""
    return shape_of(policy).reach_m


def limit(
    asked: Velocity, told: Told, seen: tuple[Seen, ...] | None, policy: Policy,
) -> Limited:
    """Return the allowed velocity nearest to `asked`.

    Without scans the base may brake, a disc may turn, nothing else. A deceleration beyond the
    limit is commanded only when the stopping distance demands it. Limits of jerk hold back what
    is asked for, never a stop and never what obstacles demand.
    """
    rules, previous, dt_s = policy.envelope, told.velocity, told.dt_s
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
    change = turning = math.inf
    if asked != STOP:
        change = _eased(previous.linear_x_m_s, speed, told.acceleration_m_s2,
                        rules.max_jerk_m_s3, dt_s)
        turning = _eased(previous.angular_z_rad_s, turn, told.angular_acceleration_rad_s2,
                         rules.max_angular_jerk_rad_s3, dt_s)
    linear = approach(previous.linear_x_m_s, speed,
                      min(faster * dt_s, change), min(slower * dt_s, change))
    angular = approach(previous.angular_z_rad_s, turn,
                       min(spin * dt_s, turning), min(spin * dt_s, turning))
    coasting = approach(
        faster_of(previous.linear_x_m_s, told.coasting_m_s), 0.0, 0.0, slower * dt_s)
    if linear * coasting < 0.0:
        linear = 0.0
    if abs(linear - speed) > _SAME or abs(angular - turn) > _SAME:
        why.append('acceleration')
    lead = faster_of(linear, coasting)
    polygon = not shape_of(policy).round
    around = None
    if seen and (lead != 0.0 or (polygon and angular != 0.0)):
        around = Surroundings.of(seen, policy)
    delay = latency_s(policy) * max(told.stretch, 1.0)
    free = math.inf
    if lead != 0.0:
        wish = angular
        until_s = delay + abs(lead) / slower
        cone = _cone(wish, previous, until_s)
        free = _free_m(around, lead, cone, policy)
        allowed = stopping_speed_m_s(free, delay, slower)
        most = math.inf
        if allowed < abs(coasting):
            # Not even braking fits into this turn: braking along the old one, or straight, may.
            most = abs(coasting)
            straighter = approach(previous.angular_z_rad_s, 0.0, spin * dt_s, spin * dt_s)
            for other in (straighter, previous.angular_z_rad_s):
                narrower = _cone(other, previous, until_s)
                room = free if narrower == cone else _free_m(around, lead, narrower, policy)
                if room > free:
                    free, angular, cone = room, other, narrower
            allowed = stopping_speed_m_s(free, delay, slower)
            if abs(angular - wish) > _SAME:
                why.append(f'no turn of {wish:.2f} rad/s at {abs(coasting):.2f} m/s')
        if abs(linear) > min(allowed, most):
            linear = math.copysign(min(allowed, most), linear) if allowed > 0.0 else 0.0
            why.append(f'free distance {free:.2f} m allows {allowed:.2f} m/s')
        zone = rules.slow_down
        if zone is not None and free <= zone.within_m:
            slow = max(zone.max_m_s, abs(previous.linear_x_m_s) - slower * dt_s)
            if abs(linear) > slow:
                linear = math.copysign(slow, linear)
                why.append(f'free distance {free:.2f} m is in the zone of {zone.max_m_s:g} m/s')
    if polygon and angular != 0.0:
        turn_rad = 0.0 if around is None else around.turn_rad(
            left=angular > 0.0, unknown_is_blocked=rules.unknown_is_blocked)
        allowed = stopping_speed_m_s(turn_rad, delay, spin)
        if abs(angular) > allowed:
            angular = math.copysign(allowed, angular) if allowed > 0.0 else 0.0
            why.append(f'free turn {turn_rad:.2f} rad allows {allowed:.2f} rad/s')
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


def _eased(
    now: float, goal: float, acceleration: float, jerk: float | None, dt_s: float,
) -> float:
    """Return the largest change towards `goal` in this step that a limit of jerk allows.

    The acceleration grows by at most jerk * dt, and only while it can still fall to 0 at that rate
    before the goal: the formula is the stopping distance's, one derivative up.
    """
    if jerk is None:
        return math.inf
    so_far = max(0.0, math.copysign(1.0, goal - now) * acceleration)
    return dt_s * min(so_far + jerk * dt_s, stopping_speed_m_s(abs(goal - now), dt_s, jerk))


def _cone(turn_rad_s: float, previous: Velocity, until_s: float) -> tuple[float, float]:
    """Return the bounds of the headings that the base can have within a time."""
    turns = (0.0, turn_rad_s, previous.angular_z_rad_s)
    return min(turns) * until_s, max(turns) * until_s


def _free_m(
    around: Surroundings | None, lead_m_s: float, cone: tuple[float, float], policy: Policy,
) -> float:
    """Free distance over every heading of the cone."""
    if around is None:
        return 0.0
    low, high = cone
    about = math.pi if lead_m_s < 0.0 else 0.0
    if policy.envelope.unknown_is_blocked and not around.known(low + about, high + about):
        return 0.0
    return around.way_m(low, high, backwards=lead_m_s < 0.0)
