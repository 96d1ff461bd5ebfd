"""Actions that say something other than a velocity: which messages, to whom, and only when."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallm_ros.cli import check
from smallm_ros.cli import main as cli
from smallm_ros.core.action import STOP
from smallm_ros.core.errors import OperatorError, PolicyError
from smallm_ros.core.gate import State
from smallm_ros.core.mapping import VELOCITIES, disordered, misfits
from smallm_ros.core.observation import Received
from smallm_ros.core.observe import observe
from smallm_ros.core.outlet import Leaving, Outlet, messages, stops
from smallm_ros.core.policy import Policy, json_schema, load_policy, parse_policy
from smallm_ros.core.prompt import segments
from smallm_ros.replay.bag import Bag
from smallm_ros.ros import limits, outputs
from tests.fakes.recordings import SHARED_BAGS
from tests.test_gate import Story

CONFIG = Path(__file__).parents[1] / 'config' / 'policies'
ROUND = (Path(__file__).parent / 'fakes' / 'round_robot.yaml').read_text(encoding='utf-8')
OUTPUTS = """\
outputs:
  lamp: {type: std_msgs/msg/Bool, topic: lamp, on_stop: {data: false}}
  place: {type: std_msgs/msg/String, topic: place, on_change: true}
"""
TALKING = ROUND.replace(
    'fast: 0.3}}}\n',
    'fast: 0.3}}}\n    command: {lamp: {data: {by: speed, values: {slow: false, fast: true}}}, '
    'place: {data: {by: speed}}}\n') + OUTPUTS
"""The robot of the gate's tests, that lights a lamp and says where it is going."""
POLICY = parse_policy(TALKING.encode(), 'talking.yaml')

STILL = """\
version: 1
name: still
mission: Look.
base: none
sensors:
  odom: {type: nav_msgs/msg/Odometry, topic: /odom, required: true, rate_hz: 20,
         stale_after_ms: 500}
outputs:
  head: {type: std_msgs/msg/Float64, topic: head, on_stop: {data: 0}}
actions:
  look:
    description: turn the head
    parameters: {angle: {grid: {from: -0.5, to: 0.5, step: 0.25}, default: 0}}
    command: {head: {data: {by: angle}}}
  rest: {description: look ahead, command: {head: {data: 0.0}}}
decision: {rate_hz: 2, budget_ms: 400, max_observation_age_ms: 2000}
"""


def told(policy: Policy, outlet: Outlet, story: Story, late_ms: float = 0) -> list[str]:
    """Let one control period pass, return what leaves as `output=data`."""
    output = story.tick()
    now_ns = story.clock.now_ns() + round(late_ms * 1e6)
    return [f'{each.output}={dict(each.message)["data"]}' for each in outlet.step(output, now_ns)]


def started() -> tuple[Story, Outlet, list[str]]:
    story, outlet, said = Story(policy=POLICY), Outlet(POLICY), []
    while story.state is not State.ACTIVE or not said:
        assert story.ticks < 100
        said += told(POLICY, outlet, story)
    return story, outlet, said


# --- when -----------------------------------------------------------------------------------


def test_nothing_leaves_before_a_command_is_applied_and_then_each_message_once() -> None:
    story, outlet, said = started()
    assert said == ['lamp=True', 'place=fast']
    for _ in range(9):  # the next command is ten periods after the last
        if story.ticks % 10 == 9:
            break
        assert told(POLICY, outlet, story) == []
    assert told(POLICY, outlet, story) == ['lamp=True'], 'the place is said when it changes'
    story.command_with = {'parameters': {'speed': 'slow'}, 'linear_x_m_s': 0.1}
    said = [line for _ in range(10) for line in told(POLICY, outlet, story)]
    assert said == ['lamp=False', 'place=slow']


def test_in_degraded_nothing_is_said_but_the_stop_and_that_once() -> None:
    story, outlet, _ = started()
    story.command_with = {'confidence': 0.1}  # refused: DEGRADED, the last one is held
    said: list[str] = []
    while story.state is State.ACTIVE:
        said += told(POLICY, outlet, story)
    assert story.state is State.DEGRADED
    assert said == ['lamp=False']
    assert story.last.source == 'hold', 'the velocity goes on for a while'
    assert [line for _ in range(20) for line in told(POLICY, outlet, story)] == []


