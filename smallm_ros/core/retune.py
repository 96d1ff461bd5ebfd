"""Which limits may change while the robot is in use, and which way is the careful one.

A whole policy is compared with the present one. What tightens may be taken at once; what loosens,
or may do either, only while the robot is held; what is not a limit takes a new start. A limit that
nobody named here is treated as one that loosens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from smallm_ros.core.policy import Policy

MORE, LESS = 1, -1

CAREFUL: Mapping[str, int] = MappingProxyType({
    'decision.min_confidence': MORE,
    'decision.max_observation_age_ms': LESS,
    'control.progress_limit_ms': LESS,
    'control.status_limit_ms': LESS,
    'envelope.max_forward_m_s': LESS,
    'envelope.max_reverse_m_s': LESS,
    'envelope.max_turn_rad_s': LESS,
    'envelope.max_acceleration_m_s2': LESS,
    'envelope.margin_m': MORE,
    'envelope.unknown_is_blocked': MORE,
    'envelope.unknown_gap_deg': LESS,
    'fallback.speed_m_s': LESS,
    'fallback.turn_rad_s': LESS,
})
"""The direction of each limit that is more careful."""

HELD = ('envelope.', 'fallback.', 'control.allowed_lateness_ms')
"""What else may change, while the robot is held: a lower deceleration, say, is careful before an
obstacle and bold behind one."""

FIXED = ('envelope.obstacle_sensors',)
"""What may not, although its section does."""


@dataclass(frozen=True, slots=True)
class Change:
    """What another policy would change, by the names of the file."""

    tighter: tuple[str, ...]
    looser: tuple[str, ...]
    fixed: tuple[str, ...]
    """Not to be changed before the next start."""


def compare(old: Policy, new: Policy) -> Change:
    """Sort what differs between two validated policies."""
    tighter: list[str] = []
    looser: list[str] = []
    fixed: list[str] = []
    for place, was, now in _differences('', old.model_dump(), new.model_dump()):
        careful = CAREFUL.get(place)
        if careful is not None:
            (tighter if (now - was) * careful > 0 else looser).append(place)
        elif place.startswith(HELD) and not place.startswith(FIXED):
            looser.append(place)
        else:
            fixed.append(place)
    return Change(tuple(tighter), tuple(looser), tuple(fixed))


def _differences(place: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            below = f'{place}.{key}' if place else str(key)
            yield from _differences(below, old.get(key), new.get(key))
    elif old != new:
        yield place, old, new
