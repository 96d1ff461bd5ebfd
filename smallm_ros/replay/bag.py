"""A recorded bag, as the readings that a policy asks for.

rosbag2 directories and bare `.db3` or `.mcap` files are read without ROS. What the policy cannot
do without is checked before the first message; what it does not need is passed over by name. ROS
time is the bag's own time, or `/clock` where the header stamps are simulated time, or those
stamps themselves where that was not recorded: `Bag.ros_time` says which. A message that does not
fit is dropped and counted, as on the robot.
"""

from __future__ import annotations

import bisect
import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from smallm_ros.core.clock import SECOND
from smallm_ros.core.errors import BagError, DroppedError
from smallm_ros.core.observation import Fields
from smallm_ros.core.policy import MissionTopic, Policy
from smallm_ros.ros.convert import fields_of
from smallm_ros.ros.convert.common import stamp_ns

CLOCK_TOPIC = '/clock'
CLOCK_TYPE = 'rosgraph_msgs/msg/Clock'
MISSION_TYPE = 'std_msgs/msg/String'
MAX_HEADER_LAG_NS = 10 * SECOND
"""Header stamps further than this from ROS time are of another clock."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One message of a bag, as fields."""

    bag_ns: int
    """When the recorder received it."""
    sensor: str
    """The policy's name for where it came from."""
    fields: Fields


@dataclass(frozen=True, slots=True)
class RosTime:
    """What ROS time it was at each instant of the bag."""

    source: str
    """`bag time`, `/clock`, or `stamps of TOPIC` where the stamps' clock was not recorded."""
    bag_ns: Sequence[int] = ()
    clock_ns: Sequence[int] = ()

    def at(self, bag_ns: int) -> int:
        """Return ROS time at an instant of the bag; between two clock messages, interpolated."""
        if not self.bag_ns:
            return bag_ns
        k = bisect.bisect_right(self.bag_ns, bag_ns)
        if k == 0 or k == len(self.bag_ns):
            return self.clock_ns[max(0, k - 1)]
        span_ns = self.bag_ns[k] - self.bag_ns[k - 1]
        rise_ns = self.clock_ns[k] - self.clock_ns[k - 1]
        return self.clock_ns[k - 1] + rise_ns * (bag_ns - self.bag_ns[k - 1]) // span_ns


