"""A model that only keeps count of its cells: for a hundred thousand decisions in a minute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from smallm_ros.engine.model import Batch, DecodeError
from tests.fakes.history_model import HistoryModel


class CountingModel(HistoryModel):
    """Cells are counted as in the history model; logits come from the last token alone."""

    def __init__(self, on_evaluate: Callable[[Batch], None]) -> None:
        super().__init__(on_evaluate=on_evaluate)
        self._table = np.random.default_rng(5).normal(
            size=(self.n_vocab, self.n_vocab)).astype(np.float32)
        self._held: dict[tuple[int, int], set[int]] = {}
        """(position, serial number) of each cell -> the sequences that share it."""
        self._serial = 0

    def evaluate(self, batch: Batch) -> npt.NDArray[np.float32]:
        if len(self._held) + len(batch.tokens) > self.n_ctx:
            raise DecodeError(1)
        self.on_evaluate(batch)
        for position, sequences in zip(batch.positions, batch.sequences, strict=True):
            self._serial += 1
            self._held[position, self._serial] = set(sequences)
        return self._table[[batch.tokens[index] for index in batch.outputs]]

    def copy_sequence(self, source: int, target: int, start: int, end: int) -> None:
        for (position, _), sequences in self._held.items():
            if source in sequences and start <= position < self._end(end):
                sequences.add(target)

    def remove(self, sequence: int, start: int, end: int) -> None:
        gone = []
        for key, sequences in self._held.items():
            if start <= key[0] < self._end(end):
                sequences.discard(sequence)
                if not sequences:
                    gone.append(key)
        for key in gone:
            del self._held[key]

    @property
    def cells(self) -> int:
        return len(self._held)
