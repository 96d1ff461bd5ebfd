"""The simulation in simulated time: what the lidar sees, what the base does, what hurts."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mujoco')

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import WorldError
from smallm_ros.sim.episode import Episode
from smallm_ros.sim.pace import DEBT_NS, Pace
from smallm_ros.sim.robot import COMMAND_TIMEOUT_NS, Pose
from smallm_ros.sim.world import World, load_world, parse_world

WORLDS = Path(__file__).parents[1] / 'config' / 'worlds'
TICK_NS = 20 * MS
WALL_X_M, WALL_Y_M = 4.0, 1.0


@pytest.fixture(scope='module')
def corridor() -> World:
    return load_world(WORLDS / 'corridor.sdf')


@pytest.fixture(scope='module')
def room() -> World:
    return load_world(WORLDS / 'room.sdf')


def drive(episode: Episode, velocity: Velocity, seconds: float) -> None:
    end_ns = episode.now_ns + round(seconds * SECOND)
    while episode.now_ns < end_ns:
        episode.command(velocity, episode.now_ns)
        episode.step(TICK_NS)


def coast(episode: Episode, seconds: float) -> None:
    episode.step(round(seconds * SECOND))


# --- the lidar ------------------------------------------------------------------------------


def walls_from(world: World, pose: Pose) -> np.ndarray:
    """Distance to the corridor's walls along each beam, by geometry."""
    lidar = world.lidar
    angles = pose.yaw_rad + lidar.angle_min_rad + (
        lidar.angle_increment_rad * np.arange(lidar.beams))
    with np.errstate(divide='ignore'):
        x = (np.copysign(WALL_X_M, np.cos(angles)) - pose.x_m) / np.cos(angles)
        y = (np.copysign(WALL_Y_M, np.sin(angles)) - pose.y_m) / np.sin(angles)
    nearest = np.minimum(np.abs(x), np.abs(y))
    return np.where(nearest > lidar.range_max_m, math.inf, nearest)


@pytest.mark.parametrize('pose', [Pose(-3, 0, 0), Pose(1, 0.4, 0.7), Pose(3.5, -0.5, -2.2)],
                         ids=str)
def test_without_noise_each_beam_is_the_distance_to_the_wall(corridor: World, pose: Pose) -> None:
    episode = Episode(corridor, 0, noise=0, start=pose)
    scan = episode.scan()
    assert scan.ranges_m.shape == (360,)
    assert scan.ranges_m.dtype == np.float32
    assert scan.ranges_m == pytest.approx(walls_from(corridor, pose), abs=1e-4)
    assert (scan.frame_id, scan.range_min_m, scan.range_max_m) == ('lidar_link', 0.12, 8.0)


def test_beyond_the_farthest_range_there_is_nothing(room: World) -> None:
    ranges = Episode(room, 0, start=Pose(-4.7, -3.7, 0.2)).scan().ranges_m
    assert np.isinf(ranges).any()
    assert ranges[np.isfinite(ranges)].max() <= 8.0
    assert not np.isneginf(ranges).any()


def test_nearer_than_the_least_range_is_minus_infinity(corridor: World) -> None:
    """REP-117: detected, too close to measure."""
    text = (WORLDS / 'corridor.sdf').read_text(encoding='utf-8')
    near = parse_world(text.replace('<min>0.12</min>', '<min>1.05</min>').encode(), 'near.sdf')
    ranges = Episode(near, 0, noise=0).scan().ranges_m
    expected = walls_from(corridor, Pose(-3, 0, 0))
    assert np.isneginf(ranges[expected < 1.04]).all()
    assert np.isfinite(ranges[(expected > 1.06) & (expected < 8)]).all()


def test_noise_has_the_spread_that_the_file_says(corridor: World) -> None:
    episode = Episode(corridor, 3)
    expected = walls_from(corridor, Pose(-3, 0, 0))
    errors = np.concatenate([episode.scan().ranges_m - expected for _ in range(10)])
    assert errors.std() == pytest.approx(0.01, rel=0.1)
    assert abs(errors.mean()) < 0.001


