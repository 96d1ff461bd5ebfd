"""Taking messages, requests and time by polling: no executor, no callback, never a wait.

An executor between a message and a deadline was measured at gaps of a second. A subscription of
depth 1 holds the newest message; one take in each control period is all that a watchdog needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.event_handler import QoSSubscriptionEventType
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock as ClockMessage

from smallm_ros import steady
from smallm_ros.core.clock import MS
from smallm_ros.core.errors import DroppedError
from smallm_ros.ros import qos
from smallm_ros.ros.convert.common import stamp_ns

EventHandle: Any = rclpy_implementation.EventHandle

REPLY_AFTER_NS = 200 * MS
_MOST_REPLIES = 64

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


def take_request(service: Any) -> tuple[Any, Callable[[Any], None]] | None:
    """Return the request that waits and a function that answers it, or None when none does."""
    with service.handle:
        request, header = service.handle.service_take_request(service.srv_type.Request)
    if header is None:
        return None

    def answer(response: Any) -> None:
        service.send_response(response, header)

    return request, answer


class Replies:
    """Answers to requests, each sent a while after its request.

    Once an answer to a client's first request was lost, with a gap of 150 ms in the loop beside
    it. It is thought, and not established, that the middleware waits there for a client that
    discovery has not connected yet; 200 ms later it has. It did not recur.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Callable[[Any], None], Any]] = deque(maxlen=_MOST_REPLIES)

    def put(self, now_ns: int, answer: Callable[[Any], None], response: Any) -> None:
        """Keep an answer until it is due; the oldest is lost where there are too many."""
        self._waiting.append((now_ns + REPLY_AFTER_NS, answer, response))

    def send_due(self, now_ns: int) -> None:
        """Send those that are due."""
        while self._waiting and self._waiting[0][0] <= now_ns:
            _, answer, response = self._waiting.popleft()
            answer(response)


class Liveliness:
    """How many of a topic's publishers assert that they live, as the middleware sees it.

    Secondary evidence: of a publisher that was never seen it says nothing.
    """

    def __init__(self, subscription: Any) -> None:
        kind = QoSSubscriptionEventType.RCL_SUBSCRIPTION_LIVELINESS_CHANGED
        with subscription.handle:
            self._event = EventHandle(subscription.handle, kind)
        self.alive = 0
        self.losses = 0
        """How often one was lost, since the start."""

    def look(self) -> None:
        """Take what has changed; 24 us, and never a wait."""
        with self._event:
            event = self._event.take_event()
        if event is not None:
            self.losses += max(event.not_alive_count_change, 0)
            self.alive = event.alive_count


class RosTime:
    """ROS time: the newest /clock under `use_sim_time`, else the system's."""

    def __init__(self, node: Node) -> None:
        self.simulated = bool(node.get_parameter('use_sim_time').value)
        """Whether it can pause; the system's cannot, but it can be set back."""
        self._clock = (
            subscribe(node, ClockMessage, '/clock', qos.SENSOR) if self.simulated else None)
        self._ns: int | None = None

    def now_ns(self) -> int | None:
        """Take the newest /clock; return ROS time in nanoseconds, None before the first."""
        message = None if self._clock is None else take(self._clock)
        if message is not None:
            try:
                self._ns = stamp_ns(message.clock)
            except DroppedError:
                pass  # the time before stands until a clock that is one
        return self.known_ns()

    def known_ns(self) -> int | None:
        """Return ROS time by the newest /clock that was taken."""
        return steady.wall_ns() if self._clock is None else self._ns


def _never(*_: Any) -> None:
    raise AssertionError('this node has no executor')
