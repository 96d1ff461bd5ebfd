"""The mind and the gate together on virtual time: what one tells, the other judges."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from smallm_ros.core.action import ChoicePoint, Decision, Timings, TokenCounts
from smallm_ros.core.clock import MS, SECOND, ManualClock
from smallm_ros.core.exchange import (
    Decided,
    Declared,
    EngineLost,
    EngineState,
    EngineUp,
    ModelLimits,
    Progress,
    Question,
)
from smallm_ros.core.facts import CommandArrival, Inputs, StatusArrival
from smallm_ros.core.gate import Gate, State
from smallm_ros.core.observation import Received
from smallm_ros.core.pilot import Ask, Do, Identity, Pilot, Send, Tell
from smallm_ros.core.policy import load_policy
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.scan import Scan

POLICY = load_policy(
    Path(__file__).resolve().parent.parent / 'config' / 'policies' / 'explorer.yaml'
)
ROS_NS = 1_700_000_000 * SECOND
STEP_MS = 50
ANSWER_NS = 100 * MS
LIMITS = ModelLimits('m', '0' * 64, 'chatml', 4096, 49152, 1, 0, MS, MS)
FREE = np.full(360, 5.0, np.float32)


class Robot:
    """Both brains, an engine that answers after 100 ms, and sensors that never fail."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.ros_ns = ROS_NS
        self.paused = False
        self.engine_alive = True
        self.partial = False
        self.pilot = Pilot(POLICY, Identity('0123456789abcdef', 'here', 'boot', 10, 20))
        self.gate = Gate(POLICY, auto_arm=True, host='here', boot='boot')
        self.newest: dict[str, Received] = {}
        self.command: CommandArrival | None = None
        self.status: StatusArrival | None = None
        self.asked: list[tuple[int, Question]] = []
        self.states: list[State] = []
        self.do(self.pilot.activate(self.clock.now_ns()))
        self.engine_comes_up(worker=77)

    def engine_comes_up(self, worker: int) -> None:
        self.engine_alive = True
        for event in (EngineUp(worker, 5), LIMITS,
                      Declared(self.pilot.declaration.space, 300, 6, 4)):
            self.do(self.pilot.receive(event, self.clock.now_ns()))

    def engine_goes(self) -> None:
        self.engine_alive = False
        self.asked.clear()
        self.do(self.pilot.receive(EngineLost('killed'), self.clock.now_ns()))

    def do(self, things: list[Do]) -> None:
        now_ns = self.clock.now_ns()
        for thing in things:
            if isinstance(thing, Ask):
                self.asked.append((now_ns + ANSWER_NS, thing.question))
            elif isinstance(thing, Send):
                self.command = CommandArrival(thing.command, now_ns)
            elif isinstance(thing, Tell):
                self.status = StatusArrival(thing.status, now_ns)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 1000 / STEP_MS)):
            self.step()

    def step(self) -> None:
        now_ns = self.clock.advance_ms(STEP_MS)
        if not self.paused:
            self.ros_ns += STEP_MS * MS
            self.sense('odom', Odometry(self.ros_ns, 'odom', 0, 0, 0, 0, 0))
            if self.ros_ns // (100 * MS) * 100 * MS == self.ros_ns:
                self.sense('scan', Scan(self.ros_ns, 'laser', -math.pi, math.pi / 180, 0.1, 8.0,
                                        FREE))
        if self.engine_alive:
            self.do(self.pilot.receive(
                Progress(EngineState.READY, now_ns // MS, now_ns, 0, 0, 0), now_ns))
            for due_ns, question in tuple(self.asked):
                if due_ns <= now_ns:
                    self.asked.remove((due_ns, question))
                    answer = dataclasses.replace(decided(question, now_ns), partial=self.partial)
                    self.do(self.pilot.receive(answer, now_ns))
        self.do(self.pilot.step(now_ns, self.ros_ns))
        out = self.gate.step(now_ns, Inputs(
            ros_now_ns=self.ros_ns, sensors=dict(self.newest), command=self.command,
            status=self.status, publishers=1,
        ))
        self.states.append(out.state)
        self.moving = out.velocity.linear_x_m_s

    def sense(self, name: str, fields: Scan | Odometry) -> None:
        self.newest[name] = Received(name, fields, self.clock.now_ns(), self.ros_ns)
        self.pilot.observe(self.newest[name])


def decided(question: Question, now_ns: int) -> Decided:
    return Decided(
        question.request,
        Decision(0, 0.9, (ChoicePoint('', (('forward', 0.9), ('left', 0.1))),),
                 TokenCounts(300, 290, 10, 1),
                 Timings(now_ns, now_ns, now_ns, 0, (MS,))),
        (), '0' * 64,
    )


def driving() -> Robot:
    robot = Robot()
    robot.run(8)
    assert robot.states[-1] is State.ACTIVE
    assert robot.moving > 0
    robot.states.clear()
    return robot


def test_a_pause_of_the_world_is_no_miss_and_no_lost_sensor() -> None:
    """The command's time-to-live is steady and runs out: FALLBACK, which here means to stand."""
    robot = driving()
    served, misses = robot.pilot.served, robot.pilot.misses
    robot.paused = True
    robot.run(3)
    assert robot.moving == 0, 'nobody knows what a paused world will do'
    assert robot.pilot.misses == misses
    robot.paused = False
    robot.run(12)
    assert set(robot.states) == {State.ACTIVE, State.DEGRADED, State.FALLBACK}
    assert robot.states[-1] is State.ACTIVE
    assert robot.moving > 0
    assert robot.pilot.served > served


def test_partial_answers_drive_where_the_policy_allows_them() -> None:
    robot = driving()
    robot.partial = True
    robot.run(3)
    assert robot.states[-1] is not State.ACTIVE, 'not anytime: each is a miss'
    leaves = range(len(robot.pilot.declaration.answers))
    robot.pilot.declaration = dataclasses.replace(
        robot.pilot.declaration, actions=tuple(leaves), departures=(0,) * len(leaves))
    robot.run(12)
    assert robot.states[-1] is State.ACTIVE
    assert robot.command is not None
    assert robot.command.command.partial
    assert robot.moving > 0


def test_an_engine_that_goes_and_comes_back_is_driven_by_again() -> None:
    robot = driving()
    robot.engine_goes()
    robot.run(1)
    assert robot.states[-1] is State.FALLBACK
    assert robot.moving == 0
    robot.engine_comes_up(worker=78)
    robot.run(12)
    assert robot.states[-1] is State.ACTIVE
    assert robot.moving > 0
    order = [s for s, before in zip(robot.states, [None, *robot.states], strict=False)
             if s is not before]
    assert order[-3:] == [State.FALLBACK, State.DEGRADED, State.ACTIVE]
