"""The policy file: the robot's mind in one YAML file, parsed once and trusted from then on.

Sensors and how each is summarised, the mission, the actions and what each does to the base, the
safety envelope, the ladder of fallbacks. Sets of numbers that cannot hold together are refused
here, with the file and the line, so that no later stage has to ask. No guard is switched off by 0.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import (
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from smallm_ros.core import mapping
from smallm_ros.core.choice import Choice, choice_text, decimal, keys_as_written
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import PolicyError
from smallm_ros.core.mapping import Commanding, OutputDeclaration
from smallm_ros.core.sensor import (
    TOPIC,
    Finite,
    NotNegative,
    Part,
    Positive,
    SensorBase,
    Word,
)
from smallm_ros.core.summary import Sensor
from smallm_ros.core.summary.odometry import OdometrySensor
from smallm_ros.core.summary.scan import ScanSensor

MAX_FILE_BYTES = 256 * 1024
MAX_VALUES = 20_000
MAX_LEAVES = 512
MAX_CHOICES = 64
MAX_NUMBER_CHARACTERS = 16
"""Of a number in an answer: each digit is a token in most vocabularies."""
MAX_HISTORY_TOKENS = 8192
"""What the turns before the present one may take: at 160 KiB a token (24B) 1.25 GiB of KV."""


def _writable(number: float) -> float:
    text = choice_text(number)
    if len(text) > MAX_NUMBER_CHARACTERS:
        raise ValueError(f'{number!r:.40} takes {len(text)} characters when written out, at most '
                         f'{MAX_NUMBER_CHARACTERS}')
    return number


class Grid(Part):
    """Evenly spaced numbers, both ends among them, exact in decimal."""

    from_: Finite = Field(alias='from')
    to: Finite
    step: Positive

    @field_validator('from_', 'to', 'step')
    @classmethod
    def _short(cls, number: float) -> float:
        return _writable(number)

    @model_validator(mode='after')
    def _reaches_its_end(self) -> Grid:
        first, last, step = map(choice_text, (self.from_, self.to, self.step))
        if not self.from_ < self.to:
            raise ValueError(f'from {first} is not less than to {last}')
        steps = (Decimal(last) - Decimal(first)) / Decimal(step)
        if steps >= MAX_CHOICES:
            raise ValueError(f'{math.floor(steps) + 1} values from {first} to {last} in steps of '
                             f'{step}, at most {MAX_CHOICES}')
        if steps != math.floor(steps):
            reached = format(Decimal(first) + math.floor(steps) * Decimal(step), 'f')
            raise ValueError(f'step {step} does not reach to {last}: from {first} it comes to '
                             f'{reached} and then beyond')
        return self

    @property
    def values(self) -> tuple[float, ...]:
        """The numbers, ascending."""
        first, step = decimal(self.from_), decimal(self.step)
        steps = int((decimal(self.to) - first) / step)
        return tuple(float(first + i * step) for i in range(steps + 1))


class Parameter(Part):
    """A discrete parameter of an action: listed choices, or numbers on a grid."""

    model_config = ConfigDict(json_schema_extra={
        'oneOf': [{'required': ['choices']}, {'required': ['grid']}],
    })

    grid: Grid | None = None
    choices: tuple[Choice, ...] = Field(
        default=None, min_length=1, max_length=MAX_CHOICES, validate_default=True,
    )
    """Every value that it can have; of a grid too."""
    default: Choice
    """What goes out, with `anytime`, when the deadline leaves no time to choose."""
    optional: bool = False
    """Whether the answer leaves the parameter out when it has its default: fewer tokens.

    The default is then never written, so that every member of the space has exactly one text."""

    @field_validator('choices', mode='before')
    @classmethod
    def _of_the_grid(cls, listed: object, info: ValidationInfo) -> object:
        if 'grid' not in info.data:
            return [0]  # the grid is refused, and with it the parameter
        grid = info.data['grid']
        if (listed is None) == (grid is None):
            raise ValueError('give either choices or grid' + (', not both' if grid else ''))
        return grid.values if grid else listed

    @field_validator('choices')
    @classmethod
    def _short(cls, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        for choice in choices:
            if not isinstance(choice, (str, bool)):
                _writable(choice)
        return choices

    @model_validator(mode='after')
    def _consistent(self) -> Parameter:
        words = [choice_text(c) for c in self.choices]
        if len(set(words)) != len(words):
            raise ValueError(f'choices repeat themselves: {", ".join(words)}')
        if choice_text(self.default) not in words:
            where = 'on the grid' if self.grid else 'one of'
            raise ValueError(
                f'default {choice_text(self.default)!r} is not {where}: {", ".join(words)}'
            )
        if self.optional and len(words) == 1:
            raise ValueError(f'optional, and its only choice is the default {words[0]!r}: it '
                             'would never be written')
        return self

    def is_default(self, choice: Choice) -> bool:
        """Return whether this is the declared default."""
        return choice_text(choice) == choice_text(self.default)

    @property
    def written(self) -> tuple[str, ...]:
        """The choices that can stand in an answer: all, without an optional one's default."""
        return tuple(
            choice_text(c) for c in self.choices if not (self.optional and self.is_default(c))
        )


