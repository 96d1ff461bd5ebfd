"""What tells how the robot moves and where it is to go."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from smallm_ros.core.errors import DroppedError
from smallm_ros.core.summary.cloud import rotation
from smallm_ros.core.summary.fix import NO_FIX, Fix
from smallm_ros.core.summary.goal import Goal
from smallm_ros.core.summary.imu import G_M_S2, STILL, Imu, ImuSensor
from smallm_ros.core.summary.joints import Joints, JointsSensor
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.path import MAX_POSES, SAMPLES, Path
from smallm_ros.core.summary.place import Place
from smallm_ros.core.summary.twist import Twist
from smallm_ros.ros.convert.common import Converter, finite, frame, stamp_ns, unit, yaw

MAX_JOINTS = 1000
FAR_M = 1e7
"""Nothing on this planet is further from the origin of a robot's map."""
FAST = 1e3
"""No base moves at more metres or radians a second."""


def near(place: str, metres: float) -> float:
    """Return a coordinate on this planet; DroppedError for any other."""
    return _within(FAR_M, place, metres)


def slow(place: str, speed: float) -> float:
    """Return a speed that a base can have; DroppedError for any other."""
    return _within(FAST, place, speed)


def _within(limit: float, place: str, value: float) -> float:
    number = finite(place, value)
    if abs(number) > limit:
        raise DroppedError(f'{place} is {number:g}, at most {limit:g}')
    return number


def odometry(msg: Any, sensor: object) -> Odometry:
    """Turn a nav_msgs/Odometry into its planar fields.

    Raises DroppedError for a number that is not finite or a quaternion that is no rotation.
    """
    twist = msg.twist.twist
    return Odometry(
        stamp_ns=stamp_ns(msg.header.stamp),
        frame_id=frame(msg.header.frame_id),
        x_m=near('Odometry: position.x', msg.pose.pose.position.x),
        y_m=near('Odometry: position.y', msg.pose.pose.position.y),
        yaw_rad=yaw('Odometry', msg.pose.pose.orientation),
        linear_x_m_s=slow('Odometry: linear.x', twist.linear.x),
        angular_z_rad_s=slow('Odometry: angular.z', twist.angular.z),
    )


def goal(msg: Any, sensor: object) -> Goal:
    """Turn a geometry_msgs/PoseStamped into a planar goal.

    Raises DroppedError for a number that is not finite or a quaternion that is no rotation.
    """
    return Goal(
        stamp_ns=stamp_ns(msg.header.stamp),
        frame_id=frame(msg.header.frame_id),
        x_m=near('PoseStamped: position.x', msg.pose.position.x),
        y_m=near('PoseStamped: position.y', msg.pose.position.y),
        yaw_rad=yaw('PoseStamped', msg.pose.orientation),
    )


def twist(msg: Any, sensor: object) -> Twist:
    """Turn a geometry_msgs/Twist or TwistStamped into its planar fields, all finite."""
    stamp = 0
    if hasattr(msg, 'header'):
        stamp, msg = stamp_ns(msg.header.stamp), msg.twist
    return Twist(
        stamp_ns=stamp,
        linear_x_m_s=slow('Twist: linear.x', msg.linear.x),
        linear_y_m_s=slow('Twist: linear.y', msg.linear.y),
        angular_z_rad_s=slow('Twist: angular.z', msg.angular.z),
    )


def imu(msg: Any, sensor: ImuSensor) -> Imu:
    """Turn a sensor_msgs/Imu into what it tells of the base.

    Of what its covariance marks as not measured (-1) nothing is read, nor of an orientation or
    acceleration of zeros alone: so a careless driver leaves them. Raises DroppedError for a number
    that is not finite, an orientation that is no rotation, and where nothing is measured.
    """
    turned = rotation(sensor.mount_roll_deg, sensor.mount_pitch_deg, sensor.mount_yaw_deg)
    up: tuple[float, float, float] | None = None
    acceleration = turn = math.nan
    measured = [_measured(msg, part) for part in (
        'orientation', 'angular_velocity', 'linear_acceleration')]
    if not any(measured):
        raise DroppedError('Imu: all covariances are -1: nothing is measured')
    q = msg.orientation
    if measured[0] and any((q.x, q.y, q.z, q.w)):
        up = _base(turned, _up('Imu', q))
    if measured[2] and any(felt := _axes('Imu: linear_acceleration', msg.linear_acceleration)):
        acceleration = math.hypot(*felt)
        still = abs(acceleration - G_M_S2) <= STILL * G_M_S2
        if up is None and sensor.gravity and still:
            up = _base(turned, (felt[0] / acceleration, felt[1] / acceleration,
                                felt[2] / acceleration))
    if measured[1]:
        turn = _base(turned, _axes('Imu: angular_velocity', msg.angular_velocity))[2]
    return Imu(stamp_ns(msg.header.stamp), up, acceleration, turn)


def _measured(msg: Any, part: str) -> bool:
    covariance = getattr(msg, f'{part}_covariance')
    if len(covariance) != 9:
        raise DroppedError(f'Imu: {part}_covariance has {len(covariance)} elements, must be 9')
    return float(covariance[0]) != -1


