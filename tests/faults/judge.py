"""What is wrong with the gate's answer to one fault: pure, over the rows of its own log.

A row is what `~/applied` said in one tick, with `published_ns`, when it and the velocity had left.
The judge knows no gate: it holds the promises of docs/safety.md against what was published.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.policy import Policy

Row = Mapping[str, Any]

STILL = frozenset({'STANDBY', 'HOLD', 'ESTOP_LATCHED', 'FAULT_LATCHED'})
"""States in which nothing moves, from their first tick."""
ARMING_NS = 2 * SECOND
"""An arm request is answered within this."""
BRAKED_NS = SECOND
"""From the entry of SAFE_STOP to standing: the fault robot brakes from 0.3 m/s in 0.3 s."""
SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Expected:
    """What a fault may lead to."""

    causes: frozenset[str]
    """The first cause must be one of these."""
    after: frozenset[str]
    """Later ones, until the model drives again, one of these or those."""
    limit_ms: float | None
    """From the fault to the reaction; None where it does not count."""
    leaves: bool | None = True
    """Whether the gate must leave ACTIVE; None: it may."""
    stands: bool = False
    """Whether no speed is left `limit_ms` after the fault, whatever the state."""
    gaps: bool = False
    """Whether the fault itself keeps the gate from publishing."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One injection: when what happened, and every row from the fault to the return."""

    began_ns: int
    undone_ns: int
    resumed_ns: int | None
    rows: Sequence[Row]
    armed_ns: Sequence[int] = ()
    """When the operator asked to arm."""
    reacted_ns: int | None = None
    """Of a fault that shows elsewhere than in the rows; then these are not asked."""
    elsewhere: bool = False


