"""What no other test would notice: each story here is one that a planted defect lived through."""

from __future__ import annotations

from random import Random

import pytest

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.cause import Cause
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.driven import Driven
from smallm_ros.core.envelope import Motion
from smallm_ros.core.facts import Inputs, arrival_age_ns
from smallm_ros.core.gate import State
from smallm_ros.core.observation import Received
from tests.proofs.faults import FAULTS
from tests.proofs.robot import PERIOD_NS, POLICY, Robot, Setting
from tests.proofs.traces import Run, Tally, drives


def driving(**setting: bool) -> Run:
    run = Run(Setting(**setting), Tally())
    assert run.recover() is not None
    run.apply('heal', {})  # the operator goes
    while not drives(run.step()):
        pass
    return run


def inject(run: Run, name: str) -> None:
    run.apply(name, {**FAULTS[name].draw(Random(1)), 'phase_ns': 0})


def steps(run: Run, count: int) -> State:
    for _ in range(count):
        run.step()
    return run.robot.gate.state


def test_auto_arm_counts_again_once_somebody_armed_after_an_emergency_stop() -> None:
    run = driving(auto_arm=True)
    inject(run, 'estop')
    assert steps(run, 2) is State.ESTOP_LATCHED
    run.apply('heal', {})
    steps(run, 10)
    run.apply('edges', {'arm': False, 'reset': True})
    assert steps(run, 20) is State.HOLD, 'not by itself'
    run.apply('edges', {'arm': True, 'reset': False})
    assert steps(run, 20) is State.ACTIVE
    inject(run, 'own gap')
    assert steps(run, 1) is State.SAFE_STOP
    assert steps(run, 60) is State.ACTIVE, 'by itself again'


def test_an_arm_in_the_step_of_a_fault_arms_nothing() -> None:
    run = driving(auto_arm=False)
    inject(run, 'own gap')
    run.apply('edges', {'arm': True, 'reset': True})
    assert steps(run, 1) is State.SAFE_STOP
    assert steps(run, 60) is State.HOLD


@pytest.mark.parametrize('sensor', ['scan', 'odom'])
@pytest.mark.parametrize('number', [-3.1e17, -1e9, 1e9, 3.1e17])
def test_a_stamp_ten_years_off_costs_neither_time_nor_memory(sensor: str, number: float) -> None:
    run = driving(auto_arm=True)
    run.apply('sensor stamp past', {'sensor': sensor, 'number': number, 'phase_ns': 0})
    assert steps(run, 3) is State.SAFE_STOP
    assert steps(run, 30) is State.SAFE_STOP
    assert run.robot.last is not None
    assert run.robot.last.velocity.linear_x_m_s == 0.0
    assert run.recover() is not None


def test_a_pid_that_another_process_had_is_no_death() -> None:
    run = driving(auto_arm=True)
    for pid, ticks in (run.robot.node, run.robot.worker):
        run.robot.dead.add((pid, ticks + 1))
    assert steps(run, 20) is State.ACTIVE
    assert run.robot.last is not None
    assert run.robot.last.findings == ()


def test_deaths_that_only_their_successors_show_are_counted() -> None:
    run = driving(auto_arm=True)
    for n in range(5):
        assert run.robot.gate.state is not State.FAULT_LATCHED
        run.robot.worker = (5000 + n, 7)
        run.robot.deaths.append(run.robot.now_ns)  # for the oracle: there were five
        run.step()
    assert run.robot.last is not None
    assert run.robot.last.cause is Cause.ENGINE_DEATHS


def test_one_death_is_one_however_long_it_is_looked_at() -> None:
    run = driving(auto_arm=True)
    inject(run, 'engine death idle')
    assert steps(run, 100) is State.FALLBACK


# --- since a scan ---------------------------------------------------------------------------


def since(came_ns: int, stamped_ns: int, told: list[Velocity]) -> Motion:
    """What the base may have done: `told` a period apart until now, a scan of so long ago."""
    robot, driven = Robot(Setting()), Driven(POLICY)
    for n, velocity in enumerate(told):
        driven.tell(robot.now_ns - (len(told) - n) * PERIOD_NS, velocity, 0.0)
    ros_ns = 5_000 * SECOND
    scan = Received('scan', robot._scan(ros_ns - stamped_ns), robot.now_ns - came_ns, None)
    seen = driven.seen(robot.now_ns, Inputs(ros_now_ns=ros_ns, sensors={'scan': scan}))
    assert seen is not None
    return seen[0].since


AHEAD = [Velocity(0.3, 0.5)] * 20


def test_a_scan_is_as_old_as_its_stamp_says_where_that_is_older() -> None:
    came, stamped = since(0, 0, AHEAD), since(0, 400 * MS, AHEAD)
    assert came.distance_m == pytest.approx(0.3 * 0.1), 'the base\'s delay'
    assert stamped.distance_m == pytest.approx(0.3 * 0.5)
    assert stamped.left_rad == pytest.approx(0.5 * 0.5)
    assert since(400 * MS, 0, AHEAD).distance_m == pytest.approx(0.3 * 0.5)


def test_what_lies_further_back_than_is_remembered_counts_at_full_speed() -> None:
    motion = since(0, 10 * SECOND, AHEAD)
    rules = POLICY.envelope
    assert motion.distance_m == pytest.approx(0.3 * 1.0 + rules.max_forward_m_s * 9.1)
    assert motion.right_rad == pytest.approx(rules.max_turn_rad_s * 9.1)


def test_an_arrival_ages_by_steady_time_where_ros_time_went_back_since() -> None:
    robot = Robot(Setting())
    came = Received('scan', robot._scan(SECOND), 10 * SECOND, 500 * SECOND)
    assert arrival_age_ns(came, 13 * SECOND, 501 * SECOND) == 1 * SECOND
    assert arrival_age_ns(came, 13 * SECOND, 499 * SECOND) == 3 * SECOND


def test_a_base_that_coasts_does_not_stand_whatever_it_was_told() -> None:
    driven = Driven(POLICY)
    driven.tell(SECOND, STOP, 0.2)
    assert not driven.standing(SECOND, Inputs(ros_now_ns=SECOND))
    driven.tell(SECOND + PERIOD_NS, STOP, 0.0)
    assert driven.standing(SECOND + PERIOD_NS, Inputs(ros_now_ns=SECOND))


def test_a_base_that_is_told_to_stop_without_a_ramp_is_still_rolling() -> None:
    run = driving(auto_arm=True)
    steps(run, 40)
    gate, rules = run.robot.gate, POLICY.envelope
    before_m_s = gate._driven.velocity.linear_x_m_s
    assert before_m_s > 0.1
    inject(run, 'estop')
    while gate.state is not State.ESTOP_LATCHED:
        before_m_s = gate._driven.velocity.linear_x_m_s
        run.step()
    assert gate._driven.velocity == STOP
    braked_m_s = rules.max_deceleration_m_s2 * PERIOD_NS / SECOND
    assert gate._driven.coasting_m_s == pytest.approx(before_m_s - braked_m_s)
