"""Every mistake in a policy file is named with its file, its line, its place and the way out."""

from __future__ import annotations

import argparse
import json
from decimal import Decimal
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm_ros.cli import check
from smallm_ros.core.choice import Choice, choice_text
from smallm_ros.core.errors import PolicyError
from smallm_ros.core.policy import (
    MAX_FILE_BYTES,
    MAX_LEAVES,
    Grid,
    json_schema,
    load_policy,
    parse_policy,
)

CONFIG = Path(__file__).parents[1] / 'config' / 'policies'
POLICIES = sorted(CONFIG.glob('*.yaml'))
OURS = Path(__file__).parent / 'policies'

GOOD = """\
version: 1
name: wanderer
mission: Drive.
robot:
  radius_m: 0.2
sensors:
  scan:
    type: sensor_msgs/msg/LaserScan
    topic: /scan
    required: true
    rate_hz: 10
    stale_after_ms: 500
  odom:
    type: nav_msgs/msg/Odometry
    topic: /odom
    rate_hz: 20
    stale_after_ms: 500
actions:
  forward:
    description: drive ahead
    parameters:
      speed:
        choices: [slow, fast]
        default: slow
    twist:
      linear_x_m_s: {by: speed, values: {slow: 0.1, fast: 0.2}}
  stop:
    description: stand still
    twist: {}
decision:
  rate_hz: 2
  budget_ms: 400
  max_observation_age_ms: 2200
envelope:
  max_forward_m_s: 0.3
  max_turn_rad_s: 1.0
  max_acceleration_m_s2: 0.5
  max_deceleration_m_s2: 1.0
  max_angular_acceleration_rad_s2: 3.0
  obstacle_sensors: [scan]
fallback:
  ladder: [stop]
"""


def line_of(text: str) -> int:
    """Return the number of the one line of GOOD that holds `text`, not as the end of a word."""
    (number,) = [i for i, line in enumerate(GOOD.splitlines(), 1)
                 if text in line and f'_{text}' not in line]
    return number


def errors(data: str | bytes) -> list[str]:
    raw = data.encode() if isinstance(data, str) else data
    with pytest.raises(PolicyError) as caught:
        parse_policy(raw, 'p.yaml')
    return str(caught.value).splitlines()


def test_the_good_one_is_good() -> None:
    policy = parse_policy(GOOD.encode(), 'p.yaml')
    assert policy.leaves == 3
    assert policy.ttl_ns == 1_080_000_000
    assert policy.required_sensors == ('scan',)


