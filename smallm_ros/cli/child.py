"""`python -m smallm_ros.cli.child PARENT MODULE ARGS…`: run a module that ends with its parent."""

from __future__ import annotations

import runpy
import signal
import sys

from smallm_ros import process


def main() -> None:
    """Ask for SIGTERM at the parent's death, then become the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    if not process.die_with(parent, signal.SIGTERM):
        sys.exit(0)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
    main()
