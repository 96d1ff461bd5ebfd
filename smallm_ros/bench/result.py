"""What a run found: its conditions, its rounds, and the figures and verdicts drawn from them.

Only rounds in which the machine was ours are counted, the same in every arm. Ratios are those of
medians taken in the same rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smallm_ros.bench.names import (
    CHAT,
    FLOOR_B,
    FLOORS,
    ONE,
    OURS,
    OURS_WORDS,
    SENTENCES,
    SERVER,
    TWO,
    WORDS,
)
from smallm_ros.bench.shot import Shot
from smallm_ros.core.clock import MS
from smallm_ros.replay.report import Machine

SAME, TIE, DIFFERS = 'same', 'tie', 'differs'

MOST_OVER_FLOOR = 1.10
MOST_HOST_MS = 2.0
LEAST_OVER_OURS = 2.5
LEAST_OVER_OURS_SENTENCE = 5.0
MOST_TAIL = 1.2
"""p99/p50 of ours over that of floor A."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """All that must be equal for two runs to be comparable."""

    model: str
    model_sha256: str
    template: str
    threads: int
    gpu_layers: int
    context_tokens: int
    kv_type: str
    policy: str
    declaration: str
    """The digest of the static part and the answers."""
    seed: int
    observations: int
    cpu: str
    cores: int
    accelerator: str
    llama_cpp_python: str
    xllamacpp: str
    skipped: tuple[str, ...]
    rule: str
    """By which rounds are left out."""


@dataclass(frozen=True, slots=True)
class Round:
    """One observation in every arm."""

    index: int
    begin_ns: int
    end_ns: int
    others_ms: float
    """CPU time that other processes took meanwhile, on all cores."""
    left_out: str
    """Why it does not count, or ''."""
    shots: Mapping[str, Shot]
    equal: Mapping[str, str]
    """For each of our tree's arms: its answer beside the stepwise one."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the benchmark."""

    started: str
    command: str
    conditions: Conditions
    machine: Machine
    load: tuple[float, float]
    """Of the last minute, before and after."""
    rounds: tuple[Round, ...]
    costs: tuple[tuple[int, int], ...]
    """The engine's cost model here: (tokens, nanoseconds) of one batch."""
    notes: tuple[str, ...]

    @property
    def kept(self) -> tuple[Round, ...]:
        """The rounds that count."""
        return tuple(r for r in self.rounds if not r.left_out)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that were run, in order."""
        return tuple(name for name in WORDS if self.rounds and name in self.rounds[0].shots)

    def shots(self, arm: str) -> list[Shot]:
        """Return the arm's shots of the rounds that count."""
        return [r.shots[arm] for r in self.kept if arm in r.shots]


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution, in milliseconds."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, nanoseconds: Sequence[int]) -> Spread:
        """Return the spread of at least one value."""
        p50, p99 = np.percentile(nanoseconds, (50, 99))
        return cls(float(p50) / MS, float(p99) / MS, max(nanoseconds) / MS)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one arm took."""

    arm: str
    n: int
    took: Spread
    passes: float
    """Median, as the next two."""
    evaluated: float
    reused: float
    over_floor_a: float | None
    """Median over the median of its own floor A; of arms without one, of ours as planned."""
    over_floor_b: float | None
    host: Spread | None
    """Outside llama_decode; None of a floor, and of what runs in another process."""
    valid: int
    """Answers that are members of the action space."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of what the project promises."""

    name: str
    target: str
    measured: float | None
    """None: an arm of it was not run."""
    holds: bool | None


def figures(run: Run) -> tuple[Figures, ...]:
    """Return the figures of every arm, from the rounds that count; none without such rounds."""
    return tuple(_figures(run, arm) for arm in run.arms) if run.kept else ()


def _figures(run: Run, arm: str) -> Figures:
    shots = run.shots(arm)
    took = Spread.of([s.took_ns for s in shots])
    is_floor = arm in (*FLOORS.values(), FLOOR_B)
    host = [s.took_ns - s.decode_ns for s in shots if s.decode_ns is not None]
    return Figures(
        arm=arm, n=len(shots), took=took,
        passes=float(np.median([len(s.batches) for s in shots])),
        evaluated=float(np.median([s.evaluated for s in shots])),
        reused=float(np.median([s.reused for s in shots])),
        over_floor_a=_over(took, run, FLOORS.get(arm, FLOORS[OURS])),
        over_floor_b=_over(took, run, FLOOR_B),
        host=Spread.of(host) if host and not is_floor else None,
        valid=sum(bool(s.answer) for s in shots),
    )


def _over(took: Spread, run: Run, floor: str) -> float | None:
    shots = run.shots(floor)
    return took.p50 / Spread.of([s.took_ns for s in shots]).p50 if shots else None


def checks(run: Run) -> tuple[Check, ...]:
    """Return what the project promises of these figures, and whether it holds here."""
    by = {f.arm: f for f in figures(run)}
    found = []
    for arm in (ONE, TWO):
        figure = by.get(arm)
        found.append(_at_most(
            f'{WORDS[arm]}: p50 over floor A', MOST_OVER_FLOOR,
            None if figure is None else figure.over_floor_a,
        ))
    hosts = [f.host.p99 for a, f in by.items() if a in FLOORS and f.host is not None]
    found.append(_at_most('host time outside llama_decode, p99, ms', MOST_HOST_MS,
                          max(hosts, default=None)))
    for arm in (CHAT, SERVER):
        found.append(_at_least(f'{WORDS[arm]}: p50 over ours', LEAST_OVER_OURS,
                               _ratio(by, arm, OURS)))
    for arm in (CHAT, SERVER):
        found.append(_at_least(f'{WORDS[SENTENCES[arm]]}: p50 over ours in words',
                               LEAST_OVER_OURS_SENTENCE, _ratio(by, SENTENCES[arm], OURS_WORDS)))
    for arm, floor in FLOORS.items():
        tail = None
        if arm in by and floor in by:
            tail = _tail(by[arm]) / _tail(by[floor])
        found.append(_at_most(f'{WORDS[arm]}: p99/p50 over that of floor A', MOST_TAIL, tail))
    compared = [e for r in run.rounds for e in r.equal.values()]
    found.append(_at_most('answers unlike stepwise decoding, ties apart', 0.0,
                          float(compared.count(DIFFERS)) if compared else None))
    return tuple(found)


def _tail(figure: Figures) -> float:
    return figure.took.p99 / figure.took.p50


def _ratio(by: Mapping[str, Figures], arm: str, base: str) -> float | None:
    return by[arm].took.p50 / by[base].took.p50 if arm in by and base in by else None


def _at_most(name: str, limit: float, measured: float | None) -> Check:
    return Check(name, f'at most {limit:g}', measured,
                 None if measured is None else measured <= limit)


def _at_least(name: str, limit: float, measured: float | None) -> Check:
    return Check(name, f'at least {limit:g}', measured,
                 None if measured is None else measured >= limit)


def equality(run: Run) -> dict[str, dict[str, int]]:
    """Return for each of our tree's arms how many answers were stepwise decoding's.

    Of all rounds: an answer is right or wrong on a busy machine too.
    """
    return {
        arm: {verdict: [r.equal.get(arm) for r in run.rounds].count(verdict)
              for verdict in (SAME, TIE, DIFFERS)}
        for arm in FLOORS if any(arm in r.equal for r in run.rounds)
    }
