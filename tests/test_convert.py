"""Messages to fields: what a driver can send, whoever made the object."""

from __future__ import annotations

import array
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from smallm_ros.core.clock import SECOND
from smallm_ros.core.errors import DroppedError
from smallm_ros.core.summary import TYPES, Sensor
from smallm_ros.core.summary.scan import Scan
from smallm_ros.ros.convert import CONVERTERS
from smallm_ros.ros.convert import fields_of as of_sensor
from smallm_ros.ros.convert.common import ros_stamp, stamp_ns
from smallm_ros.ros.convert.space import MAX_BEAMS

SCAN, ODOMETRY = 'sensor_msgs/msg/LaserScan', 'nav_msgs/msg/Odometry'
GOAL = 'geometry_msgs/msg/PoseStamped'
SENSOR: TypeAdapter[Any] = TypeAdapter(Sensor)


def fields_of(kind: str, msg: Any, **declared: Any) -> Any:
    """Convert for a sensor of a kind, declared as shortly as can be."""
    given = {'type': kind, 'topic': 'any', 'rate_hz': 10, 'stale_after_ms': 500, **declared}
    return of_sensor(SENSOR.validate_python(given), msg)


def message(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


def header(sec: int = 12, nanosec: int = 5, frame_id: str = 'laser') -> SimpleNamespace:
    return message(stamp=message(sec=sec, nanosec=nanosec), frame_id=frame_id)


def scan(**changes: Any) -> SimpleNamespace:
    return message(**{
        'header': header(), 'angle_min': -1.0, 'angle_max': 1.0, 'angle_increment': 1.0,
        'range_min': 0.1, 'range_max': 8.0, 'ranges': array.array('f', [1.0, math.inf, 3.0]),
        **changes,
    })


def pose(x: float = 1.0, y: float = 2.0, q: tuple[float, ...] = (0, 0, 0, 1)) -> SimpleNamespace:
    return message(
        position=message(x=x, y=y, z=0.0),
        orientation=message(x=q[0], y=q[1], z=q[2], w=q[3]),
    )


def odometry(speed: float = 0.2, turn: float = -0.1, **of_pose: Any) -> SimpleNamespace:
    twist = message(linear=message(x=speed, y=0.0, z=0.0), angular=message(x=0.0, y=0.0, z=turn))
    return message(header=header(frame_id='odom'), pose=message(pose=pose(**of_pose)),
                   twist=message(twist=twist))


def test_every_type_of_the_policy_file_has_a_converter() -> None:
    assert set(CONVERTERS) == TYPES


def test_a_scan() -> None:
    fields = fields_of(SCAN, scan())
    assert fields.stamp_ns == 12 * SECOND + 5
    assert fields.frame_id == 'laser'
    assert (fields.range_min_m, fields.range_max_m) == (0.1, 8.0)
    assert fields.ranges_m.dtype == np.float32
    assert fields.ranges_m.tolist() == [1.0, math.inf, 3.0]


def test_a_time_before_the_epoch_is_one() -> None:
    assert fields_of(SCAN, scan(header=header(sec=-5))).stamp_ns == -5 * SECOND + 5


@pytest.mark.parametrize('ranges', [
    [1.0, math.nan], (1.0, math.nan), array.array('f', [1.0, math.nan]),
    np.array([1.0, math.nan], np.float32), np.array([1.0, math.nan], np.float64),
])
def test_ranges_come_in_many_containers(ranges: Any) -> None:
    fields = fields_of(SCAN, scan(ranges=ranges))
    assert fields.ranges_m.dtype == np.float32
    assert np.array_equal(fields.ranges_m, np.array([1.0, math.nan], np.float32), equal_nan=True)


def test_ranges_are_a_copy_that_nobody_changes() -> None:
    ranges = np.ones(3, np.float32)
    fields = fields_of(SCAN, scan(ranges=ranges))
    ranges[0] = 0.0
    assert fields.ranges_m[0] == 1.0
    with pytest.raises(ValueError, match='read-only'):
        fields.ranges_m[0] = 0.0


@pytest.mark.parametrize(('changes', 'why'), [
    ({'ranges': []}, 'LaserScan: 0 beams, must be 1 to 20000'),
    ({'ranges': np.zeros(MAX_BEAMS + 1, np.float32)}, 'LaserScan: 20001 beams'),
    ({'ranges': np.zeros((3, 2), np.float32)}, 'LaserScan: ranges have shape'),
    ({'ranges': ['near', 'far']}, 'not such a message'),
    ({'ranges': None}, 'not such a message'),
    ({'angle_increment': 0.0}, 'LaserScan: angle_increment is 0 for 3 beams'),
    ({'angle_increment': math.nan}, 'LaserScan: angle_increment is nan, must be finite'),
    ({'angle_min': math.inf}, 'LaserScan: angle_min is inf, must be finite'),
    ({'range_min': math.nan}, 'LaserScan: range_min is nan'),
    ({'range_min': -0.1}, 'LaserScan: range_min -0.1, range_max 8'),
    ({'range_max': 0.05}, 'LaserScan: range_min 0.1, range_max 0.05'),
    ({'range_max': math.nan}, 'LaserScan: range_min 0.1, range_max nan'),
    ({'header': header(sec=-2**31 - 1)}, 'stamp: sec -2147483649'),
    ({'header': header(nanosec=SECOND)}, 'nanosec 1000000000 is no time'),
    ({'header': header(frame_id='x' * 257)}, 'frame_id of 257 characters'),
    ({'header': None}, 'not such a message'),
])
def test_a_scan_that_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(DroppedError) as caught:
        fields_of(SCAN, scan(**changes))
    assert why in str(caught.value)


def test_the_largest_scan_passes() -> None:
    fields = fields_of(SCAN, scan(ranges=np.ones(MAX_BEAMS, np.float32)))
    assert fields.ranges_m.shape == (MAX_BEAMS,)


def test_an_odometry() -> None:
    half = math.sqrt(0.5)
    fields = fields_of(ODOMETRY, odometry(q=(0.0, 0.0, half, half)))
    assert (fields.x_m, fields.y_m) == (1.0, 2.0)
    assert fields.yaw_rad == pytest.approx(math.pi / 2)
    assert (fields.linear_x_m_s, fields.angular_z_rad_s) == (0.2, -0.1)
    assert fields.frame_id == 'odom'


def test_a_goal() -> None:
    fields = fields_of(GOAL, message(header=header(frame_id='map'), pose=pose(x=-3.0)))
    assert (fields.x_m, fields.y_m, fields.yaw_rad, fields.frame_id) == (-3.0, 2.0, 0.0, 'map')


NO_ROTATIONS = [
    (0.0, 0.0, 0.0, 0.0), (math.nan, 0.0, 0.0, 1.0), (0.0, 0.0, math.inf, 1.0),
    (0.0, 0.0, 0.0, 1e300), (1e-3, 0.0, 0.0, 0.0), (math.nan,) * 4, (0.0, math.nan, 0.0, 9.0),
]


@pytest.mark.parametrize('q', NO_ROTATIONS)
def test_a_quaternion_that_is_no_rotation(q: tuple[float, ...]) -> None:
    with pytest.raises(DroppedError, match=r'Odometry: orientation .* is no rotation'):
        fields_of(ODOMETRY, odometry(q=q))
    with pytest.raises(DroppedError, match=r'PoseStamped: orientation .* is no rotation'):
        fields_of(GOAL, message(header=header(), pose=pose(q=q)))


@pytest.mark.parametrize(('msg', 'why'), [
    (odometry(speed=math.nan), 'Odometry: linear.x is nan, must be finite'),
    (odometry(turn=math.inf), 'Odometry: angular.z is inf, must be finite'),
    (odometry(x=math.nan), 'Odometry: position.x is nan, must be finite'),
    (odometry(y=-math.inf), 'Odometry: position.y is -inf, must be finite'),
    (scan(), 'nav_msgs/msg/Odometry: not such a message'),
])
def test_an_odometry_that_is_refused(msg: Any, why: str) -> None:
    with pytest.raises(DroppedError) as caught:
        fields_of(ODOMETRY, msg)
    assert why in str(caught.value)


@given(st.floats(-math.pi, math.pi), st.floats(0.6, 1.9))
def test_yaw_survives_a_scaled_quaternion(yaw: float, scale: float) -> None:
    q = (0.0, 0.0, scale * math.sin(yaw / 2), scale * math.cos(yaw / 2))
    found = fields_of(ODOMETRY, odometry(q=q)).yaw_rad
    assert math.remainder(found - yaw, 2 * math.pi) == pytest.approx(0.0, abs=1e-9)


@given(st.floats(-1.2, 1.2), st.floats(-1.2, 1.2), st.floats(-3, 3))
def test_yaw_is_that_of_a_tilted_base(roll: float, pitch: float, yaw: float) -> None:
    """The quaternion of yaw * pitch * roll (REP-103's fixed axes) gives its yaw back."""
    cr, sr = math.cos(roll / 2), math.sin(roll / 2)
    cp, sp = math.cos(pitch / 2), math.sin(pitch / 2)
    cy, sy = math.cos(yaw / 2), math.sin(yaw / 2)
    q = (
        sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy, cr * cp * cy + sr * sp * sy,
    )
    assert fields_of(ODOMETRY, odometry(q=q)).yaw_rad == pytest.approx(yaw, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(0, SECOND - 1))
def test_stamps_go_there_and_back(sec: int, nanosec: int) -> None:
    assert ros_stamp(stamp_ns(message(sec=sec, nanosec=nanosec))) == (sec, nanosec)


def test_a_bag_readers_messages() -> None:
    types = pytest.importorskip('rosbags.typesys')
    store = types.get_typestore(types.Stores.ROS2_KILTED)
    kinds = store.types
    stamp = kinds['builtin_interfaces/msg/Time'](sec=3, nanosec=4)
    raw = kinds[SCAN](
        header=kinds['std_msgs/msg/Header'](stamp=stamp, frame_id='laser'), angle_min=-1.0,
        angle_max=1.0, angle_increment=0.5, time_increment=0.0, scan_time=0.1, range_min=0.1,
        range_max=5.0, ranges=np.array([1, math.inf], np.float32),
        intensities=np.zeros(0, np.float32),
    )
    fields = fields_of(SCAN, store.deserialize_cdr(store.serialize_cdr(raw, SCAN), SCAN))
    assert fields.stamp_ns == 3 * SECOND + 4
    assert isinstance(fields, Scan)
    assert fields.ranges_m.tolist() == [1.0, math.inf]


@pytest.mark.ros
def test_rclpys_messages() -> None:
    messages = pytest.importorskip('sensor_msgs.msg')
    msg = messages.LaserScan(angle_increment=0.1, range_max=5.0, ranges=[1.0, math.nan])
    fields = fields_of(SCAN, msg)
    assert isinstance(fields, Scan)
    assert fields.stamp_ns == 0
    assert np.isnan(fields.ranges_m[1])
