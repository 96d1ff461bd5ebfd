"""`report.html`: one file that opens without a network and can be read in a minute.

The order is that of the questions: was it on time, were the promises kept, where did the time go,
what did the gate do, where did the robot drive. Text from outside is escaped wherever it lands.
"""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from plotly.offline import get_plotlyjs

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.decision_record import OUTCOMES, DecisionRecord, Statistics, summarise
from smallm_ros.replay.report import (
    Pose,
    Promise,
    Run,
    Shape,
    Span,
    answer_rows,
    check_promises,
    fallbacks,
    machine_line,
    model_line,
    seconds_in_state,
    spans,
)

STATE_COLOURS = {
    'STANDBY': '#d5dae0', 'HOLD': '#a3adb8', 'ACTIVE': '#2e7d5b', 'DEGRADED': '#d9a514',
    'FALLBACK': '#dd6b20', 'SAFE_STOP': '#c5352b', 'ESTOP_LATCHED': '#7b2d8b',
    'FAULT_LATCHED': '#4a1010',
}
OUTCOME_COLOURS = {
    'decided': '#2b6cb0', 'unsure': '#d9a514', 'missed': '#c5352b', 'refused': '#dd6b20',
    'cancelled': '#7a8691', 'unfit': '#7b2d8b', 'idle': '#b9c2ca', 'no_engine': '#4a1010',
}
INK, PALE, LINE = '#1f2933', '#5f6c79', '#e3e8ed'

Trace = Mapping[str, object]


def page(run: Run) -> str:
    """Return the whole page, plotly's 5 MB of JavaScript in it."""
    statistics = summarise(run.records)
    found = spans(run.applied, run.end_ns)
    promises = check_promises(run)
    figures = [
        ('latency', 'Decision latency', ('Arrival of the newest required reading to the known '
         'outcome, of decided ticks.'), _histogram(run, statistics)),
        ('course', 'Latency over the run', ('Every decision tick; what did not become a decision '
         'is marked where it ended, at most a little above the budget.'), _course(run)),
        ('gate', 'The gate', "The watchdog's state machine: who was allowed to move the base."
         if run.kind == 'demo' else 'The gate beside the recording: what it would have allowed. '
         'A replay does not move the robot.', _timeline(run, found)),
    ]
    if run.trail or run.outline:
        figures.append(('path', 'Path driven', ('From above, in metres, coloured by the state of '
                        'the gate.'), _path(run, found)))
    title = f'{run.kind} · {run.title}'
    body = ''.join((
        _head(run, title), _tiles(run, statistics, promises), _promises(promises),
        ''.join(
            f'<section><h2>{html.escape(name)}</h2><p class="what">{html.escape(what)}</p>'
            f'<div id="{key}" class="figure"></div></section>'
            for key, name, what, _ in figures
        ),
        _causes(statistics, found), _answers(statistics), _ages(statistics), _foot(run),
    ))
    plots = ''.join(
        f'Plotly.newPlot("{key}",{_json(traces)},{_json(layout)},'
        '{displaylogo:false,responsive:true,displayModeBar:false});'
        for key, _, _, (traces, layout) in figures
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{_STYLE}</style>'
        f'<script>{get_plotlyjs()}</script></head><body><main>{body}</main>'
        f'<script>{plots}</script></body></html>\n'
    )


def _json(value: object) -> str:
    # A script ends at the first `</script`, wherever it stands.
    return json.dumps(value, separators=(',', ':'), allow_nan=False).replace('</', '<\\/')


# --- text ---------------------------------------------------------------------------------------


def _head(run: Run, title: str) -> str:
    lines = [
        ('policy', f'{run.policy.name} ({run.policy_file})'),
        ('model', model_line(run.model)),
        ('machine', machine_line(run.machine)),
        ('run', f'{run.started}, {(run.end_ns - run.begin_ns) / SECOND:.1f} s'),
    ]
    rows = ''.join(f'<dt>{name}</dt><dd>{html.escape(text)}</dd>' for name, text in lines)
    return f'<header><h1>{html.escape(title)}</h1><dl>{rows}</dl></header>'


