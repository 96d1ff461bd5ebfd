"""The envelope: limits at their edges, and a small world in which nothing may ever be touched."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.envelope import (
    STANDING,
    Limited,
    Motion,
    Surroundings,
    approach,
    latency_s,
    limit,
    reach_m,
    stopping_speed_m_s,
)
from smallm_ros.core.observation import Scan
from smallm_ros.core.policy import Policy, ScanSensor, load_policy
from tests.fakes.point_world import KINDS, PointWorld, wild

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


def drive(asked: Velocity, previous: Velocity = STOP, scan: Scan | None = OPEN,
          since: Motion = STANDING, policy: Policy = POLICY) -> Limited:
    return limit(asked, previous, DT, scan, since, policy)


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
    assert Surroundings.of(scan, POLICY).unknown_rad.size == 0
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
    assert sorted(Surroundings.of(half, POLICY).unknown_rad) == pytest.approx(
        [-math.pi / 2, math.pi / 2])
    assert Surroundings.of(scan_of({}, other=math.nan), POLICY).unknown_rad.size == BEAMS
    alone = scan_of({0: 1.0}, other=math.nan)
    assert Surroundings.of(alone, POLICY).unknown_rad.size == BEAMS - 1


@pytest.mark.parametrize(('left', 'right', 'filled'), [
    (0.9, 2.0, 0.9), (2.0, 0.9, 0.9), (math.inf, 0.9, 0.9), (0.9, 13.0, 0.9),
    (-math.inf, 0.9, 0.05), (math.inf, math.inf, None), (math.inf, 13.0, None),
])
def test_a_drop_out_is_as_near_as_its_nearer_side(
    left: float, right: float, filled: float | None,
) -> None:
    around = Surroundings.of(scan_of({1: left, 0: math.nan, -1: right}), POLICY)
    ahead = around.ranges_m[np.abs(around.bearings_rad) < 1e-6]
    assert list(ahead) == ([] if filled is None else [pytest.approx(filled)])
    assert around.unknown_rad.size == 0


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
    raw = Surroundings.of(scan, with_envelope(unknown_gap_deg=0.0))
    filled = Surroundings.of(scan, with_envelope(unknown_gap_deg=gap_deg))
    seen = dict(zip(filled.bearings_rad.round(6), filled.ranges_m, strict=True))
    still = set(filled.unknown_rad.round(6))
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
    sensors = POLICY.sensors | {'scan': SENSOR.model_copy(update={'mount_yaw_deg': 90.0})}
    turned = POLICY.model_copy(update={'sensors': sensors})
    around = Surroundings.of(scan_of({-90: 1.0}), turned)
    assert around.bearings_rad == pytest.approx([0.0], abs=1e-6)


def test_coasting_holds_reverse_back() -> None:
    out = drive(Velocity(-0.5, 0.0), STOP, OPEN, Motion(coasting_m_s=0.4))
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
        out = limit(asked, velocity, DT, scan, Motion(
            distance_m=sum(v for v, _ in recent) * DT,
            left_rad=sum(max(w, 0.0) for _, w in recent) * DT,
            right_rad=sum(max(-w, 0.0) for _, w in recent) * DT,
            coasting_m_s=coasting,
        ), POLICY)
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
