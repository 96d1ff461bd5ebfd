"""The action space, and what an answer becomes on its way to the wheels.

    Action (a member of the space) -> Decision (with confidence, timings) -> Command (with a TTL)

The answer's text is the action's name and its choices in declared order, `forward fast`: few
tokens, nothing to escape, and every member of the space has exactly one: an optional parameter
that has its default is left out, and only then. A `Command` crosses a process border as JSON of at
most 4 KiB and is parsed strictly: closed keys, finite numbers, no key twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from smallm_ros.core.choice import Choice, choice_text
from smallm_ros.core.errors import CommandError
from smallm_ros.core.policy import ActionDeclaration, ByParameter, Policy, Term

MAX_JSON_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Velocity:
    """A planar velocity in base_link: metres a second ahead, radians a second to the left."""

    linear_x_m_s: float
    angular_z_rad_s: float


STOP = Velocity(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Action:
    """One member of the action space with all its parameters chosen."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    """(parameter, choice as text), in the order of the policy file."""
    velocity: Velocity
    answer: str
    """The complete answer text that stands for this action, and no other."""
    departure: int
    """How far its parameters are from the declared defaults; 0 is all default.

    Each that is not its default counts, the first of k parameters 2**(k - 1), the last 1: where
    two cannot both have their default, the earlier one has it."""


@dataclass(frozen=True, slots=True)
class ActionSpace:
    """Every action that a policy allows, in the order of the file."""

    actions: tuple[Action, ...]

    @classmethod
    def of(cls, policy: Policy) -> ActionSpace:
        """Expand the policy's declarations into the complete list of leaves."""
        return cls(tuple(
            Action(
                name=name,
                parameters=tuple((key, choice_text(choice)) for key, choice in chosen.items()),
                velocity=Velocity(
                    _value(declared.twist.linear_x_m_s, chosen),
                    _value(declared.twist.angular_z_rad_s, chosen),
                ),
                answer=declared.answer(name, chosen),
                departure=_departure(declared, chosen),
            )
            for name, declared in policy.actions.items() for chosen in declared.members()
        ))

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer text of every leaf; index i is action i."""
        return tuple(action.answer for action in self.actions)

    def find(self, name: str, parameters: Mapping[str, str]) -> Action | None:
        """Return the member with this name and these choices, or None."""
        for action in self.actions:
            if action.name == name and dict(action.parameters) == dict(parameters):
                return action
        return None


def _departure(declared: ActionDeclaration, chosen: Mapping[str, Choice]) -> int:
    weight = 0
    for key, choice in chosen.items():
        weight = 2 * weight + (not declared.parameters[key].is_default(choice))
    return weight


def _value(term: Term, chosen: Mapping[str, Choice]) -> float:
    if isinstance(term, ByParameter):
        choice = chosen[term.by]
        if term.values is None:
            return float(choice)
        return term.values[choice_text(choice)]
    return float(term)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one decision went, in nanoseconds of steady time."""

    received_ns: int
    """Absolute: the engine's socket had the whole request."""
    started_ns: int
    """Absolute: the model's thread took it up."""
    finished_ns: int
    """Absolute: the answer was known."""
    tokenise_ns: int
    passes_ns: tuple[int, ...]
    """Duration of each forward pass, in order."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What one decision cost in tokens."""

    prompt: int
    """Length of the whole prompt."""
    reused: int
    """Of those, found in KV."""
    evaluated: int
    """Tokens submitted to the model, prompt and tree, over all passes."""
    passes: int
    guessed: int = 0
    """Tokens of the previous answer that rode along in the first pass as a guess."""
    accepted: int = 0
    """Of those, on the path that was then chosen: they spared a later pass."""


@dataclass(frozen=True, slots=True)
class ChoicePoint:
    """The softmax over the admissible children at one node of the tree on the chosen path."""

    prefix: str
    """The answer's text so far."""
    children: tuple[tuple[str, float], ...]
    """(text that this child adds, probability); the probabilities sum to 1."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the model chose, how sure it was, and what it cost."""

    leaf: int
    """Index into the action space."""
    confidence: float
    """Probability of the leaf among the admissible answers: the product along its path."""
    choices: tuple[ChoicePoint, ...]
    tokens: TokenCounts
    timings: Timings
    margin: float = 0.0
    """Probability of the leaf less that of the likeliest other answer, -1 to 1.

    What was not evaluated below a choice counts as one answer with all its probability, so that
    the margin is never overstated; of a whole tree it is exact, and with `best` not negative."""
    plan: str = ''
    """How the passes were laid out: choice levels a pass, `1+1`, `2`; `+guess` where it rode."""


Origin = Literal['model', 'baseline', 'hold', 'stop']
"""Where a velocity came from."""


class _Frame(BaseModel):
    model_config = ConfigDict(frozen=True, extra='forbid', strict=True)

    def to_json(self) -> str:
        """Return the compact JSON that travels; at most MAX_JSON_BYTES."""
        return json.dumps(self.model_dump(), separators=(',', ':'), allow_nan=False)


