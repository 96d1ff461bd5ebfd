"""The declared messages as real ones: checked against their classes, built before they are needed.

Everything that can go wrong with a message goes wrong when the node is made: publishing one is all
that is left to the loop. One that cannot be published is counted and told, and never a reason for
the others, or for the velocity, to wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

from smallm_ros.core import outlet
from smallm_ros.core.errors import OperatorError
from smallm_ros.core.gate import Output
from smallm_ros.core.mapping import TIME, Plain, field_type, listed, message_type, misfits, steps
from smallm_ros.core.outlet import Leaving, Message, Outlet
from smallm_ros.core.policy import Policy
from smallm_ros.ros.messages import installed, message_class, types_of

MAX_TOLD = 20
"""Mistakes that are told of one policy; a thousand more have the same reason."""


@dataclass(frozen=True, slots=True)
class Built:
    """A message that can leave, and the times in it that are those of its leaving."""

    message: Any
    stamps: tuple[Any, ...]


def unchecked(policy: Policy) -> dict[str, str]:
    """Return the outputs whose message packages are not installed here, with their types."""
    return {name: output.type for name, output in policy.outputs.items()
            if not installed(output.type)}


def problems(
    policy: Policy, leave_out: Container[str] = (),
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (place in the policy file, what is wrong) for what does not fit the message classes.

    The outputs in `leave_out` are not looked at.
    """
    found: list[tuple[tuple[str, ...], str]]
    told: set[tuple[tuple[str, ...], str]] = set()
    for place, output, message in _all(policy):
        if output in leave_out:
            continue
        kind = policy.outputs[output].type
        try:
            found = [(place, wrong) for wrong in misfits(kind, dict(message), types_of)]
            types_of(kind)  # of `{}` nothing was asked
        except OperatorError as err:
            found = [(('outputs', output, 'type'), str(err))]
        for each in found:
            if each not in told and len(told) < MAX_TOLD:
                told.add(each)
                yield each


def _all(policy: Policy) -> Iterator[tuple[tuple[str, ...], str, Message]]:
    said = iter(outlet.messages(policy))
    for name, declared in policy.actions.items():
        for _ in declared.members():
            for output, message in next(said):
                yield ('actions', name, 'command', output), output, message
    for leaving in outlet.stops(policy):
        yield ('outputs', leaving.output, 'on_stop'), leaving.output, leaving.message


def build(kind: str, message: Message) -> Built:
    """Build a message that fits its class."""
    whole = message_class(kind)()
    stamps = []
    for path, value in message:
        *way, (last, _) = steps(path)
        at: Any = whole
        for name, index in way:
            of = at.get_fields_and_field_types()[name]
            at = getattr(at, name)
            if index is not None:
                if index == len(at):
                    at.append(message_class(message_type(str(listed(of)[0])))())
                at = at[index]
        of = field_type(kind, path, types_of)
        if of == TIME:
            stamps.append(getattr(at, last))
        else:
            setattr(at, last, _converted(of, value))
    return Built(whole, tuple(stamps))


def _converted(of: str, value: Plain) -> Any:
    """Return a value as the setters of rclpy's classes take it: no int for a float."""
    if isinstance(value, tuple):
        element = str(listed(of)[0])
        return [_converted(element, one) for one in value]
    if of in ('float', 'double'):
        return float(value)
    if of == 'octet':
        return bytes([int(value)])
    return value


class Outputs:
    """The publishers of one watchdog beside cmd_vel, and all that they may ever publish."""

    def __init__(self, policy: Policy, create: Callable[[type, str], Any]) -> None:
        """`create` makes a publisher. Raises OperatorError for what does not fit its class."""
        wrong = [f'{".".join(place)}: {what}' for place, what in problems(policy)]
        if wrong:
            raise OperatorError('\n'.join(wrong))
        self._outlet = Outlet(policy)
        self._built: dict[tuple[str, Message], Built] = {}
        for _, output, message in _all(policy):
            key = output, message
            if key not in self._built:
                self._built[key] = build(policy.outputs[output].type, message)
        self.publishers = {
            name: create(message_class(output.type), output.topic)
            for name, output in policy.outputs.items()
        }
        self.published: Counter[str] = Counter()
        """By output."""

    def step(
        self, output: Output, now_ns: int, stamp: tuple[int, int], failed: Callable[[], None],
    ) -> None:
        """Publish what is due after a step of the gate; `stamp` is ROS time as (sec, nanosec).

        `failed` is called in the handler of whatever one message raised.
        """
        self._publish(self._outlet.step(output, now_ns), stamp, failed)

    def stop(self, stamp: tuple[int, int], failed: Callable[[], None]) -> None:
        """Publish what is due when the watchdog ends."""
        self._publish(self._outlet.stop(), stamp, failed)

    def _publish(
        self, due: tuple[Leaving, ...], stamp: tuple[int, int], failed: Callable[[], None],
    ) -> None:
        for leaving in due:
            try:
                built = self._built[leaving.output, leaving.message]
                for time in built.stamps:
                    time.sec, time.nanosec = stamp
                self.publishers[leaving.output].publish(built.message)
                self.published[leaving.output] += 1
            except Exception:  # of one message, whatever its middleware raises
                failed()
