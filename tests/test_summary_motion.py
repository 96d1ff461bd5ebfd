"""How the robot moves and where it is to go, in words: what drivers send, and what is absurd."""

from __future__ import annotations

import array
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from smallm_ros.core.errors import DroppedError
from smallm_ros.core.sensor import Scene
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.path import SAMPLES
from smallm_ros.core.summary.place import Place
from smallm_ros.ros.convert import fields_of
from tests.fakes.summaries import golden, header, said, sensor

TWIST, STAMPED = 'geometry_msgs/msg/Twist', 'geometry_msgs/msg/TwistStamped'
IMU, JOINTS = 'sensor_msgs/msg/Imu', 'sensor_msgs/msg/JointState'
PLACE, PATH = 'geometry_msgs/msg/PoseWithCovarianceStamped', 'nav_msgs/msg/Path'
FIX = 'sensor_msgs/msg/NavSatFix'
NAN, INF = math.nan, math.inf
G = 9.80665
SLOW = [{'word': 'slow', 'below': 0.3}]


def xyz(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y, z=z)


def turned(roll: float = 0.0, pitch: float = 0.0, yaw: float = 0.0) -> SimpleNamespace:
    """Return the quaternion of angles in degrees, about fixed x, then y, then z."""
    (cr, sr), (cp, sp), (cy, sy) = (
        (math.cos(math.radians(a) / 2), math.sin(math.radians(a) / 2)) for a in (roll, pitch, yaw))
    return SimpleNamespace(
        x=sr * cp * cy - cr * sp * sy, y=cr * sp * cy + sr * cp * sy,
        z=cr * cp * sy - sr * sp * cy, w=cr * cp * cy + sr * sp * sy)


# --- velocities ----------------------------------------------------------------------------------


