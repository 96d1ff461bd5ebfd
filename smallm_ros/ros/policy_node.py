"""policy_node: the pilot's hands and ears; a managed node that never waits for anything.

One thread runs everything: a steady timer takes the newest message of each sensor and steps the
pilot each control period, and a guard condition forwards what the engine says as soon as it is
said. No message wakes the node: a flood of them costs no more than one a control period. A side
thread does nothing but wait for the engine's socket to become readable, so that an answer costs
neither a polling loop nor up to a control period of its time-to-live.

    unconfigured  configure: read the policy, connect, check; tells nothing yet
    inactive      tells the watchdog each period that nothing is decided
    active        decision ticks

With `autostart` the node goes through both by itself: after a crash it is back without anybody's
help. SIGTERM and SIGINT deactivate it, so that the watchdog is told before the process ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import secrets
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.exceptions import InvalidTopicNameException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from smallm_ros import process, steady
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import DroppedError, FrameError, OperatorError, PolicyError
from smallm_ros.core.exchange import Cancel, DeclarationRejected, ModelLimits
from smallm_ros.core.observation import Reading, Received, StampFault
from smallm_ros.core.pilot import (
    Ask,
    Declare,
    Do,
    Identity,
    Pilot,
    Record,
    Say,
    Send,
    Tell,
    Withdraw,
)
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.core.summary import Sensor
from smallm_ros.engine.client import EngineClient
from smallm_ros.engine.wire import default_socket
from smallm_ros.record.writer import Entry, RecordWriter
from smallm_ros.ros import convert, diagnostics, qos, take
from smallm_ros.ros.messages import message_class
from smallm_ros.ros.params import declare, refuse_clock_changes

DIAGNOSTICS_PERIOD_NS = SECOND
FAREWELL_NS = 200 * MS
"""How long the end of the process waits for the watchdog to have heard of it."""


@dataclasses.dataclass(slots=True)
class _Ear:
    """What one sensor's subscription has given."""

    source: take.Newest
    count: int = 0
    """Messages that were sent, as the middleware numbers them."""
    taken: int = 0
    dropped: int = 0
    why: str = ''
    """Why the last message was dropped; empty when it was not."""


@dataclasses.dataclass(slots=True)
class _Parts:
    """All that exists from configure to cleanup."""

    policy: Policy
    pilot: Pilot
    client: EngineClient
    waker: _Waker
    writer: RecordWriter | None
    status: Publisher[String]
    """Of each configuration: its lease is the policy's."""
    ears: dict[str, _Ear]
    words: take.Newest | None
    """The operator's, where the policy has a topic for them."""
    held: contextlib.ExitStack
    """Closes and destroys all of it."""

    def keep(self, entry: Entry) -> None:
        """Record it, where anything is recorded."""
        if self.writer is not None:
            self.writer.put_nowait(entry)


Transition = Callable[['PolicyNode', LifecycleState], TransitionCallbackReturn]


