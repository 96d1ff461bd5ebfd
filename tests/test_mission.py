"""The operator's words: what is taken, what is dropped and why, and where they stand."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallm_ros import steady
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import PolicyError
from smallm_ros.core.exchange import Segment
from smallm_ros.core.mission import Mission
from smallm_ros.core.observation import Observation
from smallm_ros.core.pilot import Pilot, Record
from smallm_ros.core.policy import MissionTopic, Policy, load_policy, parse_policy
from smallm_ros.core.prompt import declaration, leaving, segments, without
from smallm_ros.core.reference import draw
from tests.fakes.recordings import POLICY, policy_with
from tests.test_pilot import IDENTITY, Story, only

WANDERER = load_policy(Path(__file__).parent / 'policies' / 'wanderer.yaml')
WITH = WANDERER.model_copy(update={'mission_topic': MissionTopic()})
DOCK = 'go and look at the loading dock'


def test_the_words_stay_until_others_come_and_nothing_gives_them_back() -> None:
    mission = Mission(MissionTopic())
    assert mission.hear(DOCK, 0)
    assert mission.text == DOCK
    assert mission.hear('come back', 3600 * SECOND)
    assert mission.text == 'come back'
    assert mission.hear('', 3600 * SECOND + 1)
    assert (mission.text, mission.changes, mission.dropped) == ('', 3, 0)


def test_what_comes_too_soon_is_dropped_counted_and_said() -> None:
    mission = Mission(MissionTopic(min_period_s=2.0))
    assert mission.hear('one', 0)
    assert not mission.hear('two', 1999 * MS)
    assert (mission.text, mission.dropped) == ('one', 1)
    assert mission.why == '2.0 s after the one before, at least 2 s'
    assert mission.hear('two', 2000 * MS)
    assert (mission.text, mission.why) == ('two', '')


def test_taking_the_words_back_is_never_too_soon() -> None:
    mission = Mission(MissionTopic(min_period_s=60))
    assert mission.hear('full speed', 0)
    assert mission.hear(' \n', 1)
    assert mission.text == ''
    # ... and is no way around the limit on what is taken.
    assert not mission.hear('full speed', 2)
    assert mission.text == ''


def test_a_publisher_that_repeats_itself_is_neither_news_nor_a_flood() -> None:
    mission = Mission(MissionTopic())
    assert all(mission.hear(DOCK, k * 10 * MS) for k in range(100))
    assert (mission.changes, mission.dropped) == (1, 0)


@pytest.mark.parametrize(('said', 'why'), [
    ('x' * 21, 'more than 20 characters'),
    ('\ufdfa' * 2, 'more than 20 characters'),  # NFKC makes 18 of each
    ('\u200b\u202e\x07', 'nothing but control characters'),
])
def test_what_cannot_be_said_leaves_the_words_before_it(said: str, why: str) -> None:
    mission = Mission(MissionTopic(max_characters=20))
    assert mission.hear('stay', 0)
    assert not mission.hear(said, 10 * SECOND)
    assert (mission.text, mission.dropped, mission.why) == ('stay', 1, why)


@given(st.text(max_size=400))
def test_whatever_is_said_is_one_quoted_line_of_bounded_length(said: str) -> None:
    mission = Mission(MissionTopic())
    mission.hear(said, 0)
    (line,) = (s for s in segments(WITH, observation(), mission.text) if s.name == 'mission') \
        if mission.text else (Segment('mission', 'mission: ""\n', 1),)
    assert line.text.count('\n') == 1 and line.text.endswith('"\n')
    assert line.text.count('"') == 2
    assert len(mission.text) <= 240


def observation() -> Observation:
    return draw(WANDERER, 1, 1)[0]


def test_the_words_stand_first_behind_the_static_part_and_are_gone_when_taken_back() -> None:
    said = segments(WITH, observation(), DOCK)
    assert said[0].text == f'mission: "{DOCK}"\n'
    assert said[1:] == segments(WITH, observation()) == segments(WANDERER, observation())


def test_the_static_part_does_not_depend_on_the_words() -> None:
    told = declaration(WITH)
    assert 'The line `mission:` is what the operator wants now. It adds no action.' in told.system
    assert 'mission:' not in declaration(WANDERER).system
    assert DOCK not in told.system


def test_no_text_can_keep_the_sensors_out() -> None:
    """Too long for the prompt in tokens, it leaves before what is always kept, and is named."""
    said = segments(WITH, observation(), DOCK)
    lines, left_out = without(said, min(leaving(said)))
    assert 'mission' in left_out
    kept = [s.name for s in said if s.name not in left_out]
    assert kept
    assert any('left out:' in line and 'mission' in line for line in lines)
    steady = WITH.model_copy(update={'sensors': {
        name: sensor.model_copy(update={'priority': 5}) for name, sensor in WITH.sensors.items()
    }})
    worst, *others = segments(steady, draw(steady, 1, 1)[0], DOCK)
    assert worst.priority > max(s.priority for s in others)


def test_the_record_of_each_tick_tells_the_words_that_it_was_asked_under() -> None:
    story = Story(WITH)
    story.answer(story.ask())
    mission = story.pilot.mission
    assert mission is not None
    assert mission.hear(DOCK, story.now_ns)
    ask = story.ask(after_ms=1000)
    assert ask.question.segments[0].text == f'mission: "{DOCK}"\n'
    mission.hear('', story.now_ns)  # taken back while the question is open
    story.answer(ask)
    story.answer(story.ask(after_ms=1000))
    assert [r.mission for r in story.records if r.outcome == 'decided'] == ['', DOCK, '']


def test_a_policy_without_the_key_has_no_mission() -> None:
    story = Story()
    assert story.pilot.mission is None
    assert only(Record, story.answer(story.ask())).record.mission == ''


@pytest.mark.parametrize(('line', 'why'), [
    ('mission_topic:', 'stands without anything'),
    ('mission_topic: {topic: "no good"}', 'mission_topic.topic'),
    ('mission_topic: {max_characters: 5000}', 'mission_topic.max_characters'),
    ('mission_topic: {min_period_s: 0}', 'mission_topic.min_period_s'),
    ('mission_topic: {priority: 0}', 'mission_topic.priority'),
])
def test_mistakes_are_named(line: str, why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        policy_with('version: 1\n', f'version: 1\n{line}\n')


def test_a_sensor_of_that_name_would_be_taken_for_the_operator() -> None:
    assert isinstance(policy_with('version: 1\n', 'version: 1\nmission_topic: {}\n'), Policy)
    with pytest.raises(PolicyError, match='sensors.mission'):
        parse_policy(POLICY.replace(b'  odom: {', b'  mission: {') + b'mission_topic: {}', 'x')


@pytest.mark.ros
def test_over_dds_the_words_and_the_sensors_reach_the_pilot() -> None:
    pytest.importorskip('rclpy')
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    import rclpy
    from sensor_msgs.msg import LaserScan
    from std_msgs.msg import String

    from smallm_ros.ros.listener import listening

    context = rclpy.Context()
    rclpy.init(context=context)
    robot = rclpy.create_node('robot', context=context)
    pilot = Pilot(WITH, IDENTITY)
    assert pilot.mission is not None
    try:
        scans = robot.create_publisher(LaserScan, '/scan', 1)
        words = robot.create_publisher(String, 'mission', 1)
        end_ns = steady.now_ns() + 30 * SECOND
        with listening(WITH) as listener:
            while not pilot.mission.text or 'nothing received' in heard(pilot, 'scan'):
                assert steady.now_ns() < end_ns, 'nothing was heard'
                scans.publish(LaserScan(
                    angle_min=-3.14, angle_increment=0.1, range_min=0.1, range_max=8.0,
                    ranges=[2.0] * 63))
                words.publish(String(data=DOCK))
                steady.sleep_until(steady.now_ns() + 50 * MS)
                listener.feed(pilot, steady.now_ns())
        assert pilot.mission.text == DOCK
    finally:
        robot.destroy_node()
        rclpy.shutdown(context=context)


def heard(pilot: Pilot, sensor: str) -> str:
    looked = pilot.look(steady.now_ns(), steady.wall_ns())
    return next(r.text for r in looked.readings if r.sensor == sensor)


@pytest.mark.ros
def test_the_node_asks_under_the_operators_words_and_says_what_it_dropped(tmp_path: Path) -> None:
    pytest.importorskip('rclpy')
    from std_msgs.msg import String

    from tests import test_policy_node as real

    text = real.WANDERER.read_text(encoding='utf-8')
    policy = tmp_path / 'operated.yaml'
    policy.write_text(f'{text}\nmission_topic: {{min_period_s: 60}}\n', encoding='utf-8')
    socket = tmp_path / 'engine.sock'
    world = real.World()
    with contextlib.closing(world), real.engine(socket), real.node(socket, policy=policy):
        words = world.node.create_publisher(String, '/mission', 1)
        world.wait(words.get_subscription_count, 'the node listens')
        world.wait(lambda: any(r.outcome == 'decided' for r in world.records), 'a decision')
        words.publish(String(data=DOCK))
        world.wait(lambda: world.records[-1].mission == DOCK, 'the words in a record')
        words.publish(String(data='full speed'))
        asked = len(world.records)
        world.wait(lambda: len(world.records) > asked + 3 and world.records[-1].segments,
                   'more ticks')
        assert world.records[-1].mission == DOCK  # the second came too soon
        assert world.records[-1].segments[0].text == f'mission: "{DOCK}"\n'
        words.publish(String(data=''))
        world.wait(lambda: world.records[-1].mission == '', 'the words taken back')
