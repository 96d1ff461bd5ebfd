"""The nodes as executables: what is not installed is one line and an exit code, no traceback.

A node's module imports rclpy as it begins, so the line must come from outside it. Everything else
that can be wrong the node says itself.
"""

from __future__ import annotations

import sys
from importlib import import_module

from smallm_ros.core.errors import PackageMissingError


def policy_node() -> int:
    """Run `policy_node`; return its exit code."""
    return _run('smallm_ros.ros.policy_node', 'ros')


def watchdog_node() -> int:
    """Run `watchdog_node`; return its exit code."""
    return _run('smallm_ros.ros.watchdog_node', 'ros')


def sim_node() -> int:
    """Run `sim_node`; return its exit code."""
    return _run('smallm_ros.sim.sim_node', 'ros,sim')


def _run(module: str, extras: str) -> int:
    try:
        node = import_module(module)
    except ModuleNotFoundError as err:
        if err.name is None or err.name.startswith('smallm_ros'):
            raise
        print(f'{module.rpartition(".")[2]} needs {err.name}: source the setup.bash of ROS 2, or '
              f'pip install "smallm_ros[{extras}]"', file=sys.stderr)
        return PackageMissingError.exit_code
    code: int = node.main()
    return code