BROKEN = [
    # what is replaced, by what, the line it is reported on (the text of GOOD's line), the message
    ('version: 1', 'version: 2', 'version:', 'version: Input should be 1, not 2'),
    ('name: wanderer', 'name: Wanderer', 'name: wanderer', 'name: String should match pattern'),
    ('mission: Drive.', 'mission: ""', 'mission', 'mission: String should have at least 1'),
    ('  radius_m: 0.2', '  radius_m: 0', 'radius_m', 'robot.radius_m: Input should be greater'),
    ('  radius_m: 0.2', '  radius_m: wide', 'radius_m', 'a valid number'),
    ('  radius_m: 0.2', '  radius: 0.2', 'radius_m',
     "robot.radius: unknown key; did you mean 'radius_m'?"),
    ('  radius_m: 0.2', '  radius: 0.2', 'robot:', 'robot: radius_m is missing; or give'),
    ('    topic: /scan\n', '', '  scan:', 'sensors.scan.topic: is missing'),
    ('    topic: /scan', '    topic: a b', 'topic: /scan', 'sensors.scan.topic: String should'),
    ('    topic: /scan', '    topic: /1scan', 'topic: /scan', 'sensors.scan.topic: String should'),
    ('    topic: /scan', '    topic: a//b', 'topic: /scan', 'sensors.scan.topic: String should'),
    ('    topic: /scan', '    topic: scan/', 'topic: /scan', 'sensors.scan.topic: String should'),
    ('    topic: /scan', '    topic: ~scan', 'topic: /scan', 'sensors.scan.topic: String should'),
    ('    rate_hz: 10', '    rate_hz: 1.5', 'decision:', 'nothing new to decide on'),
    ('choices: [slow, fast]', 'choices: [slow, .inf]', 'choices', 'speed.choices.1'),
    ('fallback:\n', 'examples: [{observation: x, answer: forward}]\nfallback:\n', 'fallback:',
     "examples.0: 'forward' is no complete answer"),
    ('fallback:\n', 'examples: [{observation: x, answer: fly slow}]\nfallback:\n', 'fallback:',
     "examples.0: 'fly slow' is no complete answer"),
    ('sensor_msgs/msg/LaserScan', 'sensor_msgs/msg/JoyFeedback', '  scan:', 'JoyFeedback'),
    ('    rate_hz: 10', '    rate_hz: 0', 'rate_hz: 10', 'sensors.scan.rate_hz: Input should be'),
    ('    rate_hz: 10', '    rate_hz: .nan', 'rate_hz: 10', 'sensors.scan.rate_hz'),
    ('    rate_hz: 10', '    rate_hz: .inf', 'rate_hz: 10', 'sensors.scan.rate_hz'),
    ('stale_after_ms: 500\n  odom', 'stale_after_ms: 100\n  odom', '  scan:',
     'stale_after_ms 100 is not more than the period of rate_hz 10: it would always be stale'),
    ('    required: true\n', '', 'sensors:', 'at least one must be `required: true`'),
    ('    required: true', '    required: 7', 'required: true', 'sensors.scan.required'),
    ('        default: slow', '        default: medium', '      speed:',
     "actions.forward.parameters.speed: default 'medium' is not one of: slow, fast"),
    ('[slow, fast]', '[slow, slow]', '      speed:', 'choices repeat themselves: slow, slow'),
    ('[slow, fast]', '[]', 'choices', 'actions.forward.parameters.speed.choices'),
    ('{by: speed,', '{by: pace,', '  forward:',
     "linear_x_m_s: by 'pace' is no parameter; there are: speed"),
    ('{slow: 0.1, fast: 0.2}', '{slow: 0.1}', '  forward:', "no value for choice 'fast'"),
    ('{slow: 0.1, fast: 0.2}', '{slow: 0.1, fast: .inf}', 'linear_x', 'finite'),
    (', values: {slow: 0.1, fast: 0.2}', '', '  forward:', "choice 'slow' is no number"),
    ('{slow: 0.1, fast: 0.2}', '{slow: 0.1, fast: 0.2, 1.0: 1, "1": 2}', 'linear_x',
     'a choice has two values'),
    ('[slow, fast]', '[slow, fast]\n        optionl: true', 'default: slow',
     "speed.optionl: unknown key; did you mean 'optional'?"),
    ('[slow, fast]', '[slow]\n        optional: true', '      speed:',
     "optional, and its only choice is the default 'slow': it would never be written"),
    ('[slow, fast]', '[slow, 1.0e-20]', 'choices', '1e-20 takes 22 characters'),
    ('[slow, fast]', '[1, 1.0, slow]', '      speed:', 'choices repeat themselves: 1, 1, slow'),
    ('[slow, fast]', '[slow, fast]\n        grid: {from: 1, to: 2, step: 1}', 'choices',
     'speed.choices: give either choices or grid, not both'),
    ('        choices: [slow, fast]\n', '', '      speed:', 'give either choices or grid'),
    ('mission: Drive.', 'mission: 2001-02-30', 'version', 'not YAML: day'),
    ('  budget_ms: 400', '  budget_ms: 400\n  decide: beast', 'max_observation', "'beast'"),
    ('  budget_ms: 400', '  budget_ms: 400\n  history: 17', 'max_observation',
     'decision.history: Input should be less than or equal to 16, not 17'),
    ('  budget_ms: 400', '  budget_ms: 400\n  anytime: 7', 'max_observation',
     'decision.anytime'),
    ('decision:\n', 'decision:\n  history: 16\n  prompt_tokens: 513\n', 'decision:',
     'decision: history 16 turns of prompt_tokens 513 are up to 8208 tokens, at most 8192'),
    ('fallback:\n', 'prior: {correction: contentfree}\nfallback:\n', 'fallback:',
     "'reference', 'content_free' or 'none', not 'contentfree'"),
    ('fallback:\n', 'free_text:\nfallback:\n', 'fallback:',
     'free_text: stands without anything; give at least a name, or leave it out'),
    ('fallback:\n', 'free_text: {}\nfallback:\n', 'fallback:', 'free_text.name: is missing'),
    ('fallback:\n', 'free_text: {name: reason, lead: " "}\nfallback:\n', 'fallback:',
     "free_text.lead: must be a word or more, on one line, not ' '"),
    ('fallback:\n', 'free_text: {name: reason, lead: "a\\nb"}\nfallback:\n', 'fallback:',
     'free_text.lead: must be a word or more, on one line'),
    ('fallback:\n', 'free_text: {name: reason, max_tokens: 65}\nfallback:\n', 'fallback:',
     'free_text.max_tokens: Input should be less than or equal to 64, not 65'),
    ('fallback:\n', 'free_text: {name: reason, max_characters: 0}\nfallback:\n', 'fallback:',
     'free_text.max_characters: Input should be greater than or equal to 1, not 0'),
    ('    description: stand still\n', '', '  stop:', 'actions.stop.description: is missing'),
    ('    twist: {}', '    twist: {linear_x: 1}', 'twist: {}',
     "unknown key; did you mean 'linear_x_m_s'?"),
    ('  stop:\n    description: stand still\n    twist: {}\n', '', 'actions:',
     'actions: Dictionary should have at least 2 items'),
    ('  rate_hz: 2\n', '  rate_hz: 4\n', 'decision:', 'decisions would queue'),
    ('  budget_ms: 400', '  budget_ms: -1', 'budget_ms', 'decision.budget_ms: Input should be'),
    ('  budget_ms: 400\n', '', 'decision:', 'decision.budget_ms: is missing'),
    ('age_ms: 2200', 'age_ms: 1000', 'decision:', 'would expire before its time'),
    ('obstacle_sensors: [scan]', 'obstacle_sensors: [odom]', 'envelope:',
     "obstacle_sensors: 'odom' is no required LaserScan sensor; there are: scan"),
    ('  radius_m: 0.2', '  footprint: [[1, 1], [-1, 1]]', 'radius_m', 'robot.footprint: Tuple'),
    ('  radius_m: 0.2', '  footprint: [[1, 1], [-1, 1], [0, .inf]]', 'radius_m',
     'robot.footprint.2.1: Input should be less than or equal to 10'),
    ('  radius_m: 0.2', '  footprint: [[1, 1], [2, 1], [2, 2]]', 'radius_m',
     'robot.footprint: base_link, [0, 0], is not inside'),
    ('  radius_m: 0.2', '  footprint: [[0, 0], [2, 1], [2, 2]]', 'radius_m', 'is not inside'),
    ('  radius_m: 0.2', '  footprint: [[0, -1], [2, 0], [0, 1]]', 'radius_m', 'is not inside'),
    ('  radius_m: 0.2', '  footprint: [[1, 1], [-1, -1], [-1, 1], [1, -1]]', 'radius_m',
     'the sides [1.0, 1.0] to [-1.0, -1.0] and [-1.0, 1.0] to [1.0, -1.0] meet'),
    ('  radius_m: 0.2', '  footprint: [[1, 1], [-1, 1], [-1, 1], [0, -1]]', 'radius_m',
     'corner [-1.0, 1.0] stands twice in a row'),
    ('  radius_m: 0.2', '  footprint: [[1, 1], [-1, 1], [-1, -1], [3, -1], [1, -1]]', 'radius_m',
     'the sides [-1.0, -1.0] to [3.0, -1.0] and [3.0, -1.0] to [1.0, -1.0] meet'),
    ('  radius_m: 0.2', '  footprint: [[1, 1], [-1, 1], [0, -1]]\n  radius_m: 1.2', 'robot:',
     'radius_m 1.2 does not contain the footprint, whose farthest corner is at 1.41421 m'),
    ('    type: sensor_msgs/msg/LaserScan', '    type: sensor_msgs/msg/LaserScan\n'
     '    mount_x_m: 0.3', 'scan:', 'mount_x_m and mount_y_m are 0.30 m from base_link, outside'),
    ('max_turn_rad_s: 1.0', 'slow_down: {within_m: 0, max_m_s: 1}\n  max_turn_rad_s: 1.0',
     'max_turn_rad_s', 'envelope.slow_down.within_m: Input should be greater than 0'),
    ('obstacle_sensors: [scan]', 'obstacle_sensors: [scan, scan]', 'envelope:',
     "obstacle_sensors: 'scan' stands twice"),
    ('obstacle_sensors: [scan]', 'obstacle_sensor: scan', 'obstacle_sensor',
     "envelope.obstacle_sensor: unknown key; did you mean 'obstacle_sensors'?"),
    ('  max_turn_rad_s: 1.0', '  max_turn_rad_s: -1', 'max_turn_rad_s', 'envelope.max_turn_rad_s'),
    ('  max_deceleration_m_s2: 1.0', '  max_deceleration_m_s2: 0', 'max_deceleration',
     'envelope.max_deceleration_m_s2: Input should be greater than 0'),
    ('ladder: [stop]', 'ladder: [creep]', 'fallback:', "ladder must end in 'stop', not 'creep'"),
    ('ladder: [stop]', 'ladder: [fly, stop]', 'ladder', "'fly'"),
    ('ladder: [stop]', 'ladder: [creep, stop]\n  speed_m_s: 0.5', 'fallback:',
     "speed_m_s 0.5 is more than the envelope's max_forward_m_s 0.3"),
    ('fallback:\n', 'control: {reaction_time_ms: 100}\nfallback:\n', 'fallback:',
     'reaction_time_ms 100 is less than'),
    ('fallback:\n', 'control: {status_limit_ms: 0}\nfallback:\n', 'fallback:',
     'control.status_limit_ms: Input should be greater than or equal to 100'),
    ('fallback:\n', 'falback: {}\nfallback:\n', 'fallback:',
     "falback: unknown key; did you mean 'fallback'?"),
    ('mission: Drive.', 'name: again', 'mission', 'name stands twice, first on line 2'),
    ('robot:\n', 'robot: [\n', 'sensors:', 'not YAML'),
    ('mission: Drive.', 'mission: !!python/object:os.system {}', 'version', 'not YAML'),
    ('version: 1', 'version: &a [*a]', 'version', 'nested more than 12 deep'),
]


