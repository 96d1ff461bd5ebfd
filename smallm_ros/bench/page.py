"""`bench.html`: the run as one file that opens without a network.

Every decision of every arm, where its time went beside the floor, how it went over the run, and
what the counted tokens predict for other devices.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence

from plotly.offline import get_plotlyjs

from smallm_ros.bench.names import FLOOR_B, FLOORS, OURS_WORDS, WORDS
from smallm_ros.bench.predict import THIS, predict
from smallm_ros.bench.result import Run, checks, figures
from smallm_ros.bench.table import (
    amount,
    check_row,
    equality_lines,
    heads,
    host_cells,
    predicted_rows,
)
from smallm_ros.core.clock import MS

INK, PALE, LINE = '#1f2933', '#5f6c79', '#e3e8ed'
OURS_COLOUR, FLOOR_COLOUR, OTHER_COLOUR = '#2b6cb0', '#8895a3', '#dd6b20'
ROW_PX = 38

Trace = Mapping[str, object]


def page(run: Run) -> str:
    """Return the whole page, plotly's 5 MB of JavaScript in it."""
    figures_of = [
        ('decisions', 'Every decision', 'Milliseconds of each decision in the rounds that count; '
         'the line in a box is the median.', _decisions(run)),
        ('course', 'Over the run', 'Round by round; those that were left out are hollow.',
         _course(run)),
        ('predicted', 'Predicted for other devices', 'From the tokens and passes that were '
         'counted here and each device\'s published costs with a 24B model: a prediction, nothing '
         'was run there.', _predicted(run)),
    ] if run.kept else []
    title = f'bench · {run.conditions.model}'
    body = ''.join((
        f'<header><h1>{html.escape(title)}</h1><pre>{html.escape(chr(10).join(heads(run)))}</pre>'
        '</header>',
        _measured(run), _promised(run),
        ''.join(
            f'<section><h2>{html.escape(name)}</h2><p>{html.escape(what)}</p>'
            f'<div id="{key}"></div>{_sources(run) if key == "predicted" else ""}</section>'
            for key, name, what, _ in figures_of
        ),
        f'<footer><code>{html.escape(run.command)}</code>, {html.escape(run.started)}</footer>',
    ))
    plots = ''.join(
        f'Plotly.newPlot("{key}",{_json(traces)},{_json(layout)},'
        '{displaylogo:false,responsive:true,displayModeBar:false});'
        for key, _, _, (traces, layout) in figures_of
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


def _measured(run: Run) -> str:
    rows = [
        (WORDS[f.arm], f'{f.took.p50:.1f}', f'{f.took.p99:.1f}', f'{f.took.max:.1f}',
         f'{f.passes:g}', f'{f.evaluated:g}', f'{f.reused:g}', amount(f.over_floor_a),
         amount(f.over_floor_b), *host_cells(f))
        for f in figures(run)
    ]
    said = ''.join(f'<p>{html.escape(line)}</p>' for line in equality_lines(run))
    what = ('Milliseconds; passes and tokens are medians; host is what is left of a decision '
            'outside llama_decode.')
    return f'<section><h2>Measured</h2><p>{what}</p>' + _table(
        ('', 'p50', 'p99', 'max', 'passes', 'tokens', 'reused', 'x floor A', 'x floor B',
         'host p50', 'host p99'), rows) + said + '</section>'


def _promised(run: Run) -> str:
    return '<section><h2>Promised</h2>' + _table(
        ('', 'target', 'measured', 'holds'), [check_row(c) for c in checks(run)]
    ) + '</section>'


def _sources(run: Run) -> str:
    listed = ''.join(
        f'<li>{html.escape(p.device)}: {html.escape(p.method)}</li>' for p in predict(run)
    )
    return _table(*predicted_rows(run)) + f'<ul>{listed}</ul>'


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return '<tr>' + ''.join(
            f'<{tag}{"" if i == 0 else " class=n"}>{html.escape(cell)}</{tag}>'
            for i, cell in enumerate(cells)
        ) + '</tr>'
    return f'<table>{line(names, "th")}{"".join(line(row, "td") for row in rows)}</table>'


def _colour(arm: str) -> str:
    if arm in (*FLOORS, OURS_WORDS):
        return OURS_COLOUR
    return FLOOR_COLOUR if arm in (*FLOORS.values(), FLOOR_B) else OTHER_COLOUR


def _decisions(run: Run) -> tuple[list[Trace], Trace]:
    traces: list[Trace] = [
        {
            'type': 'box', 'orientation': 'h', 'name': WORDS[arm], 'boxpoints': 'all',
            'jitter': 0.5, 'pointpos': 0, 'marker': {'size': 4, 'color': _colour(arm)},
            'line': {'color': _colour(arm)}, 'showlegend': False,
            'x': [round(s.took_ns / MS, 2) for s in run.shots(arm)],
        }
        for arm in reversed(run.arms)
    ]
    return traces, _layout(
        height=90 + ROW_PX * len(traces), xaxis={'title': 'ms', 'rangemode': 'tozero'},
        margin={'l': 330, 'r': 16, 't': 8, 'b': 44},
    )


def _course(run: Run) -> tuple[list[Trace], Trace]:
    traces: list[Trace] = []
    for arm in run.arms:
        rounds = [r for r in run.rounds if arm in r.shots]
        traces.append({
            'type': 'scatter', 'mode': 'lines+markers', 'name': WORDS[arm],
            'visible': True if arm in (*FLOORS, *FLOORS.values(), FLOOR_B) else 'legendonly',
            'x': [r.index + 1 for r in rounds],
            'y': [round(r.shots[arm].took_ns / MS, 2) for r in rounds],
            'text': [r.left_out or 'counts' for r in rounds],
            'line': {'width': 1},
            'marker': {'size': 6, 'symbol': ['circle-open' if r.left_out else 'circle'
                                             for r in rounds]},
            'hovertemplate': '%{y} ms, %{text}',
        })
    return traces, _layout(
        height=460, showlegend=True, xaxis={'title': 'round'},
        yaxis={'title': 'ms', 'rangemode': 'tozero'}, legend={'orientation': 'h', 'y': -0.2},
    )


def _predicted(run: Run) -> tuple[list[Trace], Trace]:
    traces: list[Trace] = [
        {
            'type': 'bar', 'orientation': 'h', 'name': p.device,
            'y': [WORDS[arm] for arm in reversed(run.arms)],
            'x': [round(p.p50_ms[arm], 1) for arm in reversed(run.arms)],
        }
        for p in predict(run) if p.device != THIS
    ]
    return traces, _layout(
        height=110 + ROW_PX * len(run.arms), showlegend=True, barmode='group',
        xaxis={'title': 'ms, predicted, logarithmic', 'type': 'log'},
        margin={'l': 330, 'r': 16, 't': 8, 'b': 44}, legend={'orientation': 'h', 'y': 1.06},
    )


def _layout(**more: object) -> Trace:
    return {
        'margin': {'l': 60, 'r': 16, 't': 8, 'b': 44}, 'font': {'family': _FONT, 'color': INK},
        'paper_bgcolor': 'rgba(0,0,0,0)', 'plot_bgcolor': 'rgba(0,0,0,0)', **more,
    }


_FONT = 'system-ui, -apple-system, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif'

_STYLE = f"""
*{{box-sizing:border-box}}
body{{margin:0;background:#f4f6f8;color:{INK};font:15px/1.5 {_FONT}}}
main{{max-width:1100px;margin:0 auto;padding:32px 24px 48px}}
h1{{font-size:26px;font-weight:600;margin:0 0 12px}}h2{{font-size:17px;margin:0 0 4px}}
pre{{white-space:pre-wrap;font-size:12.5px;color:{PALE}}}
section{{background:#fff;border:1px solid {LINE};border-radius:8px;padding:18px 20px;
margin:16px 0;overflow-x:auto}}
p,footer,ul{{color:{PALE};font-size:13.5px;margin:4px 0}}
table{{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}}
th,td{{text-align:left;border-bottom:1px solid {LINE};padding:5px 8px}}
th{{font-weight:500;color:{PALE}}}.n{{text-align:right;white-space:nowrap}}
"""