def test_shadow_answers_in_fallback_say_nothing() -> None:
    story, outlet, _ = started()
    story.dead = {story.worker}
    assert told(POLICY, outlet, story) == ['lamp=False']
    assert story.state is State.FALLBACK
    story.dead, story.worker = set(), (201, 1)
    while story.state is State.FALLBACK:
        assert told(POLICY, outlet, story) == []
    assert any(out.state is State.FALLBACK for out in story.outputs)
    while story.state is State.DEGRADED:
        said = told(POLICY, outlet, story)
    said += [line for _ in range(10) for line in told(POLICY, outlet, story)]
    assert said[:2] == ['lamp=True', 'place=fast'], 'after a stop it is said anew'


def test_what_has_expired_by_the_time_it_would_leave_does_not() -> None:
    story, outlet, _ = started()
    for _ in range(30):
        assert told(POLICY, outlet, story, late_ms=2000) == []
    assert story.state is State.ACTIVE


def test_a_velocity_that_is_not_the_models_is_no_reason_to_speak() -> None:
    story, outlet, _ = started()
    output = dataclasses.replace(story.last, source='hold')
    assert outlet.step(output, story.clock.now_ns()) == stops(POLICY)


def test_a_command_does_not_speak_again_after_a_wait() -> None:
    story, outlet, _ = started()
    story.deciding = False
    story.simulated, story.ros_rate = True, 0.0  # the world is paused
    said = [line for _ in range(6) for line in told(POLICY, outlet, story)]
    assert said == ['lamp=False']
    assert (story.state, story.last.source) == (State.ACTIVE, 'stop')
    story.ros_rate = 1.0
    assert told(POLICY, outlet, story) == []
    assert story.last.source == 'model', 'it drives on'


def test_the_emergency_stop_and_the_end_of_the_watchdog_are_a_stop() -> None:
    story, outlet, _ = started()
    story.estop = True
    assert told(POLICY, outlet, story) == ['lamp=False']
    assert outlet.stop() == ()
    _, outlet, _ = started()
    assert outlet.stop() == stops(POLICY)
    assert outlet.stop() == ()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(
    ['estop', 'unsure', 'dead', 'silent', 'pause', 'well', 'well', 'well']),
    min_size=5, max_size=40), st.booleans())
def test_whatever_happens_a_message_leaves_only_while_active_and_once(
    events: list[str], late: bool,
) -> None:
    story, outlet = Story(policy=POLICY), Outlet(POLICY)
    spoke: set[tuple[str, int]] = set()
    was_open = False
    for event in ['well'] * 8 + events:
        story.estop, story.status_silent = event == 'estop', event == 'silent'
        story.command_with = {'confidence': 0.1} if event == 'unsure' else {}
        story.dead = {story.worker} if event == 'dead' else set()
        story.simulated, story.ros_rate = event == 'pause', 0.0 if event == 'pause' else 1.0
        for _ in range(8):
            output = story.tick()
            now_ns = story.clock.now_ns() + (600_000_000 if late else 0)
            due = outlet.step(output, now_ns)
            applied = output.state is State.ACTIVE and output.source == 'model'
            if not applied:
                assert due == (stops(POLICY) if was_open else ())
            elif due:
                assert output.command is not None
                command = output.command.session, output.command.sequence
                assert command not in spoke
                assert now_ns < output.command.valid_until_ns
                spoke.add(command)
            was_open = applied


# --- a robot that is no mobile base -----------------------------------------------------------


def test_without_a_base_the_gate_works_and_no_velocity_ever_leaves() -> None:
    policy = parse_policy(STILL.encode(), 'still.yaml')
    story, outlet = Story(policy=policy), Outlet(policy)
    story.silent |= {'scan'}
    story.command_with = {
        'action': 'look', 'parameters': {'angle': '0.25'}, 'linear_x_m_s': 0.0}
    said: list[str] = []
    while not said:
        assert story.ticks < 100, story.last.findings
        said += told(policy, outlet, story)
    assert said == ['head=0.25']
    story.silent |= {'odom'}
    while story.state is State.ACTIVE:
        said += told(policy, outlet, story)
    assert said[-1] == 'head=0'
    story.run(4000)
    assert {out.velocity for out in story.outputs} == {STOP}
    assert {out.state for out in story.outputs} >= {State.ACTIVE, State.SAFE_STOP}