@dataclass(slots=True)
class Verdict:
    """What was measured, and what was wrong."""

    cause: str = ''
    causes: list[str] = field(default_factory=list)
    detection_ms: float | None = None
    reaction_ms: float | None = None
    resume_ms: float | None = None
    worst_gap_ms: float = 0.0
    worst_late_ms: float = 0.0
    violations: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Those violations that are durations, which a busy machine can bring about too."""


def reacted(row: Row) -> bool:
    """Whether the model does not drive freely in this tick."""
    return bool(row['state'] != 'ACTIVE' or row['cause'] != 'none')


def judge(episode: Episode, expected: Expected, policy: Policy) -> Verdict:
    """Return what the rows say."""
    out = Verdict()
    rows = [row for row in episode.rows if row['steady_ns'] >= episode.began_ns]
    first = next((row for row in rows if reacted(row)), None)
    if episode.elsewhere:
        if episode.reacted_ns is not None:
            out.detection_ms = out.reaction_ms = (episode.reacted_ns - episode.began_ns) / MS
    elif expected.stands:
        # It stands for good: the first row after the last that moved.
        moved = [i for i, row in enumerate(rows)
                 if row['steady_ns'] < episode.undone_ns and _moves(row)]
        stood = rows[moved[-1] + 1 if moved else 0:][:1]
        if stood and stood[0]['steady_ns'] < episode.undone_ns:
            out.reaction_ms = (stood[0]['published_ns'] - episode.began_ns) / MS
        seen = first or (stood[0] if stood else None)
        if seen is not None:
            out.detection_ms = (seen['steady_ns'] - episode.began_ns) / MS
    elif first is not None:
        out.detection_ms = (first['steady_ns'] - episode.began_ns) / MS
        out.reaction_ms = (first['published_ns'] - episode.began_ns) / MS
    if first is not None:
        out.cause = first['cause']
    out.causes = list(dict.fromkeys(row['cause'] for row in rows if reacted(row)))
    if episode.resumed_ns is not None:
        out.resume_ms = (episode.resumed_ns - episode.undone_ns) / MS
    wrong = out.violations
    out.late += _late_reaction(out, expected)
    out.late += _gaps(episode.rows, out, expected, policy)
    wrong += _wrong_reaction(out, first, expected, episode.undone_ns)
    if episode.resumed_ns is None:
        wrong.append('never resumed')
    wrong += _wrong_rows(episode, policy)
    wrong += out.late
    return out


def _late_reaction(out: Verdict, expected: Expected) -> list[str]:
    reaction_ms, limit_ms = out.reaction_ms, expected.limit_ms
    if reaction_ms is None or limit_ms is None or reaction_ms <= limit_ms:
        return []
    return [f'reacted after {reaction_ms:.0f} ms, limit {limit_ms:.0f} ms']


def _wrong_reaction(
    out: Verdict, first: Row | None, expected: Expected, undone_ns: int,
) -> list[str]:
    wrong = []
    undoing = first is not None and first['steady_ns'] >= undone_ns
    if out.reaction_ms is None and (expected.leaves or expected.stands):
        wrong.append('never reacted')
    if undoing or first is None:
        pass
    elif expected.leaves is False:
        wrong.append(f'left for {first["state"]} by {first["cause"]}')
    elif first['cause'] not in expected.causes:
        wrong.append(f'cause {first["cause"]}, not {" or ".join(sorted(expected.causes))}')
    # A gap of its own stands in the log as a gap, and is counted there.
    strange = set(out.causes) - expected.causes - expected.after - {'none', 'own_gap'}
    if strange:
        wrong.append(f'later causes {", ".join(sorted(strange))}')
    return wrong


def _gaps(rows: Sequence[Row], out: Verdict, expected: Expected, policy: Policy) -> list[str]:
    limit_ms = (policy.control_period_ns + policy.allowed_lateness_ns) / MS
    wrong = []
    for before, after in itertools.pairwise(rows):
        gap_ms = (after['published_ns'] - before['published_ns']) / MS
        if after['sequence'] == 1 or (expected.gaps and gap_ms > limit_ms):
            continue  # a new process, or the fault itself
        out.worst_gap_ms = max(out.worst_gap_ms, gap_ms)
        out.worst_late_ms = max(out.worst_late_ms, after['late_ns'] / MS)
        if gap_ms > limit_ms:
            wrong.append(f'gap of {gap_ms:.0f} ms, limit {limit_ms:.0f} ms')
    return wrong


def _moves(row: Row) -> bool:
    return bool(row['linear_x_m_s'] or row['angular_z_rad_s'])


def _wrong_rows(episode: Episode, policy: Policy) -> list[str]:
    """Return what no row may say, whatever the fault."""
    rules = policy.envelope
    wrong: dict[str, None] = {}
    entered_ns = episode.rows[0]['steady_ns'] if episode.rows else 0
    for before, row in itertools.pairwise((None, *episode.rows)):
        assert row is not None
        v, w, state = row['linear_x_m_s'], row['angular_z_rad_s'], row['state']
        if not (math.isfinite(v) and math.isfinite(w)
                and -rules.max_reverse_m_s - SLACK <= v <= rules.max_forward_m_s + SLACK
                and abs(w) <= rules.max_turn_rad_s + SLACK):
            wrong[f'velocity {v}, {w} outside the limits'] = None
        if state in STILL and _moves(row):
            wrong[f'motion in {state}'] = None
        if row['source'] == 'model' and state != 'ACTIVE':
            wrong[f'the model drives in {state}'] = None
        if before is None or row['sequence'] == 1:  # a new process
            entered_ns = row['steady_ns']
            continue
        if row['sequence'] != before['sequence'] + 1:
            wrong[f'sequence {before["sequence"]} to {row["sequence"]}'] = None
        if state != before['state']:
            entered_ns = row['steady_ns']
            if state == 'ACTIVE' and before['state'] not in ('HOLD', 'DEGRADED'):
                wrong[f'from {before["state"]} to ACTIVE'] = None
            if before['state'] == 'HOLD' and state == 'ACTIVE' and not any(
                    0 <= row['steady_ns'] - armed <= ARMING_NS for armed in episode.armed_ns):
                wrong['it armed itself'] = None
        elif state == 'SAFE_STOP':
            if abs(v) > abs(before['linear_x_m_s']) + SLACK:
                wrong['speed grew in SAFE_STOP'] = None
            if row['steady_ns'] - entered_ns > BRAKED_NS and _moves(row):
                wrong['still moving in SAFE_STOP'] = None
    return list(wrong)
