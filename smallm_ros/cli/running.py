"""What `smallm demo` and `smallm replay` share: a run's length, folder, and a child's end."""

from __future__ import annotations

import argparse
from pathlib import Path

from smallm_ros.core.errors import OperatorError

ENGINE = 'smallm_engine: '
OF_WORKER = f'{ENGINE}worker '
"""The supervisor's own lines about its worker; the cause stands before them."""
MOST_S = 1e6


def seconds(text: str) -> float:
    """Return a length of time from the command line, in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < MOST_S:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of seconds above 0')
    return value


def make_folder(out: Path) -> None:
    """Make the folder of a run; refuse one that holds anything."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OperatorError(f'--out {out}: cannot be made: {err.strerror}') from err
    if any(out.iterdir()):
        raise OperatorError(f'--out {out}: is not empty; a run is never written over another')


def child_error(name: str, code: int, log: Path) -> OperatorError:
    """Return the cause in a child's log as the error whose exit code the child ended with."""
    lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
    causes = [line for line in lines if line.strip() and not line.startswith(OF_WORKER)]
    cause = causes[-1].strip().removeprefix(ENGINE) if causes else 'it said nothing'
    kinds = {kind.exit_code: kind for kind in OperatorError.__subclasses__()}
    return kinds.get(code, OperatorError)(f'{name} ended with {code}: {cause} (see {log})')
