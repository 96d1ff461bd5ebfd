"""The baselines: what each asks for; the ladder takes the first that has what it needs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.baseline import Senses, choose, decelerate, freest, goal_ahead
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.envelope import STANDING, Seen, Surroundings
from smallm_ros.core.errors import PolicyError
from smallm_ros.core.facts import Inputs
from smallm_ros.core.gate import State
from smallm_ros.core.observation import Fields, Received
from smallm_ros.core.policy import FallbackKind, Policy, load_policy, parse_policy
from smallm_ros.core.summary import goal as goal_summary
from smallm_ros.core.summary.goal import Goal
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.scan import Scan, ScanSensor
from tests.fakes.point_world import PointWorld
from tests.test_gate import WORKER, Story, active

FILE = Path(__file__).parent / 'fakes' / 'round_robot.yaml'
POLICY = load_policy(FILE)
DT = 0.05
HELD = Velocity(0.3, 0.1)


def ladder(*kinds: FallbackKind) -> Policy:
    fallback = POLICY.fallback.model_copy(update={'ladder': (*kinds, 'stop')})
    return POLICY.model_copy(update={'fallback': fallback})


def scan_of(near: range, distance_m: float, other: float = 9.0) -> Scan:
    values = np.full(360, other, dtype=np.float32)
    values[[degree % 360 for degree in near]] = distance_m
    return Scan(0, 'laser', 0.0, 2 * math.pi / 360, 0.05, 12.0, values)


def around(scan: Scan) -> Surroundings:
    sensor = POLICY.sensors['scan']
    assert isinstance(sensor, ScanSensor)
    return Surroundings.of((Seen(scan, sensor, STANDING),), POLICY)


def senses(
    scan: Scan | None, previous: Velocity = STOP, *, held: Velocity | None = None,
    goal: tuple[float, float] | None = None,
) -> Senses:
    return Senses(None if scan is None else around(scan), previous, DT, held, goal)


OPEN = scan_of(range(0), 1.0)
WALL_AHEAD = scan_of(range(-80, 81), 0.5)
ENCLOSED = scan_of(range(360), 0.25)

# --- the ladder -----------------------------------------------------------------------------

NEEDS: dict[FallbackKind, str] = {
    'stop': '', 'decelerate': '', 'hold': 'held', 'creep': 'around', 'turn_to_free': 'around',
    'follow_gap': 'around',
}


def test_every_kind_is_in_the_table_of_needs() -> None:
    assert set(NEEDS) == set(get_args(FallbackKind))


@pytest.mark.parametrize('kind', NEEDS)
def test_each_is_taken_with_what_it_needs_and_skipped_without(kind: FallbackKind) -> None:
    everything = senses(OPEN, Velocity(0.2, 0.0), held=HELD, goal=(0.5, 2.0))
    assert choose(ladder(kind), everything)[0] == kind
    for lacking in ('around', 'held', 'goal'):
        nothing: dict[str, Any] = {lacking: None}
        left = replace(everything, **nothing)
        assert choose(ladder(kind), left)[0] == ('stop' if lacking == NEEDS[kind] else kind)


def test_the_rank_is_the_files() -> None:
    everything = senses(OPEN, held=HELD)
    assert choose(ladder('hold', 'creep'), everything) == ('hold', HELD)
    assert choose(ladder('hold', 'creep'), senses(OPEN)) == ('creep', Velocity(0.05, 0.0))
    assert choose(ladder('follow_gap', 'turn_to_free', 'decelerate'), senses(None))[0] == (
        'decelerate')
    assert choose(ladder(), senses(OPEN, Velocity(0.3, 0.0), held=HELD)) == ('stop', STOP)


@pytest.mark.parametrize(('kinds', 'says'), [
    ('[hold, stop]', ''),
    ('[hold, follow_gap, turn_to_free, creep, decelerate, stop]', ''),
    ('[creep, hold, stop]', "'hold' after another is never reached: put it first"),
    ('[hold, hold, stop]', 'put it first'),
    ('[hold]', "must end in 'stop', not 'hold'"),
    ('[keep, stop]', 'fallback.ladder.0'),
])
def test_a_ladder_with_hold_is_read_or_refused_with_its_line(kinds: str, says: str) -> None:
    text = FILE.read_text(encoding='utf-8').replace('[creep, stop]', kinds)
    if not says:
        assert parse_policy(text.encode(), 'p.yaml').fallback.ladder[0] == 'hold'
        return
    with pytest.raises(PolicyError) as refused:
        parse_policy(text.encode(), 'p.yaml')
    assert str(refused.value).startswith('p.yaml:33: ')
    assert says in str(refused.value)


# --- what each asks for ---------------------------------------------------------------------


@given(st.floats(-1, 1), st.floats(-1.5, 1.5))
def test_decelerate_keeps_the_curve_and_ends_in_a_stop(v: float, w: float) -> None:
    now, steps = Velocity(v, w), 0
    while now != STOP and steps < 100:
        slower = decelerate(POLICY, senses(None, now))
        assert abs(slower.linear_x_m_s) < abs(now.linear_x_m_s) or slower == STOP
        cross = slower.linear_x_m_s * now.angular_z_rad_s
        assert cross == pytest.approx(slower.angular_z_rad_s * now.linear_x_m_s, abs=1e-9)
        now, steps = slower, steps + 1
    assert now == STOP
    assert steps <= abs(v) / (0.5 * DT) + 2


@pytest.mark.parametrize('kind', ['turn_to_free', 'follow_gap'])
def test_before_a_wall_it_turns_on_the_spot(kind: FallbackKind) -> None:
    _, asked = choose(ladder(kind), senses(WALL_AHEAD))
    assert asked.linear_x_m_s == 0.0
    assert abs(asked.angular_z_rad_s) == 0.5


def test_in_the_open_the_gap_is_driven_and_free_space_is_looked_at() -> None:
    assert choose(ladder('follow_gap'), senses(OPEN))[1] == Velocity(0.05, 0.0)
    assert choose(ladder('turn_to_free'), senses(OPEN))[1] == STOP


def test_a_gap_a_little_aside_is_steered_to() -> None:
    aside = scan_of(range(-170, 5), 0.6)
    _, asked = choose(ladder('follow_gap'), senses(aside))
    assert asked.angular_z_rad_s > 0.0


@pytest.mark.parametrize('kind', ['turn_to_free', 'follow_gap'])
@pytest.mark.parametrize('scan', [ENCLOSED, scan_of(range(360), math.nan)])
@pytest.mark.parametrize('goal', [None, (0.0, 2.0)])
def test_with_no_way_out_it_stands(
    kind: FallbackKind, scan: Scan, goal: tuple[float, float] | None,
) -> None:
    assert choose(ladder(kind), senses(scan, goal=goal))[1] == STOP


def test_unknown_directions_are_ways_only_where_the_file_says_so() -> None:
    half_blind = scan_of(range(-90, 91), math.nan)
    assert abs(freest(POLICY, around(half_blind))[0]) > math.pi / 2
    bold = POLICY.model_copy(update={
        'envelope': POLICY.envelope.model_copy(update={'unknown_is_blocked': False})})
    assert freest(bold, around(half_blind))[0] == 0.0


def test_the_freest_way_is_the_gap() -> None:
    gap = scan_of(range(130, 410), 0.5)  # free from 50 to 130 degrees
    heading, free = freest(POLICY, around(gap))
    assert math.degrees(heading) == pytest.approx(90, abs=15)
    assert free > 1.0


# --- to the goal ----------------------------------------------------------------------------


@pytest.mark.parametrize('bearing_deg', [-150, -60, -10, 0, 10, 60, 150, 180])
def test_in_the_open_it_heads_for_the_goal(bearing_deg: int) -> None:
    heading, _ = freest(POLICY, around(OPEN), (math.radians(bearing_deg), 2.0))
    assert abs(math.remainder(math.degrees(heading) - bearing_deg, 360)) <= 10
    _, asked = choose(ladder('follow_gap'), senses(OPEN, goal=(math.radians(bearing_deg), 2.0)))
    assert (asked.linear_x_m_s > 0.0) == (abs(bearing_deg) < 30)


@pytest.mark.parametrize('side', [-1, 1])
def test_round_a_wall_it_takes_the_side_of_the_goal(side: int) -> None:
    """Both ends of the wall are as far: without a goal it is left, with one the goal's."""
    goal = (side * math.radians(40), 4.0)
    heading, free = freest(POLICY, around(WALL_AHEAD), goal)
    assert side * heading > 0.0
    assert free > 1.0
    assert freest(POLICY, around(WALL_AHEAD))[0] > 0.0


