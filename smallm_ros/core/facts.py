"""What the gate may know in one control period, and how old it is.

The watchdog takes it, the gate is handed it, and nothing else reaches the gate. Ages are steady
time by arrival and ROS time by stamp. A pause of ROS time (a paused world) makes no sensor older;
deadlines and times-to-live are steady and run on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from smallm_ros.core.action import Command, NodeStatus
from smallm_ros.core.observation import Received

Process = tuple[int, int]
"""A process for good: its pid and the start ticks of /proc/PID/stat."""


@dataclass(frozen=True, slots=True)
class CommandArrival:
    """The newest command of the policy node, and when it was taken."""

    command: Command
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class StatusArrival:
    """The newest status of the policy node, and when it was taken."""

    status: NodeStatus
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that the gate may know in one step. Edges are true in one step only."""

    ros_now_ns: int | None
    """None before the first /clock."""
    simulated: bool = False
    """Whether ROS time is /clock's, which may pause and has a pace of its own; the system's has
    not, and nor has lock-step, where one clock is both."""
    sensors: Mapping[str, Received] = field(default_factory=dict)
    command: CommandArrival | None = None
    status: StatusArrival | None = None
    dead: frozenset[Process] = frozenset()
    """Those processes named by statuses that have ended."""
    estop: bool = False
    estop_silent: bool = False
    """Whether its source, which must not be, is silent; it spoke before."""
    estop_never: bool = False
    """Whether its source, which must, has not spoken yet."""
    publishers: int | None = None
    """Publishers on the output topic, this one among them; None before the graph was read."""
    arm: bool = False
    reset: bool = False


def arrival_age_ns(received: Received, now_ns: int, ros_now_ns: int | None) -> int:
    """Age by arrival, on the slower of the two clocks: a paused world makes no sensor older.

    ROS time that went back since says nothing; then steady time alone decides.
    """
    age_ns = now_ns - received.arrival_ns
    if received.ros_arrival_ns is None or ros_now_ns is None:
        return age_ns
    ros_age_ns = ros_now_ns - received.ros_arrival_ns
    return min(age_ns, ros_age_ns) if ros_age_ns >= 0 else age_ns


def stamp_age_ns(stamp_ns: int, ros_now_ns: int | None) -> int | None:
    """Age in ROS time; None where there is no stamp (0) or no ROS time."""
    if stamp_ns == 0 or ros_now_ns is None:
        return None
    return ros_now_ns - stamp_ns