def _loud(transition: Transition) -> Transition:
    """Log what a transition raises: rclpy turns it into ERROR and forgets it."""

    @wraps(transition)
    def run(node: PolicyNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception:
            node.get_logger().error(traceback.format_exc())
            raise

    return run


class PolicyNode(LifecycleNode):
    """Connects a `Pilot` to ROS and to the engine."""

    def __init__(self) -> None:
        super().__init__('policy_node')
        self._policy_path = declare(self, 'policy', '', 'path of the policy file')
        self._socket_path = declare(
            self, 'socket', '', 'path of the engine socket; empty: the default of this user')
        self.autostart = declare(
            self, 'autostart', True, 'configure and activate without being told')
        self._record_dir = declare(
            self, 'record_dir', '', 'directory for decision records; empty: none')
        refuse_clock_changes(self)
        self._simulated = bool(self.get_parameter('use_sim_time').value)
        self.fault: OperatorError | None = None
        """What the operator must put right before `configure` can succeed."""
        self.finished = False
        """Whether the lifecycle has come to its end."""
        self._command = self.create_publisher(String, '~/command', qos.COMMAND)
        self._decision = self.create_publisher(String, '~/decision', qos.DECISION)
        self._say = self.create_publisher(String, '~/say', qos.SAY)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._parts: _Parts | None = None
        self._said = ''

    # --- lifecycle --------------------------------------------------------------------------

    @_loud
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the policy, make every connection; FAILURE names what the operator must do."""
        try:
            self._parts = self._connect()
        except OperatorError as err:
            self.fault = err
            for line in str(err).splitlines():
                self.get_logger().error(line)
            return TransitionCallbackReturn.FAILURE
        policy = self._parts.policy
        self.get_logger().info(
            f'policy {policy.name!r}: {policy.leaves} answers at {policy.decision.rate_hz:g} Hz, '
            f'budget {policy.decision.budget_ms:g} ms'
        )
        return TransitionCallbackReturn.SUCCESS

    @_loud
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to decide."""
        parts = self._configured()
        # What exists now stays: a collection over all of it would make a tick 100 ms late.
        gc.collect()
        gc.freeze()
        self._do(parts.pilot.activate(steady.now_ns()))
        return TransitionCallbackReturn.SUCCESS

    @_loud
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop deciding and tell the watchdog at once."""
        self._do(self._configured().pilot.deactivate(steady.now_ns()))
        return TransitionCallbackReturn.SUCCESS

    @_loud
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free what configure made."""
        self.free()
        return TransitionCallbackReturn.SUCCESS

    @_loud
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tell the watchdog, if it has not been told, and free everything."""
        if self._parts is not None and self._parts.pilot.active:
            self._do(self._parts.pilot.deactivate(steady.now_ns()))
        self.free()
        self.finished = True
        return TransitionCallbackReturn.SUCCESS

    def _connect(self) -> _Parts:
        if not self._policy_path:
            raise OperatorError('policy_node: the parameter `policy` must name a policy file')
        policy = load_policy(Path(self._policy_path))
        identity = _identity()
        with contextlib.ExitStack() as held:
            guard = self.create_guard_condition(self._hear_engine)
            held.callback(self.destroy_guard_condition, guard)
            waker = _Waker(guard.trigger)
            held.callback(waker.close)
            client = EngineClient(
                Path(self._socket_path) if self._socket_path else default_socket(),
                self.get_fully_qualified_name(),
            )
            held.callback(client.close)
            steadily = Clock(clock_type=ClockType.STEADY_TIME)
            for period_s, callback in (
                (policy.control_period_ns / SECOND, self._step),
                (DIAGNOSTICS_PERIOD_NS / SECOND, self._diagnose),
            ):
                timer = self.create_timer(period_s, callback, clock=steadily)
                held.callback(self.destroy_timer, timer)
            status = self.create_publisher(
                String, '~/status', qos.status(policy.control.status_limit_ms))
            held.callback(self.destroy_publisher, status)
            ears = {}
            for name, sensor in policy.sensors.items():
                subscription = self._subscribe(name, sensor)
                held.callback(self.destroy_subscription, subscription)
                ears[name] = _Ear(take.Newest(subscription, steady.now_ns()))
            pilot = Pilot(policy, identity)
            words = None
            if policy.mission_topic is not None:
                subscription = self._subscribe_mission(policy.mission_topic.topic)
                held.callback(self.destroy_subscription, subscription)
                words = take.Newest(subscription, steady.now_ns())
            writer = None
            if self._record_dir:  # the last: what fails before it leaves no empty file
                name = f'decisions-{steady.wall_text()}-{identity.session}.mcap'
                writer = RecordWriter(Path(self._record_dir) / name, pilot.declaration)
                held.callback(writer.close)
            return _Parts(
                policy=policy, pilot=pilot, client=client, waker=waker,
                writer=writer, status=status, ears=ears, words=words, held=held.pop_all(),
            )

    def _subscribe(self, name: str, sensor: Sensor) -> Any:
        try:
            return take.subscribe(self, message_class(sensor.type), sensor.topic, qos.SENSOR)
        except InvalidTopicNameException as err:
            why = str(err).splitlines()[0].rstrip(':')
            raise PolicyError(
                f'{self._policy_path}: sensors.{name}.topic: {sensor.topic!r}: {why}') from err

    def _subscribe_mission(self, topic: str) -> Any:
        try:
            return take.subscribe(self, String, topic, qos.MISSION)
        except InvalidTopicNameException as err:
            why = str(err).splitlines()[0].rstrip(':')
            raise PolicyError(f'{self._policy_path}: mission_topic.topic: {topic!r}: {why}'
                              ) from err

    def free(self) -> None:
        """Give back all that configure made; harmless when there is nothing."""
        parts, self._parts = self._parts, None
        if parts is None:
            return
        with contextlib.suppress(RuntimeError):  # some middleware has no acknowledgements
            parts.status.wait_for_all_acked(Duration(nanoseconds=FAREWELL_NS))
        parts.held.close()

    def _configured(self) -> _Parts:
        assert self._parts is not None, 'the lifecycle lets nothing happen before configure'
        return self._parts

    # --- hearing ----------------------------------------------------------------------------

    def _hear_mission(self, msg: String) -> None:
        mission = self._parts.pilot.mission if self._parts else None
        if mission is None:
            return
        changes = mission.changes
        if not mission.hear(msg.data, steady.now_ns()):
            # One line a second at most: what is refused for coming too often must not fill a log.
            self.get_logger().warning(
                f'mission text dropped: {mission.why}', throttle_duration_sec=1.0)
        elif mission.changes != changes:
            self.get_logger().info(
                f'mission: "{mission.text}"' if mission.text else "mission: the file's again")

    def _observe(self, parts: _Parts) -> None:
        # The wall clock can be set back, and would then make a silent sensor look young.
        ros_now_ns = self._ros_now_ns() if self._simulated else None
        now_ns, wall_ns = steady.now_ns(), steady.wall_ns()
        for name, ear in parts.ears.items():
            taken = ear.source.look(now_ns, wall_ns, ros_now_ns)
            if taken is not None:
                self._hear(parts, name, taken)
        said = parts.words and parts.words.look(now_ns, wall_ns, ros_now_ns)
        if said:
            self._hear_mission(said.message)

    def _hear(self, parts: _Parts, name: str, taken: take.Taken) -> None:
        ear = parts.ears[name]
        ear.count += taken.messages
        ear.taken += 1
        try:
            fields = convert.fields_of(parts.policy.sensors[name], taken.message)
        except DroppedError as err:
            ear.dropped += 1
            ear.why = str(err)
            return
        ear.why = ''
        parts.pilot.observe(
            Received(name, fields, taken.arrival_ns, taken.ros_arrival_ns), taken.messages)

    def _hear_engine(self) -> None:
        """Forward what the engine says now, between two steps."""
        parts = self._parts
        if parts is None:
            return
        now_ns = steady.now_ns()
        for event in parts.client.poll(now_ns):
            if isinstance(event, ModelLimits):
                parts.keep(event)
            self._do(parts.pilot.receive(event, now_ns))
            self._say_engine(parts.pilot)
        self._watch(parts)

    def _watch(self, parts: _Parts) -> None:
        """Be woken by the engine while an answer is due; else the steps poll often enough."""
        fd = parts.client.fileno()
        if fd is not None and parts.pilot.waiting:
            parts.waker.watch(fd)

    # --- doing ------------------------------------------------------------------------------

    def _step(self) -> None:
        parts = self._parts
        if parts is None:  # cleaned up in the same turn of the executor
            return
        self._hear_engine()
        self._observe(parts)
        self._do(parts.pilot.step(steady.now_ns(), self._ros_now_ns()))

    def _do(self, things: Iterable[Do]) -> None:
        parts = self._configured()
        for thing in things:
            match thing:
                case Ask(question):
                    if not self._sent(parts.client.send_nowait, question):
                        self._do(parts.pilot.unsent(thing, steady.now_ns()))
                    self._watch(parts)
                case Declare():
                    self._declare(parts, thing)
                case Withdraw(request):
                    # Unsent, the engine does work that nobody waits for; its deadline ends it.
                    parts.client.send_nowait(Cancel(request))
                case Send(command):
                    self._command.publish(String(data=command.to_json()))
                case Tell(status):
                    parts.status.publish(String(data=status.to_json()))
                case Record(record):
                    self._decision.publish(String(data=record.model_dump_json()))
                    parts.keep(record)
                case Say():
                    self._say.publish(String(data=json.dumps(dataclasses.asdict(thing))))
                    parts.keep(thing)

    def _sent(self, send: Callable[[Any], bool], item: object) -> bool:
        try:
            return send(item)
        except FrameError as err:
            self.get_logger().error(f'cannot be told to the engine: {err}')
            return False

    def _declare(self, parts: _Parts, declare: Declare) -> None:
        now_ns = steady.now_ns()
        try:
            sent = parts.client.send_nowait(declare.declaration)
        except FrameError as err:
            rejected = DeclarationRejected(declare.declaration.space, str(err))
            self._do(parts.pilot.receive(rejected, now_ns))
            return
        if not sent:
            self._do(parts.pilot.unsent(declare, now_ns))

    def _ros_now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    # --- telling people ---------------------------------------------------------------------

    def _say_engine(self, pilot: Pilot) -> None:
        """Log the engine's state when it changes, and only then."""
        line = f'engine {pilot.engine}' + (f': {pilot.engine_why}' if pilot.engine_why else '')
        if line != self._said:
            self._said = line
            # A call each: rclpy holds every calling line to the severity of its first call.
            if pilot.engine == 'failed':
                self.get_logger().error(line)
            elif pilot.engine == 'absent':
                self.get_logger().warning(line)
            else:
                self.get_logger().info(line)

    def _diagnose(self) -> None:
        parts = self._parts
        if parts is None:
            return
        statuses = [self._decisions_status(parts), *self._sensor_statuses(parts)]
        self._diagnostics.publish(diagnostics.array(self._ros_now_ns(), statuses))

    def _decisions_status(self, parts: _Parts) -> DiagnosticStatus:
        pilot, writer = parts.pilot, parts.writer
        level = {
            'ready': diagnostics.OK, 'loading': diagnostics.WARN,
            'absent': diagnostics.ERROR, 'failed': diagnostics.ERROR,
        }[pilot.engine]
        message = pilot.engine_why or ('deciding' if pilot.active else 'ready, not active')
        values = {
            'policy': parts.policy.name,
            'engine': pilot.engine,
            'model': pilot.limits.name if pilot.limits else '',
            'served': str(pilot.served),
            'misses': str(pilot.misses),
            'last outcome': pilot.last_outcome,
            'late answers': str(pilot.late_answers),
            'skipped ticks': str(pilot.skipped_ticks),
            'dropped texts': str(pilot.dropped_texts),
        }
        if pilot.mission is not None:
            values |= {
                'mission': pilot.mission.text, 'mission changes': str(pilot.mission.changes),
                'mission texts dropped': str(pilot.mission.dropped),
                'mission fault': pilot.mission.why,
            }
        if writer is not None:
            values |= {
                'records': str(writer.written), 'records dropped': str(writer.dropped),
                'record fault': writer.fault,
            }
            if writer.dropped and level == diagnostics.OK:
                level, message = diagnostics.WARN, 'decision records are being lost'
        return diagnostics.status(f'{self.get_name()}: decisions', level, message, values)

    def _sensor_statuses(self, parts: _Parts) -> Iterable[DiagnosticStatus]:
        self._observe(parts)
        ros_now_ns = self._ros_now_ns()
        for reading in parts.pilot.look(steady.now_ns(), ros_now_ns).readings:
            name = reading.sensor
            sensor, ear = parts.policy.sensors[name], parts.ears[name]
            bad = diagnostics.ERROR if sensor.required else diagnostics.WARN
            if not ear.count:
                level = bad if sensor.required else diagnostics.OK
                message = self._why_silent(sensor.topic, sensor.type)
            elif ear.why:
                usable = reading.quality.usable
                level, message = diagnostics.WARN if usable else bad, f'dropped: {ear.why}'
            elif not reading.quality.usable:
                level, message = bad, _why_stale(reading, sensor.stale_after_ns, ros_now_ns)
            elif reading.stamp_fault is not StampFault.NONE:
                level = diagnostics.WARN
                message = (f'{reading.quality.value} by arrival, '
                           f'its stamp is {reading.stamp_fault.value}')
            else:
                level, message = diagnostics.OK, reading.quality.value
            rate = 'unknown' if reading.rate_hz is None else f'{reading.rate_hz:.1f}'
            yield diagnostics.status(f'{self.get_name()}: sensor {name}', level, message, {
                'topic': sensor.topic, 'messages': str(ear.count), 'taken': str(ear.taken),
                'dropped': str(ear.dropped), 'rate_hz': rate,
            })

    def _why_silent(self, topic: str, wanted: str) -> str:
        offers = self.get_publishers_info_by_topic(topic)
        if not offers:
            return f'nobody publishes {topic}'
        kinds = sorted({offer.topic_type for offer in offers} - {wanted})
        if kinds:
            return f'{topic} is published as {", ".join(kinds)}, the policy file says {wanted}'
        return f'{topic} is published, nothing has come yet'


def _why_stale(reading: Reading, limit_ns: int, ros_now_ns: int) -> str:
    """Say what makes a reading stale that did come."""
    if (reading.arrival_age_ns or 0) > limit_ns:
        return f'silent for {(reading.arrival_age_ns or 0) / SECOND:.1f} s'
    ahead_s = ((reading.stamp_ns or 0) - ros_now_ns) / SECOND
    if ahead_s > 0:
        return f'it talks, but its stamp is {ahead_s:.1f} s in the future'
    return f'it talks, but its stamp is {-ahead_s:.1f} s old'


class _Waker:
    """Calls `wake` from a side thread when the watched descriptor becomes readable.

    Each `watch` arms it for one call, so a descriptor that nobody reads cannot spin the thread.
    The kernel forgets a descriptor that is closed; nothing need be told.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._epoll = select.epoll()
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._end, select.EPOLLIN)
        self._thread = threading.Thread(target=self._wait, name='engine-waker', daemon=True)
        self._thread.start()

    def watch(self, fd: int) -> None:
        """Arm for the next thing to read on `fd`."""
        events = select.EPOLLIN | select.EPOLLONESHOT
        try:
            self._epoll.modify(fd, events)
        except FileNotFoundError:
            self._epoll.register(fd, events)

    def close(self) -> None:
        """End the thread, and wait for that: it must not wake what is being destroyed."""
        os.eventfd_write(self._end, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._end)

    def _wait(self) -> None:
        while True:
            ready = [fd for fd, _ in self._epoll.poll()]
            if self._end in ready:
                return
            self._wake()


def _identity() -> Identity:
    """Return who this process is, in a session of its own: its sequences begin at 1."""
    return Identity(
        session=secrets.token_hex(8),
        host=process.host(),
        boot=steady.boot_id()[:64],
        pid=os.getpid(),
        start_ticks=process.own_start_ticks(),
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGTERM or SIGINT; return the exit code."""
    # Before rclpy starts threads, and instead of rclpy's own handlers, which would shut the
    # context down before the watchdog could be told.
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    rclpy.init(args=list(sys.argv if args is None else args),
               signal_handler_options=SignalHandlerOptions.NO)
    node = PolicyNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if node.autostart:
            if node.trigger_configure() != TransitionCallbackReturn.SUCCESS:
                return node.fault.exit_code if node.fault else 1
            node.trigger_activate()
        while not (ending.is_set() or node.finished):
            executor.spin_once(timeout_sec=0.2)
        if not node.finished:
            node.trigger_shutdown()
        return 0
    finally:
        node.free()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown()


if __name__ == '__main__':
    sys.exit(main())