class Bag:
    """An open bag that has what `policy` needs. A context manager; use it once."""

    def __init__(self, path: Path, policy: Policy) -> None:
        """Open and check. Raises BagError with one line that names the file or the topic."""
        self.path = path
        self._policy = policy
        self.dropped: Counter[str] = Counter()
        """Messages of each topic that did not fit; grows while `readings` runs."""
        self._warnings: list[str] = []
        self._reader = _open(path)
        try:
            self._connections: list[Connection] = []
            self._sensors: dict[str, list[str]] = {}
            self._choose(policy)
            self.missions = tuple(self._missions(policy.mission_topic))
            """What the operator said on the policy's mission topic, as (bag time, text)."""
            self.begin_ns: int = self._reader.start_time
            self.end_ns: int = self._reader.end_time
            self.ros_time = self._ros_time()
        except BaseException:
            self._reader.close()
            raise

    def __enter__(self) -> Bag:
        """Return the bag itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._reader.close()

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each thing that was passed over; grows while `readings` runs."""
        return tuple(self._warnings)

    @property
    def duration_ns(self) -> int:
        """From the first message of the bag to its last."""
        return self.end_ns - self.begin_ns

    def readings(self) -> Iterator[Recorded]:
        """Yield what the policy's sensors said, in the order of the recording.

        Raises BagError where the file turns out to be damaged.
        """
        for connection, bag_ns, raw in self._messages(self._connections):
            topic = connection.topic
            for name in self._sensors[topic]:
                try:
                    fields = fields_of(self._policy.sensors[name], self._message(connection, raw))
                except DroppedError as err:
                    self.dropped[topic] += 1
                    if self.dropped[topic] == 1:
                        self._warnings.append(f'{topic}: messages dropped, first: {err}')
                    continue
                yield Recorded(bag_ns, name, fields)

    def _choose(self, policy: Policy) -> None:
        topics = self._reader.topics
        known = self._reader.typestore.fielddefs
        needed = {_absolute(sensor.topic) for sensor in policy.sensors.values()}
        for name, info in topics.items():
            if info.msgcount and info.msgtype not in known and name not in needed:
                self._warnings.append(f'{name}: skipped, unknown message type {info.msgtype}')
        for name, sensor in policy.sensors.items():
            topic = _absolute(sensor.topic)
            found = topics.get(topic)
            if found is None or found.msgcount == 0:
                state = 'is not in the bag' if found is None else 'has no messages in the bag'
                line = f'topic {topic} of sensor {name!r} {state}'
                if sensor.required:
                    raise BagError(f'{self.path}: {line}{_near(topic, sensor.type, topics)}')
                self._warnings.append(f'{line}; the sensor is optional')
                continue
            for connection in found.connections:
                if connection.msgtype != sensor.type:
                    raise BagError(
                        f'{self.path}: topic {topic} is {connection.msgtype}, sensor {name!r} of '
                        f'the policy wants {sensor.type}'
                    )
            if topic not in self._sensors:
                self._connections += found.connections
            self._sensors.setdefault(topic, []).append(name)

    def _missions(self, wanted: MissionTopic | None) -> Iterator[tuple[int, str]]:
        found = self._reader.topics.get(_absolute(wanted.topic)) if wanted else None
        if found is None:
            return
        if found.msgtype != MISSION_TYPE:
            self._warnings.append(f'{found.connections[0].topic}: {found.msgtype} is no mission, '
                                  f'which is {MISSION_TYPE}')
            return
        for connection, bag_ns, raw in self._messages(found.connections):
            try:
                yield bag_ns, str(self._message(connection, raw).data)
            except DroppedError as err:
                self._warnings.append(f'{connection.topic}: {err}')

    def _ros_time(self) -> RosTime:
        """Believe `/clock` where the first header stamps are nearer to it than to the bag."""
        clock = self._clock()
        bag = RosTime('bag time')
        for connection in self._connections:
            bag_ns, header_ns = self._first_stamp(connection)
            if header_ns == 0:
                continue
            lag_ns = abs(bag_ns - header_ns)
            if clock is not None and abs(clock.at(bag_ns) - header_ns) < lag_ns:
                return clock
            if lag_ns > MAX_HEADER_LAG_NS:
                self._warnings.append(
                    f'{connection.topic}: header stamps are {(bag_ns - header_ns) / SECOND:.0f} s '
                    f"from the bag's time and there is no {CLOCK_TOPIC} to match: ROS time goes "
                    'by these stamps'
                )
                return self._read_off(
                    f'stamps of {connection.topic}', [connection], lambda msg: msg.header.stamp,
                ) or bag
        return bag

    def _first_stamp(self, connection: Connection) -> tuple[int, int]:
        """Return (bag time, header stamp) of the first message whose stamp is set, else zeros."""
        for _, bag_ns, raw in self._messages([connection]):
            try:
                header_ns = stamp_ns(self._message(connection, raw).header.stamp)
            except (DroppedError, AttributeError):
                continue
            if header_ns:
                return bag_ns, header_ns
        return 0, 0

    def _clock(self) -> RosTime | None:
        found = self._reader.topics.get(CLOCK_TOPIC)
        if found is None or found.msgtype != CLOCK_TYPE or found.msgcount == 0:
            return None
        return self._read_off(CLOCK_TOPIC, found.connections, lambda msg: msg.clock)

    def _read_off(
        self, source: str, connections: Sequence[Connection], stamp: Callable[[Any], Any],
    ) -> RosTime | None:
        """Return ROS time as messages tell it; None where none does."""
        bag: list[int] = []
        clock: list[int] = []
        for connection, bag_ns, raw in self._messages(connections):
            try:
                value_ns = stamp_ns(stamp(self._message(connection, raw)))
            except (DroppedError, AttributeError):
                continue
            if value_ns >= 0 and (not bag or bag_ns > bag[-1]):
                bag.append(bag_ns)
                clock.append(value_ns)
        return RosTime(source, bag, clock) if bag else None

    def _messages(
        self, connections: Sequence[Connection]
    ) -> Iterator[tuple[Connection, int, bytes]]:
        if not connections:
            return
        try:
            yield from self._reader.messages(connections)
        except Exception as err:  # the storage plugins raise whatever their parsers raise
            raise BagError(f'{self.path}: damaged: {_line(err)}') from err

    def _message(self, connection: Connection, raw: bytes) -> Any:
        try:
            return self._reader.deserialize(raw, connection.msgtype)
        except Exception as err:  # bytes from outside: whatever they break
            raise DroppedError(f'{connection.msgtype}: cannot be read: {_line(err)}') from err


def _open(path: Path) -> AnyReader:
    if not path.exists():
        raise BagError(f'{path}: no such file or directory')
    if path.is_dir() and not any(path.iterdir()):
        raise BagError(f'{path}: an empty directory, not a bag')
    if path.is_dir() and not (path / 'metadata.yaml').is_file():
        raise BagError(f'{path}: not a rosbag2 directory: there is no metadata.yaml in it; a bare '
                       '.db3 or .mcap file can be named itself')
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_KILTED))
        reader.open()
    except Exception as err:  # a file from outside: whatever it breaks in the parser
        raise BagError(f'{path}: not a bag, or truncated: {_line(err)}') from err
    if reader.message_count == 0:
        reader.close()
        raise BagError(f'{path}: the bag holds no messages')
    return reader


def _absolute(topic: str) -> str:
    return '/' + topic.lstrip('~/')


def _near(topic: str, type_name: str, topics: dict[str, Any]) -> str:
    names = list(topics)
    same_type = [name for name in names if topics[name].msgtype == type_name]
    close = difflib.get_close_matches(topic, same_type or names, n=1, cutoff=0.4)
    hint = f'; did you mean {close[0]}?' if close else ''
    listed = ', '.join(f'{name} ({topics[name].msgtype})' for name in sorted(names))
    return f'{hint} It holds: {listed}' if hint else f'; it holds: {listed}'


def _line(err: BaseException) -> str:
    text = ' '.join(str(err).split())
    return (text or type(err).__name__)[:200]