@pytest.mark.parametrize(
    ('old', 'new', 'on', 'words'), BROKEN,
    ids=[f'{i}: {row[3][:40]}' for i, row in enumerate(BROKEN)],
)
def test_a_broken_file(old: str, new: str, on: str, words: str) -> None:
    assert GOOD.count(old) == 1
    found = errors(GOOD.replace(old, new))
    assert any(
        error.startswith(f'p.yaml:{line_of(on)}: ') and words in error for error in found
    ), found


@pytest.mark.parametrize(('data', 'words'), [
    (b'', 'p.yaml:1: the file is empty'),
    (b'# only a comment\n', 'p.yaml:1: the file is empty'),
    (b'- a\n- b\n', 'p.yaml:1: a policy file is a mapping'),
    (b'forty-two', 'p.yaml:1: a policy file is a mapping'),
    (b'\xff\xfe', 'p.yaml: not UTF-8: byte 0 is 0xff'),
    (b'a: 1\nb: \x00', 'p.yaml:2: not YAML: character 0x00'),
    (b'x' * (MAX_FILE_BYTES + 1), f'a policy file has at most {MAX_FILE_BYTES}'),
    (b'[' * 5000, 'not YAML'),
    (b'{a: ' * 14 + b'1' + b'}' * 14, 'nested more than 12 deep'),
])
def test_what_is_no_policy_file_at_all(data: bytes, words: str) -> None:
    assert words in errors(data)[0]


