"""Numbers and foreign text -> few words: what the families of states and things have in common.

A number has as many digits as its sensor declares and never more than ten characters. Text that
came over a topic is data: quoted, on one line, of bounded length, and it cannot end its quotation.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from smallm_ros.core.sensor import Finite, Part, Word

FIXED_BELOW = 1e6
"""Numbers from here on are written with an exponent and one digit: 2e+06."""
_QUOTES = frozenset('"\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\u00ab\u00bb`')
"""What could be read as the end of a quotation."""

Digits = Annotated[int, Field(ge=0, le=6)]
"""Decimals of a number; each is a token."""
Unit = Annotated[str, Field(max_length=12, pattern=r'^[A-Za-z0-9%/^. \u00b0\u00b2-]*$')]
"""What stands after a number; nothing is as good where the mission says it."""


class Level(Part):
    """A word for all numbers below a limit: one token instead of several."""

    word: Word
    below: Finite


def _ascend(bins: tuple[Level, ...]) -> tuple[Level, ...]:
    limits = [level.below for level in bins]
    if any(a >= b for a, b in itertools.pairwise(limits)):
        raise ValueError(f'bins: below must ascend, not {limits}')
    return bins


Levels = Annotated[tuple[Level, ...], Field(max_length=8), AfterValidator(_ascend)]
"""Words instead of a number, lowest first; from the last limit on it is `top_word`."""


def number(value: float, digits: int) -> str:
    """Return `0.3`, `-12`, `2e+06`; `unknown` for what is not finite."""
    if not math.isfinite(value):
        return 'unknown'
    if abs(value) >= FIXED_BELOW:
        return f'{value:.0e}'
    text = f'{value:.{digits}f}'
    return text if float(text) else text.removeprefix('-')


def worded(value: float, bins: tuple[Level, ...], top_word: str, digits: int, unit: str) -> str:
    """Return the word of the bin that a number falls in; without bins itself and its unit."""
    if not math.isfinite(value):
        return 'unknown'
    for level in bins:
        if value < level.below:
            return level.word
    return top_word if bins else f'{number(value, digits)} {unit}'.rstrip()


def quoted(text: str, most: int) -> str:
    """Return foreign text as a quotation of at most `most` characters, on one line.

    Normalised before quotation marks are looked for: a full-width one becomes a plain one.
    """
    normal = unicodedata.normalize('NFKC', text[:most])
    kept = ''.join(
        ' ' if c.isspace() else "'" if c in _QUOTES else c
        for c in normal if c.isspace() or unicodedata.category(c)[0] != 'C'
    )
    return f'"{" ".join(kept.split())[:most].rstrip()}"'


def spread(
    random: np.random.Generator, bins: tuple[Level, ...], low: float, high: float
) -> float:
    """Return a number from `low` to `high`, as often in one bin as in another."""
    limits = [low, *(level.below for level in bins if low < level.below < high), high]
    at = int(random.integers(len(limits) - 1))
    return float(random.uniform(limits[at], limits[at + 1]))
