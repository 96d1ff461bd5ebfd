"""The cost model: what was measured at start, and how it follows what is measured since."""

from __future__ import annotations

import pytest

from smallm_ros.core.budget import SPREAD, TRUSTED, WINDOW, CostModel, fits
from smallm_ros.core.clock import MS

POINTS = [(1, 10 * MS), (32, 41 * MS), (64, 105 * MS)]


def test_between_the_points_it_is_linear_and_goes_on_beyond_the_last() -> None:
    costs = CostModel(POINTS)
    assert [costs.idle_ns(n) // MS for n in (1, 16, 32, 48, 64, 96)] == [10, 25, 41, 73, 105, 169]


@pytest.mark.parametrize('points', [[], [(1, 5)], [(2, 5), (1, 6)], [(1, 5), (1, 6)]])
def test_it_needs_two_points_of_ascending_size(points: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match='at least two points'):
        CostModel(points)


def test_one_wait_in_a_full_window_is_no_bound_and_one_in_ten_is() -> None:
    costs = CostModel(POINTS)
    for _ in range(WINDOW - 1):
        costs.measured(32, 41 * MS)
    costs.measured(32, 241 * MS)
    assert costs.bound_ns(32) == pytest.approx(41 * MS * SPREAD)
    for _ in range(WINDOW // 10):
        costs.measured(32, 241 * MS)
    assert costs.median_ns(32) == 41 * MS
    assert costs.bound_ns(32) == pytest.approx(241 * MS * SPREAD)


def test_a_wait_does_not_grow_with_the_batch() -> None:
    costs = CostModel(POINTS)
    for _ in range(9):
        costs.measured(1, 10 * MS)
    costs.measured(1, 110 * MS)
    assert costs.bound_ns(64) == pytest.approx((105 + 100) * MS * SPREAD)


def test_a_plan_of_two_batches_waits_once() -> None:
    costs = CostModel(POINTS)
    for _ in range(9):
        costs.measured(1, 10 * MS)
    costs.measured(1, 110 * MS)
    assert costs.bound_ns(64, 1) == pytest.approx((105 + 10 + 100) * MS * SPREAD)


def test_a_machine_that_became_slower_is_followed_in_proportion() -> None:
    costs = CostModel(POINTS)
    for _ in range(WINDOW):
        costs.measured(32, 82 * MS)
    assert costs.median_ns(64) == 210 * MS
    assert costs.bound_ns(64) == pytest.approx(210 * MS * SPREAD)


def test_a_start_on_a_busy_machine_is_forgotten_after_a_few_batches() -> None:
    costs = CostModel(POINTS)
    for _ in range(TRUSTED - 1):
        costs.measured(32, 10 * MS)
    assert costs.bound_ns(32) == pytest.approx(41 * MS * SPREAD)
    costs.measured(32, 10 * MS)
    assert costs.bound_ns(32) == pytest.approx(10 * MS * SPREAD)


def test_refusals_wear_a_slow_stretch_off_within_a_few() -> None:
    costs = CostModel(POINTS)
    for _ in range(WINDOW):
        costs.measured(32, 410 * MS)
    refusals = 0
    while costs.bound_ns(32) > 50 * MS:
        costs.relax()
        refusals += 1
    assert 1 < refusals < 16


def test_what_ends_at_the_deadline_fits_and_one_later_does_not() -> None:
    assert fits(0, 10, 10)
    assert not fits(0, 9, 10)