class ByParameter(Part):
    """A velocity looked up by a parameter's choice; without `values` the choice is the number."""

    by: Word
    values: dict[str, Finite] | None = None
    """By the choice as it is written in the answer; a number or true and false may be the key."""

    _keys = field_validator('values', mode='before')(keys_as_written)


Term = Finite | ByParameter


class TwistMapping(Part):
    """What an action asks of the base."""

    linear_x_m_s: Term = 0.0
    angular_z_rad_s: Term = 0.0


class ActionDeclaration(Commanding):
    """One member of the action space: what it asks of the base, what it says on other topics."""

    model_config = ConfigDict(json_schema_extra={
        'anyOf': [{'required': ['twist']}, {'required': ['command']}],
    })

    description: Annotated[str, Field(min_length=1, max_length=200)]
    parameters: dict[Word, Parameter] = Field(default_factory=dict, max_length=16)
    twist: TwistMapping = TwistMapping()
    """Without it, beside a `command`, the base stands."""

    @model_validator(mode='after')
    def _terms(self) -> ActionDeclaration:
        if self.command is None and 'twist' not in self.model_fields_set:
            raise ValueError('twist is missing; or a `command` onto an output')
        choices = {name: parameter.choices for name, parameter in self.parameters.items()}
        for output, terms in (self.command or {}).items():
            if wrong := mapping.misused(terms, choices):
                raise ValueError(f'command: {output}: {wrong[0]}')
        for axis in ('linear_x_m_s', 'angular_z_rad_s'):
            term = getattr(self.twist, axis)
            if not isinstance(term, ByParameter):
                continue
            if term.by not in self.parameters:
                known = ', '.join(self.parameters) or 'none declared'
                raise ValueError(f'{axis}: by {term.by!r} is no parameter; there are: {known}')
            for choice in self.parameters[term.by].choices:
                text = choice_text(choice)
                if term.values is None:
                    if isinstance(choice, (bool, str)):
                        raise ValueError(f'{axis}: choice {text!r} is no number and has no value')
                elif text not in term.values:
                    raise ValueError(f'{axis}: no value for choice {text!r} of {term.by!r}')
        return self

    def members(self) -> Iterator[dict[str, Choice]]:
        """Yield the choices of every member in the order of the file, the last varying fastest."""
        for choices in itertools.product(*(p.choices for p in self.parameters.values())):
            yield dict(zip(self.parameters, choices, strict=True))

    def answer(self, name: str, chosen: Mapping[str, Choice]) -> str:
        """Return the complete answer text of one member of the action `name`."""
        return ' '.join((name, *(
            choice_text(choice) for key, choice in chosen.items()
            if not (self.parameters[key].optional and self.parameters[key].is_default(choice))
        )))


class Example(Part):
    """An observation and its answer, shown to the model in the static part of the prompt."""

    observation: Annotated[str, Field(min_length=1, max_length=2000)]
    answer: Annotated[str, Field(min_length=1, max_length=200)]


class Prior(Part):
    """What to do about a model's bias towards some answers, whatever it sees.

    `reference` subtracts, at each choice, the mean logits over observations drawn from the
    policy's own summaries (batch calibration: Zhou et al., 2023, arXiv:2309.17249). `content_free`
    takes observations that say nothing instead (Zhao et al., 2021, arXiv:2102.09690).
    """

    correction: Literal['reference', 'content_free', 'none'] = 'reference'
    references: Annotated[int, Field(ge=4, le=64)] = 24
    """How many observations `reference` draws; each costs one pass when the engine starts."""
    seed: Annotated[int, Field(ge=0)] = 0


