"""`smallm prompt BAG|live --policy FILE`: the prompt as the model gets it, tick by tick.

The pilot says when and what, the engine's own code leaves out what is too long and knows what KV
holds; only the forward pass is missing, so that a vocabulary is enough and no weights are loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smallm_ros import steady
from smallm_ros.cli.running import seconds
from smallm_ros.core import prompt
from smallm_ros.core.clock import SECOND
from smallm_ros.core.decision_record import Percentiles
from smallm_ros.core.errors import OperatorError, PackageMissingError
from smallm_ros.core.exchange import Declaration, Refused, Segment
from smallm_ros.core.observation import Received
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.engine.options import DEFAULT_MODEL
from smallm_ros.engine.templates import Rendered, conversation

if TYPE_CHECKING:
    from smallm_ros.bench.dry import DryRun, DryTick
    from smallm_ros.bench.workload import Vocabulary

LIVE = 'live'
TICKS = 3
BEGIN_NS = SECOND
"""Steady time at which a bag begins; any will do."""
STEADIER = 0.1
"""By so much of all ticks a segment must change more often than one behind it to be named."""
NAMED_FROM = 20
"""Ticks from which on such a comparison is one."""
NO_PROMPT = 1
"""Exit code when there was nothing to show."""
_STYLES = {'dim': '2', 'new': '1;32', 'gone': '31', 'head': '1', 'name': '36'}
_FROM_HERE = '▸'
"""Stands before the first token that KV does not hold, where there are no colours."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command to the `smallm` command line."""
    parser = commands.add_parser(
        'prompt', help='show the prompt as the model gets it, and what it costs in tokens',
        description='Show what a bag, or the running robot, says to the model under a policy: '
                    'segment by segment, with its tokens, what of it KV still holds from the '
                    'tick before, and what was left out. Needs a vocabulary and no weights.',
    )
    parser.add_argument('source', metavar='BAG|live',
                        help='a rosbag2 directory, a bare .db3 or .mcap file, or `live`: the '
                             'topics of the running robot')
    parser.add_argument('--policy', type=Path, required=True, metavar='FILE',
                        help='the policy file')
    parser.add_argument('--model', default=DEFAULT_MODEL, metavar='NAME|PATH',
                        help='whose vocabulary counts (default: %(default)s)')
    parser.add_argument('--at', type=seconds, metavar='S',
                        help='begin to show S seconds after the start (default: with the first '
                             'tick that asks)')
    parser.add_argument('--ticks', type=_count, default=TICKS, metavar='N',
                        help='ticks to show; 0 is all (default: %(default)s)')
    parser.add_argument('--diff', action='store_true',
                        help='show only what changed since the tick before')
    parser.add_argument('--mission', default='', metavar='TEXT',
                        help="the operator's words, as on the policy's mission_topic")
    parser.add_argument('--sim-time', action='store_true',
                        help='live: ROS time is that of /clock')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show it; return 0, or 1 when nothing was asked."""
    # mistral-common takes a second to import; `smallm --help` must not wait for it
    from smallm_ros.bench import dry, workload

    policy = load_policy(args.policy)
    words = workload.vocabulary(workload.subject(args.model))
    live = args.source == LIVE
    dry_run = dry.DryRun(policy, words, steady.now_ns() if live else BEGIN_NS)
    _tell_mission(dry_run, policy, args.mission)
    ticks = (_live(dry_run, policy, args.sim_time) if live
             else of_bag(dry_run, policy, Path(args.source)))
    view = View(policy, words, dry_run.pilot.declaration, Paint.of_terminal(), diff=args.diff)
    print('\n'.join(view.static()))
    shown = 0
    # Of a robot that runs, Ctrl-C is how one says that it is enough.
    with contextlib.suppress(KeyboardInterrupt) if live else contextlib.nullcontext():
        for elapsed_s, tick in ticks:
            begun = bool(tick.segments) if args.at is None else elapsed_s >= args.at
            if shown or begun:
                shown += 1
                print('\n'.join(view.tick(elapsed_s, tick)), flush=True)
            view.count(tick)
            if shown and shown == args.ticks:
                break
    print('\n'.join(view.summary()))
    return 0 if view.asked else NO_PROMPT


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{value} is less than 0')
    return value


def _tell_mission(dry_run: DryRun, policy: Policy, words: str) -> None:
    if not words:
        return
    mission = dry_run.pilot.mission
    if mission is None:
        raise OperatorError(f'--mission: policy {policy.name!r} has no mission_topic')
    if not mission.hear(words, BEGIN_NS):
        raise OperatorError(f'--mission: {mission.why}')


# --- where ticks come from ----------------------------------------------------------------------


def of_bag(dry_run: DryRun, policy: Policy, path: Path) -> Iterator[tuple[float, DryTick]]:
    """Yield (seconds since the bag's start, tick), the pilot stepped each control period."""
    try:
        from smallm_ros.replay.bag import Bag
    except ImportError as err:
        raise PackageMissingError(
            f'{err.name} is not installed: pip install "smallm_ros[replay]"'
        ) from err
    with Bag(path, policy) as bag:
        for warning in bag.warnings:
            print(f'{path}: {warning}')
        readings = bag.readings()
        coming = next(readings, None)
        missions = deque(bag.missions)
        for elapsed_ns in range(0, bag.duration_ns, policy.control_period_ns):
            bag_ns = bag.begin_ns + elapsed_ns
            while coming is not None and coming.bag_ns <= bag_ns:
                dry_run.observe(Received(
                    coming.sensor, coming.fields, BEGIN_NS + coming.bag_ns - bag.begin_ns,
                    bag.ros_time.at(coming.bag_ns),
                ))
                coming = next(readings, None)
            while missions and missions[0][0] <= bag_ns:
                dry_run.pilot.told(missions.popleft()[1], BEGIN_NS + elapsed_ns)
            for tick in dry_run.step(BEGIN_NS + elapsed_ns, bag.ros_time.at(bag_ns)):
                yield elapsed_ns / SECOND, tick


def _live(
    dry_run: DryRun, policy: Policy, simulated: bool
) -> Iterator[tuple[float, DryTick]]:
    """Yield (seconds since the start, tick) until interrupted."""
    try:
        from smallm_ros.ros.listener import listening
    except ImportError as err:
        raise PackageMissingError(
            f'{err.name} is not installed: source the setup.bash of ROS 2, or pip install '
            '"smallm_ros[ros]"'
        ) from err
    with listening(policy, simulated=simulated) as listener:
        begin_ns = next_ns = steady.now_ns()
        while True:
            steady.sleep_until(next_ns)
            now_ns = steady.now_ns()
            next_ns += policy.control_period_ns * (
                (now_ns - next_ns) // policy.control_period_ns + 1)
            ros_now_ns = listener.feed(dry_run.pilot, now_ns)
            for tick in dry_run.step(now_ns, ros_now_ns):
                yield (now_ns - begin_ns) / SECOND, tick


# --- how they look ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Paint:
    """Colours where there is a terminal and nobody has asked for none: https://no-color.org."""

    on: bool

    @classmethod
    def of_terminal(cls) -> Paint:
        """Return what standard output can show."""
        return cls(sys.stdout.isatty() and not os.environ.get('NO_COLOR'))

    def __call__(self, style: str, text: str) -> str:
        """Return `text` in a style of the table."""
        return f'\x1b[{_STYLES[style]}m{text}\x1b[0m' if self.on and text else text


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the dynamic prompt as it was evaluated."""

    name: str
    text: str
    ids: tuple[int, ...]
    reused: int
    """How many of its tokens KV held."""


def lines_of(words: Vocabulary, tick: DryTick, rendered: Rendered) -> tuple[Line, ...]:
    """Return the lines of a decided tick: what `prompt.without` left, and what KV held of each."""
    decided = tick.decided
    if decided is None:
        return ()
    texts, names = _kept(tick.segments, decided.dropped)
    ids = [tuple(words.tokenize(text)) for text in texts]
    past = len(decided.ids) - sum(map(len, ids)) - len(rendered.suffix)
    start = len(rendered.prefix) + past
    out = []
    for name, text, own in zip(names, texts, ids, strict=True):
        reused = min(max(0, decided.decision.tokens.reused - start), len(own))
        out.append(Line(name, text, own, reused))
        start += len(own)
    return tuple(out)


def _kept(
    segments: tuple[Segment, ...], dropped: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (texts, names) of the lines that were evaluated."""
    if not dropped:
        return tuple(s.text for s in segments), tuple(s.name for s in segments)
    names = tuple(s.name for s in segments if s.name not in dropped)
    for level in prompt.leaving(segments):
        texts, left_out = prompt.without(segments, level)
        if left_out == dropped:
            return texts, (*names, 'left out')
    raise AssertionError(f'{dropped} cannot be left out of {[s.name for s in segments]}')


class View:
    """Turns ticks into lines, and keeps what a summary needs."""

    def __init__(
        self, policy: Policy, words: Vocabulary, told: Declaration, paint: Paint, *,
        diff: bool = False,
    ) -> None:
        self.asked = 0
        """Ticks with a prompt."""
        self._policy = policy
        self._words = words
        self._told = told
        self._paint = paint
        self._diff = diff
        self._rendered = conversation(words.template, words, told.system, told.examples)
        self._outcomes: Counter[str] = Counter()
        self._changed: Counter[str] = Counter()
        self._pairs = 0
        self._dropped: Counter[str] = Counter()
        self._dynamic: list[int] = []
        self._held: list[int] = []
        self._new: list[int] = []
        self._before: Mapping[str, str] = {}

    def static(self) -> Iterator[str]:
        """Yield the static part: what is evaluated once."""
        paint, told, words = self._paint, self._told, self._words
        total = len(self._rendered.prefix)
        yield paint('head', f'{self._policy.name}: tokens {words.said}, template {words.template}')
        yield paint('head', f'static    {total} tokens, evaluated once and then kept in KV')
        if self._diff:
            return
        yield f'  {paint("name", "system")}  {self._size(told.system)} tokens'
        yield from self._text(told.system)
        for number, (observation, answer) in enumerate(told.examples, 1):
            yield (f'  {paint("name", f"example {number}")}  {self._size(observation)} + '
                   f'{self._size(answer)} tokens: '
                   + paint('dim', f'{" / ".join(observation.splitlines())} -> {answer}'))

    def tick(self, elapsed_s: float, tick: DryTick) -> Iterator[str]:
        """Yield one tick."""
        paint, decided = self._paint, tick.decided
        head = f'tick at {elapsed_s:.2f} s'
        if decided is None:
            why = (f'{tick.answer.why.value}: {tick.answer.detail}'
                   if isinstance(tick.answer, Refused) else tick.record.why)
            yield paint('head', f'{head}  {tick.record.outcome}: {why}')
            return
        tokens = decided.decision.tokens
        yield paint('head', f'{head}  {tokens.prompt} tokens: {tokens.reused} reused from KV, '
                            f'{tokens.prompt - tokens.reused} to evaluate')
        lines = lines_of(self._words, tick, self._rendered)
        for line in lines:
            if self._diff and self._before.get(line.name) == line.text:
                continue
            if self._diff and line.name in self._before:
                yield '  ' + paint('gone', f'- {self._before[line.name].rstrip()}')
            yield (f'  {paint("name", f"{self._pace(line.name):8}{line.name}")}  '
                   f'{len(line.ids)} tokens, {line.reused} reused')
            yield f'  {"+ " if self._diff else "  "}{self._marked(line)}'
        for name in self._before if self._diff else ():
            if name not in {line.name for line in lines}:
                yield '  ' + paint('gone', f'- {self._before[name].rstrip()}')
        if self._diff and self._before == {line.name: line.text for line in lines}:
            yield f'    {paint("dim", "no change")}'
        if not self._diff:
            yield (f'  {paint("name", "end")}     {len(self._rendered.suffix)} tokens of the '
                   'template')
        if decided.dropped:
            gone = [s for s in tick.segments if s.name in decided.dropped]
            said = ', '.join(f'{s.name} ({self._size(s.text)} tokens)' for s in gone)
            part = ', '.join(each for each in decided.dropped if each not in
                             {s.name for s in gone})
            what = ', '.join(filter(None, (said, part)))
            limit = self._told.max_prompt_tokens
            yield '  ' + paint('gone', f'trimmed to {limit} tokens: {what}')

    def count(self, tick: DryTick) -> None:
        """Take a tick into the summary; it is what the next one's `--diff` compares with."""
        self._outcomes[tick.record.outcome] += 1
        decided = tick.decided
        if decided is None:
            return
        lines = lines_of(self._words, tick, self._rendered)
        now = {line.name: line.text for line in lines}
        if self.asked:
            self._pairs += 1
            self._changed.update(n for n, text in now.items() if self._before.get(n) != text)
            dynamic = sum(len(line.ids) for line in lines)
            self._dynamic.append(dynamic)
            self._held.append(sum(line.reused for line in lines))
            tokens = decided.decision.tokens
            self._new.append(tokens.prompt - tokens.reused)
        self._dropped.update(decided.dropped)
        self._before = now
        self.asked += 1

    def summary(self) -> Iterator[str]:
        """Yield what all ticks up to here come to."""
        outcomes = ', '.join(
            f'{"asked" if name == "decided" else name.replace("_", " ")} {n}'
            for name, n in self._outcomes.most_common())
        yield self._paint('head', f'ticks     {sum(self._outcomes.values())}: '
                                  f'{outcomes or "none"}')
        new, dynamic = Percentiles.of(self._new), Percentiles.of(self._dynamic)
        if new is None or dynamic is None:
            return
        yield (f'dynamic   p50 {dynamic.p50:g}, max {dynamic.max:g} tokens; '
               f'{sum(self._held) / max(1, sum(self._dynamic)):.0%} of them reused from the tick '
               f'before')
        yield f'evaluate  p50 {new.p50:g}, p99 {new.p99:g}, max {new.max:g} tokens a tick'
        if self._dropped:
            yield 'trimmed   ' + ', '.join(
                f'{name} in {n} ticks' for name, n in self._dropped.most_common())
        yield 'changes   ' + ', '.join(
            f'{name} {self._share(name):.0%}' for name in self._before)
        if self._pairs >= NAMED_FROM:
            yield from self._out_of_order()
        if self._told.history:
            yield ('history   its answers are those of no model: their length may differ, and '
                   'what is reused with it')

    def _out_of_order(self) -> Iterator[str]:
        names = list(self._before)
        for index, name in enumerate(names):
            steadier = [other for other in names[index + 1:]
                        if self._share(name) - self._share(other) > STEADIER]
            if steadier:
                yield (f'order     {name} changes more often than {", ".join(steadier)} behind '
                       f'it, and what follows a change is evaluated anew: `changes: often` for '
                       f'{name}')

    def _share(self, name: str) -> float:
        return self._changed[name] / max(1, self._pairs)

    def _pace(self, name: str) -> str:
        """Return `slow` or `fast`, by what the policy declares of a sensor."""
        if name == prompt.MISSION:
            return 'mission'
        sensor = self._policy.sensors.get(name)
        if sensor is None:
            return ''
        slow = (sensor.rate_hz < self._policy.decision.rate_hz if sensor.changes is None
                else sensor.changes == 'rarely')
        return 'slow' if slow else 'fast'

    def _marked(self, line: Line) -> str:
        from smallm_ros.bench.dry import shown

        held = shown(self._words, line.ids[:line.reused])
        new = shown(self._words, line.ids[line.reused:]).rstrip('\n')
        mark = '' if self._paint.on or not new else _FROM_HERE
        return self._paint('dim', held.rstrip('\n')) + mark + self._paint('new', new)

    def _text(self, text: str) -> Iterator[str]:
        for line in text.splitlines():
            yield f'    {self._paint("dim", line)}'

    def _size(self, text: str) -> int:
        return len(self._words.tokenize(text))
