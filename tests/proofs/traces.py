"""Random traces of every fault over the real gate, on a virtual clock, each step judged.

    python -m tests.proofs.traces --steps 1000000 --each 10000 --hours 24
    python -m tests.proofs.traces --replay tests/proofs/saved/NAME.json

A campaign injects one class again and again into a driving robot: seen in time, clean, driving
again once it is over and an operator did what is due. A wander injects all classes in any order
and overlap. What breaks a rule is shrunk and saved as JSON (a setting and its events), which goes
again as a pure test. Virtual time is exact: the figures repeat with the seed, on any machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smallm_ros.core.cause import RESPONSES, WELL, Response
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.gate import TABLE, Output, State
from tests.proofs.faults import FAULTS, Params, apply
from tests.proofs.oracle import Oracle
from tests.proofs.robot import LADDERS, PERIOD_NS, Broken, Robot, Setting

HERE = Path(__file__).parent
FAILING = HERE / 'failing'
SAVED = HERE / 'saved'
CHUNK = 250
"""Injections of a class, or ticks of a wander, that one task does."""
WANDER_TICKS = 500
PATIENCE_NS = {'short': 6 * SECOND, 'shipped': 200 * SECOND}
"""Longest way back to driving once all is well; the shipped dwells add up to about ten seconds,
and each is up to eight times as long after many returns within a minute."""
LASTING_TICKS = 8

Row = tuple[State, Response, State]


@dataclass(slots=True)
class Tally:
    """What a run saw; tallies add up."""

    steps: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    detection_ms: dict[str, list[float]] = field(default_factory=dict)
    reaction_ms: dict[str, list[float]] = field(default_factory=dict)
    resume_ms: dict[str, list[float]] = field(default_factory=dict)
    overdue: Counter[str] = field(default_factory=Counter)
    states: Counter[State] = field(default_factory=Counter)
    rows: Counter[Row] = field(default_factory=Counter)
    backs: Counter[tuple[State, State]] = field(default_factory=Counter)
    trips: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.steps += other.steps
        self.trips += other.trips
        for mine, its in (
            (self.injected, other.injected), (self.seen, other.seen),
            (self.overdue, other.overdue),
        ):
            mine.update(its)
        self.states.update(other.states)
        self.rows.update(other.rows)
        self.backs.update(other.backs)
        for all_ms, more_ms in (
            (self.detection_ms, other.detection_ms), (self.reaction_ms, other.reaction_ms),
            (self.resume_ms, other.resume_ms),
        ):
            for name, values in more_ms.items():
                all_ms.setdefault(name, []).extend(values)
        self.failures += other.failures


class Run:
    """One robot under its oracle, counted."""

    def __init__(self, setting: Setting, tally: Tally) -> None:
        self.setting = setting
        self.tally = tally
        self.robot = Robot(setting)
        self.oracle = Oracle(self.robot)

    def step(self) -> Output:
        before = self.oracle.state
        try:
            out = self.robot.tick()
        except Exception as err:
            raise Broken(f'exception: {err!r} in tick {self.robot.ticks}') from err
        tally = self.tally
        tally.steps += 1
        tally.states[out.state] += 1
        worst = (out.findings[0] if out.findings else WELL).response
        if out.state is TABLE[before].on[worst]:
            tally.rows[before, worst, out.state] += 1
        else:
            tally.backs[before, out.state] += 1
        self.oracle.check(out)
        return out

    def apply(self, name: str, params: Params) -> None:
        apply(self.robot, name, params)

    def recover(self) -> float | None:
        """Heal all, let an operator be there; return the ms until the model drives again.

        None when it is latched, which only a start of the process ends.
        """
        self.apply('heal', {})
        self.apply('operate', {})
        began_ns = self.robot.now_ns
        while True:
            out = self.step()
            took_ns = self.robot.now_ns - began_ns
            if out.state is State.FAULT_LATCHED:
                return None
            if drives(out):
                return took_ns / MS
            if took_ns > PATIENCE_NS[self.setting.profile]:
                raise Broken(f'not driving {took_ns / MS:.0f} ms after all was well: '
                             f'{out.state.value}, {out.cause.value}, {out.detail}')


def drives(out: Output) -> bool:
    """Whether the model drives and the base is told to move."""
    return out.source == 'model' and out.velocity.linear_x_m_s != 0.0 and not out.findings


# --- a class, again and again ---------------------------------------------------------------


def campaign(name: str, count: int, seed: int) -> Tally:
    """Inject one class `count` times into a driving robot."""
    tally, rng = Tally(), random.Random(f'{name} {seed}')
    run: Run | None = None
    for _ in range(count):
        fault = FAULTS[name]
        if run is None or fault.fresh:
            setting = Setting(
                auto_arm=rng.random() < 0.5, wheels=rng.random() < 0.3,
                simulated=name.startswith('clock') or rng.random() < 0.5,
                ladder=rng.choice(sorted(LADDERS)),
            )
            run = Run(setting, tally)
        try:
            if not fault.fresh and (not run.robot.ticks or not drives_now(run)):
                run.recover()
            for _ in range(rng.randrange(1, 12)):
                run.step()
            if inject(run, name, rng):
                run = None
        except Broken as broken:
            tally.failures.append(save(name, seed, run, broken))
            run = None
    return tally


def drives_now(run: Run) -> bool:
    return run.robot.last is not None and drives(run.robot.last)


def inject(run: Run, name: str, rng: random.Random) -> bool:
    """Inject a class once, watch, recover; return whether a new robot is needed."""
    fault, robot, tally = FAULTS[name], run.robot, run.tally
    params = fault.draw(rng)
    must, borne, limit_ms = fault.must(params), fault.borne(params), fault.limit_ms(params)
    watched = bool(fault.causes) and must
    if fault.fresh:  # before the first step, or it would not be
        run.robot = robot = Robot(run.setting)
        run.oracle = Oracle(robot)
        robot.phase_ns = 0
    tally.injected[name] += 1
    robot.happened_ns = None
    if not fault.fresh:
        while not drives_now(run):
            if run.recover() is None:
                return True
    run.apply(name, params)
    seen_ms = reacted_ms = None
    lasting = rng.randrange(LASTING_TICKS) + (0 if watched else LASTING_TICKS)
    waited = 0
    while lasting >= 0:
        out = run.step()
        waited += 1
        if robot.happened_ns is None:
            if waited > 200:
                raise Broken(f'{name} never came about')
            continue
        since_ms = (robot.now_ns - robot.happened_ns) / MS
        if seen_ms is None and any(f.cause in fault.causes for f in out.findings):
            seen_ms = since_ms
        if reacted_ms is None and out.source != 'model':
            reacted_ms = since_ms
        if borne and (out.state is not State.ACTIVE or out.source != 'model'):
            raise Broken(f'{name} {params}: {out.state.value}, {out.cause.value}, {out.detail}')
        if watched and (seen_ms is None or reacted_ms is None):
            if since_ms > limit_ms:
                raise Broken(f'{name} {params}: neither seen nor reacted to after {since_ms:.1f} '
                             f'ms, limit {limit_ms:.0f}: {out.findings}')
            continue
        lasting -= 1
    if seen_ms is not None and reacted_ms is not None:
        tally.seen[name] += 1
        tally.detection_ms.setdefault(name, []).append(seen_ms)
        tally.reaction_ms.setdefault(name, []).append(reacted_ms)
    if fault.latches:
        run.apply('heal', {})
        for _ in range(3):
            run.apply('edges', {'arm': True, 'reset': True})
            if run.step().state is not State.FAULT_LATCHED:
                raise Broken(f'{name}: no longer latched')
        return True
    resume_ms = run.recover()
    if resume_ms is None:
        return True
    tally.resume_ms.setdefault(name, []).append(resume_ms)
    return False


# --- all classes, in any order --------------------------------------------------------------

WANDERED = sorted(FAULTS)
BY_RESPONSE = {
    response: [name for name in WANDERED if response is max(
        (RESPONSES[cause] for cause in FAULTS[name].causes), default=Response.NONE)]
    for response in Response
}
MEETING_TICKS = 12


def meet(run: Run, rng: random.Random) -> None:
    """Let one class come when another has just led somewhere and is over.

    Both are drawn by what they demand, so that rare rows of the table are taken too.
    """
    kinds = [response for response, names in BY_RESPONSE.items() if names]
    first, second = (rng.choice(BY_RESPONSE[rng.choice(kinds)]) for _ in range(2))
    for name in (first, second):
        run.apply('heal', {})
        run.apply(name, FAULTS[name].draw(rng))
        run.tally.injected[name] += 1
        for _ in range(MEETING_TICKS):
            if run.step().state is not State.ACTIVE and name is first:
                break


def wander(seed: int, ticks: int = WANDER_TICKS) -> Tally:
    """Let anything happen at any time for a while, then ask that it drives again."""
    tally, rng = Tally(), random.Random(f'wander {seed}')
    setting = Setting(
        auto_arm=rng.random() < 0.5, wheels=rng.random() < 0.5,
        profile='shipped' if rng.random() < 0.2 else 'short',
        simulated=rng.random() < 0.7, ladder=rng.choice(sorted(LADDERS)),
    )
    run = Run(setting, tally)
    rate = rng.choice([0.02, 0.05, 0.1, 0.3])
    names = rng.sample(WANDERED, rng.choice([2, 4, 8, len(WANDERED)]))  # few meet more often
    if rng.random() < 0.15:
        names = ['clock paused', *names[:2]]  # shows only while nothing worse does
    rare = {name for name, fault in FAULTS.items() if fault.latches}

    def befall() -> None:
        name = rng.choice(names)
        if name not in rare or rng.random() < 0.2:
            run.apply(name, FAULTS[name].draw(rng))
            tally.injected[name] += 1

    try:
        if rng.random() < 0.5:
            befall()
        while tally.steps < ticks:
            if rng.random() < rate:
                befall()
            if rng.random() < 0.03:
                run.apply('edges', {'arm': rng.random() < 0.5, 'reset': rng.random() < 0.5})
            if rng.random() < 0.05:
                run.apply('heal', {})
            if rng.random() < 0.02:
                run.apply('operate', {})
            if rng.random() < 0.01 and run.recover() is None:
                names = WANDERED
                for _ in range(20):
                    befall()
                    run.apply('edges', {'arm': True, 'reset': True})
                    run.step()
                names = rng.sample(WANDERED, 8)
                run = Run(setting, tally)
            if rng.random() < 0.01:
                meet(run, rng)
            run.step()
        run.recover()
    except Broken as broken:
        tally.failures.append(save('wander', seed, run, broken))
    return tally


def healthy(seed: int, seconds: int) -> Tally:
    """Drive without a fault; every state but ACTIVE after the start is a trip."""
    tally = Tally()
    run = Run(Setting(profile='shipped', wheels=bool(seed % 2)), tally)
    try:
        run.recover()
        for _ in range(seconds * SECOND // PERIOD_NS):
            out = run.step()
            if out.findings or out.state is not State.ACTIVE:
                tally.trips += 1
                raise Broken(f'trip in a healthy system: {out.state.value}, {out.detail}')
    except Broken as broken:
        tally.failures.append(save('healthy', seed, run, broken))
    return tally


# --- what failed ----------------------------------------------------------------------------


def save(name: str, seed: int, run: Run, broken: Broken) -> str:
    """Shrink what failed and save it; return where it lies and what broke."""
    trace = {
        'setting': asdict(run.setting), 'ticks': run.robot.ticks, 'says': str(broken),
        'events': run.robot.events,
    }
    if fails(trace):
        trace = shrunk(trace)
    FAILING.mkdir(exist_ok=True)
    path = FAILING / f'{name.replace(" ", "_")}-{seed}-{run.robot.ticks}.json'
    path.write_text(json.dumps(trace, indent=1) + '\n')
    return f'{path.name}: {broken}'


def replay(trace: dict[str, Any]) -> None:
    """Run a saved trace again; raises Broken where the gate breaks a rule."""
    run = Run(Setting(**trace['setting']), Tally())
    events = sorted(trace['events'], key=lambda event: int(event[0]))
    at = 0
    for tick in range(trace['ticks']):
        while at < len(events) and events[at][0] <= tick:
            run.apply(events[at][1], events[at][2])
            at += 1
        run.step()


def fails(trace: dict[str, Any]) -> bool:
    """Whether a replay breaks the same rule."""
    try:
        replay(trace)
    except Broken as broken:
        return str(broken).partition(':')[0] == trace['says'].partition(':')[0]
    return False


def shrunk(trace: dict[str, Any]) -> dict[str, Any]:
    """Leave out every event without which the trace fails all the same."""
    end = time.process_time() + 20  # long traces stay long rather than hold a run up
    for size in (64, 16, 4, 1):
        at = 0
        while at < len(trace['events']) and time.process_time() < end:
            fewer = {**trace, 'events': trace['events'][:at] + trace['events'][at + size:]}
            if fails(fewer):
                trace = fewer
            else:
                at += size
    return trace


# --- the whole ------------------------------------------------------------------------------

Task = tuple[Callable[..., Tally], tuple[Any, ...]]


def _do(task: Task) -> Tally:
    function, arguments = task
    return function(*arguments)


def _bound_memory() -> None:
    """Make an allocation that grows with a fault an exception, and so a violation."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))


