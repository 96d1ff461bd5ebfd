"""`smallm rerun RECORD`: every recorded decision once more, and the same or why not.

The tokens, the declaration and the model's hash are the recording's; the model is loaded as for
`smallm replay`. Exit code 1 when a decision was not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from smallm_ros.core.clock import MS
from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import BagError
from smallm_ros.core.exchange import ModelLimits
from smallm_ros.engine.options import add_load_options, load_request
from smallm_ros.record.rerun import (
    TOLERANCE,
    Again,
    can_run_again,
    document,
    run_again,
    summary,
)

NOT_REPEATED = 1


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command to the `smallm` command line."""
    parser = commands.add_parser(
        'rerun', help='decide a recording again and say same or why not',
        description='Decide every recorded decision again, from its token ids, and say for each '
                    'the same, or why not.',
    )
    parser.add_argument('record', type=Path, metavar='RECORD',
                        help='a decisions*.mcap of the policy node, a replay or a demo')
    parser.add_argument('--limit', type=_count, metavar='N',
                        help='the first N decisions only')
    parser.add_argument('--tolerance', type=_logits, default=TOLERANCE, metavar='LOGITS',
                        help='two answers no further apart are a tie (default: %(default)g)')
    parser.add_argument('--json', action='store_true', help='print JSON, for machines')
    add_load_options(parser)
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of decisions above 0')
    return int(text)


def _logits(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r} is no difference of logits')
    return value


def run(args: argparse.Namespace) -> int:
    """Decide again, print what came of it, return the exit code."""
    from smallm_ros.record.reader import read_declarations, read_models, read_records

    say = _Say()
    every = (r for r in read_records(args.record, say.line) if can_run_again(r))
    records = list(itertools.islice(every, args.limit))
    if not records:
        raise BagError(f'{args.record}: has no decision that could be run again')
    declarations = read_declarations(args.record)
    models = read_models(args.record)

    from smallm_ros.engine.load import load_decider
    from smallm_ros.steady import SteadyClock

    decider = load_decider(load_request(args), say, SteadyClock())
    try:
        for note in notes(models, decider.limits):
            say.line(note)
        again = list(say.counted(
            run_again(records, declarations, decider, args.tolerance), len(records)))
    finally:
        decider.close()
    if args.json:
        print(json.dumps(document(again), indent=1, allow_nan=False))
    else:
        print('\n'.join(lines(again)))
    return 0 if all(a.verdict.good for a in again) else NOT_REPEATED


def notes(recorded: Sequence[ModelLimits], now: ModelLimits) -> list[str]:
    """Return a line for each setting in which this run differs from the recording's."""
    if not recorded:
        return []
    then = recorded[-1]
    return [
        f'{name}: {a} when it was recorded, {b} now'
        for name, a, b in (
            ('model', then.name, now.name), ('template', then.template, now.template),
            ('threads', then.threads, now.threads),
            ('layers on the GPU', then.gpu_layers, now.gpu_layers),
            ('context', then.context_tokens, now.context_tokens),
        ) if a != b
    ]


def lines(again: Sequence[Again]) -> Iterator[str]:
    """Yield a line for each decision, and the summary."""
    then = [_then(a.record) for a in again]
    width = max(len('recorded'), *map(len, then))
    verdicts = max(len(a.verdict.value) for a in again)
    yield f'{"request":>8}  {"recorded":<{width}}  {"took":>7}  reused'
    for a, words in zip(again, then, strict=True):
        decision = a.record.decision
        assert decision is not None
        took = (decision.timings.finished_ns - decision.timings.started_ns) / MS
        reused = f'{decision.tokens.reused}/{decision.tokens.prompt}'
        yield (
            f'{a.record.request:>8}  {words:<{width}}  {took:>4.0f} ms  {reused:>9}  '
            f'{a.verdict.value:<{verdicts}}  {a.why}'
        ).rstrip()
    yield summary(again)


def _then(record: DecisionRecord) -> str:
    words = ' '.join((record.action, *record.parameters.values()))
    return f'{words} (partial)' if record.partial else words


class _Say:
    """Tells on stderr how far it is: in one live line on a terminal, elsewhere each tenth."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown: tuple[str, int] | None = None
        self._open = False

    def begin(self, bound_ns: int) -> None:
        """Nobody watches a batch here."""

    def end(self) -> None:
        """Nobody watches a batch here."""

    def loading(self, fraction: float) -> None:
        """Show how far the load is."""
        self._show('loading the model', fraction)

    def counted(self, again: Iterable[Again], total: int) -> Iterator[Again]:
        """Pass on each, and show how many there were."""
        bad = 0
        for n, each in enumerate(again, start=1):
            bad += not each.verdict.good
            self._show('deciding again', n / total, f', {bad} not the same')
            yield each

    def line(self, text: str) -> None:
        """Show a line of its own."""
        self._leave()
        print(text, file=sys.stderr, flush=True)

    def _leave(self) -> None:
        if self._open:
            print(file=sys.stderr, flush=True)
            self._open = False

    def _show(self, what: str, fraction: float, more: str = '') -> None:
        step = 1 if self._live else 10
        share = int(100 * min(1.0, fraction)) // step * step
        if (what, share) == self._shown:
            return
        self._shown = (what, share)
        if not self._live:
            self.line(f'{what}: {share} %{more}')
            return
        print(f'\r{what}: {share} %{more}', end='', file=sys.stderr, flush=True)
        self._open = True
        if share == 100:
            self._leave()
