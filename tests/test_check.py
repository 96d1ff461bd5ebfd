"""What `smallm check` warns of and counts: each warning is true, and a fair policy has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallm_ros.bench import advice
from smallm_ros.cli import main
from smallm_ros.core.budget import CostModel
from smallm_ros.core.clock import MS
from smallm_ros.core.policy import load_policy, parse_policy
from smallm_ros.core.prompt import declaration
from tests.fakes.letters import letters
from tests.fakes.recordings import POLICY, policy_with, small_policy

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / 'config' / 'policies').glob('*.yaml'))
MISTRAL = 'mistral-small-24b-instruct-2501-q4_k_m'


def warned(old: str, new: str) -> str:
    return '\n'.join(advice.warnings(policy_with(old, new)))


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_policy_is_not_warned_of_without_a_vocabulary(path: Path) -> None:
    assert list(advice.warnings(load_policy(path))) == []


@pytest.mark.parametrize('text', [
    'Go to {goal}.', 'It is {{ stamp }} now.', 'Go to $GOAL.', 'Go to ${goal}.', 'It is %H now.',
])
def test_a_static_part_in_which_something_should_be_filled_in(text: str) -> None:
    said = warned('mission: Drive without touching anything.', f'mission: "{text}"')
    assert said.startswith('mission: nothing is put in the place of')


@pytest.mark.parametrize('text', [
    'Written on 2026-11-24.', 'Stop at 18:30.', 'Built at 1763960000.',
])
def test_a_static_part_with_a_time_in_it(text: str) -> None:
    said = warned('mission: Drive without touching anything.', f'mission: "{text}"')
    assert said.startswith('mission: ') and 'looks like a time' in said
    assert 'actions.stop.description' in warned(
        'description: stand still', f'description: "{text}"')


@pytest.mark.parametrize('text', [
    'Keep 3 m from people and 50% of the speed.', 'Costs $5 (or more).', 'Room 12 to 15.',
])
def test_a_static_part_that_only_looks_odd(text: str) -> None:
    assert warned('mission: Drive without touching anything.', f'mission: "{text}"') == ''


@pytest.mark.parametrize(('sensor', 'limit_ms', 'so'), [
    ('scan', 2000, False),  # ten scans, and no older than an observation may be
    ('scan', 2400, True),
    ('odom', 6000, False),
    ('odom', 60_000, True),  # optional, but six hundred messages
])
def test_a_sensor_that_may_be_silent_for_long(sensor: str, limit_ms: int, so: bool) -> None:
    rate = {'scan': 'rate_hz: 5,\n         ', 'odom': 'rate_hz: 10, '}[sensor]
    said = warned(f'{rate}stale_after_ms: 1000', f'{rate}stale_after_ms: {limit_ms}')
    assert (f'sensors.{sensor}: lost only after {limit_ms / 1e3:g} s' in said) == so


def actions(*names: str) -> str:
    """Return the warnings of a policy whose actions have these names, a token a letter."""
    head, _, tail = POLICY.decode().partition('actions:\n')
    listed = ''.join(f'  {name}: {{description: x, twist: {{}}}}\n' for name in names)
    text = f'{head}actions:\n{listed}{tail[tail.index("decision:"):]}'
    return '\n'.join(advice.warnings(parse_policy(text.encode(), 'x.yaml'), letters()))


def test_a_name_of_many_tokens() -> None:
    assert actions('go', 'up') == ''
    assert actions('go', 'halt') == (
        'actions.halt: 4 tokens (h|a|l|t), a common word is one or two')


def test_names_that_begin_alike_cost_a_choice_more() -> None:
    assert "actions ab, ac: all begin with 'a'" in actions('ab', 'ac', 'z')
    # What all begin with is forced, and no choice.
    assert actions('ab', 'ac') == ''
    # The end of a name is a token like any other: `a` or `ab` is chosen after `a`.
    assert "actions a, ab: all begin with 'a'" in actions('a', 'ab', 'z')


def test_a_sensors_share_is_what_it_adds_to_a_pass() -> None:
    policy = small_policy()
    found = advice.costs(policy, letters(), CostModel([(1, 10 * MS), (1001, 1010 * MS)]))
    assert set(found.sensors) == {'scan', 'odom'}
    assert found.static > len(declaration(policy).system)
    for name, tokens in found.sensors.items():
        assert found.ns[name] == tokens.most * MS  # a token is a millisecond
    assert found.whole_ns == (9 + found.dynamic.most + found.tail) * MS
    assert max(t.most for t in found.sensors.values()) <= found.dynamic.most <= sum(
        t.most for t in found.sensors.values())
    lines = list(advice.said(found))
    assert any(line.startswith('  cost      scan: ') and line.endswith('when all is new')
               for line in lines)


def test_without_a_cost_model_no_times_are_said() -> None:
    found = advice.costs(small_policy(), letters())
    assert not any(' ms' in line for line in advice.said(found))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / 'small.yaml'
    path.write_bytes(POLICY)
    return str(path)


def test_without_a_model_it_says_so(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(['check', '--model', 'none', file]) == 0
    said = capsys.readouterr().out
    assert 'tokens    not counted, nor what they cost: --model none' in said
    assert 'cost  ' not in said


def test_a_model_that_is_not_there_is_named_and_the_rest_is_checked(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(['check', '--model', '/nowhere/x.gguf', file]) == 0
    said = capsys.readouterr().out
    assert 'small: good' in said
    assert 'tokens    not counted, nor what they cost: /nowhere/x.gguf' in said


def test_a_warning_is_no_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'p.yaml'
    path.write_bytes(POLICY.replace(b'without touching anything', b'to {goal}'))
    assert main.main(['check', '--model', 'none', str(path)]) == 0
    assert "  warning   mission: nothing is put in the place of '{goal}'" in (
        capsys.readouterr().out)


@pytest.mark.model
def test_tokens_are_the_embedded_models_and_times_those_of_a_device(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('llama_cpp')
    assert main.main(['check', '--device', 'agx-orin', file, file]) == 0
    said = capsys.readouterr().out
    assert said.count('on NVIDIA Jetson AGX Orin 64 GB: PREDICTED') == 2
    assert said.count('cost      scan: ') == 2
    assert main.main(['check', '--device', 'abacus', file]) == 2
    assert "device 'abacus' is unknown: one of rtx4090" in capsys.readouterr().err


@pytest.mark.model
def test_of_a_model_that_is_not_here_the_times_are_not_known(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('mistral_common')
    from smallm_ros.bench import workload

    if workload.subject(MISTRAL).path is not None:
        pytest.skip('the 24B model is here')
    assert main.main(['check', '--model', MISTRAL, file]) == 0
    said = capsys.readouterr().out
    assert 'tokens    Tekken' in said
    assert 'times     not known: ' in said and '--device rtx4090|' in said


def test_a_path_that_the_message_does_not_have_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / 'p.yaml'
    path.write_bytes(POLICY.replace(b'  odom: {', b"""\
  push: {type: geometry_msgs/msg/Wrench, topic: /push, rate_hz: 10, stale_after_ms: 1000,
         fields: [{name: ahead, path: force.w}]}
  odom: {"""))
    assert main.main(['check', '--model', 'none', str(path)]) == 3
    err = capsys.readouterr().err
    assert f'{path}:8: sensors.push: ' in err
    assert "geometry_msgs/msg/Vector3 has no field 'w'" in err
