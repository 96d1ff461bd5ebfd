"""Decision records from an MCAP file, as far as it can be read.

A recording of a process that was killed has no end; all that was written before is still good.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from mcap.exceptions import InvalidMagic, McapError
from mcap.records import Channel, Footer, Message
from mcap.stream_reader import MAGIC_SIZE, StreamReader

from smallm_ros.core.decision_record import DecisionRecord
from smallm_ros.core.errors import BagError
from smallm_ros.record.writer import TOPIC

MAX_RECORD_BYTES = 16 * 1024 * 1024


def read_records(path: Path, say: Callable[[str], None]) -> Iterator[DecisionRecord]:
    """Yield the records of `path` in the order in which they were written.

    Where the file ends before its time or makes no sense any more, the iteration ends and `say` is
    called with one line. Raises BagError when the file is not a recording at all.
    """
    n = 0
    try:
        with path.open('rb') as file:
            channels: set[int] = set()
            for item in StreamReader(file, record_size_limit=MAX_RECORD_BYTES).records:
                if isinstance(item, Channel) and item.topic == TOPIC:
                    channels.add(item.id)
                elif isinstance(item, Message) and item.channel_id in channels:
                    yield DecisionRecord.model_validate_json(item.data)
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


def _reason(err: Exception) -> str:
    text = str(err).splitlines()
    return text[0] if text else 'the file ends'