def test_a_velocity_in_a_command_of_a_robot_without_a_base_is_refused() -> None:
    policy = parse_policy(STILL.encode(), 'still.yaml')
    story = Story(policy=policy)
    story.silent |= {'scan'}
    story.command_with = {'action': 'rest', 'parameters': {}, 'linear_x_m_s': 0.1}
    story.run(3000)
    assert all(out.command is None for out in story.outputs)


def test_its_limits_are_no_parameters() -> None:
    policy = parse_policy(STILL.encode(), 'still.yaml')
    named = limits.places(policy)
    assert set(named) == {
        'limits.fallback_speed_m_s', 'limits.fallback_turn_rad_s', 'limits.min_confidence'}
    surer = limits.changed(policy, {'limits.min_confidence': 0.5})
    assert (surer.base, surer.decision.min_confidence) == ('none', 0.5)


# --- what a policy file may say ---------------------------------------------------------------


WRONG = [
    (STILL, 'base: none\n', '', 'is missing'),
    (STILL, 'base: none\n', 'base: none\nrobot: {radius_m: 0.2}\n',
     'still.yaml:5: robot: base is none: leave it out'),
    (STILL, 'command: {head: {data: 0.0}}', 'twist: {}',
     'still.yaml:15: actions.rest: twist, and base is none: nothing drives'),
    (STILL, 'decision:', 'fallback: {ladder: [creep, stop]}\ndecision:',
     "fallback: base is none: the ladder is ['stop']"),
    (STILL, '{head: {data: 0.0}}', '{haed: {data: 0.0}}',
     "actions.rest: command: 'haed' is no output; there are: head"),
    (STILL, 'description: look ahead, command: {head: {data: 0.0}}', 'description: look ahead',
     'actions.rest: twist is missing; or a `command` onto an output'),
    (STILL, '{by: angle}', '{by: angel}', "by 'angel' is no parameter; there are: angle"),
    (STILL, '{by: angle}', '{by: angle, values: {0: 1}}',
     "command: head: data: no value for choice '-0.5' of 'angle'"),
    (STILL, 'on_stop: {data: 0}', 'on_stop: {data: {by: angle}}',
     'nothing is chosen when the robot stops'),
    (STILL, 'std_msgs/msg/Float64', 'geometry_msgs/msg/Twist',
     'geometry_msgs/msg/Twist is a velocity: say it with `twist`'),
    (STILL, 'topic: head', 'topic: /robot/cmd_vel', "'/robot/cmd_vel' is not for actions"),
    (STILL, 'topic: head', 'topic: estop', "'estop' is not for actions"),
    (STILL, 'outputs:\n', 'outputs:\n  idle: {type: std_msgs/msg/Bool, topic: idle}\n',
     'outputs.idle: no action has a command on it'),
    (STILL, '{by: angle}', '[{by: angle, values: {-0.5: [1], -0.25: 2, 0: 3, 0.25: 4, 0.5: 5}}]',
     'command: head: data: a list in a list'),
    (STILL, '{head: {data: 0.0}}', '{head: {"points[1].x": 0.0}}',
     'points[1].x: points[1] after 0 elements: a list is filled from [0] on'),
    (STILL, '{head: {data: 0.0}}', '{head: {"data[0]": 0.0}}',
     'data[0]: give the list as a whole'),
    (STILL, '{head: {data: 0.0}}', '{head: {__class__: 0.0}}', 'String should match pattern'),
    (STILL, '{head: {data: 0.0}}', '{head: {data: .inf}}', 'finite'),
    (TALKING, 'topic: place', 'topic: /lamp', 'topic lamp is of two outputs'),
    (ROUND, '  obstacle_sensors: [scan]\n', '', 'envelope.obstacle_sensors: is missing'),
    (ROUND, 'obstacle_sensors: [scan]', 'obstacle_sensors: []', 'envelope.obstacle_sensors'),
]


