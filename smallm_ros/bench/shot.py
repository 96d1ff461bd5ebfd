"""One answer of one arm: what it said and what it cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shot:
    """One answer of one arm: what it said and what it cost."""

    took_ns: int
    answer: str
    """Words of the action space."""
    batches: tuple[int, ...]
    """New tokens of each pass, in order."""
    decode_ns: int | None = None
    """Of `took_ns`, inside llama_decode; None where it runs in another process."""
    reused: int = 0
    """Tokens of the prompt that were found in KV."""
    plan: str = ''
    """How the passes were laid out."""

    @property
    def evaluated(self) -> int:
        """Tokens of all passes."""
        return sum(self.batches)
