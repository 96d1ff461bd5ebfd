"""Taking messages, requests and time by polling: no executor, no callback, never a wait.

An executor between a message and a deadline was measured at gaps of a second. A subscription of
depth 1 holds the newest message; one take in each control period is all that a node needs, and a
flood costs it no more than that one.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import QoSSubscriptionEventType
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
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


class _Unspun(CallbackGroup):
    """Subscriptions of this group wake no executor that spins their node."""

    def can_execute(self, entity: object) -> bool:
        """Return whether an executor may: what befalls a subscription it may still tell."""
        return not isinstance(entity, Subscription)

    def beginning_execution(self, entity: object) -> bool:
        """Let it run."""
        return True

    def ending_execution(self, entity: object) -> None:
        """Nothing is held."""


def subscribe(node: Node, kind: type, topic: str, profile: QoSProfile) -> Any:
    """Return a subscription that is only ever taken from, even where the node has an executor."""
    return node.create_subscription(kind, topic, _never, profile, callback_group=_Unspun())


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


@dataclass(frozen=True, slots=True)
class Taken:
    """The newest message of a topic."""

    message: Any
    arrival_ns: int
    """Steady time at which the middleware had it."""
    ros_arrival_ns: int | None
    """ROS time of the look before it, so at most a control period too early; None where unused."""
    messages: int
    """How many its publisher had sent since the last one that was taken."""


class Newest:
    """Looks for the newest message of a topic: at most one take a look, whatever is sent."""

    def __init__(self, subscription: Any, now_ns: int) -> None:
        """Take a subscription of depth 1, made at `now_ns`."""
        self._subscription = subscription
        self._looked_ns = now_ns
        self._ros_looked_ns: int | None = None
        self._last: tuple[Any, int] = (None, 0)
        """Who sent the last message, and its number."""

    def look(self, now_ns: int, wall_ns: int, ros_now_ns: int | None) -> Taken | None:
        """Return what came since the last look, or None.

        The middleware stamps arrivals with the wall clock. Where that was set meanwhile, or says
        nothing, the message counts as old as it can be: of just after the last look.
        """
        with self._subscription.handle:
            taken = self._subscription.handle.take_message(self._subscription.msg_type, False)
        looked_ns, self._looked_ns = self._looked_ns, now_ns
        ros_looked_ns, self._ros_looked_ns = self._ros_looked_ns, ros_now_ns
        if taken is None:
            return None
        message, info = taken
        arrival_ns = now_ns - wall_ns + (info.get('received_timestamp') or 0)
        if not looked_ns <= arrival_ns <= now_ns:
            arrival_ns = looked_ns
        if ros_now_ns is not None and ros_looked_ns is None:
            ros_looked_ns = ros_now_ns
        return Taken(message, arrival_ns, ros_looked_ns, self._sent(info))

    def _sent(self, info: dict[str, Any]) -> int:
        """Return how many were sent since the last one; 1 where the middleware does not number."""
        sender = (info.get('publisher_gid') or {}).get('data')
        number = int(info.get('publication_sequence_number') or 0)
        last, self._last = self._last, (sender, number)
        if not number or sender != last[0]:
            return 1
        return max(1, number - last[1])


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
            with contextlib.suppress(DroppedError):
                # The time before stands until a clock that is one.
                if (now_ns := stamp_ns(message.clock)) >= 0:
                    self._ns = now_ns
        return self.known_ns()

    def known_ns(self) -> int | None:
        """Return ROS time by the newest /clock that was taken."""
        return steady.wall_ns() if self._clock is None else self._ns


def _never(*_: Any) -> None:
    raise AssertionError('a subscription that is taken from was executed')
