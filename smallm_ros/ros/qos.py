"""The QoS of every topic, as docs/architecture.md's table has it: one row, one profile.

Depth is 1 everywhere: an old reading, command or status is worth nothing once a newer one exists.
Sensors are best effort, which every publisher's profile is compatible with. The status of the
policy node alone asserts its liveliness by hand: what the middleware's own threads assert of a
process whose interpreter hangs is worth nothing.
"""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
)

from smallm_ros.core.clock import MS


def _newest(reliability: ReliabilityPolicy) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=reliability,
        durability=DurabilityPolicy.VOLATILE,
    )


SENSOR = _newest(ReliabilityPolicy.BEST_EFFORT)
COMMAND = _newest(ReliabilityPolicy.RELIABLE)
DECISION = _newest(ReliabilityPolicy.RELIABLE)
SAY = _newest(ReliabilityPolicy.RELIABLE)
MISSION = _newest(ReliabilityPolicy.RELIABLE)
CMD_VEL = _newest(ReliabilityPolicy.RELIABLE)
OUTPUT = _newest(ReliabilityPolicy.RELIABLE)
APPLIED = _newest(ReliabilityPolicy.BEST_EFFORT)
STATE = _newest(ReliabilityPolicy.RELIABLE)


def estop(depth: int) -> QoSProfile:
    """Return the profile of the emergency stop: the one topic whose past counts."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)


def status(limit_ms: float) -> QoSProfile:
    """Return the profile of `~/status`, for both ends: `limit_ms` is the policy's status limit.

    A publisher that does not offer it is not heard by the watchdog, which then says so.
    """
    profile = _newest(ReliabilityPolicy.RELIABLE)
    profile.liveliness = LivelinessPolicy.MANUAL_BY_TOPIC
    profile.liveliness_lease_duration = Duration(nanoseconds=round(limit_ms * MS))
    return profile
