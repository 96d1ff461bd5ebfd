"""watchdog_node: the only publisher of `cmd_vel`; the gate in a process of its own.

It holds when every other process has stopped: no executor, no model, no engine in here. One loop
on absolute steady deadlines takes what is new, steps the gate, publishes. Whatever can block (the
graph, /diagnostics, stderr) is a side thread's, and is written without rclpy's logger, which would
hold the interpreter's lock on a blocked pipe. A step that raises publishes a stop; if not even
that can be published, the process ends and the base's own time-out stops the robot.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import threading
import traceback
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from smallm_ros import steady
from smallm_ros.core.action import STOP, Command, NodeStatus, Velocity, parse_frame
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import DroppedError, OperatorError
from smallm_ros.core.facts import CommandArrival, Inputs, Process, StatusArrival
from smallm_ros.core.gate import Gate, Output, State
from smallm_ros.core.observation import Received
from smallm_ros.core.policy import load_policy
from smallm_ros.process import host, start_ticks
from smallm_ros.ros import diagnostics, qos
from smallm_ros.ros.convert import fields_of, ros_stamp
from smallm_ros.ros.messages import MESSAGES
from smallm_ros.ros.params import declare, refuse_clock_changes
from smallm_ros.ros.take import RosTime, serve, subscribe, take, take_all, take_request

ESTOP_SILENT_NS = SECOND
ESTOP_DEPTH = 10
"""A short press between two looks must not be overwritten."""
SIDE_PERIOD_S = 1.0
FAREWELLS = 3
FAREWELL_NS = 200 * MS
MOST_LINES = 200

LEVELS: dict[State, bytes] = {
    State.STANDBY: diagnostics.WARN,
    State.HOLD: diagnostics.OK,
    State.ACTIVE: diagnostics.OK,
    State.DEGRADED: diagnostics.WARN,
    State.FALLBACK: diagnostics.WARN,
    State.SAFE_STOP: diagnostics.ERROR,
    State.ESTOP_LATCHED: diagnostics.ERROR,
    State.FAULT_LATCHED: diagnostics.ERROR,
}


class ProcessWatch:
    """Knows when processes end, by their pidfds: without waiting, without being their parent."""

    _MOST = 8

    def __init__(self) -> None:
        self._fds: OrderedDict[Process, int] = OrderedDict()
        self._dead: OrderedDict[Process, None] = OrderedDict()
        self._poll = select.poll()

    def watch(self, process: Process) -> None:
        """Watch a process from now on; the longest watched leaves when there are many."""
        if process in self._fds or process in self._dead:
            return
        pid, began_ticks = process
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._bury(process)
            return
        except OSError:
            return  # no right or no descriptor left: its silence will tell
        if start_ticks(pid) != began_ticks:
            os.close(fd)
            self._bury(process)
            return
        self._fds[process] = fd
        self._poll.register(fd, select.POLLIN)
        if len(self._fds) > self._MOST:
            self._forget(next(iter(self._fds)))

    def dead(self) -> frozenset[Process]:
        """Return those that have ended."""
        ready = {fd for fd, _ in self._poll.poll(0)}
        for process in [process for process, fd in self._fds.items() if fd in ready]:
            self._forget(process)
            self._bury(process)
        return frozenset(self._dead)

    def close(self) -> None:
        """Close every descriptor."""
        for process in list(self._fds):
            self._forget(process)

    def _forget(self, process: Process) -> None:
        fd = self._fds.pop(process)
        self._poll.unregister(fd)
        os.close(fd)

    def _bury(self, process: Process) -> None:
        self._dead[process] = None
        if len(self._dead) > self._MOST:
            self._dead.popitem(last=False)


class WatchdogNode(Node):
    """Connects a `Gate` to ROS: takes facts, publishes what leaves."""

    def __init__(self) -> None:
        super().__init__('watchdog_node', enable_rosout=False, start_parameter_services=False)
        path = declare(self, 'policy', '', 'path of the policy file')
        auto_arm = declare(
            self, 'auto_arm', False, 'arm without being told: for simulation and replay')
        self._stamped = declare(
            self, 'twist_stamped', True, 'publish TwistStamped on cmd_vel; false: Twist')
        other = declare(self, 'policy_node', 'policy_node', 'name of the policy node')
        self._estop_required = declare(
            self, 'estop_required', False, 'treat silence of `estop` as its assertion')
        refuse_clock_changes(self)
        if not path:
            raise OperatorError('watchdog_node: the parameter `policy` must name a policy file')
        self._policy = load_policy(Path(path))
        self._auto_arm = auto_arm
        self._gate = Gate(
            self._policy, auto_arm=auto_arm, host=host(), boot=steady.boot_id()[:64],
        )
        self._ros_time = RosTime(self)
        self._cmd_vel = self.create_publisher(
            TwistStamped if self._stamped else Twist, 'cmd_vel', qos.CMD_VEL)
        self._applied = self.create_publisher(String, '~/applied', qos.APPLIED)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._ears = {
            name: subscribe(self, MESSAGES[sensor.type], sensor.topic, qos.SENSOR)
            for name, sensor in self._policy.sensors.items()
        }
        self._commands = subscribe(self, String, f'{other}/command', qos.COMMAND)
        self._statuses = subscribe(self, String, f'{other}/status', qos.STATUS)
        self._estops = subscribe(
            self, Bool, 'estop',
            QoSProfile(depth=ESTOP_DEPTH, reliability=qos.SENSOR.reliability),
        )
        self._arm = serve(self, Trigger, '~/arm')
        self._reset = serve(self, Trigger, '~/reset')
        self._processes = ProcessWatch()
        self._newest: dict[str, Received] = {}
        self._command: CommandArrival | None = None
        self._status: StatusArrival | None = None
        self._estop = False
        self._estop_heard_ns = steady.now_ns()
        self._publisher_count: int | None = None
        self._dropped = 0
        self._why_dropped = ''
        self._exceptions = 0
        self._most_late_ns = 0
        self._last: Output | None = None
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._ended = threading.Event()
        self._side = threading.Thread(target=self._tell_people, name='side', daemon=True)
        if auto_arm:
            self._say('WARN', 'auto_arm: motion starts by itself; for simulation and replay only')

    # --- the loop ---------------------------------------------------------------------------

    def run(self, ending: threading.Event) -> None:
        """Publish each control period until `ending` is set, then stop the base."""
        self._side.start()
        # What exists now stays: a collection over all of it would make a tick 100 ms late.
        gc.collect()
        gc.freeze()
        period_ns = self._policy.control_period_ns
        due_ns = steady.now_ns()
        while not ending.is_set():
            steady.sleep_until(due_ns)
            now_ns = steady.now_ns()
            self._tick(now_ns, now_ns - due_ns)
            due_ns += period_ns * max(1, -(-(steady.now_ns() - due_ns) // period_ns))
        for _ in range(FAREWELLS):
            self._publish_velocity(STOP)
            steady.sleep_until(steady.now_ns() + period_ns)
        self._cmd_vel.wait_for_all_acked(Duration(nanoseconds=FAREWELL_NS))
        self._say('INFO', 'ended; the last command was stop')

    def close(self) -> None:
        """End the side thread and give descriptors back."""
        self._ended.set()
        if self._side.is_alive():
            self._side.join(timeout=2 * SIDE_PERIOD_S)
        self._processes.close()

    def _tick(self, now_ns: int, late_ns: int) -> None:
        answers: list[tuple[str, Any]] = []
        try:
            inputs = self._take(now_ns, answers)
            output = self._gate.step(now_ns, inputs)
        except Exception as err:
            self._exceptions += 1
            self._say('ERROR', traceback.format_exc().rstrip())
            output = self._gate.excepted(now_ns, repr(err))
        self._publish_velocity(output.velocity)
        self._applied.publish(String(data=output.applied(late_ns).to_json()))
        self._most_late_ns = max(self._most_late_ns, late_ns)
        before, self._last = self._last, output
        self._say_change(before, output)
        for what, answer in answers:
            try:
                answer(_response(what, before, output))
            except Exception as err:  # who asked has gone
                self._drop(f'answer to {what}: {err!r}')

    def _take(self, now_ns: int, answers: list[tuple[str, Any]]) -> Inputs:
        """Take all that is new; requests go to `answers` to be answered after the step."""
        ros_now_ns = self._ros_time.now_ns()
        # Only a clock that can pause may make an arrival younger than the steady clock says.
        ros_arrival_ns = ros_now_ns if self._ros_time.simulated else None
        for name, ear in self._ears.items():
            message = take(ear)
            if message is None:
                continue
            try:
                fields = fields_of(self._policy.sensors[name].type, message)
            except DroppedError as err:
                self._drop(f'{name}: {err}')
                continue
            self._newest[name] = Received(name, fields, now_ns, ros_arrival_ns)
        self._take_frames(now_ns)
        pressed = [bool(message.data) for message in take_all(self._estops)]
        if pressed:
            self._estop_heard_ns = now_ns
            self._estop = pressed[-1]
        edges = {}
        for what, service in (('arm', self._arm), ('reset', self._reset)):
            answer = take_request(service)
            edges[what] = answer is not None
            if answer is not None:
                answers.append((what, answer))
        return Inputs(
            ros_now_ns=ros_now_ns,
            sensors=dict(self._newest),
            command=self._command,
            status=self._status,
            dead=self._processes.dead(),
            estop=self._estop or any(pressed),
            estop_silent=(
                self._estop_required and now_ns - self._estop_heard_ns > ESTOP_SILENT_NS
            ),
            publishers=self._publisher_count,
            arm=edges['arm'],
            reset=edges['reset'],
        )

    def _take_frames(self, now_ns: int) -> None:
        message = take(self._statuses)
        if message is not None:
            try:
                status = parse_frame(NodeStatus, message.data)
            except DroppedError as err:
                self._drop(str(err))
            else:
                self._status = StatusArrival(status, now_ns)
                self._processes.watch((status.pid, status.start_ticks))
                if status.worker_pid:
                    self._processes.watch((status.worker_pid, status.worker_start_ticks))
        message = take(self._commands)
        if message is not None:
            try:
                self._command = CommandArrival(parse_frame(Command, message.data), now_ns)
            except DroppedError as err:
                self._drop(str(err))

    def _drop(self, why: str) -> None:
        self._dropped += 1
        self._why_dropped = why[:300]

    def _publish_velocity(self, velocity: Velocity) -> None:
        twist = Twist()
        twist.linear.x = velocity.linear_x_m_s
        twist.angular.z = velocity.angular_z_rad_s
        if not self._stamped:
            self._cmd_vel.publish(twist)
            return
        message = TwistStamped(twist=twist)
        sec, nanosec = ros_stamp(self._ros_time.now_ns() or 0)
        message.header.stamp = Time(sec=sec, nanosec=nanosec)
        message.header.frame_id = 'base_link'
        self._cmd_vel.publish(message)

    # --- telling people ---------------------------------------------------------------------

    def _say(self, level: str, text: str) -> None:
        self._lines.append(f'[{level}] [{steady.wall_ns() / SECOND:.3f}] [{self.get_name()}]: '
                           f'{text}\n')

    def _say_change(self, before: Output | None, after: Output) -> None:
        if before is not None and before.state is after.state:
            if before.cause is not after.cause and after.state is not State.ACTIVE:
                self._say('INFO', f'{after.state.value}: {_because(after)}')
            return
        was = before.state.value if before else 'start'
        level = 'INFO' if LEVELS[after.state] == diagnostics.OK else 'WARN'
        self._say(level, f'{was} -> {after.state.value}: {_because(after)}')

    def _tell_people(self) -> None:
        """Side thread: the graph, /diagnostics and stderr, all of which may block."""
        topic = self.resolve_topic_name('cmd_vel')
        while True:
            ended = self._ended.wait(SIDE_PERIOD_S)
            if not ended:
                self._publisher_count = self.count_publishers(topic)
                self._diagnostics.publish(self._diagnosis())
            while self._lines:
                line = self._lines.popleft()
                with contextlib.suppress(OSError):  # nobody reads it
                    os.write(2, line.encode('utf-8', 'replace'))
            if ended:
                return

    def _diagnosis(self) -> DiagnosticArray:
        output = self._last
        values = {
            'policy': self._policy.name,
            'auto_arm': str(self._auto_arm).lower(),
            'dropped messages': str(self._dropped),
            'last dropped': self._why_dropped,
            'exceptions': str(self._exceptions),
            'most late ms': f'{self._most_late_ns / MS:.1f}',
            'publishers': str(self._publisher_count),
        }
        level, message = diagnostics.STALE, 'no step yet'
        if output is not None:
            level = LEVELS[output.state]
            message = f'{output.state.value}: {_because(output)}'
            values |= {
                'state': output.state.value,
                'cause': output.cause.value,
                'causes': ' '.join(finding.cause.value for finding in output.findings),
                'source': output.source,
                'fallback': output.fallback or '',
                'limited': output.why_limited,
                'sequence': str(output.sequence),
            }
        return diagnostics.array(steady.wall_ns(), [
            diagnostics.status(f'{self.get_name()}: gate', level, message, values),
        ])


def _because(output: Output) -> str:
    return f'{output.cause.value}: {output.detail}' if output.detail else 'all well'


def _response(what: str, before: Output | None, after: Output) -> Trigger.Response:
    """Return the answer to an arm or reset request, from what its step did."""
    was = before.state if before else State.STANDBY
    done = (
        (was is State.HOLD and after.state is State.ACTIVE) if what == 'arm'
        else was is State.ESTOP_LATCHED and after.state is State.HOLD
    )
    refused = '' if done else f'{what} refused in '
    return Trigger.Response(
        success=done, message=f'{refused}{after.state.value}: {_because(after)}')


def main(args: Sequence[str] | None = None) -> int:
    """Run the watchdog until SIGTERM or SIGINT; return the exit code."""
    # Instead of rclpy's handlers, which would end the context before the stop could be published.
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    rclpy.init(args=list(sys.argv if args is None else args),
               signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        node = WatchdogNode()
        node.run(ending)
        return 0
    except OperatorError as err:
        print(err, file=sys.stderr)
        return err.exit_code
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.shutdown()


if __name__ == '__main__':
    sys.exit(main())
