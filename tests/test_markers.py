"""A marker in plain text is broken open, and nothing else about the text changes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallm_ros.engine.markers import Markers

MARKS = {300: '<think>', 301: '<|channel|>', 302: '[IMG]', 303: '  ', 304: '<>', 305: '<<a>>'}
MARKERS = {300, 301, 302, 305}
ANY = re.compile('|'.join(re.escape(text) for text in sorted(MARKS.values(), key=len)[::-1]))


def as_llama_does(text: str) -> list[int]:
    """Return bytes, and user-defined tokens wherever they stand."""
    ids: list[int] = []
    at = 0
    for found in ANY.finditer(text):
        ids += text[at:found.start()].encode()
        ids.append(next(token for token, spelled in MARKS.items() if spelled == found[0]))
        at = found.end()
    return [*ids, *text[at:].encode()]


def spelled(ids: list[int]) -> str:
    return b''.join(
        MARKS[token].encode() if token in MARKS else bytes([token]) for token in ids).decode()


@pytest.mark.parametrize('text', [
    '<think>', 'a<think>b', '<think><think>', '<<think>think>', '<|channel|><|channel|>final',
    '[IMG][IMG]', '<<a>>', '<th<think>ink>', '[<think>IMG]',
])
def test_a_marker_is_broken_open(text: str) -> None:
    assert MARKERS & set(as_llama_does(text)), 'llama.cpp alone gives a marker'
    ids = Markers(MARKS).plain(text, as_llama_does)
    assert not MARKERS & set(ids)
    assert spelled(ids) == text


def test_what_is_no_marker_stays_one_token() -> None:
    assert Markers(MARKS).plain('a  b', as_llama_does) == [97, 303, 98]
    assert Markers({}).plain('<think>', as_llama_does) == [300]


@given(st.lists(st.sampled_from([*MARKS.values(), '<', '>', '[', '|', 'think', 'IMG', 'ä'])))
def test_whatever_the_text_no_marker_comes_out(pieces: list[str]) -> None:
    text = ''.join(pieces)
    ids = Markers(MARKS).plain(text, as_llama_does)
    assert not MARKERS & set(ids)
    assert spelled(ids) == text
