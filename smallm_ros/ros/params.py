"""ROS parameters of our nodes: read once at the start, refused afterwards.

A node's parameters are its deployment. None can be changed while it runs, so that no tick sees
half of a change; `use_sim_time` least of all: switched at run time it makes ages of -1.8e9 s that
no limit catches. The watchdog's limits alone can (`limits`), as a set, and through services that
are polled: it has no executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from rcl_interfaces.msg import IntegerRange, ParameterDescriptor, SetParametersResult
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from smallm_ros.core.errors import OperatorError
from smallm_ros.ros.take import Replies, take_request

_Value = TypeVar('_Value', bool, int, float, str)


SERVICES = (DescribeParameters, GetParameters, GetParameterTypes, ListParameters, SetParameters,
            SetParametersAtomically)


def declare(
    node: Node, name: str, default: _Value, description: str, *,
    read_only: bool = True, within: tuple[int, int] | None = None,
) -> _Value:
    """Declare a parameter and return its value, of the type of `default`.

    Raises OperatorError for a value given at the start that is of another type, or not `within`.
    """
    descriptor = ParameterDescriptor(description=description, read_only=read_only)
    if within is not None:
        low, high = within
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    try:
        value: _Value = node.declare_parameter(name, default, descriptor).value
    except (InvalidParameterTypeException, InvalidParameterValueException) as err:
        raise OperatorError(f'{node.get_name()}: {err}') from err
    return value


def refuse_clock_changes(node: Node) -> None:
    """Refuse to set `use_sim_time` to another value than it was started with."""
    started_with = node.get_parameter('use_sim_time').value

    def refuse(parameters: Sequence[Parameter[Any]]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == 'use_sim_time' and parameter.value != started_with:
                return SetParametersResult(successful=False, reason=(
                    f'use_sim_time is {started_with} from the start of {node.get_name()}: '
                    'start it anew to change it'
                ))
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(refuse)


class ParameterRequests:
    """Answers the standard parameter services of a node that has no executor.

    A request that sets is taken whole or refused whole, one with several entries for
    `set_parameters` too: half of a set of limits may be a set that nobody ever checked.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._services: list[Any] = [
            service for service in node.services if service.srv_type in SERVICES]

    def answer_waiting(self, now_ns: int, replies: Replies) -> None:
        """Answer at most one request of each service; what is wrong with one is its answer."""
        for service in self._services:
            taken = take_request(service)
            if taken is None:
                continue
            request, answer = taken
            response = service.srv_type.Response()
            if service.srv_type is SetParameters:
                result = self._set(request.parameters)
                response.results = [result] * len(request.parameters)
            elif service.srv_type is SetParametersAtomically:
                response.result = self._set(request.parameters)
            else:
                response = service.callback(request, response)
            replies.put(now_ns, answer, response)

    def _set(self, messages: Sequence[Any]) -> SetParametersResult:
        unknown = [each.name for each in messages if not self._node.has_parameter(each.name)]
        if unknown:
            return SetParametersResult(
                successful=False, reason=f'no such parameter: {", ".join(unknown)}'[:300])
        try:
            return self._node.set_parameters_atomically(
                [Parameter.from_parameter_msg(message) for message in messages])
        except (TypeError, ValueError, AttributeError) as err:  # no such type of value
            return SetParametersResult(successful=False, reason=f'not a parameter: {err}')
