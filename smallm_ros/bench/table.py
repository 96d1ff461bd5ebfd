"""The run on a terminal: what was measured, what it is held to, and what it predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from smallm_ros.bench.document import Change
from smallm_ros.bench.names import WORDS
from smallm_ros.bench.predict import predict
from smallm_ros.bench.result import (
    DIFFERS,
    SAME,
    TIE,
    Check,
    Figures,
    Run,
    checks,
    equality,
    figures,
)
from smallm_ros.replay.report import machine_line

FEW = 20
"""Rounds below which a p99 is the worst of a handful."""


def table(run: Run) -> str:
    """Return the whole text."""
    parts = ['\n'.join(heads(run))]
    if not run.kept:
        anyway = tuple(dataclasses.replace(r, left_out='') for r in run.rounds)
        parts.append('NOT COUNTED, for orientation: the rounds that were left out, all of them\n'
                     + _measured(dataclasses.replace(run, rounds=anyway)))
    else:
        parts += [
            'ms, medians of tokens and passes; x A and x B: p50 over floor A and over floor B\n'
            + _measured(run),
            'promised, and measured here\n'
            + grid(('', 'target', 'measured', 'holds'), [check_row(c) for c in checks(run)]),
            'PREDICTED from the counted tokens, p50 in ms; nothing here was run there\n'
            + grid(*predicted_rows(run)),
        ]
    said = equality_lines(run)
    if said:
        parts.append('\n'.join(said))
    return '\n\n'.join(parts)


def _measured(run: Run) -> str:
    names = ('', 'p50', 'p99', 'max', 'passes', 'tokens', 'x A', 'x B', 'host p50', 'host p99')
    return grid(names, [_row(f) for f in figures(run)])


def heads(run: Run) -> list[str]:
    """Return the conditions, a line each."""
    conditions = run.conditions
    gone = len(run.rounds) - len(run.kept)
    lines = [
        f'model     {conditions.model}, sha256 {conditions.model_sha256[:16]}, template '
        f'{conditions.template}, context {conditions.context_tokens}, KV {conditions.kv_type}',
        f'machine   {machine_line(run.machine)}' + (
            f', {conditions.accelerator}' if conditions.accelerator else ''),
        f'threads   {conditions.threads}, {conditions.gpu_layers} layers on a GPU; load '
        f'{run.load[0]:.1f} before, {run.load[1]:.1f} after; llama-cpp-python '
        f'{conditions.llama_cpp_python}' + (
            f', xllamacpp {conditions.xllamacpp}' if conditions.xllamacpp else ''),
        f'policy    {conditions.policy}, {conditions.declaration}, seed {conditions.seed}',
        f'rounds    n = {len(run.kept)} of {len(run.rounds)}; {gone} left out: {conditions.rule}',
    ]
    if 0 < len(run.kept) < FEW:
        lines.append(f'          n = {len(run.kept)} is few: p99 is nearly the worst of them')
    if not run.kept:
        lines.append('          nothing is left to compare: run it on a quieter machine')
    reasons = sorted({r.left_out.split()[0] for r in run.rounds if r.left_out})
    if reasons:
        lines.append(f'          because of: {", ".join(reasons)}')
    return lines + [f'note      {note}' for note in run.notes]


def _row(figure: Figures) -> tuple[str, ...]:
    return (
        WORDS[figure.arm], f'{figure.took.p50:.1f}', f'{figure.took.p99:.1f}',
        f'{figure.took.max:.1f}', f'{figure.passes:g}', f'{figure.evaluated:g}',
        amount(figure.over_floor_a), amount(figure.over_floor_b),
        *host_cells(figure),
    )


def host_cells(figure: Figures) -> tuple[str, str]:
    """Return p50 and p99 of the host's time, empty where it is not known."""
    host = figure.host
    return ('', '') if host is None else (amount(host.p50), amount(host.p99))


def amount(value: float | None) -> str:
    """Return a ratio or milliseconds to two places; nothing for None."""
    return '' if value is None else f'{value:.2f}'


def check_row(check: Check) -> tuple[str, str, str, str]:
    """Return a check as the table's cells."""
    verdict = {True: 'yes', False: 'NO', None: 'not measured'}[check.holds]
    return check.name, check.target, amount(check.measured), verdict


def predicted_rows(run: Run) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the heads and the rows of the prediction: an arm a row, a device a column."""
    devices = predict(run)
    return ('', *(d.device for d in devices)), [
        (WORDS[arm], *(f'{d.p50_ms[arm]:.0f}' for d in devices)) for arm in run.arms
    ]


def equality_lines(run: Run) -> list[str]:
    """Return how the tree's answers compare with stepwise decoding, an arm a line."""
    return [
        f'{WORDS[arm]}: {counts[SAME]} answers as stepwise, {counts[TIE]} ties, '
        f'{counts[DIFFERS]} different'
        for arm, counts in equality(run).items()
    ]


def change_lines(changes: Sequence[Change]) -> str:
    """Return the comparison with an older run."""
    if not changes:
        return 'no arm has rounds that count in both'
    rows = [(WORDS[c.arm], f'{c.before_ms:.1f}', f'{c.now_ms:.1f}', f'{c.ratio:.2f}')
            for c in changes]
    return 'p50 in ms, then and now\n' + grid(('', 'then', 'now', 'ratio'), rows)


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows in columns, the first to the left, numbers to the right."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip() for line in lines
    )
