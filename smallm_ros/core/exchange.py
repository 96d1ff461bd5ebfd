"""What the policy node and the engine say to each other, as values.

A client declares its action space and the static part of its prompt once, then asks. Each
question carries an absolute steady deadline and gets exactly one answer: decided, refused (before
any work), missed (after some), or cancelled. How these become bytes is `engine/wire`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from smallm_ros.core.action import Decision


class Role(str, enum.Enum):
    """Who speaks in the static part of a prompt."""

    USER = 'user'
    ASSISTANT = 'assistant'


class Decide(str, enum.Enum):
    """Which leaf of the action tree is the answer."""

    GREEDY = 'greedy'
    """The likeliest child at each choice, as stepwise decoding under the grammar gives it."""
    BEST = 'best'
    """The leaf of the greatest probability: the exact maximum over the whole tree."""


class Correction(str, enum.Enum):
    """What is subtracted from the logits of each choice; see `policy.Prior`."""

    REFERENCE = 'reference'
    CONTENT_FREE = 'content_free'
    NONE = 'none'


@dataclass(frozen=True, slots=True)
class FreeText:
    """A bounded text that the model may add when the action is decided; none by default."""

    lead: str = ''
    """What stands between the answer and the text, in the model's context only."""
    max_tokens: int = 0
    """0 asks for no text."""
    max_characters: int = 0


@dataclass(frozen=True, slots=True)
class Declaration:
    """A policy's static part: evaluated once, pinned in KV, shared by all its questions."""

    space: str
    """Name of this declaration: a digest of all that follows."""
    system: str
    examples: tuple[tuple[str, str], ...]
    """(observation, answer) turns before the question."""
    answers: tuple[str, ...]
    """Complete answer text of every leaf of the action space; leaf i is answers[i]."""
    max_prompt_tokens: int
    """Limit of the dynamic part, in tokens."""
    references: tuple[str, ...] = ()
    """Dynamic texts over which the model's bias is measured and then subtracted, or none."""
    correction: Correction = Correction.NONE
    """What the references are; a declaration without references corrects nothing."""
    decide: Decide = Decide.GREEDY
    actions: tuple[int, ...] = ()
    """For each answer the index of its action: answers of one action differ in parameters only.

    Empty: a decision is whole or a miss. Else it may be `partial` (anytime)."""
    departures: tuple[int, ...] = ()
    """For each answer how far its parameters are from the declared defaults; 0 is all default.

    Of the answers that are still possible a partial decision takes the one with the least."""
    history: int = 0
    """Turns (observation, decision) that stay in the prompt before the present one."""
    text: FreeText = FreeText()


@dataclass(frozen=True, slots=True)
class Shorter:
    """A segment's text without its lesser parts."""

    priority: int
    """When what is of this priority, or of a greater number, must leave the prompt."""
    text: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the dynamic prompt, slowest changing first."""

    name: str
    text: str
    priority: int
    """0 is dropped last."""
    shorter: tuple[Shorter, ...] = ()
    """What stays of it before it leaves, the longest first; each of a greater priority number."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request for a decision."""

    request: int
    """Increases by one with every question of a client."""
    space: str
    deadline_ns: int
    """Absolute steady time by which the answer must be known."""
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client takes a question back; it is still answered, once."""

    request: int


class RefusedWhy(str, enum.Enum):
    """Why no work was begun."""

    NOT_READY = 'not_ready'
    UNKNOWN_SPACE = 'unknown_space'
    TOO_LATE = 'too_late'
    DOES_NOT_FIT = 'does_not_fit'
    PROMPT_TOO_LONG = 'prompt_too_long'
    BUSY = 'busy'


class MissedWhy(str, enum.Enum):
    """Why work that had begun gave no answer."""

    DEADLINE = 'deadline'
    NOT_FINITE = 'not_finite'
    DECODE_FAILED = 'decode_failed'


@dataclass(frozen=True, slots=True)
class Decided:
    """The model chose in time."""

    request: int
    decision: Decision
    dropped: tuple[str, ...]
    """What was left out to fit the token limit or the deadline: `goal`, `some of scan`; the prompt
    says it in the same words."""
    model_sha256: str
    partial: bool = False
    """Whether the time ended before the parameters were chosen, and they are the defaults."""
    ids: tuple[int, ...] = ()
    """Tokens of the prompt after the static part: history, readings, the template's tail."""
    prior: str = 'none'
    """`correction:digest` of what was subtracted at the choices."""


@dataclass(frozen=True, slots=True)
class Refused:
    """No work was begun."""

    request: int
    why: RefusedWhy
    detail: str


@dataclass(frozen=True, slots=True)
class Missed:
    """Work was begun and gave no answer."""

    request: int
    why: MissedWhy
    detail: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client took it back, or asked a newer question: newest wins."""

    request: int


Answer = Decided | Refused | Missed | Cancelled


@dataclass(frozen=True, slots=True)
class Said:
    """The free text after a decision. It follows its `Decided` and is never waited for."""

    request: int
    text: str
    tokens: int
    cut: bool
    """Whether it was cut short, by the deadline, the next question or its limits."""


class EngineState(str, enum.Enum):
    """How far a worker is in its life."""

    LOADING = 'loading'
    READY = 'ready'


@dataclass(frozen=True, slots=True)
class Progress:
    """What the worker is doing now; a count that stands still is a stall."""

    state: EngineState
    count: int
    """Batches begun, batches done and idle turns, counted by the thread that owns the model."""
    beat_ns: int
    """Steady time of the last count."""
    in_flight: int
    """Number of the batch inside llama_decode, 0 when none."""
    since_ns: int
    """Steady time at which that batch began; 0 when none."""
    bound_ns: int
    """How long the cost model's bound allows it; 0 when none."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the model can do, said once the worker is ready."""

    name: str
    sha256: str
    template: str
    context_tokens: int
    vocabulary: int
    threads: int
    gpu_layers: int
    cost_fixed_ns: int
    """Cost model t(n) = fixed + n * per_token at its median, for n new tokens in one batch."""
    cost_per_token_ns: int


@dataclass(frozen=True, slots=True)
class Declared:
    """The static part is in KV; `prompt_tokens` long."""

    space: str
    prompt_tokens: int
    leaves: int
    choice_nodes: int


@dataclass(frozen=True, slots=True)
class DeclarationRejected:
    """The static part cannot be used; `why` is one line for the operator."""

    space: str
    why: str


@dataclass(frozen=True, slots=True)
class EngineUp:
    """A worker answered the greeting; it may still be loading."""

    worker_pid: int
    worker_start_ticks: int
    """Start time from /proc/PID/stat."""


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The connection ended or could not be made; the client tries again by itself."""

    why: str


EngineEvent = (
    EngineUp | EngineLost | ModelLimits | Progress | Declared | DeclarationRejected | Answer | Said
)
