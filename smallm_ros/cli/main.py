"""The `smallm` command: finds the sub-command, and turns an operator's error into its lines.

Each command is a module with `add_parser` and `run`; what is heavy is imported in `run`, so that
`smallm --help` and `smallm check` answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from smallm_ros import __version__
from smallm_ros.cli import check, demo, models, replay
from smallm_ros.core.errors import OperatorError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog='smallm', description='A 24B language model on the robot, deciding on time.'
    )
    parser.add_argument('--version', action='version', version=f'smallm_ros {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for command in (demo, replay, models, check):
        command.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
    except OperatorError as err:
        print(f'smallm {args.command}: {err}', file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        print(f'\nsmallm {args.command}: interrupted', file=sys.stderr)
        return INTERRUPTED
    return code


if __name__ == '__main__':
    sys.exit(main())
