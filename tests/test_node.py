"""The nodes' executables where something is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(('node', 'missing', 'extras'), [
    ('policy_node', 'rclpy', 'ros'),
    ('watchdog_node', 'rclpy', 'ros'),
    ('sim_node', 'rclpy', 'ros,sim'),
])
def test_what_is_not_installed_is_one_line(node: str, missing: str, extras: str) -> None:
    run = subprocess.run(
        [sys.executable, '-c', f'import sys; sys.modules[{missing!r}] = None\n'
                               f'from smallm_ros.cli import node; sys.exit(node.{node}())'],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )
    assert run.returncode == 8
    assert run.stderr.count('\n') == 1
    assert run.stderr.startswith(f'{node} needs {missing}: ')
    assert f'pip install "smallm_ros[{extras}]"' in run.stderr


def test_a_module_of_ours_that_is_missing_is_a_bug_and_raises() -> None:
    run = subprocess.run(
        [sys.executable, '-c', 'import sys; sys.modules["smallm_ros.ros.watchdog_node"] = None\n'
                               'from smallm_ros.cli import node; node.watchdog_node()'],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )
    assert run.returncode == 1
    assert 'ModuleNotFoundError' in run.stderr
