"""`smallm models`: which models there are, whether their files are right, and how to get them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from smallm_ros.core.errors import OperatorError
from smallm_ros.engine import registry

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(subparsers: Subparsers) -> None:
    """Add `models` and its three actions."""
    what = 'list, verify and pull the registered models'
    parser = subparsers.add_parser('models', help=what, description=_sentence(what))
    actions = parser.add_subparsers(dest='action', required=True, metavar='list|verify|pull')
    _add_action(actions, 'list', 'show the registered models and which of them are here')
    verify = _add_action(actions, 'verify', 'read the file again and compare its sha256')
    verify.add_argument('name', nargs='?', metavar='NAME',
                        help='one model; without it, every one that is here')
    pull = _add_action(actions, 'pull', 'fetch a model, going on where an earlier try stopped')
    pull.add_argument('name', metavar='NAME', help='a name that `smallm models list` shows')
    parser.set_defaults(run=run)


def _add_action(actions: Subparsers, name: str, what: str) -> argparse.ArgumentParser:
    return actions.add_parser(name, help=what, description=_sentence(what))


def _sentence(what: str) -> str:
    return f'{what[0].upper()}{what[1:]}.'


def run(args: argparse.Namespace, download: registry.Download = registry.hugging_face) -> int:
    """Do one action and return the exit code; OperatorError is left to the caller."""
    if args.action == 'list':
        return _list()
    if args.action == 'verify':
        return _verify(args.name)
    return _pull(args.name, download)


def _list() -> int:
    for entry in registry.entries().values():
        state = 'here' if _is_here(entry) else 'not here'
        print(f'{entry.name}  [{state}]')
        print(f'    {entry.description}')
        print(
            f'    {entry.bytes / 1e9:.2f} GB, {entry.licence}, template {entry.template}, '
            f'context {entry.context}, KV {entry.kv_bytes_per_token / 1024:.1f} KiB a token'
        )
    return 0


def _verify(name: str | None) -> int:
    chosen = list(registry.entries().values()) if name is None else [registry.entry_named(name)]
    worst = 0
    for entry in chosen:
        if name is None and not _is_here(entry):
            print(f'{entry.name}: not here')
            continue
        try:
            path, sha256 = registry.verify_again(entry, _Meter())
        except OperatorError as err:
            print(f'{entry.name}: {err}', file=sys.stderr)
            worst = max(worst, err.exit_code)
        else:
            print(f'{entry.name}: good, sha256 {sha256}, {path}')
    return worst


def _pull(name: str, download: registry.Download) -> int:
    entry = registry.entry_named(name)
    print(f'{entry.name}: {entry.bytes / 1e9:.2f} GB, {entry.licence}')
    print(registry.pull(entry, download, _Meter()))
    return 0


def _is_here(entry: registry.ModelEntry) -> bool:
    try:
        registry.locate(entry)
    except OperatorError:
        return False
    return True


class _Meter:
    """Shows how far a long reading is, on stderr: each percent on a terminal, else each tenth."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown: tuple[str, int] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        step = 1 if self._terminal else 10
        share = 100 * done // max(1, total) // step * step
        if (what, share) == self._shown:
            return
        self._shown = (what, share)
        end = '\n' if share >= 100 or not self._terminal else ''
        print(f'{chr(13) if self._terminal else ""}{what}: {share} %', end=end, file=sys.stderr)
        sys.stderr.flush()
