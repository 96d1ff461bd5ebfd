"""The action space, and the frames that carry commands between processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallm_ros.core.action import (
    MAX_JSON_BYTES,
    STOP,
    ActionSpace,
    Applied,
    Command,
    NodeStatus,
    Velocity,
    parse_frame,
)
from smallm_ros.core.choice import choice_text
from smallm_ros.core.errors import CommandError
from smallm_ros.core.policy import (
    ActionDeclaration,
    Parameter,
    TwistMapping,
    load_policy,
    parse_policy,
)

POLICY = load_policy(Path(__file__).parent / 'policies' / 'wanderer.yaml')

COMMAND: dict[str, Any] = {
    'version': 1, 'session': '0123456789abcdef', 'sequence': 7, 'request': 9, 'action': 'forward',
    'parameters': {'speed': 'fast'}, 'linear_x_m_s': 0.25, 'angular_z_rad_s': 0.0,
    'observation_stamp_ns': 1_000, 'arrival_ns': 2_000, 'deadline_ns': 3_000,
    'valid_until_ns': 4_000, 'confidence': 0.9, 'partial': False, 'host': 'robot', 'boot': 'b',
}
STATUS: dict[str, Any] = {
    'version': 1, 'session': '0123456789abcdef', 'sequence': 1, 'steady_ns': 4,
    'pid': 5, 'start_ticks': 6,
    'active': True, 'engine': 'ready', 'worker_pid': 0, 'worker_start_ticks': 0, 'progress': 0,
    'progress_ns': 0, 'in_flight': 0, 'in_flight_since_ns': 0, 'in_flight_bound_ns': 0,
    'request': 0, 'misses': 0, 'served': 0, 'last_outcome': '', 'host': 'robot', 'boot': 'b',
}
APPLIED: dict[str, Any] = {
    'version': 1, 'sequence': 1, 'steady_ns': 5, 'state': 'ACTIVE', 'cause': 'none',
    'source': 'model', 'valid_until_ns': 0, 'linear_x_m_s': 0.1, 'angular_z_rad_s': 0.0,
    'command_session': '', 'command_sequence': 0, 'observation_stamp_ns': 0, 'late_ns': 0,
    'limited': False,
}


def test_every_leaf_has_one_answer_of_its_own() -> None:
    space = ActionSpace.of(POLICY)
    assert len(space.actions) == POLICY.leaves
    assert len(set(space.answers)) == POLICY.leaves
    for action in space.actions:
        assert space.find(action.name, dict(action.parameters)) == action


def test_what_is_not_declared_is_not_found() -> None:
    space = ActionSpace.of(POLICY)
    assert space.find('forward', {}) is None
    assert space.find('forward', {'speed': 'ludicrous'}) is None
    assert space.find('forward', {'speed': 'fast', 'extra': '1'}) is None
    assert space.find('Forward', {'speed': 'fast'}) is None


def test_choices_become_velocities() -> None:
    policy = parse_policy(b"""
version: 1
name: choices
mission: Drive.
robot: {radius_m: 0.2}
sensors:
  scan: {type: sensor_msgs/msg/LaserScan, topic: /scan, required: true, rate_hz: 10,
         stale_after_ms: 500}
actions:
  arc:
    description: drive an arc
    parameters:
      metres: {choices: [0.25, 1, -0.5], default: 1}
      careful: {choices: [true, false], default: true}
    twist:
      linear_x_m_s: {by: metres}
      angular_z_rad_s: {by: careful, values: {'true': 0.1, 'false': 0.4}}
  stop: {description: stand still, twist: {}}
decision: {rate_hz: 2, budget_ms: 400, max_observation_age_ms: 2200}
envelope: {max_forward_m_s: 1, max_turn_rad_s: 1, max_acceleration_m_s2: 1,
           max_deceleration_m_s2: 1, max_angular_acceleration_rad_s2: 1, obstacle_sensors: [scan]}
