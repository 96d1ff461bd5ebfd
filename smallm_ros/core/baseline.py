"""The declared fallbacks: what the robot does without a model.

The policy file ranks them; the first that has what it needs is taken, what is not fit is skipped,
and the last is always `stop`, which needs nothing:

    stop          nothing                  stand at once, inside the envelope's limits
    decelerate    nothing                  slow down along the present curve, then stand
    hold          a live command           go on as last told, until that is no longer valid
    creep         the scans                slowly straight ahead
    turn_to_free  the scans                turn on the spot until the freest way is ahead
    follow_gap    the scans                slowly to the goal where one is known (a goal and
                                           odometry, both fit), else into the freest way

What they ask for goes through the envelope like any other velocity, so none looks twice before it
moves. They have no memory: in a dead end they may turn to and fro, and nobody is promised to
arrive.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.envelope import Surroundings, reach_m
from smallm_ros.core.facts import Inputs, arrival_age_ns, stamp_age_ns
from smallm_ros.core.policy import FallbackKind, Policy
from smallm_ros.core.summary.goal import REACHED_M, Goal, from_robot
from smallm_ros.core.summary.odometry import Odometry

_HEADINGS_RAD = np.radians(np.array(
    sorted(range(-180, 180, 10), key=lambda deg: (abs(deg), -deg)), dtype=np.float64,
))
"""Straight ahead first, then left before right: the first of equals wins."""
_GAP_FAR_M = 3.0
"""Gaps are not told apart beyond this."""
_TURN_COST_M = 0.5
"""How much longer a gap must be for each radian that the robot must turn for it."""
_DETOUR_COST_M = 1.0
"""How much longer a gap must be for each radian that it lies off the goal's bearing."""
_AHEAD_RAD = math.radians(30.0)
"""Within this the robot drives while it turns."""
_GAIN = 2.0
"""Turning speed for each radian of error, in 1/s: the error falls to a third in half a second."""
_STEP_M = 0.1
"""The least free way for which turning to it is worth while."""


_BLIND: tuple[FallbackKind, ...] = ('stop', 'decelerate')
"""Those that look at nothing and always have what they need."""


@dataclass(frozen=True, slots=True)
class Senses:
    """What a fallback may know in one control period; None is what is not fit."""

    around: Surroundings | None
    previous: Velocity
    """What the base was told last."""
    dt_s: float
    held: Velocity | None = None
    """Of the command that drove the base last, while it is live."""
    goal: tuple[float, float] | None = None
    """Bearing in radians from straight ahead, and distance in metres."""


def choose(policy: Policy, senses: Senses) -> tuple[FallbackKind, Velocity]:
    """Return the first fallback of the ladder that has what it needs, and what it asks for."""
    offers = ((kind, _ASK[kind](policy, senses)) for kind in policy.fallback.ladder)
    return next((kind, asked) for kind, asked in offers if asked is not None)


def looks(policy: Policy) -> bool:
    """Whether a fallback of the ladder may need scans; sorting them is most of its time."""
    return policy.fallback.ladder[0] not in _BLIND


def goal_ahead(policy: Policy, now_ns: int, inputs: Inputs) -> tuple[float, float] | None:
    """Return bearing and distance of the goal, radians and metres; None where they are not known.

    A goal is said once and does not grow old; where it is a required sensor, a guard looks.
    """
    goals, poses = [], []
    for name, sensor in policy.sensors.items():
        received = inputs.sensors.get(name)
        if received is None:
            continue
        if isinstance(received.fields, Goal):
            goals.append(received.fields)
        elif isinstance(received.fields, Odometry):
            age_ns = arrival_age_ns(received, now_ns, inputs.ros_now_ns)
            off_ns = stamp_age_ns(received.fields.stamp_ns, inputs.ros_now_ns) or 0
            if max(age_ns, abs(off_ns)) <= sensor.stale_after_ns:
                poses.append(received.fields)
    for goal, pose in itertools.product(goals, poses):
        bearing, distance = from_robot(goal, pose)
        if goal.frame_id == pose.frame_id and math.isfinite(distance):
            return bearing, distance
    return None


def decelerate(policy: Policy, senses: Senses) -> Velocity:
    """Slow down at half the limit along the curve that the robot is on."""
    previous = senses.previous
    speed = abs(previous.linear_x_m_s)
    if speed == 0.0:
        return STOP
    slower = 0.5 * policy.envelope.max_deceleration_m_s2 * senses.dt_s
    rest = max(0.0, 1.0 - slower / speed)
    return Velocity(previous.linear_x_m_s * rest, previous.angular_z_rad_s * rest)


def creep(policy: Policy, senses: Senses) -> Velocity | None:
    """Go straight ahead slowly; the envelope stops it before an obstacle."""
    if senses.around is None:
        return None
    return Velocity(policy.fallback.speed_m_s, 0.0)


def turn_to_free(policy: Policy, senses: Senses) -> Velocity | None:
    """Turn on the spot until the freest direction is ahead, then stand."""
    if senses.around is None:
        return None
    heading, free = freest(policy, senses.around)
    if free < _STEP_M or abs(heading) < _AHEAD_RAD:
        return STOP
    return Velocity(0.0, _turn(policy, heading))


def follow_gap(policy: Policy, senses: Senses) -> Velocity | None:
    """Drive slowly into the best direction, turning on the spot while it is not ahead."""
    if senses.around is None:
        return None
    if senses.goal is not None and senses.goal[1] < REACHED_M:
        return STOP
    heading, free = freest(policy, senses.around, senses.goal)
    if free < _STEP_M:
        return STOP
    speed = policy.fallback.speed_m_s if abs(heading) < _AHEAD_RAD else 0.0
    return Velocity(speed, _turn(policy, heading))


_ASK: Mapping[FallbackKind, Callable[[Policy, Senses], Velocity | None]] = MappingProxyType({
    'stop': lambda policy, senses: STOP,
    'decelerate': decelerate,
    'hold': lambda policy, senses: senses.held,
    'creep': creep,
    'turn_to_free': turn_to_free,
    'follow_gap': follow_gap,
})
"""What each asks for; None where it lacks what it needs."""


def freest(
    policy: Policy, around: Surroundings, goal: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Return the heading with the longest free way, less what turning costs, and that way.

    A way is free where the footprint could turn to any side. With a goal, none counts beyond it,
    and leaving its bearing is a cost too. Radians and metres; (0, 0) when no heading is free.
    """
    best, most, way = 0.0, 0.0, 0.0
    reach = reach_m(policy)
    far = _GAP_FAR_M if goal is None else min(_GAP_FAR_M, goal[1])
    for heading in map(float, _HEADINGS_RAD):
        if policy.envelope.unknown_is_blocked and not around.known(heading, heading):
            continue
        free = min(around.free_m(heading, heading, reach), far)
        worth = free - _TURN_COST_M * abs(heading)
        if goal is not None:
            worth -= _DETOUR_COST_M * abs(math.remainder(heading - goal[0], 2 * math.pi))
        if free > 0.0 and (way == 0.0 or worth > most):
            best, most, way = heading, worth, free
    return best, way


def _turn(policy: Policy, heading_rad: float) -> float:
    most = policy.fallback.turn_rad_s
    return min(max(_GAIN * heading_rad, -most), most)
