"""Chat templates as token ids: control tokens by their ids, everything else as plain text.

What a sensor or an operator wrote is only ever tokenised as plain text, so it cannot end its turn
or open another one, and no Jinja from a downloaded file runs. Plain pieces that touch are joined
before they are tokenised, because that is what gives the ids that the model was trained on; hence
a text that follows plain template text (chatml's `user` and a line end) should not begin with
white space where it is tokenised apart from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from smallm_ros.core.errors import ModelFileError

if TYPE_CHECKING:  # a template needs no llama.cpp
    from smallm_ros.engine.model import Tokenizer


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, by its exact spelling."""

    text: str


Pieces = tuple[Control | str, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """What stands around each turn of a conversation."""

    name: str
    begin: Pieces
    system: tuple[Pieces, Pieces] | None
    """Before and after the system text; likewise the next two. None: the model knows no such turn,
    and the text stands at the begin of the first user's, an empty line after it."""
    user: tuple[Pieces, Pieces]
    answer: tuple[Pieces, Pieces]
    end: Control
    """Ends an answer."""
    marks: tuple[Control, ...] = ()
    """What else is in the vocabularies of this template and tells it from an older one."""

    def controls(self) -> tuple[str, ...]:
        """Return the spellings of all control tokens that this template needs."""
        parts = (self.begin, *(self.system or ()), *self.user, *self.answer, (self.end,),
                 self.marks)
        pieces = (piece for part in parts for piece in part)
        return tuple({piece.text: None for piece in pieces if isinstance(piece, Control)})


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation up to the last user's text, and what follows that text."""

    prefix: list[int]
    """Ends where the dynamic user text begins."""
    suffix: list[int]
    """Closes the user's turn and opens the assistant's."""
    end: int
    """The control token that ends an answer."""
    between: list[int]
    """From behind that token to where the next turn's user text begins."""


def _llama_3(role: str) -> tuple[Pieces, Pieces]:
    return ((Control('<|start_header_id|>'), role, Control('<|end_header_id|>'), '\n\n'),
            (Control('<|eot_id|>'),))


_MISTRAL_V7_TEKKEN = Template(
    # <s>[SYSTEM_PROMPT]…[/SYSTEM_PROMPT][INST]…[/INST]…</s>, no space around any marker
    name='mistral-v7-tekken',
    begin=(Control('<s>'),),
    system=((Control('[SYSTEM_PROMPT]'),), (Control('[/SYSTEM_PROMPT]'),)),
    user=((Control('[INST]'),), (Control('[/INST]'),)),
    answer=((), (Control('</s>'),)),
    end=Control('</s>'),
)

_CHATML = Template(
    # <|im_start|>role, line end, text, <|im_end|>, line end
    name='chatml',
    begin=(),
    system=((Control('<|im_start|>'), 'system\n'), (Control('<|im_end|>'), '\n')),
    user=((Control('<|im_start|>'), 'user\n'), (Control('<|im_end|>'), '\n')),
    answer=((Control('<|im_start|>'), 'assistant\n'), (Control('<|im_end|>'), '\n')),
    end=Control('<|im_end|>'),
)

# Their tool calls differ, of which there are none here; the ids of these turns are those of v7.
_MISTRAL_V11 = replace(
    _MISTRAL_V7_TEKKEN, name='mistral-v11', marks=(Control('[ARGS]'), Control('[CALL_ID]')))
_MISTRAL_V13 = replace(_MISTRAL_V11, name='mistral-v13')

_LLAMA_3 = Template(
    # <|begin_of_text|>, then of each turn the role between its markers, an empty line, the text
    name='llama-3',
    begin=(Control('<|begin_of_text|>'),),
    system=_llama_3('system'),
    user=_llama_3('user'),
    answer=_llama_3('assistant'),
    end=Control('<|eot_id|>'),
)

_GEMMA = Template(
    # <bos>, then of each turn the marker with its role, a line end, the text, a marker, a line end
    name='gemma',
    begin=(Control('<bos>'),),
    system=None,
    user=((Control('<start_of_turn>'), 'user\n'), (Control('<end_of_turn>'), '\n')),
    answer=((Control('<start_of_turn>'), 'model\n'), (Control('<end_of_turn>'), '\n')),
    end=Control('<end_of_turn>'),
)

TEMPLATES = {template.name: template for template in (
    _MISTRAL_V7_TEKKEN, _MISTRAL_V11, _MISTRAL_V13, _CHATML, _LLAMA_3, _GEMMA)}


def conversation(
    name: str, model: Tokenizer, system: str, examples: Sequence[tuple[str, str]]
) -> Rendered:
    """Return the ids around a user's text, after `system` and (user, answer) examples.

    Raises ModelFileError when the vocabulary lacks a control token of the template.
    """
    template = _named(name)
    before: list[Control | str] = [*template.begin]
    lead: Pieces = ()
    if template.system is not None:
        before += _around(template.system, system)
    elif system:
        lead = (f'{system}\n\n',)
    for text, answer in examples:
        before += [*template.user[0], *lead, text, *template.user[1]]
        before += _around(template.answer, answer)
        lead = ()
    return Rendered(
        prefix=_tokens(model, [*before, *template.user[0], *lead]),
        suffix=_tokens(model, [*template.user[1], *template.answer[0]]),
        end=model.control_token(template.end.text),
        between=_tokens(model, [*template.answer[1][1:], *template.user[0]]),
    )


def fitting(name: str | None, model: Tokenizer) -> str:
    """Return the name of the template for `model`: `name`, if it fits, or the one that does.

    Raises ModelFileError when the vocabulary lacks a control token of `name`, or, without a name,
    when no template fits, or several that are not versions of one.
    """
    if name is not None:
        for text in _named(name).controls():
            model.control_token(text)
        return name
    fits = {template.name: set(template.controls())
            for template in TEMPLATES.values() if _fits(template, model)}
    for name, needs in fits.items():
        if all(needs >= others for others in fits.values()):
            return name  # the newest of one kind; those of the same needs give the same ids
    raise ModelFileError(
        'the vocabulary does not tell the chat template (fitting: '
        f'{", ".join(fits) or "none"}): name one of {", ".join(TEMPLATES)}'
    )


def _named(name: str) -> Template:
    template = TEMPLATES.get(name)
    if template is None:
        raise ModelFileError(f'chat template {name!r} is unknown: one of {", ".join(TEMPLATES)}')
    return template


def _fits(template: Template, model: Tokenizer) -> bool:
    try:
        for text in template.controls():
            model.control_token(text)
    except ModelFileError:
        return False
    return True


def _around(parts: tuple[Pieces, Pieces], text: str) -> Pieces:
    return (*parts[0], text, *parts[1])


def _tokens(model: Tokenizer, pieces: Iterable[Control | str]) -> list[int]:
    ids: list[int] = []
    plain = ''
    for piece in pieces:
        if isinstance(piece, str):
            plain += piece
            continue
        ids += model.tokenize(plain) if plain else []
        plain = ''
        ids.append(model.control_token(piece.text))
    return ids + (model.tokenize(plain) if plain else [])
