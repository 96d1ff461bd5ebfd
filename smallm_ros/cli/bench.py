"""`smallm bench`: ours beside the others and beside the floor, in one run.

The same model, machine, observations and answers for every arm, taken in turns. Prints what was
measured, holds it to what is promised, and writes bench.json and bench.html. The exit code is 0
whatever was measured, unless `--check` asks for 1 when a promise does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from smallm_ros import steady
from smallm_ros.bench.names import ONE, OURS_WORDS, SKIPPABLE, STEPWISE, TWO
from smallm_ros.cli.running import make_folder
from smallm_ros.core.errors import OperatorError, PackageMissingError
from smallm_ros.core.policy import load_policy
from smallm_ros.engine.options import LoadRequest, add_load_options, load_request
from smallm_ros.share import find_share

OBSERVATIONS = 48
PROMISE_BROKEN = 1


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `smallm bench`."""
    parser = commands.add_parser(
        'bench', help='measure decisions beside other ways and beside the floor',
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--observations', type=_count, default=OBSERVATIONS, metavar='N',
                        help='rounds, one observation in every arm (default: %(default)s)')
    parser.add_argument('--policy', type=Path, metavar='FILE',
                        help='default: config/policies/bench.yaml')
    parser.add_argument('--seed', type=int, default=0, metavar='N',
                        help='seed of the observations (default: %(default)s)')
    parser.add_argument('--skip', action='append', choices=SKIPPABLE, default=[], metavar='ARM',
                        help=f'leave an arm out: {", ".join(SKIPPABLE)}; may be given again')
    parser.add_argument('--shape', metavar='NAME',
                        help='random weights of this architecture in place of --model, written '
                             'to the cache first, for example mistral-small-24b')
    parser.add_argument('--scale', default='full', metavar='S',
                        help='of --shape: full, 1/2, 1/4, 1/8, or auto for what fits here '
                             '(default: %(default)s)')
    parser.add_argument('--out', type=Path, metavar='DIR',
                        help='where the files go (default: runs/<time>)')
    parser.add_argument('--against', type=Path, metavar='OLD.json',
                        help='compare with an earlier run; refused when anything else differs')
    parser.add_argument('--check', action='store_true',
                        help='exit with 1 when a promise does not hold')
    parser.add_argument('--json', action='store_true',
                        help='print the JSON instead of the tables')
    add_load_options(parser)
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of observations, 1 to 100000')
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its figures and write its files."""
    try:
        import smallm_ros.engine.model  # noqa: F401  # says best what is wrong with llama_cpp
        from smallm_ros.bench import page, table
        from smallm_ros.bench import run as rounds
        from smallm_ros.bench.canary import Rule
        from smallm_ros.bench.document import Older, document
        from smallm_ros.bench.result import Conditions, checks
    except ImportError as err:
        raise PackageMissingError(
            f'{err.name} is not installed: pip install "smallm_ros[bench]"'
        ) from err

    older = None if args.against is None else Older.read(args.against)
    policy = load_policy(args.policy or find_share('config') / 'policies' / 'bench.yaml')
    started = steady.wall_text()
    out: Path = args.out or Path('runs') / started
    make_folder(out)
    meter = _Meter()
    request = load_request(args)
    if args.shape is not None:
        request = _shaped(request, args.shape, args.scale, _contexts(args.skip), meter)
    plan = rounds.Plan(
        request=request, policy=policy, observations=args.observations, seed=args.seed,
        skip=tuple(args.skip), folder=out, rule=Rule(), started=started,
        command=shlex.join(['smallm', *sys.argv[1:]]),
    )

    def admit(conditions: Conditions) -> None:
        if older is not None:
            older.require_equal(conditions)

    try:
        found = rounds.run(plan, steady.SteadyClock(), meter.say, meter.line, admit)
    finally:
        meter.end()
    values = document(found)
    text = json.dumps(values, indent=1, allow_nan=False)
    (out / 'bench.json').write_text(text + '\n', encoding='utf-8')
    (out / 'bench.html').write_text(page.page(found), encoding='utf-8')
    if args.json:
        print(text)
    else:
        print(table.table(found))
        if older is not None:
            print(f'\n{older.path}, {older.started}; '
                  f'{table.change_lines(older.changes(found))}')
        print(f'\n{out / "bench.html"}')
    broken = any(check.holds is False for check in checks(found))
    return PROMISE_BROKEN if args.check and broken else 0


def _contexts(skip: Sequence[str]) -> int:
    """Return how many contexts are beside each other: one for each of our arms."""
    return 1 + sum(arm not in skip for arm in (ONE, TWO, OURS_WORDS, STEPWISE))


def _shaped(
    request: LoadRequest, name: str, scale: str, contexts: int, meter: _Meter
) -> LoadRequest:
    """Return the request for a file of random weights, written now unless it is there."""
    from smallm_ros.bench import shape

    context, kv_type = request.context_tokens, request.kv_type
    if scale == 'auto':
        whole = shape.shape_named(name)
        more = (contexts - 1) * shape.needs(whole, context, kv_type).compute
        chosen = shape.scaled(whole, shape.available_memory_bytes() - more,
                              context_tokens=contexts * context, kv_type=kv_type)
    else:
        chosen = shape.shape_named(name, scale)
    once = shape.needs(chosen, context, kv_type)
    needed = dataclasses.replace(once, kv=contexts * once.kv, compute=contexts * once.compute)
    missing = shape.fits_here(chosen, needed, shape.cache_path(chosen))
    if missing:
        raise OperatorError(f'--shape {chosen.name}: {missing}; a smaller --scale, fewer arms '
                            'by --skip, or a smaller --context')
    path = shape.cached(chosen, progress=meter)
    return dataclasses.replace(request, model=str(path))


class _Meter:
    """Shows on stderr how far it is: one line on a terminal, else a line every tenth word."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._open = False
        self._last = ''
        self._shown_ns = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say how many bytes of a long writing or reading are done."""
        self.say(f'{what}: {100 * done // max(1, total)} %')

    def say(self, text: str) -> None:
        """Say what is being done."""
        now_ns = steady.now_ns()
        if self._terminal:
            print(f'\r\x1b[K{text}', end='', file=sys.stderr, flush=True)
            self._open = True
        elif text != self._last and now_ns - self._shown_ns > _PLAIN_PERIOD_NS:
            print(text, file=sys.stderr, flush=True)
            self._shown_ns = now_ns
        self._last = text

    def line(self, text: str) -> None:
        """Say something that stays."""
        self.end()
        print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line that was written over."""
        if self._open:
            print(file=sys.stderr)
        self._open = False


_PLAIN_PERIOD_NS = 10_000_000_000
"""Between two lines of progress where there is no terminal to write over."""
