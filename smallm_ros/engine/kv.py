"""What the KV cache holds: who owns which sequence, and what of it the next prompt can keep.

Sequence 0 is the working prompt and keeps the longest common prefix from one decision to the next.
Each declared static part is pinned in a sequence of its own, the spare one is where a history is
written anew in idle time, the twin is where a lone token is evaluated a second time, and the rest
are lanes for the branches of a tree. Twin and lanes are empty between decisions, so that the cache
cannot grow; a batch that was aborted leaves nothing behind, because whatever follows what is known
to be good is removed before the next batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from smallm_ros.engine.model import Model

WORKING = 0
MAX_SPACES = 8
SPARE = 1 + MAX_SPACES
TWIN = SPARE + 1
FIRST_LANE = TWIN + 1
LEAST_BATCH = 2
"""Tokens of the smallest batch of a decision. llama.cpp computes a single token in another way: on
a CPU its logits differ by 0.3 at the median from those of the same token in any larger batch."""


class Cache:
    """The sequences of one model."""

    def __init__(self, model: Model) -> None:
        """Take a model whose cache is empty."""
        self._model = model
        self.tokens: list[int] = []
        """Of the working sequence, one a position."""
        self._from: int | None = None
        """The pinned sequence that the working one began with."""
        self._lanes = 0
        self._twin = False
        self._clean = True
        """Whether the working sequence holds `tokens` and nothing more: each call to llama.cpp
        looks at every cell, and most of them would find nothing to remove."""

    @property
    def most_lanes(self) -> int:
        """How many branches there can be at a time."""
        return self._model.n_seq_max - FIRST_LANE

    def reusable(self, pinned: int, prefix: Sequence[int], tokens: Sequence[int]) -> int:
        """Return how many leading tokens are held; the last are always evaluated, for the logits.

        `tokens` begins with `prefix`, which is what `pinned` holds.
        """
        most = max(0, len(tokens) - LEAST_BATCH)
        if self._from != pinned:
            return min(len(prefix), most)
        common = 0
        for ours, theirs in zip(self.tokens, tokens, strict=False):
            if ours != theirs:
                break
            common += 1
        return min(common, most)

    def rewind(self, pinned: int, prefix: Sequence[int], keep: int) -> None:
        """Make the working sequence hold exactly the first `keep` tokens of its prompt."""
        if self._from != pinned:
            self.drop()
            self._model.copy_sequence(pinned, WORKING, 0, -1)
            self._from = pinned
            self.tokens = list(prefix)
        self._cut(keep)

    def begin(self) -> None:
        """Say that a batch goes to the working sequence: it may leave any part of itself."""
        self._clean = False

    def hold(self, tokens: Sequence[int], *, more: bool = False) -> None:
        """Say that the working sequence holds `tokens` now, and whether `more` after them."""
        self.tokens = list(tokens)
        self._clean = not more

    def lane(self, source: int, length: int) -> int | None:
        """Return a new sequence that shares the first `length` positions of `source`.

        None when all are taken.
        """
        if self._lanes == self.most_lanes:
            return None
        sequence = FIRST_LANE + self._lanes
        self._lanes += 1
        self._model.copy_sequence(source, sequence, 0, length)
        return sequence

    def twin(self, source: int, length: int) -> int:
        """Return the twin, which shares the first `length` positions of `source` now."""
        self._clear_twin()
        self._twin = True
        self._model.copy_sequence(source, TWIN, 0, length)
        return TWIN

    def _clear_twin(self) -> None:
        if self._twin:
            self._model.remove(TWIN, 0, -1)
            self._twin = False

    def clear(self, length: int) -> None:
        """Empty the lanes, and the working sequence from `length` on."""
        self._clear_twin()
        for lane in range(self._lanes):
            self._model.remove(FIRST_LANE + lane, 0, -1)
        self._lanes = 0
        self._cut(length)

    def _cut(self, length: int) -> None:
        if length < len(self.tokens) or not self._clean:
            self._model.remove(WORKING, length, -1)
        del self.tokens[length:]
        self._clean = True

    def adopt_spare(self, tokens: Sequence[int]) -> None:
        """Make what the spare sequence holds, `tokens`, the working one."""
        self.clear(0)
        self._model.copy_sequence(SPARE, WORKING, 0, -1)
        self._model.remove(SPARE, 0, -1)
        self.tokens = list(tokens)

    def free(self, pinned: int) -> None:
        """Forget a pinned sequence and what grew from it."""
        self._model.remove(pinned, 0, -1)
        if self._from == pinned:
            self.drop()

    def drop(self) -> None:
        """Forget the working sequence, the lanes and the spare."""
        self.clear(0)
        self._model.remove(SPARE, 0, -1)
        self._from = None
