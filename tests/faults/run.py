"""Injects each fault so and so many times, writes down each injection at once, goes on later.

A run is a folder: `injections.jsonl` with a line for each injection, `traces/` with the gate's
rows around each that broke a promise, `logs/` of the processes, and `table.txt`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from smallm_ros import steady
from smallm_ros.core.clock import SECOND
from tests.faults.classes import Fault
from tests.faults.judge import Episode, judge, reacted
from tests.faults.system import Never, Setting, System

AROUND_NS = 2 * SECOND
REACTION_PATIENCE_S = 8.0


class Interrupted(Exception):
    """Somebody wants the run to end here."""


def inject(system: System, fault: Fault) -> dict[str, Any]:
    """Bring about one fault and its end; return what was measured and what was wrong."""
    system.until_driving()
    from_ns = steady.now_ns()  # what was before is the fault before this one
    system.pause(random.uniform(0.05, 0.3))  # at any phase of its ticks and decisions
    system.forget()
    elsewhere = fault.detect is not None
    found_ns, wrong = None, []
    began_ns = fault.inject(system)
    if fault.detect is not None:
        found_ns = fault.detect(system, began_ns)
    elif fault.leaves:
        with contextlib.suppress(Never):
            system.wait(lambda: any(reacted(row) for row in system.since(began_ns)),
                        'a reaction', REACTION_PATIENCE_S)
    system.pause(fault.hold_s)
    wrong += fault.check(system, began_ns)
    undone_ns = steady.now_ns()
    resumed_ns = None
    try:
        fault.undo(system)
        resumed_ns = system.until_driving(undone_ns)
    except (Never, AssertionError) as err:
        wrong.append(str(err))
    end_ns = steady.now_ns()
    episode = Episode(began_ns, undone_ns, resumed_ns, system.since(from_ns),
                      tuple(system.armed_ns), found_ns, elsewhere)
    verdict = judge(episode, fault.expected, system.policy)
    verdict.violations += wrong
    gap_end_ns = began_ns if fault.gaps else end_ns
    return {
        'fault': fault.name, 'dwells': system.setting.dwells,
        'real_engine': system.setting.real_engine, 'gate': system.priority(),
        **asdict(verdict),
        'seen_gap_ms': system.seen_gap_ms(from_ns, gap_end_ns),
        'canary_ms': system.canary_ms(from_ns, end_ns),
        'stolen_ms': system.stolen_ms(from_ns, end_ns),
        'took_s': (end_ns - began_ns) / SECOND,
        'episode': {'began_ns': began_ns, 'undone_ns': undone_ns, 'resumed_ns': resumed_ns,
                    'armed_ns': episode.armed_ns, 'reacted_ns': found_ns,
                    'elsewhere': elsewhere, 'rows': episode.rows,
                    'rows_before': system.since(from_ns - AROUND_NS)[:-len(episode.rows)]},
    }


class Run:
    """A folder of injections."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / 'injections.jsonl'

    def results(self) -> list[dict[str, Any]]:
        """Return every injection so far."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding='utf-8').splitlines()
        return [json.loads(line) for line in lines]

    def keep(self, result: dict[str, Any]) -> None:
        """Write one down; the rows only of one that broke a promise."""
        episode = result.pop('episode')
        if result['violations']:
            traces = self.folder / 'traces'
            traces.mkdir(exist_ok=True)
            number = len(list(traces.iterdir())) + 1
            name = result['fault'].replace(' ', '-').replace('/', '-')
            (traces / f'{number:03d}-{name}.json').write_text(
                json.dumps({**result, **episode}), encoding='utf-8')
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(result) + '\n')


def series(
    run: Run, wanted: Sequence[tuple[Fault, int]], setting: Setting,
) -> Iterator[str]:
    """Inject what `wanted` still lacks; yield a line on each step. Interrupted ends it."""
    done = Counter((r['fault'], r['dwells']) for r in run.results())
    todo = [(fault, max(0, n - done[fault.name, setting.dwells])) for fault, n in wanted]
    todo.sort(key=lambda each: (each[0].simulated, each[0].real_engine))
    left, total = sum(n for _, n in todo), sum(n for _, n in todo)
    began_ns = steady.now_ns()
    with Stage(run.folder / 'logs') as stage:
        for fault, n in todo:
            for number in range(1, n + 1):
                result = _once(stage, fault, setting)
                run.keep(result)
                left -= 1
                rest_s = (steady.now_ns() - began_ns) / SECOND / (total - left) * left
                yield (f'{fault.name} {number}/{n}: {_words(result)}; '
                       f'{total - left}/{total}, about {_clock(rest_s)} left')


def _once(stage: Stage, fault: Fault, setting: Setting) -> dict[str, Any]:
    wanted = replace(setting, simulated=fault.simulated, real_engine=fault.real_engine)
    system = None
    try:
        system = stage.system(wanted)
        if setting.dwells == 'shipped':  # they double when it comes back too often
            system.start_gate()
        result = inject(system, fault)
        if result['resume_ms'] is None:
            stage.clear()
        return result
    except (Never, OSError, AssertionError) as err:
        rows = system.rows[-100:] if system is not None else []
        stage.clear()
        return {
            'fault': fault.name, 'dwells': setting.dwells, 'real_engine': fault.real_engine,
            'gate': '', 'cause': '', 'causes': [], 'detection_ms': None, 'reaction_ms': None,
            'resume_ms': None, 'worst_gap_ms': 0.0, 'worst_late_ms': 0.0, 'late': [],
            'violations': [f'not injected: {err}'], 'seen_gap_ms': 0.0, 'canary_ms': 0.0,
            'stolen_ms': 0.0, 'took_s': 0.0, 'episode': {'rows': rows},
        }


class Stage:
    """The processes that are up, if any."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._system: System | None = None

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """End all processes."""
        if self._system is not None:
            self._system.close()
        self._system = None

    def system(self, setting: Setting) -> System:
        """Return the processes of a setting, started if need be."""
        if self._system is not None and self._system.setting != setting:
            self.clear()
        if self._system is None:
            self._system = System(setting, self._logs)
            self._system.start()
        return self._system