def test_a_goal_before_the_wall_is_no_reason_to_turn_away_from_it() -> None:
    wall = scan_of(range(-80, 81), 1.5)
    assert freest(POLICY, around(wall))[0] != 0.0
    assert freest(POLICY, around(wall), (0.0, 0.8))[0] == 0.0


@pytest.mark.parametrize(('distance_m', 'stands'), [(0.29, True), (0.31, False)])
def test_at_the_goal_it_stands(distance_m: float, stands: bool) -> None:
    _, asked = choose(ladder('follow_gap'), senses(OPEN, goal=(0.0, distance_m)))
    assert (asked == STOP) == stands


GOAL = Goal(0, 'odom', 3.0, 5.0, 0.0)
POSE = Odometry(0, 'odom', 1.0, 5.0, math.pi / 2, 0.0, 0.0)  # the goal is 2 m to its right
NOW, ROS = 100 * SECOND, 5_000 * SECOND


def inputs(**fields: Fields) -> Inputs:
    return Inputs(ros_now_ns=ROS, sensors={
        name: Received(name, each, NOW, ROS) for name, each in fields.items()})


def test_a_goal_is_where_odometry_sees_it() -> None:
    found = goal_ahead(POLICY, NOW, inputs(scan=OPEN, odom=POSE, goal=GOAL))
    assert found == pytest.approx((-math.pi / 2, 2.0))
    assert goal_summary.text(GOAL, POSE) == '2.0 m right', 'as the model is told'