class FreeTextRules(Part):
    """A bounded text that the model adds when the action is decided and gone: it costs it nothing.

    It is for people and records. What the deadline, the next question or its limits leave no time
    for is cut.
    """

    name: Word
    """What the model is asked for: `reason`."""
    lead: Annotated[str, Field(max_length=64)] = ' because'
    """What stands between the action and the text, with its space before it."""
    max_tokens: Annotated[int, Field(ge=1, le=64)] = 24
    max_characters: Annotated[int, Field(ge=1, le=240)] = 120

    @field_validator('lead')
    @classmethod
    def _says_something(cls, lead: str) -> str:
        if not lead.strip() or not lead.isprintable():
            raise ValueError(f'must be a word or more, on one line, not {lead!r}')
        return lead


class MissionTopic(Part):
    """A std_msgs/String topic on which an operator says what is wanted, beside the file's mission.

    The words are data: cleaned, quoted, one line of the prompt. They stay until others come; an
    empty text takes them back. Who may send them is SROS2's to say: docs/sros2.md.
    """

    topic: Annotated[str, Field(pattern=TOPIC)] = 'mission'
    max_characters: Annotated[int, Field(ge=1, le=1000)] = 240
    """Of a text; a longer one is dropped whole."""
    min_period_s: Annotated[float, Field(ge=0.1, le=3600, allow_inf_nan=False)] = 2.0
    """Least time between two texts that are taken; what comes sooner is dropped."""
    priority: Annotated[int, Field(ge=1, le=9)] = 1
    """When it leaves a prompt that is too long, as of a sensor; never 0, so that no text can keep
    the sensors out."""


Coordinate = Annotated[float, Field(ge=-10, le=10)]
Vertex = tuple[Coordinate, Coordinate]


class Robot(Part):
    """The base: what the envelope must know of it."""

    footprint: Annotated[tuple[Vertex, ...], Field(min_length=3, max_length=64)] | None = None
    """Corners in order, [x, y] in metres in base_link; notches count as filled. Without it the
    robot is a disc of `radius_m`."""
    radius_m: Annotated[float, Field(gt=0, le=10)] = Field(default=None, validate_default=True)
    """Radius of the circle around base_link that contains the whole footprint; with a `footprint`
    it may be left out."""
    base_delay_ms: NotNegative = 100.0
    """From a command's publication to the wheels acting on it."""

    @field_validator('footprint')
    @classmethod
    def _outline(cls, corners: tuple[Vertex, ...] | None) -> tuple[Vertex, ...] | None:
        if corners is None:
            return None
        sides = list(zip(corners, (*corners[1:], corners[0]), strict=True))
        for i, (a, b) in enumerate(sides):
            if a == b:
                raise ValueError(f'corner {list(a)} stands twice in a row')
            for c, d in sides[i + 1:]:
                shared = {a, b} & {c, d}
                if shared and not (len(shared) > 1 or _folded(a, b, c, d)):
                    continue
                if shared or _meet(a, b, c, d):
                    raise ValueError(
                        f'the sides {list(a)} to {list(b)} and {list(c)} to {list(d)} meet: give '
                        'the corners in order around the robot'
                    )
        origin = (0.0, 0.0)
        if any(_side(a, b, origin) == 0 and _meet(a, b, origin, origin) for a, b in sides) or (
            sum((a[1] > 0) != (b[1] > 0)
                and a[0] + (b[0] - a[0]) * a[1] / (a[1] - b[1]) > 0 for a, b in sides) % 2 == 0
        ):
            raise ValueError('base_link, [0, 0], is not inside: corners are relative to it')
        return corners

    @field_validator('radius_m', mode='before')
    @classmethod
    def _of_the_footprint(cls, given: object, info: ValidationInfo) -> object:
        if 'footprint' not in info.data:
            return 1.0  # the footprint is refused, and with it the robot
        corners = info.data['footprint']
        if given is None and corners is None:
            raise ValueError('radius_m is missing; or give a footprint')
        return max(math.hypot(*corner) for corner in corners) if given is None else given

    @model_validator(mode='after')
    def _contained(self) -> Robot:
        farthest = max((math.hypot(*corner) for corner in self.footprint or ()), default=0.0)
        if farthest > self.radius_m + 1e-9:
            raise ValueError(f'radius_m {self.radius_m:g} does not contain the footprint, whose '
                             f'farthest corner is at {farthest:g} m; it may be left out')
        return self