@pytest.mark.parametrize(('text', 'old', 'new', 'sentence'), WRONG)
def test_what_cannot_be_is_refused_with_its_place(
    text: str, old: str, new: str, sentence: str,
) -> None:
    assert text.count(old) >= 1
    with pytest.raises(PolicyError) as caught:
        parse_policy(text.replace(old, new, 1).encode(), 'still.yaml')
    assert sentence in str(caught.value)


def test_the_schema_knows_when_robot_and_envelope_are_needed() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    still, moving = yaml.safe_load(STILL), yaml.safe_load(ROUND)
    assert validator.is_valid(still)
    assert not validator.is_valid({**still, 'robot': moving['robot']})
    assert validator.is_valid(moving)
    for key in ('robot', 'envelope'):
        assert not validator.is_valid({k: v for k, v in moving.items() if k != key})


def test_every_answer_has_its_messages_in_the_order_of_the_action_space() -> None:
    said = messages(parse_policy(STILL.encode(), 'still.yaml'))
    assert [dict(message)['data'] for ((_, message),) in said] == [-0.5, -0.25, 0, 0.25, 0.5, 0.0]


# --- against the fields of a message ------------------------------------------------------------

FIELDS: Mapping[str, Mapping[str, str]] = {
    'a/msg/Whole': {
        'stamp': 'builtin_interfaces/Time', 'flag': 'boolean', 'small': 'int8', 'byte': 'octet',
        'real': 'float', 'wide': 'double', 'word': 'string', 'short': 'string<4>',
        'three': 'double[3]', 'some': 'sequence<int32>', 'few': 'sequence<uint8, 2>',
        'parts': 'sequence<a/Part>', 'pair': 'a/Part[2]', 'part': 'a/Part',
    },
    'a/msg/Part': {'x': 'double', 'deep': 'a/Part'},
    'builtin_interfaces/msg/Time': {'sec': 'int32', 'nanosec': 'uint32'},
}

FITS = [
    {'stamp': 'now'}, {'stamp.sec': 5, 'stamp.nanosec': 1}, {'flag': True}, {'small': -128},
    {'byte': 255}, {'real': 3}, {'wide': 1e300}, {'word': ''}, {'short': 'four'},
    {'three': (1, 2.0, 3)}, {'some': ()}, {'few': (0, 255)}, {'part.x': 1.5},
    {'parts[0].x': 1.0, 'parts[1].deep.x': 2}, {'pair[0].x': 1.0}, {},
]
MISFITS = [
    ({'nothing': 1}, "a/msg/Whole has no field 'nothing'; it has: stamp, flag"),
    ({'part.y': 1}, "a/Part has no field 'y'; it has: x, deep"),
    ({'flag.on': True}, "boolean has no fields, not 'on' either"),
    ({'stamp': 5}, "is a builtin_interfaces/Time: 'now', or its .sec and .nanosec"),
    ({'word': 'now', 'flag': 'now'}, 'flag: is true or false'),
    ({'flag': 1}, 'is true or false, not 1'), ({'small': 128}, 'is int8, -128 to 127, not 128'),
    ({'small': True}, 'is int8'), ({'small': 1.0}, 'is int8'), ({'byte': -1}, 'is octet, 0 to'),
    ({'real': 1e39}, 'is a float'), ({'wide': '1'}, "is a double, not '1'"),
    ({'wide': True}, 'is a double'), ({'word': 3}, 'is a string, not 3'),
    ({'short': 'fives'}, 'has at most 4 characters, not 5'),
    ({'three': (1, 2)}, 'has exactly 3 elements, not 2'), ({'three': 1}, 'is a list of double'),
    ({'few': (1, 2, 3)}, 'has at most 2 elements, not 3'), ({'some': (1, 'a')}, 'is int32'),
    ({'wide': (1.0,)}, 'is one double, not a list'), ({'part': 1}, 'name its fields, after a dot'),
    ({'part[0].x': 1}, 'part is one a/Part, no list'),
    ({'pair[0].x': 1, 'pair[1].x': 1, 'pair[2].x': 1}, 'pair has 2 elements, none is [2]'),
]


