"""The benchmark of summaries measures what it says, and vectors beat loops."""

from __future__ import annotations

import math

import pytest

from smallm_ros.core.summary.scan import nearest
from smallm_ros.ros.convert import fields_of
from tests import bench_summaries as bench
from tests.fakes.summaries import sensor


def test_a_tick_says_all_four_sensors() -> None:
    lines = bench.tick(bench.policy(), bench.messages()).splitlines()
    assert {line.split(':')[0] for line in lines} == {'scan', 'odom', 'imu', 'battery'}
    assert 'imu: level' in lines
    assert 'battery: 73%' in lines


def test_the_plain_loops_find_the_same() -> None:
    policy, heard = bench.policy(), bench.messages()
    fields = fields_of(policy.sensors['scan'], heard['scan'])
    ours = nearest(policy.sensors['scan'], fields)  # type: ignore[arg-type]
    assert ours == pytest.approx(bench.plain_scan(policy, heard['scan']), abs=1e-5)
    declared, points = sensor('sensor_msgs/msg/PointCloud2'), bench.cloud(4096)
    found = fields_of(declared, points).nearest_m
    assert found == pytest.approx(bench.plain_cloud(declared, points), abs=1e-4)
    assert all(map(math.isfinite, found))


def test_a_cloud_costs_a_small_part_of_a_plain_loop() -> None:
    declared, points = sensor('sensor_msgs/msg/PointCloud2'), bench.cloud()
    ours, _, _ = bench.times_ms(lambda: bench.summarised(declared, points), 20)
    plain, _, _ = bench.times_ms(lambda: bench.plain_cloud(declared, points), 3)
    assert plain > 5 * ours
