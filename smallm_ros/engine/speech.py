"""What the model says after the action is decided: one line of printable text, at most so long.

The text is decoded greedily, token by token, under a grammar that llguidance keeps in step with
the tokens: no control token, line break or control character can come out, whatever the logits
want. It ends with the template's end of the answer, at its limits, or when the caller does not let
it go on, and what was said until then stands. Nothing here can fail a decision: that went out
before. llguidance is needed only where a policy asks for free text, so it is imported late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from smallm_ros.core.exchange import FreeText
from smallm_ros.engine.model import ABORTED, DecodeError, Model

if TYPE_CHECKING:
    from llguidance import LLMatcher

Step = Callable[[Sequence[int]], npt.NDArray[np.float32]]

_PRINTABLE = r'[^\p{Cc}\p{Cf}\p{Co}\p{Zl}\p{Zp}]'
"""Neither control, format (zero width, right to left) or private, nor an end of a line."""

_SLICES = [_PRINTABLE + '{1,10}', _PRINTABLE + '{1,30}']
"""llguidance keeps the tokens that such a text holds as ready masks, and takes one over whole
where the grammar allows it: 0.04 ms a mask and not 1.5 over 131,072 tokens. With the unassigned
characters left out too it gives up on the comparison."""


class Speech:
    """Speaks with one model; must not outlive it, llguidance holds on to its vocabulary."""

    def __init__(self, model: Model, end: int) -> None:
        """Read the vocabulary, which takes a second for 131,072 tokens; `end` ends an answer.

        Raises PackageMissingError without llguidance.
        """
        tokenizer = model.llguidance_tokenizer()
        from llguidance import LLMatcher, LLTokenizer

        assert isinstance(tokenizer, LLTokenizer)
        self._model = model
        self._end = end
        self._matcher = LLMatcher
        self._tokenizer = tokenizer.with_slices(_SLICES)
        self._fresh: dict[int, LLMatcher] = {}
        """For each limit of characters, a matcher that has read nothing."""

    def speak(
        self, rules: FreeText, step: Step, may_go_on: Callable[[], bool]
    ) -> tuple[str, int, bool]:
        """Return (text, its tokens, whether it was cut short).

        `step` appends tokens to the sequence and returns the logits after the last, (n_vocab,);
        the first call gets the tokens of the lead (none when it is empty), each later one the
        token that was chosen. `may_go_on` is asked before each. The text is stripped and whole
        UTF-8. A step that was aborted cuts it; any other DecodeError passes through.
        """
        matcher = self._start(rules.max_characters)
        tokens = self._model.tokenize(rules.lead)
        said: list[int] = []
        cut = True
        while len(said) < rules.max_tokens and may_go_on():
            allowed = self._allowed(matcher)
            if matcher.is_error() or np.count_nonzero(allowed) == allowed[self._end]:
                break  # at most the end is left: a pass to learn that would be wasted
            try:
                logits = step(tokens)
            except DecodeError as err:
                if err.code != ABORTED:
                    raise
                break
            scores = np.where(allowed, logits, -np.inf)
            best = int(scores.argmax())
            if not np.isfinite(scores[best]):
                break
            if best == self._end:
                cut = False
                break
            matcher.consume_token(best)
            said.append(best)
            tokens = [best]
        raw = b''.join(map(self._model.piece, said))
        # the grammar lets nothing through but UTF-8, so what is ignored is an unfinished last one
        return raw.decode('utf-8', 'ignore').strip(), len(said), cut

    def _start(self, max_characters: int) -> LLMatcher:
        fresh = self._fresh.get(max_characters)
        if fresh is None:
            grammar = self._matcher.grammar_from_lark(
                f'start: TEXT <[{self._end}]>\nTEXT: /{_PRINTABLE}{{1,{max_characters}}}/'
            )
            fresh = self._matcher(self._tokenizer, grammar, log_level=0)
            self._fresh[max_characters] = fresh
        return fresh.deep_copy()

    def _allowed(self, matcher: LLMatcher) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._model.n_vocab, bitorder='little').view(np.bool_)