def total(tasks: Iterable[Task], jobs: int) -> Tally:
    """Do tasks in processes; return all that they saw."""
    out = Tally()
    if jobs == 1:
        for task in tasks:
            out.add(_do(task))
        return out
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(jobs, spawn, _bound_memory) as pool:
        for tally in pool.map(_do, tasks):
            out.add(tally)
    return out


def injections(each: int, seed: int) -> list[Task]:
    """Return the tasks that inject every class `each` times."""
    return [
        (campaign, (name, min(CHUNK, each - done), seed + done))
        for done in range(0, each, CHUNK) for name in FAULTS
    ]


def wanders(steps: int, seed: int) -> list[Task]:
    """Return the tasks that take at least `steps` steps."""
    return [(wander, (seed + n,)) for n in range(-(-steps // WANDER_TICKS))]


def not_taken(tally: Tally) -> list[str]:
    """Return which states, rows of the table and ways back were never taken."""
    out = [f'state {state.value}' for state in State if not tally.states[state]]
    for state, row in TABLE.items():
        out += [
            f'{state.value} x {response.name}' for response in Response
            if not tally.rows[state, response, row.on[response]]
        ]
        if row.back is not None and not tally.backs[state, row.back]:
            out.append(f'{state.value} back to {row.back.value}')
    return out


def _p(values: list[float]) -> str:
    if not values:
        return f'{"-":>6} {"-":>6} {"-":>6}'
    p50, p99 = np.percentile(values, [50, 99])
    return f'{p50:6.0f} {p99:6.0f} {max(values):6.0f}'


def _print_classes(tally: Tally) -> None:
    print(f'{"virtual ms":26}{"injected":>9}{"seen":>7}  detection p50 p99 max   '
          f'reaction p50 p99 max   resume p50 p99 max')
    for name in FAULTS:
        print(f'{name:26}{tally.injected[name]:9}{tally.seen[name]:7}  '
              f'{_p(tally.detection_ms.get(name, [])):>21}  '
              f'{_p(tally.reaction_ms.get(name, [])):>21}  '
              f'{_p(tally.resume_ms.get(name, [])):>21}')


def _print_table(tally: Tally) -> None:
    print('row of the table', *(f'{r.name:>11}' for r in Response), '    way back')
    for state, row in TABLE.items():
        counts = ''.join(
            f'{tally.rows[state, r, row.on[r]]:12}' for r in Response)
        back = f'{row.back.value}: {tally.backs[state, row.back]}' if row.back else '-'
        print(f'{state.value:16}{counts}     {back}')


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.proofs.traces', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=0, help='steps of traces of all causes')
    parser.add_argument('--each', type=int, default=0, help='injections of each class')
    parser.add_argument('--hours', type=float, default=0.0, help='virtual hours of a healthy run')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--only', default='', help='only the classes with this in their name')
    parser.add_argument('--replay', type=Path, help='run one saved trace again')
    args = parser.parse_args(argv)
    if args.replay:
        replay(json.loads(args.replay.read_text()))
        print('no rule is broken')
        return 0
    failures: list[str] = []
    for what, tasks in (
        ('wander', wanders(args.steps, args.seed)),
        ('each', [t for t in injections(args.each, args.seed)
                  if args.only in t[1][0]]),
        ('healthy', [(healthy, (n, 1800)) for n in range(round(args.hours * 2))]),
    ):
        if not tasks:
            continue
        began_s = time.monotonic()
        tally = total(tasks, args.jobs)
        took_s = time.monotonic() - began_s
        print(f'\n{what}: {tally.steps} steps in {took_s:.0f} s '
              f'({tally.steps / took_s:.0f}/s, {args.jobs} processes), seed {args.seed}, '
              f'{sum(tally.injected.values())} injections, {len(tally.failures)} violations')
        if what == 'wander':
            _print_table(tally)
            lacks = not_taken(tally)
            print('every state and every row taken' if not lacks else
                  f'never taken: {", ".join(lacks)}')
            failures += lacks
        elif what == 'each':
            _print_classes(tally)
        else:
            hours = tally.steps * PERIOD_NS / SECOND / 3600
            print(f'{hours:.1f} virtual hours, {tally.trips} trips')
        failures += tally.failures
    for failure in failures[:40]:
        print('FAILED', failure)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
