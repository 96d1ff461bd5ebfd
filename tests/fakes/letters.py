"""A vocabulary of one token a byte, for what counts tokens and needs no model."""

from __future__ import annotations

from smallm_ros.bench.workload import Vocabulary
from smallm_ros.engine.templates import TEMPLATES

TEMPLATE = 'mistral-v7-tekken'


def letters() -> Vocabulary:
    """Return it: byte b is token b, and the template's control tokens follow."""
    controls = TEMPLATES[TEMPLATE].controls()
    return Vocabulary(
        said='letters', template=TEMPLATE, size=256 + len(controls),
        tokenize=lambda text: list(text.encode()),
        control_token=lambda text: 256 + controls.index(text),
        piece=lambda token: bytes([token]) if token < 256 else controls[token - 256].encode(),
    )
