"""Patience: a state that was left too early is left later the next time.

A state's dwell doubles each time it is returned to soon after it was left, up to a bound; time
spent well in bolder states takes that back at a quarter of the speed, as PX4 does. Nothing here
makes a dwell shorter than the table says.
"""

from __future__ import annotations

from smallm_ros.core.cause import Dwells


class Patience:
    """How long each state must be clear before it is left; states by any name."""

    def __init__(self, dwells: Dwells) -> None:
        self._dwells = dwells
        self._left_ns: dict[str, int] = {}
        self._extra_ns: dict[str, int] = {}

    def dwell_ns(self, state: str, base_ns: int) -> int:
        """Return the dwell of a state whose table says `base_ns`."""
        return base_ns + self._extra_ns.get(state, 0)

    def left(self, state: str, now_ns: int) -> None:
        """Note that a state was left."""
        self._left_ns[state] = now_ns

    def tripped(self, state: str, base_ns: int, now_ns: int) -> None:
        """Note that a state was entered towards safety; doubles its dwell if that was soon."""
        left_ns = self._left_ns.get(state)
        if left_ns is not None and now_ns - left_ns <= self._dwells.return_window_ns:
            longest_ns = self._dwells.longest * base_ns
            doubled_ns = min(2 * self.dwell_ns(state, base_ns), longest_ns)
            self._extra_ns[state] = doubled_ns - base_ns

    def well(self, state: str, passed_ns: int) -> None:
        """Credit a time spent well in a bolder state."""
        if state in self._extra_ns:
            self._extra_ns[state] = max(0, self._extra_ns[state] - passed_ns // 4)
