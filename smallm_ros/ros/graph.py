"""What is wrong with the others on the graph: who else drives, who cannot be heard, and why.

To be looked at from a side thread: discovery's locks may be held. What it finds is said, and the
number of publishers on the output topic goes to the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rclpy.duration import Duration, Infinite
from rclpy.node import Node
from rclpy.qos import LivelinessPolicy, QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.topic_endpoint_info import TopicEndpointInfo


class Graph:
    """The others, as a node with one output that nobody else may publish sees them."""

    def __init__(
        self, node: Node, output: Any | None, inputs: Sequence[Any], shared: Sequence[Any] = (),
        *, simulated: bool,
    ) -> None:
        """`output` is None where there is none; on those in `shared` others may publish too."""
        self._node = node
        self._output = output
        self._shared = shared
        self._inputs = inputs
        self._simulated = simulated
        self.publishers: int | None = None
        """Publishers on the output topic, the node's own among them; None before a look."""
        self.others: tuple[str, ...] = ()
        """Whose they are, the node's own left out."""
        self.wrong: tuple[str, ...] = ()
        """What else is not as it should be, in words."""

    def count(self) -> None:
        """Count who publishes on the output topic; may block."""
        if self._output is not None:
            self.publishers = self._node.count_publishers(self._output.topic_name)

    def look(self) -> None:
        """Look around; may block."""
        node, output = self._node, self._output
        wrong = []
        if output is not None:
            topic = output.topic_name
            there = sorted(_whose(each) for each in node.get_publishers_info_by_topic(topic))
            own = node.get_fully_qualified_name()
            if own in there:
                there.remove(own)
            self.others = tuple(there)
            wrong = [f'{topic} is published by {other} too' for other in there]
        for mouth in (*(() if output is None else (output,)), *self._shared):
            for listener in node.get_subscriptions_info_by_topic(mouth.topic_name):
                wrong += _misfit(listener, mouth, listener.qos_profile, listens=True)
        for ear in self._inputs:
            for speaker in node.get_publishers_info_by_topic(ear.topic_name):
                wrong += _misfit(speaker, ear, speaker.qos_profile, listens=False)
        if self._simulated and (clocks := node.count_publishers('/clock')) > 1:
            wrong.append(f'{clocks} publishers on /clock: ROS time will jump between them')
        self.wrong = tuple(wrong)


def _whose(endpoint: TopicEndpointInfo) -> str:
    return f'{endpoint.node_namespace.rstrip("/")}/{endpoint.node_name}'


def _misfit(endpoint: TopicEndpointInfo, ours: Any, theirs: Any, *, listens: bool) -> list[str]:
    """Say why the endpoint of another on a topic of ours is not connected to it."""
    verb = 'listens to' if listens else 'publishes'
    kind = '/'.join(part for part in (
        ours.msg_type.__module__.split('.')[0], 'msg', ours.msg_type.__name__))
    said = f'{_whose(endpoint)} {verb} {ours.topic_name}'
    if endpoint.topic_type != kind:
        return [f'{said} as {endpoint.topic_type}, here it is {kind}']
    own = _as_discovered(ours.qos_profile)
    compatible, why = qos_check_compatible(*((own, theirs) if listens else (theirs, own)))
    if compatible == QoSCompatibility.ERROR:
        return [f'{said} with a QoS that does not fit: {why.strip()}'[:300]]
    return []


def _as_discovered(profile: QoSProfile) -> QoSProfile:
    """Return a profile with `unspecified`, 0, as discovery tells it: without end."""
    return QoSProfile(
        depth=profile.depth, history=profile.history,
        reliability=profile.reliability, durability=profile.durability,
        liveliness=profile.liveliness or LivelinessPolicy.AUTOMATIC,
        deadline=_endless(profile.deadline),
        liveliness_lease_duration=_endless(profile.liveliness_lease_duration),
    )


def _endless(duration: Duration) -> Duration:
    return duration if duration.nanoseconds else Infinite
