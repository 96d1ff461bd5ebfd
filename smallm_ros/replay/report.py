"""What happened in a run, as `report.json`, `report.html` and a table for the terminal.

One frozen `Run` in, the same for a demo and a replay. A latency is p50, p99 and max with the
number of samples, never a mean; a promise that was kept says how often it was tried, because none
broken in n bounds the rate by 3/n at 95 % and no further. The page opens without a network.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol

from smallm_ros.core.action import Applied, Decision
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.decision_record import DecisionRecord, Percentiles, Statistics, summarise
from smallm_ros.core.errors import OperatorError, PackageMissingError
from smallm_ros.core.exchange import ModelLimits
from smallm_ros.core.policy import Policy

SCHEMA_VERSION = 1
COLUMNS = 99
LISTED = 5
"""Causes that the table for the terminal names; the report has them all."""
SHALLOW_PASSES = 2
"""One for what changed, one for the parameters; a deeper tree may take one a choice (P6)."""
PACKAGES = (
    'smallm_ros', 'llama-cpp-python', 'ros-rclpy', 'mujoco', 'rosbags', 'mcap', 'msgpack', 'numpy',
    'pydantic',
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures were taken on."""

    cpu: str
    cores: int
    """Logical, as this process may use them."""
    memory_gib: float
    kernel: str
    python: str
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the robot truly was."""

    steady_ns: int
    x_m: float
    y_m: float


class Shape(Protocol):
    """What an obstacle covers of the floor plan; `sim.world.outline` gives these."""

    @property
    def name(self) -> str:
        """What the world file calls it."""
        ...

    @property
    def kind(self) -> Literal['rectangle', 'circle']:
        """Its form."""
        ...

    @property
    def x_m(self) -> float:
        """Of its centre."""
        ...

    @property
    def y_m(self) -> float:
        """Of its centre."""
        ...

    @property
    def yaw_rad(self) -> float:
        """Of its own x axis."""
        ...

    @property
    def length_m(self) -> float:
        """Along its own x axis; a circle's diameter."""
        ...

    @property
    def width_m(self) -> float:
        """Along its own y axis."""
        ...


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise, how far it was tried and how it was kept."""

    name: str
    unit: str
    limit: float
    worst: float | None
    """The worst seen; None when it was never tried."""
    violations: int
    n: int
    """How often it was tried."""

    @property
    def ok(self) -> bool:
        """Whether it was never broken."""
        return self.violations == 0

    @property
    def bound(self) -> float | None:
        """With no violation, the rate that 95 % confidence still allows: 3/n."""
        return 3 / self.n if self.ok and self.n else None


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in one state for one cause."""

    state: str
    cause: str
    begin_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Run:
    """All that a report needs to know."""

    kind: Literal['demo', 'replay']
    title: str
    """The world or the bag."""
    command: str
    """The command line that repeats it."""
    started: str
    """Local wall time."""
    policy: Policy
    policy_file: str
    machine: Machine
    model: ModelLimits | None
    begin_ns: int
    end_ns: int
    """Steady."""
    records: Sequence[DecisionRecord]
    applied: Sequence[Applied]
    command_times_ns: Sequence[int] = ()
    """Steady arrivals of `cmd_vel` at a subscriber of its own; empty where there was none."""
    trail: Sequence[Pose] = ()
    outline: Sequence[Shape] = ()
    collisions: int | None = None
    """None where nothing could be hit."""
    stolen_ms: float = 0.0
    """Core time that the hypervisor kept to itself during the run; no promise is judged by it."""
    promises: Sequence[Promise] = ()
    """Promises that only the caller could check; they follow those that are checked here."""
    notes: Sequence[str] = ()
    """Lines for the reader: what was passed over, which clock was used."""