def test_too_many_answers() -> None:
    many = 'choices: [' + ', '.join(map(str, range(64))) + ']'
    text = GOOD.replace('choices: [slow, fast]', many).replace('default: slow', 'default: 1')
    text = text.replace(', values: {slow: 0.1, fast: 0.2}', '')
    extra = ''.join(
        f'\n      p{i}:\n        {many}\n        default: 1' for i in range(2)
    )
    text = text.replace('        default: 1', '        default: 1' + extra)
    (error,) = errors(text)
    assert 'actions: 262145 complete answers, at most 512' in error


GRIDS = [
    ('{from: 0, to: 1, step: 0.3}',
     'grid: step 0.3 does not reach to 1: from 0 it comes to 0.9 and then beyond'),
    ('{from: 0, to: 1, step: 2}',
     'grid: step 2 does not reach to 1: from 0 it comes to 0 and then beyond'),
    ('{from: 1, to: 1, step: 1}', 'grid: from 1 is not less than to 1'),
    ('{from: 1, to: 0, step: 0.5}', 'grid: from 1 is not less than to 0'),
    ('{from: 0, to: 1, step: -0.1}', 'grid.step: Input should be greater than 0, not -0.1'),
    ('{from: 0, to: 1, step: 0}', 'grid.step: Input should be greater than 0, not 0'),
    ('{from: 0, to: 1, step: 0.01}', 'grid: 101 values from 0 to 1 in steps of 0.01, at most 64'),
    ('{from: 0, to: 64, step: 1}', 'grid: 65 values from 0 to 64 in steps of 1, at most 64'),
    ('{from: 1.0e-30, to: 1, step: 0.1}', 'grid.from: 1e-30 takes 32 characters'),
    ('{from: 0, to: .nan, step: 0.1}', 'grid.to: Input should be a finite number, not nan'),
    ('{from: 0, to: 1}', 'grid.step: is missing'),
    ('{from: 0, to: 1, stop: 0.1}', "grid.stop: unknown key; did you mean 'step'?"),
    ('{frm: 0, to: 1, step: 0.1}', "grid.frm: unknown key; did you mean 'from'?"),
    ('{from: 0, to: 1, step: 0.1}',
     "default '0.25' is not on the grid: 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1"),
    ('[0, 1]', 'speed.grid: Input should be a valid dictionary'),
]