def test_beams_fail_with_the_probability_asked_for(corridor: World) -> None:
    episode = Episode(corridor, 3, dropout=0.2)
    failed = np.mean([np.isnan(episode.scan().ranges_m).mean() for _ in range(10)])
    assert failed == pytest.approx(0.2, abs=0.03)


def test_the_lidar_does_not_see_its_own_robot(room: World) -> None:
    assert Episode(room, 0, noise=0).scan().ranges_m.min() > 0.5


def test_a_scan_shows_where_the_robot_is_now_not_a_step_ago(corridor: World) -> None:
    episode = Episode(corridor, 0, noise=0)
    drive(episode, Velocity(0.5, 0), 2)
    ahead = episode.scan().ranges_m[180]
    assert ahead == pytest.approx(WALL_X_M - episode.pose.x_m, abs=1e-3)


# --- the base -------------------------------------------------------------------------------


def test_it_drives_straight_for_a_metre(corridor: World) -> None:
    episode = Episode(corridor, 0, noise=0)
    # 0.25 m/s for 4 s, less what the acceleration limit of 1 m/s2 costs at the start.
    drive(episode, Velocity(0.25, 0), 4)
    drive(episode, STOP, 1)
    assert episode.pose.x_m == pytest.approx(-3 + 1, abs=0.01)
    assert episode.pose.y_m == pytest.approx(0, abs=0.005)
    assert episode.pose.yaw_rad == pytest.approx(0, abs=0.01)
    assert episode.distance_m == pytest.approx(1, abs=0.01)
    assert episode.odometry().x_m == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize('turn', [1.0, -1.0, 0.1])
def test_it_turns_on_the_spot(corridor: World, turn: float) -> None:
    episode = Episode(corridor, 0, noise=0)
    drive(episode, Velocity(0, turn), 2)
    drive(episode, STOP, 1)
    assert episode.pose.yaw_rad == pytest.approx(2 * turn, rel=0.02)
    assert episode.odometry().yaw_rad == pytest.approx(2 * turn, rel=0.02)
    assert math.hypot(episode.pose.x_m + 3, episode.pose.y_m) < 0.005


def test_it_backs_up(corridor: World) -> None:
    episode = Episode(corridor, 0, noise=0, start=Pose(0, 0, math.pi))
    drive(episode, Velocity(-0.3, 0), 2)
    assert episode.velocity.linear_x_m_s == pytest.approx(-0.3, abs=0.01)
    assert episode.pose.x_m == pytest.approx(0.6, abs=0.06)


def test_an_arc_ends_where_geometry_says(corridor: World) -> None:
    """0.2 m/s and 0.5 rad/s draw a circle of 0.4 m around a centre on the left."""
    episode = Episode(corridor, 0, noise=0, start=Pose(0, -0.4, 0))
    drive(episode, Velocity(0.2, 0.5), 6)
    pose = episode.pose
    assert math.hypot(pose.x_m, pose.y_m) == pytest.approx(0.4, abs=0.03)


def test_it_holds_a_command_until_its_own_time_out_and_then_stops(corridor: World) -> None:
    episode = Episode(corridor, 0, noise=0)
    drive(episode, Velocity(0.4, 0), 1)
    last_ns = episode.now_ns - TICK_NS
    episode.step(last_ns + COMMAND_TIMEOUT_NS - episode.now_ns)
    assert episode.velocity.linear_x_m_s == pytest.approx(0.4, abs=0.01)
    coast(episode, 0.2)
    assert 0.1 < episode.velocity.linear_x_m_s < 0.35
    coast(episode, 0.5)
    assert abs(episode.velocity.linear_x_m_s) < 1e-3


