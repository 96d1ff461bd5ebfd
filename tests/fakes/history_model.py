"""A model whose logits are a hash of the tokens that a sequence holds: wrong KV, other logits.

It keeps real cells (token, position, sequences), so a decider that forgets to copy, to remove, or
to place a token is found by its answers. It passes the suite of tests/test_model_contract.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from smallm_ros.core.errors import ModelFileError
from smallm_ros.engine.model import Batch, DecodeError

_CONTROLS = ('<s>', '</s>', '[INST]', '[/INST]', '[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]')


@dataclass
class _Cell:
    token: int
    position: int
    sequences: set[int] = field(default_factory=set)


class HistoryModel:
    """Bytes are tokens 0 to 255, control tokens follow; nothing is random."""

    name = 'history'
    sha256 = 'f' * 64
    n_vocab = 256 + len(_CONTROLS)
    n_batch = 512
    threads = 1
    gpu_layers = 0
    abortable = True

    def __init__(self, n_ctx: int = 4096, n_seq_max: int = 64,
                 on_evaluate: Callable[[Batch], None] = lambda batch: None) -> None:
        self.n_ctx = n_ctx
        self.n_seq_max = n_seq_max
        self.on_evaluate = on_evaluate
        self.poison = False
        self.fail_with: int | None = None
        self.aborted = False
        self._cells: list[_Cell] = []

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode('utf-8', 'replace'))

    def control_token(self, text: str) -> int:
        if text not in _CONTROLS:
            raise ModelFileError(f'model history: its vocabulary has no control token {text!r}')
        return 256 + _CONTROLS.index(text)

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else _CONTROLS[token - 256].encode()

    def evaluate(self, batch: Batch) -> npt.NDArray[np.float32]:
        assert 0 < len(batch.tokens) <= self.n_batch
        if self.aborted:
            self.aborted = False
            raise DecodeError(2)
        self.on_evaluate(batch)
        if self.aborted:
            self.aborted = False
            # As llama.cpp may leave it: a part of the batch is in the cache.
            for token, position, sequences in zip(
                batch.tokens, batch.positions, batch.sequences, strict=True
            ):
                if token % 2:
                    self._cells.append(_Cell(token, position, set(sequences)))
            raise DecodeError(2)
        if self.fail_with is not None:
            code, self.fail_with = self.fail_with, None
            raise DecodeError(code)
        if len(self._cells) + len(batch.tokens) > self.n_ctx:
            raise DecodeError(1)
        for token, position, sequences in zip(
            batch.tokens, batch.positions, batch.sequences, strict=True
        ):
            for sequence in sequences:
                assert 0 <= sequence < self.n_seq_max
                assert position == len(self.held(sequence)), 'positions have a hole'
            self._cells.append(_Cell(token, position, set(sequences)))
        rows = []
        for index in batch.outputs:
            history = self.held(batch.sequences[index][0])[: batch.positions[index] + 1]
            rows.append(self._logits(tuple(history)))
        return np.array(rows, np.float32).reshape(len(rows), self.n_vocab)

    def copy_sequence(self, source: int, target: int, start: int, end: int) -> None:
        for cell in self._cells:
            if source in cell.sequences and start <= cell.position < self._end(end):
                cell.sequences.add(target)

    def remove(self, sequence: int, start: int, end: int) -> None:
        for cell in self._cells:
            if start <= cell.position < self._end(end):
                if sequence == -1:
                    cell.sequences.clear()
                cell.sequences.discard(sequence)
        self._cells = [cell for cell in self._cells if cell.sequences]

    def abort(self) -> None:
        self.aborted = True

    def clear_abort(self) -> None:
        self.aborted = False

    def llguidance_tokenizer(self) -> object:
        raise NotImplementedError('bytes have no grammar here')

    def close(self) -> None:
        self._cells.clear()

    def held(self, sequence: int) -> list[int]:
        """Return the tokens of a sequence, by position."""
        mine = [c for c in self._cells if sequence in c.sequences]
        return [c.token for c in sorted(mine, key=lambda c: c.position)]

    @property
    def cells(self) -> int:
        """Number of cells in use."""
        return len(self._cells)

    def _logits(self, history: tuple[int, ...]) -> npt.NDArray[np.float32]:
        if self.poison:
            return np.full(self.n_vocab, np.nan, np.float32)
        seed = int.from_bytes(hashlib.sha256(repr(history).encode()).digest()[:8], 'big')
        return np.random.default_rng(seed).normal(size=self.n_vocab).astype(np.float32)

    def _end(self, end: int) -> int:
        return self.n_ctx if end == -1 else end