def _side(a: Vertex, b: Vertex, c: Vertex) -> float:
    """Return twice the area of a triangle: positive when `c` is left of the way from a to b."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _meet(a: Vertex, b: Vertex, c: Vertex, d: Vertex) -> bool:
    """Whether two line segments have a point in common."""
    return (
        _side(a, b, c) * _side(a, b, d) <= 0 and _side(c, d, a) * _side(c, d, b) <= 0
        and all(min(a[i], b[i]) <= max(c[i], d[i]) and min(c[i], d[i]) <= max(a[i], b[i])
                for i in (0, 1))
    )


def _folded(a: Vertex, b: Vertex, c: Vertex, d: Vertex) -> bool:
    """Whether two sides with one corner in common lie on one another."""
    corner = a if a in (c, d) else b
    one, other = (b if corner == a else a), (d if corner == c else c)
    along = sum((one[i] - corner[i]) * (other[i] - corner[i]) for i in (0, 1))
    return _side(corner, one, other) == 0 and along > 0


class DecisionRules(Part):
    """When a decision is asked for, and when its answer still counts."""

    rate_hz: Annotated[float, Field(gt=0, le=100)]
    budget_ms: Positive
    """From the steady arrival of the newest required reading to the command."""
    max_observation_age_ms: Positive
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0
    prompt_tokens: Annotated[int, Field(ge=16, le=4096)] = 256
    """Limit of the dynamic part of the prompt."""
    decide: Literal['greedy', 'best'] = 'greedy'
    """`greedy` takes the likeliest word at each choice, `best` the likeliest whole answer."""
    anytime: bool = False
    """Whether an action may go out before its parameters are chosen, with their defaults."""
    history: Annotated[int, Field(ge=0, le=16)] = 0
    """How many turns (observation and decision) stay in the prompt before the present one."""


class ControlRules(Part):
    """The watchdog's own loop."""

    rate_hz: Annotated[float, Field(ge=5, le=200)] = 20.0
    allowed_lateness_ms: Positive = 50.0
    reaction_time_ms: Positive = 500.0
    """From a fault to the declared fallback, at most."""
    progress_limit_ms: Annotated[float, Field(ge=100)] = 300.0
    """Least silence of the engine that counts as a stall (faults.md: H)."""
    status_limit_ms: Annotated[float, Field(ge=100)] = 300.0
    """Silence of the policy node that counts as lost."""


class SlowDown(Part):
    """A zone before the one in which the stopping distance decides."""

    within_m: Positive
    """Free way in the direction of motion, beyond footprint and margin, below which it holds."""
    max_m_s: Positive


class Envelope(Part):
    """The limits that every velocity is put through, whoever asked for it."""

    max_forward_m_s: NotNegative
    max_reverse_m_s: NotNegative = 0.0
    max_turn_rad_s: NotNegative
    max_acceleration_m_s2: Positive
    max_deceleration_m_s2: Positive
    max_angular_acceleration_rad_s2: Positive
    """Of braking a turn too."""
    max_jerk_m_s3: Positive | None = None
    """Limit on the change of the commanded acceleration; a stop and what obstacles demand take no
    account of it."""
    max_angular_jerk_rad_s3: Positive | None = None
    slow_down: SlowDown | None = None
    margin_m: NotNegative = 0.05
    """Kept free beyond the footprint when standing."""
    obstacle_sensors: tuple[Word, ...] = Field(min_length=1, max_length=8)
    """The LaserScan sensors that bound the speed, each required."""
    unknown_is_blocked: bool = True
    """Whether a direction without a valid beam counts as an obstacle at no distance."""
    unknown_gap_deg: Annotated[float, Field(ge=0.0, le=45.0)] = 4.0
    """Invalid beams between two valid ones at most this far apart are drop-outs.

    They take the nearer one's distance; a real lidar has some in every scan. What sends no echo
    can hide in such a gap while it is narrower than distance x angle: 7 cm at 1 m for 4 degrees,
    3 cm only beyond 0.43 m. 0 forgives no beam.
    """


FallbackKind = Literal['stop', 'decelerate', 'hold', 'creep', 'turn_to_free', 'follow_gap']


