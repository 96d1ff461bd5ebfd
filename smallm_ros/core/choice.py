"""A choice of an action's parameter, and how it is written in the answer.

Of a number there is one text, the one decimal without exponent, so that every member of the action
space has exactly one answer.
"""

from __future__ import annotations

from decimal import Decimal

from smallm_ros.core.sensor import Finite, Word

Choice = Word | bool | int | Finite


def choice_text(value: Choice) -> str:
    """Return how a choice is written in the answer: `fast`, `true`, `3`, `0.25`.

    Of a number it is the one decimal without exponent, without zeros that say nothing.
    """
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, str):
        return value
    return format(decimal(value).normalize(), 'f') if value else '0'


def decimal(number: float) -> Decimal:
    """Return the number that the file says, not the binary one nearest to it."""
    return Decimal(repr(number))


def keys_as_written(values: object) -> object:
    """Return a table by choice with its keys as they are written in the answer."""
    if not isinstance(values, dict):
        return values
    out = {
        choice_text(key) if isinstance(key, (bool, int, float)) else key: value
        for key, value in values.items()
    }
    if len(out) != len(values):
        raise ValueError('a choice has two values')
    return out
