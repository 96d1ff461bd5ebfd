"""Which of the declared messages leave after a step of the gate: edges, and only while ACTIVE.

A command says its messages once, in the first step that applies it; one that the gate only judges
(shadow), holds (DEGRADED), or whose time has passed says nothing. When the gate applies a command
no more, because it left ACTIVE or waits, each `on_stop` leaves, once. The same command never
speaks twice, not even where the gate takes it up again after a wait.
"""

from __future__ import annotations

from dataclasses import dataclass

from smallm_ros.core.action import ActionSpace, Command
from smallm_ros.core.gate import Output, State
from smallm_ros.core.mapping import Plain, resolved
from smallm_ros.core.policy import Policy

Message = tuple[tuple[str, Plain], ...]
"""Values by the path of their field, in the order in which they are set."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """A message that is due now."""

    output: str
    message: Message


def messages(policy: Policy) -> tuple[tuple[tuple[str, Message], ...], ...]:
    """Return what each member of the action space says, as (output, message), in its order."""
    return tuple(
        tuple((output, tuple(resolved(terms, chosen).items()))
              for output, terms in (declared.command or {}).items())
        for declared in policy.actions.values() for chosen in declared.members()
    )


def stops(policy: Policy) -> tuple[Leaving, ...]:
    """Return what is said when the gate leaves ACTIVE."""
    return tuple(
        Leaving(name, tuple(resolved(output.on_stop, {}).items()))
        for name, output in policy.outputs.items() if output.on_stop is not None
    )


class Outlet:
    """The messages of one watchdog, step by step."""

    def __init__(self, policy: Policy) -> None:
        self._on_change = {name for name, each in policy.outputs.items() if each.on_change}
        self._says = {
            _key(action.name, dict(action.parameters)): says
            for action, says in zip(ActionSpace.of(policy).actions, messages(policy), strict=True)
        }
        self._stops = stops(policy)
        self._said: tuple[str, int] | None = None
        """Session and sequence of the command that spoke last."""
        self._open = False
        self._last: dict[str, Message] = {}

    def step(self, output: Output, now_ns: int) -> tuple[Leaving, ...]:
        """Return what is due after a step of the gate; `now_ns` is when it would leave."""
        command = output.command
        if output.state is not State.ACTIVE or output.source != 'model' or command is None:
            return self.stop()
        self._open = True
        said = command.session, command.sequence
        if said == self._said or now_ns >= command.valid_until_ns:
            return ()
        self._said = said
        return tuple(self._new(command))

    def stop(self) -> tuple[Leaving, ...]:
        """Return what is due when commands are applied no more; a second time, nothing."""
        was_open, self._open = self._open, False
        self._last.clear()
        return self._stops if was_open else ()

    def _new(self, command: Command) -> list[Leaving]:
        out = []
        for name, message in self._says[_key(command.action, command.parameters)]:
            if name in self._on_change and self._last.get(name) == message:
                continue
            self._last[name] = message
            out.append(Leaving(name, message))
        return out


def _key(action: str, parameters: dict[str, str]) -> tuple[str, frozenset[tuple[str, str]]]:
    return action, frozenset(parameters.items())
