"""The envelope: limits at their edges, and a small world in which nothing may ever be touched."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.envelope import (
    STANDING,
    Beams,
    Limited,
    Motion,
    Seen,
    Surroundings,
    Told,
    approach,
    latency_s,
    limit,
    reach_m,
    stopping_speed_m_s,
)
from smallm_ros.core.policy import Policy, Robot, SlowDown, load_policy
from smallm_ros.core.shape import Shape
from smallm_ros.core.summary.scan import Scan, ScanSensor
from tests.fakes.point_world import KINDS, PointWorld, outside_m, wild

POLICY = load_policy(Path(__file__).parent / 'fakes' / 'round_robot.yaml')
SENSOR = POLICY.sensors['scan']
assert isinstance(SENSOR, ScanSensor)
REACH = reach_m(POLICY)
DT = 0.05
BEAMS = 360


def scan_of(ranges: dict[int, float], other: float = math.inf, beams: int = BEAMS) -> Scan:
    """A whole turn of beams, one each degree from -180; `ranges` by degree."""
    values = np.full(beams, other, dtype=np.float32)
    for degree, value in ranges.items():
        values[degree + 180] = value
    return Scan(0, 'laser', -math.pi, 2 * math.pi / BEAMS, 0.05, 12.0, values)


OPEN = scan_of({})


def with_envelope(**rules: object) -> Policy:
    return POLICY.model_copy(update={'envelope': POLICY.envelope.model_copy(update=rules)})


def seen_by(scan: Scan, since: Motion = STANDING, sensor: ScanSensor = SENSOR) -> tuple[Seen]:
    return (Seen(scan, sensor, since),)


def around(scan: Scan, policy: Policy = POLICY, sensor: ScanSensor = SENSOR) -> Surroundings:
    return Surroundings.of(seen_by(scan, sensor=sensor), policy)


def laser(**mount: float) -> ScanSensor:
    sensor = POLICY.sensors['scan'].model_copy(update=mount)
    assert isinstance(sensor, ScanSensor)
    return sensor


def beams(scan: Scan, policy: Policy = POLICY) -> Beams:
    return around(scan, policy).beams[0]


def drive(asked: Velocity, previous: Velocity = STOP, scan: Scan | None = OPEN,
          since: Motion = STANDING, policy: Policy = POLICY, coasting_m_s: float = 0.0) -> Limited:
    seen = None if scan is None else seen_by(scan, since)
    return limit(asked, Told(previous, coasting_m_s, DT), seen, policy)


def test_what_is_inside_every_limit_passes_unchanged() -> None:
    moving = Velocity(0.5, 0.2)
    out = drive(moving, moving)
    assert out.velocity == moving
    assert not out.limited
    assert out.why == ''


@pytest.mark.parametrize(('asked', 'speed'), [(9.0, 1.0), (-9.0, -0.5), (1.0, 1.0), (-0.5, -0.5)])
def test_speed_is_clamped(asked: float, speed: float) -> None:
    before = Velocity(speed, 0.0)
    out = drive(Velocity(asked, 0.0), before)
    assert out.velocity == before
    assert out.limited == (asked != speed)


@pytest.mark.parametrize('asked', [9.0, -9.0])
def test_turning_is_clamped(asked: float) -> None:
    before = Velocity(0.0, math.copysign(1.5, asked))
    assert drive(Velocity(0.0, asked), before).velocity == before


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_stop(bad: float) -> None:
    for asked in (Velocity(bad, 0.0), Velocity(0.0, bad)):
        out = drive(asked)
        assert out.velocity == STOP
        assert 'not finite' in out.why


def test_acceleration_is_limited_each_way() -> None:
    rules = POLICY.envelope
    up, down = rules.max_acceleration_m_s2 * DT, rules.max_deceleration_m_s2 * DT
    assert drive(Velocity(1.0, 0.0)).velocity.linear_x_m_s == pytest.approx(up)
    assert drive(STOP, Velocity(0.5, 0.0)).velocity.linear_x_m_s == pytest.approx(0.5 - down)
    assert drive(Velocity(-0.5, 0.0), Velocity(0.01, 0.0)).velocity.linear_x_m_s == 0.0
    assert drive(Velocity(-0.5, 0.0)).velocity.linear_x_m_s == pytest.approx(-up)
    spin = rules.max_angular_acceleration_rad_s2 * DT
    assert drive(Velocity(0.0, 1.5)).velocity.angular_z_rad_s == pytest.approx(spin)


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 1), st.floats(0, 1))
def test_approach_stays_in_its_steps(now: float, goal: float, up: float, down: float) -> None:
    out = approach(now, goal, up, down)
    assert out * now >= 0.0
    assert abs(out) <= abs(now) + up + 1e-12
    assert abs(out) >= abs(now) - down - 1e-12 or out == 0.0
    assert min(now, goal) - 1e-12 <= out <= max(now, goal) + 1e-12 or out == 0.0


@given(st.floats(0, 20), st.floats(0, 1), st.floats(0.1, 5))
def test_the_stopping_speed_uses_up_the_free_distance(free: float, delay: float, a: float) -> None:
    v = stopping_speed_m_s(free, delay, a)
    assert v * delay + v * v / (2 * a) == pytest.approx(free, abs=1e-6)
    assert stopping_speed_m_s(math.inf, delay, a) == math.inf


def test_a_wall_ahead_bounds_the_speed_to_what_can_stop() -> None:
    fast = Velocity(1.0, 0.0)
    out = drive(fast, fast, scan_of({0: 0.5 + REACH}))
    v, a = out.velocity.linear_x_m_s, POLICY.envelope.max_deceleration_m_s2
    assert v * latency_s(POLICY) + v * v / (2 * a) == pytest.approx(0.5, abs=1e-6)
    assert out.free_m == pytest.approx(0.5, abs=1e-6)
    assert 'free distance 0.50 m' in out.why


def test_braking_harder_than_the_limit_only_when_the_distance_demands_it() -> None:
    fast = Velocity(1.0, 0.0)
    near = drive(fast, fast, scan_of({0: REACH + 0.05}))
    assert near.velocity.linear_x_m_s < 1.0 - POLICY.envelope.max_deceleration_m_s2 * DT
    assert near.coasting_m_s == pytest.approx(0.95)
    assert drive(STOP, fast).velocity.linear_x_m_s == pytest.approx(0.95)


@pytest.mark.parametrize(('degree', 'forward', 'reverse'), [(0, False, True), (180, True, False)])
def test_inside_the_margin_only_away_and_turning(
    degree: int, forward: bool, reverse: bool,
) -> None:
    scan = scan_of({degree - 360 if degree == 180 else degree: REACH - 0.02})
    assert (drive(Velocity(0.3, 0.0), scan=scan).velocity.linear_x_m_s > 0) == forward
    assert (drive(Velocity(-0.3, 0.0), scan=scan).velocity.linear_x_m_s < 0) == reverse
    assert drive(Velocity(0.0, 1.0), scan=scan).velocity.angular_z_rad_s > 0


def test_beside_the_corridor_is_free_and_in_it_is_not() -> None:
    ahead_m, slow = 0.6, Velocity(0.2, 0.0)
    for lateral, free in ((REACH + 0.03, True), (REACH - 0.03, False)):
        degree = round(math.degrees(math.atan2(lateral, ahead_m)))
        out = drive(slow, slow, scan_of({degree: lateral / math.sin(math.radians(degree))}))
        assert math.isinf(out.free_m) == free


@pytest.mark.parametrize('side', [-1, 1])
def test_a_curve_is_checked_where_it_leads(side: int) -> None:
    beside = scan_of({side * 40: 0.5, side * 45: 0.5, side * 50: 0.5})
    straight, into, away = (Velocity(0.5, side * turn) for turn in (0.0, 1.5, -1.5))
    assert math.isinf(drive(straight, straight, beside).free_m)
    assert drive(into, into, beside).free_m < 0.3
    assert math.isinf(drive(away, away, beside).free_m)


def test_a_turn_into_a_wall_is_refused_rather_than_the_brakes_overrun() -> None:
    fast = Velocity(1.0, 0.0)
    out = drive(Velocity(1.0, 1.5), fast, scan_of(dict.fromkeys(range(21, 50), 0.85), other=9.0))
    assert out.velocity.linear_x_m_s >= 0.9
    assert 'no turn' in out.why


def test_what_was_driven_since_the_scan_counts() -> None:
    slow, scan = Velocity(0.2, 0.0), scan_of({0: REACH + 0.5})
    assert drive(slow, slow, scan).free_m == pytest.approx(0.5, abs=1e-6)
    assert drive(slow, slow, scan, Motion(distance_m=0.1)).free_m == pytest.approx(0.4, abs=1e-6)
    aside = scan_of({60: 0.5})
    assert math.isinf(drive(slow, slow, aside).free_m)
    assert drive(slow, slow, aside, Motion(left_rad=1.0)).free_m < 0.5
    assert math.isinf(drive(slow, slow, aside, Motion(right_rad=1.0)).free_m)
    other = scan_of({-60: 0.5})
    assert drive(slow, slow, other, Motion(right_rad=1.0)).free_m < 0.5
    assert math.isinf(drive(slow, slow, other, Motion(left_rad=1.0)).free_m)


@pytest.mark.parametrize('bad', [math.nan, 0.01, 0.0])
def test_an_unknown_direction_blocks_unless_told_otherwise(bad: float) -> None:
    slow, strict = Velocity(0.2, 0.0), with_envelope(unknown_gap_deg=0.0)
    lenient = with_envelope(unknown_gap_deg=0.0, unknown_is_blocked=False)
    assert drive(slow, slow, scan_of({0: bad}), policy=strict).velocity.linear_x_m_s == 0.0
    assert drive(slow, slow, scan_of({29: bad}), policy=strict).velocity.linear_x_m_s == 0.0
    assert drive(slow, slow, scan_of({32: bad}), policy=strict).velocity == slow
    assert drive(slow, slow, scan_of({0: bad}), policy=lenient).velocity == slow


@pytest.mark.parametrize('bad', [math.nan, 0.01])
@pytest.mark.parametrize('first', [-1, 29, -31, 0])
def test_a_drop_out_is_forgiven_up_to_its_limit(first: int, bad: float) -> None:
    """Valid beams 4 degrees apart at the limit; 5 degrees, and one that tells 4 from less."""
    slow = Velocity(0.2, 0.0)
    three, four = (scan_of(dict.fromkeys(range(first, first + n), bad)) for n in (3, 4))
    assert drive(slow, slow, three).velocity == slow
    assert drive(slow, slow, four).velocity.linear_x_m_s == 0.0
    below = with_envelope(unknown_gap_deg=3.99)
    assert drive(slow, slow, three, policy=below).velocity.linear_x_m_s == 0.0
    assert drive(slow, slow, four, policy=with_envelope(unknown_gap_deg=5.0)).velocity == slow


@pytest.mark.parametrize('step', [math.pi / 180, float(np.float32(math.pi / 180)),
                                  math.nextafter(math.pi / 180, 1.0)])
def test_rounding_of_the_increment_moves_no_limit(step: float) -> None:
    ranges = np.full(360, np.inf, dtype=np.float32)
    ranges[179:182] = np.nan
    slow, scan = Velocity(0.2, 0.0), Scan(0, 'laser', -180 * step, step, 0.05, 12.0, ranges)
    assert beams(scan).unknown_rad.size == 0
    ranges[182] = np.nan
    assert drive(slow, slow, scan).velocity.linear_x_m_s == 0.0


@pytest.mark.parametrize('beams', [360, 361])
@pytest.mark.parametrize('clockwise', [False, True])
@pytest.mark.parametrize('dropped', [(0,), (-1,), (-1, 0), (-2, -1), (0, 1)])
def test_a_drop_out_over_the_seam_of_a_whole_turn(
    dropped: tuple[int, ...], clockwise: bool, beams: int,
) -> None:
    """The seam ahead; with 361 beams the last looks where the first does."""
    ranges = np.full(beams, np.inf, dtype=np.float32)
    ranges[list(dropped)] = np.nan
    step = math.copysign(math.pi / 180, -1.0 if clockwise else 1.0)
    scan = Scan(0, 'laser', 0.0, step, 0.05, 12.0, ranges)
    slow = Velocity(0.2, 0.0)
    assert drive(slow, slow, scan).velocity == slow
    ranges[-3:], ranges[:3] = np.nan, np.nan
    assert drive(slow, slow, scan).velocity.linear_x_m_s == 0.0


def test_what_has_one_side_only_stays_unknown() -> None:
    ranges = np.full(181, np.inf, dtype=np.float32)
    ranges[[0, -1]] = np.nan
    half = Scan(0, 'laser', -math.pi / 2, math.pi / 180, 0.05, 12.0, ranges)
    assert sorted(beams(half).unknown_rad) == pytest.approx(
        [-math.pi / 2, math.pi / 2])
    assert beams(scan_of({}, other=math.nan)).unknown_rad.size == BEAMS
    alone = scan_of({0: 1.0}, other=math.nan)
    assert beams(alone).unknown_rad.size == BEAMS - 1


@pytest.mark.parametrize(('left', 'right', 'filled'), [
    (0.9, 2.0, 0.9), (2.0, 0.9, 0.9), (math.inf, 0.9, 0.9), (0.9, 13.0, 0.9),
    (-math.inf, 0.9, 0.05), (math.inf, math.inf, None), (math.inf, 13.0, None),
])
def test_a_drop_out_is_as_near_as_its_nearer_side(
    left: float, right: float, filled: float | None,
) -> None:
    one = beams(scan_of({1: left, 0: math.nan, -1: right}))
    ahead = one.ranges_m[np.abs(one.bearings_rad) < 1e-6]
    assert list(ahead) == ([] if filled is None else [pytest.approx(filled)])
    assert one.unknown_rad.size == 0


@given(
    st.lists(st.sampled_from([math.nan, math.nan, 0.01, 0.4, 1.0, 7.0, 12.5, math.inf,
                              -math.inf]), min_size=2, max_size=48),
    st.floats(0, 45), st.booleans(), st.floats(-math.pi, math.pi), st.floats(0, 1),
)
def test_filling_frees_no_more_than_the_nearer_neighbour(
    values: list[float], gap_deg: float, whole: bool, low: float, cone: float,
) -> None:
    """Beam by beam against a walk to both sides; then every cone against the beams as measured."""
    count = len(values)
    step = 2 * math.pi / count if whole else 2.5 / count
    scan = Scan(0, 'laser', -1.25, step, 0.05, 12.0, np.array(values, dtype=np.float32))
    raw = around(scan, with_envelope(unknown_gap_deg=0.0))
    filled = around(scan, with_envelope(unknown_gap_deg=gap_deg))
    one = filled.beams[0]
    seen = dict(zip(one.bearings_rad.round(6), one.ranges_m, strict=True))
    still = set(one.unknown_rad.round(6))
    measured = {
        i: 0.05 if value == -math.inf else math.inf if value > 12.0 else float(np.float32(value))
        for i, value in enumerate(values) if value == -math.inf or value > 0.05
    }
    for i in set(range(count)) - set(measured):
        ends = [next((k for k in range(1, count)
                      if (whole or 0 <= i + way * k < count)
                      and (i + way * k) % count in measured), None) for way in (-1, 1)]
        bearing = round(-1.25 + i * step, 6)
        if None in ends or sum(ends) * step > math.radians(gap_deg) + 2e-3 * step:
            assert bearing in still
        elif sum(ends) * step < math.radians(gap_deg):
            nearer = min(measured[(i - ends[0]) % count], measured[(i + ends[1]) % count])
            assert seen.get(bearing, math.inf) == nearer
    assert filled.free_m(low, low + cone, REACH) <= raw.free_m(low, low + cone, REACH)
    assert filled.known(low, low + cone) or not raw.known(low, low + cone)


def test_no_beam_is_unknown_too() -> None:
    """A scanner of 180 degrees sees what is ahead, not what is behind."""
    half = Scan(0, 'laser', -math.pi / 2, math.pi / 180, 0.05, 12.0,
                np.full(181, np.inf, dtype=np.float32))
    assert drive(Velocity(0.2, 0.0), Velocity(0.2, 0.0), half).velocity.linear_x_m_s == 0.2
    assert drive(Velocity(-0.2, 0.0), scan=half).velocity.linear_x_m_s == 0.0
    backwards = Scan(0, 'laser', math.pi / 2, -math.pi / 180, 0.05, 12.0,
                     np.full(181, np.inf, dtype=np.float32))
    assert drive(Velocity(0.2, 0.0), Velocity(0.2, 0.0), backwards).velocity.linear_x_m_s == 0.2
    assert drive(Velocity(-0.2, 0.0), scan=backwards).velocity.linear_x_m_s == 0.0


@pytest.mark.parametrize('nothing', [math.inf, 12.5, 1e30])
def test_beyond_the_range_is_nothing(nothing: float) -> None:
    fast = Velocity(1.0, 0.0)
    assert drive(fast, fast, scan_of({}, other=nothing)).velocity == fast


def test_minus_infinity_is_too_near_to_measure() -> None:
    lenient = with_envelope(unknown_is_blocked=False)
    out = drive(Velocity(0.2, 0.0), scan=scan_of({0: -math.inf}), policy=lenient)
    assert out.velocity.linear_x_m_s == 0.0


def test_without_a_scan_it_turns_and_brakes_and_nothing_else() -> None:
    assert drive(Velocity(0.2, 0.5), scan=None).velocity.linear_x_m_s == 0.0
    assert drive(Velocity(0.0, 0.5), scan=None).velocity.angular_z_rad_s > 0.0


def test_the_mount_turns_the_scan() -> None:
    one = around(scan_of({-90: 1.0}), sensor=laser(mount_yaw_deg=90.0)).beams[0]
    assert one.bearings_rad == pytest.approx([0.0], abs=1e-6)


def test_coasting_holds_reverse_back() -> None:
    out = drive(Velocity(-0.5, 0.0), coasting_m_s=0.4)
    assert out.velocity.linear_x_m_s == 0.0
    assert out.coasting_m_s == pytest.approx(0.35)


# --- the closed loop ------------------------------------------------------------------------


def run_wildly(seed: int, kind: str, steps_old: int, dropped: float = 0.0) -> float:
    """Drive 12 s at 20 Hz on scans at 10 Hz; return the metres driven. Asserts no contact.

    `dropped` is the share of beams without an echo.
    """
    rng = np.random.default_rng(seed)
    world = PointWorld(rng, POLICY)
    scans: deque[tuple[int, Scan]] = deque(maxlen=2)
    done: list[tuple[float, float]] = []  # (|v|, w) of each period
    velocity, asked, coasting, driven = STOP, STOP, 0.0, 0.0
    for tick in range(240):
        if tick % 2 == 0:
            scan = world.scan(0)
            scan.ranges_m[rng.random(BEAMS) < dropped] = np.nan
            scans.append((tick, scan))
        taken, scan = scans[0] if steps_old else scans[-1]
        asked = wild(rng, kind, tick, asked)
        recent = done[max(0, taken - 2):]  # the base acts two periods late
        out = drive(asked, velocity, scan, Motion(
            distance_m=sum(v for v, _ in recent) * DT,
            left_rad=sum(max(w, 0.0) for _, w in recent) * DT,
            right_rad=sum(max(-w, 0.0) for _, w in recent) * DT,
        ), coasting_m_s=coasting)
        velocity, coasting = out.velocity, out.coasting_m_s
        done.append((max(abs(velocity.linear_x_m_s), abs(coasting)), velocity.angular_z_rad_s))
        driven += world.move(velocity, DT)
        assert world.clearance_m() > 0.0, f'touched after {tick * DT:.2f} s'
    return driven


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.integers(0, 1))
def test_no_policy_touches_anything(seed: int, kind: str, steps_old: int) -> None:
    run_wildly(seed, kind, steps_old)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from([0.02, 0.2]))
def test_no_policy_touches_anything_behind_drop_outs(
    seed: int, kind: str, dropped: float,
) -> None:
    run_wildly(seed, kind, 0, dropped)


def test_drop_outs_in_every_scan_stop_no_robot() -> None:
    driven = [sum(run_wildly(seed, 'swerve', 0, share) for seed in range(6))
              for share in (0.0, 0.02)]
    assert driven[1] > 0.6 * driven[0]


def test_an_envelope_that_never_moves_would_be_none() -> None:
    assert sum(run_wildly(seed, 'swerve', 0) for seed in range(6)) > 6.0


# --- stretch, jerk, the zone ----------------------------------------------------------------


def test_a_base_that_drives_further_in_a_time_needs_more_of_it() -> None:
    told, scan = Told(Velocity(1.0, 0.0), 0.0, DT, stretch=2.0), scan_of({0: 0.5 + REACH})
    v = limit(Velocity(1.0, 0.0), told, seen_by(scan), POLICY).velocity.linear_x_m_s
    a = POLICY.envelope.max_deceleration_m_s2
    assert 2.0 * v * latency_s(POLICY) + v * v / (2 * a) == pytest.approx(0.5, abs=1e-6)


def test_in_the_zone_it_slows_down_as_usual_and_then_stays_slow() -> None:
    zone = with_envelope(slow_down=SlowDown(within_m=2.0, max_m_s=0.3))
    fast, far, near = Velocity(0.9, 0.0), scan_of({0: REACH + 2.1}), scan_of({0: REACH + 1.9})
    assert drive(fast, fast, far, policy=zone).velocity == fast
    out = drive(fast, fast, near, policy=zone)
    down = POLICY.envelope.max_deceleration_m_s2 * DT
    assert out.velocity.linear_x_m_s == pytest.approx(0.9 - down)
    assert 'zone of 0.3 m/s' in out.why
    slow = Velocity(0.3, 0.0)
    assert drive(fast, slow, near, policy=zone).velocity == slow
    behind = scan_of({-180: REACH + 1.0})
    assert drive(fast, fast, behind, policy=zone).velocity == fast, 'not where it drives to'


def ramp(asked: Velocity, policy: Policy, steps: int, start: Velocity = STOP,
         scan: Scan = OPEN) -> list[Velocity]:
    out, coasting, last = [start], 0.0, STOP
    for _ in range(steps):
        told = Told(out[-1], coasting, DT, last.linear_x_m_s, last.angular_z_rad_s)
        new = limit(asked, told, seen_by(scan), policy)
        last = Velocity((new.velocity.linear_x_m_s - out[-1].linear_x_m_s) / DT,
                        (new.velocity.angular_z_rad_s - out[-1].angular_z_rad_s) / DT)
        out.append(new.velocity)
        coasting = new.coasting_m_s
    return out


@pytest.mark.parametrize('asked', [Velocity(0.8, 1.2), Velocity(-0.4, -1.2)])
def test_jerk_rounds_off_both_ends_of_a_ramp(asked: Velocity) -> None:
    jerky = ramp(asked, POLICY, 60)
    smooth = ramp(asked, with_envelope(max_jerk_m_s3=2.0, max_angular_jerk_rad_s3=8.0), 60)
    assert smooth[-1] == jerky[-1] == asked
    for values, jerk in (([v.linear_x_m_s for v in smooth], 2.0),
                         ([v.angular_z_rad_s for v in smooth], 8.0)):
        changes = np.diff(np.abs(values)) / DT
        assert changes[0] == pytest.approx(jerk * DT), 'the limit is felt'
        assert (np.diff(changes) <= jerk * DT + 1e-9).all()
        assert (np.diff(changes) >= -2.0 * jerk * DT - 1e-9).all(), 'the last step may be cut'
        assert max(map(abs, values)) <= abs(values[-1]) + 1e-12


def test_jerk_holds_back_no_stop_and_no_obstacle() -> None:
    policy, fast = with_envelope(max_jerk_m_s3=0.5), Velocity(1.0, 0.0)
    down = POLICY.envelope.max_deceleration_m_s2 * DT
    assert drive(STOP, fast, policy=policy).velocity.linear_x_m_s == pytest.approx(1.0 - down)
    eased = drive(Velocity(0.2, 0.0), fast, policy=policy).velocity.linear_x_m_s
    assert eased == pytest.approx(1.0 - 0.5 * DT * DT), 'slowing at will is'
    wall = scan_of({0: REACH + 0.1})
    assert drive(fast, fast, wall, policy=policy).velocity == (
        drive(fast, fast, wall).velocity)


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-3, 3), st.floats(0.1, 20))
def test_jerk_passes_neither_end(now: float, goal: float, before: float, jerk: float) -> None:
    policy = with_envelope(max_jerk_m_s3=jerk, max_reverse_m_s=1.0)
    asked = Velocity(goal, 0.001)  # not a stop
    told = Told(Velocity(now, 0.0), 0.0, DT, before)
    smooth = limit(asked, told, seen_by(OPEN), policy).velocity.linear_x_m_s
    plain = drive(asked, Velocity(now, 0.0), policy=with_envelope(max_reverse_m_s=1.0))
    assert min(now, goal) - 1e-9 <= smooth <= max(now, goal) + 1e-9
    assert abs(smooth - now) <= abs(plain.velocity.linear_x_m_s - now) + 1e-9


# --- several lasers -------------------------------------------------------------------------


def test_an_offset_laser_sees_from_where_it_is() -> None:
    sensor = laser(mount_x_m=0.1, mount_y_m=-0.15, mount_yaw_deg=90.0)
    one = around(scan_of({0: 1.0}), sensor=sensor).beams[0]
    (where,) = one.ranges_m * np.exp(1j * one.bearings_rad)
    assert (where.real, where.imag) == pytest.approx((0.1, 0.85))


def test_the_point_of_an_older_scan_is_widened_by_more() -> None:
    slow, scan = Velocity(0.2, 0.0), scan_of({0: REACH + 0.5})
    old, new = Seen(scan, SENSOR, Motion(distance_m=0.2)), Seen(scan, SENSOR, STANDING)
    told = Told(slow, 0.0, DT)
    for seen, free in (((new,), 0.5), ((old,), 0.3), ((new, old), 0.3), ((old, new), 0.3)):
        assert limit(slow, told, seen, POLICY).free_m == pytest.approx(free, abs=1e-6)


def half_scan(other: float = math.inf) -> Scan:
    return Scan(0, 'laser', -math.pi / 2, math.pi / 180, 0.05, 12.0,
                np.full(181, other, dtype=np.float32))


def test_a_direction_is_known_when_one_laser_knows_it() -> None:
    front, rear = (Seen(half_scan(), laser(mount_yaw_deg=yaw), STANDING) for yaw in (0.0, 180.0))
    ahead, back = Velocity(0.2, 0.0), Velocity(-0.2, 0.0)
    for asked, seen, moves in ((ahead, (front,), True), (back, (front,), False),
                               (ahead, (rear,), False), (back, (front, rear), True)):
        out = limit(asked, Told(asked, 0.0, DT), seen, POLICY)
        assert (out.velocity == asked) == moves


def test_of_an_offset_laser_all_bearings_count_that_a_heading_is_in() -> None:
    """At the front edge, 180 degrees: beside it, what is near base_link's side is behind it."""
    off = around(half_scan(), sensor=laser(mount_x_m=0.19))
    assert not off.blind[[0, 45, 315]].any()
    assert off.blind[[85, 274]].all()
    assert off.close[[45, 315]].all()
    assert not off.close[0]
    assert not around(half_scan()).blind[[0, 45, 85, 274]].any(), 'of one at base_link'
    turned = Surroundings.of((Seen(half_scan(), SENSOR, Motion(left_rad=0.5)),), POLICY)
    assert turned.blind[70], 'it may have turned to the left since'
    assert not turned.blind[290]


