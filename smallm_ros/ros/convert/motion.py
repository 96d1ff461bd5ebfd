"""What tells how the robot moves and where it is to go."""

from __future__ import annotations

from typing import Any

from smallm_ros.core.summary.goal import Goal
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.ros.convert.common import Converter, finite, frame, stamp_ns, yaw


def odometry(msg: Any, sensor: object) -> Odometry:
    """Turn a nav_msgs/Odometry into its planar fields.

    Raises DroppedError for a number that is not finite or a quaternion that is no rotation.
    """
    twist = msg.twist.twist
    return Odometry(
        stamp_ns=stamp_ns(msg.header.stamp),
        frame_id=frame(msg.header.frame_id),
        x_m=finite('Odometry: position.x', msg.pose.pose.position.x),
        y_m=finite('Odometry: position.y', msg.pose.pose.position.y),
        yaw_rad=yaw('Odometry', msg.pose.pose.orientation),
        linear_x_m_s=finite('Odometry: linear.x', twist.linear.x),
        angular_z_rad_s=finite('Odometry: angular.z', twist.angular.z),
    )


def goal(msg: Any, sensor: object) -> Goal:
    """Turn a geometry_msgs/PoseStamped into a planar goal.

    Raises DroppedError for a number that is not finite or a quaternion that is no rotation.
    """
    return Goal(
        stamp_ns=stamp_ns(msg.header.stamp),
        frame_id=frame(msg.header.frame_id),
        x_m=finite('PoseStamped: position.x', msg.pose.position.x),
        y_m=finite('PoseStamped: position.y', msg.pose.position.y),
        yaw_rad=yaw('PoseStamped', msg.pose.orientation),
    )


CONVERTERS: dict[str, Converter] = {
    'nav_msgs/msg/Odometry': odometry,
    'geometry_msgs/msg/PoseStamped': goal,
}
