"""The embedded simulator as a ROS node: the topics that Gazebo and its bridge would give.

Publishes /scan, /odom, /clock, /tf where tf2_msgs is installed, and for reports `~/truth` and
`~/state` (JSON); takes `cmd_vel`. One loop against absolute steady deadlines and no executor:
messages are taken from their subscription once a tick. Stamps are simulated time, or wall time
when `publish_clock` is false. A command's age counts from its arrival, as at Gazebo's bridge.
"""

from __future__ import annotations

import array
import importlib
import json
import math
import signal
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import TransformStamped, Twist, TwistStamped
from nav_msgs.msg import Odometry as OdometryMessage
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import LaserScan
from std_msgs.msg import String

from smallm_ros import steady
from smallm_ros.core.action import Velocity
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import OperatorError
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.scan import Scan
from smallm_ros.sim.episode import Episode
from smallm_ros.sim.pace import Pace
from smallm_ros.sim.world import find_world, load_world

TICK_NS = 10 * MS
"""/clock goes out at 100 Hz."""
TRUTH_PERIOD_NS = 100 * MS
REPORT_PERIOD_NS = SECOND
SLOW = 0.95
"""Below this share of the factor asked for, `/diagnostics` warns."""
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE,
                     durability=DurabilityPolicy.TRANSIENT_LOCAL)
_Value = TypeVar('_Value', str, int, float, bool)
LINEAR_VARIANCE = 0.01
ANGULAR_VARIANCE = 0.03