def _words(result: dict[str, Any]) -> str:
    if result['violations']:
        return 'BROKEN: ' + '; '.join(result['violations'])
    reaction, resume = result['reaction_ms'], result['resume_ms']
    return (f'{result["cause"] or "nothing"}'
            + (f' after {reaction:.0f} ms' if reaction is not None else '')
            + (f', back after {resume / 1000:.1f} s' if resume is not None else ''))


def _clock(seconds: float) -> str:
    return f'{seconds / 60:.0f} min' if seconds > 90 else f'{seconds:.0f} s'


# --- the table ------------------------------------------------------------------------------


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the table: one row for each fault and profile of dwells."""
    head = ('fault', 'dwells', 'N', 'broken', 'detect p50', 'p99', 'max', 'react p50', 'p99',
            'max', 'back p50 s', 'max', 'gap max', 'seen', 'canary', 'ratio', 'stolen',
            'bound 3/N')
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        kinds.setdefault((result['fault'], result['dwells']), []).append(result)
    rows = [head]
    for (fault, dwells), each in kinds.items():
        gap = max(r['worst_gap_ms'] for r in each)
        canary = max(r['canary_ms'] for r in each)
        late = max(r['worst_late_ms'] for r in each)
        rows.append((
            fault, dwells, str(len(each)), str(sum(bool(r['violations']) for r in each)),
            *_figures([r['detection_ms'] for r in each]),
            *_figures([r['reaction_ms'] for r in each]),
            *_figures([r['resume_ms'] / 1000 for r in each if r['resume_ms'] is not None],
                      digits=1)[::2],
            f'{gap:.0f}', f'{max(r["seen_gap_ms"] for r in each):.0f}', f'{canary:.1f}',
            f'{late / canary:.2f}' if canary else '-',
            f'{max(r["stolen_ms"] for r in each):.0f}',
            f'{3 / len(each):.1%}',
        ))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ['  '.join(cell.ljust(w) if i < 2 else cell.rjust(w)
                       for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
             for row in rows]
    gates = sorted({r['gate'] for r in results if r['gate']})
    found = Counter(text for r in results for text in r['violations'])
    return '\n'.join([
        *lines, '',
        f'milliseconds but where it says s; gate: {" / ".join(gates)}; {os.cpu_count()} cores; '
        f'{len(results)} injections, {sum(bool(r["violations"]) for r in results)} of them broke '
        'a promise',
        'gap max: between two commands by the watchdog\'s own log; seen: by a separate subscriber;'
        ' canary: how late a loop that only sleeps woke in the same stretches; ratio: the '
        'watchdog\'s greatest lateness over the canary\'s; stolen: core time that a hypervisor '
        'took in the worst injection',
        *(f'{n} x {text}' for text, n in found.most_common(40)), '',
    ])


def _figures(values: Sequence[float | None], digits: int = 0) -> tuple[str, str, str]:
    known = sorted(value for value in values if value is not None)
    if not known:
        return '-', '-', '-'

    def rank(q: float) -> float:
        return known[min(len(known) - 1, int(q * len(known)))]
    return f'{rank(0.5):.{digits}f}', f'{rank(0.99):.{digits}f}', f'{known[-1]:.{digits}f}'


def trace_of(content: dict[str, Any]) -> Episode:
    """Return the episode of a trace that was saved."""
    return Episode(
        content['began_ns'], content['undone_ns'], content['resumed_ns'], content['rows'],
        tuple(content['armed_ns']), content['reacted_ns'], content['elsewhere'])


