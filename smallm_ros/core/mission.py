"""The operator's words: text from a topic that says what is wanted, until other words come.

The text is data. It is cleaned, bounded and quoted, it can add no action and end no turn, and
beside the file's mission it is one line of the prompt. What comes too soon, is too long or has
nothing left once it is cleaned is dropped and counted, and the words before it stay. An empty text
gives the word back to the file's mission; that is never too soon.
"""

from __future__ import annotations

from smallm_ros.core.clock import SECOND
from smallm_ros.core.policy import MissionTopic
from smallm_ros.core.prompt import plain
from smallm_ros.core.summary.words import quoted


class Mission:
    """The words in force, and what became of those that came."""

    def __init__(self, rules: MissionTopic) -> None:
        self.text = ''
        """Empty: the file's mission alone."""
        self.changes = 0
        """How often `text` became another."""
        self.dropped = 0
        """Texts that were not taken."""
        self.why = ''
        """Why the last text was not taken, in one line; empty when it was."""
        self._rules = rules
        self._taken_ns: int | None = None
        """When the last text that is not empty was taken."""

    def hear(self, said: str, now_ns: int) -> bool:
        """Take in what came at a steady time; return False when it is dropped."""
        most = self._rules.max_characters
        # The length before cleaning bounds the work, the length after it the prompt.
        text = quoted(plain(said), most + 1)[1:-1] if len(said) <= most else ''
        self.why = ''
        if text == self.text:
            return True  # a publisher that repeats itself changes nothing, however often
        if said.strip() == '':
            self.text = ''
            self.changes += 1
            return True
        if len(said) > most or len(text) > most:
            self.why = f'more than {most} characters'
        elif not text:
            self.why = 'nothing but control characters'
        elif self._taken_ns is not None and now_ns - self._taken_ns < self._least_ns:
            since_s = (now_ns - self._taken_ns) / SECOND
            self.why = (f'{since_s:.1f} s after the one before, at least '
                        f'{self._rules.min_period_s:g} s')
        if self.why:
            self.dropped += 1
            return False
        self.text = text
        self.changes += 1
        self._taken_ns = now_ns
        return True

    @property
    def _least_ns(self) -> int:
        return round(self._rules.min_period_s * SECOND)
