"""ROS parameters of our nodes: read once at the start, refused afterwards.

A node's parameters are its deployment. None can be changed while it runs, so that no tick sees
half of a change; `use_sim_time` least of all: switched at run time it makes ages of -1.8e9 s that
no limit catches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

_Value = TypeVar('_Value', bool, int, float, str)


def declare(node: Node, name: str, default: _Value, description: str) -> _Value:
    """Declare a read-only parameter and return its value, of the type of `default`."""
    descriptor = ParameterDescriptor(description=description, read_only=True)
    value: _Value = node.declare_parameter(name, default, descriptor).value
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
