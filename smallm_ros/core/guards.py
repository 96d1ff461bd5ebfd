"""The guards: each looks at the facts of one period and says what is not well.

The watchdog's own loop, ROS time, the sensors, the answers, the engine's deaths, the emergency
stop and the output topic. Each finding names its cause; what it leads to is the gate's. A guard
cannot be switched off: what is not required says so in the policy file.
"""

from __future__ import annotations

from collections import deque

from smallm_ros.core.answers import Answers
from smallm_ros.core.cause import Cause, Dwells, Finding
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.facts import Inputs, Process
from smallm_ros.core.policy import Policy
from smallm_ros.core.stamps import Stamps


class Guards:
    """Every guard of one watchdog, with what each must remember."""

    def __init__(self, policy: Policy, answers: Answers, dwells: Dwells) -> None:
        self._policy = policy
        self._answers = answers
        self._dwells = dwells
        self._stepped_ns: int | None = None
        self._ros_time = _RosTime(dwells)
        self.stamps = Stamps(policy)
        self._deaths = _Deaths(dwells)
        self._exceptions: deque[int] = deque()

    @property
    def stretch(self) -> float:
        """How many times further a simulated base drives in a time than the steady clock says."""
        return max(1.0, self._ros_time.factor)

    def retune(self, policy: Policy) -> None:
        """Look by other limits from now on."""
        self._policy = policy
        self._answers.retune(policy)

    def update(self, now_ns: int, inputs: Inputs, *, standby: bool) -> list[Finding]:
        """Return all that is not well in this step; `standby`: nothing was driven yet."""
        findings = self._gap_findings(now_ns)
        of_time = self._ros_time.update(now_ns, inputs)
        if any(finding.cause is Cause.CLOCK_JUMP for finding in of_time):
            self.stamps.flush(now_ns)
            self._answers.flush(now_ns)
        findings += of_time
        findings += self.stamps.findings(now_ns, inputs)
        findings += self._answers.update(now_ns, inputs)
        findings += self._deaths.update(now_ns, inputs, self._answers.worker)
        if inputs.estop:
            findings.append(Finding(Cause.ESTOP, 'emergency stop asserted'))
        if inputs.estop_silent:
            findings.append(Finding(Cause.ESTOP_SILENT, 'the emergency stop\'s source is silent'))
        if inputs.estop_never:
            findings.append(Finding(
                Cause.ESTOP_NEVER, 'the emergency stop\'s source has not spoken'))
        if inputs.publishers is not None and inputs.publishers > 1:
            # One that was there first is perhaps what discovery still lists of a killed watchdog.
            cause = Cause.PUBLISHER_STANDING if standby else Cause.SECOND_PUBLISHER
            findings.append(Finding(
                cause, f'{inputs.publishers} publishers on the output topic, 1 allowed',
            ))
        return findings

    def excepted(self, now_ns: int, why: str) -> Finding:
        """Return the finding for a step that raised, instead of `update`'s."""
        self._stepped_ns = now_ns
        self._exceptions.append(now_ns)
        while now_ns - self._exceptions[0] > self._dwells.exception_window_ns:
            self._exceptions.popleft()
        count = len(self._exceptions)
        return Finding(
            Cause.EXCEPTIONS if count >= self._dwells.exceptions else Cause.EXCEPTION,
            f'{count} in {self._dwells.exception_window_ns / SECOND:g} s, the last: {why}'[:300],
        )

    def _gap_findings(self, now_ns: int) -> list[Finding]:
        last_ns, self._stepped_ns = self._stepped_ns, now_ns
        most_ns = 3 * self._policy.control_period_ns
        if last_ns is None or now_ns - last_ns <= most_ns:
            return []
        gap_ns = now_ns - last_ns
        return [Finding(
            Cause.OWN_GAP, f'own gap {gap_ns / MS:.0f} ms, limit {most_ns / MS:.0f} ms',
        )]


class _RosTime:
    """ROS time as seen from steady time: absent, jumping, paused, running away."""

    def __init__(self, dwells: Dwells) -> None:
        self._dwells = dwells
        self._last_ns: int | None = None
        self._advanced_ns = 0
        self._seen: deque[tuple[int, int]] = deque()
        self.factor = 1.0
        """ROS time over steady time, measured where ROS time has a pace of its own."""

    def update(self, now_ns: int, inputs: Inputs) -> list[Finding]:
        ros_now_ns = inputs.ros_now_ns
        if ros_now_ns is None:
            return [Finding(Cause.CLOCK_ABSENT, 'no /clock yet')]
        moved = self._moved(now_ns, ros_now_ns)
        if moved is not None and moved.cause is Cause.CLOCK_JUMP:
            self._seen.clear()
        if inputs.simulated:
            self._measure(now_ns, ros_now_ns)
        findings = [] if moved is None else [moved]
        if self.factor > self._dwells.fastest:
            findings.append(Finding(
                Cause.CLOCK_FAST,
                f'ROS time runs {self.factor:.2f} times as fast as steady time, limit '
                f'{self._dwells.fastest:g}',
            ))
        return findings

    def _measure(self, now_ns: int, ros_now_ns: int) -> None:
        self._seen.append((now_ns, ros_now_ns))
        while now_ns - self._seen[0][0] > self._dwells.clock_window_ns:
            self._seen.popleft()
        began_ns, ros_began_ns = self._seen[0]
        if now_ns - began_ns >= self._dwells.clock_window_ns // 4:  # less is a /clock's period
            self.factor = (ros_now_ns - ros_began_ns) / (now_ns - began_ns)

    def _moved(self, now_ns: int, ros_now_ns: int) -> Finding | None:
        last_ns, self._last_ns = self._last_ns, ros_now_ns
        if last_ns is None:
            self._advanced_ns = now_ns
            return None
        step_ns, quiet_ns = ros_now_ns - last_ns, now_ns - self._advanced_ns
        if step_ns == 0:
            if quiet_ns <= self._dwells.clock_still_ns:
                return None
            return Finding(
                Cause.CLOCK_PAUSED, f'ROS time has stood still for {quiet_ns / MS:.0f} ms')
        self._advanced_ns = now_ns
        if step_ns < 0 or step_ns - quiet_ns > self._dwells.clock_jump_ns:
            return Finding(
                Cause.CLOCK_JUMP,
                f'ROS time went {step_ns / MS:+.0f} ms in {quiet_ns / MS:.0f} ms of steady time',
            )
        return None


class _Deaths:
    """How often the engine's worker died."""

    def __init__(self, dwells: Dwells) -> None:
        self._dwells = dwells
        self._worker: Process | None = None
        self._counted: set[Process] = set()
        self._died_ns: deque[int] = deque()

    def update(self, now_ns: int, inputs: Inputs, worker: Process | None) -> list[Finding]:
        """Count each worker's death once, whether its end was seen or only its successor."""
        if worker is not None:
            if self._worker is not None and self._worker != worker:
                self._count(self._worker, now_ns)
            self._worker = worker
        if self._worker is not None and self._worker in inputs.dead:
            self._count(self._worker, now_ns)
        window_ns = self._dwells.engine_death_window_ns
        while self._died_ns and now_ns - self._died_ns[0] > window_ns:
            self._died_ns.popleft()
        if len(self._died_ns) < self._dwells.engine_deaths:
            return []
        return [Finding(
            Cause.ENGINE_DEATHS,
            f'the engine died {len(self._died_ns)} times in {window_ns / SECOND:g} s',
        )]

    def _count(self, worker: Process, now_ns: int) -> None:
        if worker not in self._counted:
            self._counted.add(worker)
            self._died_ns.append(now_ns)
