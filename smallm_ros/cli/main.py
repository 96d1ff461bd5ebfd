"""The `smallm` command: finds the sub-command, and turns an operator's error into its lines.

Each command is a module with `add_parser` and `run`; what is heavy is imported in `run`, so that
`smallm --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from smallm_ros import __version__
from smallm_ros.cli import bench, check, demo, models, plan, prompt, replay, rerun
from smallm_ros.core.errors import OperatorError

BY_SIGNAL = 128
"""What a shell adds to the signal that ended a program."""


def parser() -> argparse.ArgumentParser:
    """Return the whole command line; what it parses has `run`."""
    parser = argparse.ArgumentParser(
        prog='smallm', description='A 24B language model on the robot, deciding on time.'
    )
    parser.add_argument('--version', action='version', version=f'smallm_ros {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for command in (demo, replay, rerun, prompt, bench, plan, models, check):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = parser().parse_args(argv)
    # What nohup has switched off stays off.
    ours = [number for number in _ENDS if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _end)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except OperatorError as err:
        print(f'smallm {args.command}: {err}', file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        print(f'\nsmallm {args.command}: interrupted', file=sys.stderr)
        return BY_SIGNAL + signal.SIGINT
    except BrokenPipeError:
        # `smallm … | head` has read enough; Python must not complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BY_SIGNAL + signal.SIGPIPE
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
    return code


_ENDS = (signal.SIGTERM, signal.SIGHUP)


def _end(number: int, _: object) -> None:
    """End as after an error, so that processes and temporary files go; once asked is enough."""
    for each in _ENDS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(BY_SIGNAL + number)


if __name__ == '__main__':
    sys.exit(main())
