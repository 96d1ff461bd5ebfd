"""Bags: what a policy asks for comes out in order, every lack is one line with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import BagError
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.scan import Scan
from smallm_ros.replay.bag import Bag, RosTime
from tests.fakes.recordings import (
    BAG_BEGIN_NS,
    SHARED_BAGS,
    policy_with,
    small_policy,
    write_bag,
)

shared = pytest.mark.skipif(
    not SHARED_BAGS.is_dir(), reason=f'the recorded bags are not there: {SHARED_BAGS}'
)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_readings_come_in_the_order_of_the_recording(tmp_path: Path, storage: str) -> None:
    path = write_bag(tmp_path / 'bag', seconds=2, storage=storage)
    with Bag(path, small_policy()) as bag:
        found = list(bag.readings())
        assert bag.warnings == ()
        assert bag.ros_time.source == 'bag time'
        assert bag.ros_time.at(bag.begin_ns + 5) == bag.begin_ns + 5
        assert bag.begin_ns == BAG_BEGIN_NS
    assert [r.bag_ns for r in found] == sorted(r.bag_ns for r in found)
    assert sum(isinstance(r.fields, Scan) for r in found) == 10
    assert sum(isinstance(r.fields, Odometry) for r in found) == 20
    assert {r.sensor for r in found} == {'scan', 'odom'}


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_a_bare_file_is_a_bag_too(tmp_path: Path, storage: str) -> None:
    folder = write_bag(tmp_path / 'bag', seconds=1, storage=storage)
    file = next(f for f in folder.iterdir() if f.suffix in ('.mcap', '.db3'))
    with Bag(file, small_policy()) as bag:
        assert len(list(bag.readings())) == 15


def test_simulated_stamps_take_ros_time_from_the_clock(tmp_path: Path) -> None:
    with Bag(write_bag(tmp_path / 'bag', simulated=True), small_policy()) as bag:
        assert bag.ros_time.source == '/clock'
        assert bag.ros_time.at(BAG_BEGIN_NS + 1550 * MS) == 1550 * MS
        ages = {
            bag.ros_time.at(r.bag_ns) - r.fields.stamp_ns for r in bag.readings()
        }
    assert ages == {0}


def test_between_clock_messages_ros_time_is_interpolated_and_outside_it_stands() -> None:
    clock = RosTime('/clock', (1000, 2000, 4000), (10, 20, 20))
    assert [clock.at(t) for t in (0, 1000, 1500, 2000, 3000, 4000, 9000)] == [
        10, 10, 15, 20, 20, 20, 20,
    ]


def test_stamps_of_no_known_clock_are_said(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag', stamp_offset_ns=-5000 * SECOND)
    with Bag(path, small_policy()) as bag:
        assert bag.ros_time.source == 'stamps of /scan'
        assert any('/scan: header stamps are 5000 s from' in line for line in bag.warnings)
        ages_ns = {bag.ros_time.at(r.bag_ns) - r.fields.stamp_ns for r in bag.readings()}
        assert all(abs(age_ns) <= SECOND for age_ns in ages_ns), 'nothing is lost of it'


def test_a_mistyped_topic_says_what_there_is(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag')
    with pytest.raises(BagError) as caught:
        Bag(path, policy_with('topic: /scan', 'topic: /scna'))
    line = str(caught.value)
    assert line.startswith(f"{path}: topic /scna of sensor 'scan' is not in the bag")
    assert 'did you mean /scan?' in line
    assert '/odom (nav_msgs/msg/Odometry)' in line
    assert '\n' not in line


def test_an_optional_sensor_may_be_absent(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag')
    with Bag(path, policy_with('topic: /odom', 'topic: /wheels')) as bag:
        assert {r.sensor for r in bag.readings()} == {'scan'}
        assert bag.warnings == (
            "topic /wheels of sensor 'odom' is not in the bag; the sensor is optional",
        )


def test_a_topic_of_another_type_is_refused(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag')
    with pytest.raises(BagError, match=(
        "topic /odom is nav_msgs/msg/Odometry, sensor 'scan' of the policy wants "
        'sensor_msgs/msg/LaserScan'
    )):
        Bag(path, policy_with('topic: /scan', 'topic: /odom'))


def test_a_mission_of_another_type_is_said(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag')
    policy = policy_with('actions:', 'mission_topic: {topic: scan}\nactions:')
    with Bag(path, policy) as bag:
        assert bag.missions == ()
        assert bag.warnings == (
            '/scan: sensor_msgs/msg/LaserScan is no mission, which is std_msgs/msg/String',)


def test_unknown_types_are_skipped_by_name(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag', seconds=1, unknown_type=True, storage='sqlite3')
    with Bag(path, small_policy()) as bag:
        assert bag.warnings == (
            '/bump: skipped, unknown message type odd_interfaces/msg/Bump',
        )
        assert len(list(bag.readings())) == 15


def test_messages_that_do_not_fit_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag', seconds=2, bad_scans=3)
    with Bag(path, small_policy()) as bag:
        assert sum(r.sensor == 'scan' for r in bag.readings()) == 7
        assert bag.dropped == {'/scan': 3}
        assert len(bag.warnings) == 1
        assert '0 beams' in bag.warnings[0]


def test_what_is_not_a_bag_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / 'empty'
    empty.mkdir()
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'notes.txt').write_text('hello')
    for name, data in (('text.txt', b'hello'), ('x.mcap', b'hello'), ('y.db3', b'x' * 5000),
                       ('e.mcap', b''), ('e.db3', b'')):
        (tmp_path / name).write_bytes(data)
    expected = {
        'absent': 'no such file', 'empty': 'an empty directory', 'other': 'no metadata.yaml',
        'text.txt': 'not a bag', 'x.mcap': 'not a bag', 'y.db3': 'not a bag',
        'e.mcap': 'not a bag', 'e.db3': 'not a bag',
    }
    for name, words in expected.items():
        with pytest.raises(BagError) as caught:
            Bag(tmp_path / name, small_policy())
        line = str(caught.value)
        assert line.startswith(f'{tmp_path / name}: ')
        assert words in line
        assert '\n' not in line


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_every_truncation_is_one_line(tmp_path: Path, storage: str) -> None:
    folder = write_bag(tmp_path / 'bag', seconds=2, storage=storage)
    file = next(f for f in folder.iterdir() if f.suffix in ('.mcap', '.db3'))
    data = file.read_bytes()
    # SQLite does not notice a cut inside the last page of the file.
    for length in range(0, len(data) - 4096, max(1, len(data) // 23)):
        file.write_bytes(data[:length])
        with pytest.raises(BagError) as caught, Bag(folder, small_policy()) as bag:
            list(bag.readings())
        assert str(caught.value).startswith(f'{folder}: ')
        assert '\n' not in str(caught.value)


@shared
@pytest.mark.parametrize(('name', 'scans', 'odometries', 'source'), [
    ('neato_test_drive', 243, 290, 'bag time'),
    ('neato_obstacle_avoider', 153, 166, 'bag time'),
    ('tb3_waffle_gazebo_walker', 92, 543, '/clock'),
])
def test_recorded_bags(name: str, scans: int, odometries: int, source: str) -> None:
    with Bag(SHARED_BAGS / name, small_policy()) as bag:
        found = list(bag.readings())
        assert bag.ros_time.source == source
        for reading in found:
            age_ns = bag.ros_time.at(reading.bag_ns) - reading.fields.stamp_ns
            assert -200 * MS < age_ns < 2 * SECOND
        unknown = [line for line in bag.warnings if 'unknown message type' in line]
    assert sum(r.sensor == 'scan' for r in found) == scans
    assert sum(r.sensor == 'odom' for r in found) == odometries
    assert bag.dropped == {}
    if 'neato' in name:
        assert '/bump: skipped, unknown message type neato2_interfaces/msg/Bump' in unknown


@shared
@pytest.mark.parametrize('name', ['husky_outdoor_gps', 'abitobot_gazebo_mcap'])
def test_a_recorded_bag_without_a_scan_says_so(name: str) -> None:
    with pytest.raises(BagError, match=r'topic /scan of sensor .* is not in the bag.*it holds'):
        Bag(SHARED_BAGS / name, small_policy())
