"""What a prompt of a mobile base costs on Tekken, and that its order is the cheap one.

The same figures on a recorded drive: `python -m tests.prompt_tokens BAG`.
"""

from __future__ import annotations

import itertools

import pytest

from smallm_ros.core.policy import load_policy
from smallm_ros.core.prompt import segments
from smallm_ros.core.reference import draw
from tests.prompt_tokens import BASE, Tekken, cost

pytestmark = pytest.mark.model

TYPICAL = 60
"""Tokens of scan, odometry, goal and battery, that a tick costs at most when nothing is old."""
POLICY = load_policy(BASE)


def test_a_typical_observation_of_a_mobile_base_has_at_most_60_tokens(
    capsys: pytest.CaptureFixture[str]
) -> None:
    words = Tekken()
    sizes = sorted(
        sum(len(words.line(s.text)) for s in segments(POLICY, observation))
        for observation in draw(POLICY, seed=0, count=500)
    )
    with capsys.disabled():
        print(f'\nscan, odometry, goal, battery on Tekken, 500 drawn: p50 {sizes[250]}, '
              f'p99 {sizes[494]}, max {sizes[-1]} tokens')
    assert sizes[494] <= TYPICAL


def test_what_stands_still_first_is_what_is_kept() -> None:
    """A drive in which only the scan changes: behind the rest it costs its own tokens alone."""
    words = Tekken()
    still, *scans = draw(POLICY, seed=1, count=20)
    said = []
    for observation in scans:
        moved = segments(POLICY, observation)
        said.append(tuple(
            next(s for s in moved if s.name == 'scan') if each.name == 'scan' else each
            for each in segments(POLICY, still)))
    names = tuple(s.name for s in said[0])
    costs = {order: sum(cost(words, said, order).evaluated)
             for order in itertools.permutations(names)}
    assert names[-1] == 'scan'
    assert costs[names] == min(costs.values())
    assert max(costs.values()) > 1.3 * costs[names]
