"""Commands that mean harm, as text, through the real parser into a driving gate.

    python -m tests.proofs.hostile --count 100000

Made by mutation of an honest one and by grammar: out of range, no numbers, stale, of the future,
repeated, from elsewhere, of wrong types, with mixed-up ids, huge, nested, broken. Whatever the
parser lets through is judged once more here, from the rules alone; what is not lawful must not
move the robot, and nothing may raise but what says that it was dropped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from smallm_ros.core.action import Command
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.facts import CommandArrival
from smallm_ros.ros.heard import Heard
from tests.proofs.robot import ANSWERS, BOOT, HOST, PERIOD_NS, POLICY, Broken, Robot, Setting
from tests.proofs.traces import Run, Tally, drives

Values = dict[str, Any]
YEAR_NS = 31_557_600 * SECOND
NOT_NUMBERS = ('NaN', 'Infinity', '-Infinity', '1e999', '-1e999', '1e400', '"0.3"', 'true', 'null',
               '[]', '{}', '1' * 400, '-0', '0x10', '01', '.3', '1e', '١')
NUMBERS = ('linear_x_m_s', 'angular_z_rad_s', 'confidence')
TIMES = ('arrival_ns', 'deadline_ns', 'valid_until_ns', 'observation_stamp_ns')
IDS = ('session', 'sequence', 'request', 'host', 'boot')
OTHERS: tuple[Any, ...] = (None, True, 0, -1, 1.5, 2**63, 2**70, '', 'x', [], [1], {}, {'a': 'b'})


def honest(robot: Robot) -> Values:
    """Return what the policy node would send now."""
    now_ns = robot.now_ns + PERIOD_NS  # when it will have arrived
    robot.command_sequence += 1
    robot.request += 1
    action, parameters, v, w = ANSWERS[0]
    return {
        'version': 1, 'session': robot.session, 'sequence': robot.command_sequence,
        'request': robot.request, 'action': action, 'parameters': parameters, 'linear_x_m_s': v,
        'angular_z_rad_s': w, 'observation_stamp_ns': int(robot.ros_ns) - 50 * MS,
        'arrival_ns': now_ns - 100 * MS, 'deadline_ns': now_ns + 50 * MS,
        'valid_until_ns': now_ns + POLICY.ttl_ns, 'confidence': 0.9, 'partial': False,
        'host': HOST, 'boot': BOOT,
    }


def _set(key: str, text: str, values: Values) -> str:
    """Write `text` as the value of `key`, whether or not that is JSON."""
    return json.dumps({**values, key: '@mark@'}).replace('"@mark@"', text, 1)


def _out_of_range(rng: random.Random, values: Values) -> str:
    size = 10 ** rng.uniform(-9, 300)
    values[rng.choice(NUMBERS[:2])] += rng.choice([-1, 1]) * size
    return json.dumps(values)


def _no_number(rng: random.Random, values: Values) -> str:
    return _set(rng.choice(NUMBERS + TIMES), rng.choice(NOT_NUMBERS), values)


def _other_time(rng: random.Random, values: Values) -> str:
    key = rng.choice(TIMES)
    values[key] += rng.choice([-1, 1]) * round(10 ** rng.uniform(0, 18))
    return json.dumps(values)


def _repeated(rng: random.Random, values: Values) -> str:
    for key in rng.sample(['sequence', 'request'], rng.choice([1, 2])):
        values[key] -= rng.randrange(1, 50)
    return json.dumps(values)


def _elsewhere(rng: random.Random, values: Values) -> str:
    key = rng.choice(IDS)
    values[key] = {
        'session': f'{rng.getrandbits(64):016x}', 'sequence': rng.choice([0, -1, 2**80]),
        'request': rng.choice([0, -5, 2**80]),
    }.get(key, rng.choice(['', 'other', 'x' * 65, values['session']]))
    return json.dumps(values)


def _mixed_up(rng: random.Random, values: Values) -> str:
    a, b = rng.sample(sorted(values), 2)
    values[a], values[b] = values[b], values[a]
    return json.dumps(values)


def _wrong_type(rng: random.Random, values: Values) -> str:
    values[rng.choice(sorted(values))] = rng.choice(OTHERS)
    return json.dumps(values)


def _no_action(rng: random.Random, values: Values) -> str:
    values['action'] = rng.choice(
        ['fly', '', 'FORWARD', 'forward ', 'left', 'ｆｏｒｗａｒｄ', '\0'])
    values['parameters'] = rng.choice([
        {}, {'speed': 'fast'}, {'speed': 'warp'}, {'speed': 'fast', 'more': 'x'}, {'': ''},
        {str(n): '' for n in range(40)},
    ])
    return json.dumps(values)


def _keys(rng: random.Random, values: Values) -> str:
    if rng.random() < 0.5:
        del values[rng.choice(sorted(values))]
    else:
        values[rng.choice(['extra', 'Session', '__class__', 'limits', ' request'])] = 1
    return json.dumps(values)


def _twice(rng: random.Random, values: Values) -> str:
    key = rng.choice(sorted(values))
    again = json.dumps(values[key] if rng.random() < 0.5 else 0.9)
    return json.dumps(values)[:-1] + f', {json.dumps(key)}: {again}}}'


def _huge(rng: random.Random, values: Values) -> str:
    values[rng.choice(['action', 'host', 'boot', 'session'])] = 'x' * rng.choice(
        [33, 65, 4000, 4096, 100_000])
    return json.dumps(values)


def _nested(rng: random.Random, values: Values) -> str:
    deep, (opens, closes) = rng.choice([3, 100, 1900, 50_000]), rng.choice([('[', ']'),
                                                                           ('{"a":', '}')])
    inside = opens * deep + '1' + closes * deep
    return inside if rng.random() < 0.5 else _set('parameters', inside, values)


def _bitten(rng: random.Random, values: Values) -> str:
    text = list(json.dumps(values))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(text))
        text[at] = rng.choice(['', '"', '}', '\\', ',', chr(rng.randrange(1, 0x300)), '\ud800',
                               '\udfff', '\0', '9', 'e', '-'])
    return ''.join(text)


def _cut(rng: random.Random, values: Values) -> str:
    text = json.dumps(values)
    return text[:rng.randrange(len(text))] if rng.random() < 0.7 else text + text


def _noise(rng: random.Random, values: Values) -> str:
    return ''.join(chr(rng.choice([rng.randrange(128), rng.randrange(0x11000)]))
                   for _ in range(rng.randrange(300)))


def _other_json(rng: random.Random, values: Values) -> str:
    return rng.choice(['', 'null', '0', '[]', '{}', '""', 'true', 'NaN', '[{}]', '\ufeff{}',
                       json.dumps([values]), json.dumps(json.dumps(values))])


def _unsure(rng: random.Random, values: Values) -> str:
    values['confidence'] = rng.choice([0.0, 0.19999, -0.1, 1.0000001, 1e300, 0.2])
    return json.dumps(values)


def _several(rng: random.Random, values: Values) -> str:
    for _ in range(rng.randrange(2, 5)):
        make = rng.choice([_out_of_range, _other_time, _repeated, _elsewhere, _mixed_up, _unsure])
        try:
            make(rng, values)
        except (TypeError, AttributeError):
            pass  # the one before left no number there
    return json.dumps(values)


def _honest(rng: random.Random, values: Values) -> str:
    return json.dumps(values)


MAKERS: tuple[Callable[[random.Random, Values], str], ...] = (
    _out_of_range, _no_number, _other_time, _repeated, _elsewhere, _mixed_up, _wrong_type,
    _no_action, _keys, _twice, _huge, _nested, _bitten, _cut, _noise, _other_json, _unsure,
    _several, _honest,
)


@dataclass(slots=True)
class Assault:
    """What became of the texts."""

    texts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    lawful: int = 0
    applied: int = 0
    refused: int = 0
    steps: int = 0


def lawful(command: Command, robot: Robot, newest: tuple[int, int]) -> bool:
    """Whether a command that arrives now may move the robot, by the rules alone."""
    now_ns = robot.now_ns + PERIOD_NS
    said = (command.action, dict(command.parameters), command.linear_x_m_s,
            command.angular_z_rad_s)
    near = any(
        said[:2] == answer[:2] and abs(said[2] - answer[2]) < 2e-9
        and abs(said[3] - answer[3]) < 2e-9 for answer in ANSWERS)
    return (
        near and (command.session, command.host, command.boot) == (robot.session, HOST, BOOT)
        and command.sequence > newest[0] and command.request > newest[1]
        and now_ns <= command.deadline_ns + PERIOD_NS + POLICY.allowed_lateness_ns
        and now_ns < command.valid_until_ns <= now_ns + POLICY.ttl_ns
        and now_ns - POLICY.max_observation_age_ns <= command.arrival_ns <= now_ns
        and command.confidence >= POLICY.decision.min_confidence
    )


def ears() -> Callable[[str, int], CommandArrival | None]:
    """Return what hears a command as the node does: its arrival, or None when it was dropped."""
    heard = Heard(POLICY)

    def take(text: str, now_ns: int) -> CommandArrival | None:
        before, dropped = heard.command, heard.dropped
        heard.command_text(text, now_ns)
        if (heard.command is before) != (heard.dropped == dropped + 1):
            raise Broken(f'neither taken nor counted as dropped: {text!r:.200}')
        return heard.command if heard.command is not before else None

    return take


def assault(
    count: int, seed: int, take: Callable[[str, int], CommandArrival | None] | None = None,
) -> Assault:
    """Throw `count` texts at a driving robot; raises Broken, or whatever `take` lets out."""
    take = take or ears()
    rng, seen = random.Random(f'hostile {seed}'), Assault()
    run = Run(Setting(profile='short'), Tally())
    newest = {'': (0, 0)}
    waiting_ns = 0
    while sum(seen.texts.values()) < count:
        robot = run.robot
        if not robot.operating or waiting_ns > SECOND or rng.random() < 0.01:
            run.recover()
            waiting_ns = 0
        arrival = None
        if robot.last is not None and rng.random() < 0.7:
            make = rng.choice(MAKERS)
            text = make(rng, honest(robot))
            seen.texts[make.__name__] += 1
            arrival = take(text, robot.now_ns + PERIOD_NS)
            if arrival is None:
                seen.dropped[make.__name__] += 1
        if arrival is not None:
            command = arrival.command
            ids = newest.get(robot.session, (0, 0))
            if lawful(command, robot, ids):
                seen.lawful += 1
                robot.genuine.append(command)
            own = (command.session, command.host, command.boot) == (robot.session, HOST, BOOT)
            if own and command.sequence > ids[0]:  # another's advances nothing of the live one
                newest[robot.session] = command.sequence, max(ids[1], command.request)
                robot.command_sequence = max(robot.command_sequence, command.sequence)
                robot.request = max(robot.request, command.request)
            robot.command = arrival
            robot.open, robot.works = None, []
        out = run.step()
        seen.steps += 1
        waiting_ns = 0 if drives(out) else waiting_ns + PERIOD_NS
        if arrival is not None:
            seen.applied += out.command is arrival.command
            seen.refused += any(f.cause.value.startswith(('command', 'observation'))
                                for f in out.findings)
    return seen


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.proofs.hostile', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=100_000)
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args(argv)
    began_s = time.monotonic()
    try:
        seen = assault(args.count, args.seed)
    except Broken as broken:
        print('FAILED', broken)
        return 1
    print(f'{args.count} hostile texts in {time.monotonic() - began_s:.0f} s, seed {args.seed}: '
          f'{sum(seen.dropped.values())} dropped by the parser, {seen.refused} refused by the '
          f'gate, {seen.lawful} lawful after all, {seen.applied} of those applied at once; '
          f'0 outside the envelope, 0 exceptions')
    for name in sorted(seen.texts):
        print(f'{name:16}{seen.texts[name]:8} sent{seen.dropped[name]:8} dropped')
    return 0


if __name__ == '__main__':
    sys.exit(main())
