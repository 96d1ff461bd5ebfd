"""A neighbour that should not be there: `intruder_process KIND [NUMBER]`.

It prints one line of JSON once it is at work, and stays until it is ended.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from smallm_ros import process, steady
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.ros import qos


def say(**words: object) -> None:
    sys.stdout.write(json.dumps({'at_ns': steady.now_ns(), **words}) + '\n')
    sys.stdout.flush()


def until_killed(do: Callable[[], None] = lambda: None, each_ns: int = SECOND) -> None:
    while True:
        do()
        steady.sleep_until(steady.now_ns() + each_ns)


def until_heard(topic: Any, count: int) -> None:
    """Wait until so many listen."""
    end_ns = steady.now_ns() + 10 * SECOND
    while topic.get_subscription_count() < count:
        assert steady.now_ns() < end_ns, f'{topic.topic_name}: not {count} who listen'
        steady.sleep_until(steady.now_ns() + 10 * MS)


def publisher(node: Node) -> None:
    """A second one who may move the robot; it does not even say anything."""
    kept = node.create_publisher(TwistStamped, '/cmd_vel', 1)
    say(topic=kept.topic_name)
    until_killed()


def incompatible(node: Node) -> None:
    """Peers whose QoS no profile of ours fits."""
    late = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    loose = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
    kept = [
        node.create_subscription(TwistStamped, '/cmd_vel', lambda _: None, late),
        node.create_subscription(String, '/policy_node/command', lambda _: None, late),
        node.create_publisher(String, '/policy_node/status', loose),
    ]
    say(count=len(kept))
    until_killed()


def words(node: Node, size: int, each_ns: int) -> None:
    """Strings on the topics that the watchdog takes commands and statuses from."""
    topics = [node.create_publisher(String, f'/policy_node/{name}', profile)
              for name, profile in (('command', qos.COMMAND), ('status', qos.status(300.0)))]
    for topic in topics:
        until_heard(topic, 1)
    message = String(data='{' * size)
    say(size=size)
    until_killed(lambda: [topic.publish(message) for topic in topics] and None, each_ns)


def clock(node: Node) -> None:
    """Another /clock, an hour ahead."""
    topic = node.create_publisher(Clock, '/clock', 1)
    message = Clock()
    message.clock.sec = 3600
    until_heard(topic, 2)
    say()
    until_killed(lambda: topic.publish(message), 10 * MS)


def namesakes() -> None:
    """Nodes with the names of ours."""
    kept = [rclpy.create_node(name) for name in ('watchdog_node', 'policy_node')]
    say(names=[node.get_name() for node in kept])
    until_killed()


def dead(count: int) -> None:
    """Processes that are killed in the middle of DDS, and what they leave in shared memory."""
    before = len(os.listdir('/dev/shm'))
    for _ in range(count):
        pid = os.fork()
        if not pid:
            rclpy.init()
            node = rclpy.create_node(f'dead_{os.getpid()}')
            node.create_publisher(String, '/policy_node/command', 1)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
    say(left=len(os.listdir('/dev/shm')) - before)
    until_killed()


def hogs(count: int) -> None:
    """Busy processes."""
    parent = os.getpid()
    for _ in range(count):
        if not os.fork():
            with contextlib.suppress(KeyboardInterrupt):
                while process.die_with(parent, signal.SIGKILL):
                    for _ in range(10_000_000):
                        pass
            os._exit(0)
    say(count=count)
    until_killed()


def memory(left: int) -> None:
    """Take all memory but so much, and go on writing to it; the first that the kernel kills."""
    Path('/proc/self/oom_score_adj').write_text('1000', encoding='ascii')
    blocks = []
    while (free := available()) > left:
        block = mmap.mmap(-1, min(256 << 20, free - left + mmap.PAGESIZE))
        block.madvise(mmap.MADV_HUGEPAGE)
        blocks.append(block)
        touch(block)
    say(taken=sum(map(len, blocks)))
    turn = itertools.cycle(blocks)
    until_killed(lambda: touch(next(turn)), 10 * MS)


def touch(block: mmap.mmap) -> None:
    for at in range(0, len(block), mmap.PAGESIZE):
        block[at] = 1


def available() -> int:
    """Return MemAvailable in bytes, proc(5)."""
    for line in Path('/proc/meminfo').read_text(encoding='ascii').splitlines():
        if line.startswith('MemAvailable:'):
            return int(line.split()[1]) << 10
    raise AssertionError('no MemAvailable')


def main() -> None:
    """Do what the first word says."""
    kind, number = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    if kind == 'hogs':
        hogs(number)
    if kind == 'dead':
        dead(number)
    if kind == 'memory':
        memory(number)
    rclpy.init()
    if kind == 'namesakes':
        namesakes()
    node = rclpy.create_node(f'intruder_{os.getpid()}')
    if kind == 'huge':
        words(node, number, 200 * MS)
    elif kind == 'garbage':
        words(node, 300, 50 * MS // number)
    else:
        {'publisher': publisher, 'incompatible': incompatible, 'clock': clock}[kind](node)


if __name__ == '__main__':
    main()
