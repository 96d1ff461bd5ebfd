"""One decision tick's record, with all that is needed to understand and repeat it.

Every tick leaves exactly one, however it ended. Over many, what counts is the share of ticks that
were served, the tail of the latency and the causes of the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from smallm_ros.core.action import Decision
from smallm_ros.core.clock import MS
from smallm_ros.core.observation import Quality, StampFault

Outcome = Literal[
    'decided', 'unsure', 'missed', 'refused', 'cancelled', 'unfit', 'idle', 'no_engine'
]
"""`unsure` is an answer below `min_confidence`; `unfit` lacked a required sensor; `idle` had
nothing new to decide on and counts for nothing; only `decided` became a command."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


class SegmentRecord(BaseModel):
    """A piece of the dynamic prompt as it was sent."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    name: str
    text: str
    priority: int


class ReadingRecord(BaseModel):
    """How good one sensor's reading was."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    quality: Quality
    stamp: StampFault
    """Why the age in `ages_ms` is that by arrival; `none`: it is that by stamp."""
    rate_hz: float | None = None
    """As it was measured; None while too little had come."""


class DecisionRecord(BaseModel):
    """One decision tick, from what was seen to what was asked of the base."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    version: Literal[2] = 2
    policy: str
    session: str
    request: Annotated[int, Field(ge=0)]
    """0 when nothing was asked."""
    tick_ns: int
    """Steady time of the decision tick."""
    ros_now_ns: int
    observation_stamp_ns: int
    """ROS stamp of the oldest required reading; 0 when there is none."""
    arrival_ns: int
    """Steady arrival of the newest required reading; 0 when there is none."""
    deadline_ns: int
    ended_ns: int
    """Steady time at which the tick's outcome was known in the policy node."""
    outcome: Outcome
    why: str
    """Empty for `decided`; else the cause in words."""
    segments: tuple[SegmentRecord, ...]
    mission: str = ''
    """The operator's words in force at the tick; empty: the file's mission alone."""
    dropped: tuple[str, ...] = ()
    """What was left out of the prompt, in the words in which the prompt says so."""
    ages_ms: dict[str, float]
    """Age of each sensor's reading at the tick, by stamp (by arrival where the stamp is unfit)."""
    readings: dict[str, ReadingRecord] = Field(default_factory=dict)
    """How good each sensor's reading was; none in records of before this was kept."""
    action: str = ''
    parameters: dict[str, str] = Field(default_factory=dict)
    linear_x_m_s: float = 0.0
    angular_z_rad_s: float = 0.0
    command_sequence: int = 0
    """0 when no command left."""
    decision: Decision | None = None
    model_sha256: str = ''
    space: str = ''
    """Name of the declaration that was asked; the recording holds it whole, once."""
    partial: bool = False
    """Whether the parameters are the declared defaults because the time ended."""
    ids: tuple[int, ...] = ()
    """Tokens of the prompt after the static part."""
    prior: str = 'none'
    """`correction:digest` of what was subtracted at the choices."""

    @property
    def latency_ns(self) -> int:
        """From the arrival of the newest required reading to the known outcome."""
        return self.ended_ns - self.arrival_ns


# --- many records ---------------------------------------------------------------------------

