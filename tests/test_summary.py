"""From fields to readings: what the model is told, and what is never believed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import PolicyError
from smallm_ros.core.observation import Observation, Quality, Reading, Received, StampFault
from smallm_ros.core.observe import OLD_LEAST_NS, RATE_WINDOW, Rate, age_words, observe
from smallm_ros.core.policy import Policy, load_policy, parse_policy
from smallm_ros.core.sensor import Scene
from smallm_ros.core.summary import goal as goal_family
from smallm_ros.core.summary import odometry as odometry_family
from smallm_ros.core.summary import scan as scan_family
from smallm_ros.core.summary.goal import Goal
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.place import Place
from smallm_ros.core.summary.scan import Bin, Scan, ScanSensor, Sector

POLICY = load_policy(Path(__file__).parent / 'policies' / 'wanderer.yaml')
NOW_NS = 1_000 * SECOND
ROS_NS = 1_700_000_000 * SECOND
PLAIN = ScanSensor(type='sensor_msgs/msg/LaserScan', topic='scan', rate_hz=10, stale_after_ms=500)


def scan(ranges: list[float] | np.ndarray, stamp_ns: int = ROS_NS) -> Scan:
    """Return a scan of the full circle, the first beam straight behind."""
    values = np.asarray(ranges, np.float32)
    return Scan(stamp_ns, 'laser', -math.pi, 2 * math.pi / max(1, values.size), 0.1, 8.0, values)


def beams(**metres: float) -> Scan:
    """Return 360 beams that say nothing but for those at `deg_N=metres`."""
    ranges = np.full(360, np.nan, np.float32)
    for name, value in metres.items():
        ranges[(int(name.removeprefix('deg').replace('_', '-')) + 180) % 360] = value
    return scan(ranges)


# --- scan ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(('fields', 'expected'), [
    (beams(deg0=1.25, deg90=0.8), 'left 0.8, ahead-left unknown, ahead 1.2, ahead-right unknown, '
                                  'right unknown'),
    (beams(deg0=math.inf, deg_90=5.1), 'left unknown, ahead-left unknown, ahead far, '
                                       'ahead-right unknown, right far'),
    (beams(deg0=0.05), 'left unknown, ahead-left unknown, ahead unknown, ahead-right unknown, '
                       'right unknown'),
    (beams(deg0=9.0, deg5=-math.inf), 'left unknown, ahead-left unknown, ahead far, '
                                      'ahead-right unknown, right unknown'),
    (scan([]), 'left unknown, ahead-left unknown, ahead unknown, ahead-right unknown, '
               'right unknown'),
])
def test_a_scan_says_the_nearest_of_each_sector(fields: Scan, expected: str) -> None:
    assert PLAIN.text(fields, Scene()) == expected


@pytest.mark.parametrize(('metres', 'word'), [
    (0.59, 'blocked'), (0.6, 'near'), (1.19, 'near'), (1.2, 'free'), (7.9, 'free'),
])
def test_bins_are_words_with_open_ends(metres: float, word: str) -> None:
    sensor = PLAIN.model_copy(update={
        'bins': (Bin(word='blocked', below_m=0.6), Bin(word='near', below_m=1.2)),
        'far_word': 'free', 'sectors': PLAIN.sectors[2:3],
    })
    ranges = np.full(360, metres, np.float64)
    fields = Scan(0, '', -math.pi, math.pi / 180, 0.1, 8.0, ranges)  # type: ignore[arg-type]
    assert sensor.text(fields, Scene()) == f'ahead {word}'


@pytest.mark.parametrize(('bearing_deg', 'metres', 'expected'), [
    (0, 1.0, 1.0), (30, 0.5, 0.433), (30, 0.7, math.inf), (-60, 0.3, 0.15), (80, 0.2, math.inf),
])
def test_a_lane_counts_what_stands_in_the_way_and_how_far_along_it(
    bearing_deg: int, metres: float, expected: float
) -> None:
    lane = Sector(name='ahead', from_deg=-75, to_deg=75, width_m=0.6)
    sensor = PLAIN.model_copy(update={'sectors': (lane,)})
    fields = beams(deg10=math.inf, **{f'deg{bearing_deg}'.replace('-', '_'): metres})
    assert scan_family.nearest(sensor, fields)[0] == pytest.approx(expected, abs=0.01)


def test_a_lane_in_which_no_beam_says_anything_is_unknown() -> None:
    lane = Sector(name='ahead', from_deg=-75, to_deg=75, width_m=0.6)
    sensor = PLAIN.model_copy(update={'sectors': (lane,)})
    assert math.isnan(scan_family.nearest(sensor, beams(deg90=1.0))[0])


def test_the_mount_turns_the_sectors() -> None:
    turned = PLAIN.model_copy(update={'mount_yaw_deg': 180.0})
    ahead_of_the_base = beams(deg180=0.5)
    assert scan_family.nearest(turned, ahead_of_the_base)[2] == 0.5


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=64),
       st.floats(-10, 10), st.floats(-1, 1))
def test_any_scan_gives_one_line_of_five_sectors(
    ranges: list[float], angle_min: float, increment: float
) -> None:
    fields = Scan(0, '', angle_min, increment, 0.1, 8.0, np.asarray(ranges, np.float32))
    line = PLAIN.text(fields, Scene())
    assert line.count(', ') == 4
    assert '\n' not in line
    assert 'nan' not in line
    assert 'inf' not in line


# --- odometry and goal --------------------------------------------------------------------------


@pytest.mark.parametrize(('linear', 'angular', 'expected'), [
    (0.0, 0.0, 'standing'), (0.25, 0.0, 'ahead 0.2'), (-0.1, 0.3, 'back 0.1 turning left'),
    (0.01, -0.4, 'turning right'), (1.0, 0.04, 'ahead 1.0'),
])
def test_odometry_says_how_the_base_moves(linear: float, angular: float, expected: str) -> None:
    assert odometry_family.text(Odometry(0, '', 0, 0, 0, linear, angular)) == expected


HERE = Odometry(0, 'odom', 1.0, 1.0, math.pi / 2, 0.0, 0.0)
GOAL = goal_family.GoalSensor(
    type='geometry_msgs/msg/PoseStamped', topic='goal', rate_hz=1, stale_after_ms=5000)


@pytest.mark.parametrize(('x', 'y', 'expected'), [
    (1.0, 3.0, '2.0 m ahead'), (0.0, 1.0, '1.0 m left'), (2.0, 1.0, '1.0 m right'),
    (1.0, 0.0, '1.0 m behind'), (1.1, 1.1, 'reached'), (2.0, 2.0, '1.4 m ahead-right'),
    (math.nan, 1.0, 'not a finite pose'),
])
def test_a_goal_is_a_distance_and_a_direction(x: float, y: float, expected: str) -> None:
    assert goal_family.text(Goal(0, 'odom', x, y, 0.0), HERE) == expected


def test_a_goal_in_another_frame_or_without_odometry_says_so() -> None:
    goal = Goal(0, 'map', 1.0, 1.0, 0.0)
    unknown = 'bearing unknown, no pose in frame "map"'
    assert GOAL.text(goal, Scene({'odom': HERE})) == GOAL.text(goal, Scene()) == unknown


def test_a_goal_on_the_map_is_told_from_the_localisation() -> None:
    found = Place(0, 'map', 4.0, 1.0, math.pi, 0.0)
    goal = Goal(0, 'map', 1.0, 1.0, 0.0)
    assert GOAL.text(goal, Scene({'odom': HERE, 'place': found})) == '3.0 m ahead'


# --- time and truth -----------------------------------------------------------------------------


def odom(stamp_ns: int = ROS_NS) -> Odometry:
    return Odometry(stamp_ns, 'odom', 0, 0, 0, 0.2, 0.0)


def seen(
    policy: Policy = POLICY, *, now_ns: int = NOW_NS, ros_ns: int = ROS_NS,
    scan_stamp_ns: int = ROS_NS, arrival_ns: int = NOW_NS, ros_arrival_ns: int | None = ROS_NS,
) -> Observation:
    newest = {
        'scan': Received('scan', scan([1.0] * 360, scan_stamp_ns), arrival_ns, ros_arrival_ns),
        'odom': Received('odom', odom(ros_ns), now_ns, ros_ns),
    }
    return observe(policy, newest, now_ns, ros_ns)


def reading(observation: Observation, sensor: str = 'scan') -> Reading:
    return next(r for r in observation.readings if r.sensor == sensor)


LIMIT_NS = POLICY.sensors['scan'].stale_after_ns


def test_what_never_came_is_said_and_a_required_one_makes_it_unfit() -> None:
    observation = observe(POLICY, {}, NOW_NS, ROS_NS)
    assert set(observation.unfit) == set(POLICY.required_sensors)
    assert reading(observation).quality is Quality.NEVER
    assert reading(observation).text == 'scan: nothing received yet'
    assert observation.arrival_ns is None


@pytest.mark.parametrize('late_ns', [0, 1])
def test_silence_trips_one_nanosecond_past_the_limit(late_ns: int) -> None:
    passed = LIMIT_NS + late_ns
    observation = seen(now_ns=NOW_NS + passed, ros_ns=ROS_NS + passed,
                       scan_stamp_ns=ROS_NS + passed)
    assert reading(observation).quality is (Quality.STALE if late_ns else Quality.OLD)
    assert observation.fit is not bool(late_ns)


def test_an_old_stamp_that_just_arrived_is_stale() -> None:
    observation = seen(scan_stamp_ns=ROS_NS - LIMIT_NS - 1)
    assert reading(observation).quality is Quality.STALE
    assert reading(observation).text == 'scan: lost'


@pytest.mark.parametrize(('late_ns', 'quality', 'said'), [
    (0, Quality.FRESH, ''), (1, Quality.OLD, ', 0.2 s old'),
    (150 * MS, Quality.OLD, ', 0.2 s old'),
    (200 * MS, Quality.OLD, ', 0.5 s old'), (200 * MS + 1, Quality.STALE, ''),
])
def test_what_is_later_than_its_rate_is_old_and_says_how_old_until_it_is_lost(
    late_ns: int, quality: Quality, said: str
) -> None:
    """The scan promises 10 Hz and is lost after half a second: three periods are usual."""
    observation = seen(scan_stamp_ns=ROS_NS - 300 * MS - late_ns)
    found = reading(observation)
    assert found.quality is quality
    assert observation.fit is quality.usable
    assert found.text.endswith(', right 1.0' + said) or not quality.usable


def test_a_fast_sensor_is_not_old_within_a_control_period() -> None:
    fast = POLICY.sensors['scan'].model_copy(update={'rate_hz': 200.0})
    policy = POLICY.model_copy(update={'sensors': {**POLICY.sensors, 'scan': fast}})
    found = reading(seen(policy, scan_stamp_ns=ROS_NS - OLD_LEAST_NS))
    assert found.quality is Quality.FRESH
    assert reading(seen(policy, scan_stamp_ns=ROS_NS - OLD_LEAST_NS - 1)).quality is Quality.OLD


def test_an_age_by_arrival_says_so_where_it_is_old() -> None:
    late = {'arrival_ns': NOW_NS - 400 * MS, 'ros_arrival_ns': ROS_NS - 400 * MS}
    absent = reading(seen(scan_stamp_ns=0, **late))
    assert absent.text.endswith(', 0.2 s old by arrival')
    assert (absent.age_ns, absent.stamp_age_ns) == (400 * MS, None)
    told = reading(seen(scan_stamp_ns=ROS_NS - 400 * MS, **late))
    assert told.text.endswith(', 0.2 s old')
    assert 'old' not in reading(seen(scan_stamp_ns=0)).text


@pytest.mark.parametrize(('seconds', 'words'), [
    (0.21, '0.2 s old'), (0.5, '0.5 s old'), (1.99, '1 s old'), (2, '2 s old'), (59, '30 s old'),
    (60, '1 min old'), (3599, '30 min old'), (3600, 'hours old'), (1e6, 'hours old'),
])
def test_an_age_is_a_few_words_that_seldom_change(seconds: float, words: str) -> None:
    assert age_words(round(seconds * SECOND)) == words


WRONG_CLOCK = POLICY.model_copy(update={'sensors': {**POLICY.sensors, 'goal': POLICY.sensors[
    'goal'].model_copy(update={'stamps': 'arrival'})}})


@pytest.mark.parametrize('stamp_ns', [
    ROS_NS + SECOND, ROS_NS + 7200 * SECOND, ROS_NS - 7200 * SECOND, -5 * SECOND,
])
@pytest.mark.parametrize('policy', [POLICY, WRONG_CLOCK])
def test_a_clock_declared_to_be_wrong_leaves_the_age_to_the_arrival(
    policy: Policy, stamp_ns: int
) -> None:
    def goal(arrived_ago_ns: int) -> Reading:
        ago_ns = NOW_NS - arrived_ago_ns
        newest = {'goal': Received('goal', Goal(stamp_ns, 'odom', 1.0, 1.0, 0.0), ago_ns)}
        return reading(observe(policy, newest, NOW_NS, ROS_NS), 'goal')

    now, later, too_late = goal(MS), goal(45 * SECOND), goal(601 * SECOND)
    assert now.stamp_fault in (StampFault.FUTURE, StampFault.ABSURD)
    assert now.age_ns == MS
    if policy is POLICY:
        assert now.quality is Quality.STALE
        assert now.text == 'goal: lost, wrong stamp'
    else:
        assert now.text == 'goal: bearing unknown, no pose in frame "odom"'
        assert later.text == 'goal: bearing unknown, no pose in frame "odom", 30 s old by arrival'
        assert (later.quality, too_late.quality) == (Quality.OLD, Quality.STALE)
        assert too_late.text == 'goal: lost'


@pytest.mark.parametrize('make_optional', [False, True])
def test_what_the_watchdog_goes_by_must_say_of_when_it_tells(make_optional: bool) -> None:
    text = (Path(__file__).parent / 'policies' / 'wanderer.yaml').read_text(encoding='utf-8')
    wrong = text.replace('rate_hz: 20,', 'rate_hz: 20, stamps: arrival,')
    if make_optional:
        wrong = wrong.replace('Odometry, topic: /odom, required: true', 'Odometry, topic: /odom')
    with pytest.raises(PolicyError, match=r'x:9: sensors\.odom: stamps .arrival.: what is requ'):
        parse_policy(wrong.encode(), 'x')


def test_a_rate_is_that_of_the_last_messages_those_not_taken_among_them() -> None:
    rate = Rate()
    assert rate.hz is None
    rate.arrived(0, 1)
    assert rate.hz is None
    for step in range(1, 100):
        rate.arrived(step * 100 * MS, 1)
    assert rate.hz == pytest.approx(10)
    for step in range(100, 100 + RATE_WINDOW):  # a flood: of ten that were sent one is taken
        rate.arrived(step * 100 * MS, 10)
    assert rate.hz == pytest.approx(100)
    rate.arrived(0, 1)  # time went back
    assert rate.hz is None
    rate.arrived(0, 1)
    assert rate.hz is None


def test_a_paused_world_makes_nothing_older() -> None:
    observation = seen(now_ns=NOW_NS + 3600 * SECOND)
    assert reading(observation).quality is Quality.FRESH
    assert observation.fit


def test_a_jump_of_ros_time_alone_is_no_silence_of_the_sensor() -> None:
    observation = seen(ros_ns=ROS_NS + 60 * SECOND, scan_stamp_ns=ROS_NS + 60 * SECOND)
    assert reading(observation).quality is Quality.FRESH


@pytest.mark.parametrize(('stamp_ns', 'fault'), [
    (0, StampFault.ABSENT),
    (ROS_NS + 100 * MS, StampFault.NONE),
    (ROS_NS + 100 * MS + 1, StampFault.FUTURE),
    (ROS_NS - 3601 * SECOND, StampFault.ABSURD),
    (ROS_NS + 3601 * SECOND, StampFault.ABSURD),
])
def test_a_stamp_that_cannot_be_believed_is_named_and_only_an_absent_one_is_forgiven(
    stamp_ns: int, fault: StampFault
) -> None:
    found = reading(seen(scan_stamp_ns=stamp_ns))
    assert found.stamp_fault is fault
    assert (found.stamp_age_ns is None) == (fault is not StampFault.NONE)
    forgiven = fault in (StampFault.NONE, StampFault.ABSENT)
    assert found.quality is (Quality.FRESH if forgiven else Quality.STALE)


def test_a_step_back_of_ros_time_does_not_make_a_silent_sensor_fresh() -> None:
    passed = LIMIT_NS + 1
    stepped_ns = ROS_NS - 10 * SECOND
    observation = seen(now_ns=NOW_NS + passed, ros_ns=stepped_ns, scan_stamp_ns=stepped_ns)
    assert reading(observation).quality is Quality.STALE


def test_a_goal_has_no_bearing_from_odometry_that_is_lost() -> None:
    policy = load_policy(Path(__file__).parent / 'policies' / 'wanderer.yaml')
    goal_name = next(n for n, s in policy.sensors.items() if s.type.endswith('PoseStamped'))
    lost_ns = NOW_NS - policy.sensors['odom'].stale_after_ns - 1
    newest = {
        'odom': Received('odom', odom(0), lost_ns),
        goal_name: Received(goal_name, Goal(0, 'odom', 1.0, 1.0, 0.0), NOW_NS),
    }
    found = reading(observe(policy, newest, NOW_NS, ROS_NS), goal_name)
    assert found.text == f'{goal_name}: bearing unknown, no pose in frame "odom"'


def test_the_deadline_starts_at_the_newest_required_arrival_and_the_age_at_the_oldest_stamp(
) -> None:
    observation = seen(scan_stamp_ns=ROS_NS - 50 * MS, arrival_ns=NOW_NS - 40 * MS)
    required = [r for r in observation.readings if r.required]
    assert len(required) == 2
    assert observation.arrival_ns == NOW_NS
    assert observation.stamp_ns == ROS_NS - 50 * MS