class Fallback(Part):
    """What the robot does without the model: the first of the ladder whose sensors are fit."""

    ladder: tuple[FallbackKind, ...] = Field(default=('stop',), min_length=1, max_length=6)
    speed_m_s: NotNegative = 0.1
    turn_rad_s: NotNegative = 0.5

    @model_validator(mode='after')
    def _ends_in_stop(self) -> Fallback:
        if self.ladder[-1] != 'stop':
            raise ValueError(f"ladder must end in 'stop', not {self.ladder[-1]!r}")
        if 'hold' in self.ladder[1:]:
            raise ValueError("ladder: 'hold' after another is never reached: put it first")
        return self


STANDING = Envelope.model_construct(
    max_forward_m_s=0.0, max_reverse_m_s=0.0, max_turn_rad_s=0.0, max_acceleration_m_s2=1.0,
    max_deceleration_m_s2=1.0, max_angular_acceleration_rad_s2=1.0, obstacle_sensors=(),
)
"""Of a robot that is no mobile base: nothing may move, so nothing has to look."""
_NO_BASE = {'robot': Robot(radius_m=1.0), 'envelope': STANDING}


def _needed_with_a_base(schema: dict[str, Any]) -> None:
    """Say in the JSON schema that `robot` and `envelope` are left out with `base: none` only."""
    schema['required'] = [key for key in schema['required'] if key not in _NO_BASE]
    without = {'properties': {'base': {'const': 'none'}}, 'required': ['base']}
    schema |= {'if': without, 'then': {'properties': dict.fromkeys(_NO_BASE, False)},
               'else': {'required': list(_NO_BASE)}}


