"""The limits of the policy file that may change while the robot is in use, as ROS parameters.

Each number of `envelope`, the speeds of `fallback` and `decision.min_confidence` is a parameter of
the watchdog. A set is checked as a whole policy and taken whole or refused whole; the gate decides
when: what tightens at once, what loosens only while the robot is held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydantic
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from smallm_ros.core.errors import PolicyError
from smallm_ros.core.policy import Policy
from smallm_ros.ros.params import declare

_OTHERS = {
    'limits.fallback_speed_m_s': ('fallback', 'speed_m_s'),
    'limits.fallback_turn_rad_s': ('fallback', 'turn_rad_s'),
    'limits.min_confidence': ('decision', 'min_confidence'),
}


def places(policy: Policy) -> Mapping[str, tuple[str, str]]:
    """Return each limit's parameter, and its section and name in the policy file."""
    return {
        f'limits.{name}': ('envelope', name)
        for name, value in policy.envelope if isinstance(value, float) and policy.base != 'none'
    } | _OTHERS


def changed(policy: Policy, values: Mapping[str, float]) -> Policy:
    """Return the policy with other limits, by parameter name; PolicyError says why not."""
    content = policy.model_dump(by_alias=True, exclude_unset=True)
    named = places(policy)
    for parameter, value in values.items():
        section, name = named[parameter]
        content.setdefault(section, {})[name] = value
    try:
        return Policy.model_validate(content)
    except pydantic.ValidationError as err:
        raise PolicyError('; '.join(
            ': '.join((*('.'.join(map(str, each['loc'])),), each['msg'])).removeprefix(': ')
            for each in err.errors(include_url=False, include_input=False)
        )) from err


class Limits:
    """The limits of one watchdog, as the parameters of its node."""

    def __init__(self, node: Node, policy: Policy) -> None:
        given = {
            parameter: declare(
                node, parameter, float(getattr(getattr(policy, section), name)),
                f'{section}.{name} of the policy file', read_only=False)
            for parameter, (section, name) in places(policy).items()
        }
        self._node = node
        self.policy = changed(policy, given)
        """The policy with the limits that hold now."""
        self.refused = 0

    def follow(self, retune: Callable[[Policy], str]) -> None:
        """Hand every set to `retune` from now on, which says why it refuses one, or nothing."""
        def take_set(parameters: Sequence[Parameter[Any]]) -> SetParametersResult:
            why = self._take(parameters, retune)
            self.refused += bool(why)
            return SetParametersResult(successful=not why, reason=why)

        self._node.add_on_set_parameters_callback(take_set)

    def _take(
        self, parameters: Sequence[Parameter[Any]], retune: Callable[[Policy], str],
    ) -> str:
        named = places(self.policy)
        values = {each.name: each.value for each in parameters if each.name in named}
        if not values:
            return ''
        try:
            policy = changed(self.policy, values)
        except PolicyError as err:
            return str(err)
        why = retune(policy)
        if not why:
            self.policy = policy
        return why