def _tiles(run: Run, statistics: Statistics, promises: Sequence[Promise]) -> str:
    latency = statistics.latency_ms
    tried = [promise for promise in promises if promise.n or not promise.ok]
    broken = [promise for promise in tried if not promise.ok]
    tiles = []
    if latency is None:
        tiles.append(('no decision', f'budget {run.policy.decision.budget_ms:g} ms', 'bad'))
    else:
        thin = ', few' if latency.thin else ''
        tiles += [
            (f'{latency.p50:.0f} ms', 'p50 of decision latency', ''),
            (f'{latency.p99:.0f} ms', f'p99 (n = {latency.n}{thin})', ''),
            (f'{latency.max:.0f} ms',
             f'max; budget {run.policy.decision.budget_ms:g} ms',
             'good' if latency.max <= run.policy.decision.budget_ms else 'bad'),
        ]
    tiles.append((
        f'{100 * statistics.share_served:.1f} %',
        f'ticks served, {statistics.served} of {statistics.asked}', '',
    ))
    if run.collisions is not None:
        tiles.append((str(run.collisions), 'collisions', 'bad' if run.collisions else 'good'))
    untried = len(promises) - len(tried)
    tiles.append((
        f'{len(tried) - len(broken)} of {len(tried)}',
        'promises kept' + (f', {untried} not tried' if untried else ''),
        'bad' if broken else 'good',
    ))
    return '<div class="tiles">' + ''.join(
        f'<div class="tile {tone}"><b>{html.escape(value)}</b><span>{html.escape(name)}</span>'
        '</div>' for value, name, tone in tiles
    ) + '</div>'


def _promises(promises: Sequence[Promise]) -> str:
    rows = []
    for promise in promises:
        verdict = ('kept', 'good') if promise.ok else ('broken', 'bad')
        if promise.n == 0:
            verdict = ('not tried', 'pale')
        bound = '' if promise.bound is None or promise.n < 10 else (
            f'rate below {100 * promise.bound:.2g} %'
        )
        rows.append((
            html.escape(promise.name), _amount(promise.limit, promise.unit),
            _amount(promise.worst, promise.unit), str(promise.violations), str(promise.n),
            bound, f'<em class="{verdict[1]}">{verdict[0]}</em>',
        ))
    what = (
        'How often each was tried and broken. None broken in n tries still allows a rate below '
        '3/n, at 95 % confidence.'
    )
    return f'<section><h2>Promises</h2><p class="what">{what}</p>' + _table(
        ('promise', 'limit', 'worst', 'broken', 'tried', 'at 95 %', ''), rows, text_columns=1
    ) + '</section>'


def _causes(statistics: Statistics, found: Sequence[Span]) -> str:
    ticks = [
        (html.escape(cause.outcome), html.escape(cause.why), str(cause.n))
        for cause in statistics.causes
    ]
    states = [
        (html.escape(state), html.escape(cause), str(n))
        for (state, cause), n in fallbacks(found).most_common()
    ]
    seconds = [
        (html.escape(state), f'{value:.1f}') for state, value in seconds_in_state(found).items()
    ]
    return (
        '<section><h2>Causes</h2><p class="what">Ticks without a decision, # for any number; what '
        'made the gate more careful; where its time went.</p><div class="pair">'
        + _table(('tick', 'why it did not decide', 'n'), ticks, text_columns=2)
        + _table(('gate went to', 'cause', 'n'), states, text_columns=2)
        + _table(('state', 'seconds'), seconds, text_columns=1)
        + '</div></section>'
    )


def _answers(statistics: Statistics) -> str:
    rows = [(name, html.escape(text)) for name, text in answer_rows(statistics)]
    what = (
        'Partial: cut short by the deadline, with the declared parameters. Plans: levels of '
        'choice a pass. Margin: the lead over the likeliest other answer.'
    )
    return f'<section><h2>Answers</h2><p class="what">{what}</p>' + _table(
        ('', ''), rows, text_columns=2
    ) + '</section>'


def _ages(statistics: Statistics) -> str:
    found = [(f'age of {name}, ms', values) for name, values in statistics.ages_ms.items()]
    for name, values in (
        ('tokens of the prompt', statistics.prompt_tokens),
        ('tokens evaluated', statistics.evaluated_tokens),
        ('tokens reused from KV', statistics.reused_tokens),
    ):
        if values is not None:
            found.append((name, values))
    rows = [
        (html.escape(name), f'{v.p50:.0f}', f'{v.p90:.0f}', f'{v.p99:.0f}', f'{v.max:.0f}',
         str(v.n))
        for name, v in found
    ]
    passes = ', '.join(f'{k} in {n} decisions' for k, n in statistics.passes.items()) or 'none'
    return (
        '<section><h2>Ages and tokens</h2>'
        + _table(('', 'p50', 'p90', 'p99', 'max', 'n'), rows, text_columns=1)
        + f'<p class="what">Forward passes: {passes}.</p></section>'
    )


