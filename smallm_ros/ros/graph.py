"""What is wrong with the others on the graph: who else drives, who cannot be heard, and why.

Asked from a process that may wait: discovery's locks may be held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.duration import Duration, Infinite
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.topic_endpoint_info import TopicEndpointInfo


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A publisher or subscription of a node: what others must fit."""

    topic: str
    """Resolved, from the root."""
    kind: str
    """Of its messages, `package/msg/Name`."""
    profile: QoSProfile

    @classmethod
    def of(cls, ours: Any) -> Endpoint:
        """Return that of a publisher or subscription of rclpy's."""
        kind = ours.msg_type
        return cls(
            ours.topic_name, f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}',
            ours.qos_profile)

    def words(self) -> dict[str, Any]:
        """Return it in JSON's types."""
        profile = self.profile
        return {
            'topic': self.topic, 'kind': self.kind, 'depth': profile.depth,
            'history': int(profile.history), 'reliability': int(profile.reliability),
            'durability': int(profile.durability), 'liveliness': int(profile.liveliness),
            'deadline_ns': profile.deadline.nanoseconds,
            'lease_ns': profile.liveliness_lease_duration.nanoseconds,
        }

    @classmethod
    def of_words(cls, words: Mapping[str, Any]) -> Endpoint:
        """Return what `words` says."""
        return cls(words['topic'], words['kind'], QoSProfile(
            depth=words['depth'], history=HistoryPolicy(words['history']),
            reliability=ReliabilityPolicy(words['reliability']),
            durability=DurabilityPolicy(words['durability']),
            liveliness=LivelinessPolicy(words['liveliness']),
            deadline=Duration(nanoseconds=words['deadline_ns']),
            liveliness_lease_duration=Duration(nanoseconds=words['lease_ns']),
        ))


class Graph:
    """The others, as the node `own` with one output that nobody else may publish sees them."""

    def __init__(
        self, node: Node, own: str, output: Endpoint | None, inputs: Sequence[Endpoint],
        shared: Sequence[Endpoint] = (), *, simulated: bool,
    ) -> None:
        """`output` is None where there is none; on those in `shared` others may publish too."""
        self._node = node
        self._own = own
        self._output = output
        self._shared = shared
        self._inputs = inputs
        self._simulated = simulated
        self.publishers = 0
        """Publishers on the output topic, the node's own among them."""
        self.others: tuple[str, ...] = ()
        """Whose they are, the node's own left out."""
        self.wrong: tuple[str, ...] = ()
        """What else is not as it should be, in words."""

    def count(self) -> None:
        """Count who publishes on the output topic; may block."""
        if self._output is not None:
            self.publishers = self._node.count_publishers(self._output.topic)

    def look(self) -> None:
        """Look around; may block."""
        node, output = self._node, self._output
        wrong = []
        if output is not None:
            there = sorted(
                _whose(each) for each in node.get_publishers_info_by_topic(output.topic))
            # A publisher is discovered before its node's name is: our own may have none yet.
            ours = next((name for name in (self._own, _UNNAMED) if name in there), None)
            if ours is not None:
                there.remove(ours)
            self.others = tuple(there)
            wrong = [f'{output.topic} is published by {other} too' for other in there]
        for mouth in (*(() if output is None else (output,)), *self._shared):
            for listener in node.get_subscriptions_info_by_topic(mouth.topic):
                wrong += _misfit(listener, mouth, listener.qos_profile, listens=True)
        for ear in self._inputs:
            for speaker in node.get_publishers_info_by_topic(ear.topic):
                wrong += _misfit(speaker, ear, speaker.qos_profile, listens=False)
        if self._simulated and (clocks := node.count_publishers('/clock')) > 1:
            wrong.append(f'{clocks} publishers on /clock: ROS time will jump between them')
        self.wrong = tuple(wrong)


_UNNAMED = '_NODE_NAMESPACE_UNKNOWN_/_NODE_NAME_UNKNOWN_'
"""What rmw_dds_common calls a node whose name has not arrived."""


def _whose(endpoint: TopicEndpointInfo) -> str:
    return f'{endpoint.node_namespace.rstrip("/")}/{endpoint.node_name}'


def _misfit(
    endpoint: TopicEndpointInfo, ours: Endpoint, theirs: QoSProfile, *, listens: bool,
) -> list[str]:
    """Say why the endpoint of another on a topic of ours is not connected to it."""
    verb = 'listens to' if listens else 'publishes'
    said = f'{_whose(endpoint)} {verb} {ours.topic}'
    if endpoint.topic_type != ours.kind:
        return [f'{said} as {endpoint.topic_type}, here it is {ours.kind}']
    own = _as_discovered(ours.profile)
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
