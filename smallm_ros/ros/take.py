"""Taking messages, requests and time by polling: no executor, no callback, never a wait.

An executor between a message and a deadline was measured at gaps of a second. A subscription of
depth 1 holds the newest message; one take in each control period is all that a watchdog needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock as ClockMessage

from smallm_ros import steady
from smallm_ros.core.errors import DroppedError
from smallm_ros.ros import qos
from smallm_ros.ros.convert import stamp_ns

MOST_AT_ONCE = 16
"""Most messages that one `take_all` returns: a flood cannot hold the loop."""


def subscribe(node: Node, kind: type, topic: str, profile: QoSProfile) -> Any:
    """Return a subscription that is only ever taken from."""
    return node.create_subscription(kind, topic, _never, profile)


def serve(node: Node, kind: type, name: str) -> Any:
    """Return a service that is only ever polled."""
    return node.create_service(kind, name, _never)


def take(subscription: Any) -> Any | None:
    """Return the oldest message that waits (with depth 1: the newest there is), or None."""
    with subscription.handle:
        taken = subscription.handle.take_message(subscription.msg_type, False)
    return None if taken is None else taken[0]


def take_all(subscription: Any) -> list[Any]:
    """Return every message that waits, the oldest first."""
    messages: list[Any] = []
    while len(messages) < MOST_AT_ONCE:
        message = take(subscription)
        if message is None:
            break
        messages.append(message)
    return messages


def take_request(service: Any) -> Callable[[Any], None] | None:
    """Return a function that answers the request that waits, or None when none does."""
    with service.handle:
        _, header = service.handle.service_take_request(service.srv_type.Request)
    if header is None:
        return None

    def answer(response: Any) -> None:
        service.send_response(response, header)

    return answer


class RosTime:
    """ROS time: the newest /clock under `use_sim_time`, else the system's."""

    def __init__(self, node: Node) -> None:
        self.simulated = bool(node.get_parameter('use_sim_time').value)
        """Whether it can pause; the system's cannot, but it can be set back."""
        self._clock = (
            subscribe(node, ClockMessage, '/clock', qos.SENSOR) if self.simulated else None)
        self._ns: int | None = None

    def now_ns(self) -> int | None:
        """Return ROS time in nanoseconds; None before the first /clock."""
        if self._clock is None:
            return steady.wall_ns()
        message = take(self._clock)
        if message is not None:
            try:
                self._ns = stamp_ns(message.clock)
            except DroppedError:
                pass  # the time before stands until a clock that is one
        return self._ns


def _never(*_: Any) -> None:
    raise AssertionError('this node has no executor')
