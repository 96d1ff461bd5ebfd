"""The QoS of every topic, as docs/architecture.md's table has it: one row, one profile.

Depth is 1 everywhere: an old reading, command or status is worth nothing once a newer one exists.
Sensors are best effort, which every publisher's profile is compatible with.
"""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _newest(reliability: ReliabilityPolicy) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=reliability,
        durability=DurabilityPolicy.VOLATILE,
    )


SENSOR = _newest(ReliabilityPolicy.BEST_EFFORT)
COMMAND = _newest(ReliabilityPolicy.RELIABLE)
STATUS = _newest(ReliabilityPolicy.RELIABLE)
DECISION = _newest(ReliabilityPolicy.RELIABLE)
SAY = _newest(ReliabilityPolicy.RELIABLE)
CMD_VEL = _newest(ReliabilityPolicy.RELIABLE)
APPLIED = _newest(ReliabilityPolicy.BEST_EFFORT)