@pytest.mark.parametrize('fields', [
    {}, {'goal': GOAL}, {'odom': POSE},
    {'odom': replace(POSE, frame_id='map'), 'goal': GOAL},
    {'odom': POSE, 'goal': replace(GOAL, x_m=math.nan)},
    {'odom': POSE, 'goal': replace(GOAL, y_m=math.inf)},
    {'odom': replace(POSE, yaw_rad=math.nan), 'goal': GOAL},
    {'odom': replace(POSE, x_m=-math.inf), 'goal': GOAL},
], ids=str)
def test_without_a_fit_goal_and_pose_in_one_frame_there_is_none(
    fields: dict[str, Fields],
) -> None:
    assert goal_ahead(POLICY, NOW, inputs(**fields)) is None


def test_odometry_at_its_limit_and_past_it() -> None:
    limit_ns = POLICY.sensors['odom'].stale_after_ns
    here = inputs(odom=POSE, goal=GOAL)
    later = replace(here, ros_now_ns=ROS + limit_ns)
    assert goal_ahead(POLICY, NOW + limit_ns, later) is not None
    past = replace(here, ros_now_ns=ROS + limit_ns + 1)
    assert goal_ahead(POLICY, NOW + limit_ns + 1, past) is None


@pytest.mark.parametrize('sign', [-1, 1])
def test_an_odometry_stamp_is_two_sided(sign: int) -> None:
    limit_ns = POLICY.sensors['odom'].stale_after_ns
    at = replace(POSE, stamp_ns=ROS + sign * limit_ns)
    assert goal_ahead(POLICY, NOW, inputs(odom=at, goal=GOAL)) is not None
    off = replace(POSE, stamp_ns=ROS + sign * (limit_ns + MS))
    assert goal_ahead(POLICY, NOW, inputs(odom=off, goal=GOAL)) is None


def test_where_one_odometry_is_lost_the_other_serves() -> None:
    lost = replace(POSE, stamp_ns=ROS - 60 * SECOND, x_m=-50.0)
    found = goal_ahead(POLICY, NOW, inputs(odom=lost, wheels=POSE, goal=GOAL))
    assert found == pytest.approx((-math.pi / 2, 2.0))


# --- hold, in the gate ----------------------------------------------------------------------


def holding(*kinds: FallbackKind) -> Story:
    """A robot that drove at 0.3 m/s by a fresh command when its engine's worker ended."""
    story = active(policy=ladder('hold', *kinds))
    while story.ticks % 10:
        story.tick()
    story.deciding = False
    assert story.last.source == 'model'
    story.dead.add(WORKER)
    return story