def _foot(run: Run) -> str:
    notes = ''.join(f'<li>{html.escape(note)}</li>' for note in run.notes)
    versions = ', '.join(f'{k} {v}' for k, v in run.machine.packages.items())
    return (
        f'<footer>{f"<ul>{notes}</ul>" if notes else ""}'
        f'<p>Repeat: <code>{html.escape(run.command)}</code></p>'
        f'<p>{html.escape(versions)}</p></footer>'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int) -> str:
    """Return a table of cells that are HTML already."""
    def cells(tag: str, values: Sequence[str]) -> str:
        return ''.join(
            f'<{tag}{"" if i < text_columns else " class=n"}>{value}</{tag}>'
            for i, value in enumerate(values)
        )

    body = ''.join(f'<tr>{cells("td", row)}</tr>' for row in rows)
    body = body or f'<tr><td colspan={len(head)} class="pale">none</td></tr>'
    return f'<table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table>'


def _amount(value: float | None, unit: str) -> str:
    return '–' if value is None else f'{value:.4g} {unit}'.rstrip()


# --- figures --------------------------------------------------------------------------------


def _layout(**more: object) -> dict[str, object]:
    axis: dict[str, object] = {
        'gridcolor': LINE, 'linecolor': '#b8c2cc', 'zeroline': False, 'ticks': 'outside',
        'tickcolor': '#b8c2cc', 'title': {'font': {'size': 12, 'color': PALE}},
    }
    layout: dict[str, object] = {
        'font': {'family': _FONT, 'size': 12, 'color': INK},
        'paper_bgcolor': '#fff', 'plot_bgcolor': '#fff',
        'margin': {'l': 60, 'r': 20, 't': 28, 'b': 44},
        'legend': {'orientation': 'h', 'y': 1.0, 'yanchor': 'bottom', 'x': 0},
        'hoverlabel': {'font': {'family': _FONT}},
    }
    for key, value in more.items():
        if isinstance(value, dict) and key.startswith(('xaxis', 'yaxis')):
            title = {'text': value.pop('title', ''), 'font': {'size': 12, 'color': PALE}}
            layout[key] = {**axis, **value, 'title': title}
        else:
            layout[key] = value
    return layout


def _histogram(run: Run, statistics: Statistics) -> tuple[list[Trace], Trace]:
    values = [r.latency_ns / MS for r in run.records if r.outcome == 'decided']
    budget_ms = run.policy.decision.budget_ms
    marks = [(budget_ms, f'budget {budget_ms:g}', '#c5352b', 'solid')]
    if (latency := statistics.latency_ms) is not None:
        marks += [
            (latency.p50, 'p50', PALE, 'dot'), (latency.p99, 'p99', PALE, 'dot'),
            (latency.max, 'max', PALE, 'dot'),
        ]
    top = max([budget_ms, *values])
    size = top * 1.05 / 60
    return [{
        'type': 'histogram', 'x': [round(v, 2) for v in values],
        'xbins': {'start': 0, 'end': top * 1.05, 'size': size},
        'marker': {'color': OUTCOME_COLOURS['decided']},
        'hovertemplate': '%{x} ms: %{y} decisions<extra></extra>',
    }], _layout(
        height=260, bargap=0.06, showlegend=False,
        xaxis={'title': 'ms', 'range': [0, top * 1.05]}, yaxis={'title': 'decisions'},
        shapes=[{
            'type': 'line', 'x0': x, 'x1': x, 'yref': 'paper', 'y0': 0, 'y1': 1,
            'line': {'color': colour, 'width': 1.5, 'dash': dash},
        } for x, _, colour, dash in marks],
        annotations=_labels(marks, top),
    )


def _labels(marks: Sequence[tuple[float, str, str, str]], top: float) -> list[Trace]:
    """Return one label a mark; marks that stand too close together share a label."""
    groups: list[list[tuple[float, str, str, str]]] = []
    for mark in sorted(marks, key=lambda mark: mark[0]):
        if groups and mark[0] - groups[-1][-1][0] < 0.05 * top:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    return [{
        'x': group[-1][0], 'yref': 'paper', 'y': 1, 'yanchor': 'bottom', 'showarrow': False,
        'text': ', '.join(name for _, name, _, _ in group),
        'font': {'color': group[-1][2], 'size': 11},
    } for group in groups]


