"""The last turns of a conversation, as tokens: append-only, so that its KV is kept.

A turn is an observation and the answer to it. Turns are only ever added at the end; when there are
half as many again as the policy asks for, the newest are written anew behind the static part on
another sequence, in idle time and a piece at a time, and then take the place of the old ones at
once. A decision never pays for it. Should no idle time come, or KV lose the turns, they are
forgotten: a short prompt is no spike either.
"""

from __future__ import annotations

from collections.abc import Sequence


class History:
    """The turns of one declared space."""

    def __init__(self, turns: int) -> None:
        """Keep at least the last `turns` of them; 0 keeps none."""
        self._wanted = turns
        self._turns: list[tuple[int, ...]] = []
        self._unheld = 0
        self._first: int | None = None
        """Index of the first turn of the stretch that is being written anew."""
        self._written = 0
        self.rollovers = 0
        """Times that a rewritten stretch took the place of the old one."""
        self.forgotten = 0
        """Times that all turns were forgotten."""

    @staticmethod
    def most(turns: int) -> int:
        """Return how many turns KV can hold at a time, the rewritten ones included."""
        return 4 * turns

    @property
    def turns(self) -> int:
        """Number of turns in the prompt."""
        return len(self._turns)

    @property
    def tokens(self) -> list[int]:
        """All turns, in order."""
        return [token for turn in self._turns for token in turn]

    @property
    def held(self) -> int:
        """How many leading tokens KV holds, if it holds what it was left with."""
        return sum(map(len, self._turns)) - self._unheld

    def add(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Append a turn: what KV holds of it already, and what it does not.

        A turn too many makes all be forgotten, that one too: what KV does not hold is no history.
        """
        if len(self._turns) == 2 * self._wanted:
            self.forget()
        else:
            self._turns.append((*prompt, *answer))
            self._unheld = len(answer)

    def forget(self) -> None:
        """Drop all turns."""
        if self._turns:
            self.forgotten += 1
        self._turns.clear()
        self._unheld = 0
        self._first = None
        self._written = 0

    @property
    def due(self) -> bool:
        """Whether the newest turns should be written anew."""
        return self._first is not None or 2 * len(self._turns) > 3 * self._wanted > 0

    @property
    def begins(self) -> bool:
        """Whether the next piece is the first of a stretch."""
        return self._first is None

    def piece(self, most: int) -> tuple[int, list[int]]:
        """Return the next at most `most` tokens to be written and how many stand before them."""
        if self._first is None:
            self._first = len(self._turns) - self._wanted
        stretch = self._stretch()
        # No token is left over for a batch of its own: see LEAST_BATCH.
        end = self._written + most + (len(stretch) - self._written == most + 1)
        return self._written, stretch[self._written:end]

    def wrote(self, count: int) -> bool:
        """Say that a piece of `count` tokens is written; return whether that was the last."""
        self._written += count
        return self._written == len(self._stretch())

    def roll_over(self) -> None:
        """Let the rewritten stretch take the place of the old one."""
        del self._turns[:self._first]
        self._unheld = 0
        self._first = None
        self._written = 0
        self.rollovers += 1

    def _stretch(self) -> list[int]:
        return [token for turn in self._turns[self._first or 0:] for token in turn]
