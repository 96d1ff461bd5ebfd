"""What goes through llama_decode in this process, and for how long.

Every arm that runs here, ours or the high-level class, ends in the same few C functions. The tap
stands before them while it is open, so that passes, tokens and time are counted in one way for
all, and what is left of a decision's time is the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from llama_cpp import llama_cpp as llama

from smallm_ros.core.clock import Clock

_WAITING = ('llama_synchronize', 'llama_get_logits', 'llama_get_logits_ith')
"""Where a GPU's work is waited for, after llama_decode has only queued it."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One llama_decode."""

    tokens: int
    took_ns: int
    """Until its logits can be read."""


class Tap:
    """Counts the passes of this process while it is open; a context manager."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._real: dict[str, Callable[..., Any]] = {}
        self._tokens: list[int] = []
        self._took_ns: list[int] = []

    def __enter__(self) -> Tap:
        """Stand before the C functions."""
        self._real = {name: getattr(llama, name) for name in ('llama_decode', *_WAITING)}
        llama.llama_decode = self._decode
        for name in _WAITING:
            setattr(llama, name, self._waiting(self._real[name]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Step aside."""
        for name, function in self._real.items():
            setattr(llama, name, function)

    def take(self) -> tuple[Pass, ...]:
        """Return the passes since the last call, in order."""
        passes = tuple(map(Pass, self._tokens, self._took_ns))
        self._tokens, self._took_ns = [], []
        return passes

    def _decode(self, context: Any, batch: Any) -> Any:
        began_ns = self._clock.now_ns()
        code = self._real['llama_decode'](context, batch)
        self._took_ns.append(self._clock.now_ns() - began_ns)
        self._tokens.append(batch.n_tokens)
        return code

    def _waiting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*args: Any) -> Any:
            began_ns = self._clock.now_ns()
            found = real(*args)
            if self._took_ns:
                self._took_ns[-1] += self._clock.now_ns() - began_ns
            return found
        return wait