def _course(run: Run) -> tuple[list[Trace], Trace]:
    budget_ms = run.policy.decision.budget_ms
    ceiling_ms = 1.15 * budget_ms

    def height(record: DecisionRecord) -> float:
        if record.outcome == 'decided':
            return record.latency_ns / MS
        if record.arrival_ns == 0:
            return 0.0
        return min(ceiling_ms, max(0.0, record.latency_ns / MS))

    traces: list[Trace] = []
    for outcome in OUTCOMES:
        some = [r for r in run.records if r.outcome == outcome]
        if some:
            traces.append({
                'type': 'scatter', 'mode': 'markers', 'name': f'{outcome} {len(some)}',
                'x': [_seconds(run, r.tick_ns) for r in some],
                'y': [round(height(r), 2) for r in some],
                'text': [_hover(r) for r in some],
                'hovertemplate': '%{x:.2f} s: %{text}<extra></extra>',
                'marker': {
                    'color': OUTCOME_COLOURS[outcome], 'size': 5 if outcome == 'decided' else 8,
                    'symbol': 'circle' if outcome == 'decided' else 'x-thin',
                    'line': {'color': OUTCOME_COLOURS[outcome],
                             'width': 0 if outcome == 'decided' else 2},
                },
            })
    return traces, _layout(
        height=300, showlegend=True,
        xaxis={'title': 'seconds', 'range': [0, _seconds(run, run.end_ns)]},
        yaxis={'title': 'ms', 'rangemode': 'tozero'},
        shapes=[{
            'type': 'line', 'xref': 'paper', 'x0': 0, 'x1': 1, 'y0': budget_ms, 'y1': budget_ms,
            'line': {'color': '#c5352b', 'width': 1.5},
        }],
        annotations=[{
            'xref': 'paper', 'x': 1, 'xanchor': 'right', 'y': budget_ms, 'yanchor': 'bottom',
            'text': f'budget {budget_ms:g} ms', 'showarrow': False,
            'font': {'color': '#c5352b', 'size': 11},
        }],
    )


def _hover(record: DecisionRecord) -> str:
    if record.outcome == 'decided':
        words = ' '.join((record.action, *record.parameters.values()))
        cut = ', partial' if record.partial else ''
        return html.escape(f'{words}, {record.latency_ns / MS:.0f} ms{cut}')
    return html.escape(f'{record.outcome}: {record.why}')


def _timeline(run: Run, found: Sequence[Span]) -> tuple[list[Trace], Trace]:
    present = [state for state in STATE_COLOURS if any(s.state == state for s in found)]
    traces: list[Trace] = []
    for state in reversed(present):
        some = [s for s in found if s.state == state]
        traces.append({
            'type': 'bar', 'orientation': 'h', 'name': state, 'y': [state] * len(some),
            'base': [_seconds(run, s.begin_ns) for s in some],
            'x': [round((s.end_ns - s.begin_ns) / SECOND, 3) for s in some],
            'text': [html.escape(s.cause) for s in some], 'textposition': 'none',
            'hovertemplate': '%{base:.2f} s, for %{x:.2f} s: %{text}<extra></extra>',
            'marker': {'color': STATE_COLOURS[state]}, 'width': 0.7,
        })
    return traces, _layout(
        height=90 + 34 * max(1, len(present)), showlegend=False, barmode='overlay',
        margin={'l': 130, 'r': 20, 't': 8, 'b': 44},
        xaxis={'title': 'seconds', 'range': [0, _seconds(run, run.end_ns)]}, yaxis={},
    )


def _path(run: Run, found: Sequence[Span]) -> tuple[list[Trace], Trace]:
    traces: list[Trace] = [_obstacle(shape) for shape in run.outline]
    named: set[str] = set()
    for state, stretch in _stretches(run.trail, found):
        traces.append({
            'type': 'scatter', 'mode': 'lines', 'name': state, 'legendgroup': state,
            'showlegend': state not in named, 'hoverinfo': 'skip',
            'x': [round(p.x_m, 3) for p in stretch], 'y': [round(p.y_m, 3) for p in stretch],
            'line': {'color': STATE_COLOURS.get(state, INK), 'width': 3},
        })
        named.add(state)
    for name, symbol, pose in (
        ('start', 'circle-open', run.trail[0] if run.trail else None),
        ('end', 'square', run.trail[-1] if run.trail else None),
    ):
        if pose is not None:
            traces.append({
                'type': 'scatter', 'mode': 'markers', 'name': name, 'x': [round(pose.x_m, 3)],
                'y': [round(pose.y_m, 3)], 'hovertemplate': name + '<extra></extra>',
                'marker': {'symbol': symbol, 'size': 10, 'color': INK},
            })
    return traces, _layout(
        height=600, showlegend=True,
        xaxis={'title': 'x, m'}, yaxis={'title': 'y, m', 'scaleanchor': 'x'},
    )