SOLID_SAMPLES = 100
"""A p99 of fewer samples than this is little more than their maximum, and says so."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Nearest-rank percentiles: each is a value that was seen. There is no mean here."""

    n: int
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles | None:
        """Return the percentiles of `values`, or None when there are none."""
        ordered = sorted(values)
        n = len(ordered)
        if n == 0:
            return None

        def rank(percent: int) -> float:
            return ordered[max(0, -(-percent * n // 100) - 1)]

        return cls(n=n, p50=rank(50), p90=rank(90), p99=rank(99), max=ordered[-1])

    @property
    def thin(self) -> bool:
        """Whether there are too few samples for the p99 to mean more than the maximum."""
        return self.n < SOLID_SAMPLES


@dataclass(frozen=True, slots=True)
class CauseCount:
    """How many ticks ended this way, for this reason."""

    outcome: Outcome
    why: str
    """With `#` for every number, so that like causes count as one."""
    n: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """What many decision ticks come to."""

    ticks: int
    outcomes: Mapping[Outcome, int]
    """Every outcome, those that never happened as 0."""
    latency_ms: Percentiles | None
    """Arrival of the newest required reading to the known outcome, of decided ticks."""
    late: int
    """Decided ticks whose outcome was known after their deadline: a broken promise."""
    partial: int
    """Decided ticks whose parameters were the declared defaults because the time ended."""
    passes: Mapping[int, int]
    """Number of decided ticks by forward passes."""
    plans: Mapping[str, int]
    """Number of decided ticks by how their passes were laid out, most frequent first."""
    guessed_tokens: int
    """Tokens of previous answers that rode along as a guess, of decided and unsure ticks."""
    accepted_tokens: int
    """Of those, tokens on the path that was then chosen."""
    prompt_tokens: Percentiles | None
    evaluated_tokens: Percentiles | None
    reused_tokens: Percentiles | None
    confidence: Percentiles | None
    """Of decided and unsure ticks; mind that here low is bad."""
    margin: Percentiles | None
    """Of decided and unsure ticks: lead over the likeliest other answer; here too low is bad."""
    margin_least: float | None
    ages_ms: Mapping[str, Percentiles]
    """Age of each sensor's reading over all ticks that had one."""
    causes: tuple[CauseCount, ...]
    """Ticks that did not decide, most frequent first."""
    trimmed: int
    """Ticks whose prompt lost a segment."""

    @property
    def served(self) -> int:
        """Ticks that ended with a decision."""
        return self.outcomes['decided']

    @property
    def asked(self) -> int:
        """Ticks that had something to decide."""
        return self.ticks - self.outcomes['idle']

    @property
    def share_served(self) -> float:
        """Share of ticks with something to decide that ended with a decision; 0 when none had."""
        return self.served / self.asked if self.asked else 0.0

    @property
    def passes_max(self) -> int:
        """Most forward passes that one decision took; 0 when there were none."""
        return max(self.passes, default=0)


_NUMBER = re.compile(r'-?\d+(?:\.\d+)?')


def summarise(records: Iterable[DecisionRecord]) -> Statistics:
    """Count and rank many records."""
    ticks = 0
    late = 0
    partial = 0
    trimmed = 0
    outcomes: Counter[Outcome] = Counter()
    causes: Counter[tuple[Outcome, str]] = Counter()
    latencies_ms: list[float] = []
    answers: list[Decision] = []
    ages_ms: dict[str, list[float]] = {}
    passes: Counter[int] = Counter()
    plans: Counter[str] = Counter()
    for record in records:
        ticks += 1
        outcomes[record.outcome] += 1
        trimmed += bool(record.dropped)
        for sensor, age_ms in record.ages_ms.items():
            ages_ms.setdefault(sensor, []).append(age_ms)
        if record.decision is not None:
            answers.append(record.decision)
        if record.outcome == 'decided':
            latencies_ms.append(record.latency_ns / MS)
            late += record.ended_ns > record.deadline_ns
            partial += record.partial
            if record.decision is not None:
                passes[record.decision.tokens.passes] += 1
                if record.decision.plan:
                    plans[record.decision.plan] += 1
        else:
            causes[(record.outcome, _NUMBER.sub('#', record.why))] += 1
    return Statistics(
        ticks=ticks,
        outcomes={outcome: outcomes[outcome] for outcome in OUTCOMES},
        latency_ms=Percentiles.of(latencies_ms),
        late=late,
        partial=partial,
        passes=dict(sorted(passes.items())),
        plans=dict(sorted(plans.items(), key=lambda item: (-item[1], item[0]))),
        guessed_tokens=sum(a.tokens.guessed for a in answers),
        accepted_tokens=sum(a.tokens.accepted for a in answers),
        prompt_tokens=Percentiles.of(a.tokens.prompt for a in answers),
        evaluated_tokens=Percentiles.of(a.tokens.evaluated for a in answers),
        reused_tokens=Percentiles.of(a.tokens.reused for a in answers),
        confidence=Percentiles.of(a.confidence for a in answers),
        margin=Percentiles.of(a.margin for a in answers),
        margin_least=min((a.margin for a in answers), default=None),
        ages_ms={
            sensor: found for sensor, values in ages_ms.items()
            if (found := Percentiles.of(values)) is not None
        },
        causes=tuple(
            CauseCount(outcome, why, n) for (outcome, why), n in sorted(
                causes.items(), key=lambda item: (-item[1], item[0])
            )
        ),
        trimmed=trimmed,
    )
