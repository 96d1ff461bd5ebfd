"""What a pilot decided, from an MCAP file, as far as it can be read.

A recording of a process that was killed has no end; all that was written before is still good.
One of another version is not guessed at.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from mcap.exceptions import InvalidMagic, McapError
from mcap.records import Channel, Footer, Message, Metadata
from mcap.stream_reader import MAGIC_SIZE, StreamReader

from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import BagError
from smallm_ros.core.exchange import Declaration, ModelLimits
from smallm_ros.core.pilot import Say
from smallm_ros.record.writer import ADAPTERS, METADATA, TOPICS, VERSION

MAX_RECORD_BYTES = 16 * 1024 * 1024

_T = TypeVar('_T')


def read_records(path: Path, say: Callable[[str], None]) -> Iterator[DecisionRecord]:
    """Yield the records of `path` in the order in which they were written.

    Where the file ends before its time or makes no sense any more, the iteration ends and `say` is
    called with one line. Raises BagError when the file is not a recording at all, or one of
    another version.
    """
    return _read(path, DecisionRecord, say)


def read_declarations(path: Path) -> dict[str, Declaration]:
    """Return the declarations that were asked, by name; BagError as `read_records`."""
    return {item.space: item for item in _read(path, Declaration, _silent)}


def read_models(path: Path) -> list[ModelLimits]:
    """Return the models that decided, one for each time that one was ready; see `read_records`."""
    return list(_read(path, ModelLimits, _silent))


def read_texts(path: Path) -> list[Say]:
    """Return the texts that were said; see `read_records`."""
    return list(_read(path, Say, _silent))


def _read(path: Path, kind: type[_T], say: Callable[[str], None]) -> Iterator[_T]:
    n = 0
    try:
        with path.open('rb') as file:
            channels: set[int] = set()
            for item in StreamReader(file, record_size_limit=MAX_RECORD_BYTES).records:
                if isinstance(item, Metadata) and item.name == METADATA:
                    _check_version(path, item.metadata.get('record_version', 'none'))
                elif isinstance(item, Channel) and item.topic == TOPICS[kind]:
                    channels.add(item.id)
                elif isinstance(item, Message) and item.channel_id in channels:
                    yield ADAPTERS[kind].validate_json(item.data)
                    n += 1
                elif isinstance(item, Footer):
                    return
    except OSError as err:
        raise BagError(f'{path}: cannot be read: {err.strerror}') from err
    except InvalidMagic as err:
        raise BagError(f'{path}: not an MCAP file') from err
    except (McapError, struct.error, ValueError) as err:
        if path.stat().st_size < MAGIC_SIZE:
            raise BagError(f'{path}: not an MCAP file, only {path.stat().st_size} bytes') from err
        say(f'{path}: truncated or damaged after {n} records ({_reason(err)})')


def _check_version(path: Path, version: str) -> None:
    if version != str(VERSION):
        raise BagError(f'{path}: a recording of version {version}, this smallm reads version '
                       f'{VERSION}: use the release that recorded it')


def _silent(_: str) -> None:
    """Say nothing: whoever reads the records is told where the file ends."""


def _reason(err: Exception) -> str:
    text = str(err).splitlines()
    return text[0] if text else 'the file ends'
