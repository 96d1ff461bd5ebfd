"""Small recordings and records of our own, so that the replay's tests need nobody's bags."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from smallm_ros.core.action import Decision, Timings, TokenCounts
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.decision_record import DecisionRecord, Outcome
from smallm_ros.core.exchange import Declaration
from smallm_ros.core.policy import Policy, parse_policy

SHARED_BAGS = Path(__file__).resolve().parents[3] / 'shared' / 'bags'
BAG_BEGIN_NS = 1_700_000_000 * SECOND

POLICY = b"""\
version: 1
name: small
mission: Drive without touching anything.
robot: {radius_m: 0.2}
sensors:
  scan: {type: sensor_msgs/msg/LaserScan, topic: /scan, required: true, rate_hz: 5,
         stale_after_ms: 1000}
  odom: {type: nav_msgs/msg/Odometry, topic: /odom, rate_hz: 10, stale_after_ms: 1000}
actions:
  stop: {description: stand still, twist: {}}
  forward: {description: drive ahead, twist: {linear_x_m_s: 0.1}}
decision: {rate_hz: 2, budget_ms: 300, max_observation_age_ms: 2000}
envelope: {max_forward_m_s: 0.2, max_turn_rad_s: 1, max_acceleration_m_s2: 1,
           max_deceleration_m_s2: 1, max_angular_acceleration_rad_s2: 2, obstacle_sensors: [scan]}
"""


def small_policy() -> Policy:
    """Return the policy above."""
    return parse_policy(POLICY, 'small.yaml')


def policy_with(old: str, new: str) -> Policy:
    """Return the policy above with one stretch of its text replaced."""
    assert old.encode() in POLICY
    return parse_policy(POLICY.replace(old.encode(), new.encode()), 'small.yaml')


def a_declaration(space: str = 'small-1', **more: Any) -> Declaration:
    """Return a declaration of two answers, whose leaf 1 is what `a_record` decided."""
    return Declaration(
        space=space, system='Drive.', examples=(('free', 'forward'),),
        answers=('stop', 'forward'), max_prompt_tokens=100, **more,
    )


def write_bag(
    path: Path,
    *,
    seconds: float = 4.0,
    storage: str = 'mcap',
    scan_topic: str = '/scan',
    simulated: bool = False,
    stamp_offset_ns: int = 0,
    unknown_type: bool = False,
    bad_scans: int = 0,
    silent: Sequence[tuple[float, float]] = (),
    missions: Mapping[float, str] = MappingProxyType({}),
) -> Path:
    """Write a rosbag2 with a scan at 5 Hz and odometry at 10 Hz in free space.

    `simulated` stamps headers with a clock that began at 0 and records `/clock`; the scans of the
    stretches in `silent` (seconds) are left out; the first `bad_scans` have no beams. `missions`
    are said on /mission at these seconds.
    """
    store = get_typestore(Stores.ROS2_KILTED)
    types = store.types
    if unknown_type:
        store.register(get_types_from_msg('float64 value', 'odd_interfaces/msg/Bump'))

    def stamp(at_ns: int) -> Any:
        ros_ns = at_ns - BAG_BEGIN_NS if simulated else at_ns + stamp_offset_ns
        return types['builtin_interfaces/msg/Time'](*divmod(ros_ns, SECOND))

    def header(at_ns: int, frame: str) -> Any:
        return types['std_msgs/msg/Header'](stamp(at_ns), frame)

    def scan(at_ns: int, beams: int) -> Any:
        return types['sensor_msgs/msg/LaserScan'](
            header(at_ns, 'laser'), -math.pi, 2 * math.pi / 360, math.pi, 0.0, 0.2, 0.1, 8.0,
            np.full(beams, 3.0, np.float32), np.zeros(0, np.float32),
        )

    def odometry(at_ns: int) -> Any:
        vector, point = types['geometry_msgs/msg/Vector3'], types['geometry_msgs/msg/Point']
        pose = types['geometry_msgs/msg/Pose'](
            point(0.0, 0.0, 0.0), types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0)
        )
        twist = types['geometry_msgs/msg/Twist'](vector(0.1, 0.0, 0.0), vector(0.0, 0.0, 0.0))
        return types['nav_msgs/msg/Odometry'](
            header(at_ns, 'odom'), 'base_link',
            types['geometry_msgs/msg/PoseWithCovariance'](pose, np.zeros(36)),
            types['geometry_msgs/msg/TwistWithCovariance'](twist, np.zeros(36)),
        )

    plugin = StoragePlugin.MCAP if storage == 'mcap' else StoragePlugin.SQLITE3
    with Writer(path, version=8, storage_plugin=plugin) as writer:
        def topic(name: str, kind: str) -> Any:
            return writer.add_connection(name, kind, typestore=store)

        scans, odoms = topic(scan_topic, 'sensor_msgs/msg/LaserScan'), topic(
            '/odom', 'nav_msgs/msg/Odometry'
        )
        clock = topic('/clock', 'rosgraph_msgs/msg/Clock') if simulated else None
        odd = topic('/bump', 'odd_interfaces/msg/Bump') if unknown_type else None
        words = topic('/mission', 'std_msgs/msg/String') if missions else None
        for k in range(int(seconds * 10)):
            at_ns = BAG_BEGIN_NS + k * 100 * MS
            if clock is not None:
                message = types['rosgraph_msgs/msg/Clock'](stamp(at_ns))
                writer.write(clock, at_ns, store.serialize_cdr(message, clock.msgtype))
            if words is not None and k / 10 in missions:
                message = types['std_msgs/msg/String'](missions[k / 10])
                writer.write(words, at_ns, store.serialize_cdr(message, words.msgtype))
            if odd is not None:
                message = store.types['odd_interfaces/msg/Bump'](1.0)
                writer.write(odd, at_ns, store.serialize_cdr(message, odd.msgtype))
            writer.write(odoms, at_ns, store.serialize_cdr(odometry(at_ns), odoms.msgtype))
            quiet = any(begin <= k / 10 < end for begin, end in silent)
            if k % 2 == 0 and not quiet:
                message = scan(at_ns, 0 if k // 2 < bad_scans else 360)
                writer.write(scans, at_ns, store.serialize_cdr(message, scans.msgtype))
    if storage == 'sqlite3':
        _forget_definitions(next(path.glob('*.db3')))
    return path


def _forget_definitions(file: Path) -> None:
    """Make the file what Humble writes: messages without the definitions of their types."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute('UPDATE schema SET schema_version = 3')
        database.execute('DROP TABLE message_definitions')


