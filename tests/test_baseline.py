"""The baselines: what each asks for, and that the ladder takes the first whose sensors are fit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallm_ros.core.action import STOP, Velocity
from smallm_ros.core.baseline import choose, decelerate, freest
from smallm_ros.core.envelope import Surroundings
from smallm_ros.core.observation import Scan
from smallm_ros.core.policy import FallbackKind, Policy, load_policy

POLICY = load_policy(Path(__file__).parent / 'fakes' / 'round_robot.yaml')
DT = 0.05


def ladder(*kinds: FallbackKind) -> Policy:
    fallback = POLICY.fallback.model_copy(update={'ladder': (*kinds, 'stop')})
    return POLICY.model_copy(update={'fallback': fallback})


def scan_of(near: range, distance_m: float, other: float = 9.0) -> Scan:
    values = np.full(360, other, dtype=np.float32)
    values[[degree % 360 for degree in near]] = distance_m
    return Scan(0, 'laser', 0.0, 2 * math.pi / 360, 0.05, 12.0, values)


OPEN = scan_of(range(0), 1.0)
WALL_AHEAD = scan_of(range(-80, 81), 0.5)
ENCLOSED = scan_of(range(360), 0.25)


def test_the_first_whose_sensors_are_fit() -> None:
    policy = ladder('creep')
    assert choose(policy, OPEN, STOP, DT) == ('creep', Velocity(0.05, 0.0))
    assert choose(policy, None, STOP, DT) == ('stop', STOP)
    assert choose(ladder('follow_gap', 'turn_to_free', 'decelerate'), None, STOP, DT)[0] == (
        'decelerate')
    assert choose(ladder(), OPEN, Velocity(0.3, 0.0), DT) == ('stop', STOP)


@given(st.floats(-1, 1), st.floats(-1.5, 1.5))
def test_decelerate_keeps_the_curve_and_ends_in_a_stop(v: float, w: float) -> None:
    now, steps = Velocity(v, w), 0
    while now != STOP and steps < 100:
        slower = decelerate(now, 1.0, DT)
        assert abs(slower.linear_x_m_s) < abs(now.linear_x_m_s) or slower == STOP
        cross = slower.linear_x_m_s * now.angular_z_rad_s
        assert cross == pytest.approx(slower.angular_z_rad_s * now.linear_x_m_s, abs=1e-9)
        now, steps = slower, steps + 1
    assert now == STOP
    assert steps <= abs(v) / (0.5 * DT) + 2


@pytest.mark.parametrize('kind', ['turn_to_free', 'follow_gap'])
def test_before_a_wall_it_turns_on_the_spot(kind: FallbackKind) -> None:
    _, asked = choose(ladder(kind), WALL_AHEAD, STOP, DT)
    assert asked.linear_x_m_s == 0.0
    assert abs(asked.angular_z_rad_s) == 0.5


def test_in_the_open_the_gap_is_driven_and_free_space_is_looked_at() -> None:
    assert choose(ladder('follow_gap'), OPEN, STOP, DT)[1] == Velocity(0.05, 0.0)
    assert choose(ladder('turn_to_free'), OPEN, STOP, DT)[1] == STOP


def test_a_gap_a_little_aside_is_steered_to() -> None:
    aside = scan_of(range(-170, 5), 0.6)
    _, asked = choose(ladder('follow_gap'), aside, STOP, DT)
    assert asked.angular_z_rad_s > 0.0


@pytest.mark.parametrize('kind', ['turn_to_free', 'follow_gap'])
@pytest.mark.parametrize('scan', [ENCLOSED, scan_of(range(360), math.nan)])
def test_with_no_way_out_it_stands(kind: FallbackKind, scan: Scan) -> None:
    assert choose(ladder(kind), scan, STOP, DT)[1] == STOP


def test_the_freest_way_is_the_gap() -> None:
    gap = scan_of(range(130, 410), 0.5)  # free from 50 to 130 degrees
    heading, free = freest(POLICY, Surroundings.of(gap, POLICY))
    assert math.degrees(heading) == pytest.approx(90, abs=15)
    assert free > 1.0
