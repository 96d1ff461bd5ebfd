"""Plain text -> ids, none of them a marker: what llama.cpp takes for itself is broken open.

With special tokens off llama.cpp leaves control tokens alone, but not user-defined ones: it takes
`<|channel|>` or `<think>` for themselves wherever they stand, and text from a topic could so open
another voice. Such a spelling is tokenised in two parts, which are the same text. User-defined
tokens that are no markers, runs of blanks above all, stay as the model was trained on them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping


class Markers:
    """The user-defined markers of one vocabulary."""

    def __init__(self, user_defined: Mapping[int, str]) -> None:
        """Take a vocabulary's user-defined tokens, spelling by id."""
        spelled = {
            token: text for token, text in user_defined.items()
            if len(text) > 2 and text[0] + text[-1] in ('<>', '[]')
        }
        self._ids = frozenset(spelled)
        # Between a marker's first character and its others; of two that overlap, in both.
        self._inside = re.compile('|'.join(
            f'(?<={re.escape(text[0])})(?={re.escape(text[1:])})' for text in spelled.values()))

    def plain(self, text: str, tokenize: Callable[[str], list[int]]) -> list[int]:
        """Return the ids of a text; `tokenize` is llama.cpp's, with special tokens off."""
        ids = tokenize(text)
        if self._ids.isdisjoint(ids):
            return ids
        return [token for part in self._inside.split(text) for token in tokenize(part)]