def _axes(place: str, vector: Any) -> tuple[float, float, float]:
    return (finite(f'{place}.x', vector.x), finite(f'{place}.y', vector.y),
            finite(f'{place}.z', vector.z))


def _up(place: str, q: Any) -> tuple[float, float, float]:
    """Return where up is in the frame whose orientation in the world is `q`."""
    x, y, z, w = unit(place, q)
    return 2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z


def _base(
    turned: npt.NDArray[np.float64], of: tuple[float, float, float]
) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in turned @ np.array(of))
    return x, y, z


def joints(msg: Any, sensor: JointsSensor) -> Joints:
    """Take the declared joints out of a sensor_msgs/JointState.

    Raises DroppedError for more than MAX_JOINTS, arrays that are neither empty nor as long as the
    names, and a declared joint that stands twice.
    """
    count = len(msg.name)
    if count > MAX_JOINTS:
        raise DroppedError(f'JointState: {count} joints, at most {MAX_JOINTS}')
    for what in ('position', 'velocity', 'effort'):
        if len(getattr(msg, what)) not in (0, count):
            raise DroppedError(
                f'JointState: {len(getattr(msg, what))} of {what}, {count} names')
    at: dict[str, int] = {}
    wanted = {joint.name for joint in sensor.joints}
    for index, name in enumerate(msg.name):
        if name in wanted and at.setdefault(name, index) != index:
            raise DroppedError(f'JointState: joint {name!r:.40} stands twice')
    return Joints(stamp_ns(msg.header.stamp), tuple(
        _joint(getattr(msg, joint.what), at.get(joint.name)) for joint in sensor.joints))


def _joint(values: Any, index: int | None) -> float | None:
    if index is None:
        return None
    return float(values[index]) if len(values) else math.nan


def place(msg: Any, sensor: object) -> Place:
    """Turn a geometry_msgs/PoseWithCovarianceStamped into its planar part.

    Raises DroppedError for a number that is not finite or a quaternion that is no rotation.
    """
    pose, covariance = msg.pose.pose, msg.pose.covariance
    if len(covariance) != 36:
        raise DroppedError(f'PoseWithCovariance: {len(covariance)} elements, must be 36')
    return Place(
        stamp_ns=stamp_ns(msg.header.stamp),
        frame_id=frame(msg.header.frame_id),
        x_m=near('PoseWithCovarianceStamped: position.x', pose.position.x),
        y_m=near('PoseWithCovarianceStamped: position.y', pose.position.y),
        yaw_rad=yaw('PoseWithCovarianceStamped', pose.orientation),
        deviation_m=_deviation_m(covariance[0], covariance[7]),
    )


def _deviation_m(*variances: Any) -> float:
    """Return the greater standard deviation; infinite where a variance is absurd."""
    greatest = max(variance if variance >= 0 else math.inf for variance in map(float, variances))
    return math.sqrt(greatest)


def path(msg: Any, sensor: object) -> Path:
    """Take at most SAMPLES positions of a nav_msgs/Path.

    Raises DroppedError for more than MAX_POSES and for a position that is not finite.
    """
    count = len(msg.poses)
    if count > MAX_POSES:
        raise DroppedError(f'Path: {count} poses, at most {MAX_POSES}')
    at = np.unique(np.linspace(0, count - 1, min(count, SAMPLES)).round().astype(np.intp))
    positions = [msg.poses[index].pose.position for index in at.tolist()]
    points = np.array([(p.x, p.y) for p in positions], np.float64).reshape(-1, 2)
    if not np.isfinite(points).all() or np.abs(points).max(initial=0.0) > FAR_M:
        raise DroppedError(f'Path: a position is not finite, or further than {FAR_M:g} m')
    points.flags.writeable = False
    return Path(stamp_ns(msg.header.stamp), frame(msg.header.frame_id), points)


def fix(msg: Any, sensor: object) -> Fix:
    """Turn a sensor_msgs/NavSatFix into its fields.

    Raises DroppedError for a fix that is nowhere on the earth.
    """
    fixed = operator.index(msg.status.status) > NO_FIX
    latitude, longitude = float(msg.latitude), float(msg.longitude)
    if fixed and not (abs(latitude) <= 90 and abs(longitude) <= 180):
        raise DroppedError(f'NavSatFix: latitude {latitude:g}, longitude {longitude:g} is nowhere')
    if len(msg.position_covariance) != 9:
        raise DroppedError(
            f'NavSatFix: {len(msg.position_covariance)} covariances, must be 9')
    deviation = math.nan
    if operator.index(msg.position_covariance_type):
        deviation = _deviation_m(msg.position_covariance[0], msg.position_covariance[4])
    return Fix(stamp_ns(msg.header.stamp), fixed, latitude, longitude, deviation)


CONVERTERS: dict[str, Converter] = {
    'geometry_msgs/msg/PoseStamped': goal,
    'geometry_msgs/msg/PoseWithCovarianceStamped': place,
    'geometry_msgs/msg/Twist': twist,
    'geometry_msgs/msg/TwistStamped': twist,
    'nav_msgs/msg/Odometry': odometry,
    'nav_msgs/msg/Path': path,
    'sensor_msgs/msg/Imu': imu,
    'sensor_msgs/msg/JointState': joints,
    'sensor_msgs/msg/NavSatFix': fix,
}
