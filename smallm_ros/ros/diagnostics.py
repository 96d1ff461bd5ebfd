"""What a node says of itself on /diagnostics: a level, one line, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from smallm_ros.ros.convert.common import ros_stamp

OK: bytes = DiagnosticStatus.OK
WARN: bytes = DiagnosticStatus.WARN
ERROR: bytes = DiagnosticStatus.ERROR
STALE: bytes = DiagnosticStatus.STALE


def status(
    name: str, level: bytes, message: str, values: Mapping[str, str]
) -> DiagnosticStatus:
    """Return one status; `name` is `node: subject`, `message` one line."""
    return DiagnosticStatus(
        level=level, name=name, message=message, hardware_id='',
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )


def array(ros_now_ns: int, statuses: Sequence[DiagnosticStatus]) -> DiagnosticArray:
    """Return the message that carries them, stamped with ROS time."""
    sec, nanosec = ros_stamp(max(0, ros_now_ns))
    out = DiagnosticArray(status=list(statuses))
    out.header.stamp = Time(sec=sec, nanosec=nanosec)
    return out
