"""A witness beside a running robot: sees what it publishes, judges nothing, slows nothing.

Arrivals of `cmd_vel` are the middleware's own receive stamps, taken in its thread: a witness that
is itself late does not lengthen a gap.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

from smallm_ros import steady
from smallm_ros.core.action import Applied, NodeStatus, parse_frame
from smallm_ros.core.errors import CommandError
from smallm_ros.replay.report import Pose

_DEEP = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
_DEEP_BEST_EFFORT = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(slots=True)
class Seen:
    """What a witness has seen so far; steady times in nanoseconds."""

    command_times_ns: list[int] = field(default_factory=list)
    applied: list[Applied] = field(default_factory=list)
    trail: list[Pose] = field(default_factory=list)
    status: NodeStatus | None = None
    """The newest."""
    action: str = ''
    """The newest decision's, in words."""
    collisions: int = 0
    odd: int = 0
    """Frames that did not parse."""


class Witness:
    """Subscribes to a robot's topics on a node; the caller spins it."""

    def __init__(self, node: Node) -> None:
        self.seen = Seen()
        for kind, topic, callback, qos in (
            (TwistStamped, 'cmd_vel', self._command, _DEEP),
            (String, 'watchdog_node/applied', self._frame(Applied, self._applied),
             _DEEP_BEST_EFFORT),
            (String, 'policy_node/status', self._frame(NodeStatus, self._status), _DEEP),
            (String, 'policy_node/decision', self._decision, _DEEP),
            (String, 'sim_node/truth', self._truth, _DEEP),
        ):
            node.create_subscription(kind, topic, callback, qos)

    def _command(self, _: TwistStamped, info: Any) -> None:
        # The stamp is wall time; its age is told by the wall clock of this instant, so that a step
        # of that clock spoils one interval at the most.
        age_ns = max(0, steady.wall_ns() - info['received_timestamp'])
        self.seen.command_times_ns.append(steady.now_ns() - age_ns)

    def _frame(self, kind: type[Any], then: Callable[[Any], None]) -> Callable[[String], None]:
        def take(message: String) -> None:
            try:
                then(parse_frame(kind, message.data))
            except CommandError:
                self.seen.odd += 1
        return take

    def _applied(self, frame: Applied) -> None:
        self.seen.applied.append(frame)

    def _status(self, frame: NodeStatus) -> None:
        self.seen.status = frame

    def _decision(self, message: String) -> None:
        record = json.loads(message.data)
        words = (record['action'], *record['parameters'].values())
        self.seen.action = ' '.join(words) if record['action'] else record['outcome']

    def _truth(self, message: String) -> None:
        truth = json.loads(message.data)
        self.seen.trail.append(Pose(truth['steady_ns'], truth['x_m'], truth['y_m']))
        self.seen.collisions = truth['collisions']
