"""What no output of the gate may ever break, looked at again before each one leaves.

The gate is built so that nothing here ever speaks; when it does, the gate is wrong and latches.
So this shares nothing with what it checks but the facts: it knows the states by their names, and
keeps its own account of who armed, who reset, and what left last.
"""

from __future__ import annotations

import math

from smallm_ros.core.action import STOP, Origin, Velocity
from smallm_ros.core.clock import SECOND
from smallm_ros.core.facts import Inputs
from smallm_ros.core.policy import Policy

CAREFUL = frozenset({'SAFE_STOP', 'ESTOP_LATCHED', 'FAULT_LATCHED'})
"""States in which speed never grows."""
LATCHED = frozenset({'ESTOP_LATCHED', 'FAULT_LATCHED'})
STANDING = frozenset({'STANDBY', 'HOLD'}) | LATCHED
"""States in which nothing moves, and after which somebody arms."""

_SLACK = 1e-9


class Invariants:
    """The invariants over the outputs of one gate, from the first on."""

    def __init__(self, *, auto_arm: bool) -> None:
        self._auto_arm = auto_arm
        self._sequence = 0
        self._state = 'STANDBY'
        self._armed = False
        self._after_estop = False

    def broken(
        self, sequence: int, state: str, source: Origin, velocity: Velocity, previous: Velocity,
        inputs: Inputs, policy: Policy,
    ) -> str:
        """Return which invariant an output would break, in words; empty when it breaks none."""
        return (
            self._broken_order(sequence, state, inputs)
            or self._broken_arming(state, velocity, inputs)
            or broken_limit(state, source, velocity, previous, policy)
        )

    def left(self, sequence: int, state: str) -> None:
        """Note what left."""
        self._sequence, self._state = sequence, state

    def _broken_order(self, sequence: int, state: str, inputs: Inputs) -> str:
        if sequence != self._sequence + 1:
            return f'output {sequence} after {self._sequence}: each step publishes one'
        before = self._state
        if before == 'FAULT_LATCHED' != state:
            return f'FAULT_LATCHED was left for {state}'
        if (inputs.estop or inputs.estop_silent) and state not in LATCHED:
            return f'emergency stop and {state}'
        if before == 'ESTOP_LATCHED' and state not in LATCHED and not (
            state == 'HOLD' and inputs.reset
        ):
            return f'ESTOP_LATCHED was left for {state}, reset: {inputs.reset}'
        if state == 'ACTIVE' and before not in ('ACTIVE', 'HOLD', 'DEGRADED'):
            return f'ACTIVE from {before}'
        return ''

    def _broken_arming(self, state: str, velocity: Velocity, inputs: Inputs) -> str:
        if state in STANDING:
            self._armed = False
            self._after_estop |= state == 'ESTOP_LATCHED'
        elif state == 'ACTIVE' and self._state == 'HOLD':
            self._armed = inputs.arm or (self._auto_arm and not self._after_estop)
            self._after_estop &= not self._armed
        if velocity != STOP and not self._armed:
            return f'motion in {state} that nobody armed'
        return ''


def broken_limit(
    state: str, source: Origin, velocity: Velocity, previous: Velocity, policy: Policy,
) -> str:
    """Return which limit a velocity would break.

    A limit that was just lowered is approached: until then speed at least does not grow.
    """
    v, w = velocity.linear_x_m_s, velocity.angular_z_rad_s
    v0, w0 = previous.linear_x_m_s, previous.angular_z_rad_s
    rules, period_s = policy.envelope, policy.control_period_ns / SECOND
    if not (math.isfinite(v) and math.isfinite(w)):
        return f'velocity {v}, {w} is not finite'
    least, most = min(-rules.max_reverse_m_s, v0), max(rules.max_forward_m_s, v0)
    if not least - _SLACK <= v <= most + _SLACK:
        return f'{v:g} m/s is outside -{rules.max_reverse_m_s:g} to {rules.max_forward_m_s:g}'
    if abs(w) > max(rules.max_turn_rad_s, abs(w0)) + _SLACK:
        return f'{w:g} rad/s is more than {rules.max_turn_rad_s:g}'
    if abs(v) > abs(v0) + rules.max_acceleration_m_s2 * period_s + _SLACK:
        return f'{v0:g} to {v:g} m/s is more than {rules.max_acceleration_m_s2:g} m/s2'
    if abs(w) > abs(w0) + rules.max_angular_acceleration_rad_s2 * period_s + _SLACK:
        spin = rules.max_angular_acceleration_rad_s2
        return f'{w0:g} to {w:g} rad/s is more than {spin:g} rad/s2'
    if state in CAREFUL and (abs(v) > abs(v0) + _SLACK or abs(w) > abs(w0) + _SLACK):
        return f'speed grew in {state}: {v0:g} m/s, {w0:g} rad/s to {v:g}, {w:g}'
    if source == 'model' and state != 'ACTIVE':
        return f'source model in {state}'
    return ''