def test_hold_is_the_last_applied_command_until_its_valid_until() -> None:
    story = holding('creep')
    assert story.command is not None
    end_ns = story.command.command.valid_until_ns
    held = 0
    while story.clock.now_ns() + 50 * MS < end_ns:
        out = story.tick()
        assert (out.state, out.source, out.fallback) == (State.FALLBACK, 'hold', 'hold')
        assert out.command == story.command.command
        assert out.valid_until_ns == end_ns
        assert out.velocity.linear_x_m_s == pytest.approx(0.3)
        held += 1
    assert held > 10
    out = story.tick()
    assert (out.source, out.fallback, out.command) == ('baseline', 'creep', None)


def test_a_shadow_answer_is_not_applied_through_hold() -> None:
    """In FALLBACK answers are judged, not driven by: one that is good ends the hold."""
    story = holding()
    story.run(200)
    assert story.last.source == 'hold'
    shadow = story.say_command(action='left', parameters={}, linear_x_m_s=0.1, angular_z_rad_s=0.5)
    out = story.tick()
    assert story.gate._answers.accepted is shadow, 'it was a good one'
    assert (out.state, out.source, out.fallback) == (State.FALLBACK, 'baseline', 'stop')
    assert out.command is None
    assert out.velocity.angular_z_rad_s == 0.0


def test_a_command_that_came_with_the_fault_was_never_applied_and_is_not_held() -> None:
    story = active(policy=ladder('hold'))
    while story.ticks % 10 != 9:
        story.tick()
    story.dead.add(WORKER)
    out = story.tick()
    assert story.command is not None
    assert story.command.arrival_ns == out.now_ns
    assert story.gate._answers.accepted is story.command.command
    assert (out.state, out.fallback) == (State.FALLBACK, 'stop')


def test_after_a_stop_nothing_is_held() -> None:
    """A paused world stops the robot: when it goes on, what drove it before does not."""
    story = holding()
    assert story.tick().source == 'hold'
    story.ros_rate = 0.0
    story.run(300)
    assert story.last.source == 'stop'
    story.ros_rate = 1.0
    out = story.tick()
    assert story.command is not None
    assert out.now_ns < story.command.command.valid_until_ns
    assert (out.state, out.fallback) == (State.FALLBACK, 'stop')


def test_without_hold_in_the_ladder_nothing_is_held() -> None:
    story = active(policy=ladder('creep'))
    story.dead.add(WORKER)
    out = story.tick()
    assert (out.source, out.fallback) == ('baseline', 'creep')


# --- follow_gap, in the gate and a closed loop ----------------------------------------------


class Driven(Story):
    """A robot without an engine in a world of discs, which measures where it is."""

    def __init__(self, world: PointWorld, policy: Policy) -> None:
        super().__init__(policy=policy)
        self.world, self.fields_of_scan = world, world.scan

    def fields(self, name: str) -> Fields:
        world = self.world
        if name == 'odom':
            return Odometry(self.ros_ns, 'odom', world.x, world.y, world.yaw, world.v, world.w)
        return super().fields(name)


@pytest.mark.parametrize('disc', [(1.0, 0.1, 0.2), (1.0, -0.1, 0.3), (0.8, 0.0, 0.2)])
@pytest.mark.parametrize('yaw', [0.0, 2.5])
def test_it_reaches_the_goal_behind_a_disc_and_touches_nothing(
    disc: tuple[float, float, float], yaw: float,
) -> None:
    slow = ladder('follow_gap')
    policy = slow.model_copy(update={
        'fallback': slow.fallback.model_copy(update={'speed_m_s': 0.3})})
    world = PointWorld(np.random.default_rng(0), policy)
    world.discs, world.yaw = [disc], yaw
    story = Driven(world, policy)
    story.until(State.ACTIVE, 3000)
    story.dead.add(WORKER)
    story.newest['goal'] = Received('goal', Goal(0, 'odom', 2.0, 0.0, 0.0), 0, 0)
    for _ in range(600):
        out = story.tick()
        assert out.fallback == 'follow_gap'
        world.move(out.velocity, DT)
        assert world.clearance_m() > 0.0
        if out.velocity == STOP and math.hypot(world.x - 2.0, world.y) < 0.3:
            return
    raise AssertionError(f'after 30 s at {world.x:.2f}, {world.y:.2f}: {out.why_limited}')