Number = Annotated[float, Field(allow_inf_nan=False)]
Steady = Annotated[int, Field(ge=0, lt=2**63)]
Stamp = Annotated[int, Field(ge=0, lt=2**63)]
Session = Annotated[str, Field(pattern=r'^[0-9a-f]{16}$')]


class Command(_Frame):
    """What the policy node sends to the watchdog: an action with a time-to-live."""

    version: Literal[1] = 1
    session: Session
    """64 random bits drawn at the policy node's start."""
    sequence: Annotated[int, Field(ge=1)]
    """Increases within a session."""
    request: Annotated[int, Field(ge=1)]
    action: Annotated[str, Field(max_length=32)]
    parameters: dict[str, str] = Field(max_length=16)
    linear_x_m_s: Number
    angular_z_rad_s: Number
    observation_stamp_ns: Stamp
    """ROS time: stamp of the oldest required reading."""
    arrival_ns: Steady
    """Steady arrival of the newest required reading."""
    deadline_ns: Steady
    valid_until_ns: Steady
    confidence: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    partial: bool
    """Whether the deadline came before all parameters were chosen, and those have their defaults.

    Only of a policy with `anytime`; of any other a decision is whole, or a miss.
    """
    host: Annotated[str, Field(max_length=64)]
    boot: Annotated[str, Field(max_length=64)]


class NodeStatus(_Frame):
    """What the policy node tells the watchdog each control period: facts, no judgement."""

    version: Literal[1] = 1
    session: Session
    sequence: Annotated[int, Field(ge=1)]
    steady_ns: Steady
    """Steady time at which it was said."""
    pid: Annotated[int, Field(gt=0)]
    start_ticks: Steady
    """Start time from /proc/PID/stat: a reused pid is another process."""
    active: bool
    """Whether the lifecycle state is active: deactivation tells the watchdog at once."""
    engine: Literal['absent', 'loading', 'ready', 'failed']
    worker_pid: Annotated[int, Field(ge=0)]
    """0 while there is no worker."""
    worker_start_ticks: Steady
    progress: Annotated[int, Field(ge=0)]
    """The worker's count of batches and idle turns."""
    progress_ns: Steady
    """Steady time of the last progress."""
    in_flight: Annotated[int, Field(ge=0)]
    """Number of the batch in flight, 0 when none."""
    in_flight_since_ns: Steady
    in_flight_bound_ns: Steady
    """How long the cost model's bound allows this batch."""
    request: Annotated[int, Field(ge=0)]
    """The request that is open, 0 when none."""
    misses: Annotated[int, Field(ge=0)]
    """Decision ticks of this session that ended without an accepted decision."""
    served: Annotated[int, Field(ge=0)]
    """Decision ticks of this session that ended with one."""
    last_outcome: Annotated[str, Field(max_length=64)]
    """How the last tick ended: `decided`, `missed: …`, `refused: …`, `unfit: …`, `no engine`."""
    host: Annotated[str, Field(max_length=64)]
    boot: Annotated[str, Field(max_length=64)]


class Applied(_Frame):
    """What the watchdog did in one tick."""

    version: Literal[1] = 1
    sequence: Annotated[int, Field(ge=1)]
    steady_ns: Steady
    state: Annotated[str, Field(max_length=32)]
    cause: Annotated[str, Field(max_length=64)]
    """The worst active cause, or `none`."""
    source: Origin
    valid_until_ns: Steady
    linear_x_m_s: Number
    angular_z_rad_s: Number
    command_session: Annotated[str, Field(max_length=16)]
    """Session of the command that was applied, or empty."""
    command_sequence: Annotated[int, Field(ge=0)]
    """0 when no command was applied."""
    observation_stamp_ns: Stamp
    """Stamp of the observation behind the applied command; 0 when none was."""
    late_ns: Annotated[int, Field(ge=0)]
    """How late this tick began."""
    limited: bool
    """Whether the envelope reduced what was asked for."""


_FrameT = TypeVar('_FrameT', bound=_Frame)


def parse_frame(kind: type[_FrameT], text: str) -> _FrameT:
    """Parse the JSON of a `Command`, `NodeStatus` or `Applied`, strictly.

    Raises CommandError that says why: size, JSON, key twice, number not finite, schema.
    """
    if len(text) > MAX_JSON_BYTES or len(text.encode('utf-8', 'replace')) > MAX_JSON_BYTES:
        raise CommandError(f'{kind.__name__}: more than {MAX_JSON_BYTES} bytes')
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        return kind.model_validate(content)
    except pydantic.ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        place = '.'.join(map(str, first['loc'])) or 'frame'
        raise CommandError(f'{kind.__name__}: {place}: {first["msg"]}') from err
    except (ValueError, RecursionError) as err:
        raise CommandError(f'{kind.__name__}: not JSON: {err}'[:200]) from err


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError('a key stands twice')
    return out


def _no_constant(name: str) -> float:
    raise ValueError(f'{name} is no number here')