def test_a_scan_without_beams_knows_nothing() -> None:
    empty = Scan(0, 'laser', 0.0, 0.01, 0.05, 12.0, np.zeros(0, dtype=np.float32))
    assert around(empty).blind.all()
    whole_turn = Surroundings.of((Seen(half_scan(), SENSOR, Motion(left_rad=7.0)),), POLICY)
    assert whole_turn.blind.all()


# --- a polygon ------------------------------------------------------------------------------

CORNERS = ((0.4, 0.2), (-0.3, 0.2), (-0.3, -0.2), (0.4, -0.2))
BOX = POLICY.model_copy(update={
    'robot': Robot(footprint=CORNERS, base_delay_ms=POLICY.robot.base_delay_ms),
})
MARGIN = POLICY.envelope.margin_m
HULL = np.array([CORNERS[3], CORNERS[0], CORNERS[1], CORNERS[2]])


def at(*points: tuple[float, float]) -> Scan:
    """A whole turn of 3,600 beams, with echoes at points in base_link."""
    values = np.full(3600, np.inf, dtype=np.float32)
    for x, y in points:
        values[round(math.degrees(math.atan2(y, x)) * 10) % 3600] = math.hypot(x, y)
    return Scan(0, 'laser', 0.0, 2 * math.pi / 3600, 0.05, 12.0, values)


