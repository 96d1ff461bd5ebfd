"""The sensor messages that a policy file can name, as rclpy's classes.

`convert` has a converter for each of these names and must load where no message package is.
"""

from __future__ import annotations

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import LaserScan

MESSAGES: dict[str, type] = {
    'sensor_msgs/msg/LaserScan': LaserScan,
    'nav_msgs/msg/Odometry': Odometry,
    'geometry_msgs/msg/PoseStamped': PoseStamped,
}
