"""A look at a GGUF's head before llama.cpp gets the file.

llama.cpp answers most broken files with an error, but it asserts that no two tokens are spelled
alike, and an assert ends the process. So the metadata is walked here as far as the vocabulary.
Reads are bounded: no length that the file states is believed before the file's size is asked.
Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from smallm_ros.core.errors import ModelFileError

_HEADER = struct.Struct('<IQQ')
_U32 = struct.Struct('<I')
_U64 = struct.Struct('<Q')
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MAX_COUNT = 65_536
"""Of tensors and of metadata pairs; the largest models known have some thousands."""
_MAX_TOKENS = 4_000_000
_LARGE_BYTES = 65_536
"""A longer value is skipped over, not read: no key and no token is that long."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the head says of the memory that the model will need."""

    vocabulary: int
    kv_bytes_per_token: int | None
    """Of a cache in f16; None where the head does not say it in the usual words."""


def check_head(path: Path) -> Head:
    """Return what the head says when `path` is a readable regular file, and its head a sound one.

    Raises ModelFileError, one line that names the file and what was found.
    """
    with open_regular(path) as file:
        try:
            return _Head(file, os.fstat(file.fileno()).st_size).check()
        except _Unsound as err:
            raise ModelFileError(f'{path}: {err}') from err


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without ever waiting for a FIFO's or a device's other end.

    Raises ModelFileError when it cannot be opened or is something else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        raise ModelFileError(f'{path}: cannot be opened: {err.strerror}') from err
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelFileError(f'{path}: is not a regular file')
    return os.fdopen(descriptor, 'rb')


class _Unsound(Exception):
    """What is wrong with the head."""


class _Head:
    """A reader that asks the file's size before it believes a length."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size
        self._values: dict[bytes, bytes] = {}
        """Scalars and strings by key, as they stand in the file."""

    def check(self) -> Head:
        """Walk the metadata up to the vocabulary and check that no two tokens are alike."""
        if self._left == 0:
            raise _Unsound('is empty')
        magic = self._take(min(4, self._left))
        if magic != b'GGUF':
            raise _Unsound(f'is not a GGUF: it begins with {magic!r}')
        version, tensors, pairs = _HEADER.unpack(self._take(_HEADER.size))
        if version not in (2, 3):
            raise _Unsound(f'GGUF version {version}, supported are 2 and 3')
        if not 1 <= tensors <= _MAX_COUNT or not 1 <= pairs <= _MAX_COUNT:
            raise _Unsound(f'is corrupt: it states {tensors} tensors, {pairs} metadata pairs')
        for _ in range(pairs):
            key = self._string()
            kind = self._number(_U32)
            if key == b'tokenizer.ggml.tokens':
                return Head(self._check_tokens(kind), self._kv_bytes_per_token())
            self._values[key] = self._value(kind)
        raise _Unsound('has no vocabulary: tokenizer.ggml.tokens is missing')

    def _kv_bytes_per_token(self) -> int | None:
        family = self._values.get(b'general.architecture', b'')

        def number(key: bytes, default: int = 0) -> int:
            return int.from_bytes(self._values.get(family + b'.' + key, b''), 'little') or default

        heads = number(b'attention.head_count')
        head = number(b'embedding_length') // max(1, heads)
        values = number(b'attention.key_length', head) + number(b'attention.value_length', head)
        kv_heads = number(b'attention.head_count_kv', heads)
        return number(b'block_count') * kv_heads * values * 2 or None

    def _check_tokens(self, kind: int) -> int:
        element = self._number(_U32) if kind == _ARRAY else kind
        count = self._number(_U64) if kind == _ARRAY else 0
        if element != _STRING or not 1 <= count <= _MAX_TOKENS:
            raise _Unsound('is corrupt: tokenizer.ggml.tokens is not a list of strings')
        seen: set[bytes] = set()
        for index in range(count):
            token = self._string()
            if token in seen:
                raise _Unsound(f'is corrupt: token {index}, {token!r:.80}, is in it twice')
            seen.add(token)
        return count

    def _value(self, kind: int) -> bytes:
        """Return a scalar or a string; of an array, which is passed over, nothing."""
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, count = self._number(_U32), self._number(_U64)
            if element == _STRING:
                for _ in range(min(count, self._left)):
                    self._string()
            else:
                self._take(self._scalar_bytes(element) * count)
            return b''
        return self._take(self._scalar_bytes(kind))

    def _scalar_bytes(self, kind: int) -> int:
        if kind not in _SCALAR_BYTES:
            raise _Unsound(f'is corrupt: metadata of type {kind}')
        return _SCALAR_BYTES[kind]

    def _string(self) -> bytes:
        return self._take(self._number(_U64))

    def _number(self, form: struct.Struct) -> int:
        value: int = form.unpack(self._take(form.size))[0]
        return value

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise _Unsound('is truncated or corrupt: its metadata run past the end of the file')
        self._left -= count
        if count > _LARGE_BYTES:
            self._file.seek(count, os.SEEK_CUR)
            return b''
        taken = self._file.read(count)
        if len(taken) < count:
            raise _Unsound('became shorter while it was read')
        return taken
