"""What the policy node says: its status, its engine's progress and its commands, judged.

One session of the policy node is live at a time; another may follow when its process has ended or
fallen silent. A command is judged once, when it arrives, and its ages again in every step. The
session, the request and the action space bound what can be accepted; a missed answer and a refused
one are the same: some in a short time or of the last few are too many, accepted ones in a row are
the way back. What was seen before ROS time jumped is never applied after it.
"""

from __future__ import annotations

from collections import deque

from smallm_ros.core.action import ActionSpace, Command, NodeStatus, Velocity
from smallm_ros.core.cause import Cause, Dwells, Finding
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.facts import CommandArrival, Inputs, Process, StatusArrival
from smallm_ros.core.policy import Policy


class _Batches:
    """Which of the engine's last batches took much longer than their bound, as statuses tell.

    Of most batches no status says anything, as they are short; they count as quick ones. A status
    tells what was so when it was written: up to a period before it was sent, and one more before
    it was taken. So much more is given to each batch.
    """

    def __init__(self, policy: Policy, dwells: Dwells) -> None:
        self._said_late_ns = 2 * policy.control_period_ns
        self._dwells = dwells
        self._newest = 0
        self._slow: set[int] = set()

    def hear(self, status: NodeStatus, now_ns: int) -> None:
        if not status.in_flight:
            return
        if status.in_flight < self._newest:  # another engine counts anew
            self._slow.clear()
        self._newest = status.in_flight
        age_ns = now_ns - status.in_flight_since_ns
        if 0 < status.in_flight_bound_ns * 5 // 4 < age_ns - self._said_late_ns:
            self._slow.add(status.in_flight)
        self._slow = {n for n in self._slow if n > self._newest - self._dwells.of_last}

    def findings(self) -> list[Finding]:
        if len(self._slow) < self._dwells.misses:
            return []
        return [Finding(
            Cause.ENGINE_THROTTLED,
            f'{len(self._slow)} of the last {self._dwells.of_last} batches took more than 1.25 of '
            'their bounds',
        )]