def a_record(
    tick_ns: int = 1_000 * SECOND,
    outcome: Outcome = 'decided',
    *,
    latency_ms: float = 100.0,
    why: str = '',
    passes: int = 1,
    command: int = 1,
    guess: tuple[int, int] = (0, 0),
    margin: float = 0.8,
    plan: str = '1',
    partial: bool = False,
) -> DecisionRecord:
    """Return a record whose reading arrived 20 ms before the tick, with a budget of 300 ms.

    `guess` is (guessed, accepted) tokens.
    """
    arrival_ns = tick_ns - 20 * MS
    ended_ns = arrival_ns + round(latency_ms * MS)
    decided = outcome == 'decided'
    return DecisionRecord(
        policy='small', session='0123456789abcdef', request=1, tick_ns=tick_ns,
        ros_now_ns=tick_ns + BAG_BEGIN_NS, observation_stamp_ns=arrival_ns + BAG_BEGIN_NS,
        arrival_ns=arrival_ns, deadline_ns=arrival_ns + 300 * MS, ended_ns=ended_ns,
        outcome=outcome, why=why, segments=(), ages_ms={'scan': 20.0},
        action='forward' if decided else '', command_sequence=command if decided else 0,
        linear_x_m_s=0.1 if decided else 0.0,
        decision=Decision(
            leaf=1, confidence=0.9, choices=(),
            tokens=TokenCounts(200, 150, 56, passes, *guess),
            timings=Timings(tick_ns, tick_ns, ended_ns, 10_000, (5 * MS,) * passes),
            margin=margin, plan=plan,
        ) if decided else None,
        model_sha256='ab' * 32 if decided else '',
        space='small-1', partial=partial and decided, ids=(11, 12, 13) if decided else (),
        prior='reference:abcd' if decided else 'none',
    )