def test_it_accelerates_and_limits_as_the_file_says(corridor: World) -> None:
    episode = Episode(corridor, 0, noise=0)
    speeds, turns = [0.0], [0.0]
    for _ in range(100):
        drive(episode, Velocity(9.0, -9.0), 0.02)
        speeds.append(episode.velocity.linear_x_m_s)
        turns.append(episode.velocity.angular_z_rad_s)
    assert max(speeds) <= 0.5 * 1.02 and speeds[-1] == pytest.approx(0.5, rel=0.03)
    assert min(turns) >= -2.0 * 1.02 and turns[-1] == pytest.approx(-2.0, rel=0.03)
    assert np.diff(speeds).max() / 0.02 <= 1.0 * 1.1
    assert -np.diff(turns).min() / 0.02 <= 4.0 * 1.1


def test_a_robot_at_rest_stays_where_it_is(room: World) -> None:
    episode = Episode(room, 0)
    start, way = episode.pose, episode.odometry()
    coast(episode, 5)
    assert math.hypot(episode.pose.x_m - start.x_m, episode.pose.y_m - start.y_m) < 1e-4
    assert episode.distance_m < 1e-3
    assert math.hypot(episode.odometry().x_m - way.x_m, episode.odometry().y_m) < 1e-3


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_a_velocity_that_is_no_number_is_refused_and_changes_nothing(
    corridor: World, bad: float,
) -> None:
    episode = Episode(corridor, 0, noise=0)
    drive(episode, Velocity(0.2, 0), 0.5)
    for velocity in (Velocity(bad, 0), Velocity(0, bad)):
        with pytest.raises(ValueError, match='a velocity is finite'):
            episode.command(velocity, episode.now_ns)
    episode.step(TICK_NS)
    assert episode.velocity.linear_x_m_s == pytest.approx(0.2, abs=0.01)


def test_odometry_drifts_with_noise_and_differs_by_seed(corridor: World) -> None:
    errors = []
    for seed in range(6):
        episode = Episode(corridor, seed)
        drive(episode, Velocity(0.4, 0), 5)
        errors.append(episode.odometry().x_m - (episode.pose.x_m + 3))
    assert len({round(error, 6) for error in errors}) == 6
    assert 0.0005 < float(np.std(errors)) < 0.05


# --- what hurts -----------------------------------------------------------------------------


def test_a_wall_that_is_driven_into_is_one_collision_with_time_and_place(corridor: World) -> None:
    episode = Episode(corridor, 0, noise=0, start=Pose(3, 0.3, 0))
    drive(episode, Velocity(0.4, 0), 1)
    assert episode.collision_count == 0
    drive(episode, Velocity(0.4, 0), 3)
    assert episode.collision_count == 1
    (collision,) = episode.collisions
    assert collision.obstacle == 'wall_east'
    assert (collision.x_m, collision.y_m) == pytest.approx((4.0, 0.3), abs=0.01)
    assert 0.1 < collision.speed_m_s <= 0.42
    # 0.8 m to go at 0.4 m/s, and 0.2 s more for the acceleration.
    assert collision.time_ns == pytest.approx(2.2 * SECOND, abs=0.1 * SECOND)
    assert episode.pose.x_m < 3.81


def test_a_second_visit_is_a_second_collision(corridor: World) -> None:
    episode = Episode(corridor, 0, noise=0, start=Pose(3.5, 0, 0))
    for _ in range(2):
        drive(episode, Velocity(0.4, 0), 2)
        drive(episode, Velocity(-0.3, 0), 1.5)
    assert [c.obstacle for c in episode.collisions] == ['wall_east', 'wall_east']


def test_the_floor_is_no_obstacle(room: World) -> None:
    episode = Episode(room, 0)
    drive(episode, Velocity(0.3, 0.3), 3)
    assert episode.collision_count == 0


def test_a_robot_that_starts_inside_an_obstacle_has_collided_at_once(room: World) -> None:
    episode = Episode(room, 0, start=Pose(-2.6, 1.6, 0))
    episode.step(room.step_ns)
    assert [c.obstacle for c in episode.collisions] == ['crate_west']