def describe_machine() -> Machine:
    """Return this machine, from /proc and the installed packages."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    return Machine(
        cpu=_cpu(), cores=len(os.sched_getaffinity(0)), memory_gib=round(memory, 1),
        kernel=platform.release(), python=platform.python_version(), packages=versions,
    )


def _cpu() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(('model name', 'Model')):
            return line.split(':', 1)[1].strip()
    return platform.machine()


# --- what the frames say ----------------------------------------------------------------------


def gaps_ms(run: Run) -> list[float]:
    """Return the time between each two commands, by the subscriber's clock where there was one.

    Of a demo also the time before the first and after the last: silence is a gap.
    """
    times = sorted(run.command_times_ns) or [frame.steady_ns for frame in run.applied]
    if run.kind == 'demo':
        times = [run.begin_ns, *sorted(run.command_times_ns), run.end_ns]
    return [(b - a) / MS for a, b in itertools.pairwise(times)]


def spans(applied: Sequence[Applied], end_ns: int) -> list[Span]:
    """Return the stretches of equal state and cause; the last one ends at `end_ns`."""
    out: list[Span] = []
    for frame in applied:
        if out and (out[-1].state, out[-1].cause) == (frame.state, frame.cause):
            continue
        if out:
            out[-1] = Span(out[-1].state, out[-1].cause, out[-1].begin_ns, frame.steady_ns)
        out.append(Span(frame.state, frame.cause, frame.steady_ns, frame.steady_ns))
    if out:
        last = out[-1]
        out[-1] = Span(last.state, last.cause, last.begin_ns, max(end_ns, last.begin_ns))
    return out


def seconds_in_state(found: Iterable[Span]) -> dict[str, float]:
    """Return the seconds spent in each state, in the order of first entry."""
    out: dict[str, float] = {}
    for span in found:
        out[span.state] = out.get(span.state, 0.0) + (span.end_ns - span.begin_ns) / SECOND
    return out


def fallbacks(found: Sequence[Span]) -> Counter[tuple[str, str]]:
    """Return how often each (state, cause) took over from a more trusting state."""
    out: Counter[tuple[str, str]] = Counter()
    for before, after in itertools.pairwise(found):
        if _CARE.get(after.state, 0) > max(_CARE.get(before.state, 0), _CARE['ACTIVE']):
            out[(after.state, after.cause)] += 1
    return out


_CARE = {
    'STANDBY': 0, 'HOLD': 0, 'ACTIVE': 1, 'DEGRADED': 2, 'FALLBACK': 3, 'SAFE_STOP': 4,
    'ESTOP_LATCHED': 5, 'FAULT_LATCHED': 6,
}


def check_promises(run: Run) -> tuple[Promise, ...]:
    """Return every promise of this run, those of the caller last."""
    policy = run.policy
    decided = [r for r in run.records if r.outcome == 'decided']
    by_model = [a for a in run.applied if a.command_sequence]
    by_command = {(r.session, r.command_sequence): r for r in decided}
    ages_ms = []
    for frame in by_model:
        record = by_command.get((frame.command_session, frame.command_sequence))
        if record is not None:
            # ROS time runs on from the tick at the rate of steady time; faster is refused by the
            # gate, slower only makes this the more careful.
            ros_ns = record.ros_now_ns + frame.steady_ns - record.tick_ns
            ages_ms.append((ros_ns - frame.observation_stamp_ns) / MS)
    found = []
    if run.kind == 'demo':
        # A replay's gate runs in the replay's own loop: its period says nothing of the watchdog.
        limit_ms = (policy.control_period_ns + policy.allowed_lateness_ns) / MS
        found.append(_at_most('gap between two commands', 'ms', limit_ms, gaps_ms(run)))
    found += [
        _at_most('age of an applied observation', 'ms',
                 policy.max_observation_age_ns / MS, ages_ms),
        _at_most('command applied after its time-to-live', 'ms', 0.0,
                 [max(0.0, (a.steady_ns - a.valid_until_ns) / MS) for a in by_model]),
        _at_most('decision known after its deadline', 'ms', 0.0,
                 [max(0.0, (r.ended_ns - r.deadline_ns) / MS) for r in decided]),
        _at_most('velocity, share of the envelope', '%', 100.0,
                 [100 * _share(policy, a) for a in run.applied]),
        _passes_promise([r.decision for r in decided if r.decision is not None]),
    ]
    if run.collisions is not None:
        found.append(Promise('collisions', '', 0.0, float(run.collisions), run.collisions, 1))
    return (*found, *run.promises)


def _at_most(name: str, unit: str, limit: float, values: Sequence[float]) -> Promise:
    return Promise(
        name=name, unit=unit, limit=limit, worst=max(values, default=None),
        violations=sum(value > limit + 1e-6 for value in values), n=len(values),
    )


def _passes_promise(decisions: Sequence[Decision]) -> Promise:
    """Return the promise of the passes, whose limit is a decision's own: its levels of choice."""
    limits = [max(SHALLOW_PASSES, len(d.choices)) for d in decisions]
    passes = [d.tokens.passes for d in decisions]
    return Promise(
        name='forward passes of a decision', unit='',
        limit=float(max(limits, default=SHALLOW_PASSES)),
        worst=max(map(float, passes), default=None),
        violations=sum(n > limit for n, limit in zip(passes, limits, strict=True)), n=len(passes),
    )


def _share(policy: Policy, frame: Applied) -> float:
    envelope = policy.envelope
    forward = envelope.max_forward_m_s if frame.linear_x_m_s >= 0 else envelope.max_reverse_m_s
    return max(
        _ratio(abs(frame.linear_x_m_s), forward),
        _ratio(abs(frame.angular_z_rad_s), envelope.max_turn_rad_s),
    )


def _ratio(value: float, limit: float) -> float:
    if value == 0.0:
        return 0.0
    return value / limit if limit > 0 else math.inf