def with_grid(grid: str, default: str = '0.25') -> str:
    text = GOOD.replace('choices: [slow, fast]', f'grid: {grid}')
    text = text.replace('default: slow', f'default: {default}')
    return text.replace(', values: {slow: 0.1, fast: 0.2}', '')


@pytest.mark.parametrize(('grid', 'words'), GRIDS)
def test_a_grid_that_does_not_hold_together(grid: str, words: str) -> None:
    found = errors(with_grid(grid))
    place = ('      speed:', 'choices')[words.startswith(('grid', 'speed.grid'))]
    assert any(e.startswith(f'p.yaml:{line_of(place)}: ') and words in e for e in found), found
    assert not any('choices' in e for e in found), found


def test_the_largest_grid_is_good() -> None:
    policy = parse_policy(with_grid('{from: 0.25, to: 16, step: 0.25}').encode(), 'p.yaml')
    assert policy.leaves == 65


@given(st.integers(-10**6, 10**6), st.integers(1, 10**4), st.integers(1, 63), st.integers(0, 6))
def test_a_grid_is_what_counting_in_decimal_gives(
    first: int, step: int, steps: int, places: int
) -> None:
    unit = Decimal(1).scaleb(-places)
    numbers = [(first + i * step) * unit for i in range(steps + 1)]
    grid = Grid.model_validate(
        {'from': float(numbers[0]), 'to': float(numbers[-1]), 'step': float(step * unit)}
    )
    assert [Decimal(choice_text(value)) for value in grid.values] == numbers
    assert grid.values == tuple(map(float, numbers))


@pytest.mark.parametrize(('value', 'text'), [
    (0.1 + 0.2, '0.30000000000000004'), (0.1, '0.1'), (0.25, '0.25'), (-1.0, '-1'), (-1, '-1'),
    (100.0, '100'), (1e-7, '0.0000001'), (-0.0, '0'), (0, '0'), (1e20, '100000000000000000000'),
    (True, 'true'), (False, 'false'), ('fast', 'fast'), (12.50, '12.5'),
])
def test_a_choice_has_one_text(value: Choice, text: str) -> None:
    assert choice_text(value) == text


TWICE = """\
    parameters:
      speed: {choices: [slow, fast], default: slow, optional: true}
      turn: {choices: [none, fast], default: none, optional: true}
"""


def test_two_members_of_the_space_with_one_text_are_both_named() -> None:
    old = GOOD[GOOD.index('    parameters:'):GOOD.index('    twist:\n')]
    (error,) = errors(GOOD.replace(old, TWICE))
    assert error == (
        f"p.yaml:{line_of('  forward:')}: actions.forward: 'forward fast' would be the answer of "
        'both (speed slow, turn fast) and (speed fast, turn none): other words, or fewer optional '
        'parameters'
    )


@pytest.mark.parametrize(('answer', 'good'), [
    ('forward', True), ('forward fast', True), ('forward slow', False), ('forward ', False),
])
def test_an_example_leaves_out_an_optional_default(answer: str, good: bool) -> None:
    text = GOOD.replace('default: slow', 'default: slow\n        optional: true')
    text += f'examples: [{{observation: x, answer: "{answer}"}}]\n'
    if good:
        parse_policy(text.encode(), 'p.yaml')
    else:
        (error,) = errors(text)
        assert 'without the default of an optional one' in error


def test_every_mistake_is_told_at_once() -> None:
    text = GOOD.replace('version: 1', 'version: 3').replace('radius_m: 0.2', 'radius_m: -1')
    found = errors(text.replace('[slow, fast]', '[slow, slow]'))
    assert [e.split(':')[1] for e in found] == ['1', '5', str(line_of('speed:\n'.strip()))]