""", 'choices.yaml')
    space = ActionSpace.of(policy)
    assert space.answers == (
        'arc 0.25 true', 'arc 0.25 false', 'arc 1 true', 'arc 1 false', 'arc -0.5 true',
        'arc -0.5 false', 'stop',
    )
    assert [a.velocity for a in space.actions] == [
        Velocity(0.25, 0.1), Velocity(0.25, 0.4), Velocity(1.0, 0.1), Velocity(1.0, 0.4),
        Velocity(-0.5, 0.1), Velocity(-0.5, 0.4), Velocity(0.0, 0.0),
    ]


def space_of(name: str) -> ActionSpace:
    return ActionSpace.of(load_policy(Path(__file__).parent / 'policies' / f'{name}.yaml'))


def test_a_grid_gives_the_numbers_that_it_says() -> None:
    space = space_of('wide')
    found = {a.answer: a.velocity for a in space.actions}
    assert len(found) == 512
    assert found['forward 0.3'] == Velocity(0.3, 0.0)
    assert found['back -0.07'] == Velocity(-0.07, 0.0)
    assert found['arc-left 0.345'] == Velocity(0.0, 0.345)
    assert found['swing 0'] == STOP
    assert max(map(len, found)) == len('arc-right -0.015')


def test_a_grid_can_be_looked_up_too() -> None:
    space = space_of('prefixes')
    (found,) = [a for a in space.actions if a.answer == 'turn-left 10']
    assert found.velocity == Velocity(0.0, 0.4)


def test_an_optional_parameter_is_left_out_when_it_has_its_default_and_only_then() -> None:
    space = space_of('prefixes')
    answers = set(space.answers)
    assert {'turn left', 'turn right 100', 'turn left fast', 'turn left faster 10'} < answers
    assert not {'turn left slow', 'turn left 1', 'turn left fast 1', 'turn-left 1'} & answers
    assert len(answers) == len(space.actions) == 2 * 3 * 3 + 3 + 1 + 1
    silent = space.find('turn', {'side': 'left', 'speed': 'slow', 'metres': '1'})
    assert silent is not None
    assert silent.answer == 'turn left'
    assert silent.velocity == Velocity(0.0, 0.2)


@pytest.mark.parametrize('name', ['prefixes', 'ties', 'wide', 'deep', 'wanderer'])
def test_all_default_departs_by_nothing_and_the_first_parameter_weighs_most(name: str) -> None:
    policy = load_policy(Path(__file__).parent / 'policies' / f'{name}.yaml')
    for action in ActionSpace.of(policy).actions:
        parameters = policy.actions[action.name].parameters
        differs = [v != choice_text(parameters[k].default) for k, v in action.parameters]
        assert action.departure == int('0' + ''.join(map(str, map(int, differs))), 2)
    for one in policy.actions:
        zero = [a for a in ActionSpace.of(policy).actions if a.name == one and a.departure == 0]
        assert len(zero) == 1


def test_the_weights_of_the_most_parameters_fit_into_63_bits() -> None:
    parameters = {f'p{i}': Parameter(choices=(0, 1), default=0) for i in range(16)}
    declared = ActionDeclaration(description='x', parameters=parameters, twist=TwistMapping())
    farthest = ActionSpace.of(POLICY.model_copy(update={'actions': {'all': declared}})).actions[-1]
    assert farthest.departure == 2**16 - 1


@pytest.mark.parametrize(('kind', 'fields'), [
    (Command, COMMAND), (NodeStatus, STATUS), (Applied, APPLIED),
])
def test_a_frame_travels(kind: type[Any], fields: dict[str, Any]) -> None:
    frame = kind.model_validate(fields)
    assert parse_frame(kind, frame.to_json()) == frame
    assert json.loads(frame.to_json()) == fields


@pytest.mark.parametrize(('change', 'why'), [
    ({'version': 2}, 'version'),
    ({'session': 'xyz'}, 'session'),
    ({'sequence': 0}, 'sequence'),
    ({'sequence': True}, 'sequence'),
    ({'sequence': '7'}, 'sequence'),
    ({'sequence': 7.5}, 'sequence'),
    ({'linear_x_m_s': '0.25'}, 'linear_x_m_s'),
    ({'linear_x_m_s': None}, 'linear_x_m_s'),
    ({'confidence': 1.01}, 'confidence'),
    ({'confidence': -0.01}, 'confidence'),
    ({'arrival_ns': -1}, 'arrival_ns'),
    ({'deadline_ns': 2**63}, 'deadline_ns'),
    ({'action': 'a' * 33}, 'action'),
    ({'parameters': {str(i): 'x' for i in range(17)}}, 'parameters'),
    ({'parameters': {'speed': 1}}, 'parameters.speed'),
    ({'extra': 1}, 'extra'),
])
def test_a_field_that_does_not_fit(change: dict[str, Any], why: str) -> None:
    with pytest.raises(CommandError, match=f'^Command: {why}'):
        parse_frame(Command, json.dumps({**COMMAND, **change}))


@pytest.mark.parametrize('missing', sorted(set(COMMAND) - {'version'}))
def test_a_missing_field(missing: str) -> None:
    fields = {k: v for k, v in COMMAND.items() if k != missing}
    with pytest.raises(CommandError, match=f'^Command: {missing}: Field required'):
        parse_frame(Command, json.dumps(fields))


TEXT = json.dumps(COMMAND)


@pytest.mark.parametrize(('text', 'why'), [
    ('', 'not JSON'),
    ('null', 'frame'),
    ('[]', 'frame'),
    (TEXT[:-1], 'not JSON'),
    (TEXT + ' {}', 'not JSON'),
    (TEXT.replace('0.25', 'NaN'), 'NaN is no number here'),
    (TEXT.replace('0.25', '-Infinity'), '-Infinity is no number here'),
    (TEXT.replace('0.25', '1e999'), 'linear_x_m_s'),
    (TEXT.replace('0.25', '9' * 400), 'linear_x_m_s'),
    (TEXT[:-1] + ', "sequence": 8}', 'a key stands twice'),
    (TEXT.replace('"fast"', '"' + 'x' * MAX_JSON_BYTES + '"'), 'more than 4096 bytes'),
    (TEXT.replace('"fast"', '"' + 'ü' * 2000 + '"'), 'more than 4096 bytes'),
    ('[' * 4000, 'not JSON'),
    (TEXT.replace('7', '7' * 4000), 'Command'),
])
def test_text_that_is_no_frame(text: str, why: str) -> None:
    with pytest.raises(CommandError, match='^Command: ') as caught:
        parse_frame(Command, text)
    assert why in str(caught.value)


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda b: b.decode('latin-1')))
def test_any_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(CommandError):
        parse_frame(Command, text)


@given(st.integers(0, len(TEXT) - 1), st.characters())
def test_any_damaged_frame_is_refused_or_whole(index: int, letter: str) -> None:
    try:
        command = parse_frame(Command, TEXT[:index] + letter + TEXT[index + 1:])
    except CommandError:
        return
    assert Command.model_validate(command.model_dump()) == command
