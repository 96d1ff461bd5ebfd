"""What people stake a robot on is tested to its last line and branch: the watchdog's brain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ('test_gate', 'test_envelope', 'test_baseline')
WHOLE = (
    'gate', 'guards', 'answers', 'cause', 'dwell', 'stamps', 'invariants', 'retune', 'driven',
    'shape', 'envelope', 'baseline',
)


@pytest.mark.slow
def test_every_line_and_branch_of_gate_and_envelope_is_tested(tmp_path: Path) -> None:
    coverage = (sys.executable, '-m', 'coverage')
    data = tmp_path / 'coverage'
    for words in (
        ('run', '--branch', '-m', 'pytest', '-q', '-p', 'no:cacheprovider',
         *(f'tests/{name}.py' for name in TESTS)),
        ('report', '--show-missing', '--fail-under=100', '--precision=2',
         '--include=' + ','.join(f'smallm_ros/core/{name}.py' for name in WHOLE)),
    ):
        ended = subprocess.run(
            (*coverage, *words), cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, 'COVERAGE_FILE': str(data)},
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert all(f'core/{name}.py' in ended.stdout for name in WHOLE)
    print(ended.stdout)