def test_each_side_of_the_polygon_is_judged_by_itself() -> None:
    slow, back = Velocity(0.2, 0.0), Velocity(-0.2, 0.0)
    assert drive(slow, slow, at((1.0, 0.0)), policy=BOX).free_m == (
        pytest.approx(1.0 - 0.4 - MARGIN, abs=1e-3))
    assert drive(back, back, at((-1.0, 0.0)), policy=BOX).free_m == (
        pytest.approx(1.0 - 0.3 - MARGIN, abs=1e-3))
    for lateral, free in ((0.21 + MARGIN, True), (0.19 + MARGIN, False)):
        assert math.isinf(drive(slow, slow, at((1.0, lateral)), policy=BOX).free_m) == free
        assert math.isinf(drive(back, back, at((-1.0, -lateral)), policy=BOX).free_m) == free


def test_a_narrow_way_is_open_to_the_polygon_and_not_to_its_disc() -> None:
    walls = at(*((x / 20, side * 0.3) for x in range(-20, 21) for side in (-1, 1)))
    slow, wide = Velocity(0.2, 0.0), POLICY.model_copy(update={
        'robot': Robot(radius_m=BOX.robot.radius_m)})
    assert drive(slow, slow, walls, policy=BOX).velocity == slow
    assert drive(slow, slow, walls, policy=wide).velocity.linear_x_m_s == 0.0
    turning = drive(Velocity(0.0, 1.0), STOP, walls, policy=BOX)
    assert turning.velocity.angular_z_rad_s < drive(
        Velocity(0.0, 1.0), policy=BOX).velocity.angular_z_rad_s
    assert 'free turn' in turning.why