class Policy(Part):
    """A whole policy file."""

    model_config = ConfigDict(json_schema_extra=_needed_with_a_base)

    version: Literal[1]
    name: Word
    mission: Annotated[str, Field(min_length=1, max_length=4000)]
    base: Literal['mobile', 'none'] = 'mobile'
    """`none`: nothing here drives (a pan-tilt, a gripper, goals for another stack). No action has
    a `twist`, cmd_vel is not published, and `robot` and `envelope` are left out."""
    robot: Robot
    sensors: dict[Word, Sensor] = Field(min_length=1, max_length=32)
    outputs: dict[Word, OutputDeclaration] = Field(default_factory=dict, max_length=16)
    """Topics on which actions speak, beside cmd_vel."""
    actions: dict[Word, ActionDeclaration] = Field(min_length=2, max_length=256)
    examples: tuple[Example, ...] = Field(default=(), max_length=64)
    prior: Prior = Prior()
    free_text: FreeTextRules | None = None
    mission_topic: MissionTopic | None = None
    decision: DecisionRules
    control: ControlRules = ControlRules()
    envelope: Envelope
    fallback: Fallback = Fallback()

    @property
    def budget_ns(self) -> int:
        """Budget of a decision, in nanoseconds."""
        return round(self.decision.budget_ms * MS)

    @property
    def decision_period_ns(self) -> int:
        """Time between two decision ticks, in nanoseconds."""
        return round(SECOND / self.decision.rate_hz)

    @property
    def control_period_ns(self) -> int:
        """Time between two commands to the base (faults.md: T), in nanoseconds."""
        return round(SECOND / self.control.rate_hz)

    @property
    def allowed_lateness_ns(self) -> int:
        """Allowed lateness of one publish (faults.md: X), in nanoseconds."""
        return round(self.control.allowed_lateness_ms * MS)

    @property
    def ttl_ns(self) -> int:
        """Time-to-live of a command (faults.md: C): (decision period + budget) * 1.2."""
        return (self.decision_period_ns + self.budget_ns) * 6 // 5

    @property
    def max_observation_age_ns(self) -> int:
        """Oldest observation whose action may move the robot, in nanoseconds of ROS time."""
        return round(self.decision.max_observation_age_ms * MS)

    @property
    def required_sensors(self) -> tuple[str, ...]:
        """Names of the sensors without which nothing is decided."""
        return tuple(name for name, sensor in self.sensors.items() if sensor.required)

    @property
    def leaves(self) -> int:
        """Number of distinct complete answers."""
        return sum(
            math.prod(len(p.choices) for p in action.parameters.values())
            for action in self.actions.values()
        )

    @field_validator('free_text', mode='before')
    @classmethod
    def _not_empty(cls, rules: object) -> object:
        if rules is None:
            raise ValueError('stands without anything; give at least a name, or leave it out')
        return rules

    @field_validator('mission_topic', mode='before')
    @classmethod
    def _says_where(cls, rules: object) -> object:
        if rules is None:
            raise ValueError('stands without anything; give {topic: mission}, or leave it out')
        return rules

    @model_validator(mode='before')
    @classmethod
    def _without_a_base(cls, content: object) -> object:
        if not isinstance(content, dict) or content.get('base') != 'none':
            return content
        for key, value in _NO_BASE.items():
            if content.get(key, value) not in (value, value.model_dump(exclude_unset=True)):
                raise ValueError(f'{key}: base is none: leave it out; there is nothing to limit')
        return {**content, **_NO_BASE}

    def _check_outputs(self) -> None:
        """Refuse what actions and outputs say of one another that cannot be."""
        spoken = {name for action in self.actions.values() for name in action.command or ()}
        for name, action in self.actions.items():
            if self.base == 'none' and 'twist' in action.model_fields_set:
                raise ValueError(f'actions.{name}: twist, and base is none: nothing drives')
            for output in action.command or ():
                if output not in self.outputs:
                    known = ', '.join(self.outputs) or 'none declared'
                    raise ValueError(f'actions.{name}: command: {output!r} is no output; there '
                                     f'are: {known}')
        topics = [output.topic.lstrip('/') for output in self.outputs.values()]
        for name, declared in self.outputs.items():
            if name not in spoken:
                raise ValueError(f'outputs.{name}: no action has a command on it')
            if topics.count(declared.topic.lstrip('/')) > 1:
                raise ValueError(f'outputs.{name}: topic {declared.topic} is of two outputs')
        if self.base == 'none' and self.fallback.ladder != ('stop',):
            raise ValueError("fallback: base is none: the ladder is ['stop'], not "
                             f'{list(self.fallback.ladder)}')

    def _answers(self) -> set[str]:
        """Return every complete answer; refuse two members of the space with the same."""
        by_answer: dict[str, str] = {}
        for name, action in self.actions.items():
            for chosen in action.members():
                answer = action.answer(name, chosen)
                member = ', '.join(f'{k} {choice_text(v)}' for k, v in chosen.items())
                if answer in by_answer:
                    raise ValueError(
                        f'actions.{name}: {answer!r} would be the answer of both '
                        f'({by_answer[answer]}) and ({member}): other words, or fewer optional '
                        'parameters'
                    )
                by_answer[answer] = member
        return set(by_answer)

    @model_validator(mode='after')
    def _holds_together(self) -> Policy:
        period_ms = 1e3 / self.decision.rate_hz
        if self.decision.budget_ms > period_ms:
            raise ValueError(
                f'decision: budget_ms {self.decision.budget_ms:g} is more than the period of '
                f'rate_hz {self.decision.rate_hz:g} ({period_ms:g} ms): decisions would queue'
            )
        fastest_hz = max((s.rate_hz for s in self.sensors.values() if s.required), default=0.0)
        if self.decision.rate_hz > fastest_hz > 0:
            raise ValueError(
                f'decision: rate_hz {self.decision.rate_hz:g} is more than the {fastest_hz:g} of '
                'the fastest required sensor: most ticks would have nothing new to decide on'
            )
        if not self.required_sensors:
            raise ValueError('sensors: at least one must be `required: true`; the deadline '
                             'starts at the arrival of the newest required reading')
        if self.mission_topic and 'mission' in self.sensors:
            raise ValueError('sensors.mission: with `mission_topic` this name is that of the '
                             "operator's words: another name")
        ttl_ms = self.ttl_ns / MS
        for name in self.required_sensors:
            least_ms = 1e3 / self.sensors[name].rate_hz + self.decision.budget_ms + ttl_ms
            if self.decision.max_observation_age_ms < least_ms:
                raise ValueError(
                    'decision: max_observation_age_ms '
                    f'{self.decision.max_observation_age_ms:g} is less than sensor period + '
                    f'budget + time-to-live of {name!r} = {least_ms:.0f}: a good command would '
                    'expire before its time'
                )
        for name, sensor in self.sensors.items():
            if sensor.stale_after_ms <= 1e3 / sensor.rate_hz:
                raise ValueError(
                    f'sensors.{name}: stale_after_ms {sensor.stale_after_ms:g} is not more than '
                    f'the period of rate_hz {sensor.rate_hz:g}: it would always be stale'
                )
            watched = sensor.required or isinstance(sensor, (ScanSensor, OdometrySensor))
            if watched and sensor.stamps != 'trust':
                raise ValueError(
                    f'sensors.{name}: stamps {sensor.stamps!r}: what is required, and every scan '
                    'and odometry, must say of when it tells, because the watchdog goes by it; '
                    'put the clock of its driver right'
                )
        self._check_outputs()
        obstacles = self.envelope.obstacle_sensors
        for name in obstacles:
            obstacle = self.sensors.get(name)
            if obstacles.count(name) > 1:
                raise ValueError(f'envelope: obstacle_sensors: {name!r} stands twice')
            if not isinstance(obstacle, ScanSensor) or not obstacle.required:
                raise ValueError(
                    f'envelope: obstacle_sensors: {name!r} is no required LaserScan sensor; there '
                    'are: ' + (', '.join(
                        n for n, s in self.sensors.items()
                        if isinstance(s, ScanSensor) and s.required
                    ) or 'none')
                )
            off_m = math.hypot(obstacle.mount_x_m, obstacle.mount_y_m)
            if off_m > self.robot.radius_m:
                raise ValueError(
                    f'sensors.{name}: mount_x_m and mount_y_m are {off_m:.2f} m from base_link, '
                    f'outside the robot of radius {self.robot.radius_m:.2f} m'
                )
        control_ms = 1e3 / self.control.rate_hz
        if ttl_ms <= control_ms:
            raise ValueError(f'control: the period {control_ms:g} ms is not shorter than the '
                             f'time-to-live of a command, {ttl_ms:g} ms')
        slowest_ms = self.control.progress_limit_ms + control_ms + self.control.allowed_lateness_ms
        if self.control.reaction_time_ms < slowest_ms:
            raise ValueError(
                f'control: reaction_time_ms {self.control.reaction_time_ms:g} is less than '
                f'progress_limit_ms + control period + allowed_lateness_ms = {slowest_ms:g}'
            )
        if self.leaves > MAX_LEAVES:
            raise ValueError(f'actions: {self.leaves} complete answers, at most {MAX_LEAVES}')
        answers = self._answers()
        for index, example in enumerate(self.examples):
            if example.answer not in answers:
                raise ValueError(
                    f'examples.{index}: {example.answer!r} is no complete answer: an action\'s '
                    'name and one choice of each of its parameters, without the default of an '
                    'optional one'
                )
        past_tokens = self.decision.history * self.decision.prompt_tokens
        if past_tokens > MAX_HISTORY_TOKENS:
            raise ValueError(
                f'decision: history {self.decision.history} turns of prompt_tokens '
                f'{self.decision.prompt_tokens} are up to {past_tokens} tokens, at most '
                f'{MAX_HISTORY_TOKENS}'
            )
        drives = {'creep', 'follow_gap'} & set(self.fallback.ladder)
        if drives and self.fallback.speed_m_s > self.envelope.max_forward_m_s:
            raise ValueError(
                f'fallback: speed_m_s {self.fallback.speed_m_s:g} is more than the envelope\'s '
                f'max_forward_m_s {self.envelope.max_forward_m_s:g}'
            )
        return self


