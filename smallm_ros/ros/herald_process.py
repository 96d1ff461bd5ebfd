"""The watchdog's herald: looks at the graph for it, and publishes ~/state and /diagnostics.

It may block for ever, be stopped or killed: the watchdog never waits for it. Its first line on
stdin says whom it serves, each further one what to tell; on stdout it says what it found, a line
each time. It ends with its watchdog.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import String

from smallm_ros import process, steady
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.ros import diagnostics, qos
from smallm_ros.ros.graph import Endpoint, Graph

COUNT_NS = 200 * MS
"""How often it is counted who publishes on the output topic."""
LOOK_NS = SECOND
"""How often everything else on the graph is looked at."""


def main() -> int:
    """Serve the watchdog whose pid is the first argument, until its pipe ends."""
    if not process.die_with(int(sys.argv[1]), signal.SIGKILL):
        return 0
    news = _lines()
    about = next(news, None)
    if about is None:
        return 0
    rclpy.init(args=[], signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    name = about['name'].rpartition('/')
    node = rclpy.create_node(
        f'{name[2]}_herald', namespace=name[0] or '/', enable_rosout=False,
        start_parameter_services=False)
    state = node.create_publisher(String, f'{about["name"]}/state', qos.STATE)
    diagnosis = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
    output = about['output']
    graph = Graph(
        node, about['name'], None if output is None else Endpoint.of_words(output),
        [Endpoint.of_words(each) for each in about['inputs']],
        [Endpoint.of_words(each) for each in about['shared']], simulated=about['simulated'])
    looked_ns = 0
    while True:
        graph.count()
        if steady.now_ns() - looked_ns >= LOOK_NS:
            looked_ns = steady.now_ns()
            graph.look()
        _say({'publishers': graph.publishers, 'others': graph.others, 'wrong': graph.wrong})
        due_ns = steady.now_ns() + COUNT_NS
        while (rest_ns := due_ns - steady.now_ns()) > 0:
            if not select.select([0], [], [], rest_ns / SECOND)[0]:
                break
            told = next(news, None)
            if told is None:
                return 0
            if told:
                state.publish(String(data=json.dumps(told['state'])))
                diagnosis.publish(_array(told, graph.wrong))


def _lines() -> Iterator[dict[str, Any]]:
    """Yield what comes on stdin, an empty one where a read did not end a line."""
    rest = b''
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b'\n')
        if not lines:
            yield {}
        for line in lines:
            yield json.loads(line)


def _say(words: Mapping[str, Any]) -> None:
    os.write(1, json.dumps(words).encode() + b'\n')


def _array(told: Mapping[str, Any], wrong: tuple[str, ...]) -> DiagnosticArray:
    return diagnostics.array(steady.wall_ns(), [
        diagnostics.status(told['gate'][0], bytes([told['gate'][1]]), told['gate'][2], {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in told['state'].items()
        }),
        diagnostics.status(told['loop'][0], bytes([told['loop'][1]]), told['loop'][2], {}),
        diagnostics.status(
            told['graph'], diagnostics.WARN if wrong else diagnostics.OK,
            '; '.join(wrong) or 'nobody else drives, everybody fits', {}),
    ])


if __name__ == '__main__':
    sys.exit(main())