@pytest.mark.parametrize('side', [-1, 1])
def test_a_corner_stops_before_a_post_and_turns_away_from_it(side: int) -> None:
    into, away = Velocity(0.0, side * 1.0), Velocity(0.0, side * -1.0)
    at_rest = at((0.25, side * 0.36))
    out = drive(into, into, at_rest, policy=BOX)
    w, spin = abs(out.velocity.angular_z_rad_s), POLICY.envelope.max_angular_acceleration_rad_s2
    assert 0.0 < w < 1.0
    turn = around(at_rest, BOX).turn_rad(left=side > 0, unknown_is_blocked=True)
    assert w * latency_s(BOX) + w * w / (2 * spin) == pytest.approx(turn, abs=1e-6)
    inside = at((0.38, side * 0.23))
    assert drive(into, STOP, inside, policy=BOX).velocity.angular_z_rad_s == 0.0
    assert drive(away, STOP, inside, policy=BOX).velocity.angular_z_rad_s == (
        pytest.approx(-side * 3.0 * DT, rel=0.5))


def test_inside_the_margin_it_drives_along_and_away_and_not_nearer() -> None:
    slow, back = Velocity(0.2, 0.0), Velocity(-0.2, 0.0)
    for where, forward, reverse in (
        ((0.43, 0.1), False, True), ((-0.33, 0.1), True, False), ((0.1, 0.22), True, True),
        ((0.39, 0.1), False, True),
    ):
        scan = at(where)
        assert (drive(slow, policy=BOX, scan=scan).velocity.linear_x_m_s > 0) == forward
        assert (drive(back, policy=BOX, scan=scan).velocity.linear_x_m_s < 0) == reverse
    assert drive(slow, policy=BOX, scan=at((0.1, 0.22)), since=Motion(left_rad=0.1)
                 ).velocity == STOP, 'it may point at it'