# --- reading the file -----------------------------------------------------------------------


def load_policy(path: Path) -> Policy:
    """Read and validate a policy file.

    Raises PolicyError whose text has one line `file:line: place: what` for each mistake.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise PolicyError(f'{path}: cannot be read: {err.strerror}') from err
    return parse_policy(data, str(path))


def parse_policy(data: bytes, name: str) -> Policy:
    """Validate the bytes of a policy file; `name` is what the errors call it."""
    if len(data) > MAX_FILE_BYTES:
        raise PolicyError(f'{name}: {len(data)} bytes, a policy file has at most {MAX_FILE_BYTES}')
    try:
        text = data.decode('utf-8')
    except UnicodeDecodeError as err:
        byte = data[err.start]
        raise PolicyError(f'{name}: not UTF-8: byte {err.start} is {byte:#04x}') from err
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as err:
        line = err.problem_mark.line + 1 if err.problem_mark else 1
        raise PolicyError(f'{name}:{line}: not YAML: {err.problem}') from err
    except yaml.reader.ReaderError as err:
        line = text.count('\n', 0, err.position) + 1
        raise PolicyError(f'{name}:{line}: not YAML: character {err.character:#04x}') from err
    except (yaml.YAMLError, RecursionError) as err:
        raise PolicyError(f'{name}:1: not YAML: {err}') from err
    if root is None:
        raise PolicyError(f'{name}:1: the file is empty; see config/policies/explorer.yaml')
    lines: dict[tuple[str | int, ...], int] = {}
    problems: list[str] = []
    _mark_lines(root, (), lines, problems, name, depth=0)
    if problems:
        raise PolicyError('\n'.join(problems))
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as err:  # ValueError: a date or a number that is none
        raise PolicyError(f'{name}:1: not YAML: {err}') from err
    if not isinstance(content, dict):
        raise PolicyError(f'{name}:1: a policy file is a mapping, this is {content!r:.40}')
    try:
        return Policy.model_validate(content)
    except pydantic.ValidationError as err:
        raise PolicyError('\n'.join(_explain(err, lines, name))) from err


def lines_of(path: Path) -> dict[tuple[str | int, ...], int]:
    """Return the line of every place in a policy file that `load_policy` has taken."""
    lines: dict[tuple[str | int, ...], int] = {}
    root = yaml.compose(path.read_text(encoding='utf-8'), Loader=yaml.SafeLoader)
    if root is not None:
        _mark_lines(root, (), lines, [], str(path), depth=0)
    return lines


def _mark_lines(
    node: yaml.Node,
    place: tuple[str | int, ...],
    lines: dict[tuple[str | int, ...], int],
    problems: list[str],
    name: str,
    depth: int,
) -> None:
    lines[place] = node.start_mark.line + 1
    if depth > 12:
        raise PolicyError(f'{name}:{lines[place]}: nested more than 12 deep')
    if len(lines) > MAX_VALUES:
        raise PolicyError(f'{name}:{lines[place]}: more than {MAX_VALUES} values, with aliases')
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*place, str(key.value))
            if here in lines:
                problems.append(
                    f'{name}:{key.start_mark.line + 1}: {_place(here)} stands twice, '
                    f'first on line {lines[here]}'
                )
            _mark_lines(value, here, lines, problems, name, depth + 1)
            lines[here] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _mark_lines(value, (*place, index), lines, problems, name, depth + 1)


def _explain(
    err: pydantic.ValidationError, lines: dict[tuple[str | int, ...], int], name: str
) -> list[str]:
    out = []
    for problem in err.errors(include_url=False):
        loc = _in_file(problem['loc'], lines)
        message = problem['msg'].removeprefix('Value error, ')
        if problem['type'] == 'value_error' and not loc:
            head, _, rest = message.partition(': ')
            named = tuple(int(p) if p.isdigit() else p for p in head.split('.'))
            if named in lines:
                loc, message = named, rest
        elif problem['type'] == 'extra_forbidden':
            message = 'unknown key' + _near(problem['loc'])
        elif problem['type'] == 'missing':
            message = 'is missing'
            loc = (*loc, problem['loc'][-1])
        elif problem['type'] != 'value_error':
            message = f'{message}, not {problem["input"]!r:.60}'
        out.append(f'{name}:{_line(loc, lines)}: {_place(loc)}: {message}')
    return list(dict.fromkeys(out))


def _in_file(
    loc: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]
) -> tuple[str | int, ...]:
    """Return the parts of pydantic's location that are keys of the file, without unions' tags."""
    kept: tuple[str | int, ...] = ()
    for part in loc:
        if (*kept, part) in lines:
            kept = (*kept, part)
    return kept


def _line(loc: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]) -> int:
    while loc and loc not in lines:
        loc = loc[:-1]
    return lines.get(loc, 1)


def _place(loc: tuple[str | int, ...]) -> str:
    return '.'.join(str(part) for part in loc) or 'policy'


def _near(loc: tuple[str | int, ...]) -> str:
    known = sorted(
        {field.alias or key for model in Part.__subclasses__() + SensorBase.__subclasses__()
         for key, field in model.model_fields.items()}
    )
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f'; did you mean {close[0]!r}?' if close else ''


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a policy file, for editors."""
    return Policy.model_json_schema()