class Due:
    """Times of something periodic in simulated time."""

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self._next_ns = period_ns

    def at(self, now_ns: int) -> bool:
        """Return whether it is due at `now_ns`, and if so, set the next time."""
        if now_ns < self._next_ns:
            return False
        self._next_ns += self._period_ns * ((now_ns - self._next_ns) // self._period_ns + 1)
        return True


class SimNode(Node):
    """One episode and its topics; `tick` is one turn of the loop."""

    def __init__(self) -> None:
        # Nobody may change a parameter of a running simulation, so none is served.
        super().__init__('sim_node', start_parameter_services=False,
                         automatically_declare_parameters_from_overrides=True)
        world = load_world(find_world(self._parameter('world', 'room')))
        self._factor = self._parameter('real_time_factor', 1.0)
        if not 0 < self._factor <= 100:
            raise OperatorError(f'real_time_factor {self._factor:g} must be more than 0 '
                                'and at most 100')
        noise = self._parameter('noise', 1.0)
        if not 0 <= noise <= 100:
            raise OperatorError(f'noise {noise:g} must be from 0 to 100; 1 is what the '
                                'world file says')
        seed = self._parameter('seed', 0)
        if seed < 0:
            raise OperatorError(f'seed {seed} must not be negative')
        stamped = self._parameter('twist_stamped', True)
        self._simulated_stamps = self._parameter('publish_clock', True)
        self._episode = Episode(world, seed, noise=noise)
        self.tick_ns = max(1, TICK_NS // world.step_ns) * world.step_ns
        self._refused = 0

        self._scan_publisher = self.create_publisher(LaserScan, 'scan', NEWEST)
        self._odometry_publisher = self.create_publisher(OdometryMessage, 'odom', RELIABLE)
        self._clock_publisher = (
            self.create_publisher(Clock, '/clock', NEWEST) if self._simulated_stamps else None)
        self._truth_publisher = self.create_publisher(String, '~/truth', RELIABLE)
        self._state_publisher = self.create_publisher(String, '~/state', RELIABLE)
        self._diagnostics_publisher = self.create_publisher(
            DiagnosticArray, '/diagnostics', RELIABLE)
        self._subscription = self.create_subscription(
            TwistStamped if stamped else Twist, 'cmd_vel', self._take, RELIABLE)
        self._tf = self._create_tf()
        self._scan_due = Due(round(SECOND / world.lidar.rate_hz))
        self._odometry_due = Due(round(SECOND / world.drive.odometry_rate_hz))
        self._truth_due = Due(TRUTH_PERIOD_NS)
        self._report_due = Due(REPORT_PERIOD_NS)
        self._scan_message = LaserScan()
        self._odometry_message = _odometry_message(world.drive.base_frame)
        self._pace = Pace(steady.now_ns(), self.tick_ns, self._factor)
        self.get_logger().info(
            f'world {world.name!r} ({world.source}), robot {world.robot!r}, seed {seed}, '
            f'noise {noise:g}, real time factor {self._factor:g}, '
            f'/tf {"published" if self._tf else "not published: tf2_msgs is not installed"}')

    def _parameter(self, name: str, default: _Value) -> _Value:
        """Return a parameter of the default's type; a whole number will do for a real one."""
        value = self.get_parameter(name).value if self.has_parameter(name) else default
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(
                default, bool):
            raise OperatorError(f'parameter {name}: {value!r} is no {type(default).__name__}')
        return value

    def _create_tf(self) -> Any:
        """Return /tf's message type and publisher, or None; the lidar's place is latched."""
        try:
            kind = importlib.import_module('tf2_msgs.msg').TFMessage
        except ImportError:
            return None
        lidar, base = self._episode.world.lidar, self._episode.world.drive.base_frame
        mount = TransformStamped()
        mount.header.frame_id = base
        mount.child_frame_id = lidar.frame_id
        place = mount.transform.translation
        place.x, place.y, place.z = lidar.mount[:3]
        turn = mount.transform.rotation
        turn.x, turn.y, turn.z, turn.w = lidar.mount[3:]
        self._static_publisher = self.create_publisher(kind, '/tf_static', LATCHED)
        self._static_publisher.publish(kind(transforms=[mount]))
        return kind, self.create_publisher(kind, '/tf', RELIABLE)

    def tick(self) -> int:
        """Simulate one tick and publish what is due; return when the next begins, steady ns."""
        self._take_newest()
        episode = self._episode
        episode.step(self.tick_ns)
        now_ns = episode.now_ns
        stamp_ns = now_ns if self._simulated_stamps else steady.wall_ns()
        if self._clock_publisher is not None:
            clock = Clock()
            clock.clock.sec, clock.clock.nanosec = divmod(now_ns, SECOND)
            self._clock_publisher.publish(clock)
        if self._odometry_due.at(now_ns):
            self._publish_odometry(episode.odometry(), stamp_ns)
        if self._scan_due.at(now_ns):
            self._publish_scan(episode.scan(), stamp_ns)
        if self._truth_due.at(now_ns):
            self._publish_truth()
        if self._report_due.at(now_ns):
            self._publish_state()
        return self._pace.done(steady.now_ns())

    def _take_newest(self) -> None:
        with self._subscription.handle:
            taken = self._subscription.handle.take_message(self._subscription.msg_type, False)
        if taken is not None:
            self._take(taken[0])

    def _take(self, message: Twist | TwistStamped) -> None:
        twist = message if isinstance(message, Twist) else message.twist
        try:
            self._episode.command(
                Velocity(twist.linear.x, twist.angular.z), self._episode.now_ns)
        except ValueError:
            # The base's time-out stops a robot whose commands are all nonsense.
            self._refused += 1

    def _publish_scan(self, scan: Scan, stamp_ns: int) -> None:
        message = self._scan_message
        sec, nanosec = divmod(stamp_ns, SECOND)
        message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
        message.header.frame_id = scan.frame_id
        message.angle_min = scan.angle_min_rad
        message.angle_max = (
            scan.angle_min_rad + scan.angle_increment_rad * (len(scan.ranges_m) - 1))
        message.angle_increment = scan.angle_increment_rad
        message.scan_time = 1.0 / self._episode.world.lidar.rate_hz
        message.range_min = scan.range_min_m
        message.range_max = scan.range_max_m
        message.ranges = array.array('f', scan.ranges_m.tobytes())
        self._scan_publisher.publish(message)

    def _publish_odometry(self, odometry: Odometry, stamp_ns: int) -> None:
        message = self._odometry_message
        sec, nanosec = divmod(stamp_ns, SECOND)
        message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
        message.header.frame_id = odometry.frame_id
        pose = message.pose.pose
        pose.position.x, pose.position.y = odometry.x_m, odometry.y_m
        pose.orientation.z = math.sin(odometry.yaw_rad / 2)
        pose.orientation.w = math.cos(odometry.yaw_rad / 2)
        message.twist.twist.linear.x = odometry.linear_x_m_s
        message.twist.twist.angular.z = odometry.angular_z_rad_s
        self._odometry_publisher.publish(message)
        if self._tf is not None:
            kind, publisher = self._tf
            base = TransformStamped(header=message.header, child_frame_id=message.child_frame_id)
            base.transform.translation.x = odometry.x_m
            base.transform.translation.y = odometry.y_m
            base.transform.rotation = pose.orientation
            publisher.publish(kind(transforms=[base]))

    def _publish_truth(self) -> None:
        episode = self._episode
        pose, velocity = episode.pose, episode.velocity
        last = episode.collisions[-1] if episode.collisions else None
        self._truth_publisher.publish(String(data=json.dumps({
            'version': 1,
            'sim_time_ns': episode.now_ns,
            'steady_ns': steady.now_ns(),
            'x_m': round(pose.x_m, 4),
            'y_m': round(pose.y_m, 4),
            'yaw_rad': round(pose.yaw_rad, 4),
            'linear_x_m_s': round(velocity.linear_x_m_s, 4),
            'angular_z_rad_s': round(velocity.angular_z_rad_s, 4),
            'distance_m': round(episode.distance_m, 3),
            'collisions': episode.collision_count,
            'last_collision': None if last is None else {
                'sim_time_ns': last.time_ns, 'obstacle': last.obstacle,
                'x_m': round(last.x_m, 3), 'y_m': round(last.y_m, 3),
                'speed_m_s': round(last.speed_m_s, 3)},
        }, separators=(',', ':'))))

    def _publish_state(self) -> None:
        facts = {
            'version': 1,
            'world': self._episode.world.name,
            'source': self._episode.world.source,
            'sim_time_ns': self._episode.now_ns,
            'steady_ns': steady.now_ns(),
            'real_time_factor': round(self._pace.factor, 4),
            'real_time_factor_wanted': self._factor,
            'forgiven_ms': self._pace.forgiven_ns // MS,
            'commands_refused': self._refused,
        }
        self._state_publisher.publish(String(data=json.dumps(facts, separators=(',', ':'))))
        slow = self._pace.factor < SLOW * self._factor
        status = DiagnosticStatus(
            level=DiagnosticStatus.WARN if slow else DiagnosticStatus.OK,
            name='sim_node: real time', hardware_id='simulation',
            message=f'{self._pace.factor:.2f} of real time, {self._factor:g} wanted',
            values=[KeyValue(key=key, value=str(value)) for key, value in facts.items()])
        report = DiagnosticArray(status=[status])
        stamp_ns = self._episode.now_ns if self._simulated_stamps else steady.wall_ns()
        report.header.stamp.sec, report.header.stamp.nanosec = divmod(stamp_ns, SECOND)
        self._diagnostics_publisher.publish(report)


def _odometry_message(base_frame: str) -> OdometryMessage:
    """Return a message with what never changes: the frame and the covariances."""
    message = OdometryMessage(child_frame_id=base_frame)
    for part in (message.pose, message.twist):
        part.covariance[0] = part.covariance[7] = LINEAR_VARIANCE
        part.covariance[35] = ANGULAR_VARIANCE
    return message


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM; return the exit code."""
    stopped = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    rclpy.init(args=None if arguments is None else list(arguments),
               signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = SimNode()
        while not stopped:
            steady.sleep_until(node.tick())
        node.destroy_node()
    except OperatorError as err:
        print(f'sim_node: {err}', file=sys.stderr)
        return err.exit_code
    finally:
        rclpy.shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