@pytest.mark.parametrize('values', FITS, ids=str)
def test_what_fits(values: dict[str, Any]) -> None:
    assert list(misfits('a/msg/Whole', values, FIELDS.__getitem__)) == []
    assert disordered(values) == ''


@pytest.mark.parametrize(('values', 'sentence'), MISFITS, ids=str)
def test_what_does_not_fit_is_said(values: dict[str, Any], sentence: str) -> None:
    (wrong,) = misfits('a/msg/Whole', values, FIELDS.__getitem__)
    path = list(values)[-1]
    assert sentence in wrong
    assert wrong.startswith(f'{path}: ')


# --- the real classes ---------------------------------------------------------------------------


class Mouth:
    """A publisher that keeps what it is given, or cannot publish."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.said: list[Any] = []

    def publish(self, message: Any) -> None:
        if self.broken:
            raise RuntimeError('no middleware')
        self.said.append(message)


def shipped(name: str, *packages: str) -> Policy:
    for package in ('rclpy', *packages):
        pytest.importorskip(package)
    return load_policy(CONFIG / f'{name}.yaml')


def built(policy: Policy, answer: int) -> dict[str, Any]:
    return {
        output: outputs.build(policy.outputs[output].type, message).message
        for output, message in messages(policy)[answer]
    }


real_classes = pytest.mark.filterwarnings('ignore:module .sre_:DeprecationWarning')


@real_classes
def test_a_goal_for_nav2_is_a_pose_in_the_map() -> None:
    policy = shipped('warehouse', 'geometry_msgs')
    shelf = built(policy, 1)
    pose = shelf['goal']
    assert pose.header.frame_id == 'map'
    assert (pose.pose.position.x, pose.pose.position.y) == (12.0, 3.5)
    assert pose.pose.orientation.z == pytest.approx(pose.pose.orientation.w)
    assert shelf['pause'].data is False
    assert set(built(policy, 3)) == {'pause'}


@real_classes
def test_a_trajectory_has_its_joints_and_its_point() -> None:
    policy = shipped('pan_tilt', 'trajectory_msgs')
    head = built(policy, 0)['head']
    assert list(head.joint_names) == ['pan_joint', 'tilt_joint']
    (point,) = head.points
    assert list(point.positions) == [0.8, -0.4]
    assert point.time_from_start.sec == 1


@real_classes
def test_every_answer_of_every_shipped_policy_is_a_message_that_can_be_sent() -> None:
    pytest.importorskip('rclpy')
    from rclpy.serialization import serialize_message

    seen = 0
    for path in sorted(CONFIG.glob('*.yaml')):
        policy = load_policy(path)
        for answer in range(policy.leaves):
            said = dict(messages(policy)[answer])
            for output in said.keys() - outputs.unchecked(policy).keys():
                message = outputs.build(policy.outputs[output].type, said[output]).message
                seen += bool(serialize_message(message))
    assert seen >= 10


@real_classes
def test_one_that_cannot_be_published_is_counted_and_the_others_leave() -> None:
    policy = shipped('warehouse', 'geometry_msgs')
    mouths = {'goal_pose': Mouth(broken=True), 'pause_navigation': Mouth()}
    made = outputs.Outputs(policy, lambda kind, topic: mouths[topic])
    failures: list[str] = []
    due = tuple(Leaving(*each) for each in messages(policy)[1])
    made._publish(due, (7, 8), lambda: failures.append('goal'))
    assert failures == ['goal']
    assert [message.data for message in mouths['pause_navigation'].said] == [False]
    assert made.published == {'pause': 1}
    mouths['goal_pose'].broken = False
    made._publish(due, (7, 8), lambda: failures.append('again'))
    (pose,) = mouths['goal_pose'].said
    assert (pose.header.stamp.sec, pose.header.stamp.nanosec) == (7, 8), '`now` is when it leaves'
    assert failures == ['goal']


@real_classes
@pytest.mark.parametrize(('old', 'new', 'sentence'), [
    ('{data: 0.0}', '{dta: 0.0}',
     ':15: actions.rest.command.head: dta: std_msgs/msg/Float64 has no field'),
    ('{data: 0.0}', '{data: true}', ':15: actions.rest.command.head: data: is a double, not True'),
    ('on_stop: {data: 0}', 'on_stop: {data: soon}',
     ':9: outputs.head.on_stop: data: is a double, not \'soon\''),
    ('std_msgs/msg/Float64', 'std_msgs/msg/Flaot64', ':9: outputs.head.type: message type '
     'std_msgs/msg/Flaot64 is not installed'),
])
def test_check_holds_messages_against_their_classes_and_names_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, sentence: str,
) -> None:
    pytest.importorskip('std_msgs.msg')
    file = tmp_path / 'still.yaml'
    file.write_text(STILL.replace(old, new, 1), encoding='utf-8')
    assert cli.main(['check', '--model', 'none', str(file)]) == PolicyError.exit_code
    assert f'{file}{sentence}' in capsys.readouterr().err
    with pytest.raises(OperatorError):
        outputs.Outputs(load_policy(file), lambda kind, topic: Mouth())


def test_check_says_which_messages_it_could_not_check() -> None:
    text = STILL.replace('std_msgs/msg/Float64', 'nobody_msgs/msg/Has')
    policy = parse_policy(text.encode(), 'still.yaml')
    assert outputs.unchecked(policy) == {'head': 'nobody_msgs/msg/Has'}
    said = check.account(policy, 'still.yaml')
    assert 'head: head (nobody_msgs/msg/Has), NOT checked: its package is not installed' in said
    assert 'base      none: cmd_vel is not published' in said


def test_no_shipped_output_carries_a_velocity() -> None:
    for path in CONFIG.glob('*.yaml'):
        policy = load_policy(path)
        assert not {each.type for each in policy.outputs.values()} & VELOCITIES
        if policy.base == 'mobile':
            assert policy.envelope.obstacle_sensors


# --- recorded robots ----------------------------------------------------------------------------

BAGS = {
    'neato_test_drive': ('neato', {'/accel: skipped,', '/bump: skipped,'}),
    'neato_obstacle_avoider': ('neato', {'/accel: skipped,', '/bump: skipped,'}),
    'husky_outdoor_gps': ('husky', set()),
    'tb3_waffle_gazebo_walker': ('turtlebot3', {'/performance_metrics: skipped,'}),
    'abitobot_gazebo_mcap': ('gripper', {'/joint_states: header stamps are'}),
}
"""Each with its policy, and how the warnings begin that are true of it: types that nobody here
knows, and simulated stamps without their clock."""


@pytest.mark.parametrize('name', BAGS)
def test_a_recorded_bag_turns_into_prompts_with_a_shipped_policy(name: str) -> None:
    path = SHARED_BAGS / name
    if not path.is_dir():
        pytest.skip(f'the recorded bags are not there: {path}')
    stem, true_warnings = BAGS[name]
    policy = load_policy(CONFIG / f'{stem}.yaml')
    newest: dict[str, Received] = {}
    prompts: list[str] = []
    unfit = 0
    with Bag(path, policy) as bag:
        due_ns = bag.begin_ns + policy.decision_period_ns
        for reading in bag.readings():
            while due_ns <= reading.bag_ns:
                seen = observe(policy, newest, due_ns, bag.ros_time.at(due_ns))
                if seen.fit:
                    prompts.append(''.join(s.text for s in segments(policy, seen)))
                unfit += not seen.fit
                due_ns += policy.decision_period_ns
            newest[reading.sensor] = Received(
                reading.sensor, reading.fields, reading.bag_ns, bag.ros_time.at(reading.bag_ns))
        assert not bag.dropped
        warnings = {' '.join(line.split()[:2]) for line in bag.warnings}
    assert warnings == {' '.join(line.split()[:2]) for line in true_warnings}
    assert newest.keys() == policy.sensors.keys(), 'every sensor of the policy spoke'
    assert len(prompts) > 20
    assert unfit <= 0.05 * len(prompts) + 1, 'gaps of the recording'
    assert len(set(prompts)) > 5, 'the world is seen to change'
    assert not [text for text in prompts if 'absurd' in text or 'nothing received' in text]
