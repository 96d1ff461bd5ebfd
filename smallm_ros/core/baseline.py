"""The declared fallbacks: what the robot does without a model.

Pure functions of the newest scan and the last velocity. The policy file ranks them; the first
whose sensors are fit is taken, and the last is always `stop`, which needs nothing. What they ask
for goes through the envelope like any other velocity, so none looks twice before it moves.
"""

from __future__ import annotations

import math

import numpy as np

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.envelope import Surroundings, reach_m
from smallm_ros.core.observation import Scan
from smallm_ros.core.policy import FallbackKind, Policy

NEEDS_SCAN: frozenset[FallbackKind] = frozenset({'creep', 'turn_to_free', 'follow_gap'})

_HEADINGS_RAD = np.radians(np.array(
    sorted(range(-180, 180, 10), key=lambda deg: (abs(deg), -deg)), dtype=np.float64,
))
"""Straight ahead first, then left before right: the first of equals wins."""
_GAP_FAR_M = 3.0
"""Gaps are not told apart beyond this."""
_TURN_COST_M = 0.5
"""How much longer a gap must be for each radian that the robot must turn for it."""
_AHEAD_RAD = math.radians(30.0)
"""Within this the robot drives while it turns."""
_GAIN = 2.0
"""Turning speed for each radian of error, in 1/s: the error falls to a third in half a second."""
_STEP_M = 0.1
"""The least free way for which turning to it is worth while."""


def choose(
    policy: Policy, scan: Scan | None, previous: Velocity, dt_s: float,
) -> tuple[FallbackKind, Velocity]:
    """Return the first fallback of the ladder whose sensors are fit, and what it asks for.

    `scan` is None when the obstacle sensor is not fit.
    """
    for kind in policy.fallback.ladder:
        if kind not in NEEDS_SCAN:
            return kind, (
                STOP if kind == 'stop' else
                decelerate(previous, policy.envelope.max_deceleration_m_s2, dt_s)
            )
        if scan is not None:
            around = Surroundings.of(scan, policy)
            if kind == 'creep':
                return kind, creep(policy)
            if kind == 'turn_to_free':
                return kind, turn_to_free(policy, around)
            return kind, follow_gap(policy, around)
    return 'stop', STOP


def decelerate(previous: Velocity, deceleration_m_s2: float, dt_s: float) -> Velocity:
    """Slow down at half the limit along the curve that the robot is on."""
    speed = abs(previous.linear_x_m_s)
    if speed == 0.0:
        return STOP
    rest = max(0.0, 1.0 - 0.5 * deceleration_m_s2 * dt_s / speed)
    return Velocity(previous.linear_x_m_s * rest, previous.angular_z_rad_s * rest)


def creep(policy: Policy) -> Velocity:
    """Go straight ahead slowly; the envelope stops it before an obstacle."""
    return Velocity(policy.fallback.speed_m_s, 0.0)


def turn_to_free(policy: Policy, around: Surroundings) -> Velocity:
    """Turn on the spot until the freest direction is ahead, then stand."""
    heading, free = freest(policy, around)
    if free < _STEP_M or abs(heading) < _AHEAD_RAD:
        return STOP
    return Velocity(0.0, _turn(policy, heading))


def follow_gap(policy: Policy, around: Surroundings) -> Velocity:
    """Drive slowly into the freest direction, turning on the spot while it is not ahead."""
    heading, free = freest(policy, around)
    if free < _STEP_M:
        return STOP
    speed = policy.fallback.speed_m_s if abs(heading) < _AHEAD_RAD else 0.0
    return Velocity(speed, _turn(policy, heading))


def freest(policy: Policy, around: Surroundings) -> tuple[float, float]:
    """Return the heading with the longest free way, turning counted as a cost, and that way.

    Units: radians and metres. (0, 0) when no heading is free.
    """
    best, most, way = 0.0, 0.0, 0.0
    reach = reach_m(policy)
    for heading in map(float, _HEADINGS_RAD):
        if policy.envelope.unknown_is_blocked and not around.known(heading, heading):
            continue
        free = min(around.free_m(heading, heading, reach), _GAP_FAR_M)
        worth = free - _TURN_COST_M * abs(heading)
        if free > 0.0 and (way == 0.0 or worth > most):
            best, most, way = heading, worth, free
    return best, way


def _turn(policy: Policy, heading_rad: float) -> float:
    most = policy.fallback.turn_rad_s
    return min(max(_GAIN * heading_rad, -most), most)