def twist(x: float = 0.0, turn: float = 0.0, y: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(linear=xyz(x, y), angular=xyz(z=turn))


def test_a_velocity_in_words() -> None:
    plain = sensor(TWIST)
    golden('twist', {
        'none': said(plain, twist()),
        'ahead': said(plain, twist(0.24)),
        'hardly': said(plain, twist(-0.03)),
        'back and to the left': said(plain, twist(-0.24, 0.3)),
        'sideways': said(plain, twist(y=-0.5)),
        'words': said(sensor(TWIST, bins=SLOW), twist(0.2, y=-0.5)),
        'with a stamp': said(sensor(STAMPED), SimpleNamespace(header=header(), twist=twist(0.5))),
    })


@pytest.mark.parametrize('bad', [twist(NAN), twist(y=INF), twist(turn=-1e9)], ids=str)
def test_a_velocity_that_no_base_has_is_dropped(bad: Any) -> None:
    with pytest.raises(DroppedError, match='Twist: .* (must be finite|at most 1000)'):
        fields_of(sensor(TWIST), bad)


def test_odometrys_speed_has_words_too() -> None:
    declared = sensor('nav_msgs/msg/Odometry', bins=SLOW)
    assert [declared.text(Odometry(0, 'odom', 0, 0, 0, speed, 0), Scene())
            for speed in (0.0, 0.2, -0.4)] == ['standing', 'ahead slow', 'back fast']


# --- inertial units ------------------------------------------------------------------------------


def imu(q: Any = None, felt: Any = None, turn: float = 0.0, lacks: str = '') -> SimpleNamespace:
    """Return an Imu; `lacks` names what its covariances mark as not measured."""
    covariances = {
        f'{part}_covariance': [-1.0 if part.startswith(tuple(lacks.split() or ['-'])) else 0.0]
        + [0.0] * 8
        for part in ('orientation', 'angular_velocity', 'linear_acceleration')
    }
    return SimpleNamespace(
        header=header('imu'), orientation=q or turned(), angular_velocity=xyz(z=turn),
        linear_acceleration=felt or xyz(z=G), **covariances)


def test_an_inertial_unit_in_words() -> None:
    plain, on_its_head = sensor(IMU), sensor(IMU, mount_roll_deg=180)
    golden('imu', {
        'level': said(plain, imu()),
        'a little tilt is level': said(plain, imu(turned(pitch=4))),
        'nose down': said(plain, imu(turned(pitch=16))),
        'nose up, whatever the heading': said(plain, imu(turned(pitch=-16, yaw=140))),
        'left side up': said(plain, imu(turned(roll=12))),
        'both': said(plain, imu(turned(roll=-20, pitch=-10))),
        'on its side': said(plain, imu(turned(roll=90))),
        'upside down': said(plain, imu(turned(roll=175))),
        'mounted upside down': said(on_its_head, imu(turned(roll=180))),
        'mounted upside down, turning': said(on_its_head, imu(turned(roll=180), turn=-0.5)),
        'tilt from gravity': said(plain, imu(felt=xyz(-G * 0.5, 0, G * 0.866), lacks='ori')),
        'no tilt from a shake': said(plain, imu(felt=xyz(3.0, 0, 14.0), lacks='ori')),
        'shock': said(plain, imu(felt=xyz(12.0, 0, G))),
        'gravity taken out': said(sensor(IMU, gravity=False), imu(felt=xyz())),
        'gravity taken out, shock': said(sensor(IMU, gravity=False), imu(felt=xyz(6.0))),
        'turning': said(plain, imu(turn=0.4)),
        'words': said(sensor(IMU, bins=[{'word': 'little', 'below': 15}]),
                      imu(turned(roll=-20, pitch=-10))),
        'zeros for what is not measured': said(
            plain, imu(SimpleNamespace(x=0, y=0, z=0, w=0), xyz())),
        'no gyroscope': said(plain, imu(lacks='ang')),
        'a gyroscope alone': said(plain, imu(turn=-0.4, lacks='ori lin')),
    })


def test_mount_and_tilt_are_of_the_same_axes() -> None:
    sideways = sensor(IMU, mount_yaw_deg=90)  # its x is the base's left
    assert said(sideways, imu(turned(roll=20))) == 'nose down 20 deg'
    assert said(sensor(IMU, mount_pitch_deg=20), imu(turned(pitch=20))) == 'level'


@pytest.mark.parametrize(('msg', 'why'), [
    (imu(lacks='ori ang lin'), 'nothing is measured'),
    (imu(SimpleNamespace(x=0.1, y=0, z=0, w=0)), 'no rotation'),
    (imu(felt=xyz(NAN)), 'linear_acceleration.x is nan'), (imu(turn=INF), 'angular_velocity.z'),
])
def test_an_inertial_unit_that_says_nothing_is_dropped(msg: Any, why: str) -> None:
    with pytest.raises(DroppedError, match=why):
        fields_of(sensor(IMU), msg)


# --- joints --------------------------------------------------------------------------------------


def joints(names: list[str], **values: Any) -> SimpleNamespace:
    return SimpleNamespace(header=header(), name=names, **{
        'position': array.array('d'), 'velocity': [], 'effort': [], **values})


def test_joints_in_words() -> None:
    arm = sensor(JOINTS, joints=[
        {'name': 'wrist_1', 'word': 'wrist'},
        {'name': 'finger', 'unit': '', 'usual': [0, 0.1], 'digits': 2, 'bins': [
            {'word': 'closed', 'below': 0.01}], 'top_word': 'open'},
        {'name': 'finger', 'word': 'grip', 'what': 'effort', 'unit': 'N', 'digits': 1},
    ])
    golden('joints', {
        'all there, in another order': said(arm, joints(
            ['finger', 'other', 'wrist_1'], position=[0.0, 9.0, math.pi / 2],
            effort=[3.25, 0.0, 0.0])),
        'no efforts': said(arm, joints(['wrist_1', 'finger'], position=[-0.5, 0.04])),
        'one is missing': said(arm, joints(['wrist_1'], position=[0.0], effort=[1.0])),
        'not finite': said(arm, joints(['wrist_1', 'finger'], position=[NAN, INF])),
        'none': said(arm, joints([])),
    })


@pytest.mark.parametrize(('msg', 'why'), [
    (joints(['a', 'b'], position=[1.0]), '1 of position, 2 names'),
    (joints(['a', 'a'], position=[1.0, 2.0]), "joint 'a' stands twice"),
    (joints([str(n) for n in range(1001)]), '1001 joints'),
])
def test_joints_that_do_not_fit_are_dropped(msg: Any, why: str) -> None:
    with pytest.raises(DroppedError, match=why):
        fields_of(sensor(JOINTS, joints=[{'name': 'a'}]), msg)


def test_a_joint_is_declared_once() -> None:
    with pytest.raises(ValidationError, match="the position of joint 'a' stands twice"):
        sensor(JOINTS, joints=[{'name': 'a'}, {'name': 'a'}])


# --- places --------------------------------------------------------------------------------------


def place(x: float, y: float, yaw: float = 0.0, variance: float = 0.0) -> SimpleNamespace:
    covariance = np.zeros(36)
    covariance[0], covariance[7] = variance, variance / 2
    pose = SimpleNamespace(position=xyz(x, y), orientation=turned(yaw=yaw))
    return SimpleNamespace(
        header=header('map'), pose=SimpleNamespace(pose=pose, covariance=covariance))


def test_a_place_in_words() -> None:
    plain = sensor(PLACE)
    named = sensor(PLACE, places=[
        {'name': 'dock', 'x_m': 0, 'y_m': 0}, {'name': 'door', 'x_m': 8, 'y_m': 2}])
    golden('place', {
        'numbers': said(plain, place(3.3, -1.1, 45)),
        'far away, backwards': said(plain, place(-123.4, 9.9, 180)),
        'backwards the other way round': said(plain, place(98_765.4, 0.0, -180)),
        'of another frame': said(
            sensor(PLACE, frame='site', places=[{'name': 'dock', 'x_m': 0, 'y_m': 0}]),
            place(0.0, 0.0)),
        'there': said(named, place(8.5, 2.5)),
        'near': said(named, place(3.0, 0.0)),
        'unsure': said(named, place(0.0, 0.0, variance=4.0)),
        'absurd variance': said(named, place(0.0, 0.0, variance=-1.0)),
    })


@pytest.mark.parametrize('bad', [NAN, 1e300, -1.1e7])
def test_a_place_that_is_nowhere_is_dropped(bad: float) -> None:
    with pytest.raises(DroppedError, match='position.y is'):
        fields_of(sensor(PLACE), place(0.0, bad))


# --- paths ---------------------------------------------------------------------------------------


def path(*points: tuple[float, float], frame: str = 'odom') -> SimpleNamespace:
    return SimpleNamespace(header=header(frame), poses=[
        SimpleNamespace(pose=SimpleNamespace(position=xyz(x, y))) for x, y in points])


def at(x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> Odometry:
    return Odometry(0, 'odom', x, y, math.radians(yaw), 0.0, 0.0)


CORNER = ((0.0, 0.0), (4.0, 0.0), (4.0, 6.0))
CURVE = tuple((3 * math.sin(a / 20), 3 - 3 * math.cos(a / 20)) for a in range(63))


def test_a_path_in_words() -> None:
    plain = sensor(PATH)
    golden('path', {
        'straight on': said(plain, path((0, 0), (9, 0)), odom=at()),
        'a corner': said(plain, path(*CORNER), odom=at()),
        'nearly there, then the corner': said(plain, path(*CORNER), odom=at(3.5, 0.2)),
        'round the corner': said(plain, path(*CORNER), odom=at(4.1, 2.0, 90)),
        'a corner to the right': said(plain, path((0, 0), (2, 0), (2, -2)), odom=at()),
        'a curve': said(plain, path(*CURVE), odom=at()),
        'it begins behind': said(plain, path((0, 0), (9, 0)), odom=at(yaw=180)),
        'left it': said(plain, path((0, 0), (9, 0)), odom=at(4.0, 2.5)),
        'its end': said(plain, path((0, 0), (9, 0)), odom=at(8.9)),
        'one pose': said(plain, path((5, 0)), odom=at(4.5)),
        'the same pose many times': said(plain, path(*[(5.0, 0.0)] * 9), odom=at(4.5)),
        'empty': said(plain, path(), odom=at()),
        'in the map, and the robot is not': said(plain, path(*CORNER, frame='map'), odom=at()),
        'in the map, and so is the robot': said(
            plain, path(*CORNER, frame='map'), odom=at(), place=Place(0, 'map', 0, 0, 0, 0)),
    })


def test_of_a_long_path_the_ends_and_some_between_are_kept() -> None:
    fields = fields_of(sensor(PATH), path(*((n / 100, 0.0) for n in range(5000))))
    assert fields.points_m.shape == (SAMPLES, 2)
    assert fields.points_m[0].tolist() == [0.0, 0.0]
    assert fields.points_m[-1].tolist() == [49.99, 0.0]


@pytest.mark.parametrize('bad', [NAN, INF, 1e300])
def test_a_path_to_nowhere_is_dropped(bad: float) -> None:
    with pytest.raises(DroppedError, match='not finite, or further'):
        fields_of(sensor(PATH), path((0, 0), (bad, 0)))


# --- fixes ---------------------------------------------------------------------------------------


def fix(latitude: float, longitude: float, status: int = 0, variance: float = 1.0,
        kind: int = 2) -> SimpleNamespace:
    return SimpleNamespace(
        header=header('gps'), status=SimpleNamespace(status=status, service=1), altitude=100.0,
        latitude=latitude, longitude=longitude, position_covariance_type=kind,
        position_covariance=[variance, 0, 0, 0, variance / 4, 0, 0, 0, 9.0])


def test_a_fix_in_words() -> None:
    plain = sensor(FIX)
    gate = sensor(FIX, targets=[{'name': 'gate', 'latitude_deg': 48.0, 'longitude_deg': 11.0}])
    date_line = sensor(FIX, targets=[
        {'name': 'buoy', 'latitude_deg': 0.0, 'longitude_deg': -179.999}])
    golden('fix', {
        'none': said(plain, fix(NAN, NAN, status=-1)),
        'without targets': said(plain, fix(48.0, 11.0)),
        'there': said(gate, fix(48.00001, 11.0)),
        'to the north': said(gate, fix(47.999, 11.0)),
        'to the south-west': said(gate, fix(48.001, 11.0015)),
        'far': said(gate, fix(47.0, 11.0)),
        'across the date line': said(date_line, fix(0.0, 179.999)),
        'unsure': said(gate, fix(47.999, 11.0, variance=225.0)),
        'variance unknown': said(gate, fix(47.999, 11.0, variance=225.0, kind=0)),
    })


@pytest.mark.parametrize('where', [(91.0, 0.0), (0.0, 181.0), (NAN, 0.0)])
def test_a_fix_that_is_nowhere_is_dropped(where: tuple[float, float]) -> None:
    with pytest.raises(DroppedError, match='is nowhere'):
        fields_of(sensor(FIX), fix(*where))


@pytest.mark.parametrize(('kind', 'options', 'words'), [
    (TWIST, {}, {'ahead', 'turning'}), (IMU, {}, {'level', 'nose', 'leaning', 'turning'}),
    (JOINTS, {'joints': [{'name': 'a', 'bins': [{'word': 'low', 'below': 0}]}]}, {'low', 'high'}),
    (PLACE, {'places': [{'name': 'dock', 'x_m': 1, 'y_m': 1}]}, {'at', 'from'}),
    (PLACE, {}, {'heading'}), (PATH, {}, {'ahead', 'left', 'right'}),
    (FIX, {'targets': [{'name': 'gate', 'latitude_deg': 90, 'longitude_deg': 180}]},
     {'no', 'gate', 'north'}),
    (FIX, {}, {'fix'}),
])
def test_what_is_drawn_is_worded_in_every_way(kind: str, options: Any, words: set[str]) -> None:
    declared, random = sensor(kind, **options), np.random.default_rng(1)
    scene = Scene({'odom': at()})
    texts = [declared.text(declared.draw(random), scene) for _ in range(200)]
    assert words <= {word for text in texts for word in text.replace(',', '').split()}