# --- report.json ------------------------------------------------------------------------------


def document(run: Run) -> dict[str, object]:
    """Return the content of `report.json`: plain values, no number that is not finite."""
    statistics = summarise(run.records)
    found = spans(run.applied, run.end_ns)
    gaps = Percentiles.of(gaps_ms(run))
    return {
        'schema_version': SCHEMA_VERSION,
        'kind': run.kind,
        'title': run.title,
        'command': run.command,
        'started': run.started,
        'duration_s': (run.end_ns - run.begin_ns) / SECOND,
        'machine': asdict(run.machine),
        'model': None if run.model is None else asdict(run.model),
        'policy': {
            'name': run.policy.name,
            'file': run.policy_file,
            'budget_ms': run.policy.decision.budget_ms,
            'rate_hz': run.policy.decision.rate_hz,
            'max_observation_age_ms': run.policy.decision.max_observation_age_ms,
            'control_rate_hz': run.policy.control.rate_hz,
            'allowed_lateness_ms': run.policy.control.allowed_lateness_ms,
            'fallback_ladder': list(run.policy.fallback.ladder),
        },
        'decisions': _statistics(statistics),
        'gate': {
            'seconds_in_state': seconds_in_state(found),
            'fallbacks': [
                {'state': state, 'cause': cause, 'n': n}
                for (state, cause), n in fallbacks(found).most_common()
            ],
            'transitions': [
                {
                    'at_s': (after.begin_ns - run.begin_ns) / SECOND,
                    'from': before.state, 'to': after.state, 'cause': after.cause,
                }
                for before, after in itertools.pairwise(found) if before.state != after.state
            ],
            'limited_ticks': sum(frame.limited for frame in run.applied),
            'ticks': len(run.applied),
        },
        'command_gap_ms': {
            'seen_by': 'subscriber' if run.command_times_ns else 'publisher',
            'percentiles': None if gaps is None else asdict(gaps),
        },
        'collisions': run.collisions,
        'stolen_ms': run.stolen_ms,
        'promises': [
            {**asdict(promise), 'worst': _finite(promise.worst), 'ok': promise.ok,
             'rate_bound_95': promise.bound}
            for promise in check_promises(run)
        ],
        'notes': list(run.notes),
    }