class Answers:
    """The live session: its status, its engine, its commands, and how many were good."""

    def __init__(
        self, policy: Policy, space: ActionSpace, home: tuple[str, str], dwells: Dwells,
        *, auto_arm: bool,
    ) -> None:
        self._policy = policy
        self._space = space
        self._home = home
        self._dwells = dwells
        self._auto_arm = auto_arm
        self.status: NodeStatus | None = None
        self._status_arrival_ns = self._status_ns = 0
        self.accepted: Command | None = None
        self.good = 0
        self._judged_ns: int | None = None
        self._last_sequence = 0
        self._last_request = 0
        self._misses: deque[int] = deque()
        self._last_good: deque[bool] = deque(maxlen=dwells.of_last)
        self._batches = _Batches(policy, dwells)
        self._flushed_ns = -1

    def retune(self, policy: Policy) -> None:
        """Judge by other limits from now on, what was accepted too."""
        self._policy = policy

    def flush(self, now_ns: int) -> None:
        """Apply nothing any more that was seen until now: ROS time jumped."""
        self._flushed_ns = now_ns
        self.accepted = None

    def update(self, now_ns: int, inputs: Inputs) -> list[Finding]:
        """Hear and judge what is new, return what is not well."""
        findings = self._hear(now_ns, inputs)
        if inputs.command is not None and inputs.command.arrival_ns != self._judged_ns:
            findings += self._receive(now_ns, inputs.command, inputs)
        findings += self._node_findings(now_ns, inputs)
        findings += self._command_findings(now_ns, inputs.ros_now_ns)
        while self._misses and now_ns - self._misses[0] > self._dwells.miss_window_ns:
            self._misses.popleft()
        if len(self._misses) >= self._dwells.misses:
            findings.append(Finding(
                Cause.ANSWERS_MISSED,
                f'{len(self._misses)} answers missed or refused in '
                f'{self._dwells.miss_window_ns / SECOND:g} s, limit {self._dwells.misses - 1}',
            ))
        elif self._last_good.count(False) >= self._dwells.misses:
            findings.append(Finding(
                Cause.ANSWERS_MISSED,
                f'{self._last_good.count(False)} of the last {len(self._last_good)} answers '
                f'missed or refused, limit {self._dwells.misses - 1}',
            ))
        return findings

    @property
    def worker(self) -> Process | None:
        """The engine's worker, as the live session names it."""
        status = self.status
        if status is None or not status.worker_pid:
            return None
        return status.worker_pid, status.worker_start_ticks

    def live(self, now_ns: int, ros_now_ns: int | None) -> bool:
        """Whether the accepted command may still be applied."""
        return self.accepted is not None and self._unfit(self.accepted, now_ns, ros_now_ns) is None

    def _hear(self, now_ns: int, inputs: Inputs) -> list[Finding]:
        """Take the newest status, if it is of the live session or of its successor."""
        arrival = inputs.status
        if arrival is None:
            return []
        status = arrival.status
        if (status.host, status.boot) != self._home:
            return [Finding(
                Cause.HOST_FOREIGN,
                f'status from host {status.host!r}, boot {status.boot!r}; here is '
                f'{self._home[0]!r}, {self._home[1]!r}',
            )]
        old = self.status
        if old is not None and old.session == status.session:
            if status.sequence <= old.sequence:
                return []
            self._note(arrival)
            self._batches.hear(status, arrival.arrival_ns)
            missed = status.misses - old.misses
            if missed <= 0 or status.engine != 'ready':
                return []  # an engine that is not there has a cause of its own
            self._miss(now_ns, missed)
            return [Finding(Cause.ANSWER_MISSED, f'{missed} missed: {status.last_outcome}')]
        if old is not None and self._gone(now_ns, inputs) is None:
            return [Finding(
                Cause.SESSION_FOREIGN,
                f'session {status.session} speaks while {old.session} is live',
            )]
        self._note(arrival)
        self.accepted = None
        self.good = 0
        self._last_sequence = self._last_request = 0
        self._last_good.clear()
        self._batches = _Batches(self._policy, self._dwells)
        if old is None or self._auto_arm:
            return []
        return [Finding(
            Cause.SESSION_NEW, f'session {status.session} follows {old.session}: arm again',
        )]

    def _note(self, arrival: StatusArrival) -> None:
        """Keep a status. Silence counts from when it was said, or heard where that was sooner."""
        self.status, self._status_arrival_ns = arrival.status, arrival.arrival_ns
        self._status_ns = min(arrival.status.steady_ns, arrival.arrival_ns)

    def _gone(self, now_ns: int, inputs: Inputs) -> Finding | None:
        """Whether the live session's node has ended or fallen silent."""
        status = self.status
        if status is None:
            return Finding(Cause.STATUS_NEVER, 'no status of a policy node yet')
        if (status.pid, status.start_ticks) in inputs.dead:
            return Finding(Cause.NODE_DEAD, f'policy node, pid {status.pid}, has ended')
        silent_ns = now_ns - self._status_ns
        limit_ns = round(self._policy.control.status_limit_ms * MS)
        if silent_ns > limit_ns:
            return Finding(
                Cause.STATUS_SILENT,
                f'status is {silent_ns / MS:.0f} ms old, limit {limit_ns / MS:.0f}',
            )
        return None

    def _node_findings(self, now_ns: int, inputs: Inputs) -> list[Finding]:
        gone = self._gone(now_ns, inputs)
        status = self.status
        findings = [] if gone is None else [gone]
        if status is None:
            return findings
        if self.worker in inputs.dead:
            findings.append(Finding(
                Cause.WORKER_DEAD, f'the engine\'s worker, pid {status.worker_pid}, has ended',
            ))
        if gone is not None:
            return findings  # what it said last is no news of the engine
        if not status.active:
            findings.append(Finding(Cause.NODE_INACTIVE, 'the policy node is not active'))
        if status.engine == 'ready' and status.worker_pid:
            stalled = self._stalled(status)
            if stalled is not None:
                findings.append(stalled)
            findings += self._batches.findings()
        else:
            cause = {
                'loading': Cause.ENGINE_LOADING, 'failed': Cause.ENGINE_FAILED,
            }.get(status.engine, Cause.ENGINE_ABSENT)
            findings.append(Finding(cause, f'engine {status.engine}: {status.last_outcome}'))
        return findings

    def _stalled(self, status: NodeStatus) -> Finding | None:
        """Whether the engine stood still when this status came.

        Not now: what a silent policy node said last grows old by itself, which is its own cause.
        """
        now_ns = self._status_arrival_ns
        limit_ns = round(self._policy.control.progress_limit_ms * MS)
        if status.in_flight:
            limit_ns = max(limit_ns, status.in_flight_bound_ns * 3 // 2)
            age_ns = now_ns - status.in_flight_since_ns
            what = f'batch {status.in_flight} in flight for'
        else:
            age_ns = now_ns - status.progress_ns
            what = 'the engine\'s last progress is older than'
        if age_ns <= limit_ns:
            return None
        return Finding(
            Cause.ENGINE_STALLED, f'{what} {age_ns / MS:.0f} ms, limit {limit_ns / MS:.0f} ms',
        )

    def _receive(
        self, now_ns: int, arrival: CommandArrival, inputs: Inputs,
    ) -> list[Finding]:
        """Judge a new command once; one whose session is not known yet waits for its status."""
        command = arrival.command
        own = (
            self.status is not None and command.session == self.status.session
            and (command.host, command.boot) == self._home
        )
        if not own and self._gone(now_ns, inputs) is not None:
            return []
        self._judged_ns = arrival.arrival_ns
        refused = self._judge(command, arrival.arrival_ns, now_ns, inputs.ros_now_ns)
        if own and command.sequence > self._last_sequence:
            self._last_sequence = command.sequence
            self._last_request = max(self._last_request, command.request)
        if refused is not None:
            self._miss(now_ns, 1)
            return [refused]
        self.accepted = command
        self.good += 1
        self._last_good.append(True)
        return []

    def _judge(
        self, command: Command, arrival_ns: int, now_ns: int, ros_now_ns: int | None,
    ) -> Finding | None:
        policy = self._policy
        assert self.status is not None
        if (command.host, command.boot) != self._home:
            return Finding(Cause.COMMAND_FOREIGN, f'command from host {command.host!r}, boot '
                                                  f'{command.boot!r}')
        if command.session != self.status.session:
            return Finding(Cause.COMMAND_FOREIGN, f'command of session {command.session}, live '
                                                  f'is {self.status.session}')
        if command.sequence <= self._last_sequence or command.request <= self._last_request:
            return Finding(
                Cause.COMMAND_REPEATED,
                f'command {command.sequence} of request {command.request} after '
                f'{self._last_sequence} of {self._last_request}',
            )
        # The loop looks once in a period: a command on time is taken at most that much later.
        last_ns = command.deadline_ns + policy.control_period_ns + policy.allowed_lateness_ns
        if arrival_ns > last_ns:
            return Finding(
                Cause.COMMAND_LATE,
                f'command {command.sequence} came {(arrival_ns - command.deadline_ns) / MS:.0f} '
                f'ms after its deadline, limit {(last_ns - command.deadline_ns) / MS:.0f} ms',
            )
        ttl_ns = command.valid_until_ns - arrival_ns
        if ttl_ns > policy.ttl_ns:
            return Finding(
                Cause.COMMAND_TTL,
                f'command {command.sequence} would live {ttl_ns / MS:.0f} ms, limit '
                f'{policy.ttl_ns / MS:.0f} ms',
            )
        if command.arrival_ns > arrival_ns:
            return Finding(
                Cause.COMMAND_TTL,
                f'command {command.sequence}: its observation arrived '
                f'{(command.arrival_ns - arrival_ns) / MS:.0f} ms after the command',
            )
        action = self._space.find(command.action, command.parameters)
        if action is None:
            return Finding(
                Cause.COMMAND_ACTION,
                f'{command.action!r} {dict(command.parameters)!r} is no action'[:200],
            )
        asked = Velocity(command.linear_x_m_s, command.angular_z_rad_s)
        if not _same(asked, action.velocity):
            return Finding(
                Cause.COMMAND_VELOCITY,
                f'{action.answer!r} is {action.velocity.linear_x_m_s:g} m/s, '
                f'{action.velocity.angular_z_rad_s:g} rad/s, not {asked.linear_x_m_s:g}, '
                f'{asked.angular_z_rad_s:g}',
            )
        return self._unfit(command, now_ns, ros_now_ns)

    def _command_findings(self, now_ns: int, ros_now_ns: int | None) -> list[Finding]:
        command = self.accepted
        if command is None:
            since = 'of this session' if self._flushed_ns < 0 else 'since ROS time jumped'
            return [Finding(Cause.COMMAND_NEVER, f'no answer {since} was accepted yet')]
        old = self._unfit(command, now_ns, ros_now_ns)
        if old is None:
            return []
        silent_ns = now_ns - command.valid_until_ns
        if silent_ns > self._policy.ttl_ns:
            old = Finding(
                Cause.COMMAND_SILENT,
                f'the last accepted command ended {silent_ns / MS:.0f} ms ago, limit '
                f'{self._policy.ttl_ns / MS:.0f} ms',
            )
        return [old]

    def _unfit(self, command: Command, now_ns: int, ros_now_ns: int | None) -> Finding | None:
        """Check what may change after it was accepted: limits, and its ages on both clocks."""
        least = self._policy.decision.min_confidence
        if not command.confidence >= least:
            return Finding(
                Cause.COMMAND_UNSURE, f'confidence {command.confidence:g}, limit {least:g}')
        if command.arrival_ns <= self._flushed_ns:
            return Finding(
                Cause.OBSERVATION_OLD,
                f'command {command.sequence}: observation from before ROS time jumped',
            )
        if now_ns >= command.valid_until_ns:
            return Finding(
                Cause.COMMAND_EXPIRED,
                f'command {command.sequence} ended '
                f'{(now_ns - command.valid_until_ns) / MS:.0f} ms ago',
            )
        limit_ns = self._policy.max_observation_age_ns
        age_ns = now_ns - command.arrival_ns
        if command.observation_stamp_ns and ros_now_ns is not None:
            stamp_age_ns = ros_now_ns - command.observation_stamp_ns
            if stamp_age_ns < -limit_ns:
                age_ns = stamp_age_ns
            else:
                age_ns = max(age_ns, stamp_age_ns)
        if abs(age_ns) <= limit_ns:
            return None
        return Finding(
            Cause.OBSERVATION_OLD,
            f'command {command.sequence}: observation {age_ns / MS:.0f} ms old, limit '
            f'{limit_ns / MS:.0f} ms',
        )

    def _miss(self, now_ns: int, count: int) -> None:
        self.good = 0
        self._misses.extend([now_ns] * min(count, self._dwells.misses))
        self._last_good.extend([False] * min(count, self._dwells.of_last))


def _same(a: Velocity, b: Velocity) -> bool:
    """Whether two velocities are equal but for rounding; NaN equals nothing."""
    return (
        abs(a.linear_x_m_s - b.linear_x_m_s) <= 1e-9
        and abs(a.angular_z_rad_s - b.angular_z_rad_s) <= 1e-9
    )
