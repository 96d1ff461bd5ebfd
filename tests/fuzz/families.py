"""Messages of every family as a broken driver or an attacker would make them.

Of each field one in some is absurd: NaN, infinite, negative, empty, of a wrong length or type,
text where a number belongs, a time before the epoch. Sizes stay small: what is long is tried in
the families' own tests.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from smallm_ros.core.summary import TYPES
from tests.fakes.summaries import sensor

Strategy = st.SearchStrategy[Any]

ABSURD = st.floats() | st.sampled_from(
    [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, -0.0])
WHOLE = st.integers(-3, 40) | st.integers(-2**70, 2**70)
TEXT = st.text(max_size=30) | st.sampled_from(['', '\x00', '\ud800', '</s>[INST]', '\u202e"', 'x'])
WRONG = st.none() | st.booleans() | TEXT | st.binary(max_size=4) | st.just(()) | st.just({})


def mostly(usual: Strategy, wrong: Strategy = WRONG) -> Strategy:
    """Return something usual, and one time in sixty something of another kind."""
    return st.integers(0, 59).flatmap(lambda n: wrong if n == 37 else usual)


NUMBER = mostly(st.floats(-1e3, 1e3, width=32), ABSURD)

def of(**fields: Strategy) -> Strategy:
    """Return messages of these fields; seldom one lacks a field."""
    whole = st.builds(SimpleNamespace, **{name: mostly(value) for name, value in fields.items()})
    return mostly(whole, whole.map(_without_one))


def _without_one(msg: SimpleNamespace) -> SimpleNamespace:
    names = sorted(vars(msg))
    return SimpleNamespace(**{name: getattr(msg, name) for name in names[:-1]})


def some(item: Strategy, most: int = 12) -> Strategy:
    """Return a list, or the tuple of one."""
    return st.lists(item, max_size=most) | st.lists(item, max_size=most).map(tuple)


def exactly(count: int) -> Strategy:
    """Return so many numbers, or seldom too many or few."""
    return mostly(st.lists(NUMBER, min_size=count, max_size=count), some(NUMBER))


STAMP = of(sec=mostly(st.integers(0, 2**31), WHOLE),
           nanosec=mostly(st.integers(0, 10**9 - 1), WHOLE))
HEADER = of(stamp=STAMP, frame_id=st.sampled_from(['odom', 'map', 'laser']) | TEXT)
VECTOR = of(x=NUMBER, y=NUMBER, z=NUMBER)
NEAR_0, NEAR_1 = mostly(st.floats(-0.3, 0.3), NUMBER), mostly(st.floats(0.5, 1.2), NUMBER)
TURN = of(x=NEAR_0, y=NEAR_0, z=NEAR_0, w=NEAR_1)
POSE = of(position=VECTOR, orientation=TURN)
TWIST = of(linear=VECTOR, angular=VECTOR)
STATUS = of(level=mostly(st.sampled_from([b'\x00', b'\x01', b'\x02', 3]), WHOLE), name=TEXT,
            message=TEXT, hardware_id=TEXT, values=st.just([]))
HYPOTHESIS = of(hypothesis=of(class_id=TEXT, score=NUMBER), pose=st.none())
BOX_3D = of(center=POSE, size=VECTOR)
BOX_2D = of(center=of(position=VECTOR, theta=NUMBER), size_x=NUMBER, size_y=NUMBER)
POINT_FIELD = of(
    name=st.sampled_from(['x', 'y', 'z', 'intensity']) | TEXT, offset=st.sampled_from(
        [0, 4, 8]) | WHOLE, datatype=st.sampled_from([7, 8]) | WHOLE, count=WHOLE)
XYZ = [SimpleNamespace(name=name, offset=4 * at, datatype=7, count=1)
       for at, name in enumerate('xyz')]
BYTES = st.binary(max_size=200)


def image(pixel_bytes: int) -> Strategy:
    """Return the sizes and data of an image that mostly fit each other."""
    return st.tuples(st.integers(0, 6), st.integers(0, 6)).flatmap(lambda size: of(
        header=HEADER, width=mostly(st.just(size[0]), WHOLE),
        height=mostly(st.just(size[1]), WHOLE),
        encoding=st.sampled_from(['mono8', 'rgb8', 'yuv422', '16UC1', 'mono16', 'jpeg']),
        step=mostly(st.just(size[0] * pixel_bytes), WHOLE), is_bigendian=st.booleans(),
        data=st.binary(min_size=size[0] * size[1] * pixel_bytes,
                       max_size=size[0] * size[1] * pixel_bytes),
    ))


def cloud() -> Strategy:
    """Return clouds whose sizes mostly fit their data."""
    return st.integers(0, 8).flatmap(lambda count: of(
        header=HEADER, height=mostly(st.just(1), WHOLE), width=mostly(st.just(count), WHOLE),
        fields=mostly(st.just(XYZ), some(POINT_FIELD, 5)), is_bigendian=st.booleans(),
        point_step=mostly(st.just(12), WHOLE), row_step=mostly(st.just(12 * count), WHOLE),
        data=st.binary(min_size=12 * count, max_size=12 * count) | BYTES, is_dense=st.booleans(),
    ))


def grid() -> Strategy:
    """Return maps whose sizes mostly fit their data."""
    return st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(lambda size: of(
        header=HEADER, info=of(
            resolution=mostly(st.sampled_from([0.05, 1.0]), NUMBER),
            width=mostly(st.just(size[0]), WHOLE), height=mostly(st.just(size[1]), WHOLE),
            origin=POSE),
        data=st.binary(min_size=size[0] * size[1], max_size=size[0] * size[1]) | BYTES
        | some(WHOLE),
    ))


MESSAGES: dict[str, Strategy] = {
    'diagnostic_msgs/msg/DiagnosticArray': of(header=HEADER, status=some(STATUS, 5)),
    'geometry_msgs/msg/PoseStamped': of(header=HEADER, pose=POSE),
    'geometry_msgs/msg/PoseWithCovarianceStamped': of(
        header=HEADER, pose=of(pose=POSE, covariance=exactly(36))),
    'geometry_msgs/msg/Twist': TWIST,
    'geometry_msgs/msg/TwistStamped': of(header=HEADER, twist=TWIST),
    'nav_msgs/msg/OccupancyGrid': grid(),
    'nav_msgs/msg/Odometry': of(
        header=HEADER, pose=of(pose=POSE, covariance=exactly(36)), twist=of(twist=TWIST)),
    'nav_msgs/msg/Path': of(header=HEADER, poses=some(of(header=HEADER, pose=POSE))),
    'sensor_msgs/msg/BatteryState': of(
        header=HEADER, percentage=NUMBER, voltage=NUMBER, present=st.booleans(),
        power_supply_status=mostly(st.integers(0, 5), WHOLE),
        power_supply_health=mostly(st.integers(0, 9), WHOLE)),
    'sensor_msgs/msg/CompressedImage': of(header=HEADER, format=TEXT, data=BYTES),
    'sensor_msgs/msg/Image': image(1) | image(2) | image(3),
    'sensor_msgs/msg/Imu': of(
        header=HEADER, orientation=TURN, angular_velocity=VECTOR, linear_acceleration=VECTOR,
        orientation_covariance=exactly(9), angular_velocity_covariance=exactly(9),
        linear_acceleration_covariance=exactly(9)),
    'sensor_msgs/msg/JointState': of(
        header=HEADER, name=some(st.sampled_from(['a', 'b', 'c']) | TEXT, 4),
        position=some(NUMBER, 4), velocity=some(NUMBER, 4), effort=some(NUMBER, 4)),
    'sensor_msgs/msg/LaserScan': of(
        header=HEADER, angle_min=NUMBER, angle_max=NUMBER,
        angle_increment=mostly(st.just(0.5), NUMBER), range_min=mostly(st.just(0.1), NUMBER),
        range_max=mostly(st.just(9.0), NUMBER), ranges=some(NUMBER)),
    'sensor_msgs/msg/NavSatFix': of(
        header=HEADER, status=of(status=mostly(st.integers(-1, 2), WHOLE), service=WHOLE),
        latitude=mostly(st.floats(-90, 90), NUMBER),
        longitude=mostly(st.floats(-180, 180), NUMBER), altitude=NUMBER,
        position_covariance=exactly(9),
        position_covariance_type=mostly(st.integers(0, 3), WHOLE)),
    'sensor_msgs/msg/PointCloud2': cloud(),
    'sensor_msgs/msg/Range': of(
        header=HEADER, radiation_type=WHOLE, field_of_view=NUMBER, range=NUMBER,
        min_range=mostly(st.just(0.2), NUMBER), max_range=mostly(st.just(4.0), NUMBER)),
    'sensor_msgs/msg/Temperature': of(header=HEADER, temperature=NUMBER, variance=NUMBER),
    'std_msgs/msg/Bool': of(data=st.booleans() | NUMBER),
    'std_msgs/msg/Float32': of(data=NUMBER),
    'std_msgs/msg/Int64': of(data=WHOLE),
    'std_msgs/msg/String': of(data=TEXT),
    'vision_msgs/msg/Detection2DArray': of(
        header=HEADER, detections=some(of(results=some(HYPOTHESIS, 3), bbox=BOX_2D), 4)),
    'vision_msgs/msg/Detection3DArray': of(
        header=HEADER, detections=some(of(results=some(HYPOTHESIS, 3), bbox=BOX_3D), 4)),
}
"""By type; the numbers of std_msgs share one family, so two stand for all."""

_BINS = [{'word': 'low', 'below': 1.0}]
_BINS_M = [{'word': 'near', 'below_m': 1.0}]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    'nav_msgs/msg/OccupancyGrid': [{}, {'robot_in_middle': True, 'bins': _BINS_M}],
    'sensor_msgs/msg/BatteryState': [{}, {'full_is': 100, 'with_voltage': True, 'bins': _BINS}],
    'sensor_msgs/msg/Imu': [{}, {'gravity': False, 'mount_roll_deg': 180}],
    'sensor_msgs/msg/Image': [{}, {'white': 4000}],
    'sensor_msgs/msg/JointState': [{'joints': [
        {'name': 'a'}, {'name': 'b', 'what': 'effort', 'unit': 'N', 'bins': _BINS}]}],
    'sensor_msgs/msg/LaserScan': [{}, {
        'bins': _BINS_M, 'gaps': {'width_m': 0.5, 'beyond_m': 1.0}, 'open_beyond_m': 1.0}],
    'sensor_msgs/msg/NavSatFix': [
        {}, {'targets': [{'name': 'gate', 'latitude_deg': 0, 'longitude_deg': 180}]}],
    'sensor_msgs/msg/PointCloud2': [{}, {'mount_pitch_deg': 30, 'beyond_m': 0.5}],
    'geometry_msgs/msg/PoseWithCovarianceStamped': [
        {}, {'places': [{'name': 'dock', 'x_m': 0, 'y_m': 0}]}],
}

FAMILIES: dict[str, tuple[list[Any], Strategy]] = {
    kind: ([sensor(kind, **options) for options in OPTIONS.get(kind, [{}])], messages)
    for kind, messages in MESSAGES.items()
} | {'fields': ([sensor('my_msgs/msg/Any', fields=[
    {'name': 'one', 'path': 'pose.position.x'}, {'name': 'two', 'path': 'pose.orientation.w'},
    {'name': 'three', 'path': 'header.frame_id'}])], MESSAGES['geometry_msgs/msg/PoseStamped'])}
"""Declarations and messages, by type; and any type by its paths."""

NUMBERS = {each for each in TYPES if each.startswith('std_msgs/') and any(
    word in each for word in ('Int', 'Float'))}
