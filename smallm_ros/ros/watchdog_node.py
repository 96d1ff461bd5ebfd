"""watchdog_node: the only publisher of `cmd_vel` and of what actions say on other topics.

The gate in a process of its own. It holds when every other process has stopped: no executor, no
model, no engine in here. One loop on absolute steady deadlines takes what is new, steps the gate,
publishes; then, with what is left of the period, it answers requests. Whatever can block is
another's: the graph, ~/state and /diagnostics the herald's, a process of its own; stderr a
thread's. A step that raises publishes a stop; if not even that can be published, the process ends
and the base's own time-out stops the robot.

A watchdog that was killed and started again is in HOLD and stays there until somebody arms it.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from smallm_ros import process, steady
from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.cause import Cause, Dwells
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import OperatorError
from smallm_ros.core.facts import Inputs
from smallm_ros.core.gate import Gate, Output, State
from smallm_ros.core.policy import load_policy
from smallm_ros.process import ProcessWatch
from smallm_ros.ros import diagnostics, qos
from smallm_ros.ros.convert.common import ros_stamp
from smallm_ros.ros.graph import Endpoint
from smallm_ros.ros.heard import Heard
from smallm_ros.ros.herald import Herald
from smallm_ros.ros.jitter import Jitter
from smallm_ros.ros.limits import Limits
from smallm_ros.ros.lines import Lines
from smallm_ros.ros.messages import message_class
from smallm_ros.ros.outputs import Outputs
from smallm_ros.ros.params import ParameterRequests, declare, refuse_clock_changes
from smallm_ros.ros.take import (
    Liveliness,
    Replies,
    RosTime,
    serve,
    subscribe,
    take,
    take_all,
    take_request,
)
from smallm_ros.ros.transport import CHOSEN, share_nothing, shares_memory

ESTOP_SILENT_NS = SECOND
ESTOP_DEPTH = 10
"""With 1 a release would overwrite a press between two looks; every look takes them all."""
TOLD_NS = SECOND
"""Between two times that ~/state and /diagnostics are told."""
GOODBYE_S = 1.0
SWITCH_S = 0.0005
"""How long another thread's Python may make the loop wait; the interpreter's own is 5 ms."""
FAREWELLS = 3
FAREWELL_NS = 200 * MS

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


class WatchdogNode(Node):
    """Connects a `Gate` to ROS: takes facts, publishes what leaves."""

    def __init__(self, dwells: Dwells | None = None) -> None:
        super().__init__('watchdog_node', enable_rosout=False)
        path = declare(self, 'policy', '', 'path of the policy file')
        self._auto_arm = declare(
            self, 'auto_arm', False, 'arm without being told: for simulation and replay')
        self._stamped = declare(
            self, 'twist_stamped', True, 'publish TwistStamped on cmd_vel; false: Twist')
        other = declare(self, 'policy_node', 'policy_node', 'name of the policy node')
        self._estop_required = declare(
            self, 'estop_required', False, 'treat silence of `estop` as its assertion')
        self._lock_memory = declare(
            self, 'lock_memory', False, 'keep this process in memory: mlockall, where permitted')
        self._priority = declare(
            self, 'realtime_priority', 0, 'SCHED_FIFO priority of the loop, where permitted; '
            '0: as everybody', within=(0, 99))
        if not path:
            raise OperatorError('watchdog_node: the parameter `policy` must name a policy file')
        self._limits = Limits(self, load_policy(Path(path)))
        policy = self._limits.policy
        self._period_ns = policy.control_period_ns
        self._gate = Gate(
            policy, auto_arm=self._auto_arm, host=process.host(), boot=steady.boot_id()[:64],
            dwells=dwells,
        )
        self._limits.follow(self._gate.retune)
        refuse_clock_changes(self)  # after the limits: rclpy asks the newest first, they the last
        self._parameter_requests = ParameterRequests(self)
        self._replies = Replies()
        self._ros_time = RosTime(self)
        self._cmd_vel = None if policy.base == 'none' else self.create_publisher(
            TwistStamped if self._stamped else Twist, 'cmd_vel', qos.CMD_VEL)
        self._outputs = Outputs(
            policy, lambda kind, topic: self.create_publisher(kind, topic, qos.OUTPUT))
        self._applied = self.create_publisher(String, '~/applied', qos.APPLIED)
        self._ears = {
            name: subscribe(self, message_class(sensor.type), sensor.topic, qos.SENSOR)
            for name, sensor in policy.sensors.items()
        }
        self._commands = subscribe(self, String, f'{other}/command', qos.COMMAND)
        self._statuses = subscribe(
            self, String, f'{other}/status', qos.status(policy.control.status_limit_ms))
        self._liveliness = Liveliness(self._statuses)
        self._estops = subscribe(self, Bool, 'estop', qos.estop(ESTOP_DEPTH))
        self._arm = serve(self, Trigger, '~/arm')
        self._reset = serve(self, Trigger, '~/reset')
        self._herald = Herald({
            'name': self.get_fully_qualified_name(),
            'output': None if self._cmd_vel is None else Endpoint.of(self._cmd_vel).words(),
            'shared': [Endpoint.of(each).words() for each in self._outputs.publishers.values()],
            'inputs': [Endpoint.of(ear).words() for ear in (
                *self._ears.values(), self._commands, self._statuses, self._estops)],
            'simulated': self._ros_time.simulated,
        })
        self._processes = ProcessWatch()
        self._heard = Heard(policy)
        self._estop = False
        self._estop_heard_ns: int | None = None
        self._ticks = 0
        self._exceptions = 0
        self._broken = 0
        self._entered: Counter[str] = Counter()
        in_a_minute = 60 * SECOND // self._period_ns
        self._late, self._gap = Jitter(in_a_minute), Jitter(in_a_minute)
        self._published_ns: int | None = None
        self._scheduling, self._memory, self._transport = 'other', 'pageable', ''
        self._last: Output | None = None
        self._lines = Lines(self.get_name())
        self._told_ns = steady.now_ns()
        if self._auto_arm:
            self._lines.say(
                'WARN', 'auto_arm: motion starts by itself; for simulation and replay only')

    # --- the loop ---------------------------------------------------------------------------

    def run(self, ending: threading.Event) -> None:
        """Publish each control period until `ending` is set, then stop the base."""
        self._lines.start()
        self._herald.turn(steady.now_ns())
        # What exists now stays: a collection over all of it would make a tick 100 ms late.
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(SWITCH_S)
        self._ask_the_kernel()
        due_ns = steady.now_ns()
        while not ending.is_set():
            steady.sleep_until(due_ns)
            now_ns = steady.now_ns()
            self._tick(now_ns - due_ns)
            due_ns += self._period_ns * max(1, -(-(steady.now_ns() - due_ns) // self._period_ns))
        for _ in range(FAREWELLS):
            self._publish_velocity(STOP)
            self._outputs.stop(self._stamp(), self._note_exception)
            steady.sleep_until(steady.now_ns() + self._period_ns)
        for publisher in (self._cmd_vel, *self._outputs.publishers.values()):
            if publisher is not None:
                publisher.wait_for_all_acked(Duration(nanoseconds=FAREWELL_NS))
        self._lines.say('INFO', 'ended; the last command was stop')

    def close(self) -> None:
        """End what runs beside the loop and give descriptors back."""
        self._herald.close()
        self._lines.close(GOODBYE_S)
        self._processes.close()

    def _ask_the_kernel(self) -> None:
        """Ask for what makes the loop punctual, where that is wanted; go on without."""
        self._transport = 'nothing shared'
        if shares_memory():
            self._transport = 'shared memory: whoever dies with a lock of it delays the loop'
            self._lines.say('WARN', f'transport: {self._transport}. One of {", ".join(CHOSEN)} is '
                            'set: without it the watchdog uses UDP alone')
        if self._lock_memory:
            why = _refused(process.lock_memory)
            self._memory = f'pageable: {why}' if why else 'locked'
            if why:
                self._lines.say('WARN', f'lock_memory: {why}; going on without. Permit it: '
                                '`ulimit -l unlimited`, memlock in limits.conf, LimitMEMLOCK= in '
                                'systemd, or CAP_IPC_LOCK')
        why = _refused(lambda: process.schedule_fifo(self._priority)) if self._priority else ''
        self._scheduling = process.scheduling() + (f': {why}' if why else '')
        if why:
            self._lines.say('WARN', f'realtime_priority {self._priority}: {why}; going on '
                            'without. Permit it: rtprio in limits.conf, LimitRTPRIO= in systemd, '
                            'or CAP_SYS_NICE')

    def _tick(self, late_ns: int) -> None:
        answers: list[tuple[str, Callable[[Any], None]]] = []
        try:
            inputs = self._take(answers)
            # After the takes: what the kernel put us aside for may have brought something newer
            # than the tick's begin, and that is not from the future.
            now_ns = steady.now_ns()
            output = self._gate.step(now_ns, inputs)
        except Exception as err:
            self._note_exception()
            now_ns = steady.now_ns()
            output = self._gate.excepted(now_ns, repr(err))
        self._publish_velocity(output.velocity)
        before, self._last = self._last, output
        try:
            self._outputs.step(output, steady.now_ns(), self._stamp(), self._note_exception)
        except Exception:
            self._note_exception()
        try:
            self._tell_programs(before, output, late_ns)
        except Exception:
            self._note_exception()
        try:
            for what, answer in answers:
                self._replies.put(now_ns, answer, _response(what, before, output))
            self._parameter_requests.answer_waiting(now_ns, self._replies)
            self._replies.send_due(now_ns)
        except Exception as err:  # who asked has gone
            self._heard.drop(f'answer to a request: {err!r}')
        try:
            self._tell_people(now_ns)
        except Exception:
            self._note_exception()

    def _take(self, answers: list[tuple[str, Callable[[Any], None]]]) -> Inputs:
        """Take all that is new; requests go to `answers` to be answered after the step."""
        ros_now_ns = self._ros_time.now_ns()
        # Only a clock that can pause may make an arrival younger than the steady clock says.
        ros_arrival_ns = ros_now_ns if self._ros_time.simulated else None
        for name, ear in self._ears.items():
            message = take(ear)
            if message is not None:
                self._heard.reading(name, message, steady.now_ns(), ros_arrival_ns)
        message = take(self._statuses)
        if message is not None:
            status = self._heard.status_text(message.data, steady.now_ns())
            if status is not None:
                self._processes.watch((status.pid, status.start_ticks))
                if status.worker_pid:
                    self._processes.watch((status.worker_pid, status.worker_start_ticks))
        message = take(self._commands)
        if message is not None:
            self._heard.command_text(message.data, steady.now_ns())
        pressed = [bool(message.data) for message in take_all(self._estops)]
        now_ns = steady.now_ns()
        if pressed:
            self._estop_heard_ns = now_ns
            self._estop = pressed[-1]
        edges = {}
        for what, service in (('arm', self._arm), ('reset', self._reset)):
            taken = take_request(service)
            edges[what] = taken is not None
            if taken is not None:
                answers.append((what, taken[1]))
        return Inputs(
            ros_now_ns=self._ros_time.known_ns(),
            simulated=self._ros_time.simulated,
            sensors=dict(self._heard.readings),
            command=self._heard.command,
            status=self._heard.status,
            dead=self._processes.dead(),
            estop=self._estop or any(pressed),
            estop_silent=(
                self._estop_required and self._estop_heard_ns is not None
                and now_ns - self._estop_heard_ns > ESTOP_SILENT_NS
            ),
            estop_never=self._estop_required and self._estop_heard_ns is None,
            publishers=self._herald.publishers,
            arm=edges['arm'],
            reset=edges['reset'],
        )

    def _stamp(self) -> tuple[int, int]:
        """Return ROS time for a message's header; zeros before the first /clock."""
        return ros_stamp(self._ros_time.known_ns() or 0)

    def _publish_velocity(self, velocity: Velocity) -> None:
        twist = Twist()
        twist.linear.x = velocity.linear_x_m_s
        twist.angular.z = velocity.angular_z_rad_s
        if self._cmd_vel is None:
            pass
        elif self._stamped:
            message = TwistStamped(twist=twist)
            sec, nanosec = self._stamp()
            message.header.stamp = Time(sec=sec, nanosec=nanosec)
            message.header.frame_id = 'base_link'
            self._cmd_vel.publish(message)
        else:
            self._cmd_vel.publish(twist)
        before_ns, self._published_ns = self._published_ns, steady.now_ns()
        if before_ns is not None:
            self._gap.add(self._published_ns - before_ns)

    # --- telling programs and people --------------------------------------------------------

    def _tell_programs(self, before: Output | None, after: Output, late_ns: int) -> None:
        """Say and count what was done, once it is done."""
        self._applied.publish(String(data=after.applied(late_ns).to_json()))
        self._ticks += 1
        self._late.add(late_ns)
        self._broken += any(finding.cause is Cause.INVARIANT for finding in after.findings)
        losses = self._liveliness.losses
        self._liveliness.look()
        if self._liveliness.losses > losses:
            self._lines.say('WARN', 'the policy node no longer asserts that it lives')
        if before is not None and before.state is after.state:
            if before.cause is not after.cause and after.state is not State.ACTIVE:
                self._lines.say('INFO', f'{after.state.value}: {_because(after)}')
            return
        self._entered[after.cause.value] += 1
        was = before.state.value if before else 'start'
        level = 'INFO' if LEVELS[after.state] == diagnostics.OK else 'WARN'
        self._lines.say(level, f'{was} -> {after.state.value}: {_because(after)}')

    def _tell_people(self, now_ns: int) -> None:
        """Hear the herald, and each second hand it what is to be told."""
        line = self._herald.turn(now_ns)
        if line:
            self._lines.say('ERROR', line)
        if now_ns - self._told_ns >= TOLD_NS:
            self._told_ns = now_ns
            self._herald.tell(self._news())

    def _note_exception(self) -> None:
        self._exceptions += 1
        self._lines.say('ERROR', traceback.format_exc().rstrip())

    def _state_now(self, output: Output) -> dict[str, Any]:
        """Return what ~/state says, JSON's types only."""
        heard = self._heard
        return {
            'version': 1,
            'steady_ns': steady.now_ns(),
            'policy': self._limits.policy.name,
            'state': output.state.value,
            'cause': output.cause.value,
            'detail': output.detail,
            'causes': [finding.cause.value for finding in output.findings],
            'source': output.source,
            'fallback': output.fallback,
            'limited': output.why_limited,
            'sequence': output.sequence,
            'auto_arm': self._auto_arm,
            'ticks': self._ticks,
            'dropped': heard.dropped,
            'last_dropped': heard.why_dropped,
            'exceptions': self._exceptions,
            'outputs': dict(self._outputs.published),
            'invariant': self._broken,
            'transitions': dict(self._entered),
            'late': {'minute': self._late.last_minute(), 'start': self._late.since_start()},
            'gap': {'minute': self._gap.last_minute(), 'start': self._gap.since_start()},
            'scheduling': self._scheduling,
            'memory': self._memory,
            'transport': self._transport,
            'parameter_generation': output.generation,
            'out_of_order': self._gate.out_of_order,
            'parameter_sets_refused': self._limits.refused,
            'publishers': self._herald.publishers,
            'other_publishers': list(self._herald.others),
            'policy_node_alive': self._liveliness.alive,
            'policy_node_losses': self._liveliness.losses,
            'graph': list(self._herald.wrong),
        }

    def _news(self) -> dict[str, Any]:
        """Return what the herald is to tell, JSON's types only."""
        output, name = self._last, self.get_name()
        assert output is not None
        asked = (self._scheduling, self._memory, self._transport)
        refused = [text for text in asked if ': ' in text]
        return {
            'state': self._state_now(output),
            'gate': [f'{name}: gate', LEVELS[output.state][0],
                     f'{output.state.value}: {_because(output)}'],
            'loop': [f'{name}: loop', (diagnostics.WARN if refused else diagnostics.OK)[0],
                     '; '.join(refused) or ', '.join(asked)],
            'graph': f'{name}: graph',
        }


def _refused(ask: Callable[[], None]) -> str:
    """Return why the kernel does not permit it; empty when it does."""
    try:
        ask()
    except OSError as err:
        return f'not permitted ({errno.errorcode.get(err.errno or 0, err.errno)}: {err.strerror})'
    return ''


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


def main(
    args: Sequence[str] | None = None, make: Callable[[], WatchdogNode] = WatchdogNode,
) -> int:
    """Run the watchdog until SIGTERM, SIGINT or SIGHUP; return the exit code."""
    # Instead of rclpy's handlers, which would end the context before the stop could be published.
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    share_nothing(os.environ)
    # Nothing of ROS writes to stderr from the loop: on a blocked pipe it would wait for ever.
    rclpy.init(args=[*(sys.argv if args is None else args), '--ros-args', '--disable-stdout-logs'],
               signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        node = make()
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