# --- the whole ------------------------------------------------------------------------------


def story(world: World, seed: int) -> list[object]:
    episode = Episode(world, seed, dropout=0.01)
    seen: list[object] = []
    random = np.random.default_rng(5)
    for _ in range(60):
        drive(episode, Velocity(*random.uniform((-0.3, -1.5), (0.5, 1.5))), 0.1)
        seen += [episode.pose, episode.odometry(), episode.scan().ranges_m.tobytes()]
    return [*seen, tuple(episode.collisions), tuple(episode.path), episode.distance_m]


def test_the_same_seed_is_the_same_run_and_another_is_not(room: World) -> None:
    first = story(room, 7)
    assert first == story(room, 7)
    assert first != story(room, 8)


def test_the_path_is_kept_ten_times_a_second(corridor: World) -> None:
    episode = Episode(corridor, 0)
    drive(episode, Velocity(0.3, 0), 2)
    assert [t for t, _ in episode.path] == [i * 100 * MS for i in range(21)]
    assert episode.path[-1][1] == episode.pose


@pytest.mark.parametrize('dt_ns', [0, -5 * MS, 7 * MS, 1])
def test_a_step_is_a_multiple_of_the_worlds_own(corridor: World, dt_ns: int) -> None:
    with pytest.raises(ValueError, match='no multiple of the world'):
        Episode(corridor, 0).step(dt_ns)


def test_what_mujoco_refuses_is_a_world_error(corridor: World) -> None:
    broken = dataclasses.replace(corridor, mjcf=corridor.mjcf.replace('type="box"', 'type="bax"'))
    with pytest.raises(WorldError, match=r'corridor\.sdf: MuJoCo refuses it: .*bax') as caught:
        Episode(broken, 0)
    assert '\n' not in str(caught.value)


def test_ten_seconds_take_far_less_than_ten(room: World) -> None:
    """Measured 0.3 s; the cap leaves room for a machine that does other things too."""
    episode = Episode(room, 0)
    began = time.process_time()
    for _ in range(100):
        drive(episode, Velocity(0.1, 0.5), 0.1)
        episode.scan()
    assert time.process_time() - began < 2.5


# --- keeping pace with real time ------------------------------------------------------------


def test_deadlines_are_absolute_and_do_not_drift() -> None:
    pace = Pace(0, 10 * MS, 1.0)
    assert pace.done(3 * MS) == 10 * MS
    assert pace.done(12 * MS) == 20 * MS
    # 15 ms late: the next was due already, so it begins at once and the mean rate holds.
    assert pace.done(45 * MS) == 30 * MS
    assert pace.done(46 * MS) == 40 * MS
    assert pace.forgiven_ns == 0


def test_a_debt_beyond_the_limit_is_forgiven() -> None:
    pace = Pace(0, 10 * MS, 1.0)
    assert pace.done(10 * MS + DEBT_NS) == 10 * MS
    late_ns = 2 * SECOND
    assert pace.done(late_ns) == late_ns - DEBT_NS
    assert pace.forgiven_ns == late_ns - DEBT_NS - 20 * MS
    assert pace.done(late_ns + 1 * MS) == late_ns - DEBT_NS + 10 * MS


@pytest.mark.parametrize('factor', [0.25, 1.0, 3.0])
def test_the_factor_asked_for_is_the_factor_measured(factor: float) -> None:
    pace = Pace(0, 10 * MS, factor)
    now_ns = 0
    for _ in range(1000):
        now_ns = max(now_ns + 1 * MS, pace.done(now_ns + 1 * MS))
    assert pace.factor == pytest.approx(factor, rel=0.01)
    assert now_ns == pytest.approx(10 * SECOND / factor, rel=0.01)


def test_a_simulation_that_is_too_slow_says_how_slow() -> None:
    pace = Pace(0, 10 * MS, 1.0)
    for tick in range(1, 500):
        pace.done(tick * 40 * MS)
    assert pace.factor == pytest.approx(0.25, rel=0.01)
