"""Hears what a policy names, as `policy_node` does, and hands it to a pilot; publishes nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import rclpy
from rclpy.exceptions import InvalidTopicNameException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from smallm_ros import steady
from smallm_ros.core.errors import DroppedError, PolicyError
from smallm_ros.core.observation import Received
from smallm_ros.core.pilot import Pilot
from smallm_ros.core.policy import Policy
from smallm_ros.ros import convert, qos, take
from smallm_ros.ros.messages import message_class


class Listener:
    """Subscriptions to all that a policy's prompt is made of."""

    def __init__(self, node: Node, policy: Policy) -> None:
        """Subscribe. Raises PolicyError for a topic that ROS does not take as a name."""
        self.dropped = 0
        """Messages that could not be used."""
        self._policy = policy
        self._time = take.RosTime(node)
        now_ns = steady.now_ns()
        try:
            self._sensors = {
                name: take.Newest(take.subscribe(
                    node, message_class(sensor.type), sensor.topic, qos.SENSOR), now_ns)
                for name, sensor in policy.sensors.items()
            }
            self._mission = None if policy.mission_topic is None else take.subscribe(
                node, String, policy.mission_topic.topic, qos.MISSION)
        except InvalidTopicNameException as err:
            raise PolicyError(f'policy {policy.name!r}: {str(err).splitlines()[0]}') from err

    def feed(self, pilot: Pilot, now_ns: int) -> int:
        """Hand the newest of each topic to `pilot`; return ROS time, 0 before the first /clock."""
        ros_now_ns = self._time.now_ns()
        ros_ns = ros_now_ns if self._time.simulated else None
        for name, newest in self._sensors.items():
            taken = newest.look(now_ns, steady.wall_ns(), ros_ns)
            if taken is None:
                continue
            try:
                fields = convert.fields_of(self._policy.sensors[name], taken.message)
            except DroppedError:
                self.dropped += 1
                continue
            pilot.observe(
                Received(name, fields, taken.arrival_ns, taken.ros_arrival_ns), taken.messages)
        words = None if self._mission is None else take.take(self._mission)
        if words is not None and pilot.mission is not None:
            pilot.mission.hear(words.data, now_ns)
        return ros_now_ns or 0


@contextlib.contextmanager
def listening(policy: Policy, *, simulated: bool = False) -> Iterator[Listener]:
    """Listen until the end of the block; `simulated` takes ROS time from /clock."""
    rclpy.init(args=None, signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        node = Node(f'smallm_prompt_{os.getpid()}', parameter_overrides=[
            Parameter('use_sim_time', value=simulated)])
        yield Listener(node, policy)
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.shutdown()