def test_a_polygon_that_knows_nothing_stands() -> None:
    asked = Velocity(0.1, 0.5)
    assert drive(asked, scan=None, policy=BOX).velocity == STOP
    blind = scan_of({}, other=math.nan)
    assert drive(asked, scan=blind, policy=BOX).velocity == STOP
    lenient = BOX.model_copy(update={
        'envelope': BOX.envelope.model_copy(update={'unknown_is_blocked': False})})
    assert drive(asked, scan=blind, policy=lenient).velocity.angular_z_rad_s > 0.0


def test_what_may_have_moved_since_turns_less() -> None:
    scan = at((0.25, 0.36))
    turns = [
        Surroundings.of(seen_by(scan, since), BOX).turn_rad(left=True, unknown_is_blocked=True)
        for since in (STANDING, Motion(left_rad=0.1), Motion(distance_m=0.02),
                      Motion(distance_m=0.5))
    ]
    assert turns[1] == pytest.approx(max(turns[0] - 0.1, 0.0))
    assert turns[0] > turns[2] >= turns[3] == 0.0


def test_wide_cones_count_the_whole_disc() -> None:
    scan = at((1.0, 0.0))
    disc = 1.0 - reach_m(BOX)
    assert around(scan, BOX).way_m(-2.0, 2.0) == pytest.approx(disc, abs=1e-6)
    turned = Surroundings.of(seen_by(scan, Motion(left_rad=2.0, right_rad=2.0)), BOX)
    assert turned.way_m(0.0, 0.0) == pytest.approx(disc, abs=1e-6)


