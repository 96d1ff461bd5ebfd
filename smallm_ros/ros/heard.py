"""What the watchdog has heard: the newest reading of each sensor, the newest command and status.

Texts and messages come in, values stay. What does not parse is dropped, counted and named; what
was heard before it stands and grows old by itself. Nothing here knows ROS's middleware: a test can
say a hundred thousand things through the same code.
"""

from __future__ import annotations

from typing import Any

from smallm_ros.core.action import Command, NodeStatus, parse_frame
from smallm_ros.core.errors import DroppedError
from smallm_ros.core.facts import CommandArrival, StatusArrival
from smallm_ros.core.observation import Received
from smallm_ros.core.policy import Policy
from smallm_ros.ros.convert import fields_of


class Heard:
    """The newest of everything that was said and could be understood."""

    def __init__(self, policy: Policy) -> None:
        self._sensors = policy.sensors
        self.readings: dict[str, Received] = {}
        self.command: CommandArrival | None = None
        self.status: StatusArrival | None = None
        self.dropped = 0
        self.why_dropped = ''
        """The last one that was dropped."""

    def reading(
        self, name: str, message: Any, now_ns: int, ros_arrival_ns: int | None,
    ) -> None:
        """Hear a sensor."""
        try:
            fields = fields_of(self._sensors[name], message)
        except DroppedError as err:
            self.drop(f'{name}: {err}')
        else:
            self.readings[name] = Received(name, fields, now_ns, ros_arrival_ns)

    def command_text(self, text: str, now_ns: int) -> None:
        """Hear a command of the policy node."""
        try:
            self.command = CommandArrival(parse_frame(Command, text), now_ns)
        except DroppedError as err:
            self.drop(str(err))

    def status_text(self, text: str, now_ns: int) -> NodeStatus | None:
        """Hear a status of the policy node, and return it where it is one."""
        try:
            status = parse_frame(NodeStatus, text)
        except DroppedError as err:
            self.drop(str(err))
            return None
        self.status = StatusArrival(status, now_ns)
        return status

    def drop(self, why: str) -> None:
        """Count what could not be understood."""
        self.dropped += 1
        self.why_dropped = why[:300]