def _obstacle(shape: Shape) -> Trace:
    if shape.kind == 'circle':
        radius = shape.length_m / 2
        turns = [2 * math.pi * k / 36 for k in range(37)]
        corners = [(radius * math.cos(a), radius * math.sin(a)) for a in turns]
    else:
        x, y = shape.length_m / 2, shape.width_m / 2
        corners = [(-x, -y), (x, -y), (x, y), (-x, y), (-x, -y)]
    cos, sin = math.cos(shape.yaw_rad), math.sin(shape.yaw_rad)
    return {
        'type': 'scatter', 'mode': 'lines', 'fill': 'toself', 'fillcolor': '#dfe4ea',
        'line': {'color': '#8895a3', 'width': 1}, 'showlegend': False, 'hoveron': 'fills',
        'name': html.escape(shape.name), 'hoverinfo': 'name',
        'x': [round(shape.x_m + cos * x - sin * y, 3) for x, y in corners],
        'y': [round(shape.y_m + sin * x + cos * y, 3) for x, y in corners],
    }


def _stretches(
    trail: Sequence[Pose], found: Sequence[Span]
) -> Iterable[tuple[str, list[Pose]]]:
    """Cut the trail where the gate's state changes; neighbours share a point."""
    states: list[str] = []
    index = 0
    for pose in trail:
        while index + 1 < len(found) and found[index + 1].begin_ns <= pose.steady_ns:
            index += 1
        states.append(found[index].state if found else 'no gate')
    begin = 0
    for state, group in itertools.groupby(states):
        end = begin + len(list(group))
        yield state, list(trail[begin:end + 1])
        begin = end


def _seconds(run: Run, steady_ns: int) -> float:
    return round((steady_ns - run.begin_ns) / SECOND, 3)


_FONT = 'system-ui, -apple-system, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif'

_STYLE = f"""
*{{box-sizing:border-box}}
body{{margin:0;background:#f4f6f8;color:{INK};font:15px/1.5 {_FONT}}}
main{{max-width:1040px;margin:0 auto;padding:32px 24px 48px}}
h1{{font-size:26px;font-weight:600;margin:0 0 12px;letter-spacing:-.01em}}
h2{{font-size:17px;font-weight:600;margin:0 0 4px}}
dl{{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:0;font-size:13.5px}}
dt,.what,.pale,footer{{color:{PALE}}}dd{{margin:0}}
.what{{margin:0 0 8px;font-size:13.5px}}
section,.tile{{background:#fff;border:1px solid {LINE};border-radius:8px}}
section{{padding:18px 20px;margin:16px 0}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px;
margin:20px 0 0}}
.tile{{padding:14px 16px;border-top:3px solid #b8c2cc}}
.tile b{{display:block;font-size:24px;font-weight:600;line-height:1.2;
font-variant-numeric:tabular-nums}}
.tile span{{font-size:12.5px;color:{PALE}}}
.tile.good{{border-top-color:#2e7d5b}}.tile.bad{{border-top-color:#c5352b}}
table{{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}}
th{{text-align:left;font-weight:500;color:{PALE};border-bottom:1px solid #b8c2cc;padding:5px 10px}}
td{{border-bottom:1px solid {LINE};padding:5px 10px;vertical-align:top}}
tr:last-child td{{border-bottom:0}}
.n{{text-align:right;white-space:nowrap}}
em{{font-style:normal;font-weight:600}}em.good{{color:#2e7d5b}}em.bad{{color:#c5352b}}
em.pale{{font-weight:400}}
.pair{{display:grid;grid-template-columns:5fr 4fr 2fr;gap:24px;align-items:start}}
.figure{{width:100%}}
footer{{font-size:12.5px;padding:4px 4px 0}}footer ul{{padding-left:18px}}
code{{font-family:ui-monospace,"DejaVu Sans Mono",monospace}}
@media(max-width:760px){{.pair{{grid-template-columns:1fr}}}}
@media print{{body{{background:#fff}}section{{break-inside:avoid}}}}
"""