def test_a_notch_counts_as_filled() -> None:
    notched = Robot(footprint=(*CORNERS, (0.1, 0.0)))
    one, other = (
        Shape.of(robot.footprint, robot.radius_m, MARGIN) for robot in (notched, BOX.robot))
    assert sorted(map(tuple, one.corners)) == sorted(map(tuple, other.corners))


@st.composite
def convex(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """A polygon around base_link, counter-clockwise."""
    count = draw(st.integers(3, 9))
    jitter = draw(st.lists(st.floats(-0.3, 0.3), min_size=count, max_size=count))
    angles = (np.arange(count) + np.array(jitter)) * 2 * math.pi / count
    radius = np.array(draw(st.lists(st.floats(0.2, 0.7), min_size=count, max_size=count)))
    points = np.stack((radius * np.cos(angles), radius * np.sin(angles)), axis=1)
    return Shape.of(tuple(map(tuple, points.tolist())), 1.0, 0.0).corners


def outside_at(corners: np.ndarray[Any, Any], pose: complex, heading: float,
               point: complex) -> float:
    local = (point - pose) * np.exp(-1j * heading)
    return outside_m(corners, (float(local.real), float(local.imag)))


@settings(max_examples=150, deadline=None)
@given(convex(), st.floats(0.15, 3), st.floats(-math.pi, math.pi), st.floats(-1, 0),
       st.floats(0, 1), st.booleans(), st.integers(0, 2**32))
def test_no_path_in_the_cone_touches_within_the_way(
    corners: np.ndarray[Any, Any], distance: float, bearing: float, low: float, high: float,
    backwards: bool, seed: int,
) -> None:
    """Walks of a hundred steps with headings in the range, the body always along them."""
    shape = Shape.of(tuple(map(tuple, corners.tolist())), 1.0, MARGIN)
    point = distance * np.exp(1j * bearing)
    way = shape.way_m(np.array([[point.real], [point.imag]]), low, high,
                      math.pi if backwards else 0.0, 0.0)
    assert way == 0.0 or way >= distance - shape.reach_m - 1e-9
    if way <= 0.0 or any(outside_at(corners, 0j, heading, point) < MARGIN
                         for heading in np.linspace(low, high, 9)):
        return  # inside already: what then is allowed has its own story
    rng = np.random.default_rng(seed)
    for kind in range(4):
        pose, ends = 0j, rng.uniform(low, high, size=2)
        for k in range(100):
            heading = (rng.uniform(low, high) if kind == 0 else
                       (low, high)[k * kind // 100 % 2] if kind < 3 else
                       ends[0] + (ends[1] - ends[0]) * k / 100)
            pose += (-1 if backwards else 1) * np.exp(1j * heading) * min(way, 4.0) / 100
            assert outside_at(corners, pose, heading, point) >= MARGIN - 1e-6


@settings(max_examples=150, deadline=None)
@given(convex(), st.floats(0.1, 0.9), st.floats(-math.pi, math.pi), st.booleans(),
       st.floats(0, 0.1), st.floats(0, 2 * math.pi))
def test_no_turn_within_the_free_one_touches(
    corners: np.ndarray[Any, Any], distance: float, bearing: float, left: bool, grown: float,
    moved: float,
) -> None:
    shape = Shape.of(tuple(map(tuple, corners.tolist())), 1.0, MARGIN)
    free = shape.turn_rad(np.array([distance]), np.array([bearing]), grown, left=left)
    point = distance * np.exp(1j * bearing)
    if outside_at(corners, 0j, 0.0, point) >= MARGIN + grown:
        for turn in np.linspace(0.0, min(max(free, 0.0), 2 * math.pi), 60):
            now = outside_at(corners, grown * np.exp(1j * moved), turn if left else -turn, point)
            assert free <= 0.0 or now >= MARGIN - 1e-5


def test_turning_away_does_become_free() -> None:
    """The properties above would hold if nothing ever turned."""
    shape = Shape.of(CORNERS, 1.0, MARGIN)
    for degree in (20, 40, 140, 160):
        here = np.radians([float(degree)]), np.array([0.0])
        free = [shape.turn_rad(here[1], here[0], 0.0, left=left) for left in (True, False)]
        assert min(free) == 0.0
        assert max(free) > 0.5


# --- any policy, any scans ------------------------------------------------------------------

RANGES = st.lists(st.sampled_from([0.1, 0.3, 0.4, 0.6, 1.0, 2.0, math.inf]), min_size=36,
                  max_size=36)
VELOCITIES = st.builds(Velocity, st.floats(-0.5, 1.0), st.floats(-1.5, 1.5))


def coarse(values: list[float]) -> Scan:
    return scan_of({}) if not values else Scan(
        0, 'laser', -math.pi, 2 * math.pi / 360, 0.05, 12.0,
        np.repeat(np.array(values, dtype=np.float32), 10))


@settings(max_examples=200, deadline=None)
@given(RANGES, RANGES, VELOCITIES, VELOCITIES, st.floats(0, 0.2), st.booleans(), st.booleans())
def test_more_points_never_allow_more_speed_and_limits_always_hold(
    ranges: list[float], more: list[float], asked: Velocity, previous: Velocity,
    since: float, polygon: bool, zone: bool,
) -> None:
    policy = BOX if polygon else POLICY
    if zone:
        policy = policy.model_copy(update={'envelope': policy.envelope.model_copy(
            update={'slow_down': SlowDown(within_m=0.5, max_m_s=0.2)})})
    rules, told = policy.envelope, Told(previous, 0.0, DT)
    motion = Motion(since / 2, since, since / 3)
    one = (Seen(coarse(ranges), SENSOR, motion),)
    both = (*one, Seen(coarse(more), laser(mount_x_m=0.1, mount_yaw_deg=40.0), motion))
    few, many = (limit(asked, told, seen, policy).velocity for seen in (one, both))
    assert abs(many.linear_x_m_s) <= abs(few.linear_x_m_s) + 1e-9
    for out in (few, many):
        assert -rules.max_reverse_m_s <= out.linear_x_m_s <= rules.max_forward_m_s
        assert abs(out.angular_z_rad_s) <= rules.max_turn_rad_s
        assert abs(out.linear_x_m_s) <= (
            abs(previous.linear_x_m_s) + rules.max_acceleration_m_s2 * DT + 1e-9)
        assert abs(out.angular_z_rad_s) <= (
            abs(previous.angular_z_rad_s) + rules.max_angular_acceleration_rad_s2 * DT + 1e-9)


PAIR = (laser(mount_x_m=0.35, mount_y_m=0.15, mount_yaw_deg=45.0),
        laser(mount_x_m=-0.25, mount_y_m=-0.15, mount_yaw_deg=-135.0))


def run_box(seed: int, kind: str, policy: Policy, span_deg: int) -> float:
    """Drive 10 s; two lasers in opposite corners, each every other period; metres driven."""
    rng = np.random.default_rng(seed)
    world = PointWorld(rng, policy)
    taken: list[tuple[int, Scan]] = [(0, world.scan(0, one, span_deg)) for one in PAIR]
    done: list[tuple[float, float]] = []
    driven, asked, told = 0.0, STOP, Told(STOP, 0.0, DT)
    for tick in range(200):
        taken[tick % 2] = (tick, world.scan(0, PAIR[tick % 2], span_deg))
        asked = wild(rng, kind, tick, asked)
        seen = []
        for (at_tick, scan), sensor in zip(taken, PAIR, strict=True):
            recent = done[max(0, at_tick - 2):]
            seen.append(Seen(scan, sensor, Motion(
                distance_m=sum(v for v, _ in recent) * DT,
                left_rad=sum(max(w, 0.0) for _, w in recent) * DT,
                right_rad=sum(max(-w, 0.0) for _, w in recent) * DT)))
        out = limit(asked, told, tuple(seen), policy)
        change = [(new - old) / DT for new, old in (
            (out.velocity.linear_x_m_s, told.velocity.linear_x_m_s),
            (out.velocity.angular_z_rad_s, told.velocity.angular_z_rad_s))]
        told = Told(out.velocity, out.coasting_m_s, DT, *change)
        done.append((max(abs(out.velocity.linear_x_m_s), abs(out.coasting_m_s)),
                     out.velocity.angular_z_rad_s))
        driven += world.move(out.velocity, DT)
        assert world.clearance_m() > 0.0, f'touched after {tick * DT:.2f} s'
    return driven


SMOOTH = BOX.model_copy(update={'envelope': BOX.envelope.model_copy(update={
    'max_jerk_m_s3': 4.0, 'max_angular_jerk_rad_s3': 10.0,
    'slow_down': SlowDown(within_m=0.4, max_m_s=0.3)})})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from([BOX, SMOOTH]),
       st.sampled_from([300, 360]))
def test_no_policy_lets_a_box_touch_anything(
    seed: int, kind: str, policy: Policy, span_deg: int,
) -> None:
    run_box(seed, kind, policy, span_deg)


def test_a_box_that_never_moves_would_prove_nothing() -> None:
    assert sum(run_box(seed, 'swerve', BOX, 360) for seed in range(6)) > 4.0


# --- how long it takes ----------------------------------------------------------------------


def spent_us(work: Callable[[], object], rounds: int = 60) -> float:
    """Median CPU time of this thread for one call."""
    times = []
    for _ in range(rounds):
        began_ns = time.thread_time_ns()
        work()
        times.append(time.thread_time_ns() - began_ns)
    return float(np.median(times)) / 1e3


@pytest.mark.parametrize(('lasers', 'beams', 'policy', 'most'), [
    (1, 360, POLICY, 15), (1, 360, BOX, 45), (2, 1440, POLICY, 50), (2, 1440, BOX, 110),
])
def test_how_long_it_takes(
    lasers: int, beams: int, policy: Policy, most: float, capsys: pytest.CaptureFixture[str],
) -> None:
    """In canaries, ten cosines of 360 numbers: five times what it takes, as coverage doubles it.

    A drop-out in fifty, obstacles from 0.6 m on, a turn: two cones are looked at.
    """
    rng = np.random.default_rng(1)
    seen = []
    for sensor in PAIR[:lasers]:
        values = rng.uniform(0.6, 3.0, beams).astype(np.float32)
        values[rng.random(beams) < 0.02] = np.nan
        scan = Scan(0, 'laser', -math.pi, 2 * math.pi / beams, 0.05, 12.0, values)
        seen.append(Seen(scan, sensor, Motion(0.02, 0.02, 0.02)))
    told, numbers = Told(Velocity(0.3, 0.2), 0.0, DT), rng.uniform(-3, 3, 360)
    canary_us = spent_us(lambda: [np.cos(numbers) for _ in range(10)])
    took_us = spent_us(lambda: limit(Velocity(0.3, 0.2), told, tuple(seen), policy))
    with capsys.disabled():
        print(f'\nenvelope: {lasers} x {beams} beams, '
              f'{"disc" if policy is POLICY else "box"}: p50 {took_us:.0f} us, '
              f'{took_us / canary_us:.1f} canaries of {canary_us:.0f} us')
    assert took_us < most * canary_us