def test_a_bomb_of_aliases_does_not_go_off() -> None:
    bomb = 'a0: &a0 [x, x]\n' + ''.join(
        f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]\n' for i in range(1, 10))
    (error,) = errors(bomb)
    assert 'more than 20000 values, with aliases' in error


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject) -> None:
    lines = GOOD.splitlines(keepends=True)
    index = data.draw(st.integers(0, len(lines) - 1))
    lines[index] = data.draw(st.sampled_from(['', lines[index] * 2])) or data.draw(
        st.text(max_size=20)) + '\n'
    said = ''
    try:
        parse_policy(''.join(lines).encode('utf-8', 'replace'), 'p.yaml')
    except PolicyError as err:
        said = str(err)
    assert all(line.startswith('p.yaml:') for line in said.splitlines())


@pytest.mark.parametrize('path', POLICIES, ids=lambda p: p.name)
def test_our_policies(path: Path) -> None:
    policy = load_policy(path)
    assert policy.name == path.stem
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    jsonschema.validate(content, json_schema())
    top = policy.envelope
    for action in policy.actions.values():
        for term, most in (
            (action.twist.linear_x_m_s, top.max_forward_m_s),
            (action.twist.angular_z_rad_s, top.max_turn_rad_s),
        ):
            values = (term.values or {}).values() if not isinstance(term, float) else [term]
            assert all(abs(value) <= most for value in values)


def test_the_policies_of_the_tests_are_what_they_say() -> None:
    assert load_policy(OURS / 'wide.yaml').leaves == MAX_LEAVES
    assert max(len(a.parameters) for a in load_policy(OURS / 'deep.yaml').actions.values()) == 5
    bench = load_policy(CONFIG / 'bench.yaml')
    assert [len(a.parameters) for a in bench.actions.values()] == [1] * 8
    parameters = [p for a in bench.actions.values() for p in a.parameters.values()]
    assert [len(p.choices) for p in parameters] == [6] * 8


@pytest.mark.parametrize('key', ['choices: [1]', 'grid: {from: 1, to: 2, step: 1}'])
def test_the_schema_wants_choices_or_a_grid(key: str) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    content = yaml.safe_load(GOOD)
    speed = content['actions']['forward']['parameters']['speed']
    speed |= yaml.safe_load(key)
    assert validator.is_valid(content) == ('grid' not in speed)
    speed.pop('choices')
    assert validator.is_valid(content) == ('grid' in speed)


def check_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    check.add_parser(parser.add_subparsers())
    args = parser.parse_args(['check', '--model', 'none', *words])
    return int(args.run(args))


def test_check_says_what_a_policy_declares(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_command(*map(str, POLICIES)) == 0
    said = capsys.readouterr().out
    assert 'explorer: good' in said
    assert 'neato: good' in said
    assert 'fallback  stop' in said


def test_check_tells_the_numbers_that_follow_from_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check_command(str(Path(__file__).parent / 'policies' / 'wanderer.yaml')) == 0
    said = capsys.readouterr().out
    assert 'answers   6: forward slow, forward fast, left gentle' in said
    assert 'time-to-live of a command 1104 ms' in said
    assert 'choice    the likeliest word by word, bias measured over 24 drawn' in said


def test_check_tells_how_an_answer_is_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / 'p.yaml'
    rules = 'decision:\n  decide: best\n  anytime: true\n  history: 4\n'
    more = 'prior: {correction: content_free}\nfree_text: {name: reason}\n'
    path.write_text(GOOD.replace('decision:\n', rules) + more, encoding='utf-8')
    assert check_command(str(path)) == 0
    assert (
        'choice    the likeliest answer, parameters may be the defaults at the deadline, the last '
        '4 decisions are in the prompt, bias measured over observations without content, then a '
        'reason of at most 24 tokens'
    ) in capsys.readouterr().out


def test_check_names_every_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'p.yaml'
    path.write_text(GOOD.replace('radius_m: 0.2', 'radius: 0.2'), encoding='utf-8')
    assert check_command(str(path), str(CONFIG / 'explorer.yaml')) == 3
    said = capsys.readouterr()
    assert f"{path}:5: robot.radius: unknown key; did you mean 'radius_m'?" in said.err
    assert 'explorer: good' in said.out


def test_check_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_command('--schema') == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))


def test_a_footprint_needs_no_radius() -> None:
    text = GOOD.replace('  radius_m: 0.2', '  footprint: [[0.3, 0.4], [-0.1, 0.1], [-0.1, -0.2]]')
    robot = parse_policy(text.encode(), 'p.yaml').robot
    assert robot.footprint == ((0.3, 0.4), (-0.1, 0.1), (-0.1, -0.2))
    assert robot.radius_m == pytest.approx(0.5)