def _statistics(statistics: Statistics) -> dict[str, object]:
    return {
        **asdict(statistics),
        'passes': {str(passes): n for passes, n in statistics.passes.items()},
        'served': statistics.served,
        'share_served': statistics.share_served,
        'passes_max': statistics.passes_max,
        'latency_p99_is_thin': statistics.latency_ms is None or statistics.latency_ms.thin,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinity; a worst without bound is null, and its violation is counted."""
    return value if value is not None and math.isfinite(value) else None


def write_report(run: Run, folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into `folder` and return their paths.

    Raises OperatorError when the folder cannot be written to, PackageMissingError without plotly.
    """
    try:
        # Imported here: the page needs plotly, and the table and the JSON do not.
        from smallm_ros.replay.page import page
    except ImportError as err:
        raise PackageMissingError(
            f'report.html needs {err.name}: pip install "smallm_ros[replay]"'
        ) from err
    content = document(run)
    json_path, html_path = folder / 'report.json', folder / 'report.html'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        json_path.write_text(
            json.dumps(content, indent=1, allow_nan=False) + '\n', encoding='utf-8'
        )
        html_path.write_text(page(run), encoding='utf-8')
    except OSError as err:
        raise OperatorError(f'{folder}: cannot write the report: {err.strerror}') from err
    return json_path, html_path


# --- the table for the terminal -----------------------------------------------------------------


def table(run: Run) -> str:
    """Return the run's figures as a compact table of at most COLUMNS columns."""
    statistics = summarise(run.records)
    found = spans(run.applied, run.end_ns)
    gaps = Percentiles.of(gaps_ms(run))
    seconds = (run.end_ns - run.begin_ns) / SECOND
    share = 100 * statistics.share_served
    rows: list[tuple[str, str]] = [
        (run.kind, f'{run.title}, policy {run.policy.name}, {seconds:.1f} s'),
        ('model', model_line(run.model)),
        ('machine', machine_line(run.machine)),
        ('decisions', f'{statistics.served} of {statistics.asked} ticks served ({share:.1f} %)'),
        ('latency', latency_line(statistics.latency_ms, run.policy.decision.budget_ms)),
        ('outcomes', ', '.join(
            f'{outcome} {n}' for outcome, n in statistics.outcomes.items()
            if n or outcome in ('missed', 'refused')
        )),
    ]
    rows += _listed('causes', [
        f'{cause.n} x {cause.outcome}{": " if cause.why else ""}{cause.why}'
        for cause in statistics.causes
    ])
    evaluated, reused = _p50(statistics.evaluated_tokens), _p50(statistics.reused_tokens)
    rows.append(('passes', (f'at most {statistics.passes_max}; tokens p50 {evaluated} evaluated, '
                           f'{reused} reused')))
    rows += answer_rows(statistics)
    rows += [
        (f'age {sensor}', f'{_percentiles(age)} ms') for sensor, age in statistics.ages_ms.items()
    ]
    rows.append(('gate', ', '.join(
        f'{state}{_TIED}{value:.1f}{_TIED}s' for state, value in seconds_in_state(found).items()
    ) or 'did not run'))
    rows += _listed('fallbacks', [
        f'{n} x {state}: {cause}' for (state, cause), n in fallbacks(found).most_common()
    ])
    if gaps is not None and run.kind == 'demo':  # a replay commands nobody
        rows.append(('cmd gap', f'{_percentiles(gaps)} ms (n={gaps.n})'))
    rows += [('note', note) for note in run.notes]
    width = max(len(name) for name, _ in rows)
    lines = []
    for name, text in rows:
        lines += textwrap.wrap(
            text, COLUMNS, initial_indent=f'{name:<{width}}  ',
            subsequent_indent=' ' * (width + 4), break_on_hyphens=False,
        )
    lines += ['', *_promise_lines(check_promises(run))]
    return '\n'.join(lines).replace(_TIED, ' ')


_TIED = '\xa0'
"""A space at which no line is broken."""


def _listed(name: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return a row for each of the first texts, the name before the first of them."""
    shown = list(texts[:LISTED]) or ['none']
    if len(texts) > LISTED:
        shown.append(f'and {len(texts) - LISTED} more in report.json')
    return [(name if index == 0 else '', text) for index, text in enumerate(shown)]


def model_line(model: ModelLimits | None) -> str:
    """Return the model in one line."""
    if model is None:
        return 'none was ready'
    where = f'{model.gpu_layers} layers on the GPU' if model.gpu_layers else 'CPU'
    return (
        f'{model.name}, sha256 {model.sha256[:12]}, {where}, {model.threads} '
        f'thread{"" if model.threads == 1 else "s"}, {model.cost_fixed_ns / MS:.1f} ms + '
        f'{model.cost_per_token_ns / MS:.2f} ms a token'
    )


def machine_line(machine: Machine) -> str:
    """Return the machine in one line."""
    return (
        f'{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, '
        f'Linux {machine.kernel}, Python {machine.python}'
    )


def latency_line(latency_ms: Percentiles | None, budget_ms: float) -> str:
    """Return the latency in one line: the number of samples stands beside the p99."""
    if latency_ms is None:
        return f'no decision; budget {budget_ms:g} ms'
    thin = ', few' if latency_ms.thin else ''
    return (
        f'p50 {latency_ms.p50:.0f}  p90 {latency_ms.p90:.0f}  p99 {latency_ms.p99:.0f} '
        f'(n={latency_ms.n}{thin})  max {latency_ms.max:.0f} ms; budget {budget_ms:g} ms'
    )


def answer_rows(statistics: Statistics) -> list[tuple[str, str]]:
    """Return how the answers came about: partial ones, plans, guesses, margins; (name, text)."""
    rows = [('partial', f'{statistics.partial} of {statistics.served} decisions')]
    if statistics.plans:
        rows.append(('plans', ', '.join(f'{n} x {plan}' for plan, n in statistics.plans.items())))
    if statistics.guessed_tokens:
        rows.append(('guesses', (f'{statistics.accepted_tokens} of {statistics.guessed_tokens} '
                                 'guessed tokens were right')))
    if statistics.margin is not None and statistics.margin_least is not None:
        rows.append(('margin', (f'p50 {statistics.margin.p50:.2f}, least '
                                f'{statistics.margin_least:.2f} of probability')))
    return rows


def _percentiles(values: Percentiles) -> str:
    return f'p50 {values.p50:.0f}  p99 {values.p99:.0f}  max {values.max:.0f}'


def _p50(values: Percentiles | None) -> str:
    return '-' if values is None else f'{values.p50:.0f}'


def _promise_lines(promises: Sequence[Promise]) -> list[str]:
    width = max(len(promise.name) for promise in promises)
    lines = [f'{"promise":<{width}}  {"limit":>9}  {"worst":>9}  {"broken":>6}  {"tried":>6}']
    for promise in promises:
        verdict = 'kept' if promise.ok else 'BROKEN'
        lines.append(
            f'{promise.name:<{width}}  {_amount(promise.limit, promise.unit):>9}  '
            f'{_amount(promise.worst, promise.unit):>9}  {promise.violations:>6}  '
            f'{promise.n:>6}  {verdict if promise.n else "not tried"}'
        )
    return lines


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return '-'
    return f'{value:.4g} {unit}'.rstrip()
